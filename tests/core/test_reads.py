"""Who has read a message of a group: counted from what notes say, in whatever order they come."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from im_actors.core import groups as g
from im_actors.core import mailbox, notes
from im_actors.core.model import BODY_BYTES_MAX, Event, EventKind
from im_actors.core.names import mailbox_of
from im_actors.core.operations import NUMBER_MAX, READERS_MAX
from im_actors.core.reads import READ_RANK, Reader, read_ranges, reader_key, reads_note
from tests.core.deciding import Deciding

GROUP = "group:g"
USERS = ("bob", "carol", "dave", "eve")


def counted(reads: Deciding, seq: int) -> int:
    """As a replica counts."""
    read, later = (
        sum(low <= fact.rank <= high for fact in reads.facts.values())
        for low, high in read_ranges(seq)
    )
    return read - later


class Told:
    """A group, its members' mailboxes, and notes that come late, twice and in any order."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.group, self.reads = Deciding(GROUP), Deciding("reads:g")
        self.boxes = {user: Deciding(mailbox_of(user)) for user in (*USERS, "alice")}
        self.waiting: list[tuple[Deciding, bytes]] = []

    def change(self, user: str, body: bytes) -> None:
        event = self.group.send(f"{user}/pc", EventKind.GROUP, body)
        assert event is not None
        self.heard(event)
        boxes = [(self.boxes[name.partition(":")[2]], note) for name, note in
                 notes.membership_notes(event)]  # fmt: skip
        self.waiting += boxes

    def read(self, user: str, seq: int) -> None:
        body = mailbox.read_request(GROUP, seq)
        event = self.boxes[user].send(f"{user}/pc", EventKind.MAILBOX, body)
        assert event is not None
        self.heard(event)

    def heard(self, event: Event | None) -> None:
        if event is not None:
            _, readers = notes.readers_of(event)
            if readers:
                self.waiting.append((self.reads, reads_note(readers)))

    def tell(self, everything: bool = False) -> None:
        while self.waiting and (everything or self.rng.random() < 0.6):
            at = self.rng.randrange(len(self.waiting))
            hearer, body = self.waiting[at]
            if everything or self.rng.random() < 0.8:
                del self.waiting[at]
            event = hearer.note(body)
            if hearer is not self.reads:
                self.heard(event)


def has_read(told: Told, user: str, seq: int) -> bool:
    value = told.group.value(g.member_key(user))
    row = g.Membership.from_bytes(value) if value is not None else None
    if row is None or row.role is g.Role.STRANGER or row.joined_seq > seq:
        return False
    found = told.boxes[user].value(f"c/{GROUP}")
    position = mailbox.Conversation.from_bytes(found).read_seq if found is not None else 0
    # By joining alone nobody has read the event that let him in.
    return position >= seq and position > row.joined_seq


@given(st.integers(0, 10**9))
def test_the_count_is_exact_when_all_is_told(seed: int) -> None:
    rng = random.Random(seed)
    told = Told(rng)
    told.change("alice", g.create_request("g", list(USERS[:2])))
    told.change("alice", g.joining_request(True))
    for _ in range(25):
        user, choice = rng.choice(USERS), rng.random()
        value = told.group.value(g.member_key(user))
        member = value is not None and g.Membership.from_bytes(value).role is not g.Role.STRANGER
        if choice < 0.2:
            told.change(user, g.leave_request() if member else g.join_request())
        elif choice < 0.4:
            told.group.say("alice/pc", "hi")
        else:
            told.read(user, rng.randint(1, len(told.group.events)))
        told.tell()
    told.tell(everything=True)
    for seq in range(1, len(told.group.events) + 1):
        expected = [user for user in told.boxes if has_read(told, user, seq)]
        assert counted(told.reads, seq) == len(expected), (seq, expected, told.reads.facts)
        for user in told.boxes:
            data = told.reads.value(reader_key(user))
            reader = Reader.from_bytes(data) if data is not None else Reader()
            assert reader.has_read(seq) == (user in expected)


def test_what_says_nothing_new_is_nothing() -> None:
    reads = Deciding("reads:g")
    assert reads.note(reads_note({"bob": Reader(5, 2), "eve": Reader(0, 0, 4)})) is not None
    assert reads.note(reads_note({"bob": Reader(4, 2), "eve": Reader(0, 0, 3)})) is None
    assert reads.note(reads_note({"eve": Reader(9, 3)})) is not None
    assert [counted(reads, seq) for seq in (1, 2, 5, 6)] == [0, 1, 1, 0]
    assert reads.facts[reader_key("bob")].rank == READ_RANK + 5


def test_the_largest_note_fits_an_event() -> None:
    readers = {
        f"{n:03}{'x' * 125}": Reader(NUMBER_MAX, NUMBER_MAX - 1, 7) for n in range(READERS_MAX)
    }
    event = Deciding("reads:g").note(reads_note(readers))
    assert event is not None
    assert len(event.body) < BODY_BYTES_MAX
