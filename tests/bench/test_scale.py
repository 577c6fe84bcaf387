"""From measured points to costs: a made-up machine is found again, also at another point."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bench.scale import FOLLOWERS_MORE, Point, costs_of, prediction, shown
from bench.scale_plot import svg
from im_actors.cli.capacity import Costs, PartCost

TRUTH = {
    "gateway": PartCost(9.0, 3.0, 4.0, 8_000.0),
    "shard": PartCost(15.0, 2.0, 0.5, 5_000.0),
    "replica": PartCost(40.0, 6.0, 0.0, 2_000.0),
}
OTHERS_US_PER_S = 30_000.0
FSYNC_US, ACK_US = 250.0, 1_100.0


def point(rate: float, size: int = 128, followers: int = 1, shards: int = 1) -> Point:
    """What the made-up machine does under this load."""
    load = Point(shards, size, followers, rate, rate, {"p50": 1.0, "p99": 2.0}, {}, 0.0).load
    counts = {"gateway": 1, "shard": max(2, shards), "replica": 3}
    used = {kind: cost.cpu_us_per_s(load, counts[kind]) for kind, cost in TRUTH.items()}
    used |= {"ray": OTHERS_US_PER_S * 0.7, "controller": OTHERS_US_PER_S * 0.3}
    disk = rate * (90 + 2.5 * size)
    return Point(shards, size, followers, rate, rate, {"p50": 1.0, "p99": 2.0}, used, disk)


def fitted() -> Costs:
    base = [point(2_000), point(4_000), point(6_000)]
    large, many = point(2_000, size=4_096), point(2_000, followers=FOLLOWERS_MORE)
    return costs_of(base, large, many, 1, ACK_US, 5_000.0, FSYNC_US, 200e6)


def test_costs_are_those_of_the_machine() -> None:
    costs = fitted()
    for kind, cost in TRUTH.items():
        found = costs.parts[kind]
        assert found.per_message_us == pytest.approx(cost.per_message_us)
        assert found.per_kib_us == pytest.approx(cost.per_kib_us)
        assert found.per_delivery_us == pytest.approx(cost.per_delivery_us)
    assert costs.parts["gateway"].idle_us_per_s == pytest.approx(8_000)
    assert costs.others_us_per_s == pytest.approx(OTHERS_US_PER_S)
    assert costs.disk_bytes_per_message == pytest.approx(90)
    assert costs.disk_bytes_per_body_byte == pytest.approx(2.5)


def test_what_idles_is_told_for_one_actor() -> None:
    """Three replicas were measured together, and two shards: one that stands by."""
    assert fitted().parts["replica"].idle_us_per_s == pytest.approx(2_000)
    assert fitted().parts["shard"].idle_us_per_s == pytest.approx(5_000)


def test_the_prediction_for_another_point_is_right_when_the_machine_is_like_the_model() -> None:
    other = point(5_000, size=1_024, followers=2, shards=2)
    check = prediction(fitted(), other, gateways=1)
    assert set(check) == {"gateway", "shard", "replica", "all", "disk_mb_per_s"}
    assert all(abs(row["off_percent"]) < 0.2 for row in check.values()), check


def test_a_machine_that_is_not_like_the_model_shows() -> None:
    other = point(5_000, size=1_024, followers=2, shards=2)
    other.cpu_us_per_s["shard"] *= 1.5
    check = prediction(fitted(), other, gateways=1)
    assert check["shard"]["off_percent"] == pytest.approx(-33.3, abs=0.2)


def test_noise_makes_no_negative_cost() -> None:
    base = [point(2_000), point(4_000), point(6_000)]
    large, many = replace(base[0], bytes=4_096), replace(base[0], followers=4)
    for kind in TRUTH:
        large.cpu_us_per_s[kind] *= 0.9
    costs = costs_of(base, large, many, 1, ACK_US, 0.0, FSYNC_US, 1e6)
    assert all(part.per_kib_us == 0 for part in costs.parts.values())


def test_the_tables_name_all_points() -> None:
    base = [point(2_000), point(4_000), point(6_000)]
    costs = fitted()
    other = point(5_000, size=1_024, followers=2, shards=2)
    report = {
        "points": [p.to_json() for p in base],
        "costs": costs.to_dict(),
        "held_out": {"point": other.to_json(), "check": prediction(costs, other, 1)},
    }
    text = shown(report)
    assert "replica" in text
    assert "not fitted to" in text
    assert text.count("\n") > 10


def test_the_picture_has_a_bar_for_each_number_of_shards_and_no_other_point() -> None:
    full = [replace(point(8_000, shards=shards), rate=None) for shards in (1, 2, 4)]
    picture = svg({"points": [p.to_json() for p in (*full, point(2_000))]})
    ElementTree.fromstring(picture)
    assert picture.count("msg/s<") == 3
    assert "4 shards" in picture
    assert "replica" in picture
