"""Backup, restore and repair of clusters under a real Ray, by an operator's commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from im_actors.actors import deploy

if TYPE_CHECKING:
    from conftest import RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
RUN_S = 120


def im(*argv: object) -> tuple[int, dict[str, Any], str]:
    """A command with --json: its exit code, what it said, and its complaints."""
    command = [sys.executable, "-m", "im_actors.cli", *map(str, argv), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


@pytest.fixture
def clusters(make_cluster: type[RayCluster], tmp_path: Path) -> Iterator[list[RayCluster]]:
    """Two directories; what runs from them at the end is ended."""
    found = [make_cluster(tmp_path / name) for name in ("first", "second")]
    yield found
    for cluster in found:
        cluster.sweep()


def test_a_cluster_is_backed_up_lost_restored_and_repaired(
    clusters: list[RayCluster], tmp_path: Path
) -> None:
    first, second = clusters
    copy = tmp_path / "copy"
    first.up()
    assert first.send("team", "a", "b") == [1, 2]
    # While somebody writes, and a replica is killed on the way.
    stop, acked = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            acked.extend(first.send("busy", *map(str, range(50)), user="carol"))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        code, found, complaint = im("backup", copy, "--data", first.data)
        assert code == 0, complaint
        first.kill("replica-2")
        code, found, complaint = im("backup", copy, "--data", first.data)
        assert code == 0, complaint
        assert found["run"] == 2
    finally:
        stop.set()
        writer.join()
    first.send("team", "too late")
    deploy.kill_everything(first.data)
    first.sweep()

    code, restored, complaint = im("restore", copy, "--data", second.data)
    assert code == 0, complaint
    assert restored["lsns"] == found["lsns"]
    second.up()
    assert second.history("team", 2) == [(1, "a"), (2, "b")]
    busy = second.history("busy", 1)
    assert [seq for seq, _ in busy][-1] <= max(acked)
    assert second.send("team", "and on", user="bob") == [3]
    assert second.call("verify", False, timeout_s=60)["ok"]
    code, _, complaint = im("backup", copy, "--data", second.data)
    assert code == 1
    assert "a restored cluster is a new one" in complaint

    deploy.kill_everything(second.data)
    code, _, complaint = im("repair", "--data", second.data)
    assert code == 1
    assert "im-actors down first" in complaint
    deploy.down(second.data, lambda _: None)
    for file in (second.data / "controller").glob("views.db*"):
        os.unlink(file)
    code, dry, _ = im("repair", "--dry-run", "--data", second.data)
    assert (code, dry["changes"], dry["refused"]) == (0, 8, [])
    code, done, complaint = im("repair", "--data", second.data)
    assert (code, done["done"]) == (0, True), complaint
    second.up()
    assert second.history("team", 3)[-1] == (3, "and on")
    assert second.send("team", "after the repair", user="erik") == [4]
    assert second.call("verify", False, timeout_s=60)["ok"]
    deploy.down(second.data, lambda _: None)
