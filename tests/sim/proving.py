"""``python -m tests.sim --mutants [NAME ...]``: every rule must be missed when it is taken out.

A mutant that nobody notices *survives*: its rule is untested or unneeded. Whatever notices a mutant
must find nothing without it, on the same seeds; otherwise the whole result is void.

Who notices is said by ``Mutant.by``: the simulation, on one seed after the other; the exhaustive
check, in one of its configurations; and for the shells that touch real files, which the two do
without, storage under fire, with one kind of store and of fire.
"""

from __future__ import annotations

import argparse
import builtins
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

from tests.sim.mutants import MUTANTS, find
from tests.sim.mutation import EXHAUSTIVE, FIRE, FOUND, SIMULATION, Mutant

OPERATIONS = 300
"""Client sends per seed."""
TIME_MAX_S = 240
"""A mutant that has not ended after this hangs, and a hang is not an anomaly."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutant."""

    name: str
    caught: bool
    by: str
    """The anomaly, and the seed or the check that showed it."""
    seeds: int
    """How many seeds that took."""
    within: int
    seed: int | None
    seconds: float
    text: str
    """The first words of the error."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a module of this tree in a process of its own."""
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=TIME_MAX_S, check=False
    )  # fmt: skip


def seeds_for(mutant: Mutant, first: int) -> list[int]:
    fresh = range(first, first + mutant.seeds)
    if mutant.known is None:
        return list(fresh)
    return [mutant.known, *(seed for seed in fresh if seed != mutant.known)][: mutant.seeds]


def judge(mutant: Mutant, first: int) -> Verdict:
    started = time.monotonic()
    hunter = hunted if mutant.by == SIMULATION else checked
    try:
        return hunter(mutant, first, started)
    except subprocess.TimeoutExpired:
        return verdict(mutant, False, "hangs", started)


def verdict(
    mutant: Mutant,
    caught: bool,
    by: str,
    started: float,
    text: str = "",
    seed: int | None = None,
    seeds: int = 0,
) -> Verdict:
    seconds = round(time.monotonic() - started, 1)
    return Verdict(mutant.name, caught, by, seeds, mutant.seeds, seed, seconds, text)


def hunt_words(faults: tuple[str, ...] | None, seeds: Iterable[int]) -> list[str]:
    only = [] if faults is None else ["--faults", ",".join(faults)]
    return ["--operations", str(OPERATIONS), *only, *map(str, seeds)]


def hunted(mutant: Mutant, first: int, started: float) -> Verdict:
    """Caught by the simulation, at the first seed that shows an anomaly."""
    words = hunt_words(mutant.faults, seeds_for(mutant, first))
    done = run(command("tests.sim.mutation", mutant.name, "tests.sim.hunt", *words))
    if done.returncode:
        return verdict(mutant, False, "does not run", started, done.stderr[-2_000:])
    found = json.loads(done.stdout.splitlines()[-1])
    seed, tried, text = found["seed"], found["tried"], found["text"]
    if seed is None:
        return verdict(mutant, False, "survived", started, seeds=tried)
    if found["anomaly"] is None:
        # A crash of the changed code says nothing about the rule.
        return verdict(mutant, False, "crashes", started, text, seed, tried)
    return verdict(mutant, True, found["anomaly"], started, text, seed, tried)


def checked(mutant: Mutant, _: int, started: float) -> Verdict:
    """Caught by a check that looks at the same things each time."""
    done = run(command("tests.sim.mutation", mutant.name, *check_words(mutant.by)))
    found = finding(mutant.by, done)
    if found is None:
        text = done.stdout[-400:] + done.stderr[-400:]
        return verdict(mutant, False, f"survived: {mutant.by}", started, text)
    return verdict(mutant, True, mutant.by, started, found)


def check_words(by: str) -> list[str]:
    """The module and its arguments."""
    checker, *words = by.split()
    if checker == EXHAUSTIVE:
        return ["tests.exhaustive", "--config", *words]
    assert checker == FIRE, by
    kind, part = words
    return ["tests.storage.fire", "--seeds", "1", "--kind", kind, "--part", part]


def finding(by: str, done: subprocess.CompletedProcess[str]) -> str | None:
    """What a check found; None when it found nothing, or nothing that says anything of a rule: the
    changed code broke down, or the check did."""
    if done.returncode != FOUND:
        return None
    *before, last = done.stdout.splitlines()
    text = before[-2].strip() if by.startswith(EXHAUSTIVE) else last
    error = getattr(builtins, text.partition(":")[0], None)
    broke_down = isinstance(error, type) and issubclass(error, Exception)
    return None if broke_down else text


