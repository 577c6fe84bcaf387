"""Every metric is in the status of a real node, and its name is as Prometheus wants it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from im_actors.client import Client
from im_actors.server.metrics import TABLES, Metric, MetricKind, collect, full_name
from im_actors.testing import LocalCluster

UNITS = ("seconds", "bytes", "total")


def all_metrics() -> list[tuple[str, Metric]]:
    return [(kind, metric) for kind, table in TABLES.items() for metric in table]


@pytest.mark.parametrize(("kind", "metric"), all_metrics())
def test_names(kind: str, metric: Metric) -> None:
    assert re.fullmatch(r"im_actors_[a-z]+(_[a-z]+)*", full_name(kind, metric))
    assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER)
    if metric.scale != 1 or metric.kind is MetricKind.HISTOGRAM:
        assert metric.name.endswith(UNITS)
    assert ("*" in metric.path) == bool(metric.label)
    assert metric.description[0].isupper()
    assert not metric.description.endswith(".")


def test_no_name_stands_for_two_things() -> None:
    names = [full_name(kind, metric) for kind, metric in all_metrics()]
    assert len(set(names)) == len(names)


async def test_a_real_cluster_tells_all_of_them() -> None:
    async with LocalCluster() as cluster, Client(cluster.url, user="alice", device="d") as im:
        ack = await (await im.send("team", "hello")).acked()
        assert ack.seq == 1
        status = await cluster.status()
    said: dict[str, dict[str, Any]] = {"controller": status}
    for kind in ("shard", "replica", "gateway"):
        said |= status[f"{kind}s"]
    found = {
        sample.name: sample.value
        for name, one in said.items()
        for sample in collect(name.partition("-")[0], one)
    }
    optional = {full_name(kind, metric) for kind, metric in all_metrics() if "*" in metric.path}
    assert {full_name(kind, metric) for kind, metric in all_metrics()} - found.keys() <= optional
    assert found["im_actors_gateway_sends_acked_total"] >= 1
    assert sum(found["im_actors_gateway_ack_seconds"][1]) >= 1
    assert sum(found["im_actors_replica_commit_seconds"][1]) >= 1
    assert found["im_actors_controller_slots"] == 0  # Of the last state, unplaced.
