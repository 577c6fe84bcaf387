"""Queries and signals: what is wrong with the frame, with what is asked for, and with an answer."""

from __future__ import annotations

from typing import Any

import pytest

from im_actors.errors import BadRequest, Forbidden, ImError, ProtocolViolation, TooLarge
from im_actors.wire import queries as q
from im_actors.wire.codec import FrameDecoder, encode_frame

ROW = q.ConversationRow(
    "direct:a/b", 4, 7, 9, 1_000, 1, "b", "hi", 2, [5, 9, 2, [[6, 7]]], 5, 3, 4, 1, "", "title"
)


def received(message: tuple[Any, ...]) -> list[Any]:
    (decoded,) = FrameDecoder().feed(encode_frame(message))
    return decoded


def test_a_query_passes() -> None:
    message = received(q.query(3, "changes", [4, 1_000]))
    assert q.check_query(message) == q.Query(3, "changes", [4, 1_000])
    assert q.check_arguments(q.check_query(message)) == [4, 100], "as many as an answer holds"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ([8, 1, "unread"], ProtocolViolation),
        ([8, 1, "unread", [], 0], ProtocolViolation),
        ([8, 0, "unread", []], BadRequest),
        ([8, True, "unread", []], BadRequest),
        ([8, 2**63, "unread", []], BadRequest),
        ([8, 1, "", []], BadRequest),
        ([8, 1, b"unread", []], BadRequest),
        ([8, 1, "x" * 33, []], TooLarge),
        ([8, 1, "unread", None], BadRequest),
        ([8, 1, "unread", {}], BadRequest),
        ([8, 1, "unread", [1] * 9], BadRequest),
    ],
    ids=str,
)
def test_a_frame_that_is_no_query(message: list[Any], error: type[ImError]) -> None:
    with pytest.raises(error):
        q.check_query(message)


@pytest.mark.parametrize(
    ("what", "args"),
    [
        ("nothing like it", []),
        ("unread", [1]),
        ("conversations", [None, 25, False]),
        ("conversations", [[1], 25, False, ""]),
        ("conversations", ["", 25, False, ""]),
        ("conversations", [None, 0, False, ""]),
        ("conversations", [None, 1.5, False, ""]),
        ("conversations", [None, 1, 0, ""]),
        ("conversations", [None, 1, False, 7]),
        ("conversation", ["direct:b/a"]),
        ("conversation", [7]),
        ("changes", [-1, 10]),
        ("members", ["group:g", "a/b", 10]),
        ("receipts", ["team", 0, 10]),
        ("overlays", ["team", 1, 2**63]),
    ],
    ids=str,
)
def test_what_is_asked_for_wrongly_is_answered(what: str, args: list[Any]) -> None:
    query = q.check_query([8, 1, what, args])
    with pytest.raises(BadRequest):
        q.check_arguments(query)


def test_each_query_has_good_arguments() -> None:
    good: dict[str, list[Any]] = {
        "conversations": ["c2", 25, True, None],
        "conversation": ["team"],
        "unread": [],
        "changes": [0, 100],
        "group": ["group:g"],
        "members": ["group:g", None, 100],
        "devices": [],
        "receipts": ["team", 1, 10],
        "presence": ["team", 10],
        "overlays": ["team", 1, 10],
        "batch": ["batch:sale"],
        "outcomes": ["batch:sale", 0],
    }
    assert set(good) == set(q.QUERIES)
    for what, args in good.items():
        assert q.check_arguments(q.check_query([8, 1, what, args])) == args


@pytest.mark.parametrize("value", [None, True, 0, -5, "", "x" * 128])
def test_a_signal(value: Any) -> None:
    signal = q.check_signal(received(q.signal("team", "typing", value)))
    assert signal == ("team", "typing", value)


@pytest.mark.parametrize(
    "message",
    [
        [9, "team", "typing"],
        [9, "", "typing", True],
        [9, "team", "", True],
        [9, "team", "x" * 33, True],
        [9, "team", "typing", "x" * 129],
        [9, "team", "typing", []],
        [9, "team", "typing", 1.5],
        [9, "team", "typing", 2**63],
        [9, "team", "typing", b"x"],
    ],
    ids=lambda message: str(message)[:40],
)
def test_a_bad_signal(message: list[Any]) -> None:
    with pytest.raises(ImError):
        q.check_signal(message)


def test_answers_are_read() -> None:
    assert q.read_answer(received(q.answer(3, [1]))) == q.Answer(3, 0, "", [1])
    refused = q.read_answer(received(q.refusal(3, Forbidden("no"))))
    assert refused == q.Answer(3, Forbidden.code, "no", None)
    assert q.read_answer([74, 1, 0, "", None, "new"]).value is None
    for wrong in ([74], [74, 1, 0, ""], [74, "1", 0, "", None], [74, 1, 0, None, None]):
        with pytest.raises(ProtocolViolation):
            q.read_answer(wrong)
    signaled = received(q.signaled([q.Signaled("team", "bob", "typing", True)]))
    assert q.read_signaled(signaled) == [("team", "bob", "typing", True)]
    for wrong in ([75], [75, {}], [75, [["team", "bob", "typing"]]], [75, [[1, "b", "t", 0]]]):
        with pytest.raises(ProtocolViolation):
            q.read_signaled(wrong)


def test_rows_are_read() -> None:
    assert q.read_row([*ROW, "of a later version"]) == ROW
    wrong = {
        "session": [None, 7], "version": [-1, True], "rank": [2**63, "1"], "unread": [-1, 1.0],
        "inputs": [
            [1], [1, 2, 3, 4], [1, 2, 3, [[1]]], [1, 2, 3, [[1, -1]]], [0, 1, 0, [[1, 1]] * 257],
            [1, -2, 3, []],
        ],
        "label": [7, None], "title": [b"x"], "preview": [b"x"],
    }  # fmt: skip
    for field, values in wrong.items():
        for value in values:
            with pytest.raises(ProtocolViolation):
                q.read_row(list(ROW._replace(**{field: value})))
    for value in (None, {}, list(ROW)[:-1]):
        with pytest.raises(ProtocolViolation):
            q.read_row(value)


def test_overlays_are_read() -> None:
    assert q.read_overlays([[1, 2, 2, None], [3, 4, 3, b"new", 0]]) == [
        (1, 2, 2, None),
        (3, 4, 3, b"new"),
    ]
    for wrong in (None, [1], [[1, 2, 2]], [[1, 2, 2, "text"]], [[1, 2**63, 2, None]]):
        with pytest.raises(ProtocolViolation):
            q.read_overlays(wrong)
