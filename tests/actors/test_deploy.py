"""What ``up`` and ``down`` refuse, before any Ray is started."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from im_actors.actors import attach, deploy, processes
from im_actors.actors.deploy import UpConfig
from im_actors.errors import (
    DiskFailed,
    NewerFormat,
    NotReachable,
    SetupError,
    WrongDirectory,
)
from im_actors.net.tls import hosts_of
from im_actors.server.cluster_file import (
    RunFile,
    open_or_create_cluster,
    read_cluster,
    read_run,
    write_cluster,
    write_run,
    write_topology,
)
from im_actors.server.settings import ClusterSettings, TlsSettings
from im_actors.server.topology import Topology


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may get as far as a start."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a process was started")

    monkeypatch.setattr(attach, "_run", refuse)


def up(data: Path, **settings: Any) -> RunFile:
    return deploy.up(UpConfig(data=data, **{"port": 0, **settings}), lambda _: None)


def stale_run(data: Path, **fields: Any) -> RunFile:
    """What a cluster leaves that was killed."""
    run = RunFile(
        ray_address="127.0.0.1:1",
        namespace="im-x",
        ray_temp_dir="",
        ray_sid=0,
        admin_address="127.0.0.1",
        admin_port=processes.free_port("127.0.0.1"),
        gateway_address="127.0.0.1",
        gateway_port=7070,
        started_ms=1,
        version="0",
        settings={
            "address": "local",
            "host": "127.0.0.1",
            "port": 7070,
            "insecure_open": False,
            "shards": 2,
            "replicas": 3,
            "gateways": 2,
        },
    )
    run = replace(run, **fields)
    write_run(data, run)
    return run


def test_importing_it_loads_no_ray() -> None:
    code = "import sys, im_actors.actors.deploy; sys.exit('ray' in sys.modules)"
    env = {**os.environ, **processes.package_path()}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"shards": 0}, "--shards"),
        ({"gateways": 0}, "--gateways"),
        ({"replicas": 2}, "at least 3"),
        ({"slots": 0}, "--slots"),
        ({"slots": 1025}, "--slots"),
        ({"port": 65_536}, "--port"),
        ({"port": -1}, "--port"),
        ({"address": "somewhere"}, "HOST:PORT"),
        ({"address": ":80"}, "HOST:PORT"),
        ({"host": "0.0.0.0"}, "token secret"),
        ({"host": "0.0.0.0", "token_secret": "short"}, "token_secret"),
        ({"token_secret": "x" * 32, "insecure_open": True}, "exclude"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, settings: dict[str, Any], what: str) -> None:
    with pytest.raises(SetupError, match=what):
        up(tmp_path / "data", **settings)
    assert not (tmp_path / "data").exists()


def test_certificates_are_looked_at_before_anything_starts(
    tmp_path: Path, authorities: Any
) -> None:
    late = TlsSettings(**authorities[0].sign("late", days=-1)._asdict())
    for tls, what in ((late, "has expired"), (replace(late, key="/no/such"), "cannot read /no/")):
        with pytest.raises(SetupError, match=what):
            up(tmp_path / "data", operator=ClusterSettings(tls=tls))
    assert read_run(tmp_path / "data") is None


@pytest.mark.parametrize(
    ("names", "compared"),
    [
        ("DNS:im.test,IP:127.0.0.1", ""),
        ("DNS:*.im.test,DNS:other.test", "im.im.test"),
        ("IP:10.0.0.9", "10.0.0.9"),
    ],
)
def test_what_commands_compare_a_certificate_with(
    tmp_path: Path, authorities: Any, names: str, compared: str
) -> None:
    tls = TlsSettings(**authorities[0].sign("named", names)._asdict())
    operator = ClusterSettings(tls=tls).public()
    run = stale_run(tmp_path, settings={"address": "local", "operator": operator})
    assert run.url == "ims://127.0.0.1:7070"
    assert run.tls.files is not None
    assert deploy._server_name(run, hosts_of(run.tls.files)) == compared
    assert deploy._server_name(run, ()) == ""


def test_a_cluster_that_cannot_be_asked_is_not_ended(tmp_path: Path, authorities: Any) -> None:
    """Whoever looks with an expired certificate does not take what runs for dead."""
    open_or_create_cluster(tmp_path)
    tls = TlsSettings(**authorities[0].sign("late", days=-1)._asdict())
    operator = ClusterSettings(tls=tls).public()
    run = stale_run(tmp_path, settings={"address": "auto", "operator": operator})
    with pytest.raises(SetupError, match="has expired"):
        up(tmp_path)
    assert read_run(tmp_path) == run


def test_good_settings_pass(tmp_path: Path) -> None:
    for settings in (
        {},
        {"address": "auto"},
        {"address": "10.0.0.1:6379"},
        {"host": "0.0.0.0", "token_secret": "x" * 32},
        {"host": "0.0.0.0", "insecure_open": True},
    ):
        UpConfig(data=tmp_path, **settings).validate()  # type: ignore[arg-type]


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    config = UpConfig(data=tmp_path, token_secret="verysecret", redis="redis://:verysecret@h")
    assert "verysecret" not in repr(config)


def test_a_missing_ray_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SetupError, match=r"pip install 'im-actors\[server\]'"):
        up(tmp_path / "data")


def test_a_port_in_use_is_found_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SetupError, match=f"port {port} .*choose another --port"):
            up(tmp_path, port=port)
    assert read_run(tmp_path) is None


def test_a_port_that_is_shared_by_others_is_in_use(tmp_path: Path) -> None:
    """SO_REUSEPORT of a stranger does not let us in."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(SetupError, match="another process listens"):
            up(tmp_path, port=other.getsockname()[1])


