"""Simulated devices: the real outbox, inbox and dialer, in an app that sends and reads and dies."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from im_actors.client import dialer as d
from im_actors.client.config import Address, ClientConfig
from im_actors.core import inbox_words as i
from im_actors.core import outbox_words as o
from im_actors.core.inbox import Inbox
from im_actors.core.model import DEVICE_WINDOW, Event, EventKind
from im_actors.core.names import SessionKind, session_kind
from im_actors.core.outbox import Outbox
from im_actors.errors import ImError, NotReachable, Overloaded
from im_actors.wire import answers, messages, queries
from im_actors.wire.codec import FrameDecoder, Message, encode_frame
from im_actors.wire.limits import Limits
from tests.sim.device_store import DeviceFile, DeviceStore
from tests.sim.gateways import REFUSED
from tests.sim.mailboxes import has_rules
from tests.sim.network import End, Process
from tests.sim.registers import REFUSALS, is_register

if TYPE_CHECKING:
    from tests.sim.world import World

CONFIG = ClientConfig(refused_retry_ms=2_000)
HEALED_PACE_MS = 50
"""Between the sends of an app, at most, once all is well again: what is left is soon sent."""


class Feed:
    """A reader of one session."""

    def __init__(self, id: int, name: str, session: str, live: bool) -> None:
        self.id = id
        self.name = name
        self.session = session
        self.live = live
        self.begun = False
        self.events: list[Event] = []


class SimClient(Process):
    """One device of one user. ``writes``: how many sends to which sessions; ``reads``: what it
    follows, each from the beginning or only what is new."""

    has_heartbeats = True

    def __init__(
        self,
        world: World,
        name: str,
        writes: dict[str, int],
        reads: list[tuple[str, bool]],
        user: str | None = None,
        haste: float = 1.0,
    ) -> None:
        super().__init__(world, name)
        self.rng = world.rng_for(name)
        self.user = user or name
        self.address = f"{name}/phone" if user is None else f"{user}/{name}"
        self.file = DeviceFile()
        self.writes = writes
        self.reads = reads
        self.total = sum(writes.values())
        self.haste = haste
        """Below 1: most of it is written at the beginning."""
        self.submitted = 0
        self.past: list[o.OutboxRow] = []
        """What was ever put on a connection, for stray copies."""
        self.acked_keys: list[o.Key] = []
        self.asked: dict[o.Key, bytes] = {}
        """What was asked of registers."""
        self.unanswered: dict[o.Key, None] = {}
        """What is on the disk, and the user has not been told what became of it."""
        # A device that does not keep to the window that it is told is only slower.
        allowed = world.device_window + (3 if self.rng.random() < 0.2 else 0)
        self.window = min(self.rng.choice([4, 20, DEVICE_WINDOW]), allowed)
        self.feeds: dict[int, Feed] = {}
        self.shown_list: dict[str, tuple[int, ...]] | None = None
        self.outbox: Outbox
        self.inbox: Inbox

    # -- life ----------------------------------------------------------------------------------

    def started(self) -> None:
        rng, world = self.rng, self.world
        self.outbox, self.inbox = Outbox(Random(rng.random())), Inbox(Random(rng.random()))
        addresses = tuple(Address(name, 1) for name in world.gateways)
        self.dialer = d.Dialer(addresses, CONFIG, Random(rng.random()))
        world.stories.add(f"{self.name}.{self.life}", self.outbox.story, of_slots=False)
        self.store = DeviceStore(self, lambda keys: self._outbox(o.Stored(keys)))
        self.feeds, self._feed_id, self._pull_id = {}, 0, 1
        self._end: End | None = None
        self._heard_ms = self._sent_ms = self.clock.now
        self._timer_ms: float | None = None
        rows = list(self.file.rows.values())
        rng.shuffle(rows)
        self._outbox(o.Restored(rows, dict(self.file.next_n)))
        self._dialer(d.Started())
        for session, live in self.reads:
            self._open(session, live)
        self.later(rng.uniform(0, 200), self._write)
        self.later(rng.uniform(100, 2_000), self._look_back)

    def crashed(self) -> None:
        for feed in self.feeds.values():
            self.world.history.left(feed.name, feed.session)
        self.feeds = {}

    @property
    def done(self) -> bool:
        """Whether everything that it had to send has an answer."""
        if not self.running or self.submitted < self.total or len(self.outbox):
            return False
        for session, n in self.unanswered:
            key = (session, self.address, n)
            self.world.fail("forgotten", f"{key} was accepted, and ends without an answer", key=key)
        return True

    # -- the app -------------------------------------------------------------------------------

    def _write(self) -> None:
        """Keep the pace: now a few at once, now many."""
        due = self.total * min(1.0, self.clock.now_ms / self.world.writing_ms) ** self.haste
        burst = self.rng.choice([1, 3, 10, 50])
        while self.submitted < due and burst and self._submit():
            burst -= 1
        if self.submitted < self.total:
            pace_ms = HEALED_PACE_MS if self.world.healing else self.world.pace_ms
            self.later(self.rng.uniform(5, pace_ms), self._write)

    def _submit(self) -> bool:
        session = self.rng.choice([s for s, left in self.writes.items() if left])
        body = self.rng.randbytes(self.rng.randint(0, 40))
        kind = EventKind.MESSAGE
        if not is_register(session) and has_rules(session):
            kind, asked = self.world.mailboxes.request(self.user, session, self.rng)
            if asked is None:
                return False
            body = asked
        elif is_register(session) and self.rng.random() < 0.8:
            body = self.world.registers.request(session, self.rng)
        elif self.world.faults.strikes("refusal", self.rng):
            body = REFUSED + body
        event = o.Submitted(session, kind, body, self.clock.now)
        try:
            (effect,) = self.outbox.handle(event, self.clock.now)
        except ImError:
            return False
        assert isinstance(effect, o.StoreRow)
        self.writes[session] -= 1
        self.submitted += 1
        self.asked[session, effect.row.n] = body
        self.world.mailboxes.submitted(session, self.address, effect.row.n, kind, body)
        self.store.save(effect.row)
        return True

    def _open(self, session: str, live: bool) -> None:
        self._feed_id += 1
        name = f"{self.name}.{self.life}.{self._feed_id}"
        feed = self.feeds[self._feed_id] = Feed(self._feed_id, name, session, live)
        after = None if live else self.file.cursors.get(session, 0)
        if after is not None:
            self.world.history.following(name, session, after)
        self._inbox(i.StreamOpened(feed.id, session, after))

    def _look_back(self) -> None:
        """Read a page of history; now and then end a reader and begin another one."""
        rng = self.rng
        session = rng.choice(self.world.sessions)
        if self._online:
            self._pull_id += 2  # odd; the inbox uses the even ones
            after, before = rng.choice([(-1, 0), (0, rng.randint(1, 200)), (rng.randint(0, 99), 0)])
            self._send(messages.pull(self._pull_id, session, after, before, rng.randint(1, 50)))
            if self.user in self.world.mailboxes.users:
                self._ask_user_side()
        if self.feeds and rng.random() < 0.1:
            feed = self.feeds.pop(rng.choice(list(self.feeds)))
            self.world.history.left(feed.name, feed.session)
            self._inbox(i.StreamClosed(feed.id))
            self._open(feed.session, feed.live)
        self.later(rng.uniform(100, 4_000), self._look_back)

    def _ask_user_side(self) -> None:
        """The list, and what of a group's past is this user's to read."""
        mailboxes = self.world.mailboxes
        if not mailboxes.listed:
            return
        self._pull_id += 2
        self._send(queries.query(self._pull_id, "conversations", [None, 100, False, ""]))
        if mailboxes.crews:
            self._pull_id += 2
            crew, after = self.rng.choice(mailboxes.crews), self.rng.choice([-1, 0])
            self._send(messages.pull(self._pull_id, crew, after, 0, self.rng.randint(1, 50)))

    def list_unsettled(self) -> str | None:
        """How the list that it was shown last is not what the user has to see."""
        if not self.world.mailboxes.listed or self.user not in self.world.mailboxes.users:
            return None
        expected = self.world.mailboxes.expected_list(self.user)
        if self.shown_list == expected:
            return None
        return f"{self.name} sees {self.shown_list}, expected {expected}"

    def _answered_query(self, answer: queries.Answer) -> None:
        if answer.code:
            self.world.met(f"list_{answer.code}")
            return
        _, rows, _, total = answer.value
        self.world.met("list_answered")
        rows = [queries.read_row(row) for row in rows]
        self.shown_list = self.world.mailboxes.listed_rows(self.user, rows, total)

    def _consume(self, feed: Feed) -> None:
        if self.feeds.get(feed.id) is not feed or not feed.events:
            return
        events, feed.events = feed.events, []
        if not feed.live:
            self.store.set_cursor(feed.session, events[-1].seq)
        self._inbox(i.Taken(feed.id, len(events)))

    # -- the machines --------------------------------------------------------------------------

    def _outbox(self, event: o.Event) -> None:
        for effect in self.outbox.handle(event, self.clock.now):
            match effect:
                case o.SendRows(rows):
                    self._send_rows(rows)
                case o.StoreRow(row, replaces):
                    self.store.save(row, replaces)
                case o.DeleteRows(keys):
                    self.store.delete(keys)
                case o.Refuse(session, n, _):
                    self._told_refused(session, n)
                case o.Renumber(session, n, _):
                    key = (session, self.address, n)
                    self.world.fail("conflict", f"{key} was sent in one form only", key=key)
                case o.Settle(acks):
                    for ack in acks:
                        self.unanswered.pop((ack[0], ack[1]), None)
                case o.Warn():
                    self.world.met("outbox_warned")
        self._arm()

    def _told_refused(self, session: str, n: int) -> None:
        self.world.met("refused")
        if self.world.is_refused(self.asked[session, n]):
            # What a rule refused may be taken all the same, when an early copy of it comes late and
            # the state has changed: then the VOID is answered with its seq.
            self.world.history.refused(session, self.address, n)

    def _send_rows(self, rows: list[o.OutboxRow]) -> None:
        self.past += rows
        for start in range(0, len(rows), self.limits.window):
            self._send(messages.send([row[:4] for row in rows[start : start + self.limits.window]]))

    def _inbox(self, event: i.InboxEvent) -> None:
        for effect in self.inbox.handle(event, self.clock.now):
            match effect:
                case i.Deliver(stream, events):
                    self._deliver(self.feeds[stream], events)
                case i.Pull(request, session, after, limit):
                    self._send(messages.pull(request, session, after, 0, limit))
                case i.Follow(sessions):
                    self._send(messages.follow(sessions))
                case i.Unfollow(sessions):
                    self._send(messages.unfollow(sessions))
                case i.ReadCache(stream, session, after, limit):
                    self.later(self.rng.uniform(0.1, 5.0), lambda e=effect: self._read_cache(e))
                case i.FailStream(stream, error):
                    self.world.fail("reader-failed", f"{self.feeds[stream].name}: {error!r}")
                case i.Warn():
                    self.world.met("reader_warned")
        self._arm()

    def _read_cache(self, effect: i.ReadCache) -> None:
        events = self.store.events_after(effect.session, effect.after, effect.limit)
        self._inbox(i.CacheRead(effect.stream, events))

    def _deliver(self, feed: Feed, events: Sequence[Event]) -> None:
        history, name = self.world.history, feed.name
        if feed.live and not feed.begun:
            history.following(name, feed.session, events[0].seq - 1)
        feed.begun = True
        for session, seq, _, kind, device, n, body in events:
            history.delivered(name, session, seq, device, n, kind, body)
            self.world.shown(session, seq)
        if not feed.events:
            self.later(self.rng.choice([0.1, 10.0, 500.0]), lambda: self._consume(feed))
        feed.events += events

    # -- the connection ------------------------------------------------------------------------

    @property
    def _online(self) -> bool:
        return self.dialer.state is d.LinkState.ONLINE

    def accept(self, end: End) -> None:
        raise AssertionError("nobody dials a client")

    def _dialer(self, event: d.DialerEvent) -> None:
        for effect in self.dialer.handle(event, self.clock.now):
            match effect:
                case d.Dial(address):
                    self.later(self.rng.uniform(0.2, 3.0), lambda a=address: self._dial(a.host))
                case d.SendHello():
                    user, _, device = self.address.partition("/")
                    self._send(messages.hello(user, device, None, "simulation"))
                case d.SendPing(token):
                    self._send(messages.ping(token))
                case d.HangUp():
                    if self._end is not None:
                        self._end.close()
                        self._end = None
                case d.GoOnline():
                    # What was written before is sent before anything is read.
                    self._outbox(o.Connected(self.limits.window))
                    self._inbox(i.Connected(self.limits.pull_events, self.limits.follow_sessions))
                case d.GoOffline():
                    self._outbox(o.Disconnected())
                    self._inbox(i.Disconnected())
                case d.TellRefused(error):
                    self.world.fail("refused", f"{self.name}: {error!r}")
        self._arm()

    def _dial(self, host: str) -> None:
        if self.dialer.state is not d.LinkState.DIALING or self.dialer.address != (host, 1):
            return
        network, gateway = self.world.network, self.world.gateways[host]
        if not network.both_ways(self.name, host) or gateway.paused:
            return  # Nothing comes back: the dialer gives up after its time.
        self._end = network.connect(self, gateway)
        if self._end is None:
            self._dialer(d.LinkLost(NotReachable(f"{host} refuses")))
            return
        self.limits = Limits()
        decoder, end = FrameDecoder(), self._end
        end.on_data = lambda data: self._received(end, decoder.feed(data))
        end.on_lost = lambda: self._lost(end)
        self._heard_ms = self._sent_ms = self.clock.now
        self._dialer(d.LinkOpened())

    def _lost(self, end: End) -> None:
        if self._end is end:
            self._end = None
            self._dialer(d.LinkLost(None))

    def _send(self, message: Sequence[object]) -> None:
        assert self._end is not None
        self._sent_ms = self.clock.now
        self._end.send(encode_frame(message))

    def _received(self, end: End, frames: list[Message]) -> None:
        self._heard_ms = self.clock.now
        for frame in frames:
            if self._end is not end:
                return
            match frame[0]:
                case messages.ERROR:
                    error = answers.read_error(frame)
                    if type(error) is not Overloaded:
                        self.world.fail("protocol", f"{self.name} was told {error!r}")
                    self._dialer(d.ErrorReceived(error))
                case messages.SERVER_BYE:
                    bye = answers.read_bye(frame)
                    self._dialer(d.ByeReceived(bye.reason, bye.reconnect_after_ms))
                case messages.PONG:
                    pass
                case messages.WELCOME:
                    limits = answers.read_welcome(frame).limits
                    self.limits = Limits(window=self.window, pull_events=self.world.pull_events)
                    self._dialer(d.Welcomed(limits.heartbeat_ms))
                case _:
                    self._answered(frame)

    def _answered(self, frame: Message) -> None:
        match frame[0]:
            case messages.ACK:
                acks = answers.read_acks(frame)
                for session, n, seq, epoch, copies, _ in acks:
                    self.world.acked((session, self.address, n), seq, epoch, copies)
                    self.acked_keys.append((session, n))
                self._outbox(o.Acked(acks))
            case messages.NACK:
                nacks = [o.NackRow._make(row) for row in answers.read_nacks(frame)]
                for nack in nacks:
                    self.world.met(f"nack_{nack.code}")
                    if nack.code in REFUSALS and is_register(nack.session):
                        body = self.asked[nack.session, nack.n]
                        self.world.registers.refused(nack.session, self.address, body, nack.code)
                    self.world.mailboxes.refused(nack.session, self.address, nack.n, nack.code)
                self._outbox(o.Nacked(nacks))
            case messages.PUSH:
                events = answers.read_push(frame)
                self.store.cache(events)
                self._inbox(i.Pushed(events))
            case messages.HEADS:
                heads = answers.read_heads(frame)
                for session, head in heads:
                    self.world.history.polled(None, session, head)
                    self.world.shown(session, head)
                self._inbox(i.HeadsReceived(heads))
            case messages.EVENTS:
                self._paged(answers.read_events(frame))
            case messages.ANSWER:
                self._answered_query(queries.read_answer(frame))

    def _paged(self, page: answers.Events) -> None:
        events = page.events
        self.store.cache(events)
        if session_kind(page.session) is SessionKind.GROUP:
            self.world.mailboxes.pulled(self.user, page)
        if not page.code:
            after = events[0].seq - 1 if events else page.head
            rows = [(e.seq, e.device, e.n, e.kind, e.body) for e in events]
            self.world.history.polled(None, page.session, page.head, after, rows)
        if not page.request & 1:
            self._inbox(i.Paged(page.request, page.head, page.code, events))

    # -- time ----------------------------------------------------------------------------------

    def _arm(self) -> None:
        """One timer for all machines, moved only when it would be late."""
        machines: tuple[Any, ...] = (self.outbox, self.inbox, self.dialer)
        dues = [due for machine in machines if (due := machine.deadline_ms()) is not None]
        if not dues:
            return
        at_ms = self.clock.now_ms + max(0, min(dues) - self.clock.now) + 1.0
        if self._timer_ms is None or at_ms < self._timer_ms:
            self._timer_ms = at_ms
            self.clock.at(at_ms, self.alive(lambda: self._ticked(at_ms)))

    def _ticked(self, at_ms: float) -> None:
        if self._timer_ms != at_ms:
            return  # An earlier one took its place.
        self._timer_ms = None
        now = self.clock.now
        if _is_due(self.outbox.deadline_ms(), now):
            self._outbox(o.Ticked())
        if _is_due(self.inbox.deadline_ms(), now):
            self._inbox(i.Ticked())
        if _is_due(self.dialer.deadline_ms(), now):
            waiting = bool(self.outbox.in_flight or self.inbox.pulling)
            self._dialer(d.Ticked(self._heard_ms, self._sent_ms, waiting))
        self._arm()

    def check(self) -> None:
        """The machines' own invariants."""
        self.outbox.validate_state()
        self.inbox.validate_state()


def _is_due(deadline_ms: int | None, now_ms: int) -> bool:
    return deadline_ms is not None and deadline_ms <= now_ms
