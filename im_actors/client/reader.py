"""The reading end of a followed session."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from typing import TYPE_CHECKING

from im_actors.core.model import Event
from im_actors.errors import BadRequest, ImError

if TYPE_CHECKING:
    from im_actors.client.engine import Engine

TAKEN_BATCH = 128
"""Events that a reader takes before the inbox is told, unless it runs dry before."""


class Feed:
    """What the engine keeps of a reader. It does not hold the reader itself, so that one that is
    dropped in the middle of ``async for`` ends its stream."""

    __slots__ = (
        "closed", "error", "events", "handed", "id", "moves_cursor", "raw", "session", "taken",
        "waiter",
    )  # fmt: skip

    def __init__(self, id: int, session: str, moves_cursor: bool, raw: bool = False) -> None:
        self.id = id
        self.session = session
        self.moves_cursor = moves_cursor
        """Whether it began at the stored cursor and moves it on; other readers only look."""
        self.raw = raw
        """Whether its events are handed out as they stand in the timeline."""
        self.handed = 0
        """The last seq that the program got; consumed as soon as it asks for the next."""
        self.taken = 0
        """Events taken since the inbox was told."""
        self.events: deque[Event] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.error: ImError | None = None
        self.closed = False

    def wake(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Follower:
    """The events of one session in order of seq: no gap, no repeat, history and live alike.

    ``async for event in follower`` ends when the client is closed. One task at a time reads it.
    An event counts as consumed when the next one is asked for, or when the reader or the client is
    closed in order; a program that crashes while it handles an event gets that one again.
    """

    def __init__(self, engine: Engine, feed: Feed) -> None:
        self._engine = engine
        self._feed = feed
        self._finalizer = weakref.finalize(self, engine.drop_feed, feed)
        self._finalizer.atexit = False

    @property
    def session(self) -> str:
        return self._feed.session

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> Event:
        (event,) = await self.take(1)
        self.mark(event)
        return event

    async def next(self, timeout: float | None = None) -> Event:
        """The next event; TimeoutError when there is none within ``timeout`` seconds. No event is
        lost by it. StopAsyncIteration when the client is closed."""
        async with asyncio.timeout(timeout):
            return await self.__anext__()

    async def take(self, count: int) -> list[Event]:
        """The next events: at least one, at most ``count``. They do not count as handed out before
        they are given to ``mark``. For programs that read in batches."""
        feed = self._feed
        self._engine.consumed(feed)
        while True:
            await self._filled()
            taken = min(count, len(feed.events))
            events = [feed.events.popleft() for _ in range(taken)]
            feed.taken += taken
            if feed.taken >= TAKEN_BATCH:
                self._engine.taken(feed)
            if feed.raw:
                return events
            # Some events are shown to nobody: what a mailbox says, what the user deleted.
            if shown := self._engine.user.overlays.shown(events):
                return list(shown)

    async def _filled(self) -> None:
        """Wait until there is an event."""
        feed = self._feed
        while not feed.events:
            self._engine.taken(feed)
            if feed.events:
                break
            if feed.error is not None:
                raise feed.error
            if feed.closed:
                raise StopAsyncIteration
            if feed.waiter is not None:
                raise BadRequest("a follower is read by one task at a time; open one for each")
            feed.waiter = asyncio.get_running_loop().create_future()
            try:
                await feed.waiter
            finally:
                feed.waiter = None

    def mark(self, event: Event) -> None:
        """The program has ``event`` in hand. Safe from any thread."""
        self._feed.handed = event.seq

    def close(self) -> None:
        """Stop following; what was handed out counts as consumed. Twice is harmless."""
        if self._finalizer.detach() is not None:
            self._engine.close_feed(self._feed)

    async def __aenter__(self) -> Follower:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
