"""The controller brings actors up, tells them of each other, and hands slots to shards that run."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from im_actors.core.directory import Directory, GatewayAddress, ReplicaAddress, ShardAddress
from im_actors.core.model import View, ViewState
from im_actors.errors import NotReachable
from im_actors.server.controller import ControllerConfig, ControllerNode, Desired

SLOTS = 6
FAST = ControllerConfig(ping_every_ms=10, reconcile_every_ms=10, settle_ms=50, restart_ms_min=1)
IMPATIENT = replace(FAST, silent_after_ms=200)
WAIT_S = 60


class Store:
    """A view store in a dict."""

    identity = "store"

    def __init__(self) -> None:
        self.views: dict[int, View] = {}
        self.broken = False

    async def read(self, slot: int) -> View | None:
        return self.views.get(slot)

    async def read_all(self) -> dict[int, View]:
        if self.broken:
            raise NotReachable("the store is down")
        return dict(self.views)

    async def create(self, view: View) -> View:
        return self.views.setdefault(view.slot, view)

    async def swap(self, old: View, new: View) -> View:
        if self.views[old.slot] == old:
            self.views[old.slot] = new
        return self.views[old.slot]

    async def close(self) -> None:
        pass


class Platform:
    """Actors that are names; a shard serves what it is told to take, at once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.controller: ControllerNode
        self.lives: dict[str, int] = {}
        self.down: dict[str, asyncio.Event] = {}
        self.broken: set[str] = set()
        self.silent: set[str] = set()
        self.late: dict[str, asyncio.Event] = {}
        self.pinged: Counter[str] = Counter()
        self.taken: list[tuple[str, tuple[int, ...], str]] = []
        self.directories: dict[str, Directory] = {}

    async def start(self, desired: Desired) -> Any:
        kind, name = desired
        if name in self.late:
            await self.late[name].wait()
        if name in self.broken or name in self.silent:
            raise NotReachable(f"{name} is broken")
        self.lives[name] = self.lives.get(name, 0) + 1
        self.down[name] = asyncio.Event()
        if kind == "replica":
            return ReplicaAddress(name, f"{name}-disk", f"host-{name}", "127.0.0.1", 1)
        if kind == "shard":
            return ShardAddress(name, f"{name}.{self.lives[name]}", "127.0.0.1", 1)
        return GatewayAddress(name, "127.0.0.1", 1)

    async def wait_down(self, name: str) -> str:
        await self.down[name].wait()
        return "killed"

    async def call(self, name: str, method: str, *args: Any) -> Any:
        if name in self.silent:
            await asyncio.Event().wait()
        if method == "ping":
            self.pinged[name] += 1
        if method == "directory":
            self.directories[name] = args[0]
        if method == "take":
            self.take(name, *args)
        return {"name": name} if method == "status" else None

    def take(self, name: str, slots: list[int], reason: str) -> None:
        self.taken.append((name, tuple(slots), reason))
        for slot in slots:
            old = self.store.views[slot]
            owner = f"{name}.{self.lives[name]}"
            view = View(slot, old.epoch + 1, ViewState.ACTIVE, owner, old.members)
            self.store.views[slot] = view
            self.controller.activated(view)


def desired(shards: int = 2, replicas: int = 3) -> list[Desired]:
    return [
        *(Desired("replica", f"replica-{n}") for n in range(1, replicas + 1)),
        *(Desired("shard", f"shard-{n}") for n in range(1, shards + 1)),
        Desired("gateway", "gateway-1"),
    ]


@asynccontextmanager
async def running(
    platform: Platform,
    wanted: list[Desired] | None = None,
    config: ControllerConfig = FAST,
    shards: int | None = None,
) -> AsyncIterator[ControllerNode]:
    node = ControllerNode(SLOTS, wanted or desired(), platform, platform.store, config, shards)
    platform.controller = node
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def platform() -> Platform:
    return Platform(Store())


def owners(platform: Platform) -> set[str]:
    return {view.owner for view in platform.store.views.values()}


