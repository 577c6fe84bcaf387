"""The bench of the lines of business, without its clusters."""

from __future__ import annotations

import argparse

import pytest

from bench.lines import Measured, pairs, shown
from im_actors.cli.bench.plan import Load
from im_actors.core.lines import Line, line_of
from im_actors.core.names import check_session
from im_actors.errors import SetupError


def test_pairs() -> None:
    assert pairs("direct:batch,group:notice") == [("direct", "batch"), ("group", "notice")]
    assert len(pairs("all")) == 9
    for text in ("direct", "direct:direct", "batch:direct", "direct:chat"):
        with pytest.raises(argparse.ArgumentTypeError, match="no pair"):
            pairs(text)


@pytest.mark.parametrize(
    ("kind", "line", "reader"),
    [
        ("open", Line.GROUP, "shop"),
        ("direct", Line.DIRECT, "shop"),
        ("notice", Line.NOTICE, "bench-1-7"),
    ],
)
def test_a_load_is_of_its_line_and_somebody_may_read_it(kind: str, line: Line, reader: str) -> None:
    load = Load(run="1", addresses=[("h", 1)], user="shop", kind=kind).validate()
    session = check_session(load.session(7))
    assert line_of(session) is line
    assert load.reader(session) == reader


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SetupError, match="open, direct, notice"):
        Load(run="1", addresses=[("h", 1)], kind="group").validate()


def test_the_median_of_the_ratios_is_told_and_not_the_ratio_of_medians() -> None:
    found = Measured()
    found.alone = [{"p50": 1.0, "p99": 2.0}, {"p50": 10.0, "p99": 20.0}, {"p50": 2.0, "p99": 2.0}]
    found.beside = [{"p50": 2.0, "p99": 8.0}, {"p50": 30.0, "p99": 20.0}, {"p50": 2.0, "p99": 6.0}]
    found.rush_per_s = [100.0, 300.0, 200.0]
    found.ledger = {"lost": 0, "duplicated": 0}
    summary = found.summary()
    assert (summary["p50_ratio"], summary["p99_ratio"]) == (2.0, 3.0)
    assert "| 2.0 / 3.0 | 200 | 0, 0 |" in shown(
        {"pairs": {"direct:group": {"quotas": summary}}, "void": False}
    )
