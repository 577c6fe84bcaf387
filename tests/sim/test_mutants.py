"""Every mutant fits the sources of today, and the cheap ones are noticed at once."""

from __future__ import annotations

import subprocess
from random import Random

import pytest

from tests.exhaustive import configs
from tests.sim import proving
from tests.sim.faults import swarm
from tests.sim.hunt import name_of
from tests.sim.mutants import MUTANTS, find
from tests.sim.mutation import EXHAUSTIVE, FOUND, Edit, Mutant, SourceChanged, source_of
from tests.sim.runs import Problem

CHEAP = (
    "commit-at-two",
    pytest.param("seal-of-lower-epoch", marks=pytest.mark.slow),
    pytest.param("pending-duplicate-is-done", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_applies(mutant: Mutant) -> None:
    for module in mutant.modules:
        path = source_of(module)
        source = path.read_text()
        changed = mutant.apply(module, source)
        assert changed != source
        compile(changed, path, "exec")


def test_names_are_unique() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 20


@pytest.mark.parametrize("by", sorted({m.by for m in MUTANTS if m.by.startswith(EXHAUSTIVE)}))
def test_configurations_are_there(by: str) -> None:
    assert configs.find(by.split()[1])


def test_an_edit_that_does_not_fit_says_so() -> None:
    mutant = Mutant("gone", "a rule", (Edit("m", "x = 1\n", "x = 2\n"),))
    assert mutant.apply("m", "x = 1\ny = 1\n") == "x = 2\ny = 1\n"
    for source in ("", "x = 1\nx = 1\n"):
        with pytest.raises(SourceChanged, match="mend this mutant"):
            mutant.apply("m", source)


@pytest.mark.parametrize("name", CHEAP)
def test_cheap_ones_are_caught(name: str) -> None:
    found = proving.judge(find(name), first=1)
    assert found.caught, f"{found}\nreplay: {proving.replay_of(found)}"


def test_storage_under_fire_catches_a_shell() -> None:
    found = proving.judge(find("store-compares-the-epoch"), first=1)
    assert found.caught, f"{found}\nreplay: {proving.replay_of(found)}"


@pytest.mark.parametrize(
    ("code", "text", "caught"),
    [
        (FOUND, "I5: acked twice", True),
        (FOUND, "TypeError: not for None", False),
        (0, "", False),
        (1, "Traceback", False),
    ],
)
def test_only_what_a_check_says_is_a_finding(code: int, text: str, caught: bool) -> None:
    done = subprocess.CompletedProcess([], code, f"    {text}\n9 states\n0 passed, 1 failed\n", "")
    assert (proving.finding("exhaustive x", done) is not None) is caught


def test_a_rate_may_follow_a_kind_of_fault() -> None:
    rates = swarm(Random(1), ("drop=0.4", "delay"))
    assert rates == {"drop": 0.4, "delay": swarm(Random(1), ("delay",))["delay"]}


def test_a_crash_is_not_a_catch() -> None:
    assert name_of(Problem("I3", "I3: slot 0: cut below")) == "I3"
    assert name_of(Problem("lost-write", "lost-write: …")) == "lost-write"
    assert (
        name_of(Problem("AssertionError", "AssertionError: n 3 follows 1\nTraceback"))
        == "assertion"
    )
    assert name_of(Problem("AssertionError", "AssertionError: \nTraceback")) is None
    assert name_of(Problem("TypeError", "TypeError: unexpected")) is None
