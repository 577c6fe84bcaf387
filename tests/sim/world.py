"""The simulated cluster, its clients and its troubles."""

from __future__ import annotations

import random
from typing import Any

from im_actors.core import owner as own
from im_actors.core.model import Member, View, ViewState, slot_of
from im_actors.core.serving import Answer, Send
from im_actors.core.takeover import ReplicaInfo
from tests.sim.checker import Checker
from tests.sim.clock import Clock, Faults, Network
from tests.sim.nodes import Disk, SimReplica, SimShard, Store

WINDOW = 8


class Anomaly(AssertionError):
    """A promise is broken."""


class Token:
    """Brings an answer back over the network to the device that asked."""

    __slots__ = ("device", "n")

    def __init__(self, device: SimDevice, n: int) -> None:
        self.device = device
        self.n = n

    def __call__(self, shard: SimShard, answer: Answer) -> None:
        network = self.device.world.network
        network.send(shard.name, self.device.name, lambda: self.device.answered(self.n, answer))


class SimDevice:
    """A client device: sends its rows in order, keeps each until its ACK, resends for ever."""

    def __init__(self, world: World, name: str, session: str, count: int) -> None:
        self.world = world
        self.name = name
        self.session = session
        self.rows = {n: world.rng.randbytes(world.rng.randint(0, 40)) for n in range(1, count + 1)}
        for n, body in self.rows.items():
            world.checker.sent[session, name, n] = body
        world.clock.later(world.rng.uniform(0, 500), self.send)

    def send(self) -> None:
        world, rng = self.world, self.world.rng
        if not self.rows:
            return
        window = sorted(self.rows)[: rng.randint(1, WINDOW)]
        if rng.random() < 0.05:
            # A copy from the past, as a stray gateway might bring it.
            window.insert(0, rng.randint(1, window[0]))
        sent = world.checker.sent
        batch = [
            Send(Token(self, n), self.session, self.name, n, 1, sent[self.session, self.name, n])
            for n in window
        ]
        slot = world.slot_of(self.session)
        shard = world.route(slot)
        world.network.send(self.name, shard.name, lambda: shard.tell(slot, own.Submitted(batch)))
        world.clock.later(rng.uniform(5, 400), self.send)

    def answered(self, n: int, answer: Answer) -> None:
        if answer.code == 0:
            self.world.checker.client_acked((self.session, self.name, n), answer.seq)
            self.rows.pop(n, None)


