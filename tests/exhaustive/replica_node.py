"""A replica process with its disk: what one event makes of it.

A request is handled, synced and answered in one step. That loses nothing: answers leave only when
what was stored before them is on disk, so a crash before the sync looks like a request that never
came, and one after it like a lost answer. Both are explored. (That the shell keeps this order is
for the tests of the shell.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack

from im_actors.core import replica as rep
from im_actors.core import sessions
from im_actors.core.messages import (
    DeviceImage,
    Fetched,
    KeyFound,
    Sealed,
    SessionImage,
    SessionsLoaded,
)
from im_actors.core.model import Event, Record, body_checksum, decode_event, record_events, view_of
from im_actors.core.storage_ops import CutRecords, DropSlot, StoreMeta, StoreRecords
from tests.exhaustive.frozen import SILENCE

SLOT = 0
NOW_MS = 1_600_000_000_000
"""The only time there is: what may come due does so when the explorer says it."""


class Broken(Exception):
    """An invariant does not hold."""


class Head(NamedTuple):
    """A journaled record as a start from disk reads it."""

    lsn: int
    epoch: int
    checksum: int
    commit_lsn: int


@dataclass(slots=True)
class Disk:
    """What survives a crash. The meta is kept unpacked, so that names in it can be exchanged."""

    meta: Any = None
    journal: dict[int, Any] = field(default_factory=dict)
    history: dict[int, Record] = field(default_factory=dict)
    applied_lsn: int = 0

    def write(self, op: Any) -> None:
        match op:
            case StoreRecords(_, records, commit_lsn):
                self.journal.update({record.lsn: (record, commit_lsn) for record in records})
            case CutRecords(_, after_lsn):
                for lsn in [lsn for lsn in self.journal if lsn > after_lsn]:
                    del self.journal[lsn]
            case DropSlot():
                self.journal.clear()
            case StoreMeta(_, meta):
                promised, owner, view, *rest = msgpack.unpackb(meta)
                self.meta = [promised, owner, view_of(view) if view else None, *rest]

    def record(self, lsn: int) -> Record | None:
        row = self.journal.get(lsn)
        return row[0] if row else self.history.get(lsn)

    def events(self) -> list[Event]:
        rows = [self.history[lsn] for lsn in sorted(self.history)]
        return [decode_event(data) for row in rows for data in record_events(row.payload)]

    def image(self, session: str) -> SessionImage:
        events = [event for event in self.events() if event.session == session]
        devices: dict[str, list[Event]] = {}
        for event in events:
            devices.setdefault(event.device, []).append(event)
        images = []
        for device, sent in devices.items():
            last = sent[-sessions.DEVICE_WINDOW :]
            recent = tuple((event.seq, body_checksum(event.kind, event.body)) for event in last)
            images.append(DeviceImage(device, sent[-1].n, recent))
        return SessionImage(session, max((e.seq for e in events), default=0), tuple(images))


@dataclass(slots=True)
class ReplicaNode:
    """The machine's memory of the one slot, the disk, and what the history's thread has to do."""

    name: str
    disk_id: str
    peers: tuple[str, ...]
    lazy: bool
    """The history's thread works when the explorer says it, and not at once."""
    log: rep.SlotLog | None = None
    disk: Disk = field(default_factory=Disk)
    tasks: list[Any] = field(default_factory=list)
    given: int = 0
    """The highest promise that left this replica."""

    # -- events --------------------------------------------------------------------------------

    def asked(self, peer: str, request: Any) -> list[Any]:
        return self._handle(rep.Asked(peer, request))

    def backfilled(self, source: str, answer: Fetched) -> list[Any]:
        return self._handle(rep.BackfillArrived(source, answer))

    def ticked(self, source: int) -> list[Any]:
        """Backfill is due; ``source`` is the peer whose turn it is."""
        assert self.log is not None
        self.log.backfill_due_ms, self.log.backfill_source = 0, source
        return self._handle(rep.Tick())

    def task_done(self, place: int) -> list[Any]:
        kind, argument = self.tasks.pop(place)
        if kind == "drop":
            # What had not begun to be applied before the deletion is forgotten with it.
            self.tasks = self.tasks[place:]
        return self._do_task(kind, argument)

    def tasks_at_hand(self) -> list[tuple[int, str]]:
        """What history may do next. It does one thing after the other, but committed records wait
        to be applied together, and what is asked for later may be done before them."""
        kinds = [kind for kind, _ in self.tasks]
        first = next((place for place, kind in enumerate(kinds) if kind != "apply"), len(kinds))
        return [(place, kinds[place]) for place in {0, first} if place < len(kinds)]

    def restarted(self) -> list[Any]:
        """The process ended; it comes back with what the disk holds."""
        self.tasks = []
        if self.disk.meta is None and not self.disk.journal:
            self.log = None
            return []
        meta = msgpack.packb(self.disk.meta) if self.disk.meta else None
        if rep.drop_unfinished(meta):
            self.disk.history, self.disk.applied_lsn = {}, 0
        heads = [
            Head(lsn, record.epoch, record.checksum, commit)
            for lsn, (record, commit) in sorted(self.disk.journal.items())
        ]
        self.log = rep.log_from_disk(
            SLOT, meta, heads, self.disk.applied_lsn, self.disk.history.__contains__
        )
        return self._task("apply", self.log.commit_lsn)

    # -- carrying out --------------------------------------------------------------------------

    def _handle(self, event: Any) -> list[Any]:
        machine = rep.Replica(self.name, self.disk_id, {SLOT: self.log} if self.log else None)
        machine.story = SILENCE  # type: ignore[assignment]
        machine._peers = self.peers
        effects = machine.handle(event, NOW_MS)
        self.log = machine.logs.get(SLOT)
        for effect in effects:
            if isinstance(effect, rep.Store):
                self.disk.write(effect.op)
        out: list[Any] = []
        for effect in effects:
            out += self._carry_out(effect)
        return out

    def _carry_out(self, effect: Any) -> list[Any]:
        match effect:
            case rep.Send(peer, message):
                if isinstance(message, Sealed):
                    self.given = max(self.given, message.epoch)
                return [("answer", peer, message)]
            case rep.SendRecords(peer, slot, epoch, first, last, _):
                found = [self.disk.record(lsn) for lsn in range(first, last + 1)]
                if None in found:
                    raise Broken(f"I4: {self.name} lacks a record in {first}..{last} that it holds")
                return [("answer", peer, Fetched(slot, epoch, first, tuple(found)))]  # type: ignore[arg-type]
            case rep.SendStates(peer, request):
                images = tuple(map(self.disk.image, request.sessions))
                slot, epoch, number = request.slot, request.epoch, request.request
                return [("answer", peer, SessionsLoaded(slot, epoch, number, True, images))]
            case rep.SendKey(peer, request):
                return [("answer", peer, self._key_found(request))]
            case rep.Commit(_, lsn):
                return self._task("apply", lsn)
            case rep.DropHistory():
                return self._task("drop", None)
            case rep.StoreHistory(_, records):
                return self._task("store", records)
            case rep.FetchFromPeer(name, request):
                return [("fetch", name, request)]
            case rep.Alarm(_, text):
                raise Broken(f"alarm of {self.name}: {text}")
        return []

    def _key_found(self, request: Any) -> KeyFound:
        head = (request.slot, request.epoch, request.request, True)
        for event in self.disk.events():
            if event[0] == request.session and (event.device, event.n) == request[5:7]:
                return KeyFound(*head, event.seq, event.key, body_checksum(event.kind, event.body))
        return KeyFound(*head, 0, 0, 0)

    def _task(self, kind: str, argument: Any) -> list[Any]:
        if self.lazy:
            self.tasks.append((kind, argument))
            return []
        return self._do_task(kind, argument)

    def _do_task(self, kind: str, argument: Any) -> list[Any]:
        disk = self.disk
        if kind == "drop":
            disk.history, disk.applied_lsn = {}, 0
            return self._handle(rep.HistoryDropped(SLOT))
        if kind == "store":
            self._to_history(list(argument))
            return self._handle(rep.HistoryStored(SLOT, argument[0].lsn, argument[-1].lsn))
        due = sorted(lsn for lsn in disk.journal if lsn <= argument)
        if not due:
            return []
        self._to_history([disk.journal.pop(lsn)[0] for lsn in due])
        disk.applied_lsn = max(disk.applied_lsn, due[-1])
        return self._handle(rep.Applied(SLOT, due[-1]))

    def _to_history(self, records: list[Record]) -> None:
        for record in records:
            if self.disk.history.setdefault(record.lsn, record) != record:
                raise Broken(f"I3: history of {self.name} is written twice, differently")
