"""Injects what happens to processes, disks and the paths between them, as the rates say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from im_actors.core.model import COPIES, ViewState
from tests.sim.faults import duration_ms
from tests.sim.network import Process
from tests.sim.replicas import SimReplica

if TYPE_CHECKING:
    from tests.sim.world import World

LOOK_MS = (100, 1_500)


class Troubles:
    """Looks at the cluster from time to time, and does something to it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng_for("troubles")
        self.calm = self.rng.choice([1, 2, 4, 8])
        """By how much longer nothing happens than it might."""
        self.losses = 0
        """Disks lost or damaged so far."""
        self._later()
        world.clock.later(self.rng.uniform(20, 500), self._stray)

    def _later(self) -> None:
        self.world.clock.later(self.rng.uniform(*LOOK_MS) * self.calm, self._look)

    def _look(self) -> None:
        world, rng, faults = self.world, self.rng, self.world.faults
        if world.healing:
            return
        for kind, group in world.groups.items():
            if faults.rate(f"crash_{kind}") and rng.random() < faults.rate(f"crash_{kind}"):
                self._crash(kind, rng.choice(group))
            if faults.rate(f"pause_{kind}") and rng.random() < faults.rate(f"pause_{kind}"):
                self._pause(kind, rng.choice(group))
        if faults.strikes("partition", rng):
            self._block(both=True)
        if faults.strikes("one_way", rng):
            self._block(both=False)
        if faults.strikes("crash_all", rng):
            self._crash_all()
        self._disks()
        if faults.rate("second_controller") and rng.random() < faults.rate("second_controller"):
            self._second_controller()
        self._later()

    # -- processes -----------------------------------------------------------------------------

    def _crash(self, kind: str, process: Process) -> None:
        if process.running:
            self.world.faults.happened(f"crash_{kind}")
            self.world.crash(process, 8_000 if kind == "replica" else 3_000)

    def _pause(self, kind: str, process: Process) -> None:
        if process.running and not process.paused:
            self.world.faults.happened(f"pause_{kind}")
            process.pause()
            duration = duration_ms(self.rng, 8_000)
            life = process.life
            self.world.clock.later(
                duration, lambda: process.resume() if process.life == life else None
            )
            # Heartbeats find it out, if it takes long.
            for end in list(process.ends):
                if self.rng.uniform(1_000, 6_000) < duration:
                    self.world.clock.later(self.rng.uniform(500, 3_000), end.doom)

    def _crash_all(self) -> None:
        for process in self.world.processes.values():
            if process.running and process.name != self.world.second.name:
                self.world.crash(process, 3_000)

    def _second_controller(self) -> None:
        second = self.world.second
        if second.running:
            second.crash()
        else:
            self.world.faults.happened("second_controller")
            second.start()

    # -- the paths in between ------------------------------------------------------------------

    def _block(self, both: bool) -> None:
        world, rng = self.world, self.rng
        names = list(world.processes)
        side = rng.sample(names, rng.randint(1, len(names) // 2))
        rest = [name for name in names if name not in side]
        if rng.random() < 0.3:
            # An owner that still hears of sends and can tell no replica.
            side, rest = [rng.choice(world.shards).name], list(world.replicas)
        cut = [(a, b) for a in side for b in rest]
        if both:
            cut += [(b, a) for a, b in cut]
        world.network.block(cut)
        duration = rng.uniform(50, rng.choice([500, 8_000]))
        world.clock.later(duration, lambda: self._unblock(cut))
        pairs = set(cut)
        for process in world.processes.values():
            for end in list(process.ends):
                # Whoever says nothing meanwhile may never know, or be told by a heartbeat.
                crosses = (process.name, end.peer.process.name) in pairs
                if crosses and rng.random() < 0.5:
                    world.clock.later(rng.uniform(0, duration), end.doom)

    def _unblock(self, cut: list[tuple[str, str]]) -> None:
        """At this moment much is under way that was lost: a good one to take a slot anew."""
        world, rng = self.world, self.rng
        world.network.unblock(cut)
        busy = [
            (shard, slot)
            for shard in world.shards
            for slot, owner in shard.owners.items()
            if owner.serving.flights
        ]
        if busy and not world.healing and world.faults.rate("needless_take"):
            world.faults.happened("needless_take")
            shard, slot = rng.choice(busy)
            shard.take(lambda: shard.take_slots([slot], "a partition has ended", force=True))

    # -- disks ---------------------------------------------------------------------------------

    def _disks(self) -> None:
        world, rng, faults = self.world, self.rng, self.world.faults
        replicas = list(world.replicas.values())
        if faults.rate("disk_full") and rng.random() < faults.rate("disk_full"):
            full = rng.choice(replicas)
            full.full_until_ms = world.clock.now_ms + duration_ms(rng, 5_000)
        room = self.losses < 2 and len(replicas) > COPIES and not any(r.dead for r in replicas)
        if room and faults.strikes("dead_disk", rng):
            # It stays so when all else heals: a spare has to take the replica's place.
            self.losses += 1
            rng.choice(replicas).dead = True
        for kind in ("wipe_disk", "flip_journal", "flip_history"):
            # P2 speaks of two lost disks; a third one loses messages, and rightly.
            room = self.losses < min(2, len(replicas) - 1)
            if room and faults.rate(kind) and rng.random() < faults.rate(kind):
                self._lose(kind, rng.choice(replicas))

    def _lose(self, kind: str, replica: SimReplica) -> None:
        """A disk is lost for good, or comes back damaged: the replica has to notice."""
        if kind == "wipe_disk":
            replica.crash()
            replica.wipe()
        else:
            damaged = replica.disk.damaged_copy(self.rng, kind)
            if damaged is None or not replica.running or replica.disk.damaged:
                return
            replica.crash()
            replica.disk = damaged
        self.losses += 1
        self.world.faults.happened(kind)
        self.world.restart(replica, 4_000)

    def roll_back(self) -> int | None:
        """The store loses a slot's last changes, as after a restore from an old copy."""
        store = self.world.store
        slots = [slot for slot, past in sorted(store.past.items()) if len(past) > 1]
        if not slots:
            return None
        slot = self.rng.choice(slots)
        past = [*store.past[slot], store.views[slot]]
        # Back behind a view that was sealed: an epoch that nobody has promised leaves no trace.
        sealed = [view for view in past if view.state == ViewState.ACTIVE]
        older = [view for view in past if sealed and view.epoch < sealed[-1].epoch][-3:]
        if not older:
            return None
        self.world.faults.happened("roll_back")
        store.roll_back(self.rng.choice(older))
        return slot

    # -- copies from the past ------------------------------------------------------------------

    def _stray(self) -> None:
        world, rng, faults = self.world, self.rng, self.world.faults
        if world.healing:
            return
        client = rng.choice(world.clients)
        gateway = rng.choice(list(world.gateways.values()))
        entries = []
        if client.past and faults.strikes("stray", rng):
            # Of any age, or recent enough that it is not in history yet.
            oldest = rng.choice([0, max(0, len(client.past) - 20)])
            start = rng.randrange(oldest, len(client.past))
            rows = client.past[start : start + rng.randint(1, 3)]
            entries = [row[:4] for row in rows if not world.is_refused(row.body)]
        if entries:
            gateway.take(lambda: gateway.stray(client.address, entries, forged=False))
        if client.acked_keys and faults.strikes("forged", rng):
            session, n = rng.choice(client.acked_keys)
            forged = [(session, n, 1, b"forged")]
            gateway.take(lambda: gateway.stray(client.address, forged, forged=True))
        world.clock.later(rng.uniform(5, 300), self._stray)
