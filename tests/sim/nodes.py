"""Simulated processes around the real machines: replicas with disks, shards, the view store."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from im_actors.core import invariants, sessions
from im_actors.core import owner as own
from im_actors.core import replica as rep
from im_actors.core.messages import (
    DeviceImage,
    Fetch,
    Fetched,
    KeyFound,
    Sealed,
    SessionImage,
    SessionsLoaded,
)
from im_actors.core.model import (
    Event,
    Member,
    Record,
    View,
    body_checksum,
    decode_event,
    record_events,
    record_intact,
)
from im_actors.core.storage_ops import CutRecords, DropSlot, StoreMeta, StoreRecords
from im_actors.errors import CorruptData

if TYPE_CHECKING:
    from tests.sim.world import World


class Head(NamedTuple):
    lsn: int
    epoch: int
    checksum: int
    commit_lsn: int


class Disk:
    """What survives a crash: a journal, a history, and tables derived from the history."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.journal: dict[int, dict[int, tuple[Record, int]]] = {}
        self.meta: dict[int, bytes] = {}
        self.history: dict[int, dict[int, Record]] = {}
        self.applied: dict[int, int] = {}
        self.events: dict[str, dict[int, Event]] = {}
        self.damaged = False
        """A record in the journal is not what was written, or is gone."""
        self.ever: dict[tuple[int, int], set[int]] = {}
        """Checksums that were durable here at some time: a cut or a drop does not undo that."""

    def write(self, op: Any) -> None:
        rows = self.journal.setdefault(op.slot, {})
        match op:
            case StoreRecords(_, records, commit_lsn):
                rows.update({record.lsn: (record, commit_lsn) for record in records})
                for record in records:
                    self.ever.setdefault((op.slot, record.lsn), set()).add(record.checksum)
            case CutRecords(_, after_lsn):
                for lsn in [lsn for lsn in rows if lsn > after_lsn]:
                    del rows[lsn]
            case DropSlot():
                rows.clear()
            case StoreMeta(slot, meta):
                self.meta[slot] = meta

    def to_history(self, slot: int, records: list[Record]) -> None:
        rows = self.history.setdefault(slot, {})
        for record in records:
            if record.lsn in rows:
                assert rows[record.lsn] == record, "history is written twice, differently"
                continue
            rows[record.lsn] = record
            for data in record_events(record.payload):
                event = decode_event(data)
                self.events.setdefault(event.session, {})[event.seq] = event

    def damage(self, rng: random.Random) -> bool:
        """Flip a bit in a journaled record, or lose one from the middle of a log."""
        found = [(slot, lsn) for slot, rows in self.journal.items() for lsn in sorted(rows)[:-1]]
        if not found:
            return False
        slot, lsn = rng.choice(found)
        rows = self.journal[slot]
        record, commit_lsn = rows[lsn]
        lost = lsn > self.applied.get(slot, 0) and lsn - 1 in rows and lsn + 1 in rows
        if lost and rng.random() < 0.5:
            del rows[lsn]
        else:
            rows[lsn] = (record._replace(payload=record.payload + b"!"), commit_lsn)
        self.damaged = True
        return True

    def drop_history(self, slot: int, slot_of: Callable[[str], int]) -> None:
        self.history.pop(slot, None)
        self.applied.pop(slot, None)
        for session in [s for s in self.events if slot_of(s) == slot]:
            del self.events[session]

    def record(self, slot: int, lsn: int) -> Record | None:
        row = self.journal.get(slot, {}).get(lsn)
        return row[0] if row else self.history.get(slot, {}).get(lsn)

    def in_history(self, slot: int, lsn: int) -> bool:
        return lsn in self.history.get(slot, {})

    def image(self, session: str) -> SessionImage:
        events = self.events.get(session, {})
        devices: dict[str, list[Event]] = {}
        for seq in sorted(events):
            devices.setdefault(events[seq].device, []).append(events[seq])
        images = tuple(
            DeviceImage(
                device,
                sent[-1].n,
                tuple(
                    (e.seq, body_checksum(e.kind, e.body)) for e in sent[-sessions.DEVICE_WINDOW :]
                ),
            )
            for device, sent in devices.items()
        )
        return SessionImage(session, max(events, default=0), images)


