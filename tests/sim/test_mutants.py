"""Every mutant fits the sources of today, and the cheap ones are noticed at once."""

from __future__ import annotations

import pytest

from tests.sim import proving
from tests.sim.hunt import name_of
from tests.sim.mutants import MUTANTS, find
from tests.sim.mutation import Edit, Mutant, SourceChanged, source_of
from tests.sim.runs import Problem

CHEAP = ("commit-at-two", "seal-of-lower-epoch", "pending-duplicate-is-done")


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


def test_a_crash_is_not_a_catch() -> None:
    assert name_of(Problem("I3", "I3: slot 0: cut below")) == "I3"
    assert name_of(Problem("lost-write", "lost-write: …")) == "lost-write"
    assert (
        name_of(Problem("AssertionError", "AssertionError: n 3 follows 1\nTraceback"))
        == "assertion"
    )
    assert name_of(Problem("AssertionError", "AssertionError: \nTraceback")) is None
    assert name_of(Problem("TypeError", "TypeError: unexpected")) is None
