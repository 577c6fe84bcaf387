"""The actor classes: what Ray makes, around the nodes of ``server`` and ``gateway``.

They are plain classes, which ``ray_api.create`` wraps. A new process does nothing until ``start``:
after a restart by Ray an actor rejoins through the protocol and never continues from memory.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import resource
import signal
import socket
import sys
import time
import uuid
from typing import Any

from im_actors import __version__
from im_actors.actors.logs import log_loop_errors, log_to_file
from im_actors.actors.metrics import publish_from_now_on
from im_actors.actors.remote_views import ControllerViews
from im_actors.actors.settings import ActorSettings, Started
from im_actors.core.directory import Directory, GatewayAddress
from im_actors.core.formats import FORMATS
from im_actors.core.serving import ServingLimits
from im_actors.errors import BadRequest, ImError, ShuttingDown
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.node import GatewayNode
from im_actors.net.link import LinkConfig
from im_actors.net.tls import Certificates, keep_fresh
from im_actors.server.replica import ReplicaNode
from im_actors.server.shard import ShardNode
from im_actors.server.threads import name_thread
from im_actors.server.views import ViewStore, open_view_store

logger = logging.getLogger(__name__)

SIGNALS = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP}
FAULT_DELAY_S = 0.01
"""The answer to ``fault`` leaves the process before the signal comes."""
EXIT_DELAY_S = 0.1
"""The error of a failed start reaches the controller before the process ends."""
FILES_MAX = 65_536
SWITCH_INTERVAL_S = 0.0005
GC_THRESHOLDS = (50_000, 20, 50)
"""Allocations before a collection of the youngest, and of those before one of the older two."""


class Actor:
    """What all actors have in common. One ``life`` is one process."""

    def __init__(self, settings: ActorSettings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._life = uuid.uuid4().hex
        self._node: Any = None
        self._certificates: Certificates | None = None
        self._freshening: asyncio.Task[None] | None = None
        self._form = FORMATS.newest
        """The format that it writes in."""
        self._start_ms = 0
        """How long the start took: for a replica the opening of its files and the journal."""
        self._starting: asyncio.Task[Any] | None = None
        self._watched: asyncio.Future[str] | None = None
        log_to_file(settings.directory, name)

    async def start(self, view_store: str = "", form: int = FORMATS.newest) -> Started:
        """Open and listen; again: the same answer. ``view_store`` is the identity of the store,
        ``form`` the format to write in."""
        if self._starting is None:
            self._form = form
            loop = asyncio.get_running_loop()
            log_loop_errors(loop)
            self._starting = loop.create_task(self._start(view_store))
        starting = self._starting
        try:
            # Several may wait for it; one that gives up does not end it for the others.
            address = await asyncio.shield(starting)
        except Exception:
            if self._starting is starting:
                self._starting = None
            raise
        return Started(self._life, os.getpid(), self._node_address(), address)

    async def _start(self, view_store: str) -> Any:
        begun = time.monotonic()
        name_thread("loop")
        try:
            FORMATS.check_written(self._form, self._name)
            self._certificates = self._settings.certificates()
            address = await self._open(view_store)
            if self._certificates is not None:
                self._freshening = asyncio.create_task(keep_fresh(self._certificates))
            _tune_interpreter()
            if self._settings.joined:
                publish_from_now_on(self._name, self._own_status)
        except Exception as error:
            logger.error("%s does not start: %s", self._name, error)
            self._start_failed()
            raise
        self._start_ms = round((time.monotonic() - begun) * 1000)
        logger.info("%s serves after %d ms as %s", self._name, self._start_ms, address)
        return address

    async def _open(self, view_store: str) -> Any:
        raise NotImplementedError

    def _links(self) -> LinkConfig:
        return LinkConfig.secured(self._certificates)

    def _start_failed(self) -> None:
        """Let go of what a failed start may hold."""

    def _running(self) -> Any:
        if self._node is None:
            raise ShuttingDown(f"{self._name} has not been started")
        return self._node

    def _node_address(self) -> str:
        """The address of this host; empty in a cluster on one host."""
        if not self._settings.joined:
            return ""
        from im_actors.actors import ray_api

        return ray_api.node_address()

    def _inside_address(self) -> str:
        return self._settings.inside_address or self._node_address()

    def _host_label(self) -> str:
        return self._settings.host_label or self._node_address() or socket.gethostname()

    async def live(self, life: str) -> str:
        """Return when this process is not ``life``, or when somebody else asks: one waits."""
        if life != self._life:
            return "it was started again"
        if self._watched is not None and not self._watched.done():
            self._watched.set_result("another one watches")
        self._watched = asyncio.get_running_loop().create_future()
        return await self._watched

    async def ping(self) -> None:
        self._running()

    async def directory(self, directory: Directory) -> None:
        self._running().directory(directory)

    def _own_status(self) -> dict[str, Any] | None:
        return self._node.status() if self._node is not None else None

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self._running().status()
        own = {"host": self._host_label(), "pid": os.getpid(), "start_ms": self._start_ms}
        return {**status, **own, "release": __version__}

    async def stop(self) -> None:
        """Close in order. The process stays until its cluster ends it."""
        node, self._node = self._node, None
        if node is not None:
            logger.info("%s stops", self._name)
            await node.stop()

    async def pid(self) -> int:
        return os.getpid()

    async def fault(self, kind: str) -> None:
        """Signal itself: "kill" ends the process, "pause" stops it until it gets SIGCONT."""
        if kind not in SIGNALS:
            raise BadRequest(f"a fault is one of {', '.join(SIGNALS)}, not {kind!r}")
        logger.warning("%s meets the fault %s", self._name, kind)
        loop = asyncio.get_running_loop()
        loop.call_later(FAULT_DELAY_S, os.kill, os.getpid(), SIGNALS[kind])


class ReplicaActor(Actor):
    """One data directory. When it cannot go on it ends its process, and Ray starts another."""

    _node: ReplicaNode | None

    async def _open(self, view_store: str) -> Any:
        settings = self._settings
        node = ReplicaNode(
            self._name,
            self._host_label(),
            settings.directory / self._name,
            settings.cluster,
            settings.slots,
            settings.secret_bytes,
            random.Random(),
            self._fatal,
            links=self._links(),
            form=self._form,
        )
        address = await node.start(self._inside_address())
        self._node = node
        return address

    def _start_failed(self) -> None:
        # Half-open files and the lock on the directory go with the process.
        asyncio.get_running_loop().call_later(EXIT_DELAY_S, os._exit, 1)

    def _fatal(self, error: ImError) -> None:
        logger.critical("%s ends: %s", self._name, error)
        logging.shutdown()
        os._exit(1)

    async def report(self) -> dict[str, Any]:
        report: dict[str, Any] = await self._running().report()
        return report

    async def positions(self) -> dict[str, Any]:
        positions: dict[str, Any] = await self._running().positions()
        return positions

    async def repair(self) -> None:
        await self._running().repair()

    async def months(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._running().months()
        return found

    async def move_month(self, month: str, directory: str) -> None:
        await self._running().move_month(month, directory)

    async def drop_month(self, month: str) -> None:
        await self._running().drop_month(month)

    async def dropped_months(self) -> list[int]:
        found: list[int] = await self._running().dropped_months()
        return found

    async def story(self, slot: int) -> list[str]:
        story: list[str] = self._running().story(slot)
        return story


class ShardActor(Actor):
    """One incarnation of a shard."""

    _node: ShardNode | None

    async def _open(self, view_store: str) -> Any:
        from im_actors.actors import ray_api

        settings = self._settings
        controller = ControllerViews(settings.namespace, ray_api)
        views: ControllerViews | ViewStore = controller
        if settings.redis:
            # The controller has opened the store before: one that has no identity now was wiped.
            views = await open_view_store(
                settings.redis, settings.directory, settings.cluster, view_store
            )
        operator = settings.operator_settings
        node = ShardNode(
            self._name,
            settings.slots,
            settings.secret_bytes,
            views,
            random.Random(),
            controller.activated,
            links=self._links(),
            limits=ServingLimits(lines=operator.lines),
            rules=operator.rules,
            batches=operator.batches,
            form=self._form,
        )
        address = await node.start(self._inside_address())
        self._node = node
        return address

    async def take(self, slots: list[int], reason: str, force: bool = False) -> None:
        self._running().take(slots, reason, force)

    async def change_members(self, slot: int, barred: list[Any], reason: str) -> None:
        self._running().change_members(slot, barred, reason)

    async def story(self, slot: int) -> list[str]:
        story: list[str] = self._running().story(slot)
        return story


class GatewayActor(Actor):
    """One gateway. Those of one host share its port, and the kernel spreads connections."""

    _node: GatewayNode | None

    async def _open(self, view_store: str) -> Any:
        settings = self._settings
        _raise_file_limit()
        config = GatewayConfig(
            token_secret=settings.token_secret,
            insecure_open=settings.insecure_open,
            host_label=self._host_label(),
            **settings.operator_settings.gateway_fields(settings.cluster, settings.directory),
        )
        node = GatewayNode(
            self._name,
            config,
            settings.secret_bytes,
            random.Random(),
            link_config=self._links(),
        )
        tls = self._certificates
        ssl = tls.clients if tls is not None else None
        await node.start(settings.host, settings.port, reuse_port=True, ssl=ssl)
        self._node = node
        return GatewayAddress(self._name, self._public_address(), settings.port)

    async def status(self) -> dict[str, Any]:
        address = f"{self._public_address()}:{self._settings.port}"
        return {**await super().status(), "address": address}

    def _public_address(self) -> str:
        """Where clients reach it: a listener on all interfaces is not an address to connect to."""
        host = self._settings.host
        return (self._node_address() or host) if host in ("0.0.0.0", "::") else host


def _raise_file_limit() -> None:
    """Each connection is a file descriptor; the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(FILES_MAX, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _tune_interpreter() -> None:
    """For a process that moves messages from now on."""
    # A replica's threads share the interpreter: who comes back from an fsync must not wait for
    # long until the one that applies history lets go of it.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # What is there now stays, and what a message leaves behind holds no cycles: the collector would
    # look through all of it again and again, and find next to nothing.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


KINDS: dict[str, type[Actor]] = {
    "replica": ReplicaActor,
    "shard": ShardActor,
    "gateway": GatewayActor,
}
