"""One run of the simulation, from a plan to what came of it."""

from __future__ import annotations

import gc
import hashlib
import re
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field

from im_actors.errors import InvariantBroken
from tests.sim.world import OPERATIONS, Failure, Key, Plan, World


@dataclass(frozen=True)
class Problem:
    """How a run failed. ``kind`` is what shrinking keeps."""

    kind: str
    text: str
    slot: int | None = None
    key: Key | None = None

    def __str__(self) -> str:
        return self.text


@dataclass
class Outcome:
    """What came of a run."""

    plan: Plan
    rates: dict[str, float]
    problem: Problem | None
    counts: dict[str, int]
    """Faults injected, by kind."""
    met: dict[str, int]
    takeovers: int
    ended_ms: int
    """In virtual time."""
    cpu_s: float
    story: list[str] = field(default_factory=list)
    """Of what the problem is about; only when there is one."""
    trace: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Equal for equal runs."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()


def run_plan(plan: Plan, traced: bool = False) -> Outcome:
    """Run it to its end or to the first problem."""
    # Nearly everything that a run makes it keeps to its end: looking for garbage in between finds
    # little, and costs a tenth of it.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _run(plan, traced)
    finally:
        if collects:
            gc.enable()


def _run(plan: Plan, traced: bool) -> Outcome:
    started = time.process_time()
    world = World(plan, traced)
    rates = dict(world.faults.rates)
    problem = None
    try:
        world.run()
    except Failure as failure:
        problem = Problem(failure.kind, str(failure), failure.slot, failure.key)
    except InvariantBroken as broken:
        problem = _broken(str(broken))
    except Exception as error:
        place = traceback.format_exc()
        problem = Problem(type(error).__name__, f"{type(error).__name__}: {error}\n{place}")
    outcome = Outcome(
        plan,
        rates,
        problem,
        world.faults.counts,
        world.seen_conditions,
        world.takeovers,
        int(world.clock.now_ms),
        time.process_time() - started,
    )
    if problem is not None:
        message = None if problem.key is None else (problem.key[0], problem.key[2])
        outcome.story = world.stories.about(problem.slot, message)
    outcome.trace = world.network.trace or []
    return outcome


def run_seed(
    seed: int, operations: int = OPERATIONS, faults: Iterable[str] | None = None
) -> Problem | None:
    """What goes wrong with a seed, None when all is well. It stops at the first problem."""
    only = None if faults is None else tuple(faults)
    return run_plan(Plan(seed, operations, only)).problem


def _broken(text: str) -> Problem:
    """The problem of an invariant, without the story that its error carries."""
    first = text.splitlines()[0]
    slot = re.search(r"slot (\d+)", first)
    return Problem(first.partition(":")[0], first, int(slot[1]) if slot else None)
