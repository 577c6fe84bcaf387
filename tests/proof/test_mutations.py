"""Histories of a dumb and correct cluster are clean, and each way of spoiling one is found."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from im_actors.core.model import (
    Event,
    Record,
    decode_event,
    epoch_start,
    make_record,
    record_events,
    slot_of,
)
from im_actors.core.model import encode_event as encoded
from im_actors.proof import NAMES, History

SLOTS = 2
SESSIONS = ("one", "two", "three")
DEVICES = ("alice/phone", "alice/laptop", "bob/phone")
DISKS = ("disk-a", "disk-b", "disk-c")
READERS = ("reader-1", "reader-2")

Step = tuple[Any, ...]
"""The name of a method of History and its arguments."""


class Model:
    """Everything works: what is sent is logged, committed, ACKed, pushed and polled, in order."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.steps: list[Step] = []
        self.logs: dict[int, list[Record]] = {}
        self.events: dict[str, list[Event]] = {session: [] for session in SESSIONS}
        self.last_n: dict[tuple[str, str], int] = {}
        self.key = 0
        self.epoch = 0
        for _ in range(4):
            self.epoch += 1
            for slot in range(SLOTS):
                self.serve(slot)
        self.end()

    def serve(self, slot: int) -> None:
        """An epoch in which each session of the slot gets a few events."""
        log = self.logs.setdefault(slot, [])
        self.tell("owner", slot, self.epoch, f"shard-{self.epoch}")
        self.key += 1
        self.keep(slot, epoch_start(slot, len(log) + 1, self.epoch, self.key), [])
        for session in SESSIONS:
            if slot_of(session, SLOTS) == slot:
                for _ in range(2):
                    batch = [self.send(session, i) for i in range(self.rng.randint(1, 3))]
                    data = [encoded(event) for event in batch]
                    self.keep(slot, make_record(slot, len(log) + 1, self.epoch, data), batch)

    def send(self, session: str, index: int) -> Event:
        device = self.rng.choice(DEVICES)
        n = self.last_n[session, device] = self.last_n.get((session, device), 0) + 1
        body = self.rng.randbytes(5)
        self.tell("sent", session, device, n, 1, body)
        # The first of a batch is a message, so that there is always one to spoil.
        fate = self.rng.choice(["message", "message", "withdrawn", "refused"])
        kind = 1 if fate == "message" or index == 0 else 0
        if fate == "refused" and not kind:
            self.tell("refused", session, device, n)
        elif fate != "message":
            self.tell("sent", session, device, n, 0, b"")
        self.key += 1
        seq = len(self.events[session]) + 1
        event = Event(session, seq, self.key, kind, device, n, body if kind else b"")
        self.events[session].append(event)
        return event

    def keep(self, slot: int, record: Record, batch: list[Event]) -> None:
        self.logs[slot].append(record)
        for disk in self.rng.sample(DISKS, 3):
            self.tell("durable", disk, slot, record)
        self.tell("committed", f"shard-{self.epoch}", slot, self.epoch, record.lsn, DISKS)
        for disk in DISKS:
            self.tell("believed", disk, slot, record.lsn)
        for event in batch:
            self.tell("acked", event.session, event.device, event.n, event.seq, self.epoch, 3)
        for reader in READERS:
            for event in batch:
                if event.kind:
                    self.tell("delivered", reader, event.session, *shown(event))
        if batch:
            page = tuple(shown(event) for event in batch)
            first, last = batch[0].seq, batch[-1].seq
            self.tell("polled", self.rng.choice(DISKS), batch[0].session, last, first - 1, page)

    def end(self) -> None:
        for slot, log in self.logs.items():
            for disk in DISKS:
                self.tell("final_log", disk, slot, tuple(log))
        for session, events in self.events.items():
            page = tuple(shown(event) for event in events)
            self.tell("final_read", session, page)

    def tell(self, *step: Any) -> None:
        self.steps.append(step)


def shown(event: Event) -> tuple[int, str, int, int, bytes]:
    return event.seq, event.device, event.n, event.kind, event.body


def judged(steps: list[Step]) -> dict[str, int]:
    history = History(slots=SLOTS, watches_disks=True)
    for name, *arguments in steps:
        if name == "durable":
            disk, slot, record = arguments
            lsn, epoch, payload, checksum = record
            arguments = [disk, slot, lsn, epoch, payload, checksum]
        getattr(history, name)(*arguments)
    history.finish()
    assert history.counts.keys() <= set(NAMES)
    return history.counts


