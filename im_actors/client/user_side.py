"""The user side of a client: it keeps the conversation list up to date and asks for what is not a
timeline.

While a server is there, the user's mailbox is followed like any session: each of its events says
that rows have changed, and one question brings all that did since the last version. So the other
devices' read positions, new conversations and changed settings appear here by themselves. The
channels of notices are followed too, because no mailbox says that a notice has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from im_actors.client.config import ClientConfig
from im_actors.client.conversations import Signal
from im_actors.client.mailbox import Mailbox, Pending, intact
from im_actors.client.reader import Feed, Follower
from im_actors.client.received import AREA as RECEIVED
from im_actors.client.received import Received
from im_actors.client.requests import Requests
from im_actors.client.results import Sent
from im_actors.client.shown import Overlays, Said
from im_actors.core.backoff import full_jitter_ms
from im_actors.core.facts import pack_request, read_request, read_state
from im_actors.core.model import MESSAGE_KINDS, Event, EventKind, pack
from im_actors.core.names import NOTICE_CHANNELS, mailbox_of, notice_session
from im_actors.errors import BadRequest, ImError, NotReachable, RequestError, RetryableError
from im_actors.wire.limits import QUERY_ROWS_MAX
from im_actors.wire.queries import (
    ConversationRow,
    RowFlag,
    Signaled,
    read_fields,
    read_overlays,
)

if TYPE_CHECKING:
    from im_actors.client.engine import Engine

CHANGES_PAGES_MAX = 20
"""After so many pages of changes the list is read anew: it is shorter than what changed in it."""
KEPT_MAX = 200
"""Most answers about groups and devices that are kept for reading offline."""
SIGNALS_MAX = 256
"""Most signals that are remembered."""
SIGNAL_LASTS_S = {"typing": 6.0, "presence": 60.0}
"""After this a signal is not true any more."""
RETRY_BASE_MS, RETRY_CAP_MS = 500, 30_000
EVENTS_PER_TURN = 512


class RowPage(NamedTuple):
    """A page of the conversation list."""

    rows: list[ConversationRow]
    cursor: str | None
    """The server's, of the page that follows."""
    total: int
    """Unread of all conversations."""


