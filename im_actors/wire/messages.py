"""The messages of the client protocol: their types, their fields, and the checks of what clients
send. ``answers`` reads what servers send; ``PROTOCOL.md`` is the specification.

A check raises on a message that is wrong as a whole, and the connection is closed then. Only an
entry of a SEND that is wrong by itself is refused alone, by a NACK: the others may be good.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, NoReturn, TypeVar

from im_actors.core.batch import BATCH_DEVICE
from im_actors.core.formats import Formats
from im_actors.core.model import EventKind, check_body, check_name, check_text
from im_actors.core.names import check_session
from im_actors.errors import BadRequest, ImError, ProtocolViolation, TooLarge
from im_actors.wire.bodies import SENT_KINDS, check_kind_body
from im_actors.wire.codec import Message
from im_actors.wire.limits import (
    AGENT_BYTES_MAX,
    CLIENT_ARRAY_ITEMS_MAX,
    DETAIL_BYTES_MAX,
    ECHO_BYTES_MAX,
    ROWS_PER_FRAME_MAX,
    TOKEN_BYTES_MAX,
    WELCOME_LIMITS,
    Limits,
    told_limits,
)

VERSIONS = Formats(1, 1)
"""Of this protocol, those that this release speaks."""
NUMBER_MAX = (1 << 63) - 1
"""The highest n, seq or request: what SQLite and most languages hold in a signed integer."""
KNOWN_SESSIONS_MAX = 16_384
"""Names of sessions that were checked and are remembered, process-wide."""


class MessageType(IntEnum):
    """Clients send 1 to 63, servers 64 to 127; from 128 on it is between actors."""

    HELLO = 1
    SEND = 2
    FOLLOW = 3
    UNFOLLOW = 4
    PULL = 5
    PING = 6
    BYE = 7
    QUERY = 8
    SIGNAL = 9
    WELCOME = 65
    ACK = 66
    NACK = 67
    EVENTS = 68
    PONG = 69
    ERROR = 70
    SERVER_BYE = 71
    HEADS = 72
    PUSH = 73
    ANSWER = 74
    SIGNALED = 75


# Plain ints: an IntEnum member costs a slow path in msgpack and in each comparison.
HELLO = int(MessageType.HELLO)
SEND = int(MessageType.SEND)
FOLLOW = int(MessageType.FOLLOW)
UNFOLLOW = int(MessageType.UNFOLLOW)
PULL = int(MessageType.PULL)
PING = int(MessageType.PING)
BYE = int(MessageType.BYE)
QUERY = int(MessageType.QUERY)
SIGNAL = int(MessageType.SIGNAL)
WELCOME = int(MessageType.WELCOME)
ACK = int(MessageType.ACK)
NACK = int(MessageType.NACK)
EVENTS = int(MessageType.EVENTS)
PONG = int(MessageType.PONG)
ERROR = int(MessageType.ERROR)
SERVER_BYE = int(MessageType.SERVER_BYE)
HEADS = int(MessageType.HEADS)
PUSH = int(MessageType.PUSH)
ANSWER = int(MessageType.ANSWER)
SIGNALED = int(MessageType.SIGNALED)

_MESSAGE = int(EventKind.MESSAGE)


class Hello(NamedTuple):
    version: int
    user: str
    device: str
    """Without the user."""
    token: str | None
    agent: str

    @property
    def address(self) -> str:
        """The device address, "user/device"."""
        return f"{self.user}/{self.device}"


class Sends(NamedTuple):
    accepted: list[list[Any]]
    """Entries that passed, as they came: [session: str, n: int, kind: int, body: bytes]."""
    refused: list[Nack]


class Pull(NamedTuple):
    request: int
    session: str
    after: int
    before: int
    limit: int
    """Already lowered to what the server gives at once."""


class Ack(NamedTuple):
    session: str
    n: int
    seq: int
    epoch: int
    copies: int
    time_ms: int


class Nack(NamedTuple):
    session: str
    n: int
    code: int
    retry_after_ms: int
    expected_n: int
    detail: str


# ---- building: client to server


def hello(
    user: str, device: str, token: str | None, agent: str, version: int = VERSIONS.newest
) -> tuple[Any, ...]:
    """``device`` without the user; ``version`` the newest that is spoken."""
    return (HELLO, version, user, device, token, agent)


def send(entries: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """Entries are (session, n, kind, body); at most ``window``, and no more than fit a frame."""
    return (SEND, entries)


def follow(sessions: Sequence[str]) -> tuple[Any, ...]:
    return (FOLLOW, sessions)


def unfollow(sessions: Sequence[str]) -> tuple[Any, ...]:
    return (UNFOLLOW, sessions)


def pull(request: int, session: str, after: int, before: int, limit: int) -> tuple[Any, ...]:
    return (PULL, request, session, after, before, limit)


def ping(token: int) -> tuple[Any, ...]:
    return (PING, token)


def bye(reason: str) -> tuple[Any, ...]:
    return (BYE, clean_detail(reason))


# ---- building: server to client


def welcome(
    server: str, time_ms: int, limits: Limits, version: int = VERSIONS.newest
) -> tuple[Any, ...]:
    return (WELCOME, version, server, time_ms, told_limits(limits))


def acks(rows: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """Rows are ``Ack`` or arrays like it; many rows go through ``in_batches`` first."""
    return (ACK, rows)


def nacks(rows: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    return (NACK, rows)


def nack_of(session: str, n: int, error: ImError, expected_n: int = 0) -> Nack:
    """The row that tells a client of ``error``."""
    return Nack(session, n, error.code, error.retry_after_ms, expected_n, clean_detail(str(error)))


def events(
    request: int,
    session: str,
    head: int,
    encoded: Sequence[bytes],
    code: int = 0,
    first: int = 1,
) -> tuple[Any, ...]:
    """The answer to a PULL; ``encoded`` are events as ``encode_event`` made them, ascending. What
    is below ``first`` is not for this reader."""
    message = (EVENTS, request, session, head, code, encoded)
    return message if first <= 1 else (*message, first)


def pong(token: int) -> tuple[Any, ...]:
    return (PONG, token)


def error_message(error: ImError) -> tuple[Any, ...]:
    return (ERROR, error.code, clean_detail(str(error)))


def server_bye(reason: str, reconnect_after_ms: int) -> tuple[Any, ...]:
    """``reconnect_after_ms`` -1: do not reconnect."""
    return (SERVER_BYE, clean_detail(reason), reconnect_after_ms)


def heads(rows: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """Rows are (session, head)."""
    return (HEADS, rows)


def push(encoded: Sequence[bytes]) -> tuple[Any, ...]:
    """``encoded`` are events as ``encode_event`` made them, per session in the order of seq."""
    return (PUSH, encoded)


_Row = TypeVar("_Row")


def in_batches(rows: Sequence[_Row], size: int = ROWS_PER_FRAME_MAX) -> Iterator[Sequence[_Row]]:
    """``rows`` in parts that fit a frame each: ACK, NACK, HEADS."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


