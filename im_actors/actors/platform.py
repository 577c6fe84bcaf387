"""How the controller starts, watches and calls actors when Ray runs them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from typing import Any, Protocol

from im_actors.actors.classes import KINDS
from im_actors.actors.relay import relayed
from im_actors.actors.settings import SPARE_WORKERS, ActorSettings, Started, actor_env
from im_actors.core.formats import FORMATS
from im_actors.errors import FatalError, ImError, NotReachable
from im_actors.server.topology import Desired

logger = logging.getLogger(__name__)

CREATE_S = 5.0
"""Bound of making or finding an actor, which needs Ray's head."""
START_S = 30.0
"""Bound of an actor's start: a process, and for a replica the reading of its journal. One that was
running and has hung for so long is killed, so that Ray starts another."""
AGAIN_S = 0.03
"""Between two tries to reach an actor that is being restarted."""
STOP_S = 10.0
"""Bound of one actor's stop; what is killed afterwards loses nothing that was promised."""
WARM_AFTER_S = 1.0
"""Spare workers are made when nothing has started for so long: not beside what they are for."""


class RayCalls(Protocol):
    """The part of ``ray_api`` that this module needs."""

    def create(
        self,
        kind: type,
        name: str,
        namespace: str,
        arguments: tuple[Any, ...],
        resource: str = "",
        env: dict[str, str] | None = None,
    ) -> Any: ...

    def find(self, name: str, namespace: str) -> Any: ...

    async def call(self, handle: Any, method: str, *args: Any) -> Any: ...

    async def until_gone(self, handle: Any, life: str) -> str: ...

    async def warm_workers(self, count: int) -> None: ...

    def kill(self, handle: Any) -> None: ...


class RayPlatform:
    """A ``Platform``. ``failures`` are the errors that keep actors from starting, by name."""

    def __init__(self, settings: ActorSettings, calls: RayCalls, node: str = "") -> None:
        self._settings = settings
        self._calls = calls
        self._node = node
        """The controller's own node: processes there can be signalled."""
        self.places = dict(settings.places)
        """Actor to the resource of the host that it is tied to."""
        self._handles: dict[str, Any] = {}
        self._started: dict[str, Started] = {}
        self.failures: dict[str, FatalError] = {}
        self.view_store = ""
        """The identity of the view store, once the controller has opened it."""
        self.form_of: Callable[[str], int] = lambda kind: FORMATS.newest
        """The format that actors of a kind are to write in."""
        self._warming: asyncio.Task[None] | None = None

    async def start(self, desired: Desired) -> Any:
        name = desired.name
        try:
            async with asyncio.timeout(START_S):
                started = await self._when_there(desired)
                address = await relayed(self._settings.relay, started.address)
        except TimeoutError:
            self._handles.pop(name, None)
            self._end_silent(name)
            raise NotReachable(self._waits(name)) from None
        except FatalError as error:
            self.failures[name] = error
            raise
        self.failures.pop(name, None)
        self._started[name] = started
        self._warm_soon()
        return address

    async def wait_down(self, name: str) -> str:
        return await self._calls.until_gone(self._handles[name], self._started[name].life)

    async def call(self, name: str, method: str, *args: Any) -> Any:
        if name not in self._handles:
            raise NotReachable(f"{name} has not been started")
        return await self._calls.call(self._handles[name], method, *args)

    async def end(self, name: str) -> None:
        """Stop the actor in order, and have Ray forget it."""
        handle = self._handles.pop(name, None)
        self._started.pop(name, None)
        self.failures.pop(name, None)
        if handle is None:
            # It did not come up; Ray has it all the same, and would start it where it was to be.
            try:
                handle = await asyncio.to_thread(self._calls.find, name, self._settings.namespace)
            except NotReachable:
                return
        try:
            async with asyncio.timeout(STOP_S):
                await self._calls.call(handle, "stop")
        except (ImError, TimeoutError) as error:
            logger.warning("%s did not stop: %r", name, error)
        await asyncio.to_thread(self._calls.kill, handle)

    def pids(self) -> dict[str, int]:
        return {name: started.pid for name, started in self._started.items()}

    def signal(self, name: str, number: int) -> bool:
        """Signal an actor's process; False when it is not on this host."""
        started = self._started.get(name)
        if started is None or started.node != self._node:
            return False
        try:
            os.kill(started.pid, number)
        except ProcessLookupError:
            return False
        return True

    async def _when_there(self, desired: Desired) -> Started:
        """Ray refuses calls while it restarts an actor; then nothing was started, and the next
        try finds it."""
        while True:
            handle = await self._made(desired)
            try:
                form = self.form_of(desired.kind)
                started: Started = await self._calls.call(handle, "start", self.view_store, form)
                return started
            except NotReachable as error:
                logger.debug("%s is not there yet: %s", desired.name, error)
                # Ray may have made another one under the name.
                self._handles.pop(desired.name, None)
            await asyncio.sleep(AGAIN_S)

    async def _made(self, desired: Desired) -> Any:
        name, settings = desired.name, self._settings
        if name not in self._handles:
            async with asyncio.timeout(CREATE_S):
                self._handles[name] = await asyncio.to_thread(
                    self._calls.create,
                    KINDS[desired.kind],
                    name,
                    settings.namespace,
                    (settings, name),
                    self.places.get(name, ""),
                    actor_env(settings),
                )
        return self._handles[name]

    def _waits(self, name: str) -> str:
        place = self.places.get(name)
        why = f"; it waits for a host that offers {place}" if place else ""
        return f"{name} did not start within {START_S:.0f} s{why}"

    def _end_silent(self, name: str) -> None:
        """A process that hangs keeps its disk locked: only its end lets another one begin."""
        if name in self._started and self.signal(name, signal.SIGKILL):
            logger.error("%s hung and was killed", name)

    # -- spare workers -------------------------------------------------------------------------

    def _warm_soon(self) -> None:
        if self._settings.joined:
            return  # How many workers somebody else's Ray keeps is not ours to say.
        if self._warming is not None:
            self._warming.cancel()
        self._warming = asyncio.get_running_loop().create_task(self._warm())

    async def _warm(self) -> None:
        await asyncio.sleep(WARM_AFTER_S)
        await self._calls.warm_workers(SPARE_WORKERS)
