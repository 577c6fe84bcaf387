"""Senders for other systems, in the place of ``im-actors bench``'s own.

Generator, loop, phases, choice of sessions and accounting are those of ``im_actors.cli.bench``;
only the bytes on the wire differ. Like its Sender each writes once for everything that one read has
freed, and looks at every answer.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, cast

from im_actors.cli.bench.generator import Generator
from im_actors.cli.bench.ledger import Ledger
from im_actors.cli.bench.sending import put_stamp
from im_actors.cli.bench.wire import micros
from im_actors.errors import NotReachable
from im_actors.net.connection import tune_socket

USER_TIMEOUT_MS = 10_000


class PeerSender(asyncio.Protocol):
    """One connection to another system. Subclasses have the protocol."""

    def __init__(self, run: Generator, number: int, draws: Iterator[str]) -> None:
        self.run = run
        self.device = run.load.device(number).encode()
        self.unacked = 0
        self.sent = 0
        self.welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._draws = draws
        self._filler = run.filler
        self._next_n: defaultdict[str, int] = defaultdict(int)
        self._pending = b""
        """The start of an answer that is not complete."""
        self._closing = False

    # ---- for subclasses

    def greet(self) -> None:
        """The first bytes. ``welcomed`` when the answer is there."""
        raise NotImplementedError

    def write_messages(self, keys: list[tuple[bytes, bytes]], body: bytes, at: int) -> None:
        """Write a message for each (session, key), all with this body; ``at`` is when."""
        raise NotImplementedError

    def take(self, data: bytes) -> list[int]:
        """Read answers: when each message that is acknowledged now was sent."""
        raise NotImplementedError

    def welcomed(self) -> None:
        if not self.welcome.done():
            self.welcome.set_result(None)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    # ---- for the generator

    def submit(self, count: int, at: int) -> None:
        """Send so many messages that are due at this time."""
        next_n, draw, device = self._next_n, self._draws.__next__, self.device
        keys = []
        for _ in range(count):
            session = draw()
            n = next_n[session] = next_n[session] + 1
            name = session.encode()
            keys.append((name, b"%b:%b:%d" % (name, device, n)))
        self.unacked += count
        self.sent += count
        self.write_messages(keys, put_stamp(at) + self._filler, at)

    def ping(self) -> None:
        """These systems do not ask for a sign of life as soon as that."""

    def close(self) -> None:
        self._closing = True
        self._transport.abort()

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        tune_socket(transport.get_extra_info("socket"), USER_TIMEOUT_MS)
        self.greet()

    def connection_lost(self, error: Exception | None) -> None:
        if self._closing:
            return
        if self.welcome.done():
            self.run.problem(f"a connection has ended: {error}")
        else:
            self.welcome.set_exception(NotReachable(f"a connection has ended: {error}"))

    def data_received(self, data: bytes) -> None:
        sent_at = self.take(self._pending + data if self._pending else data)
        if not sent_at:
            return
        run, now = self.run, micros()
        since, answered = run.since, len(sent_at)
        run.ack.raw += [now - at for at in sent_at if at >= since]
        run.acked += answered
        self.unacked -= answered
        if run.closed_loop and now < run.ends:
            self.submit(answered, now)


class PeerGenerator(Generator):
    """Nobody reads: the messages are counted on the servers afterwards."""

    async def finish(self) -> dict[str, Any]:
        senders = cast(Sequence[PeerSender], self.senders)
        ledger = Ledger(
            sent=sum(sender.sent for sender in senders),
            acked=self.acked,
            unanswered=sum(sender.unacked for sender in senders),
        )
        return {
            "ledger": ledger.to_json(),
            "problems": self.problems,
            "wrong": self.wrong,
            "without_wait": 0,
            "pulled": 0,
            "digest": "",
        }
