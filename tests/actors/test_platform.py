"""Starting, watching and calling actors, with a Ray that tests write themselves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from im_actors.actors import platform as module
from im_actors.actors.classes import GatewayActor
from im_actors.actors.platform import RayPlatform
from im_actors.actors.settings import ActorSettings, Started
from im_actors.core.directory import ReplicaAddress
from im_actors.errors import DiskFailed, NotReachable, SetupError
from im_actors.server.controller import Desired

GATEWAY = Desired("gateway", "gateway-1")
REPLICA = Desired("replica", "replica-1")
SETTINGS = ActorSettings(
    cluster="c",
    secret="00" * 32,
    slots=8,
    data="/nowhere",
    shards=2,
    replicas=3,
    gateways=1,
    host="127.0.0.1",
    port=7070,
)


HANGS = object()
"""The answer of an actor that gives none."""


class FakeRay:
    """Answers of actors are what ``answer`` says; handles are counted."""

    def __init__(self, answer: Callable[[str], Any]) -> None:
        self.answer = answer
        self.created: list[tuple[Any, ...]] = []
        self.called: list[tuple[Any, ...]] = []
        self.warmed: list[int] = []
        self.forgotten: list[str] = []

    def create(self, *args: Any) -> Any:
        self.created.append(args)
        return len(self.created)

    def find(self, name: str, namespace: str) -> Any:
        if not self.created or name in self.forgotten:
            raise NotReachable(f"there is no actor {name}")
        return len(self.created)

    async def call(self, handle: Any, method: str, *args: Any) -> Any:
        self.called.append((handle, method, *args))
        answer = self.answer(method)
        if answer is HANGS:
            await asyncio.Event().wait()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def until_gone(self, handle: Any, life: str) -> str:
        return f"{handle} {life}"

    async def warm_workers(self, count: int) -> None:
        self.warmed.append(count)

    def kill(self, handle: Any) -> None:
        self.called.append((handle, "kill"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.001)
    monkeypatch.setattr(module, "WARM_AFTER_S", 0.01)


async def test_others_hear_of_the_relays_door_and_not_of_the_actors_port() -> None:
    asked: list[dict[str, Any]] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(json.loads(await reader.readline()))
        writer.write(b'{"address": "127.0.0.1", "port": 9}\n')
        writer.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    address = ReplicaAddress("replica-1", "disk", "host", "127.0.0.1", 4711)
    ray = FakeRay(lambda _: Started("life", 1, "", address))
    platform = RayPlatform(replace(SETTINGS, relay=where), ray)
    assert await platform.start(REPLICA) == address._replace(port=9)
    assert asked == [{"name": "replica-1", "address": "127.0.0.1", "port": 4711}]
    server.close()
    await server.wait_closed()
    with pytest.raises(NotReachable, match="no door"):
        await platform.start(REPLICA)


async def test_an_actor_is_made_once_and_started() -> None:
    ray = FakeRay(lambda _: Started("life", 1, "", "address"))
    platform = RayPlatform(SETTINGS, ray)
    platform.view_store = "store"
    platform.form_of = {"gateway": 4}.__getitem__
    assert await platform.start(GATEWAY) == "address"
    assert await platform.start(GATEWAY) == "address"
    assert ray.created == [(GatewayActor, "gateway-1", "im-c", (SETTINGS, "gateway-1"), "", None)]
    assert ray.called[0] == (1, "start", "store", 4)
    assert await platform.wait_down("gateway-1") == "1 life"
    assert platform.pids() == {"gateway-1": 1}


async def test_a_restarting_actor_is_asked_until_it_is_there() -> None:
    answers: list[Any] = [NotReachable("restarting")] * 3 + [Started("life", 1, "", "address")]
    ray = FakeRay(lambda _: answers.pop(0))
    assert await RayPlatform(SETTINGS, ray).start(GATEWAY) == "address"
    assert [call[0] for call in ray.called] == [1, 2, 3, 4], "found by its name each time"


async def test_an_error_of_the_actor_is_raised_and_remembered_until_it_starts() -> None:
    answers: list[Any] = [DiskFailed("full"), Started("life", 1, "", "address")]
    platform = RayPlatform(SETTINGS, FakeRay(lambda _: answers.pop(0)))
    with pytest.raises(DiskFailed):
        await platform.start(REPLICA)
    assert str(platform.failures["replica-1"]) == "full"
    await platform.start(REPLICA)
    assert platform.failures == {}


async def test_an_actor_that_finds_no_place_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "START_S", 0.05)
    settings = ActorSettings(
        **{**SETTINGS.to_dict(), "joined": True, "places": {"replica-1": "im_disk_a"}}
    )
    ray = FakeRay(lambda _: HANGS)
    platform = RayPlatform(settings, ray)
    with pytest.raises(NotReachable, match="waits for a host that offers im_disk_a"):
        await platform.start(REPLICA)
    async with asyncio.timeout(60):
        while not ray.created:  # A busy machine begins the thread for it late.
            await asyncio.sleep(0.001)
    assert ray.created[0][4] == "im_disk_a"
    assert ray.created[0][5]["RAY_USE_UVLOOP"] in ("0", "1")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


async def test_an_actor_that_hangs_is_killed_so_that_ray_starts_another(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = [Started("life", sleeper.pid, "", "address"), HANGS]
    platform = RayPlatform(SETTINGS, FakeRay(lambda _: answers.pop(0)))
    await platform.start(REPLICA)
    monkeypatch.setattr(module, "START_S", 0.05)
    with pytest.raises(NotReachable):
        await platform.start(REPLICA)
    assert await asyncio.to_thread(sleeper.wait, 60) == -signal.SIGKILL


async def test_processes_of_other_hosts_are_not_signalled() -> None:
    started = Started("life", os.getpid(), "10.0.0.2", "address")
    platform = RayPlatform(SETTINGS, FakeRay(lambda _: started), "10.0.0.1")
    await platform.start(GATEWAY)
    assert not platform.signal("gateway-1", 0)
    assert not platform.signal("unknown", 0)


async def test_spare_workers_are_made_when_starts_are_over() -> None:
    ray = FakeRay(lambda _: Started("life", 1, "", "address"))
    platform = RayPlatform(SETTINGS, ray)
    await asyncio.gather(platform.start(GATEWAY), platform.start(REPLICA))
    async with asyncio.timeout(60):
        while not ray.warmed:
            await asyncio.sleep(0.005)
    assert ray.warmed == [module.SPARE_WORKERS]


async def test_calls_go_to_actors_that_were_started_only() -> None:
    platform = RayPlatform(SETTINGS, FakeRay(lambda _: SetupError("x")))
    with pytest.raises(NotReachable):
        await platform.call("gateway-1", "ping")


@pytest.mark.parametrize("answer", [None, NotReachable("gone")])
async def test_who_ends_is_stopped_first_and_then_forgotten(answer: Any) -> None:
    started = Started("life", 1, "", "address")
    ray = FakeRay(lambda method: started if method == "start" else answer)
    platform = RayPlatform(SETTINGS, ray)
    await platform.start(GATEWAY)
    await platform.end("gateway-1")
    assert [method for _, method, *_ in ray.called] == ["start", "stop", "kill"]
    assert platform.pids() == {}
    with pytest.raises(NotReachable):
        await platform.call("gateway-1", "ping")
    ray.forgotten = ["gateway-1"]
    await platform.end("gateway-1")
    assert len(ray.called) == 3, "who is not there is ended already"


async def test_who_never_came_up_is_forgotten_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray has made it, and would start it on its host whenever that comes."""
    monkeypatch.setattr(module, "START_S", 0.01)
    ray = FakeRay(lambda method: HANGS if method == "start" else None)
    platform = RayPlatform(SETTINGS, ray)
    with pytest.raises(NotReachable):
        await platform.start(GATEWAY)
    await platform.end("gateway-1")
    assert [method for _, method, *_ in ray.called][-2:] == ["stop", "kill"]
