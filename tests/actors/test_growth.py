"""``im-actors scale`` and ``drain`` on a cluster under a real Ray, while messages flow."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from im_actors.actors import deploy
from im_actors.cli import growth_commands
from im_actors.server.cluster_file import read_topology
from tests.server.test_growth import load

if TYPE_CHECKING:
    from conftest import RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

COMMAND_S = 240.0


@pytest.fixture
def growing(make_cluster: type[RayCluster], tmp_path: Path) -> Iterator[RayCluster]:
    cluster = make_cluster(tmp_path)
    cluster.up(shards=2, replicas=4, gateways=1)
    try:
        yield cluster
    finally:
        cluster.sweep()


class Door:
    """What the load needs of a cluster: where its gateways are."""

    def __init__(self, cluster: RayCluster) -> None:
        self.url = cluster.run.url


def command(cluster: RayCluster, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "im_actors.cli", *words, "--data", str(cluster.data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **deploy.processes.package_path()},
    )


async def done(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = await asyncio.to_thread(process.communicate, timeout=COMMAND_S)
    assert process.returncode == 0, err
    assert "changing:" in err, "it says how far it is"
    found: dict[str, Any] = json.loads(out)
    assert not found["busy"]
    return found


def test_it_grows_and_shrinks_under_load_and_nothing_is_lost(growing: RayCluster) -> None:
    async def work() -> None:
        async with load(Door(growing)):
            await done(command(growing, "scale", "--shards", "3", "--gateways", "2", "--json"))
            drained = await done(command(growing, "drain", "replica-2", "--json"))
            assert drained["replicas"] == ["replica-1", "replica-3", "replica-4"]
            await done(command(growing, "scale", "--shards", "1", "--gateways", "1", "--json"))

    growing.within(work(), 3 * COMMAND_S)
    status = growing.call("status")
    assert status["healthy"], status
    assert sorted(status["replicas"]) == ["replica-1", "replica-3", "replica-4"]
    assert sorted(status["gateways"]) == ["gateway-1"]
    assert len(set(status["slots"]["owners"].values())) == 1
    assert growing.call("verify", timeout_s=120)["ok"]


def test_ctrl_c_ends_the_watching_and_a_restart_goes_on(growing: RayCluster) -> None:
    process = command(growing, "drain", "replica-1")
    assert process.stderr is not None
    assert "changing:" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=growth_commands.TIMEOUT_S)
    assert process.returncode == 130
    assert "goes on by itself" in err
    assert "Traceback" not in err
    growing.kill("controller")
    growing.wait(lambda: not growing.call("growth")["busy"])
    assert growing.call("growth")["replicas"] == ["replica-2", "replica-3", "replica-4"]
    assert growing.send("after", "a", "b") == [1, 2]
    deploy.down(growing.data, growing.said.append)
    growing.up(shards=2, replicas=4, gateways=1)
    assert "as im-actors scale or drain left them" in growing.said[0]
    status = growing.call("status")
    assert sorted(status["replicas"]) == ["replica-2", "replica-3", "replica-4"]
    assert [text for _, text in growing.history("after", 2)] == ["a", "b"]
    topology = read_topology(growing.data)
    assert topology is not None
    assert topology.leaving == ()
