"""Write diffusion: whatever fails on the way, every hearer hears of everything, without a gap."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import NamedTuple

import msgpack
import pytest

from im_actors.core.diffusion import (
    Began,
    Committed,
    Diffusion,
    DiffusionEffect,
    DiffusionSettings,
    Ended,
    LogRead,
    Note,
    ReadLog,
    SaveCursor,
    Subject,
    Tell,
    Tick,
    Told,
)
from im_actors.core.model import Event, pack

SETTINGS = DiffusionSettings(
    in_flight_max=3,
    waiting_max=5,
    answer_ms=100,
    save_every_ms=200,
    save_lsns=8,
    read_records_max=4,
)


class Stretch(NamedTuple):
    """Events ``first`` .. ``last`` of one session."""

    session: str
    first: int
    last: int

    def joined(self, later: Note) -> Stretch | None:
        assert isinstance(later, Stretch)
        assert later.first == self.last + 1, "a later note continues the one before"
        if later.last - self.first >= 4:
            return None
        return self._replace(last=later.last)

    def body(self) -> bytes:
        return pack(self)


def subjects(event: Event) -> Iterable[tuple[Subject, Note]]:
    note = Stretch(event.session, event.seq, event.seq)
    return [(Subject(hearer, event.session), note) for hearer in event.session.split("+")]


class World:
    """A log, hearers that take only what continues what they know, and everything that fails."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_ms = 0
        self.machine = Diffusion(subjects, SETTINGS)
        self.log: list[list[Event]] = []
        self.seqs: dict[str, int] = {}
        self.heard: dict[tuple[str, str], int] = {}
        self.cursor = 0
        self.queue: list[DiffusionEffect] = []
        self.trouble = 0.3
        self.largest = 0

    def handle(self, event: object) -> None:
        self.queue += self.machine.handle(event, self.now_ms)  # type: ignore[arg-type]
        self.largest = max(self.largest, self.machine.waiting)

    def begin(self) -> None:
        self.queue.clear()
        self.handle(Ended())
        self.handle(Began(self.cursor, len(self.log)))

    def commit(self, heard: bool) -> None:
        first = len(self.log) + 1
        for _ in range(self.rng.randint(1, 2)):
            self.log.append([self.event() for _ in range(self.rng.randint(0, 3))])
        if heard:
            self.handle(Committed(first, len(self.log), self.events(first, len(self.log))))

    def event(self) -> Event:
        session = self.rng.choice(("a+b", "a+c", "b+c", "a", "x"))
        seq = self.seqs[session] = self.seqs.get(session, 0) + 1
        return Event(session, seq, 0, 1, "a/1", 1, b"")

    def events(self, first: int, last: int) -> list[Event]:
        return [event for record in self.log[first - 1 : last] for event in record]

    def carry_out(self) -> None:
        """One effect, which one does not matter, in one of the ways that it can go."""
        effect = self.queue.pop(self.rng.randrange(len(self.queue)))
        lost = self.rng.random() < self.trouble
        match effect:
            case ReadLog(first, last):
                if not lost:
                    last = self.rng.randint(first - 1, last) if self.trouble else last
                    self.handle(LogRead(first, last, self.events(first, last)))
            case SaveCursor(lsn):
                if not lost:
                    self.check_cursor(lsn)
                    self.cursor = max(self.cursor, lsn)
            case Tell(token, _, _):
                refused = lost and self.rng.random() < 0.5
                if not refused or self.rng.random() < 0.5:
                    self.hear(effect)
                if refused or not lost:
                    self.handle(Told(token, not refused))

    def hear(self, effect: Tell) -> None:
        session, first, last = msgpack.unpackb(effect.body)
        known = self.heard.get((effect.hearer, session), 0)
        assert first <= known + 1, f"{effect.hearer} hears of {first} after {known}"
        self.heard[effect.hearer, session] = max(known, last)

    def check_cursor(self, lsn: int) -> None:
        for event in self.events(1, lsn):
            for subject, _ in subjects(event):
                assert self.heard.get((subject.hearer, event.session), 0) >= event.seq

    def pass_time(self) -> None:
        due = self.machine.deadline_ms()
        if due is not None:
            self.now_ms = max(self.now_ms, due)
            self.handle(Tick())

    def settle(self) -> None:
        self.trouble = 0.0
        for _ in range(10_000):
            if self.queue:
                self.carry_out()
            elif self.machine.waiting or self.machine.taken_lsn < len(self.log):
                self.pass_time()
            else:
                return
        raise AssertionError("it does not come to rest")


@pytest.mark.parametrize("seed", range(60))
def test_everybody_hears_of_everything(seed: int) -> None:
    world = World(seed)
    world.begin()
    for _ in range(400):
        chance = world.rng.random()
        if chance < 0.3:
            world.commit(heard=True)
        elif chance < 0.33:
            # Nobody serves the slot for a moment; then another owner does.
            world.commit(heard=False)
            world.begin()
        elif chance < 0.8 and world.queue:
            world.carry_out()
        else:
            world.pass_time()
    world.settle()
    expected = {
        (hearer, session): last
        for session, last in world.seqs.items()
        for hearer in session.split("+")
    }
    assert world.heard == expected
    assert world.largest <= SETTINGS.waiting_max + 12, "one batch above the bound, no more"


def test_what_comes_while_a_note_is_told_is_told_after_it() -> None:
    machine = Diffusion(subjects, SETTINGS)
    machine.handle(Began(0, 0), 0)

    def event(seq: int) -> Event:
        return Event("a", seq, 0, 1, "a/1", seq, b"")

    (first,) = machine.handle(Committed(1, 1, [event(1)]), 0)
    assert machine.handle(Committed(2, 2, [event(2)]), 0) == []
    assert machine.handle(Committed(3, 3, [event(3)]), 0) == []
    assert machine.cursor_lsn() == 0
    assert isinstance(first, Tell)
    (second,) = machine.handle(Told(first.token, True), 10)
    assert second == Tell(first.token + 1, "a", pack(Stretch("a", 2, 3)))
    assert machine.cursor_lsn() == 1
    machine.handle(Told(first.token + 1, True), 20)
    assert machine.cursor_lsn() == 3


def test_records_that_concern_nobody_move_the_cursor_now_and_then() -> None:
    machine = Diffusion(subjects, SETTINGS)
    machine.handle(Began(0, 0), 0)
    saved = []
    for lsn in range(1, 101):
        saved += machine.handle(Committed(lsn, lsn, []), lsn * 100)
    assert 5 <= len(saved) <= 12
    assert all(isinstance(effect, SaveCursor) for effect in saved)


def test_an_idle_slot_writes_nothing() -> None:
    machine = Diffusion(subjects, SETTINGS)
    machine.handle(Began(7, 7), 0)
    assert machine.deadline_ms() is None
    assert machine.handle(Tick(), 10_000) == []
