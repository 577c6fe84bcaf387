"""What benches share: a cluster of their own, a local Ray and a directory, both gone afterwards."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from im_actors.actors import deploy, processes
from im_actors.actors.settings import SPARE_WORKERS
from im_actors.cli.cluster_commands import EXIT_INTERRUPTED, EXIT_TERMINATED
from im_actors.cli.progress import Progress
from im_actors.cli.replay_commands import deaf, end_demo
from im_actors.cli.target import running_cluster
from im_actors.cli.torture.cluster import trouble_in
from im_actors.errors import ImError

POLL_S = 0.05
SETTLE_S = 120.0
SPARES_S = 8.0
IDLE_WORKER = "ray::IDLE"


class Cluster:
    """``im-actors up`` in a new directory; use it as ``with``. ``sizes`` are those of UpConfig."""

    def __init__(self, directory: Path | None = None, **sizes: Any) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="im_bench-", dir=directory))
        self.data = self.directory / "data"
        self._sizes = {"shards": 1, "gateways": 1, "port": 0, **sizes}

    def __enter__(self) -> Cluster:
        try:
            self.up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Another Ctrl-C must not leave half of it behind.
        with deaf():
            end_demo(self.data, Progress(sys.stderr, bar=False))
            shutil.rmtree(self.directory, ignore_errors=True)

    def up(self) -> None:
        """Returns when all slots are served."""
        self.run = deploy.up(deploy.UpConfig(data=self.data, **self._sizes), lambda text: None)
        self._sizes["port"] = self.run.gateway_port

    def down(self) -> None:
        """A clean stop; ``up`` starts again from the directory."""
        deploy.down(self.data, lambda text: None)

    def kill_everything(self) -> None:
        """As a power cut would, but for what the kernel still writes."""
        deploy.kill_everything(self.data)

    @property
    def address(self) -> tuple[str, int]:
        return self.run.gateway_address, self.run.gateway_port

    async def call(self, method: str, *arguments: Any) -> Any:
        return await running_cluster(self.data).call(method, *arguments)

    async def pids(self) -> dict[str, int]:
        found: dict[str, int] = await self.call("pids")
        return found

    async def trouble(self) -> str:
        """What is not as it should be: slots, actors, history that replicas lack."""
        try:
            return trouble_in(await self.call("status"))
        except ImError as error:
            return str(error)

    async def settled(self, also: Callable[[], str] = lambda: "") -> None:
        """Return when nothing is under repair and a next fault meets what the first one met."""

        async def trouble() -> str:
            return await self.trouble() or also()

        async def lacks_spares() -> str:
            return self._lacks_spares()

        await until_quiet(trouble)
        try:
            await until_quiet(lacks_spares, SPARES_S)
        except RuntimeError as error:
            # Ray does not always start another one. Then the next actor may take longer.
            say(f"  goes on {error}")

    def _lacks_spares(self) -> str:
        """A restarted actor takes an idle process that has done nothing yet. Those that were made
        ready by tasks stay as they are, and one more has to be there."""
        found = processes.session_processes(self.run.ray_sid, self.run.ray_temp_dir)
        idle = [_title(process) for process in found].count(IDLE_WORKER)
        return "" if idle > SPARE_WORKERS else f"{idle} of {SPARE_WORKERS + 1} idle processes"


def _title(process: Any) -> str:
    with contextlib.suppress(Exception):
        return "".join(process.cmdline()).strip()
    return ""


async def until_quiet(trouble: Callable[[], Awaitable[str]], most_s: float = SETTLE_S) -> None:
    """Return when there is no trouble; RuntimeError names the one that does not end."""
    deadline = time.monotonic() + most_s
    while text := await trouble():
        if time.monotonic() > deadline:
            raise RuntimeError(f"after {most_s:.0f} s still: {text}")
        await asyncio.sleep(POLL_S)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(
    args: argparse.Namespace,
    bench: Callable[[argparse.Namespace], dict[str, Any]],
    shown: Callable[[dict[str, Any]], str],
) -> int:
    """Run a bench and print what it found. SIGTERM ends it as Ctrl-C does, its cluster too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    try:
        report = bench(args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (RuntimeError, ImError) as error:
        say(str(error))
        return 2
    print(shown(report), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(report))
    return 0
