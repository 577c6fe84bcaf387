"""Percentiles against a dumb model, also when there are too many latencies to keep apart."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.cli.bench import latencies as module
from im_actors.cli.bench.latencies import PERCENTILES, Latencies, three_digits

micros = st.lists(st.integers(0, 10_000_000), min_size=1, max_size=300)


@given(micros)
def test_percentiles(values: list[int]) -> None:
    latencies = Latencies()
    latencies.raw += values
    found = latencies.summary()
    assert found is not None
    ascending = sorted(values)
    for name, share in PERCENTILES:
        assert found[name] == ascending[math.ceil(share * len(values)) - 1] / 1000
    assert found["max"] == max(values) / 1000


@given(micros, micros)
def test_those_of_two_processes(one: list[int], other: list[int]) -> None:
    latencies, second = Latencies(), Latencies()
    latencies.raw += one
    second.raw += other
    latencies.add(second.counts())
    assert sum(count for _, count in latencies.counts()) == len(one) + len(other)
    assert len(latencies) == len(one) + len(other)


@given(st.integers(0, 1 << 40))
def test_rounding_never_makes_a_latency_shorter(value: int) -> None:
    assert value <= three_digits(value) <= value * 1.01 + 1e-9


def test_many_different_ones_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DISTINCT_MAX", 5_000)
    latencies = Latencies()
    for start in range(0, 200_000, 1_000):
        latencies.raw += range(start, start + 1_000)
        latencies.fold()
    assert len(latencies.counts()) <= 5_000
    assert len(latencies) == 200_000
    found = latencies.summary()
    assert found is not None
    assert found["p50"] == pytest.approx(100, rel=0.02)


def test_none() -> None:
    assert Latencies().summary() is None
