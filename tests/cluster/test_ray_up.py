"""``ray up`` with the shipped file and one command, and what five hosts then live through.

The tests are one story and run in its order: a cluster comes up, is used from outside, is brought
up again, loses hosts and links while clients write and read, loses all power, and comes back. In
the end the checkers of ``im_actors/proof`` read what clients saw and what the disks hold.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.cluster.hosts import missing
from tests.cluster.ray_hosts import CLUSTER, PORT, ROOT, RayHosts
from tests.cluster.traffic import Traffic

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(900),
]
COUNT = 5
OPTIONS = ("--replicas", "4")
TEXTS = [f"line {n}" for n in range(100)]


def test_one_replica_for_each_disk_and_the_head_without(cluster: RayHosts) -> None:
    cluster.until_healthy()
    status = cluster.status()
    hosts_of = {
        kind: sorted(actor["host"] for actor in status[kind].values())
        for kind in ("replicas", "shards", "gateways")
    }
    data = sorted(host.address for host in cluster.data)
    assert hosts_of == {"replicas": data, "shards": data, "gateways": data}
    assert [host for host in cluster.hosts.all if host.listens(PORT)] == cluster.data
    host_of = {name: replica["host"] for name, replica in status["replicas"].items()}
    for members in status["slots"]["members"].values():
        assert len({host_of[member] for member in members}) == 3
    used = {member for members in status["slots"]["members"].values() for member in members}
    assert used == set(host_of), "every disk holds its share"
    assert not list((cluster.head.disk / "data").glob("replica-*"))
    for host in cluster.data:
        assert len(list((host.disk / "data").glob("replica-*"))) == 1


def drive(cluster: RayHosts, script: str, user: str, *argv: str, text: str = "") -> str:
    """A driver script, outside of all hosts."""
    done = subprocess.run(
        [sys.executable, CLUSTER / "drivers" / script, cluster.url, user, *argv],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "IM_ACTORS_TOKEN": cluster.token(user)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_used_from_outside(cluster: RayHosts) -> None:
    sent = drive(cluster, "send.py", "alice", "drivers", text="\n".join(TEXTS))
    assert sent.splitlines() == [f"drivers {n}" for n in range(1, 101)]
    received = drive(cluster, "receive.py", "bob", "drivers", "100")
    assert [json.loads(line)["text"] for line in received.splitlines()] == TEXTS


def test_up_again_does_no_harm(cluster: RayHosts, traffic: Traffic) -> None:
    before = cluster.status()
    answer, said = cluster.up(*OPTIONS)
    assert answer["url"] == cluster.url
    assert "already runs" in said
    cluster.ray_up("--no-restart")
    answer, said = cluster.up()
    assert "already runs" in said
    after = cluster.status()
    assert after["healthy"]
    assert after["starts"] == before["starts"]
    assert after["slots"]["epochs"] == before["slots"]["epochs"]


def test_a_killed_host(cluster: RayHosts, traffic: Traffic) -> None:
    host = cluster.data[0]
    traffic.hit("kill", host.name, host.kill)
    host.start()
    # The disk of the first one is the spare then that the second one needs.
    print(f"healthy {cluster.until_healthy():.0f} s after {host.name} was switched on again")


def test_a_host_is_lost_with_its_disk(cluster: RayHosts, traffic: Traffic) -> None:
    host = cluster.data[1]

    def lose() -> None:
        host.kill()
        host.lose_disk()

    traffic.hit("lose disk", host.name, lose)
    cluster.until_copied()
    print("three copies again")
    host.start()
    cluster.prepare(host)
    print(f"healthy {cluster.until_healthy():.0f} s after {host.name} was back with an empty disk")


@pytest.mark.parametrize("way", ["both ways", "outgoing", "incoming"])
def test_a_host_that_is_cut_off(cluster: RayHosts, traffic: Traffic, way: str) -> None:
    host = cluster.data[("both ways", "outgoing", "incoming").index(way) + 1]

    def cut() -> None:
        if way == "both ways":
            host.cut()
        else:
            host.cut_one_way(way == "outgoing")

    try:
        traffic.hit(f"cut {way}", host.name, cut)
        if way == "both ways":
            # Ray gives it up, and ends what runs on it as soon as it hears of it.
            cluster.wait(lambda: host.address not in cluster.ray_hosts(), 120)
    finally:
        host.heal()
    print(f"healthy {cluster.until_healthy():.0f} s after {host.name} was healed")


def test_ray_up_with_a_restart_is_a_cold_start(cluster: RayHosts, traffic: Traffic) -> None:
    def restart() -> None:
        cluster.ray_up()
        print(cluster.up(*OPTIONS)[1])

    traffic.hit("ray up", "all hosts", restart)
    cluster.until_healthy()


def test_all_power_is_lost(cluster: RayHosts, traffic: Traffic) -> None:
    def power() -> None:
        for host in cluster.hosts.all:
            host.kill()
        for host in cluster.hosts.all:
            host.start()
        cluster.ray_up()
        print(cluster.up()[1])

    traffic.hit("power off", "all hosts", power)
    assert len(cluster.status()["replicas"]) == 4, "up knows without being told how many there were"
    cluster.until_healthy()


def test_nothing_was_lost_doubled_or_out_of_order(cluster: RayHosts, traffic: Traffic) -> None:
    traffic.adopt("drivers", TEXTS)
    cluster.judge(traffic)
