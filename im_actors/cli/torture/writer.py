"""A process of writing clients, which is killed in the middle and starts again from its files.

``python -m im_actors.cli.torture.writer``: the first line on standard input is the order, as JSON;
"stop" ends the sending, the end of the input ends the process. What it does is told on standard
output, a JSON array a line, each before the next step is taken, so that what is known of a process
that was killed is never less than what it has told the server:

    ["open", device, address, {session: next n}, [[session, n], …]]    with what its file holds
    ["try", device, session, n, time]          about to be accepted
    ["kept", device, session, n]               accepted: it must arrive
    ["ack", device, session, n, seq, epoch, copies, time]
    ["refused", device, session, n, code]
    ["done"]                                   nothing waits any more
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
import zlib
from collections.abc import Sequence
from typing import Any

from im_actors.client import Client, ImError, Sent, Unknown

FILLER = "rather slow than lost, resend freely, never twice. " * 40
LARGE_EVERY = 50
"""One body in so many has two thousand bytes."""
WAIT_S = 1.0


def body_of(user: str, session: str, n: int) -> bytes:
    """The text of a message. Its key alone decides, so that a send that was cut off between file
    and report is the same one when it is done again."""
    draw = zlib.crc32(f"{user} {session} {n}".encode())
    size = 2_000 if draw % LARGE_EVERY == 0 else draw % 200
    return f"{user} {session} {n} {FILLER[:size]}".encode()


def tell(*words: Any) -> None:
    """Into the pipe at once: what is there survives this process."""
    line = (json.dumps(words, separators=(",", ":")) + "\n").encode()
    while line:
        line = line[os.write(1, line) :]


class Writer:
    """One client, and what it sends."""

    def __init__(self, order: dict[str, Any], who: dict[str, Any]) -> None:
        self.user: str = who["user"]
        self._sessions: list[str] = who["sessions"]
        self._pause_s: float = 1 / order["rate"]
        self._window: int = order["window"]
        self._client = Client(order["url"], self.user, "torture", store=who["store"])
        self._rng = random.Random(f"{order['seed']} {self.user} {time.time_ns()}")
        self._waiting: set[asyncio.Task[None]] = set()
        self.stopped = asyncio.Event()

    async def run(self) -> None:
        async with self._client:
            self._open()
            while not self.stopped.is_set():
                await self._pause(self._rng.expovariate(1.0) * self._pause_s)
                if not self.stopped.is_set() and len(self._waiting) < self._window:
                    await self._send(self._rng.choice(self._sessions))
            while self._waiting:
                await asyncio.wait(self._waiting)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.stopped.wait()
        except TimeoutError:
            pass

    def _open(self) -> None:
        pending = self._client.outbox()
        following = {session: self._next_n(session) for session in self._sessions}
        tell(
            "open", self.user, self._client.address, following, [[s.session, s.n] for s in pending]
        )
        for sent in pending:
            self._wait_for(sent)

    def _next_n(self, session: str) -> int:
        # The SDK has no word for it: nobody else has to know a number before it is given.
        return self._client._engine.outbox.next_n(session)

    async def _send(self, session: str) -> None:
        n = self._next_n(session)
        tell("try", self.user, session, n, time.monotonic())
        sent = await self._client.send(session, body_of(self.user, session, n))
        assert sent.n == n, f"{sent.n} was given, {n} expected"
        tell("kept", self.user, session, n)
        self._wait_for(sent)

    def _wait_for(self, sent: Sent) -> None:
        task = asyncio.get_running_loop().create_task(self._acked(sent))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _acked(self, sent: Sent) -> None:
        while sent.ack is None:
            try:
                await sent.acked()
            except Unknown:
                await asyncio.sleep(WAIT_S)
            except ImError as error:
                if sent.error is None:
                    await asyncio.sleep(WAIT_S)
                    continue
                tell("refused", self.user, sent.session, sent.n, error.code)
                return
        ack = sent.ack
        tell(
            *("ack", self.user, ack.session, ack.n, ack.seq, ack.epoch, ack.copies),
            time.monotonic(),
        )


async def work(order: dict[str, Any]) -> None:
    writers = [Writer(order, who) for who in order["writers"]]
    commands = asyncio.create_task(_obey(writers))
    await asyncio.gather(*(writer.run() for writer in writers))
    tell("done")
    commands.cancel()


async def _obey(writers: Sequence[Writer]) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        if line.strip() == b"stop":
            for writer in writers:
                writer.stopped.set()
    # Whoever started this process is gone.
    os._exit(1)


def main() -> None:
    asyncio.run(work(json.loads(_first_line())))


def _first_line() -> bytes:
    """Byte by byte, so that nothing is taken of what comes after it."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(1)
        line += byte
    return bytes(line)


if __name__ == "__main__":
    main()
