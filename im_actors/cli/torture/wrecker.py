"""Carries the faults out, and heals each of them within a bounded time.

A fault is ordered in one step, ``inject``; what has to happen later, waking a process or starting a
node again, is done in the background, so that the next fault can come meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from im_actors.cli.torture.cluster import TortureCluster, trouble_in
from im_actors.cli.torture.recovery import Hit
from im_actors.cli.torture.relay import BOTH, TO_DIALER, TO_LISTENER, Trouble
from im_actors.cli.torture.writers import WriterProcess
from im_actors.errors import ImError, NotReachable

SHORT_PAUSE_S = (0.2, 2.5)
LONG_PAUSE_S = (4.0, 9.0)
"""Longer than the controller waits for a silent actor: another one owns its slots by then."""
TROUBLE_S = (1.0, 7.0)
"""Of links; they are taken for lost after two and a half seconds."""
DELAY_S = (0.01, 0.4)
NODE_AWAY_S = (0.2, 2.0)
WRITERS_AWAY_S = (0.1, 2.0)
AIM_S = 12.0
"""How long a fault waits for somebody that it can hit."""
WHOLE_S = 25.0
"""How long the loss of a disk waits until all copies are complete."""
AGAIN_S = 0.1


class Wrecker:
    """``inject`` orders a fault, ``heal`` waits until all are over."""

    def __init__(
        self,
        cluster: TortureCluster,
        writers: Sequence[WriterProcess],
        rng: random.Random,
        say: Callable[[str], None],
        done: Callable[[Hit], None],
    ) -> None:
        """``done`` hears of each fault as soon as it is done."""
        self._done = done
        self.failed = ""
        """What could not be healed."""
        self._cluster = cluster
        self._writers = writers
        self._rng = rng
        self._say = say
        self._healing: set[asyncio.Task[None]] = set()
        self._nodes_busy = asyncio.Lock()
        """One node at a time is down, and the head only with all others."""
        self._lost = 0

    async def inject(self, kind: str) -> Hit:
        """The fault, ordered and done; NotReachable when there was nobody to hit."""
        hit = await self._injected(kind)
        self._done(hit)
        return hit

    async def _injected(self, kind: str) -> Hit:
        action, _, what = kind.partition("-")
        if what in ("shard", "replica", "gateway", "controller"):
            order = {"kill": self._kill, "pause": self._pause}[action]
            return await order(kind, what)
        if what in ("raylet", "node"):
            return await {"kill": self._lose_node, "orphan": self._orphan_node}[action](kind)
        if what == "links":
            return await self._cut_links(kind) if action == "cut" else await self._trouble(kind)
        if kind == "cut-clients":
            return self._cut_clients(kind)
        return await {
            "delay-clients": self._trouble_clients,
            "blackhole-clients": self._trouble_clients,
            "crash-writers": self._crash_writers,
            "empty-disk": self._empty_disk,
            "kill-all": self._kill_all,
            "restart-all": self._restart_all,
        }[kind](kind)

    async def heal(self) -> None:
        """Return when everything that was paused, cut or killed is as it was."""
        while self._healing:
            await asyncio.wait(self._healing)

    async def give_up(self) -> None:
        """Undo at once what can be undone."""
        for task in list(self._healing):
            task.cancel()
        await asyncio.gather(*self._healing, return_exceptions=True)

    # -- actors --------------------------------------------------------------------------------

    async def _kill(self, kind: str, what: str) -> Hit:
        hit, process = await self._aim(kind, what)
        _order(hit, process.kill)
        return hit

    async def _pause(self, kind: str, what: str) -> Hit:
        hit, process = await self._aim(kind, what)
        seconds = self._rng.uniform(*self._rng.choice((SHORT_PAUSE_S, LONG_PAUSE_S)))
        _order(hit, process.suspend)
        hit.target += f" for {seconds:.1f} s"
        self._later(seconds, lambda: _wake([process]))
        return hit

    async def _aim(self, kind: str, what: str) -> tuple[Hit, psutil.Process]:
        """An actor of this kind that runs. After an earlier fault one may have to come back."""
        if what == "controller":
            return await self._aim_at_controller(kind)
        status = await self._status_with(lambda found: _running(found, what))
        name = self._rng.choice(_running(status, what))
        return self._hit(kind, name, status), await self._cluster.process(name)

    async def _aim_at_controller(self, kind: str) -> tuple[Hit, psutil.Process]:
        process = await self._patiently(lambda: self._cluster.process("controller"), AIM_S)
        return Hit(kind, "controller", 0.0), process

    async def _status_with(self, ready: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            status = await self._cluster.status()
            if not ready(status):
                raise NotReachable("nobody of that kind runs")
            return status

        found: dict[str, Any] = await self._patiently(ask, AIM_S)
        return found

    async def _patiently(self, ask: Callable[[], Awaitable[Any]], seconds: float) -> Any:
        give_up_s = time.monotonic() + seconds
        while True:
            try:
                return await ask()
            except ImError:
                if time.monotonic() > give_up_s:
                    raise
            await asyncio.sleep(AGAIN_S)

    def _hit(self, kind: str, name: str, status: dict[str, Any]) -> Hit:
        hit = Hit(kind, name, 0.0)
        hit.slots = slots_of_actor(name, status)
        if name.startswith("gateway"):
            hit.devices = self._cluster.relay.devices_of(name) or None
        return hit

    # -- links and clients ---------------------------------------------------------------------

    async def _cut_links(self, kind: str) -> Hit:
        pipes = self._cluster.relay.between_actors()
        names = sorted({end for pipe in pipes for end in pipe.ends})
        chosen = [self._rng.choice(names)] if names and self._rng.random() < 0.5 else names
        hit = Hit(kind, chosen[0] if len(chosen) == 1 else "all links", time.monotonic())
        self._cluster.relay.cut(chosen)
        hit.done_s = time.monotonic()
        return hit

    async def _trouble(self, kind: str) -> Hit:
        status = await self._status_with(lambda found: self._cluster.relay.between_actors())
        pipes = sorted((p.dialer, p.listener) for p in self._cluster.relay.between_actors())
        dialer, listener = self._rng.choice(pipes)
        one = self._rng.random() < 0.5
        actor = self._rng.choice((dialer, listener)) if not one else listener
        trouble = self._drawn(kind, actor, dialer if one else "")
        return self._begin(self._hit(kind, actor, status), trouble)

    async def _trouble_clients(self, kind: str) -> Hit:
        door, _ = self._rng.choice(self._cluster.doors)
        hit = Hit(kind, door, 0.0)
        hit.devices = self._cluster.relay.devices_of(door) or None
        return self._begin(hit, self._drawn(kind, door, ""))

    def _drawn(self, kind: str, actor: str, peer: str) -> Trouble:
        way = self._rng.choice((BOTH, BOTH, (TO_LISTENER,), (TO_DIALER,)))
        delay_s = self._rng.uniform(*DELAY_S)
        return Trouble(
            actor=actor,
            peer=peer,
            directions=way,
            delay_s=delay_s if kind.startswith("delay") else 0.0,
            hold=kind.startswith("hold"),
            swallow=kind.startswith("blackhole"),
        )

    def _begin(self, hit: Hit, trouble: Trouble) -> Hit:
        relay, seconds = self._cluster.relay, self._rng.uniform(*TROUBLE_S)
        ends = " and ".join(filter(None, (trouble.actor, trouble.peer)))
        what = f" by {trouble.delay_s * 1000:.0f} ms" if trouble.delay_s else ""
        one_way = "" if trouble.directions == BOTH else ", one way"
        hit.target = f"{ends}{what} for {seconds:.1f} s{one_way}"
        hit.ordered_s = time.monotonic()
        relay.begin(trouble)
        hit.done_s = time.monotonic()
        self._later(seconds, lambda: relay.end(trouble))
        return hit

    def _cut_clients(self, kind: str) -> Hit:
        hit = Hit(kind, "all connections", time.monotonic())
        count = self._cluster.relay.cut(name for name, _ in self._cluster.doors)
        hit.target = f"{count} connections"
        hit.done_s = time.monotonic()
        return hit

    async def _crash_writers(self, kind: str) -> Hit:
        process = self._rng.choice([w for w in self._writers if w.running] or [None])
        if process is None:
            raise NotReachable("no process of writers runs")
        hit = Hit(kind, process.name, time.monotonic(), devices=process.devices)
        await process.crash()
        hit.done_s = time.monotonic()
        self._later(self._rng.uniform(*WRITERS_AWAY_S), process.start)
        return hit

    # -- nodes ---------------------------------------------------------------------------------

    async def _lose_node(self, kind: str) -> Hit:
        number, nodes = self._any_node(), self._cluster.nodes
        lose = nodes.kill_raylet_and_wait if kind == "kill-raylet" else nodes.kill
        return await self._down(kind, number, lambda orphans: lose(number))

    async def _orphan_node(self, kind: str) -> Hit:
        """The actors of a node stand still, their raylet dies, others take their place; and then
        they go on where they stopped."""
        number, nodes = self._any_node(), self._cluster.nodes

        def orphan(orphans: list[psutil.Process]) -> None:
            for process in nodes.actors(number):
                with contextlib.suppress(psutil.Error):
                    process.suspend()
                    orphans.append(process)
            nodes.kill_raylet(number)

        return await self._down(kind, number, orphan)

    def _any_node(self) -> int:
        """But the head, without which nothing could come back."""
        return self._rng.randrange(1, self._cluster.nodes.count)

    async def _down(
        self, kind: str, number: int, act: Callable[[list[psutil.Process]], object]
    ) -> Hit:
        """``act`` notes whom it has stopped and leaves to be woken."""
        orphans: list[psutil.Process] = []

        def end() -> None:
            _wake(orphans)
            self._nodes_busy.release()

        await self._nodes_busy.acquire()
        try:
            hit = await self._aim_at_node(kind, number)
            await _order_slowly(hit, lambda: act(orphans))
        except BaseException:
            end()
            raise
        away_s = self._rng.uniform(*NODE_AWAY_S)
        self._soon(self._bring_back(number, away_s, bool(orphans)), end)
        return hit

    async def _aim_at_node(self, kind: str, number: int) -> Hit:
        status = await self._status_with(lambda _: True)
        pids = {p.pid for p in await asyncio.to_thread(self._cluster.nodes.actors, number)}
        hit = Hit(kind, f"node {number}", 0.0)
        for what in ("shard", "replica"):
            for name, found in status[f"{what}s"].items():
                if found.get("pid") in pids:
                    hit.slots |= slots_of_actor(name, status)
        return hit

    async def _bring_back(self, number: int, away_s: float, orphans: bool) -> None:
        await asyncio.sleep(away_s)
        await self._cluster.nodes.start(number)
        if orphans:
            await asyncio.sleep(self._rng.uniform(*LONG_PAUSE_S))

    # -- the worst -----------------------------------------------------------------------------

    async def _empty_disk(self, kind: str) -> Hit:
        """Never two at once, and only when every message has three complete copies: so much may be
        lost, and no more was promised."""
        await self.heal()

        async def whole() -> dict[str, Any]:
            status = await self._cluster.status()
            if trouble := trouble_in(status):
                raise NotReachable(f"not all copies are complete: {trouble}")
            return status

        status = await self._patiently(whole, WHOLE_S)
        name = self._rng.choice(_running(status, "replica"))
        process = await self._cluster.process(name)
        hit = self._hit(kind, name, status)
        self._lost += 1
        aside = self._cluster.data / "lost" / f"{name}.{self._lost}"
        await _order_slowly(hit, lambda: _lose_directory(process, self._cluster.data / name, aside))
        return hit

    async def _kill_all(self, kind: str) -> Hit:
        await self.heal()
        hit = Hit(kind, "every process", 0.0)
        async with self._nodes_busy:
            await _order_slowly(hit, self._cluster.nodes.kill_all)
            self._done(hit)
            await self._cluster.start_again()
        return hit

    async def _restart_all(self, kind: str) -> Hit:
        await self.heal()
        hit = Hit(kind, "every process", time.monotonic())
        async with self._nodes_busy:
            await self._cluster.down()
            hit.done_s = time.monotonic()
            self._done(hit)
            await self._cluster.start_again()
        return hit

    # -- later ---------------------------------------------------------------------------------

    def _later(self, seconds: float, undo: Callable[[], object]) -> None:
        self._soon(asyncio.sleep(seconds), undo)

    def _soon(self, work: Coroutine[Any, Any, None], undo: Callable[[], object]) -> None:
        """``undo`` is called when the work has ended, however: also when it is given up before it
        has begun, where a ``finally`` in it would not be met."""
        task = asyncio.get_running_loop().create_task(work)
        self._healing.add(task)
        task.add_done_callback(partial(self._ended, undo))

    def _ended(self, undo: Callable[[], object], task: asyncio.Task[None]) -> None:
        self._healing.discard(task)
        error = None if task.cancelled() else task.exception()
        try:
            undo()
        except Exception as failure:
            error = failure
        if error is not None:
            self.failed = f"healing failed: {error!r}"
            self._say(f"           {self.failed}")


def slots_of_actor(name: str, status: dict[str, Any]) -> frozenset[int]:
    """The slots that a shard serves, or of which a replica is a member."""
    if name.startswith("shard"):
        return frozenset(status["shards"].get(name, {}).get("serving", ()))
    members: dict[str, list[str]] = status["slots"].get("members", {})
    return frozenset(int(slot) for slot, names in members.items() if name in names)


def _running(status: dict[str, Any], what: str) -> list[str]:
    return sorted(name for name, found in status[f"{what}s"].items() if "error" not in found)


def _order(hit: Hit, action: Callable[[], object]) -> None:
    """NotReachable when the process has gone by itself."""
    hit.ordered_s = time.monotonic()
    try:
        action()
    except psutil.Error:
        raise NotReachable(f"{hit.target} has just ended") from None
    hit.done_s = time.monotonic()


async def _order_slowly(hit: Hit, action: Callable[[], object]) -> None:
    hit.ordered_s = time.monotonic()
    await asyncio.to_thread(action)
    hit.done_s = time.monotonic()


def _wake(stopped: Sequence[psutil.Process]) -> None:
    """SIGCONT to those that are still there."""
    for process in stopped:
        with contextlib.suppress(psutil.Error):
            process.resume()


def _lose_directory(process: psutil.Process, path: Path, aside: Path) -> None:
    """While the process stands still, so that nothing is written in between."""
    aside.parent.mkdir(exist_ok=True)
    try:
        process.suspend()
        shutil.move(path, aside)
        process.kill()
    except psutil.Error:
        raise NotReachable(f"{path.name} has just ended") from None
