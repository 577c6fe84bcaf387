"""Events of a conversation that do not count as unread, such as the user's own sends.

Kept as ranges above the read position. Somebody who answers and answers and never reads would make
them grow without end, so the oldest are folded: of them only the number is kept.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any, NamedTuple

RANGES_MAX = 256


class Skips(NamedTuple):
    """``folded`` is how many there are up to ``folded_to``, ``ranges`` the others: (first, last),
    ascending, with a hole between any two."""

    folded_to: int = 0
    folded: int = 0
    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def total(self) -> int:
        if not self.ranges:
            return self.folded
        return self.folded + sum(last - first + 1 for first, last in self.ranges)

    def adding(self, added: Iterable[tuple[int, int]]) -> Skips:
        """With these ranges too, which lie above ``folded_to``; what is there already stays."""
        ranges = list(self.ranges)
        for first, last in added:
            assert self.folded_to < first <= last
            at = bisect_left(ranges, first - 1, key=_last)
            end = at
            while end < len(ranges) and ranges[end][0] <= last + 1:
                first, last = min(first, ranges[end][0]), max(last, ranges[end][1])
                end += 1
            ranges[at:end] = [(first, last)]
        return self._folding(ranges)

    def adding_one(self, seq: int) -> Skips:
        """With this one too. Where only the number is kept it must not be among them yet."""
        if seq <= self.folded_to:
            return self._replace(folded=self.folded + 1)
        return self.adding([(seq, seq)])

    def above(self, seq: int) -> Skips:
        """Those above ``seq``, which must not be among the folded ones."""
        assert seq >= self.folded_to, f"{seq} is below {self.folded_to}"
        kept = [(max(first, seq + 1), last) for first, last in self.ranges if last > seq]
        return Skips(0, 0, tuple(kept))

    def _folding(self, ranges: list[tuple[int, int]]) -> Skips:
        old = ranges[: max(0, len(ranges) - RANGES_MAX)]
        if not old:
            return self._replace(ranges=tuple(ranges))
        folded = self.folded + sum(last - first + 1 for first, last in old)
        return Skips(old[-1][1], folded, tuple(ranges[len(old) :]))

    def packed(self, base: int) -> list[int]:
        """Small numbers: the distances from ``base``, which is at most the first of all."""
        packed = [max(0, self.folded_to - base), self.folded]
        for first, last in self.ranges:
            packed += (first - base, last - first)
            base = last
        return packed

    @classmethod
    def unpacked(cls, packed: list[Any], base: int) -> Skips:
        """TypeError or ValueError: it was not packed so."""
        if packed == _NOTHING_PACKED:
            return _NOTHING
        distance, folded, *rest = packed
        ranges, at = [], base
        steps = iter(rest)
        for gap, length in zip(steps, steps, strict=True):
            ranges.append((at + gap, at + gap + length))
            at += gap + length
        return cls(base + distance if distance else 0, folded, tuple(ranges))


_NOTHING = Skips()
_NOTHING_PACKED = _NOTHING.packed(0)
"""What most rows have, twice: a page of a list is read in two thirds of the time for it."""


def _last(found: tuple[int, int]) -> int:
    return found[1]
