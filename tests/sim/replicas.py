"""Simulated replica processes around the real ``core.replica.Replica``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgpack

from im_actors.core import invariants
from im_actors.core import replica as rep
from im_actors.core.directory import ReplicaAddress
from im_actors.core.messages import Fetch, Fetched, KeyFound, Sealed, SessionsLoaded
from im_actors.core.model import Member, Record
from im_actors.core.storage_ops import CutRecords, DropSlot, StoreRecords
from im_actors.errors import CorruptData, NotReachable
from im_actors.wire.links import InsideType
from tests.sim.disks import flipped
from tests.sim.network import End, Process

if TYPE_CHECKING:
    from tests.sim.world import World

TICK_MS = 150
HEAD_WAIT_MS = 150
"""How long a read waits for a seq that the gateway has already heard of."""


class SimReplica(Process):
    """One replica process. Its disk outlives it."""

    def __init__(self, world: World, name: str, host: str) -> None:
        super().__init__(world, name)
        self.host = host
        self.rng = world.rng_for(name)
        self.disk = world.new_disk(f"{name}-disk0")
        self.wipes = 0
        self.drops = 0
        """Slots that were deleted here: what is read afterwards begins anew."""
        self.full_until_ms = 0.0
        self.machine: rep.Replica | None = None
        self._queue: list[tuple[list[Any], list[Any]]] = []
        self._syncing = False
        self._committed: dict[int, int] = {}
        self._apply_planned = False
        self._history_free_ms = 0.0

    @property
    def member(self) -> Member:
        return Member(self.name, self.disk.identity)

    @property
    def address(self) -> ReplicaAddress:
        return ReplicaAddress(self.name, self.disk.identity, self.host, self.name, 1)

    # -- life ----------------------------------------------------------------------------------

    def started(self) -> None:
        """Come up with what the disk holds."""
        self._queue, self._syncing = [], False
        self._committed, self._apply_planned, self._history_free_ms = {}, False, 0.0
        logs = self._load()
        disk = self.disk
        self.machine = rep.Replica(self.name, disk.identity, logs)
        self.world.stories.add(self.name, self.machine.story.story, of_slots=True)
        self._handle(rep.PeersChanged(tuple(self.world.replicas)))
        for slot, log in logs.items():
            self._commit(slot, log.commit_lsn)
        self.later(TICK_MS, self._tick)

    def _load(self) -> dict[int, rep.SlotLog]:
        damaged = self.disk.damaged
        try:
            logs = self.disk.load(self.world.slot_of)
        except CorruptData:
            if not damaged:
                raise
            # What was there is unknown, never absent: a new disk, another member.
            self.wipe()
            return {}
        if damaged:
            self.world.fail("damage-unnoticed", f"{self.name} starts on a damaged disk")
        return logs

    def crashed(self) -> None:
        self.machine = None
        self._queue = []

    def wipe(self) -> None:
        """Come back with an empty disk, which is another member."""
        self.wipes += 1
        self.disk = self.world.new_disk(f"{self.name}-disk{self.wipes}")

    def _tear(self) -> None:
        """A crash in the middle of a sync: some transactions reached the disk, nobody was told."""
        for ops, _ in self._queue[: self.rng.randint(0, len(self._queue))]:
            self._write(ops)
        self.world.crash(self, 2_000)

    def _tick(self) -> None:
        self._handle(rep.Tick())
        self.later(TICK_MS, self._tick)

    # -- the machine and the journal -----------------------------------------------------------

    def ask(self, peer: Any, disk: str | None, request: Any) -> None:
        """A request of an owner, or of another replica (``disk`` None)."""
        if disk is None or disk == self.disk.identity:
            self._handle(rep.Asked(peer, request))

    def backfilled(self, source: str, answer: Any) -> None:
        if isinstance(answer, Fetched):
            self._handle(rep.BackfillArrived(source, answer))

    def _handle(self, event: rep.ReplicaEvent) -> None:
        assert self.machine
        effects = self.machine.handle(event, self.clock.now)
        ops = [effect.op for effect in effects if type(effect) is rep.Store]
        rest = [effect for effect in effects if type(effect) is not rep.Store]
        if not ops and not self._queue and not self._syncing:
            self._carry_out(rest)
            return
        self._queue.append((ops, rest))
        if not self._syncing:
            self._sync()

    def _sync(self) -> None:
        """One journal transaction for what is queued when the disk gets to it."""
        self._syncing = True
        rng, faults = self.rng, self.world.faults
        delay = rng.uniform(0.1, 3.0)
        if faults.strikes("slow_sync", rng):
            delay = rng.uniform(20, 400)
        if faults.strikes("stuck_disk", rng):
            delay = rng.uniform(2_000, 15_000)
        if faults.strikes("torn_batch", rng):
            self.later(rng.uniform(0, delay), self._tear)
        self.later(delay, lambda: self._synced(len(self._queue)))

    def _synced(self, count: int) -> None:
        if self._disk_is_full():
            return
        done, self._queue = self._queue[:count], self._queue[count:]
        self._syncing = False
        for ops, _ in done:
            self._write(ops)
        for _, rest in done:
            self._carry_out(rest)
        if self._queue and not self._syncing:
            self._sync()

    def _write(self, ops: list[Any]) -> None:
        history, disk = self.world.history, self.disk.identity
        for op in ops:
            self.disk.write(op)
            match op:
                case StoreRecords(slot, records, _):
                    for lsn, epoch, payload, checksum in records:
                        history.durable(disk, slot, lsn, epoch, payload, checksum)
                case CutRecords(slot, after_lsn):
                    history.cut(disk, slot, after_lsn)
                case DropSlot(slot):
                    history.dropped(disk, slot)
                    self.drops += 1

    def _disk_is_full(self) -> bool:
        """A write fails: the process ends, and comes back when there is room (never a retry)."""
        if self.clock.now_ms >= self.full_until_ms:
            return False
        self.world.faults.happened("disk_full")
        self.world.crash(self, 3_000)
        return True

    def _carry_out(self, effects: list[Any]) -> None:
        for effect in effects:
            match effect:
                case rep.Send(peer, message):
                    if type(message) is Sealed:
                        ledger, disk = self.world.ledger, self.disk.identity
                        invariants.promise_given(ledger, disk, message.slot, message.epoch)
                    peer(self, message)
                case rep.Commit(slot, lsn):
                    self.world.history.believed(self.disk.identity, slot, lsn)
                    self._commit(slot, lsn)
                case rep.Forget():
                    pass
                case _:
                    self._carry_out_rare(effect)

    def _carry_out_rare(self, effect: Any) -> None:
        world = self.world
        match effect:
            case rep.SendRecords(peer, slot, epoch, first, last, _):
                self._send_records(peer, slot, epoch, first, last)
            case rep.SendStates(peer, request):
                images = tuple(self.disk.image(session) for session in request.sessions)
                slot, epoch, number = request.slot, request.epoch, request.request
                peer(self, SessionsLoaded(slot, epoch, number, True, images))
            case rep.SendKey(peer, request):
                peer(self, self._key_found(request))
            case rep.DropHistory(slot):
                world.met("dropped")
                self._in_history(lambda: self._drop_history(slot))
            case rep.FetchFromPeer(name, request):
                self._fetch_from_peer(name, request)
            case rep.StoreHistory(slot, records):
                self._in_history(lambda: self._store_history(slot, records))
            case rep.Alarm(slot, text):
                world.fail("alarm", f"{self.name} slot {slot}: {text}", slot=slot)

    # -- reading for owners --------------------------------------------------------------------

    def _send_records(self, peer: Any, slot: int, epoch: int, first: int, last: int) -> None:
        rng = self.rng
        end = min(last, first + rng.randint(1, 5) - 1)
        found = [self.disk.record(slot, lsn) for lsn in range(first, end + 1)]
        records = [record for record in found if record is not None]
        assert self.machine
        if len(records) < len(found):
            if self.machine.logs[slot].holds(first, end):
                text = f"{self.name} lacks a record of slot {slot} in {first}..{end}"
                self.world.fail("record-missing", text, slot=slot)
            return
        if self.world.faults.strikes("bad_read", rng):
            index = rng.randrange(len(records))
            records[index] = flipped(records[index], rng)
        peer(self, Fetched(slot, epoch, first, tuple(records)))

    def _key_found(self, request: Any) -> KeyFound:
        slot, epoch, number = request.slot, request.epoch, request.request
        row = self.disk.devices.get(request.session, {}).get(request.device, {}).get(request.n)
        if row is None:
            return KeyFound(slot, epoch, number, True, 0, 0, 0)
        return KeyFound(slot, epoch, number, True, row.event.seq, row.event.key, row.checksum)

    def _fetch_from_peer(self, name: str, request: Fetch) -> None:
        world, source, life = self.world, self.world.replicas[name], self.life

        def answer(sender: SimReplica, reply: Any) -> None:
            if self.life != life:
                return
            arrived = self.alive(lambda: self.backfilled(sender.name, reply))
            world.network.send(sender, self, arrived, reply)

        world.network.send(self, source, lambda: source.ask(answer, None, request), request)

    # -- history -------------------------------------------------------------------------------

    def _commit(self, slot: int, lsn: int) -> None:
        """Records up to ``lsn`` may be applied: a little later, all in one transaction."""
        self._committed[slot] = lsn
        if self._apply_planned:
            return
        self._apply_planned = True
        delay = self.rng.uniform(1, 200)
        if self.world.faults.strikes("slow_apply", self.rng):
            delay = self.rng.uniform(500, 6_000)
        self.later(delay, self._apply_due)

    def _apply_due(self) -> None:
        self._apply_planned = False
        self._apply()

    def _apply(self) -> None:
        if self._disk_is_full():
            return
        committed, self._committed = self._committed, {}
        for slot, lsn in committed.items():
            applied = self.disk.applied.get(slot, 0)
            rows = self.disk.journal.get(slot, {})
            history = self.disk.history.get(slot, {})
            due = sorted(n for n in rows if n <= lsn and n not in history)
            if not due:
                continue
            self.disk.to_history(slot, [rows[n][0] for n in due])
            self.disk.applied[slot] = max(applied, due[-1])
            self._in_history(lambda s=slot, n=due[-1]: self._applied(s, n))

    def _applied(self, slot: int, lsn: int) -> None:
        self._handle(rep.Applied(slot, lsn))
        # Trimmed later: a crash in between leaves the records in both places.
        disk = self.disk
        self.later(self.rng.uniform(1, 1_000), lambda: disk.trim(slot, lsn))

    def _in_history(self, call: Callable[[], None]) -> None:
        """Done by the history's thread: later, one after the other."""
        start = max(self._history_free_ms, self.clock.now_ms)
        self._history_free_ms = start + self.rng.uniform(0.1, 20)
        self.clock.at(self._history_free_ms, self.alive(call))

    def _drop_history(self, slot: int) -> None:
        self.disk.drop_history(slot, self.world.slot_of)
        self._handle(rep.HistoryDropped(slot))

    def _store_history(self, slot: int, records: tuple[Record, ...]) -> None:
        self.disk.to_history(slot, list(records))
        for lsn, epoch, payload, checksum in records:
            self.world.history.durable(self.disk.identity, slot, lsn, epoch, payload, checksum)
        self._handle(rep.HistoryStored(slot, records[0].lsn, records[-1].lsn))

    # -- reading for gateways ------------------------------------------------------------------

    def accept(self, end: End) -> None:
        end.on_data = lambda frame: self._frame(end, frame)

    def _frame(self, end: End, frame: bytes) -> None:
        message = msgpack.unpackb(frame[4:])
        assert message[0] == InsideType.READ
        self._read(end, message, self.clock.now_ms + HEAD_WAIT_MS)

    def _read(self, end: End, message: list[Any], until_ms: float) -> None:
        _, number, session, after, before, limit, head = message
        assert self.machine
        log = self.machine.logs.get(self.world.slot_of(session))
        if log is None or not log.complete:
            # Unknown is not absent: a replica with a hole does not answer for the session.
            end.send((int(InsideType.PAGE), number, NotReachable.code, 0, []))
            return
        if log.applied_lsn < log.commit_lsn:
            self._apply()
        if not self.running:
            return
        last_seq, events = self.disk.page(session, after, before, limit)
        if last_seq < head and self.clock.now_ms < until_ms:
            # The commit point that covers ``head`` is on its way to us.
            self.later(20, lambda: self._read(end, message, until_ms))
            return
        source = f"{self.disk.identity}#{self.drops}"
        self.world.history.polled(source, session, last_seq, last_seq)
        end.send((int(InsideType.PAGE), number, 0, last_seq, events))
