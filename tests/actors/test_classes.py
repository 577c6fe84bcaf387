"""The actor classes as plain classes: no test here needs Ray, and none can reach it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from im_actors.actors import classes
from im_actors.actors.classes import Actor, GatewayActor, ReplicaActor
from im_actors.actors.processes import free_port
from im_actors.actors.settings import ActorSettings
from im_actors.core.directory import GatewayAddress
from im_actors.errors import BadRequest, SetupError, ShuttingDown, WrongDirectory
from im_actors.server import controller


class NoRay(types.ModuleType):
    """Stands in for Ray where none may be called."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"ray.{name} was used")


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", NoRay("ray"))
    monkeypatch.delitem(sys.modules, "im_actors.actors.ray_api", raising=False)


@pytest.fixture
def settings(tmp_path: Path) -> ActorSettings:
    return ActorSettings(
        cluster="c",
        secret="00" * 32,
        slots=4,
        data=str(tmp_path),
        shards=1,
        replicas=3,
        gateways=1,
        host="127.0.0.1",
        port=free_port("127.0.0.1"),
        inside_address="127.0.0.1",
    )


class Node:
    stopped = False

    async def stop(self) -> None:
        self.stopped = True

    def status(self) -> dict[str, Any]:
        return {"name": "x"}


class SlowActor(Actor):
    """Counts how often it is opened; fails as often as ``errors`` has something."""

    opened = 0
    errors: list[Exception]

    async def _open(self, view_store: str) -> Any:
        self.opened += 1
        await asyncio.sleep(0.01)
        if self.errors:
            raise self.errors.pop()
        self._node = Node()
        return f"address {self.opened}"


@pytest.fixture
def actor(settings: ActorSettings) -> SlowActor:
    actor = SlowActor(settings, "x-1")
    actor.errors = []
    return actor


def test_actors_have_every_method_that_the_controller_calls() -> None:
    """A cluster in one process would find them on the nodes, whether or not actors pass them on."""
    called: set[str] = set()
    for path in Path(controller.__file__).parent.glob("*.py"):
        text = path.read_text()
        called |= set(re.findall(r'\bcall(?:_all)?\(\s*[\w.]+, "(\w+)"', text))
        called |= set(re.findall(r'\bcall_all\(\s*"\w+", "(\w+)"', text))
    assert {"take", "change_members", "directory", "ping", "status"} <= called
    kinds = classes.KINDS.values()
    assert not {name for name in called if not any(hasattr(kind, name) for kind in kinds)}


async def test_start_is_shared_and_repeatable(actor: SlowActor) -> None:
    first, second = await asyncio.gather(actor.start(), actor.start())
    assert first == second == await actor.start()
    assert first.address == "address 1"
    assert first.pid == os.getpid()
    assert actor.opened == 1


async def test_who_gives_up_waiting_does_not_end_the_start(actor: SlowActor) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(actor.start(), 0.001)
    assert (await actor.start()).address == "address 1"
    assert actor.opened == 1


async def test_a_failed_start_is_told_to_all_and_can_be_tried_again(actor: SlowActor) -> None:
    actor.errors = [SetupError("no")]
    results = await asyncio.gather(actor.start(), actor.start(), return_exceptions=True)
    assert all(isinstance(result, SetupError) for result in results)
    assert (await actor.start()).address == "address 2"


async def test_before_its_start_it_answers_nothing(actor: SlowActor) -> None:
    """A process that Ray has restarted must not pass for one that serves."""
    for call in (actor.ping(), actor.status()):
        with pytest.raises(ShuttingDown):
            await call
    await actor.start()
    await actor.ping()
    assert (await actor.status())["pid"] == os.getpid()
    node = actor._node
    await actor.stop()
    assert node.stopped
    with pytest.raises(ShuttingDown):
        await actor.ping()
    await actor.stop()


async def test_live_hangs_for_this_life_and_one_caller(actor: SlowActor) -> None:
    life = (await actor.start()).life
    assert "again" in await actor.live("an earlier life")
    first = asyncio.ensure_future(actor.live(life))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(actor.live(life))
    assert await first == "another one watches"
    await asyncio.sleep(0.01)
    assert not second.done()
    second.cancel()


async def test_an_unknown_fault_is_refused(actor: SlowActor) -> None:
    with pytest.raises(BadRequest):
        await actor.fault("explode")


async def test_faults_are_signals_to_itself(
    actor: SlowActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(classes.os, "kill", lambda pid, number: sent.append((pid, number)))
    await actor.fault("kill")
    assert sent == [], "the answer leaves first"
    await asyncio.sleep(5 * classes.FAULT_DELAY_S)
    assert sent == [(os.getpid(), 9)]


async def test_a_gateway_listens_where_it_is_told(settings: ActorSettings) -> None:
    gateway = GatewayActor(settings, "gateway-1")
    started = await gateway.start()
    assert started.address == GatewayAddress("gateway-1", "127.0.0.1", settings.port)
    other = GatewayActor(settings, "gateway-2")
    assert (await other.start()).address.port == settings.port, "they share the port"
    await gateway.stop()
    await other.stop()


async def test_a_replica_whose_start_fails_ends_its_process(
    settings: ActorSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(classes.os, "_exit", ended.append)
    monkeypatch.setattr(classes, "EXIT_DELAY_S", 0.0)
    first, second = ReplicaActor(settings, "replica-1"), ReplicaActor(settings, "replica-1")
    await first.start()
    with pytest.raises(WrongDirectory):
        await second.start()
    await asyncio.sleep(0.01)
    assert ended == [1]
    assert await first.story(0) == []
    assert (await first.report())["replica"] == "replica-1"
    told = await first.positions()
    assert (told["name"], told["address"], told["slots"]) == ("replica-1", "127.0.0.1", {})
    await first.stop()
