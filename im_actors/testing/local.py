"""The local platform: actors are objects of this process, and crash like killed processes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from im_actors.core.batch_run import BatchSettings
from im_actors.core.directory import Directory, GatewayAddress
from im_actors.core.formats import FORMATS, Formats
from im_actors.core.model import COPIES
from im_actors.core.owner import OwnerSettings
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.serving import ServingLimits
from im_actors.errors import BadRequest, NotReachable, SetupError
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.node import GatewayNode
from im_actors.net.link import LinkConfig
from im_actors.net.tls import Certificates
from im_actors.server.admin import AdminClient, AdminServer
from im_actors.server.cluster_file import (
    ClusterFile,
    open_or_create_cluster,
    read_topology,
    write_cluster,
    write_topology,
)
from im_actors.server.controller import ControllerConfig, ControllerNode
from im_actors.server.growth import Growth
from im_actors.server.operations import Operations
from im_actors.server.replica import ReplicaConfig, ReplicaNode
from im_actors.server.settings import ClusterSettings
from im_actors.server.shard import ShardNode
from im_actors.server.topology import Desired, Topology
from im_actors.server.upgrade import Upgrade, Written
from im_actors.server.views import ViewStore, open_view_store

LOOPBACK = "127.0.0.1"


class Instance:
    """One life of one actor."""

    def __init__(self, node: Any, address: Any) -> None:
        self.node = node
        self.address = address
        self.gone = asyncio.Event()
        self.reason = ""
        self.running = asyncio.Event()
        """Cleared while the actor is paused: calls to it hang, as with a stopped process."""
        self.running.set()


def _kind(name: str) -> str:
    return name.rpartition("-")[0]


class _Platform:
    """What the controller sees of the cluster."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self.wait_down = cluster.wait_down
        self.call = cluster.call
        self.end = cluster.end

    async def start(self, desired: Desired) -> Any:
        return await self._cluster.start_actor(desired)


