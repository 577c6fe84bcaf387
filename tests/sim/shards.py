"""Simulated shard processes around the real ``core.owner.SlotOwner``, one for each slot."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from im_actors.core import owner as own
from im_actors.core.directory import Directory, ReplicaAddress, ShardAddress
from im_actors.core.messages import Append, Appended
from im_actors.core.model import EventKind, Member, View, slot_of
from im_actors.core.rules import SERVER
from im_actors.core.serving import Send
from im_actors.server.batches import BATCHES, Batches, FactsToken, Row
from im_actors.server.rounds import HOLD_MS, Rounds
from im_actors.server.telling import NOTES, Telling, heard_events, heard_pending
from im_actors.wire.links import InsideType
from tests.sim.disks import flipped
from tests.sim.network import End, Process
from tests.sim.replicas import SimReplica

if TYPE_CHECKING:
    from tests.sim.world import World


class Relayed(NamedTuple):
    """Who waits for the answer to a note, or a batch's message, that a gateway has handed on, and
    in which frame."""

    end: End
    answer: InsideType


_COLUMNS = {InsideType.RELAYED: 2, InsideType.SENDS_RELAYED: 3}


class SimShard(Process):
    """One shard; every life is another incarnation. It keeps no disk."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.rng = world.rng_for(name)
        self.owners: dict[int, own.SlotOwner] = {}
        self.telling: Telling | None = None
        """Only where users have mailboxes."""
        self.batches: Batches | None = None
        """Only where services send batch messages."""
        self.slots = world.slots
        self._gateways: dict[End, None] = {}
        self._telling_ms: float | None = None
        self._telling_planned = False
        self._ticks: dict[int, float] = {}
        self._version = -1
        self._replicas: tuple[ReplicaAddress, ...] = ()
        self._links: dict[Member, int] = {}
        """The links that are up, and which life of the replica each of them leads to."""
        self._watchers: dict[str, dict[End, None]] = {}
        self._results: dict[Any, list[Any]] = {}
        self._pushes: dict[End, list[Any]] = {}
        self._rounds = Rounds()
        self._hold_planned = False

    @property
    def incarnation(self) -> str:
        return f"{self.name}.{self.life}"

    @property
    def address(self) -> ShardAddress:
        return ShardAddress(self.name, self.incarnation, self.name, 1)

    # -- life ----------------------------------------------------------------------------------

    def started(self) -> None:
        world = self.world
        self._ticks, self._version, self._replicas, self._links = {}, -1, (), {}
        self._watchers, self._results, self._pushes = {}, {}, {}
        self._rounds, self._hold_planned = Rounds(), False
        mailboxes, name = world.mailboxes, self.incarnation
        self.telling = Telling(name, self) if mailboxes.active else None
        self.batches = None
        if mailboxes.jobs.active:
            self.batches = Batches(name, self, self.clock.now, mailboxes.jobs.settings)
        self._gateways, self._telling_ms, self._telling_planned = {}, None, False
        self.owners = {}
        for slot in range(world.slots):
            rng = random.Random(self.rng.random())
            decide = partial(world.registers.decide, self, slot)
            limits = world.limits
            owner = own.SlotOwner(slot, self.incarnation, rng, world.settings, limits, decide)
            self.owners[slot] = owner
            world.stories.add(self.incarnation, owner.story.story, of_slots=True)
        self.later(self.rng.uniform(1, 20), self._watch_links)

    def crashed(self) -> None:
        self.owners = {}

    # -- what the controller says --------------------------------------------------------------

    def directory(self, directory: Directory) -> None:
        if directory.version <= self._version:
            return
        self._version = directory.version
        if directory.replicas != self._replicas:
            self._replicas = directory.replicas
            infos = tuple(replica.info for replica in directory.replicas)
            for slot in self.owners:
                self._handle(slot, own.ReplicasKnown(infos))
            self._look_at_links()
        for view in directory.views:
            self._handle(view.slot, own.ViewSeen(view))

    def take_slots(self, slots: list[int], reason: str, force: bool = False) -> None:
        for slot in slots:
            self._handle(slot, own.Take(reason, force))

    # -- links to replicas ---------------------------------------------------------------------

    def _watch_links(self) -> None:
        """Hear, a little late, which replicas can be reached."""
        self._look_at_links()
        self.later(self.rng.uniform(20, 240), self._watch_links)

    def _look_at_links(self) -> None:
        world = self.world
        now_up: dict[Member, int] = {}
        for known in self._replicas:
            replica = world.replicas[known.name]
            same = replica.running and replica.disk.identity == known.disk
            if same and world.network.both_ways(self.name, replica.name):
                now_up[known.member] = replica.life
        before, self._links = self._links, now_up
        # A replica that was restarted has closed its links, however quickly it came back.
        for member, life in before.items():
            if now_up.get(member) != life:
                self._link_changed(own.MemberDown(member))
        for member, life in now_up.items():
            if before.get(member) != life:
                self._link_changed(own.MemberUp(member))

    def _link_changed(self, event: own.OwnerEvent) -> None:
        for slot in self.owners:
            self._handle(slot, event)

    def _to_replica(self, member: Member, message: Any) -> None:
        network, replica = self.world.network, self.world.replicas[member.replica]
        if type(message) is Append and message.records:
            message = self._garbled(message)
        life = self.life

        def answer(source: SimReplica, reply: Any) -> None:
            if self.life != life:
                return
            event = own.ReplicaAnswered(Member(source.name, member.disk), reply)
            arrived = self.alive(lambda: self._handle(reply.slot, event))
            network.send(source, self, arrived, reply)

        network.send(self, replica, lambda: replica.ask(answer, member.disk, message), message)

    def _garbled(self, message: Append) -> Append:
        """The append as it arrives: now and then with a wrong bit in a record."""
        if not self.world.faults.strikes("garbled", self.rng):
            return message
        records = list(message.records)
        index = self.rng.randrange(len(records))
        records[index] = flipped(records[index], self.rng)
        return message._replace(records=tuple(records))

    # -- gateways ------------------------------------------------------------------------------

    def accept(self, end: End) -> None:
        self._gateways[end] = None
        end.on_data = lambda frame: self._frame(end, frame)
        end.on_lost = lambda: self._gateway_left(end)

    def _frame(self, end: End, frame: bytes) -> None:
        kind, rows, *_ = msgpack.unpackb(frame[4:])
        if kind in (InsideType.SIGNAL, InsideType.HERE, InsideType.WHO_IS_HERE):
            return  # Who is connected is told at best, and nothing rests on it.
        if kind == InsideType.SUBMIT:
            self._submitted(end, rows)
        elif kind == InsideType.WATCH:
            self._watch(end, rows)
        elif kind == InsideType.RELAY:
            self._notes_came(end, rows)
        elif kind == InsideType.RELAYED:
            assert self.telling is not None
            self.telling.relayed(rows, self.clock.now)
            self._plan_telling()
        elif kind == InsideType.RELAY_SENDS:
            self._batch_sends_came(end, rows)
        elif kind == InsideType.SENDS_RELAYED:
            assert self.batches is not None
            self.batches.answered(rows, self.clock.now)
            self._plan_telling()
        else:
            for session in rows:
                self._watchers.get(session, {}).pop(end, None)

    def _submitted(self, end: End, rows: list[Any]) -> None:
        by_slot: dict[int, list[Send]] = {}
        for token, slot, session, device, n, kind, body in rows:
            send = Send((end, token), session, device, n, kind, body)
            by_slot.setdefault(slot, []).append(send)
        for slot, sends in by_slot.items():
            self._rounds.add(slot, sends, self.clock.now)
        self._begin_rounds()

    def serves(self, slot: int) -> bool:
        return self.owners[slot].phase is own.Phase.SERVING

    def noted(self, slot: int, notes: list[Send]) -> None:
        """Another server's notes for sessions of this slot."""
        self._handle(slot, own.Noted(notes))

    def _watch(self, end: End, sessions: list[str]) -> None:
        by_slot: dict[int, list[str]] = {}
        for session in sessions:
            self._watchers.setdefault(session, {})[end] = None
            by_slot.setdefault(self.world.slot_of(session), []).append(session)
        for slot, names in by_slot.items():
            self._handle(slot, own.HeadsAsked(end, tuple(names)))

    def _gateway_left(self, end: End) -> None:
        self._gateways.pop(end, None)
        for watchers in self._watchers.values():
            watchers.pop(end, None)

    # -- machines ------------------------------------------------------------------------------

    def _handle(self, slot: int, event: own.OwnerEvent) -> None:
        owner, world = self.owners[slot], self.world
        before = (owner.epoch, owner.commit_lsn)
        copied = type(event) is own.ReplicaAnswered and type(event.answer) is Appended
        asked = (owner.deadline_ms(), owner.flying, owner.untold) if copied else None
        effects = owner.handle(event, self.clock.now)
        world.owner_stepped(owner, before)
        if copied and not effects:
            # The real shell does not ask again then.
            assert asked == (owner.deadline_ms(), owner.flying, owner.untold), event
        for effect in effects:
            self._carry_out(slot, owner, effect)
        self._flush()
        self._plan_tick(slot, owner)
        self._plan_telling()
        self._rounds.flies(slot, owner.flying)
        if any(type(e) is own.ToReplica and type(e.message) is Append for e in effects):
            self._say_what_is_untold()
        self._begin_rounds()

    def _begin_rounds(self) -> None:
        for slot, sends in list(self._rounds.release(self.clock.now)):
            self._handle(slot, own.Submitted(sends))
        if self._rounds.waits and not self._hold_planned:
            self._hold_planned = True
            self.later(HOLD_MS, self._held_long_enough)

    def _held_long_enough(self) -> None:
        self._hold_planned = False
        self._begin_rounds()

    def _say_what_is_untold(self) -> None:
        for slot, owner in self.owners.items():
            if owner.untold:
                self._handle(slot, own.FrameLeaves())

    def _carry_out(self, slot: int, owner: own.SlotOwner, effect: Any) -> None:
        world = self.world
        match effect:
            case own.ToReplica(member, message):
                self._to_replica(member, message)
            case own.Answered(answers):
                for (end, token), *fields in answers:
                    self._results.setdefault(end, []).append((token, *fields))
            case own.Published(_, first_lsn, last_lsn, events):
                if self.telling is not None:
                    heard = heard_pending(events)
                    self.telling.published(slot, first_lsn, last_lsn, heard, self.clock.now)
                    if self.batches is not None:
                        self.batches.saw(heard, True, self.clock.now)
                for event in events:
                    name = event.session.name
                    for end in self._watchers.get(name, ()):
                        self._pushes.setdefault(end, []).append((name, event.data))
            case own.ReadView(_):
                world.store.read(slot, self._heard(slot, own.ViewRead))
            case own.SwapView(old, new):
                world.store.swap(old, new, self._heard(slot, own.ViewSwapped))
            case own.Activated(view):
                self._rounds.join(slot, view.members)
                world.takeovers += 1
                world.history.owner(slot, view.epoch, self.incarnation)
                world.tell_controllers(self, view)
                if self.telling is not None:
                    self.telling.activated(slot)
                if self.batches is not None:
                    self.batches.activated(slot)
            case own.FactsKnown(FactsToken() as token, facts):
                assert self.batches is not None
                self.batches.facts_known(token, facts, self.clock.now)
            case own.FactsKnown(token, facts):
                assert self.telling is not None
                self.telling.facts_known(slot, token, facts, self.clock.now)
            case own.LogKnown(first_lsn, records):
                assert self.telling is not None
                self.telling.log_known(slot, first_lsn, records, self.clock.now)
                if self.batches is not None:
                    events = [event for record in records for event in heard_events(record.payload)]
                    self.batches.saw(events, False, self.clock.now)
            case own.Alarm(_, text):
                world.owner_alarm(self, slot, text)
            case own.HeadsKnown(end, heads):
                end.send((int(InsideType.WATCHED), heads))
            case own.SteppedDown():
                if self.telling is not None:
                    self.telling.left(slot, self.clock.now)
                if self.batches is not None:
                    self.batches.left(slot, self.clock.now)

    def _flush(self) -> None:
        """Results first: who has its ACK may already see the event of others, never the reverse."""
        if self._results:
            results, self._results = self._results, {}
            for end, rows in results.items():
                if end is NOTES:
                    assert self.telling is not None
                    self.telling.answered(rows, self.clock.now)
                elif end is BATCHES:
                    assert self.batches is not None
                    self.batches.answered(rows, self.clock.now)
                elif type(end) is Relayed:
                    columns = _COLUMNS[end.answer]
                    end.end.send((int(end.answer), [row[:columns] for row in rows]))
                else:
                    end.send((int(InsideType.RESULTS), rows))
        if self._pushes:
            pushes, self._pushes = self._pushes, {}
            for end, rows in pushes.items():
                end.send((int(InsideType.PUSHED), rows))

    # -- notes ---------------------------------------------------------------------------------

    def _notes_came(self, end: End, rows: list[Any]) -> None:
        asker = Relayed(end, InsideType.RELAYED)
        for token, session, body in rows:
            note = Send((asker, token), session, SERVER, 0, int(EventKind.NOTE), body)
            self._rounds.add(slot_of(session, self.slots), [note], self.clock.now)
        self._begin_rounds()

    def _batch_sends_came(self, end: End, rows: list[Any]) -> None:
        asker = Relayed(end, InsideType.SENDS_RELAYED)
        for token, session, device, n, kind, body in rows:
            send = Send((asker, token), session, device, n, kind, body)
            self._rounds.add(slot_of(session, self.slots), [send], self.clock.now)
        self._begin_rounds()

    def commit_lsn(self, slot: int) -> int:
        return self.owners[slot].commit_lsn

    def ask_owner(self, slot: int, event: own.OwnerEvent) -> None:
        self._handle(slot, event)

    def hand_over(self, slot: int, notes: list[Send]) -> None:
        self._rounds.add(slot, notes, self.clock.now)
        self._begin_rounds()

    def relay(self, rows: list[tuple[int, str, bytes]]) -> None:
        if self._gateways:
            end = next(iter(self._gateways))
            self._gateways[end] = self._gateways.pop(end)
            end.send((int(InsideType.RELAY), rows))
            self.world.met("note_relayed")

    def read_facts(self, slot: int, token: FactsToken) -> None:
        self._handle(slot, own.FactsAsked(token, token.session, token.keys))

    def relay_sends(self, rows: list[Row]) -> None:
        if self._gateways:
            end = next(iter(self._gateways))
            self._gateways[end] = self._gateways.pop(end)
            end.send((int(InsideType.RELAY_SENDS), [tuple(row) for row in rows]))
            self.world.met("batch_relayed")

    def plan_flush(self) -> None:
        if not self._telling_planned:
            self._telling_planned = True
            self.soon(self._flush_telling)

    def _flush_telling(self) -> None:
        self._telling_planned = False
        assert self.telling is not None
        self.telling.flush()
        if self.batches is not None:
            self.batches.flush(self.clock.now)
        self._plan_telling()

    def _plan_telling(self) -> None:
        due = None if self.telling is None else self.telling.next_ms()
        if self.batches is not None and (later := self.batches.next_ms()) is not None:
            due = later if due is None else min(due, later)
        if due is None:
            return
        at = self.clock.when(due)
        if self._telling_ms is None or at < self._telling_ms:
            self._telling_ms = at
            self.clock.at(at, self.alive(lambda: self._tick_telling(at)))

    def _tick_telling(self, at: float) -> None:
        if self._telling_ms != at:
            return  # An earlier one took its place.
        assert self.telling is not None
        self._telling_ms = None
        self.telling.tick(self.clock.now)
        if self.batches is not None:
            self.batches.tick(self.clock.now)
        self._plan_telling()

    def _heard(self, slot: int, event: Any) -> Callable[[View | None], None]:
        """What the store answers, if this life is not over by then."""
        life = self.life

        def answer(view: View | None) -> None:
            if self.life == life:
                self.take(lambda: self._handle(slot, event(view)))

        return answer

    def _plan_tick(self, slot: int, owner: own.SlotOwner) -> None:
        due = owner.deadline_ms()
        if due is None:
            return
        at, known = self.clock.when(due), self._ticks.get(slot)
        if known is None or at < known:
            self._ticks[slot] = at
            self.clock.at(at, self.alive(lambda: self._tick(slot, at)))

    def _tick(self, slot: int, at: float) -> None:
        if self._ticks.get(slot) != at:
            return  # An earlier one took its place.
        del self._ticks[slot]
        owner = self.owners[slot]
        due = owner.deadline_ms()
        if due is not None and due <= self.clock.now:
            self._handle(slot, own.Tick())
        else:
            self._plan_tick(slot, owner)
