"""The client's shell: it carries out what the outbox, the inbox and the dialer decide.

One timer, one connection and, while it is dialed, one task per client; all else are callbacks, so a
process can hold hundreds of clients. Everything runs in one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from ssl import SSLContext

from im_actors.client import dialer as d
from im_actors.client.config import ClientConfig, Url
from im_actors.client.connection import Connection, Token
from im_actors.client.reader import Feed
from im_actors.client.receipts import Receipts
from im_actors.client.requests import Requests
from im_actors.client.results import Sent
from im_actors.client.user_side import UserSide
from im_actors.core import inbox_words as i
from im_actors.core import outbox_words as o
from im_actors.core.inbox import Inbox
from im_actors.core.model import Event, EventKind
from im_actors.core.names import check_session
from im_actors.core.outbox import Outbox
from im_actors.errors import (
    ImError,
    Overloaded,
    ProtocolViolation,
    ShuttingDown,
    TooLarge,
    Unknown,
    error_for,
)
from im_actors.storage.client_store import CachedEvent, ClientStore
from im_actors.wire import answers, messages, queries
from im_actors.wire.codec import Message

log = logging.getLogger("im_actors.client")

SENDS_PER_TURN = 64
"""With a store that never waits, ``send`` lets the event loop run after so many."""
ENTRY_OVERHEAD_BYTES = 32
"""All of a SEND entry but the session's name and the body."""


