"""Connections that send and ask, and a load of many of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from im_actors.cli.bench.latencies import Latencies
from im_actors.core.model import Event
from im_actors.errors import ImError, error_for
from im_actors.wire import answers, messages, queries
from im_actors.wire.codec import FrameDecoder, Message, encode_frame

PAGE_ROWS = 25
READ_BYTES = 262_144
PULL_EVENTS = 500


class Page(NamedTuple):
    """The answer to ``conversations``."""

    version: int
    rows: list[list[Any]]
    cursor: str | None
    unread: int


class Caller:
    """One connection that sends messages and asks questions, one thing after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard: dict[str, int] = {}
        """Of the sessions that it follows the newest event that came."""
        self._reader = reader
        self._writer = writer
        self._decoder = FrameDecoder()
        self._came: list[Message] = []
        self._request = 0

    @classmethod
    async def connect(cls, address: tuple[str, int], user: str) -> Caller:
        caller = cls(*await asyncio.open_connection(*address))
        caller._write(messages.hello(user, "bench-00000000", None, "bench"))
        answers.read_welcome(await caller._next())
        return caller

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def send(self, session: str, n: int, kind: int, body: bytes) -> None:
        """Return when it is ACKed."""
        self._write(messages.send([(session, n, kind, body)]))
        while True:
            message = await self._next()
            if message[0] == messages.ACK:
                return
            if message[0] == messages.NACK:
                (refused,) = answers.read_nacks(message)
                await asyncio.sleep(refused.retry_after_ms / 1_000)
                self._write(messages.send([(session, n, kind, body)]))

    async def ask(self, what: str, args: Sequence[Any]) -> Any:
        """The value of an answer; an ImError when it is refused."""
        self._request += 1
        self._write(queries.query(self._request, what, args))
        while True:
            message = await self._next()
            if message[0] == messages.ANSWER and message[1] == self._request:
                answer = queries.read_answer(message)
                if answer.code:
                    raise error_for(answer.code, answer.detail)
                return answer.value

    async def page(self) -> Page:
        """The first of the list."""
        return Page(*await self.ask("conversations", [None, PAGE_ROWS, False, ""]))

    async def unread(self) -> int:
        _, total = await self.ask("unread", [])
        return int(total)

    def follow(self, session: str) -> None:
        self._write(messages.follow([session]))

    async def timeline(self, session: str) -> list[Event]:
        """All events of a session."""
        found: list[Event] = []
        while True:
            self._request += 1
            after = found[-1].seq if found else 0
            self._write(messages.pull(self._request, session, after, 0, PULL_EVENTS))
            while (message := await self._next())[0] != messages.EVENTS or not message[1]:
                pass
            page = answers.read_events(message)
            if page.code:
                raise error_for(page.code, f"{session} cannot be read")
            if not page.events:
                return found
            found += page.events

    def _write(self, message: Sequence[Any]) -> None:
        self._writer.write(encode_frame(message))

    async def _next(self) -> Message:
        while not self._came:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise RuntimeError("the gateway has closed the connection")
            self._came += self._decoder.feed(data)
        message = self._came.pop(0)
        if message[0] == messages.ERROR:
            raise answers.read_error(message)
        if message[0] == messages.PUSH:
            for event in answers.read_push(message):
                self.heard[event.session] = max(event.seq, self.heard.get(event.session, 0))
        return message


def in_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles in ms."""
    micros = Counter(round(1e6 * took) for took in seconds)
    summary = Latencies(micros.items()).summary()
    if summary is None:
        raise RuntimeError("nothing was answered")
    return summary


async def load(
    address: tuple[str, int],
    users: Sequence[str],
    seconds: float,
    call: Callable[[Caller], Awaitable[None]],
) -> dict[str, Any]:
    """All users call, each again as soon as he is answered."""
    callers = [await Caller.connect(address, user) for user in users]
    for caller in callers:
        await until_answered(lambda caller=caller: call(caller))  # type: ignore[misc]
    took: list[float] = []
    cpu, began = time.process_time(), time.monotonic()
    until = began + seconds

    async def keep_on(caller: Caller) -> None:
        while (at := time.monotonic()) < until:
            await call(caller)
            took.append(time.monotonic() - at)

    await asyncio.gather(*map(keep_on, callers))
    elapsed = time.monotonic() - began
    for caller in callers:
        await caller.close()
    return {
        "per_s": round(len(took) / elapsed),
        "ms": in_ms(took),
        "answers": len(took),
        "client_cores": round((time.process_time() - cpu) / elapsed, 2),
    }


async def until_answered(ask: Callable[[], Awaitable[Any]], most_s: float = 120.0) -> float:
    """Ask until it is not refused for a while; how many seconds that took."""
    began = time.monotonic()
    while True:
        try:
            await ask()
        except ImError as error:
            if not error.retryable or time.monotonic() - began > most_s:
                raise
            await asyncio.sleep((error.retry_after_ms or 50) / 1_000)
        else:
            return time.monotonic() - began
