"""Replicas and the hosts that they are tied to."""

from __future__ import annotations

from pathlib import Path

import pytest

from im_actors.actors.placement import Host, place, read_places, write_places
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


def test_places_are_remembered(tmp_path: Path) -> None:
    assert read_places(tmp_path) == {}
    write_places(tmp_path, {"replica-1": "im_disk_a"})
    assert read_places(tmp_path) == {"replica-1": "im_disk_a"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"places": 3}', '{"places": null}'])
def test_a_damaged_memory_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "placement.json").write_text(text)
    with pytest.raises(CorruptData, match="good copy"):
        read_places(tmp_path)
