"""``python -m tests.sim.hunt SEED [SEED ...]``: the first of these seeds that shows an anomaly.

Prints one JSON line: the seed, how many were tried, the anomaly's name and its first words. Run
under ``tests.sim.mutation`` it says whether a mutant is noticed; without it, that the same seeds
pass when no rule is missing.
"""

from __future__ import annotations

import argparse
import builtins
import json
from typing import Any

from tests.sim.runs import Problem, run_plan
from tests.sim.world import Plan

TEXT_MAX = 600


def name_of(problem: Problem) -> str | None:
    """The anomaly's name; None for an exception that only says that the code is broken."""
    if problem.kind == "AssertionError":
        # One that states a rule says it in words.
        stated = problem.text.partition("\n")[0].removeprefix("AssertionError: ")
        return "assertion" if stated else None
    if problem.kind.startswith("slot"):
        return "invariant"
    error = getattr(builtins, problem.kind, None)
    broken = isinstance(error, type) and issubclass(error, Exception)
    return None if broken else problem.kind


def hunt(plans: list[Plan]) -> dict[str, Any]:
    """The first plan that goes wrong, and how."""
    for tried, plan in enumerate(plans, start=1):
        problem = run_plan(plan).problem
        if problem is not None:
            text = problem.text if name_of(problem) else problem.text[-TEXT_MAX:]
            anomaly = name_of(problem)
            return {"seed": plan.seed, "tried": tried, "anomaly": anomaly, "text": text[:TEXT_MAX]}
    return {"seed": None, "tried": len(plans), "anomaly": None, "text": ""}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.hunt", description=__doc__)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--operations", type=int, required=True)
    parser.add_argument("--faults", metavar="LIST", help="exactly these kinds, with commas")
    args = parser.parse_args()
    faults = None if args.faults is None else tuple(filter(None, args.faults.split(",")))
    print(json.dumps(hunt([Plan(seed, args.operations, faults) for seed in args.seeds])))


if __name__ == "__main__":
    main()
