"""The way from one release to the next, and back until it is finished.

While an operator replaces the release of one host after the other, everything is written in the
format that the cluster had before (``core.formats``). ``finish`` takes the next one, when everybody
knows it, in an order in which nobody meets what he does not know:

1. it is written down that disks are to be of it, and replicas are started anew in it, one after the
   other: from then on no older release opens their directories;
2. when all of them are, it is written down that records are to be of it, and the shards follow.

An actor learns what it writes when it is started, and keeps to it as long as it runs. What is
wanted is on disk before anything is done, so a controller that starts anew goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from im_actors import __version__
from im_actors.core.formats import FORMATS, Formats
from im_actors.errors import BadRequest
from im_actors.server.controller import ControllerNode
from im_actors.server.growth import Growth
from im_actors.server.topology import kind_of

logger = logging.getLogger(__name__)

LOOK_S = 0.5


class Written(NamedTuple):
    """The formats that a cluster writes: ``disks`` is ahead of ``records`` while an upgrade is
    being finished."""

    disks: int
    records: int

    def form_of(self, kind: str) -> int:
        """What an actor of this kind is started in."""
        return self.disks if kind == "replica" else self.records


class Upgrade:
    """Starts actors anew, one after the other, each when nothing else is amiss."""

    def __init__(
        self,
        controller: ControllerNode,
        growth: Growth,
        written: Written,
        save: Callable[[Written], None],
        formats: Formats = FORMATS,
    ) -> None:
        """``save`` writes down what is to be written, before anything of it is done; ``formats``
        are those that the controller knows."""
        self._controller = controller
        self._growth = growth
        self.written = written
        self._save = save
        self._formats = formats
        self._asked: list[str] = []
        """What the operator wants to be started anew, in this order."""
        self._settled = False
        """Nothing is left to do."""
        self._waits = ""
        self._wake = asyncio.Event()

    def methods(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        return {"upgrade": self.progress, "finish_upgrade": self.finish, "restart": self.restart}

    def form_of(self, kind: str) -> int:
        return self.written.form_of(kind)

    # -- what the operator asks for ------------------------------------------------------------

    async def restart(self, what: str) -> dict[str, Any]:
        """Start an actor, or all actors of a host, anew, in the release that is there now. Returns
        how far it is, at once."""
        told = await self._told()
        names = [name for name in told if what in (name, told[name].get("host"))]
        if not names:
            hosts = sorted({status["host"] for status in told.values() if "host" in status})
            raise BadRequest(
                f"{what!r} is no actor that runs ({', '.join(told)}) and no host"
                f" ({', '.join(hosts)})"
            )
        self._asked += [name for name in names if name not in self._asked]
        self._begin()
        return await self.progress()

    async def finish(self) -> dict[str, Any]:
        """Write the newest format that everybody knows from now on, for good. BadRequest says who
        does not know what others do. Returns how far it is, at once."""
        found = await self.progress()
        if found["unknown"]:
            raise BadRequest(f"{', '.join(found['unknown'])}: not known which formats it knows")
        if found["older"]:
            raise BadRequest(
                f"{', '.join(found['older'])}: does not know format {found['newest']}, which"
                " others do; install the new release there first"
            )
        if found["newest"] > self.written.disks:
            logger.info("from now on format %d is written", found["newest"])
            self._take_over(self.written._replace(disks=found["newest"]))
            self._begin()
        return await self.progress()

    async def progress(self) -> dict[str, Any]:
        """What everybody knows and writes, and how far it is."""
        told = await self._told()
        known = {name: status.get("formats") for name, status in told.items()}
        known |= dict.fromkeys(self._controller.missing())
        known["controller"] = list(self._formats)
        newest = max(formats[1] for formats in known.values() if formats)
        return {
            **self.status(),
            "formats": dict(sorted(known.items())),
            "writes": {name: told[name]["format"] for name in told if "format" in told[name]},
            "releases": {
                **{name: told[name]["release"] for name in told if "release" in told[name]},
                "controller": __version__,
            },
            "newest": newest,
            "older": sorted(name for name, f in known.items() if f and f[1] < newest),
            "unknown": sorted(name for name, f in known.items() if not f),
        }

    def status(self) -> dict[str, Any]:
        """How far it is, without asking anybody."""
        return {
            "busy": not self._settled,
            "disks": self.written.disks,
            "records": self.written.records,
            "restarting": list(self._asked),
            "waits": "" if self._settled else self._waits,
        }

    # -- the work ------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever; cancelled by its controller."""
        while True:
            try:
                if not self._settled:
                    await self._step()
            except Exception as error:
                # Whatever it is, the next look may find it mended; and the operator sees it.
                self._waits = str(error) or repr(error)
                logger.warning("the upgrade waits: %r", error)
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    def _begin(self) -> None:
        self._settled = False
        self._wake.set()

    async def _step(self) -> None:
        self._waits = self._obstacle()
        if self._waits:
            return
        told = await self._told()
        # Unknown is never taken for old, and not for new either.
        silent = [name for name, status in told.items() if "formats" not in status]
        if silent:
            self._waits = f"no answer from {', '.join(silent)}"
            return
        behind = [name for name in told if told[name].get("format", 0) < self._wanted(name)]
        ahead = self.written.disks > self.written.records
        if not behind and not self._asked and ahead:
            self._take_records(told)
        elif not behind and not self._asked:
            self._settled = True
        elif filling := await self._growth.incomplete():
            first = filling[0]
            self._waits = f"{first['replica']} fetches the history of slot {first['slot']}"
        else:
            await self._start_anew((self._asked or behind)[0])

    def _take_records(self, told: dict[str, dict[str, Any]]) -> None:
        """All disks are of the new format. Whoever starts from then on has to know it; who has come
        since ``finish`` looked may not."""
        disks = self.written.disks
        older = [name for name, status in told.items() if status["formats"][1] < disks]
        if older:
            self._waits = f"{', '.join(older)}: does not know format {disks}"
        else:
            self._take_over(self.written._replace(records=disks))
            self._wake.set()

    def _wanted(self, name: str) -> int:
        """The format that it should write; gateways write nothing."""
        return 0 if kind_of(name) == "gateway" else self.form_of(kind_of(name))

    async def _start_anew(self, name: str) -> None:
        logger.info("%s is started anew", name)
        self._waits = f"{name} starts anew"
        if name in self._asked:
            self._asked.remove(name)
        await self._controller.restart(name)

    def _obstacle(self) -> str:
        """Why nobody may be taken away now; empty when one may."""
        missing = self._controller.missing()
        if missing:
            return "; ".join(f"{name}: {why}" for name, why in missing.items())
        return self._growth.obstacle()

    async def _told(self) -> dict[str, dict[str, Any]]:
        """The status of all actors, replicas first, as they are to be taken."""
        told: dict[str, dict[str, Any]] = {}
        for kind in ("replica", "shard", "gateway"):
            told |= dict(sorted((await self._controller.call_all(kind, "status")).items()))
        return told

    def _take_over(self, written: Written) -> None:
        self._save(written)
        self.written = written
