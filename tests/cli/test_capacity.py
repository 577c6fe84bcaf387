"""The capacity model: what follows from costs by hand, and what ``im-actors plan`` says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from im_actors.cli import capacity
from im_actors.cli.capacity import Costs, Demand, PartCost, Site, plan, read_costs
from im_actors.errors import SetupError
from tests.cli.conftest import Result

Run = Callable[..., Result]
COSTS = Costs(
    parts={
        "gateway": PartCost(10.0, 0.0, 5.0, 10_000.0),
        "shard": PartCost(20.0, 4.0, 0.0, 0.0),
        "replica": PartCost(30.0, 0.0, 0.0, 0.0),
    },
    others_us_per_s=50_000.0,
    disk_bytes_per_message=100.0,
    disk_bytes_per_body_byte=2.0,
    disk_bytes_per_s=100e6,
    connection_bytes=10_000.0,
    fsync_us=300.0,
    ack_us=1_500.0,
    cores=4,
    source="invented by a test",
)


def used(found: dict[str, Any], what: str) -> float:
    return next(use["share"] for use in found["use"] if use["what"] == what)


def test_a_small_load_needs_three_hosts_for_its_copies_and_one_of_the_rest() -> None:
    found = plan(COSTS, Demand(messages_per_s=10, users=10), Site())
    counts = [found[name] for name in ("hosts", "shards", "replicas", "disks", "gateways")]
    assert counts == [3, 1, 3, 3, 1]


def test_counts_follow_from_costs_as_by_hand() -> None:
    load = Demand(messages_per_s=100_000, users=1_000, followers=2, message_bytes=512)
    found = plan(COSTS, load, Site(share=0.5, host_cores=8))
    # A message is 10 + 2*5 us of a gateway that may use 0.5 s - 10 ms; 20 + 4*0.5 us of a shard.
    assert found["gateways"] == 5
    assert found["shards"] == 5
    # 30 us of all replicas together would fit into 6, and three copies of 112.4 MB/s into 7 disks.
    assert found["replicas"] == 7
    assert used(found, "shard CPU") == pytest.approx(2.2 / 5, abs=1e-4)
    assert used(found, "replica CPU") == pytest.approx(3 / 7, abs=1e-4)
    assert used(found, "disk bandwidth") == pytest.approx(1.124 * 3 / 7, abs=1e-4)
    assert found["saturates_first"] == "disk bandwidth"
    assert found["saturates_at_messages_per_s"] == round(100_000 / (1.124 * 3 / 7))


def test_where_it_gives_in_leaves_out_what_idling_takes() -> None:
    """However small the load is that was asked about: a shard of 20.5 us a message is full at
    48,780, and a gateway of 15 us and 10 ms a second idle at 66,000."""
    found = plan(COSTS, Demand(messages_per_s=10, users=1), Site(host_cores=64))
    slowest = {"gateway": 0.99 / 15e-6, "shard": 1 / 20.5e-6, "replica": 1 / 10e-6}
    assert found["saturates_first"] == "shard CPU"
    assert found["saturates_at_messages_per_s"] == pytest.approx(min(slowest.values()), abs=1)


def test_more_disks_in_a_host_need_fewer_hosts_until_its_cores_are_full() -> None:
    load = Demand(messages_per_s=100_000, users=1)
    wide = plan(COSTS, load, Site(share=0.5, host_cores=64, host_disks=4))
    assert (wide["replicas"], wide["hosts"]) == (6, 3)
    narrow = plan(COSTS, load, Site(share=0.5, host_cores=2, host_disks=4))
    # 1.5 + 2.05 + 3 cores and the idle gateways', in hosts of which 0.95 core is there for actors.
    assert narrow["hosts"] == 7


def test_a_slow_disk_costs_latency_and_not_messages() -> None:
    load = Demand(messages_per_s=1_000, users=1)
    fast, slow = (plan(COSTS, load, Site(disk_fsync_us=us)) for us in (300.0, 10_300.0))
    assert fast["ack_ms_p50_at_least"] == pytest.approx(1.5)
    assert slow["ack_ms_p50_at_least"] == pytest.approx(11.5)
    assert slow["replicas"] == fast["replicas"]
    assert used(slow, "fsync") > used(fast, "fsync")


def test_connections_alone_can_need_gateways() -> None:
    found = plan(COSTS, Demand(messages_per_s=1, users=50_000), Site())
    assert found["gateways"] == 3
    assert found["gateway_memory_mb"] == 500.0
    assert found["saturates_first"] == "connections of a gateway"


def test_a_share_that_is_less_than_idling_is_refused() -> None:
    with pytest.raises(SetupError, match="less than an idle actor"):
        plan(COSTS, Demand(messages_per_s=1), Site(share=0.005))
    tiny = replace(COSTS, others_us_per_s=1e6)
    with pytest.raises(SetupError, match="less than Ray itself"):
        plan(tiny, Demand(messages_per_s=1), Site(host_cores=1))


def test_costs_are_read_as_they_were_written_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"format": 1, "costs": COSTS.to_dict()}))
    assert read_costs(path) == COSTS
    path.write_text(json.dumps({"format": 2, "costs": {}}))
    with pytest.raises(SetupError, match="format 2"):
        read_costs(path)
    for text in ("{}", "[]", "not JSON", '{"format": 1, "costs": {"parts": {}}}'):
        path.write_text(text)
        with pytest.raises(SetupError, match=r"not what bench\.scale writes"):
            read_costs(path)
    with pytest.raises(SetupError, match=r"python -m bench\.scale --out FILE"):
        read_costs(tmp_path / "missing.json")


def test_plan_tells_counts_and_where_its_costs_come_from(im: Run, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"format": 1, "costs": COSTS.to_dict()}))
    words = ("plan", "--users", "100", "--messages-per-second", "50000", "--costs", str(path))
    code, out, _ = im(*words)
    assert code == 0
    assert "invented by a test" in out
    assert "first to give in" in out
    code, out, _ = im(*words, "--followers", "3", "--host-cores", "16", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["load"]["followers"] == 3
    assert found["site"]["host_cores"] == 16
    assert found["hosts"] >= 3


@pytest.mark.parametrize(
    ("option", "value"),
    [("--messages-per-second", "0"), ("--share", "1.5"), ("--users", "-1"), ("--followers", "x")],
)
def test_a_load_that_cannot_be_is_refused(im: Run, option: str, value: str) -> None:
    code, _, err = im("plan", "--users", "1", "--messages-per-second", "1", option, value)
    assert code == 2
    assert option in err


def test_without_costs_plan_says_how_to_measure_them(
    im: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "SOURCE", tmp_path / "none")
    monkeypatch.setattr(capacity, "PACKAGED", tmp_path / "none either")
    code, _, err = im("plan", "--users", "1", "--messages-per-second", "1")
    assert code == 1
    assert "bench.scale" in err
