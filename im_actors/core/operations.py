"""All changes of state that may be asked for, and what their arguments have to be.

The body of a SEND or a NOTE that asks for one is msgpack [name, arguments], as
``facts.pack_request`` makes it. Arguments are positional, none is optional.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from im_actors.core.batch import (
    CHANNELS,
    CHUNKS_MAX,
    CONTENT_BYTES_MAX,
    PROGRESS_CHUNKS_MAX,
)
from im_actors.core.facts import read_request
from im_actors.core.model import EventKind, check_name, check_text
from im_actors.core.names import NOTICE_CHANNELS, check_session
from im_actors.errors import BadRequest, TooLarge

NUMBER_MAX = (1 << 62) - 1
"""Seqs, keys and times in operations stay below what ranks are made of."""
TITLE_BYTES_MAX = 256
LABEL_BYTES_MAX = 64
ABOUT_BYTES_MAX = 256
"""What a device says of itself."""
USERS_MAX = 8_192
"""Most names in one request, whatever the settings allow."""
RECEIVED_MAX = 100
"""Most conversations of which one request says how far they have come."""
READERS_MAX = 150
"""Most users in one note of read positions, so that it fits whatever their names are."""
SPAN_PAIRS_MAX = 1_024
"""Most ranges, and most recalls, of one span note."""
ROLES = ("member", "admin", "owner")

Check = Callable[[str, object], Any]
"""Takes what is checked, for the error, and the value; returns the value as rules use it."""


class Argument(NamedTuple):
    name: str
    check: Check


class Asked(NamedTuple):
    """A checked request."""

    what: str
    args: list[Any]


def _number(what: str, value: object, least: int) -> int:
    if type(value) is not int or not least <= value <= NUMBER_MAX:
        raise BadRequest(f"{what} must be an integer from {least} to {NUMBER_MAX}")
    return value


def _seq(what: str, value: object) -> int:
    return _number(what, value, 1)


def _natural(what: str, value: object) -> int:
    return _number(what, value, 0)


def _flag(what: str, value: object) -> bool:
    if type(value) is not bool:
        raise BadRequest(f"{what} must be true or false")
    return value


def _user(what: str, value: object) -> str:
    return check_name(what, value)


def _user_or_all(what: str, value: object) -> str | None:
    return None if value is None else check_name(what, value)


def _users(what: str, value: object) -> list[str]:
    if type(value) is not list:
        raise BadRequest(f"{what} must be an array of users")
    if len(value) > USERS_MAX:
        raise TooLarge(f"{what} has {len(value)} names, the limit is {USERS_MAX}: name fewer")
    return list(dict.fromkeys(check_name(what, user) for user in value))


def _role(what: str, value: object) -> str:
    if value not in ROLES:
        raise BadRequest(f"{what} must be one of {', '.join(ROLES)}")
    return str(value)


def _title(what: str, value: object) -> str:
    return check_text(what, value, TITLE_BYTES_MAX)


def _label(what: str, value: object) -> str:
    return "" if value == "" else check_text(what, value, LABEL_BYTES_MAX)


def _about(what: str, value: object) -> str:
    return "" if value == "" else check_text(what, value, ABOUT_BYTES_MAX)


def _session(what: str, value: object) -> str:
    return check_session(value)


def _pairs(what: str, value: object) -> list[tuple[int, int]]:
    """From a flat array of numbers. Ranges are (first, last), recalls are (target, by)."""
    if type(value) is not list or len(value) % 2:
        raise BadRequest(f"{what} must be an array of pairs, flat")
    if len(value) > 2 * SPAN_PAIRS_MAX:
        raise TooLarge(f"{what} has {len(value) // 2} pairs, the limit is {SPAN_PAIRS_MAX}")
    numbers = iter([_seq(what, number) for number in value])
    pairs = list(zip(numbers, numbers, strict=True))
    if any(first > last for first, last in pairs):
        raise BadRequest(f"{what}: a pair must not descend")
    return pairs


def _positions(what: str, value: object) -> list[tuple[str, int]]:
    """Arrays [session, seq]; of one session the last one holds."""
    if type(value) is not list or len(value) > RECEIVED_MAX:
        raise BadRequest(f"{what} must be an array of up to {RECEIVED_MAX}")
    if any(type(row) is not list or len(row) != 2 for row in value):
        raise BadRequest(f"{what} must be arrays [session, seq]")
    return list({check_session(session): _seq(what, seq) for session, seq in value}.items())


def _readers(what: str, value: object) -> list[list[Any]]:
    if type(value) is not list or len(value) > READERS_MAX:
        raise BadRequest(f"{what} must be an array of up to {READERS_MAX}")
    for row in value:
        if type(row) is not list or len(row) != 4:
            raise BadRequest(f"{what} must be arrays [user, read, joined, left]")
        check_name(what, row[0])
        for number in row[1:]:
            _natural(what, number)
    return value


def _preview(what: str, value: object) -> list[Any] | None:
    if value is None:
        return None
    if type(value) is not list or len(value) != 5:
        raise BadRequest(f"{what} must be nil or [seq, by, kind, sender, text]")
    seq, by, kind, sender, text = value
    if type(sender) is not str or type(text) is not str:
        raise BadRequest(f"{what} must have texts for its sender and its text")
    return [_seq(what, seq), _seq(what, by), _natural(what, kind), sender, text]


def _content(what: str, value: object) -> bytes:
    """Text, as bytes: of a long one the events have the head, which has to be cut somewhere."""
    if type(value) is not bytes or not value:
        raise BadRequest(f"{what} must be bytes, and not empty")
    if len(value) > CONTENT_BYTES_MAX:
        raise TooLarge(f"{what} is {len(value)} bytes, the limit is {CONTENT_BYTES_MAX}")
    try:
        value.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"{what} must be UTF-8") from None
    return value


def _one_of(names: tuple[str, ...]) -> Check:
    def check(what: str, value: object) -> str:
        if value not in names:
            raise BadRequest(f"{what} must be one of {', '.join(names)}")
        return str(value)

    return check


def _chunk(what: str, value: object) -> int:
    number = _natural(what, value)
    if number > CHUNKS_MAX:
        raise BadRequest(f"{what} is {number}, the limit is {CHUNKS_MAX}")
    return number


def _outcomes(what: str, value: object) -> list[list[int]]:
    if type(value) is not list or len(value) > PROGRESS_CHUNKS_MAX:
        raise BadRequest(f"{what} must be an array of up to {PROGRESS_CHUNKS_MAX}")
    for row in value:
        if type(row) is not list or len(row) % 2 != 1:
            raise BadRequest(f"{what} must be arrays [succeeded, position, code, ...]")
        for number in row:
            _natural(what, number)
    return value


_GROUP, _MAILBOX, _NOTE = int(EventKind.GROUP), int(EventKind.MAILBOX), int(EventKind.NOTE)
_BATCH = int(EventKind.BATCH)
_SESSION = Argument("session", _session)
_SEQ = Argument("seq", _seq)
_USERS = Argument("users", _users)
_TITLE = Argument("title", _title)

OPERATIONS: dict[tuple[int, str], tuple[Argument, ...]] = {
    # Of a group, by its members.
    (_GROUP, "create"): (_TITLE, _USERS),
    (_GROUP, "add"): (_USERS,),
    (_GROUP, "join"): (),
    (_GROUP, "leave"): (),
    (_GROUP, "remove"): (_USERS,),
    (_GROUP, "role"): (Argument("user", _user), Argument("role", _role)),
    (_GROUP, "mute"): (Argument("user", _user_or_all), Argument("until_ms", _natural)),
    (_GROUP, "title"): (_TITLE,),
    (_GROUP, "joining"): (Argument("allowed", _flag),),
    (_GROUP, "dissolve"): (),
    # Of a mailbox, by its user.
    (_MAILBOX, "read"): (_SESSION, _SEQ),
    (_MAILBOX, "received"): (Argument("positions", _positions),),
    (_MAILBOX, "pin"): (_SESSION, Argument("pinned", _flag)),
    (_MAILBOX, "mute"): (_SESSION, Argument("muted", _flag)),
    (_MAILBOX, "hide"): (_SESSION, Argument("upto_seq", _natural)),
    (_MAILBOX, "fold"): (_SESSION, Argument("label", _label)),
    (_MAILBOX, "delete"): (_SESSION, _SEQ),
    (_MAILBOX, "device"): (Argument("device", _user), Argument("about", _about)),
    (_MAILBOX, "kick"): (Argument("device", _user),),
    # Of a mailbox, by the servers.
    (_NOTE, "span"): (
        _SESSION,
        Argument("from_seq", _seq),
        Argument("to_seq", _seq),
        Argument("last_key", _natural),
        Argument("preview", _preview),
        Argument("skips", _pairs),
        Argument("recalled", _pairs),
    ),
    (_NOTE, "joined"): (_SESSION, _SEQ, Argument("key", _natural)),
    (_NOTE, "left"): (_SESSION, _SEQ),
    (_NOTE, "receipt"): (
        _SESSION,
        Argument("read_seq", _natural),
        Argument("delivered_seq", _natural),
    ),
    # Of a group's read positions, by the servers.
    (_NOTE, "reads"): (Argument("readers", _readers),),
    # Of a batch, by services.
    (_BATCH, "create"): (
        Argument("content", _content),
        Argument("channel", _one_of(CHANNELS)),
        Argument("notice", _one_of(NOTICE_CHANNELS)),
        Argument("total", _natural),
        Argument("dry", _flag),
    ),
    (_BATCH, "recipients"): (Argument("chunk", _chunk), _USERS),
    (_BATCH, "start"): (),
    (_BATCH, "pause"): (),
    (_BATCH, "resume"): (),
    (_BATCH, "cancel"): (),
    (_BATCH, "recall"): (),
    # Of a batch, by the owner of its slot.
    (_NOTE, "progress"): (
        Argument("recall", _flag),
        Argument("chunk", _chunk),
        Argument("outcomes", _outcomes),
        Argument("settled", _flag),
    ),
    # Of a slot, by its owner.
    (_NOTE, "batch"): (_SESSION, _SEQ, Argument("active", _flag)),
    (_NOTE, "cursor"): (Argument("name", _title), Argument("lsn", _natural)),
}


def read_operation(kind: int, body: bytes) -> Asked:
    """What is asked for, checked; BadRequest or TooLarge say what is wrong with it."""
    what, args = read_request(body)
    arguments = OPERATIONS.get((kind, what))
    if arguments is None:
        known = ", ".join(name for of, name in OPERATIONS if of == kind) or "nothing"
        raise BadRequest(f"there is no {what[:40]!r} of this kind, only {known}")
    if len(args) != len(arguments):
        names = ", ".join(argument.name for argument in arguments) or "nothing"
        raise BadRequest(f"{what} takes {names}; {len(args)} arguments came")
    found = [
        argument.check(f"{what}: {argument.name}", value)
        for argument, value in zip(arguments, args, strict=True)
    ]
    return Asked(what, found)