class SimReplica:
    def __init__(self, world: World, name: str, host: str) -> None:
        self.world = world
        self.name = name
        self.host = host
        self.disk = world.new_disk(f"{name}-disk0")
        self.wipes = 0
        self.machine: rep.Replica | None = None
        self.life = 0
        self.queue: list[tuple[list[Any], list[Any]]] = []
        self.syncing = False
        self.history_free_ms = 0.0

    @property
    def member(self) -> Member:
        return Member(self.name, self.disk.identity)

    def start(self) -> None:
        """Come up with what the disk holds."""
        self.life += 1
        self.queue, self.syncing = [], False
        damaged = self.disk.damaged
        try:
            logs = self.load(self.disk)
        except CorruptData:
            if not damaged:
                raise
            # What was there is unknown, never absent: a new disk, another member.
            self.wipe()
            logs = {}
        else:
            if damaged:
                self.world.fail(f"{self.name} did not notice its damaged journal")
        disk = self.disk
        self.machine = rep.Replica(self.name, disk.identity, logs)
        self.run(self.machine.handle(rep.PeersChanged(self.world.replica_names()), self.now))
        for slot, log in logs.items():
            self.apply_later(slot, log.commit_lsn)
        self.world.clock.later(20, self.alive(self.tick))

    def load(self, disk: Disk) -> dict[int, rep.SlotLog]:
        logs = {}
        for slot in sorted(set(disk.meta) | set(disk.journal)):
            rows = sorted(disk.journal.get(slot, {}).items())
            if not all(record_intact(slot, record) for _, (record, _) in rows):
                raise CorruptData(f"a wrong checksum in slot {slot}")
            heads = [
                Head(lsn, record.epoch, record.checksum, commit)
                for lsn, (record, commit) in rows
            ]  # fmt: skip
            meta = disk.meta.get(slot)
            if rep.drop_unfinished(meta):
                disk.drop_history(slot, self.world.slot_of)
            logs[slot] = rep.log_from_disk(slot, meta, heads, disk.applied.get(slot, 0))
        return logs

    @property
    def now(self) -> int:
        return self.world.clock.now

    def alive(self, call: Callable[[], None]) -> Callable[[], None]:
        """``call``, unless this life is over by then."""
        life = self.life
        return lambda: call() if self.life == life and self.machine is not None else None

    def crash(self) -> None:
        self.machine = None
        self.queue = []

    def tear(self) -> None:
        """A crash in the middle of a sync: some transactions reached the disk, nobody was told."""
        self.world.faults.happened("torn_batch")
        for ops, _ in self.queue[: self.world.rng.randint(0, len(self.queue))]:
            for op in ops:
                self.disk.write(op)
        self.crash()
        self.world.clock.later(self.world.rng.uniform(20, 2_000), lambda: self.world.revive(self))

    def wipe(self) -> None:
        self.wipes += 1
        self.disk = self.world.new_disk(f"{self.name}-disk{self.wipes}")

    def tick(self) -> None:
        assert self.machine
        self.run(self.machine.handle(rep.Tick(), self.now))
        self.world.clock.later(150, self.alive(self.tick))

    def receive(self, peer: Any, disk: str, request: Any) -> None:
        if self.machine is not None and disk == self.disk.identity:
            self.run(self.machine.handle(rep.Asked(peer, request), self.now))

    def run(self, effects: list[Any]) -> None:
        ops = [effect.op for effect in effects if isinstance(effect, rep.Store)]
        rest = [effect for effect in effects if not isinstance(effect, rep.Store)]
        if not ops and not self.queue and not self.syncing:
            self.carry_out(rest)
            return
        self.queue.append((ops, rest))
        if not self.syncing:
            self.sync()

    def sync(self) -> None:
        self.syncing = True
        rng, faults = self.world.rng, self.world.faults
        delay = rng.uniform(0.1, 3.0)
        if faults.slow_sync and rng.random() < faults.slow_sync:
            faults.happened("slow_sync")
            delay = rng.uniform(20, 400)
        if faults.stuck_disk and rng.random() < faults.stuck_disk:
            faults.happened("stuck_disk")
            delay = rng.uniform(2_000, 15_000)
        if faults.torn_batch and rng.random() < faults.torn_batch:
            self.world.clock.later(rng.uniform(0, delay), self.alive(self.tear))
        self.world.clock.later(delay, self.alive(lambda: self.synced(len(self.queue))))

    def synced(self, count: int) -> None:
        done, self.queue = self.queue[:count], self.queue[count:]
        self.syncing = False
        for ops, _ in done:
            for op in ops:
                self.disk.write(op)
        for _, rest in done:
            self.carry_out(rest)
        if self.queue and not self.syncing:
            self.sync()

    def carry_out(self, effects: list[Any]) -> None:
        world = self.world
        for effect in effects:
            match effect:
                case rep.Send(peer, message):
                    if isinstance(message, Sealed):
                        ledger, disk = world.ledger, self.disk.identity
                        invariants.promise_given(ledger, disk, message.slot, message.epoch)
                    peer(self, message)
                case rep.SendRecords(peer, slot, epoch, first, last, _):
                    count = world.rng.randint(1, 5)
                    found = [
                        self.disk.record(slot, lsn)
                        for lsn in range(first, min(last, first + count - 1) + 1)
                    ]
                    records = tuple(r for r in found if r is not None)
                    assert self.machine
                    here = self.machine.logs[slot].holds(first, first + len(found) - 1)
                    if len(records) < len(found) and here:
                        world.fail(f"{self.name} lacks a record of slot {slot} in {first}..{last}")
                    if len(records) == len(found):
                        peer(self, Fetched(slot, epoch, first, records))
                case rep.SendStates(peer, request):
                    images = tuple(self.disk.image(s) for s in request.sessions)
                    slot, epoch, number = request.slot, request.epoch, request.request
                    peer(self, SessionsLoaded(slot, epoch, number, True, images))
                case rep.SendKey(peer, request):
                    peer(self, self.key_found(request))
                case rep.Commit(slot, lsn):
                    world.checker.replica_commit(self, slot, lsn)
                    self.apply_later(slot, lsn)
                case rep.Forget():
                    pass
                case rep.DropHistory(slot):
                    world.met("dropped")
                    self.in_history(lambda s=slot: self.drop_history(s))
                case rep.FetchFromPeer(name, request):
                    world.fetch_from_peer(self, name, request)
                case rep.StoreHistory(slot, records):
                    self.in_history(lambda s=slot, r=records: self.store_history(s, r))
                case rep.Alarm(slot, text):
                    world.fail(f"{self.name} slot {slot}: {text}")

    def key_found(self, request: Any) -> KeyFound:
        slot, epoch, number = request.slot, request.epoch, request.request
        for event in self.disk.events.get(request.session, {}).values():
            if (event.device, event.n) == (request.device, request.n):
                checksum = body_checksum(event.kind, event.body)
                return KeyFound(slot, epoch, number, True, event.seq, event.key, checksum)
        return KeyFound(slot, epoch, number, True, 0, 0, 0)

    def apply_later(self, slot: int, lsn: int) -> None:
        rng, faults = self.world.rng, self.world.faults
        delay = rng.uniform(1, 200)
        if faults.slow_apply and rng.random() < faults.slow_apply:
            faults.happened("slow_apply")
            delay = rng.uniform(500, 6_000)
        self.world.clock.later(delay, self.alive(lambda: self.apply(slot, lsn)))

    def apply(self, slot: int, lsn: int) -> None:
        rows = self.disk.journal.get(slot, {})
        due = sorted(n for n in rows if n <= lsn)
        if not due:
            return
        self.disk.to_history(slot, [rows[n][0] for n in due])
        self.disk.applied[slot] = max(self.disk.applied.get(slot, 0), due[-1])
        for n in due:
            del rows[n]
        self.in_history(lambda: self.tell(rep.Applied(slot, due[-1])))

    def in_history(self, call: Callable[[], None]) -> None:
        """Done by the history's thread: later, one after the other."""
        start = max(self.history_free_ms, self.world.clock.now_ms)
        self.history_free_ms = start + self.world.rng.uniform(0.1, 20)
        delay = self.history_free_ms - self.world.clock.now_ms
        self.world.clock.later(delay, self.alive(call))

    def tell(self, event: Any) -> None:
        assert self.machine
        self.run(self.machine.handle(event, self.now))

    def drop_history(self, slot: int) -> None:
        self.disk.drop_history(slot, self.world.slot_of)
        self.tell(rep.HistoryDropped(slot))

    def store_history(self, slot: int, records: tuple[Record, ...]) -> None:
        self.disk.to_history(slot, list(records))
        self.tell(rep.HistoryStored(slot, records[0].lsn, records[-1].lsn))

    def fetch(self, peer: Any, request: Fetch) -> None:
        if self.machine is not None:
            self.run(self.machine.handle(rep.Asked(peer, request), self.now))

    def backfilled(self, source: str, answer: Any) -> None:
        if self.machine is not None and isinstance(answer, Fetched):
            self.run(self.machine.handle(rep.BackfillArrived(source, answer), self.now))


