"""The client for plain programs: the same calls without ``async`` and ``await``.

::

    from im_actors.client.sync import Client

    with Client("im://127.0.0.1:7070", user="alice", device="phone", store="alice.db") as im:
        ack = im.send("team", "hello").acked(timeout=5)
        for event in im.follow("team"):
            print(event.seq, event.sender, event.text)

Each client has a thread of its own with an event loop; it may be used from several threads. Ctrl-C
interrupts whatever call waits, and leaving the ``with`` block closes the client in order. So does
the end of the program when a client was left open.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from random import Random
from ssl import SSLContext
from types import TracebackType
from typing import Any, TypeVar

from im_actors.client import client as aio
from im_actors.client import reader, results
from im_actors.client.client import LIVE
from im_actors.client.config import ClientConfig
from im_actors.client.connection import Token
from im_actors.client.results import Ack, Page, SessionInfo, Status, Where
from im_actors.client.sync_user import UserCalls
from im_actors.core.model import Event
from im_actors.core.outbox_words import Key, SendState
from im_actors.errors import ImError, ShuttingDown

TAKE_MAX = 64
"""Most events that are fetched from the event loop's thread at once. A program that is killed gets
at most so many again."""

ResultT = TypeVar("ResultT")


class Sent:
    """A send that was accepted; see ``im_actors.client.Sent``."""

    __slots__ = ("_client", "_sent")

    def __init__(self, client: Client, sent: results.Sent) -> None:
        self._client = client
        self._sent = sent

    @property
    def session(self) -> str:
        return self._sent.session

    @property
    def n(self) -> int:
        return self._sent.n

    @property
    def state(self) -> SendState:
        """saving, pending, in flight, acked or refused."""
        sent = self._sent
        if sent.ack is not None or sent.error is not None:
            return sent.state
        return self._client._do(lambda: sent.state)

    @property
    def kind(self) -> int | None:
        """The kind of the event that it asks for; None once there is an answer."""
        return self._client._do(lambda: self._sent.kind)

    @property
    def body(self) -> bytes | None:
        """What is sent, as long as there is no answer."""
        return self._client._do(lambda: self._sent.body)

    @property
    def ack(self) -> Ack | None:
        return self._sent.ack

    @property
    def error(self) -> ImError | None:
        return self._sent.error

    def acked(self, timeout: float | None = None) -> Ack:
        """Wait for the receipt; raises what ``im_actors.client.Sent.acked`` raises."""
        return self._sent.ack or self._client._wait(self._sent.acked(timeout))

    def __repr__(self) -> str:
        return f"Sent(session={self.session!r}, n={self.n})"


class Follower:
    """The events of one session in order; see ``im_actors.client.Follower``."""

    def __init__(self, client: Client, follower: reader.Follower) -> None:
        self._client = client
        self._follower = follower
        self._events: deque[Event] = deque()

    @property
    def session(self) -> str:
        return self._follower.session

    def __iter__(self) -> Follower:
        return self

    def __next__(self) -> Event:
        try:
            return self.next()
        except ShuttingDown:
            raise StopIteration from None

    def next(self, timeout: float | None = None) -> Event:
        """The next event; TimeoutError when there is none within ``timeout`` seconds, ShuttingDown
        when the client is closed."""
        if not self._events:
            self._events.extend(self._client._wait(self._take(timeout)))
        event = self._events.popleft()
        self._follower.mark(event)
        return event

    async def _take(self, timeout: float | None) -> list[Event]:
        try:
            async with asyncio.timeout(timeout):
                return await self._follower.take(TAKE_MAX)
        except StopAsyncIteration:
            raise ShuttingDown("the client is closed") from None

    def close(self) -> None:
        """Stop following; what was handed out counts as consumed."""
        self._events.clear()
        # A client that is closed has closed its followers already.
        with contextlib.suppress(ShuttingDown):
            self._client._do(self._follower.close)

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Client(UserCalls[Sent]):
    """One device of one user; takes what ``im_actors.client.Client`` takes."""

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
        self._client = aio.Client(
            url, user, device, store, token,
            ssl=ssl, connect_timeout=connect_timeout, config=config, rng=rng,
        )  # fmt: skip
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Client:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=_run, args=(self._loop,), name="im_actors client", daemon=True
        )
        self._thread.start()
        _close_at_exit(self)
        try:
            self._wait(self._client.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._loop is None:
            return
        try:
            self._wait(self._client.__aexit__(kind, error, trace))
        finally:
            self._stop()

    def _stop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            _open.discard(self)

    # -- sending ---------------------------------------------------------------------------------

    def send(self, session: str, body: str | bytes) -> Sent:
        """Accept a message: it is in the store when this returns, and will arrive once."""
        return Sent(self, self._wait(self._client.send(session, body)))

    def outbox(self, session: str | None = None) -> list[Sent]:
        """All sends that have no answer yet, also those of earlier runs of the program."""
        return [Sent(self, sent) for sent in self._do(lambda: self._client.outbox(session))]

    def where(self, message: Sent | Key) -> Where:
        """Where is my message? By what ``send`` returned, or by (session, n)."""
        inner = message._sent if isinstance(message, Sent) else message
        return self._do(lambda: self._client.where(inner))

    # -- reading ---------------------------------------------------------------------------------

    def follow(self, session: str, after: int | str | None = None) -> Follower:
        """The events of a session in order, history and live; iterate over it."""
        return Follower(self, self._do(lambda: self._client.follow(session, after)))

    def history(
        self,
        session: str,
        before: int | None = None,
        limit: int = 50,
        *,
        local: bool = False,
    ) -> Page:
        """The newest ``limit`` events below seq ``before``, or the newest of all."""
        return self._wait(self._client.history(session, before, limit, local=local))

    def sessions(self) -> list[SessionInfo]:
        """The conversations that this device knows, those with the newest event first."""
        return self._wait(self._client.sessions())

    # -- the connection --------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """The device address, "user/device-install"."""
        return self._client.address

    def connected(self, timeout: float | None = None) -> None:
        """Wait for the connection; raises what ``im_actors.client.Client.connected`` raises."""
        self._wait(self._client.connected(timeout))

    def status(self) -> Status:
        return self._do(self._client.status)

    def story(self, session: str) -> list[str]:
        """What this device did about a session lately: sends first, then reading."""
        return self._do(lambda: self._client.story(session))

    def _sent(self, sent: results.Sent) -> Sent:
        return Sent(self, sent)

    # -- between the threads ---------------------------------------------------------------------

    def _wait(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run ``work`` in the client's thread. An interrupted wait cancels it."""
        if self._loop is None:
            work.close()
            raise ShuttingDown("the client is not open; use it in a with block")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _do(self, call: Callable[[], ResultT]) -> ResultT:
        async def work() -> ResultT:
            return call()

        return self._wait(work())


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """The client's thread: until the loop is stopped, and then until its tasks have ended."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


_open: weakref.WeakSet[Client] = weakref.WeakSet()
_watching = threading.Lock()


def _close_at_exit(client: Client) -> None:
    """A store has a thread that the interpreter waits for before it runs any ``atexit`` function,
    so a client that was left open would hang its program. The end of the main thread comes before
    that, and a thread can wait for it."""
    _open.add(client)
    if _watching.acquire(blocking=False):  # once per process, never released
        threading.Thread(target=_watch, name="im_actors exit", daemon=True).start()


def _watch() -> None:
    threading.main_thread().join()
    for client in list(_open):
        with contextlib.suppress(Exception):
            client.__exit__(None, None, None)


__all__ = ["LIVE", "Client", "Follower", "Sent"]
