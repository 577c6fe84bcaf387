"""The shell of a shard: links and timers around one ``core.owner.SlotOwner`` per slot."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from im_actors.core import owner as own
from im_actors.core.backoff import Alarms
from im_actors.core.batch import is_batch_device
from im_actors.core.batch_run import BatchSettings
from im_actors.core.directory import Directory, ReplicaAddress, ShardAddress
from im_actors.core.formats import FORMATS
from im_actors.core.messages import Append, Appended
from im_actors.core.model import EventKind, Member, View, slot_of
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.rules import SERVER
from im_actors.core.rules_for import decide
from im_actors.core.serving import Answer, Send, ServingLimits, refused
from im_actors.errors import Forbidden
from im_actors.net.link import Link, LinkConfig, PeerInfo
from im_actors.net.link_connection import LinkConnection
from im_actors.net.link_server import LinkCallbacks, LinkServer
from im_actors.server.batches import BATCHES, Batches, FactsToken, Row
from im_actors.server.clock import now_ms
from im_actors.server.presence import Presence
from im_actors.server.rounds import HOLD_MS, Rounds
from im_actors.server.telling import NOTES, Telling, heard_events, heard_pending
from im_actors.wire.links import (
    InsideType,
    pack_frame,
    pack_inside,
    read_inside,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

FRAME_BATCH_BYTES_MAX = 8 * 1024 * 1024
FRAME_BATCH_ROWS_MAX = 16_384
"""What goes to one peer in one frame; a turn of the loop that makes more sends several. Above the
link's limits nothing would leave at all."""


BARRED_S = 2.0
"""How long an owner does without replicas whose place others should take."""


class Views(Protocol):
    """The part of the view store that a shard uses. Every failure means "unknown"."""

    async def read(self, slot: int) -> View | None: ...

    async def swap(self, old: View, new: View) -> View: ...


def in_frames(rows: list[T], bytes_of: Callable[[T], int]) -> Iterator[list[T]]:
    """``rows`` in order, in lists that fit into a frame; one that is too large stands alone."""
    if len(rows) <= FRAME_BATCH_ROWS_MAX and sum(map(bytes_of, rows)) <= FRAME_BATCH_BYTES_MAX:
        if rows:
            yield rows
        return
    start = size = 0
    for index, row in enumerate(rows):
        added = bytes_of(row)
        full = index - start >= FRAME_BATCH_ROWS_MAX or size + added > FRAME_BATCH_BYTES_MAX
        if full and index > start:
            yield rows[start:index]
            start, size = index, 0
        size += added
    yield rows[start:]


def _request_bytes(message: Any) -> int:
    if type(message) is not Append:
        return 0
    return sum([len(record.payload) for record in message.records])


class _Relayed(NamedTuple):
    """Who waits for the answer to a note, or a batch's message, that a gateway has handed on, and
    in which frame."""

    gateway: LinkConnection
    answer: InsideType


_COLUMNS = {InsideType.RELAYED: 2, InsideType.SENDS_RELAYED: 3}
"""How much of an answer goes back."""


