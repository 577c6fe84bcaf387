"""Reading what is not a timeline: QUERY and ANSWER, and the signals that nobody stores.

A query has a name and arguments. What is wrong with the frame ends the connection like everywhere;
what is wrong with the name or an argument is answered with an error, because a later version may
know more queries than this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntFlag
from typing import Any, NamedTuple

from im_actors.core.model import check_name, check_text, pack
from im_actors.errors import BadRequest, ImError, ProtocolViolation
from im_actors.wire.codec import Message
from im_actors.wire.limits import (
    CURSOR_BYTES_MAX,
    LABEL_BYTES_MAX,
    QUERY_ARGUMENTS_MAX,
    QUERY_NAME_BYTES_MAX,
    QUERY_ROWS_MAX,
    SIGNAL_BYTES_MAX,
    SKIPS_MAX,
)
from im_actors.wire.messages import (
    ANSWER,
    NUMBER_MAX,
    QUERY,
    SIGNAL,
    SIGNALED,
    check_known_session,
    clean_detail,
)

_ANSWER_START = b"\x95" + pack(ANSWER)
_NO_ERROR = pack(0) + pack("")
SIGNALS = ("typing", "presence")
"""What signals there are."""


class Query(NamedTuple):
    request: int
    what: str
    args: list[Any]


class Answer(NamedTuple):
    """``code`` 0: ``value`` is what was asked for; otherwise why there is none."""

    request: int
    code: int
    detail: str
    value: Any


class Signal(NamedTuple):
    session: str
    what: str
    value: Any
    """None, a bool, an int or a short text."""


class Signaled(NamedTuple):
    session: str
    user: str
    what: str
    value: Any


class RowFlag(IntFlag):
    """Marks of a conversation in its user's list."""

    PINNED = 1
    MUTED = 2
    HIDDEN = 4
    LEFT = 8
    """The user is no member any more: he may read what came before and nothing else."""


class ConversationRow(NamedTuple):
    """One conversation of a user's list, as it travels."""

    session: str
    version: int
    """The seq of the mailbox event that said it; of two rows the one with the greater holds."""
    rank: int
    """The greatest comes first; 0: not in the list."""
    last_seq: int
    time_ms: int
    kind: int
    """Of the last message: MESSAGE, EDIT when it was edited, RECALL when it was recalled, VOID when
    the user deleted it or there is none. ``sender`` and ``preview`` are the message's too."""
    sender: str
    preview: str
    unread: int
    inputs: list[Any] | None
    """[base, last, skipped, ranges]: unread = max(0, last - base) - skipped."""
    read_seq: int
    peer_read_seq: int
    """Of a direct session: up to where the other user has read."""
    peer_delivered_seq: int
    flags: int
    label: str
    """Folded under this; empty: in the list itself."""
    title: str
    """A group's."""


class Overlay(NamedTuple):
    """What a recall or an edit (``kind``) at ``seq`` said of an earlier event; of kind VOID: that
    the user who asks has deleted it for himself."""

    target: int
    seq: int
    kind: int
    text: bytes | None


# ---- building


def query(request: int, what: str, args: Sequence[Any]) -> tuple[Any, ...]:
    return (QUERY, request, what, args)


def answer(request: int, value: Any) -> tuple[Any, ...]:
    return (ANSWER, request, 0, "", value)


def encode_answer(request: int, value: bytes) -> bytes:
    """The frame of an answer whose value is msgpack already."""
    body = b"".join((_ANSWER_START, pack(request), _NO_ERROR, value))
    return len(body).to_bytes(4, "big") + body


def refusal(request: int, error: ImError) -> tuple[Any, ...]:
    """The answer to a query that ``error`` came of."""
    return (ANSWER, request, error.code, clean_detail(str(error)), None)


def signal(session: str, what: str, value: Any) -> tuple[Any, ...]:
    return (SIGNAL, session, what, value)