_FRAME_OVERHEAD_BYTES = 512
"""All of an EVENTS message but its events."""
_BIN_HEADER_BYTES = 5


def split_events(
    encoded: Iterable[bytes],
    frame_bytes: int,
    items_max: int = CLIENT_ARRAY_ITEMS_MAX,
) -> Iterator[list[bytes]]:
    """Encoded events in parts that fit a PUSH or an EVENTS frame each; never an empty part."""
    part: list[bytes] = []
    room = frame_bytes - _FRAME_OVERHEAD_BYTES
    for event in encoded:
        size = len(event) + _BIN_HEADER_BYTES
        if part and (size > room or len(part) == items_max):
            yield part
            part, room = [], frame_bytes - _FRAME_OVERHEAD_BYTES
        part.append(event)
        room -= size
    if part:
        yield part


def fit_events(encoded: Sequence[bytes], frame_bytes: int, newest: bool) -> list[bytes]:
    """As many events as one EVENTS frame holds, from the end that the PULL asked for. The rest
    is left to the client's next PULL, so a page is never a page with a hole."""
    if newest:
        return next(split_events(reversed(encoded), frame_bytes), [])[::-1]
    return next(split_events(encoded, frame_bytes), [])


def clean_detail(text: str) -> str:
    """``text`` as a detail or a reason may be sent: valid UTF-8, not too long."""
    if len(text) * 4 <= DETAIL_BYTES_MAX and text.isascii():
        return text
    return text.encode("utf-8", "replace")[:DETAIL_BYTES_MAX].decode("utf-8", "ignore")