class Engine:
    """Everything of a client but its public face."""

    def __init__(
        self,
        url: Url,
        user: str,
        store: ClientStore,
        token: Token,
        ssl_context: SSLContext | None,
        config: ClientConfig,
        rng: Random,
    ) -> None:
        self._drain_s = config.drain_ms / 1000
        self.patience_s = config.history_timeout_ms / 1000
        """How long a reader waits for the server before he is shown what the store has."""
        self.agent = config.agent
        self.rng = rng
        self.store = store
        self.outbox = Outbox(rng)
        self.inbox = Inbox(rng)
        self.connection = Connection(self, url, user, token, ssl_context, config, rng)
        self.requests = Requests(self.connection)
        self.user = UserSide(self, user, self.requests, config)
        self.cursors: dict[str, int] = {}
        self.address = ""
        self.last_error: ImError | None = None
        self._store_error: ImError | None = None
        self.receipts = Receipts()
        self._feeds: dict[int, Feed] = {}
        self._feed_id = 0
        self._online_waiters: set[asyncio.Future[None]] = set()
        self._drained: asyncio.Future[None] | None = None
        self._reads: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms = 0
        self._sends_this_turn = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    # -- opening and closing ---------------------------------------------------------------------

    async def open(self) -> None:
        """Open the store and begin to connect; does not wait for a connection."""
        self._loop = asyncio.get_running_loop()
        opened = await self.store.open(self._saved, self._store_failed)
        self.address = opened.address
        self.cursors = opened.cursors
        self._outbox(o.Restored(opened.rows, opened.next_n))
        for row in opened.rows:
            if row.kind != EventKind.VOID:
                self.receipts.add(Sent(self, row.session, row.n, None))
        self.user.restore(opened.kept, list(self.receipts))
        self.connection.start(self.address.partition("/")[2])

    async def close(self, drain: bool) -> None:
        """Say goodbye and let go of everything; what is pending stays in the store."""
        if self._closed:
            return
        try:
            if drain:
                await self._drain()
        finally:
            self._closed = True
            await self.user.close()
            for feed in list(self._feeds.values()):
                self.close_feed(feed)
            self.connection.close()
            gone = Unknown("the client is closed; what has no answer stays in its outbox")
            self.receipts.wake(partial(_again, gone))
            self._wake_online(gone)
            if self._timer is not None:
                self._timer.cancel()
            for task in self._reads:
                task.cancel()
            try:
                await self.connection.wait_closed()
            finally:
                await self.store.close()

    async def _drain(self) -> None:
        """Give missing ACKs a moment, when there is a connection that they can come by."""
        self._drained = asyncio.get_running_loop().create_future()
        self._check_drained()
        try:
            async with asyncio.timeout(self._drain_s):
                await self._drained
        except TimeoutError:
            log.info("%s: %d sends have no ACK yet", self.address, len(self.receipts))
        finally:
            self._drained = None

    def _check_drained(self) -> None:
        """Nothing to wait for any more: all answered, or no connection that answers come by."""
        waiter = self._drained
        if waiter is None or waiter.done():
            return
        hopeless = self.connection.dialer.state in (d.LinkState.WAITING, d.LinkState.STOPPED)
        if not len(self.receipts) or hopeless:
            waiter.set_result(None)

    # -- sending ---------------------------------------------------------------------------------

    async def send(self, session: str, body: bytes, kind: EventKind = EventKind.MESSAGE) -> Sent:
        if self._closed or self._loop is None:
            raise ShuttingDown("the client is not open")
        if self._store_error is not None:
            raise _again(self._store_error)
        if len(body) > self.connection.limits.body_bytes:
            allowed = self.connection.limits.body_bytes
            raise TooLarge(f"body is {len(body)} bytes, the server takes up to {allowed}")
        event = o.Submitted(session, int(kind), body, int(time.time() * 1000))
        (effect,) = self.outbox.handle(event, self.now_ms())
        assert isinstance(effect, o.StoreRow)
        row = effect.row
        sent = Sent(self, session, row.n, time.monotonic())
        self.receipts.add(sent)
        if self.store.instant:
            self.store.save(row)
            self._sends_this_turn += 1
            if self._sends_this_turn >= SENDS_PER_TURN:
                self._sends_this_turn = 0
                await asyncio.sleep(0)
        else:
            saved = sent._saved = self._loop.create_future()
            self.store.save(row)
            await saved
        return sent

    def _saved(self, keys: list[o.Key]) -> None:
        self.receipts.saved(keys)
        self._outbox(o.Stored(keys))

    def _store_failed(self, error: ImError) -> None:
        """What is on disk is still sent and ACKed; nothing new is accepted."""
        if self._closed:
            return
        self._store_error = error
        self.warn(error)
        self.receipts.not_saved(partial(_again, error))

    async def wait_for_answer(self, sent: Sent, timeout: float | None) -> None:
        if self._closed:
            raise Unknown("the client is closed; the message stays in its outbox")
        if self.connection.dialer.refusal is not None:
            raise _again(self.connection.dialer.refusal)
        if sent._waiter is None:
            sent._waiter = asyncio.get_running_loop().create_future()
            # Who gave up waiting does not come back for the error.
            sent._waiter.add_done_callback(asyncio.Future.exception)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(sent._waiter)
        except TimeoutError:
            view = self.outbox.row(sent.session, sent.n)
            why = self.connection.dialer.error or (view and view.error) or "the server is silent"
            raise Unknown(
                f"message {sent.n} to {sent.session!r} has no ACK after {timeout} s and stays in "
                f"the outbox ({sent.state}): {why}"
            ) from None

    # -- reading ---------------------------------------------------------------------------------

    def open_feed(
        self, session: str, after: int | None, moves_cursor: bool, raw: bool = False
    ) -> Feed:
        """``after`` None: only what is new. ``raw``: what readers are not shown, too."""
        if self._closed or self._loop is None:
            raise ShuttingDown("the client is not open")
        check_session(session)
        allowed = self.connection.limits.follow_sessions
        if self.inbox.followed >= allowed and not self.inbox.follows(session):
            raise Overloaded(f"{allowed} sessions are followed, more are not allowed")
        self._feed_id += 1
        feed = self._feeds[self._feed_id] = Feed(self._feed_id, session, moves_cursor, raw)
        self._inbox(i.StreamOpened(feed.id, session, after))
        return feed

    def close_feed(self, feed: Feed) -> None:
        if self._feeds.pop(feed.id, None) is not None:
            self.consumed(feed)
            feed.closed = True
            feed.events.clear()
            feed.wake()
            self._inbox(i.StreamClosed(feed.id))

    def let_in(self, session: str) -> None:
        """The user is in this group again: what is said there is to be pushed from now on."""
        self._inbox(i.LetIn(session))

    def drop_feed(self, feed: Feed) -> None:
        """The reader was garbage; the collector may run in any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.close_feed, feed)

    def taken(self, feed: Feed) -> None:
        """Tell the inbox what was taken, so that it can fill up."""
        if feed.taken and not feed.closed:
            count, feed.taken = feed.taken, 0
            self._inbox(i.Taken(feed.id, count))

    def consumed(self, feed: Feed) -> None:
        """What was handed out is done with: move the stored cursor."""
        seq = feed.handed
        if feed.moves_cursor and seq > self.cursors.get(feed.session, 0):
            self.cursors[feed.session] = seq
            self.store.set_cursor(feed.session, seq)

    async def _read_cache(self, effect: i.ReadCache) -> None:
        try:
            events = await self.store.events_after(effect.session, effect.after, effect.limit)
        except ImError as error:
            self.warn(error)
            events = []
        self._inbox(i.CacheRead(effect.stream, events))

    # -- the connection --------------------------------------------------------------------------

    async def wait_online(self) -> None:
        if self.connection.is_online:
            return
        if self.connection.dialer.refusal is not None:
            raise _again(self.connection.dialer.refusal)
        waiter = asyncio.get_running_loop().create_future()
        self._online_waiters.add(waiter)
        try:
            await waiter
        finally:
            self._online_waiters.discard(waiter)

    def _wake_online(self, error: ImError | None) -> None:
        for waiter in self._online_waiters:
            if not waiter.done():
                if error is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(_again(error))

    def online(self) -> None:
        limits = self.connection.limits
        # The outbox comes first: what was written before is sent before anything is read.
        self._outbox(o.Connected(limits.window))
        self._inbox(i.Connected(limits.pull_events, limits.follow_sessions))
        self._wake_online(None)
        self.user.online()

    def offline(self) -> None:
        self._outbox(o.Disconnected())
        self._inbox(i.Disconnected())
        self.requests.lost()

    def refused(self, error: ImError) -> None:
        self.warn(error)
        self._wake_online(error)
        self.receipts.wake(partial(_again, error))

    def changed(self) -> None:
        if self.connection.dialer.error is not None:
            self.last_error = self.connection.dialer.error
        self._check_drained()
        self._arm()

    def warn(self, error: ImError) -> None:
        self.last_error = error
        log.warning("%s: %s: %s", self.address, type(error).__name__, error)

    def frame_received(self, frame: Message) -> None:
        handler = _HANDLERS.get(frame[0])
        if handler is not None:  # a type that is not known is a newer server's
            handler(self, frame)

    def _on_ack(self, frame: Message) -> None:
        self._outbox(o.Acked(answers.read_acks(frame)))

    def _on_nack(self, frame: Message) -> None:
        self._outbox(o.Nacked([o.NackRow._make(row) for row in answers.read_nacks(frame)]))

    def _on_push(self, frame: Message) -> None:
        events = answers.read_push(frame)
        if events:
            self._cache(events, frame[1])
            self.user.saw(events)
            self._inbox(i.Pushed(events))

    def _on_events(self, frame: Message) -> None:
        page = answers.read_events(frame)
        if any(event.session != page.session for event in page.events):
            raise ProtocolViolation("EVENTS holds an event of another session")
        self._cache(page.events, frame[5])
        self.user.saw(page.events)
        if page.request & 1:
            self.requests.paged(page)
        else:
            self._inbox(i.Paged(page.request, page.head, page.code, page.events, page.first))

    def _on_answer(self, frame: Message) -> None:
        self.requests.answered(queries.read_answer(frame))

    def _on_signaled(self, frame: Message) -> None:
        self.user.signaled(queries.read_signaled(frame))

    def _on_heads(self, frame: Message) -> None:
        self._inbox(i.HeadsReceived(answers.read_heads(frame)))
        for session, code in answers.read_refused(frame):
            error = error_for(code, f"{session!r} may not be followed by this user: {code}")
            self._inbox(i.FollowRefused(session, error))

    def _cache(self, events: Sequence[Event], encoded: Sequence[bytes]) -> None:
        self.store.cache(
            CachedEvent(event.session, event.seq, data)
            for event, data in zip(events, encoded, strict=True)
            if event.session != self.user.session
        )

    def _send_rows(self, rows: list[o.OutboxRow]) -> None:
        """As few frames as the limits allow."""
        limits = self.connection.limits
        room = limits.frame_bytes - ENTRY_OVERHEAD_BYTES
        entries: list[tuple[object, ...]] = []
        size = 0
        for row in rows:
            cost = len(row.body) + len(row.session.encode()) + ENTRY_OVERHEAD_BYTES
            if cost > room:
                self._refuse_locally(row)
                continue
            if entries and (size + cost > room or len(entries) == limits.window):
                self.connection.send(messages.send(entries))
                entries, size = [], 0
            entries.append(row[:4])
            size += cost
        if entries:
            self.connection.send(messages.send(entries))

    def _refuse_locally(self, row: o.OutboxRow) -> None:
        """A row from the time of another server, too large for a frame of this one: it would say
        no, if it could be asked. As a callback, because the outbox is being served."""
        detail = f"the server takes no frame of {len(row.body)} bytes"
        nack = o.NackRow(row.session, row.n, TooLarge.code, 0, 0, detail)
        assert self._loop is not None
        self._loop.call_soon(self._outbox, o.Nacked([nack]))

    # -- the machines ----------------------------------------------------------------------------

    def now_ms(self) -> int:
        assert self._loop is not None
        return int(self._loop.time() * 1000)

    def _outbox(self, event: o.Event) -> None:
        for effect in self.outbox.handle(event, self.now_ms()):
            match effect:
                case o.SendRows():
                    self._send_rows(effect.rows)
                case o.Settle():
                    assert self._loop is not None
                    self.receipts.settle(effect.acks, time.monotonic())
                    self._check_drained()
                case o.DeleteRows():
                    self.store.delete(effect.keys)
                case o.StoreRow():
                    self.store.save(effect.row, effect.replaces)
                case o.Refuse():
                    self.receipts.refuse((effect.session, effect.n), effect.error)
                    self._check_drained()
                case o.Renumber():
                    self.receipts.renumber(effect.session, effect.n, effect.new_n)
                case o.Warn():
                    self.warn(effect.error)
        self._arm()

    def _inbox(self, event: i.InboxEvent) -> None:
        for effect in self.inbox.handle(event, self.now_ms()):
            match effect:
                case i.Deliver():
                    feed = self._feeds[effect.stream]
                    feed.events.extend(effect.events)
                    feed.wake()
                case i.Pull():
                    self.connection.send(
                        messages.pull(effect.request, effect.session, effect.after, 0, effect.limit)
                    )
                case i.Follow():
                    self.connection.send(messages.follow(effect.sessions))
                case i.Unfollow():
                    self.connection.send(messages.unfollow(effect.sessions))
                case i.ReadCache():
                    assert self._loop is not None
                    task = self._loop.create_task(self._read_cache(effect))
                    self._reads.add(task)
                    task.add_done_callback(self._reads.discard)
                case i.FailStream():
                    feed = self._feeds.pop(effect.stream)
                    feed.error, feed.closed = effect.error, True
                    feed.wake()
                case i.Warn():
                    self.warn(effect.error)
        self._arm()

    # -- time ------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """One timer for all machines. It is moved only when it would be late: one that comes
        early finds nothing to do and is set again."""
        deadlines = [
            deadline
            for deadline in (
                self.outbox.deadline_ms(),
                self.inbox.deadline_ms(),
                self.connection.dialer.deadline_ms(),
            )
            if deadline is not None
        ]
        if not deadlines or self._closed:
            return
        at_ms = min(deadlines)
        if self._timer is not None:
            if self._timer_ms <= at_ms:
                return
            self._timer.cancel()
        assert self._loop is not None
        self._timer_ms = at_ms
        self._timer = self._loop.call_at((at_ms + 1) / 1000, self._ticked)

    def _ticked(self) -> None:
        self._timer = None
        now_ms = self.now_ms()
        if _is_due(self.outbox.deadline_ms(), now_ms):
            self._outbox(o.Ticked())
        if _is_due(self.inbox.deadline_ms(), now_ms):
            self._inbox(i.Ticked())
        if _is_due(self.connection.dialer.deadline_ms(), now_ms):
            waiting = bool(self.outbox.in_flight or len(self.requests) or self.inbox.pulling)
            self.connection.tick(waiting)
        self._arm()


def _again(error: ImError) -> ImError:
    """A copy to raise: one object raised in many tasks would collect all their tracebacks."""
    return type(error)(error.detail, error.retry_after_ms)


def _is_due(deadline_ms: int | None, now_ms: int) -> bool:
    return deadline_ms is not None and deadline_ms <= now_ms


_HANDLERS: dict[int, Callable[[Engine, Message], None]] = {
    messages.ACK: Engine._on_ack,
    messages.NACK: Engine._on_nack,
    messages.EVENTS: Engine._on_events,
    messages.HEADS: Engine._on_heads,
    messages.PUSH: Engine._on_push,
    messages.ANSWER: Engine._on_answer,
    messages.SIGNALED: Engine._on_signaled,
}
