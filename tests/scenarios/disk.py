"""What survives a crash of a replica: its journal and its history of one slot."""

from __future__ import annotations

from typing import NamedTuple

from im_actors.core import replica as rep
from im_actors.core import storage_ops as ops
from im_actors.core.messages import DeviceImage, SessionImage
from im_actors.core.model import (
    Event,
    Record,
    body_checksum,
    decode_event,
    record_events,
    record_intact,
)
from im_actors.errors import CorruptData

SLOT = 0


class Head(NamedTuple):
    lsn: int
    epoch: int
    checksum: int
    commit_lsn: int


class Disk:
    """Also a ``DiskImage`` of ``core.invariants``: what it says is what is durable."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.journal: dict[int, tuple[Record, int]] = {}
        self.history: dict[int, Record] = {}
        self.meta: bytes | None = None
        self.applied_lsn = 0

    def write(self, op: ops.StorageOp) -> None:
        match op:
            case ops.StoreRecords(_, records, commit_lsn):
                self.journal |= {record.lsn: (record, commit_lsn) for record in records}
            case ops.CutRecords(_, after_lsn):
                self.journal = {n: row for n, row in self.journal.items() if n <= after_lsn}
            case ops.DropSlot():
                self.journal = {}
            case ops.StoreMeta(_, meta):
                self.meta = meta

    def apply(self, lsn: int) -> int:
        """Move committed records to history; the last one moved, 0 when there was none."""
        due = sorted(n for n in self.journal if n <= lsn)
        for n in due:
            self.history[n] = self.journal.pop(n)[0]
        self.applied_lsn = max([self.applied_lsn, *due])
        return due[-1] if due else 0

    def drop_history(self) -> None:
        self.history, self.applied_lsn = {}, 0

    def load(self) -> rep.SlotLog:
        """The slot's log as a process that starts finds it."""
        rows = [row for _, row in sorted(self.journal.items())]
        for record, _ in rows:
            if not record_intact(SLOT, record):
                raise CorruptData(f"the record at lsn {record.lsn} has a wrong checksum")
        heads = [Head(r.lsn, r.epoch, r.checksum, commit_lsn) for r, commit_lsn in rows]
        return rep.log_from_disk(
            SLOT, self.meta, heads, self.applied_lsn, self.history.__contains__
        )

    def flip(self, lsn: int) -> None:
        record, commit_lsn = self.journal[lsn]
        self.journal[lsn] = (record._replace(payload=record.payload + b"!"), commit_lsn)

    def record(self, slot: int, lsn: int) -> Record | None:
        return self.journal[lsn][0] if lsn in self.journal else self.history.get(lsn)

    def in_history(self, slot: int, lsn: int) -> bool:
        return lsn in self.history

    def lsns(self) -> list[int]:
        return sorted({*self.journal, *self.history})

    def events(self, session: str) -> list[Event]:
        """What history has of a session, in order of seq."""
        records = (self.history[lsn] for lsn in sorted(self.history))
        found = (decode_event(data) for r in records for data in record_events(r.payload))
        return [event for event in found if event.session == session]

    def image(self, session: str) -> SessionImage:
        sent: dict[str, list[Event]] = {}
        for event in self.events(session):
            sent.setdefault(event.device, []).append(event)
        devices = tuple(
            DeviceImage(
                name, events[-1].n, tuple((e.seq, body_checksum(e.kind, e.body)) for e in events)
            )
            for name, events in sent.items()
        )
        return SessionImage(session, sum(map(len, sent.values())), devices)
