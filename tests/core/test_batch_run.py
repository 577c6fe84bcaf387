"""Batch messages: whatever fails on the way, every recipient gets it once, and counts are right."""

from __future__ import annotations

import random
from collections import deque
from typing import NamedTuple

import pytest

from im_actors.core.batch import (
    ACTIVE,
    BODY_KEY,
    JOB_KEY,
    NOT_SENT,
    PROGRESS_KEY,
    Job,
    JobState,
    Progress,
    chunk_key,
    create_request,
    failures_key,
    read_failures,
    read_names,
    recipients_request,
)
from im_actors.core.batch_run import BatchRun, BatchSettings, ChannelSettings
from im_actors.core.batch_words import (
    Answered,
    Began,
    Changed,
    Ended,
    FactsRead,
    ReadFacts,
    Say,
    Send,
    Tick,
)
from im_actors.core.facts import event_facts, pack_request, read_state
from im_actors.core.model import Event, EventKind
from im_actors.core.overlays import read_target
from im_actors.core.rule_settings import RuleSettings
from im_actors.errors import Forbidden, ImError, KeyConflict, NotFound, Overloaded, Unknown
from tests.core.deciding import Deciding

SESSION = "batch:sale"
BOSS = "robot/pc"
SERVICES = RuleSettings(services=frozenset({"robot"}))
SETTINGS = BatchSettings(
    daily=ChannelSettings(40, 6),
    high=ChannelSettings(400, 24),
    answer_ms=300,
    read_ms=300,
    retry_ms_min=10,
    retry_ms_max=100,
)
SEEDS = range(60)


class Sent(NamedTuple):
    kind: int
    body: bytes


