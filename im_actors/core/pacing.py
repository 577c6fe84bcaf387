"""How fast something goes on: never more than so much in any second, and evenly within it."""

from __future__ import annotations

from collections import deque

_WINDOW_MS = 1_000
_BURST_MS = 50
"""What was not used is lost after this: nothing is made up for in a rush."""
_STEP_MS = 20
"""Nobody is called more often than that because of the pace."""


class Pacer:
    """``rate`` a second. The second before the start counts as used up: who restarts does not know
    what it was used for."""

    def __init__(self, rate: int, now_ms: int) -> None:
        assert rate > 0, rate
        self.rate = rate
        self._now_ms = now_ms
        self._thousandths = 0
        self._taken: deque[tuple[int, int]] = deque([(now_ms, rate)])
        """(time, how much) within the last second."""
        self._in_window = rate

    def room(self, now_ms: int) -> int:
        """How much may be taken now."""
        elapsed_ms = max(0, now_ms - self._now_ms)
        self._now_ms += elapsed_ms
        most = max(1_000, self.rate * _BURST_MS)
        self._thousandths = min(most, self._thousandths + self.rate * elapsed_ms)
        while self._taken and self._taken[0][0] <= self._now_ms - _WINDOW_MS:
            self._in_window -= self._taken.popleft()[1]
        return min(self._thousandths // 1_000, self.rate - self._in_window)

    def take(self, amount: int) -> None:
        """Take what there is room for."""
        if amount:
            self._thousandths -= 1_000 * amount
            self._in_window += amount
            self._taken.append((self._now_ms, amount))
            assert self._in_window <= self.rate, "more than there was room for"

    def next_ms(self) -> int:
        """When there is room again, after it was all taken."""
        wait_ms = max(_STEP_MS, -(-(1_000 - self._thousandths) // self.rate))
        if self._in_window >= self.rate:
            wait_ms = max(wait_ms, self._taken[0][0] + _WINDOW_MS - self._now_ms)
        return self._now_ms + wait_ms
