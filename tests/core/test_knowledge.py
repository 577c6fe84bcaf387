"""What an owner knows of a session's state: the newest holds, unknown is not absent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core.facts import Fact
from im_actors.core.knowledge import Knowledge
from im_actors.core.rules import Needs


def fact(key: str, seq: int, value: bytes | None = b"x") -> Fact:
    return Fact(key, seq, 0, value)


def test_a_key_is_unknown_until_somebody_says_that_there_is_none() -> None:
    there = Knowledge()
    assert there.lacks(Needs(("a", "b", "a"), (3,))) == Needs(("a", "b"), (3,))
    there.loaded(("a", "b"), [fact("a", 4)])
    assert there.facts == {"a": fact("a", 4), "b": None}
    assert there.lacks(Needs(("a", "b", "c"), (3,))) == Needs(("c",), (3,))


def test_a_fact_that_is_gone_is_known_as_none_and_stays_the_newest() -> None:
    there = Knowledge()
    there.said([fact("a", 5, None)])
    assert there.facts == {"a": None}
    there.loaded(("a",), [fact("a", 4)])
    assert there.facts == {"a": None}
    assert there.said_at("a") == 5


facts = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.booleans()), max_size=12)


@given(facts, st.randoms(use_true_random=False))
def test_facts_hold_in_whatever_order_they_come(rows: list[tuple[str, int, bool]], rng) -> None:
    said = {(key, seq): fact(key, seq, b"%d" % seq if there else None) for key, seq, there in rows}
    shuffled = list(said.values())
    rng.shuffle(shuffled)
    there = Knowledge()
    for one in shuffled:
        if rng.random() < 0.5:
            there.said([one])
        else:
            there.loaded((one.key, "d"), [one])
    newest: dict[str, Fact] = {}
    for one in sorted(said.values(), key=lambda one: one.seq):
        newest[one.key] = one
    known = {key: one for key, one in there.facts.items() if one is not None}
    assert known == {key: one for key, one in newest.items() if one.value is not None}


def test_only_what_the_tables_have_is_forgotten() -> None:
    there = Knowledge()
    there.loaded(("old", "none"), [fact("old", 1)])
    there.said([fact("a", 2)])
    assert there.forget_settled(2, last_lsn=7, applied_lsn=7) == 7
    assert there.facts == {}
    there.said([fact("b", 3), fact("c", 4)])
    # Seq 3 is in lsn 8, which the tables do not have; seq 4 has not committed.
    assert there.forget_settled(3, last_lsn=8, applied_lsn=7) == 7
    assert sorted(there.facts) == ["b", "c"]
    assert there.forget_settled(3, last_lsn=8, applied_lsn=8) == 8
    assert sorted(there.facts) == ["c"]


def test_a_session_that_is_never_at_rest_forgets_too() -> None:
    """Its newest record is never applied when somebody looks; those before it are."""
    there = Knowledge()
    sizes, floors = [], []
    for seq in range(1, 30):
        there.said([fact(f"key-{seq}", seq)])
        floors.append(there.forget_settled(seq, last_lsn=seq, applied_lsn=seq - 3))
        sizes.append(len(there))
    assert max(sizes) < 8
    assert all(floor <= max(0, seq - 3) for seq, floor in enumerate(floors, 1))


@pytest.mark.parametrize("lsn", [3, 9])
def test_what_is_newer_than_the_mark_is_kept(lsn: int) -> None:
    there = Knowledge()
    there.said([fact("a", 1)])
    there.forget_settled(1, last_lsn=3, applied_lsn=2)  # Marked: seq 1 is in lsn 3.
    there.said([fact("a", 2)])
    there.forget_settled(2, last_lsn=9, applied_lsn=lsn)
    assert ("a" in there.facts) is (lsn < 9)
