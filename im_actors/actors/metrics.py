"""Tells Ray the metrics of one actor; Ray tells Prometheus, with ``ray_`` before each name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from im_actors.server.metrics import MetricKind, Sample, collect

PUBLISH_S = 5.0
"""Between two looks at the status."""

Labels = tuple[tuple[str, str], ...]


class Instruments(Protocol):
    """Where Ray's counters, gauges and histograms come from: ``ray_api``, or a test."""

    def counter(self, name: str, description: str, labels: tuple[str, ...]) -> Any: ...

    def gauge(self, name: str, description: str, labels: tuple[str, ...]) -> Any: ...

    def histogram(
        self, name: str, description: str, labels: tuple[str, ...], bounds: Sequence[float]
    ) -> Any: ...


class Publisher:
    """Of one process. What counters and histograms have grown is told; a gauge whose label is gone
    is told 0."""

    def __init__(self, kind: str, actor: str, api: Instruments) -> None:
        self._kind = kind
        self._actor = actor
        self._api = api
        self._instruments: dict[str, Any] = {}
        self._told: dict[tuple[str, Labels], Any] = {}

    def publish(self, status: dict[str, Any]) -> None:
        """Tell what is new in a status."""
        seen = set()
        for sample in collect(self._kind, status):
            key = (sample.name, sample.labels)
            seen.add(key)
            instrument = self._instrument(sample)
            tags = {"actor": self._actor, **dict(sample.labels)}
            match sample.metric.kind:
                case MetricKind.GAUGE:
                    instrument.set(sample.value, tags)
                case MetricKind.COUNTER:
                    if (grown := sample.value - self._told.get(key, 0)) > 0:
                        instrument.inc(grown, tags)
                case MetricKind.HISTOGRAM:
                    _observe(instrument, sample.value, self._told.get(key), tags)
            self._told[key] = sample.value
        for name, labels in [key for key in self._told if key not in seen]:
            if hasattr(self._instruments[name], "set"):
                self._instruments[name].set(0.0, {"actor": self._actor, **dict(labels)})
            del self._told[name, labels]

    def _instrument(self, sample: Sample) -> Any:
        known = self._instruments.get(sample.name)
        if known is None:
            metric, api = sample.metric, self._api
            labels = ("actor", metric.label) if metric.label else ("actor",)
            if metric.kind is MetricKind.HISTOGRAM:
                known = api.histogram(sample.name, metric.description, labels, sample.value[0])
            else:
                make = api.counter if metric.kind is MetricKind.COUNTER else api.gauge
                known = make(sample.name, metric.description, labels)
            self._instruments[sample.name] = known
        return known


def publish_from_now_on(actor: str, status: Callable[[], dict[str, Any] | None]) -> None:
    """Tell Ray the metrics of this process; ``status`` says None where there is nothing to tell. In
    a Ray of our own, which has no agent that Prometheus could ask, that would be for nothing."""
    from im_actors.actors import ray_api

    publisher = Publisher(actor.partition("-")[0], actor, ray_api)
    loop = asyncio.get_running_loop()

    def publish() -> None:
        if (found := status()) is not None:
            publisher.publish(found)
        loop.call_later(PUBLISH_S, publish)

    loop.call_later(PUBLISH_S, publish)


def _observe(histogram: Any, now: Any, told: Any, tags: dict[str, str]) -> None:
    """As many observations as each bucket has got, each of their mean: counts and sum are exact."""
    _, counts, sums = now
    _, counts_before, sums_before = told or (None, [0] * len(counts), [0.0] * len(sums))
    for bucket, count in enumerate(counts):
        new = count - counts_before[bucket]
        if new:
            mean = (sums[bucket] - sums_before[bucket]) / new
            for _ in range(new):
                histogram.observe(mean, tags)
