"""A row of the conversation list, against the list of the events that it stands for."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core import skips as skips_module
from im_actors.core.conversation import (
    PINNED_RANK,
    Conversation,
    conversation_key,
    conversation_of,
)
from im_actors.core.facts import read_state
from im_actors.core.model import Event, EventKind, pack
from im_actors.core.overlays import edit_request, recall_request
from im_actors.core.rows import ROW_VERSION
from im_actors.core.skips import Skips
from im_actors.core.spans import SPAN_EVENTS_MAX, Preview, Span, span_of, spans_of
from im_actors.errors import CorruptData, NewerFormat, OutOfOrder
from tests.core.deciding import Deciding

SESSION = "direct:alice/bob"
MESSAGE, EDIT, RECALL, VOID = (
    EventKind.MESSAGE,
    EventKind.EDIT,
    EventKind.RECALL,
    EventKind.VOID,
)


def talk(rng: random.Random, steps: int) -> list[Event]:
    """What alice and bob say, edit, recall and withdraw."""
    found = Deciding(SESSION)
    texts: dict[str, list[int]] = {"alice": [], "bob": []}
    for at in range(steps):
        user = rng.choice(("alice", "bob"))
        device, mine = f"{user}/pc", texts[user]
        what = rng.choice((MESSAGE, MESSAGE, MESSAGE, EDIT, RECALL, VOID))
        if what == MESSAGE or not mine:
            mine.append(found.say(device, f"text {at}").seq)
        elif what == EDIT:
            found.send(device, EDIT, edit_request(rng.choice(mine), b"edited %d" % at))
        elif what == RECALL:
            found.send(device, RECALL, recall_request(mine.pop(rng.randrange(len(mine)))))
        else:
            found.send(device, VOID, b"")
    return found.events


def counted(events: list[Event], user: str, read_seq: int) -> int:
    """Unread as the design says it, from the events alone."""
    recalled = {read_state(e.body).args[0] for e in events if e.kind == RECALL}
    unread = [
        e.seq
        for e in events
        if e.seq > read_seq and e.kind == MESSAGE and e.sender != user and e.seq not in recalled
    ]
    return len(unread)


def uncounted(events: list[Event], user: str, among: list[Event]) -> list[int]:
    recalled = {read_state(e.body).args[0] for e in events if e.kind == RECALL}
    return [e.seq for e in among if e.kind != MESSAGE or e.sender == user or e.seq in recalled]


def shown(events: list[Event]) -> tuple[int, int, str] | None:
    """(seq, kind, text) of the last message, as it is after all of these events."""
    messages = [e for e in events if e.kind == MESSAGE]
    if not messages:
        return None
    last = messages[-1]
    result = (last.seq, int(MESSAGE), last.text)
    for event in events:
        if event.kind in (EDIT, RECALL) and read_state(event.body).args[0] == last.seq:
            text = f"edited {event.seq - 1}" if event.kind == EDIT else ""
            result = (last.seq, event.kind, text)
    return result


def check_row(row: Conversation, events: list[Event], user: str, read_seq: int) -> None:
    unread = row.unread()
    assert unread.number == counted(events, user, read_seq)
    told = events[read_seq:]
    skipped = sum(e.kind != MESSAGE or e.sender == user for e in told)
    assert (unread.skipped, unread.recalled) == (skipped, len(told) - skipped - unread.number)
    assert (unread.last_seq, unread.read_seq) == (len(events), read_seq)
    floor = max(row.skips.folded_to, row.recalled.folded_to)
    unfolded = [e for e in told if e.seq > floor]
    shown_seqs = [seq for first, last in row.uncounted() for seq in range(first, last + 1)]
    # Both kinds together may have been too many again, and the oldest be left out.
    expected = uncounted(events, user, unfolded)
    assert shown_seqs == expected[len(expected) - len(shown_seqs) :]
    ranges = len(row.skips.ranges) + len(row.recalled.ranges)
    if not floor and ranges <= skips_module.RANGES_MAX:
        assert len(shown_seqs) == unread.skipped + unread.recalled
    preview = row.preview and (row.preview.seq, row.preview.kind, row.preview.text)
    assert preview == shown(events)
    assert row.last_key == (events[-1].key if events else 0)
    assert Conversation.from_bytes(row.to_bytes()) == row


@given(st.integers(0, 10**9), st.integers(1, 60))
def test_whatever_the_cut_and_repetition_of_spans_it_equals_counting(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    events = talk(rng, steps)
    user = rng.choice(("alice", "bob"))
    row, read_seq, known = Conversation(), 0, 0
    while known < len(events):
        if rng.random() < 0.3:
            upto = rng.randrange(0, len(events) + 3)
            row, read_seq = row.read(upto), max(read_seq, upto)
        first = rng.randint(0, known)
        last = rng.randint(first + 1, len(events))
        row, known = row.noted(span_of(user, events[first:last])), max(known, last)
        check_row(row, events[:known], user, read_seq)
    again = row
    for _ in range(5):
        first = rng.randrange(0, len(events))
        again = again.noted(span_of(user, events[first : rng.randint(first + 1, len(events))]))
    assert again == row


@given(st.integers(0, 10**9), st.integers(2, 80), st.integers(1, 5))
def test_it_is_exact_too_when_the_oldest_skips_are_folded(
    seed: int, steps: int, limit: int
) -> None:
    rng = random.Random(seed)
    events = talk(rng, steps)
    before, skips_module.RANGES_MAX = skips_module.RANGES_MAX, limit
    try:
        row, known, read_seq = Conversation(), 0, 0
        while known < len(events):
            first, last = rng.randint(0, known), rng.randint(known + 1, len(events))
            row, known = row.noted(span_of("bob", events[first:last])), last
            check_row(row, events[:known], "bob", read_seq)
            if rng.random() < 0.2:
                upto = rng.randint(0, known)
                # Of what is folded only the number is known: reading into it reads all of it.
                read_seq = max(upto, row.skips.folded_to) if upto > read_seq else read_seq
                row = row.read(upto)
                check_row(row, events[:known], "bob", read_seq)
    finally:
        skips_module.RANGES_MAX = before


def test_somebody_who_answers_and_never_reads_keeps_a_small_row() -> None:
    found, row, sizes = Deciding(SESSION), Conversation(), []
    for at in range(3_000):
        events = [found.say("alice/pc", "?"), found.say("bob/bot", "!")]
        row = row.noted(span_of("bob", events))
        assert row.unread().number == at + 1
        sizes.append(len(row.to_bytes()))
    assert max(sizes) < 4_096


def test_reading_into_what_is_folded_reads_all_of_it() -> None:
    found = Deciding(SESSION)
    for _ in range(600):
        found.say("alice/pc", "x")
    for seq in range(1, 601, 2):
        found.send("alice/pc", RECALL, recall_request(seq))
    row = Conversation()
    for span in spans_of("bob", found.events):
        row = row.noted(span)
    assert row.unread().number == 300
    folded_to = row.recalled.folded_to
    assert folded_to == 87
    row = row.read(10)
    assert row.read_seq == folded_to
    check_row(row, found.events, "bob", folded_to)
    check_row(row.read(300), found.events, "bob", 300)


def test_a_gap_is_an_error_that_says_where_to_go_on() -> None:
    events = talk(random.Random(1), 20)
    row = Conversation().noted(span_of("bob", events[:5]))
    with pytest.raises(OutOfOrder, match="note from 6 on"):
        row.noted(span_of("bob", events[6:]))


def test_many_events_are_told_in_several_spans() -> None:
    events = [Event(SESSION, seq, seq, 1, "alice/pc", seq, b"x") for seq in range(1, 2_502)]
    spans = spans_of("bob", events)
    assert [(span.from_seq, span.to_seq) for span in spans] == [
        (1, SPAN_EVENTS_MAX),
        (SPAN_EVENTS_MAX + 1, 2 * SPAN_EVENTS_MAX),
        (2 * SPAN_EVENTS_MAX + 1, 2_501),
    ]
    row = Conversation()
    for span in spans:
        row = row.noted(span)
    assert row.unread().number == 2_501


def test_a_preview_is_short() -> None:
    event = Event(SESSION, 1, 1, 1, "alice/pc", 1, "é".encode() * 5_000)
    preview = span_of("bob", [event]).preview
    assert preview is not None
    assert preview.text == "é" * 100


def test_reading_ahead_of_the_notes_counts_when_they_come() -> None:
    events = [Event(SESSION, seq, seq, 1, "alice/pc", seq, b"x") for seq in range(1, 11)]
    row = Conversation().read(7)
    assert row.unread().number == 0
    row = row.noted(span_of("bob", events[:5]))
    assert row.unread().number == 0
    assert row.noted(span_of("bob", events)).unread().number == 3


def test_read_positions_only_move_forward() -> None:
    row = Conversation().read(10)
    assert row.read(4) is row
    assert row.read(20).read_seq == 20


def test_a_deleted_preview_stays_deleted() -> None:
    found = Deciding(SESSION)
    events = [found.say("alice/pc", "one"), found.say("alice/pc", "two")]
    row = Conversation().noted(span_of("bob", events))
    assert row.delete(1) is row
    row = row.delete(2)
    edited = found.send("alice/pc", EDIT, edit_request(2, b"back again"))
    assert edited is not None
    row = row.noted(span_of("bob", [edited])).noted(span_of("bob", events))
    assert row.preview is not None
    assert (row.preview.kind, row.preview.text) == (VOID, "")
    row = row.noted(span_of("bob", [found.say("alice/pc", "three")]))
    assert row.preview is not None
    assert row.preview.text == "three"


def test_what_is_deleted_before_it_is_noted_is_never_shown() -> None:
    found = Deciding(SESSION)
    events = [found.say("alice/pc", "one"), found.say("alice/pc", "two")]
    row = Conversation().noted(span_of("bob", events[:1])).delete(2).delete(1)
    row = row.noted(span_of("bob", events))
    assert row.preview is not None
    assert row.preview[2:] == (VOID, "alice", "")


def test_of_a_conversation_that_is_never_noted_the_last_deleted_one_is_known() -> None:
    row = Conversation().delete(7)
    assert row.delete(5) is row
    assert row.preview is not None
    assert (row.preview.seq, row.preview.kind) == (7, VOID)


def test_places_in_the_list() -> None:
    row = Conversation(last_seq=5, last_key=77)
    assert row.rank() == 77
    assert row.pin(True).rank() == PINNED_RANK + 77
    assert row.pin(True).pin(False).rank() == 77
    assert row.hide(5).rank() == row.pin(True).hide(5).rank() == 0
    assert row.hide(4).rank() == row.hide(5).hide(0).rank() == 77
    assert row.hide(5).noted(Span(6, 6, 99, None, (), ())).rank() == 99
    assert row.fold("work").rank() == row.mute(True).rank() == 77


def test_a_group_row_knows_when_the_user_is_in() -> None:
    row = Conversation().joined(5, 500)
    assert (row.out, row.rank(), row.read_seq) == (False, 500, 5)
    assert row.hide(9).rank() == 500
    assert [row.hide(9).hidden_at(head) for head in (8, 9, 10)] == [True, True, False]
    row = row.left(8)
    assert (row.out, row.rank(), row.pin(True).rank()) == (True, 0, 0)
    assert not row.joined(12, 900).out


def test_membership_notes_may_come_late_and_again() -> None:
    notes = [("joined", 5), ("left", 8), ("joined", 12), ("left", 20), ("joined", 31)]
    rng = random.Random(2)
    for upto in range(1, len(notes) + 1):
        said = notes[:upto]
        for _ in range(20):
            row = Conversation()
            for what, seq in rng.sample([*said, *said], 2 * upto):
                row = row.joined(seq, 10 * seq) if what == "joined" else row.left(seq)
            assert row.out == (said[-1][0] == "left")
            joined = max(seq for what, seq in said if what == "joined")
            assert (row.read_seq, row.last_key) == (joined, 10 * joined)


def test_receipts_go_forward_and_what_is_read_was_received() -> None:
    row = Conversation().receipt(0, 5)
    assert (row.peer_read_seq, row.peer_delivered_seq) == (0, 5)
    row = row.receipt(8, 2)
    assert (row.peer_read_seq, row.peer_delivered_seq) == (8, 8)
    assert row.receipt(3, 3) == row


def test_keys_name_sessions() -> None:
    assert conversation_of(conversation_key("team")) == "team"
    assert conversation_of("d/phone") is None


FULL = Conversation(
    9, 99, Preview(9, 9, 1, "alice", "hi"), 3, Skips(5, 2, ((7, 8),)), Skips(0, 0, ((6, 6),)), 4, 6,
    True, True, 2, "work", 1, 0,
)  # fmt: skip


def test_rows_survive_their_bytes() -> None:
    for row in (Conversation(), FULL):
        assert Conversation.from_bytes(row.to_bytes()) == row
    assert all(value for name, value in FULL._asdict().items() if name != "left_seq")


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (pack((ROW_VERSION + 1, 1, 2)), NewerFormat, "upgrade this server"),
        (pack((ROW_VERSION, 1, 2)), CorruptData, "2 fields"),
        (pack((0,)), CorruptData, "no version"),
        (pack(("1",)), CorruptData, "no version"),
        (pack(()), CorruptData, "no msgpack array"),
        (b"\xc1", CorruptData, "no msgpack array"),
        (pack((ROW_VERSION, 1, 1, 7, *[0] * 11)), CorruptData, "wrong form"),
        (pack((ROW_VERSION, 1, 1, None, 0, (1, 2, 3), *[0] * 9)), CorruptData, "wrong form"),
    ],
)
def test_rows_of_another_form_say_so(data: bytes, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Conversation.from_bytes(data)


def test_ranges_of_a_span_do_not_touch() -> None:
    for seed in range(20):
        span = span_of("bob", talk(random.Random(seed), 40))
        assert all(one[1] + 1 < other[0] for one, other in pairwise(span.skips))
