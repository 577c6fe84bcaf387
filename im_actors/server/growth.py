"""Grows and shrinks a cluster that runs, a little at a time.

Slots go to other shards by the controller's planned moves. Members go to other replicas one slot
after the other: the next change begins when every member of every slot holds its whole log, so that
each committed record stays on three disks. Who leaves is ended when it has nothing left; shards and
gateways of a host that has no replica any more go on at another one. What is wanted is on disk
before anything is done, so a controller that starts anew goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from im_actors.core.directory import ReplicaAddress
from im_actors.core.model import COPIES, Member, View, ViewState
from im_actors.core.placement import members_for
from im_actors.core.takeover import ReplicaInfo
from im_actors.errors import BadRequest
from im_actors.server.controller import ControllerNode
from im_actors.server.topology import Topology, kind_of

logger = logging.getLogger(__name__)

STEP_S = 0.25
CHANGE_S = 4.0
"""A change of members that is not done after so long has failed; another one is tried then."""
AGAIN_S, AGAIN_S_MAX = 2.0, 60.0
"""Wait after a change that failed, doubling: each may have held up its slot for a moment."""
DROP_S = 30.0
"""How long a replica that is in no view any more may take to delete what it had."""
UNHEALTHY_SHOWN = 3


class Places(Protocol):
    """Where actors run, when they run on several hosts."""

    async def allot(self, topology: Topology) -> None:
        """Give each actor that is new a host. SetupError: there are not enough disks."""

    def strays(self, topology: Topology) -> list[str]:
        """Shards and gateways on hosts that have no replica any more."""

    async def resettle(self, name: str, topology: Topology) -> None:
        """Give a stray, which must not run now, another host."""


class Change(NamedTuple):
    """A slot's next change of members."""

    slot: int
    leaves: Member
    barred: tuple[Member, ...]
    """Replicas that must not take the place: ``leaves`` and whoever is not wanted there."""


def misplaced(
    view: View, staying: Sequence[ReplicaInfo], leaving: Iterable[str], spreading: bool
) -> list[Member]:
    """Members that should be others, those that leave the cluster first."""
    out = [member for member in view.members if member.replica in leaving]
    if spreading:
        wanted = {info.member for info in members_for(view.slot, staying)}
        out += [m for m in view.members if m not in wanted and m not in out]
    return out


def next_change(
    views: Mapping[int, View],
    replicas: Sequence[ReplicaInfo],
    leaving: frozenset[str],
    spreading: bool,
) -> Change | None:
    """One member of one slot, to be replaced by one that placement wants there. ``replicas`` are
    all that run. Who leaves the cluster goes before who only makes room."""
    staying = [info for info in replicas if info.name not in leaving]
    if len(staying) < COPIES:
        return None
    for spread in (False, True) if spreading else (False,):
        for slot, view in sorted(views.items()):
            out = misplaced(view, staying, leaving, spread)
            if not out:
                continue
            wanted = {info.member for info in members_for(slot, staying)}
            remain = set(view.members) - {out[0]}
            barred = {info.member for info in replicas} - wanted - remain
            return Change(slot, out[0], tuple(sorted(barred | {out[0]})))
    return None