class LocalCluster:
    """Shards, replicas, gateways and a controller in this event loop, on free ports.

    ``data`` None: a temporary directory, removed at the end. The same directory serves the same
    history again. ``redis``: keep the views there and not in SQLite. ``settings`` are those of
    ``im-actors up``; ``rules`` and ``batches`` take the place of its own.
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        slots: int = 8,
        shards: int = 2,
        replicas: int = COPIES,
        gateways: int = 1,
        redis: str | None = None,
        seed: int | None = None,
        gateway: GatewayConfig | None = None,
        replica: ReplicaConfig | None = None,
        owner: OwnerSettings | None = None,
        controller: ControllerConfig | None = None,
        settings: ClusterSettings | None = None,
        rules: RuleSettings | None = None,
        batches: BatchSettings | None = None,
        hosts: int | None = None,
    ) -> None:
        if replicas < COPIES:
            raise SetupError(f"replicas must be at least {COPIES}")
        operator = settings or ClusterSettings()
        operator = replace(
            operator, rules=rules or operator.rules, batches=batches or operator.batches
        )
        # Here, and not where a gateway starts: what cannot start is tried again for ever.
        self._operator = operator.validate()
        files = operator.tls.files
        self.certificates = Certificates(files) if files is not None else None
        self._links = LinkConfig.secured(self.certificates)
        self._own_data = tempfile.TemporaryDirectory(prefix="im_actors-") if data is None else None
        self.data = Path(self._own_data.name) if self._own_data else Path(str(data))
        config = gateway or GatewayConfig()
        if settings is not None:
            config = replace(config, **settings.gateway_fields("local", self.data))
        self._gateway_config = config.validate()
        self._slots = slots
        self._redis = redis
        self._random = random.Random(seed)
        self._replica_config = replica
        self._owner_settings = owner
        self._controller_config = controller
        self._hosts = hosts or replicas
        self._desired = [
            *(Desired("replica", f"replica-{n}") for n in range(1, replicas + 1)),
            *(Desired("shard", f"shard-{n}") for n in range(1, shards + 1)),
            *(Desired("gateway", f"gateway-{n}") for n in range(1, gateways + 1)),
        ]
        self._topology = Topology.fresh(replicas, shards, gateways)
        self._instances: dict[str, Instance] = {}
        self._held: set[str] = set()
        self._ports: dict[str, int] = {}
        self.releases: dict[str, Formats] = {}
        """For tests: what the release of an actor knows that is started from now on, by name."""
        self._changed = asyncio.Event()

    # -- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> LocalCluster:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything; return when every slot is served."""
        self.cluster: ClusterFile = open_or_create_cluster(
            self.data, self._slots, self._release("controller")
        )
        self.views: ViewStore = await self._open_views()
        self.controller = ControllerNode(
            self.cluster.slots,
            self._desired,
            _Platform(self),
            self.views,
            self._controller_config,
        )
        known = read_topology(self.data)
        if known is not None:
            self.controller.want(known)
        growth = Growth(
            self.controller, known or self._topology, lambda new: write_topology(self.data, new)
        )
        self.upgrade = Upgrade(
            self.controller,
            growth,
            Written(self.cluster.disk_format, self.cluster.record_format),
            self._save_written,
            self._release("controller"),
        )
        await self.controller.start()
        self.controller.spawn(growth.run())
        self.controller.spawn(self.upgrade.run())
        self.operations = Operations(self.controller, growth, self.upgrade)
        self._admin = AdminServer(
            "controller", self.cluster.secret_bytes, self.operations.methods(), self._links
        )
        await self._admin.start(LOOPBACK)
        await self.operations.wait_serving()
        expected = any(desired.kind == "gateway" for desired in self._desired)
        while expected and not self.controller.running("gateway"):
            self._changed.clear()
            await self._changed.wait()

    def _save_written(self, written: Written) -> None:
        disks, records = written
        self.cluster = replace(self.cluster, disk_format=disks, record_format=records)
        write_cluster(self.data, self.cluster)

    def _release(self, name: str) -> Formats:
        return self.releases.get(name, FORMATS)

    async def _open_views(self) -> ViewStore:
        path = self.data / "controller"
        path.mkdir(exist_ok=True)
        known = self.cluster.view_store_identity or None
        views = await open_view_store(self._redis or "", path, self.cluster.cluster, known)
        if known is None:
            kind = "redis" if self._redis else "sqlite"
            self.cluster = replace(
                self.cluster, view_store=kind, view_store_identity=views.identity
            )
            write_cluster(self.data, self.cluster)
        return views

    async def stop(self) -> None:
        """Stop in order: nothing that was accepted is cut off in the middle."""
        if hasattr(self, "_admin"):
            await self._admin.stop()
        if hasattr(self, "controller"):
            await self.controller.stop()
        elif hasattr(self, "views"):
            await self.views.close()
        for kind in ("gateway", "shard", "replica"):
            for name, instance in list(self._instances.items()):
                if name.startswith(kind) and not instance.gone.is_set():
                    self._end(instance, "stopped")
                    await instance.node.stop()
        if self._own_data is not None:
            self._own_data.cleanup()

    # -- the platform --------------------------------------------------------------------------

    async def start_actor(self, desired: Desired) -> Any:
        """A new life of the actor, or the one that runs."""
        known = self._instances.get(desired.name)
        if known is not None and not known.gone.is_set():
            await known.running.wait()
            return known.address
        if desired.name in self._held:
            raise NotReachable(f"{desired.name} is held down by the test")
        node = self._make(desired)
        if desired.kind == "gateway":
            ssl = self.certificates.clients if self.certificates else None
            await node.start(LOOPBACK, self._ports.get(desired.name, 0), ssl=ssl)
            address: Any = GatewayAddress(desired.name, LOOPBACK, node.port)
            self._ports[desired.name] = node.port
        else:
            address = await node.start(LOOPBACK)
        self._instances[desired.name] = Instance(node, address)
        self._changed.set()
        return address

    def _make(self, desired: Desired) -> Any:
        kind, name = desired
        rng = random.Random(self._random.random())
        secret = self.cluster.secret_bytes
        release = self._release(name)
        links, form = replace(self._links, formats=release), self.upgrade.form_of(kind)
        release.check_written(form, name)
        if kind == "gateway":
            return GatewayNode(name, self._gateway_config, secret, rng, link_config=links)
        if kind == "shard":
            return ShardNode(
                name,
                self.cluster.slots,
                secret,
                self.views,
                rng,
                self.controller.activated,
                self._owner_settings,
                ServingLimits(lines=self._operator.lines),
                links=links,
                rules=self._operator.rules,
                batches=self._operator.batches,
                form=form,
            )
        number = int(name.rpartition("-")[2])
        return ReplicaNode(
            name,
            f"host-{(number - 1) % self._hosts + 1}",
            self.data / name,
            self.cluster.cluster,
            self.cluster.slots,
            secret,
            rng,
            lambda error: self._failed(name, str(error)),
            self._replica_config,
            links=links,
            form=form,
        )

    async def wait_down(self, name: str) -> str:
        instance = self._instances[name]
        await instance.gone.wait()
        return instance.reason

    async def call(self, name: str, method: str, *args: Any) -> Any:
        instance = self._instances.get(name)
        if instance is None or instance.gone.is_set():
            raise NotReachable(f"{name} does not run")
        await instance.running.wait()
        if method == "ping":
            return None
        if method == "fault":
            return await self._fault(name, *args)
        result = getattr(instance.node, method)(*args)
        return await result if asyncio.iscoroutine(result) else result

    async def _fault(self, name: str, kind: str) -> None:
        if kind == "kill":
            await self.crash(name)
        else:
            raise BadRequest("in one process an actor can be killed and not paused")

    async def end(self, name: str) -> None:
        """Stop an actor, and start it no more."""
        instance = self._instances.pop(name, None)
        if instance is not None and not instance.gone.is_set():
            self._end(instance, "ended")
            await instance.node.stop()

    def _end(self, instance: Instance, reason: str) -> None:
        instance.reason = reason
        instance.gone.set()

    def _failed(self, name: str, reason: str) -> None:
        """A node says that it cannot go on: what is left of it ends, a new one starts."""
        instance = self._instances[name]
        task = asyncio.get_running_loop().create_task(self._bury(instance, reason))
        self._burying = task

    async def _bury(self, instance: Instance, reason: str) -> None:
        with contextlib.suppress(Exception):
            await instance.node.stop()
        self._end(instance, reason)

    # -- for tests -----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where clients connect: all gateways."""
        gateways: list[GatewayAddress] = sorted(self.controller.running("gateway"))
        scheme = "ims" if self.certificates else "im"
        return f"{scheme}://" + ",".join(f"{g.address}:{g.port}" for g in gateways)

    def admin(self) -> AdminClient:
        """A client for the admin methods; use it as ``async with``."""
        secret = self.cluster.secret_bytes
        return AdminClient(LOOPBACK, self._admin.port, secret, links=self._links)

    def node(self, name: str) -> Any:
        """The running node of this name."""
        return self._instances[name].node

    async def crash(self, name: str, hold: bool = False) -> None:
        """End an actor as kill -9 would. It is started again, unless ``hold``: see ``release``."""
        if hold:
            self._held.add(name)
        instance = self._instances[name]
        await instance.node.crash()
        self._end(instance, "killed")
        while instance.address in self.controller.running(_kind(name)):
            await asyncio.sleep(0)

    def release(self, name: str) -> None:
        """Let an actor that was crashed with ``hold`` come back."""
        self._held.discard(name)

    async def wait_serving(self) -> None:
        await self.operations.wait_serving()

    async def status(self) -> dict[str, Any]:
        return await self.operations.status()

    async def verify(self, repair: bool = True) -> dict[str, Any]:
        return await self.operations.verify(repair)

    def directory(self) -> Directory:
        return self.controller.directory()
