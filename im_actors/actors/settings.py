"""What every actor of a cluster is told when it is made, and what is the same for all of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from im_actors.net.tls import Certificates
from im_actors.server.cluster_file import read_topology
from im_actors.server.settings import ClusterSettings
from im_actors.server.topology import SHARDS_MIN, Desired, Topology

CONTROLLER = "controller"
SPARE_WORKERS = 2
"""Idle workers that a local cluster keeps: a restarted actor takes one of them, which saves it the
start of a Python process. One such worker is about 43 MB."""
ACTOR_CALLS_MAX = 1_000
"""Calls at a time in one actor, so that control calls never wait behind others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorSettings:
    """One cluster. Actors get it from Ray when they are made and again after each restart."""

    cluster: str
    secret: str = field(repr=False)
    slots: int
    data: str
    """The data directory, the same path on every host; each host has only its own parts of it."""
    shards: int
    replicas: int
    gateways: int
    host: str
    """Where gateways listen."""
    port: int
    admin_address: str = ""
    admin_port: int = 0
    """Where the controller's admin door is, over all of its restarts."""
    inside_address: str = ""
    """Where shards and replicas listen; empty: at the address of their node."""
    host_label: str = ""
    """The host that an actor is on; empty: named by the address of its node."""
    redis: str = field(default="", repr=False)
    """URL of the view store; empty: SQLite in the controller."""
    token_secret: str = field(default="", repr=False)
    insecure_open: bool = False
    relay: str = ""
    """HOST:PORT of a relay that stands before shards and replicas, for tests; empty: none does."""
    operator: dict[str, Any] = field(default_factory=dict, repr=False)
    """What the operator has set, as ``ClusterSettings.to_dict`` has it."""
    joined: bool = False
    """True: Ray is somebody else's, only the actors are ours."""
    places: dict[str, str] = field(default_factory=dict)
    """Actor to the custom resource of the host that it is tied to. A replica belongs to its disk,
    which a node id does not name: a restarted raylet has a new one."""

    @property
    def namespace(self) -> str:
        return f"im-{self.cluster}"

    @property
    def secret_bytes(self) -> bytes:
        return bytes.fromhex(self.secret)

    @property
    def operator_settings(self) -> ClusterSettings:
        return ClusterSettings.from_dict(self.operator)

    def certificates(self) -> Certificates | None:
        """Those of this host, None: no TLS. SetupError: they cannot be used."""
        files = self.operator_settings.tls.files
        return Certificates(files) if files is not None else None

    @property
    def directory(self) -> Path:
        return Path(self.data)

    @property
    def topology(self) -> Topology:
        """What should run: what ``scale`` or ``drain`` has written down, else what ``up`` was asked
        for. Known where the data directory is: to the controller and to ``up``."""
        fresh = Topology.fresh(self.replicas, self.shards, self.gateways)
        return read_topology(self.directory) or fresh

    def desired(self) -> Iterator[Desired]:
        """The actors that should run, replicas first: everything else waits for them."""
        return self.topology.desired()

    @property
    def shards_running(self) -> int:
        """Several take over from each other. A single one has another that stands by: it is linked
        to everybody, and takes the slots at once where a new process would have to start first."""
        return max(self.shards, SHARDS_MIN)

    @property
    def actors(self) -> int:
        """All of them, the controller too."""
        return 1 + self.replicas + self.shards_running + self.gateways

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Started(NamedTuple):
    """What ``start`` of an actor returns. ``life`` names the process: after a restart it is another
    one, which has to be started again."""

    life: str
    pid: int
    node: str
    """The address of the host, to know whose pid it is; empty in a local cluster."""
    address: Any


def use_uvloop() -> bool:
    """Whether actors run on uvloop.

    Ray would switch to it by itself where it is importable, so that two hosts might differ; it is
    decided here, once, and told to Ray either way.
    """
    return importlib.util.find_spec("uvloop") is not None


ACTOR_ENV = {
    # A caller hears of a dead process within a tenth of a second; by default it is a second.
    "RAY_timeout_ms_task_wait_for_death_info": "20",
    "RAY_core_worker_internal_heartbeat_ms": "100",
}


def actor_env(settings: ActorSettings) -> dict[str, str] | None:
    """What an actor's process needs in its environment when ``up`` did not start its Ray.

    A process with an environment of its own cannot be a warm one, so a local cluster sets these
    where Ray starts.
    """
    if not settings.joined:
        return None
    return {**ACTOR_ENV, "RAY_USE_UVLOOP": str(int(use_uvloop()))}
