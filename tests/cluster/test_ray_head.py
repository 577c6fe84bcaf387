"""The head is lost under traffic, with what Ray and the views need to know in a Redis elsewhere.

One story in its order, judged at its end by the checkers, as in ``test_ray_up``. What happens
without a Redis is in ``test_ray_links``.
"""

from __future__ import annotations

import shutil

import pytest

from tests.cluster.hosts import missing
from tests.cluster.ray_hosts import RayHosts
from tests.cluster.traffic import Traffic

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is missing"),
    pytest.mark.timeout(900),
]
COUNT = 5
REDIS = True
OPTIONS = ("--replicas", "3")
WITHOUT_HEAD = 4000
"""Messages that have to be ACKed meanwhile: at 40 a second longer than Ray waits by default."""


def test_the_cluster_goes_on_without_its_head(cluster: RayHosts, traffic: Traffic) -> None:
    cluster.until_settled()
    before = cluster.status()
    backup = cluster.hosts.folder / "backup"
    shutil.copytree(cluster.head.disk, backup, ignore=shutil.ignore_patterns("logs", "up.lock"))
    cluster.head.kill()
    cluster.head.lose_disk()
    traffic.some("the head is lost", WITHOUT_HEAD)
    shutil.copytree(backup, cluster.head.disk)
    cluster.head.start()
    with traffic.watching("a new head takes over"):
        cluster.start_ray_on_head()
        print(f"healthy {cluster.until_healthy():.0f} s after Ray was started on the new head")
    after = cluster.status()
    assert after["slots"]["epochs"] == before["slots"]["epochs"], "nothing changed hands"


def test_the_new_head_does_its_work(cluster: RayHosts, traffic: Traffic) -> None:
    host = cluster.data[0]
    # Of the processes of this host only: it has its own.
    command = "kill -9 $(pgrep -f ^ray::ShardActor)"
    traffic.hit("kill shard", host.name, lambda: host.ssh(command))
    print(f"healthy {cluster.until_healthy():.0f} s after it")


def test_nothing_was_lost_doubled_or_out_of_order(cluster: RayHosts, traffic: Traffic) -> None:
    cluster.judge(traffic)
