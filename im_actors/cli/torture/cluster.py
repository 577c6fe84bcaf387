"""The cluster that is tortured: its Ray of several nodes, its relay, its directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from im_actors.actors import deploy
from im_actors.cli.target import running_cluster
from im_actors.cli.torture.nodes import Nodes
from im_actors.cli.torture.relay import Relay
from im_actors.errors import ImError, NotReachable, SetupError, WrongDirectory
from im_actors.server.cluster_file import RunFile, remove_run

NODES = 4
SLOTS = 16
REPLICAS = (3, 4)
"""As many as there are copies, so that a lost one is waited for, or one more, which replaces it."""
SHARDS = 3
GATEWAYS = 3
DOORS = 2
"""Ways in for clients, each with troubles of its own."""
STATUS_S = 15.0
START_TRIES = 3


class TortureCluster:
    """Starts, is asked, and leaves nothing behind. Everything is below ``directory``."""

    def __init__(
        self,
        directory: Path,
        replicas: int,
        say: Callable[[str], None],
        on_status: Callable[[dict[str, Any]], None],
    ) -> None:
        """``on_status`` sees every status that anybody asks for."""
        self.replicas = replicas
        self._say = say
        self._on_status = on_status
        self.data = directory / "data"
        self.data.mkdir(mode=0o700)
        self.relay = Relay()
        self.nodes = Nodes(directory, NODES)
        self.doors: list[tuple[str, tuple[str, int]]] = []
        """Name and address of the ways in."""
        self._config: deploy.UpConfig | None = None

    @property
    def ways(self) -> list[tuple[str, int]]:
        return [way for _, way in self.doors]

    @property
    def url(self) -> str:
        return "im://" + ",".join(f"{host}:{port}" for host, port in self.ways)

    async def start(self) -> None:
        """Return when everything is served."""
        relay = await self.relay.start()
        self.nodes.write_places(self.data, self.replicas)
        config = deploy.UpConfig(
            data=self.data,
            address=self.nodes.address,
            slots=SLOTS,
            shards=SHARDS,
            replicas=self.replicas,
            gateways=GATEWAYS,
            port=0,
            relay=relay,
        )
        run = await self._bring_up(config)
        self._config = replace(config, port=run.gateway_port)
        for number in range(1, DOORS + 1):
            name = f"clients-{number}"
            way = await self.relay.open_another(name, run.gateway_address, run.gateway_port)
            self.doors.append((name, way))

    async def start_again(self) -> None:
        """From the directories, as an operator would: after every process was killed, or after
        ``down``, which leaves Ray as it is."""
        assert self._config is not None
        await self._bring_up(self._config)

    async def _bring_up(self, config: deploy.UpConfig) -> RunFile:
        for attempt in range(1, START_TRIES + 1):
            try:
                if not self.nodes.running:
                    await self.nodes.start_all()
                return await asyncio.to_thread(deploy.up, config, _quietly)
            except (NotReachable, SetupError, WrongDirectory) as error:
                # What a busy machine did not manage in time is tried again from the beginning.
                if attempt == START_TRIES:
                    raise
                self._say(f"start {attempt} did not succeed: {error}")
            await asyncio.to_thread(self.nodes.kill_all)
        raise AssertionError("the last try returns or raises")

    async def down(self) -> None:
        """Stop in order, so that the directories can be read."""
        await asyncio.to_thread(deploy.down, self.data, self._told_by_down)

    def _told_by_down(self, text: str) -> None:
        if text.startswith("no clean stop"):
            self._say(f"           {text}")

    async def end(self) -> None:
        """Leave no process behind, whatever state it is in."""
        await self.relay.close()
        self.end_processes()

    def end_processes(self) -> None:
        self.nodes.end()
        remove_run(self.data)

    # -- asking --------------------------------------------------------------------------------

    async def call(self, method: str, *arguments: Any, timeout_s: float = 10.0) -> Any:
        return await running_cluster(self.data).call(method, *arguments, timeout_s=timeout_s)

    async def status(self, timeout_s: float = STATUS_S) -> dict[str, Any]:
        found: dict[str, Any] = await self.call("status", timeout_s=timeout_s)
        self._on_status(found)
        return found

    async def process(self, name: str) -> psutil.Process:
        """The process of an actor as it last started; NotReachable when it does not run."""
        pids = await self.call("pids", timeout_s=STATUS_S)
        try:
            process = psutil.Process(pids[name])
            if "ray::" in process.name():
                return process
        except (KeyError, psutil.Error):
            pass
        raise NotReachable(f"{name} does not run")

    async def settled(self) -> str:
        """What is still under repair; empty when all is well."""
        try:
            return trouble_in(await self.status())
        except ImError as error:
            return str(error)


def trouble_in(status: dict[str, Any]) -> str:
    """What a status shows that is not as it should be; empty when nothing is."""
    slots = status["slots"]
    if slots["unhealthy"]:
        first = slots["unhealthy"][0]
        return f"{len(slots['unhealthy'])} slots, the first {first['state']}: {first['why']}"
    if status["missing"]:
        return "missing: " + ", ".join(sorted(status["missing"]))
    for kind in ("replicas", "shards", "gateways"):
        for name, found in status[kind].items():
            if "error" in found:
                return f"{name}: {found['error']}"
    for name, found in status["replicas"].items():
        if found["incomplete_slots"]:
            return f"{name} lacks history of {len(found['incomplete_slots'])} slots"
    return ""


@contextlib.contextmanager
def environment(extra: dict[str, str]) -> Iterator[None]:
    """Variables for what is started meanwhile; afterwards all is as before."""
    before = {name: os.environ.get(name) for name in extra}
    os.environ.update(extra)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _quietly(text: str) -> None:
    pass
