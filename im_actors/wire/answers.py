"""What servers send, as a client reads it.

A server of the same protocol version may be newer: elements that it adds at the end of an array are
left alone here, and so should a client leave types that it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from im_actors.core.formats import Formats
from im_actors.core.model import Event, decode_event
from im_actors.errors import ImError, ProtocolViolation, error_for
from im_actors.wire.codec import Message
from im_actors.wire.limits import Limits, heard_limits
from im_actors.wire.messages import NUMBER_MAX, VERSIONS, WELCOME, Ack, Nack


class Welcome(NamedTuple):
    version: int
    server: str
    time_ms: int
    limits: Limits


class Events(NamedTuple):
    """The answer to a PULL. ``code`` 0: ``events`` is the page; otherwise why there is none."""

    request: int
    session: str
    head: int
    code: int
    events: list[Event]
    first: int = 1
    """What is below is not for this reader: his timeline begins here."""


class Head(NamedTuple):
    session: str
    head: int


class ServerBye(NamedTuple):
    reason: str
    reconnect_after_ms: int


def read_welcome(message: Message, versions: Formats = VERSIONS) -> Welcome:
    """The server's answer to HELLO, with the version that it has chosen; UnknownVersion when that
    is none of ``versions``."""
    if message[0] != WELCOME:
        raise ProtocolViolation(f"the server began with type {message[0]}, not with WELCOME")
    version, server, time_ms, limits = _read("WELCOME", message, (int, str, int, dict))
    versions.accepted(version, "protocol version")
    return Welcome(version, server, time_ms, heard_limits(limits))


_ACK_TYPES = (str, int, int, int, int, int)
_NACK_TYPES = (str, int, int, int, int, str)


def read_acks(message: Message) -> list[Ack]:
    return [Ack._make(row) for row in _rows("ACK", message, _ACK_TYPES)]


def read_nacks(message: Message) -> list[Nack]:
    return [Nack._make(row) for row in _rows("NACK", message, _NACK_TYPES)]


def read_heads(message: Message) -> list[Head]:
    """Those of the sessions that are followed; ``read_refused`` has the others."""
    refused = {session for session, _ in read_refused(message)}
    rows = _rows("HEADS", message, (str, int))
    return [Head._make(row) for row in rows if row[0] not in refused]


def read_refused(message: Message) -> list[tuple[str, int]]:
    """(session, code) of each session that the user may not follow."""
    rows = message[1] if len(message) > 1 and type(message[1]) is list else []
    return [
        (row[0], row[2])
        for row in rows
        if type(row) is list
        and len(row) > 2
        and (type(row[0]), type(row[2])) == (str, int)
        and row[2] > 0
    ]


def read_events(message: Message) -> Events:
    request, session, head, code, encoded = _read("EVENTS", message, (int, str, int, int, list))
    _check_numbers("EVENTS", (request, head, code))
    told = message[6] if len(message) > 6 else 1
    first = told if type(told) is int and told > 1 else 1
    return Events(request, session, head, code, _events(encoded), first)


def read_push(message: Message) -> list[Event]:
    (encoded,) = _read("PUSH", message, (list,))
    return _events(encoded)


def read_pong(message: Message) -> int:
    (token,) = _read("PONG", message, (int,))
    return int(token)


def read_error(message: Message) -> ImError:
    """The error that the server reports of the connection, to be raised or shown."""
    code, detail = _read("ERROR", message, (int, str))
    return error_for(code, detail)


def read_bye(message: Message) -> ServerBye:
    reason, reconnect_after_ms = _read("BYE", message, (str, int))
    return ServerBye(reason, reconnect_after_ms)


_EVENT_TYPES = (str, int, int, int, str, int, bytes)


def _events(encoded: list[Any]) -> list[Event]:
    found: list[Event] = []
    for data in encoded:
        try:
            event = decode_event(data)
        except Exception as error:
            raise ProtocolViolation(f"an event cannot be read: {error}") from None
        if tuple(map(type, event)) != _EVENT_TYPES:
            raise ProtocolViolation("an event has a field of a wrong type")
        _check_numbers("an event", (event.seq, event.key, event.kind, event.n))
        found.append(event)
    return found


def _rows(what: str, message: Message, types: tuple[type, ...]) -> list[Sequence[Any]]:
    (rows,) = _read(what, message, (list,))
    count = len(types)
    numbers_end = 1 + types.count(int)
    found: list[Sequence[Any]] = []
    for row in rows:
        if type(row) is not list or tuple(map(type, row[:count])) != types:
            raise ProtocolViolation(f"a row of {what} has a wrong form")
        _check_numbers(what, row[1:numbers_end])
        found.append(row if len(row) == count else row[:count])
    return found


def _check_numbers(what: str, numbers: Sequence[int]) -> None:
    """What no store can hold must not get as far as the store."""
    if min(numbers) < 0 or max(numbers) > NUMBER_MAX:
        raise ProtocolViolation(f"{what} from the server holds a number out of range")


def _read(what: str, message: Message, types: tuple[type, ...]) -> list[Any]:
    values = message[1 : len(types) + 1]
    if tuple(map(type, values)) != types:
        raise ProtocolViolation(f"{what} from the server has a wrong form")
    return values
