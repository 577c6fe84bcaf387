"""Rounds: what goes at once, what waits, and that nobody waits for others' members."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from im_actors.core.model import Member
from im_actors.core.serving import Send
from im_actors.server.rounds import Rounds

HERE = (Member("r1", "d1"), Member("r2", "d2"), Member("r3", "d3"))
THERE = (Member("r4", "d4"), Member("r5", "d5"), Member("r6", "d6"))


def sends(*numbers: int) -> list[Send]:
    return [Send(n, "s", "alice/phone", n, 1, b"") for n in numbers]


def released(rounds: Rounds, now_ms: int = 0) -> list[tuple[int, list[int]]]:
    return [(slot, [send.n for send in batch]) for slot, batch in rounds.release(now_ms)]


def two_groups() -> Rounds:
    rounds = Rounds(round_sends=4, hold_ms=20)
    for slot, members in ((1, HERE), (2, HERE), (3, THERE)):
        rounds.join(slot, members)
    return rounds


def test_an_idle_group_takes_a_send_at_once() -> None:
    rounds = two_groups()
    rounds.add(1, sends(1), 0)
    assert released(rounds) == [(1, [1])]
    assert not rounds.waits


def test_what_comes_during_a_round_is_the_next_one_whichever_slot_it_is_for() -> None:
    rounds = two_groups()
    rounds.flies(1, True)
    rounds.add(2, sends(1), 0)
    rounds.add(1, sends(1), 0)
    rounds.add(2, sends(2), 1)
    assert released(rounds, 1) == []
    assert rounds.waits
    rounds.flies(1, False)
    assert released(rounds, 2) == [(2, [1, 2]), (1, [1])]


def test_slots_with_other_members_do_not_wait() -> None:
    rounds = two_groups()
    rounds.flies(1, True)
    rounds.add(2, sends(1), 0)
    rounds.add(3, sends(1), 0)
    assert released(rounds) == [(3, [1])]


def test_a_large_round_does_not_wait() -> None:
    rounds = two_groups()
    rounds.flies(1, True)
    rounds.add(1, sends(1, 2, 3), 0)
    assert released(rounds) == []
    rounds.add(2, sends(1), 0)
    assert released(rounds) == [(1, [1, 2, 3]), (2, [1])]


def test_nobody_waits_longer_than_the_limit() -> None:
    rounds = two_groups()
    rounds.flies(2, True)
    rounds.add(1, sends(1), 100)
    rounds.add(1, sends(2), 119)
    assert released(rounds, 119) == []
    assert released(rounds, 120) == [(1, [1, 2])]


def test_a_slot_that_is_not_served_here_is_told_at_once() -> None:
    rounds = two_groups()
    rounds.flies(1, True)
    rounds.add(9, sends(1), 0)
    assert released(rounds) == [(9, [1])]


def test_what_waits_moves_with_its_slot_to_other_members() -> None:
    rounds = two_groups()
    rounds.flies(1, True)
    rounds.add(1, sends(1), 0)
    rounds.add(2, sends(1), 0)
    rounds.flies(2, True)
    rounds.join(1, THERE)
    assert released(rounds) == [(1, [1])]
    rounds.flies(2, False)
    assert released(rounds) == [(2, [1])]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 4)),
            st.tuples(st.just("fly"), st.integers(1, 4), st.booleans()),
            st.tuples(st.just("join"), st.integers(1, 4), st.sampled_from((HERE, THERE))),
            st.tuples(st.just("release")),
        )
    )
)
def test_everything_comes_out_once_and_in_the_order_of_its_slot(steps: list[tuple]) -> None:
    rounds = two_groups()
    put: dict[int, list[int]] = {}
    got: dict[int, list[int]] = {}

    def take(now_ms: int) -> None:
        for slot, numbers in released(rounds, now_ms):
            got.setdefault(slot, []).extend(numbers)

    for now_ms, step in enumerate(steps):
        match step:
            case ("add", slot):
                numbers = put.setdefault(slot, [])
                numbers.append(len(numbers) + 1)
                rounds.add(slot, sends(numbers[-1]), now_ms)
            case ("fly", slot, flying):
                rounds.flies(slot, flying)
            case ("join", slot, members):
                rounds.join(slot, members)
            case _:
                take(now_ms)
    take(len(steps) + 20)
    assert got == put
    assert not rounds.waits
