"""A simulated cluster with its clients, from the first start to the last check."""

from __future__ import annotations

import itertools
import math
import random
import zlib
from dataclasses import dataclass
from typing import Any, NoReturn

from im_actors.core import invariants, serving, sessions
from im_actors.core import owner as own
from im_actors.core.knowledge import FACTS_KNOWN_MAX
from im_actors.core.model import DEVICE_WINDOW, View, ViewState, slot_of
from im_actors.core.owner import APPEND_BYTES_MAX
from im_actors.core.placement import members_for
from im_actors.core.serving import ServingLimits
from im_actors.proof import Anomaly as Found
from im_actors.proof import History
from tests.sim.clients import SimClient
from tests.sim.clock import Clock
from tests.sim.controllers import SimController
from tests.sim.disks import Disk
from tests.sim.faults import Faults, duration_ms, of_registers, rare, swarm
from tests.sim.gateways import REFUSED, SimGateway
from tests.sim.mailboxes import Mailboxes
from tests.sim.network import Network, Process
from tests.sim.registers import PREFIX, Registers
from tests.sim.replicas import SimReplica
from tests.sim.shards import SimShard
from tests.sim.store import ViewStore
from tests.sim.stories import Stories
from tests.sim.troubles import Troubles

CHECK_STEPS = 200
"""The invariants of the whole cluster are checked so often: at every step they cost eight times as
much as the steps themselves."""
OPERATIONS = 2_000
SAFETY_MS = 30_000
LIVENESS_MS = 180_000

Key = tuple[str, str, int]
"""(session, device address, n)."""


class Failure(AssertionError):
    """A promise is broken. ``kind`` names how; ``slot`` and ``key`` say what it is about."""

    def __init__(self, kind: str, text: str, slot: int | None, key: Key | None) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.slot = slot
        self.key = key


class RolledBack(Exception):
    """The view store went back and an owner noticed: what the run was to show."""


@dataclass(frozen=True)
class Plan:
    """Everything that a run depends on."""

    seed: int
    operations: int = OPERATIONS
    faults: tuple[str, ...] | None = None
    """Exactly these kinds; None: those that the seed draws."""
    slots_max: int = 3
    clients_max: int = 6
    safety_ms: int = SAFETY_MS


