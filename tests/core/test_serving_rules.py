"""Sends that rules decide on: what is taken, refused, waits, and what is known of it afterwards.

The rules are those of the simulation's registers: add, take (if there is so much), recall, upto.
"""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from im_actors.core import serving as module
from im_actors.core.facts import Fact, read_state
from im_actors.core.messages import LoadFacts, SessionImage
from im_actors.core.model import (
    Event,
    EventKind,
    Record,
    decode_event,
    record_events,
    record_index,
)
from im_actors.core.rules import SERVER, Accept, Decision, EventHead, Known, Needs, Refuse, Request
from im_actors.core.serving import Answer, Send, Serving, ServingLimits
from im_actors.errors import (
    BadRequest,
    Forbidden,
    InvariantBroken,
    KeyConflict,
    NotFound,
    OutOfOrder,
    Overloaded,
    SlotMoving,
    TooLate,
    Unknown,
)
from tests.sim.disks import Disk
from tests.sim.registers import NOTED, PREFIX, Model, decide

NOW_MS = 1_700_000_000_000
S = f"{PREFIX}1"


def ask(n: int, what: str, *args: Any, device: str = "a/1", session: str = S) -> Send:
    body = msgpack.packb([what, [*args, b"%d" % n]])
    return Send((device, n), session, device, n, 1, body)


def add(n: int, key: str = "x", amount: int = 5, device: str = "a/1") -> Send:
    return ask(n, "add", key, amount, device=device)


def take(n: int, key: str = "x", amount: int = 5, device: str = "a/1") -> Send:
    return ask(n, "take", key, amount, device=device)


def message(n: int, device: str = "a/1", session: str = S) -> Send:
    return Send((device, n), session, device, n, 1, b"%d" % n)


def note(total: int, token: Any = "note") -> Send:
    return Send(token, S, SERVER, 0, EventKind.NOTE, msgpack.packb(["upto", [total]]))


def serving(*known: str, rules: Any = decide, **limits: int) -> Serving:
    """A register that is loaded, of which there are no facts under the keys ``known``."""
    there = Serving(5, ServingLimits(**limits), rules)
    there.loaded(SessionImage(S, 0, ()), 1, NOW_MS)
    if known:
        there.facts_loaded(S, known, ())
    return there


def submit(there: Serving, *sends: Send) -> list[Answer]:
    answers = there.submit(list(sends), 1, NOW_MS)
    there.validate()
    return answers


def commit(there: Serving, lsn: int = 1) -> list[Answer]:
    there.cut_record(lsn, 1)
    answers, _ = there.commit(lsn, 1)
    there.validate()
    return answers


def codes(answers: list[Answer]) -> list[tuple[int, int]]:
    """(code, seq or expected n) of each answer."""
    return [(a.code, a.expected_n if a.code else a.seq) for a in answers]


def events_of(record: Record | None) -> list[Event]:
    assert record is not None
    return [decode_event(data) for data in record_events(record.payload)]


def facts_of(event: Event) -> dict[str, Any]:
    return {
        key: value if value is None else msgpack.unpackb(value)
        for key, _, value in read_state(event.body).facts
    }


# -- what is taken -----------------------------------------------------------------------------


def test_an_accepted_change_has_the_body_of_the_rule_and_the_checksum_of_what_was_sent() -> None:
    there = serving("x", "sum")
    assert submit(there, add(1), message(2), add(3, amount=2)) == []
    record = there.cut_record(1, 1)
    first, second, third = events_of(record)
    assert (first.kind, facts_of(first)) == (EventKind.GROUP, {"x": 5, "sum": 5})
    # Computed from the one before, which has not committed.
    assert facts_of(third) == {"x": 7, "sum": 7}
    assert (second.kind, second.body) == (EventKind.MESSAGE, b"2")
    assert record is not None
    assert record_index(record.payload).changes == [0, 2]
    assert codes(there.commit(1, 1)[0]) == [(0, 1), (0, 2), (0, 3)]
    assert codes(submit(there, add(1), add(3, amount=2))) == [(0, 1), (0, 3)]
    assert codes(submit(there, add(1, amount=9))) == [(KeyConflict.code, 4)]


def test_a_resend_is_answered_whatever_the_rights_are_now() -> None:
    there = serving("x", "sum")
    submit(there, add(1), take(2))
    commit(there)
    assert codes(submit(there, take(3))) == [(TooLate.code, 0)]
    assert codes(submit(there, take(2))) == [(0, 2)]


