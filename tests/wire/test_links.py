"""Messages between actors: they come out as they went in, and others do not come out."""

from __future__ import annotations

from typing import Any

import pytest

from im_actors.errors import ProtocolViolation
from im_actors.wire.codec import FrameDecoder
from im_actors.wire.links import LINK_FRAME_BYTES_MAX, InsideType, pack_inside, read_inside
from tests.fuzz.corpus import INSIDE


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
