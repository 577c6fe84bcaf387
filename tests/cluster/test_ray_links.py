"""A host with a bad link, a controller that is cut off, and a head that is lost with no Redis to
remember what it knew, while clients write and read.

One story in its order, judged at its end by the checkers, as in ``test_ray_up``.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.cluster.hosts import NO_CABLE, missing
from tests.cluster.ray_hosts import PORT, RayHosts
from tests.cluster.traffic import Traffic

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(900),
]
COUNT = 5
OPTIONS = ("--replicas", "4")
ENDED_S = 240.0


def changes(before: dict[str, Any], after: dict[str, Any]) -> int:
    """How many views have changed."""
    epochs = [sum(status["slots"]["epochs"].values()) for status in (before, after)]
    return epochs[1] - epochs[0]


@pytest.mark.skipif(bool(NO_CABLE), reason=NO_CABLE)
def test_a_slow_link(cluster: RayHosts, traffic: Traffic, seed: int) -> None:
    """As to another town, then with a loss that no good link has, then one across the world."""
    cluster.until_healthy()
    before = cluster.status()
    traffic.some("all links as they are")
    host = cluster.data[0]
    for delay_ms, jitter_ms, loss in ((20, 10, 0.0), (20, 10, 0.02), (150, 100, 0.01)):
        host.lengthen(delay_ms, jitter_ms, loss, seed)
        try:
            late = f"{delay_ms} to {delay_ms + jitter_ms} ms each way"
            traffic.some(f"{host.name} {late}, {loss:.0%} lost")
        finally:
            host.heal()
    took_s = cluster.until_healthy()
    print(f"healthy {took_s:.0f} s after it, {changes(before, cluster.status())} views changed")


def test_the_controller_is_cut_off_for_a_while(cluster: RayHosts, traffic: Traffic) -> None:
    """The others go on without it, and it leaves them as they are when it is back."""
    before = cluster.status()
    cluster.head.cut()
    try:
        traffic.some("the controller is cut off")
    finally:
        cluster.head.heal()
    print(f"healthy {cluster.until_healthy():.0f} s after it")
    assert changes(before, cluster.status()) == 0


def until_ended(cluster: RayHosts, traffic: Traffic) -> None:
    """Until Ray has given up its head, and has ended everything on the other hosts."""
    begun, acked = time.monotonic(), traffic.book.acked
    cluster.wait(lambda: not any(host.listens(PORT) for host in cluster.data), ENDED_S)
    last = max(entry.acked_s or 0.0 for entry in traffic.book.acked_entries)
    print(
        f"{traffic.book.acked - acked} ACKed in {last - begun:.0f} s without a head, then nothing;"
        f" all gateways have ended after {time.monotonic() - begun:.0f} s"
    )


def test_the_controller_is_cut_off_until_ray_gives_up(cluster: RayHosts, traffic: Traffic) -> None:
    """What Ray has ended, it starts again by itself."""
    cluster.head.cut()
    try:
        until_ended(cluster, traffic)
    except BaseException:
        cluster.head.heal()
        raise
    traffic.hit("cut until Ray gives up", cluster.head.name, cluster.head.heal)
    print(f"healthy {cluster.until_healthy():.0f} s after it")


def test_the_head_is_lost(cluster: RayHosts, traffic: Traffic) -> None:
    """A cold start from the disks."""
    cluster.head.kill()
    until_ended(cluster, traffic)

    def start() -> None:
        cluster.head.start()
        cluster.ray_up()
        print(cluster.up()[1])

    traffic.hit("head back", cluster.head.name, start)
    print(f"healthy {cluster.until_healthy():.0f} s after it")


def test_nothing_was_lost_doubled_or_out_of_order(cluster: RayHosts, traffic: Traffic) -> None:
    cluster.judge(traffic)