def test_a_refusal_does_not_use_up_the_number() -> None:
    there = serving("x", "sum")
    assert codes(submit(there, take(1))) == [(TooLate.code, 0)]
    assert codes(submit(there, message(2))) == [(OutOfOrder.code, 1)]
    assert submit(there, Send("void", S, "a/1", 1, EventKind.VOID, b""), message(2)) == []
    assert codes(commit(there)) == [(0, 1), (0, 2)]


def test_a_late_copy_of_what_was_refused_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    there = serving("x", "sum")
    assert codes(submit(there, take(1))) == [(TooLate.code, 0)]
    submit(there, add(1, device="b/1"))
    commit(there)
    # By now there is enough; but its sender was told, and withdraws the number.
    (copy,) = submit(there, take(1))
    assert (copy.code, copy.hint) == (TooLate.code, 0)
    assert submit(there, take(1, amount=4)) == []  # Another send.
    commit(there, 2)
    monkeypatch.setattr(module, "REFUSALS_MAX", 2)
    for device in ("c/1", "d/1", "e/1"):
        submit(there, take(1, device=device))
    assert [device for _, device in there.refused] == ["d/1", "e/1"]


def test_a_rule_may_raise_its_refusal() -> None:
    def rules(known: Known, request: Request) -> Decision:
        raise BadRequest("no")

    assert codes(submit(serving(rules=rules), message(1))) == [(BadRequest.code, 0)]


def test_a_refusal_says_why_and_not_at_any_length() -> None:
    def rules(known: Known, request: Request) -> Decision:
        return Refuse(Forbidden("é" * 300))

    (answer,) = submit(serving(rules=rules), message(1))
    assert (answer.hint, answer.expected_n) == ("é" * 100, 0)


def test_the_reason_waits_with_the_refusal() -> None:
    there = serving("x", "sum")
    submit(there, add(1, amount=3), take(2, amount=4))
    assert [answer.hint for answer in commit(there)][1] == "x is 3"


def test_a_withdrawn_number_is_nobody_elses_affair() -> None:
    def nobody(known: Known, request: Request) -> Decision:
        return Refuse(Forbidden("nobody"))

    there = serving(rules=nobody)
    assert submit(there, Send("void", S, "a/1", 1, EventKind.VOID, b"")) == []
    assert codes(commit(there)) == [(0, 1)]


def test_rules_are_not_asked_about_messages_to_everybody() -> None:
    asked: list[str] = []

    def rules(known: Known, request: Request) -> Decision:
        asked.append(known.session)
        return Accept(EventKind.MESSAGE, request.body)

    there = Serving(5, ServingLimits(), rules)
    for name in ("team", "direct:a/b"):
        there.loaded(SessionImage(name, 0, ()), 1, NOW_MS)
        there.submit([message(1, session=name)], 1, NOW_MS)
    assert asked == ["direct:a/b"]
    there.submit([message(2, session="team")._replace(kind=EventKind.RECALL)], 1, NOW_MS)
    assert asked == ["direct:a/b", "team"]


def test_where_there_are_no_rules_only_messages_are_taken() -> None:
    there = Serving(5, ServingLimits())
    there.loaded(SessionImage(S, 0, ()), 1, NOW_MS)
    recall = message(2)._replace(kind=EventKind.RECALL)
    assert submit(there, message(1), recall) == []
    assert codes(commit(there)) == [(0, 1), (Forbidden.code, 0)]


def test_no_room_is_said_before_a_rule_is_asked() -> None:
    there = serving(pending_events_max=1)
    assert codes(submit(there, message(1), take(2))) == [(Overloaded.code, 0)]
    assert there.needs == {}


# -- nothing that is not committed leaves ------------------------------------------------------


def test_a_refusal_is_told_when_what_it_rests_on_has_committed() -> None:
    there = serving("x", "sum")
    assert submit(there, add(1, amount=3), take(2, amount=4), message(1, "b/1")) == []
    assert codes(commit(there)) == [(0, 1), (0, 2), (TooLate.code, 0)]
    assert codes(submit(there, take(2, amount=4))) == [(TooLate.code, 0)]


