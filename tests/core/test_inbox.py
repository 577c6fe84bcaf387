"""The inbox alone, then against pushes that are lost, doubled and shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from im_actors.core.inbox import CACHE_PAGE, HELD_MAX, READY_MAX, Inbox
from im_actors.core.inbox_words import (
    CacheRead,
    Connected,
    Deliver,
    Disconnected,
    FailStream,
    Follow,
    FollowRefused,
    HeadsReceived,
    InboxEffect,
    InboxEvent,
    LetIn,
    Paged,
    Pull,
    Pushed,
    ReadCache,
    StreamClosed,
    StreamOpened,
    Taken,
    Ticked,
    Unfollow,
    Warn,
)
from im_actors.core.model import Event, EventKind
from im_actors.errors import Forbidden, SlotMoving


def event(seq: int, session: str = "s", kind: int = EventKind.MESSAGE) -> Event:
    return Event(session, seq, seq, kind, "alice/phone", seq, b"x")


def events(*seqs: int, session: str = "s") -> list[Event]:
    return [event(seq, session) for seq in seqs]


class Rig:
    """An inbox and its clock. The local store is empty and answers at once unless ``cache`` says
    otherwise; the reader takes everything at once unless ``greedy`` is False."""

    def __init__(self) -> None:
        self.box = Inbox(Random(1))
        self.now_ms = 1_000
        self.got: dict[int, list[int]] = {}
        self.pulls: list[Pull] = []
        self.follows: list[list[str]] = []
        self.unfollows: list[list[str]] = []
        self.failed: list[FailStream] = []
        self.warned: list[Warn] = []
        self.cache: list[Event] = []
        self.greedy = True

    def feed(self, event: InboxEvent) -> None:
        effects = self.box.handle(event, self.now_ms)
        self.box.validate_state()
        for effect in effects:
            self.perform(effect)

    def perform(self, effect: InboxEffect) -> None:
        match effect:
            case Deliver():
                assert all(e.kind != EventKind.VOID for e in effect.events)
                self.got.setdefault(effect.stream, []).extend(e.seq for e in effect.events)
                if self.greedy:
                    self.feed(Taken(effect.stream, len(effect.events)))
            case Pull():
                self.pulls.append(effect)
            case ReadCache():
                found = [e for e in self.cache if e.seq > effect.after][: effect.limit]
                self.feed(CacheRead(effect.stream, found))
            case Follow():
                self.follows.append(effect.sessions)
            case Unfollow():
                self.unfollows.append(effect.sessions)
            case FailStream():
                self.failed.append(effect)
            case Warn():
                self.warned.append(effect)

    def connect(self) -> None:
        self.feed(Connected(pull_events=500, follow_sessions=1_000))

    def open(self, after: int | None = 0, stream: int = 1, session: str = "s") -> None:
        self.feed(StreamOpened(stream, session, after))

    def heads(self, head: int, session: str = "s") -> None:
        self.feed(HeadsReceived([(session, head)]))

    def push(self, *seqs: int) -> None:
        self.feed(Pushed(events(*seqs)))

    def page(self, found: Sequence[Event], head: int, code: int = 0, pull: int = -1) -> None:
        self.feed(Paged(self.pulls[pull].request, head, code, found))

    def pass_ms(self, ms: int) -> None:
        end_ms = self.now_ms + ms
        while (deadline_ms := self.box.deadline_ms()) is not None and deadline_ms <= end_ms:
            self.now_ms = max(self.now_ms, deadline_ms)
            self.feed(Ticked())
        self.now_ms = end_ms


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.connect()
    return rig


def test_follow_then_history_then_live_is_one_stream(rig: Rig) -> None:
    rig.open(0)
    assert rig.follows == [["s"]]
    rig.heads(3)
    assert rig.pulls[0].after == 0
    rig.push(4)
    rig.page(events(1, 2, 3), head=4)
    rig.push(5)
    assert rig.got[1] == [1, 2, 3, 4, 5]
    assert len(rig.pulls) == 1


def test_a_member_begins_where_he_joined(rig: Rig) -> None:
    rig.open(0)
    rig.heads(9)
    rig.push(10)
    rig.feed(Paged(rig.pulls[0].request, 10, 0, events(6, 7, 8, 9), first=6))
    assert rig.got[1] == [6, 7, 8, 9, 10]
    assert len(rig.pulls) == 1


def test_without_being_told_so_a_page_with_a_gap_is_no_beginning(rig: Rig) -> None:
    rig.open(0)
    rig.heads(9)
    rig.page(events(6, 7, 8, 9), head=9)
    assert rig.got.get(1, []) == []


def test_the_highest_seen_is_never_the_cursor(rig: Rig) -> None:
    """A push between connecting and pulling must not hide what came before it."""
    rig.open(0)
    rig.heads(0)
    rig.push(9)
    assert rig.got == {}
    assert rig.box.cursor(1) == 0
    assert (rig.pulls[0].after, rig.pulls[0].limit) == (0, 8)


def test_duplicates_are_dropped(rig: Rig) -> None:
    rig.open(0)
    rig.heads(0)
    rig.push(1, 1, 2)
    rig.push(2, 1, 3)
    assert rig.got[1] == [1, 2, 3]


def test_only_the_hole_is_pulled_once(rig: Rig) -> None:
    rig.open(10)
    rig.heads(10)
    rig.push(11)
    rig.push(14, 15)
    rig.push(16)
    assert [(p.after, p.limit) for p in rig.pulls] == [(11, 2)]
    rig.page(events(12, 13), head=16)
    assert rig.got[1] == [11, 12, 13, 14, 15, 16]


def test_voids_move_the_cursor_and_are_not_shown(rig: Rig) -> None:
    rig.open(0)
    rig.heads(0)
    rig.feed(Pushed([event(1), event(2, kind=EventKind.VOID), event(3)]))
    assert rig.got[1] == [1, 3]
    assert rig.box.cursor(1) == 3


def test_live_begins_at_the_head_also_when_opened_offline() -> None:
    rig = Rig()
    rig.open(None)
    rig.connect()
    rig.heads(7)
    rig.push(8)
    assert rig.got[1] == [8]
    rig.open(None, stream=2)
    rig.push(9)
    assert rig.got[2] == [9]


def test_readers_of_one_session_do_not_disturb_each_other(rig: Rig) -> None:
    rig.open(5, stream=1)
    rig.heads(6)
    rig.page(events(6), head=6)
    rig.open(0, stream=2)
    assert rig.follows == [["s"]], "followed already"
    rig.page(events(1, 2, 3, 4, 5, 6), head=6)
    rig.push(7)
    assert rig.got == {1: [6, 7], 2: [1, 2, 3, 4, 5, 6, 7]}
    rig.feed(StreamClosed(1))
    assert rig.unfollows == []
    rig.feed(StreamClosed(2))
    assert rig.unfollows == [["s"]]


def test_who_is_let_into_a_group_that_he_follows_follows_it_anew(rig: Rig) -> None:
    rig.feed(LetIn("s"))
    assert rig.follows == [], "nobody reads it here"
    rig.open(5)
    rig.heads(6)
    rig.page(events(6), head=6)
    rig.feed(LetIn("s"))
    assert rig.follows == [["s"], ["s"]]
    rig.heads(7)
    rig.page(events(7), head=7)
    assert rig.got[1] == [6, 7]


def test_what_the_store_has_comes_from_the_store_and_the_rest_from_the_server() -> None:
    rig = Rig()
    rig.cache = events(*range(1, 700), 705, 706)
    rig.open(0)
    assert rig.got[1] == list(range(1, 700)), "also without a connection"
    rig.connect()
    rig.heads(706)
    assert rig.pulls[0].after == 699
    rig.page(events(*range(700, 705)), head=706)
    assert rig.got[1] == list(range(1, 707))


def test_a_slow_reader_costs_a_bounded_amount_and_misses_nothing(rig: Rig) -> None:
    rig.greedy = False
    rig.open(0)
    rig.heads(0)
    total = READY_MAX + HELD_MAX + 500
    for seq in range(1, total + 1):
        rig.push(seq)
    assert len(rig.got[1]) == READY_MAX
    assert rig.pulls == []
    rig.feed(Taken(1, READY_MAX))
    assert len(rig.got[1]) == READY_MAX + HELD_MAX
    assert rig.pulls[0].after == READY_MAX + HELD_MAX
    rig.page(events(*range(rig.pulls[0].after + 1, total + 1)), head=total)
    assert rig.got[1] == list(range(1, total + 1))


def test_the_store_is_not_read_faster_than_the_reader_reads() -> None:
    rig = Rig()
    rig.greedy = False
    rig.cache = events(*range(1, 5_000))
    rig.open(0)
    assert len(rig.got[1]) == READY_MAX
    rig.feed(Taken(1, CACHE_PAGE))
    assert len(rig.got[1]) == READY_MAX + CACHE_PAGE


def test_a_pull_without_an_answer_is_repeated_and_a_late_answer_ignored(rig: Rig) -> None:
    rig.open(0)
    rig.heads(2)
    rig.pass_ms(5_300)
    assert len(rig.pulls) == 2
    rig.page(events(1, 2), head=2, pull=0)
    assert rig.got == {}
    rig.page(events(1, 2), head=2, pull=1)
    assert rig.got[1] == [1, 2]


def test_a_refused_pull_is_repeated_with_a_growing_wait(rig: Rig) -> None:
    rig.open(0)
    rig.heads(2)
    pulls = 0
    for _ in range(600):
        if len(rig.pulls) > pulls:
            pulls = len(rig.pulls)
            rig.page([], head=0, code=SlotMoving.code)
        rig.pass_ms(100)
    assert 15 <= pulls <= 60, "a minute"


def test_a_lagging_server_is_asked_again_without_a_hot_loop(rig: Rig) -> None:
    rig.open(0)
    rig.heads(5)
    rig.page(events(1, 2), head=2)
    rig.page([], head=2)
    assert len(rig.pulls) == 2
    rig.pass_ms(5_000)
    assert len(rig.pulls) == 3
    rig.page(events(3, 4, 5), head=5)
    assert rig.got[1] == [1, 2, 3, 4, 5]


def test_a_reader_that_may_not_read_is_told(rig: Rig) -> None:
    rig.open(0)
    rig.heads(2)
    rig.page([], head=0, code=Forbidden.code)
    assert isinstance(rig.failed[0].error, Forbidden)
    assert rig.unfollows == [["s"]]
    rig.feed(StreamClosed(1))
    rig.feed(Taken(1, 1))


def test_a_reconnect_follows_everything_and_pulls_what_was_missed(rig: Rig) -> None:
    rig.open(0)
    rig.open(0, stream=2, session="t")
    rig.heads(0)
    rig.push(1)
    rig.heads(5)
    rig.feed(Disconnected())
    rig.page(events(2, 3), head=5)
    assert rig.got[1] == [1], "an answer of the old connection"
    rig.connect()
    assert rig.follows[-1] == ["s", "t"]
    rig.heads(6)
    assert rig.pulls[-1].after == 1
    rig.page(events(2, 3, 4, 5, 6), head=6)
    assert rig.got[1] == [1, 2, 3, 4, 5, 6]


def test_follow_is_cut_to_what_the_server_takes_at_once() -> None:
    rig = Rig()
    for number in range(5):
        rig.open(0, stream=number, session=str(number))
    rig.feed(Connected(pull_events=500, follow_sessions=2))
    assert rig.follows == [["0", "1"], ["2", "3"], ["4"]]


def test_heads_that_do_not_come_are_asked_for_and_old_ones_refreshed(rig: Rig) -> None:
    rig.open(0)
    rig.pass_ms(6_100)
    assert len(rig.follows) == 2
    rig.heads(0)
    rig.pass_ms(50_000)
    assert len(rig.follows) == 2
    rig.pass_ms(30_000)
    assert len(rig.follows) == 3, "a last push that was lost without a word"
    rig.heads(1)
    assert rig.pulls[0].after == 0


def test_a_session_that_may_not_be_followed_fails_its_readers_and_no_others(rig: Rig) -> None:
    rig.open(0)
    rig.open(None, stream=2)
    rig.open(0, stream=3, session="t")
    rig.feed(FollowRefused("s", Forbidden("no")))
    assert [failed.stream for failed in rig.failed] == [1, 2]
    assert all(isinstance(failed.error, Forbidden) for failed in rig.failed)
    rig.feed(FollowRefused("s", Forbidden("no")))
    rig.feed(FollowRefused("never heard of", Forbidden("no")))
    assert len(rig.failed) == 2
    assert rig.box.followed == 1
    rig.pass_ms(600_000)
    assert all("s" not in names for names in rig.follows[2:])
    rig.open(0, stream=4)
    assert rig.follows[-1] == ["s"], "who asks again is answered again"


def test_a_head_below_what_was_read_is_reported(rig: Rig) -> None:
    rig.open(100)
    rig.heads(3)
    assert "another cluster" in str(rig.warned[0].error)


def test_story_tells_what_was_pulled(rig: Rig) -> None:
    rig.open(0)
    rig.heads(2)
    assert any("pull after 0, head 2" in line for line in rig.box.story("s"))


# --- against a bad network ------------------------------------------------------------------------


class BadNetwork(Rig):
    """A server that pushes what is committed, and a network that loses, doubles and shuffles."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self.rng = rng
        self.greedy = False
        self.head = 0
        self.pushes: list[Event] = []
        self.up = False
        self.answered = 0
        self.open_at: dict[int, int] = {}
        self.taken: dict[int, int] = {}
        self.voids: set[int] = set()

    def step(self) -> None:
        self.rng.choice(
            [self.commit, self.commit, self.commit, self.deliver, self.deliver, self.answer,
             self.answer, self.take, self.take, self.wait, self.cut, self.connect_,
             self.open_one, self.lag]
        )()  # fmt: skip

    def make(self, seq: int) -> Event:
        return event(seq, kind=EventKind.VOID if seq in self.voids else EventKind.MESSAGE)

    def commit(self) -> None:
        for _ in range(self.rng.choice([1, 1, 5, 400])):
            self.head += 1
            if self.rng.random() < 0.05:
                self.voids.add(self.head)
            if self.up and self.rng.random() > 0.1:
                self.pushes.append(self.make(self.head))
                if self.rng.random() < 0.1:
                    self.pushes.append(self.make(self.head))

    def deliver(self) -> None:
        if self.rng.random() < 0.3:
            self.rng.shuffle(self.pushes)
        count = self.rng.randrange(len(self.pushes) + 1)
        batch, self.pushes = self.pushes[:count], self.pushes[count:]
        if batch and self.up:
            self.feed(Pushed(batch))

    def answer(self, perfect: bool = False) -> None:
        while self.up and self.answered < len(self.pulls):
            pull = self.pulls[self.answered]
            self.answered += 1
            roll = 1.0 if perfect else self.rng.random()
            known = self.head if roll > 0.3 else self.rng.randrange(self.head + 1)
            if roll < 0.1:
                continue
            if roll < 0.2:
                self.feed(Paged(pull.request, 0, SlotMoving.code, []))
                continue
            last = min(pull.after + pull.limit, known)
            found = [self.make(seq) for seq in range(pull.after + 1, last + 1)]
            if roll < 0.5:  # the server's frame was full
                found = found[: self.rng.randrange(1, 9)]
            self.feed(Paged(pull.request, known, 0, found))

    def take(self) -> None:
        for stream, got in self.got.items():
            count = self.rng.randrange(len(got) - self.taken.get(stream, 0) + 1)
            if count:
                self.taken[stream] = self.taken.get(stream, 0) + count
                self.feed(Taken(stream, count))

    def wait(self) -> None:
        self.pass_ms(self.rng.choice([10, 500, 6_000]))

    def cut(self) -> None:
        if self.up and self.rng.random() < 0.3:
            self.up = False
            self.pushes.clear()
            self.answered = len(self.pulls)
            self.feed(Disconnected())

    def connect_(self) -> None:
        if not self.up:
            self.up = True
            self.feed(Connected(self.rng.choice([1, 7, 500]), 1_000))
            self.heads(self.head)

    def lag(self) -> None:
        if self.up:
            self.heads(self.rng.randrange(self.head + 1))

    def open_one(self) -> None:
        if len(self.open_at) < 3:
            stream = len(self.open_at) + 1
            self.open_at[stream] = self.rng.randrange(self.head + 1)
            self.cache = [self.make(s) for s in range(1, self.rng.randrange(self.head + 1) + 1)]
            self.open(self.open_at[stream], stream)

    def heal(self) -> None:
        for _ in range(40_000):
            self.connect_()
            self.heads(self.head)
            self.answer(perfect=True)
            self.take()
            if all(self.box.cursor(stream) == self.head for stream in self.open_at):
                return
            self.pass_ms(100)
        raise AssertionError(f"not done: {self.box.story()[-40:]}")


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a seed does not shrink
)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 120))
def test_in_order_without_gap_or_repeat_whatever_is_lost(seed: int, steps: int) -> None:
    rig = BadNetwork(Random(seed))
    rig.open_one()
    for _ in range(steps):
        rig.step()
    rig.cut()
    rig.heal()
    for stream, after in rig.open_at.items():
        shown = [seq for seq in range(after + 1, rig.head + 1) if seq not in rig.voids]
        assert rig.got.get(stream, []) == shown
