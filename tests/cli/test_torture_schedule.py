"""Which fault comes when."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from im_actors.cli.torture.run import session_names
from im_actors.cli.torture.schedule import GAP_S, KINDS, Schedule, parse_kinds
from im_actors.errors import SetupError
from im_actors.proof.records import slot_of


def test_all_faults_by_default() -> None:
    assert parse_kinds("all") == parse_kinds("") == list(KINDS)


def test_names_and_beginnings_of_names() -> None:
    assert parse_kinds("empty-disk, kill-shard,empty-disk") == ["empty-disk", "kill-shard"]
    paused = parse_kinds("pause-")
    assert set(paused) == {kind for kind in KINDS if kind.startswith("pause-")}
    assert len(paused) == 4


@pytest.mark.parametrize("wrong", ["kill-shards", "kill", "-", "kill-shard,nothing"])
def test_an_unknown_fault_is_told_the_known_ones(wrong: str) -> None:
    with pytest.raises(SetupError) as caught:
        parse_kinds(wrong)
    assert all(kind in str(caught.value) for kind in KINDS)


def test_a_seed_gives_the_same_row_again() -> None:
    def row(seed: int) -> list[tuple[str, float, bool]]:
        schedule = Schedule(list(KINDS), random.Random(seed))
        return [tuple(schedule.next()) for _ in range(60)]

    assert row(1) == row(1)
    assert row(1) != row(2)


def test_every_kind_comes_before_any_comes_again() -> None:
    schedule = Schedule(list(KINDS), random.Random(3))
    for _ in range(3):
        deck = Counter(schedule.next().kind for _ in KINDS)
        assert deck == Counter(list(KINDS))


def test_no_kind_follows_itself_when_there_are_others() -> None:
    schedule = Schedule(["kill-shard", "kill-replica", "cut-links"], random.Random(4))
    row = [schedule.next().kind for _ in range(300)]
    assert all(first != second for first, second in itertools.pairwise(row))


def test_one_kind_alone_comes_again_and_again() -> None:
    schedule = Schedule(["kill-shard"], random.Random(5))
    planned = [schedule.next() for _ in range(50)]
    assert {one.kind for one in planned} == {"kill-shard"}
    assert all(GAP_S[0] <= one.gap_s <= GAP_S[1] for one in planned)
    assert {one.during for one in planned} == {True, False}


@pytest.mark.parametrize("count", [1, 16, 33])
def test_sessions_are_spread_over_all_slots(count: int) -> None:
    names = session_names(count, 16)
    assert len(set(names)) == count
    used = Counter(slot_of(name, 16) for name in names)
    assert max(used.values()) == -(-count // 16)
    assert len(used) == min(count, 16) or count > 16
