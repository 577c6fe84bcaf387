"""The limits of the client protocol; ``PROTOCOL.md`` repeats them and a test compares the two."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from im_actors.core.model import BODY_BYTES_MAX, DEVICE_WINDOW, SESSION_BYTES_MAX
from im_actors.errors import ProtocolViolation, SetupError
from im_actors.wire.codec import FRAME_BYTES_MAX

AGENT_BYTES_MAX = 256
"""What a client says of itself in HELLO."""
TOKEN_BYTES_MAX = 8_192
HELLO_BYTES_MAX = 16_384
"""Most bytes of HELLO's frame: all that a connection may make a gateway hold before it is known."""
HELLO_ITEMS_MAX = 16
"""Most elements of an array in it; it has six, and a later version's may have some more."""
DETAIL_BYTES_MAX = 512
"""A reason or an explanation, in either direction; longer ones are cut."""
ECHO_BYTES_MAX = 1_024
"""A session longer than this is not worth a NACK, which would have to repeat it."""
ROWS_PER_FRAME_MAX = 128
"""Most rows in one ACK, NACK or HEADS, so that the longest of each fit in the smallest frame."""
CLIENT_ARRAY_ITEMS_MAX = 8_192
"""Most elements of an array that a gateway accepts; above every limit that a client is told."""

QUERY_NAME_BYTES_MAX = 32
"""The name of a query, of a change that is asked for, or of a signal."""
QUERY_ARGUMENTS_MAX = 8
QUERY_ROWS_MAX = 100
"""Most rows of one ANSWER; a larger ``limit`` in a QUERY is lowered to it."""
CURSOR_BYTES_MAX = 1_024
"""A place in a conversation list."""
LABEL_BYTES_MAX = 64
"""What conversations are folded under."""
SIGNAL_BYTES_MAX = 128
"""The value of a signal, when it is a text."""
SKIPS_MAX = 256
"""Most ranges in the inputs of an unread count: the newest ones."""

_OVERHEAD_BYTES = 1_024
"""Room for all fields of an event and of the message around it, apart from the body."""
_NAME_BYTES = SESSION_BYTES_MAX + 3
HEARTBEAT_MS_MIN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a gateway allows one connection. WELCOME tells the client those that it has to keep."""

    window: int = DEVICE_WINDOW
    """Most entries of one SEND, and most un-ACKed sends of one device in one session."""
    frame_bytes: int = FRAME_BYTES_MAX
    """Most bytes of msgpack in one frame, either way; the header is not counted."""
    body_bytes: int = BODY_BYTES_MAX
    """Most bytes of one body."""
    heartbeat_ms: int = 10_000
    """Milliseconds without another message after which the client sends a PING."""
    pull_events: int = 500
    """Most events of one EVENTS; a larger ``limit`` in a PULL is lowered to it."""
    follow_sessions: int = 1_000
    """Most sessions that one connection follows, and most names in one FOLLOW or UNFOLLOW."""
    queries: int = 8
    """Most QUERYs of one connection without an answer; 0: the server answers none."""
    hello_timeout_ms: int = 5_000
    """Milliseconds from the connection's start in which HELLO has to arrive."""
    heartbeats_missed: int = 3
    """The server closes after so many heartbeat intervals without any frame."""

    def validate(self) -> Limits:
        """Itself; SetupError when two limits contradict each other or the protocol."""
        for name, lowest, highest in (
            ("window", 1, DEVICE_WINDOW),
            ("frame_bytes", HELLO_BYTES_MAX, FRAME_BYTES_MAX),
            ("body_bytes", 1, BODY_BYTES_MAX),
            ("heartbeat_ms", HEARTBEAT_MS_MIN, 3_600_000),
            ("pull_events", 1, CLIENT_ARRAY_ITEMS_MAX),
            ("follow_sessions", 1, CLIENT_ARRAY_ITEMS_MAX),
            ("queries", 0, 1_000),
            ("hello_timeout_ms", 100, 600_000),
            ("heartbeats_missed", 2, 100),
        ):
            value = getattr(self, name)
            if type(value) is not int or not lowest <= value <= highest:
                raise SetupError(f"{name} is {value!r}, it must be {lowest} to {highest}")
        self._check_pairs()
        return self

    def _check_pairs(self) -> None:
        room = self.frame_bytes - _OVERHEAD_BYTES
        if self.body_bytes > room:
            raise SetupError(
                f"body_bytes {self.body_bytes} does not fit into frame_bytes {self.frame_bytes}: "
                f"a message with its fields needs {_OVERHEAD_BYTES} bytes more than its body"
            )
        if room < ROWS_PER_FRAME_MAX * (ECHO_BYTES_MAX + DETAIL_BYTES_MAX + 64):
            raise SetupError(f"frame_bytes {self.frame_bytes} is too small for a full NACK")
        if self.follow_sessions * _NAME_BYTES > room:
            raise SetupError(
                f"follow_sessions {self.follow_sessions} long names do not fit into "
                f"frame_bytes {self.frame_bytes}"
            )


WELCOME_LIMITS = (
    "window",
    "frame_bytes",
    "body_bytes",
    "heartbeat_ms",
    "pull_events",
    "follow_sessions",
    "queries",
)
"""The limits that WELCOME names, as keys of its map."""


def told_limits(limits: Limits) -> dict[str, int]:
    """The map of WELCOME."""
    return {name: getattr(limits, name) for name in WELCOME_LIMITS}


def heard_limits(told: dict[Any, Any]) -> Limits:
    """The limits that a client keeps. A key that it does not know is a later version's; a limit
    above what this version can do is lowered, and one that is missing has its default.
    ProtocolViolation: with such limits nobody could talk."""
    # A server that does not tell how many QUERYs it takes is older than they are.
    default = {field.name: field.default for field in fields(Limits)} | {"queries": 0}
    heard = {name: _lower(told.get(name), default[name], name) for name in WELCOME_LIMITS}
    for name, least in (("frame_bytes", HELLO_BYTES_MAX), ("heartbeat_ms", HEARTBEAT_MS_MIN)):
        if heard[name] < least:
            raise ProtocolViolation(f"WELCOME: {name} is {heard[name]}, the least is {least}")
    names_max = (heard["frame_bytes"] - _OVERHEAD_BYTES) // _NAME_BYTES
    heard["follow_sessions"] = min(heard["follow_sessions"], names_max)
    return Limits(**heard)


def _lower(value: object, default: Any, name: str) -> int:
    if type(value) is not int or value < 1:
        return int(default)
    # Only these two have a bound that the client's own code was built with.
    return min(value, int(default)) if name in ("window", "frame_bytes") else value