# ---- checking what clients send


def check_hello(message: Message, versions: Formats = VERSIONS) -> Hello:
    """The first frame, with the version that this connection speaks: the newest that both know. A
    HELLO of a later one begins with the fields of this one."""
    if message[0] != HELLO or len(message) < 2:
        raise ProtocolViolation("the first message must be HELLO")
    version = message[1]
    if type(version) is not int:
        raise ProtocolViolation("HELLO: version must be an integer")
    speaks = versions.agreed(version, "protocol version")
    known = message[:6] if version > versions.newest else message
    _, _, user, device, token, agent = _fields("HELLO", known, 6)
    check_name("user", user)
    check_name("device", device)
    if device.startswith(BATCH_DEVICE):
        raise BadRequest(f"devices whose names begin with {BATCH_DEVICE!r} are the servers'")
    if token is not None:
        check_text("token", token, TOKEN_BYTES_MAX)
    if agent != "":
        check_text("agent", agent, AGENT_BYTES_MAX)
    return Hello(speaks, user, device, token, agent)


_known_sessions: set[str] = set()


def check_known_session(session: object) -> str:
    """``check_session`` with a memory: most messages name a session that was seen before."""
    if type(session) is str and session in _known_sessions:
        return session
    name = check_session(session)
    if len(_known_sessions) >= KNOWN_SESSIONS_MAX:
        _known_sessions.clear()
    _known_sessions.add(name)
    return name


def check_send(message: Message, limits: Limits) -> Sends:
    """The hot path: good entries are returned as they came, not copied and not converted."""
    entries = message[1] if len(message) == 2 else None
    if type(entries) is not list:
        raise ProtocolViolation("SEND holds one array of entries")
    if not 0 < len(entries) <= limits.window:
        raise ProtocolViolation(f"SEND: {len(entries)} entries, allowed are 1 to {limits.window}")
    known = _known_sessions
    body_bytes = limits.body_bytes
    for entry in entries:
        if type(entry) is not list or len(entry) != 4:
            break
        session, n, kind, body = entry
        if not (
            type(session) is str
            and session in known
            and type(n) is int
            and 0 < n <= NUMBER_MAX
            and type(kind) is int
            and kind == _MESSAGE
            and type(body) is bytes
            and len(body) <= body_bytes
        ):
            break
    else:
        return Sends(entries, [])
    return _check_entries(entries, body_bytes)


def _check_entries(entries: list[Any], body_bytes: int) -> Sends:
    """The same at leisure: what is new, void or wrong is told apart here."""
    sends = Sends([], [])
    for entry in entries:
        if type(entry) is not list or len(entry) != 4:
            raise ProtocolViolation("SEND: an entry must be [session, n, kind, body]")
        session, n, kind, body = entry
        if type(session) is not str or type(n) is not int:
            # Without these two not even a NACK can name the entry.
            raise ProtocolViolation("SEND: session must be a string and n an integer")
        if len(session.encode()) > ECHO_BYTES_MAX:
            raise ProtocolViolation(f"SEND: a session of more than {ECHO_BYTES_MAX} bytes")
        try:
            _check_entry(session, n, kind, body, body_bytes)
        except (BadRequest, TooLarge) as error:
            sends.refused.append(nack_of(session, n, error))
        else:
            sends.accepted.append(entry)
    return sends


