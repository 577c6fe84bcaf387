"""Simulated replica processes around the real ``core.replica.Replica``."""

from __future__ import annotations

from collections import deque
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
from im_actors.server.apply import ApplyQueue
from im_actors.wire.links import InsideType
from im_actors.wire.questions import (
    CountAsked,
    FactsAsked,
    PageAsked,
    Question,
    RanksAsked,
    read_question,
)
from tests.sim.disks import flipped
from tests.sim.network import End, Process

if TYPE_CHECKING:
    from tests.sim.world import World

TICK_MS = 150
HISTORY_MS = 20
"""What the history's thread takes for one thing, at most."""
HEAD_WAIT_MS = 150
"""How long a read waits for a seq that the gateway has already heard of."""


_ANSWERS: dict[type[Question], tuple[InsideType, tuple[Any, ...]]] = {
    PageAsked: (InsideType.PAGE, ([],)),
    FactsAsked: (InsideType.FACTS, ([], False)),
    CountAsked: (InsideType.COUNTED, (0,)),
    RanksAsked: (InsideType.RANKS_COUNTED, ([],)),
}
"""Their types, and what follows the last seq in one that says nothing."""


class SimReplica(Process):
    """One replica process. Its disk outlives it."""

    def __init__(self, world: World, name: str, host: str) -> None:
        super().__init__(world, name)
        self.host = host
        self.rng = world.rng_for(name)
        self.disk = world.new_disk(f"{name}-disk0")
        self.wipes = 0
        self.full_until_ms = 0.0
        self.dead = False
        """Its journal never ends a write again, and says nothing of it."""
        self.apply_bytes = self.rng.choice([100, 2_000, 1_000_000])
        """Payload bytes of one apply transaction, and one record more."""
        self.machine: rep.Replica | None = None
        self._trims: dict[int, int] = {}
        """What the journal may delete soon."""
        self._effects: list[list[Any]] = []
        """What the machine said since the last transaction began, by event."""
        self._history_work: deque[Callable[[], None]] = deque()
        """What the history's thread has still to do."""

    @property
    def member(self) -> Member:
        return Member(self.name, self.disk.identity)

    @property
    def address(self) -> ReplicaAddress:
        return ReplicaAddress(self.name, self.disk.identity, self.host, self.name, 1)

    # -- life ----------------------------------------------------------------------------------

    def started(self) -> None:
        """Come up with what the disk holds."""
        self._effects, self._writing = [], False
        self._applying = self._apply_planned = False
        self._history_free_ms = 0.0
        self._history_work = deque()
        self._waiting = ApplyQueue()
        self._trims = {}
        logs = self._load()
        disk = self.disk
        self.machine = rep.Replica(self.name, disk.identity, logs)
        self.world.stories.add(self.name, self.machine.story.story, of_slots=True)
        for slot, rows in sorted(disk.journal.items()):
            self._waiting.add(slot, [rows[lsn][0] for lsn in sorted(rows)])
        for slot, log in logs.items():
            self._waiting.commit(slot, log.commit_lsn)
        self._handle(rep.PeersChanged(tuple(self.world.replicas)))
        self._apply_soon()
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
        self._effects = []

    def heal(self) -> None:
        """There is room on the disk, and what waits for history takes no longer than usual: half a
        minute of slow reads may have left several minutes of them."""
        self.full_until_ms = self._history_free_ms = 0.0
        for _ in self._history_work:
            self._turn(HISTORY_MS)

    def wipe(self) -> None:
        """Come back with an empty disk, which is another member."""
        self.wipes += 1
        self.disk = self.world.new_disk(f"{self.name}-disk{self.wipes}")

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
        if effects:
            self._effects.append(effects)
            if not self._writing:
                self._flush()

    def _flush(self) -> None:
        """Write what came up in one transaction, then let answers go."""
        batch, self._effects = self._effects, []
        if any(type(effect) is rep.Store for effects in batch for effect in effects):
            self._sync(batch)
            return
        for effects in batch:
            self._carry_out(effects)
        self._apply_soon()

    def _sync(self, batch: list[list[Any]]) -> None:
        self._writing = True
        if self.dead:
            return
        rng, faults = self.rng, self.world.faults
        delay = rng.uniform(0.1, 3.0)
        if faults.strikes("slow_sync", rng):
            delay = rng.uniform(20, 400)
        if faults.strikes("stuck_disk", rng):
            delay = rng.uniform(2_000, 15_000)
        if faults.strikes("torn_batch", rng):
            self.later(rng.uniform(0, delay), lambda: self._tear(batch))
        self.later(delay, lambda: self._synced(batch))

    def _tear(self, batch: list[list[Any]]) -> None:
        """A crash in the middle of a sync: some of it reached the disk, nobody was told. What one
        event brought is one transaction."""
        for effects in batch[: self.rng.randint(0, len(batch))]:
            self._write(effects)
        self.world.crash(self, 2_000)

    def _synced(self, batch: list[list[Any]]) -> None:
        if self._disk_is_full():
            return
        self._writing = False
        for effects in batch:
            self._write(effects)
        for effects in batch:
            self._carry_out(effects)
        self._apply_soon()
        if self._effects and not self._writing:
            self._flush()

    def _write(self, effects: list[Any]) -> None:
        history, disk = self.world.history, self.disk.identity
        for op in [effect.op for effect in effects if type(effect) is rep.Store]:
            self.disk.write(op)
            match op:
                case StoreRecords(slot, records, _):
                    for lsn, epoch, payload, checksum in records:
                        history.durable(disk, slot, lsn, epoch, payload, checksum)
                case CutRecords(slot, after_lsn):
                    history.cut(disk, slot, after_lsn)
                case DropSlot(slot):
                    history.dropped(disk, slot)

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
                case rep.Store(op):
                    if type(op) is StoreRecords:
                        self._waiting.add(op.slot, op.records)
                case rep.Commit(slot, lsn):
                    self.world.history.believed(self.disk.identity, slot, lsn)
                    self._waiting.commit(slot, lsn)
                case rep.Forget(slot, after_lsn):
                    self._waiting.forget(slot, after_lsn)
                    if after_lsn == 0:
                        # Of the slot's next life here the journal has what history does not.
                        self._trims.pop(slot, None)
                case _:
                    self._carry_out_rare(effect)

    def _carry_out_rare(self, effect: Any) -> None:
        world = self.world
        match effect:
            case rep.SendRecords():
                self._send_records(effect)
            case rep.SendStates(peer, request):
                images = tuple(self.disk.image(session) for session in request.sessions)
                slot, epoch, number = request.slot, request.epoch, request.request
                peer(self, SessionsLoaded(slot, epoch, number, True, images))
            case rep.SendKey(peer, request):
                peer(self, self._key_found(request))
            case rep.SendFacts(peer, request):
                self._in_history(lambda: self._give(peer, self.disk.facts_loaded(request)))
            case rep.SendEvent(peer, request):
                self._in_history(lambda: self._give(peer, self.disk.event_found(request)))
            case rep.DropHistory(slot):
                world.met("dropped")
                self._in_history(lambda: self._drop_history(slot))
            case rep.FetchFromPeer(name, request):
                self._fetch_from_peer(name, request)
            case rep.StoreHistory(slot, records):
                self._in_history(lambda: self._store_history(slot, records))
            case rep.Alarm(slot, text) if "damaged" in text and world.faults.counts.get("garbled"):
                world.met("garbled_noticed")
            case rep.Alarm(slot, text):
                world.fail("alarm", f"{self.name} slot {slot}: {text}", slot=slot)

    # -- reading for owners --------------------------------------------------------------------

    def _send_records(self, effect: rep.SendRecords) -> None:
        """From what waits for history, otherwise from history itself."""
        size = self.rng.choice([1, 200, effect.bytes_max])
        slot, first, last = effect.slot, effect.first_lsn, effect.last_lsn
        records = self._waiting.records(slot, first, last, size)
        if records:
            self._send_fetched(effect, records)
            return
        count = 1 if size == 1 else 20
        self._in_history(
            lambda: self._send_fetched(effect, self.disk.run(slot, first, last, count))
        )

    def _send_fetched(self, effect: rep.SendRecords, records: list[Record]) -> None:
        slot, first = effect.slot, effect.first_lsn
        assert self.machine
        if not records and self.machine.logs[slot].holds(first, first):
            text = f"{self.name} holds lsn {first} of slot {slot} and cannot read it"
            self.world.fail("record-missing", text, slot=slot)
        if records and self.world.faults.strikes("bad_read", self.rng):
            index = self.rng.randrange(len(records))
            records[index] = flipped(records[index], self.rng)
        effect.peer(self, Fetched(slot, effect.epoch, first, tuple(records)))

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

    def _give(self, peer: Any, answer: Any) -> None:
        """Now, or when much has happened since it was true."""
        if self.world.faults.strikes("slow_load", self.rng):
            self.later(self.rng.uniform(1, 3_000), lambda: peer(self, answer))
        else:
            peer(self, answer)

    # -- history -------------------------------------------------------------------------------

    def _apply_soon(self) -> None:
        if self._apply_planned or self._applying or not self._waiting.ready:
            return
        self._apply_planned = True
        delay = self.rng.uniform(1, 20 if self.world.healing else 200)
        if self.world.faults.strikes("slow_apply", self.rng):
            delay = self.rng.uniform(500, 6_000)
        self.later(delay, self._apply)

    def _apply(self) -> None:
        """Apply what is committed, one transaction at a time."""
        self._apply_planned = False
        if self._applying or self._disk_is_full():
            return
        batch = self._waiting.take(self.apply_bytes)
        if not batch:
            return
        self._applying = True
        assert self.machine
        applied: dict[int, int] = {}
        for slot, record in batch:
            # In a slot that filled a hole by backfill an old record must not lower the mark.
            log = self.machine.logs[slot]
            applied[slot] = max(applied.get(slot, log.applied_lsn), record.lsn)
        self._in_history(lambda: self._applied(batch, applied))

    def _applied(self, batch: list[tuple[int, Record]], applied: dict[int, int]) -> None:
        disk = self.disk
        for slot, record in batch:
            disk.to_history(slot, [record])
        disk.applied.update(applied)
        self._applying = False
        for slot, lsn in self._waiting.done(batch).items():
            self._handle(rep.Applied(slot, lsn))
            if self.machine is not None and self.machine.logs[slot].dropping is None:
                self._trims[slot] = lsn
                # Later: a crash in between leaves the records in both places.
                self.later(self.rng.uniform(1, 1_000), lambda s=slot: self._trim(s))
        self._apply_soon()

    def _trim(self, slot: int) -> None:
        upto_lsn = self._trims.pop(slot, 0)
        if upto_lsn:
            self.disk.trim(slot, upto_lsn)

    def _in_history(self, call: Callable[[], None]) -> None:
        """Done by the history's thread: later, one after the other."""
        busy = self.world.faults.strikes("slow_history", self.rng)
        self._history_work.append(call)
        self._turn(self.rng.uniform(0.1, 3_000 if busy else HISTORY_MS))

    def _turn(self, takes_ms: float) -> None:
        """The history's thread does one thing more, in its turn."""
        self._history_free_ms = max(self._history_free_ms, self.clock.now_ms) + takes_ms
        self.clock.at(self._history_free_ms, self.alive(self._next_in_history))

    def _next_in_history(self) -> None:
        if self._history_work:
            self._history_work.popleft()()

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
        question = read_question(msgpack.unpackb(frame[4:]))
        self._read(end, question, self.clock.now_ms + HEAD_WAIT_MS)

    def _read(self, end: End, question: Question, until_ms: float) -> None:
        assert self.machine
        log = self.machine.logs.get(self.world.slot_of(question.session))
        if log is None or not log.answers_reads:
            # Unknown is not absent: with a hole, or deleted here, others know more.
            frame, nothing = _ANSWERS[type(question)]
            end.send((int(frame), question.request, NotReachable.code, 0, *nothing))
            return
        if log.applied_lsn < log.commit_lsn:
            self._apply()
            if self.running:
                self._in_history(lambda: self._answer_read(end, question, until_ms))
            return
        self._answer_read(end, question, until_ms)

    def _answer_read(self, end: End, question: Question, until_ms: float) -> None:
        session = question.session
        last_seq = self.disk.last_seq(session)
        if last_seq < question.head and self.clock.now_ms < until_ms:
            # The commit point that covers ``head`` is on its way to us.
            self.later(20, lambda: self._read(end, question, until_ms))
            return
        found: tuple[Any, ...]
        match question:
            case PageAsked(_, _, after, before, limit, _):
                found = (self.disk.page(session, after, before, limit)[1],)
                disk, lives = self.disk.identity, self.disk.lives
                source = f"{disk}#{lives.get(self.world.slot_of(session), 0)}"
                self.world.history.polled(source, session, last_seq, last_seq)
            case FactsAsked(_, _, _, query):
                found = self.disk.fact_page(session, query)
            case RanksAsked(_, _, _, ranges):
                found = (self.disk.count_ranks(session, ranges),)
            case CountAsked(_, _, _, after, upto, user):
                found = (self.disk.count(session, after, upto, user),)
        frame, _ = _ANSWERS[type(question)]
        end.send((int(frame), question.request, 0, last_seq, *found))