class Channel:
    """A recipient's notice channel, with the dedup set of its owner and nothing else of it."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses
        self.taken: list[Sent] = []
        self.events: list[tuple[int, int]] = []
        """(kind, target)."""

    def take(self, send: Send) -> tuple[int, int]:
        """(code, seq)."""
        if send.n <= len(self.taken):
            known = self.taken[send.n - 1]
            if send.kind != EventKind.VOID and known != (send.kind, send.body):
                return KeyConflict.code, 0
            return 0, send.n
        assert send.n == len(self.taken) + 1, f"{send} leaves a gap"
        target = 0
        if send.kind == EventKind.MESSAGE and self.refuses:
            return Forbidden.code, 0
        if send.kind == EventKind.RECALL:
            target = read_target(send.kind, send.body).seq
            if self.events[target - 1][0] != EventKind.MESSAGE:
                return NotFound.code, 0
        self.taken.append(Sent(send.kind, send.body))
        self.events.append((send.kind, target))
        return 0, send.n

    @property
    def messages(self) -> int:
        return sum(kind == EventKind.MESSAGE for kind, _ in self.events)

    @property
    def shown(self) -> bool:
        return bool(self.messages) and all(kind != EventKind.RECALL for kind, _ in self.events)


class World:
    """The batch's own session, its recipients, and a network that fails."""

    def __init__(self, seed: int, trouble: float = 0.25) -> None:
        self.rng = random.Random(seed)
        self.trouble = trouble
        self.now_ms = 1_000_000
        self.batch = Deciding(SESSION, SERVICES)
        self.users: list[str] = []
        self.channels: dict[str, Channel] = {}
        self.machine = BatchRun(self.now_ms, SETTINGS)
        self.life = 0
        self.net: list[tuple[int, Send, int]] = []
        """(life of the sender, what, due)."""
        self.work: deque[ReadFacts | Say] = deque()
        self.sends: list[int] = []
        self.waits_ms = 0

    # -- the job -------------------------------------------------------------------------------

    def order(self, users: list[str], chunk_size: int, channel: str, dry: bool = False) -> None:
        self.users = users
        self.channels = {user: Channel(user.startswith("deaf")) for user in users}
        self.ask("create", create_request(b"hello", channel, total=len(users), dry=dry))
        for number, at in enumerate(range(0, len(users), chunk_size)):
            self.ask("recipients", recipients_request(number, users[at : at + chunk_size]))

    def ask(self, what: str, body: bytes | None = None) -> bool:
        """Whether it was taken."""
        try:
            event = self.batch.send(BOSS, EventKind.BATCH, body or pack_request(what))
        except ImError:
            return False
        assert event is not None
        self.tell(event)
        return True

    def tell(self, event: Event) -> None:
        started = read_state(event.body).what == "start"
        self.handle(Changed(SESSION, tuple(event_facts(event)), started))

    @property
    def job(self) -> Job:
        value = self.batch.value(JOB_KEY)
        assert value is not None
        return Job.from_bytes(value)

    @property
    def progress(self) -> Progress:
        return Progress.from_bytes(self.batch.value(PROGRESS_KEY))

    # -- the machine and its surroundings ------------------------------------------------------

    def handle(self, event: object) -> None:
        for effect in self.machine.handle(event, self.now_ms):  # type: ignore[arg-type]
            if isinstance(effect, Send):
                self.sends.append(self.now_ms)
                self.net.append((self.life, effect, self.now_ms + self.rng.randrange(1, 40)))
            else:
                self.work.append(effect)
        in_flight = [channel.in_flight for channel in self.machine.channels.values()]
        assert all(count >= 0 for count in in_flight)
        assert in_flight[0] <= SETTINGS.daily.in_flight_max
        assert in_flight[1] <= SETTINGS.high.in_flight_max

    def fails(self) -> bool:
        return self.rng.random() < self.trouble

    def crash(self) -> None:
        """All that was in memory is lost; what was sent is still on its way."""
        self.life += 1
        self.machine = BatchRun(self.now_ms, SETTINGS)
        self.work.clear()
        self.handle(Began((SESSION,)))

    def move_away_and_back(self) -> None:
        self.handle(Ended((SESSION,)))
        self.work.clear()
        self.handle(Began((SESSION,)))

    def step(self) -> None:
        """Something arrives, or time passes up to the next thing that has to happen."""
        if self.work and self.rng.random() < 0.8:
            self._work(self.work.popleft())
            return
        due = [entry for entry in self.net if entry[2] <= self.now_ms]
        if due:
            entry = self.rng.choice(due)
            self.net.remove(entry)
            self._arrive(*entry)
            return
        times = [entry[2] for entry in self.net]
        deadline = self.machine.deadline_ms()
        if deadline is not None:
            times.append(deadline)
        if times:
            self.now_ms = max(self.now_ms, min(times))
        if deadline is not None and deadline <= self.now_ms:
            self.handle(Tick())

    def _work(self, work: ReadFacts | Say) -> None:
        if self.fails():
            return
        if isinstance(work, ReadFacts):
            facts = tuple(self.batch.facts[k] for k in work.keys if k in self.batch.facts)
            self.handle(FactsRead(SESSION, work.keys, facts))
            return
        event = self.batch.note(work.body)
        if event is not None:
            self.tell(event)

    def _arrive(self, life: int, send: Send, due: int) -> None:
        if self.fails():
            # A copy that comes much later, after whoever sent it has given up, or is gone.
            if self.rng.random() < 0.5:
                self.net.append((life, send, self.now_ms + self.rng.randrange(1, 2_000)))
            code, seq = Unknown.code if self.rng.random() < 0.5 else Overloaded.code, 0
        else:
            code, seq = self.channels[send.session.partition("/")[2]].take(send)
        if life == self.life and not self.fails():
            self.handle(Answered(((send.token, code, seq),)))

    def settle(self, trouble: float = 0.02, steps: int = 60_000) -> None:
        """Until the job is at rest, and nothing is on its way any more."""
        self.trouble = trouble
        for _ in range(steps):
            if self.job.state not in ACTIVE - {JobState.PAUSED} and not self.net and not self.work:
                return
            self.step()
        raise AssertionError(f"not done: {self.job} {self.progress}")

    # -- what has to hold ----------------------------------------------------------------------

    def outcomes(self) -> dict[str, int]:
        """Of each recipient, as the facts tell it."""
        found = {}
        for number in range(self.job.chunks):
            value = self.batch.value(chunk_key(number))
            assert value is not None
            failures = dict(read_failures(self.batch.value(failures_key(number))))
            done = number < self.progress.chunks
            for position, user in enumerate(read_names(value)):
                found[user] = failures.get(position, 0) if done else NOT_SENT
        return found

    def check(self) -> None:
        outcomes = self.outcomes()
        assert len(outcomes) == len(self.users)
        for user, channel in self.channels.items():
            assert channel.messages <= 1, f"{user} got it {channel.messages} times"
            if not self.job.dry:
                assert (outcomes[user] == 0) == bool(channel.messages), (user, outcomes[user])
        progress = self.progress
        counts = [progress.sent, progress.refused]
        codes = list(outcomes.values())
        assert counts == [codes.count(0), len(codes) - codes.count(0) - codes.count(NOT_SENT)]
        self.check_pace()

    def check_pace(self) -> None:
        quota = getattr(SETTINGS, self.job.channel).per_s_max
        for position in range(quota, len(self.sends)):
            assert self.sends[position] - self.sends[position - quota] >= 1_000


