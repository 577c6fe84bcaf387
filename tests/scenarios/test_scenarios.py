"""The scenario files say what the machines do; a difference is shown with what accepts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from im_actors.core.owner import SlotOwner
from im_actors.core.replica import Replica
from im_actors.errors import InvariantBroken
from tests.scenarios import __main__ as program
from tests.scenarios import runner

FIRST = runner.files()[0]


@pytest.mark.parametrize("path", runner.files(), ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    difference = runner.difference(path)
    assert not difference, difference


@pytest.mark.parametrize("path", runner.files(), ids=lambda path: path.stem)
def test_header_and_outcome(path: Path) -> None:
    """Each file says what it is about, and ends with who has what."""
    blocks, rest = runner.parse(path.read_text(encoding="utf-8"))
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    for part in ("# The situation: ", "# What could go wrong: ", "# The rule (design ", "Promise"):
        assert part in header
    assert blocks[-1].commands[-1] == "outcome"
    assert not rest


def test_a_difference_is_shown_with_the_command_that_accepts_it(tmp_path: Path) -> None:
    path = tmp_path / FIRST.name
    text = FIRST.read_text(encoding="utf-8")
    path.write_text(text.replace("ACK team n=1, seq 1", "ACK team n=1, seq 7"), encoding="utf-8")
    difference = runner.difference(path)
    assert "-shard-1 -> alice: ACK team n=1, seq 7" in difference
    assert "+shard-1 -> alice: ACK team n=1, seq 1" in difference
    assert f"{runner.REWRITE} {FIRST.stem}" in difference


def test_what_is_rewritten_is_as_written(tmp_path: Path) -> None:
    path = tmp_path / FIRST.name
    text = FIRST.read_text(encoding="utf-8")
    path.write_text(text.replace("  serves epoch 1\n", ""), encoding="utf-8")
    assert runner.run(path) == text


def test_a_broken_rule_cannot_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an ACK after two copies of three the invariants end the run, before the file changes."""
    path = tmp_path / FIRST.name
    path.write_bytes(FIRST.read_bytes())
    progress = SlotOwner._commit_progress

    def two_are_enough(self: SlotOwner) -> None:
        durable = sorted(state.durable_lsn for state in self.members.values())
        kept = [state.durable_lsn for state in self.members.values()]
        for state in self.members.values():
            state.durable_lsn = max(state.durable_lsn, durable[1])
        progress(self)
        for state, lsn in zip(self.members.values(), kept, strict=True):
            state.durable_lsn = lsn

    monkeypatch.setattr(SlotOwner, "_commit_progress", two_are_enough)
    monkeypatch.setattr(runner, "HERE", tmp_path)
    monkeypatch.setattr("sys.argv", ["tests.scenarios", "--rewrite"])
    with pytest.raises(InvariantBroken, match="I1") as broken:
        program.main()
    assert f"in the block at {FIRST.name}:" in broken.value.__notes__[0]
    assert path.read_bytes() == FIRST.read_bytes()


def test_a_broken_replica_changes_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that takes appends of any epoch is found by the scenario of the deposed owner."""
    monkeypatch.setattr(
        Replica, "_promise_broken", lambda self, peer, request: self.logs.get(request.slot)
    )
    path = next(path for path in runner.files() if "deposed" in path.stem)
    with pytest.raises((InvariantBroken, AssertionError)):
        assert not runner.difference(path)