def signaled(rows: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """Rows are ``Signaled`` or arrays like it."""
    return (SIGNALED, rows)


# ---- checking what clients send


def check_query(message: Message) -> Query:
    """The frame as such; ``check_arguments`` looks at what is asked for."""
    if len(message) != 4:
        raise ProtocolViolation(f"QUERY has 4 elements, not {len(message)}")
    _, request, what, args = message
    if type(request) is not int or not 1 <= request <= NUMBER_MAX:
        raise BadRequest("QUERY: request must be an integer from 1 on")
    check_text("QUERY: the name", what, QUERY_NAME_BYTES_MAX)
    if type(args) is not list or len(args) > QUERY_ARGUMENTS_MAX:
        raise BadRequest(f"QUERY: arguments must be an array of up to {QUERY_ARGUMENTS_MAX}")
    return Query(request, what, args)


def check_arguments(query: Query) -> list[Any]:
    """The arguments, with limits lowered to what an answer holds. What this raises is the answer
    to the query."""
    checks = QUERIES.get(query.what)
    if checks is None:
        raise BadRequest(f"there is no query {query.what!r} here")
    if len(query.args) != len(checks):
        names = ", ".join(name for name, _ in checks) or "nothing"
        raise BadRequest(f"{query.what} takes {names}")
    pairs = zip(checks, query.args, strict=True)
    return [check(f"{query.what}: {name}", value) for (name, check), value in pairs]


def check_signal(message: Message) -> Signal:
    if len(message) != 4:
        raise ProtocolViolation(f"SIGNAL has 4 elements, not {len(message)}")
    _, session, what, value = message
    check_known_session(session)
    check_text("SIGNAL: the name", what, QUERY_NAME_BYTES_MAX)
    if type(value) is str and value:
        check_text("SIGNAL: the value", value, SIGNAL_BYTES_MAX)
    elif value is not None and type(value) not in (bool, str) and not _is_number(value):
        raise BadRequest("SIGNAL: the value must be nil, a bool, a number or a short text")
    return Signal(session, what, value)


def _is_number(value: object) -> bool:
    return type(value) is int and -NUMBER_MAX <= value <= NUMBER_MAX


_Check = Callable[[str, Any], Any]


def _session(what: str, value: Any) -> str:
    return check_known_session(value)


def _number(least: int) -> _Check:
    def check(what: str, value: Any) -> int:
        if type(value) is not int or not least <= value <= NUMBER_MAX:
            raise BadRequest(f"{what} must be an integer from {least} on")
        return value

    return check


_seq = _number(0)
_count = _number(1)


def _limit(what: str, value: Any) -> int:
    return min(int(_count(what, value)), QUERY_ROWS_MAX)


def _flag(what: str, value: Any) -> bool:
    if type(value) is not bool:
        raise BadRequest(f"{what} must be true or false")
    return value


def _cursor(what: str, value: Any) -> str | None:
    return None if value is None else check_text(what, value, CURSOR_BYTES_MAX)


def _label(what: str, value: Any) -> str:
    return "" if value == "" else check_text(what, value, LABEL_BYTES_MAX)


def _label_or_all(what: str, value: Any) -> str | None:
    return None if value is None else _label(what, value)


def _user(what: str, value: Any) -> str | None:
    return None if value is None else check_name(what, value)


QUERIES: dict[str, tuple[tuple[str, _Check], ...]] = {
    "conversations": (
        ("cursor", _cursor), ("limit", _limit), ("unread only", _flag), ("label", _label_or_all),
    ),
    "conversation": (("session", _session),),
    "unread": (),
    "changes": (("version", _seq), ("limit", _limit)),
    "group": (("session", _session),),
    "members": (("session", _session), ("after", _user), ("limit", _limit)),
    "devices": (),
    "receipts": (("session", _session), ("seq", _count), ("limit", _limit)),
    "presence": (("session", _session), ("limit", _limit)),
    "overlays": (("session", _session), ("first seq", _count), ("last seq", _count)),
    "batch": (("session", _session),),
    "outcomes": (("session", _session), ("chunk", _seq)),
}  # fmt: skip
"""Name to the names of the arguments and their checks."""


# ---- reading what servers send


def read_answer(message: Message) -> Answer:
    fields = message[1:5]
    if tuple(map(type, fields[:3])) != (int, int, str) or len(fields) != 4:
        raise ProtocolViolation("ANSWER from the server has a wrong form")
    return Answer(*fields)


def read_signaled(message: Message) -> list[Signaled]:
    rows = message[1] if len(message) > 1 else None
    if type(rows) is not list:
        raise ProtocolViolation("SIGNALED from the server has a wrong form")
    found = []
    for row in rows:
        if type(row) is not list or len(row) < 4 or tuple(map(type, row[:3])) != (str, str, str):
            raise ProtocolViolation("a row of SIGNALED has a wrong form")
        found.append(Signaled(*row[:4]))
    return found


_ROW_TYPES = (
    (str,), (int,), (int,), (int,), (int,), (int,), (str,), (str,), (int,), (list, type(None)),
    (int,), (int,), (int,), (int,), (str,), (str,),
)  # fmt: skip
_ROW_FIELDS = len(_ROW_TYPES)


def read_row(value: Any) -> ConversationRow:
    """A conversation of an answer or of a store; ProtocolViolation when it is none."""
    if type(value) is not list or len(value) < _ROW_FIELDS:
        raise ProtocolViolation("a conversation has a wrong form")
    fields = value[:_ROW_FIELDS]
    for field, types in zip(fields, _ROW_TYPES, strict=True):
        if type(field) not in types or (type(field) is int and not 0 <= field <= NUMBER_MAX):
            raise ProtocolViolation("a conversation has a field of a wrong type or value")
    row = ConversationRow._make(fields)
    if row.inputs is not None:
        _check_inputs(row.inputs)
    return row


def _check_inputs(inputs: list[Any]) -> None:
    if len(inputs) < 4 or not _are_seqs(inputs[:3]) or type(inputs[3]) is not list:
        raise ProtocolViolation("the inputs of an unread count have a wrong form")
    if len(inputs[3]) > SKIPS_MAX:
        raise ProtocolViolation("the inputs of an unread count are too many")
    for pair in inputs[3]:
        if type(pair) is not list or len(pair) != 2 or not _are_seqs(pair):
            raise ProtocolViolation("a range of events that do not count has a wrong form")


def _are_seqs(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value <= NUMBER_MAX for value in values)


def read_fields(what: str, value: Any, *types: type | tuple[type, ...]) -> list[Any]:
    """An answer's value that is an array of these fields; ProtocolViolation when it is not."""
    if type(value) is not list or len(value) < len(types):
        raise ProtocolViolation(f"the answer to {what} has a wrong form")
    fields = value[: len(types)]
    for field, allowed in zip(fields, types, strict=True):
        if type(field) not in (allowed if isinstance(allowed, tuple) else (allowed,)):
            raise ProtocolViolation(f"the answer to {what} has a field of a wrong type")
    return fields


def read_overlays(value: Any) -> list[Overlay]:
    if type(value) is not list:
        raise ProtocolViolation("the answer to overlays has a wrong form")
    rows = [read_fields("overlays", row, int, int, int, (bytes, type(None))) for row in value]
    if not all(_are_seqs(row[:3]) for row in rows):
        raise ProtocolViolation("the answer to overlays holds a number out of range")
    return [Overlay(*row) for row in rows]
