"""Messages between actors: they come out as they went in, and others do not come out."""

from __future__ import annotations

from typing import Any

import pytest

from im_actors.core.messages import Append, Appended
from im_actors.errors import ProtocolViolation
from im_actors.wire.codec import FrameDecoder
from im_actors.wire.links import LINK_FRAME_BYTES_MAX, InsideType, pack_inside, read_inside
from tests.fuzz.corpus import COLUMNS, INSIDE, RECORDS


def rows_of(*batch: Any) -> list[Any]:
    (message,) = FrameDecoder(LINK_FRAME_BYTES_MAX).feed(pack_inside(InsideType.REQUESTS, batch))
    assert message[0] == InsideType.REQUESTS
    return message[1]


@pytest.mark.parametrize("message", INSIDE, ids=lambda message: type(message).__name__)
def test_round_trip(message: Any) -> None:
    assert read_inside(rows_of(message, message)) == [message, message]


@pytest.mark.parametrize("message", INSIDE, ids=lambda message: type(message).__name__)
def test_any_field_of_another_type_is_a_violation(message: Any) -> None:
    for at in range(1, len(message) + 1):
        (row,) = rows_of(message)
        row[at] = 1.5
        with pytest.raises(ProtocolViolation):
            read_inside([row])


@pytest.mark.parametrize(
    "row", [[], [99], [-1, 3, 7, 2, True, 3, 9, 11], ["0"], [[]], 5, None, [5, 3, 7, 7, 7, 7, [[]]]]
)
def test_what_is_no_message_is_a_violation(row: Any) -> None:
    with pytest.raises(ProtocolViolation):
        read_inside([*rows_of(*INSIDE), row])


def test_several_of_the_frequent_kinds_are_one_row_each() -> None:
    rows = rows_of(*COLUMNS, *INSIDE)
    assert len(rows) == 3 + len(INSIDE)
    assert read_inside(rows) == [*COLUMNS, *INSIDE]


def test_appends_that_are_not_plain_come_out_as_they_went_in() -> None:
    plain = COLUMNS[0]
    odd = (
        plain._replace(records=()),
        plain._replace(records=RECORDS),
        plain._replace(prev_epoch=6),
        plain._replace(prev_lsn=7),
        plain._replace(epoch=8, prev_epoch=8),
    )
    for append in odd:
        assert read_inside(rows_of(plain, append, plain)) == [plain, append, plain]
    # Two records for one append and none for the other are as many as two plain ones have.
    both = (plain._replace(records=()), plain._replace(prev_lsn=7, records=RECORDS))
    assert read_inside(rows_of(*both)) == list(both)


@pytest.mark.parametrize("at", range(0, len(COLUMNS), 2))
def test_columns_of_other_forms_are_violations(at: int) -> None:
    def columns() -> list[Any]:
        (row,) = rows_of(*COLUMNS[at : at + 2])
        return row  # type: ignore[no-any-return]

    width = len(columns())
    others: list[list[Any]] = [columns()[:-1], [*columns(), [1, 1]], [columns()[0]] + [[]] * width]
    for index in range(1, width):
        for column in (columns()[index][:1], [columns()[index][0], 1.5], [], {}, None, 5, "ab"):
            others.append([*columns()[:index], column, *columns()[index + 1 :]])
    for other in others:
        with pytest.raises(ProtocolViolation):
            read_inside([other])


def test_the_types_of_columns_are_those_of_the_messages() -> None:
    messages = [Appended(slot, 7, 9, 8, 8, bool(slot)) for slot in (0, 1)]
    found = read_inside(rows_of(*messages))
    assert [tuple(map(type, message)) for message in found] == [(int,) * 5 + (bool,)] * 2
    (append, _) = read_inside(rows_of(*COLUMNS[:2]))
    assert type(append) is Append
    assert type(append.records[0]) is type(RECORDS[0])
