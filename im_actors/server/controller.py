"""The controller: compares what should run with what runs, and mends the difference.

It decides nothing that safety rests on: it starts actors, tells them of each other, and asks shards
to take slots. Two controllers at once, or one with an old opinion, cost time and never data.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from im_actors.core.directory import Directory, ReplicaAddress, ShardAddress
from im_actors.core.model import COPIES, View, ViewState
from im_actors.core.placement import members_for, owner_for
from im_actors.errors import ImError
from im_actors.server.topology import Desired, Topology, kind_of
from im_actors.server.views import ViewStore

logger = logging.getLogger(__name__)

SLOT_STATES = ("active", "stalled", "recovering", "unplaced")
"""How a slot stands: served; served, but a member is away for which writes wait; between owners;
without a place yet."""


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """The controller's waits and bounds."""

    ping_every_ms: int = 500
    """How often an actor is asked whether it lives."""
    silent_after_ms: int = 3_000
    """An actor that has not answered for so long is treated as gone. Above the stalls of a busy
    event loop, or views would change in a storm."""
    restart_ms_min: int = 50
    restart_ms_max: int = 5_000
    """Waits between two tries to bring up an actor; doubling."""
    reconcile_every_ms: int = 500
    settle_ms: int = 5_000
    """A shard must have run for so long before slots are moved to it without need."""
    moves_max: int = 4
    """Planned moves under way at once: each stalls its slot for a moment."""
    gather_ms: int = 2_000
    """How long a start waits for all shards before it gives their slots to those there are."""
    regain_ms: int = 40_000
    """How long the shards are waited for when it had lost sight of all: it was cut off rather than
    they. Calls that were under way may hang for half a minute before each is looked for anew."""
    first_start_ms: int = 10_000
    """How long the first start waits for all replicas before it places slots on those there are."""
    call_ms: int = 3_000
    """Bound of one call to an actor."""


class Platform(Protocol):
    """What runs actors: Ray, or the test's own process."""

    async def start(self, desired: Desired) -> Any:
        """Have the actor running and started; its address. May be called for a running one."""

    async def wait_down(self, name: str) -> str:
        """Return when the actor is known to have ended, with the reason."""

    async def call(self, name: str, method: str, *args: Any) -> Any:
        """Call a method of the actor. Any error means that the outcome is unknown."""

    async def end(self, name: str) -> None:
        """Stop the actor in order, and for good."""


@dataclass(slots=True)
class Observed:
    """An actor that runs, and since when."""

    kind: str
    address: Any
    since: float


