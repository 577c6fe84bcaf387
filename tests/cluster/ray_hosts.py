"""A cluster on several hosts, brought up as ``cluster/README.md`` tells an operator to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from im_actors.gateway.tokens import make_token
from tests.cluster.hosts import Host, Hosts
from tests.cluster.traffic import Traffic, alarms
from tests.support_redis import SAFE

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
BIN = Path(sys.executable).parent
HOME = "/srv/im-actors"
"""Where the shipped files have everything of a host."""
PORT = 7070
REDIS_PORTS = (6379, 6380)
"""For Ray, and for the views."""
AUTOSCALER = "--autoscaling-config=~/ray_bootstrap_config.yaml"
RAY_UP_S = 240.0
RAY_UP_TRIES = 3
"""All hosts share the cores of this machine, and Ray gives itself no more than 30 s to start."""
UP_S = 400.0
HEALTHY_S = 400.0


class RayHosts:
    """The first host is the head; each of the others has a disk. The last ``later`` of them are no
    part of the cluster yet. With ``redis`` the very last one has only a Redis for Ray's head, and
    another one for the views."""

    def __init__(self, hosts: Hosts, later: int = 0, redis: bool = False) -> None:
        self.hosts = hosts
        self.head, *data = hosts.all
        self.redis = data.pop() if redis else None
        self.data = data[: len(data) - later]
        self.later = data[len(data) - later :]
        self.secret = os.urandom(32).hex()
        self._token = os.urandom(32).hex()
        self._yaml = hosts.folder / "onprem.yaml"
        self._prepare()

    # -- what an operator does -----------------------------------------------------------------

    def _prepare(self) -> None:
        """The shipped files with the addresses filled in."""
        mount = str(self.hosts.mount)
        config = yaml.safe_load((CLUSTER / "onprem.yaml").read_text().replace(HOME, mount))
        config["cluster_name"] = self.hosts.tag
        config["provider"]["head_ip"] = self.head.address
        config["provider"]["worker_ips"] = [host.address for host in self.data]
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.hosts.key)}
        self._yaml.write_text(yaml.safe_dump(config, sort_keys=False, width=1000))
        for host in self.hosts.all:
            self.prepare(host)
        self._write(self.head, "token-secret", self.secret)
        if self.redis is not None:
            for port in REDIS_PORTS:
                self._start_redis(self.redis, port)

    def _start_redis(self, host: Host, port: int) -> None:
        folder = f"{self.hosts.mount}/redis-{port}"
        options = {**SAFE, "port": port, "bind": host.address, "protected-mode": "no"}
        words = [f"--{name} '{value}'" for name, value in options.items()]
        host.ssh(f"mkdir {folder}; redis-server --daemonize yes --dir {folder} {' '.join(words)}")

    def prepare(self, host: Host) -> None:
        """Put on an empty disk what its host has to know."""
        self._write(host, "host.env", self._env_of(host))
        self._write(host, "ray-token", self._token)

    def _env_of(self, host: Host) -> str:
        name = "head.env" if host is self.head else "data.env"
        text = (CLUSTER / "env" / name).read_text().replace(HOME, str(self.hosts.mount))
        for variable, value in (
            ("IM_ACTORS_ADDRESS", host.address),
            ("PATH", f"{BIN}:$PATH"),
            *([("IM_ACTORS_DISK", self.disk_of(host))] if host is not self.head else []),
        ):
            text, found = re.subn(f"(?m)^{variable}=.*$", f"{variable}={value}", text)
            assert found == 1, f"{name} says {variable} {found} times"
        if self.redis is not None:
            text = re.sub(r"(?m)^# (RAY_\w+=.*)$", r"\1", text)
            text = re.sub(r"(?m)^(RAY_REDIS_ADDRESS)=.*$", rf"\1={self._redis(0)}", text)
        # The package is not installed here, it is run from the tree.
        return text + f"export PYTHONPATH={ROOT}\n"

    def _redis(self, number: int) -> str:
        assert self.redis is not None
        return f"{self.redis.address}:{REDIS_PORTS[number]}"

    @staticmethod
    def disk_of(host: Host) -> str:
        return f"h{host.number}"

    @staticmethod
    def _write(host: Host, name: str, text: str) -> None:
        path = host.disk / name
        path.write_text(text)
        path.chmod(0o600)

    def start(self, *options: str) -> None:
        """The first start, with ``options`` of ``im-actors up``."""
        begun = time.monotonic()
        self.ray_up()
        between = time.monotonic()
        answer, said = self.up(*options)
        end = time.monotonic()
        assert answer["url"] == self.url
        assert "joining" in said
        print(f"ray up: {between - begun:.0f} s, im-actors up: {end - between:.0f} s")

    def ray_up(self, *options: str) -> None:
        """``ray up`` with the shipped file, from outside."""
        temp = self.hosts.folder / "operator"
        temp.mkdir(exist_ok=True)
        for _ in range(RAY_UP_TRIES):
            done = subprocess.run(
                [BIN / "ray", "up", self._yaml, "--yes", "--no-config-cache", *options],
                capture_output=True,
                text=True,
                timeout=RAY_UP_S,
                env={**os.environ, "TMPDIR": str(temp), "RAY_USAGE_STATS_ENABLED": "0"},
                stdin=subprocess.DEVNULL,
            )
            if done.returncode == 0:
                return
        raise AssertionError(done.stdout + done.stderr)

    def start_ray(self, host: Host) -> None:
        """As README says where Ray does not come by itself."""
        (command,) = yaml.safe_load(self._yaml.read_text())["worker_start_ray_commands"]
        host.ssh(f"export RAY_HEAD_IP={self.head.address}; {command}", RAY_UP_S)

    def start_ray_on_head(self) -> None:
        """As README says where a new head is to find what the others still run."""
        commands = yaml.safe_load(self._yaml.read_text())["head_start_ray_commands"]
        command = " && ".join(commands).replace(AUTOSCALER, "")
        self.head.ssh(f"for try in $(seq {RAY_UP_TRIES}); do {command} && break; done", RAY_UP_S)

    def on_head(self, command: str, timeout_s: float = 60.0) -> str:
        return self.head.ssh(f". {self.hosts.mount}/host.env && {command}", timeout_s)

    def up(self, *options: str) -> tuple[dict[str, Any], str]:
        """The one command after ``ray up``; its answer, and what it said on the way."""
        words = ["--address auto --host 0.0.0.0 --hosts-timeout 300 --json", *options]
        if self.redis is not None:
            words.append(f"--redis redis://{self._redis(1)}/0")
        command = f"im-actors up {' '.join(words)} 2>&1"
        *said, answer = self.on_head(command, UP_S).strip().splitlines()
        return json.loads(answer), "\n".join(said)

    def status(self) -> dict[str, Any]:
        # Exit code 1 means that something is not healthy, which the answer tells.
        found: dict[str, Any] = json.loads(self.on_head("im-actors status --json || true"))
        return found

    def ray_hosts(self) -> set[str]:
        """The addresses of the hosts that Ray takes for alive."""
        script = (
            "import ray; ray.init('auto', log_to_driver=False, logging_level='ERROR');"
            " print(*[n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']])"
        )
        return set(self.on_head(f'python -c "{script}"').split())

    def token(self, user: str) -> str:
        return make_token(self.secret, user)

    @property
    def url(self) -> str:
        return "im://" + ",".join(f"{host.address}:{PORT}" for host in self.data)

    # -- the end -------------------------------------------------------------------------------

    def judge(self, traffic: Traffic) -> None:
        """Nothing was lost, doubled or out of order: what clients saw, what every gateway gives,
        what ``verify`` and the disks of a stopped cluster say."""
        traffic.drain()
        traffic.read_everything([f"im://{host.address}:{PORT}" for host in self.data])
        verdict = json.loads(self.on_head("im-actors verify --json", 120))
        assert not verdict["problems"]
        status = self.status()
        self.on_head("im-actors down", 120)
        by_address = {host.address: host for host in self.data}
        disks = {
            name: by_address[replica["host"]].disk / "data" / name
            for name, replica in status["replicas"].items()
        }
        traffic.read_disks(disks, status["slots"]["members"])
        counts = traffic.verdict()
        book = traffic.book
        print(f"{book.acked} of {book.sent} ACKed, {book.refused_count} refused, {counts=}")
        assert counts == {}
        assert (book.acked, book.refused_count) == (book.sent, 0)
        assert alarms([host.disk / "data" for host in self.hosts.all]) == []

    # -- waiting -------------------------------------------------------------------------------

    def until_healthy(self) -> float:
        """Seconds until everything runs, and every replica has all of its slots."""

        def healthy() -> bool:
            status = self.status()
            filling = [r.get("incomplete_slots", [-1]) for r in status["replicas"].values()]
            return bool(status["healthy"]) and not any(filling)

        return self.wait(healthy, HEALTHY_S)

    def until_settled(self) -> float:
        """Seconds until everything runs and every slot is where it should be."""
        began = time.monotonic()
        self.until_healthy()
        self.wait(lambda: not self.status()["growth"]["slots_to_move"], HEALTHY_S)
        return time.monotonic() - began

    def until_copied(self) -> float:
        """Seconds until each slot is served and has three whole copies, whoever is away."""

        def copied() -> bool:
            status = self.status()
            whole = {
                name
                for name, replica in status["replicas"].items()
                if not replica.get("incomplete_slots", [-1])
            }
            members = status["slots"]["members"].values()
            return not status["slots"]["unhealthy"] and whole.issuperset(
                name for names in members for name in names
            )

        return self.wait(copied, HEALTHY_S)

    def wait(self, condition: Callable[[], bool], seconds: float) -> float:
        begun = time.monotonic()
        trouble = ""
        while time.monotonic() - begun < seconds:
            try:
                if condition():
                    return time.monotonic() - begun
            except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
                trouble = str(error)
            time.sleep(0.5)
        raise AssertionError(f"not so within {seconds:.0f} s: {trouble or self._ill()}")

    def _ill(self) -> str:
        status = self.status()
        keys = ("missing", "slot_states", "view_store", "degraded_placement")
        return json.dumps({key: status[key] for key in keys})
