"""When the messages of an open loop are due: on a grid of a millisecond, whatever the server does.

Event loops wait in whole milliseconds and lose up to one each time, which would count as the
server's latency. A timer of the kernel (timerfd) keeps the grid where there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Callable

from im_actors.cli.bench.wire import micros

GRID_US = 1_000
_ABSOLUTE = 1


class Pace:
    """Calls ``send(count, at)`` for what is due at each point of the grid, also when it is late."""

    def __init__(
        self, rate: float, begins: int, ends: int, send: Callable[[int, int], None]
    ) -> None:
        self._rate = rate
        self._begins = begins
        self._ends = ends
        self._send = send
        self._points = 0
        self._sent = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Return when everything was sent."""
        loop = asyncio.get_running_loop()
        timer = kernel_timer(self._begins, GRID_US)
        if timer is None:
            while not self._done.done():
                self._tick()
                await asyncio.sleep(GRID_US / 1_000_000)
            return

        def due() -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(timer, 8)
            if not self._done.done():
                self._tick()

        loop.add_reader(timer, due)
        try:
            await self._done
        finally:
            loop.remove_reader(timer)
            os.close(timer)

    def _tick(self) -> None:
        now = micros()
        while (at := self._begins + self._points * GRID_US) <= now:
            if at >= self._ends:
                self._done.set_result(None)
                return
            self._points += 1
            due = int(self._rate * self._points * GRID_US / 1_000_000)
            if due > self._sent:
                self._send(due - self._sent, at)
                self._sent = due


def kernel_timer(first: int, interval: int) -> int | None:
    """A descriptor that becomes readable at ``first`` and then at every interval, in microseconds
    of CLOCK_MONOTONIC; None where there is no such thing."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        timer = int(libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
    except (OSError, AttributeError):
        return None
    if timer < 0:
        return None
    times = (*divmod(interval, 1_000_000), *divmod(first, 1_000_000))
    spec = (ctypes.c_long * 4)(*(part * (1, 1000)[i % 2] for i, part in enumerate(times)))
    if libc.timerfd_settime(timer, _ABSOLUTE, spec, None) != 0:
        os.close(timer)
        return None
    return timer
