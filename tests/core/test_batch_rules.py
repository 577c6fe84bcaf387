"""Who may do what with a batch message, and the rows that result."""

from __future__ import annotations

from itertools import product

import pytest

from im_actors.core.batch import (
    ACTIVE,
    BODY_KEY,
    CHUNK_BYTES_MAX,
    CHUNK_USERS_MAX,
    CONTENT_BYTES_MAX,
    CONTENT_KEY,
    COPIED_BYTES_MAX,
    ELLIPSIS,
    JOB_KEY,
    NOT_SENT,
    PROGRESS_CHUNKS_MAX,
    PROGRESS_KEY,
    Job,
    JobState,
    Outcome,
    Progress,
    batch_device,
    chunk_key,
    chunked,
    content_session,
    create_request,
    event_body,
    failures_key,
    is_batch_device,
    progress_note,
    read_failures,
    read_names,
    recipients_request,
)
from im_actors.core.batch_rules import (
    LISTED_KEY,
    RIGHTS,
    TRANSITIONS,
    Who,
    listing_note,
    listing_of,
    read_listed,
)
from im_actors.core.facts import pack_request
from im_actors.core.hearers import hearers
from im_actors.core.model import BODY_BYTES_MAX, Event, EventKind, make_key
from im_actors.core.overlays import recall_request
from im_actors.core.rule_settings import RuleSettings
from im_actors.errors import (
    BadRequest,
    Forbidden,
    ImError,
    NotFound,
    OutOfOrder,
    TooLarge,
    TooLate,
)
from tests.core.deciding import Deciding

SESSION = "batch:sale"
BOSS, COLLEAGUE, STRANGER = "robot/pc", "helper/pc", "eve/pc"
SERVICES = RuleSettings(services=frozenset({"robot", "helper"}))
BATCH = EventKind.BATCH


def ordered(*chunks: list[str], total: int = 0, dry: bool = False) -> Deciding:
    batch = Deciding(SESSION, SERVICES)
    batch.send(BOSS, BATCH, create_request(b"hello", "daily", total=total, dry=dry))
    for number, users in enumerate(chunks):
        batch.send(BOSS, BATCH, recipients_request(number, users))
    return batch


def do(batch: Deciding, what: str, device: str = BOSS) -> Event | None:
    return batch.send(device, BATCH, pack_request(what))


def job_of(batch: Deciding) -> Job:
    value = batch.value(JOB_KEY)
    assert value is not None
    return Job.from_bytes(value)


def progress_of(batch: Deciding) -> Progress:
    return Progress.from_bytes(batch.value(PROGRESS_KEY))


def in_state(state: JobState) -> Deciding:
    batch = ordered(["ann"], ["bob"])
    ways = {
        JobState.RUNNING: ("start",),
        JobState.PAUSED: ("start", "pause"),
        JobState.DONE: ("start",),
        JobState.CANCELLING: ("start", "cancel"),
        JobState.CANCELLED: ("start", "cancel"),
        JobState.RECALLING: ("start", "recall"),
        JobState.RECALLED: ("start", "recall"),
    }
    for what in ways.get(state, ()):
        do(batch, what)
    if state is JobState.DONE:
        batch.note(progress_note(False, 0, [Outcome(1), Outcome(1)]))
    elif state in (JobState.CANCELLED, JobState.RECALLED):
        batch.note(progress_note(False, 0, [Outcome(1)], settled=True))
    if state is JobState.RECALLED:
        batch.note(progress_note(True, 0, [Outcome(1)]))
    assert job_of(batch).state is state
    return batch


@pytest.mark.parametrize(("state", "what"), list(product(JobState, TRANSITIONS)))
def test_what_is_possible_in_each_state(state: JobState, what: str) -> None:
    batch = in_state(state)
    if state in TRANSITIONS[what]:
        do(batch, what)
        assert job_of(batch).state is TRANSITIONS[what][state]
    else:
        before = dict(batch.facts)
        assert isinstance(batch.refusal(BOSS, BATCH, pack_request(what)), Forbidden)
        assert batch.facts == before


@pytest.mark.parametrize("what", sorted(RIGHTS))
def test_who_may(what: str) -> None:
    bodies = {
        "create": create_request(b"hello", "high"),
        "recipients": recipients_request(2, ["carol"]),
    }
    body = bodies.get(what, pack_request(what))
    state = {"resume": JobState.PAUSED, "pause": JobState.RUNNING, "recall": JobState.RUNNING}
    for device in (BOSS, COLLEAGUE, STRANGER, "*"):
        batch = in_state(state.get(what, JobState.OPEN))
        if what == "create":
            batch = Deciding(SESSION, SERVICES)
        allowed = device == BOSS or (device == COLLEAGUE and RIGHTS[what] is Who.SERVICE)
        if allowed:
            batch.send(device, BATCH, body)
        else:
            assert isinstance(batch.refusal(device, BATCH, body), Forbidden)


