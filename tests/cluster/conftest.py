"""What each story of this directory begins with: hosts, a cluster on them, and traffic.

A module says how many hosts it takes (``COUNT``), how many of them join later (``LATER``, 0 without
it), whether one of them has a Redis (``REDIS``) and what ``im-actors up`` is told (``OPTIONS``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.cluster.hosts import Hosts, hosts
from tests.cluster.ray_hosts import RayHosts
from tests.cluster.traffic import Traffic


@pytest.fixture(scope="module")
def seed() -> int:
    seed = int(os.environ.get("IM_ACTORS_SEED", "0")) or int(time.time())
    print(f"seed {seed}: IM_ACTORS_SEED={seed} draws the same again")
    return seed


@pytest.fixture(scope="module")
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hosts]:
    with hosts(tmp_path_factory.mktemp("up"), request.module.COUNT) as made:
        yield made


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, made: Hosts) -> RayHosts:
    module = request.module
    cluster = RayHosts(made, getattr(module, "LATER", 0), getattr(module, "REDIS", False))
    cluster.start(*request.module.OPTIONS)
    return cluster


@pytest.fixture(scope="module")
def traffic(cluster: RayHosts, seed: int) -> Iterator[Traffic]:
    traffic = Traffic(cluster.url, cluster.token, seed)
    traffic.start()
    traffic.wait(lambda: traffic.book.acked > 50, 60, "nothing is ACKed")
    yield traffic
    traffic.stop()
