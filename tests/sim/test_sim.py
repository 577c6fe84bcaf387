"""A few seeds of the simulation in every test run; ``python -m tests.sim`` runs more."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from im_actors.core.model import View, ViewState
from tests.sim.__main__ import SEEDS_FOR_ALL_KINDS, Report, main, replay_command
from tests.sim.faults import KINDS
from tests.sim.mailboxes import STEPS
from tests.sim.replicas import HISTORY_MS
from tests.sim.runs import run_plan
from tests.sim.shrink import shrink
from tests.sim.world import Plan, World

OPERATIONS = 300
SEEDS = range(1, 15)
"""``--mutants`` finds anew, for each rule that once was a mend, the seeds that fail without it."""
DIGEST = """
from tests.sim.runs import run_plan
from tests.sim.world import Plan
outcome = run_plan(Plan(3, operations=100), traced=True)
print(len(outcome.trace), outcome.digest)
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_seed(seed: int) -> None:
    plan = Plan(seed, OPERATIONS)
    problem = run_plan(plan).problem
    assert problem is None, f"replay: {replay_command(plan)}\n{problem}"


def test_one_seed_is_one_run() -> None:
    """In another process, with other hashes, everything happens in the same way."""
    found = [_digest_with(hash_seed) for hash_seed in ("1", "2")]
    assert found[0] == found[1]
    assert int(found[0].split()[0]) > 1_000


def test_another_seed_is_another_run() -> None:
    plan = Plan(3, operations=20, safety_ms=1_000)
    digests = {run_plan(replace(plan, seed=seed), traced=True).digest for seed in (3, 4)}
    assert len(digests) == 2


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A run that fails, because one rule is broken."""
    monkeypatch.setattr("im_actors.core.owner.NEEDS_MAX", 0)
    plans = (Plan(seed, OPERATIONS) for seed in range(1, 60))
    return next(plan for plan in plans if run_plan(plan).problem is not None)


def test_a_failing_run_is_made_smaller(hasty: Plan) -> None:
    outcome = run_plan(hasty)
    assert outcome.problem is not None
    assert outcome.problem.kind == "alarm"
    assert outcome.story
    small = shrink(outcome, seconds=3)
    assert small.problem is not None
    assert small.trace
    assert small.plan.faults is None or set(small.plan.faults) <= set(outcome.counts)
    assert small.plan.operations <= hasty.operations
    again = run_plan(small.plan)
    assert again.problem == small.problem


def test_a_failure_is_told_with_the_command_that_replays_it(
    hasty: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.sim.__main__.shrink", lambda outcome: outcome)
    command = replay_command(hasty)
    monkeypatch.setattr("sys.argv", [*command.split()[2:], "--jobs", "1"])
    assert main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"replay: {command}" in lines
    assert f"failed: {command}" in lines[-3:]
    assert lines[-1] == "0 passed, 1 failed"


def test_a_kind_that_is_never_injected_fails_a_long_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcome = run_plan(Plan(1, operations=5, safety_ms=500))
    outcome.counts, outcome.met = dict.fromkeys(KINDS, 1), dict.fromkeys(STEPS, 1)
    report = Report(verbose=False, seeds=SEEDS_FOR_ALL_KINDS)
    for _ in range(SEEDS_FOR_ALL_KINDS):
        report.add(outcome)
    assert report.end(all_kinds=True) == 0
    del report.counts["torn_batch"], report.met["batch_recall"]
    assert report.end(all_kinds=True) == 1
    assert "never injected: torn_batch, batch_recall" in capsys.readouterr().out


def test_a_healed_replica_gets_through_what_its_slow_history_left() -> None:
    """Seed 878941698: half a minute of slow reads had filled its thread for more than three
    minutes, and it was called stuck."""
    world = World(Plan(1, operations=5, safety_ms=500), traced=False)
    replica = world.replicas["replica-1"]
    replica.start()
    world.faults.rates["slow_history"] = 1.0
    done: list[int] = []
    for number in range(300):
        replica._in_history(lambda number=number: done.append(number))
    world.faults.heal()
    replica.heal()
    healed_ms = world.clock.now_ms
    while len(done) < 300 and world.clock.now_ms < healed_ms + 300 * HISTORY_MS:
        world.clock.step()
    assert done == list(range(300))


def test_what_was_on_its_way_to_a_store_that_is_rolled_back_never_arrives() -> None:
    """Seed 657425286: late repeats of its last swaps made the store again what it had been."""
    world = World(Plan(1, operations=5, safety_ms=500), traced=False)
    old = View(0, 1, ViewState.ACTIVE, "shard-1.1", ())
    new = old._replace(epoch=2)
    world.faults.heal()
    world.store.views[0] = old
    answers: list[View | None] = []
    world.store.swap(old, new, answers.append)
    world.store.roll_back(old)
    world.store.read(0, answers.append)
    while len(answers) < 2:
        world.clock.step()
    assert set(answers) == {None, old}


def _digest_with(hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
