"""Every TCP port that the processes of a cluster listen on, and what keeps strangers from it.

In a local cluster all of them but the gateways' are on loopback. In one of several hosts only the
gateways' port is for clients; all others are for the cluster's own hosts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil

RAY_TOKEN = "Ray's token (RAY_AUTH_MODE=token)"
SECRET = "the cluster secret, proved by both ends; with --tls-ca also certificates of both"


class Port(NamedTuple):
    """One that each process of a kind may have open."""

    what: str
    guard: str


_WORKER = Port("calls of Ray to this worker", RAY_TOKEN)
TABLE: dict[str, tuple[Port, ...]] = {
    "GatewayActor": (
        Port("clients (--port)", "the user's token; with --tls-cert inside TLS"),
        _WORKER,
    ),
    "ShardActor": (Port("links of gateways and shards", SECRET), _WORKER),
    "ReplicaActor": (Port("links of shards, gateways and replicas", SECRET), _WORKER),
    "ControllerActor": (Port("commands of the operator", SECRET), _WORKER),
    "worker": (_WORKER,),
    "gcs_server": (Port("Ray's head", RAY_TOKEN), Port("figures of Ray", "none: numbers only")),
    "raylet": (Port("Ray's node", RAY_TOKEN), Port("Ray's objects; we have none", RAY_TOKEN)),
    "DashboardAgent": (
        Port("Ray's agent", RAY_TOKEN),
        Port("the same over HTTP", RAY_TOKEN),
        Port("figures for Prometheus", "none: numbers only"),
    ),
    "RuntimeEnvAgent": (Port("environments of Ray's workers", RAY_TOKEN),),
    "dashboard": (
        Port("Ray's dashboard, which a local cluster has not", RAY_TOKEN),
        Port("figures of Ray", "none: numbers only"),
    ),
    "client server": (Port("Ray's client, which a local cluster has not", RAY_TOKEN),),
}
"""Kind of process to its ports. Each kind is what ``kind_of`` says."""
_BY_ARGUMENT = {
    "workers/default_worker.py": "worker",
    "dashboard/agent.py": "DashboardAgent",
    "runtime_env/agent/main.py": "RuntimeEnvAgent",
    "dashboard/dashboard.py": "dashboard",
    "ray.util.client.server": "client server",
}


class Listening(NamedTuple):
    pid: int
    kind: str
    address: str
    port: int


def kind_of(words: list[str]) -> str:
    """The kind of a process by its command line, which Ray rewrites once the process is up."""
    title = words[0] if words else ""
    if title.startswith("ray::"):
        name = title.removeprefix("ray::").partition(".")[0]
        return name if name in TABLE else "worker"
    for argument, kind in _BY_ARGUMENT.items():
        if any(word.endswith(argument) for word in words):
            return kind
    return Path(title).name


def listening(processes: Iterable[psutil.Process]) -> list[Listening]:
    """What these processes listen on now."""
    found = set()
    for process in processes:
        try:
            kind = kind_of(process.cmdline())
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    address = connection.laddr.ip.removeprefix("::ffff:")
                    found.add(Listening(process.pid, kind, address, connection.laddr.port))
        except psutil.NoSuchProcess:
            continue
    return sorted(found)


def unlisted(found: Iterable[Listening]) -> list[str]:
    """What listens beyond the table, in words."""
    by_process: dict[tuple[int, str], list[str]] = {}
    for pid, kind, address, port in found:
        by_process.setdefault((pid, kind), []).append(f"{address}:{port}")
    return [
        f"{kind} (pid {pid}) listens on {', '.join(ports)}, of which {len(TABLE.get(kind, ()))}"
        " are known"
        for (pid, kind), ports in by_process.items()
        if len(ports) > len(TABLE.get(kind, ()))
    ]