def names(rng: random.Random, count: int) -> list[str]:
    return [f"{'deaf' if rng.random() < 0.1 else 'user'}{number}" for number in range(count)]


@pytest.mark.parametrize("seed", SEEDS)
def test_once_whatever_happens(seed: int) -> None:
    """Replay: python -m pytest tests/core/test_batch_run.py -k 'once_whatever_happens and SEED'."""
    world = World(seed, trouble=random.Random(seed).choice([0.02, 0.2, 0.4]))
    rng = world.rng
    world.order(
        names(rng, rng.randrange(1, 80)), rng.randrange(1, 8), rng.choice(["daily", "high"])
    )
    assert world.ask("start")
    asks = rng.choice(
        [(), ("pause", "resume"), ("cancel",), ("pause", "resume", "cancel", "recall")]
    )
    for _ in range(rng.randrange(0, 2_000)):
        dice = rng.random()
        if dice < 0.003:
            world.crash()
        elif dice < 0.005:
            world.move_away_and_back()
        elif dice < 0.010 and asks:
            world.ask(rng.choice(asks))
        else:
            world.step()
    world.ask("resume")
    world.settle()
    world.check()
    state = world.job.state
    assert state in (JobState.DONE, JobState.CANCELLED, JobState.RECALLED)
    if state is JobState.DONE:
        assert NOT_SENT not in world.outcomes().values()
    elif state is JobState.RECALLED:
        assert not any(channel.shown for channel in world.channels.values())
        assert world.progress.recalled == world.progress.sent


@pytest.mark.parametrize("seed", range(20))
def test_recall_after_all_is_done(seed: int) -> None:
    world = World(seed)
    world.order(names(world.rng, 50), 7, "high")
    world.ask("start")
    world.settle()
    assert world.job.state is JobState.DONE
    assert world.ask("recall")
    world.trouble = 0.3
    for _ in range(world.rng.randrange(0, 300)):
        if world.rng.random() < 0.01:
            world.crash()
        world.step()
    world.settle()
    world.check()
    assert world.job.state is JobState.RECALLED
    assert not any(channel.shown for channel in world.channels.values())
    assert (world.progress.recalled, world.progress.unrecalled) == (world.progress.sent, 0)
    refused = sum(user.startswith("deaf") for user in world.users)
    assert world.progress.refused == refused


def test_a_recipient_recalled_by_hand_counts_as_not_recalled() -> None:
    world = World(1, trouble=0)
    world.order(["ann", "bob"], 2, "high")
    world.ask("start")
    world.settle()
    world.channels["ann"].events[0] = (int(EventKind.VOID), 0)
    world.ask("recall")
    world.settle()
    assert (world.progress.recalled, world.progress.unrecalled) == (1, 1)
    failures = read_failures(world.batch.value(failures_key(0, recall=True)))
    assert failures == [(0, NotFound.code)]


def test_pause_stops_between_two_recipients_and_resume_goes_on() -> None:
    world = World(3, trouble=0)
    world.order(names(world.rng, 60), 20, "daily")
    world.ask("start")
    while sum(channel.messages for channel in world.channels.values()) < 10:
        world.step()
    world.ask("pause")
    while world.net or world.work:
        world.step()
    told = len(world.sends)
    assert 10 <= told <= 10 + 2 * SETTINGS.daily.in_flight_max
    for _ in range(200):
        world.step()
    assert len(world.sends) == told
    world.ask("resume")
    world.settle(trouble=0)
    world.check()
    assert len(world.sends) == 60, "nobody was told twice"


