"""What an owner is asked by its own shard: committed facts, and committed records."""

from __future__ import annotations

from typing import Any

import msgpack

from im_actors.core import owner as own
from im_actors.core.messages import Fetch, LoadFacts
from im_actors.core.owner import OwnerSettings
from tests.core.bench import SLOT, Bench
from tests.sim.registers import PREFIX, decide

S = f"{PREFIX}1"


def serving(**kwargs: Any) -> Bench:
    bench = Bench(decide=decide, **kwargs)
    bench.serve()
    return bench


def add(bench: Bench, n: int, key: str = "x", amount: int = 1) -> None:
    bench.submit(S, "a/1", n, body=msgpack.packb(["add", [key, amount, b"%d" % n]]))


def settle(bench: Bench, ms: int = 10) -> None:
    bench.deliver()
    bench.wait(ms)
    bench.deliver()


def hold(bench: Bench, kind: type) -> list[tuple[Any, Any]]:
    held = [entry for entry in bench.out if isinstance(entry[1], kind)]
    bench.out = [entry for entry in bench.out if entry not in held]
    return held


def ask(bench: Bench, *keys: str) -> None:
    bench.tell(own.FactsAsked("asker", S, keys))


def known(bench: Bench) -> list[dict[str, Any]]:
    """What was answered since the last call, with the values in place of the facts."""
    found = [effect for effect in bench.told if isinstance(effect, own.FactsKnown)]
    bench.told = [effect for effect in bench.told if not isinstance(effect, own.FactsKnown)]
    assert {effect.token for effect in found} <= {"asker"}
    return [
        {key: fact and msgpack.unpackb(fact.value) for key, fact in effect.facts.items()}
        for effect in found
    ]


def read(bench: Bench) -> list[tuple[int, list[int]]]:
    found = [effect for effect in bench.told if isinstance(effect, own.LogKnown)]
    bench.told = [effect for effect in bench.told if not isinstance(effect, own.LogKnown)]
    return [(effect.first_lsn, [record.lsn for record in effect.records]) for effect in found]


def published(bench: Bench) -> list[tuple[int, int, int]]:
    """(first lsn, last lsn, number of events)."""
    found = [effect for effect in bench.told if isinstance(effect, own.Published)]
    return [(effect.first_lsn, effect.last_lsn, len(effect.events)) for effect in found]


# -- facts -------------------------------------------------------------------------------------


def test_facts_that_are_known_are_told_at_once_and_absent_ones_too() -> None:
    bench = serving()
    add(bench, 1, "x", 3)
    settle(bench)
    ask(bench, "x", "sum")
    assert known(bench) == [{"x": 3, "sum": 3}]
    bench.replace_owner("shard.2")  # It knows "x" from the log's end, of "y" it has to read.
    ask(bench, "x", "y")
    assert known(bench) == []
    settle(bench)
    assert known(bench) == [{"x": 3, "y": None}]


def test_facts_of_a_session_that_nobody_has_touched_come_from_the_tables() -> None:
    bench = serving()
    ask(bench, "x")
    settle(bench)
    assert known(bench) == [{"x": None}]


def test_a_change_that_has_not_committed_is_not_told() -> None:
    bench = serving()
    add(bench, 1, "x", 3)
    settle(bench)
    bench.apply()
    add(bench, 2, "x", 4)
    appends = bench.out[:]
    bench.out = []
    ask(bench, "x")
    settle(bench)
    assert known(bench) == [{"x": 3}]
    bench.out = appends
    settle(bench)
    ask(bench, "x")
    assert known(bench) == [{"x": 7}]


def test_what_commits_while_the_tables_are_asked_is_newer_than_their_answer() -> None:
    bench = serving()
    ask(bench, "x", "y")
    (asked,) = hold(bench, LoadFacts)
    held = bench.replicas[asked[0].replica].ask(asked[1])
    add(bench, 1, "x", 3)
    settle(bench)
    for answer in held:
        bench.tell(own.ReplicaAnswered(asked[0], answer))
    assert known(bench) == [{"x": 3, "y": None}]


def test_tables_that_lag_behind_are_not_believed() -> None:
    bench = serving(settings=OwnerSettings(load_ms=100))
    add(bench, 1, "x", 3)
    settle(bench)
    bench.apply("r2")
    bench.replace_owner("shard.2")
    bench.owner._floor_lsn = 2  # As after a takeover that was too long to replay.
    bench.owner.serving.sessions.clear()
    ask(bench, "x")
    settle(bench, 1_000)
    assert known(bench) == [{"x": 3}]


def test_nobody_is_told_facts_before_the_slot_is_served() -> None:
    bench = Bench(decide=decide)
    ask(bench, "x")
    bench.serve()
    settle(bench)
    assert known(bench) == []


# -- the log -----------------------------------------------------------------------------------


def test_published_tells_the_records_of_its_events() -> None:
    bench = serving()
    add(bench, 1)
    settle(bench)
    bench.serve("again", force=True)
    add(bench, 2)
    add(bench, 3)
    settle(bench)
    # 1 and 3 are starts of epochs.
    assert published(bench) == [(2, 2, 1), (4, 4, 1), (5, 5, 1)]


def test_records_are_read_up_to_the_commit_point_and_not_beyond() -> None:
    bench = serving()
    for n in (1, 2, 3):
        add(bench, n)
        bench.deliver()
    assert bench.owner.untold  # The members need not know of the last commit yet.
    bench.tell(own.LogAsked(2, 9))
    bench.deliver()
    assert read(bench) == [(2, [2, 3, 4])]


def test_the_next_member_is_asked_when_one_stays_silent() -> None:
    bench = serving()
    add(bench, 1)
    settle(bench)
    bench.tell(own.LogAsked(1, 2))
    ((silent, _),) = hold(bench, Fetch)
    bench.tell(own.LogAsked(1, 2))
    ((other, request),) = hold(bench, Fetch)
    assert other != silent
    bench.carry(other, request)
    bench.carry(other, request)  # A second copy of the answer is nobody's.
    assert read(bench) == [(1, [1, 2])]


def test_damaged_records_are_not_given_on() -> None:
    bench = serving()
    add(bench, 1)
    settle(bench)
    bench.tell(own.LogAsked(1, 2))
    ((member, request),) = hold(bench, Fetch)
    (answer,) = bench.replicas[member.replica].ask(request)
    first, second = answer.records
    for wrong in ([second], [first, first], [first, second._replace(payload=b"x")]):
        bad = answer._replace(records=tuple(wrong))
        bench.tell(own.ReplicaAnswered(member, bad))
    assert read(bench) == []
    bench.tell(own.ReplicaAnswered(member, answer))
    assert read(bench) == [(1, [1, 2])]


def test_the_log_is_not_read_by_who_does_not_serve() -> None:
    bench = Bench(decide=decide)
    bench.tell(own.LogAsked(1, 1))
    assert hold(bench, Fetch) == []
    assert bench.owner.slot == SLOT