class World:
    """One run."""

    def __init__(self, plan: Plan, traced: bool = False) -> None:
        self.plan = plan
        rates = swarm(self.rng_for("faults"), plan.faults)
        if "roll_back" not in rates:
            rates |= rare(plan.seed, self.rng_for("rare"), plan.faults)
        self.faults = Faults(rates)
        self.clock = Clock()
        self.network = Network(self.clock, self.rng_for("network"), self.faults)
        if traced:
            self.network.trace = []
        self.stories = Stories()
        self.ledger = invariants.Ledger()
        self.serials = itertools.count()
        self.seen_conditions: dict[str, int] = {}
        self.withdrawn: set[Key] = set()
        """Numbers that their devices gave to a VOID, after a refusal."""
        self.healing = False
        self.rolled_back: int | None = None
        self.broken: BaseException | None = None
        """What a coroutine raised."""
        self.takeovers = 0
        self._looks = 0
        self.disks: dict[str, Disk] = {}
        rng = self.rng_for("shape")
        self.slots = min(rng.randint(1, 3), plan.slots_max)
        self.history = History(self._found, self.slots, watches_disks=True)
        self._choose_settings(rng)
        self.sessions = [f"session-{i}" for i in range(rng.randint(1, 8))]
        self._make_registers(self.rng_for("registers"))
        self.mailboxes = Mailboxes(self, self.rng_for("mailboxes"))
        self.store = ViewStore(self)
        self._build(rng)
        self._populate(rng)
        self.troubles = Troubles(self)

    def rng_for(self, purpose: str) -> random.Random:
        """A source of its own for each part, so that one fault less changes little else."""
        return random.Random(zlib.crc32(purpose.encode()) << 64 | self.plan.seed)

    def _choose_settings(self, rng: random.Random) -> None:
        self.settings = own.OwnerSettings(
            seal_wait_ms=rng.choice([100, 500]),
            attempt_ms=rng.choice([1_000, 5_000]),
            replace_after_ms=rng.choice([600, 4_000]),
            idle_session_ms=500,
            copy_records_max=rng.choice([0, 2, 256]),
        )
        self.limits = ServingLimits(
            pending_events_max=rng.choice([20, 8_192, 8_192]),
            records_in_flight_max=rng.randint(1, 3),
            apply_lag_lsns_max=rng.choice([20, 20_000, 20_000]),
            sessions_max=rng.choice([1, 2, 20_000]),
            recent_bytes_max=self.rng_for("recent").choice([1, 1_000]),
        )
        self.device_window = rng.choice([3, 8, DEVICE_WINDOW])
        self.append_bytes = APPEND_BYTES_MAX
        if self.faults.strikes("small_frames", rare_rng := self.rng_for("frames")):
            self.append_bytes = rare_rng.choice([100, 1_000])
        self.strict_until_ms = math.inf
        if (policy := self.rng_for("policy")).random() < 0.5:
            self.strict_until_ms = policy.uniform(0, self.plan.safety_ms)
        self.pull_events = rng.choice([3, 20, 500])
        self.writing_ms = self.plan.safety_ms * rng.uniform(0.5, 0.9)
        self.pace_ms = rng.choice([100, 400, 2_000])

    def _make_registers(self, rng: random.Random) -> None:
        """Half of the runs have sessions with rules."""
        count = rng.randint(1, len(self.sessions)) if rng.random() < 0.5 else 0
        names = [f"{PREFIX}{number}" for number in range(count)]
        self.sessions[:count] = names
        self.registers = Registers(self, names, rng)
        self.facts_known = rng.choice([2, 5, FACTS_KNOWN_MAX])
        if names:
            self.faults.rates |= of_registers(rng, self.plan.faults)

    # -- the cluster ---------------------------------------------------------------------------

    def _build(self, rng: random.Random) -> None:
        hosts = rng.choice([2, 3, 10])
        self.replicas: dict[str, SimReplica] = {}
        for number in range(1, rng.randint(3, 6) + 1):
            name = f"replica-{number}"
            self.replicas[name] = SimReplica(self, name, f"host-{rng.randrange(hosts)}")
        self.shards = [SimShard(self, f"shard-{i}") for i in range(1, rng.randint(2, 3) + 1)]
        gateways = [SimGateway(self, f"gateway-{i}") for i in range(1, rng.randint(2, 3) + 1)]
        self.gateways = {gateway.name: gateway for gateway in gateways}
        self.controllers = [SimController(self, f"controller-{i}") for i in (1, 2)]
        self.second = self.controllers[1]
        self.actors: list[Process] = [*self.replicas.values(), *self.shards, *gateways]

    def _populate(self, rng: random.Random) -> None:
        count = min(rng.randint(2, 6), self.plan.clients_max)
        self.clients = []
        for number in range(1, count + 1):
            mine = rng.sample(self.sessions, min(len(self.sessions), rng.randint(1, 3)))
            user = None
            if self.mailboxes.active:
                user = self.mailboxes.user_of(number)
                mine += self.mailboxes.sessions_of(user, self.rng_for(f"mailbox {number}"))
            share = self.plan.operations // count + (number <= self.plan.operations % count)
            writes = {s: share // len(mine) + (k < share % len(mine)) for k, s in enumerate(mine)}
            read = rng.sample(self.sessions, min(len(self.sessions), rng.randint(1, 2)))
            reads = [(session, rng.random() < 0.3) for session in read]
            self.clients.append(SimClient(self, f"user-{number}", writes, reads, user))
        for desk, (user, writes) in enumerate(self.mailboxes.jobs.desks(self.rng_for("desks")), 1):
            self.clients.append(SimClient(self, f"desk-{desk}", writes, [], user, haste=0.4))
        self.groups: dict[str, list[Process]] = {
            "replica": list(self.replicas.values()),
            "shard": list(self.shards),
            "gateway": list(self.gateways.values()),
            "controller": self.controllers[:1],
            "client": list(self.clients),
        }
        everybody: list[Process] = [*self.actors, *self.controllers, *self.clients]
        self.processes = {process.name: process for process in everybody}

    def _start(self) -> None:
        for replica in self.replicas.values():
            replica.start()
        infos = [self.address_of(replica)[1].info for replica in self.replicas.values()]
        for slot in range(self.slots):
            members = tuple(info.member for info in members_for(slot, infos))
            self.store.views[slot] = View(slot, 0, ViewState.RECOVERING, "", members)
        for process in self.processes.values():
            if process is not self.second:
                process.start()
        self.registers.start()
        self.mailboxes.jobs.start()

    def new_disk(self, identity: str) -> Disk:
        disk = self.disks[identity] = Disk(identity)
        return disk

    def slot_of(self, session: str) -> int:
        return slot_of(session, self.slots)

    def address_of(self, process: Process) -> tuple[str, Any]:
        """What a process says of itself."""
        if isinstance(process, SimReplica):
            return "replica", process.address
        if isinstance(process, SimShard):
            return "shard", process.address
        assert isinstance(process, SimGateway)
        return "gateway", process.address

    def incarnation_of(self, process: Process) -> str:
        if isinstance(process, SimReplica):
            return process.disk.identity
        assert isinstance(process, SimShard)
        return process.incarnation

    def tell_controllers(self, shard: SimShard, view: View) -> None:
        for controller in self.controllers:
            activated = lambda c=controller: c.activated(view)  # noqa: E731
            self.network.send(shard, controller, activated, view)

    def crash(self, process: Process, longest_ms: float) -> None:
        """The process dies; Ray brings it back."""
        process.crash()
        self.restart(process, longest_ms)

    def restart(self, process: Process, longest_ms: float) -> None:
        self.clock.later(duration_ms(self.troubles.rng, longest_ms), process.start)

    @staticmethod
    def is_refused(body: bytes) -> bool:
        return body.startswith(REFUSED)

    # -- what is observed ----------------------------------------------------------------------

    def met(self, condition: str) -> None:
        """Count something rare: a simulation that never meets it tests nothing."""
        self.seen_conditions[condition] = self.seen_conditions.get(condition, 0) + 1

    def fail(
        self, kind: str, text: str, slot: int | None = None, key: Key | None = None
    ) -> NoReturn:
        raise Failure(kind, text, slot, key)

    def _found(self, anomaly: Found) -> None:
        slot = self.slot_of(anomaly.session) if anomaly.session else None
        key = (anomaly.session, *anomaly.key) if anomaly.session and anomaly.key else None
        self.fail(anomaly.name, anomaly.text, slot, key)

    def owner_alarm(self, shard: SimShard, slot: int, text: str) -> None:
        if self.rolled_back == slot and "rolled back" in text:
            raise RolledBack
        self.fail("alarm", f"{shard.incarnation} slot {slot}: {text}", slot)

    def watched(self, session: str) -> bool:
        """The invariants do not speak about a slot whose store went back; the checker does."""
        return self.slot_of(session) != self.rolled_back

    def acked(self, key: Key, seq: int, epoch: int, copies: int) -> None:
        """Somebody was told that a message is committed."""
        session, device, n = key
        self.history.acked(session, device, n, seq, epoch, copies)
        if self.watched(session):
            invariants.acked(self.ledger, key, seq)

    def shown(self, session: str, seq: int) -> None:
        """Somebody was shown an event, or told that it is there."""
        if self.watched(session):
            invariants.delivered(self.ledger, session, seq)

    def owner_stepped(self, owner: own.SlotOwner, before: tuple[int, int]) -> None:
        """After each step of an owner, before its effects: nothing of them may be ahead of what
        the disks have."""
        if owner.phase is own.Phase.SERVING and (owner.epoch, owner.commit_lsn) != before:
            assert owner.view is not None
            disks = [member.disk for member in owner.view.members]
            self.history.committed(owner.me, owner.slot, owner.epoch, owner.commit_lsn, disks)
        if owner.slot != self.rolled_back:
            invariants.owner_stepped(self.ledger, owner, self.disks)
            self.registers.committed(owner.slot)
            self.mailboxes.committed(owner.slot)

    def _look_at_all(self) -> None:
        replicas = [
            invariants.Running(replica.member, replica.machine, replica.disk)
            for replica in self.replicas.values()
            if replica.machine is not None
        ]
        owners = [owner for shard in self.shards for owner in shard.owners.values()]
        if self.rolled_back is None:
            invariants.check_cluster(self.ledger, owners, replicas, self.store.views)
        # The check of an outbox reads all of its rows, so one client has its turn at a time.
        client = self.clients[self._looks % len(self.clients)]
        self._looks += 1
        if client.running:
            client.check()

    # -- the phases ----------------------------------------------------------------------------

    def run(self) -> None:
        """Both phases. The dedup window is small in most runs, so that old resends are common, and
        so are the frames of a takeover, so that one is not always enough."""
        sessions.DEVICE_WINDOW, own.APPEND_BYTES_MAX = self.device_window, self.append_bytes
        serving.FACTS_KNOWN_MAX = self.facts_known
        try:
            self._start()
            self._safety()
            self._heal()
            self._liveness()
            self._finish()
        except RolledBack:
            self.met("roll_back_noticed")
        finally:
            sessions.DEVICE_WINDOW, own.APPEND_BYTES_MAX = DEVICE_WINDOW, APPEND_BYTES_MAX
            serving.FACTS_KNOWN_MAX = FACTS_KNOWN_MAX

    def _steps(self) -> None:
        for _ in range(CHECK_STEPS):
            self.clock.step()
        if self.broken is not None:
            raise self.broken
        self._look_at_all()

    def _safety(self) -> None:
        while self.clock.now_ms < self.plan.safety_ms:
            self._steps()
        if self.faults.rate("roll_back"):
            self.rolled_back = self.troubles.roll_back()

    def _heal(self) -> None:
        self.healing = True
        self.faults.heal()
        self.network.blocked.clear()
        self.second.crash()
        for process in self.processes.values():
            if process is self.second:
                continue
            if isinstance(process, SimReplica):
                process.heal()
            if process.paused:
                process.resume()
            process.start()

    def _liveness(self) -> None:
        limit = self.clock.now_ms + LIVENESS_MS
        while self.rolled_back is not None or (unsettled := self._unsettled()) is not None:
            self._steps()
            if self.clock.now_ms > limit:
                if self.rolled_back is not None:
                    self.fail("unnoticed", "nobody noticed that the store was rolled back")
                what, slot, key = unsettled
                self.fail("liveness", what, slot, key)

    def _unsettled(self) -> tuple[str, int | None, Key | None] | None:
        """What is not at rest yet, with the slot and the message that it is about."""
        for client in self.clients:
            if not client.done:
                row = next(client.outbox.rows(), None)
                key = (row.row.session, client.address, row.row.n) if row else None
                slot = self.slot_of(row.row.session) if row else None
                text = f"{client.name} has {client.submitted} of {client.total} submitted,"
                return f"{text} {len(client.outbox)} unanswered: {row}", slot, key
        for slot in range(self.slots):
            if (why := self._slot_unsettled(slot)) is not None:
                return f"slot {slot}: {why}", slot, None
        for client in self.clients:
            for feed in client.feeds.values():
                head = self.ledger.last_seq.get(feed.session, 0)
                cursor = client.inbox.cursor(feed.id)
                if cursor < head:
                    text = f"{feed.name} has {feed.session} up to {cursor} of {head}"
                    return text, self.slot_of(feed.session), None
        if (why := self.registers.unsettled()) is not None:
            return why, None, None
        if (why := self.mailboxes.unsettled()) is not None:
            return why, None, None
        for client in self.clients:
            if (why := client.list_unsettled()) is not None:
                return why, None, None
        return None

    def _slot_unsettled(self, slot: int) -> str | None:
        view = self.store.views[slot]
        serving = [
            shard.owners[slot]
            for shard in self.shards
            if shard.owners[slot].phase is own.Phase.SERVING and shard.owners[slot].view == view
        ]
        if not serving:
            phases = {s.incarnation: s.owners[slot].phase.value for s in self.shards}
            return f"nobody serves {view}: {phases}"
        for shard in self.shards:
            owner = shard.owners[slot]
            if owner.phase is own.Phase.SERVING and owner is not serving[0]:
                return f"{owner.me} serves epoch {owner.epoch}, and the view is {view}"
        if serving[0].serving.pending or serving[0].serving.waiting:
            return f"{serving[0].me} has pending events"
        for member in view.members:
            replica = self.replicas[member.replica]
            log = replica.machine.logs.get(slot) if replica.machine else None
            if log is None or not log.complete or log.applied_lsn < serving[0].commit_lsn:
                return f"{member} holds {log}, committed is {serving[0].commit_lsn}"
        return None

    def _finish(self) -> None:
        """Read everything from every member, and judge."""
        for slot in range(self.slots):
            for member in self.store.views[slot].members:
                disk = self.replicas[member.replica].disk
                lsns = set(disk.history.get(slot, ())) | set(disk.journal.get(slot, ()))
                found = [disk.record(slot, lsn) for lsn in sorted(lsns)]
                rows = [(r.lsn, r.epoch, r.payload, r.checksum) for r in found if r is not None]
                self.history.final_log(disk.identity, slot, rows)
        self.history.finish()
        self.registers.finish()
        self.mailboxes.finish()
