"""What a client has asked for and waits for: pages of history and answers to queries."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from im_actors.client.connection import Connection
from im_actors.errors import NotReachable, error_for
from im_actors.wire import answers, messages, queries

QUERIES_MAX = 8
"""Most QUERYs without an answer, whatever the server allows. Others wait for their turn."""


class Requests:
    """All of one client. What is asked on a connection ends with it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pulls: dict[int, asyncio.Future[answers.Events]] = {}
        self._queries: dict[int, asyncio.Future[queries.Answer]] = {}
        self._turns: deque[asyncio.Future[None]] = deque()
        self._last = 1

    def __len__(self) -> int:
        """Those without an answer."""
        return len(self._pulls) + len(self._queries)

    @property
    def can_query(self) -> bool:
        """Whether there is a server that knows of queries."""
        return self._connection.is_online and self._connection.limits.queries > 0

    async def pull(self, session: str, before: int | None, limit: int) -> answers.Events:
        """One page from the server; NotReachable or another retryable error without it."""
        self._check_online()
        self._last += 2  # odd; the inbox uses the even ones
        request = self._last
        answer: asyncio.Future[answers.Events] = asyncio.get_running_loop().create_future()
        self._pulls[request] = answer
        after, bound = (-1, 0) if before is None else (0, before)
        self._connection.send(messages.pull(request, session, after, bound, limit))
        try:
            return await answer
        finally:
            del self._pulls[request]

    async def query(self, what: str, *args: Any) -> Any:
        """The value of the answer; raises the error that the server answered with, or NotReachable
        without a server that answers queries."""
        await self._turn()
        self._last += 2
        request = self._last
        answer: asyncio.Future[queries.Answer] = asyncio.get_running_loop().create_future()
        self._queries[request] = answer
        try:
            self._connection.send(queries.query(request, what, args))
            found = await answer
        finally:
            del self._queries[request]
            self._next_turn()
        if found.code:
            raise error_for(found.code, found.detail)
        return found.value

    def signal(self, session: str, what: str, value: Any) -> None:
        """Send it if that is possible now; it is not worth more."""
        if self.can_query:
            self._connection.send(queries.signal(session, what, value))

    def paged(self, page: answers.Events) -> None:
        answer = self._pulls.get(page.request)
        if answer is not None and not answer.done():
            answer.set_result(page)

    def answered(self, found: queries.Answer) -> None:
        answer = self._queries.get(found.request)
        if answer is not None and not answer.done():
            answer.set_result(found)

    def lost(self) -> None:
        """The connection ended."""
        waiters: list[asyncio.Future[Any]] = [
            *self._pulls.values(), *self._queries.values(), *self._turns,
        ]  # fmt: skip
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(NotReachable("the connection was lost"))

    async def _turn(self) -> None:
        """Wait until the server takes another query."""
        while True:
            self._check_online()
            allowed = min(self._connection.limits.queries, QUERIES_MAX)
            if not allowed:
                raise NotReachable("this server answers no queries: it is an older one")
            if len(self._queries) < allowed:
                return
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._turns.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._next_turn()
                raise

    def _next_turn(self) -> None:
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _check_online(self) -> None:
        if not self._connection.is_online:
            dialer = self._connection.dialer
            raise NotReachable(f"not connected: {dialer.error or dialer.state}")
