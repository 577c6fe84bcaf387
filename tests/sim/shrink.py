"""Makes a failing run smaller: fewer operations, faults, slots and clients, as long as it fails in
the same way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from tests.sim.faults import kind_of
from tests.sim.runs import Outcome, Problem, run_plan
from tests.sim.world import Plan

FIRST_SIZES = ((30, 4_000), (100, 8_000), (300, 15_000))
"""Operations and safety_ms of the short runs that are tried at first, with many seeds each: they
cost so little that most defects are met again soon."""
SEEDS_TRIED = 4
"""A smaller run is another run: it may fail with a later seed when it does not with this one."""
SAFETY_MS_MIN = 1_000
LIVENESS = frozenset(("liveness", "unseen", "forgotten", "unnoticed"))


def shrink(outcome: Outcome, seconds: float = 60.0) -> Outcome:
    """The smallest failing run that is found in the time given, with its trace."""
    assert outcome.problem is not None
    deadline = time.monotonic() + seconds
    best = _short_run(outcome, seconds / 6) or outcome
    improved = True
    while improved:
        improved = False
        for candidate in _smaller(best):
            seeds = range(candidate.seed, candidate.seed + SEEDS_TRIED)
            found = _fails_alike(candidate, seeds, outcome.problem, deadline)
            if found is not None:
                best, improved = found, True
                break
    return run_plan(best.plan, traced=True)


def _short_run(outcome: Outcome, slice_s: float) -> Outcome | None:
    """A short run with the same faults that fails alike."""
    assert outcome.problem is not None
    plan = replace(outcome.plan, faults=_injected(outcome))
    for operations, safety_ms in FIRST_SIZES:
        if operations < plan.operations:
            short = replace(plan, operations=operations, safety_ms=min(safety_ms, plan.safety_ms))
            deadline = time.monotonic() + slice_s
            found = _fails_alike(short, range(10**9), outcome.problem, deadline)
            if found is not None:
                return found
    return None


def _fails_alike(plan: Plan, seeds: range, problem: Problem, deadline: float) -> Outcome | None:
    for seed in seeds:
        if time.monotonic() > deadline:
            return None
        found = run_plan(replace(plan, seed=seed))
        if found.problem is not None and _family(found.problem) == _family(problem):
            return found
    return None


def _family(problem: Problem) -> str:
    """Which checker is the first to see a broken promise is a matter of moments; a run that does
    not come to rest, or an error in the code, is something else."""
    if problem.kind in LIVENESS:
        return "liveness"
    return problem.kind if problem.kind.endswith("Error") else "safety"


def _injected(outcome: Outcome) -> tuple[str, ...]:
    words = outcome.rates if outcome.plan.faults is None else outcome.plan.faults
    return tuple(word for word in words if kind_of(word) in outcome.counts)


def _smaller(outcome: Outcome) -> Iterator[Plan]:
    """Smaller plans, those that save most first."""
    plan, kinds = outcome.plan, _injected(outcome)
    if plan.faults is None or len(kinds) < len(plan.faults):
        yield replace(plan, faults=kinds)
    for size in dict.fromkeys((len(kinds) // 2, 2, 1)):
        for start in range(0, len(kinds) if size else 0, size or 1):
            yield replace(plan, faults=kinds[:start] + kinds[start + size :])
    if plan.slots_max > 1:
        yield replace(plan, slots_max=1)
    if plan.clients_max > 1:
        yield replace(plan, clients_max=plan.clients_max // 2)
    if plan.operations >= 10:
        yield replace(plan, operations=plan.operations // 2)
    if plan.safety_ms >= 2 * SAFETY_MS_MIN:
        yield replace(plan, safety_ms=plan.safety_ms // 2)
