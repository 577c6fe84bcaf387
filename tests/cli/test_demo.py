"""demo: the whole of it under Ray, and its failures on a cluster that is easier to spoil."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from im_actors.actors import deploy
from im_actors.errors import NotReachable, SetupError
from im_actors.server.cluster_file import RunFile, read_run
from tests.cli.conftest import ClusterThread, Result, spawn

Run = Callable[..., Result]


class FakeDeploy:
    """up and down without Ray."""

    def __init__(self) -> None:
        self.clusters: list[ClusterThread] = []
        self.calls: list[str] = []
        self.down_fails = False

    def up(self, config: deploy.UpConfig, progress: Callable[[str], None]) -> RunFile:
        self.calls.append("up")
        config.validate()
        config.data.mkdir(parents=True)
        cluster = ClusterThread(config.data, gateways=config.gateways)
        self.clusters.append(cluster)
        cluster.start()
        run = read_run(config.data)
        assert run is not None
        return run

    def down(self, data: Path, progress: Callable[[str], None]) -> None:
        self.calls.append("down")
        if self.down_fails:
            self.down_fails = False
            raise NotReachable("stuck")
        self.clusters[-1].stop()

    def kill_everything(self, data: Path) -> None:
        self.calls.append("kill_everything")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeDeploy]:
    fake = FakeDeploy()
    for name in ("up", "down", "kill_everything"):
        monkeypatch.setattr(deploy, name, getattr(fake, name))
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    yield fake
    for cluster in fake.clusters:
        cluster.close()
    assert list((tmp_path / "temp").iterdir()) == []


def test_the_flow(im: Run, fake: FakeDeploy) -> None:
    code, out, err = im("demo", "--messages", 3_000, "--window", 4)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("up at im://127.0.0.1:")
    assert any(line.startswith("verify: sound, 3,000 events") for line in lines)
    report = json.loads(lines[-1])
    assert report["acked"] == 3_000
    assert report["verify"]["divergent"] == 0
    assert {fault["kind"] for fault in report["faults"]} == {
        "kill-shard", "kill-replica", "kill-gateway", "drop-connections",
    }  # fmt: skip
    assert fake.calls == ["up", "down"]


def test_json_alone_on_standard_output(im: Run, fake: FakeDeploy) -> None:
    code, out, err = im("demo", "--messages", 200, "--json", "--faults", "")
    assert code == 0
    assert len(out.splitlines()) == 1
    assert json.loads(out)["faults"] == []
    assert "verify: sound" in err


def test_a_down_that_fails_kills(im: Run, fake: FakeDeploy) -> None:
    fake.down_fails = True
    code, out, _ = im("demo", "--messages", 100, "--faults", "drop-connections")
    assert code == 0
    assert fake.calls == ["up", "down", "kill_everything", "down"]
    assert "down failed" in out


def test_an_up_that_fails(im: Run, fake: FakeDeploy, monkeypatch: pytest.MonkeyPatch) -> None:
    def up(config: Any, progress: Any) -> None:
        raise SetupError("no room")

    monkeypatch.setattr(deploy, "up", up)
    assert im("demo") == (1, "", "im-actors: no room\n")


def test_an_error_in_the_middle_still_cleans_up(
    im: Run, fake: FakeDeploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("im_actors.cli.replay.Replay._play_all", _interrupted)
    code, _, _ = im("demo", "--messages", 100)
    assert code == 130
    assert fake.calls == ["up", "down"]


async def _interrupted(self: object) -> None:
    raise KeyboardInterrupt


def test_corruption_fails_it(im: Run, fake: FakeDeploy, monkeypatch: pytest.MonkeyPatch) -> None:
    from im_actors.server.operations import Operations

    async def verify(self: Operations) -> dict[str, Any]:
        wrong = {"events": 1, "divergent": 0, "corrupt": 1, "missing": 0, "problems": ["a bit"]}
        return wrong | {"ok": False}

    monkeypatch.setattr(Operations, "verify", verify)
    code, out, _ = im("demo", "--messages", 100, "--faults", "drop-connections")
    assert code == 1
    assert "verify: NOT SOUND" in out


# -- under Ray -------------------------------------------------------------------------------------


def leftovers(temp: Path) -> list[str]:
    """Files below ``temp`` and processes that name it."""
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and str(temp) in " ".join(process.info["cmdline"] or ()):
            processes.append(str(process))
    return [*map(str, temp.iterdir()), *processes]


@pytest.fixture
def temp() -> Iterator[Path]:
    """A short one: Ray's sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="imd") as name:
        yield Path(name)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_under_ray(temp: Path) -> None:
    process = spawn("demo", "--messages", 4_000, "--window", 8, env={"TMPDIR": str(temp)})
    out, err = process.communicate(timeout=220)
    assert process.returncode == 0, out + err
    report = json.loads(out.splitlines()[-1])
    assert report["acked"] == report["received"] == 4_000
    assert len(report["faults"]) == 5
    assert report["takeovers"] > 0
    assert report["verify"]["ok"]
    assert leftovers(temp) == []


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_ctrl_c_under_ray_leaves_nothing(temp: Path) -> None:
    process = spawn("demo", env={"TMPDIR": str(temp)})
    assert process.stdout is not None
    for line in process.stdout:
        if "kill-shard" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert leftovers(temp) == []
