"""``python -m tests.exhaustive``: every state of a small cluster of the real machines.

One slot, three members and a spare, two owners, up to three messages of one device. Explored are
all interleavings with crashes, and with messages that are lost, late, repeated and reordered,
within the bounds of each configuration (``tests.exhaustive.configs``). The machines are those of
``im_actors.core``, not a model of them; the rules are I1 to I9 of design 5.5 and P2, written anew
(``tests.exhaustive.rules``). When one breaks, the shortest way to it is printed, and the exit code
is 3; it is 1 when a search did not come to its end. ``--missing`` shows at which bound the removal
of some rules is noticed (``tests.exhaustive.missing``).
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.sim.mutation import FOUND

if TYPE_CHECKING:
    from tests.exhaustive.bounds import Bounds
    from tests.exhaustive.missing import Case
    from tests.exhaustive.search import Outcome

# A rule is taken out of the sources before they are imported, so imports of them come late here.

CHANGES = ("epochs", "records", "crashes", "store_faults", "replicas", "flights", "judge")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m tests.exhaustive",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--config", action="append", default=[], metavar="NAME", help="only this")
    found.add_argument("--quick", action="store_true", help="a bound that takes seconds")
    found.add_argument("--list", action="store_true", help="show the configurations and end")
    found.add_argument("--states-max", type=int, help="give up above so many states")
    found.add_argument("--seconds-max", type=float, help="give up after so many CPU seconds")
    for name in CHANGES:
        kind = str if name == "judge" else int
        option = f"--{name.replace('_', '-')}"
        choices = ("rules", "copies", "loss") if name == "judge" else None
        found.add_argument(
            option, type=kind, choices=choices, help="instead of the configuration's"
        )
    found.add_argument(
        "--missing", nargs="?", const="all", metavar="CASE", help="take rules out and look"
    )
    return found


def main() -> int:
    args = parser().parse_args()
    if args.missing == "all":
        return all_cases()
    if args.missing:
        return one_case(args.missing)
    return explore(args)


# -- configurations ----------------------------------------------------------------------------


def explore(args: argparse.Namespace) -> int:
    from tests.exhaustive.search import Search

    chosen = bounds_of(args)
    if args.list:
        for bounds in chosen:
            print(f"{bounds.name:18} {bounds.about}: {bound_words(bounds)}")
        return 0
    outcomes = []
    for bounds in chosen:
        outcomes.append(Search(bounds).run(args.states_max, args.seconds_max))
        report(outcomes[-1])
    states = sum(outcome.states for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    print(f"{states:,} states, {seconds:.0f} CPU seconds")
    failed = verdict(sum(map(passed, outcomes)), len(outcomes))
    return FOUND if any(outcome.broken for outcome in outcomes) else failed


def bounds_of(args: argparse.Namespace) -> list[Bounds]:
    from tests.exhaustive.configs import CONFIGS, QUICK, find

    chosen = [find(name) for name in args.config] or list(QUICK if args.quick else CONFIGS)
    changes = {name: getattr(args, name) for name in CHANGES if getattr(args, name) is not None}
    return [dataclasses.replace(bounds, **changes) for bounds in chosen]


def bound_words(bounds: Bounds) -> str:
    words = [
        f"{bounds.replicas} replicas",
        f"epochs to {bounds.epochs}",
        f"{bounds.records} messages",
        f"{bounds.crashes} crashes",
    ]
    if bounds.store_faults:
        words.append(f"{bounds.store_faults} faults of the view store")
    if bounds.steps:
        words.append(f"{bounds.steps} steps")
    if bounds.judge != "rules":
        words.append(f"judged by {bounds.judge}")
    return ", ".join(words)


def report(outcome: Outcome) -> None:
    bounds = outcome.bounds
    word = "BROKEN" if outcome.broken else "holds" if outcome.complete else "GAVE UP"
    print(
        f"{bounds.name:12} {word:7} {outcome.states:9,} states {outcome.steps:10,} steps"
        f"  depth {outcome.depth:2}  {outcome.ends:6,} ends {outcome.seconds:6.1f} s"
        f"   {bound_words(bounds)}",
        flush=True,
    )
    if outcome.broken:
        after = "".join(f"    {words}\n" for words in bounds.script)
        print(f"the shortest way to it:\n{after}{outcome.broken}", flush=True)


def passed(outcome: Outcome) -> bool:
    return outcome.complete and outcome.broken is None


def verdict(good: int, count: int) -> int:
    print(f"{good} passed, {count - good} failed")
    return 0 if good == count else 1


# -- missing rules -----------------------------------------------------------------------------


def all_cases() -> int:
    from tests.exhaustive.missing import CASES

    good = 0
    for case in CASES:
        words = [sys.executable, "-m", "tests.exhaustive", "--missing", case.name]
        good += subprocess.run(words, check=False).returncode == 0
    return verdict(good, len(CASES))


def one_case(name: str) -> int:
    """0 when it comes out as the case says."""
    from tests.exhaustive.missing import find
    from tests.sim.mutation import Mutant, install

    case = find(name)
    install(Mutant(case.name, "", case.edits))
    outcome = outcome_of(case)
    text = outcome.broken.text if outcome.broken else ""
    expected = text.startswith(case.broken) if case.broken else passed(outcome)
    print(f"without {case.name}: {'as expected' if expected else 'NOT AS EXPECTED'}")
    report(outcome)
    return 0 if expected else 1


def outcome_of(case: Case) -> Outcome:
    from tests.exhaustive.bounds import Bounds
    from tests.exhaustive.search import Search

    return Search(Bounds("missing", case.name, **case.bounds)).run()


if __name__ == "__main__":
    sys.exit(main())
