"""The time that the shells hand to the machines."""

from __future__ import annotations

import time


class WallClock:
    """Milliseconds since the Unix epoch that never go back and never stand still.

    Deadlines are counted with it, so a clock that is set back must not freeze them; message keys
    are made with it, so it has to stay near the time of day.
    """

    def __init__(self) -> None:
        self._wall = time.time()
        self._steady = time.monotonic()

    def now_ms(self) -> int:
        steady = time.monotonic()
        self._wall = max(time.time(), self._wall + steady - self._steady)
        self._steady = steady
        return int(self._wall * 1000)


now_ms = WallClock().now_ms