def test_when_the_slot_is_lost_nobody_knows_what_would_have_been_refused() -> None:
    there = serving("x", "sum")
    submit(there, add(1, amount=3), take(2, amount=4))
    assert [a.code for a in there.abandon()] == [Unknown.code] * 2
    there.validate()


def test_decisions_that_wait_to_be_told_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POSTPONED_MAX", 2)
    there = serving("x", "sum")
    told = submit(there, add(1, amount=3), *(take(1, device=f"d/{i}") for i in range(4)))
    assert codes(told) == [(Overloaded.code, 0)] * 2
    assert codes(commit(there)) == [(0, 1), (TooLate.code, 0), (TooLate.code, 0)]
    submit(there, add(2, amount=3), take(1, amount=9, device="d/1"))
    assert codes(commit(there, 2)) == [(0, 2), (TooLate.code, 0)]


# -- notes -------------------------------------------------------------------------------------


def test_a_note_gets_the_next_number_of_the_servers() -> None:
    there = serving(NOTED)
    assert submit(there, note(3), message(1), note(5)) == []
    first, _, last = events_of(there.cut_record(1, 1))
    assert [(e.device, e.n, e.seq) for e in (first, last)] == [("*", 1, 1), ("*", 2, 3)]
    assert codes(there.commit(1, 1)[0]) == [(0, 1), (0, 2), (0, 3)]


def test_a_note_that_says_nothing_new_holds_when_what_came_before_it_has_committed() -> None:
    there = serving(NOTED)
    submit(there, note(3))
    assert submit(there, note(2, "again")) == []
    told = commit(there)
    assert [(a.token, a.code, a.seq) for a in told] == [("note", 0, 1), ("again", 0, 1)]
    assert [(a.code, a.seq) for a in submit(there, note(1))] == [(0, 1)]
    assert there.pending == {}


def test_a_note_of_an_open_session_is_numbered_too() -> None:
    there = Serving(5, ServingLimits())
    there.loaded(SessionImage("team", 0, ()), 1, NOW_MS)
    there.submit([Send("note", "team", SERVER, 0, EventKind.MESSAGE, b"hello")], 1, NOW_MS)
    (event,) = events_of(there.cut_record(1, 1))
    assert (event.device, event.n, event.body) == (SERVER, 1, b"hello")


# -- what has to be known first ----------------------------------------------------------------


def test_everything_waits_in_order_behind_what_needs_something() -> None:
    there = serving()
    assert submit(there, message(1), take(2), message(3), message(1, "b/1")) == []
    assert [event.seq for event in there.open] == [1]
    assert there.needs == {S: Needs(("x",))}
    assert submit(there, message(4)) == []
    assert there.waiting_events == 4
    there.facts_loaded(S, ("x",), (Fact("x", 1, 0, msgpack.packb(10)),))
    there.needs.clear()
    assert there.decide_again(S, 1, NOW_MS) == []
    assert there.needs == {S: Needs(("sum",))}  # It needs more: still nothing passes.
    there.validate()
    there.facts_loaded(S, ("sum",), ())
    there.decide_again(S, 1, NOW_MS)
    there.validate()
    events = events_of(there.cut_record(1, 1))
    assert [(e.device, e.n) for e in events] == [
        *(("a/1", 1), ("a/1", 2), ("a/1", 3), ("b/1", 1), ("a/1", 4))
    ]
    assert facts_of(events[1]) == {"x": 5, "sum": -5}
    assert there.waiting_events == 0
    assert submit(there, add(5)) == []  # Known by now.
    assert len(there.open) == 1


def test_what_waits_is_bounded_and_told_when_the_slot_is_lost() -> None:
    there = serving(pending_events_max=3)
    assert codes(submit(there, *(add(n) for n in range(1, 6)))) == [(Overloaded.code, 0)] * 2
    assert [a.code for a in there.abandon()] == [SlotMoving.code] * 3
    assert (there.waiting_events, there.pending_bytes, there.needs) == (0, 0, {})


def test_a_rule_that_asks_for_what_it_has_is_a_defect() -> None:
    there = serving("x", rules=lambda known, request: Needs(("x",)))
    with pytest.raises(AssertionError, match="asks again"):
        submit(there, message(1))