# -- how to spoil it -------------------------------------------------------------------------------

Spoil = Callable[[Model, random.Random], set[str]]
"""Changes the steps of a model; the names of which at least one has to be found."""
SPOILS: list[Spoil] = []


def spoils(spoil: Spoil) -> Spoil:
    SPOILS.append(spoil)
    return spoil


def pick(model: Model, rng: random.Random, name: str) -> int:
    """The index of some step with this name."""
    return rng.choice([i for i, step in enumerate(model.steps) if step[0] == name])


def change(model: Model, index: int, place: int, value: Any) -> None:
    step = list(model.steps[index])
    step[place] = value
    model.steps[index] = tuple(step)


def spoil_record(model: Model, rng: random.Random, **fields: Any) -> None:
    """Change an event in the log, on all disks alike, with a right checksum."""
    slot, log = rng.choice(list(model.logs.items()))
    record = rng.choice([record for record in log[1:] if record_events(record.payload)])
    events = [decode_event(data) for data in record_events(record.payload)]
    events[0] = events[0]._replace(**fields)
    data = [encoded(event) for event in events]
    other = make_record(slot, record.lsn, record.epoch, data)
    for index, step in enumerate(model.steps):
        if step[0] == "durable" and step[3] is record:
            change(model, index, 3, other)
        elif step[0] == "final_log":
            change(model, index, 3, tuple(other if r is record else r for r in step[3]))


@spoils
def lose_an_event_at_the_end(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "final_read")
    events = list(model.steps[index][2])
    del events[rng.randrange(len(events))]
    change(model, index, 2, tuple(events))
    return {"lost-write"}


@spoils
def keep_an_event_from_a_follower(model: Model, rng: random.Random) -> set[str]:
    del model.steps[pick(model, rng, "delivered")]
    return {"poll-skip", "unseen"}


@spoils
def swap_what_a_follower_gets(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "delivered")
    alike = [i for i, step in enumerate(model.steps) if step[:3] == model.steps[index][:3]]
    other = rng.choice([i for i in alike if i != index])
    steps = model.steps
    steps[index], steps[other] = steps[other], steps[index]
    return {"nonmonotonic-poll"}


@spoils
def repeat_what_a_follower_got(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "delivered")
    model.steps.insert(rng.randrange(index, len(model.steps)), model.steps[index])
    return {"duplicate"}


@spoils
def change_bytes_on_the_way_to_a_follower(model: Model, rng: random.Random) -> set[str]:
    change(model, pick(model, rng, "delivered"), 7, rng.randbytes(6))
    return {"wrong-content"}


@spoils
def give_a_follower_another_message(model: Model, rng: random.Random) -> set[str]:
    change(model, pick(model, rng, "delivered"), 5, 1_000)
    return {"inconsistent-offsets"}


@spoils
def deliver_too_early(model: Model, rng: random.Random) -> set[str]:
    delivered = pick(model, rng, "delivered")
    earlier = [i for i, step in enumerate(model.steps[:delivered]) if step[0] == "durable"]
    model.steps.insert(earlier[-1], model.steps.pop(delivered))
    return {"precommitted-read"}


@spoils
def ack_too_early(model: Model, rng: random.Random) -> set[str]:
    acked = pick(model, rng, "acked")
    earlier = [i for i, step in enumerate(model.steps[:acked]) if step[0] == "durable"]
    model.steps.insert(earlier[-1], model.steps.pop(acked))
    return {"commit-below-three"}


@spoils
def ack_with_two_copies(model: Model, rng: random.Random) -> set[str]:
    change(model, pick(model, rng, "acked"), 6, 2)
    return {"commit-below-three"}


@spoils
def ack_another_place(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "acked")
    change(model, index, 4, rng.choice([0, 1_000]))
    return {"inconsistent-offsets"}


@spoils
def ack_again_elsewhere(model: Model, rng: random.Random) -> set[str]:
    step = list(model.steps[pick(model, rng, "acked")])
    step[4] += 1
    model.steps.append(tuple(step))
    return {"ack-mismatch"}


@spoils
def log_what_nobody_sent(model: Model, rng: random.Random) -> set[str]:
    messages = [step for step in model.steps if step[0] == "delivered"]
    _, _, session, _, device, n, _, _ = rng.choice(messages)
    model.steps = [s for s in model.steps if s[:5] != ("sent", session, device, n, 1)]
    return {"wrong-content"}


