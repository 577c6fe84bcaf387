"""A cluster with TLS, tokens and passwords: what strangers get of it, in real processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from im_actors.actors import deploy, processes
from im_actors.actors.ports import listening, unlisted
from im_actors.gateway.tokens import make_token
from im_actors.net.tls import TlsFiles
from im_actors.server.cluster_file import read_cluster, read_run
from im_actors.server.settings import ClusterSettings, MailboxSettings, TlsSettings
from tests.net.test_tls import fingerprint, put, shown_by
from tests.support_redis import SAFE, RedisServer

if TYPE_CHECKING:
    from conftest import RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

TOKEN_SECRET = "token-secret-" + "t" * 32
PASSWORD = "redis-password-hunter2"


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(tmp_path_factory.mktemp("redis"), dict(SAFE))
    server.start()
    try:
        # Not by its command line, which is one of the places that are looked at.
        server.command("CONFIG", "SET", "requirepass", PASSWORD)
        yield server.url.replace("redis://", f"redis://:{PASSWORD}@")
    finally:
        server.kill()


@pytest.fixture(scope="module")
def files(authorities: Any, tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    directory = tmp_path_factory.mktemp("tls")
    copies = TlsFiles(*(str(directory / name) for name in TlsFiles._fields))
    put(authorities[0].sign("host"), copies, *TlsFiles._fields)
    return copies


@pytest.fixture
def secured(
    make_cluster: type[RayCluster], tmp_path: Path, redis_url: str, files: TlsFiles
) -> Iterator[RayCluster]:
    operator = ClusterSettings(
        tls=TlsSettings(**files._asdict()), mailbox=MailboxSettings(redis=redis_url)
    )
    cluster = make_cluster(tmp_path)
    try:
        cluster.up(token_secret=TOKEN_SECRET, redis=redis_url, operator=operator, gateways=1)
        yield cluster
    finally:
        cluster.sweep()


def im(cluster: RayCluster, *words: str, token: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        **processes.package_path(),
        "IM_ACTORS_DATA": str(cluster.data),
        "IM_ACTORS_TOKEN": token,
    }
    command = [sys.executable, "-m", "im_actors.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_cluster_that_keeps_strangers_out(
    secured: RayCluster, authorities: Any, files: TlsFiles
) -> None:
    ours, theirs = authorities
    token = make_token(TOKEN_SECRET, "alice")
    run = read_run(secured.data)
    assert run is not None
    assert run.url.startswith("ims://")
    send = ("send", "team", "hello", "--as", "alice", "--timeout", "60")

    sent = im(secured, *send, token=token)
    assert (sent.returncode, sent.stderr) == (0, "")
    assert "on 3 disks" in sent.stdout
    secured.wait(lambda: im(secured, "status", token="").returncode == 0)
    # What strangers try leaves traces in logs, and these hold nothing of use.
    forged = im(secured, "tail", "team", "--as", "alice", token=make_token("f" * 40, "alice"))
    assert forged.returncode == 1
    assert "not signed with this server's secret" in forged.stderr
    foreign = im(
        secured, "tail", "team", "--as", "alice", "--tls-ca", str(theirs.certificate), token=token
    )
    assert foreign.returncode == 1
    assert "is not believed here" in foreign.stderr

    # A certificate is renewed while everything runs; an actor that starts later shows it too.
    newer = ours.sign("renewed")
    put(newer, files, "certificate", "key")

    async def renewed() -> None:
        async with asyncio.timeout(60):
            while await shown_by(run.gateway_port, files) != fingerprint(newer.certificate):
                await asyncio.sleep(0.1)

    asyncio.run(renewed())
    pid = int(secured.call("pids")["shard-1"])
    os.kill(pid, 9)
    secured.wait(lambda: secured.pids().get("shard-1") not in (None, pid))
    secured.wait(lambda: bool(secured.call("status")["healthy"]))
    assert im(secured, *send, token=token).returncode == 0

    found = listening(processes.session_processes(run.ray_sid, run.ray_temp_dir))
    assert unlisted(found) == []
    assert {one.address for one in found} == {"127.0.0.1"}

    known = read_cluster(secured.data)
    assert known is not None
    keys = [Path(path).read_text().splitlines()[1] for path in (files.key, newer.key)]
    secrets = [TOKEN_SECRET, PASSWORD, known.secret, token.rpartition(".")[2], *keys]
    secrets.append((secured.data / "ray-token").read_text())
    assert secured.shown(secrets) == []

    deploy.down(secured.data, secured.said.append)
    assert "stopping" in secured.said
    assert not any("no clean stop" in text for text in secured.said)