class ShardNode:
    """One incarnation of a shard. It keeps no disk: all that it knows it learns by taking slots."""

    def __init__(
        self,
        name: str,
        slots: int,
        secret: bytes,
        views: Views,
        rng: random.Random,
        on_activated: Callable[[View], None],
        settings: own.OwnerSettings | None = None,
        limits: ServingLimits | None = None,
        rules: RuleSettings | None = None,
        batches: BatchSettings | None = None,
        links: LinkConfig | None = None,
        form: int = FORMATS.newest,
    ) -> None:
        """``form`` is the format that records are written in."""
        self.name = name
        self.form = form
        self.incarnation = f"{name}.{uuid.uuid4().hex[:12]}"
        self.slots = slots
        self._secret = secret
        self._views = views
        self._rng = rng
        self._link_config = links or LinkConfig()
        self._on_activated = on_activated
        rule = partial(decide, settings=(rules or RuleSettings()).validate())
        self._owners = {
            slot: own.SlotOwner(
                slot, self.incarnation, random.Random(rng.random()), settings, limits, rule
            )
            for slot in range(slots)
        }
        self._telling = Telling(self.incarnation, self)
        self._presence = Presence(slots)
        lines = limits.lines if limits is not None else None
        self._batches = Batches(self.incarnation, self, now_ms(), batches, lines)
        self._gateways: dict[LinkConnection, None] = {}
        """The one that was asked last is the last one."""
        self._links: dict[Member, Link] = {}
        self._barred: dict[int, frozenset[Member]] = {}
        """By slot: replicas that its owner is to do without while its members change."""
        self._replicas: dict[Member, ReplicaAddress] = {}
        self._version = -1
        self._address = ""
        self._watchers: dict[str, set[LinkConnection]] = {}
        self._watched: dict[LinkConnection, set[str]] = {}
        self._to_replicas: dict[Member, list[Any]] = {}
        self._results: dict[Any, list[Any]] = {}
        """By connection; of notes by NOTES, or by who relayed them."""
        self._pushes: dict[LinkConnection, list[Any]] = {}
        self._flush_planned = False
        self._touched: set[int] = set()
        """Slots whose owner has handled something in this turn of the loop."""
        self._untold: set[int] = set()
        """Slots whose members perhaps do not know the commit point."""
        self._rounds = Rounds()
        self._hold_timer: asyncio.TimerHandle | None = None
        self._alarms: Alarms[int] = Alarms()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.acked = 0

    # -- life ----------------------------------------------------------------------------------

    async def start(self, address: str, port: int = 0) -> ShardAddress:
        self._loop = asyncio.get_running_loop()
        self._me = PeerInfo("shard", self.name, self.incarnation)
        self._server = LinkServer(self._me, self._secret, self._linked, config=self._link_config)
        await self._server.start(address, port)
        self._address = address
        return self.address

    @property
    def address(self) -> ShardAddress:
        return ShardAddress(self.name, self.incarnation, self._address, self._server.port)

    async def stop(self) -> None:
        """Stop serving. Nothing has to be saved: what is not committed was not promised."""
        await self.crash()

    async def crash(self) -> None:
        """Stop at once, answering nothing, as a killed process would."""
        self._stopping = True
        for timer in (self._timer, self._hold_timer):
            if timer is not None:
                timer.cancel()
        for link in self._links.values():
            link.close()
        for connection in self._server.links:
            connection.abort()
        self._server.close()
        await self._server.wait_closed()
        for link in self._links.values():
            await link.wait_closed()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what the controller says --------------------------------------------------------------

    def directory(self, directory: Directory) -> None:
        """Learn which replicas run and what the views are."""
        if directory.version <= self._version or self._stopping:
            return
        self._version = directory.version
        wanted = {replica.member: replica for replica in directory.replicas}
        if wanted != self._replicas:
            self._follow_replicas(wanted)
        for view in directory.views:
            self._handle(view.slot, own.ViewSeen(view))

    def _follow_replicas(self, wanted: dict[Member, ReplicaAddress]) -> None:
        self._replicas = wanted
        for member in [member for member in self._links if member not in wanted]:
            self._links.pop(member).close()
            self._down(member, "not in the directory")
        infos = tuple(replica.info for replica in wanted.values())
        for slot in self._owners:
            self._handle(slot, own.ReplicasKnown(infos))
        for member, replica in wanted.items():
            if member in self._links:
                self._links[member].retarget(replica.address, replica.port)
            else:
                self._links[member] = self._dial(member, replica)

    def _dial(self, member: Member, replica: ReplicaAddress) -> Link:
        return Link(
            self._me,
            self._secret,
            replica.address,
            replica.port,
            on_up=lambda _: self._up(member),
            on_frames=partial(self._answers, member),
            on_down=partial(self._down, member),
            rng=self._rng,
            config=self._link_config,
            expected_id=member.replica,
            expected_incarnation=member.disk,
        )

    def take(self, slots: list[int], reason: str, force: bool = False) -> None:
        """Own these slots; returns at once, ``on_activated`` tells when each is served."""
        for slot in slots:
            self._handle(slot, own.Take(reason, force))

    def change_members(self, slot: int, barred: list[Member], reason: str) -> None:
        """Have other replicas than these for the slot, as when these were down; returns at once.

        They are told to the owner as out of reach until the change is done, or has come to nothing
        for so long that it goes on with those it had. Until then they still take what it writes.
        """
        members = frozenset(Member(*fields) for fields in barred)
        others = self._links.keys() - members - self._owners[slot].members.keys()
        able = any(self._links[member].up for member in others)
        if not able or not self.serves(slot) or slot in self._barred:
            return
        self._barred[slot] = members
        for member in members:
            self._handle(slot, own.MemberDown(member))
        self.take([slot], reason, force=True)
        self._loop.call_later(BARRED_S, self._unbar, slot, members)

    def _unbar(self, slot: int, barred: frozenset[Member]) -> None:
        if self._stopping or self._barred.get(slot) is not barred:
            return
        del self._barred[slot]
        for member in barred:
            link = self._links.get(member)
            if link is not None and link.up:
                self._handle(slot, own.MemberUp(member))

    # -- frames --------------------------------------------------------------------------------

    def _up(self, member: Member) -> None:
        for slot in self._owners:
            if member not in self._barred.get(slot, ()):
                self._handle(slot, own.MemberUp(member))

    def _down(self, member: Member, reason: str) -> None:
        if not self._stopping:
            for slot in self._owners:
                self._handle(slot, own.MemberDown(member))

    def _answers(self, member: Member, messages: list[Any]) -> None:
        now = now_ms()
        owners = self._owners
        for message in messages:
            for answer in read_inside(message[1]):
                slot = answer[0]
                effects = owners[slot].handle(own.ReplicaAnswered(member, answer), now)
                # Of three members' answers to a record two change nothing but what the owner knows.
                if effects or type(answer) is not Appended:
                    self._carry_out(slot, effects)
        if self._touched:
            self._plan_flush()

    def _linked(self, peer: PeerInfo, connection: LinkConnection) -> LinkCallbacks:
        if peer.role == "gateway":
            self._gateways[connection] = None
        return LinkCallbacks(
            partial(self._frames, connection), lambda _: self._gateway_left(connection)
        )

    def _frames(self, connection: LinkConnection, messages: list[Any]) -> None:
        for message in messages:
            match message[0]:
                case InsideType.SUBMIT:
                    self._submitted(connection, message[1])
                case InsideType.WATCH:
                    self._watch(connection, message[1])
                case InsideType.UNWATCH:
                    for session in message[1]:
                        self._unwatch(connection, session)
                case InsideType.RELAY:
                    self._notes_came(connection, message[1])
                case InsideType.RELAYED:
                    self._telling.relayed(message[1], now_ms())
                case InsideType.RELAY_SENDS:
                    self._batch_sends_came(connection, message[1])
                case InsideType.SENDS_RELAYED:
                    self._batches.answered(message[1], now_ms())
                case InsideType.SIGNAL:
                    self._presence.signaled(connection, message[1], self._watchers, now_ms())
                case InsideType.HERE:
                    self._presence.here(connection, message[1], message[2])
                case InsideType.WHO_IS_HERE:
                    self._presence.asked(connection, message[1], message[2])

    def _submitted(self, connection: LinkConnection, rows: list[list[Any]]) -> None:
        by_slot: dict[int, list[Send]] = {}
        new = tuple.__new__
        for token, slot, session, device, n, kind, body in rows:
            if device == SERVER:
                # Notes come by RELAY: a gateway that takes them for a client's must not pass.
                self._answered([refused((connection, token), Forbidden.code)])
                continue
            send = new(Send, ((connection, token), session, device, n, kind, body))
            sends = by_slot.get(slot)
            if sends is None:
                by_slot[slot] = [send]
            else:
                sends.append(send)
        now = now_ms()
        if rows:
            # One of a frame is enough: the next frame tells of another line.
            self._batches.others_send(rows[0][2], now)
        for slot, sends in by_slot.items():
            self._rounds.add(slot, sends, now)
        self._plan_flush()

    def _notes_came(self, gateway: LinkConnection, rows: list[list[Any]]) -> None:
        """Other shards' notes for sessions that are served here."""
        by_slot: dict[int, list[Send]] = {}
        asker = _Relayed(gateway, InsideType.RELAYED)
        for token, session, body in rows:
            note = Send((asker, token), session, SERVER, 0, int(EventKind.NOTE), body)
            by_slot.setdefault(slot_of(session, self.slots), []).append(note)
        for slot, notes in by_slot.items():
            self.hand_over(slot, notes)

    def _batch_sends_came(self, gateway: LinkConnection, rows: list[list[Any]]) -> None:
        """Other shards' batch messages for sessions that are served here."""
        by_slot: dict[int, list[Send]] = {}
        asker = _Relayed(gateway, InsideType.SENDS_RELAYED)
        for token, session, device, n, kind, body in rows:
            assert is_batch_device(device), f"{device} is relayed as a batch's device"
            send = Send((asker, token), session, device, n, kind, body)
            by_slot.setdefault(slot_of(session, self.slots), []).append(send)
        for slot, sends in by_slot.items():
            self.hand_over(slot, sends)

    def _watch(self, connection: LinkConnection, sessions: list[str]) -> None:
        by_slot: dict[int, list[str]] = {}
        watched = self._watched.setdefault(connection, set())
        for session in sessions:
            watched.add(session)
            self._watchers.setdefault(session, set()).add(connection)
            by_slot.setdefault(slot_of(session, self.slots), []).append(session)
        for slot, names in by_slot.items():
            self._handle(slot, own.HeadsAsked(connection, tuple(names)))

    def _unwatch(self, connection: LinkConnection, session: str) -> None:
        watchers = self._watchers.get(session)
        if watchers is not None:
            watchers.discard(connection)
            if not watchers:
                del self._watchers[session]
        self._watched.get(connection, set()).discard(session)

    def _gateway_left(self, connection: LinkConnection) -> None:
        for session in list(self._watched.get(connection, ())):
            self._unwatch(connection, session)
        self._watched.pop(connection, None)
        self._gateways.pop(connection, None)
        self._results.pop(connection, None)
        for answer in _COLUMNS:
            self._results.pop(_Relayed(connection, answer), None)
        self._pushes.pop(connection, None)
        self._presence.left(connection)

    # -- machines ------------------------------------------------------------------------------

    def _handle(self, slot: int, event: own.OwnerEvent) -> None:
        self._carry_out(slot, self._owners[slot].handle(event, now_ms()))
        self._plan_flush()

    def _carry_out(self, slot: int, effects: list[own.OwnerEffect]) -> None:
        self._touched.add(slot)
        for effect in effects:
            # Compared by type: a match statement costs three times as much for each.
            if type(effect) is own.ToReplica:
                messages = self._to_replicas.get(effect.member)
                if messages is None:
                    self._to_replicas[effect.member] = [effect.message]
                else:
                    messages.append(effect.message)
            elif type(effect) is own.Answered:
                self._answered(effect.answers)
            elif type(effect) is own.Published:
                self._published(slot, effect)
            else:
                self._carry_out_rare(slot, effect)

    def _answered(self, answers: list[Answer]) -> None:
        results = self._results
        for (connection, token), code, seq, epoch, time_ms, hint in answers:
            row = (token, code, seq, epoch, time_ms, hint)
            self.acked += code == 0
            rows = results.get(connection)
            if rows is None:
                results[connection] = [row]
            else:
                rows.append(row)

    def _published(self, slot: int, published: own.Published) -> None:
        watchers, pushes, others_hear = self._watchers, self._pushes, False
        for event in published.events:
            if event.session.heard:
                others_hear = True
            name = event.session.name
            for connection in watchers.get(name, ()):
                rows = pushes.get(connection)
                if rows is None:
                    pushes[connection] = [(name, event.data)]
                else:
                    rows.append((name, event.data))
        heard = heard_pending(published.events) if others_hear else []
        lsns = published.first_lsn, published.last_lsn
        self._telling.published(slot, *lsns, heard, now_ms())
        self._batches.saw(heard, True, now_ms())

    def _carry_out_rare(self, slot: int, effect: own.OwnerEffect) -> None:
        match effect:
            case own.ReadView(_):
                self._start(self._read_view(slot))
            case own.SwapView(old, new):
                self._start(self._swap_view(slot, old, new))
            case own.HeadsKnown(connection, heads):
                if connection.is_open:
                    connection.send(pack_frame((InsideType.WATCHED, heads)))
            case own.FactsKnown(FactsToken() as token, facts):
                self._batches.facts_known(token, facts, now_ms())
            case own.FactsKnown(token, facts):
                self._telling.facts_known(slot, token, facts, now_ms())
            case own.LogKnown(first_lsn, records):
                self._telling.log_known(slot, first_lsn, records, now_ms())
                events = [event for record in records for event in heard_events(record.payload)]
                self._batches.saw(events, False, now_ms())
            case own.Activated(view):
                self._rounds.join(slot, view.members)
                if slot in self._barred:
                    self._loop.call_soon(self._unbar, slot, self._barred[slot])
                self._telling.activated(slot)
                self._batches.activated(slot)
                self._on_activated(view)
                logger.info("%s serves slot %d", self.incarnation, slot, extra=self._about(slot))
            case own.SteppedDown(_, reason):
                self._telling.left(slot, now_ms())
                self._batches.left(slot, now_ms())
                what = (self.incarnation, slot, reason)
                logger.info("%s leaves slot %d: %s", *what, extra=self._about(slot))
            case own.Alarm(_, text):
                what = (self.incarnation, slot, text)
                logger.error("ALARM %s slot %d: %s", *what, extra=self._about(slot))

    def _about(self, slot: int) -> dict[str, int]:
        """For the log."""
        return {"slot": slot, "epoch": self._owners[slot].epoch}

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_view(self, slot: int) -> None:
        try:
            view = await self._views.read(slot)
        except Exception as error:
            what = (self.name, slot, error)
            logger.warning("%s cannot read the view of slot %d: %s", *what, extra=self._about(slot))
            view = None
            await asyncio.sleep(self._rng.uniform(0.05, 0.15))
        if not self._stopping:
            self._handle(slot, own.ViewRead(view))

    async def _swap_view(self, slot: int, old: View, new: View) -> None:
        current: View | None
        try:
            current = await self._views.swap(old, new)
        except Exception as error:
            text, what = "%s: outcome of a view change unknown, slot %d: %s", (slot, error)
            logger.warning(text, self.name, *what, extra=self._about(slot))
            current = None
            await asyncio.sleep(self._rng.uniform(0.05, 0.15))
        if not self._stopping:
            self._handle(slot, own.ViewSwapped(current))

    # -- sending -------------------------------------------------------------------------------

    def _plan_flush(self) -> None:
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """One frame per peer for everything that this turn of the loop produced."""
        self._flush_planned = False
        if self._stopping:
            return  # It was planned before, and would start timers that nobody stops any more.
        self._telling.flush()
        self._batches.flush(now_ms())
        self._begin_rounds()
        if self._to_replicas:
            self._say_what_is_untold()
            to_replicas, self._to_replicas = self._to_replicas, {}
            self._send_requests(to_replicas)
        # Results first: who has its ACK may already see the event of others, never the reverse.
        frames: dict[LinkConnection, list[bytes]] = {}
        results, self._results = self._results, {}
        self._notes_answered(results, frames)
        for connection, rows in results.items():
            parts = in_frames(rows, lambda _: 0)
            packed = [pack_frame((InsideType.RESULTS, part)) for part in parts]
            frames[connection] = frames.get(connection, []) + packed
        for connection, pushes in self._pushes.items():
            parts = in_frames(pushes, lambda push: len(push[1]))
            packed = [pack_frame((InsideType.PUSHED, part)) for part in parts]
            frames[connection] = frames.get(connection, []) + packed
        self._pushes = {}
        for connection, several in frames.items():
            connection.send_now(b"".join(several))
        self._set_alarms()

    def _notes_answered(
        self, results: dict[Any, list[Any]], frames: dict[LinkConnection, list[bytes]]
    ) -> None:
        """Take the answers to notes and to batch messages out of ``results``; those of other
        shards' become frames."""
        if NOTES in results:
            rows = results.pop(NOTES)
            self.acked -= sum(row[1] == 0 for row in rows)
            self._telling.answered(rows, now_ms())
        if BATCHES in results:
            rows = results.pop(BATCHES)
            self.acked -= sum(row[1] == 0 for row in rows)
            self._batches.answered(rows, now_ms())
        for asker in [asker for asker in results if type(asker) is _Relayed]:
            rows = [row[: _COLUMNS[asker.answer]] for row in results.pop(asker)]
            self.acked -= sum(row[1] == 0 for row in rows)
            parts = in_frames(rows, lambda _: 0)
            packed = [pack_frame((asker.answer, part)) for part in parts]
            frames[asker.gateway] = frames.get(asker.gateway, []) + packed

    def _begin_rounds(self) -> None:
        """Hand over the sends whose round has come."""
        for slot in self._touched:
            self._rounds.flies(slot, self._owners[slot].flying)
        now = now_ms()
        for slot, sends in self._rounds.release(now):
            self._carry_out(slot, self._owners[slot].handle(own.Submitted(sends), now))
        if self._rounds.waits and self._hold_timer is None:
            self._hold_timer = self._loop.call_later(HOLD_MS / 1000, self._held_long_enough)

    def _held_long_enough(self) -> None:
        self._hold_timer = None
        self._plan_flush()

    def _say_what_is_untold(self) -> None:
        """Commit points ride with the next frame, whichever slot it is for: alone each would cost
        as much as a record."""
        untold, self._untold = self._untold, set()
        for slot in untold:
            owner = self._owners[slot]
            if owner.untold:
                self._carry_out(slot, owner.handle(own.FrameLeaves(), now_ms()))

    def _send_requests(self, to_replicas: dict[Member, list[Any]]) -> None:
        packed: list[Any] = []
        frames: list[bytes] = []
        for member, messages in to_replicas.items():
            link = self._links.get(member)
            if link is None or not link.up:
                continue  # The machine hears of it by MemberDown and asks again after MemberUp.
            if messages != packed:
                # Mostly three members get the same, so it is packed for the first of them.
                packed = messages
                batches = in_frames(messages, _request_bytes)
                frames = [pack_inside(InsideType.REQUESTS, batch) for batch in batches]
            for frame in frames:
                link.send_now(frame)

    # -- time ----------------------------------------------------------------------------------

    def _set_alarms(self) -> None:
        """What this turn did may have moved the deadlines of its slots."""
        touched, self._touched = self._touched, set()
        for slot in touched:
            owner = self._owners[slot]
            self._rounds.flies(slot, owner.flying)
            if owner.untold:
                self._untold.add(slot)
            due = owner.deadline_ms()
            if due is None:
                self._alarms.clear(slot)
            else:
                self._alarms.set(slot, due)
        self._plan_tick()

    def _plan_tick(self) -> None:
        machines = (self._alarms, self._telling, self._batches)
        dues = [due for machine in machines if (due := machine.next_ms()) is not None]
        if not dues:
            return
        due = min(dues)
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        delay = max(0, due - now_ms()) / 1000
        self._timer = self._loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = now_ms()
        self._telling.tick(now)
        self._batches.tick(now)
        for slot in self._alarms.due(now):
            self._handle(slot, own.Tick())
        self._plan_tick()

    # -- for the notes -------------------------------------------------------------------------

    def serves(self, slot: int) -> bool:
        return self._owners[slot].phase is own.Phase.SERVING

    def commit_lsn(self, slot: int) -> int:
        return self._owners[slot].commit_lsn

    def ask_owner(self, slot: int, event: own.OwnerEvent) -> None:
        self._carry_out(slot, self._owners[slot].handle(event, now_ms()))

    def hand_over(self, slot: int, notes: list[Send]) -> None:
        """They wait for the slot's next round, like sends: a busy slot takes many in one record."""
        self._rounds.add(slot, notes, now_ms())
        self.plan_flush()

    def relay(self, rows: list[tuple[int, str, bytes]]) -> None:
        gateway = self._next_gateway()
        if gateway is None:
            return  # Nobody answers, so they are told again.
        for part in in_frames(rows, lambda row: len(row[2])):
            gateway.send_now(pack_frame((InsideType.RELAY, part)))

    def _next_gateway(self) -> LinkConnection | None:
        """Another one each time: one may not reach everybody."""
        gateway = next((known for known in self._gateways if known.is_open), None)
        if gateway is not None:
            self._gateways[gateway] = self._gateways.pop(gateway)
        return gateway

    def read_facts(self, slot: int, token: FactsToken) -> None:
        self.ask_owner(slot, own.FactsAsked(token, token.session, token.keys))

    def relay_sends(self, rows: list[Row]) -> None:
        gateway = self._next_gateway()
        if gateway is not None:
            for part in in_frames(rows, lambda row: len(row.body)):
                gateway.send_now(pack_frame((InsideType.RELAY_SENDS, part)))

    def plan_flush(self) -> None:
        self._plan_flush()

    # -- looking in ----------------------------------------------------------------------------

    def story(self, slot: int) -> list[str]:
        return self._owners[slot].story.story(slot)

    def status(self) -> dict[str, Any]:
        """What ``im-actors status`` shows of a shard."""
        phases = {slot: owner.phase for slot, owner in self._owners.items()}
        serving = [slot for slot, phase in phases.items() if phase is own.Phase.SERVING]
        return {
            "name": self.name,
            "incarnation": self.incarnation,
            "format": self.form,
            "formats": list(self._link_config.formats),
            "serving": sorted(serving),
            "working": {
                str(slot): f"{phase.value}: {self._owners[slot].reason}"
                for slot, phase in phases.items()
                if phase not in (own.Phase.SERVING, own.Phase.IDLE)
            },
            "acked": self.acked,
            "watched_sessions": len(self._watchers),
            "sessions": sum(len(owner.serving.sessions) for owner in self._owners.values()),
            **self._telling.status(now_ms()),
            "signals": self._presence.signals,
            "signals_dropped": self._presence.dropped,
            **self._batches.status(),
        }
