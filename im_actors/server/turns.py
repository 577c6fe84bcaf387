"""Long work in a thread that others need too: done in short turns."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

TURN_S = 0.005
"""Work that takes long holds a storage thread for so long at a time."""

T = TypeVar("T")


async def in_turns(run: Callable[..., Awaitable[Any]], work: Iterator[T | None]) -> list[T]:
    """What ``work`` yields besides None, which it yields where it may be interrupted. ``run``
    carries a call to the thread."""
    found: list[T] = []
    done = False
    while not done:
        items, done = await run(_turn, work)
        found += items
    return found


def _turn(work: Iterator[T | None]) -> tuple[list[T], bool]:
    found: list[T] = []
    deadline = time.monotonic() + TURN_S
    while time.monotonic() < deadline:
        try:
            item = next(work)
        except StopIteration:
            return found, True
        if item is not None:
            found.append(item)
    return found, False
