"""Which log to keep, who the members are, and how each of them gets to that log."""

from __future__ import annotations

import pytest

from im_actors.core.messages import Epochs, Prepare, Sealed
from im_actors.core.model import Member, View, ViewState
from im_actors.core.takeover import (
    Plan,
    ReplicaInfo,
    choose_log,
    choose_members,
    fill_up,
    make_plan,
)
from im_actors.errors import InvariantBroken

A, B, C, D, E, F = (Member(name, f"{name}-disk") for name in "abcdef")
VIEW = View(7, 9, ViewState.RECOVERING, "shard.1", (A, B, C))


def sealed(
    last_lsn: int,
    epochs: Epochs = ((1, 1),),
    commit: int = 0,
    from_lsn: int = 1,
    applied: int = 0,
    complete: bool = True,
) -> Sealed:
    epochs = epochs if last_lsn else ()
    return Sealed(7, 9, last_lsn, epochs, commit, from_lsn, applied, complete)


def hosts(**of: str) -> tuple[ReplicaInfo, ...]:
    return tuple(ReplicaInfo(name, f"{name}-disk", host) for name, host in of.items())


def plan(
    usable: dict[Member, Sealed],
    members: tuple[Member, ...] = (A, B, C),
    copied: int = 256,
) -> Plan:
    return make_plan(VIEW, 9, usable, members, copied)


# -- choosing the log --------------------------------------------------------------------------


def test_the_higher_epoch_wins_over_the_longer_log() -> None:
    # An old owner's unacknowledged tail is long; what a newer one committed is short.
    assert choose_log({A: sealed(50, ((1, 1),)), B: sealed(8, ((1, 1), (2, 8)))}) == B


def test_of_one_epoch_the_longer_log_wins() -> None:
    assert choose_log({A: sealed(5), B: sealed(6), C: sealed(4)}) == B


def test_an_epoch_that_begins_after_the_end_does_not_count() -> None:
    assert choose_log({A: sealed(5, ((1, 1), (3, 6))), B: sealed(5, ((1, 1), (2, 5)))}) == B


def test_a_spare_never_provides_the_log() -> None:
    # It may hold a deposed owner's tail of an epoch that went on without it.
    usable = {A: sealed(5), D: sealed(9, ((1, 1), (8, 6)))}
    made = plan({**usable, B: sealed(5)}, (A, B, D))
    assert made.best in (A, B)
    assert (made.last_lsn, made.last_epoch) == (5, 1)


# -- choosing members --------------------------------------------------------------------------


def test_usable_members_stay_members() -> None:
    usable = {m: sealed(1) for m in (A, B, C, D)}
    infos = hosts(a="1", b="1", c="1", d="2")
    assert choose_members(VIEW, usable, infos, (D,)) == (A, B, C)


def test_a_spare_on_a_host_of_its_own_comes_before_a_better_ranked_one() -> None:
    usable = {m: sealed(1) for m in (A, B, D, E)}
    infos = hosts(a="1", b="2", d="1", e="3")
    assert choose_members(VIEW, usable, infos, (D, E)) == (A, B, E)


def test_with_fewer_hosts_than_copies_two_members_share_one() -> None:
    usable = {m: sealed(1) for m in (A, B, D)}
    assert choose_members(VIEW, usable, hosts(a="1", b="2", d="1"), (D,)) == (A, B, D)


def test_a_spare_that_has_not_promised_is_no_member() -> None:
    assert choose_members(VIEW, {A: sealed(1), B: sealed(1)}, hosts(d="3"), (D,)) is None


def test_two_members_are_not_enough() -> None:
    assert choose_members(VIEW, {A: sealed(1), B: sealed(1)}, (), ()) is None


def test_filling_up_takes_hosts_of_their_own_first() -> None:
    infos = hosts(a="1", d="1", e="1", f="2")
    assert fill_up([A], [D, E, F], infos) == [A, F, D]
    assert fill_up([A, B, C], [D], infos) == [A, B, C]


# -- the plan ----------------------------------------------------------------------------------


