"""When to try again: the retry ladder, full jitter, and a list of deadlines.

All of it is pure: the time is an argument and so is the source of random numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from random import Random
from typing import Generic, TypeVar

LADDER_MS = (1_000, 3_000, 5_000)
"""Waits before the first, second, third resend; the last one repeats (design section 8)."""
LADDER_JITTER = 0.2
"""Share of a wait by which it is stretched at most, so that devices do not resend in step."""


def ladder_ms(step: int, rng: Random) -> int:
    """How long to wait for an answer after ``step`` fruitless tries (0 = the first try)."""
    assert step >= 0
    return stretched_ms(LADDER_MS[min(step, len(LADDER_MS) - 1)], rng)


def stretched_ms(wait_ms: int, rng: Random) -> int:
    """``wait_ms`` and a little more: never before the time that was asked for."""
    return wait_ms + int(wait_ms * LADDER_JITTER * rng.random())


def full_jitter_ms(step: int, base_ms: int, cap_ms: int, rng: Random) -> int:
    """Anything between 0 and ``base_ms * 2**step``, at most ``cap_ms``.

    A crowd that lost its server at the same moment comes back evenly spread. Source: "Exponential
    backoff and jitter", AWS architecture blog, 2015.
    """
    assert 0 < base_ms <= cap_ms
    ceiling = min(cap_ms, base_ms << min(step, 32))
    return int(rng.random() * ceiling)


KeyT = TypeVar("KeyT", bound=Hashable)


class Alarms(Generic[KeyT]):
    """One deadline per key. Moving a deadline to later costs one dict write.

    Most deadlines are moved or cancelled long before they are due, so the heap holds one entry per
    key at most, perhaps an early one, and the truth is in a dict.
    """

    __slots__ = ("_heap", "_queued", "_serial", "_wanted")

    def __init__(self) -> None:
        self._wanted: dict[KeyT, int] = {}
        self._queued: dict[KeyT, int] = {}
        self._heap: list[tuple[int, int, KeyT]] = []
        self._serial = 0

    def set(self, key: KeyT, at_ms: int) -> None:
        self._wanted[key] = at_ms
        queued = self._queued.get(key)
        if queued is None or at_ms < queued:
            self._push(key, at_ms)

    def clear(self, key: KeyT) -> None:
        self._wanted.pop(key, None)

    def next_ms(self) -> int | None:
        """When to look again, never later than the first deadline; None when there is none."""
        heap = self._heap
        while heap and self._stale(heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now_ms: int) -> list[KeyT]:
        """The keys whose deadline has come, each removed, earliest first."""
        found: list[KeyT] = []
        while self._heap and self._heap[0][0] <= now_ms:
            entry = heapq.heappop(self._heap)
            if self._stale(entry):
                continue
            key = entry[2]
            del self._queued[key]
            wanted = self._wanted[key]
            if wanted <= now_ms:
                del self._wanted[key]
                found.append(key)
            else:
                self._push(key, wanted)
        return found

    def _push(self, key: KeyT, at_ms: int) -> None:
        # The serial keeps equal times in order of arrival and keys out of the comparison.
        self._serial += 1
        self._queued[key] = at_ms
        heapq.heappush(self._heap, (at_ms, self._serial, key))

    def _stale(self, entry: tuple[int, int, KeyT]) -> bool:
        at_ms, _, key = entry
        if self._queued.get(key) != at_ms:
            return True
        if key not in self._wanted:
            del self._queued[key]
            return True
        return False
