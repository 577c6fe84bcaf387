"""The hosts that the other tests of this directory run on are what they say."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import NO_CABLE, Host, Hosts, hosts, missing

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts(tmp_path_factory.mktemp("hosts"), 3) as made:
        yield made


@pytest.fixture
def pair(three: Hosts) -> tuple[Host, Host]:
    return three.all[0], three.all[1]


def test_each_has_its_own_name_processes_and_disk(three: Hosts, pair: tuple[Host, Host]) -> None:
    one, other = pair
    assert one.ssh("hostname").strip() == one.name
    one.ssh(f"echo mine > {three.mount}/file")
    assert (one.disk / "file").read_text() == "mine\n"
    assert other.ssh(f"ls {three.mount}") == ""
    assert int(one.ssh("ls -d /proc/[0-9]* | wc -l")) < 10
    assert f"{one.address}/24" in one.ssh("ip -4 -o addr show eth0")
    assert "ed25519" in other.ssh(f"ssh-keyscan -T 5 {one.address} 2>/dev/null")


def test_cuts_and_heals(pair: tuple[Host, Host]) -> None:
    _, host = pair
    assert host.listens(22)
    for cut in (host.cut, lambda: host.cut_one_way(True), lambda: host.cut_one_way(False)):
        cut()
        assert not host.listens(22)
        host.heal()
        assert host.ssh("echo back") == "back\n"
    host.slow(100)
    assert host.ssh("echo slowly") == "slowly\n"
    host.heal()


@pytest.mark.skipif(bool(NO_CABLE), reason=NO_CABLE)
def test_a_long_cable_is_late_and_loses_some(pair: tuple[Host, Host], seed: int) -> None:
    _, host = pair
    host.lengthen(delay_ms=30, jitter_ms=10, loss=0.0, seed=seed)
    begun = time.monotonic()
    assert host.listens(22)
    assert time.monotonic() - begun >= 2 * 0.030, "there and back"
    host.heal()
    host.lengthen(delay_ms=1, jitter_ms=0, loss=0.05, seed=seed)
    assert len(host.ssh("head -c 200000 /dev/zero")) == 200_000, "TCP sends again what is lost"
    host.heal()
    host.lengthen(delay_ms=0, jitter_ms=0, loss=1.0, seed=seed)
    assert not host.listens(22)
    host.heal()
    assert host.ssh("echo back") == "back\n"
    left = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    assert f" {host.name}p@" in left
    assert [end for end in "nfb" if f" {host.name}{end}:" in left] == [], "nothing of it"


def test_a_killed_host_takes_its_processes_with_it_and_keeps_its_disk(
    three: Hosts, pair: tuple[Host, Host]
) -> None:
    host, _ = pair
    host.ssh(f"echo kept > {three.mount}/file; nohup sleep 300 > /dev/null 2>&1 &")
    process = host.first_process
    host.kill()
    assert not host.listens(22)
    assert not os.path.exists(f"/proc/{process}")
    host.start()
    assert host.ssh(f"cat {three.mount}/file") == "kept\n"
    assert "sleep 300" not in host.ssh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    host.kill()
    host.lose_disk()
    host.start()
    assert host.ssh(f"ls {three.mount}") == ""


def test_nothing_is_left(tmp_path: Path) -> None:
    with hosts(tmp_path, 1) as made:
        tag = made.tag
        (only,) = made.all
        child = only.first_process
    left = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    left += subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
    assert tag not in left
    assert not os.path.exists(f"/proc/{child}")
