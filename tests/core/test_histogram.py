"""Against all values, sorted."""

from math import isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core.histogram import SECONDS, Histogram, quantile

VALUES = st.lists(st.floats(0, 12, allow_nan=False), min_size=1, max_size=50)


@given(VALUES, st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_in_the_bucket_of_the_real_one(values: list[float], part: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    assert sum(histogram.counts) == len(values)
    assert sum(histogram.sums) == pytest.approx(sum(values))
    rank = part * len(values)
    real = next(v for k, v in enumerate(sorted(values), 1) if k >= rank)
    found = quantile(histogram.bounds, histogram.counts, part)
    edges = [0.0, *SECONDS]
    low, high = next(
        ((low, high) for low, high in zip(edges, SECONDS, strict=False) if real <= high),
        (SECONDS[-1], SECONDS[-1]),
    )
    assert low <= found <= high


def test_nothing_has_no_quantile() -> None:
    assert isnan(quantile(SECONDS, [0] * (len(SECONDS) + 1), 0.5))