class UserSide:
    """What one client knows of its user."""

    def __init__(self, engine: Engine, user: str, requests: Requests, config: ClientConfig) -> None:
        self._engine = engine
        self._follows = config.mailbox
        self.user = user
        self.session = mailbox_of(user)
        self.channels = tuple(notice_session(channel, user) for channel in NOTICE_CHANNELS)
        self.requests = requests
        self.mailbox = Mailbox(self._keep, self._list_changed)
        self._received = Received(engine, user, self.mailbox, config.received_ms)
        self._reporting: asyncio.Task[None] | None = None
        self.list_version = 0
        """Grows with every change of what this device knows of the list."""
        self.list_news = asyncio.Event()
        self.closed = False
        self.overlays = Overlays(self._keep)
        self._kept: dict[str, bytes] = {}
        self._signals: dict[tuple[str, str, str], tuple[float, Any]] = {}
        self._hearing: list[tuple[deque[Signal], asyncio.Event]] = []
        self._following: asyncio.Task[None] | None = None
        self._registered = False

    @property
    def sessions(self) -> tuple[str, ...]:
        """What is followed here, and not by the program."""
        return self.session, *self.channels

    def _keep(self, area: str, name: str, value: bytes | None) -> None:
        self._engine.store.keep(area, name, value)

    def _list_changed(self) -> None:
        self.list_version += 1
        self.list_news.set()

    def restore(self, kept: Mapping[str, Mapping[str, bytes]], pending: Sequence[Sent]) -> None:
        """With what the store kept, and what it had in its outbox."""
        try:
            self.mailbox.restore(kept)
            self.overlays.restore(kept)
            self._received.restore(kept.get(RECEIVED, {}))
            self._kept = dict(kept.get("answer", {}))
            self._registered = "registered" in kept.get("mailbox", {})
        except Exception as error:  # of a later version that was here before
            self._engine.warn(ImError(f"what was kept for reading offline cannot be read: {error}"))
        for sent in pending:
            view = self._engine.outbox.row(sent.session, sent.n)
            if sent.session == self.session and view and view.row.kind == EventKind.MAILBOX:
                self._asked(sent, *read_request(view.row.body))

    def saw(self, events: Sequence[Event]) -> None:
        """These came from a server, pushed or in pages."""
        self.overlays.saw(events)
        if self._reporting is not None:
            self._received.saw(events)
        if len(self.mailbox):
            self.mailbox.saw(events, self.user)

    # -- changes ---------------------------------------------------------------------------------

    async def change(self, what: str, *args: Any) -> Sent:
        """Ask for a change of the mailbox, and show it here at once."""
        body = pack_request(what, *args)
        sent = await self._engine.send(self.session, body, EventKind.MAILBOX)
        self._asked(sent, what, list(args))
        return sent

    def _asked(self, sent: Sent, what: str, args: list[Any]) -> None:
        if what == "received":
            return  # nothing of it is shown here
        self.mailbox.asked(
            Pending(what, args, lambda: (sent.state, sent.ack.seq if sent.ack else 0))
        )
        if what == "delete":
            self.overlays.delete(*args)

    # -- questions -------------------------------------------------------------------------------

    async def ask(self, what: str, *args: Any) -> Any:
        """A query with the time that a reader waits before he is shown what is here."""
        try:
            async with asyncio.timeout(self._engine.patience_s):
                return await self.requests.query(what, *args)
        except TimeoutError:
            raise NotReachable(f"{what}: the server has not answered in time") from None

    def remember(self, name: str, value: Any) -> None:
        """Keep an answer for reading offline."""
        self._kept.pop(name, None)
        self._kept[name] = pack((value,))
        self._keep("answer", name, self._kept[name])
        while len(self._kept) > KEPT_MAX:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            self._keep("answer", oldest, None)

    def remembered(self, name: str) -> Any:
        """What was answered last; None: nothing is known."""
        found = self._kept.get(name)
        return msgpack.unpackb(found, raw=False)[0] if found else None

    async def learn_overlays(self, events: Sequence[Event]) -> None:
        """What became of these messages, when a server says so."""
        seqs = [event.seq for event in events if event.kind in MESSAGE_KINDS]
        if not seqs or not self.requests.can_query:
            return
        try:
            # A server that is slow with this must not keep the page from its reader.
            async with asyncio.timeout(self._engine.patience_s / 2):
                answer = await self.ask("overlays", events[0].session, min(seqs), max(seqs))
            for row in read_overlays(answer):
                if row.kind == EventKind.VOID:
                    self.overlays.delete(events[0].session, row.target)
                elif row.kind in (EventKind.RECALL, EventKind.EDIT):
                    said = Said(row.seq, row.kind, row.text)
                    self.overlays.take(events[0].session, row.target, said)
        except (ImError, TimeoutError):
            pass  # what this device knows by itself has to do

    # -- following -------------------------------------------------------------------------------

    def online(self) -> None:
        running = self._following is not None and not self._following.done()
        if self._follows and self.requests.can_query and not running:
            self._following = asyncio.create_task(
                self._follow_all(), name=f"mailbox of {self.user}"
            )
            if self._reporting is None and not self._engine.store.instant:
                self._reporting = asyncio.create_task(self._report(), name=f"{self.user} received")

    async def close(self) -> None:
        self.closed = True
        self.list_news.set()
        for _, news in self._hearing:
            news.set()
        tasks = [task for task in (self._following, self._reporting) if task is not None]
        self._following = self._reporting = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _report(self) -> None:
        try:
            await self._received.run()
        except ImError as error:
            self._engine.warn(error)

    async def _follow_all(self) -> None:
        """The mailbox, and the channels of notices, of which no mailbox says anything."""
        await asyncio.gather(self._follow_mailbox(), *map(self._follow_notices, self.channels))

    async def _follow_mailbox(self) -> None:
        async def begin() -> int:
            await self._patiently(self._catch_up)
            try:
                await self._register()
            except RequestError as error:
                self._engine.warn(error)
            return self.mailbox.known.version

        async def heed(events: list[Event]) -> None:
            self._heed(events)
            await self._patiently(partial(self._catch_up, events[-1].seq))

        await self._follow(self.session, begin, heed)

    async def _follow_notices(self, session: str) -> None:
        async def begin() -> int:
            await self._patiently(partial(self._look, session))
            return self.mailbox.last_seq(session)

        async def heed(events: list[Event]) -> None:
            # Messages the row that is here has taken by itself, if it is here.
            more = any(event.kind != EventKind.MESSAGE for event in events)
            if more or self.mailbox.last_seq(session) < events[-1].seq:
                await self._patiently(partial(self._look, session, events[-1].seq))

        await self._follow(session, begin, heed)

    async def _follow(
        self,
        session: str,
        begin: Callable[[], Awaitable[int]],
        heed: Callable[[list[Event]], Awaitable[None]],
    ) -> None:
        """Until the client is closed, or a server says that it has nothing of the kind. ``begin``
        says after which event."""
        feed: Feed | None = None
        try:
            feed = self._engine.open_feed(session, await begin(), moves_cursor=False, raw=True)
            follower = Follower(self._engine, feed)
            while True:
                events = await follower.take(EVENTS_PER_TURN)
                follower.mark(events[-1])
                await heed(events)
        except (BadRequest, StopAsyncIteration):
            pass  # a server that knows of no mailboxes; the client was closed
        except ImError as error:
            self._engine.warn(error)
        finally:
            if feed is not None and not feed.closed:
                self._engine.close_feed(feed)

    async def _look(self, session: str, upto: int = 0) -> None:
        """One row, that knows of the session's event ``upto``."""
        answer = await self.ask("conversation", session)
        _, row = read_fields("conversation", answer, int, (list, type(None)))
        for found in intact([] if row is None else [row]):
            self.mailbox.look(found)
        if self.mailbox.last_seq(session) < upto:
            raise NotReachable("the copy that answered lags behind")

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """Until it is done, or refused for good."""
        step = 0
        while True:
            try:
                await work()
                return
            except RetryableError:
                if not self.requests.can_query:
                    await self._engine.wait_online()
                wait_ms = full_jitter_ms(step, RETRY_BASE_MS, RETRY_CAP_MS, self._engine.rng)
                await asyncio.sleep(wait_ms / 1000)
                step += 1

    async def _catch_up(self, upto: int = 0) -> None:
        """All that changed since this device's version, and at least up to ``upto``."""
        for _ in range(CHANGES_PAGES_MAX):
            version = self.mailbox.known.version
            if not version:
                break
            answer = await self.ask("changes", version, QUERY_ROWS_MAX)
            found, rows, complete = read_fields("changes", answer, int, list, bool)
            self.mailbox.take(self._rows(rows))
            self.mailbox.learned(max(found, version), now_ms())
            if complete:
                if found < upto:
                    raise NotReachable("the copy that answered lags behind")
                return
        # Also what is folded: otherwise nobody here would know of it.
        version, page = await self._page(None, QUERY_ROWS_MAX, False, None)
        if version < upto:
            raise NotReachable("the copy that answered lags behind")
        self.mailbox.begin(page.rows)
        self.mailbox.learned(version, now_ms())

    async def page(
        self, cursor: str | None, limit: int, unread_only: bool, label: str | None
    ) -> RowPage:
        """A page of the list from the server; NotReachable also when it knows less than we do."""
        version, page = await self._page(cursor, limit, unread_only, label)
        if version < self.mailbox.known.version:
            raise NotReachable("the copy that answered lags behind")
        self.mailbox.take(page.rows)
        # It says nothing of what changed below it, so the version stays, unless there was none and
        # nobody goes to read all that there is.
        first = cursor is None and not unread_only and not label
        if first and not self.mailbox.known.version and not self._follows:
            self.mailbox.learned(version, now_ms())
        return page

    async def _page(
        self, cursor: str | None, limit: int, unread_only: bool, label: str | None
    ) -> tuple[int, RowPage]:
        answer = await self.ask("conversations", cursor, limit, unread_only, label)
        types = (int, list, (str, type(None)), int)
        version, found, following, total = read_fields("conversations", answer, *types)
        self.mailbox.counted(version, total, now_ms())
        return version, RowPage(self._rows(found), following, total)

    async def _register(self) -> None:
        """Be one of the user's devices, once for each store that lasts."""
        if self._engine.store.instant or self._registered:
            return
        device = self._engine.address.partition("/")[2]
        sent = await self.change("device", device, self._engine.agent)
        # What is refused, because there are too many, is tried again by the next start.
        with contextlib.suppress(RetryableError):
            await sent.acked(self._engine.patience_s)
        self._registered = True
        self._keep("mailbox", "registered", b"")

    def _heed(self, events: Sequence[Event]) -> None:
        """What the mailbox says and no row does: messages that were deleted, or came, on another
        device."""
        for event in events:
            if event.kind != EventKind.MAILBOX:
                continue
            try:
                what, args, _ = read_state(event.body)
            except Exception:
                continue  # a form of a later version
            match what, args:
                case "delete", [str(session), int(seq)]:
                    self.overlays.delete(session, seq)
                case "received", [list(positions)]:
                    self._received.told(positions)

    def _rows(self, rows: list[Any]) -> list[ConversationRow]:
        """Rows from a server. A group that the user is in again is pushed to who still follows it
        only when he follows it anew."""
        found = intact(rows)
        for row in found:
            known = self.mailbox.row(row.session)
            was_out = known is None or known.flags & RowFlag.LEFT
            if was_out and not row.flags & RowFlag.LEFT:
                self._engine.let_in(row.session)
        return found

    # -- signals ---------------------------------------------------------------------------------

    def signaled(self, rows: Sequence[Signaled]) -> None:
        now = time.monotonic()
        for row in rows:
            self._signals.pop(row[:3], None)
            self._signals[row[:3]] = (now, row.value)
            for held, news in self._hearing:
                held.append(Signal(*row))
                news.set()
        while len(self._signals) > SIGNALS_MAX:
            del self._signals[next(iter(self._signals))]

    @contextlib.contextmanager
    def hearing(self, held: deque[Signal], news: asyncio.Event) -> Iterator[None]:
        """Put signals there, and set the event, as long as this is entered."""
        entry = (held, news)
        self._hearing.append(entry)
        try:
            yield
        finally:
            self._hearing.remove(entry)

    def signals_of(self, session: str, what: str) -> dict[str, Any]:
        """User to what he said last, as far as it may still be true."""
        oldest = time.monotonic() - SIGNAL_LASTS_S[what]
        return {
            user: value
            for (where, user, name), (at, value) in self._signals.items()
            if (where, name) == (session, what) and at >= oldest
        }


def now_ms() -> int:
    return int(time.time() * 1000)
