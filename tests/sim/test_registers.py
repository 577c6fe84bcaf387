"""What the simulation holds registers against sees what is wrong, and runs meet what is rare."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from im_actors.core.facts import pack_state
from im_actors.core.model import Event, EventKind, make_key
from tests.sim.__main__ import replay_command
from tests.sim.registers import PREFIX, Model, asked_for
from tests.sim.runs import run_plan
from tests.sim.world import Plan

ALICE = "alice/phone"
SEEDS = (1, 2)
RARE = ("rule_needs", "note_says_nothing", "refused_by_rule_112", "refused_by_rule_113", "void")


def change(seq: int, what: str, args: list[Any], *facts: tuple[str, int, Any]) -> Event:
    rows = [
        (key, rank, None if value is None else msgpack.packb(value)) for key, rank, value in facts
    ]
    body = pack_state(what, args, rows)
    key = make_key(1_700_000_000_000 + seq, 0, 0)
    return Event(f"{PREFIX}1", seq, key, EventKind.GROUP, ALICE, seq, body)


def add(seq: int, amount: int, new: int, total: int) -> Event:
    return change(seq, "add", ["c/1", amount, b""], ("c/1", new, new), ("sum", 0, total))


def take(seq: int, amount: int, new: int, total: int) -> Event:
    return change(
        seq, "take", ["c/1", amount, b""], ("c/1", new, new or None), ("sum", 0, total)
    )  # fmt: skip


def test_changes_that_follow_from_one_another_are_fine() -> None:
    model = Model()
    events = [add(1, 3, 3, 3), add(2, 1, 4, 4), take(3, 4, 0, 0), add(4, 2, 2, 2)]
    time_ms = events[1].time_ms
    recall = change(5, "recall", [2, b""], ("recalled/2", 0, [2, EventKind.GROUP, time_ms]))
    assert [model.take_in(event) for event in [*events, recall]] == [None] * 5
    assert [model.number("c/1", seq) for seq in range(6)] == [0, 3, 4, 0, 2, 2]
    assert model.facts["c/1"] == (4, 2, msgpack.packb(2))
    assert asked_for(events[0]) == msgpack.packb(["add", ["c/1", 3, b""]])


@pytest.mark.parametrize(
    "wrong",
    [
        add(2, 1, 1, 1),  # The one before it is lost.
        add(2, 1, 7, 7),  # It is taken in twice.
        add(2, 1, 4, 1),
        take(2, 4, 0, 0),
        change(2, "upto", [0], ("noted", 0, 0)),
        change(2, "recall", [2, b""], ("recalled/2", 0, [2, 4, 0])),
        change(2, "recall", [1, b""], ("recalled/1", 0, [1, 1, 0])),
    ],
)
def test_a_change_that_does_not_follow_is_seen(wrong: Event) -> None:
    model = Model()
    assert model.take_in(add(1, 3, 3, 3)) is None
    assert model.take_in(wrong) is not None


def test_who_may_recall_what() -> None:
    model = Model()
    model.take_in(add(1, 3, 3, 3))
    assert model.may_recall(ALICE, 1, 1)
    assert not model.may_recall(ALICE, 1, 0)  # Not there by then.
    assert not model.may_recall(ALICE, 2, 1)
    assert not model.may_recall("bob/phone", 1, 1)


def test_runs_meet_what_only_rules_meet() -> None:
    met: set[str] = set()
    for seed in SEEDS:
        plan = Plan(seed, operations=300)
        outcome = run_plan(plan)
        assert outcome.problem is None, f"replay: {replay_command(plan)}\n{outcome.problem}"
        met |= outcome.met.keys()
    assert met >= set(RARE), f"seeds {SEEDS} met only {sorted(met)}"
