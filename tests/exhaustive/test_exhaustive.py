"""Small bounds of the exhaustive check; ``python -m tests.exhaustive`` explores the large ones."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.exhaustive.bounds import Bounds
from tests.exhaustive.configs import QUICK
from tests.exhaustive.missing import CASES
from tests.exhaustive.search import Search

STATES_MIN = {
    "quick-takeover": 2_000,
    "quick-view-store": 2_000,
    "quick-late-acks": 200,
    "quick-live-owner": 800,
    "quick-forgetting": 800,
}
"""Fewer would mean that the explorer does not look any more."""

SLOW = ("quick-takeover", "quick-view-store", "quick-late-acks", "quick-live-owner")
QUICK_CASES = (
    "promise-in-memory",
    pytest.param("measure-before-promising", marks=pytest.mark.slow),
    pytest.param("no-epoch-start", marks=pytest.mark.slow),
)


def _param(bounds: Bounds) -> Any:
    marks = [pytest.mark.slow] if bounds.name in SLOW else []
    return pytest.param(bounds, id=bounds.name, marks=marks)


@pytest.mark.parametrize("bounds", [_param(bounds) for bounds in QUICK])
def test_the_rules_hold_in_every_state(bounds: Bounds) -> None:
    outcome = Search(bounds).run()
    replay = f"python -m tests.exhaustive --config {bounds.name}"
    assert outcome.broken is None, f"replay: {replay}\n{outcome.broken}"
    assert outcome.complete
    assert outcome.states > STATES_MIN[bounds.name]


@pytest.mark.parametrize("name", QUICK_CASES)
def test_a_missing_rule_is_noticed(name: str) -> None:
    assert name in {case.name for case in CASES}
    words = [sys.executable, "-m", "tests.exhaustive", "--missing", name]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the shortest way to it" in done.stdout
