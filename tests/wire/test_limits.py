"""Limits contradict neither each other nor what a frame can hold."""

from __future__ import annotations

from typing import Any

import pytest

from im_actors.core.model import (
    BODY_BYTES_MAX,
    NAME_BYTES_MAX,
    SESSION_BYTES_MAX,
    Event,
    encode_event,
)
from im_actors.errors import ProtocolViolation, SetupError
from im_actors.wire import messages
from im_actors.wire.codec import encode_frame
from im_actors.wire.limits import (
    DETAIL_BYTES_MAX,
    ECHO_BYTES_MAX,
    HELLO_BYTES_MAX,
    ROWS_PER_FRAME_MAX,
    Limits,
    heard_limits,
    told_limits,
)


def test_the_default_is_valid() -> None:
    assert Limits().validate() == Limits()


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"window": 129},
        {"frame_bytes": 2_000_000},
        {"body_bytes": 0},
        {"heartbeat_ms": 10},
        {"heartbeats_missed": 1},
        {"pull_events": True},
        {"follow_sessions": "10"},
        {"frame_bytes": 400_000, "body_bytes": 400_000},
        {"frame_bytes": 100_000},
        {"follow_sessions": 8_000},
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_at_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match=next(reversed(wrong))):
        Limits(**wrong).validate()


def test_the_largest_of_each_fits_a_frame() -> None:
    frame_bytes = 350_000
    limits = Limits(frame_bytes=frame_bytes).validate()
    top = 2**63 - 1
    session, echo = "s" * SESSION_BYTES_MAX, "e" * ECHO_BYTES_MAX
    device = "u" * NAME_BYTES_MAX + "/" + "d" * NAME_BYTES_MAX
    event = encode_event(Event(session, top, top, 1, device, top, b"x" * BODY_BYTES_MAX))
    rows = range(ROWS_PER_FRAME_MAX)
    for message in (
        messages.nacks([messages.Nack(echo, top, 999, top, top, "d" * DETAIL_BYTES_MAX)] * 128),
        messages.acks([messages.Ack(session, top, top, top, 3, top) for _ in rows]),
        messages.events(top, session, top, [event]),
        messages.send([(session, top, 1, b"x" * BODY_BYTES_MAX)]),
        messages.follow([session] * limits.follow_sessions),
        messages.heads([(session, top)] * limits.follow_sessions),
    ):
        encode_frame(message, frame_bytes)


def test_the_client_hears_what_the_server_tells() -> None:
    told = Limits(window=7, heartbeat_ms=500, pull_events=9)
    assert heard_limits(told_limits(told)) == told


def test_a_client_follows_no_more_than_a_frame_names() -> None:
    heard = heard_limits({"frame_bytes": HELLO_BYTES_MAX, "follow_sessions": 1 << 40})
    names = ["s" * SESSION_BYTES_MAX] * heard.follow_sessions
    assert len(encode_frame(messages.follow(names), HELLO_BYTES_MAX)) > HELLO_BYTES_MAX // 2


@pytest.mark.parametrize("told", [{"frame_bytes": 15}, {"heartbeat_ms": 1}], ids=str)
def test_a_client_does_not_stay_where_nobody_can_talk(told: dict[str, Any]) -> None:
    with pytest.raises(ProtocolViolation, match=next(iter(told))):
        heard_limits(told)


def test_a_client_survives_strange_limits() -> None:
    later = {
        "window": 1_000,
        "frame_bytes": 1 << 30,
        "body_bytes": 0,
        "new": [],
        "pull_events": "x",
    }
    assert heard_limits(later) == Limits(queries=0)
    assert heard_limits(later | {"queries": 20}) == Limits(queries=20)
