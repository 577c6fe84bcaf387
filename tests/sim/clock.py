"""Virtual time: nothing happens but what is in the heap, and time passes only in between."""

from __future__ import annotations

import heapq
from collections.abc import Callable

EPOCH_MS = 1_700_000_000_000


class Clock:
    """A heap of callbacks."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        """Since the start of the run."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, time_ms: float, call: Callable[[], None]) -> None:
        """Calls of one moment are made in the order in which they were planned."""
        self._count += 1
        heapq.heappush(self._heap, (max(time_ms, self.now_ms), self._count, call))

    def later(self, delay_ms: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now_ms + delay_ms, self._count, call))

    def step(self) -> None:
        self.now_ms, _, call = heapq.heappop(self._heap)
        call()

    def when(self, due: int) -> float:
        """The moment of a machine's deadline, a little late as timers are; the same one however
        often it is asked for, until it has passed."""
        return max(self.now_ms, float(due - EPOCH_MS)) + 0.5

    @property
    def now(self) -> int:
        """Whole milliseconds since the Unix epoch, as the machines want them."""
        return EPOCH_MS + int(self.now_ms)
