"""What a replica asks its journal to write (``storage.journal.Journal.commit``).

The ops of one commit are one transaction: all of them are on disk when it returns, or none is.
They act in their order; a slot's records may be cut and stored anew in one commit.
"""

from __future__ import annotations

from typing import NamedTuple

from im_actors.core.model import Record


class StoreRecords(NamedTuple):
    """Add records to a slot's log. ``commit_lsn`` is the commit point known at that time."""

    slot: int
    records: tuple[Record, ...]
    commit_lsn: int


class StoreMeta(NamedTuple):
    """Replace the slot's promise, view and epoch history, as bytes that only the caller reads."""

    slot: int
    meta: bytes


class CutRecords(NamedTuple):
    """Delete the slot's records above ``after_lsn``."""

    slot: int
    after_lsn: int


class DropSlot(NamedTuple):
    """Delete all records of the slot. Its meta stays: deleting never forgets a promise."""

    slot: int


StorageOp = StoreRecords | StoreMeta | CutRecords | DropSlot
