"""The machines of ``core`` as the nodes of a scenario: each carries out what its machine says."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from im_actors.core import inbox_words as inb
from im_actors.core import invariants
from im_actors.core import outbox_words as out
from im_actors.core import owner as own
from im_actors.core import replica as rep
from im_actors.core.inbox import Inbox
from im_actors.core.messages import Fetched, Sealed, SessionsLoaded
from im_actors.core.model import (
    COPIES,
    Event,
    EventKind,
    Member,
    View,
    decode_event,
)
from im_actors.core.outbox import Outbox
from im_actors.core.replica import SlotLog
from im_actors.core.serving import OK, Answer, Send, ServingLimits
from im_actors.core.storage_ops import CutRecords, DropSlot, StorageOp, StoreRecords
from im_actors.errors import CorruptData, error_for
from tests.scenarios import words
from tests.scenarios.disk import SLOT, Disk

if TYPE_CHECKING:
    from tests.scenarios.cluster import Cluster, Message

PULL_EVENTS = 256


class NoChance(random.Random):
    """Jitter that is always the least: a scenario must not depend on a sequence of numbers."""

    def random(self) -> float:
        return 0.0


class Node:
    """Something with a name that messages go to."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.running = True
        self.paused = False
        self.slow = False
        """Its disk writes only when the script says ``sync``."""
        self.unsynced: list[tuple[list[Any], list[Any]]] = []
        """Writes that are not on disk, and what has to wait for them."""

    def receive(self, message: Message) -> None: ...

    def deadline_ms(self) -> int | None:
        return None

    def tick(self) -> None: ...

    def send(self, target: str, body: Any, disk: str = "") -> None:
        self.cluster.post(self.name, target, body, disk)

    def write(self, item: Any) -> None: ...

    def carry_out(self, effect: Any) -> None: ...

    def run(self, writes: list[Any], rest: list[Any]) -> None:
        """Nothing of ``rest`` happens before ``writes``, and what was asked before, are on disk."""
        if self.unsynced or (self.slow and writes):
            self.unsynced.append((writes, rest))
            self.cluster.say("waits for its disk")
            return
        for item in writes:
            self.write(item)
        for effect in rest:
            self.carry_out(effect)

    def sync(self) -> None:
        waiting, self.unsynced, self.slow = self.unsynced, [], False
        for writes, rest in waiting:
            self.run(writes, rest)

    def crash(self) -> None:
        """What is not on disk is gone."""
        self.running = self.paused = self.slow = False
        self.unsynced = []


class ViewStore(Node):
    def __init__(self, cluster: Cluster, name: str, first: View) -> None:
        super().__init__(cluster, name)
        self.view = first
        self.past = [first]

    def receive(self, message: Message) -> None:
        if isinstance(message.body, own.ReadView):
            self.send(message.source, own.ViewRead(self.view))
            return
        if self.view == message.body.old:
            self.view = message.body.new
            self.past.append(self.view)
        else:
            self.cluster.say("not swapped")
        self.send(message.source, own.ViewSwapped(self.view))


