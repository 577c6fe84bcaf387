"""The simulated cluster, its clients and its troubles."""

from __future__ import annotations

import copy
import random
from typing import Any

from im_actors.core import invariants, sessions
from im_actors.core import owner as own
from im_actors.core.model import DEVICE_WINDOW, EventKind, Member, View, ViewState, slot_of
from im_actors.core.serving import Answer, Send, ServingLimits
from im_actors.core.takeover import ReplicaInfo
from im_actors.errors import KeyConflict
from tests.sim.checker import Checker
from tests.sim.clock import Clock, Faults, Network
from tests.sim.nodes import Disk, SimReplica, SimShard, Store

CHECK_STEPS = 100
"""The invariants of the whole cluster are checked so often: at every step they cost eight times as
much as the steps themselves."""


class Anomaly(AssertionError):
    """A promise is broken."""


class RolledBack(Exception):
    """The view store went back and an owner noticed: what the run was to show."""


class Token:
    """Brings an answer back over the network to the device that asked."""

    __slots__ = ("device", "forged", "n")

    def __init__(self, device: SimDevice, n: int, forged: bool) -> None:
        self.device = device
        self.n = n
        self.forged = forged

    def __call__(self, shard: SimShard, answer: Answer) -> None:
        device = self.device
        if answer.code not in (0, KeyConflict.code):
            return  # The device sends again after a while whatever it is told.
        take = device.forged_answered if self.forged else device.answered
        device.world.network.send(shard.name, device.name, lambda: take(self.n, answer))


class SimDevice:
    """A client device: sends its rows in order, keeps each until its ACK, resends for ever."""

    def __init__(self, world: World, name: str, session: str, count: int) -> None:
        self.world = world
        self.name = name
        self.session = session
        rng = world.rng
        self.rows = {n: rng.randbytes(rng.randint(0, 40)) for n in range(1, count + 1)}
        self.withdrawn = {n for n in self.rows if rng.random() < world.withdrawals}
        """Numbers that the device sends as a message and, at other times, as a VOID."""
        self.window = rng.choice([4, 6, 8, 20])
        for n, body in self.rows.items():
            allowed = {(int(EventKind.MESSAGE), body)}
            if n in self.withdrawn:
                allowed.add((int(EventKind.VOID), b""))
            world.checker.sent[session, name, n] = allowed
        world.clock.later(rng.uniform(0, 500), self.send)

    def send(self) -> None:
        world, rng = self.world, self.world.rng
        if not self.rows:
            return
        window = sorted(self.rows)[: rng.randint(1, self.window)]
        batch = [self.send_of(n) for n in window]
        if rng.random() < 0.1:
            # A copy from the past, as a stray gateway might bring it.
            batch.insert(0, self.send_of(rng.randint(1, window[0])))
        if rng.random() < 0.05 and window[0] > 1:
            # Another message under a key that is acked.
            n = rng.randint(1, window[0] - 1)
            batch.append(Send(Token(self, n, True), self.session, self.name, n, 1, b"forged"))
        slot = world.slot_of(self.session)
        shard = world.route(slot)
        world.network.send(self.name, shard.name, lambda: shard.tell(slot, own.Submitted(batch)))
        world.clock.later(rng.uniform(10, 500), self.send)

    def send_of(self, n: int) -> Send:
        allowed = sorted(self.world.checker.sent[self.session, self.name, n])
        kind, body = self.world.rng.choice(allowed) if len(allowed) > 1 else allowed[0]
        return Send(Token(self, n, False), self.session, self.name, n, kind, body)

    def answered(self, n: int, answer: Answer) -> None:
        if answer.code == 0:
            key = (self.session, self.name, n)
            self.world.checker.client_acked(key, answer.seq)
            if self.world.watched(self.session):
                invariants.acked(self.world.ledger, key, answer.seq)
            self.rows.pop(n, None)
        elif answer.code == KeyConflict.code:
            self.world.met("conflict")
            if n not in self.withdrawn:
                self.world.fail(f"conflict: {self.name} {n} in {self.session} was sent in one form")

    def forged_answered(self, n: int, answer: Answer) -> None:
        if answer.code == 0:
            self.world.fail(f"forged: another body for {self.name} {n} was acked")
        if answer.code == KeyConflict.code:
            self.world.met("forged_refused")


