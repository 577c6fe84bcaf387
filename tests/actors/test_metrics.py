"""What is told to Ray, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from im_actors.actors.metrics import Publisher
from im_actors.core.histogram import Histogram


class Ray:
    """Notes every call to an instrument."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[str, ...]]] = []
        self.told: list[tuple[str, float, dict[str, str]]] = []

    def counter(self, name: str, description: str, labels: tuple[str, ...]) -> Any:
        return _Counter(self, name, labels)

    def gauge(self, name: str, description: str, labels: tuple[str, ...]) -> Any:
        return _Gauge(self, name, labels)

    def histogram(
        self, name: str, description: str, labels: tuple[str, ...], bounds: Sequence[float]
    ) -> Any:
        assert list(bounds) == sorted(bounds)
        return _Histogram(self, name, labels)

    def take(self, name: str) -> list[tuple[float, dict[str, str]]]:
        found = [(value, tags) for told, value, tags in self.told if told.endswith(name)]
        self.told = [row for row in self.told if not row[0].endswith(name)]
        return found


class _Instrument:
    def __init__(self, ray: Ray, name: str, labels: tuple[str, ...]) -> None:
        self.ray, self.name, self.labels = ray, name, labels
        ray.made.append((name, labels))

    def note(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.labels)
        self.ray.told.append((self.name, value, tags))


class _Counter(_Instrument):
    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0, "Ray refuses it"
        self.note(value, tags)


class _Gauge(_Instrument):
    def set(self, value: float, tags: dict[str, str]) -> None:
        self.note(value, tags)


class _Histogram(_Instrument):
    def observe(self, value: float, tags: dict[str, str]) -> None:
        self.note(value, tags)


ME = {"actor": "gateway-1"}


def test_counters_tell_what_they_have_grown() -> None:
    ray = Ray()
    publisher = Publisher("gateway", "gateway-1", ray)
    for acked in (0, 5, 5, 7):
        publisher.publish({"acked": acked})
    assert ray.take("sends_acked_total") == [(5, ME), (2, ME)]
    assert ray.made == [("im_actors_gateway_sends_acked_total", ("actor",))]


def test_a_gauge_whose_label_is_gone_is_zero_once() -> None:
    ray = Ray()
    publisher = Publisher("gateway", "gateway-1", ray)
    for held in ({"3": 4}, {}, {}):
        publisher.publish({"held": held})
    tags = {**ME, "slot": "3"}
    assert ray.take("sends_held") == [(4, tags), (0.0, tags)]


def test_a_histogram_arrives_with_its_counts_and_its_sum() -> None:
    ray = Ray()
    publisher = Publisher("gateway", "gateway-1", ray)
    histogram = Histogram((0.01, 0.1))
    publisher.publish({"ack": histogram.to_dict()})
    for value in (0.002, 0.004, 0.01, 5.0):
        histogram.observe(value)
    publisher.publish({"ack": histogram.to_dict()})
    first = ray.take("ack_seconds")
    histogram.observe(0.05)
    publisher.publish({"ack": histogram.to_dict()})
    publisher.publish({"ack": histogram.to_dict()})
    assert ray.take("ack_seconds") == [(0.05, ME)]
    again = Histogram((0.01, 0.1))
    for value, tags in first:
        assert tags == ME
        again.observe(value)
    assert again.counts == [3, 0, 1]
    assert abs(sum(again.sums) - 5.016) < 1e-9
