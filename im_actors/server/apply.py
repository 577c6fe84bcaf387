"""What is journaled and not yet in history: kept in memory, applied in large transactions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain

from im_actors.core.model import Record

Batch = list[tuple[int, Record]]
"""(slot, record), oldest first in each slot."""


class ApplyQueue:
    """Journaled records per slot, in order of lsn, and how far they are committed.

    Records stay here until history has them on disk: a fetch of the log's end needs no read. Those
    that history was given and has in memory only are *taken*.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, deque[Record]] = {}
        self._taken: dict[int, deque[Record]] = {}
        self._commit: dict[int, int] = {}
        self._ready: set[int] = set()
        """Slots that may have committed records which nobody has taken."""
        self.ready_bytes = 0
        """Payload bytes that are committed and not in history; an estimate."""

    def add(self, slot: int, records: Iterable[Record]) -> None:
        waiting = self._waiting.get(slot)
        if waiting is None:
            waiting = self._waiting[slot] = deque()
        waiting += records
        if slot in self._commit:
            self._ready.add(slot)

    def commit(self, slot: int, lsn: int) -> None:
        """Records of the slot up to ``lsn`` may be applied."""
        if lsn > self._commit.get(slot, 0):
            self._commit[slot] = lsn
            self._ready.add(slot)
            waiting = self._waiting.get(slot)
            self.ready_bytes += len(waiting[-1].payload) if waiting else 0

    def forget(self, slot: int, after_lsn: int) -> None:
        """Records above ``after_lsn`` were cut from the log; 0: the slot is being deleted."""
        waiting = self._waiting.get(slot)
        while waiting and waiting[-1].lsn > after_lsn:
            waiting.pop()
        if after_lsn == 0:
            for of_slot in (self._waiting, self._taken, self._commit):
                of_slot.pop(slot, None)

    def take(self, bytes_max: int) -> Batch:
        """Committed records that nobody has taken yet. They stay until they are ``done``."""
        batch: Batch = []
        size = 0
        for slot in sorted(self._ready):
            size += self._take(batch, slot, bytes_max - size)
            if size >= bytes_max:
                return batch
        self.ready_bytes = 0
        return batch

    def take_slot(self, slot: int, bytes_max: int) -> Batch:
        """``take`` from one slot."""
        batch: Batch = []
        if slot in self._ready:
            self._take(batch, slot, bytes_max)
        return batch

    def _take(self, batch: Batch, slot: int, bytes_max: int) -> int:
        commit, waiting = self._commit.get(slot, 0), self._waiting.get(slot)
        taken = self._taken.setdefault(slot, deque())
        size = 0
        while waiting and waiting[0].lsn <= commit:
            if size >= bytes_max:
                return size
            record = waiting.popleft()
            taken.append(record)
            batch.append((slot, record))
            size += len(record.payload)
        self._ready.discard(slot)
        return size

    def done(self, batch: Batch) -> dict[int, int]:
        """History has the batch on disk: forget it. The last lsn of each slot in it."""
        applied: dict[int, int] = {}
        for slot, record in batch:
            taken = self._taken.get(slot)
            # Only what was taken: the slot may have been deleted and begun anew meanwhile.
            if taken and taken[0] is record:
                taken.popleft()
                applied[slot] = record.lsn
        return applied

    @property
    def ready(self) -> bool:
        return bool(self._ready)

    def records(self, slot: int, first_lsn: int, last_lsn: int, bytes_max: int) -> list[Record]:
        """Consecutive records from ``first_lsn`` on, none if it is not here."""
        found: list[Record] = []
        size = 0
        for record in chain(self._taken.get(slot, ()), self._waiting.get(slot, ())):
            if record.lsn < first_lsn or record.lsn > last_lsn:
                continue
            expected = found[-1].lsn + 1 if found else first_lsn
            if record.lsn != expected or (found and size + len(record.payload) > bytes_max):
                break
            found.append(record)
            size += len(record.payload)
        return found

    def backlog(self) -> int:
        """Records that are not in history."""
        return sum(map(len, chain(self._taken.values(), self._waiting.values())))
