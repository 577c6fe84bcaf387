"""Faults on processes that stand in for actors, and that each of them is healed."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from im_actors.cli.torture import wrecker as module
from im_actors.cli.torture.cluster import environment, trouble_in
from im_actors.cli.torture.recovery import Hit
from im_actors.cli.torture.relay import Relay
from im_actors.cli.torture.schedule import KINDS
from im_actors.cli.torture.wrecker import Wrecker, slots_of_actor
from im_actors.errors import NotReachable

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


class FakeNodes:
    """Nodes without Ray, each with one sleeping process as its actor."""

    count = 2

    def __init__(self, actor: psutil.Process) -> None:
        self.actor = actor
        self.did: list[str] = []

    def actors(self, number: int) -> list[psutil.Process]:
        return [self.actor]

    def kill_raylet(self, number: int) -> None:
        self.did.append(f"kill raylet {number}")

    def kill_raylet_and_wait(self, number: int) -> None:
        self.kill_raylet(number)

    def kill(self, number: int) -> None:
        self.did.append(f"kill {number}")

    def kill_all(self) -> None:
        self.did.append("kill all")

    async def start(self, number: int) -> None:
        self.did.append(f"start {number}")


class FakeCluster:
    """A cluster of sleeping processes, all of them one."""

    def __init__(self, data: Path, process: psutil.Process) -> None:
        self.data = data
        self.relay = Relay()
        self.nodes = FakeNodes(process)
        self.doors: list[Any] = []
        self.named: list[str] = []
        self.incomplete: list[int] = []
        self._process = process

    async def status(self) -> dict[str, Any]:
        there = {"pid": self._process.pid}
        return {
            "slots": {"unhealthy": [], "members": {"0": ["replica-1"], "1": ["replica-2"]}},
            "shards": {
                "shard-1": {"serving": [1], **there},
            },
            "replicas": {"replica-1": {"incomplete_slots": self.incomplete, **there}},
            "gateways": {"gateway-1": there},
            "missing": {},
        }

    async def process(self, name: str) -> psutil.Process:
        self.named.append(name)
        return self._process

    async def down(self) -> None:
        self.nodes.did.append("down")

    async def start_again(self) -> None:
        self.nodes.did.append("start all")


@pytest.fixture
def process() -> Iterator[psutil.Process]:
    child = subprocess.Popen(SLEEP)
    yield psutil.Process(child.pid)
    child.kill()
    child.wait()


class Scene:
    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.done: list[Hit] = []
        self.said: list[str] = []
        whole: Any = cluster
        self.wrecker = Wrecker(whole, [], random.Random(1), self.said.append, self.done.append)


@pytest.fixture
def scene(tmp_path: Path, process: psutil.Process, monkeypatch: pytest.MonkeyPatch) -> Scene:
    for name in ("SHORT_PAUSE_S", "LONG_PAUSE_S", "TROUBLE_S", "NODE_AWAY_S"):
        monkeypatch.setattr(module, name, (0.05, 0.1))
    monkeypatch.setattr(module, "AIM_S", 0.2)
    monkeypatch.setattr(module, "WHOLE_S", 0.2)
    return Scene(FakeCluster(tmp_path, process))


async def becomes(process: psutil.Process, stopped: bool) -> None:
    """A signal is carried out when the process is scheduled next."""
    async with asyncio.timeout(60):
        while (process.status() == psutil.STATUS_STOPPED) != stopped:
            await asyncio.sleep(0.01)


def has_ended(process: psutil.Process) -> bool:
    psutil.wait_procs([process], timeout=60)
    return not process.is_running()


@pytest.mark.parametrize(
    ("kind", "name", "slots"),
    [("kill-shard", "shard-1", {1}), ("kill-replica", "replica-1", {0}),
     ("kill-gateway", "gateway-1", set()), ("kill-controller", "controller", set())],
)  # fmt: skip
async def test_a_kill_ends_the_process(
    scene: Scene, process: psutil.Process, kind: str, name: str, slots: set[int]
) -> None:
    hit = await scene.wrecker.inject(kind)
    assert has_ended(process)
    assert (hit.target, hit.slots, scene.cluster.named) == (name, slots, [name])
    assert scene.done == [hit]
    assert hit.ordered_s <= hit.done_s


async def test_a_paused_process_goes_on(scene: Scene, process: psutil.Process) -> None:
    await scene.wrecker.inject("pause-replica")
    await becomes(process, stopped=True)
    await scene.wrecker.heal()
    await becomes(process, stopped=False)


async def test_giving_up_wakes_who_is_paused(
    scene: Scene, process: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHORT_PAUSE_S", (600, 600))
    monkeypatch.setattr(module, "LONG_PAUSE_S", (600, 600))
    await scene.wrecker.inject("pause-shard")
    await becomes(process, stopped=True)
    await scene.wrecker.give_up()
    await becomes(process, stopped=False)


async def test_a_lost_node_comes_back(scene: Scene) -> None:
    hit = await scene.wrecker.inject("kill-node")
    assert hit.slots == {0, 1}, "those of its shard and of its replica"
    await scene.wrecker.inject("kill-raylet")
    await scene.wrecker.heal()
    one_after_the_other = ["kill 1", "start 1", "kill raylet 1", "start 1"]
    assert scene.cluster.nodes.did == one_after_the_other


async def test_orphans_wake_up_when_their_node_is_there_again(
    scene: Scene, process: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    there_again = asyncio.Event()

    async def start(number: int) -> None:
        await becomes(process, stopped=True)
        there_again.set()

    monkeypatch.setattr(scene.cluster.nodes, "start", start)
    await scene.wrecker.inject("orphan-node")
    await scene.wrecker.heal()
    assert there_again.is_set()
    assert scene.cluster.nodes.did == ["kill raylet 1"]
    await becomes(process, stopped=False)


async def test_a_disk_is_lost_while_its_replica_stands_still(
    scene: Scene, process: psutil.Process, tmp_path: Path
) -> None:
    (tmp_path / "replica-1").mkdir()
    (tmp_path / "replica-1" / "journal").write_text("old")
    await scene.wrecker.inject("empty-disk")
    assert has_ended(process)
    assert not (tmp_path / "replica-1").exists()
    assert (tmp_path / "lost" / "replica-1.1" / "journal").read_text() == "old"


async def test_no_disk_is_lost_while_a_copy_is_not_complete(
    scene: Scene, process: psutil.Process, tmp_path: Path
) -> None:
    (tmp_path / "replica-1").mkdir()
    scene.cluster.incomplete = [3]
    with pytest.raises(NotReachable, match="not all copies are complete"):
        await scene.wrecker.inject("empty-disk")
    assert (tmp_path / "replica-1").exists()
    assert process.is_running()
    assert not scene.done


async def test_everything_is_killed_and_started_again(scene: Scene) -> None:
    hit = await scene.wrecker.inject("kill-all")
    assert scene.cluster.nodes.did == ["kill all", "start all"]
    assert scene.done[0] is hit, "told before the start, so that no ACK is missed"


async def test_everything_is_stopped_in_order_and_started_again(scene: Scene) -> None:
    hit = await scene.wrecker.inject("restart-all")
    assert scene.cluster.nodes.did == ["down", "start all"]
    assert scene.done[0] is hit


async def test_what_cannot_be_healed_is_known(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(number: int) -> None:
        raise OSError("no more")

    monkeypatch.setattr(scene.cluster.nodes, "start", fail)
    await scene.wrecker.inject("kill-node")
    await scene.wrecker.heal()
    assert "no more" in scene.wrecker.failed
    # The next one does not wait for it for ever.
    async with asyncio.timeout(60):
        await scene.wrecker.inject("kill-node")


@pytest.mark.parametrize("kind", ["kill-controller", "crash-writers", "hold-links"])
async def test_nobody_to_hit_is_an_error(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    async def nobody(name: str) -> psutil.Process:
        raise NotReachable(f"{name} does not run")

    monkeypatch.setattr(scene.cluster, "process", nobody)
    with pytest.raises(NotReachable):
        await scene.wrecker.inject(kind)
    assert not scene.done


async def test_every_kind_is_known_to_the_wrecker(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "replica-1").mkdir()
    for kind in KINDS:
        try:
            await scene.wrecker.inject(kind)
        except (NotReachable, IndexError):
            continue  # Nobody is there to be hit, which is another matter.
    await scene.wrecker.heal()


def test_a_status_says_what_is_wrong() -> None:
    slots: dict[str, Any] = {"unhealthy": []}
    fine: dict[str, Any] = {
        "slots": slots,
        "missing": {},
        "shards": {"shard-1": {}},
        "replicas": {"replica-1": {"incomplete_slots": []}},
        "gateways": {},
    }
    assert trouble_in(fine) == ""
    unhealthy = {"unhealthy": [{"state": "stalled", "why": "writes wait for replica-1"}]}
    assert "replica-1" in trouble_in(fine | {"slots": unhealthy})
    assert "shard-2" in trouble_in(fine | {"missing": {"shard-2": "starting"}})
    assert "silent" in trouble_in(fine | {"gateways": {"gateway-1": {"error": "silent"}}})
    assert "lacks" in trouble_in(fine | {"replicas": {"replica-1": {"incomplete_slots": [1]}}})


def test_slots_of_an_actor() -> None:
    status: dict[str, Any] = {
        "slots": {"members": {"0": ["replica-1", "replica-2"], "1": ["replica-2"]}},
        "shards": {"shard-1": {"serving": [1]}},
    }
    assert slots_of_actor("replica-2", status) == {0, 1}
    assert slots_of_actor("shard-1", status) == {1}
    assert slots_of_actor("shard-2", status) == slots_of_actor("gateway-1", status) == set()


def test_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("IM_TEST_KNOWN", "before")
    monkeypatch.delenv("IM_TEST_NEW", raising=False)
    with environment({"IM_TEST_KNOWN": "meanwhile", "IM_TEST_NEW": "too"}):
        assert (os.environ["IM_TEST_KNOWN"], os.environ["IM_TEST_NEW"]) == ("meanwhile", "too")
    assert os.environ["IM_TEST_KNOWN"] == "before"
    assert "IM_TEST_NEW" not in os.environ