def test_heads_of_uncommitted_events_and_of_events_to_come_are_known_here() -> None:
    there = serving("x", "sum")
    submit(there, add(1))
    assert submit(there, ask(2, "recall", 1), ask(3, "recall", 3)) == []
    first, second = events_of(there.cut_record(1, 1))
    head = [1, EventKind.GROUP, first.time_ms]
    assert facts_of(second) == {"recalled/1": head}
    assert codes(there.commit(1, 1)[0]) == [(0, 1), (0, 2), (NotFound.code, 0)]


def test_the_head_of_a_committed_event_is_asked_for() -> None:
    there = serving("x", "sum", recent_bytes_max=1)
    submit(there, add(1))
    commit(there)
    assert submit(there, ask(2, "recall", 1)) == []
    assert there.needs == {S: Needs((), (1,))}
    there.event_found(S, 1, EventHead(1, EventKind.GROUP, "a/1", 77))
    there.decide_again(S, 1, NOW_MS)
    (event,) = events_of(there.cut_record(2, 1))
    assert facts_of(event) == {"recalled/1": [1, EventKind.GROUP, 77]}
    # What was looked up for one send is not kept.
    assert there.sessions[S].know().events == {}


def test_an_event_to_come_is_not_taken_for_absent_later() -> None:
    there = serving("x", "sum")
    assert codes(submit(there, ask(1, "recall", 1))) == [(NotFound.code, 0)]
    assert submit(there, add(1), ask(2, "recall", 1)) == []
    assert codes(commit(there)) == [(0, 1), (0, 2)]


# -- takeovers and forgetting ------------------------------------------------------------------


def test_a_new_owner_takes_facts_from_the_end_of_the_log() -> None:
    there = serving("x", "sum")
    submit(there, add(1), take(2))
    record = there.cut_record(1, 1)
    assert record is not None
    new = Serving(5, ServingLimits(), decide)
    new.replay([record])
    assert submit(new, add(3)) == []
    new.loaded(SessionImage(S, 0, ()), 2, NOW_MS)
    (event,) = events_of(new.cut_record(2, 2))
    # "x" was gone, and known to be: nothing had to be loaded.
    assert facts_of(event) == {"x": 5, "sum": 5}


def test_what_the_kept_log_lacks_is_a_change_in_its_new_record_too() -> None:
    there = serving("x", "sum")
    submit(there, message(1), add(2))
    there.cut_record(1, 1)
    there.keep(lambda lsn: 1, 0)
    there.validate()
    record = there.cut_record(2, 2)
    assert record is not None
    assert record_index(record.payload).changes == [1]
    submit(there, add(3))
    assert facts_of(events_of_open(there)[0]) == {"x": 10, "sum": 10}


def events_of_open(there: Serving) -> list[Event]:
    return [decode_event(event.data) for event in there.open]


def crowd(there: Serving) -> None:
    submit(there, *(add(n, f"x{n}", n) for n in range(1, 6)))
    commit(there, 3)


def test_a_crowded_session_forgets_what_the_tables_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FACTS_KNOWN_MAX", 4)
    there = serving("sum", *(f"x{n}" for n in range(1, 6)))
    crowd(there)
    assert there.crowded == {S}
    assert there.forget_facts(applied_lsn=2) == 0
    assert len(there.sessions[S].know()) == 6
    assert there.forget_facts(applied_lsn=3) == 3
    assert len(there.sessions[S].know()) == 0
    assert there.crowded == set()
    assert submit(there, add(6, "x1")) == []
    assert there.needs == {S: Needs(("x1", "sum"))}


def test_facts_of_a_session_that_waits_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FACTS_KNOWN_MAX", 4)
    there = serving("sum", *(f"x{n}" for n in range(1, 6)))
    crowd(there)
    submit(there, add(6, "other"))
    assert there.forget_facts(applied_lsn=3) == 0
    there.facts_loaded(S, ("other",), ())
    there.decide_again(S, 1, NOW_MS)
    assert [facts_of(event)["sum"] for event in events_of_open(there)] == [20]


def test_facts_go_with_their_session() -> None:
    there = serving("x", "sum", sessions_max=1)
    there.loaded(SessionImage("other", 0, ()), 1, NOW_MS)
    submit(there, add(1))
    commit(there, 4)
    there.sessions["other"].used_ms = NOW_MS + 2
    assert there.evict(NOW_MS + 1, applied_lsn=3) == 0
    assert S in there.sessions
    assert there.evict(NOW_MS + 1, applied_lsn=4) == 4
    there.crowded.add(S)
    assert there.forget_facts(9) == 0
    assert (S in there.sessions, there.crowded) == (False, set())


