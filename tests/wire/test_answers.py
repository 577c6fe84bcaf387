"""What servers send, read by a client: later versions are understood, nonsense is a violation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core.formats import Formats
from im_actors.core.model import Event, encode_event
from im_actors.errors import ImError, Overloaded, ProtocolViolation, RetryableError, UnknownVersion
from im_actors.wire import answers, messages
from im_actors.wire.codec import FrameDecoder, encode_frame
from im_actors.wire.limits import Limits
from im_actors.wire.messages import Ack, Nack

EVENT = Event("team", 1, 5, 1, "alice/phone", 1, b"hello")
ENCODED = encode_event(EVENT)

READERS: dict[Callable[[list[Any]], Any], tuple[Any, ...]] = {
    answers.read_welcome: messages.welcome("g", 5, Limits(window=3)),
    answers.read_acks: messages.acks([Ack("team", 1, 2, 3, 3, 9)]),
    answers.read_nacks: messages.nacks([Nack("team", 1, 200, 5, 0, "full")]),
    answers.read_events: messages.events(1, "team", 1, [ENCODED]),
    answers.read_push: messages.push([ENCODED, ENCODED]),
    answers.read_heads: messages.heads([("team", 4)]),
    answers.read_pong: messages.pong(4),
    answers.read_error: messages.error_message(Overloaded("full")),
    answers.read_bye: messages.server_bye("later", 100),
}
readers = pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)


def received(message: tuple[Any, ...]) -> list[Any]:
    (decoded,) = FrameDecoder().feed(encode_frame(message))
    return decoded


def test_values() -> None:
    read = {reader: reader(received(message)) for reader, message in READERS.items()}
    assert read[answers.read_welcome] == answers.Welcome(1, "g", 5, Limits(window=3))
    assert read[answers.read_acks] == [Ack("team", 1, 2, 3, 3, 9)]
    assert read[answers.read_nacks] == [Nack("team", 1, 200, 5, 0, "full")]
    assert read[answers.read_events] == answers.Events(1, "team", 1, 0, [EVENT])
    later = messages.events(1, "team", 1, [ENCODED], first=3)
    assert answers.read_events(received(later)).first == 3
    assert read[answers.read_push] == [EVENT, EVENT]
    assert read[answers.read_heads] == [answers.Head("team", 4)]
    message = received(messages.heads([("team", 4), ("group:g", 0, 111), ("s", 5, 0)]))
    assert answers.read_heads(message) == [("team", 4), ("s", 5)]
    assert answers.read_refused(message) == [("group:g", 111)]
    assert read[answers.read_pong] == 4
    assert isinstance(read[answers.read_error], Overloaded)
    assert read[answers.read_bye] == answers.ServerBye("later", 100)


@readers
def test_fields_of_a_later_version_are_left_alone(read: Callable[[list[Any]], Any]) -> None:
    message = received(READERS[read])
    later = [*message, "new"]
    rows = message[1]
    if type(rows) is list and type(rows[0]) is list:
        later[1] = [[*row, "new"] for row in rows]
    assert str(read(later)) == str(read(message))


@readers
def test_fewer_fields_are_a_violation(read: Callable[[list[Any]], Any]) -> None:
    with pytest.raises(ProtocolViolation):
        read(received(READERS[read])[:-1])


def test_a_code_of_a_later_version_keeps_the_meaning_of_its_range() -> None:
    assert isinstance(answers.read_error([70, 299, "new"]), RetryableError)


def test_welcome_of_another_version() -> None:
    with pytest.raises(UnknownVersion):
        answers.read_welcome([65, 2, "g", 0, {}])
    assert answers.read_welcome([65, 2, "g", 0, {}], Formats(1, 3)).version == 2
    with pytest.raises(UnknownVersion, match="speaks protocol version 1, this one 2 to 3: update"):
        answers.read_welcome([65, 1, "g", 0, {}], Formats(2, 3))
    with pytest.raises(ProtocolViolation):
        answers.read_welcome([66, 1, "g", 0, {}])


@pytest.mark.parametrize(
    "event", [b"", b"\x01", b"\x91\x01", ENCODED[:-1], ENCODED + b"\x01", "text", None, b"\xc1"]
)
def test_an_event_that_cannot_be_read(event: Any) -> None:
    with pytest.raises(ProtocolViolation):
        answers.read_push([73, [event]])


@pytest.mark.parametrize("number", [-1, 2**63, 2**64 - 1])
def test_a_number_that_no_store_holds_is_a_violation(number: int) -> None:
    """It would be a failed disk to the client's store, and no message could be saved any more."""
    for at in (1, 2, 3, 5):
        fields = list(EVENT)
        fields[at] = number
        with pytest.raises(ProtocolViolation):
            answers.read_push([73, [encode_event(Event._make(fields))]])
    for read, row in (
        (answers.read_acks, Ack("team", 1, 2, 3, 3, 9)),
        (answers.read_nacks, Nack("team", 1, 200, 5, 0, "full")),
        (answers.read_heads, answers.Head("team", 4)),
    ):
        for at in [at for at, value in enumerate(row) if type(value) is int]:
            odd = [*row[:at], number, *row[at + 1 :]]
            with pytest.raises(ProtocolViolation):
                read([0, [odd]])


values = st.recursive(
    st.none() | st.integers() | st.binary(max_size=30) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=12,
)


@given(st.lists(values, max_size=6))
def test_whatever_comes_only_our_errors_are_raised(fields: list[Any]) -> None:
    for read, message in READERS.items():
        for candidate in ([message[0], *fields], [message[0], [fields]]):
            with contextlib.suppress(ImError):
                read(candidate)
