"""Notes: what servers say of events elsewhere, as often as they like, is taken once."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core import groups as g
from im_actors.core import mailbox, notes
from im_actors.core.conversation import Conversation, conversation_key
from im_actors.core.facts import pack_request, read_state
from im_actors.core.model import BODY_BYTES_MAX, Event, EventKind
from im_actors.core.overlays import recall_request
from im_actors.core.rules import SERVER
from im_actors.core.spans import SPAN_EVENTS_MAX, Span, span_of
from im_actors.errors import BadRequest, ImError, OutOfOrder, TooLarge
from tests.core.deciding import Deciding

DIRECT = "direct:alice/bob"
NOTE = EventKind.NOTE


def row_of(found: Deciding, session: str = DIRECT) -> Conversation:
    value = found.value(conversation_key(session))
    return Conversation.from_bytes(value) if value is not None else Conversation()


def texts(count: int, sender: str = "bob") -> list[Event]:
    return [Event(DIRECT, seq, seq, 1, f"{sender}/pc", seq, b"x") for seq in range(1, count + 1)]


def test_a_span_is_taken_once() -> None:
    found = Deciding("user:alice")
    span = span_of("alice", texts(3))
    event = found.note(notes.span_note(DIRECT, span))
    assert event is not None
    assert read_state(event.body)[:2] == ("span", [DIRECT])
    assert found.note(notes.span_note(DIRECT, span)) is None
    assert row_of(found).unread().number == 3


@given(st.integers(0, 10**9))
def test_both_mailboxes_are_exact_after_notes_at_least_once(seed: int) -> None:
    rng = random.Random(seed)
    talk = Deciding(DIRECT)
    boxes = {user: Deciding(f"user:{user}") for user in ("alice", "bob")}
    noted, read = dict.fromkeys(boxes, 0), dict.fromkeys(boxes, 0)
    for _ in range(30):
        user = rng.choice(("alice", "bob"))
        if rng.random() < 0.5:
            talk.say(f"{user}/pc", "x")
        elif rng.random() < 0.3 and talk.events:
            target = rng.choice(talk.events)
            talk_recall(talk, target)
        elif talk.events:
            first = rng.randint(0, noted[user])
            last = rng.randint(first, len(talk.events))
            if last > first:
                body = notes.span_note(DIRECT, span_of(user, talk.events[first:last]))
                changed = boxes[user].note(body) is not None
                assert changed == (last > noted[user])
                noted[user] = max(noted[user], last)
        if rng.random() < 0.2:
            read[user] = max(read[user], upto := rng.randint(1, len(talk.events) + 1))
            body = mailbox.read_request(DIRECT, upto)
            boxes[user].send(f"{user}/pc", EventKind.MAILBOX, body)
        for name, box in boxes.items():
            check_unread(box, name, talk.events[: noted[name]], read[name])


def talk_recall(talk: Deciding, target: Event) -> None:
    overlays = {fact.rank for fact in talk.facts.values()}
    if target.kind == EventKind.MESSAGE and target.seq not in overlays:
        talk.send(target.device, EventKind.RECALL, recall_request(target.seq))


def check_unread(box: Deciding, user: str, events: list[Event], read_seq: int) -> None:
    recalled = {read_state(e.body).args[0] for e in events if e.kind == EventKind.RECALL}
    expected = [
        e.seq
        for e in events
        if e.kind == EventKind.MESSAGE and e.sender != user and e.seq not in recalled
    ]
    assert row_of(box).unread().number == sum(seq > read_seq for seq in expected)


def test_a_gap_is_refused_and_says_where_to_go_on() -> None:
    found = Deciding("user:alice")
    error = found.refusal(SERVER, NOTE, notes.span_note(DIRECT, span_of("alice", texts(3)[1:])))
    assert type(error) is OutOfOrder
    assert "note from 1 on" in str(error)


def test_the_longest_span_fits() -> None:
    talk = Deciding(DIRECT)
    for at in range(SPAN_EVENTS_MAX // 2):
        talk.say("bob/pc", "x" * 1_000)
        talk.send("bob/pc", EventKind.RECALL, recall_request(2 * at + 1))
    body = notes.span_note(DIRECT, span_of("alice", talk.events))
    assert len(body) < BODY_BYTES_MAX
    found = Deciding("user:alice")
    assert found.note(body) is not None
    assert row_of(found).unread().number == 0


def test_membership_is_noted_in_the_mailboxes_of_all_whom_it_concerns() -> None:
    group = Deciding("group:g")
    boxes = {f"user:{user}": Deciding(f"user:{user}") for user in ("alice", "bob", "eve")}
    for user, body in (
        ("alice", g.create_request("g", ["bob"])),
        ("alice", g.role_request("bob", "admin")),
        ("bob", g.add_request(["eve"])),
        ("bob", g.leave_request()),
    ):
        event = group.send(f"{user}/pc", EventKind.GROUP, body)
        assert event is not None
        for session, note in notes.membership_notes(event):
            assert boxes[session].note(note) is not None
            assert boxes[session].note(note) is None
    assert [len(box.events) for box in boxes.values()] == [1, 2, 1]
    rows = [row_of(box, "group:g") for box in boxes.values()]
    assert [row.joined_seq for row in rows] == [1, 1, 3]
    assert [row.out for row in rows] == [False, True, False]
    assert rows[2].last_key == group.events[2].key


def test_reading_is_told_to_the_other_side() -> None:
    alice, bob = Deciding("user:alice"), Deciding("user:bob")
    event = alice.send("alice/pc", EventKind.MAILBOX, mailbox.read_request(DIRECT, 3))
    assert event is not None
    ((session, receipt),) = notes.receipts_of(event)
    assert (session, receipt) == ("user:bob", (DIRECT, 3, 3))
    bob.note(notes.receipt_note(*receipt))
    assert row_of(bob).peer_read_seq == 3
    for body in (
        mailbox.read_request(DIRECT, 2),
        mailbox.read_request("team", 5),
        mailbox.read_request("direct:alice/alice", 5),
        mailbox.pin_request(DIRECT, True),
        mailbox.received_request([(DIRECT, 3), ("direct:alice/alice", 5)]),
    ):
        event = alice.send("alice/pc", EventKind.MAILBOX, body)
        assert event is not None
        assert notes.receipts_of(event) == []
    assert bob.note(notes.receipt_note(DIRECT, 0, 9)) is not None
    assert (row_of(bob).peer_read_seq, row_of(bob).peer_delivered_seq) == (3, 9)
    assert bob.note(notes.receipt_note(DIRECT, 2, 8)) is None


def test_what_came_to_a_device_is_told_to_the_other_sides() -> None:
    alice, bob = Deciding("user:alice"), Deciding("user:bob")
    body = mailbox.received_request(
        [(DIRECT, 3), ("direct:alice/eve", 5), ("direct:alice/alice", 6)]
    )
    event = alice.send("alice/pc", EventKind.MAILBOX, body)
    assert event is not None
    told = notes.receipts_of(event)
    assert told == [("user:bob", (DIRECT, 0, 3)), ("user:eve", ("direct:alice/eve", 0, 5))]
    bob.note(notes.receipt_note(*told[0][1]))
    body = mailbox.received_request([(DIRECT, 2), ("direct:alice/eve", 6)])
    event = alice.send("alice/pad", EventKind.MAILBOX, body)
    assert event is not None
    assert notes.receipts_of(event) == [("user:eve", ("direct:alice/eve", 0, 6))]
    assert (row_of(bob).peer_read_seq, row_of(bob).peer_delivered_seq) == (0, 3)


def test_a_cursor_only_moves_forward() -> None:
    slot = Deciding("slot:3")
    assert slot.note(notes.cursor_note("mailboxes", 7)) is not None
    assert slot.note(notes.cursor_note("mailboxes", 7)) is None
    assert slot.note(notes.cursor_note("mailboxes", 5)) is None
    assert slot.note(notes.cursor_note("mailboxes", 8)) is not None
    assert notes.read_cursor(slot.value(notes.cursor_key("mailboxes"))) == 8
    assert notes.read_cursor(None) == 0


def test_who_is_noted() -> None:
    assert notes.noted_mailboxes(DIRECT) == ["user:alice", "user:bob"]
    assert notes.noted_mailboxes("direct:alice/alice") == ["user:alice"]
    for session in ("team", "notice:system/alice", "group:g", "user:alice", "slot:3", "batch:b"):
        assert notes.noted_mailboxes(session) == []


SPAN = span_of("alice", texts(3))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (notes.span_note("team", SPAN), BadRequest),
        (notes.span_note("group:g", SPAN), BadRequest),
        (notes.span_note("direct:bob/eve", SPAN), BadRequest),
        (notes.joined_note(DIRECT, 1, 1), BadRequest),
        (notes.left_note("team", 1), BadRequest),
        (notes.receipt_note("notice:system/alice", 1, 1), BadRequest),
        (notes.cursor_note("mailboxes", 1), BadRequest),
        (notes.span_note(DIRECT, SPAN._replace(from_seq=3, to_seq=2)), BadRequest),
        (notes.span_note(DIRECT, SPAN._replace(skips=((2, 4),))), BadRequest),
        (notes.span_note(DIRECT, SPAN._replace(skips=((1, 2), (2, 3)))), BadRequest),
        (notes.span_note(DIRECT, SPAN._replace(skips=((3, 2),))), BadRequest),
        (notes.span_note(DIRECT, SPAN._replace(recalled=((1, 4),))), BadRequest),
        (notes.span_note(DIRECT, Span(1, 9999, 1, None, ((1, 1),) * 1_025, ())), TooLarge),
        (pack_request("span", DIRECT, 1, 1, 1, [1, 1, 1, "bob"], [], []), BadRequest),
        (pack_request("span", DIRECT, 1, 1, 1, [1, 1, 1, "bob", b"x"], [], []), BadRequest),
        (pack_request("span", DIRECT, 1, 1, 1, None, [1], []), BadRequest),
        (pack_request("shout", DIRECT), BadRequest),
    ],
)
def test_notes_that_make_no_sense_are_refused(body: bytes, error: type[ImError]) -> None:
    assert type(Deciding("user:alice").refusal(SERVER, NOTE, body)) is error


def test_a_slot_takes_cursors_only() -> None:
    body = notes.joined_note("group:g", 1, 1)
    assert type(Deciding("slot:3").refusal(SERVER, NOTE, body)) is BadRequest
