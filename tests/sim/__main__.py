"""``python -m tests.sim [--seeds N] [--first S] [--operations N]``: run seeds, print what broke.

``python -m tests.sim --mutants`` shows that it would notice a missing rule: see ``proving``.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import time
import traceback

from tests.sim import proving
from tests.sim.world import World


def run_seed(seed: int, operations: int) -> tuple[str | None, World | None]:
    world = None
    try:
        world = World(seed, operations)
        world.run()
    except Exception:
        return traceback.format_exc(), world
    return None, world


def main() -> int:
    if "--mutants" in sys.argv:
        return proving.main([word for word in sys.argv[1:] if word != "--mutants"])
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many seeds (default 50)")
    parser.add_argument("--first", type=int, help="the first seed (default: a random one)")
    parser.add_argument("--operations", type=int, default=400, help="client sends per seed")
    args = parser.parse_args()
    first = args.first if args.first is not None else random.SystemRandom().randrange(10**9)
    failed, takeovers = 0, 0
    counts, met = collections.Counter[str](), collections.Counter[str]()
    started = time.process_time()
    print(f"seeds {first} .. {first + args.seeds - 1}, {args.operations} sends each")
    for seed in range(first, first + args.seeds):
        problem, world = run_seed(seed, args.operations)
        if world is not None:
            counts.update(world.faults.counts)
            met.update(world.seen_conditions)
            takeovers += world.checker.takeovers
        if problem is not None:
            failed += 1
            print(f"\nseed {seed} failed\n{problem}")
            print(f"replay: python -m tests.sim --seeds 1 --first {seed}"
                  f" --operations {args.operations}")  # fmt: skip
    seconds = time.process_time() - started
    print(f"injected {json.dumps(dict(sorted(counts.items())))}")
    print(f"met {json.dumps(dict(sorted(met.items())))}")
    print(f"takeovers {takeovers}, {args.seeds / seconds * 60:.0f} seeds per CPU minute")
    print(f"{args.seeds - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