async def test_a_first_start_places_every_slot_on_three_replicas(platform: Platform) -> None:
    async with running(platform) as node:
        await node.wait_serving()
        assert owners(platform) <= {"shard-1.1", "shard-2.1"}
        for view in platform.store.views.values():
            assert len({member.replica for member in view.members}) == 3


async def test_everybody_hears_of_everybody(platform: Platform) -> None:
    async with running(platform) as node:
        await node.wait_serving()
        latest = node.directory()[1:]
        names = [actor.name for actor in desired()]
        await until(lambda: all(platform.directories[n][1:] == latest for n in names))


async def test_a_controller_is_heard_again_after_a_later_one_is_gone(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(time=lambda: clock.now_s, monotonic=time.monotonic, now_s=1_000.0)
    monkeypatch.setattr("im_actors.server.controller.time", clock)
    async with running(platform) as node:
        await node.wait_serving()
        clock.now_s += 60
        async with running(platform) as later:
            await later.wait_serving()
        heard = platform.directories["gateway-1"].version
        clock.now_s += 1
        node.activated(node.directory().views[0]._replace(epoch=9))
        await until(lambda: platform.directories["gateway-1"].version > heard)


async def test_slots_of_a_dead_shard_go_to_the_others_and_it_is_started_again(
    platform: Platform,
) -> None:
    async with running(platform) as node:
        await node.wait_serving()
        platform.broken.add("shard-1")
        platform.down["shard-1"].set()
        await until(lambda: owners(platform) == {"shard-2.1"})
        platform.broken.clear()
        await until(lambda: platform.lives["shard-1"] == 2)


async def test_slots_move_back_little_by_little_once_a_shard_has_settled(
    platform: Platform,
) -> None:
    async with running(platform) as node:
        await node.wait_serving()
        before = {slot: view.owner for slot, view in platform.store.views.items()}
        platform.down["shard-1"].set()
        expected = {slot: owner.replace("shard-1.1", "shard-1.2") for slot, owner in before.items()}
        await until(
            lambda: (
                {s: v.owner for s, v in platform.store.views.items()} == expected
                and node.starts["shard-1"] == 2
            )
        )


async def test_a_shard_that_stands_by_takes_over_at_once_and_keeps_what_it_has(
    platform: Platform,
) -> None:
    async with running(platform, shards=1) as node:
        await node.wait_serving()
        (first,) = owners(platform)
        name = first.partition(".")[0]
        other = ({"shard-1", "shard-2"} - {name}).pop()
        platform.broken.add(name)
        platform.down[name].set()
        await until(lambda: owners(platform) == {f"{other}.1"})
        platform.broken.clear()
        await until(lambda: name in node.running_names()["shard"])
        # Longer than a planned move takes to begin: who has come back stands by.
        taken = len(platform.taken)
        served = node._observed[name].since + 3 * FAST.settle_ms / 1000
        await until(lambda: time.monotonic() > served)
        assert owners(platform) == {f"{other}.1"}
        assert len(platform.taken) == taken


async def test_a_later_controller_leaves_the_slots_where_they_are(platform: Platform) -> None:
    async with running(platform, shards=1) as node:
        await node.wait_serving()
        (first,) = owners(platform)
        before = len(platform.taken)
    platform.lives = {name: life - 1 for name, life in platform.lives.items()}
    owner = first.partition(".")[0]
    platform.late[owner] = asyncio.Event()
    async with running(platform, shards=1) as node:
        await until(lambda: len(node.running("shard")) == 1)
        await node._reconcile()
        platform.late[owner].set()
        await node.wait_serving()
        assert owners(platform) == {first}
        assert len(platform.taken) == before


async def test_a_controller_that_was_cut_off_leaves_the_slots_where_they_are(
    platform: Platform,
) -> None:
    """It sees the shards again one after the other, and they have served all the time."""
    config = replace(FAST, gather_ms=0)
    async with running(platform, config=config) as node:
        await node.wait_serving()
        before, taken = dict(platform.store.views), len(platform.taken)
        platform.silent.update(platform.lives)
        await until(lambda: not node.running("shard"))
        platform.lives = {name: life - 1 for name, life in platform.lives.items()}
        platform.late["shard-2"] = asyncio.Event()
        platform.silent.clear()
        await until(lambda: len(node.running("shard")) == 1)
        await node._reconcile()
        platform.late["shard-2"].set()
        await node.wait_serving()
        assert platform.store.views == before
        assert len(platform.taken) == taken


async def test_a_shard_that_stays_away_longer_than_the_others_loses_its_slots(
    platform: Platform,
) -> None:
    config = replace(FAST, gather_ms=0, regain_ms=20)
    async with running(platform, config=config) as node:
        await node.wait_serving()
        platform.silent.update(platform.lives)
        await until(lambda: not node.running("shard"))
        platform.late["shard-2"] = asyncio.Event()
        platform.silent.clear()
        await until(lambda: owners(platform) == {"shard-1.2"})


async def test_a_shard_that_was_killed_is_not_waited_for(platform: Platform) -> None:
    async with running(platform) as node:
        await node.wait_serving()
        platform.silent.add("shard-2")
        await until(lambda: owners(platform) == {"shard-1.1"})
        platform.down["shard-1"].set()
        await until(lambda: owners(platform) == {"shard-1.2"})


async def test_a_silent_shard_is_treated_as_gone(platform: Platform) -> None:
    async with running(platform, config=IMPATIENT) as node:
        await node.wait_serving()
        platform.silent.add("shard-2")
        await until(lambda: {owner.partition(".")[0] for owner in owners(platform)} == {"shard-1"})


async def test_a_controller_that_stood_still_takes_nobody_for_gone(platform: Platform) -> None:
    async with running(platform, config=IMPATIENT) as node:
        await node.wait_serving()
        await until(lambda: len(platform.pinged) == len(desired()))
        time.sleep(2 * IMPATIENT.silent_after_ms / 1000)  # noqa: ASYNC251 (the loop stands)
        pinged = platform.pinged.copy()
        await until(lambda: all(platform.pinged[name] > pinged[name] + 1 for name in pinged))
        assert set(platform.lives.values()) == {1}


async def test_with_two_replicas_nothing_is_placed_and_status_says_why(platform: Platform) -> None:
    platform.broken.add("replica-3")
    async with running(platform) as node:
        await until(lambda: len(node.running("replica")) == 2)
        status = await node.status()
        assert not status["healthy"]
        assert status["slots"]["unhealthy"][0]["why"] == "waits for three replicas"
        assert "broken" in status["missing"]["replica-3"]


async def test_a_first_start_does_not_wait_for_ever_for_a_fourth_replica(
    platform: Platform,
) -> None:
    platform.broken.add("replica-4")
    config = ControllerConfig(reconcile_every_ms=10, first_start_ms=50)
    async with running(platform, desired(replicas=4), config) as node:
        await node.wait_serving()


async def test_a_member_that_is_down_stalls_its_slots_and_status_names_it(
    platform: Platform,
) -> None:
    async with running(platform) as node:
        await node.wait_serving()
        platform.broken.add("replica-2")
        platform.down["replica-2"].set()
        await until(lambda: "replica-2" not in node.running_names()["replica"])
        slots = (await node.status())["slots"]
        assert {slot["state"] for slot in slots["unhealthy"]} == {"stalled"}
        assert slots["unhealthy"][0]["why"] == "writes wait for replica-2"


async def test_a_view_store_out_of_reach_is_told_and_survived(platform: Platform) -> None:
    async with running(platform) as node:
        await node.wait_serving()
        platform.store.broken = True
        platform.broken.add("shard-1")
        platform.down["shard-1"].set()
        await until(lambda: node._troubles.get("view store") == "the store is down")
        platform.store.broken = False
        await until(lambda: owners(platform) == {"shard-2.1"})
        assert (await node.status())["view_store"] == "ok"
