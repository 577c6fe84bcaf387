"""Starts one system in a new directory, and ends it: nothing of it runs afterwards.

A system tells where its clients connect, which processes are its servers, and how many messages of
a run it holds, so that a run that lost or doubled one is void.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

from bench.compare.nats_load import CONNECT, STREAM
from bench.compare.redis_load import words
from im_actors.actors import deploy, processes
from im_actors.cli.bench.processes import GENERATOR
from im_actors.cli.bench.server_side import process_usage
from im_actors.cli.cluster_commands import actors_by_cores
from im_actors.cli.progress import Progress
from im_actors.cli.replay_commands import deaf, end_demo
from im_actors.cli.target import running_cluster

HOST = "127.0.0.1"
SERVERS = 3
START_S = 30.0
STOP_S = 10.0
ANSWER_S = 10.0
API_S = 1.0
"""JetStream does not answer before it has a leader."""
POLL_S = 0.05
SYSTEM_PATHS = ("/usr/sbin", "/usr/local/sbin")
"""Where packages put servers and where users do not look."""


class Missing(Exception):
    """A server is not installed; the text says which package has it."""


def executable(name: str, package: str) -> str:
    """The path of a server's program."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *SYSTEM_PATHS))
    found = shutil.which(name, path=path)
    if found is None:
        raise Missing(f"{name} is not installed; Debian's package is {package}")
    return found


