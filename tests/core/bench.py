"""One owner and real replica machines joined without a network, for tests of single rules.

Messages wait in ``Bench.out`` until a test lets them through; what a replica stores is on its disk
at once. Everything that the owner told the outside is in ``Bench.told``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from im_actors.core import owner as own
from im_actors.core import replica as rep
from im_actors.core.messages import Fetched, KeyFound, SessionsLoaded
from im_actors.core.model import Member, View, ViewState
from im_actors.core.rules import Decide, messages_only
from im_actors.core.serving import Answer, Send, ServingLimits
from im_actors.core.takeover import ReplicaInfo
from tests.sim.disks import Disk, Head

SLOT = 0
START_MS = 1_700_000_000_000


class BenchReplica:
    """A replica machine and its disk. Nothing is applied to history before a test says so."""

    def __init__(self, name: str, host: str) -> None:
        self.name = name
        self.host = host
        self.disk = Disk(f"{name}-disk0")
        self.machine = rep.Replica(name, self.disk.identity)
        self.answers: list[Any] = []
        self.effects: list[Any] = []

    @property
    def member(self) -> Member:
        return Member(self.name, self.disk.identity)

    @property
    def log(self) -> rep.SlotLog:
        return self.machine.logs[SLOT]

    def ask(self, request: Any, now_ms: int = START_MS) -> list[Any]:
        """Hand a request over; the answers that leave."""
        self.answers = []
        self.run(self.machine.handle(rep.Asked(self, request), now_ms))
        return self.answers

    def run(self, effects: list[Any]) -> None:
        self.effects = effects
        for effect in effects:
            if isinstance(effect, rep.Store):
                self.disk.write(effect.op)
        for effect in effects:
            self.carry_out(effect)
        self.machine.validate()

    def carry_out(self, effect: Any) -> None:
        match effect:
            case rep.Send(_, message):
                self.answers.append(message)
            case rep.SendRecords(_, slot, epoch, first, last, _):
                found = [self.disk.record(slot, lsn) for lsn in range(first, last + 1)]
                assert all(found)
                self.answers.append(Fetched(slot, epoch, first, tuple(r for r in found if r)))
            case rep.SendStates(_, request):
                images = tuple(self.disk.image(s) for s in request.sessions)
                self.answers.append(
                    SessionsLoaded(request.slot, request.epoch, request.request, True, images)
                )
            case rep.SendKey(_, request):
                self.answers.append(self.found(request))
            case rep.SendFacts(_, request):
                self.answers.append(self.disk.facts_loaded(request))
            case rep.SendEvent(_, request):
                self.answers.append(self.disk.event_found(request))
            case rep.DropHistory(slot):
                self.disk.drop_history(slot, lambda _: slot)
                self.run(self.machine.handle(rep.HistoryDropped(slot), START_MS))
            case rep.StoreHistory(slot, records):
                self.disk.to_history(slot, list(records))
                stored = rep.HistoryStored(slot, records[0].lsn, records[-1].lsn)
                self.run(self.machine.handle(stored, START_MS))

    def found(self, request: Any) -> KeyFound:
        where = (request.slot, request.epoch, request.request, True)
        for event, _, checksum, _ in self.disk.timelines.get(request.session, {}).values():
            if (event.device, event.n) == (request.device, request.n):
                return KeyFound(*where, event.seq, event.key, checksum)
        return KeyFound(*where, 0, 0, 0)

    def apply(self, upto_lsn: int | None = None) -> None:
        """Bring committed records to history, as the shell does in the background."""
        rows = self.disk.journal.get(SLOT, {})
        limit = self.log.commit_lsn if upto_lsn is None else upto_lsn
        due = sorted(lsn for lsn in rows if lsn <= limit)
        if due:
            self.disk.to_history(SLOT, [rows[lsn][0] for lsn in due])
            self.disk.applied[SLOT] = max(self.disk.applied.get(SLOT, 0), due[-1])
            for lsn in due:
                del rows[lsn]
            self.run(self.machine.handle(rep.Applied(SLOT, due[-1]), START_MS))

    def restart(self) -> None:
        """Come back with what the disk holds."""
        heads = [
            Head(lsn, record.epoch, record.checksum, commit)
            for lsn, (record, commit) in sorted(self.disk.journal.get(SLOT, {}).items())
        ]
        meta, applied = self.disk.meta.get(SLOT), self.disk.applied.get(SLOT, 0)
        log = rep.log_from_disk(SLOT, meta, heads, applied, partial(self.disk.in_history, SLOT))
        self.machine = rep.Replica(self.name, self.disk.identity, {SLOT: log})


class Bench:
    """An owner, its replicas, a view store that answers at once, and the messages under way."""

    def __init__(
        self,
        replicas: int = 3,
        hosts: dict[str, str] | None = None,
        settings: own.OwnerSettings | None = None,
        limits: ServingLimits | None = None,
        me: str = "shard.1",
        decide: Decide = messages_only,
    ) -> None:
        self.now_ms = START_MS
        names = [f"r{i}" for i in range(1, replicas + 1)]
        self.replicas = {name: BenchReplica(name, (hosts or {}).get(name, name)) for name in names}
        members = tuple(self.replicas[name].member for name in names[:3])
        self.view = View(SLOT, 0, ViewState.RECOVERING, "", members)
        self.settings, self.limits, self.decide = settings, limits, decide
        self.out: list[tuple[Member, Any]] = []
        self.told: list[Any] = []
        self.store_answers = True
        self.store_asked: list[Any] = []
        self.owner = self.new_owner(me)
        self.know()

    def new_owner(self, me: str) -> own.SlotOwner:
        rng = random.Random(1)
        return own.SlotOwner(SLOT, me, rng, self.settings, self.limits, self.decide)

    # -- telling the owner ---------------------------------------------------------------------

    def tell(self, event: Any) -> list[Any]:
        effects = self.owner.handle(event, self.now_ms)
        self.owner.validate()
        for effect in effects:
            match effect:
                case own.ToReplica(member, message):
                    self.out.append((member, message))
                case own.ReadView() | own.SwapView():
                    self.store_asked.append(effect)
                case _:
                    self.told.append(effect)
        if self.store_answers:
            self.answer_store()
        return effects

    def know(self) -> None:
        self.tell(own.ReplicasKnown(self.infos()))
        for replica in self.replicas.values():
            self.tell(own.MemberUp(replica.member))

    def infos(self) -> tuple[ReplicaInfo, ...]:
        return tuple(ReplicaInfo(r.name, r.disk.identity, r.host) for r in self.replicas.values())

    def answer_store(self) -> None:
        while self.store_asked:
            effect = self.store_asked.pop(0)
            if isinstance(effect, own.ReadView):
                self.tell(own.ViewRead(self.view))
                continue
            if self.view == effect.old:
                self.view = effect.new
            self.tell(own.ViewSwapped(self.view))

    def wait(self, ms: int) -> None:
        """Let time pass; the owner is called when it wants to be, and not for ever."""
        until = self.now_ms + ms
        for _ in range(1_000):
            due = self.owner.deadline_ms()
            if due is None or due > until:
                self.now_ms = until
                return
            self.now_ms = max(self.now_ms, due)
            self.tell(own.Tick())
        raise AssertionError(f"the owner asks to be called without end: {self.owner.phase}")

    # -- carrying messages ---------------------------------------------------------------------

    def deliver(self, lose: Callable[[Member, Any], bool] = lambda _m, _r: False) -> None:
        """Carry messages and their answers until there are none, except those to be lost."""
        for _ in range(10_000):
            if not self.out:
                return
            member, message = self.out.pop(0)
            if not lose(member, message):
                self.carry(member, message)
        raise AssertionError("messages without end")

    def carry(self, member: Member, message: Any) -> None:
        replica = self.replicas[member.replica]
        if replica.disk.identity == member.disk:
            for answer in replica.ask(message, self.now_ms):
                self.tell(own.ReplicaAnswered(member, answer))

    def serve(self, reason: str = "start", force: bool = False) -> None:
        self.tell(own.Take(reason, force))
        self.deliver()
        assert self.owner.phase is own.Phase.SERVING, self.owner.story.story()

    def replace_owner(self, me: str) -> None:
        """Another incarnation takes the slot; the old one hears nothing."""
        self.owner = self.new_owner(me)
        self.out.clear()
        self.know()
        self.serve()

    # -- clients -------------------------------------------------------------------------------

    def submit(
        self, session: str, device: str, *ns: int, body: bytes | None = None, kind: int = 1
    ) -> None:
        sends = [
            Send((device, n), session, device, n, kind, b"%d" % n if body is None else body)
            for n in ns
        ]
        self.tell(own.Submitted(sends))

    def send(self, session: str, device: str, *ns: int) -> None:
        self.submit(session, device, *ns)
        self.deliver()

    def answers(self) -> list[Answer]:
        """The answers since the last call."""
        found = [a for effect in self.told if isinstance(effect, own.Answered)
                 for a in effect.answers]  # fmt: skip
        self.told = [effect for effect in self.told if not isinstance(effect, own.Answered)]
        return found

    def alarms(self) -> list[str]:
        return [effect.text for effect in self.told if isinstance(effect, own.Alarm)]

    def apply(self, *names: str) -> None:
        for name in names or self.replicas:
            if SLOT in self.replicas[name].machine.logs:
                self.replicas[name].apply()
