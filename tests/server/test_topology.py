"""What should run: scaled, drained, taken back, written down and read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from im_actors.errors import BadRequest, CorruptData
from im_actors.server.cluster_file import read_topology, write_topology
from im_actors.server.topology import Topology

FOUR = Topology.fresh(replicas=4, shards=2, gateways=1)


def names(topology: Topology, kind: str) -> list[str]:
    return [desired.name for desired in topology.desired() if desired.kind == kind]


def test_a_single_shard_has_one_that_stands_by() -> None:
    assert names(Topology.fresh(3, 1, 1), "shard") == ["shard-1", "shard-2"]


def test_what_is_not_named_stays() -> None:
    scaled = FOUR.scaled(shards=4)
    assert names(scaled, "shard") == ["shard-1", "shard-2", "shard-3", "shard-4"]
    assert names(scaled, "replica") == names(FOUR, "replica")
    assert names(scaled, "gateway") == ["gateway-1"]
    assert scaled.spreading


def test_who_is_too_many_leaves_and_runs_until_then() -> None:
    scaled = FOUR.scaled(shards=4, gateways=3).scaled(shards=2, replicas=3, gateways=1)
    assert set(scaled.leaving) == {"shard-3", "shard-4", "gateway-2", "gateway-3", "replica-4"}
    assert names(scaled, "replica") == ["replica-1", "replica-2", "replica-3", "replica-4"]
    assert set(names(scaled, "shard")) == {"shard-1", "shard-2", "shard-3", "shard-4"}
    for name in scaled.leaving:
        scaled = scaled.without(name)
    assert len(list(scaled.desired())) == 3 + 2 + 1


def test_a_shard_that_was_leaving_may_stay_after_all() -> None:
    assert FOUR.scaled(shards=4).scaled(shards=2).scaled(shards=3).leaving == ("shard-4",)


def test_the_number_of_a_replica_is_never_given_again() -> None:
    once = FOUR.scaled(replicas=3)
    again = once.without("replica-4").scaled(replicas=4)
    assert again.replicas == ("replica-1", "replica-2", "replica-3", "replica-5")


def test_three_replicas_remain_or_nothing_is_done() -> None:
    with pytest.raises(BadRequest, match="scale --replicas 5 first"):
        FOUR.drained(("replica-1", "replica-2"))
    with pytest.raises(BadRequest, match="replicas must be a number from 3"):
        FOUR.scaled(replicas=2)
    with pytest.raises(BadRequest, match="gateways must be a number from 1 to 256, not 0"):
        FOUR.scaled(gateways=0)
    with pytest.raises(BadRequest, match="shards"):
        FOUR.scaled(shards="two")  # type: ignore[arg-type]


def test_a_drained_replica_comes_back_when_that_is_cancelled() -> None:
    drained = FOUR.drained(("replica-2",), host="10.0.0.2")
    assert drained.leaving == ("replica-2",)
    assert drained.hosts_out == ("10.0.0.2",)
    assert drained.drained(("replica-2",), host="10.0.0.2") == drained, "again: the same"
    back = drained.taken_back(("replica-2",), host="10.0.0.2")
    assert back.replicas == FOUR.replicas
    assert (back.leaving, back.hosts_out, back.spreading) == ((), (), True)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_topology(tmp_path) is None
    topology = FOUR.scaled(replicas=5).drained(("replica-1",), host="h")
    write_topology(tmp_path, topology)
    assert read_topology(tmp_path) == topology
    path = tmp_path / "topology.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}))
    with pytest.raises(CorruptData, match="bring back a good copy"):
        read_topology(tmp_path)
