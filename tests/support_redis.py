"""A real Redis server for tests, started and stopped by them.

    pytest_plugins = ["tests.support_redis"]

    def test_something(redis_server: RedisServer): ...      # one for the whole run, safe settings
    def test_other(make_redis: MakeRedis):                  # servers of one's own
        server = make_redis(appendonly="no")
        server.kill(); server.wipe(); server.start()

Tests that share ``redis_server`` use keys of their own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from im_actors.actors.processes import free_port

START_S = 60.0
SAFE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
    "save": "",
    "loglevel": "warning",
}

MakeRedis = Callable[..., "RedisServer"]


class RedisServer:
    """One server process on a port of its own; the port and the data stay over restarts."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        self.directory = directory
        self.settings = settings
        self.port = free_port("127.0.0.1")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns when the server answers."""
        assert self._process is None
        self.directory.mkdir(parents=True, exist_ok=True)
        fixed = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.directory)}
        words = ["redis-server"]
        for name, value in {**fixed, **self.settings}.items():
            words += [f"--{name}", *(value.split() if value else [""])]
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not self._answers():
            text = (self.directory / "server.log").read_text()
            assert self._process.poll() is None, f"redis-server ended: {text}"
            assert time.monotonic() < deadline, f"redis-server does not answer: {text}"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(64)
        except OSError:
            return False
        return answer.startswith((b"+PONG", b"-NOAUTH"))

    def command(self, *words: str | bytes) -> bytes:
        """Send a command past the code under test; its raw answer, as far as one read brings it."""
        encoded = [word.encode() if isinstance(word, str) else word for word in words]
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            parts = [b"*%d\r\n" % len(encoded)]
            parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded]
            connection.sendall(b"".join(parts))
            answer = connection.recv(65_536)
        assert not answer.startswith(b"-"), answer
        return answer

    def pause(self) -> None:
        """Connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """As a crash of the process; also when it is paused, or not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wipe(self) -> None:
        """Lose the data of a server that does not run."""
        assert self._process is None
        shutil.rmtree(self.directory)

    def restart(self, **settings: str) -> None:
        """Kill it and start it on the same data and port, with some settings changed."""
        self.kill()
        self.settings = {**self.settings, **_dashed(settings)}
        self.start()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


def _dashed(settings: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in settings.items()}


def _need_redis() -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed: the tests against a real Redis are left out")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server with safe settings for the whole run. Not to be stopped."""
    _need_redis()
    server = RedisServer(tmp_path_factory.mktemp("redis"), dict(SAFE))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def make_redis(tmp_path: Path) -> Iterator[MakeRedis]:
    """Starts servers for one test; ``make_redis(appendonly="no")`` changes a safe setting."""
    _need_redis()
    servers: list[RedisServer] = []

    def make(**settings: str) -> RedisServer:
        directory = tmp_path / f"redis-{len(servers)}"
        server = RedisServer(directory, {**SAFE, **_dashed(settings)})
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.kill()
