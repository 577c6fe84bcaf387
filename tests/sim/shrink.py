"""Makes a failing run smaller: fewer faults, operations, slots and clients, as long as it fails in
the same way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from tests.sim.runs import Outcome, run_plan
from tests.sim.world import Plan

SEEDS_TRIED = 3
"""A smaller run is another run: it may fail with the next seed when it does not with this one."""
SAFETY_MS_MIN = 1_000


def shrink(outcome: Outcome, seconds: float = 60.0) -> Outcome:
    """The smallest failing run that is found in the time given, with its trace."""
    assert outcome.problem is not None
    deadline = time.monotonic() + seconds
    best = outcome
    improved = True
    while improved and time.monotonic() < deadline:
        improved = False
        for candidate in _smaller(best):
            smaller = _fails_alike(candidate, outcome.problem.kind, deadline)
            if smaller is not None:
                best, improved = smaller, True
                break
    return run_plan(best.plan, traced=True)


def _fails_alike(plan: Plan, kind: str, deadline: float) -> Outcome | None:
    for seed in range(plan.seed, plan.seed + SEEDS_TRIED):
        if time.monotonic() > deadline:
            return None
        found = run_plan(replace(plan, seed=seed))
        if found.problem is not None and found.problem.kind == kind:
            return found
    return None


def _smaller(outcome: Outcome) -> Iterator[Plan]:
    """Smaller plans, those that save most first."""
    plan = outcome.plan
    injected = tuple(kind for kind in outcome.rates if kind in outcome.counts)
    kinds = injected if plan.faults is None else plan.faults
    if plan.faults is None or len(injected) < len(kinds):
        yield replace(plan, faults=injected)
    if outcome.ended_ms < plan.safety_ms * 0.8:
        yield replace(plan, safety_ms=max(SAFETY_MS_MIN, outcome.ended_ms))
    for part in (4, 2):
        if plan.operations >= 10 * part:
            yield replace(plan, operations=plan.operations // part)
    for size in (len(kinds) // 2, 1):
        for start in range(0, len(kinds), size or 1):
            if size:
                left = kinds[:start] + kinds[start + size :]
                yield replace(plan, faults=left)
    if plan.slots_max > 1:
        yield replace(plan, slots_max=1)
    if plan.clients_max > 1:
        yield replace(plan, clients_max=max(1, plan.clients_max // 2))
    if plan.safety_ms >= 2 * SAFETY_MS_MIN:
        yield replace(plan, safety_ms=plan.safety_ms // 2)