def test_other_slots_than_the_directory_has_are_refused(tmp_path: Path) -> None:
    open_or_create_cluster(tmp_path, 8)
    with pytest.raises(SetupError, match="made with 8 slots"):
        up(tmp_path, slots=16)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskFailed, match="choose another --data"):
        up(tmp_path / "file" / "data")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    open_or_create_cluster(tmp_path, 8)
    fields = json.loads((tmp_path / "cluster.json").read_text())
    (tmp_path / "cluster.json").write_text(json.dumps({**fields, "format": 99}))
    with pytest.raises(NewerFormat):
        up(tmp_path)


def test_replicas_without_their_cluster_are_refused(tmp_path: Path) -> None:
    (tmp_path / "replica-1").mkdir()
    (tmp_path / "replica-1" / "identity.json").touch()
    with pytest.raises(SetupError, match="bring that file back"):
        up(tmp_path)


def hold_lock(data: Path, owner: int) -> IO[str]:
    """What an open directory of a replica looks like."""
    open_or_create_cluster(data, 8)
    (data / "replica-2").mkdir()
    lock = (data / "replica-2" / "lock").open("w")
    lock.write(f"{owner}\n")
    lock.flush()
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def test_a_directory_that_somebody_uses_is_refused(tmp_path: Path) -> None:
    with (
        hold_lock(tmp_path, os.getpid()),
        pytest.raises(WrongDirectory, match=f"in use by pid {os.getpid()}"),
    ):
        up(tmp_path)


