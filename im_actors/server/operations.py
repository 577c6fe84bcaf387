"""What an operator can ask of a running cluster: the admin methods, the same under Ray and without.

Each takes and returns JSON; ``admin`` serves them to the command line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from im_actors.core.model import slot_of
from im_actors.errors import BadRequest, NotFound, NotReachable
from im_actors.server.controller import ControllerNode
from im_actors.server.growth import Growth
from im_actors.server.months import read_past_month
from im_actors.server.upgrade import Upgrade
from im_actors.storage.verify import ReplicaReport, VerifyReport, compare

logger = logging.getLogger(__name__)

VERIFY_TIMEOUT_S = 600.0
MONTHS_TIMEOUT_S = 30.0
REWRITE_TIMEOUT_S = 3600.0
"""What is still under way then goes on, and ``months`` tells how it stands."""
FAULTS = ("kill", "pause")


class Operations:
    """The methods around one controller. ``stop`` is what ends the actors, in the right order."""

    def __init__(
        self,
        controller: ControllerNode,
        growth: Growth,
        upgrade: Upgrade,
        stop: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._controller = controller
        self._growth = growth
        self._upgrade = upgrade
        self._stop = stop
        self._repairs: asyncio.Task[None] | None = None

    def methods(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        return {
            **self._growth.methods(),
            **self._upgrade.methods(),
            "ping": self.ping,
            "status": self.status,
            "wait_serving": self.wait_serving,
            "verify": self.verify,
            "story": self.story,
            "fault": self.fault,
            "names": self.names,
            "gateways": self.gateways,
            "positions": self.positions,
            "months": self.months,
            "move_month": self.move_month,
            "drop_month": self.drop_month,
            "stop": self.stop,
        }

    async def ping(self) -> str:
        return "pong"

    async def status(self) -> dict[str, Any]:
        """The state of the whole cluster, and how far it has come to what is wanted."""
        return {
            **await self._controller.status(),
            "growth": self._growth.status(),
            "upgrade": self._upgrade.status(),
        }

    async def wait_serving(self, timeout_s: float = 30.0) -> None:
        """Return when every slot is served; otherwise say which are not, and why."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._controller.wait_serving()
        except TimeoutError:
            status = await self._controller.status()
            raise NotReachable(
                f"after {timeout_s:g} s {status['slots']['active']} of"
                f" {status['slots']['total']} slots are served; missing: {status['missing']},"
                f" for example {status['slots']['unhealthy'][:3]}"
            ) from None

    async def verify(self, repair: bool = True) -> dict[str, Any]:
        """Scan and compare all replicas. A replica with damage is repaired afterwards, one at a
        time: its data is put aside and filled again by the others."""
        found = await self._controller.call_all("replica", "report", timeout_s=VERIFY_TIMEOUT_S)
        errors = [f"{name}: {f['error']}" for name, f in found.items() if "error" in f]
        reports = [ReplicaReport.from_dict(f) for f in found.values() if "error" not in f]
        verdict = compare(reports)
        damaged = [report.replica for report in reports if report.corrupt]
        if repair and damaged and (self._repairs is None or self._repairs.done()):
            self._repairs = asyncio.get_running_loop().create_task(self._repair(damaged))
        return _verdict(verdict, errors) | {"repairing": damaged if repair else []}

    async def _repair(self, damaged: list[str]) -> None:
        for name in damaged:
            await self._until_sound(but=name)
            logger.warning("repairing %s: its data is put aside, the others fill it again", name)
            before = self._controller.starts.get(name, 0)
            await self._controller.call(name, "repair")
            while self._controller.starts.get(name, 0) == before:
                await asyncio.sleep(0.1)
            await self._until_sound()

    async def _until_sound(self, but: str = "") -> None:
        """Return when all replicas run and hold all of their slots, ``but`` one."""
        while True:
            status = await self._controller.status()
            replicas = {n: s for n, s in status["replicas"].items() if n != but}
            whole = all(not s.get("incomplete_slots", [-1]) for s in replicas.values())
            if whole and status["slots"]["active"] == status["slots"]["total"]:
                return
            await asyncio.sleep(0.2)

    async def story(
        self, session: str, device: str | None = None, n: int | None = None
    ) -> list[str]:
        """What shards and replicas remember of the session's slot."""
        slot = slot_of(session, self._controller.slots)
        lines = [f"session {session!r} is in slot {slot}"]
        for kind in ("shard", "replica"):
            for name, told in (await self._controller.call_all(kind, "story", slot)).items():
                lines += [f"{name} {line}" for line in told if isinstance(told, list)]
        return lines

    async def fault(self, kind: str, name: str) -> None:
        """Kill or pause one actor, for tests of what follows."""
        if kind not in FAULTS:
            raise BadRequest(f"a fault is one of {', '.join(FAULTS)}, not {kind!r}")
        if name not in {n for names in (await self.names()).values() for n in names}:
            raise BadRequest(f"no actor {name!r} is running")
        try:
            await self._controller.call(name, "fault", kind)
        except Exception as error:
            # Who is killed does not answer.
            logger.info("fault %s on %s: %r", kind, name, error)

    async def names(self) -> dict[str, list[str]]:
        """The running actors by kind."""
        return self._controller.running_names()

    async def gateways(self) -> list[dict[str, Any]]:
        """Where clients can connect."""
        return [
            {"address": address, "port": port}
            for _, address, port in self._controller.running("gateway")
        ]

    async def positions(self) -> dict[str, Any]:
        """How far each replica has each slot, for a backup; an error stands in for one that does
        not answer."""
        return await self._controller.call_all("replica", "positions")

    # -- months --------------------------------------------------------------------------------

    async def months(self) -> dict[str, Any]:
        """The months of every replica, by its name; an error stands in for one that does not
        answer."""
        return await self._controller.call_all("replica", "months", timeout_s=MONTHS_TIMEOUT_S)

    async def move_month(self, month: str, directory: str, replica: str = "") -> dict[str, Any]:
        """Move a month to a directory of the replicas' hosts, or of that of one replica; an empty
        one: back. What became of it, by replica: None, or an error."""
        read_past_month(month)
        names = await self._replicas(replica)
        return await self._on_each(names, "move_month", month, directory)

    async def drop_month(self, month: str, dry: bool) -> dict[str, Any]:
        """Drop the content of a month on all replicas, for good: those that are down hear of it
        when they come back. ``dry``: only tell what would be dropped. Both tell the month as it was
        on each replica, and ``results`` what became of it."""
        number = read_past_month(month)
        told = await self.months()
        rows = {
            name: next((row for row in rows if row["month"] == month), None)
            for name, rows in told.items()
            if isinstance(rows, list)
        }
        if not any(rows.values()):
            raise NotFound(f"no replica that answers has anything of {month}")
        answer: dict[str, Any] = {"month": month, "dry": dry, "replicas": rows, "results": {}}
        if not dry:
            names = self._controller.running_names()["replica"]
            answer["results"] = await self._on_each(names, "drop_month", month)
            answer["absent"] = self._controller.absent("replica")
            if None in answer["results"].values():
                # One has written down that it is dropped, so it will be on all.
                self._controller.dropped([number])
        return answer

    async def _replicas(self, only: str) -> list[str]:
        names = self._controller.running_names()["replica"]
        if only and only not in names:
            raise BadRequest(f"no replica {only!r} is running, only {', '.join(names)}")
        return [only] if only else names

    async def _on_each(self, names: list[str], method: str, *args: Any) -> dict[str, Any]:
        """What a method of each answers: None, or its error as text."""

        async def one(name: str) -> str | None:
            try:
                await self._controller.call(name, method, *args, timeout_s=REWRITE_TIMEOUT_S)
                return None
            except TimeoutError:
                return "it goes on: im-actors months list tells when it is done"
            except Exception as error:
                return str(error) or repr(error)

        return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))

    async def stop(self) -> None:
        """End all actors in order: gateways, shards, replicas. Files are closed when it returns."""
        if self._stop is not None:
            await self._stop()


def _verdict(verdict: VerifyReport, errors: list[str]) -> dict[str, Any]:
    return {
        "slots": verdict.slots,
        "records": verdict.records,
        "events": verdict.events,
        "divergent": verdict.divergent,
        "corrupt": verdict.corrupt,
        "missing": verdict.missing,
        "uncompared": verdict.uncompared,
        "dropped": verdict.dropped,
        "problems": [*verdict.problems, *errors],
        "ok": verdict.ok and not errors,
    }
