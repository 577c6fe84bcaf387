"""The client: send, follow, history."""

from __future__ import annotations

import asyncio
import os
from itertools import pairwise
from random import Random
from ssl import SSLContext
from types import TracebackType

from im_actors.client.config import ClientConfig, parse_url
from im_actors.client.connection import Token
from im_actors.client.engine import Engine
from im_actors.client.reader import Follower
from im_actors.client.results import Page, Sent, SessionInfo, Status, Where
from im_actors.client.user_calls import UserCalls
from im_actors.core.model import Event, check_name
from im_actors.core.names import check_session
from im_actors.core.outbox_words import Key, RowView, SendState
from im_actors.errors import BadRequest, ImError, MonthAway, NotReachable, RetryableError, error_for
from im_actors.storage.client_store import open_store

LIVE = "head"
"""``follow(session, after=LIVE)``: only what is new."""
HISTORY_LIMIT_MAX = 10_000
"""Most events of one page."""


class Client(UserCalls):
    """One device of one user.

    ::

        async with Client("im://127.0.0.1:7070", user="alice", device="phone",
                          store="alice.db") as im:
            sent = await im.send("team", "hello")    # on disk when this returns, also offline
            ack = await sent.acked()                 # Ack(seq=…, copies=3, …)
            async for event in im.follow("team"):    # in order, no gap, no repeat
                print(event.seq, event.sender, event.text)

    ``url``      im://HOST:PORT, several as im://a:7070,b:7071; ims:// is TLS, which believes the
                 system's authorities, or those of ``ClientConfig.tls_ca``; ``ssl`` is a context of
                 your own instead
    ``device``   names this device among the user's; a store belongs to one device
    ``store``    a file of its own, which keeps sends, positions and a copy of what was read; None:
                 in memory, for programs that may lose what has no ACK when they end
    ``token``    a string, or a function (plain or async) that returns one before each connection
    ``connect_timeout``  seconds in which entering the context must find a server, otherwise
                 NotReachable; by default entering needs no server at all
    """

    def __init__(
        self,
        url: str,
        user: str,
        device: str = "default",
        store: str | os.PathLike[str] | None = None,
        token: Token = None,
        *,
        ssl: SSLContext | None = None,
        connect_timeout: float | None = None,
        config: ClientConfig | None = None,
        rng: Random | None = None,
    ) -> None:
        parsed = parse_url(url)
        check_name("user", user)
        check_name("device", device)
        opened = open_store(store, user, device)
        settings = (config or ClientConfig()).validate()
        self._connect_timeout = connect_timeout
        # Each client draws its own delays: that a crowd spreads out rests on it.
        self._engine = Engine(parsed, user, opened, token, ssl, settings, rng or Random())

    async def __aenter__(self) -> Client:
        try:
            await self._engine.open()
            if self._connect_timeout is not None:
                await self.connected(self._connect_timeout)
        except BaseException:
            await self._engine.close(drain=False)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._engine.close(drain=kind is None)

    # -- sending ---------------------------------------------------------------------------------

    async def send(self, session: str, body: str | bytes) -> Sent:
        """Accept a message: it is in the store when this returns, and will arrive once, in order.

        Needs no connection. Raises BadRequest or TooLarge for what could never be sent, Overloaded
        when the outbox is full, DiskFailed when the store is broken; then nothing was accepted.
        When it is *cancelled* the message may have been accepted; ``outbox()`` knows.
        """
        return await self._engine.send(session, _encoded(body))

    def outbox(self, session: str | None = None) -> list[Sent]:
        """All sends that have no answer yet, also those of earlier runs of the program."""
        pending = self._engine.receipts
        return [sent for sent in pending if session is None or sent.session == session]

    def where(self, message: Sent | Key) -> Where:
        """Where is my message? By what ``send`` returned, or by (session, n)."""
        session, n = (message.session, message.n) if isinstance(message, Sent) else message
        engine = self._engine
        sent = message if isinstance(message, Sent) else engine.receipts.find((session, n))
        view = engine.outbox.row(session, n)
        ack = sent.ack if sent else None
        error = (sent.error if sent else None) or (view.error if view else None)
        state = sent.state if sent else None
        return Where(
            session=session,
            n=n,
            state=state,
            text=self._in_words(session, n, state, view, sent),
            ack=ack,
            error=error,
            attempts=view.attempts if view else 0,
            story=engine.outbox.story(session, n),
        )

    def _in_words(
        self, session: str, n: int, state: SendState | None, view: RowView | None, sent: Sent | None
    ) -> str:
        dialer = self._engine.connection.dialer
        problem = view.error if view else None
        match state:
            case SendState.ACKED if sent and sent.ack:
                return f"delivered: seq {sent.ack.seq}, on {sent.ack.copies} disks"
            case SendState.REFUSED if sent:
                return f"refused: {sent.error}"
            case SendState.SAVING:
                return "being written to this device's store"
            case SendState.IN_FLIGHT:
                return f"sent to {dialer.address}, which has not answered yet"
            case SendState.PENDING:
                link = f"no connection: {dialer.error}" if dialer.error else "waiting for its turn"
                return f"on this device; {f'the last try met: {problem}' if problem else link}"
            case _ if 0 < n < self._engine.outbox.next_n(session):
                return "not in the outbox any more: it was answered, and how is forgotten here"
            case _:
                return "this device never sent such a message"

    # -- reading ---------------------------------------------------------------------------------

    def follow(self, session: str, after: int | str | None = None) -> Follower:
        """The events of a session in order of seq, without a gap or a repeat, history and live as
        one stream, across reconnects; ``async for`` over it.

        ``after=None`` goes on where this store stopped consuming (a new store: at the beginning)
        and moves that position on, so one reader of a session should use it; the others only
        look: ``after=0`` at all of it, ``after=SEQ`` at what follows SEQ, ``after=LIVE`` at what
        is new. What the store has is read from there, also offline.
        """
        check_session(session)
        engine = self._engine
        if after is None:
            feed = engine.open_feed(session, engine.cursors.get(session, 0), moves_cursor=True)
        elif after == LIVE:
            feed = engine.open_feed(session, None, moves_cursor=False)
        elif isinstance(after, int) and not isinstance(after, bool) and after >= 0:
            feed = engine.open_feed(session, after, moves_cursor=False)
        else:
            raise BadRequest(f"after is {after!r}, it must be None, a seq or LIVE")
        return Follower(engine, feed)

    async def history(
        self,
        session: str,
        before: int | None = None,
        limit: int = 50,
        *,
        local: bool = False,
    ) -> Page:
        """The newest ``limit`` events below seq ``before``, or the newest of all.

        From the server, or from the local store when no server answers: the page says which.
        ``local``: from the store in any case, at once. MonthAway when a month was moved to a disk
        that is not there now, and neither the server nor the store has anything newer to show.
        """
        check_session(session)
        if before is not None and before < 1:
            raise BadRequest(f"before is {before}, it must be a seq or None")
        if not 1 <= limit <= HISTORY_LIMIT_MAX:
            raise BadRequest(f"limit is {limit}, it must be 1 to {HISTORY_LIMIT_MAX}")
        if local:
            return await self._local_page(session, before, limit)
        try:
            async with asyncio.timeout(self._engine.patience_s):
                return await self._server_page(session, before, limit)
        except (TimeoutError, RetryableError) as error:
            page = await self._local_page(session, before, limit)
            if isinstance(error, MonthAway) and not page.events:
                raise
            return page

    async def _server_page(self, session: str, before: int | None, limit: int) -> Page:
        """VOIDs are not shown and pages of the server are bounded: pull until there are enough."""
        found: list[Event] = []
        while True:
            page = await self._engine.requests.pull(session, before, limit - len(found))
            if page.code == MonthAway.code and found:
                return Page(found, before, offline=False, complete=True)
            if page.code:
                raise error_for(page.code, f"history of {session!r} was refused: {page.code}")
            await self._engine.user.learn_overlays(page.events)
            found[:0] = self._engine.user.overlays.shown(page.events)
            at_start = not page.events or page.events[0].seq <= 1
            before = None if at_start else page.events[0].seq
            if at_start or len(found) >= limit:
                return Page(found, before, offline=False, complete=True)

    async def _local_page(self, session: str, before: int | None, limit: int) -> Page:
        events = await self._engine.store.events_before(session, before, limit)
        seqs = [event.seq for event in events]
        whole = all(b == a + 1 for a, b in pairwise(seqs))
        joined = before is None or before == 1 or (bool(seqs) and seqs[-1] == before - 1)
        full = len(seqs) == limit or (bool(seqs) and seqs[0] == 1)
        shown = list(self._engine.user.overlays.shown(events))
        older = seqs[0] if seqs and seqs[0] > 1 else None
        return Page(shown, older, offline=True, complete=whole and joined and full)

    async def sessions(self) -> list[SessionInfo]:
        """The conversations that this device knows, those with the newest event first."""
        engine = self._engine
        shown = engine.user.overlays.shown
        last = {
            event.session: next(iter(shown([event])), None)
            for event in await engine.store.last_events()
        }
        pending: dict[str, int] = {}
        for sent in engine.receipts:
            pending[sent.session] = pending.get(sent.session, 0) + 1
        names = dict.fromkeys([*last, *pending, *engine.cursors])
        return [
            SessionInfo(name, last.get(name), pending.get(name, 0), engine.cursors.get(name, 0))
            for name in names
        ]

    # -- the connection --------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """The device address, "user/device-install": ``event.device`` of what this device sends."""
        return self._engine.address

    async def connected(self, timeout: float | None = None) -> None:
        """Wait for the connection. NotReachable after ``timeout`` seconds; the error of a refusal,
        such as Unauthenticated, at once."""
        try:
            async with asyncio.timeout(timeout):
                await self._engine.wait_online()
        except TimeoutError:
            why: ImError | str = self._engine.connection.dialer.error or "no answer"
            raise NotReachable(f"no connection within {timeout} s: {why}") from None

    def status(self) -> Status:
        engine = self._engine
        dialer = engine.connection.dialer
        return Status(
            state=str(dialer.state),
            address=engine.address,
            server=str(dialer.address) if dialer.address else None,
            pending=len(engine.receipts),
            in_flight=engine.outbox.in_flight,
            followed=engine.inbox.followed - sum(map(engine.inbox.follows, engine.user.sessions)),
            connects=engine.connection.count,
            last_error=engine.last_error,
        )

    def story(self, session: str) -> list[str]:
        """What this device did about a session lately: sends first, then reading."""
        return [*self._engine.outbox.story(session), *self._engine.inbox.story(session)]


def _encoded(body: str | bytes) -> bytes:
    if isinstance(body, str):
        try:
            return body.encode()
        except UnicodeEncodeError:
            raise BadRequest("body holds a lone surrogate, which UTF-8 cannot carry") from None
    if isinstance(body, bytes):
        return body
    raise BadRequest(f"body must be str or bytes, not {type(body).__name__}")
