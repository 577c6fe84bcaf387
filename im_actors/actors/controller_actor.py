"""The actor of the controller: it starts itself, also when Ray restarts it and nobody looks on."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from im_actors.actors.allotment import Allotment
from im_actors.actors.classes import FAULT_DELAY_S, SIGNALS
from im_actors.actors.logs import log_loop_errors, log_to_file
from im_actors.actors.metrics import publish_from_now_on
from im_actors.actors.placement import Host
from im_actors.actors.platform import STOP_S, RayCalls, RayPlatform
from im_actors.actors.remote_views import Question
from im_actors.actors.settings import CONTROLLER, ActorSettings
from im_actors.core.formats import FORMATS
from im_actors.core.model import View, ViewState
from im_actors.errors import BadRequest, ImError, NotReachable, Unknown
from im_actors.net.link import LinkConfig
from im_actors.net.tls import keep_fresh
from im_actors.server.admin import AdminServer
from im_actors.server.cluster_file import read_cluster, write_cluster, write_topology
from im_actors.server.controller import ControllerConfig, ControllerNode
from im_actors.server.growth import Growth
from im_actors.server.operations import Operations
from im_actors.server.upgrade import Upgrade, Written
from im_actors.server.views import ViewStore, open_view_store

logger = logging.getLogger(__name__)

RETRY_S_MIN = 0.1
RETRY_S_MAX = 2.0
"""Between two tries to start itself; doubling."""
STARTING_S = 1.5
"""How long a question about a view waits for the store to be open; less than the asker waits."""
FIRST_START_MS = 40_000
"""How long the first start waits for all replicas on several hosts; less than ``up`` waits for it
to serve."""


class ControllerActor:
    """Holds the ControllerNode, the view store (SQLite) and the operator's door."""

    def __init__(self, settings: ActorSettings) -> None:
        from im_actors.actors import ray_api

        log_to_file(settings.directory, CONTROLLER)
        self._settings = settings
        self._calls: RayCalls = ray_api
        self._place = ray_api.node_address() if settings.joined else ""
        self._platform: RayPlatform
        self._node: ControllerNode
        self._views: ViewStore
        self._error: Exception | None = None
        self._tried = asyncio.Event()
        self._open = asyncio.Event()
        self._freshening: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        log_loop_errors(loop)
        self._task = loop.create_task(self._start_until_it_works())

    async def _start_until_it_works(self) -> None:
        delay = RETRY_S_MIN
        while True:
            try:
                await self._start()
                self._error = None
                self._tried.set()
                return
            except Exception as error:
                logger.exception("the controller does not start")
                self._error = error
                self._tried.set()
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_S_MAX)

    async def _start(self) -> None:
        settings = self._settings
        certificates = settings.certificates()
        views = await self._open_views()
        try:
            platform = RayPlatform(settings, self._calls, self._place)
            platform.view_store = views.identity
            topology = settings.topology
            config = ControllerConfig()
            if settings.joined:
                # Their hosts are there, and a replica that comes late would be left without slots.
                config = replace(config, first_start_ms=FIRST_START_MS)
            node = ControllerNode(settings.slots, topology.desired(), platform, views, config)
            node.want(topology)
            places = None
            if settings.joined:
                places = Allotment(settings.directory, platform.places, _hosts)
            growth = Growth(
                node, topology, lambda new: write_topology(settings.directory, new), places
            )
            upgrade = Upgrade(node, growth, _written(settings.directory), self._save_written)
            platform.form_of = upgrade.form_of
            methods = self._methods(node, growth, upgrade)
            links = LinkConfig.secured(certificates)
            admin = AdminServer(CONTROLLER, settings.secret_bytes, methods, links)
            await admin.start(settings.admin_address, settings.admin_port)
        except BaseException:
            await views.close()
            raise
        self._views, self._platform, self._node = views, platform, node
        self._open.set()
        if certificates is not None:
            self._freshening = asyncio.create_task(keep_fresh(certificates))
        await node.start()
        node.spawn(growth.run())
        node.spawn(upgrade.run())
        if settings.joined:
            publish_from_now_on(CONTROLLER, node.summary)
        logger.info("the controller serves on port %d", settings.admin_port)

    async def _open_views(self) -> ViewStore:
        """The view store, and the memory of its identity in ``cluster.json``."""
        settings = self._settings
        cluster = read_cluster(settings.directory)
        known = cluster.view_store_identity if cluster is not None else ""
        views = await open_view_store(
            settings.redis, settings.directory / CONTROLLER, settings.cluster, known or None
        )
        if cluster is not None and not known:
            kind = "redis" if settings.redis else "sqlite"
            write_cluster(
                settings.directory,
                replace(cluster, view_store=kind, view_store_identity=views.identity),
            )
        return views

    def _save_written(self, written: Written) -> None:
        directory = self._settings.directory
        cluster = read_cluster(directory)
        assert cluster is not None, "a cluster that runs has its file"
        disks, records = written
        write_cluster(directory, replace(cluster, disk_format=disks, record_format=records))

    # -- for up --------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Return when the controller runs; the error when its first try failed."""
        await self._tried.wait()
        if self._error is not None:
            raise self._error

    async def pid(self) -> int:
        return os.getpid()

    # -- for shards ----------------------------------------------------------------------------

    async def view_calls(self, questions: list[Question]) -> list[Any]:
        """Reads and swaps of one shard, each with its own answer or error."""
        store = await self._store()
        methods: dict[str, Any] = {"read": store.read, "swap": store.swap}
        asked = [methods[name](*args) for name, *args in questions]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return [_as_ours(answer) for answer in answers]

    async def _store(self) -> ViewStore:
        try:
            async with asyncio.timeout(STARTING_S):
                await self._open.wait()
        except TimeoutError:
            raise NotReachable("the controller is starting") from None
        return self._views

    async def activated(self, views: list[View]) -> None:
        if self._open.is_set():
            for view in views:
                self._node.activated(view)

    # -- the operator's door -------------------------------------------------------------------

    def _methods(self, node: ControllerNode, growth: Growth, upgrade: Upgrade) -> dict[str, Any]:
        self._operations = Operations(node, growth, upgrade, self._stop)
        self._upgrade = upgrade
        return {
            **self._operations.methods(),
            "names": self._names,
            "fault": self._fault,
            "restart": self._restart,
            "progress": self._progress,
            "pids": self._pids,
        }

    async def _names(self) -> dict[str, list[str]]:
        return {**await self._operations.names(), CONTROLLER: [CONTROLLER]}

    async def _pids(self) -> dict[str, int]:
        """The processes as they were when they last started."""
        return {CONTROLLER: os.getpid(), **self._platform.pids()}

    async def _fault(self, kind: str, name: str) -> None:
        """ "kill", "pause" and, for a process on the controller's host, "resume"."""
        if kind == "resume":
            if not self._platform.signal(name, signal.SIGCONT):
                raise BadRequest(f"{name} does not run on the controller's host")
        elif name == CONTROLLER and kind in SIGNALS:
            loop = asyncio.get_running_loop()
            loop.call_later(FAULT_DELAY_S, os.kill, os.getpid(), SIGNALS[kind])
        else:
            await self._operations.fault(kind, name)

    async def _restart(self, what: str) -> dict[str, Any]:
        """An actor, all of a host, or the controller itself: Ray starts that again."""
        if what != CONTROLLER:
            return await self._upgrade.restart(what)
        logger.info("the controller is started anew")
        asyncio.get_running_loop().call_later(FAULT_DELAY_S, os._exit, 1)
        return self._upgrade.status()

    async def _progress(self) -> dict[str, Any]:
        """How far the start is, without asking anybody."""
        known = self._node.directory()
        shards = {shard.incarnation for shard in known.shards}
        active = [v for v in known.views if v.state == ViewState.ACTIVE and v.owner in shards]
        running = {kind: len(names) for kind, names in self._node.running_names().items()}
        failures = self._platform.failures.items()
        return {
            "slots": len(active),
            "running": running,
            "failures": {name: [error.code, str(error)] for name, error in failures},
        }

    async def _stop(self) -> None:
        """End supervision, then gateways, shards and replicas, so that each finds what it needs
        to finish."""
        logger.info("the cluster stops")
        names = self._node.running_names()
        await self._node.stop()
        for kind in ("gateway", "shard", "replica"):
            await asyncio.gather(*(self._stop_one(name) for name in names[kind]))

    async def _stop_one(self, name: str) -> None:
        try:
            async with asyncio.timeout(STOP_S):
                await self._platform.call(name, "stop")
        except (ImError, TimeoutError) as error:
            logger.warning("%s did not stop: %r", name, error)


def _written(directory: Path) -> Written:
    cluster = read_cluster(directory)
    if cluster is None:
        return Written(FORMATS.newest, FORMATS.newest)
    return Written(cluster.disk_format, cluster.record_format)


def _hosts() -> list[Host]:
    from im_actors.actors import ray_api

    return ray_api.hosts()


def _as_ours(answer: Any) -> Any:
    """An error that another process can read."""
    foreign = isinstance(answer, BaseException) and not isinstance(answer, ImError)
    return Unknown(repr(answer)) if foreign else answer