def test_a_lock_of_a_process_that_is_ending_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was killed holds its locks until its last thread is gone."""
    lock = hold_lock(tmp_path, 2**22)
    monkeypatch.setattr(deploy.time, "sleep", lambda _: lock.close())
    with pytest.raises(AssertionError, match="a process was started"):
        up(tmp_path)


def test_a_lock_that_nobody_gives_back_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "ENDING_S", 0.05)
    with hold_lock(tmp_path, 2**22), pytest.raises(WrongDirectory, match="in use"):
        up(tmp_path)


def test_another_view_store_than_the_one_in_use_is_refused(tmp_path: Path) -> None:
    cluster = open_or_create_cluster(tmp_path, 8)
    write_cluster(tmp_path, replace(cluster, view_store_identity="abc"))
    with pytest.raises(SetupError, match="leave --redis out"):
        up(tmp_path, redis="redis://127.0.0.1")
    write_cluster(tmp_path, replace(cluster, view_store="redis", view_store_identity="abc"))
    with pytest.raises(SetupError, match="say --redis URL"):
        up(tmp_path)


def test_before_the_first_start_the_view_store_is_still_open(tmp_path: Path) -> None:
    open_or_create_cluster(tmp_path, 8)
    with pytest.raises(AssertionError, match="a process was started"):
        up(tmp_path, redis="redis://127.0.0.1")
    known = read_cluster(tmp_path)
    assert known is not None
    assert known.view_store == "redis"


def test_a_start_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    make = processes.make_temp_dir
    monkeypatch.setattr(processes, "make_temp_dir", lambda: made.append(make()) or made[0])
    with pytest.raises(AssertionError, match="a process was started"):
        up(tmp_path)
    assert read_run(tmp_path) is None
    assert made
    assert not made[0].exists()


def test_what_a_dead_cluster_left_is_swept_first(tmp_path: Path) -> None:
    open_or_create_cluster(tmp_path, 8)
    temp = processes.make_temp_dir()
    stale_run(tmp_path, ray_sid=2**22, ray_temp_dir=str(temp))
    said: list[str] = []
    with pytest.raises(AssertionError, match="a process was started"):
        deploy.up(UpConfig(data=tmp_path, port=0), said.append)
    assert said[0] == "ending what remains of a cluster that died"
    assert not temp.exists()


def test_down_clears_up_after_a_dead_cluster(tmp_path: Path) -> None:
    open_or_create_cluster(tmp_path, 8)
    stale_run(tmp_path)
    said: list[str] = []
    deploy.down(tmp_path, said.append)
    assert said == ["nothing of it runs any more; clearing up", "stopped"]
    assert read_run(tmp_path) is None


@pytest.mark.parametrize("call", [lambda d: deploy.down(d, print), deploy.kill_everything])
def test_where_no_cluster_is_there_is_nothing_to_end(tmp_path: Path, call: Any) -> None:
    with pytest.raises(SetupError, match="no cluster is known"):
        call(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_two_at_a_time_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "LOCK_S", 0.1)
    with deploy._locked(tmp_path), pytest.raises(SetupError, match="another up or down"):
        up(tmp_path)


def test_a_ray_that_is_not_there_is_reported_at_once() -> None:
    port = processes.free_port("127.0.0.1")
    with pytest.raises(NotReachable, match="no Ray answers"):
        attach.check_reachable(f"127.0.0.1:{port}")
    attach.check_reachable("auto")


def test_only_loopback_is_loopback() -> None:
    assert attach.is_loopback("localhost")
    assert attach.is_loopback("127.0.0.2")
    assert attach.is_loopback("::1")
    assert not attach.is_loopback("0.0.0.0")
    assert not attach.is_loopback("example.com")


def test_what_scale_has_left_counts_more_than_what_up_is_told(tmp_path: Path) -> None:
    cluster = open_or_create_cluster(tmp_path, 8)
    asked = stale_run(tmp_path).settings
    before = deploy._settings(asked, cluster, tmp_path)
    assert (before.shards, before.replicas) == (2, 3)
    topology = Topology.fresh(3, 2, 2).scaled(shards=4, replicas=4).drained(("replica-2",))
    write_topology(tmp_path, topology)
    after = deploy._settings(asked, cluster, tmp_path)
    assert (after.shards, after.replicas, after.gateways) == (4, 3, 2)
    names = [desired.name for desired in after.desired() if desired.kind == "replica"]
    assert names == ["replica-1", "replica-3", "replica-4", "replica-2"], "it leaves, and runs yet"
    assert after.actors >= len(names) + 4 + 2
