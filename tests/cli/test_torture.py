"""The command: what it asks for, how it ends, and the whole of it once under Ray."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from im_actors.actors import processes
from im_actors.cli.torture import run as run_module
from im_actors.cli.torture.run import Report
from im_actors.cli.torture.schedule import KINDS
from tests.cli.conftest import Result, spawn

Run = Callable[..., Result]
SOUND = {
    "slots": 16, "records": 9, "events": 9, "divergent": 0, "corrupt": 0, "missing": 0,
    "problems": [], "ok": True,
}  # fmt: skip
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="pip install 'im-actors[server]'"
)


def good() -> Report:
    return Report(7, sent=9, acked=9, faults={"kill-shard": 1}, verify=dict(SOUND))


class Nodes:
    @staticmethod
    def attach_env() -> dict[str, str]:
        return {}


class FakeTorture:
    """A torture that takes no time. ``result`` is its report or its error."""

    result: Any = None
    made: FakeTorture

    def __init__(self, config: Any, directory: Path, say: Callable[[str], None]) -> None:
        type(self).made = self
        self.config, self.directory, self.ended = config, directory, 0
        self.cluster = self
        self.nodes = Nodes()

    async def run(self) -> Report:
        (self.directory / "data").mkdir()
        if isinstance(self.result, BaseException):
            raise self.result
        report: Report = self.result
        return report

    def end_processes(self) -> None:
        self.ended += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeTorture]:
    monkeypatch.setattr(run_module, "Torture", FakeTorture)
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    return FakeTorture


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "temp").iterdir()]


def test_all_is_well_and_nothing_is_left(im: Run, fake: type[FakeTorture], tmp_path: Path) -> None:
    fake.result = good()
    code, out, _ = im("torture", "--json", "--seed", 7)
    assert code == 0
    found = json.loads(out)
    assert (found["acked"], found["anomalies"], found["seed"]) == (9, {}, 7)
    assert found["faults"] == {"kill-shard": 1}
    assert {"recovery_ms", "elapsed_s", "verify", "sent"} <= set(found)
    assert left(tmp_path) == []
    assert fake.made.ended == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda report: report.anomalies.update({"lost-write": 1}),
        lambda report: report.note("never-acked", "one message"),
        lambda report: setattr(report, "acked", 8),
        lambda report: setattr(report, "refused", 1),
        lambda report: report.verify.update(divergent=1),
        lambda report: report.verify.clear(),
    ],
)
def test_anything_wrong_is_a_failure_and_the_data_stays(
    im: Run, fake: type[FakeTorture], tmp_path: Path, spoil: Callable[[Report], None]
) -> None:
    fake.result = good()
    spoil(fake.result)
    code, out, error = im("torture", "--json")
    assert code == 1
    assert json.loads(out)["verify"] == fake.result.verify
    (name,) = left(tmp_path)
    assert name in error, "it is told where"


def test_what_was_wrong_is_told_in_words(im: Run, fake: type[FakeTorture]) -> None:
    fake.result = good()
    fake.result.note("never-acked", "message 3 of a/b")
    fake.result.stories = ["slot 4: sealed"]
    _, out, _ = im("torture")
    assert "never-acked: message 3 of a/b" in out
    assert "slot 4: sealed" in out
    assert "anomalies: 1 never-acked" in out


def test_an_error_keeps_the_data_too(im: Run, fake: type[FakeTorture], tmp_path: Path) -> None:
    from im_actors.errors import SetupError

    fake.result = SetupError("Ray does not start")
    code, _, error = im("torture")
    assert code == 1
    assert "Ray does not start" in error
    assert len(left(tmp_path)) == 1
    assert fake.made.ended == 1


def test_ctrl_c_leaves_nothing(im: Run, fake: type[FakeTorture], tmp_path: Path) -> None:
    fake.result = KeyboardInterrupt()
    code, _, _ = im("torture")
    assert code == 130
    assert left(tmp_path) == []
    assert fake.made.ended == 1


def test_a_directory_to_keep(im: Run, fake: type[FakeTorture], tmp_path: Path) -> None:
    fake.result = good()
    wanted = tmp_path / "kept"
    assert im("torture", "--keep", wanted)[0] == 0
    assert (wanted / "data").is_dir()
    code, _, error = im("torture", "--keep", wanted)
    assert code == 1
    assert "not empty" in error


def test_what_is_asked_for_arrives(im: Run, fake: type[FakeTorture]) -> None:
    fake.result = good()
    im("torture", "--minutes", "0.5", "--faults", "kill-,cut-links", "--seed", 3, "--writers", 5)
    config = fake.made.config
    assert (config.seconds, config.seed, config.writers) == (30.0, 3, 5)
    assert set(config.kinds) == {k for k in KINDS if k.startswith("kill-")} | {"cut-links"}


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--faults", "kill-everyone"], 1, "--faults knows kill-shard"),
        (["--minutes", "0"], 2, "above 0"),
        (["--minutes", "soon"], 2, "above 0"),
        (["--rate", "100000"], 1, "--rate is at most"),
        (["--writers", "1000"], 1, "--writers is at most"),
        (["--sessions", "0"], 2, "--sessions"),
        (["--keep", "/dev/null/x"], 1, "cannot be used"),
    ],
)
def test_mistakes_are_told(
    im: Run, fake: type[FakeTorture], tmp_path: Path, argv: list[str], code: int, says: str
) -> None:
    fake.result = good()
    found, _, error = im("torture", *argv)
    assert (found, says in error) == (code, True), error
    assert left(tmp_path) == []


def test_help_lists_the_faults(im: Run) -> None:
    code, out, _ = im("torture", "--help")
    assert code == 0
    assert all(kind in out for kind in KINDS)


@needs_ray
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_short_torture(im: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    faults = "kill-shard,kill-replica,crash-writers,hold-links,cut-links"
    code, out, error = im("torture", "--json", "--minutes", 0.2, "--faults", faults, "--seed", 11)
    assert code == 0, error
    found = json.loads(out)
    assert found["anomalies"] == {}
    assert found["acked"] == found["sent"] > 300
    assert sum(found["faults"].values()) >= 1
    assert found["verify"]["events"] >= found["acked"]
    assert found["resent"] > 0
    assert left(tmp_path) == []


@needs_ray
@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_signal_ends_everything(tmp_path: Path) -> None:
    (tmp_path / "temp").mkdir()
    command = spawn("torture", env={"TMPDIR": str(tmp_path / "temp")})
    sid, temp_dir = starting_head(command.pid)
    wait_until(lambda: processes.session_processes(sid, temp_dir))
    os.kill(command.pid, signal.SIGTERM)
    output, error = command.communicate(timeout=60)
    assert command.returncode == 143, output + error
    assert left(tmp_path) == []
    assert not processes.session_processes(sid, temp_dir)
    assert not Path(temp_dir).exists()


def starting_head(pid: int) -> tuple[int, str]:
    """The session and the directory of the Ray that the command starts."""
    found: list[tuple[int, str]] = []

    def look() -> bool:
        for child in psutil.Process(pid).children():
            words = [word for word in child.cmdline() if word.startswith("--temp-dir=")]
            found.extend((child.pid, word.removeprefix("--temp-dir=")) for word in words)
        return bool(found)

    wait_until(look)
    return found[0]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
