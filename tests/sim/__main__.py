"""``python -m tests.sim``: run seeds of the simulation and say what broke.

``python -m tests.sim --mutants`` shows that it would notice a missing rule: see ``proving``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import get_context
from os import cpu_count

from tests.sim import proving
from tests.sim.faults import KINDS, kind_of
from tests.sim.mailboxes import STEPS
from tests.sim.runs import Outcome, run_plan
from tests.sim.shrink import shrink
from tests.sim.world import Plan

SEEDS_FOR_ALL_KINDS = 200
"""In a run of so many seeds every kind of fault must have been injected, and users must have done
all that they may do."""
PROGRESS_S = 10.0
TRACE_SHOWN = 80
FAILURE_CHARS_MAX = 300
"""Of a failure's first line, where all of them are listed at the end."""


def main() -> int:
    if "--mutants" in sys.argv:
        return proving.main([word for word in sys.argv[1:] if word != "--mutants"])
    options = _options()
    first = options.first
    if first is None:
        first = random.SystemRandom().randrange(10**9)
    only = None if options.faults is None else tuple(filter(None, options.faults.split(",")))
    if unknown := set(map(kind_of, only or ())) - set(KINDS):
        print(f"no such faults: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
        return 2
    plan = Plan(first, options.operations, only, options.slots, options.clients, options.safety_ms)
    ends_at = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    seeds = 10**9 if ends_at is not None and options.seeds is None else options.seeds or 50
    print(f"seeds from {first} on, {options.operations} sends each", flush=True)
    report = Report(options.verbose, seeds if ends_at is None else None)
    if options.trace:
        outcomes: Iterator[Outcome] = _traced(plan, seeds)
    else:
        outcomes = _run(plan, seeds, ends_at, options.jobs or cpu_count() or 1)
    for outcome in outcomes:
        report.add(outcome)
    return report.end(all_kinds=only is None)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, help="how many seeds (default 50)")
    parser.add_argument("--first", type=int, help="the first seed (default: a random one)")
    parser.add_argument("--minutes", type=float, help="run for so long")
    parser.add_argument("--operations", type=int, default=2_000, help="client sends per seed")
    parser.add_argument("--jobs", type=int, help="processes (default: one per core)")
    parser.add_argument("--faults", metavar="LIST", help="exactly these kinds, with commas")
    parser.add_argument("--trace", action="store_true", help="print every message that arrives")
    parser.add_argument("--verbose", action="store_true", help="a line per seed")
    parser.add_argument("--slots", type=int, default=Plan(0).slots_max, help="at most so many")
    parser.add_argument("--clients", type=int, default=Plan(0).clients_max, help="at most so many")
    parser.add_argument(
        "--safety-ms", type=int, default=Plan(0).safety_ms, help="virtual time with faults"
    )
    return parser.parse_args()


def _traced(plan: Plan, seeds: int) -> Iterator[Outcome]:
    for seed in range(plan.seed, plan.seed + seeds):
        outcome = run_plan(replace(plan, seed=seed), traced=True)
        print(f"seed {seed} {_rates(outcome)}")
        print("\n".join(outcome.trace))
        yield outcome


def _run(plan: Plan, seeds: int, ends_at: float | None, jobs: int) -> Iterator[Outcome]:
    """The outcomes as they come; at most a few more than are looked at are under way."""
    plans = (replace(plan, seed=seed) for seed in range(plan.seed, plan.seed + seeds))
    if jobs == 1:
        for one in plans:
            if ends_at is not None and time.monotonic() > ends_at:
                return
            yield run_plan(one)
        return
    # A process for each: it ends without freeing what a run leaves, which is a tenth of its time.
    context = get_context("forkserver")
    context.set_forkserver_preload([run_plan.__module__])
    with ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        waiting: set[Future[Outcome]] = set()
        while True:
            ended = ends_at is not None and time.monotonic() > ends_at
            while not ended and len(waiting) < 2 * jobs and (one_more := next(plans, None)):
                waiting.add(pool.submit(run_plan, one_more))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def replay_command(plan: Plan) -> str:
    """What runs exactly this plan again."""
    default = Plan(0)
    words = [f"python -m tests.sim --seeds 1 --first {plan.seed} --operations {plan.operations}"]
    if plan.faults is not None:
        words.append(f"--faults '{','.join(plan.faults)}'")
    for name, value, usual in (
        ("--slots", plan.slots_max, default.slots_max),
        ("--clients", plan.clients_max, default.clients_max),
        ("--safety-ms", plan.safety_ms, default.safety_ms),
    ):
        if value != usual:
            words.append(f"{name} {value}")
    return " ".join(words)


def _rates(outcome: Outcome) -> str:
    return json.dumps({kind: round(rate, 3) for kind, rate in outcome.rates.items()})


class Report:
    """Prints what comes, and counts."""

    def __init__(self, verbose: bool, seeds: int | None) -> None:
        self.verbose = verbose
        self.seeds = seeds
        self.passed = self.takeovers = 0
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self.cpu_s = 0.0
        self._told = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        self.counts.update(outcome.counts)
        self.met.update(outcome.met)
        self.takeovers += outcome.takeovers
        self.cpu_s += outcome.cpu_s
        if outcome.problem is None:
            self.passed += 1
        else:
            first_line = str(outcome.problem).partition("\n")[0][:FAILURE_CHARS_MAX]
            self.failures.append(f"{replay_command(outcome.plan)}\n  {first_line}")
            self._tell_failure(outcome)
        if self.verbose and outcome.problem is None:
            print(f"seed {outcome.plan.seed} passed {_rates(outcome)}", flush=True)
        elif time.monotonic() - self._told > PROGRESS_S:
            self._told = time.monotonic()
            of = "" if self.seeds is None else f" of {self.seeds}"
            failed = len(self.failures)
            print(f"{self.passed + failed}{of} seeds, {failed} failed", flush=True)

    def _tell_failure(self, outcome: Outcome) -> None:
        assert outcome.problem is not None
        print(f"\nseed {outcome.plan.seed} failed, rates {_rates(outcome)}")
        print(f"replay: {replay_command(outcome.plan)}")
        print(outcome.problem)
        print("story:", *outcome.story, sep="\n  ", flush=True)
        small = shrink(outcome)
        if small.problem is None:
            return
        print(f"the shortest that fails alike ends after {small.ended_ms} ms:")
        print(f"replay: {replay_command(small.plan)}")
        print(small.problem)
        print("story:", *small.story, sep="\n  ")
        data = [line for line in small.trace if "controller-" not in line]
        shown = data[-TRACE_SHOWN:]
        print(f"the last {len(shown)} of {len(data)} messages (all: --trace):")
        print(*shown, sep="\n", flush=True)

    def end(self, all_kinds: bool) -> int:
        seeds = self.passed + len(self.failures)
        speed = seeds / max(self.cpu_s, 0.001) * 60
        print(f"injected {json.dumps(dict(sorted(self.counts.items())))}")
        print(f"met {json.dumps(dict(sorted(self.met.items())))}")
        print(f"{self.takeovers} takeovers, {speed:.0f} seeds a minute of one core")
        never = [kind for kind in KINDS if not self.counts[kind]]
        never += [step for step in STEPS if not self.met[step]]
        if all_kinds and never and seeds >= SEEDS_FOR_ALL_KINDS:
            self.failures.append(f"never injected: {', '.join(never)}")
        # Once more at the end, which is what a reader of a long log sees first.
        for failure in self.failures:
            print(f"failed: {failure}")
        print(f"{self.passed} passed, {len(self.failures)} failed")
        return 1 if self.failures else 0


if __name__ == "__main__":
    sys.exit(main())
