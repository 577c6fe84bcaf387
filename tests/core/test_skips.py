"""Ranges of seqs that do not count, against a set of them."""

from hypothesis import given
from hypothesis import strategies as st

from im_actors.core import skips as module
from im_actors.core.skips import RANGES_MAX, Skips

Ranges = list[tuple[int, int]]
ranges = st.lists(
    st.tuples(st.integers(1, 60), st.integers(0, 8)).map(lambda pair: (pair[0], sum(pair))),
    max_size=20,
)


def seqs(found: Ranges) -> set[int]:
    return {seq for first, last in found for seq in range(first, last + 1)}


def check_form(found: Skips) -> None:
    edges = [found.folded_to, *(edge for pair in found.ranges for edge in pair)]
    assert edges == sorted(edges)
    ends = zip(found.ranges, found.ranges[1:], strict=False)
    assert all(one[1] + 1 < other[0] for one, other in ends), "ranges that touch are one"


@given(st.lists(ranges, max_size=5), st.integers(0, 70))
def test_ranges_are_a_set(added: list[Ranges], read_seq: int) -> None:
    found, model = Skips(), set()
    for some in added:
        found, model = found.adding(some), model | seqs(some)
        check_form(found)
        assert seqs(list(found.ranges)) == model
        assert found.total == len(model)
    kept = found.above(read_seq)
    check_form(kept)
    assert seqs(list(kept.ranges)) == {seq for seq in model if seq > read_seq}
    assert Skips.unpacked(kept.packed(read_seq), read_seq) == kept


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=60), st.integers(1, 6))
def test_the_oldest_are_folded_and_their_number_stays(
    steps: list[tuple[int, int]], limit: int
) -> None:
    before, module.RANGES_MAX = module.RANGES_MAX, limit
    try:
        found, model, at = Skips(), set(), 0
        for gap, length in steps:
            first, at = at + gap, at + gap + length
            found = found.adding([(first, at)])
            model |= seqs([(first, at)])
            check_form(found)
            assert len(found.ranges) <= limit
            assert found.total == len(model)
            assert found.folded == sum(seq <= found.folded_to for seq in model)
        assert Skips.unpacked(found.packed(0), 0) == found
    finally:
        module.RANGES_MAX = before


def test_a_folded_message_is_recalled() -> None:
    found = Skips().adding([(2 * at, 2 * at) for at in range(1, RANGES_MAX + 11)])
    assert (found.folded, found.folded_to) == (10, 20)
    assert found.adding_one(7).total == found.total + 1
    assert found.adding_one(23).total == found.total + 1
    assert found.above(20) == Skips(0, 0, found.ranges)