class Growth:
    """Brings a cluster from what runs to what its topology says."""

    def __init__(
        self,
        controller: ControllerNode,
        topology: Topology,
        save: Callable[[Topology], None],
        places: Places | None = None,
    ) -> None:
        """``save`` writes the topology down, before anything of it is done. ``places`` None: all
        actors are on one host."""
        self._controller = controller
        self.topology = topology
        self._save = save
        self._places = places
        self._wake = asyncio.Event()
        self._changing = asyncio.Lock()
        self._waits = ""
        self._filling: list[dict[str, Any]] = []
        self._out_since: dict[str, float] = {}
        self._failures = 0
        self._again_at = 0.0

    def methods(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        return {"scale": self.scale, "drain": self.drain, "growth": self.progress}

    # -- what the operator asks for ------------------------------------------------------------

    async def scale(
        self, shards: int | None = None, replicas: int | None = None, gateways: int | None = None
    ) -> dict[str, Any]:
        """Other numbers of actors; None: as it is. Returns how far it is, at once."""
        await self._adopt(lambda now: now.scaled(shards, replicas, gateways))
        return await self.progress()

    async def drain(self, what: str, cancel: bool = False) -> dict[str, Any]:
        """Take a replica, or all replicas of a host, out of the cluster; ``cancel``: leave it in
        after all. Returns how far it is, at once."""
        names, host = self._meant(what)
        topology = self.topology
        if cancel:
            if host not in topology.hosts_out and not set(names) & set(topology.leaving):
                raise BadRequest(f"{what} is not being drained")
            await self._adopt(lambda now: now.taken_back(names, host))
        else:
            self._check_others(names)
            await self._adopt(lambda now: now.drained(names, host))
        return await self.progress()

    def _meant(self, what: str) -> tuple[tuple[str, ...], str]:
        """The replicas, and the host if it is one."""
        known = [d.name for d in self.topology.desired() if d.kind == "replica"]
        if what in known:
            return (what,), ""
        replicas: list[ReplicaAddress] = self._controller.running("replica")
        there = tuple(sorted(r.name for r in replicas if r.host == what))
        shards = {shard.address for shard in self._controller.running("shard")}
        if not there and what not in shards and what not in self.topology.hosts_out:
            hosts = sorted({replica.host for replica in replicas})
            raise BadRequest(
                f"{what!r} is no replica ({', '.join(known)}) and no host ({', '.join(hosts)})"
            )
        return there, what

    def _check_others(self, names: Sequence[str]) -> None:
        """Nobody is drained towards replicas that do not run."""
        away = set(self._controller.absent("replica"))
        staying = [n for n in self.topology.replicas if n not in names and n not in away]
        if len(staying) < COPIES and len(self.topology.replicas) - len(names) >= COPIES:
            raise BadRequest(
                f"of those that would remain only {', '.join(staying) or 'none'} run, and"
                f" {COPIES} are needed; missing: {', '.join(sorted(away))}"
            )

    async def _adopt(self, change: Callable[[Topology], Topology]) -> None:
        async with self._changing:
            new = change(self.topology)
            if self._places is not None:
                await self._places.allot(new)
            # Of what it is by now: somebody who was leaving may have ended meanwhile.
            self._take_over(change(self.topology))
        logger.info("wanted is now %s", self.topology)
        self._wake.set()

    def _take_over(self, topology: Topology) -> None:
        self._save(topology)
        self.topology = topology
        self._controller.want(topology, self._strays())

    async def progress(self) -> dict[str, Any]:
        return self.status()

    def status(self) -> dict[str, Any]:
        """How far it is, as JSON."""
        topology, views = self.topology, self._controller.views
        leaving = frozenset(topology.leaving)
        staying = self._staying()
        enough = len(staying) >= COPIES
        spreading = topology.spreading and enough
        members = sum(len(misplaced(v, staying, leaving, spreading)) for v in views.values())
        starting = self._controller.missing()
        slots = self._controller.slots_to_move()
        moving = [*topology.leaving, *self._strays()]
        busy = bool(moving or topology.spreading or slots or starting)
        return {
            "busy": busy,
            "replicas": list(topology.replicas),
            "shards": topology.shards,
            "gateways": topology.gateways,
            "starting": starting,
            "leaving": moving,
            "hosts_out": list(topology.hosts_out),
            "slots_to_move": slots,
            "members_to_move": members,
            "filling": self._filling if busy else [],
            "waits": self._waits if busy else "",
        }

    # -- the work ------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever; cancelled by its controller."""
        self._controller.want(self.topology, self._strays())
        while True:
            try:
                if self.topology.leaving or self.topology.spreading or self._strays():
                    await self._step()
            except Exception as error:
                # Whatever it is, the next look may find it mended; and the operator sees it.
                self._waits = str(error) or repr(error)
                logger.warning("growth waits: %r", error)
            try:
                async with asyncio.timeout(STEP_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _step(self) -> None:
        await self._end_who_has_nothing()
        await self._resettle_strays()
        obstacle = self.obstacle()
        if obstacle:
            self._waits = obstacle
            return
        self._filling = await self.incomplete()
        if self._filling:
            first = self._filling[0]
            self._waits = f"{first['replica']} fetches the history of slot {first['slot']}"
            return
        change = self._next()
        if change is not None:
            if time.monotonic() >= self._again_at:
                await self._change(change)
        elif self.topology.spreading:
            self._take_over(replace(self.topology, spreading=False))

    def _staying(self) -> list[ReplicaInfo]:
        """The running replicas that stay."""
        replicas: list[ReplicaAddress] = self._controller.running("replica")
        leaving = set(self.topology.leaving)
        return [r.info for r in sorted(replicas) if r.name not in leaving]

    def _next(self) -> Change | None:
        infos = [replica.info for replica in sorted(self._controller.running("replica"))]
        topology = self.topology
        leaving = frozenset(topology.leaving)
        return next_change(self._controller.views, infos, leaving, topology.spreading)

    def obstacle(self) -> str:
        """Why no member may be changed now; empty when one may. A change needs all copies, so it
        never comes on top of a fault."""
        controller = self._controller
        absent = controller.absent("replica")
        if absent:
            return f"{', '.join(absent)} does not run"
        unserved = [slot["slot"] for slot in controller.unhealthy()]
        if unserved:
            some = ", ".join(map(str, unserved[:UNHEALTHY_SHOWN]))
            return f"{len(unserved)} slots are not active: {some}{', …' * (len(unserved) > 3)}"
        moving = controller.slots_to_move()
        return f"{moving} slots move to other shards first" if moving else ""

    async def incomplete(self) -> list[dict[str, Any]]:
        """The members that do not hold their slot's whole log yet."""
        told = await self._controller.call_all("replica", "status")
        filling = []
        for slot, view in sorted(self._controller.views.items()):
            for member in view.members:
                # Unknown is never taken for complete.
                lacking = told.get(member.replica, {}).get("incomplete_slots")
                if lacking is None or slot in lacking:
                    filling.append({"slot": slot, "replica": member.replica})
        return filling

    async def _change(self, change: Change) -> None:
        controller, slot = self._controller, change.slot
        before = controller.views[slot]
        shard = controller.owner_shard(before)
        if shard is None:
            return
        reason = f"{change.leaves.replica} hands over its copy"
        self._waits = f"slot {slot}: {reason}"
        barred = [tuple(member) for member in change.barred]
        await controller.call(shard, "change_members", slot, barred, reason)
        deadline = time.monotonic() + CHANGE_S
        while time.monotonic() < deadline:
            view = controller.views[slot]
            done = view.epoch > before.epoch and view.state == ViewState.ACTIVE
            if done and change.leaves not in view.members:
                self._failures = 0
                return
            if done:
                break
            await asyncio.sleep(STEP_S / 10)
        wait_s = min(AGAIN_S_MAX, AGAIN_S * 2**self._failures)
        self._failures += 1
        self._again_at = time.monotonic() + wait_s
        self._waits = f"slot {slot}: no other replica took over from {change.leaves.replica}"
        logger.warning("%s, again after %.0f s", self._waits, wait_s)

    async def _end_who_has_nothing(self) -> None:
        for name in self.topology.leaving:
            if await self._has_something(name):
                continue
            logger.info("%s has nothing left and ends", name)
            await self._controller.end(name)
            self._out_since.pop(name, None)
            self._take_over(self.topology.without(name))

    def _strays(self) -> list[str]:
        return self._places.strays(self.topology) if self._places is not None else []

    async def _resettle_strays(self) -> None:
        """Shards and gateways go where replicas stay, as soon as they have nothing."""
        if self._places is None:
            return
        for name in self._places.strays(self.topology):
            if not await self._has_something(name):
                logger.info("%s moves to another host", name)
                await self._controller.end(name)
                await self._places.resettle(name, self.topology)
                self._controller.want(self.topology, self._strays())

    async def _has_something(self, name: str) -> bool:
        views = self._controller.views.values()
        if kind_of(name) == "shard":
            return any(view.owner.rpartition(".")[0] == name for view in views)
        if kind_of(name) != "replica":
            return False
        if any(member.replica == name for view in views for member in view.members):
            return True
        return await self._still_needed(name)

    async def _still_needed(self, name: str) -> bool:
        """In no view any more. Its copies count until all members are complete; then owners have
        them deleted, which is waited for only as long as somebody answers."""
        if await self.incomplete():
            return True
        since = self._out_since.setdefault(name, time.monotonic())
        status = (await self._controller.call_all("replica", "status")).get(name, {})
        return bool(status.get("slots")) and time.monotonic() - since < DROP_S
