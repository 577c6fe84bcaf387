"""Replicas and the hosts that they are tied to."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from im_actors.actors.allotment import Allotment
from im_actors.actors.placement import (
    Host,
    absent,
    disks,
    lasting,
    place,
    read_places,
    spread,
    strays,
    write_places,
)
from im_actors.errors import CorruptData, SetupError
from im_actors.server.topology import Topology

NAMES = ["replica-1", "replica-2", "replica-3"]


def host(number: int, *resources: str) -> Host:
    address = f"10.0.0.{number}"
    return Host(address, ("CPU", f"node:{address}", *resources))


def test_one_replica_on_each_disk() -> None:
    hosts = [host(1, "im_disk_a"), host(2, "im_disk_b"), host(3, "im_disk_c"), host(4)]
    assert sorted(place(NAMES, hosts, {}).values()) == ["im_disk_a", "im_disk_b", "im_disk_c"]


def test_without_disks_they_are_spread_over_the_hosts() -> None:
    places = place(NAMES, [host(1), host(2)], {})
    assert places == {
        "replica-1": "node:10.0.0.1",
        "replica-2": "node:10.0.0.2",
        "replica-3": "node:10.0.0.1",
    }


def test_what_is_known_stays_also_when_its_host_is_away() -> None:
    known = {"replica-1": "im_disk_gone", "replica-2": "im_disk_a"}
    places = place(NAMES, [host(1, "im_disk_a"), host(2, "im_disk_b")], known)
    assert places == {**known, "replica-3": "im_disk_b"}


def test_no_host_is_an_error() -> None:
    with pytest.raises(SetupError):
        place(NAMES, [], {})


def test_a_disk_has_one_replica_and_a_head_none() -> None:
    hosts = [host(0, "im_head"), host(1, "im_disk_a"), host(2, "im_disk_b")]
    with pytest.raises(SetupError, match="no disk for replica-3"):
        place(NAMES, hosts, {})
    with pytest.raises(SetupError, match="no disk for replica-1"):
        place(NAMES, hosts[:1], {})


def test_what_is_missing_is_told() -> None:
    hosts = [host(0, "im_head"), host(1, "im_disk_a"), host(2, "im_disk_b")]
    assert absent(NAMES, [], {}) == ["3 more disks"]
    assert absent(NAMES, [host(1)], {}) == [], "hosts that name no disks will do for a trial"
    assert absent(NAMES, hosts[:1], {}) == ["3 more disks"]
    assert absent(NAMES, hosts, {}) == ["1 more disk"]
    assert absent(NAMES, [*hosts, host(3, "im_disk_c")], {}) == []
    on_hosts = {name: f"node:10.0.0.{n}" for n, name in enumerate(NAMES, 1)}
    assert absent(NAMES, hosts, on_hosts) == ["node:10.0.0.3 of replica-3"], "placed in a trial"
    known = {"replica-1": "im_disk_c", "replica-2": "im_disk_a", "replica-9": "im_disk_z"}
    assert absent(NAMES, hosts, known) == ["im_disk_c of replica-1"]
    assert absent([*NAMES, "replica-4"], hosts, known) == [
        "im_disk_c of replica-1",
        "1 more disk",
    ]


def test_two_hosts_cannot_have_one_disk() -> None:
    with pytest.raises(SetupError, match=r"10\.0\.0\.1 and 10\.0\.0\.2 both .* im_disk_a"):
        disks([host(1, "im_disk_a"), host(2, "im_disk_a")])


def test_what_has_no_data_is_spread_over_the_hosts_of_replicas() -> None:
    hosts = [host(0, "im_head"), host(1, "im_disk_a", "im_disk_b"), host(2, "im_disk_c")]
    places = {"replica-1": "im_disk_a", "replica-2": "im_disk_b", "replica-3": "im_disk_c"}
    gateways = ["gateway-1", "gateway-2", "gateway-3"]
    two = {"gateway-1": "im_disk_a", "gateway-2": "im_disk_c"}
    assert spread(gateways[:2], NAMES, hosts, places) == two
    assert spread(gateways, NAMES, hosts, places)["gateway-3"] == "im_disk_a"
    assert spread(gateways[:2], NAMES, hosts[:2], places) == two, "away for now"
    both = spread(["shard-1", *gateways[:2]], NAMES, hosts, places)
    assert both == {"shard-1": "im_disk_a", **two}, "each kind by itself"


def test_what_has_no_data_goes_where_replicas_stay() -> None:
    hosts = [host(n, f"im_disk_{disk}") for n, disk in enumerate("abcd", 1)]
    places = {f"replica-{n}": f"im_disk_{disk}" for n, disk in enumerate("abcd", 1)}
    gateways = ["gateway-1", "gateway-2", "gateway-3", "gateway-4"]
    places |= spread(gateways, [*NAMES, "replica-4"], hosts, places)
    assert strays(gateways, [*NAMES, "replica-4"], places) == []
    left = ["replica-1", "replica-3", "replica-4"]
    assert strays(gateways, left, places) == ["gateway-2"]
    moved = spread(gateways, left, hosts, places)
    assert {name: moved[name] for name in gateways if name != "gateway-2"}.items() <= places.items()
    assert moved["gateway-2"] == "im_disk_a"
    assert strays(gateways, left, places | moved) == []


def test_a_disk_is_free_when_its_replica_has_left_for_good() -> None:
    places = {"controller": "im_head", "shard-1": "im_disk_a"}
    places |= {f"replica-{n}": f"im_disk_{n}" for n in range(1, 6)}
    topology = Topology(("replica-1", "replica-3", "replica-4"), 1, 1, 4, leaving=("replica-2",))
    stay = {name: place for name, place in places.items() if name != "shard-1"}
    assert lasting(places, topology) == stay, "nobody has said that replica-5 is to leave"
    del stay["replica-2"]
    assert lasting(places, topology.without("replica-2")) == stay


class Ray(NamedTuple):
    """What an allotment sees of Ray, and what it tells the platform."""

    hosts: list[Host]
    places: dict[str, str]

    def allotment(self, data: Path) -> Allotment:
        return Allotment(data, self.places, lambda: self.hosts)


@pytest.fixture
def four(tmp_path: Path) -> Ray:
    """A replica, a shard and a gateway on each of four hosts."""
    hosts = [host(0, "im_head"), *(host(n, f"im_disk_{n}") for n in range(1, 5))]
    kinds = ("replica", "shard", "gateway")
    places = {f"{kind}-{n}": f"im_disk_{n}" for kind in kinds for n in range(1, 5)}
    write_places(tmp_path, places)
    return Ray(hosts, {"controller": "node:10.0.0.0"})


async def test_what_is_new_goes_to_the_new_host(four: Ray, tmp_path: Path) -> None:
    allotment = four.allotment(tmp_path)
    topology = Topology.fresh(4, 4, 4).scaled(5, 5, 5)
    with pytest.raises(SetupError, match="no disk for replica-5"):
        await allotment.allot(topology)
    four.hosts.append(host(5, "im_disk_5"))
    await allotment.allot(topology)
    new = {f"{kind}-5": "im_disk_5" for kind in ("replica", "shard", "gateway")}
    assert new.items() <= four.places.items()
    assert allotment.strays(topology) == []
    assert four.places == read_places(tmp_path) | {"controller": "node:10.0.0.0"}


async def test_a_drained_host_keeps_nobody(four: Ray, tmp_path: Path) -> None:
    topology = Topology.fresh(4, 4, 4).drained(("replica-2",), "10.0.0.2")
    await four.allotment(tmp_path).allot(topology)
    # Its controller starts anew in the middle of it.
    allotment = four.allotment(tmp_path)
    assert allotment.strays(topology) == ["shard-2", "gateway-2"]
    assert four.places["replica-2"] == "im_disk_2", "until its successors have everything"
    await allotment.resettle("gateway-2", topology)
    assert allotment.strays(topology) == ["shard-2"]
    await allotment.resettle("shard-2", topology)
    assert four.allotment(tmp_path).strays(topology) == []
    again = topology.without("replica-2").scaled(replicas=4)
    with pytest.raises(SetupError, match="no disk for replica-5"):
        await allotment.allot(again)
    await allotment.allot(again.taken_back((), "10.0.0.2"))
    assert four.places["replica-5"] == "im_disk_2"


def test_places_are_remembered(tmp_path: Path) -> None:
    assert read_places(tmp_path) == {}
    write_places(tmp_path, {"replica-1": "im_disk_a"})
    assert read_places(tmp_path) == {"replica-1": "im_disk_a"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"places": 3}', '{"places": null}'])
def test_a_damaged_memory_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "placement.json").write_text(text)
    with pytest.raises(CorruptData, match="good copy"):
        read_places(tmp_path)