def _check_entry(session: str, n: int, kind: object, body: object, body_bytes: int) -> None:
    check_known_session(session)
    if not 0 < n <= NUMBER_MAX:
        raise BadRequest(f"n is {n}, it must be 1 to {NUMBER_MAX}")
    if type(kind) is not int or kind not in SENT_KINDS:
        raise BadRequest(f"kind must be one of {', '.join(map(str, SENT_KINDS))}")
    size = len(data := check_body(body))
    if size > body_bytes:
        raise TooLarge(f"body is {size} bytes, the limit is {body_bytes}")
    check_kind_body(kind, data)


def check_follow(message: Message, limits: Limits) -> list[str]:
    return _check_sessions("FOLLOW", message, limits)


def check_unfollow(message: Message, limits: Limits) -> list[str]:
    return _check_sessions("UNFOLLOW", message, limits)


def _check_sessions(what: str, message: Message, limits: Limits) -> list[str]:
    (_, sessions) = _fields(what, message, 2)
    if type(sessions) is not list or not sessions:
        raise ProtocolViolation(f"{what} holds one array of sessions that is not empty")
    if len(sessions) > limits.follow_sessions:
        raise TooLarge(f"{what}: {len(sessions)} sessions, the limit is {limits.follow_sessions}")
    for session in sessions:
        check_known_session(session)
    return sessions


def check_pull(message: Message, limits: Limits) -> Pull:
    _, request, session, after, before, limit = _fields("PULL", message, 6)
    for name, value, lowest in (
        ("request", request, 1),
        ("after", after, -1),
        ("before", before, 0),
        ("limit", limit, 1),
    ):
        if type(value) is not int or not lowest <= value <= NUMBER_MAX:
            raise BadRequest(f"PULL: {name} must be an integer from {lowest} on")
    return Pull(
        request, check_known_session(session), after, before, min(limit, limits.pull_events)
    )


def check_ping(message: Message) -> int:
    """The token, to be sent back in PONG."""
    _, token = _fields("PING", message, 2)
    if type(token) is not int:
        raise BadRequest("PING: token must be an integer")
    return token


def check_bye(message: Message) -> str:
    """The reason."""
    _, reason = _fields("BYE", message, 2)
    if type(reason) is not str:
        raise BadRequest("BYE: reason must be a string")
    return clean_detail(reason)


def refuse_type(message: Message) -> NoReturn:
    """For the end of a gateway's dispatch: HELLO sent twice, or a type that clients do not send."""
    if message[0] == HELLO:
        raise ProtocolViolation("HELLO was sent twice")
    raise ProtocolViolation(f"clients do not send messages of type {message[0]}")


def _fields(what: str, message: Message, count: int) -> Message:
    if len(message) != count:
        raise ProtocolViolation(f"{what} has {count} elements, not {len(message)}")
    return message


__all__ = [
    "KNOWN_SESSIONS_MAX",
    "NUMBER_MAX",
    "VERSIONS",
    "WELCOME_LIMITS",
    "Ack",
    "Hello",
    "Limits",
    "MessageType",
    "Nack",
    "Pull",
    "Sends",
    "acks",
    "bye",
    "check_bye",
    "check_follow",
    "check_hello",
    "check_known_session",
    "check_ping",
    "check_pull",
    "check_send",
    "check_unfollow",
    "clean_detail",
    "error_message",
    "events",
    "fit_events",
    "follow",
    "heads",
    "hello",
    "in_batches",
    "nack_of",
    "nacks",
    "ping",
    "pong",
    "pull",
    "push",
    "refuse_type",
    "send",
    "server_bye",
    "split_events",
    "told_limits",
    "unfollow",
    "welcome",
]
