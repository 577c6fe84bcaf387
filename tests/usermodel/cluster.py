"""The cluster under the model: actors that are killed, tiers that are lost, slow and old."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

from im_actors.core.batch_run import BatchSettings, ChannelSettings
from im_actors.core.owner import OwnerSettings
from im_actors.core.rule_settings import RuleSettings
from im_actors.gateway import GatewayConfig
from im_actors.testing import LocalCluster
from tests.support_redis import SAFE, RedisServer

SERVICE = "shop"
SLOW_S = 2.0
TIERS = ("redis", "sqlite")
RULES = RuleSettings(recall_ms=0, edit_ms=0, services=frozenset({SERVICE}))
OWNER = OwnerSettings(replace_after_ms=600, seal_wait_ms=200)
BATCHES = BatchSettings(high=ChannelSettings(800, 64), answer_ms=500, read_ms=500)
DUMPS_MAX = 8


class Slow:
    """A tier whose answers come late."""

    def __init__(self, tier: Any, delay_s: float) -> None:
        self.tier = tier
        self.name = tier.name
        self._delay_s = delay_s

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def late(*args: Any) -> Any:
            await asyncio.sleep(self._delay_s)
            return await getattr(self.tier, name)(*args)

        return late


class Faulty:
    """A LocalCluster with all tiers, and what can befall it. ``heal`` ends what lasts."""

    def __init__(self, directory: Path, rng: Random, gateways: int = 2) -> None:
        self._rng = rng
        self.redis: RedisServer | None = None
        if shutil.which("redis-server"):
            self.redis = RedisServer(directory / "redis", {**SAFE, "appendfsync": "no"})
        config = GatewayConfig(
            mailbox_redis=self.redis.url if self.redis else "",
            mailbox_dir=str(directory / "warm"),
        )
        self.local = LocalCluster(
            directory / "data",
            replicas=4,
            gateways=gateways,
            gateway=config,
            owner=OWNER,
            rules=RULES,
            batches=BATCHES,
            seed=rng.randrange(1 << 30),
        )
        self._gateways = [f"gateway-{n}" for n in range(1, gateways + 1)]
        self._actors = ["shard-1", "shard-2", *(f"replica-{n}" for n in range(1, 5))]
        self._actors += self._gateways
        self._old: dict[bytes, bytes] = {}
        self._redis_is = "up"
        self.done: list[str] = []

    async def __aenter__(self) -> Faulty:
        if self.redis is not None:
            await asyncio.to_thread(self.redis.start)
        await self.local.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self.heal()
            await self.local.__aexit__(*exc)
        finally:
            if self.redis is not None:
                self.redis.kill()

    @property
    def url(self) -> str:
        return self.local.url

    # ---- faults

    async def fault(self, kinds: tuple[str, ...]) -> str:
        """One of these kinds: kill, redis, warm, forget."""
        text: str = await getattr(self, f"_{self._rng.choice(kinds)}")()
        self.done.append(text)
        return text

    async def _kill(self) -> str:
        name = self._rng.choice(self._actors)
        await self.local.crash(name)
        return f"kill {name}"

    async def _forget(self) -> str:
        """Views in memory are dropped, or cut back, as when memory is short."""
        rows = self._rng.choice((None, 0, 1, 3))
        for view in self._mailboxes():
            for user in list(view.views._views):
                if rows is None:
                    view.views.drop(user)
                else:
                    view.views.get(user).trim(rows)
                    view.views.settle(user)
        return f"forget all but {rows} rows"

    async def _warm(self) -> str:
        if self._end_slowness("sqlite"):
            return "the warm tier is as fast as before"
        return self._slow("sqlite")

    async def _redis(self) -> str:
        if self.redis is None:
            return await self._warm()
        if self._redis_is != "up" or self._end_slowness("redis"):
            await self._heal_redis()
            return "redis is there again"
        what = self._rng.choice(
            ("kill", "pause", "empty", "wipe", "slow", "stale", "stale", "torn")
        )
        return await getattr(self, f"_redis_{what}")(self.redis)

    async def _redis_kill(self, redis: RedisServer) -> str:
        redis.kill()
        self._redis_is = "killed"
        return "redis is killed"

    async def _redis_pause(self, redis: RedisServer) -> str:
        redis.pause()
        self._redis_is = "paused"
        return "redis hangs"

    async def _redis_empty(self, redis: RedisServer) -> str:
        redis.command("FLUSHALL")
        return "redis is emptied"

    async def _redis_wipe(self, redis: RedisServer) -> str:
        redis.kill()
        redis.wipe()
        await asyncio.to_thread(redis.start)
        return "redis is restarted empty"

    async def _redis_slow(self, redis: RedisServer) -> str:
        return self._slow("redis")

    async def _redis_torn(self, redis: RedisServer) -> str:
        """Single keys of users are lost, as when memory is short."""
        from redis import Redis

        with Redis.from_url(redis.url) as client:
            keys = sorted(client.keys("*"))
            lost = [key for key in keys if self._rng.random() < 0.3]
            if lost:
                client.delete(*lost)
        return f"redis loses {len(lost)} of {len(keys)} keys"

    async def _redis_stale(self, redis: RedisServer) -> str:
        """What it held some time ago is back, or kept for that."""
        from redis import Redis

        with Redis.from_url(redis.url) as client:
            if self._old and self._rng.random() < 0.6:
                for key, value in self._old.items():
                    client.restore(key, 0, value, replace=True)
                text = f"redis has {len(self._old)} keys of former times"
                self._old = {}
                return text
            self._old = {key: client.dump(key) for key in client.keys("*")}
        return f"{len(self._old)} keys of redis are put aside"

    def _slow(self, name: str) -> str:
        for mailboxes in self._mailboxes():
            for guard in mailboxes.hedge.guards:
                if guard.tier.name == name and not isinstance(guard.tier, Slow):
                    guard.tier = Slow(guard.tier, SLOW_S)
        return f"the {name} tier takes {SLOW_S} s"

    def _end_slowness(self, name: str) -> bool:
        slow = False
        for mailboxes in self._mailboxes():
            for guard in mailboxes.hedge.guards:
                if guard.tier.name == name and isinstance(guard.tier, Slow):
                    guard.tier, slow = guard.tier.tier, True
        return slow

    def _mailboxes(self) -> list[Any]:
        nodes = [self.local._instances.get(name) for name in self._gateways]
        return [i.node.user_side.mailboxes for i in nodes if i is not None and not i.gone.is_set()]

    async def _heal_redis(self) -> None:
        if self.redis is None or self._redis_is == "up":
            return
        if self._redis_is == "killed":
            await asyncio.to_thread(self.redis.start)
        else:
            self.redis.resume()
        self._redis_is = "up"

    async def heal(self) -> None:
        await self._heal_redis()
        for name in TIERS:
            self._end_slowness(name)
