"""The views in a real Redis server: it may go away, and must not come back empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from im_actors.client import Client
from im_actors.errors import RolledBack
from im_actors.testing import LocalCluster
from tests.support_redis import MakeRedis


async def test_traffic_goes_on_while_redis_is_down_and_takeovers_after_it(
    tmp_path: Path, make_redis: MakeRedis
) -> None:
    redis = make_redis()
    async with (
        LocalCluster(tmp_path, redis=redis.url) as cluster,
        Client(cluster.url, user="alice") as alice,
    ):
        assert (await (await alice.send("team", "before")).acked()).seq == 1
        redis.kill()
        assert (await (await alice.send("team", "without Redis")).acked(timeout=60)).seq == 2
        await cluster.crash("shard-1")
        await cluster.crash("shard-2")
        waiting = await alice.send("team", "nobody can own the slot now")
        redis.start()
        assert (await waiting.acked(timeout=30)).seq == 3


async def test_a_redis_that_came_back_empty_is_refused(
    tmp_path: Path, make_redis: MakeRedis
) -> None:
    redis = make_redis()
    async with (
        LocalCluster(tmp_path, redis=redis.url) as cluster,
        Client(cluster.url, user="alice") as alice,
    ):
        assert (await (await alice.send("team", "before")).acked()).seq == 1
    redis.kill()
    redis.wipe()
    redis.start()
    with pytest.raises(RolledBack):
        async with LocalCluster(tmp_path, redis=redis.url):
            pass