@spoils
def refuse_what_is_there(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "delivered")
    _, _, session, _, device, n, _, _ = model.steps[index]
    model.steps.append(("refused", session, device, n))
    return {"refused-write"}


@spoils
def use_a_number_again(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "sent")
    _, session, device, n, _, _ = model.steps[index]
    model.steps.append(("sent", session, device, n, 1, b"another"))
    return {"reused-number"}


@spoils
def forget_an_fsync(model: Model, rng: random.Random) -> set[str]:
    del model.steps[pick(model, rng, "durable")]
    return {"commit-below-three"}


@spoils
def commit_before_the_third_disk(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "committed")
    model.steps.insert(index - 1, model.steps.pop(index))
    return {"commit-below-three"}


@spoils
def believe_before_the_commit(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "committed")
    model.steps.insert(index + 1, model.steps.pop(index))
    return {"commit-below-three"}


@spoils
def serve_twice(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "owner")
    _, slot, epoch, _ = model.steps[index]
    model.steps.append(("owner", slot, epoch, "another"))
    return {"two-owners"}


@spoils
def lose_a_record_of_one_disk(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "final_log")
    log = list(model.steps[index][3])
    del log[rng.randrange(len(log))]
    change(model, index, 3, tuple(log))
    return {"replica-divergence"}


@spoils
def lose_the_end_of_all_disks(model: Model, rng: random.Random) -> set[str]:
    slot = model.steps[pick(model, rng, "final_log")][2]
    for index, step in enumerate(model.steps):
        if step[0] == "final_log" and step[2] == slot:
            change(model, index, 3, step[3][:-1])
    return {"replica-divergence"}


@spoils
def lose_a_disk(model: Model, rng: random.Random) -> set[str]:
    del model.steps[pick(model, rng, "final_log")]
    return {"commit-below-three"}


@spoils
def damage_a_record_of_one_disk(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "final_log")
    log = list(model.steps[index][3])
    place = rng.randrange(len(log))
    payload = bytearray(log[place].payload)
    payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)
    log[place] = log[place]._replace(payload=bytes(payload))
    change(model, index, 3, tuple(log))
    return {"wrong-content"}


@spoils
def cut_what_is_committed(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "believed")
    _, disk, slot, lsn = model.steps[index]
    model.steps.insert(index + 1, ("cut", disk, slot, lsn - 1))
    return {"replica-divergence"}


@spoils
def read_a_page_with_a_hole(model: Model, rng: random.Random) -> set[str]:
    index = rng.choice([i for i, s in enumerate(model.steps) if s[0] == "polled" and len(s[5]) > 1])
    change(model, index, 5, model.steps[index][5][1:])
    return {"poll-skip"}


@spoils
def read_above_the_commit_point(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "polled")
    change(model, index, 3, model.steps[index][3] + 1)
    return {"precommitted-read"}


@spoils
def go_back_at_one_disk(model: Model, rng: random.Random) -> set[str]:
    index = pick(model, rng, "polled")
    _, disk, session, head, _, _ = model.steps[index]
    model.steps.append(("polled", disk, session, head - 1))
    return {"nonmonotonic-poll"}


@spoils
def change_bytes_in_the_log(model: Model, rng: random.Random) -> set[str]:
    spoil_record(model, rng, body=b"changed", kind=1)
    return {"wrong-content"}


@spoils
def skip_a_seq_in_the_log(model: Model, rng: random.Random) -> set[str]:
    spoil_record(model, rng, seq=1_000)
    return {"gap"}


@spoils
def repeat_a_number_in_the_log(model: Model, rng: random.Random) -> set[str]:
    spoil_record(model, rng, n=0)
    return {"reorder"}


@spoils
def go_back_with_a_key(model: Model, rng: random.Random) -> set[str]:
    spoil_record(model, rng, key=0)
    return {"key-back"}


# -- the tests -------------------------------------------------------------------------------------

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**32)


@settings(few, max_examples=60)
@given(seeds)
def test_a_correct_history_is_clean(seed: int) -> None:
    assert judged(Model(random.Random(seed)).steps) == {}


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
@few
@given(seeds)
def test_a_spoiled_history_is_found(spoil: Spoil, seed: int) -> None:
    rng = random.Random(seed)
    model = Model(rng)
    expected = spoil(model, rng)
    found = judged(model.steps)
    assert expected & found.keys(), (spoil.__name__, seed, found)
