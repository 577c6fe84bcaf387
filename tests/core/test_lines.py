"""The lines of business: who belongs where, and who may have how much."""

from __future__ import annotations

from typing import Any

import pytest

from im_actors.core.lines import LINES, Line, Lines, LineSettings, line_of, weight_of
from im_actors.core.names import _PREFIXES, SessionKind, session_kind
from im_actors.errors import SetupError

DIRECT, GROUP, NOTICE, BATCH = Line


@pytest.mark.parametrize(
    ("session", "line"),
    [
        ("team", GROUP),
        ("group:climbers", GROUP),
        ("direct:alice/bob", DIRECT),
        ("user:alice", DIRECT),
        ("notice:system/alice", NOTICE),
        ("batch:spring", BATCH),
    ],
)
def test_every_session_has_a_line(session: str, line: Line) -> None:
    assert line_of(session) is line


def test_a_line_that_is_alone_has_everything() -> None:
    lines = Lines(LineSettings(), 1_000, 120)
    assert lines.limits(0) == [1_000] * LINES
    lines.open[GROUP] = 999
    assert lines.limits(0)[GROUP] == 1_000
    # And the others find their share, whatever it has.
    assert lines.limits(0)[DIRECT] == 60


def test_those_that_are_busy_share_by_their_parts() -> None:
    lines = Lines(LineSettings(direct=3, group=2, notice=1, batch=6), 1_000, 120)
    lines.open[:] = [1, 1, 0, 0]
    assert lines.limits(0) == [72, 48, 20, 65]
    lines.open[:] = [1, 1, 1, 1]
    assert lines.limits(0) == [30, 20, 10, 60]


def test_a_line_is_busy_for_a_while_after_its_last_row() -> None:
    lines = Lines(LineSettings(busy_ms=500), 1_000, 120)
    lines.open[GROUP] = 100
    lines.used_ms[DIRECT] = 7_000
    assert lines.limits(7_500)[GROUP] == 60
    assert lines.limits(7_501)[GROUP] == 1_000


def test_when_it_is_full_only_those_below_their_share_have_room() -> None:
    lines = Lines(LineSettings(), 1_000, 120)
    lines.open[GROUP] = 40
    assert lines.limits(0, full=True)[GROUP] == 0
    assert lines.limits(0, full=True)[DIRECT] == 60


def test_a_long_body_counts_more_than_once() -> None:
    assert [weight_of(bytes(size)) for size in (0, 4_095, 4_096, 65_536)] == [1, 1, 2, 17]


@pytest.mark.parametrize(
    "settings", [{"direct": 0}, {"batch": 1_001}, {"rows": 63}, {"busy_ms": -1}, {"group": True}]
)
def test_senseless_quotas_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match=next(iter(settings))):
        LineSettings(**settings).validate()


def test_nobody_is_shut_out_however_small_his_part() -> None:
    lines = Lines(LineSettings(direct=1_000, group=1_000, notice=1_000, batch=1), 1_000, 64)
    lines.open[:] = [1, 1, 1, 0]
    assert lines.limits(0)[BATCH] == 1


def test_every_kind_of_session_has_its_line() -> None:
    assert {line_of(f"{prefix}:x") for prefix in _PREFIXES} == set(Line)
    assert {session_kind(f"{prefix}:x") for prefix in _PREFIXES} | {SessionKind.OPEN} == set(
        SessionKind
    )
