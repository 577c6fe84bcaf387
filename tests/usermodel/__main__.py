"""``python -m tests.usermodel``: random days against the model, or chat files with ``--replay``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.usermodel.replay import ReplayPlan, replay
from tests.usermodel.runs import Outcome, Plan, run


def main() -> int:
    options = _options()
    logging.disable(logging.WARNING)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    deadline = time.monotonic() + 60 * options.minutes if options.minutes else None
    runs, failed = 0, 0
    totals = Outcome()
    while runs == 0 or (deadline is not None and time.monotonic() < deadline):
        plan = _plan(options, seed)
        print(f"seed {seed}: {plan.command()}", file=sys.stderr, flush=True)
        outcome = _run(plan)
        totals = totals + outcome
        runs, failed = runs + 1, failed + bool(outcome.failure)
        print(f"  {outcome.summary()}", file=sys.stderr, flush=True)
        seed += 1
    if options.json:
        print(json.dumps({"runs": runs, "failed": failed, **totals.fields()}))
    return 1 if failed else 0


def _plan(options: argparse.Namespace, seed: int) -> Plan | ReplayPlan:
    if options.replay:
        return ReplayPlan(seed, tuple(options.replay), options.events, options.quiet or 400)
    faults = tuple(filter(None, options.faults.split(",")))
    return Plan(seed, options.steps, options.quiet or 60, options.users, options.devices, faults)


def _run(plan: Plan | ReplayPlan) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="usermodel-") as name:
        directory = Path(name)
        work = replay(plan, directory) if isinstance(plan, ReplayPlan) else run(plan, directory)
        outcome = asyncio.run(work)
    if outcome.failure:
        print("\n".join(outcome.story), file=sys.stderr)
        print(f"FAILED: {outcome.failure}\n{plan.command()}", file=sys.stderr, flush=True)
    return outcome


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.usermodel", description=__doc__)
    parser.add_argument("--steps", type=int, default=2_000, help="steps of a run")
    parser.add_argument("--seed", type=int, help="the (first) seed; default: a random one")
    parser.add_argument("--minutes", type=float, help="further seeds for so long")
    parser.add_argument("--quiet", type=int, help="steps between two quiet points")
    parser.add_argument("--users", type=int, default=5)
    parser.add_argument("--devices", type=int, default=2, help="of each user, to begin with")
    parser.add_argument("--faults", default="kill,kill,redis,warm,forget", metavar="LIST")
    parser.add_argument(
        "--replay", nargs="+", metavar="FILE", help="play chat files, by path or name"
    )
    parser.add_argument("--events", type=int, metavar="N", help="only the first N messages of each")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.exit(130)
