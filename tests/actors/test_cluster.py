"""The cluster under a real Ray: processes are killed, and everything comes back by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from im_actors.actors import deploy, processes
from im_actors.actors.ports import listening, unlisted
from im_actors.core.formats import FORMATS
from im_actors.errors import SetupError, WrongDirectory
from im_actors.server.cluster_file import read_cluster, read_run, remove_run, write_run

if TYPE_CHECKING:
    from conftest import RayCluster

pytestmark = [pytest.mark.ray]


def test_up_serves_and_status_tells(cluster: RayCluster) -> None:
    status = cluster.call("status")
    assert status["healthy"]
    assert status["slots"]["active"] == 8
    assert sorted(status["replicas"]) == ["replica-1", "replica-2", "replica-3"]
    assert sorted(status["shards"]) == ["shard-1", "shard-2"]
    assert sorted(status["gateways"]) == ["gateway-1", "gateway-2"]
    names = cluster.call("names")
    assert names["controller"] == ["controller"]
    gateway = {"address": "127.0.0.1", "port": cluster.run.gateway_port}
    assert cluster.call("gateways") == [gateway, gateway]


def test_messages_arrive_and_verify_finds_three_equal_copies(cluster: RayCluster) -> None:
    assert cluster.send("first", "a", "b", "c") == [1, 2, 3]
    assert cluster.history("first", 3) == [(1, "a"), (2, "b"), (3, "c")]
    report = cluster.call("verify")
    assert report["ok"], report
    assert report["events"] >= 3
    assert cluster.call("story", "first")


def test_up_again_reports_the_cluster_that_runs(cluster: RayCluster) -> None:
    before = cluster.run
    pids = cluster.pids()
    assert cluster.up(gateways=5) == before
    assert "already runs, with gateways 2" in cluster.said[0]
    assert cluster.pids() == pids


def test_files_with_secrets_are_for_their_owner_only(cluster: RayCluster) -> None:
    for name in ("cluster.json", "run.json", "ray-token"):
        assert (cluster.data / name).stat().st_mode & 0o077 == 0


def test_each_listening_port_is_in_the_table_and_on_loopback(cluster: RayCluster) -> None:
    run = cluster.run
    found = listening(processes.session_processes(run.ray_sid, run.ray_temp_dir))
    assert unlisted(found) == []
    assert {one.address for one in found} == {"127.0.0.1"}
    # The scan sees what is there: ours among them.
    assert {(one.kind, one.port) for one in found} >= {
        ("GatewayActor", run.gateway_port),
        ("ControllerActor", run.admin_port),
        ("gcs_server", int(run.ray_address.rpartition(":")[2])),
    }
    assert {"ShardActor", "ReplicaActor", "raylet"} <= {one.kind for one in found}


def test_secrets_are_in_no_log_and_on_no_command_line(cluster: RayCluster) -> None:
    known = read_cluster(cluster.data)
    assert known is not None
    secrets = [known.secret, (cluster.data / "ray-token").read_text()]
    assert cluster.shown(secrets) == []


def test_logs_are_json_and_name_actor_slot_and_epoch(cluster: RayCluster) -> None:
    epochs: dict[str, int] = {}
    for name in [name for names in cluster.call("names").values() for name in names]:
        log = (cluster.data / "logs" / f"{name}.log").read_text()
        lines = [json.loads(line) for line in log.splitlines()]
        assert {line["actor"] for line in lines} == {name}
        for line in lines:
            if "serves slot" in line["text"]:
                slot = str(line["slot"])
                epochs[slot] = max(epochs.get(slot, 0), line["epoch"])
    assert epochs == cluster.call("status")["slots"]["epochs"]


@pytest.mark.parametrize("name", ["replica-2", "shard-1", "gateway-1", "controller"])
def test_an_actor_is_started_anew_in_the_release_that_is_installed(
    cluster: RayCluster, name: str
) -> None:
    pid = cluster.pids()[name]
    cluster.call("restart", name)
    cluster.wait_back(name, pid)
    cluster.wait(lambda: not cluster.call("upgrade")["busy"])
    assert cluster.send(f"after the restart of {name}", "hello") == [1]
    found = cluster.call("upgrade")
    assert set(map(tuple, found["formats"].values())) == {FORMATS}
    assert set(found["releases"]) == set(found["formats"])


@pytest.mark.parametrize("name", ["shard-1", "replica-2", "gateway-1", "controller"])
def test_a_killed_actor_comes_back(cluster: RayCluster, name: str) -> None:
    session = f"killed {name}"
    assert cluster.send(session, "before") == [1]
    pid = cluster.kill(name)
    assert cluster.send(session, "meanwhile", user="bob") == [2]
    cluster.wait_back(name, pid)
    assert cluster.send(session, "after", user="carol") == [3]
    assert cluster.history(session, 3) == [(1, "before"), (2, "meanwhile"), (3, "after")]


def test_traffic_goes_on_without_a_controller(cluster: RayCluster) -> None:
    """The data plane does not need it: with the controller stopped, messages are ACKed."""
    pid = cluster.pids()["controller"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert cluster.send("no controller", *"abc") == [1, 2, 3]
    finally:
        os.kill(pid, signal.SIGCONT)
    cluster.wait(lambda: bool(cluster.call("status")["healthy"]))


def test_a_paused_shard_commits_nothing_after_it_wakes_up(cluster: RayCluster) -> None:
    """It is stopped with sends under way, others take its slots, and what it holds then must not
    appear afterwards."""
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


def test_faults_hit_the_actor_that_they_name(cluster: RayCluster) -> None:
    pid = cluster.pids()["shard-2"]
    cluster.call("fault", "kill", "shard-2")
    cluster.wait_back("shard-2", pid)
    cluster.call("fault", "pause", "gateway-2")
    paused = cluster.pids()["gateway-2"]
    cluster.wait(lambda: "T" in Path(f"/proc/{paused}/stat").read_text().rpartition(")")[2][:3])
    cluster.call("fault", "resume", "gateway-2")
    cluster.wait(lambda: bool(cluster.call("status")["healthy"]))
    assert cluster.pids()["gateway-2"] == paused
    with pytest.raises(Exception, match="no actor"):
        cluster.call("fault", "kill", "shard-9")


def test_a_directory_in_use_is_refused(cluster: RayCluster) -> None:
    run = cluster.run
    remove_run(cluster.data)
    try:
        with pytest.raises(WrongDirectory, match="in use by pid"):
            cluster.up()
    finally:
        write_run(cluster.data, run)
    assert cluster.call("ping") == "pong"


def test_everything_killed_in_mid_flow_comes_back_from_the_disks(cluster: RayCluster) -> None:
    """Same history, the numbering goes on, and what was not ACKed arrives once."""
    store = cluster.data.parent / "mid-flow.db"
    before = cluster.send("survivor", *(f"old {n}" for n in range(20)))
    assert before == list(range(1, 21))
    old = cluster.run

    async def send_and_kill() -> None:
        async with cluster.client("dave", store=store) as client:
            for n in range(100):
                await client.send("survivor", f"flow {n}")
            await asyncio.to_thread(deploy.kill_everything, cluster.data)

    cluster.within(send_and_kill())
    assert cluster.processes() == 0
    assert cluster.run == old, "run.json stays as it is when the power goes"
    run = cluster.up(port=old.gateway_port, shards=1, gateways=1)
    assert any("died" in text for text in cluster.said)
    assert not Path(old.ray_temp_dir).exists()
    assert run.ray_sid != old.ray_sid

    async def drain() -> None:
        async with cluster.client("dave", store=store) as client:
            for sent in client.outbox():
                await sent.acked()

    cluster.within(drain())
    assert cluster.send("survivor", "new", user="erin") == [121]
    wanted = [f"old {n}" for n in range(20)] + [f"flow {n}" for n in range(100)] + ["new"]
    assert cluster.history("survivor", 121) == list(enumerate(wanted, start=1))
    assert cluster.call("verify")["ok"]


def test_a_cluster_without_the_head_of_ray_is_started_again(cluster: RayCluster) -> None:
    head = next(
        process
        for process in processes.session_processes(cluster.run.ray_sid, cluster.run.ray_temp_dir)
        if process.name() == "gcs_server"
    )
    head.kill()
    head.wait(60)
    old = cluster.run
    assert cluster.up(shards=1, gateways=1).ray_sid != old.ray_sid
    assert processes.session_processes(old.ray_sid, old.ray_temp_dir) == []
    assert cluster.call("status")["healthy"]


def test_down_ends_everything_and_a_second_one_says_so(cluster: RayCluster) -> None:
    run = cluster.run
    said: list[str] = []
    deploy.down(cluster.data, said.append)
    assert said == ["stopping", "stopped"]
    assert read_run(cluster.data) is None
    assert processes.session_processes(run.ray_sid, run.ray_temp_dir) == []
    assert not Path(run.ray_temp_dir).exists()
    assert processes.port_taken("127.0.0.1", run.gateway_port) is None
    with pytest.raises(SetupError, match="no cluster is known"):
        deploy.down(cluster.data, said.append)
    with pytest.raises(SetupError, match="no cluster is known"):
        deploy.kill_everything(cluster.data)


def test_a_gateway_that_cannot_listen_fails_the_start(
    shared: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody takes the port after it was looked at: nothing stays behind."""
    if read_run(shared.data) is not None:
        deploy.down(shared.data, shared.said.append)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(processes, "port_taken", lambda *_: None)
        with pytest.raises(SetupError, match="the port is in use"):
            shared.up(port=port, shards=1, gateways=1)
    assert read_run(shared.data) is None
