"""A few seeds of the simulation in every test run; ``python -m tests.sim`` runs more."""

from __future__ import annotations

import pytest

from tests.sim.__main__ import run_seed

OPERATIONS = 300
REGRESSIONS = [
    24,  # a claim of an earlier attempt passed for knowledge of the counters: seqs given twice
    21,  # the same, with another session's message under the doubled seq
    13,  # a second Drop met a replica that had begun to delete
    98,  # an overtaken Need passed for lost records
    20604,  # a slot was applied while its deletion was under way
    1861,  # a member was dropped after its copy had counted
]


@pytest.mark.parametrize("seed", [*REGRESSIONS, *range(1, 13)])
def test_seed(seed: int) -> None:
    problem, _ = run_seed(seed, OPERATIONS)
    assert problem is None, f"replay: python -m tests.sim --seeds 1 --first {seed}\n{problem}"
