"""Epoch histories against the dumb way: comparing the logs record by record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core.epochs import common_prefix, cut_epochs, epoch_at
from im_actors.core.messages import Epochs


def history(log: list[int]) -> Epochs:
    """The epoch history of a log given as the epoch of each record, lsn 1 first."""
    return tuple(
        (epoch, lsn)
        for lsn, epoch in enumerate(log, 1)
        if lsn == 1 or log[lsn - 2] != epoch
    )  # fmt: skip


@st.composite
def two_logs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Logs as the protocol can make them: each epoch is written by one owner only, on top of one
    log. So they share a stretch, and after it no epoch is in both."""
    shared = sorted(draw(st.lists(st.integers(1, 6), max_size=8)))
    floor = shared[-1] if shared else 0
    # The last shared epoch may go on in one of them: its owner's tail, cut in the other.
    one = sorted(draw(st.lists(st.sampled_from([max(floor, 1), 7, 9, 11]), max_size=6)))
    other = sorted(draw(st.lists(st.sampled_from([8, 10, 12]), max_size=6)))
    logs = (shared + one, shared + other)
    return logs if draw(st.booleans()) else (logs[1], logs[0])


@given(two_logs())
def test_the_common_prefix_is_what_comparing_every_record_finds(
    logs: tuple[list[int], list[int]],
) -> None:
    ours, theirs = logs
    same = 0
    while same < min(len(ours), len(theirs)) and ours[same] == theirs[same]:
        same += 1
    assert common_prefix(history(ours), len(ours), history(theirs), len(theirs)) == same


@given(st.lists(st.integers(1, 9)).map(sorted))
def test_the_epoch_at_an_lsn(log: list[int]) -> None:
    assert epoch_at(history(log), 0) == 0
    for lsn, epoch in enumerate(log, 1):
        assert epoch_at(history(log), lsn) == epoch


@given(st.lists(st.integers(1, 9)).map(sorted), st.integers(0, 20))
def test_a_cut_history_is_the_history_of_the_cut_log(log: list[int], last_lsn: int) -> None:
    assert cut_epochs(history(log), last_lsn) == history(log[:last_lsn])


def test_a_history_that_does_not_reach_back_is_our_own_bug() -> None:
    with pytest.raises(AssertionError):
        epoch_at(((3, 10),), 9)
