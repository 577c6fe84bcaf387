"""The notes of a shard: where they go, what their answers do, and what is told of them."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from im_actors.core.facts import Fact, pack_request
from im_actors.core.model import (
    Event,
    EventKind,
    encode_event,
    make_key,
    make_record,
    slot_of,
)
from im_actors.core.names import Heard, heard, slot_session
from im_actors.core.notes import cursor_key, cursor_note
from im_actors.core.owner_words import FactsAsked, LogAsked
from im_actors.core.rows import pack_row
from im_actors.core.rules import SERVER
from im_actors.core.serving import Send
from im_actors.errors import OutOfOrder, SlotMoving
from im_actors.server import telling as module
from im_actors.server.telling import NOTES, Telling, heard_events

SLOTS = 6
DIRECT = "direct:alice/bob"
SLOT = slot_of(DIRECT, SLOTS)
MAILBOXES = ("user:alice", "user:bob")
KEY = make_key(1_700_000_000_000, 0, 0)


class FakeShard:
    """It serves ``served`` and keeps what it is given."""

    def __init__(self, *served: int) -> None:
        self.slots = SLOTS
        self.served = set(served)
        self.asked: list[tuple[int, Any]] = []
        self.notes: list[Send] = []
        self.relayed: list[tuple[int, str, bytes]] = []
        self.planned = 0
        self.lsn = 0

    def serves(self, slot: int) -> bool:
        return slot in self.served

    def commit_lsn(self, slot: int) -> int:
        return self.lsn

    def ask_owner(self, slot: int, event: Any) -> None:
        self.asked.append((slot, event))

    def hand_over(self, slot: int, notes: list[Send]) -> None:
        assert all(slot_of(note.session, SLOTS) == slot for note in notes)
        self.notes += notes

    def relay(self, rows: list[tuple[int, str, bytes]]) -> None:
        self.relayed += rows

    def plan_flush(self) -> None:
        self.planned += 1


def message(seq: int, session: str = DIRECT, sender: str = "alice") -> Event:
    return Event(session, seq, KEY + seq, EventKind.MESSAGE, f"{sender}/phone", seq, b"text")


def began(shard: FakeShard, cursor: int = 0, commit_lsn: int = 0) -> Telling:
    telling = Telling("shard.1", shard)
    shard.lsn = commit_lsn
    telling.activated(SLOT)
    telling.flush()
    ((slot, question),) = shard.asked
    key = cursor_key("notes")
    assert (slot, question.session, question.keys) == (SLOT, slot_session(SLOT), (key,))
    fact = Fact(key, 3, 0, pack_row((cursor,))) if cursor else None
    telling.facts_known(SLOT, question.token, {key: fact}, 0)
    shard.asked.clear()
    return telling


def test_notes_go_to_the_own_slots_and_through_a_gateway_to_others() -> None:
    elsewhere, here = MAILBOXES
    shard = FakeShard(SLOT, slot_of(here, SLOTS))
    assert not shard.serves(slot_of(elsewhere, SLOTS))
    telling = began(shard)
    telling.published(SLOT, 1, 1, [message(1)], 0)
    assert (shard.notes, shard.relayed) == ([], [])  # Not in the middle of an owner's turn.
    assert shard.planned
    telling.flush()
    ((to, (slot, token)), session, device, n, kind, _) = shard.notes[0]
    assert (to, slot, session, device, n, kind) == (NOTES, SLOT, here, SERVER, 0, EventKind.NOTE)
    ((number, hearer, _),) = shard.relayed
    assert hearer == elsewhere
    assert telling.status(0)["notes_waiting"] == 2
    telling.answered([((slot, token), 0, 1, 1, 0, 0)], 0)
    telling.relayed([[number, 0]], 0)
    status = telling.status(0)
    assert (status["notes_waiting"], status["notes_told"]) == (0, 2)


def test_a_note_that_does_not_hold_is_told_again() -> None:
    shard = FakeShard(SLOT)
    shard.served |= {slot_of(mailbox, SLOTS) for mailbox in MAILBOXES}
    telling = began(shard)
    telling.published(SLOT, 1, 1, [message(1)], 0)
    telling.flush()
    first = shard.notes.pop(0)
    telling.answered([(first.token[1], SlotMoving.code, 0, 0, 0, 0)], 0)
    due = telling.next_ms()
    assert due is not None
    telling.tick(due)
    telling.flush()
    again = shard.notes[-1]
    assert (again.session, again.body) == (first.session, first.body)
    assert again.token != first.token
    assert telling.status(due)["notes_refused"] == 0


def test_a_new_owner_reads_the_log_from_the_cursor_on() -> None:
    shard = FakeShard(*range(SLOTS))
    telling = began(shard, cursor=4, commit_lsn=6)
    telling.flush()
    assert shard.asked == [(SLOT, LogAsked(5, 6))]
    records = [
        make_record(SLOT, 5, 1, [encode_event(message(1, "team"))]),
        make_record(SLOT, 6, 1, [encode_event(message(1)), encode_event(message(2, "team"))]),
    ]
    telling.log_known(SLOT, 5, records, 0)
    telling.flush()
    assert sorted(note.session for note in shard.notes) == sorted(MAILBOXES)


def test_an_answer_to_an_earlier_question_says_nothing() -> None:
    shard = FakeShard(*range(SLOTS))
    telling = Telling("shard.1", shard)
    telling.activated(SLOT)
    telling.activated(SLOT)
    telling.flush()
    (_, old), (_, new) = shard.asked
    assert isinstance(old, FactsAsked)
    none = {cursor_key("notes"): None}
    shard.lsn = 3
    telling.facts_known(SLOT, old.token, none, 0)
    telling.flush()
    assert len(shard.asked) == 2
    telling.facts_known(SLOT, new.token, none, 0)
    telling.flush()
    assert shard.asked[2:] == [(SLOT, LogAsked(1, 3))]


def test_who_has_left_a_slot_tells_nothing_of_it() -> None:
    shard = FakeShard(*range(SLOTS))
    telling = began(shard)
    telling.published(SLOT, 1, 1, [message(1)], 0)
    telling.flush()
    token = shard.notes[0].token[1]
    telling.left(SLOT, 0)
    telling.published(SLOT, 2, 2, [message(2)], 0)
    telling.answered([(token, SlotMoving.code, 0, 0, 0, 0)], 0)
    assert telling.next_ms() is None
    assert telling.status(0)["notes_waiting"] == 0


def test_records_that_concern_nobody_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    handled: list[Any] = []
    shard = FakeShard(*range(SLOTS))
    telling = began(shard)
    known = telling._slots[SLOT]
    handle = known.diffusion.handle
    monkeypatch.setattr(
        known.diffusion, "handle", lambda event, now: handled.append(event) or handle(event, now)
    )
    monkeypatch.setattr(module, "QUIET_RECORDS_MAX", 10)
    for lsn in range(1, 12):
        telling.published(SLOT, lsn, lsn, [], 0)
    telling.published(SLOT, 12, 12, [], 0)
    telling.published(SLOT, 13, 13, [message(1)], 0)
    assert [(event.first_lsn, event.last_lsn) for event in handled] == [(1, 11), (12, 13)]
    assert known.diffusion.taken_lsn == 13


def test_the_cursor_is_a_note_to_the_slot_itself() -> None:
    shard = FakeShard(*range(SLOTS))
    telling = began(shard)
    telling.published(SLOT, 1, 1, [message(1)], 0)
    telling.flush()
    telling.answered([(note.token[1], 0, 1, 1, 0, 0) for note in shard.notes], 0)
    shard.notes.clear()
    while not shard.notes:
        due = telling.next_ms()
        assert due is not None
        telling.tick(due)
        telling.flush()
    (note,) = shard.notes
    assert (note.session, note.body) == (slot_session(SLOT), cursor_note("notes", 1))
    telling.answered([(note.token[1], SlotMoving.code, 0, 0, 0, 0)], due)


def test_a_refusal_is_an_alarm_and_not_one_for_each_try(caplog: pytest.LogCaptureFixture) -> None:
    shard = FakeShard(*range(SLOTS))
    telling = began(shard)
    telling.published(SLOT, 1, 1, [message(1)], 0)
    telling.flush()
    with caplog.at_level(logging.WARNING):
        for note in shard.notes:
            telling.answered([(note.token[1], OutOfOrder.code, 0, 0, 0, 0)], 0)
    assert telling.status(0)["notes_refused"] == 2
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert telling.status(0)["notes_waiting"] == 2


def test_notes_that_wait_too_long_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    telling = began(FakeShard(SLOT))
    telling.published(SLOT, 1, 1, [message(1)], 0)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            due = telling.next_ms()
            assert due is not None
            telling.tick(due)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert telling.status(due)["notes_delay_ms"] >= module.DELAY_WARN_MS


@pytest.mark.parametrize(
    ("event", "is_heard"),
    [
        (message(1), True),
        (message(1, "team"), False),
        (message(1, "notice:system/bob"), False),
        (message(1, "group:climbers"), False),
        (Event("user:bob", 1, KEY, EventKind.MAILBOX, "bob/a", 1, pack_request("x")), True),
        (Event("group:g", 1, KEY, EventKind.GROUP, "bob/a", 1, pack_request("x")), True),
        (Event("slot:1", 1, KEY, EventKind.NOTE, SERVER, 1, pack_request("x")), False),
    ],
)
def test_what_others_may_have_to_hear_of(event: Event, is_heard: bool) -> None:
    record = make_record(0, 1, 1, [encode_event(event)])
    assert list(heard_events(record.payload)) == [event] * is_heard
    assert bool(heard(event.session)) >= is_heard


def test_nobody_hears_of_open_sessions() -> None:
    assert [heard(s) for s in ("team", "slot:1")] == [Heard.NOBODY] * 2
    assert heard("batch:x") is Heard.CHANGES