class SimShard:
    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.life = 0
        self.running = False
        self.paused = False
        self.mail: list[Callable[[], None]] = []
        self.owners: dict[int, own.SlotOwner] = {}
        self.tick_due: dict[int, float] = {}

    @property
    def incarnation(self) -> str:
        return f"{self.name}.{self.life}"

    def start(self) -> None:
        self.life += 1
        self.running, self.paused, self.mail = True, False, []
        self.tick_due = {}
        self.owners = {
            slot: own.SlotOwner(
                slot,
                self.incarnation,
                random.Random(self.world.rng.random()),
                self.world.settings,
                self.world.limits,
            )
            for slot in range(self.world.slots)
        }
        self.world.checker.shard_started(self)

    def crash(self) -> None:
        self.running, self.mail = False, []

    def alive(self, call: Callable[[], None]) -> Callable[[], None]:
        life = self.life

        def run() -> None:
            if self.life != life or not self.running:
                return
            if self.paused:
                self.mail.append(run)
            else:
                call()

        return run

    def resume(self) -> None:
        self.paused = False
        mail, self.mail = self.mail, []
        for call in mail:
            call()

    def tell(self, slot: int, event: Any) -> None:
        """Hand an event to the slot's machine, unless the process is down."""
        self.alive(lambda: self.handle(slot, event))()

    def handle(self, slot: int, event: Any) -> None:
        owner = self.owners[slot]
        effects = owner.handle(event, self.world.clock.now)
        if slot != self.world.rolled_back:
            invariants.owner_stepped(self.world.ledger, owner, self.world.disks)
        for effect in effects:
            self.carry_out(slot, owner, effect)
        self.plan_tick(slot, owner)

    def plan_tick(self, slot: int, owner: own.SlotOwner) -> None:
        due = owner.deadline_ms()
        world = self.world
        if due is None:
            return
        delay = max(0.0, due - world.clock.now) + 0.5
        at = world.clock.now_ms + delay
        known = self.tick_due.get(slot)
        if known is not None and known <= at and known > world.clock.now_ms:
            return
        self.tick_due[slot] = at
        world.clock.later(delay, self.alive(lambda: self.handle(slot, own.Tick())))

    def carry_out(self, slot: int, owner: own.SlotOwner, effect: Any) -> None:
        world = self.world
        match effect:
            case own.ToReplica(member, message):
                world.to_replica(self, member, message)
            case own.ReadView(_):
                world.store.read(slot, self.alive_with(slot, own.ViewRead))
            case own.SwapView(old, new):
                world.store.swap(old, new, self.alive_with(slot, own.ViewSwapped))
            case own.Answered(answers):
                for answer in answers:
                    answer.token(self, answer)
            case own.Published(_, events):
                world.checker.published(self, slot, owner, events)
            case own.Activated(view):
                world.checker.activated(self, view)
                world.checker.opened(slot, owner)
                world.routed(view)
            case own.Alarm(_, text):
                world.owner_alarm(self, slot, text)
            case own.HeadsKnown(token, heads):
                token(heads)
            case own.SteppedDown():
                pass

    def alive_with(self, slot: int, event: Any) -> Callable[[View | None], None]:
        life = self.life

        def answer(view: View | None) -> None:
            if self.life == life:
                self.tell(slot, event(view))

        return answer


