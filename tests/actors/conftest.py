"""A real cluster under a local Ray, shared by the tests that need one; nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from im_actors.actors import deploy, processes
from im_actors.client import Client
from im_actors.errors import ImError
from im_actors.server.admin import admin_of
from im_actors.server.cluster_file import RunFile, read_cluster, read_run

WAIT_S = 150.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ray: starts a real local Ray")


class RayCluster:
    """A cluster in a directory, and what tests do to it. Its methods block."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.said: list[str] = []

    def up(self, **settings: Any) -> RunFile:
        config = deploy.UpConfig(data=self.data, **{"port": 0, "slots": 8, **settings})
        self.said = []
        return deploy.up(config, self.said.append)

    @property
    def run(self) -> RunFile:
        run = read_run(self.data)
        assert run is not None
        return run

    def call(self, method: str, *args: Any, timeout_s: float = 60.0) -> Any:
        return asyncio.run(self.ask(method, *args, timeout_s=timeout_s))

    async def ask(self, method: str, *args: Any, timeout_s: float = 60.0) -> Any:
        cluster = read_cluster(self.data)
        assert cluster is not None
        async with admin_of(self.run, cluster.secret_bytes) as admin:
            return await admin.call(method, *args, timeout_s=timeout_s)

    def pids(self) -> dict[str, int]:
        pids: dict[str, int] = self.call("pids")
        return pids

    def kill(self, name: str) -> int:
        """kill -9; the pid that is gone."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_back(self, name: str, pid: int) -> None:
        """Return when ``name`` runs in another process and everything is served."""
        self.wait(lambda: self.pids().get(name) != pid and self.call("status")["healthy"])

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ImError):
                if condition():
                    return
            time.sleep(0.05)
        raise AssertionError(f"not so within {WAIT_S} s: {self.call('status')}")

    def processes(self) -> int:
        run = self.run
        return len(processes.session_processes(run.ray_sid, run.ray_temp_dir))

    def shown(self, words: list[str]) -> list[str]:
        """Where one of these can be read by others: command lines of this machine's processes and
        log files of this cluster."""
        found = {word: set[str]() for word in (self.run.ray_temp_dir, "replica-1 serves", *words)}
        for path in (*Path("/proc").glob("[0-9]*/cmdline"), *self._logs()):
            with contextlib.suppress(OSError):
                content = path.read_bytes()
                for word in found:
                    if word.encode() in content:
                        found[word].add(str(path))
        # It is looked where something is to be found.
        assert any(path.startswith("/proc/") for path in found[self.run.ray_temp_dir])
        assert str(self.data / "logs" / "replica-1.log") in found["replica-1 serves"]
        return [f"{word[:4]}… in {path}" for word in words for path in found[word]]

    def _logs(self) -> Iterator[Path]:
        yield from (path for path in (self.data / "logs").rglob("*") if path.is_file())
        temp_dir = Path(self.run.ray_temp_dir)
        yield from (path for path in temp_dir.glob("session_*/logs/**/*") if path.is_file())

    def client(self, user: str, **settings: Any) -> Client:
        return Client(self.run.url, user=user, device="test", **settings)

    def within(self, work: Awaitable[Any], seconds: float = WAIT_S) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(seconds):
                return await work

        return asyncio.run(bounded())

    def send(self, session: str, *texts: str, user: str = "alice") -> list[int]:
        """Send and wait for the ACKs; the seqs."""

        async def work() -> list[int]:
            async with self.client(user) as client:
                sent = [await client.send(session, text) for text in texts]
                return [(await one.acked()).seq for one in sent]

        seqs: list[int] = self.within(work())
        return seqs

    def history(self, session: str, events: int) -> list[tuple[int, str]]:
        """The session's history when it has so many events: a reader that knows no seq may get an
        older prefix for a moment, as the design allows."""

        async def work() -> list[tuple[int, str]]:
            async with self.client("reader", connect_timeout=60) as client:
                while True:
                    page = await client.history(session, limit=200)
                    if not page.offline and len(page.events) >= events:
                        return [(event.seq, event.text) for event in page.events]
                    await asyncio.sleep(0.05)

        found: list[tuple[int, str]] = self.within(work())
        return found

    def sweep(self) -> None:
        run = read_run(self.data)
        if run is not None:
            processes.kill_session(run.ray_sid, run.ray_temp_dir)
            processes.remove_temp_dir(run.ray_temp_dir)


@pytest.fixture
def make_cluster() -> type[RayCluster]:
    return RayCluster


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'im-actors[server]'")
    cluster = RayCluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield cluster
    finally:
        cluster.sweep()


@pytest.fixture
def cluster(shared: RayCluster) -> RayCluster:
    """It runs, and is healthy."""
    shared.up()
    shared.wait(lambda: bool(shared.call("status")["healthy"]))
    return shared