def test_cancel_without_a_crash_asks_nobody_anything_more() -> None:
    world = World(4, trouble=0)
    world.order([f"user{number}" for number in range(60)], 20, "daily")
    world.ask("start")
    while len(world.sends) < 15:
        world.step()
    world.ask("cancel")
    world.settle(trouble=0)
    world.check()
    assert world.job.state is JobState.CANCELLED
    assert len(world.sends) < 60
    assert all(kind == EventKind.MESSAGE for c in world.channels.values() for kind, _ in c.events)


def test_after_a_crash_a_cancelled_recipient_can_never_get_it() -> None:
    """The copy of an executor that is gone comes after the job has been reported cancelled."""
    world = World(5, trouble=0)
    world.order(["ann"], 1, "high")
    world.ask("start")
    while not world.net:
        world.step()
    late = world.net.pop()
    world.crash()
    world.ask("cancel")
    world.settle()
    assert world.outcomes() == {"ann": NOT_SENT}
    code, _ = world.channels["ann"].take(late[1])
    assert code == KeyConflict.code
    world.check()


def test_what_was_lost_on_its_way_is_not_sent_again_after_a_cancel() -> None:
    world = World(8, trouble=0)
    world.order(["ann"], 1, "high")
    world.ask("start")
    while not world.net:
        world.step()
    world.net.clear()
    world.ask("cancel")
    world.settle(trouble=0)
    assert world.outcomes() == {"ann": NOT_SENT}
    world.check()


def test_progress_that_was_taken_and_not_heard_of_is_read() -> None:
    world = World(9, trouble=0)
    world.order(["ann", "bob", "carol"], 3, "high")
    world.ask("start")
    while not any(isinstance(work, Say) for work in world.work):
        world.step()
    (say,) = [work for work in world.work if isinstance(work, Say)]
    world.work.remove(say)
    world.batch.note(say.body)
    assert world.job.state is JobState.DONE
    for _ in range(20):
        world.step()
    assert SESSION not in world.machine.runs
    assert world.machine.deadline_ms() is None


def test_a_dry_run_tells_nobody() -> None:
    world = World(6)
    world.order(names(world.rng, 30), 4, "high", dry=True)
    world.ask("start")
    world.settle()
    assert world.sends == []
    assert world.job.state is JobState.DONE
    assert world.progress.sent == 30


def test_the_pace_is_even_and_nothing_is_made_up_for() -> None:
    world = World(7, trouble=0)
    world.order([f"user{number}" for number in range(200)], 50, "daily")
    world.ask("start")
    world.settle(trouble=0)
    world.check_pace()
    seconds = (world.sends[-1] - world.sends[0]) / 1_000
    assert 200 / 40 - 1 <= seconds <= 200 / 40 + 1
    steps = [later - sooner for sooner, later in zip(world.sends, world.sends[5:], strict=False)]
    assert min(steps) > 0, "no more than a few at a time"


def test_one_channel_does_not_wait_for_the_other() -> None:
    machine = BatchRun(0, SETTINGS)
    told: dict[str, int] = {}
    for name in ("daily", "high"):
        session = f"batch:{name}"
        batch = Deciding(session, SERVICES)
        batch.send(BOSS, EventKind.BATCH, create_request(b"x", name))
        batch.send(BOSS, EventKind.BATCH, recipients_request(0, [f"u{n}" for n in range(400)]))
        batch.send(BOSS, EventKind.BATCH, pack_request("start"))
        facts = tuple(batch.facts.values())
        machine.handle(Began((session,)), 0)
        machine.handle(FactsRead(session, (JOB_KEY, PROGRESS_KEY, BODY_KEY), facts), 0)
        machine.handle(FactsRead(session, (chunk_key(0),), facts), 0)
    # Nobody answers on the daily channel: it is full for good.
    for now_ms in range(1_000, 2_500, 5):
        for effect in machine.handle(Tick(), now_ms):
            if isinstance(effect, Send):
                told[effect.device] = told.get(effect.device, 0) + 1
                if effect.device.endswith("high"):
                    machine.handle(Answered(((effect.token, 0, 1),)), now_ms)
    assert told["robot/batch:high"] >= 390
    assert told["robot/batch:daily"] <= 6 * 6
