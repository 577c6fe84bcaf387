"""A Ray of several nodes on this machine: a head, and nodes that are killed and come back.

Every node is a session of processes (setsid) of its own. Each offers a disk by the resource that
``placement`` knows, so that a replica whose node was killed comes back where its directory is. All
of them listen on loopback only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import subprocess
import sys
from pathlib import Path

import psutil

from im_actors.actors import processes
from im_actors.actors.placement import DISK, write_places
from im_actors.actors.settings import CONTROLLER
from im_actors.errors import SetupError

LOOPBACK = "127.0.0.1"
HEAD_RESOURCE = "im_head"
ACTORS = ("ray::ReplicaActor", "ray::ShardActor", "ray::GatewayActor")
"""As Ray names their processes. The system keeps 15 characters; psutil reads the rest."""
NOTICE_S = 5.0
START_S = 60.0
START_TRIES = 3
HEALTH = {
    # A killed raylet is noticed in seconds and not in a quarter of a minute, and one that a busy
    # machine keeps waiting is not taken for dead.
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
    # Nobody uses the workers that would be started in advance: ours have an environment.
    "RAY_enable_worker_prestart": "0",
}


class Nodes:
    """The nodes ``0`` (the head) to ``count - 1``. ``directory`` keeps the token of this Ray."""

    def __init__(self, directory: Path, count: int) -> None:
        self.count = count
        self._token = directory / "ray-token"
        self._token.write_text(secrets.token_hex(32))
        self._token.chmod(0o600)
        self._port = processes.free_port(LOOPBACK)
        self._temp_dir = str(processes.make_temp_dir())
        self._sids: dict[int, set[int]] = {number: set() for number in range(count)}

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self._port}"

    def attach_env(self) -> dict[str, str]:
        """What a process needs in its environment to attach to this Ray."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token)}

    def write_places(self, data: Path, replicas: int) -> None:
        """Tie each replica to a node's disk, and the controller to the head, which stays."""
        places = {f"replica-{n}": f"{DISK}{(n - 1) % self.count}" for n in range(1, replicas + 1)}
        write_places(data, {CONTROLLER: HEAD_RESOURCE, **places})

    @property
    def running(self) -> bool:
        """Whether the head runs, and with it all that was not lost on purpose."""
        return bool(self._sids[0])

    # -- starting ------------------------------------------------------------------------------

    async def start_all(self) -> None:
        """Start one after the other: beside each other two may choose the same socket, and one of
        them would never come up."""
        for number in range(self.count):
            await self.start(number)

    async def start(self, number: int) -> None:
        """Start one node; SetupError when it does not come up."""
        for attempt in range(START_TRIES):
            process = self._launch(number)
            self._sids[number].add(process.pid)
            code = await asyncio.to_thread(_wait, process)
            if code == 0:
                return
            await asyncio.to_thread(self.kill, number)
            if attempt + 1 == START_TRIES:
                raise SetupError(f"Ray's node {number} does not start; see {self._log(number)}")

    def _launch(self, number: int) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-m", *self._command(number)]
        with self._log(number).open("ab") as log:
            return subprocess.Popen(
                arguments,
                env={**processes.ray_env(self._token, 1), **HEALTH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _command(self, number: int) -> list[str]:
        resources = json.dumps({f"{DISK}{number}": 1} | ({} if number else {HEAD_RESOURCE: 1}))
        if number:
            return ["im_actors.actors.further_node", self.address, self._temp_dir, resources]
        head = processes.head_arguments(self._port, self._temp_dir, 1)
        return ["ray.scripts.scripts", "start", "--head", *head, f"--resources={resources}"]

    def _log(self, number: int) -> Path:
        return self._token.with_name(f"node-{number}.log")

    # -- killing -------------------------------------------------------------------------------

    def processes(self, number: int) -> list[psutil.Process]:
        """The living processes of a node."""
        return [
            process
            for sid in tuple(self._sids[number])
            for process in processes.session_processes(sid, self._temp_dir)
        ]

    def actors(self, number: int) -> list[psutil.Process]:
        """Those of them that are actors of ours."""
        return [p for p in self.processes(number) if _name(p) in ACTORS]

    def kill_raylet(self, number: int) -> None:
        """SIGKILL to the raylet alone: its actors are still there, and notice."""
        for process in self.processes(number):
            if _name(process) == "raylet":
                process.kill()

    def kill_raylet_and_wait(self, number: int) -> None:
        """The same; returns when the actors have noticed, and ended themselves."""
        actors = self.actors(number)
        self.kill_raylet(number)
        psutil.wait_procs(actors, NOTICE_S)

    def kill(self, number: int) -> int:
        """SIGKILL to every process of a node; how many there were."""
        killed = sum(
            processes.kill_session(sid, self._temp_dir) for sid in tuple(self._sids[number])
        )
        self._sids[number].clear()
        return killed

    def kill_all(self) -> None:
        """SIGKILL to every process of this Ray at once; returns when they are gone."""
        found = [process for number in range(self.count) for process in self.processes(number)]
        # The actors first and without a look in between, or some would see the others die.
        for process in sorted(found, key=_name, reverse=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        for number in range(self.count):
            self.kill(number)

    def end(self) -> None:
        """Leave nothing behind."""
        self.kill_all()
        processes.remove_temp_dir(self._temp_dir)


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(START_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return -1
