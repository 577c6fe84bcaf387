"""Latencies by the million: counted per microsecond, and to three digits when there are many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

DISTINCT_MAX = 100_000
"""Different latencies above which they are rounded to three digits, once and for all."""
PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99_9", 0.999))


class Latencies:
    """Microseconds. ``raw`` is for the hot path, which appends to it and calls ``fold`` now and
    then."""

    __slots__ = ("_counts", "raw")

    def __init__(self, counts: Iterable[tuple[int, int]] = ()) -> None:
        self.raw: list[int] = []
        self._counts: Counter[int] = Counter()
        self.add(counts)

    def __len__(self) -> int:
        return self._counts.total() + len(self.raw)

    def fold(self) -> None:
        """Count what is in ``raw``, which stays the same list."""
        self._counts.update(self.raw)
        self.raw.clear()
        if len(self._counts) > DISTINCT_MAX:
            rounded: Counter[int] = Counter()
            for value, count in self._counts.items():
                rounded[three_digits(value)] += count
            self._counts = rounded

    def add(self, counts: Iterable[tuple[int, int]]) -> None:
        """Those of another process, as its ``counts`` gave them."""
        for value, count in counts:
            self._counts[value] += count

    def counts(self) -> list[tuple[int, int]]:
        """(microseconds, how many), ascending."""
        self.fold()
        return sorted(self._counts.items())

    def summary(self) -> dict[str, float] | None:
        """Percentiles and the maximum in milliseconds; None when there are none."""
        counts = self.counts()
        if not counts:
            return None
        found: dict[str, Any] = {
            name: at_share(counts, share) / 1000 for name, share in PERCENTILES
        }
        return {**found, "max": counts[-1][0] / 1000}


def at_share(counts: list[tuple[int, int]], share: float) -> int:
    """The least latency that at least this share of all is not above."""
    wanted = share * sum(count for _, count in counts)
    passed = 0
    for value, count in counts:
        passed += count
        if passed >= wanted:
            return value
    return counts[-1][0]


def three_digits(value: int) -> int:
    """Rounded up, so that no latency is told too low."""
    unit = 1
    while value >= 1000 * unit:
        unit *= 10
    return -(-value // unit) * unit