def control(mutants: Iterable[Mutant], verdicts: list[Verdict], jobs: int) -> list[str]:
    """What the same seeds and checks find when no rule is missing; nothing, or all is void."""
    faults_of = {mutant.name: mutant.faults for mutant in mutants}
    seeds: dict[tuple[str, ...] | None, set[int]] = {}
    for found in verdicts:
        if found.caught and found.seed is not None:
            seeds.setdefault(faults_of[found.name], set()).add(found.seed)
    hunts = [hunt_words(faults, sorted(several)) for faults, several in seeds.items()]
    checks = sorted({mutant.by for mutant in mutants if mutant.by != SIMULATION})
    with ThreadPoolExecutor(jobs) as pool:
        problems = [*pool.map(_hunt_problem, hunts), *pool.map(_check_problem, checks)]
    return [problem for problem in problems if problem]


def _hunt_problem(words: list[str]) -> str:
    done = run(command("tests.sim.hunt", *words))
    result = json.loads(done.stdout.splitlines()[-1]) if not done.returncode else {"seed": "?"}
    return "" if result["seed"] is None else f"{' '.join(words)} fails without a mutant: {result}"


def _check_problem(by: str) -> str:
    return f"{by} fails without a mutant" if run(command(*check_words(by))).returncode else ""


def line_of(found: Verdict) -> str:
    after = f"seed {found.seed}, after {found.seeds} of {found.within}" if found.seed else ""
    mark = "caught  " if found.caught else "SURVIVED"
    return f"{mark} {found.name:32} {found.by:28} {after} ({found.seconds} s)"


def replay_of(found: Verdict) -> str:
    mutant = find(found.name)
    if mutant.by != SIMULATION:
        return f"python -m tests.sim.mutation {found.name} {' '.join(check_words(mutant.by))}"
    what = f"--seeds 1 --first {found.seed}" if found.seed is not None else "--seeds 100"
    only = "" if mutant.faults is None else f" --faults {','.join(mutant.faults)}"
    size = f"--operations {OPERATIONS}{only}"
    return f"python -m tests.sim.mutation {found.name} tests.sim {what} {size}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim --mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="these mutants (default: all)")
    parser.add_argument("--first", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="only those that begin within so long, in an order that is new each time",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args(arguments)
    mutants = [find(name) for name in args.names] or list(MUTANTS)
    if args.minutes < math.inf:
        random.shuffle(mutants)
    verdicts: list[Verdict] = []
    started = time.monotonic()
    ends = started + args.minutes * 60

    def in_time(mutant: Mutant) -> Verdict | None:
        return judge(mutant, args.first) if time.monotonic() < ends else None

    with ThreadPoolExecutor(args.jobs) as pool:
        judged = [pool.submit(in_time, mutant) for mutant in mutants]
        for done in as_completed(judged):
            found = done.result()
            if found is None:
                continue
            verdicts.append(found)
            if not args.json:
                print(line_of(found), flush=True)
                if not found.caught:
                    print(f"    {found.text}\n    replay: {replay_of(found)}", flush=True)
    tried = {found.name for found in verdicts}
    problems = control([m for m in mutants if m.name in tried], verdicts, args.jobs)
    untried = len(mutants) - len(tried)
    return report(verdicts, untried, problems, time.monotonic() - started, args.json)


def report(
    verdicts: list[Verdict], untried: int, problems: list[str], seconds: float, as_json: bool
) -> int:
    caught = sum(found.caught for found in verdicts)
    survived = len(verdicts) - caught
    summary: dict[str, Any] = {"caught": caught, "survived": survived, "void": problems}
    summary["untried"] = untried
    if as_json:
        mutants = [asdict(found) for found in verdicts]
        print(json.dumps({**summary, "seconds": round(seconds, 1), "mutants": mutants}))
    else:
        for problem in problems:
            print(f"VOID: {problem}")
        if untried:
            print(f"{untried} were not tried: there was no time")
        print(f"{seconds:.0f} s; the seeds above pass without a mutant" if not problems else "void")
        print(f"{caught} caught, {survived} survived")
    return 1 if survived or problems else 0
