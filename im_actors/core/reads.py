"""How far the members of a group have read, where it can be counted: the facts of ``reads:NAME``.

Every member's read position lies in his mailbox, in a slot of its own. To count who has read a
message one would have to ask as many mailboxes as there are members. So the positions are noted
here too, many users in a note (``core.hearers``), in an order in which they can be counted:

    "r/" + user   his numbers; the rank is the read position, above READ_RANK
    "j/" + user   nothing; the rank is the event that let him in

A number only grows, so notes may come in any order and again. Who was let out has no ranks.

Message N was read by those with a read position of N or more, less those who joined after N: of
each of these the read position is above N as well, as nobody is noted who has not read beyond the
event that let him in. So two ranges of ranks are counted, and no member is looked at.
"""

from __future__ import annotations

from typing import NamedTuple

from im_actors.core.facts import RANK_MAX, pack_request, pack_state
from im_actors.core.lookup import Lookup
from im_actors.core.operations import read_operation
from im_actors.core.rows import pack_row, unpack_row
from im_actors.core.rules import Accept, Nothing, Request
from im_actors.errors import BadRequest

READ_RANK = 1 << 62
"""Ranks from here on are read positions; events that let somebody in lie below."""
_READER, _JOINED = "r/", "j/"


class Reader(NamedTuple):
    """One user's numbers: seqs of the group, 0 for never."""

    read_seq: int = 0
    joined_seq: int = 0
    """The event that let him in."""
    left_seq: int = 0
    """The event that let him out. He is out when it is above ``joined_seq``."""

    def joined_with(self, other: Reader) -> Reader:
        """The greater of each number: whichever of the two was said first."""
        return Reader(*map(max, self, other))

    @property
    def counts(self) -> bool:
        """Whether he is a member and has read anything as one."""
        return self.left_seq < self.joined_seq < self.read_seq

    def has_read(self, seq: int) -> bool:
        return self.counts and self.joined_seq <= seq <= self.read_seq

    def to_bytes(self) -> bytes:
        return pack_row(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Reader:
        return cls(*unpack_row("a reader", data, len(cls._fields)))


def reader_key(user: str) -> str:
    return f"{_READER}{user}"


def reader_of(key: str) -> str:
    """The user whose numbers have this key."""
    return key.removeprefix(_READER)


def read_ranges(seq: int) -> list[tuple[int, int]]:
    """Two ranges of ranks, the ends among them: those who have read up to ``seq`` are as many as
    there are in the first, less those in the second."""
    return [(READ_RANK + seq, RANK_MAX), (seq + 1, READ_RANK - 1)]


def reads_note(readers: dict[str, Reader]) -> bytes:
    """Of the members of a group, at most READERS_MAX of them."""
    return pack_request("reads", [(user, *reader) for user, reader in readers.items()])


def decide_reads(lookup: Lookup, request: Request) -> Accept | Nothing:
    """What a note changes in the read positions of a group."""
    what, args = read_operation(request.kind, request.body)
    if what != "reads":
        raise BadRequest(f"{what} is not noted of a group's readers, only reads")
    rows = {user: Reader(*numbers) for user, *numbers in args[0]}
    lookup.want(*map(reader_key, rows))
    facts: list[tuple[str, int, bytes | None]] = []
    for user, told in rows.items():
        data = lookup.value(reader_key(user))
        known = Reader.from_bytes(data) if data is not None else Reader()
        changed = known.joined_with(told)
        if changed != known:
            facts += _facts(user, known, changed)
    # The rows say all of it.
    return Accept(request.kind, pack_state(what, [], facts)) if facts else Nothing()


def _facts(user: str, known: Reader, changed: Reader) -> list[tuple[str, int, bytes | None]]:
    rank = READ_RANK + changed.read_seq if changed.counts else 0
    facts: list[tuple[str, int, bytes | None]] = [(reader_key(user), rank, changed.to_bytes())]
    before = known.joined_seq if known.counts else 0
    joined = changed.joined_seq if changed.counts else 0
    if joined != before:
        facts.append((f"{_JOINED}{user}", joined, b"" if joined else None))
    return facts