# -- its own check -----------------------------------------------------------------------------


def test_the_check_notices_changes_that_no_index_will_name() -> None:
    there = serving("x", "sum")
    submit(there, add(1))
    there.changes_open = 0
    with pytest.raises(InvariantBroken, match="1 changes"):
        there.validate()


def test_the_check_notices_an_outcome_that_nobody_will_tell() -> None:
    there = serving("x", "sum")
    submit(there, add(1), take(2, amount=9))
    there.postponed[S, 7] = there.postponed.pop((S, 1))
    with pytest.raises(InvariantBroken, match="tell"):
        there.validate()


def test_the_check_notices_a_send_that_passes_those_before_it() -> None:
    there = serving()
    submit(there, add(1))
    there.sessions[S].ready = True
    with pytest.raises(InvariantBroken, match="out of turn"):
        there.validate()


# -- against a model ---------------------------------------------------------------------------


class Desk:
    """An owner's memory, tables that lag behind it, and a model of what was committed."""

    def __init__(self) -> None:
        self.refused: dict[bytes, list[int]] = {}
        self.there = Serving(5, ServingLimits(sessions_max=1, records_in_flight_max=2), self.rules)
        self.there.loaded(SessionImage("other", 0, ()), 1, NOW_MS)
        self.tables = Disk("tables")
        self.model = Model()
        self.log: list[Record] = []
        self.committed_lsn = self.applied_lsn = self.floor_lsn = 0
        self.sent: dict[str, list[Send]] = {"a/1": [], "b/1": []}
        """By n - 1: the message, or the VOID that took its place."""
        self.acked: dict[tuple[str, int], int] = {}
        self.seqs: dict[tuple[str, int], int] = {}

    def rules(self, known: Known, request: Request) -> Decision:
        decision = decide(known, request)
        if isinstance(decision, Refuse):
            self.refused.setdefault(request.body, []).append(known.last_seq)
        return decision

    def new(self, device: str, what: str, key: str, amount: int) -> None:
        n = len(self.sent[device]) + 1
        args = (amount,) if what == "recall" else (key, amount)
        send = ask(n, what, *args, device=device)
        self.sent[device].append(send._replace(token=send))
        self.again(device, 0)

    def again(self, device: str, back: int) -> None:
        if back < len(self.sent[device]):
            self.answers(self.there.submit([self.sent[device][-1 - back]], 1, NOW_MS))

    def note(self, total: int) -> None:
        self.answers(self.there.submit([note(total, total)], 1, NOW_MS))

    def answers(self, answers: list[Answer]) -> None:
        for token, code, seq, *_ in answers:
            if type(token) is int:
                held = self.model.number(NOTED, len(self.model.events))
                assert code in (Unknown.code, SlotMoving.code) or held >= token
                continue
            device, n = token.device, token.n
            assert code != KeyConflict.code
            if code == 0:
                assert self.seqs[device, n] == self.acked.setdefault((device, n), seq) == seq
            elif code in (TooLate.code, NotFound.code):
                self.was_right(device, token.body)
                void = token._replace(kind=EventKind.VOID, body=b"", token=None)
                self.sent[device][n - 1] = void._replace(token=void)
        self.there.validate()

    def was_right(self, device: str, body: bytes) -> None:
        what, args = msgpack.unpackb(body)
        head = len(self.model.events)
        for last_seq in self.refused[body]:
            if what == "take":
                right = args[1] > self.model.number(args[0], last_seq)
            else:
                right = not self.model.may_recall(device, args[0], last_seq)
            if right and last_seq <= head:
                return
        raise AssertionError(f"{what} {args} of {device} was refused at {self.refused[body]}")

    def load(self) -> None:
        """Everything that waits for the tables is read from them, if they have come so far."""
        if self.applied_lsn < self.floor_lsn:
            return
        there = self.there
        for session in list(there.waiting):
            if session not in there.sessions or not there.sessions[session].loaded:
                self.answers(there.loaded(self.tables.image(session), 1, NOW_MS))
        needs, there.needs = there.needs, {}
        for session, (keys, seqs) in needs.items():
            request = LoadFacts(5, 1, 1, 0, session, keys)
            there.facts_loaded(session, keys, self.tables.facts_loaded(request).facts)
            for seq in seqs:
                row = self.tables.timelines.get(session, {}).get(seq)
                if row is None:
                    there.needs[session] = Needs(keys, seqs)
                    break
                event = row.event
                head = EventHead(seq, event.kind, event.device, event.time_ms)
                there.event_found(session, seq, head)
            else:
                self.answers(there.decide_again(session, 1, NOW_MS))

    def cut(self) -> None:
        record = self.there.cut_record(len(self.log) + 1, 1)
        if record is not None:
            self.log.append(record)

    def commit(self, count: int) -> None:
        lsn = min(len(self.log), self.committed_lsn + count)
        for record in self.log[self.committed_lsn : lsn]:
            for event in map(decode_event, record_events(record.payload)):
                assert self.model.take_in(event) is None
                self.seqs[event.device, event.n] = event.seq
        self.committed_lsn = lsn
        self.answers(self.there.commit(lsn, 1)[0])

    def apply(self, count: int) -> None:
        upto = min(self.committed_lsn, self.applied_lsn + count)
        self.tables.to_history(5, self.log[self.applied_lsn : upto])
        self.applied_lsn = upto

    def forget(self) -> None:
        floor = self.there.forget_facts(self.applied_lsn)
        self.floor_lsn = max(self.floor_lsn, floor)

    def evict(self) -> None:
        floor = self.there.evict(NOW_MS + 1, self.applied_lsn)
        self.floor_lsn = max(self.floor_lsn, floor)

    def settle(self) -> None:
        """Everybody sends what has no answer until it has one."""
        sends = [(device, n) for device, sent in self.sent.items() for n in range(1, len(sent) + 1)]
        for _ in range(3 * len(sends) + 9):
            for device, n in sends:
                if (device, n) not in self.acked:
                    self.again(device, len(self.sent[device]) - n)
            self.load()
            self.cut()
            self.commit(9)
            self.apply(9)
        assert sorted(self.acked) == sorted(sends)
        assert (self.there.waiting, self.there.pending) == ({}, {})
        facts = {key: tuple(fact[1:]) for key, fact in self.tables.facts.get(S, {}).items()}
        assert facts == self.model.facts

    def own_takeover(self, kept: int) -> None:
        """The owner goes on, with a log that lacks some of what was not committed."""
        keep = min(len(self.log), self.committed_lsn + kept)
        self.there.keep(lambda lsn: 1, keep)
        del self.log[keep:]
        self.there.validate()

    def new_owner(self, kept: int, floor: int) -> None:
        """Somebody else takes over, with a kept log and tables that have applied ``floor``."""
        self.answers(self.there.abandon())
        del self.log[self.committed_lsn + kept :]
        self.there = Serving(5, ServingLimits(sessions_max=1, records_in_flight_max=2), self.rules)
        self.commit(kept)
        self.floor_lsn = min(floor, self.applied_lsn)
        self.there.replay(self.log[self.floor_lsn :])
        if self.log:
            last = decode_event(record_events(self.log[-1].payload)[-1])
            self.there.last_key = last.key