class Shard(Node):
    """One incarnation of a shard, with the one slot of the scenario."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        settings: own.OwnerSettings,
        limits: ServingLimits,
    ) -> None:
        super().__init__(cluster, name)
        self.owner = own.SlotOwner(SLOT, name, NoChance(), settings, limits)
        self.links: set[tuple[Member, int]] = set()

    def deadline_ms(self) -> int | None:
        return self.owner.deadline_ms()

    def tick(self) -> None:
        self.handle(own.Tick())

    def receive(self, message: Message) -> None:
        match message.body:
            case out.OutboxRow(session, n, kind, body):
                token = (message.source, session, n)
                device = f"{message.source}/phone"
                self.handle(own.Submitted([Send(token, session, device, n, kind, body)]))
            case inb.Follow(sessions):
                self.cluster.followers[message.source] = set(sessions)
                self.handle(own.HeadsAsked(message.source, tuple(sessions)))
            case own.ViewRead() | own.ViewSwapped():
                self.handle(message.body)
            case _:
                self.handle(own.ReplicaAnswered(Member(message.source, message.disk), message.body))

    def handle(self, event: Any) -> None:
        owner, say = self.owner, self.cluster.say
        phase, commit_lsn = owner.phase, owner.commit_lsn
        effects = owner.handle(event, self.cluster.now_ms)
        invariants.owner_stepped(self.cluster.ledger, owner, self.cluster.disks)
        if owner.phase is not phase:
            self.told_of_phase()
        if owner.phase is own.Phase.SERVING and owner.commit_lsn > commit_lsn:
            say(f"commit point {owner.commit_lsn}")
        for effect in effects:
            self.carry_out(effect)

    def carry_out(self, effect: Any) -> None:
        match effect:
            case own.ToReplica(member, message):
                self.send(member.replica, message, member.disk)
            case own.ReadView() | own.SwapView():
                self.send("views", effect)
            case own.Answered(answers):
                for answer in answers:
                    self.answer(answer)
            case own.Published(_, _, _, events):
                self.publish([decode_event(event.data) for event in events])
            case own.HeadsKnown(token, heads):
                self.send(token, inb.HeadsReceived(heads))
            case own.Activated(view):
                self.cluster.say(f"serves epoch {view.epoch}")
            case own.SteppedDown(_, reason):
                self.cluster.say(f"steps down: {reason}")
            case own.Alarm(_, text):
                self.cluster.say(f"ALARM: {text}")

    def told_of_phase(self) -> None:
        owner, say = self.owner, self.cluster.say
        if owner.phase is own.Phase.READING:
            say(f"takeover: {owner.reason}")
        elif owner.phase is own.Phase.WAITING:
            say(f"this attempt ends: {owner.reason}")
        elif owner.attempt is not None and owner.attempt.plan is not None:
            plan = owner.attempt.plan
            if owner.phase is own.Phase.COPYING:
                say(f"keeps the log of {plan.best.replica}, to {plan.last_lsn}@{plan.last_epoch}")

    def answer(self, answer: Answer) -> None:
        client, session, n = answer.token
        if answer.code == OK:
            row = (session, n, answer.seq, answer.epoch, COPIES, answer.time_ms)
            self.send(client, out.Acked([row]))
        else:
            nack = out.NackRow(session, n, answer.code, 0, answer.expected_n, "")
            self.send(client, out.Nacked([nack]))

    def publish(self, events: list[Event]) -> None:
        for client, sessions in self.cluster.followers.items():
            wanted = [event for event in events if event.session in sessions]
            if wanted:
                self.send(client, inb.Pushed(wanted))


class Replica(Node):
    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(cluster, name)
        self.lives = 0
        self.disks = 0
        self.new_disk()
        self.start()

    @property
    def member(self) -> Member:
        return Member(self.name, self.disk.identity)

    @property
    def log(self) -> SlotLog:
        return self.machine.logs.get(SLOT) or SlotLog()

    def new_disk(self) -> None:
        self.disks += 1
        self.disk = Disk(f"{self.name}/disk-{self.disks}")
        self.cluster.disks[self.disk.identity] = self.disk

    def start(self) -> None:
        """Come up with what the disk holds. A disk that cannot be trusted is put aside and an empty
        one takes its place, under a name of its own (as ``ReplicaNode`` does it)."""
        self.lives += 1
        self.running = True
        try:
            log = self.disk.load()
        except CorruptData as error:
            self.new_disk()
            self.cluster.say(f"CorruptData: {error}; goes on with the empty {self.disk.identity}")
            log = SlotLog()
        known = {SLOT: log} if log.promised else {}
        self.machine = rep.Replica(self.name, self.disk.identity, known)
        self.tell(rep.PeersChanged(tuple(r.name for r in self.cluster.replicas())))
        self.carry_out(rep.Commit(SLOT, log.commit_lsn))

    def receive(self, message: Message) -> None:
        if message.disk not in ("", self.disk.identity):
            self.cluster.say(f"not delivered: this is {self.disk.identity}")
        elif isinstance(message.body, Fetched):
            self.tell(rep.BackfillArrived(message.source, message.body))
        elif isinstance(message.body, inb.Pull):
            self.page(message.source, message.body)
        else:
            self.tell(rep.Asked(message.source, message.body))

    def tick(self) -> None:
        self.tell(rep.Tick())

    def tell(self, event: Any) -> None:
        promised = self.log.promised
        effects = self.machine.handle(event, self.cluster.now_ms)
        self.machine.validate()
        if self.log.promised > promised:
            self.cluster.say(f"promises epoch {self.log.promised}")
        writes = [effect.op for effect in effects if isinstance(effect, rep.Store)]
        self.run(writes, [effect for effect in effects if not isinstance(effect, rep.Store)])

    def write(self, item: StorageOp) -> None:
        self.disk.write(item)
        match item:
            case StoreRecords(_, records, _):
                self.cluster.say(f"stores {words.span(records[0].lsn, records[-1].lsn)}")
            case CutRecords(_, after_lsn):
                self.cluster.say(f"cuts its log back to {after_lsn}")
            case DropSlot():
                self.cluster.say("deletes its copy, keeps its promise")

    def carry_out(self, effect: Any) -> None:
        match effect:
            case rep.Send(peer, message):
                if isinstance(message, Sealed):
                    ledger, disk = self.cluster.ledger, self.disk.identity
                    invariants.promise_given(ledger, disk, SLOT, message.epoch)
                self.send(peer, message, self.disk.identity)
            case rep.SendRecords(peer, _, epoch, first, last, _):
                found = [self.disk.record(SLOT, lsn) for lsn in range(first, last + 1)]
                assert all(found), f"{self.name} holds {first}..{last} and lacks one of them"
                records = tuple(record for record in found if record)
                # The answer to another replica (backfill) is not tied to a disk.
                disk = "" if peer in self.cluster.replica_names() else self.disk.identity
                self.send(peer, Fetched(SLOT, epoch, first, records), disk)
            case rep.SendStates(peer, request):
                images = tuple(map(self.disk.image, request.sessions))
                answer = SessionsLoaded(SLOT, request.epoch, request.request, True, images)
                self.send(peer, answer, self.disk.identity)
            case rep.Commit(_, lsn):
                applied = self.disk.apply(lsn)
                if applied:
                    self.cluster.say(f"applies to history up to {lsn}")
                    self.tell(rep.Applied(SLOT, applied))
            case rep.DropHistory():
                self.disk.drop_history()
                self.tell(rep.HistoryDropped(SLOT))
            case rep.FetchFromPeer(replica, request):
                self.send(replica, request)
            case rep.StoreHistory(_, records):
                self.disk.history |= {record.lsn: record for record in records}
                self.tell(rep.HistoryStored(SLOT, records[0].lsn, records[-1].lsn))
                hole = "" if self.log.complete else ", a hole is left"
                self.cluster.say(f"fills in {words.records(records)}{hole}")
            case rep.Alarm(_, text):
                self.cluster.say(f"ALARM: {text}")
            case rep.Forget():
                pass  # Records are applied from the disk here, not from a queue.
            case _:
                raise AssertionError(f"nobody carries out {effect}")

    def page(self, client: str, pull: inb.Pull) -> None:
        events = self.disk.events(pull.session)
        found = [event for event in events if event.seq > pull.after][: pull.limit]
        self.send(client, inb.Paged(pull.request, len(events), OK, found))


class Client(Node):
    """A device with its store; one stream per session. Its gateway is not shown: the gateway sends
    to the owner that the view names, or to ``via`` when it has old news."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(cluster, name)
        self.stored: dict[tuple[str, int], out.OutboxRow] = {}
        self.next_n: dict[str, int] = {}
        self.via = ""
        self.outcomes: dict[tuple[str, int], str] = {}
        self.shown: dict[str, list[Event]] = {}
        self.start()

    def start(self) -> None:
        self.running = True
        self.outbox, self.inbox = Outbox(NoChance()), Inbox(NoChance())
        self.streams: dict[str, int] = {}
        self.cluster.followers.pop(self.name, None)
        self.tell(out.Restored(list(self.stored.values()), self.next_n))
        self.connect()

    def connect(self) -> None:
        self.tell(out.Connected())
        self.tell(inb.Connected(PULL_EVENTS, PULL_EVENTS))

    def disconnect(self) -> None:
        self.tell(out.Disconnected())
        self.tell(inb.Disconnected())

    def deadline_ms(self) -> int | None:
        dues = [self.outbox.deadline_ms(), self.inbox.deadline_ms()]
        return min((due for due in dues if due is not None), default=None)

    def tick(self) -> None:
        self.tell(out.Ticked())
        self.tell(inb.Ticked())

    def receive(self, message: Message) -> None:
        self.tell(message.body)

    def submit(self, session: str, text: str) -> None:
        kind, now_ms = int(EventKind.MESSAGE), self.cluster.now_ms
        self.tell(out.Submitted(session, kind, text.encode(), now_ms))

    def follow(self, session: str, after: int) -> None:
        self.streams[session] = len(self.streams) + 1
        self.tell(inb.StreamOpened(self.streams[session], session, after))

    def tell(self, event: Any) -> None:
        if isinstance(event, inb.InboxEvent):
            effects: list[Any] = list(self.inbox.handle(event, self.cluster.now_ms))
            self.inbox.validate_state()
        else:
            effects = list(self.outbox.handle(event, self.cluster.now_ms))
            self.outbox.validate_state()
        # One write after the other: each StoreRow is reported back when it is on disk.
        for effect in effects:
            writes = [effect] if isinstance(effect, out.StoreRow) else []
            self.run(writes, [] if isinstance(effect, out.DeleteRows) else [effect])
            if isinstance(effect, out.DeleteRows):
                self.forget(effect)

    def write(self, item: out.StoreRow) -> None:
        row = item.row
        self.stored.pop((row.session, item.replaces), None)
        self.stored[row.session, row.n] = row
        self.next_n[row.session] = max(self.next_n.get(row.session, 1), row.n + 1)
        self.cluster.say(f"stores {row.session} n={row.n} {words.text(row.kind, row.body)}")

    def forget(self, effect: out.DeleteRows) -> None:
        for key in effect.keys:
            self.stored.pop(key, None)

    def carry_out(self, effect: Any) -> None:
        match effect:
            case out.StoreRow(row):
                self.tell(out.Stored([(row.session, row.n)]))
            case out.SendRows(rows):
                for row in rows:
                    self.send(self.via or self.cluster.route(), row)
            case out.Settle(acks):
                for session, n, seq, *_ in acks:
                    invariants.acked(self.cluster.ledger, (session, f"{self.name}/phone", n), seq)
                    self.settle(session, n, f"acked, seq {seq}")
            case out.Refuse(session, n, error):
                self.settle(session, n, f"refused, {type(error).__name__}")
            case out.Renumber(session, n, new_n):
                self.settle(session, n, f"goes on as n={new_n}")
            case inb.Follow():
                self.send(self.via or self.cluster.route(), effect)
            case inb.Pull():
                self.send(self.cluster.reader(), effect)
            case inb.ReadCache(stream, _, _, _):
                self.tell(inb.CacheRead(stream, ()))
            case inb.Deliver(stream, events):
                self.show(events)
                self.tell(inb.Taken(stream, len(events)))
            case out.Warn(error) | inb.Warn(error) | inb.FailStream(_, error):
                self.cluster.say(f"warns: {error}")
            case _:
                raise AssertionError(f"nobody carries out {effect}")

    def settle(self, session: str, n: int, outcome: str) -> None:
        self.outcomes[session, n] = outcome
        self.cluster.say(f"{session} n={n} {outcome}")

    def show(self, events: list[Event]) -> None:
        for event in events:
            invariants.delivered(self.cluster.ledger, event.session, event.seq)
            assert event.kind != EventKind.VOID
            self.shown.setdefault(event.session, []).append(event)
            self.cluster.say(f"shows {words.event(event)}")


def code_of(name: str) -> int:
    """The code of an error's name."""
    return next(c for c in range(100, 400) if type(error_for(c)).__name__ == name)
