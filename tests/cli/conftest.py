"""A cluster in a thread of its own, so that commands run as from a shell: one call, one end."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from im_actors import __version__
from im_actors.cli.main import main
from im_actors.server.cluster_file import RunFile, remove_run, write_run
from im_actors.server.settings import ClusterSettings
from im_actors.testing import LocalCluster


class ClusterThread:
    """A LocalCluster with the run.json that ``up`` would write."""

    def __init__(self, data: Path, **settings: Any) -> None:
        self.data = data
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.running = False

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def start(self) -> None:
        if not self._thread.is_alive():
            self._thread.start()
        self.cluster = LocalCluster(self.data, **self._settings)
        self.run(self.cluster.start())
        self.running = True
        gateways = self.cluster.url.partition("://")[2].split(",")
        operator = self._settings.get("settings", ClusterSettings())
        host, _, port = gateways[0].rpartition(":")
        admin = self.cluster.admin()
        write_run(
            self.data,
            RunFile(
                ray_address="",
                namespace="",
                ray_temp_dir="",
                ray_sid=0,
                admin_address=admin._target[0],
                admin_port=admin._target[1],
                gateway_address=host,
                gateway_port=int(port),
                started_ms=int(time.time() * 1000),
                version=__version__,
                settings={"operator": operator.public()},
            ),
        )

    def stop(self) -> None:
        """As ``down``."""
        if self.running:
            self.running = False
            self.run(self.cluster.stop())
            remove_run(self.data)

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's own files."""
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    for name in ("DATA", "TOKEN", "TOKEN_SECRET", "TOKEN_SECRET_FILE", "TLS_CA"):
        monkeypatch.delenv(f"IM_ACTORS_{name}", raising=False)
    return home


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterThread]:
    cluster = ClusterThread(tmp_path_factory.mktemp("cluster"), gateways=2)
    cluster.start()
    yield cluster
    cluster.close()


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[ClusterThread]:
    """For tests that stop it."""
    cluster = ClusterThread(tmp_path / "cluster")
    cluster.data.mkdir()
    cluster.start()
    yield cluster
    cluster.close()


Result = tuple[int, str, str]


@pytest.fixture
def im(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command in this process: its exit code, standard output and standard error."""

    def run(*argv: object) -> Result:
        try:
            code = main([str(part) for part in argv])
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def spawn(*argv: object, **options: Any) -> subprocess.Popen[str]:
    """Start a command as a process of its own."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "im_actors.cli", *map(str, argv)],
        stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=options.pop("stderr", subprocess.PIPE),
        text=True,
        cwd=Path(__file__).parents[2],
        env=environment,
        **options,
    )


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]
