"""The ledger: each thing that must not happen is counted under its own name."""

from __future__ import annotations

from array import array

import pytest

from im_actors.cli.bench.following import DEVICE_BITS
from im_actors.cli.bench.ledger import Ledger, check_acks, check_cursor, check_timelines


def timeline(*contents: tuple[int, int]) -> array[int]:
    """Of (n, device)."""
    return array("q", [n << DEVICE_BITS | device for n, device in contents])


def check(
    contents: dict[str, array[int]], *senders: tuple[int, dict[str, array[int]]]
) -> dict[str, int]:
    """What is not 0, apart from the counts of what went well."""
    ledger = Ledger()
    check_timelines(ledger, contents)
    check_acks(ledger, senders, contents)
    wrong = {name: count for name, count in ledger.to_json().items() if count}
    assert ledger.sound == (wrong.keys() <= {"sent", "acked"})
    return wrong


def acked(*seqs: int) -> array[int]:
    return array("q", [-seq for seq in seqs])


def test_two_devices_in_one_session() -> None:
    contents = {"a": timeline((1, 0), (1, 1), (2, 1), (2, 0))}
    found = check(contents, (0, {"a": acked(1, 4)}), (1, {"a": acked(2, 3)}))
    assert found == {"sent": 4, "acked": 4}


@pytest.mark.parametrize(
    ("contents", "wrong"),
    [
        (timeline((1, 0)), {"lost": 1}),
        (timeline((1, 0), (0, 0)), {"lost": 1}),
        (timeline((1, 0), (2, 1)), {"lost": 1}),
        (timeline((1, 0), (2, 0), (2, 0)), {"duplicated": 1}),
        (timeline((2, 0), (1, 0)), {"reordered": 1, "lost": 2}),
    ],
)
def test_what_is_wrong_is_named(contents: array[int], wrong: dict[str, int]) -> None:
    found = check({"a": contents}, (0, {"a": acked(1, 2)}))
    assert found == {"sent": 2, "acked": 2, **wrong}


def test_an_ack_of_a_session_that_nobody_has_read() -> None:
    assert check({}, (0, {"a": acked(1)})) == {"sent": 1, "acked": 1, "lost": 1}


def test_an_answer_that_never_came() -> None:
    found = check({"a": timeline((1, 0))}, (0, {"a": array("q", [-1, 123_456])}))
    assert found == {"sent": 2, "acked": 1, "unanswered": 1}


@pytest.mark.parametrize(
    ("cursor", "early", "lost", "gaps"), [(5, 0, 0, 0), (3, 0, 2, 0), (2, 2, 1, 1), (0, 0, 5, 0)]
)
def test_followers(cursor: int, early: int, lost: int, gaps: int) -> None:
    ledger = Ledger()
    check_cursor(ledger, cursor, early, 5)
    assert (ledger.lost, ledger.gaps) == (lost, gaps)


def test_parts_add_up() -> None:
    ledger = Ledger(sent=1, lost=1)
    ledger.add(Ledger(sent=2, gaps=3).to_json())
    assert ledger == Ledger(sent=3, lost=1, gaps=3)
