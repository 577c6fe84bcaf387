"""One round of the attack on a cluster; ``python -m tests.fuzz --target gateway`` goes on with it.

A failure prints its seed: ``python -m tests.fuzz --target gateway --seconds 1 --seed SEED``.
"""

from __future__ import annotations

import random

import pytest

from im_actors.testing import LocalCluster
from tests.fuzz import doors, gateway, server
from tests.fuzz.complaints import Complaints


@pytest.mark.slow
async def test_a_gateway_outlives_what_clients_should_not_do() -> None:
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    with Complaints().listening() as complaints:
        async with gateway.attacked_cluster() as cluster:
            await gateway.one_round(cluster, seed, len(gateway.ATTACKS) + 6)
            status = cluster.node("gateway-1").status()
            assert status["violations"] > 5
            assert status["acked"] > gateway.HONEST_SENDS
            assert status["pulls_failed"] > 0
    assert not complaints.found


async def test_strangers_change_nothing_at_the_doors_of_actors() -> None:
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    with Complaints().listening() as complaints:
        async with gateway.attacked_cluster() as cluster:
            await doors.one_round(cluster, seed, 90)
    assert not complaints.found


@pytest.mark.slow
async def test_a_client_outlives_a_server_that_lies() -> None:
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}: python -m tests.fuzz --target server --seconds 0 --seed {seed}")
    with Complaints().listening() as complaints:
        async with LocalCluster(slots=2) as cluster:
            await server.one_round(cluster, seed)
    assert not complaints.found
