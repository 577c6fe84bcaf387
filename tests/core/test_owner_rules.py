"""An owner whose rules need something: it is read like everything else that an owner must know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from im_actors.core import owner as own
from im_actors.core import serving as module
from im_actors.core.facts import read_state
from im_actors.core.messages import EventFound, FactsLoaded, FindEvent, LoadFacts, ReplicaRequest
from im_actors.core.model import (
    DEVICE_WINDOW,
    Event,
    EventKind,
    Member,
    decode_event,
    record_events,
)
from im_actors.core.owner import OwnerSettings, Phase
from im_actors.core.rules import SERVER
from im_actors.core.serving import Send, ServingLimits
from im_actors.errors import NotFound, SlotMoving, TooLate
from tests.core.bench import SLOT, Bench
from tests.sim.registers import PREFIX, decide

S = f"{PREFIX}1"
X = ("x", "sum")


def serving(recent_bytes_max: int = 1, **kwargs: Any) -> Bench:
    """Old events come from the tables, unless ``recent_bytes_max`` says otherwise."""
    limits = ServingLimits(recent_bytes_max=recent_bytes_max)
    bench = Bench(decide=decide, limits=limits, **kwargs)
    bench.serve()
    return bench


def ask(bench: Bench, n: int, what: str, *args: Any, device: str = "a/1") -> None:
    body = msgpack.packb([what, [*args, b"%d" % n]])
    bench.submit(S, device, n, body=body)


def add(bench: Bench, n: int, key: str = "x", amount: int = 1) -> None:
    ask(bench, n, "add", key, amount)


def settle(bench: Bench, ms: int = 10) -> None:
    """Until everybody knows the commit point."""
    bench.deliver()
    bench.wait(ms)
    bench.deliver()


def hold(bench: Bench, kind: type) -> list[tuple[Member, Any]]:
    """Take messages of a kind out of the network."""
    held = [entry for entry in bench.out if isinstance(entry[1], kind)]
    bench.out = [entry for entry in bench.out if entry not in held]
    return held


def reads(name: str, kind: type = LoadFacts) -> Callable[[Member, ReplicaRequest], bool]:
    return lambda member, message: isinstance(message, kind) and member.replica == name


def codes(bench: Bench) -> list[tuple[int, int]]:
    return [(a.code, a.seq) for a in bench.answers()]


def events(bench: Bench) -> list[Event]:
    """The committed ones."""
    disk = bench.replicas["r1"].disk
    records = [disk.record(SLOT, lsn) for lsn in range(1, bench.owner.commit_lsn + 1)]
    payloads = [record.payload for record in records if record is not None]
    return [decode_event(data) for payload in payloads for data in record_events(payload)]


def sums(bench: Bench) -> list[int]:
    """The sum that each change says."""
    changes = [read_state(event.body) for event in events(bench) if event.kind == EventKind.GROUP]
    found = [{key: value for key, _, value in change.facts} for change in changes]
    return [msgpack.unpackb(facts["sum"]) for facts in found if facts.get("sum")]


def cold(bench: Bench, *names: str) -> Bench:
    """Three changes, in the tables of these replicas (of all), and an owner that knows nothing."""
    for n in (1, 2, 3):
        add(bench, n)
        settle(bench)
    bench.apply(*names)
    bench.replace_owner("shard.2")
    bench.answers()
    return bench


# -- facts -------------------------------------------------------------------------------------


def test_a_new_owner_reads_the_facts_that_a_change_needs() -> None:
    bench = cold(serving())
    add(bench, 4)
    add(bench, 5)
    settle(bench)
    assert codes(bench) == [(0, 4), (0, 5)]
    assert sums(bench) == [1, 2, 3, 4, 5]
    assert bench.owner._lookups == {}
    assert bench.owner._needed == {}


def test_facts_of_the_end_of_the_log_are_not_read() -> None:
    bench = serving()
    add(bench, 1)
    settle(bench)
    bench.replace_owner("shard.2")
    add(bench, 2)
    bench.deliver(lambda _, message: isinstance(message, LoadFacts))
    settle(bench)
    assert sums(bench) == [1, 2]


def test_facts_are_not_believed_of_tables_that_lag() -> None:
    bench = cold(serving(), "r1")
    add(bench, 4)
    bench.deliver(reads("r1"))
    assert codes(bench) == []
    bench.wait(2_000)
    bench.deliver(reads("r1"))
    assert codes(bench) == []  # The others have not applied what this owner did not replay.
    bench.apply()
    bench.wait(4_000)
    bench.deliver(reads("r1"))
    bench.wait(4_000)
    bench.deliver(reads("r1"))
    settle(bench)
    assert sums(bench) == [1, 2, 3, 4]


def test_a_member_that_does_not_answer_is_passed_over() -> None:
    bench = cold(serving())
    add(bench, 4)
    bench.deliver(lambda _, message: isinstance(message, LoadFacts))
    asked = []
    for _ in range(3):
        bench.wait(500)
        ((member, request),) = hold(bench, LoadFacts)
        asked.append(member)
    assert len(set(asked)) == 3
    bench.carry(member, request)
    settle(bench, 600)
    assert sums(bench) == [1, 2, 3, 4]


def test_while_no_complete_member_is_reached_the_session_waits_and_no_other() -> None:
    bench = cold(serving())
    for replica in bench.replicas.values():
        bench.tell(own.MemberUp(replica.member))
    add(bench, 4)
    bench.deliver(lambda _, message: isinstance(message, LoadFacts))
    for state in bench.owner.members.values():
        state.complete = False
    for replica in bench.replicas.values():
        replica.log.held = [[1, 0], [1, replica.log.held[0][1]]]
    bench.submit(S, "b/1", 1)
    bench.owner.serving.loaded(bench.replicas["r1"].disk.image("other"), 2, bench.now_ms)
    bench.submit("other", "b/1", 1)
    settle(bench, 5_000)
    assert [a.token for a in bench.answers()] == [("b/1", 1)]
    assert [event.session for event in events(bench)][-1] == "other"
    for replica in bench.replicas.values():
        replica.log.held = [[1, replica.log.held[1][1]]]
    for state in bench.owner.members.values():
        state.complete = True
    settle(bench, 600)
    settle(bench, 600)
    assert sorted(codes(bench)) == [(0, 4), (0, 5)]


def test_facts_that_arrive_out_of_time_are_asked_for_again() -> None:
    bench = cold(serving())
    add(bench, 4)
    bench.deliver(lambda _, message: isinstance(message, LoadFacts))
    bench.wait(500)
    ((member, request),) = hold(bench, LoadFacts)
    (answer,) = bench.replicas[member.replica].ask(request, bench.now_ms)
    assert isinstance(answer, FactsLoaded)
    bench.tell(own.ReplicaAnswered(member, answer._replace(epoch=answer.epoch - 1)))
    assert bench.owner.serving.waiting
    bench.serve("members change", force=True)  # What it waited for is asked in the new epoch.
    bench.tell(own.ReplicaAnswered(member, answer))
    assert bench.owner.serving.waiting
    settle(bench, 2_000)
    settle(bench)
    assert codes(bench) == [(0, 4)]
    assert sums(bench) == [1, 2, 3, 4]


def test_more_keys_than_fit_one_message_are_asked_for_in_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own, "FACT_KEYS_MAX", 2)
    bench = Bench(decide=lambda known, request: needs_many(known, request))
    bench.serve()
    bench.submit(S, "a/1", 1)
    bench.deliver(lambda _, message: isinstance(message, LoadFacts))
    bench.wait(500)
    held = hold(bench, LoadFacts)
    assert [request.keys for _, request in held] == [("a", "b"), ("c", "d"), ("e",)]
    for member, request in held:
        assert codes(bench) == []
        bench.carry(member, request)
    settle(bench)
    assert codes(bench) == [(0, 1)]


def needs_many(known: Any, request: Any) -> Any:
    missing = tuple(key for key in "abcde" if key not in known.facts)
    return module.Needs(missing) if missing else module.Accept(request.kind, request.body)


# -- events ------------------------------------------------------------------------------------


def test_an_old_event_is_looked_up() -> None:
    bench = cold(serving())
    ask(bench, 4, "recall", 2)
    settle(bench)
    assert codes(bench) == [(0, 4)]
    second, recall = events(bench)[1], events(bench)[3]
    (_, _, value) = read_state(recall.body).facts[0]
    assert msgpack.unpackb(value or b"") == [2, EventKind.GROUP, second.time_ms]


def test_an_event_that_the_tables_do_not_have_yet_is_asked_for_again_soon() -> None:
    bench = serving()
    add(bench, 1)
    settle(bench)
    ask(bench, 2, "recall", 1)
    settle(bench)
    assert codes(bench) == [(0, 1)]  # Committed, and nowhere in history: that is not absent.
    bench.apply()
    settle(bench, own.FIND_AGAIN_MS)
    settle(bench, 500)
    assert codes(bench) == [(0, 2)]


def test_a_recall_right_after_its_message_waits_for_no_table() -> None:
    bench = serving(recent_bytes_max=10_000)
    add(bench, 1)
    settle(bench)
    ask(bench, 2, "recall", 1)
    settle(bench)
    assert codes(bench) == [(0, 1), (0, 2)]


def test_a_new_owner_knows_the_events_at_the_end_of_the_log() -> None:
    bench = serving(recent_bytes_max=10_000)
    add(bench, 1)
    settle(bench)
    bench.owner = bench.new_owner("shard.2")
    bench.know()
    bench.serve("the owner died")
    ask(bench, 2, "recall", 1)
    settle(bench)
    assert codes(bench)[-1] == (0, 2)


def test_an_event_that_no_table_has_is_not_there() -> None:
    bench = cold(serving())
    ask(bench, 4, "recall", 2)
    bench.deliver(lambda _, message: isinstance(message, FindEvent))
    bench.wait(500)
    ((member, request),) = hold(bench, FindEvent)
    absent = EventFound(SLOT, bench.owner.epoch, request.request, True, 0, 0, 0, "")
    bench.tell(own.ReplicaAnswered(member, absent))
    assert codes(bench) == [(NotFound.code, 0)]


def test_a_late_answer_to_the_first_question_does_not_pass_for_one_to_the_second() -> None:
    bench = serving()
    add(bench, 1)
    settle(bench)
    ask(bench, 2, "recall", 1)
    held = []
    for _ in range(2):
        held += hold(bench, FindEvent)
        bench.wait(500)
    bench.answers()
    for member, request in held:
        absent = EventFound(SLOT, bench.owner.epoch, request.request, True, 0, 0, 0, "")
        bench.tell(own.ReplicaAnswered(member, absent))
    assert codes(bench) == []
    bench.apply()
    settle(bench, 600)
    assert codes(bench) == [(0, 2)]


# -- the slot moves ----------------------------------------------------------------------------


def test_what_waits_for_facts_is_not_taken_by_an_owner_that_steps_down() -> None:
    bench = cold(serving())
    add(bench, 4)
    bench.submit(S, "b/1", 1)
    bench.deliver(lambda _, message: isinstance(message, LoadFacts))
    bench.tell(own.ViewSeen(bench.view._replace(epoch=9, owner="shard.9")))
    assert bench.owner.phase is Phase.IDLE
    assert codes(bench) == [(SlotMoving.code, 0)] * 2
    assert bench.owner._needed == {}
    assert bench.owner._lookups == {}


def test_a_live_owner_goes_on_with_what_it_knew_and_had_not_committed() -> None:
    bench = serving()
    add(bench, 1)
    settle(bench)
    add(bench, 2)
    add(bench, 3)
    bench.deliver(lambda member, _: member.replica == "r3")
    bench.serve("members change", force=True)
    settle(bench)
    add(bench, 4)
    settle(bench)
    assert sums(bench) == [1, 2, 3, 4]
    assert codes(bench) == [(0, 1), (0, 2), (0, 3), (0, 4)]


# -- notes -------------------------------------------------------------------------------------


def note(total: int) -> Send:
    body = msgpack.packb(["upto", [total]])
    return Send(("note", total), S, SERVER, 0, EventKind.NOTE, body)


def test_notes_are_answered_like_sends() -> None:
    bench = Bench(decide=decide)
    bench.tell(own.Noted([note(1)]))
    assert codes(bench) == [(SlotMoving.code, 0)]
    bench.serve()
    bench.tell(own.Noted([note(2), note(1)]))
    settle(bench)
    assert codes(bench) == [(0, 1), (0, 1)]
    assert [(e.device, e.n, e.kind) for e in events(bench)] == [(SERVER, 1, EventKind.NOTE)]


@pytest.mark.parametrize("changed", [{"device": "a/1"}, {"n": 1}])
def test_nobody_but_a_server_notes(changed: dict[str, Any]) -> None:
    bench = serving()
    with pytest.raises(AssertionError):
        bench.owner.handle(own.Noted([note(1)._replace(**changed)]), bench.now_ms)


def test_the_old_number_of_a_change_is_found_by_what_was_sent() -> None:
    bench = serving()
    add(bench, 1)
    settle(bench)
    bench.apply()
    for n in range(2, DEVICE_WINDOW + 9):
        bench.send(S, "a/1", n)
    settle(bench)
    bench.apply()
    bench.answers()
    add(bench, 1)
    settle(bench, 600)
    assert codes(bench) == [(0, 1)]


# -- forgetting --------------------------------------------------------------------------------


def test_facts_above_the_limit_are_forgotten_and_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FACTS_KNOWN_MAX", 3)
    bench = serving(settings=OwnerSettings(idle_session_ms=10**9))
    for n in range(1, 6):
        add(bench, n, f"x{n}", n)
        settle(bench)
    bench.apply("r1")
    bench.submit("other", "b/1", 1)  # It brings the news of what is applied at r1.
    settle(bench)
    assert bench.owner.serving.crowded == {S}
    assert bench.owner.deadline_ms() is not None
    bench.wait(own.FORGET_FACTS_MS)
    assert bench.owner.serving.crowded == set()
    bench.answers()
    add(bench, 6, "x1", 1)
    bench.deliver(reads("r1"))
    assert codes(bench) == []  # Only r1 has what was forgotten.
    bench.wait(3_000)
    bench.deliver()
    bench.wait(3_000)
    settle(bench)
    assert sums(bench) == [1, 3, 6, 10, 15, 16]
    ask(bench, 7, "take", "x1", 3)
    settle(bench)
    assert [code for code, _ in codes(bench)] == [0, TooLate.code]
