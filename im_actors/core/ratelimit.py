"""A token bucket: a steady rate with a bounded burst."""

from __future__ import annotations

import math

_ROUNDING = 1e-6
"""Less than this is the rounding of sums of floats, not a missing token."""


class TokenBucket:
    """Lets ``rate_per_s`` through in the long run and ``burst`` at once.

    Nothing is stored per request and nothing runs between requests: the level is computed from the
    time that passed. A refused request takes nothing.
    """

    __slots__ = ("_burst", "_filled_ms", "_level", "_rate_per_ms")

    def __init__(self, rate_per_s: float, burst: float) -> None:
        if not (rate_per_s > 0 and burst >= 1):
            raise ValueError(
                f"rate_per_s {rate_per_s} must be above 0 and burst {burst} at least 1"
            )
        self._rate_per_ms = rate_per_s / 1000
        self._burst = float(burst)
        self._level = self._burst
        self._filled_ms: int | None = None

    def take(self, n: int, now_ms: int) -> int:
        """0 when ``n`` may pass now; otherwise the milliseconds after which they may.

        More than ``burst`` at once never fits, so such a request passes when the bucket is full
        and leaves a debt that later requests wait for.
        """
        assert n >= 0
        self._fill(now_ms)
        needed = min(float(n), self._burst)
        if self._level >= needed - _ROUNDING:
            self._level -= n
            return 0
        return max(1, math.ceil((needed - _ROUNDING - self._level) / self._rate_per_ms))

    def spend(self, n: float, now_ms: int) -> int:
        """Take ``n`` in any case, for what is done already; the milliseconds until the debt that
        this leaves, if it does, is paid."""
        assert n >= 0
        self._fill(now_ms)
        self._level -= n
        if self._level >= -_ROUNDING:
            return 0
        return max(1, math.ceil(-(self._level + _ROUNDING) / self._rate_per_ms))

    def _fill(self, now_ms: int) -> None:
        if self._filled_ms is not None:
            # A clock that goes back fills nothing, and the time is not counted twice after it.
            passed_ms = max(0, now_ms - self._filled_ms)
            self._level = min(self._burst, self._level + passed_ms * self._rate_per_ms)
        self._filled_ms = max(now_ms, self._filled_ms or now_ms)