def test_an_order_says_all_of_it_once() -> None:
    batch = ordered(["ann", "bob"], ["carol"], total=3)
    job = job_of(batch)
    assert job == Job(JobState.OPEN, "robot", "daily", "system", False, 3, 2, 3, batch.now_ms)
    assert batch.value(BODY_KEY) == b"hello"
    assert batch.value(CONTENT_KEY) is None
    value = batch.value(chunk_key(0))
    assert value is not None
    assert read_names(value) == ["ann", "bob"]
    assert isinstance(batch.refusal(BOSS, BATCH, create_request(b"again", "high")), Forbidden)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (create_request(b"", "daily"), BadRequest),
        (create_request(b"\xff", "daily"), BadRequest),
        (create_request(b"x" * (CONTENT_BYTES_MAX + 1), "daily"), TooLarge),
        (create_request(b"x", "hourly"), BadRequest),
        (create_request(b"x", "daily", notice="email"), BadRequest),
        (create_request(b"x", "daily", total=-1), BadRequest),
        (recipients_request(0, ["ann"]), NotFound),
        (pack_request("start"), NotFound),
    ],
)
def test_what_is_no_order(body: bytes, error: type[ImError]) -> None:
    assert type(Deciding(SESSION, SERVICES).refusal(BOSS, BATCH, body)) is error


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (recipients_request(3, ["dora"]), BadRequest),
        (recipients_request(0, ["dora"]), Forbidden),
        (recipients_request(2, []), TooLarge),
        (recipients_request(2, [f"u{n}" for n in range(CHUNK_USERS_MAX + 1)]), TooLarge),
        (recipients_request(2, [f"{n:03}" + "x" * 100 for n in range(300)]), TooLarge),
        (recipients_request(2, ["a/b"]), BadRequest),
    ],
)
def test_recipients_that_are_not_taken(body: bytes, error: type[ImError]) -> None:
    batch = ordered(["ann", "bob"], ["carol"])
    assert type(batch.refusal(BOSS, BATCH, body)) is error
    assert job_of(batch).recipients == 3


def test_a_chunk_that_comes_again_changes_nothing() -> None:
    batch = ordered(["ann", "bob"], ["carol"])
    batch.send(BOSS, BATCH, recipients_request(0, ["ann", "bob"]))
    assert (job_of(batch).chunks, job_of(batch).recipients) == (2, 3)
    do(batch, "start")
    late = batch.refusal(BOSS, BATCH, recipients_request(2, ["dora"]))
    assert isinstance(late, TooLate)


def test_it_starts_only_when_all_announced_recipients_are_here() -> None:
    start = pack_request("start")
    assert isinstance(ordered().refusal(BOSS, BATCH, start), Forbidden)
    batch = ordered(["ann"], total=2)
    assert isinstance(batch.refusal(BOSS, BATCH, start), Forbidden)
    batch.send(BOSS, BATCH, recipients_request(1, ["bob"]))
    do(batch, "start")
    assert job_of(batch).state is JobState.RUNNING


def test_a_dry_run_has_nothing_to_recall() -> None:
    batch = ordered(["ann"], dry=True)
    do(batch, "start")
    batch.note(progress_note(False, 0, [Outcome(1)]))
    assert job_of(batch).state is JobState.DONE
    assert isinstance(batch.refusal(BOSS, BATCH, pack_request("recall")), Forbidden)


def test_chunks_fit_whatever_the_names_are() -> None:
    for users in ([f"user{n}" for n in range(1_234)], [f"{n:04}" + "ü" * 62 for n in range(700)]):
        chunks = chunked(users)
        assert [user for chunk in chunks for user in chunk] == users
        batch = ordered(*chunks)
        assert job_of(batch).recipients == len(users)
        assert max(len(event.body) for event in batch.events) <= BODY_BYTES_MAX
    assert chunked([]) == []
    assert CHUNK_BYTES_MAX < 32_768


# -- progress


def test_progress_is_taken_once_and_in_order() -> None:
    batch = ordered(["ann", "bob"], ["carol"], ["dora"])
    do(batch, "start")
    first = [Outcome(1, ((1, 111),)), Outcome(1)]
    batch.note(progress_note(False, 0, first))
    known = progress_of(batch)
    assert known == Progress(2, 2, 1, 0, False)
    assert read_failures(batch.value(failures_key(0))) == [(1, 111)]
    assert batch.note(progress_note(False, 0, first[:1])) is None
    with pytest.raises(OutOfOrder):
        batch.note(progress_note(False, 3, [Outcome(1)]))
    batch.note(progress_note(False, 1, [Outcome(1), Outcome(0, ((0, NOT_SENT),))]))
    assert progress_of(batch) == Progress(3, 2, 1, 1, True)
    assert job_of(batch).state is JobState.DONE