class World:
    def __init__(self, seed: int, operations: int, faults: Faults | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.faults = faults or Faults.swarm(self.rng)
        self.clock = Clock()
        self.network = Network(self.clock, self.rng, self.faults)
        self.checker = Checker(self)
        self.slots = self.rng.randint(1, 3)
        copied = self.rng.choice([0, 2, 256])
        self.settings = own.OwnerSettings(copy_records_max=copied, idle_session_ms=2_000)
        self.store = Store(self)
        self.shards = [SimShard(self, f"shard-{i}") for i in range(1, self.rng.randint(2, 3) + 1)]
        self.disks: dict[str, Disk] = {}
        count = self.rng.randint(3, 5)
        self.replicas = {
            name: SimReplica(self, name, f"host-{name}")
            for name in (f"replica-{i}" for i in range(1, count + 1))
        }
        self.routes: dict[int, str] = {}
        self.up: set[tuple[str, int, Member]] = set()
        self.wipes = 0
        self.healing = False
        self.start()
        self.devices = self.make_devices(operations)

    def make_devices(self, operations: int) -> list[SimDevice]:
        sessions = [f"session-{i}" for i in range(self.rng.randint(1, 6))]
        devices = self.rng.randint(2, 8)
        each = max(1, operations // devices)
        return [
            SimDevice(self, f"user-{i}/phone", self.rng.choice(sessions), each)
            for i in range(devices)
        ]

    # -- the cluster ---------------------------------------------------------------------------

    def start(self) -> None:
        names = list(self.replicas)
        for replica in self.replicas.values():
            replica.start()
        for slot in range(self.slots):
            chosen = self.rng.sample(names, 3)
            members = tuple(self.replicas[name].member for name in chosen)
            self.store.views[slot] = View(slot, 0, ViewState.RECOVERING, "", members)
        for shard in self.shards:
            shard.start()
        self.clock.later(0, self.watch_links)
        self.clock.later(1, self.control)
        self.clock.later(self.rng.uniform(100, 400), self.trouble)

    def new_disk(self, identity: str) -> Disk:
        disk = self.disks[identity] = Disk(identity)
        return disk

    def fail(self, text: str) -> None:
        raise Anomaly(text)

    def slot_of(self, session: str) -> int:
        return slot_of(session, self.slots)

    def replica_names(self) -> tuple[str, ...]:
        return tuple(self.replicas)

    def routed(self, view: View) -> None:
        self.routes[view.slot] = view.owner.split(".")[0]

    def route(self, slot: int) -> SimShard:
        known = [shard for shard in self.shards if shard.name == self.routes.get(slot)]
        return known[0] if known and self.rng.random() < 0.95 else self.rng.choice(self.shards)

    def commit_of(self, slot: int) -> int:
        return max(
            (o.commit_lsn for s in self.shards for o in s.owners.values() if o.slot == slot),
            default=0,
        )

    def to_replica(self, shard: SimShard, member: Member, message: Any) -> None:
        replica = self.replicas[member.replica]
        life = shard.life

        def answer(source: SimReplica, reply: Any) -> None:
            event = own.ReplicaAnswered(source.member, reply)

            def deliver() -> None:
                if shard.life == life:
                    shard.tell(reply.slot, event)

            self.network.send(source.name, shard.name, deliver)

        self.network.send(
            shard.name, replica.name, lambda: replica.receive(answer, member.disk, message)
        )

    def fetch_from_peer(self, replica: SimReplica, name: str, request: Any) -> None:
        source = self.replicas[name]

        def answer(sender: SimReplica, reply: Any) -> None:
            self.network.send(
                sender.name, replica.name, lambda: replica.backfilled(sender.name, reply)
            )

        self.network.send(replica.name, name, lambda: source.fetch(answer, request))

    def watch_links(self) -> None:
        """Every shard hears, a little late, which replicas it can reach."""
        now_up = {
            (shard.name, shard.life, replica.member)
            for shard in self.shards
            for replica in self.replicas.values()
            if shard.running
            and replica.machine is not None
            and self.network.reachable(shard.name, replica.name)
            and self.network.reachable(replica.name, shard.name)
        }
        for name, life, member in self.up ^ now_up:
            shard = next(s for s in self.shards if s.name == name)
            came = (name, life, member) in now_up
            event: Any = own.MemberUp(member) if came else own.MemberDown(member)
            if shard.life == life:
                for slot in range(self.slots):
                    shard.tell(slot, event)
        self.up = now_up
        self.clock.later(self.rng.uniform(5, 60), self.watch_links)

    def infos(self) -> tuple[ReplicaInfo, ...]:
        return tuple(ReplicaInfo(r.name, r.disk.identity, r.host) for r in self.replicas.values())

    def control(self) -> None:
        """The controller: has an opinion, perhaps a wrong one, about who should own what."""
        running = [shard for shard in self.shards if shard.running]
        for shard in running:
            for slot in range(self.slots):
                shard.tell(slot, own.ReplicasKnown(self.infos()))
                shard.tell(slot, own.ViewSeen(self.store.views[slot]))
        for slot in range(self.slots):
            view = self.store.views[slot]
            owner = [s for s in running if s.incarnation == view.owner and not s.paused]
            meddle = self.faults.needless_take and self.rng.random() < self.faults.needless_take / 8
            if running and (not owner or meddle):
                chosen = self.rng.choice(running)
                if meddle:
                    self.faults.happened("needless_take")
                chosen.tell(slot, own.Take("the controller wants it", self.rng.random() < 0.5))
        self.clock.later(self.rng.uniform(100, 300), self.control)

    # -- trouble -------------------------------------------------------------------------------

    def trouble(self) -> None:
        if self.healing:
            return
        rng, faults = self.rng, self.faults
        for kind in ("crash_replica", "crash_shard", "pause_shard", "partition", "one_way"):
            if rng.random() < getattr(faults, kind):
                getattr(self, kind)()
        if rng.random() < faults.wipe_disk and self.wipes < min(2, len(self.replicas) - 1):
            self.wipe_disk()
        self.clock.later(rng.uniform(100, 1_500), self.trouble)

    def crash_replica(self) -> None:
        replica = self.rng.choice(list(self.replicas.values()))
        if replica.machine is not None:
            self.faults.happened("crash_replica")
            replica.crash()
            self.clock.later(self.rng.uniform(20, 8_000), lambda: self.revive(replica))

    def revive(self, replica: SimReplica) -> None:
        if replica.machine is None:
            replica.start()

    def wipe_disk(self) -> None:
        """A disk is lost for good; its replica comes back with an empty one, another member."""
        replica = self.rng.choice(list(self.replicas.values()))
        self.wipes += 1
        self.faults.happened("wipe_disk")
        replica.crash()
        replica.wipe()
        self.clock.later(self.rng.uniform(20, 4_000), lambda: self.revive(replica))

    def crash_shard(self) -> None:
        shard = self.rng.choice(self.shards)
        if shard.running:
            self.faults.happened("crash_shard")
            shard.crash()
            self.clock.later(
                self.rng.uniform(20, 3_000), lambda: None if shard.running else shard.start()
            )

    def pause_shard(self) -> None:
        shard = self.rng.choice(self.shards)
        if shard.running and not shard.paused:
            self.faults.happened("pause_shard")
            shard.paused = True
            life = shard.life
            self.clock.later(
                self.rng.uniform(100, 8_000),
                lambda: shard.resume() if shard.life == life else None,
            )

    def partition(self) -> None:
        self.block("partition", both=True)

    def one_way(self) -> None:
        self.block("one_way", both=False)

    def block(self, kind: str, both: bool) -> None:
        names = [*self.replicas, *(shard.name for shard in self.shards)]
        side = set(self.rng.sample(names, self.rng.randint(1, len(names) // 2)))
        self.faults.happened(kind)
        cut = {(a, b) for a in side for b in names if b not in side}
        if both:
            cut |= {(b, a) for a, b in cut}
        self.network.blocked |= cut
        duration = self.rng.uniform(50, 5_000)
        self.clock.later(duration, lambda: self.network.blocked.difference_update(cut))

    # -- the two phases ------------------------------------------------------------------------

    def run(self, safety_ms: float = 30_000, liveness_ms: float = 120_000) -> None:
        while self.clock.now_ms < safety_ms and any(device.rows for device in self.devices):
            self.clock.step()
        self.heal()
        limit = self.clock.now_ms + liveness_ms
        while not self.settled():
            self.clock.step()
            if self.clock.now_ms > limit:
                self.fail(f"liveness: {self.why_not()}")
        self.checker.final()

    def heal(self) -> None:
        self.healing = True
        self.faults.heal()
        self.network.blocked.clear()
        for replica in self.replicas.values():
            self.revive(replica)
        for shard in self.shards:
            if not shard.running:
                shard.start()
            elif shard.paused:
                shard.resume()

    def settled(self) -> bool:
        if any(device.rows for device in self.devices):
            return False
        for slot in range(self.slots):
            view = self.store.views[slot]
            if view.state != ViewState.ACTIVE:
                return False
            if not any(shard.owners[slot].view == view for shard in self.shards):
                return False
            last = self.commit_of(slot)
            for member in view.members:
                machine = self.replicas[member.replica].machine
                log = machine.logs.get(slot) if machine else None
                if log is None or not log.complete or log.commit_lsn < last:
                    return False
        return True

    def why_not(self) -> str:
        lines = [f"{d.name} waits for {sorted(d.rows)[:5]} in {d.session}" for d in self.devices]
        for slot in range(self.slots):
            lines.append(f"{self.store.views[slot]} commit {self.commit_of(slot)}")
            for replica in self.replicas.values():
                machine = replica.machine
                lines.append(f"  {replica.name} {machine.logs.get(slot) if machine else 'down'}")
            for shard in self.shards:
                owner = shard.owners[slot]
                lines.append(f"  {shard.incarnation} {owner.phase} {owner.reason}")
                lines += [f"    {line}" for line in owner.story.story()[-5:]]
        return "\n".join(lines)
