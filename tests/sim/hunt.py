"""``python -m tests.sim.hunt SEED [SEED ...]``: the first of these seeds that shows an anomaly.

Prints one JSON line: the seed, how many were tried, the anomaly's name and its first words. Run
under ``tests.sim.mutation`` it says whether a mutant is noticed; without it, that the same seeds
pass when no rule is missing.
"""

from __future__ import annotations

import argparse
import json
import traceback
from pathlib import Path
from typing import Any

from im_actors.errors import CorruptData, InvariantBroken
from tests.sim.world import Anomaly, World

TEXT_MAX = 400


def name_of(error: BaseException) -> str | None:
    """The anomaly's name; None for an exception that only says that the code is broken."""
    text = str(error)
    match error:
        case InvariantBroken():
            return text.partition(":")[0] if text.startswith("I") else "invariant"
        case Anomaly():
            return text.partition(":")[0]
        case CorruptData():
            return "corrupt-log"
        case AssertionError() if text:
            return "assertion"
    return None


def run_one(seed: int, operations: int) -> BaseException | None:
    try:
        World(seed, operations).run()
    except Exception as error:
        return error
    return None


def hunt(seeds: list[int], operations: int) -> dict[str, Any]:
    for tried, seed in enumerate(seeds, start=1):
        error = run_one(seed, operations)
        if error is not None:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return {
                "seed": seed,
                "tried": tried,
                "anomaly": name_of(error),
                "text": f"{type(error).__name__}: {error}"[:TEXT_MAX],
                "at": f"{Path(frame.filename).name}:{frame.lineno}",
            }
    return {"seed": None, "tried": len(seeds), "anomaly": None, "text": "", "at": ""}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.hunt", description=__doc__)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--operations", type=int, required=True)
    args = parser.parse_args()
    print(json.dumps(hunt(args.seeds, args.operations)))


if __name__ == "__main__":
    main()
