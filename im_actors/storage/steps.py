"""Long work in small steps, with rests between them, so that who shares the interpreter or the
processors with it gets on meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

STEP_ROWS = 32
"""Between two looks at whether it is time for a rest."""
STEP_S = 0.001
"""CPU time of a step."""
RESTS = 4.0
"""A rest is as long as so many steps: the work takes a fifth of a processor while it lasts."""

T = TypeVar("T")
Rest = Callable[[], None]


def no_rest() -> None:
    """For who does not share anything."""


def in_steps(rows: Sequence[T], rest: Rest) -> Iterator[Sequence[T]]:
    """``rows`` in parts, with a chance to rest after each."""
    for start in range(0, len(rows), STEP_ROWS):
        yield rows[start : start + STEP_ROWS]
        rest()


class Pacer:
    """Paces the work of one thread. While anybody is in a hurry it does not rest."""

    def __init__(self, step_s: float = STEP_S, rests: float = RESTS) -> None:
        self._step_s = step_s
        self._rest_s = step_s * rests
        self._hurry = threading.Event()
        self._hurried = 0
        self._since = 0.0

    def rest(self) -> None:
        """Called by the thread whenever it could: rests when a step's time was used."""
        if time.thread_time() - self._since >= self._step_s:
            self._hurry.wait(self._rest_s)
            self._since = time.thread_time()

    def hurry(self) -> None:
        """From now on somebody waits for the thread. Called from the event loop, as ``relax``."""
        self._hurried += 1
        self._hurry.set()

    def relax(self) -> None:
        """One less waits for it."""
        self._hurried -= 1
        if not self._hurried:
            self._hurry.clear()
