"""The shell of a shard, by itself."""

from __future__ import annotations

import asyncio
import random

from im_actors.core.model import View
from im_actors.server.shard import ShardNode


class NoViews:
    """A view store that never answers."""

    async def read(self, slot: int) -> View | None:
        await asyncio.Event().wait()

    async def swap(self, old: View, new: View) -> View:
        await asyncio.Event().wait()
        return new


async def test_a_stopped_shard_starts_no_timer_for_what_it_was_about_to_send() -> None:
    """A timer would wake its owners, and they would try to take their slots back."""
    node = ShardNode("shard-1", 4, bytes(16), NoViews(), random.Random(1), lambda view: None)
    await node.start("127.0.0.1")
    node.take([0], "test")
    await node.crash()
    for _ in range(5):
        await asyncio.sleep(0)
    assert node._timer is None
    assert node._hold_timer is None