class System:
    """One system under load. Use as a context: it runs inside."""

    name: ClassVar[str]
    meaning: ClassVar[str]
    generator: ClassVar[str] = GENERATOR
    """The module whose processes make load for it."""
    followers: ClassVar[int] = 0
    """Readers of each session."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def acknowledges(cls) -> str:
        """What its acknowledgement says, in a sentence."""
        return cls.meaning

    @classmethod
    def require(cls) -> str:
        """Its version. Missing when it is not installed."""
        raise NotImplementedError

    def start(self) -> None:
        """Returns when it serves."""
        raise NotImplementedError

    def stop(self) -> None:
        """Nothing of it runs when this returns; also after a start that failed."""
        raise NotImplementedError

    def addresses(self) -> list[tuple[str, int]]:
        """Where clients connect."""
        raise NotImplementedError

    def pids(self) -> list[int]:
        """All of its processes."""
        raise NotImplementedError

    def held(self, sessions: list[str]) -> list[int]:
        """How many messages each copy that can be asked has in these new sessions; empty when the
        load looks at every message itself."""
        return []

    def __enter__(self) -> System:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Another Ctrl-C must not leave half of it behind.
        with deaf():
            self.stop()


class ImActors(System):
    """``im-actors up`` with its default sizes."""

    name = "im_actors"
    meaning = (
        "The message has its place in its session, and three replicas have fsynced it; its key is"
        " remembered for ever; one follower a session reads."
    )
    followers = 1

    @classmethod
    def require(cls) -> str:
        from im_actors import __version__

        try:
            deploy.require_ray()
        except Exception as error:
            raise Missing(str(error)) from None
        return __version__

    def start(self) -> None:
        count = actors_by_cores()
        config = deploy.UpConfig(data=self.directory / "data", shards=count, gateways=count, port=0)
        self._run = deploy.up(config, lambda text: None)

    def stop(self) -> None:
        end_demo(self.directory / "data", Progress(sys.stderr, bar=False))

    def addresses(self) -> list[tuple[str, int]]:
        found = asyncio.run(running_cluster(self.directory / "data").gateways())
        return [(host, int(port)) for host, _, port in (a.rpartition(":") for a in found)]

    def pids(self) -> list[int]:
        run = self._run
        return [p.pid for p in processes.session_processes(run.ray_sid, run.ray_temp_dir)]


class Daemons(System):
    """Three server processes of our own."""

    ports_each: ClassVar[int] = 1

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.ports = free_ports(self.ports_each * SERVERS)

    def spawn(self, number: int, *command: str) -> None:
        """In a session of its own: Ctrl-C is for us, and we end the servers."""
        home = self.home(number)
        with (home / "output.log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    cwd=home, start_new_session=True,
                )
            )  # fmt: skip

    def home(self, number: int) -> Path:
        home = self.directory / f"server-{number}"
        home.mkdir(parents=True, exist_ok=True)
        return home

    def wait(self, what: str, condition: Any) -> None:
        """Until the condition holds; it may fail while the servers do not listen."""
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError, ValueError):
                if condition():
                    return
            ended = [p for p in self._processes if p.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: no {what}: {self._logs()}")
            time.sleep(POLL_S)

    def _logs(self) -> str:
        texts = [path.read_text(errors="replace") for path in self.directory.rglob("*.log")]
        return "\n".join(text[-1000:] for text in texts)

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]


class Redis(Daemons):
    """A master and two replicas that all fsync before they answer."""

    name = "redis"
    generator = "bench.compare.redis_load"
    meaning = (
        "The master and, by WAIT 2, both replicas have applied the message and, with appendfsync"
        " always, fsynced it before they answered; its key is remembered for ever; nobody reads."
    )
    settings: ClassVar[dict[str, str]] = {
        "bind": HOST,
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        # A rewrite forks and copies: left out, because a run is too short to pay it fairly.
        "auto-aof-rewrite-percentage": "0",
        "maxmemory-policy": "noeviction",
        "repl-diskless-sync-delay": "0",
        "loglevel": "warning",
    }

    @classmethod
    def require(cls) -> str:
        program = executable("redis-server", "redis-server")
        text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        return text.stdout.split("v=")[1].split()[0]

    def start(self) -> None:
        program = executable("redis-server", "redis-server")
        for number, port in enumerate(self.ports):
            more = {"port": str(port)}
            if number:
                more["replicaof"] = f"{HOST} {self.ports[0]}"
            options: list[str] = []
            for key, value in {**self.settings, **more}.items():
                options += [f"--{key}", *(value.split() if value else [""])]
            self.spawn(number, program, *options)
        self.wait("master", lambda: self._ask(0, b"PING") == b"+PONG\r\n")
        self.wait("replicas", lambda: self._ask(0, b"WAIT", b"2", b"100") == b":2\r\n")

    def _ask(self, number: int, *command: bytes) -> bytes:
        with socket.create_connection((HOST, self.ports[number]), ANSWER_S) as connection:
            connection.sendall(words(*command))
            return connection.recv(65_536)

    def addresses(self) -> list[tuple[str, int]]:
        return [(HOST, self.ports[0])]

    def held(self, sessions: list[str]) -> list[int]:
        request = b"".join(words(b"XLEN", session.encode()) for session in sessions)
        counts = []
        for port in self.ports:
            with socket.create_connection((HOST, port), ANSWER_S) as connection:
                connection.sendall(request)
                lines = connection.makefile("rb")
                counts.append(sum(int(lines.readline()[1:]) for _ in sessions))
        return counts


class Nats(Daemons):
    """Three servers, one stream with three replicas in files."""

    name = "nats_default"
    generator = "bench.compare.nats_load"
    meaning = (
        "A majority of the three servers has written the message to its page cache; the stream is"
        " fsynced every two minutes; its id is remembered for two minutes; nobody reads."
    )
    ports_each = 2
    sync_line = ""

    @classmethod
    def require(cls) -> str:
        program = executable("nats-server", "nats-server")
        text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        return (text.stdout or text.stderr).split("v")[-1].strip()

    def start(self) -> None:
        program = executable("nats-server", "nats-server")
        for number in range(SERVERS):
            config = self.home(number) / "nats.conf"
            config.write_text(self._config(number))
            self.prepare_store(self.home(number) / "store")
            self.spawn(number, program, "-c", str(config))
        self.wait("cluster", self._create_stream)
        self.wait("stream leader", lambda: self._leader() is not None)

    def prepare_store(self, store: Path) -> None:
        store.mkdir()

    def _config(self, number: int) -> str:
        home = self.home(number)
        routes = ", ".join(f'"nats://{HOST}:{port}"' for port in self.ports[SERVERS:])
        return f"""
            server_name: bench-{number}
            listen: "{HOST}:{self.ports[number]}"
            logfile: "{home / "nats.log"}"
            jetstream {{ store_dir: "{home / "store"}", {self.sync_line} }}
            cluster {{
              name: bench
              listen: "{HOST}:{self.ports[SERVERS + number]}"
              routes: [{routes}]
            }}
        """

    def _create_stream(self) -> bool:
        answer = self._ask(
            f"STREAM.CREATE.{STREAM}",
            {
                "name": STREAM,
                "subjects": [f"{STREAM}.>"],
                "storage": "file",
                "num_replicas": SERVERS,
                "retention": "limits",
                "max_consumers": -1,
                "max_msgs": -1,
                "max_bytes": -1,
            },
        )
        return "error" not in answer

    def _info(self) -> dict[str, Any]:
        return self._ask(f"STREAM.INFO.{STREAM}", {})

    def _leader(self) -> int | None:
        """Which server leads the stream, once both of the others follow it."""
        cluster = self._info().get("cluster", {})
        followers = [peer for peer in cluster.get("replicas", []) if peer.get("current")]
        if not cluster.get("leader") or len(followers) < SERVERS - 1:
            return None
        return int(cluster["leader"].rpartition("-")[2])

    def _ask(self, subject: str, request: dict[str, Any]) -> dict[str, Any]:
        """A request to the JetStream API; ValueError when nobody answers it yet."""
        data = json.dumps(request).encode()
        with socket.create_connection((HOST, self.ports[0]), API_S) as connection:
            connection.sendall(
                CONNECT + b"SUB _INBOX.ask 1\r\n"
                b"PUB $JS.API.%b _INBOX.ask %d\r\n%b\r\n" % (subject.encode(), len(data), data)
            )
            lines = connection.makefile("rb")
            for line in lines:
                if line.startswith(b"MSG "):
                    answer: dict[str, Any] = json.loads(lines.read(int(line.split()[-1])))
                    return answer
                if line.startswith((b"HMSG ", b"-ERR")):
                    raise ValueError(line)
        raise ValueError("no answer")

    def addresses(self) -> list[tuple[str, int]]:
        """Of the stream's leader, which saves its clients a hop."""
        leader = self._leader()
        return [(HOST, self.ports[leader or 0])]

    def held(self, sessions: list[str]) -> list[int]:
        """The stream's leader counts its messages by subject; all of a run's begin alike."""
        run = sessions[0].partition(".")[0]
        info = self._ask(f"STREAM.INFO.{STREAM}", {"subjects_filter": f"{STREAM}.{run}.>"})
        return [sum(info["state"].get("subjects", {}).values())]


