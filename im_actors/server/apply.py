"""What is journaled and not yet in history: kept in memory, applied in large transactions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from im_actors.core.model import Record


class ApplyQueue:
    """Journaled records per slot, in order of lsn, and how far they are committed.

    Records stay here until history has them on disk: a fetch of the log's end needs no read.
    """

    def __init__(self) -> None:
        self._records: dict[int, deque[Record]] = {}
        self._commit: dict[int, int] = {}
        self._ready: set[int] = set()
        self.ready_bytes = 0
        """Payload bytes that are committed and wait; an estimate that ``take`` sets right."""

    def add(self, slot: int, records: Iterable[Record]) -> None:
        self._records.setdefault(slot, deque()).extend(records)
        if self._commit.get(slot, 0):
            self._ready.add(slot)

    def commit(self, slot: int, lsn: int) -> None:
        """Records of the slot up to ``lsn`` may be applied."""
        if lsn > self._commit.get(slot, 0):
            self._commit[slot] = lsn
            self._ready.add(slot)
            waiting = self._records.get(slot)
            self.ready_bytes += len(waiting[-1].payload) if waiting else 0

    def forget(self, slot: int, after_lsn: int) -> None:
        """Records above ``after_lsn`` were cut from the log; 0: the slot is being deleted."""
        waiting = self._records.get(slot)
        while waiting and waiting[-1].lsn > after_lsn:
            waiting.pop()
        if after_lsn == 0:
            self._records.pop(slot, None)
            self._commit.pop(slot, None)

    def take(self, bytes_max: int) -> list[tuple[int, Record]]:
        """Committed records to apply now, oldest first in each slot. They stay until ``done``."""
        batch: list[tuple[int, Record]] = []
        size = 0
        for slot in sorted(self._ready):
            commit = self._commit.get(slot, 0)
            for record in self._records.get(slot, ()):
                if record.lsn > commit or size >= bytes_max:
                    break
                batch.append((slot, record))
                size += len(record.payload)
            if size >= bytes_max:
                return batch
            self._ready.discard(slot)
        self.ready_bytes = 0
        return batch

    def done(self, batch: list[tuple[int, Record]]) -> dict[int, int]:
        """History has the batch: forget it. The last lsn of each slot in it."""
        applied: dict[int, int] = {}
        for slot, record in batch:
            applied[slot] = max(applied.get(slot, 0), record.lsn)
            waiting = self._records.get(slot)
            # Only what was taken: the slot may have been deleted and begun anew meanwhile.
            if waiting and waiting[0] is record:
                waiting.popleft()
        return applied

    @property
    def ready(self) -> bool:
        return bool(self._ready)

    def records(self, slot: int, first_lsn: int, last_lsn: int, bytes_max: int) -> list[Record]:
        """Consecutive waiting records from ``first_lsn`` on, none if it is not here."""
        found: list[Record] = []
        size = 0
        for record in self._records.get(slot, ()):
            if record.lsn < first_lsn or record.lsn > last_lsn:
                continue
            expected = found[-1].lsn + 1 if found else first_lsn
            if record.lsn != expected or (found and size + len(record.payload) > bytes_max):
                break
            found.append(record)
            size += len(record.payload)
        return found

    def backlog(self) -> int:
        """Records that wait."""
        return sum(map(len, self._records.values()))