class SimReader:
    """Follows sessions at their owners and reads them at replicas, one after the other."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.name = "reader"
        self.heads: dict[str, int] = {}
        world.clock.later(10, self.read)

    def read(self) -> None:
        world, rng = self.world, self.world.rng
        names = world.sessions
        replica = rng.choice(list(world.replicas.values()))
        session = rng.choice(names)
        slot = world.slot_of(session)
        log = replica.machine.logs.get(slot) if replica.machine else None
        if log is not None and log.complete and not log.dropping:
            world.checker.read_at_replica(replica, slot, session)
        shard = world.route(slot)
        asked = tuple(s for s in rng.sample(names, rng.randint(1, len(names))) if s in names)
        by_slot = tuple(s for s in asked if world.slot_of(s) == slot)
        world.network.send(
            self.name, shard.name, lambda: shard.tell(slot, own.HeadsAsked(self.learn, by_slot))
        )
        world.clock.later(rng.uniform(20, 400), self.read)

    def learn(self, heads: list[tuple[str, int]]) -> None:
        for session, seq in heads:
            self.world.checker.delivered(session, seq)
            if self.world.watched(session):
                invariants.delivered(self.world.ledger, session, seq)
            self.heads[session] = max(seq, self.heads.get(session, 0))


class World:
    def __init__(self, seed: int, operations: int, faults: Faults | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.faults = faults or Faults.swarm(self.rng)
        self.clock = Clock()
        self.network = Network(self.clock, self.rng, self.faults)
        self.checker = Checker(self)
        self.ledger = invariants.Ledger()
        self.slots = self.rng.randint(1, 3)
        copied = self.rng.choice([0, 2, 256])
        self.settings = own.OwnerSettings(copy_records_max=copied, idle_session_ms=500)
        self.limits = ServingLimits(
            pending_events_max=self.rng.choice([20, 8_192, 8_192]),
            records_in_flight_max=self.rng.randint(1, 3),
            apply_lag_lsns_max=self.rng.choice([10, 20_000, 20_000]),
            sessions_max=self.rng.choice([1, 2, 20_000]),
        )
        self.device_window = self.rng.choice([2, 5, DEVICE_WINDOW])
        self.withdrawals = self.rng.choice([0.0, 0.0, 0.05])
        self.directory_lags = self.rng.random() < 0.3
        """The directory lists only replicas that run, and late."""
        self.seen_conditions: dict[str, int] = {}
        self.rolled_back: int | None = None
        self.store = Store(self)
        self.shards = [SimShard(self, f"shard-{i}") for i in range(1, self.rng.randint(2, 3) + 1)]
        self.disks: dict[str, Disk] = {}
        count = self.rng.randint(3, 6)
        hosts = self.rng.choice([2, 3, 10])
        self.replicas = {
            name: SimReplica(self, name, f"host-{self.rng.randrange(hosts)}")
            for name in (f"replica-{i}" for i in range(1, count + 1))
        }
        self.told: dict[str, tuple[ReplicaInfo, ...]] = {}
        self.routes: dict[int, View] = {}
        self.up: dict[tuple[str, int, Member], int] = {}
        """The links that are up, and which life of the replica each of them leads to."""
        self.wipes = 0
        self.healing = False
        self.sessions = [f"session-{i}" for i in range(self.rng.randint(1, 8))]
        self.start()
        self.devices = self.make_devices(operations)
        self.reader = SimReader(self)

    def make_devices(self, operations: int) -> list[SimDevice]:
        devices = self.rng.randint(1, 8)
        each = max(1, operations // devices)
        return [
            SimDevice(self, f"user-{i}/phone", self.rng.choice(self.sessions), each)
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

    def met(self, condition: str) -> None:
        """Count something rare: a simulation that never meets it tests nothing."""
        self.seen_conditions[condition] = self.seen_conditions.get(condition, 0) + 1

    def owner_alarm(self, shard: SimShard, slot: int, text: str) -> None:
        if self.rolled_back == slot and "rolled back" in text:
            raise RolledBack
        self.fail(f"{shard.incarnation} slot {slot}: {text}")

    def slot_of(self, session: str) -> int:
        return slot_of(session, self.slots)

    def watched(self, session: str) -> bool:
        """The invariants do not speak about a slot whose store went back; the checker does."""
        return self.slot_of(session) != self.rolled_back

    def replica_names(self) -> tuple[str, ...]:
        return tuple(self.replicas)

    def routed(self, view: View) -> None:
        known = self.routes.get(view.slot)
        if known is None or known.epoch < view.epoch:
            self.routes[view.slot] = view

    def route(self, slot: int) -> SimShard:
        view = self.routes.get(slot)
        known = [s for s in self.shards if view is not None and s.incarnation == view.owner]
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
            (shard.name, shard.life, replica.member): replica.life
            for shard in self.shards
            for replica in self.replicas.values()
            if shard.running
            and replica.machine is not None
            and self.network.reachable(shard.name, replica.name)
            and self.network.reachable(replica.name, shard.name)
        }
        # A replica that was restarted has closed its links, however quickly it came back.
        for key, life in self.up.items():
            if now_up.get(key) != life:
                self.link_changed(key, own.MemberDown(key[2]))
        for key, life in now_up.items():
            if self.up.get(key) != life:
                self.link_changed(key, own.MemberUp(key[2]))
        self.up = now_up
        self.clock.later(self.rng.uniform(10, 120), self.watch_links)

    def link_changed(self, key: tuple[str, int, Member], event: Any) -> None:
        shard = next(s for s in self.shards if s.name == key[0])
        if shard.life == key[1]:
            for slot in range(self.slots):
                shard.tell(slot, event)

    def infos(self) -> tuple[ReplicaInfo, ...]:
        listed = [r for r in self.replicas.values() if r.machine or not self.directory_lags]
        return tuple(ReplicaInfo(r.name, r.disk.identity, r.host) for r in listed)

    def control(self) -> None:
        """The controller: has an opinion, perhaps a wrong one, about who should own what."""
        running = [shard for shard in self.shards if shard.running]
        infos = self.infos()
        for shard in running:
            for slot in range(self.slots):
                if self.told.get(shard.incarnation) != infos:
                    shard.tell(slot, own.ReplicasKnown(infos))
                shard.tell(slot, own.ViewSeen(self.store.views[slot]))
            self.told[shard.incarnation] = infos
        for slot in range(self.slots):
            view = self.store.views[slot]
            owner = [s for s in running if s.incarnation == view.owner and not s.paused]
            meddle = self.faults.needless_take and self.rng.random() < self.faults.needless_take / 8
            meddle = meddle or slot == self.rolled_back
            if running and (not owner or meddle):
                chosen = self.rng.choice(running)
                if meddle:
                    self.faults.happened("needless_take")
                chosen.tell(slot, own.Take("the controller wants it", self.rng.random() < 0.5))
        self.clock.later(self.rng.uniform(150, 400), self.control)

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
        if rng.random() < faults.flip_bit and self.wipes < min(2, len(self.replicas) - 1):
            self.flip_bit()
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

    def flip_bit(self) -> None:
        """A disk comes back with a damaged journal; the replica has to notice."""
        replica = self.rng.choice(list(self.replicas.values()))
        # What was durable at that time stays known to the checkers under the disk's identity.
        disk = copy.deepcopy(replica.disk)
        if replica.machine is None or not disk.damage(self.rng):
            return
        replica.disk = disk
        self.wipes += 1
        self.faults.happened("flip_bit")
        replica.crash()
        self.clock.later(self.rng.uniform(20, 4_000), lambda: self.revive(replica))

    def roll_back(self) -> None:
        """The store loses a slot's last changes, as after a restore from an old copy."""
        slots = [slot for slot, past in self.store.past.items() if len(past) > 2]
        if not slots:
            return
        slot = self.rolled_back = self.rng.choice(slots)
        past = self.store.past[slot]
        # Back behind a view that was sealed: an epoch that nobody has promised leaves no trace.
        sealed = [view for view in past if view.state == ViewState.ACTIVE]
        older = [view for view in past if sealed and view.epoch < sealed[-1].epoch]
        if not older:
            self.rolled_back = None
            return
        self.faults.happened("roll_back")
        self.store.views[slot] = self.rng.choice(older[-3:])

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
        """Both phases. The dedup window is small in most runs, so that old resends are common."""
        sessions.DEVICE_WINDOW = self.device_window
        try:
            self.phases(safety_ms, liveness_ms)
        except RolledBack:
            self.met("roll_back_noticed")
        finally:
            sessions.DEVICE_WINDOW = DEVICE_WINDOW

    def steps(self) -> None:
        """Some steps, and then a look at everybody."""
        for _ in range(CHECK_STEPS):
            self.clock.step()
        running = [
            invariants.Running(replica.member, replica.machine, replica.disk)
            for replica in self.replicas.values()
            if replica.machine is not None
        ]
        owners = [owner for s in self.shards if s.running for owner in s.owners.values()]
        if self.rolled_back is None:
            invariants.check_cluster(self.ledger, owners, running, self.store.views)

    def phases(self, safety_ms: float, liveness_ms: float) -> None:
        while self.clock.now_ms < safety_ms and any(device.rows for device in self.devices):
            self.steps()
        if self.faults.roll_back:
            self.roll_back()
        self.heal()
        limit = self.clock.now_ms + liveness_ms
        while self.rolled_back is not None or not self.settled():
            self.steps()
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
            serving = next(s.owners[slot] for s in self.shards if s.owners[slot].view == view)
            if serving.serving.pending or serving.serving.waiting:
                return False
            last = self.commit_of(slot)
            for member in view.members:
                machine = self.replicas[member.replica].machine
                log = machine.logs.get(slot) if machine else None
                if log is None or not log.complete or log.applied_lsn < last:
                    return False
        return self.heads_known()

    def heads_known(self) -> bool:
        return all(
            self.reader.heads.get(session, 0) == self.checker.last_acked(session)
            for session in self.sessions
        )

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