class Store:
    """The view store: slow, sometimes with its answer lost."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.views: dict[int, View] = {}
        self.past: dict[int, list[View]] = {}
        """The views that each slot had before."""

    def read(self, slot: int, answer: Callable[[View | None], None]) -> None:
        self.delayed(lambda: self.reply(answer, self.views.get(slot)))

    def swap(self, old: View, new: View, answer: Callable[[View | None], None]) -> None:
        def compare_and_swap() -> None:
            if self.views[old.slot] == old:
                self.past.setdefault(old.slot, []).append(old)
                self.views[old.slot] = new
                self.world.checker.view_changed(old, new)
            self.reply(answer, self.views[old.slot])

        self.delayed(compare_and_swap)

    def delayed(self, call: Callable[[], None]) -> None:
        faults, rng = self.world.faults, self.world.rng
        delay = rng.uniform(0.2, 3)
        if faults.store_slow and rng.random() < faults.store_slow:
            faults.happened("store_slow")
            delay = rng.uniform(50, 3_000)
        self.world.clock.later(delay, call)

    def reply(self, answer: Callable[[View | None], None], view: View | None) -> None:
        faults, rng = self.world.faults, self.world.rng
        if faults.store_reply_lost and rng.random() < faults.store_reply_lost:
            faults.happened("store_reply_lost")
            self.world.clock.later(rng.uniform(10, 500), lambda: answer(None))
            return
        delay = rng.uniform(0.1, 1)
        if faults.store_slow and rng.random() < faults.store_slow / 3:
            delay = rng.uniform(50, 8_000)
        self.world.clock.later(delay, lambda: answer(view))
