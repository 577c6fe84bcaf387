"""A shard that stands still while others take its slots, and wakes up late."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


def test_a_paused_shard_commits_nothing_after_it_wakes_up(cluster: RayCluster) -> None:
    """It is stopped with sends under way; what it holds then must not appear afterwards."""
    sessions = [f"paused {n}" for n in range(16)]
    each = 120

    async def work() -> None:
        async with cluster.client("paula") as client:
            pid = (await cluster.ask("pids"))["shard-1"]
            sent = [await client.send(s, f"{n}") for n in range(each) for s in sessions]
            await asyncio.wait([asyncio.ensure_future(one.acked()) for one in sent[:200]])
            os.kill(pid, signal.SIGSTOP)
            try:
                # All of them are ACKed although one shard stands still: its slots have moved.
                await asyncio.gather(*(one.acked() for one in sent))
            finally:
                os.kill(pid, signal.SIGCONT)

    def slots_of(name: str) -> Any:
        return cluster.call("status")["shards"].get(name, {}).get("serving")

    cluster.within(work(), 60)
    # It is heard again, hears who owns its slots now, and serves only what it is given anew.
    cluster.wait(lambda: slots_of("shard-1") is not None)
    cluster.wait(lambda: bool(cluster.call("status")["healthy"]))
    for session in sessions:
        expected = [(n + 1, str(n)) for n in range(each)]
        assert cluster.history(session, each) == expected
    owned = [slot for name in ("shard-1", "shard-2") for slot in slots_of(name)]
    assert sorted(owned) == sorted(set(owned)), "two shards serve one slot"
    verdict = cluster.call("verify")
    assert verdict["ok"], verdict
