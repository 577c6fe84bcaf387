"""Counts by size, as Prometheus keeps them: how many were at most so much."""

from __future__ import annotations

from bisect import bisect_left
from math import nan
from typing import Any

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Bounds for latencies, from a commit on a quick disk to a takeover that went wrong."""


class Histogram:
    """``bounds`` ascending; what is above the last one is counted too."""

    __slots__ = ("bounds", "counts", "sums")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        assert list(bounds) == sorted(set(bounds)), bounds
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Of each bucket alone; the last one has no bound."""
        self.sums = [0.0] * len(self.counts)

    def observe(self, value: float) -> None:
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.sums[bucket] += value

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {name: list(getattr(self, name)) for name in self.__slots__}


def quantile(bounds: tuple[float, ...] | list[float], counts: list[int], part: float) -> float:
    """An estimate of the value that ``part`` (0..1) of all are at most, as Prometheus makes it:
    evenly spread inside of a bucket, and the last bound for what is above it. NaN of nothing."""
    rank, below = part * sum(counts), 0
    if not rank:
        return nan
    for bucket, bound in enumerate(bounds):
        if below + counts[bucket] >= rank:
            low = bounds[bucket - 1] if bucket else 0.0
            return low + (bound - low) * (rank - below) / counts[bucket]
        below += counts[bucket]
    return bounds[-1]