class NatsSync(Nats):
    """As safe as the installed version can be made."""

    name = "nats_sync"
    meaning = "A majority of the three servers has fsynced the message"

    @classmethod
    def acknowledges(cls) -> str:
        version, rest = cls.require(), "its id is remembered for two minutes; nobody reads."
        if cls.has_setting():
            return f"{cls.meaning}, by sync_interval: always of version {version}; {rest}"
        return (
            f"{cls.meaning}: version {version} has no setting for it, so its files have the"
            f" attribute S, which makes each write of theirs a synchronous one; {rest}"
        )

    @classmethod
    def require(cls) -> str:
        version = super().require()
        if not cls.has_setting():
            with tempfile.TemporaryDirectory() as directory:
                write_synchronously(Path(directory))
        return version

    @classmethod
    @functools.cache
    def has_setting(cls) -> bool:
        """Whether this version knows sync_interval, as 2.10 and later do."""
        program = executable("nats-server", "nats-server")
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as config:
            config.write("jetstream { sync_interval: always }")
            config.flush()
            test = subprocess.run([program, "-t", "-c", config.name], capture_output=True)
            return test.returncode == 0

    @property
    def sync_line(self) -> str:
        return "sync_interval: always" if self.has_setting() else ""

    def prepare_store(self, store: Path) -> None:
        store.mkdir()
        if not self.has_setting():
            write_synchronously(store)


def write_synchronously(directory: Path) -> None:
    """Each write to a new file in it returns when it is on the disk. Missing where that takes other
    rights or another file system."""
    try:
        subprocess.run(["chattr", "+S", directory], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise Missing(
            "this nats-server has no sync_interval (2.10 and later have), and chattr +S (of the"
            f" package e2fsprogs), which does the same from outside, fails on {directory.parent}"
        ) from None


SYSTEMS: dict[str, type[System]] = {
    system.name: system for system in (ImActors, Redis, Nats, NatsSync)
}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    ports: list[int] = []
    while len(ports) < count:
        ports.append(processes.free_port(HOST, tuple(ports)))
    return ports


def cpu_seconds(pids: list[int]) -> float:
    """What these processes have used so far; those that have ended count for nothing."""
    used_us = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            used_us += process_usage(pid)[0]
    return used_us / 1e6
