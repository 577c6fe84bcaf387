"""Joining a Ray that somebody else runs: its actors are ours, and Ray itself is not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from im_actors.actors import deploy, processes
from im_actors.actors.placement import read_places
from im_actors.errors import NotReachable
from im_actors.server.cluster_file import read_run

if TYPE_CHECKING:
    from conftest import RayCluster

pytestmark = [pytest.mark.ray]


class OtherRay(NamedTuple):
    """The Ray that is there already."""

    address: str
    sid: int
    temp_dir: str
    token: Path

    def processes(self) -> int:
        return len(processes.session_processes(self.sid, self.temp_dir))


@pytest.fixture(scope="module")
def other_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherRay]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'im-actors[server]'")
    token = tmp_path_factory.mktemp("other") / "token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    port, temp_dir = processes.free_port("127.0.0.1"), str(processes.make_temp_dir())
    arguments = [
        *processes.head_arguments(port, temp_dir, workers=2),
        '--resources={"im_disk_a": 1, "im_disk_b": 1, "im_disk_c": 1}',
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *arguments],
        env=processes.ray_env(token, 2),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert process.wait(60) == 0
        yield OtherRay(f"127.0.0.1:{port}", process.pid, temp_dir, token)
    finally:
        process.kill()
        processes.kill_session(process.pid, temp_dir)
        processes.remove_temp_dir(temp_dir)


def test_a_cluster_joins_and_leaves(
    other_ray: OtherRay,
    make_cluster: type[RayCluster],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other_ray.token))
    for bound in ("CREATE_S", "END_S"):
        monkeypatch.setattr(deploy.attach, bound, 120.0)
    cluster = make_cluster(tmp_path)
    with pytest.raises(NotReachable, match="no Ray answers"):
        cluster.up(address=f"127.0.0.1:{processes.free_port('127.0.0.1')}")
    with pytest.raises(NotReachable, match=r"3 of 4 disks are there, missing: 1 more disk"):
        cluster.up(address=other_ray.address, replicas=4, hosts_s=0.5)
    assert any("0 s left" in text for text in cluster.said)
    assert read_run(tmp_path) is None
    assert read_places(tmp_path) == {}

    settings = {"address": other_ray.address, "shards": 1, "gateways": 1}
    run = cluster.up(**settings)
    assert run.ray_sid == 0
    assert set(read_places(tmp_path).values()) == {"im_disk_a", "im_disk_b", "im_disk_c"}
    assert cluster.send("team", "a", "b") == [1, 2]
    assert cluster.up(**settings) == run

    assert cluster.call("verify")["ok"]

    deploy.kill_everything(tmp_path)
    assert processes.port_taken("127.0.0.1", run.gateway_port) is None
    deploy.down(tmp_path, cluster.said.append)
    assert "no clean stop" in cluster.said[-2]
    assert read_run(tmp_path) is None
    assert other_ray.processes() > 0, "Ray itself runs on"


def test_a_wrong_token_is_an_error_and_not_a_hang(
    other_ray: OtherRay,
    make_cluster: type[RayCluster],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("1" * 64)
    wrong.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(wrong))
    monkeypatch.setattr(deploy.attach, "CREATE_S", 3.0)
    monkeypatch.setattr(deploy.attach, "END_S", 1.0)
    with pytest.raises(Exception, match=r"token|attaching|Ray"):
        make_cluster(tmp_path / "data").up(address=other_ray.address)
