"""A whole cluster in one process, whose gateway has all tiers and little memory.

    python -m bench.mailbox.tiered DATA REDIS_URL ROWS

It prints one line of JSON when it serves, with its address, and one for each line that it reads:
``delay MS`` lets each call of the warm tier wait so long, ``metrics`` tells what the mailboxes have
counted. It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from im_actors.gateway import user_side
from im_actors.gateway.config import GatewayConfig
from im_actors.mailbox.rows import Change, Copy, Listing, Place
from im_actors.mailbox.tiers import Put, Tier
from im_actors.testing import LocalCluster

WARM = "sqlite"
SLOTS = 64


class SlowTier:
    """A tier, each of whose calls begins late."""

    delay_s = 0.0

    def __init__(self, tier: Tier) -> None:
        self.name = tier.name
        self._tier = tier

    async def first_page(self, user: str, limit: int, at_least: int) -> Copy | None:
        await asyncio.sleep(self.delay_s)
        return await self._tier.first_page(user, limit, at_least)

    async def page(self, user: str, after: Place, limit: int, at_least: int) -> Copy | None:
        await asyncio.sleep(self.delay_s)
        return await self._tier.page(user, after, limit, at_least)

    async def whole(self, user: str, listing: Listing, at_least: int) -> Copy | None:
        await asyncio.sleep(self.delay_s)
        return await self._tier.whole(user, listing, at_least)

    async def rows(self, user: str, sessions: Sequence[str], at_least: int) -> Copy | None:
        await asyncio.sleep(self.delay_s)
        return await self._tier.rows(user, sessions, at_least)

    async def put(self, user: str, update: Change | Copy) -> Put:
        await asyncio.sleep(self.delay_s)
        return await self._tier.put(user, update)

    async def drop(self, user: str) -> None:
        await asyncio.sleep(self.delay_s)
        await self._tier.drop(user)

    async def close(self) -> None:
        await self._tier.close()


async def serve(data: Path, redis: str, rows: int) -> None:
    slow: list[SlowTier] = []
    near_tiers = user_side._near_tiers

    def tiers(name: str, config: GatewayConfig) -> list[Tier]:
        found: list[Tier] = []
        for tier in near_tiers(name, config):
            if tier.name == WARM:
                slow.append(SlowTier(tier))
                tier = slow[-1]
            found.append(tier)
        return found

    gateway = GatewayConfig(
        mailbox_redis=redis, mailbox_dir=str(data / "warm"), mailbox_rows_max=rows
    )
    with mock.patch.object(user_side, "_near_tiers", tiers):
        async with LocalCluster(data, slots=SLOTS, gateway=gateway) as cluster:
            [address] = cluster.controller.running("gateway")
            say(["127.0.0.1", address.port])
            while line := await asyncio.to_thread(sys.stdin.readline):
                word, *numbers = line.split()
                if word == "delay":
                    (slow[-1].delay_s,) = (int(number) / 1_000 for number in numbers)
                    say(None)
                else:
                    counts = cluster.node("gateway-1").status()["mailboxes"]
                    say({**counts, "cpu_us": time.process_time_ns() // 1_000})


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
