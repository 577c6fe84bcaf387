"""The batches of two shards over owners' real counters and rules: everybody gets it once, also
when the slots change hands on the way."""

from __future__ import annotations

import random
from typing import Any

import pytest

from im_actors.core.batch import (
    JOB_KEY,
    PROGRESS_KEY,
    Job,
    JobState,
    Progress,
    chunked,
    create_request,
    recipients_request,
)
from im_actors.core.batch_run import BatchSettings, ChannelSettings
from im_actors.core.facts import Fact, event_facts, newest, pack_request
from im_actors.core.hearers import hearers
from im_actors.core.lines import LineSettings
from im_actors.core.model import Event, EventKind, make_key, slot_of
from im_actors.core.names import SessionKind, batch_session, notice_session, session_kind
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.rules import SERVER, Accept, EventHead, Known, Needs, Nothing, Refuse, Request
from im_actors.core.rules_for import decide
from im_actors.core.serving import Send
from im_actors.core.sessions import Admission, SessionState
from im_actors.errors import SlotMoving
from im_actors.server.batches import Batches, FactsToken, Row

SLOTS = 8
RULES = RuleSettings(services=frozenset({"shop"}))
SETTINGS = BatchSettings(
    daily=ChannelSettings(500, 32), high=ChannelSettings(5_000, 256), answer_ms=400, read_ms=400
)


class Cluster:
    """Slots whose sends commit at once, and the shards that serve them."""

    def __init__(self, seed: int, shards: int = 2) -> None:
        self.rng = random.Random(seed)
        self.now_ms = 1_700_000_000_000
        self.sessions: dict[str, SessionState] = {}
        self.facts: dict[str, dict[str, Fact]] = {}
        self.events: list[Event] = []
        self.shards = [FakeShard(self, number) for number in range(shards)]
        self.owners = [number % shards for number in range(SLOTS)]
        for slot in range(SLOTS):
            self.shard_of(slot).batches.activated(slot)

    def shard_of(self, slot: int) -> FakeShard:
        return self.shards[self.owners[slot]]

    def move(self, slot: int) -> None:
        self.shard_of(slot).batches.left(slot, self.now_ms)
        self.owners[slot] = self.rng.randrange(len(self.shards))
        self.shard_of(slot).batches.activated(slot)

    def restart(self, number: int) -> None:
        self.shards[number] = FakeShard(self, number)
        for slot in range(SLOTS):
            if self.owners[slot] == number:
                self.shards[number].batches.activated(slot)

    def take(self, send: Send) -> tuple[int, int]:
        """(code, seq)."""
        _, session, device, n, kind, body = send
        state = self.sessions.setdefault(session, SessionState(session))
        n = n or state.next_n(device)
        outcome, seq = state.admit(device, n, kind, hash(body), take=False)
        if outcome is Admission.KNOWN:
            return 0, seq
        assert outcome is Admission.NEW, f"{send}: {outcome}"
        decision = self._decide(session, device, kind, body)
        if isinstance(decision, Refuse):
            return decision.error.code, 0
        if isinstance(decision, Nothing):
            return 0, state.last_seq
        _, seq = state.admit(device, n, kind, hash(body))
        slot = slot_of(session, SLOTS)
        key = make_key(self.now_ms, slot, seq % 4_096)
        event = Event(session, seq, key, decision.kind, device, n, decision.body)
        state.committed_seq = seq
        self.events.append(event)
        for fact in event_facts(event):
            newest(self.facts.setdefault(session, {}), fact)
        self.shard_of(slot).batches.saw([event], True, self.now_ms)
        for subject, note in hearers(event):
            if session_kind(subject.hearer) is SessionKind.SLOT:
                told = Send(None, subject.hearer, SERVER, 0, int(EventKind.NOTE), note.body())
                assert self.take(told)[0] == 0
        return 0, seq

    def _decide(self, session: str, device: str, kind: int, body: bytes) -> Any:
        events = [event for event in self.events if event.session == session]
        facts = dict(self.facts.get(session, {}))
        heads = {e.seq: EventHead(e.seq, e.kind, e.device, e.time_ms) for e in events}
        known = Known(session, len(events), dict(facts), dict(heads))
        while True:
            decision = decide(known, Request(device, kind, body, self.now_ms), RULES)
            if not isinstance(decision, Needs):
                assert isinstance(decision, (Accept, Refuse, Nothing))
                return decision
            known.facts.update(dict.fromkeys(decision.keys))
            known.events.update(dict.fromkeys(decision.events))

    def ask(self, session: str, body: bytes) -> None:
        n = self.sessions.setdefault(session, SessionState(session)).next_n("shop/pc")
        assert self.take(Send(None, session, "shop/pc", n, int(EventKind.BATCH), body))[0] == 0

    def order(self, name: str, users: list[str], channel: str) -> str:
        session = batch_session(name)
        self.ask(session, create_request(b"hello", channel, total=len(users)))
        for number, chunk in enumerate(chunked(users)):
            self.ask(session, recipients_request(number, chunk))
        self.ask(session, pack_request("start"))
        return session

    def job(self, session: str) -> Job:
        return Job.from_bytes(self.facts[session][JOB_KEY].value or b"")

    def progress(self, session: str) -> Progress:
        return Progress.from_bytes(self.facts[session][PROGRESS_KEY].value)

    def step(self) -> None:
        for shard in self.shards:
            shard.work()
        dues = [due for s in self.shards if (due := s.batches.next_ms()) is not None]
        if not any(shard.busy() for shard in self.shards):
            self.now_ms = max(self.now_ms + 1, min(dues, default=0))
        for shard in self.shards:
            shard.batches.tick(self.now_ms)

    def run(self, *sessions: str, steps: int = 5_000) -> None:
        rest = (JobState.DONE, JobState.CANCELLED, JobState.RECALLED)
        for _ in range(steps):
            if all(self.job(session).state in rest for session in sessions):
                return
            self.step()
        raise AssertionError([(self.job(name), self.progress(name)) for name in sessions])


