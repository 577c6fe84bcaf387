"""A cluster on several hosts grows by one and gives up one, while clients write and read.

One story in its order, judged at its end by the checkers, as in ``test_ray_up``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.hosts import missing
from tests.cluster.ray_hosts import PORT, RayHosts
from tests.cluster.traffic import Traffic

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(900),
]
COUNT = 6
LATER = 1
OPTIONS = ("--replicas", "4")
KINDS = ("replicas", "shards", "gateways")


def hosts_of(status: dict[str, Any]) -> dict[str, list[str]]:
    """Of each kind the hosts, with those twice that have two."""
    return {kind: sorted(actor["host"] for actor in status[kind].values()) for kind in KINDS}


def holders(status: dict[str, Any]) -> set[str]:
    """The hosts of all members and of all owners."""
    slots, shards, replicas = status["slots"], status["shards"], status["replicas"]
    owners = {owner.rpartition(".")[0] for owner in slots["owners"].values()}
    members = {name for names in slots["members"].values() for name in names}
    return {shards[name]["host"] for name in owners} | {replicas[name]["host"] for name in members}


def test_a_new_host_gets_its_share(cluster: RayHosts, traffic: Traffic) -> None:
    cluster.until_healthy()
    host = cluster.later.pop()
    with traffic.watching(f"{host.name} joins"):
        cluster.start_ray(host)
        command = "im-actors scale --replicas 5 --shards 5 --gateways 5 --json"
        done = json.loads(cluster.on_head(command, 300))
        cluster.data.append(host)
    assert not done["busy"]
    cluster.until_healthy()
    status = cluster.status()
    data = sorted(host.address for host in cluster.data)
    assert hosts_of(status) == dict.fromkeys(KINDS, data), "each has one of each kind"
    assert host.address in holders(status)
    assert host.listens(PORT)


def test_a_drained_host_is_taken_out(cluster: RayHosts, traffic: Traffic) -> None:
    host = cluster.data[0]
    with traffic.watching(f"{host.name} is drained"):
        done = json.loads(cluster.on_head(f"im-actors drain {host.address} --json", 300))
    assert not done["busy"]
    drained = cluster.status()
    assert host.address not in holders(drained)
    with traffic.watching(f"{host.name} is taken out"):
        cluster.data.remove(host)
        host.ssh(f". {cluster.hosts.mount}/host.env && ray stop")
        host.kill()
        cluster.wait(lambda: host.address not in cluster.ray_hosts(), 120)
    print(f"healthy {cluster.until_healthy():.0f} s after {host.name} was switched off")
    status = cluster.status()
    assert status["slots"]["epochs"] == drained["slots"]["epochs"], "nobody missed it"
    left = hosts_of(status)
    data = sorted(host.address for host in cluster.data)
    assert left["replicas"] == data
    assert set(left["shards"]) == set(left["gateways"]) == set(data)


def test_a_cold_start_knows_the_hosts_that_are_left(cluster: RayHosts, traffic: Traffic) -> None:
    def restart() -> None:
        cluster.on_head("im-actors down", 120)
        print(cluster.up()[1])

    traffic.hit("down and up", "all actors", restart)
    assert set().union(*hosts_of(cluster.status()).values()) == {h.address for h in cluster.data}
    cluster.until_healthy()


def test_nothing_was_lost_doubled_or_out_of_order(cluster: RayHosts, traffic: Traffic) -> None:
    cluster.judge(traffic)
