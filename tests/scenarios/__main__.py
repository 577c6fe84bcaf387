"""``python -m tests.scenarios [--rewrite] [NAME …]``: compare, or write down what is told."""

from __future__ import annotations

import argparse
import sys

from tests.scenarios.runner import difference, files, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios", description=__doc__)
    parser.add_argument("--rewrite", action="store_true", help="to be reviewed as a diff")
    parser.add_argument("names", nargs="*", help="scenarios (all by default)")
    args = parser.parse_args()
    chosen = [path for path in files() if not args.names or path.stem in args.names]
    differing = 0
    for path in chosen:
        if args.rewrite:
            path.write_text(run(path), encoding="utf-8")
            continue
        text = difference(path)
        differing += bool(text)
        print(text or f"{path.stem}: as written")
    return 1 if differing or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
