"""Simulated controllers: each has its own opinion of who runs, perhaps an old one.

A controller decides nothing that safety rests on, so the simulation has one of its own that does
what ``server.controller`` does, and more of what a confused one might do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from im_actors.core.directory import Directory, ReplicaAddress, ShardAddress
from im_actors.core.model import View, ViewState
from im_actors.core.placement import owner_for
from tests.sim.network import Process
from tests.sim.replicas import SimReplica
from tests.sim.shards import SimShard

if TYPE_CHECKING:
    from tests.sim.world import World

SILENT_AFTER_MS = 1_500
SETTLE_MS = 2_000
CALL_MS = 3_000
MOVES_MAX = 2


class Observed(NamedTuple):
    """An actor that answered, and when it was first and last heard of."""

    kind: str
    address: Any
    since_ms: float
    heard_ms: float


class SimController(Process):
    """One controller."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.rng = world.rng_for(name)

    def started(self) -> None:
        self._observed: dict[str, Observed] = {}
        self._views: dict[int, View] = {}
        self._told: dict[str, Any] = {}
        self._asked: dict[str, float] = {}
        """Shards that were asked to take slots, and until when they are given time."""
        self._moving: dict[int, float] = {}
        self._version = self.clock.now
        self._begun_ms = self.clock.now_ms
        self._read_views()
        self._ping()
        self.later(self.rng.uniform(5, 50), self._reconcile)

    # -- who runs ------------------------------------------------------------------------------

    def _ping(self) -> None:
        for process in self.world.actors:
            self._call(process, lambda p=process: self._answer(p))
        self.later(self.rng.uniform(300, 700), self._ping)

    def _call(self, process: Process, call: Any) -> None:
        """Over Ray: a message there. Its answer, if there is one, is another message."""
        self.world.network.send(self, process, call, "call")

    def _answer(self, process: Process) -> None:
        kind, address = self.world.address_of(process)
        heard = self.alive(lambda: self._heard(process.name, kind, address))
        self.world.network.send(process, self, heard, address)

    def _heard(self, name: str, kind: str, address: Any) -> None:
        now, known = self.clock.now_ms, self._observed.get(name)
        if known is None or known.address != address:
            known = Observed(kind, address, now, now)
            self._told.pop(name, None)
        self._observed[name] = known._replace(heard_ms=now)

    def _forget_silent(self) -> None:
        for name, observed in list(self._observed.items()):
            # Ray mostly knows that a process has ended; of a silent one nobody can be sure.
            ended = not self.world.processes[name].running and self.rng.random() < 0.5
            if ended or self.clock.now_ms - observed.heard_ms > SILENT_AFTER_MS:
                del self._observed[name]
                self._told.pop(name, None)

    def _running(self, kind: str) -> list[Any]:
        return sorted(o.address for o in self._observed.values() if o.kind == kind)

    # -- views ---------------------------------------------------------------------------------

    def _read_views(self) -> None:
        read = self.alive
        self.world.store.read_all(lambda views: read(lambda: self._views_read(views))())

    def _views_read(self, views: dict[int, View]) -> None:
        for view in views.values():
            self.activated(view)

    def activated(self, view: View) -> None:
        known = self._views.get(view.slot)
        if known is None or view.epoch >= known.epoch:
            self._views[view.slot] = view
            self._moving.pop(view.slot, None)

    def _owner_of(self, view: View) -> str | None:
        shards: list[ShardAddress] = self._running("shard")
        return next((s.name for s in shards if s.incarnation == view.owner), None)

    # -- reconciling ---------------------------------------------------------------------------

    def _reconcile(self) -> None:
        self._forget_silent()
        served = [v for v in self._views.values() if self._is_served(v)]
        if len(served) < self.world.slots or self.rng.random() < 0.1:
            self._read_views()
        self._push_directory()
        self._assign()
        self.later(self.rng.uniform(150, 500), self._reconcile)

    def _is_served(self, view: View) -> bool:
        return view.state == ViewState.ACTIVE and self._owner_of(view) is not None

    def _directory(self) -> Directory:
        replicas: list[ReplicaAddress] = self._running("replica")
        views = tuple(self._views[slot] for slot in sorted(self._views))
        self._version = max(self._version + 1, self.clock.now)
        shards = tuple(self._running("shard"))
        return Directory(self._version, self.world.slots, tuple(replicas), shards, views)

    def _push_directory(self) -> None:
        if len(self._views) < self.world.slots:
            return
        latest = self._directory()
        for name in self._observed:
            if self._told.get(name) != latest[1:] or self.rng.random() < 0.05:
                self._push(self.world.processes[name], latest)

    def _push(self, process: Process, directory: Directory) -> None:
        def deliver() -> None:
            if not isinstance(process, SimReplica):
                process.directory(directory)  # type: ignore[attr-defined]
            told = self.alive(lambda: self._told.__setitem__(process.name, directory[1:]))
            self.world.network.send(process, self, told, "told")

        self._call(process, deliver)

    def _assign(self) -> None:
        shards = {o.address.name: o for o in self._observed.values() if o.kind == "shard"}
        if not shards or len(self._views) < self.world.slots:
            return
        orphans: dict[str, list[int]] = {}
        for slot, view in sorted(self._views.items()):
            if not self._is_served(view):
                target = self._owner_of(view) or owner_for(slot, shards)
                assert target is not None
                orphans.setdefault(target, []).append(slot)
        for name, slots in orphans.items():
            self._ask(name, slots, "its owner does not run")
        if not orphans:
            self._move_some(shards)
        if self.world.faults.strikes("needless_take", self.rng) or self._must_notice():
            slot = self.world.rolled_back
            slots = [self.rng.randrange(self.world.slots) if slot is None else slot]
            name = self.rng.choice(sorted(shards))
            self._ask(name, slots, "the controller wants it", self.rng.random() < 0.5)

    def _must_notice(self) -> bool:
        """A store that was rolled back shows at the next takeover."""
        return self.world.rolled_back is not None

    def _move_some(self, shards: dict[str, Observed]) -> None:
        """Planned moves: slots go where rendezvous hashing wants them."""
        now = self.clock.now_ms
        self._moving = {slot: end for slot, end in self._moving.items() if end > now}
        for slot, view in sorted(self._views.items()):
            target = owner_for(slot, shards)
            if target is None or slot in self._moving or len(self._moving) >= MOVES_MAX:
                continue
            observed = shards[target]
            settled = now - observed.since_ms > SETTLE_MS
            if settled and observed.address.incarnation != view.owner:
                self._moving[slot] = now + CALL_MS
                self.world.met("planned_move")
                self._ask(target, [slot], "planned move")

    def _ask(self, name: str, slots: list[int], reason: str, force: bool = False) -> None:
        if self._asked.get(name, 0.0) > self.clock.now_ms:
            return
        self._asked[name] = self.clock.now_ms + self.rng.uniform(100, CALL_MS)
        shard = self.world.processes[name]
        assert isinstance(shard, SimShard)
        latest = self._directory()

        def deliver() -> None:
            # Its view of the replicas first: it cannot seal whom it does not know.
            shard.directory(latest)
            shard.take_slots(slots, reason, force)

        self._call(shard, deliver)
