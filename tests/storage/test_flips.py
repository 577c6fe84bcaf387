"""One flipped bit in any file of a store is told or changes nothing."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.storage import fire, flips


@pytest.mark.parametrize(("kind", "count"), [("replica", 10), ("views", 60), ("client", 60)])
def test_a_flip_in_a_closed_store(kind: str, count: int, tmp_path: Path) -> None:
    program = fire.program(kind, tmp_path, 1, 90)
    subprocess.run([sys.executable, *program], stdout=subprocess.DEVNULL, check=True)
    judge(kind, tmp_path, count)


@pytest.mark.parametrize(("kind", "count"), [("replica", 4), ("views", 30), ("client", 30)])
def test_a_flip_in_the_logs_of_a_killed_store(kind: str, count: int, tmp_path: Path) -> None:
    fire.kills(kind, tmp_path, seed=2, rounds=1, steps_max=60)
    judge(kind, tmp_path, count, "-wal")


def judge(kind: str, root: Path, count: int, suffix: str = "") -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for flip in flips.flips(kind, root, Random(8), count, suffix):
        assert flip.outcome != "wrong", flip
        seen[flip.file, flip.outcome] += 1
    assert {file for file, _ in seen} == set(flips.files_of(root / "data", suffix))
    # The flips must have been where something is.
    assert sum(number for (_, outcome), number in seen.items() if outcome == "refused") > count / 2