def test_progress_while_paused_may_end_the_job() -> None:
    batch = ordered(["ann"])
    do(batch, "start")
    do(batch, "pause")
    batch.note(progress_note(False, 0, [Outcome(1)]))
    assert job_of(batch).state is JobState.DONE


def test_nothing_is_sent_any_more_when_it_is_settled() -> None:
    batch = in_state(JobState.CANCELLED)
    with pytest.raises(Forbidden):
        batch.note(progress_note(False, 1, [Outcome(1)]))
    with pytest.raises(Forbidden):
        batch.note(progress_note(True, 0, [Outcome(1)]))
    assert progress_of(batch).sent == 1


def test_a_recall_first_finds_out_who_got_it() -> None:
    batch = in_state(JobState.RECALLING)
    with pytest.raises(Forbidden):
        batch.note(progress_note(True, 0, [Outcome(1)]))
    batch.note(progress_note(False, 0, [Outcome(1)], settled=True))
    assert job_of(batch).state is JobState.RECALLING
    batch.note(progress_note(True, 0, [Outcome(0, ((0, 113),))]))
    assert job_of(batch).state is JobState.RECALLED
    assert progress_of(batch)[-3:] == (1, 0, 1)
    assert read_failures(batch.value(failures_key(0, recall=True))) == [(0, 113)]


def test_only_servers_say_progress_and_only_that() -> None:
    batch = in_state(JobState.RUNNING)
    note = progress_note(False, 0, [Outcome(1)])
    assert isinstance(batch.refusal(BOSS, EventKind.NOTE, note), Forbidden)
    with pytest.raises(Forbidden):
        batch.note(pack_request("cursor", "x", 1))
    for bad in ([[]], [[1, 2]], [[-1]], [[0]] * (PROGRESS_CHUNKS_MAX + 1)):
        with pytest.raises(BadRequest):
            batch.note(pack_request("progress", False, 0, bad, False))


# -- content


@pytest.mark.parametrize("letter", ["x", "ü", "語", "🙂"])
@pytest.mark.parametrize("size", [1, COPIED_BYTES_MAX, COPIED_BYTES_MAX + 4, 9_000])
def test_what_a_recipient_gets_of_a_content(letter: str, size: int) -> None:
    content = (letter * size).encode()[:size].decode("utf-8", "ignore").encode() or b"x"
    body = event_body(content)
    device = batch_device("robot", SESSION)
    event = Event("notice:system/ann", 1, 0, EventKind.MESSAGE, device, 1, body)
    if len(content) <= COPIED_BYTES_MAX:
        assert body == content
        assert content_session(event) is None
    else:
        head = body.decode().removesuffix(ELLIPSIS)
        assert content.decode().startswith(head)
        assert len(body) <= COPIED_BYTES_MAX
        assert content_session(event) == SESSION
        assert content_session(event._replace(device="robot/pc")) is None
        assert content_session(event._replace(session="team")) is None
        batch = Deciding(SESSION, SERVICES)
        batch.send(BOSS, BATCH, create_request(content, "high"))
        assert (batch.value(BODY_KEY), batch.value(CONTENT_KEY)) == (body, content)


def test_a_batch_may_be_taken_back_long_after() -> None:
    device = batch_device("robot", SESSION)
    assert is_batch_device(device)
    assert not is_batch_device(BOSS)
    notices = Deciding("notice:system/ann", SERVICES)
    notices.say(device, "hello")
    notices.say(BOSS, "by hand")
    notices.now_ms += 30 * 86_400_000
    assert notices.send(device, EventKind.RECALL, recall_request(1)) is not None
    assert isinstance(notices.refusal(device, EventKind.RECALL, recall_request(2)), TooLate)
    assert isinstance(notices.refusal(BOSS, EventKind.RECALL, recall_request(2)), TooLate)


# -- the list of active batches


def test_the_slot_hears_which_batches_are_active() -> None:
    slot = 5
    for state in JobState:
        batch, listing = in_state(state), Deciding(f"slot:{slot}")
        notes = []
        for event in batch.events:
            event = event._replace(key=make_key(batch.now_ms, slot, 0))
            found = hearers(event)
            assert len(found) == (listing_of(event) is not None)
            for subject, note in found:
                assert subject.hearer == listing.session
                notes.append(note.body())
        listing.note(listing_note("batch:other", 7, True))
        # They may all come again, in order.
        for body in [*notes, *notes]:
            listing.note(body)
        listed = read_listed(listing.value(LISTED_KEY))
        assert listed.pop("batch:other") == 7
        assert list(listed) == ([SESSION] if state in ACTIVE else []), state
        assert listing.note(notes[-1]) is None if notes else True