def test_each_member_keeps_what_it_shares_with_the_log() -> None:
    made = plan(
        {
            A: sealed(10, ((1, 1), (3, 8)), commit=7),
            B: sealed(9, ((1, 1), (2, 8)), commit=7),
            C: sealed(8, ((1, 1), (3, 8)), commit=6),
        }
    )
    assert made.best == A
    assert dict(made.prepares) == {
        A: Prepare(7, 9, 10, 11, ((1, 1), (3, 8))),
        B: Prepare(7, 9, 7, 8, ((1, 1),)),
        C: Prepare(7, 9, 8, 9, ((1, 1), (3, 8))),
    }
    assert (made.last_lsn, made.last_epoch, made.commit_lsn) == (10, 3, 7)


def test_an_empty_spare_goes_on_after_the_commit_point() -> None:
    usable = {A: sealed(900, commit=890), B: sealed(900, commit=880), D: sealed(0)}
    made = plan(usable, (A, B, D))
    assert dict(made.prepares)[D] == Prepare(7, 9, 0, 891, ((1, 1),))
    assert made.fetch_from <= 891


def test_a_spare_that_lacks_little_gets_it_in_the_takeover() -> None:
    usable = {A: sealed(900, commit=890), B: sealed(900, commit=890), D: sealed(700, commit=600)}
    made = plan(usable, (A, B, D))
    assert dict(made.prepares)[D] == Prepare(7, 9, 700, 701, ((1, 1),))
    assert made.fetch_from <= 701


def test_a_former_member_keeps_its_matching_copy_below_the_hole() -> None:
    usable = {A: sealed(900, commit=890), B: sealed(900, commit=890), D: sealed(300, commit=300)}
    made = plan(usable, (A, B, D))
    assert dict(made.prepares)[D] == Prepare(7, 9, 300, 891, ((1, 1),))


def test_a_spare_is_not_asked_to_begin_where_the_log_has_a_hole() -> None:
    log = sealed(900, commit=890, from_lsn=850, complete=False)
    made = plan({A: log, B: log, D: sealed(800, commit=800)}, (A, B, D))
    assert dict(made.prepares)[D].start_lsn == 891


def test_a_log_below_a_reported_commit_point_stops_everything() -> None:
    with pytest.raises(InvariantBroken, match="nothing is cut"):
        plan({A: sealed(5), B: sealed(5), D: sealed(6, commit=6)}, (A, B, D))


def test_two_logs_that_differ_below_a_commit_point_stop_everything() -> None:
    usable = {
        A: sealed(9, ((1, 1), (3, 5)), commit=4),
        B: sealed(8, ((1, 1), (2, 5)), commit=6),
        C: sealed(9, ((1, 1), (3, 5)), commit=4),
    }
    with pytest.raises(InvariantBroken, match="differ"):
        plan(usable)


def test_the_commit_point_is_the_highest_that_anybody_reports() -> None:
    made = plan({A: sealed(9, commit=4), B: sealed(9, commit=6), C: sealed(9, commit=5)})
    assert made.commit_lsn == 6


# -- what a new owner has to read --------------------------------------------------------------


def test_the_floor_is_what_the_best_complete_member_has_applied() -> None:
    made = plan(
        {
            A: sealed(900, commit=890, applied=850),
            B: sealed(900, commit=890, applied=880),
            C: sealed(900, commit=890, from_lsn=300, applied=889, complete=False),
        }
    )
    assert made.floor_lsn == 880
    assert made.fetch_from == 881


def test_an_empty_spare_is_not_taken_for_complete_tables() -> None:
    # An empty log is complete, and would make the new owner read everything since lsn 1.
    log = sealed(90_000, commit=89_990, from_lsn=500, applied=89_900, complete=False)
    made = plan({A: log, B: log, D: sealed(0)}, (A, B, D))
    assert made.last_lsn - made.fetch_from < 256


def test_without_a_complete_member_only_the_uncommitted_end_is_read() -> None:
    log = sealed(90_000, commit=89_990, from_lsn=500, applied=89_900, complete=False)
    made = plan({A: log, B: log, C: log})
    assert made.floor_lsn == 89_990
    assert made.fetch_from == 89_991


def test_the_last_record_is_read_in_any_case() -> None:
    # It says where the message keys go on.
    log = sealed(900, commit=900, applied=900)
    assert plan({A: log, B: log, C: log}).fetch_from == 900


def test_a_new_slot_has_nothing_to_read() -> None:
    made = plan({A: sealed(0), B: sealed(0), C: sealed(0)})
    assert (made.last_lsn, made.last_epoch, made.floor_lsn) == (0, 0, 0)
    assert made.fetch_from > made.last_lsn
    assert {prepare.start_lsn for _, prepare in made.prepares} == {1}
