"""Who hears of an event: mailboxes of direct sessions, of members, of the peer."""

from __future__ import annotations

from functools import reduce

from hypothesis import given
from hypothesis import strategies as st

from im_actors.core.conversation import Conversation, conversation_key
from im_actors.core.diffusion import Subject
from im_actors.core.facts import pack_state
from im_actors.core.groups import Membership, Role, member_key
from im_actors.core.hearers import Newest, ReadsNote, ReceiptNote, SpanNote, hearers
from im_actors.core.model import Event, EventKind
from im_actors.core.names import mailbox_of
from im_actors.core.notes import Receipt, joined_note, left_note, receipt_note
from im_actors.core.operations import READERS_MAX
from im_actors.core.overlays import Overlay, overlay_key, overlay_rank
from im_actors.core.reads import Reader
from im_actors.core.spans import SPAN_EVENTS_MAX, joined_spans, span_of

DIRECT = "direct:alice/bob"
GROUP = "group:g"


def message(seq: int, user: str = "alice", session: str = DIRECT, text: bytes = b"hi") -> Event:
    return Event(session, seq, seq * 10, int(EventKind.MESSAGE), f"{user}/phone", seq, text)


def recall(seq: int, target: int, user: str = "alice") -> Event:
    row = Overlay(int(EventKind.RECALL), user, None).to_bytes()
    body = pack_state("recall", [target], [(overlay_key(target), overlay_rank(target), row)])
    return message(seq, user)._replace(kind=int(EventKind.RECALL), body=body)


def test_a_direct_message_is_heard_in_both_mailboxes() -> None:
    found = dict(hearers(message(1)))
    assert set(found) == {Subject("user:alice", DIRECT), Subject("user:bob", DIRECT)}
    mine, other = found[Subject("user:alice", DIRECT)], found[Subject("user:bob", DIRECT)]
    assert isinstance(mine, SpanNote)
    assert isinstance(other, SpanNote)
    assert mine.span.skips == ((1, 1),), "an own send does not count"
    assert other.span.skips == ()


def test_nobody_hears_of_a_notice_because_lists_read_its_channel() -> None:
    found = hearers(message(1, "press", "notice:system/alice"))
    assert found == []


def test_messages_of_groups_and_open_sessions_are_heard_by_nobody() -> None:
    assert hearers(message(1, session="team")) == []
    assert hearers(message(1, session="group:g")) == []


def test_a_membership_is_heard_by_the_member() -> None:
    rows = [("bob", Membership(Role.MEMBER, 7)), ("eve", Membership(Role.STRANGER, 2, 7))]
    facts = [(member_key(user), 0, row.to_bytes()) for user, row in rows]
    body = pack_state("add", [], facts)
    event = message(7, session="group:g")._replace(kind=int(EventKind.GROUP), body=body)
    assert hearers(event) == [
        (Subject("user:bob", "member group:g"), Newest(joined_note("group:g", 7, 70))),
        (Subject("user:eve", "member group:g"), Newest(left_note("group:g", 7))),
        (Subject("reads:g", "reads"), ReadsNote({"eve": Reader(0, 0, 7)})),
    ]


def test_a_read_position_is_heard_by_the_peer() -> None:
    body = pack_state("read", [DIRECT, 5], [("c/" + DIRECT, 1, b"row")])
    event = Event("user:bob", 3, 1, int(EventKind.MAILBOX), "bob/phone", 1, body)
    note = ReceiptNote(Receipt(DIRECT, 5, 5))
    assert hearers(event) == [(Subject("user:alice", "receipt user:bob"), note)]
    received = event._replace(
        body=pack_state("received", [[[DIRECT, 7]]], [("v/" + DIRECT, 0, b"row")])
    )
    ((_, later),) = hearers(received)
    assert note.joined(later).body() == receipt_note(DIRECT, 5, 7)
    unchanged = event._replace(body=pack_state("read", [DIRECT, 5], []))
    assert hearers(unchanged) == []


def read_in_group(user: str, row: Conversation, kind: EventKind = EventKind.MAILBOX) -> Event:
    what, args = ("read", [GROUP, 5]) if kind == EventKind.MAILBOX else ("joined", [GROUP])
    body = pack_state(what, args, [(conversation_key(GROUP), 1, row.to_bytes())])
    return Event(mailbox_of(user), 3, 1, int(kind), f"{user}/phone", 1, body)


def test_who_has_read_in_a_group_is_heard_where_its_readers_are_counted() -> None:
    member = Conversation().joined(2, 20)
    for kind in (EventKind.MAILBOX, EventKind.NOTE):
        event = read_in_group("bob", member.read(5), kind)
        assert hearers(event) == [
            (Subject("reads:g", "reads"), ReadsNote({"bob": Reader(5, 2)})),
        ]
        # He has read nothing yet, or is no member as far as his mailbox knows.
        for row in (member, Conversation().read(5), member.read(5).left(6)):
            assert hearers(read_in_group("bob", row, kind)) == []


def test_readers_of_one_slot_come_in_few_notes() -> None:
    row = Conversation().joined(2, 20).read(5)
    found = [hearers(read_in_group(f"user-{n}", row))[0] for n in range(READERS_MAX + 1)]
    (subject,) = {subject for subject, _ in found}
    first, *others = [note for _, note in found]
    assert subject.hearer == "reads:g"
    assert isinstance(first, ReadsNote)
    for note in others[:-1]:
        joined = first.joined(note)
        assert joined is not None
        first = joined
    assert len(first.readers) == READERS_MAX
    assert first.joined(others[-1]) is None
    again = first.joined(ReadsNote({"user-7": Reader(0, 0, 9)}))
    assert again is not None
    assert again.readers["user-7"] == Reader(5, 2, 9)


@given(st.lists(st.tuples(st.sampled_from(("alice", "bob")), st.integers(0, 6)), min_size=1))
def test_spans_joined_one_by_one_are_the_span_of_all(steps: list[tuple[str, int]]) -> None:
    events = [
        recall(seq, back, user) if 0 < back < seq else message(seq, user)
        for seq, (user, back) in enumerate(steps, 1)
    ]
    for user in ("alice", "bob"):
        joined = reduce(joined_spans, [span_of(user, [event]) for event in events])
        assert joined == span_of(user, events)
        assert Conversation().noted(joined) == Conversation().noted(span_of(user, events))


def test_a_span_has_its_limit() -> None:
    note = SpanNote(DIRECT, span_of("bob", [message(seq) for seq in range(1, SPAN_EVENTS_MAX)]))
    full = note.joined(SpanNote(DIRECT, span_of("bob", [message(SPAN_EVENTS_MAX)])))
    assert full is not None
    assert full.joined(SpanNote(DIRECT, span_of("bob", [message(SPAN_EVENTS_MAX + 1)]))) is None
