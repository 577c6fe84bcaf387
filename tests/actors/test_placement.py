"""Replicas and the hosts that they are tied to."""

from __future__ import annotations

from pathlib import Path

import pytest

from im_actors.actors.placement import (
    Host,
    absent,
    disks,
    place,
    read_places,
    spread,
    write_places,
)
from im_actors.errors import CorruptData, SetupError

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
    assert spread(gateways[:2], hosts, places) == {
        "gateway-1": "im_disk_a",
        "gateway-2": "im_disk_c",
    }
    assert spread(gateways, hosts, places)["gateway-3"] == "im_disk_a"
    assert spread(gateways[:2], hosts[:2], places)["gateway-2"] == "im_disk_c", "away for now"


def test_places_are_remembered(tmp_path: Path) -> None:
    assert read_places(tmp_path) == {}
    write_places(tmp_path, {"replica-1": "im_disk_a"})
    assert read_places(tmp_path) == {"replica-1": "im_disk_a"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"places": 3}', '{"places": null}'])
def test_a_damaged_memory_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "placement.json").write_text(text)
    with pytest.raises(CorruptData, match="good copy"):
        read_places(tmp_path)
