"""What is booked of writers that are killed, and how long a recovery took."""

from __future__ import annotations

import random
from typing import Any

import pytest

from im_actors.cli.torture.book import Book, Entry
from im_actors.cli.torture.recovery import Hit, Recovery
from im_actors.cli.torture.writer import body_of
from im_actors.core.model import slot_of
from im_actors.proof import History

DEVICE = "w/torture-1"


@pytest.fixture
def history() -> History:
    return History(slots=16)


@pytest.fixture
def book(history: History) -> Book:
    return Book(history, 16)


def accept(book: Book, n: int, session: str = "s") -> None:
    book.tried("w", DEVICE, session, n, float(n))
    book.kept(DEVICE, session, n)


def test_a_body_is_decided_by_its_key_alone() -> None:
    assert body_of("w", "s", 1) == body_of("w", "s", 1)
    bodies = {body_of("w", "s", n) for n in range(1, 500)}
    assert len(bodies) == 499
    assert max(map(len, bodies)) > 1_500 > 300 > min(map(len, bodies))


def test_what_was_accepted_waits_for_its_ack(book: Book) -> None:
    accept(book, 1)
    accept(book, 2)
    assert (book.sent, book.acked, len(book.waiting)) == (2, 0, 2)
    book.acked_at(DEVICE, "s", 1, 7, 1, 3, 9.0)
    assert (book.sent, book.acked, book.heads) == (2, 1, {"s": 7})
    assert book.waiting == {("s", DEVICE, 2)}
    assert book.entries["s", DEVICE, 1].slot == slot_of("s", 16)


def test_what_was_only_tried_may_be_lost_and_is_tried_again(book: Book, history: History) -> None:
    accept(book, 1)
    book.tried("w", DEVICE, "s", 2, 2.0)
    book.reopened(DEVICE, {"s": 2}, [("s", 1)])
    assert (book.sent, book.unheard) == (1, set())
    accept(book, 2)
    assert book.sent == 2
    assert not history.anomalies


def test_what_a_file_has_forgotten_was_acked_and_nobody_heard_it(book: Book) -> None:
    for n in (1, 2, 3):
        accept(book, n)
    book.tried("w", DEVICE, "s", 4, 4.0)
    book.acked_at(DEVICE, "s", 1, 1, 1, 3, 5.0)
    book.reopened(DEVICE, {"s": 5}, [("s", 3)])
    assert book.unheard == {("s", DEVICE, 2), ("s", DEVICE, 4)}
    assert book.sent == 4, "the one that was tried is in the file"
    for n, seq in ((2, 2), (4, 4), (3, 3)):
        book.acked_at(DEVICE, "s", n, seq, 1, 3, 6.0)
    assert not book.unheard
    assert not book.waiting


def test_another_ack_of_a_message_must_name_the_same_place(book: Book, history: History) -> None:
    accept(book, 1)
    book.acked_at(DEVICE, "s", 1, 1, 1, 3, 1.5)
    book.acked_at(DEVICE, "s", 1, 1, 4, 3, 9.0)
    assert not history.anomalies
    assert book.entries["s", DEVICE, 1].acked_s == 1.5
    book.acked_at(DEVICE, "s", 1, 2, 5, 3, 10.0)
    assert history.counts == {"ack-mismatch": 1}


def test_old_and_fresh_messages_are_sent_again(book: Book) -> None:
    assert book.some_acked(random.Random(1)) is None
    for n in range(1, 1_001):
        accept(book, n)
        book.acked_at(DEVICE, "s", n, n, 1, 3, float(n))
    rng = random.Random(1)
    drawn: list[Any] = [book.some_acked(rng) for _ in range(200)]
    recent = sum(entry.key[2] > 800 for entry in drawn)
    assert 90 <= recent <= 160


def entry(slot: int, sent_s: float, acked_s: float, device: str = DEVICE) -> Entry:
    made = Entry(("s", device, int(sent_s * 100)), "w", slot, sent_s)
    made.acked_s = acked_s
    return made


def recovered(hit: Hit, *acked: Entry) -> Recovery:
    recovery = Recovery(lambda text: None)
    recovery.add(hit)
    recovery.add(hit)
    recovery.follow(acked)
    return recovery


def test_recovery_ends_with_an_ack_of_what_was_sent_after_the_fault() -> None:
    hit = Hit("kill-shard", "shard-1", 10.0, 10.1, slots=frozenset({1, 2}))
    recovery = recovered(
        hit,
        entry(1, 9.9, 10.2),
        entry(1, 10.05, 10.3),
        entry(3, 10.2, 10.25),
        entry(2, 10.2, 11.0),
        entry(1, 10.3, 12.0),
    )
    assert (hit.recovered_s, hit.all_slots_s, hit.over) == (1.0, 2.0, True)
    assert recovery.counts() == {"kill-shard": 1}
    figures = recovery.to_json()["kill-shard"]
    assert figures == {
        "count": 1, "p50": 1000, "max": 1000, "all_slots": {"p50": 2000, "max": 2000}
    }  # fmt: skip


def test_only_the_clients_that_were_cut_off_count() -> None:
    hit = Hit("kill-gateway", "gateway-1", 10.0, 10.0, devices=frozenset({"x/1"}))
    recovered(hit, entry(1, 10.1, 10.2), entry(1, 10.1, 10.5, "x/1"))
    assert hit.recovered_s == 0.5


def test_a_fault_without_an_ack_after_it_is_counted_and_has_no_time() -> None:
    hit = Hit("kill-all", "every process", 10.0, 10.0)
    recovery = recovered(hit, entry(1, 9.0, 9.5))
    assert not hit.over
    assert recovery.counts() == {"kill-all": 1}
    assert recovery.to_json()["kill-all"]["max"] is None


def test_a_fault_that_was_overtaken_by_the_end_of_everything_has_no_time() -> None:
    recovery = Recovery(lambda text: None)
    early = Hit("kill-shard", "shard-1", 1.0, 1.0)
    late = Hit("kill-replica", "replica-1", 5.0, 5.0)
    for hit in (early, late):
        recovery.add(hit)
    recovery.follow([entry(1, 2.0, 3.0)])
    recovery.add(Hit("kill-all", "every process", 6.0, 6.0))
    recovery.follow([entry(1, 2.0, 3.0), entry(1, 7.0, 60.0)])
    figures = recovery.to_json()
    assert figures["kill-shard"]["max"] == 2000
    assert (figures["kill-replica"]["count"], figures["kill-replica"]["max"]) == (0, None)
    assert figures["kill-all"]["max"] == 54_000


def test_acks_are_looked_at_once() -> None:
    hit = Hit("cut-links", "all links", 1.0, 1.0)
    recovery = Recovery(lambda text: None)
    acked = [entry(1, 2.0, 3.0)]
    recovery.follow(acked)
    recovery.add(hit)
    recovery.follow(acked)
    assert hit.recovered_s is None
    acked.append(entry(1, 4.0, 5.0))
    recovery.follow(acked)
    assert hit.recovered_s == 4.0
