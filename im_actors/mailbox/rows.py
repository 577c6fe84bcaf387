"""Rows of a conversation list, their order, and what is said about how much of it one has.

The list is ordered by rank, the greatest first, and among equals by the session's id. A row's
*place* is that order as a tuple which sorts upwards. What a row says besides is opaque here: a
``RowFormat`` reads it from facts and gives it the form in which clients get it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

import msgpack

from im_actors.core.facts import RANK_MAX, Fact
from im_actors.core.model import pack

CONVERSATION = "c/"
"""What the keys of a mailbox's facts begin with that are conversations."""
PINNED_RANK = 1 << 62
"""Added to the rank of what is pinned. Message keys are below it until the year 2054."""

Place = tuple[int, str]
"""(-rank, session): sorts as the list is shown."""
TOP: Place = (-RANK_MAX, "")
"""Before all rows."""
END: Place = (0, "")
"""Behind all rows: a listed row has a rank of at least 1."""


class Flag(IntEnum):
    """What the view has to know of a row besides its numbers."""

    PINNED = 1
    MUTED = 2
    LIVE = 16
    """Its last event and its unread count are read from the session when the list is read."""


class Listing(IntEnum):
    """A part of a mailbox that one may have completely, or down to a place."""

    ALL = 0
    """All listed rows but the live ones, in their order."""
    UNREAD = 1
    """Those of them that have something unread. Had as a whole or not at all."""
    LIVE = 2
    """The live rows. Had as a whole or not at all: any of them may be the first in the list."""


class Entry(NamedTuple):
    """One conversation of one user. ``seq`` is that of the mailbox's event which said so; ``rank``
    0: not listed; ``value`` is the row as it was written, None: there is none any more."""

    session: str
    seq: int
    rank: int
    unread: int
    flags: int
    label: str
    """What it is folded under; "" for the list itself."""
    value: bytes | None


class Head(NamedTuple):
    """The newest of a session, as one user sees it."""

    seq: int
    """That of the last event,"""
    key: int
    """and its message key."""
    unread: int
    preview: bytes
    """Opaque: what clients show of the last event."""


class Heads(Protocol):
    """Where the heads of live rows come from. Nothing of it waits but ``load``."""

    @property
    def changes(self) -> int:
        """Grows with every change of any head, so that a list need not look at all of its rows."""

    def mark(self, session: str) -> int:
        """Another number after each change of the session's head; 0: the head is not known."""

    def head(self, entry: Entry) -> Head | None:
        """The head for the user whose row this is, as it was known last: ``mark`` says whether it
        still is; None: not known."""

    async def load(self, entries: Sequence[Entry]) -> None:
        """Get to know the heads of these rows, as far as that is possible now."""


class RowFormat(Protocol):
    """What rows mean: the door to whoever writes them."""

    def entry(self, fact: Fact) -> Entry:
        """The row that a fact says."""

    def standing(self, user: str) -> Sequence[Entry]:
        """Live rows that a user has although his mailbox says nothing of them: their seq is 0."""

    def rank(self, entry: Entry, head: Head | None) -> int:
        """The place of a live row in the list with this head; 0: not listed."""

    def encode(self, entry: Entry, head: Head | None) -> bytes:
        """One msgpack value: the row as clients get it."""


class Copy(NamedTuple):
    """What somebody has of a mailbox: all that it says was so at ``version``, or is newer. With the
    rows that were asked for may come others; ``complete`` says what there is without a gap: from
    the place asked for down to the one named, END for a whole listing."""

    version: int
    """The seq of the mailbox's last event that is in it."""
    entries: Sequence[Entry]
    complete: Mapping[Listing, Place]


class Change(NamedTuple):
    """All rows that changed after ``since``, as they are at ``version`` or newer."""

    since: int
    version: int
    entries: Sequence[Entry]


def place_of(rank: int, session: str) -> Place:
    return -rank, session


def entry_place(entry: Entry) -> Place:
    """The place that the row itself says; END or below when it is not listed."""
    return -entry.rank, entry.session


def live_rank(entry: Entry, head: Head | None) -> int:
    """The rank of a live row whose head is later than what it says itself."""
    if entry.rank == 0 or head is None or head.key == 0:
        return entry.rank
    return head.key + PINNED_RANK if entry.flags & Flag.PINNED else head.key


def encode_entry(entry: Entry) -> bytes:
    """The form in which tiers keep rows."""
    return pack(entry)


def decode_entry(data: bytes) -> Entry:
    """ValueError for what is no row."""
    try:
        fields = msgpack.unpackb(data, raw=False)
        session, seq, rank, unread, flags, label, value = fields
    except Exception as error:
        raise ValueError(f"not a row of a mailbox: {error}") from None
    numbers = (seq, rank, unread, flags)
    texts = type(session) is str and type(label) is str
    if not texts or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"not a row of a mailbox: {fields!r}")
    return Entry(session, seq, rank, unread, flags, label, value)


def packed_array(items: Sequence[bytes]) -> bytes:
    """One msgpack array of values that are encoded already."""
    count = len(items)
    if count < 16:
        header = bytes((0x90 | count,))
    else:
        assert count < 1 << 16, count
        header = b"\xdc" + count.to_bytes(2, "big")
    return header + b"".join(items)
