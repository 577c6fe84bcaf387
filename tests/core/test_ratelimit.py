"""The token bucket against a dumb one that is filled in tiny steps."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core.ratelimit import TokenBucket


def test_a_burst_then_the_rate() -> None:
    bucket = TokenBucket(rate_per_s=10, burst=3)
    assert [bucket.take(1, 0) for _ in range(4)] == [0, 0, 0, 100]
    assert bucket.take(1, 99) == 1
    assert bucket.take(1, 100) == 0


def test_idle_time_fills_no_more_than_the_burst() -> None:
    bucket = TokenBucket(rate_per_s=10, burst=3)
    assert bucket.take(3, 0) == 0
    assert bucket.take(3, 3_600_000) == 0
    assert bucket.take(1, 3_600_000) == 100


def test_more_than_the_burst_passes_when_full_and_leaves_a_debt() -> None:
    bucket = TokenBucket(rate_per_s=10, burst=3)
    assert bucket.take(5, 0) == 0
    assert bucket.take(1, 0) == 300


def test_what_is_spent_beyond_the_level_is_a_debt_that_time_pays() -> None:
    bucket = TokenBucket(rate_per_s=10, burst=3)
    assert bucket.spend(3, 0) == 0
    assert bucket.spend(1, 0) == 100
    assert bucket.spend(0.5, 50) == 100
    assert bucket.spend(0, 150) == 0
    assert bucket.take(1, 150) == 100


def test_a_clock_that_goes_back_fills_nothing() -> None:
    bucket = TokenBucket(rate_per_s=10, burst=1)
    assert bucket.take(1, 10_000) == 0
    assert bucket.take(1, 0) == 100
    assert bucket.take(1, 10_000) == 100
    assert bucket.take(1, 10_100) == 0


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0.5)])
def test_senseless_limits_are_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="rate_per_s"):
        TokenBucket(rate, burst)


class DumbBucket:
    """Exact arithmetic, one millisecond at a time."""

    def __init__(self, rate_per_s: int, burst: int) -> None:
        self.rate, self.burst = Fraction(rate_per_s, 1000), burst
        self.level, self.now_ms = Fraction(burst), 0

    def advance(self, now_ms: int) -> None:
        while self.now_ms < now_ms:
            self.now_ms += 1
            self.level = min(Fraction(self.burst), self.level + self.rate)

    def take(self, n: int) -> bool:
        if self.level < min(n, self.burst):
            return False
        self.level -= n
        return True


@given(
    rate=st.integers(1, 5_000),
    burst=st.integers(1, 50),
    takes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), max_size=40),
)
def test_like_the_dumb_model(rate: int, burst: int, takes: list[tuple[int, int]]) -> None:
    bucket, dumb = TokenBucket(rate, burst), DumbBucket(rate, burst)
    now_ms = 0
    for pause_ms, n in takes:
        now_ms += pause_ms
        dumb.advance(now_ms)
        retry_ms = bucket.take(n, now_ms)
        assert (retry_ms == 0) == dumb.take(n)
        if retry_ms:
            # The wish is exact: at that time it fits, a millisecond before it does not.
            need = min(n, burst)
            level = dumb.level + dumb.rate * retry_ms
            assert level >= need
            assert level - dumb.rate < need or retry_ms == 1
