"""Counting what a reader has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from im_actors.core.facts import pack_state
from im_actors.core.model import EventKind, pack
from im_actors.storage import counting
from im_actors.storage.counting import Count, count_messages, recalled_seq
from im_actors.storage.history import History
from tests import fact_model
from tests.storage.conftest import LogBuilder, quick_directory

SENDS = st.lists(st.tuples(st.sampled_from("abr"), st.integers(1, 30)), min_size=1, max_size=30)


def written(sends: list[tuple[str, int]]) -> LogBuilder:
    """Messages of a and b, and recalls ("r") of any earlier event; two sessions mixed."""
    log = LogBuilder()
    for number, (user, target) in enumerate(sends):
        recall = pack_state("recall", [min(target, number)], [])
        kind, body = (EventKind.RECALL, recall) if user == "r" else (EventKind.MESSAGE, b"hi")
        log.record(1, ("s", f"{user}/d"), body=body, kind=kind)
        if number % 3 == 0:
            log.record(1, ("other", "a/d"), ("other", "b/d"))
    return log


def count(history: History, after: int, upto: int, last: int, user: str) -> Count:
    steps = list(count_messages(history, "s", after, upto, last, user))
    assert steps[:-1] == [None] * (len(steps) - 1)
    assert steps[-1] is not None
    return steps[-1]


@settings(max_examples=25)
@given(sends=SENDS, step=st.integers(1, 9), cut=st.integers(0, 30))
def test_it_counts_what_the_model_counts(sends: list[tuple[str, int]], step: int, cut: int) -> None:
    log = written(sends)
    last = len(log.logs[1])
    with quick_directory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "STEP_EVENTS", step)
        history = History(Path(root) / "history")
        history.apply(log.batch(1, 1, cut), {1: min(cut, last)})
        history.stage(log.batch(1, cut + 1), {1: last})
        events = log.events["s"]
        for user in ("a", "b", "nobody"):
            for after in range(-1, len(events) + 1, 3):
                for upto in (after - 1, after, after + 4, len(events), 1 << 40):
                    found = count(history, after, upto, len(events), user)
                    expected = fact_model.count_messages(events, after, upto, user)
                    assert found == (True, expected)
        history.close()


def test_a_recall_that_is_newer_than_the_head_does_not_count(tmp_path: Path) -> None:
    log = written([("a", 0), ("b", 0), ("r", 1)])
    history = History(tmp_path / "history")
    history.apply(log.batch(1), {1: len(log.logs[1])})
    assert count(history, 0, 2, 2, "nobody") == (True, 2)
    assert count(history, 0, 2, 3, "nobody") == (True, 1)
    history.close()


def test_what_is_not_here_is_not_counted_as_nothing(tmp_path: Path) -> None:
    log = written([("a", 0)] * 20)
    history = History(tmp_path / "history")
    middle = len(log.logs[1]) // 2
    history.apply(log.batch(1, middle), {1: len(log.logs[1])})
    assert not count(history, 0, 20, 20, "b").whole
    steps = count_messages(history, "s", 12, 20, 20, "b")
    history.drop(1)
    assert list(steps)[-1] == (False, 0)
    history.close()


def test_a_step_looks_at_so_many_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "STEP_EVENTS", 4)
    log = written([("a", 0)] * 20)
    history = History(tmp_path / "history")
    history.apply(log.batch(1), {1: len(log.logs[1])})
    sizes = []
    read = history.read

    def counted(*values: Any) -> Any:
        page = read(*values)
        sizes.append(len(page.events))
        return page

    monkeypatch.setattr(history, "read", counted)
    assert len(list(count_messages(history, "s", 3, 20, 20, "b"))) == 6
    assert sizes == [4, 4, 4, 4, 1]
    history.close()


@pytest.mark.parametrize(
    ("body", "seq"),
    [
        (pack([7]), 7),
        (pack_state("recall", [7], [("x/7", 7, b"")]), 7),
        (b"", 0),
        (b"hello", 0),
        (pack([]), 0),
        (pack(["7"]), 0),
        (pack(["recall", [], []]), 0),
        (pack({"seq": 7}), 0),  # type: ignore[arg-type]
    ],
)
def test_which_event_a_recall_takes_back(body: bytes, seq: int) -> None:
    assert recalled_seq(body) == seq