class ControllerNode:
    """One controller. ``start`` returns when the supervision runs, ``wait_serving`` when all slots
    are served."""

    def __init__(
        self,
        slots: int,
        desired: Iterable[Desired],
        platform: Platform,
        views: ViewStore,
        config: ControllerConfig | None = None,
        shards: int | None = None,
    ) -> None:
        """``shards``: how many of the desired ones have slots, the others stand by to take those
        of one that ends; None: all of them."""
        self.slots = slots
        self._shards = shards
        self._desired = list(desired)
        self._leaving: frozenset[str] = frozenset()
        """Shards that get no slots any more."""
        self._hosts_out: frozenset[str] = frozenset()
        self._platform = platform
        self.store = views
        self._config = config or ControllerConfig()
        self._observed: dict[str, Observed] = {}
        self._troubles: dict[str, str] = {}
        self._views: dict[int, View] = {}
        self._version = int(time.time() * 1000)
        """Of the last directory. It follows the clock, so that it grows over restarts and no other
        controller that ran for a while has used up the versions of this one."""
        self._changed = asyncio.Event()
        self._served = asyncio.Event()
        self._pushing: dict[str, asyncio.Task[None]] = {}
        self._told: dict[str, tuple[Any, int]] = {}
        self._moving: dict[int, float] = {}
        self._taking: set[str] = set()
        self._dropped: set[int] = set()
        """Months whose content any replica has dropped, so that all others do it too."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._supervisors: dict[str, asyncio.Task[None]] = {}
        self._started = time.monotonic()
        self._gather_until = self._started + self._config.gather_ms / 1000
        self._silent: set[str] = set()
        """Shards that were lost because they did not answer, and have not been seen since."""
        self._regain_until = 0.0
        self._stopping = False
        self.starts: dict[str, int] = {}
        self.view_changes = 0
        """Views that became active while this controller ran."""

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        self._views = await self.store.read_all()
        self._supervise_all()
        self.spawn(self._reconcile_forever())

    async def stop(self) -> None:
        """Stop supervising, so that what ends now is not started again."""
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.store.close()

    def want(self, topology: Topology, strays: Iterable[str] = ()) -> None:
        """From now on this should run. Who is not wanted any more runs until ``end``; ``strays``
        are shards that get no slots where they are."""
        self._desired = list(topology.desired())
        self._shards = topology.shards
        self._leaving = frozenset(n for n in (*topology.leaving, *strays) if kind_of(n) == "shard")
        self._hosts_out = frozenset(topology.hosts_out)
        if self._supervisors:
            self._supervise_all()
        self._changed.set()

    def _supervise_all(self) -> None:
        for desired in self._desired:
            if desired.name not in self._supervisors:
                self._supervisors[desired.name] = self.spawn(self._supervise(desired))

    async def end(self, name: str) -> None:
        """Stop an actor for good, whatever it has."""
        self._desired = [desired for desired in self._desired if desired.name != name]
        await self._end(name)
        for table in (self._troubles, self.starts):
            table.pop(name, None)

    async def restart(self, name: str) -> None:
        """Stop an actor in order and start it anew; returns while it starts."""
        await self._end(name)
        self._troubles[name] = "it starts anew"
        self._supervise_all()

    async def _end(self, name: str) -> None:
        supervisor = self._supervisors.pop(name, None)
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        self._observed.pop(name, None)
        self._told.pop(name, None)
        self._silent.discard(name)
        # The others let go of it before it goes, and miss nothing.
        self._changed.set()
        await self._platform.end(name)

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Work that ends with the controller."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("the controller failed in %r", task, exc_info=task.exception())

    async def wait_serving(self) -> None:
        """Return when every slot is served by a shard that runs."""
        await self._served.wait()

    # -- supervision ---------------------------------------------------------------------------

    async def _supervise(self, desired: Desired) -> None:
        """Keep one actor running, for ever."""
        tries = 0
        while not self._stopping:
            try:
                address = await self._platform.start(desired)
            except Exception as error:
                tries += 1
                self._troubles[desired.name] = str(error) or repr(error)
                logger.warning("%s does not start: %s", desired.name, error)
                ceiling = self._config.restart_ms_min << min(tries, 10)
                await asyncio.sleep(min(ceiling, self._config.restart_ms_max) / 1000)
                continue
            tries = 0
            self.starts[desired.name] = self.starts.get(desired.name, 0) + 1
            self._troubles.pop(desired.name, None)
            now = time.monotonic()
            if desired.name in self._silent and not self.running("shard"):
                # The first one that is seen again is not to take what the others still serve.
                self._regain_until = now + self._config.regain_ms / 1000
            self._silent.discard(desired.name)
            self._observed[desired.name] = Observed(desired.kind, address, now)
            self._changed.set()
            learning = None
            if desired.kind == "replica":
                learning = self.spawn(self._learn_dropped(desired.name))
            reason = await self._until_gone(desired.name)
            if learning is not None:
                learning.cancel()
            logger.warning("%s is gone: %s", desired.name, reason)
            self._observed.pop(desired.name, None)
            self._told.pop(desired.name, None)
            self._troubles[desired.name] = reason
            self._changed.set()

    async def _learn_dropped(self, name: str) -> None:
        """What one replica has dropped is dropped, whatever the others knew when they went down."""
        while True:
            try:
                self.dropped(await self.call(name, "dropped_months") or ())
                return
            except Exception as error:
                logger.debug("%s does not tell its dropped months: %r", name, error)
            await asyncio.sleep(self._config.ping_every_ms / 1000)

    def dropped(self, months: Iterable[int]) -> None:
        """The content of these months is dropped: every replica has to hear of it."""
        if not self._dropped.issuperset(months):
            self._dropped.update(months)
            self._changed.set()

    async def _until_gone(self, name: str) -> str:
        death = asyncio.ensure_future(self._platform.wait_down(name))
        silence = asyncio.ensure_future(self._until_silent(name))
        try:
            done, _ = await asyncio.wait({death, silence}, return_when=asyncio.FIRST_COMPLETED)
            first = next(iter(done))
            if first is silence and kind_of(name) == "shard":
                self._silent.add(name)
            error = first.exception()
            return str(error) if error is not None else first.result()
        finally:
            death.cancel()
            silence.cancel()

    async def _until_silent(self, name: str) -> str:
        """Only what was asked can be silent: of the time in which the controller itself stood
        still, no call counts for more than its bound, and one call alone is not enough."""
        config = self._config
        every_s = config.ping_every_ms / 1000
        answer_s = max(0.05, config.silent_after_ms / 2_000 - every_s)
        silent_s = 0.0
        while silent_s * 1000 < config.silent_after_ms:
            await asyncio.sleep(every_s)
            asked = time.monotonic()
            try:
                async with asyncio.timeout(answer_s):
                    await self._platform.call(name, "ping")
                silent_s = 0.0
            except Exception as error:
                logger.debug("%s does not answer: %r", name, error)
                silent_s += every_s + min(time.monotonic() - asked, answer_s)
        return f"no answer for {config.silent_after_ms} ms"

    # -- reconciliation ------------------------------------------------------------------------

    async def _reconcile_forever(self) -> None:
        while True:
            try:
                await self._reconcile()
            except ImError as error:
                # The view store is out of reach: what runs goes on, nothing can move meanwhile.
                self._troubles["view store"] = str(error)
                logger.warning("cannot reconcile: %s", error)
            try:
                async with asyncio.timeout(self._config.reconcile_every_ms / 1000):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()

    async def _reconcile(self) -> None:
        if len(self._views) < self.slots:
            await self._create_views()
        elif not self._served.is_set() or any(
            not self._owner_runs(v) for v in self._views.values()
        ):
            # Activations are told by the shards; a lost word is found by looking.
            await self._read_views()
        self._troubles.pop("view store", None)
        self._push_directory()
        self._assign()

    async def _create_views(self) -> None:
        """The first start of a cluster: place every slot."""
        replicas = self.running("replica")
        wanted = sum(desired.kind == "replica" for desired in self._desired)
        waited = (time.monotonic() - self._started) * 1000
        patient = len(replicas) < wanted and waited < self._config.first_start_ms
        if len(replicas) < COPIES or patient:
            return
        infos = [replica.info for replica in replicas]
        for slot in range(self.slots):
            members = tuple(info.member for info in members_for(slot, infos))
            view = View(slot, 0, ViewState.RECOVERING, "", members)
            self._views[slot] = await self.store.create(view)

    async def _read_views(self) -> None:
        self._views = await self.store.read_all()

    def activated(self, view: View) -> None:
        """A shard says that it serves a slot now."""
        known = self._views.get(view.slot)
        if known is None or view.epoch >= known.epoch:
            self.view_changes += known is None or view.epoch > known.epoch
            self._views[view.slot] = view
            self._moving.pop(view.slot, None)
            self._changed.set()

    @property
    def views(self) -> dict[int, View]:
        """The views as they are known now."""
        return self._views

    def running(self, kind: str) -> list[Any]:
        """The addresses of the running actors of a kind."""
        return [o.address for o in self._observed.values() if o.kind == kind]

    def _owner_runs(self, view: View) -> bool:
        return any(shard.incarnation == view.owner for shard in self.running("shard"))

    def directory(self) -> Directory:
        """The state of the cluster as it is known now."""
        replicas: list[ReplicaAddress] = sorted(self.running("replica"))
        shards: list[ShardAddress] = sorted(self.running("shard"))
        views = tuple(self._views[slot] for slot in sorted(self._views))
        dropped = tuple(sorted(self._dropped))
        return Directory(self._version, self.slots, tuple(replicas), tuple(shards), views, dropped)

    def _push_directory(self) -> None:
        """Tell every actor that has not heard the present state; one call at a time to each."""
        latest = self.directory()
        state = latest[1:]
        for name, observed in self._observed.items():
            told = self._told.get(name)
            current = told is not None and told[0] == state and told[1] == id(observed)
            if not current and name not in self._pushing:
                self._version = max(self._version + 1, int(time.time() * 1000))
                fresh = latest._replace(version=self._version)
                self._pushing[name] = self.spawn(self._push(name, observed, fresh))

    async def _push(self, name: str, observed: Observed, directory: Directory) -> None:
        try:
            async with asyncio.timeout(self._config.call_ms / 1000):
                await self._platform.call(name, "directory", directory)
            self._told[name] = (directory[1:], id(observed))
        except Exception as error:
            logger.debug("%s did not take the directory: %r", name, error)
        finally:
            del self._pushing[name]
            # What changed meanwhile goes out now.
            self._changed.set() if directory[1:] != self.directory()[1:] else None

    def _assign(self) -> None:
        shards = self._working_shards()
        wanted = sum(desired.kind == "shard" for desired in self._desired)
        now = time.monotonic()
        if len(self.running("shard")) < wanted and now < self._gather_until:
            return
        if self._silent and now < self._regain_until:
            return
        orphans: dict[str, list[int]] = {}
        for slot, view in self._views.items():
            served = view.state == ViewState.ACTIVE and self._owner_runs(view)
            if not served and shards:
                target = self.owner_shard(view) or owner_for(slot, shards)
                assert target is not None
                orphans.setdefault(target, []).append(slot)
        if not orphans and len(self._views) == self.slots and shards:
            self._served.set()
            self._move_some(shards)
        else:
            self._served.clear()
        for name, slots in orphans.items():
            self._ask(name, slots, "its owner does not run")

    def _working_shards(self) -> dict[str, Observed]:
        """Those that should have slots. One that has some keeps them: who comes back stands by."""
        owners = {view.owner for view in self._views.values()}
        running = [observed for observed in self._observed.values() if observed.kind == "shard"]
        running.sort(key=lambda shard: (shard.address.incarnation not in owners, shard.since))
        out = self._leaving, self._hosts_out
        stay = [
            s for s in running if s.address.name not in out[0] and s.address.address not in out[1]
        ]
        running = stay or running
        return {shard.address.name: shard for shard in running[: self._shards]}

    def slots_to_move(self) -> int:
        """How many slots are served elsewhere than they should be."""
        shards = self._working_shards()
        wanted = {name: observed.address.incarnation for name, observed in shards.items()}
        return sum(
            view.owner != wanted.get(owner_for(slot, wanted) or "", view.owner)
            for slot, view in self._views.items()
        )

    def owner_shard(self, view: View) -> str | None:
        """A running shard that is already at work on the slot."""
        shards: list[ShardAddress] = self.running("shard")
        return next((s.name for s in shards if s.incarnation == view.owner), None)

    def _move_some(self, shards: dict[str, Observed]) -> None:
        """Planned moves: slots go where rendezvous hashing wants them, a few at a time."""
        now = time.monotonic()
        settled = {
            name for name, o in shards.items() if now - o.since > self._config.settle_ms / 1000
        }
        self._moving = {slot: end for slot, end in self._moving.items() if end > now}
        for slot, view in self._views.items():
            if len(self._moving) >= self._config.moves_max:
                return
            target = owner_for(slot, shards)
            if target is None or target not in settled or slot in self._moving:
                continue
            if shards[target].address.incarnation != view.owner and target not in self._taking:
                self._moving[slot] = now + self._config.call_ms / 1000
                self._ask(target, [slot], "planned move")

    def _ask(self, shard: str, slots: list[int], reason: str) -> None:
        if shard not in self._taking:
            self._taking.add(shard)
            self.spawn(self._take(shard, slots, reason))

    async def _take(self, shard: str, slots: list[int], reason: str) -> None:
        try:
            async with asyncio.timeout(self._config.call_ms / 1000):
                # Its view of the replicas first: it cannot seal whom it does not know.
                await self._platform.call(shard, "directory", self.directory())
                await self._platform.call(shard, "take", slots, reason)
        except Exception as error:
            logger.warning("%s did not take %d slots: %r", shard, len(slots), error)
        finally:
            self._taking.discard(shard)

    # -- looking in ----------------------------------------------------------------------------

    async def call(self, name: str, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Call a method of one actor; any error means that the outcome is unknown."""
        async with asyncio.timeout(timeout_s or self._config.call_ms / 1000):
            return await self._platform.call(name, method, *args)

    def running_names(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {"shard": [], "replica": [], "gateway": []}
        for name, observed in sorted(self._observed.items()):
            names[observed.kind].append(name)
        return names

    def absent(self, kind: str) -> list[str]:
        """Those that should run and do not."""
        wanted = [desired.name for desired in self._desired if desired.kind == kind]
        return [name for name in wanted if name not in self._observed]

    async def call_all(
        self, kind: str, method: str, *args: Any, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Call a method of every running actor of a kind; an error stands in for a result."""
        names = [name for name, o in self._observed.items() if o.kind == kind]
        bound_s = timeout_s or self._config.call_ms / 1000

        async def one(name: str) -> Any:
            try:
                async with asyncio.timeout(bound_s):
                    return await self._platform.call(name, method, *args)
            except Exception as error:
                return {"name": name, "error": str(error) or repr(error)}

        results = await asyncio.gather(*(one(name) for name in names))
        return dict(zip(names, results, strict=True))

    async def status(self) -> dict[str, Any]:
        """The state of the whole cluster, as JSON."""
        shards = await self.call_all("shard", "status")
        working = {
            int(slot): text
            for status in shards.values()
            for slot, text in status.get("working", {}).items()
        }
        unhealthy = self.unhealthy(working)
        summary = self.summary()
        return {
            "healthy": not unhealthy and not summary["missing"],
            "slots": {
                "total": self.slots,
                "active": self.slots - len(unhealthy),
                "unhealthy": unhealthy,
                "epochs": {str(slot): view.epoch for slot, view in sorted(self._views.items())},
                "owners": {str(slot): view.owner for slot, view in sorted(self._views.items())},
                "members": {
                    str(slot): [member.replica for member in view.members]
                    for slot, view in sorted(self._views.items())
                },
            },
            "shards": shards,
            "replicas": await self.call_all("replica", "status"),
            "gateways": await self.call_all("gateway", "status"),
            **summary,
        }

    def unhealthy(self, working: dict[int, str] | None = None) -> list[dict[str, Any]]:
        """The slots that are not active, and why. ``working``: what shards say that they do."""
        slots = [self._slot_status(slot, working or {}) for slot in range(self.slots)]
        return [slot for slot in slots if slot["state"] != "active"]

    def summary(self) -> dict[str, Any]:
        """What the controller knows without asking anybody, as JSON."""
        states = dict.fromkeys(SLOT_STATES, 0)
        for slot in range(self.slots):
            states[self._slot_status(slot, {})["state"]] += 1
        return {
            "slot_states": states,
            "view_changes": self.view_changes,
            "missing": self.missing(),
            "degraded_placement": self._degraded(),
            "starts": dict(self.starts),
            "view_store": self._troubles.get("view store", "ok"),
        }

    def missing(self) -> dict[str, str]:
        """The actors that should run and do not, and why."""
        names = [d.name for d in self._desired if d.name not in self._observed]
        return {name: self._troubles.get(name, "starting") for name in names}

    def _slot_status(self, slot: int, working: dict[int, str]) -> dict[str, Any]:
        view = self._views.get(slot)
        if view is None:
            return {"slot": slot, "state": "unplaced", "why": "waits for three replicas"}
        active = view.state == ViewState.ACTIVE and self._owner_runs(view)
        found = {
            "slot": slot,
            "state": "active" if active else "recovering",
            "epoch": view.epoch,
            "owner": view.owner,
            "members": [member.replica for member in view.members],
        }
        running = {replica.member for replica in self.running("replica")}
        down = [member.replica for member in view.members if member not in running]
        if active and down:
            found["state"] = "stalled"
            found["why"] = f"writes wait for {', '.join(down)}"
        elif not active:
            found["why"] = working.get(slot, "its owner does not run")
        return found

    def _degraded(self) -> list[int]:
        """Slots with two members on one host."""
        host = {replica.member: replica.host for replica in self.running("replica")}
        degraded = []
        for slot, view in sorted(self._views.items()):
            hosts = [host[member] for member in view.members if member in host]
            if len(hosts) != len(set(hosts)):
                degraded.append(slot)
        return degraded