class FakeShard:
    """Hands over, and answers later."""

    slots = SLOTS

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.batches = Batches(f"shard{number}", self, cluster.now_ms, SETTINGS)
        self.results: list[tuple[int, int, int]] = []
        self.relayed = 0
        self.turn_sizes: list[int] = []
        """How many sends each turn let go."""
        self.flushes = False
        self.lossy = 0.0

    def serves(self, slot: int) -> bool:
        return self.cluster.owners[slot] == self.number

    def read_facts(self, slot: int, token: FactsToken) -> None:
        if self.serves(slot):
            facts = self.cluster.facts.get(token.session, {})
            found = {key: facts.get(key) for key in token.keys}
            self.batches.facts_known(token, found, self.cluster.now_ms)

    def hand_over(self, slot: int, sends: list[Send]) -> None:
        for send in sends:
            code, seq = self.cluster.take(send) if self.serves(slot) else (SlotMoving.code, 0)
            if self.cluster.rng.random() >= self.lossy:
                self.results.append((send.token[1], code, seq))

    def relay_sends(self, rows: list[Row]) -> None:
        self.relayed += len(rows)
        for row in rows:
            code, seq = self.cluster.take(Send(None, *row[1:]))
            if self.cluster.rng.random() >= self.lossy:
                self.results.append((row.token, code, seq))

    def plan_flush(self) -> None:
        self.flushes = True

    def busy(self) -> bool:
        return self.flushes or bool(self.results)

    def work(self) -> None:
        results, self.results = self.results, []
        self.batches.answered(results, self.cluster.now_ms)
        self.flushes = False
        self.batches.flush(self.cluster.now_ms)
        self.turn_sizes.append(len(self.results))


def received(cluster: Cluster, users: list[str]) -> list[int]:
    counts = dict.fromkeys((notice_session("system", user) for user in users), 0)
    for event in cluster.events:
        if event.session in counts and event.kind == EventKind.MESSAGE:
            counts[event.session] += 1
    return list(counts.values())


def test_all_of_several_batches_get_it_through_both_shards() -> None:
    cluster = Cluster(1)
    users = [f"user{number}" for number in range(120)]
    of_shard = {cluster.owners[slot_of(batch_session(name), SLOTS)]: name for name in "abcdefgh"}
    assert len(of_shard) == len(cluster.shards)
    sessions = [
        cluster.order(of_shard[0], users, "daily"),
        cluster.order(of_shard[1], users, "high"),
    ]
    cluster.run(*sessions)
    assert received(cluster, users) == [2] * len(users)
    assert all(shard.relayed for shard in cluster.shards)
    assert [cluster.progress(session).sent for session in sessions] == [120, 120]
    assert [shard.batches.status()["batches_active"] for shard in cluster.shards] == [0, 0]


def test_while_clients_send_a_batch_keeps_to_its_share() -> None:
    cluster = Cluster(3, shards=1)
    (shard,) = cluster.shards
    users = [f"user{number}" for number in range(400)]
    shard.batches = Batches(
        "shard0", shard, cluster.now_ms, SETTINGS, LineSettings(direct=9, batch=1, rows=100)
    )
    for slot in range(SLOTS):
        shard.batches.activated(slot)
    session = cluster.order("a", users, "high")
    for _ in range(20):
        shard.batches.others_send("direct:ann/bob", cluster.now_ms)
        cluster.step()
    assert max(shard.turn_sizes) == 10
    cluster.now_ms += 1_001
    cluster.run(session)
    assert max(shard.turn_sizes) > 100
    assert received(cluster, users) == [1] * len(users)


@pytest.mark.parametrize("seed", range(20))
def test_once_while_slots_move_and_shards_restart(seed: int) -> None:
    cluster = Cluster(seed)
    users = [f"user{number}" for number in range(100)]
    session = cluster.order("a", users, cluster.rng.choice(["daily", "high"]))
    for _ in range(60):
        dice = cluster.rng.random()
        for shard in cluster.shards:
            shard.lossy = 0.2
        if dice < 0.1:
            cluster.move(slot_of(session, SLOTS))
        elif dice < 0.2:
            cluster.move(cluster.rng.randrange(SLOTS))
        elif dice < 0.25:
            cluster.restart(cluster.rng.randrange(2))
        cluster.step()
    for shard in cluster.shards:
        shard.lossy = 0
    cluster.run(session)
    assert received(cluster, users) == [1] * len(users)
    assert cluster.progress(session)[:5] == (1, 100, 0, 0, True)
    cluster.ask(session, pack_request("recall"))
    cluster.run(session)
    assert cluster.progress(session).recalled == 100


def test_a_batch_that_the_slot_does_not_list_yet_is_found_in_the_log() -> None:
    cluster = Cluster(2)
    session = cluster.order("a", ["ann"], "high")
    slot = slot_of(session, SLOTS)
    cluster.facts[f"slot:{slot}"].clear()
    cluster.restart(cluster.owners[slot])
    for _ in range(20):
        cluster.step()
    assert cluster.job(session).state is JobState.RUNNING
    log = [event for event in cluster.events if slot_of(event.session, SLOTS) == slot]
    cluster.shard_of(slot).batches.saw(log, False, cluster.now_ms)
    cluster.run(session)
    assert received(cluster, ["ann"]) == [1]
