"""The closed loop that loads every system alike.

Each connection keeps ``window`` messages without an acknowledgement and sends as many as come back.
Latency is from the write of a message to the read of its acknowledgement. All systems share the
event loop, the accounting and the choice of sessions; only the bytes on the wire differ.
"""

from __future__ import annotations

import asyncio
import gc
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

STARTED_S = 30.0
"""How long connections may take to be ready."""
DRAINED_S = 120.0
"""How long the last acknowledgements may take after the end."""
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Load:
    """One measurement of one system."""

    system: str
    run: str
    """Makes the sessions and devices of this measurement its own."""
    addresses: tuple[tuple[str, int], ...]
    """Connections are spread over these."""
    connections: int
    window: int
    sessions: int
    bytes: int
    seconds: float
    warm_up_s: float


class Void(Exception):
    """The measurement says nothing: messages were lost, doubled or refused."""


class Connection(Protocol):
    """What the loop asks of a client."""

    def submit(self, count: int, now: float) -> None:
        """Write so many messages; ``now`` is when."""


class Run:
    """Counts, and hands every connection as many messages as were acknowledged."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.sessions = [f"{load.run}-{number}" for number in range(load.sessions)]
        self.body = b"x" * load.bytes
        self.ready: list[Connection] = []
        self.outstanding = 0
        self.acknowledged = 0
        self.problems: list[str] = []
        self.latencies = array("d")
        self._counts_from = self._ends = float("inf")

    def sessions_of(self, number: int) -> list[str]:
        """The sessions of a connection, in the order of its sending: it goes round."""
        count = len(self.sessions)
        step = self.load.connections
        first = [(number + turn * step) % count for turn in range(count)]
        return [self.sessions[index] for index in dict.fromkeys(first)]

    def answered(self, connection: Connection, sent_at: Sequence[float]) -> None:
        """Messages written at these times are acknowledged now."""
        now = time.perf_counter()
        count = len(sent_at)
        self.acknowledged += count
        if now >= self._ends:
            self.outstanding -= count
            return
        if now >= self._counts_from:
            self.latencies.extend([now - at for at in sent_at])
        connection.submit(count, now)

    def fail(self, text: str) -> None:
        self.problems.append(text)

    async def connect(self, make: Callable[[Run, int], asyncio.Protocol]) -> None:
        """All connections, until each is ready."""
        loop = asyncio.get_running_loop()
        addresses = self.load.addresses
        for number in range(self.load.connections):
            host, port = addresses[number % len(addresses)]
            await loop.create_connection(lambda n=number: make(self, n), host, port)
        await self.until(lambda: len(self.ready) == self.load.connections, STARTED_S, "connections")

    async def measure(self) -> dict[str, Any]:
        """Load until the time is over and everything that was sent is acknowledged."""
        load = self.load
        gc.collect()
        gc.freeze()
        gc.disable()
        started = time.perf_counter()
        self._counts_from = started + load.warm_up_s
        self._ends = self._counts_from + load.seconds
        cpu = time.process_time()
        self.outstanding = load.connections * load.window
        for connection in self.ready:
            connection.submit(load.window, time.perf_counter())
        await asyncio.sleep(self._ends - time.perf_counter())
        cpu_share = (time.process_time() - cpu) / (time.perf_counter() - started)
        await self.until(lambda: not self.outstanding, DRAINED_S, "last acknowledgements")
        return {
            "acknowledged": self.acknowledged,
            "msgs_per_s": round(len(self.latencies) / load.seconds, 1),
            "ack_ms": quantiles_ms(self.latencies),
            "generator_cpu_share": round(cpu_share, 2),
        }

    async def until(self, condition: Callable[[], bool], most_s: float, what: str) -> None:
        """Return when the condition holds. Void when it does not, or when something failed."""
        limit = time.perf_counter() + most_s
        while not condition() and not self.problems:
            if time.perf_counter() > limit:
                self.fail(f"the {what} did not come within {most_s:.0f} s")
                break
            await asyncio.sleep(POLL_S)
        self.raise_if_failed()

    def raise_if_failed(self) -> None:
        if self.problems:
            raise Void("; ".join(self.problems[:5]))


def quantiles_ms(latencies: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the maximum in milliseconds. Void without a single latency."""
    if not latencies:
        raise Void("nothing was acknowledged in the time that counts")
    ordered = sorted(latencies)
    last = len(ordered) - 1
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[round(last * share)] * 1000, 3) for name, share in shares.items()}