devices = st.sampled_from(["a/1", "b/1"])
steps = st.one_of(
    st.tuples(st.just("new"), devices, st.sampled_from(["add", "take"]), st.sampled_from("xyz"),
              st.integers(1, 4)),
    st.tuples(st.just("new"), devices, st.just("recall"), st.just(""), st.integers(1, 9)),
    st.tuples(st.just("again"), devices, st.integers(0, 3)),
    st.tuples(st.just("note"), st.integers(1, 9)),
    st.tuples(st.just("load")),
    st.tuples(st.just("cut")),
    st.tuples(st.sampled_from(["commit", "apply"]), st.integers(1, 3)),
    st.tuples(st.sampled_from(["forget", "evict"])),
    st.tuples(st.just("own_takeover"), st.integers(0, 2)),
    st.tuples(st.just("new_owner"), st.integers(0, 2), st.integers(0, 20)),
)  # fmt: skip


@settings(max_examples=75, deadline=None)
@given(st.lists(steps, max_size=60), st.sampled_from([1, 3, 4_096]))
def test_whatever_happens_each_change_follows_from_those_before_it(
    story: list[tuple[Any, ...]], facts_known: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FACTS_KNOWN_MAX", facts_known)
        desk = Desk()
        for name, *arguments in story:
            getattr(desk, name)(*arguments)
        desk.settle()
