"""Session ids and what they say: who may write to a session, and where its state comes from
(design sections 2 and 9).

    team                      open: everybody may send and read
    direct:alice/bob          one-to-one, the users in order, so that both sides name it alike
    group:climbers            members only
    notice:system/alice       a channel of notices to one user: system, interaction, service
    user:alice                alice's mailbox: her conversation list, read positions, devices
    batch:spring-sale         one batch message: its content and its progress
    slot:17                   the owner's own notes about slot 17
    reads:climbers            how far the members of group:climbers have read
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

from im_actors.core.model import SESSION_BYTES_MAX, SLOT_SESSION, check_name, check_text
from im_actors.errors import BadRequest

NOTICE_CHANNELS = ("system", "interaction", "service")
"""What a user is told by the system, by what others did to his posts, and by customer service."""

_NAMES_KNOWN_MAX = 16_384


class SessionKind(IntEnum):
    """What the id of a session says of it."""

    OPEN = 0
    DIRECT = 1
    GROUP = 2
    NOTICE = 3
    MAILBOX = 4
    BATCH = 5
    SLOT = 6
    READS = 7


class Heard(IntEnum):
    """Of which events of a session other sessions have to hear (``core.hearers``)."""

    NOBODY = 0
    CHANGES = 1
    """Of those that change its state, of some of them."""
    ALL = 2


_HEARD = {
    SessionKind.DIRECT: Heard.ALL,
    SessionKind.GROUP: Heard.CHANGES,
    SessionKind.MAILBOX: Heard.CHANGES,
    SessionKind.BATCH: Heard.CHANGES,
}

_PREFIXES = {
    "direct": SessionKind.DIRECT,
    "group": SessionKind.GROUP,
    "notice": SessionKind.NOTICE,
    "user": SessionKind.MAILBOX,
    "batch": SessionKind.BATCH,
    "slot": SessionKind.SLOT,
    "reads": SessionKind.READS,
}


def session_kind(session: str) -> SessionKind:
    """The kind of a session by its id, whether or not the rest of the id is well-formed."""
    prefix, colon, _ = session.partition(":")
    return _PREFIXES.get(prefix, SessionKind.OPEN) if colon else SessionKind.OPEN


def heard(session: str) -> Heard:
    """Whether others have to hear of what happens in a session."""
    return heard_of(session_kind(session))


def heard_of(kind: SessionKind) -> Heard:
    """The same of all sessions of a kind."""
    return _HEARD.get(kind, Heard.NOBODY)


def direct_session(one: str, other: str) -> str:
    """The session of two users, the same from both sides; of one user twice: notes to oneself."""
    first, second = sorted((one, other))
    return f"direct:{first}/{second}"


def group_session(name: str) -> str:
    return f"group:{name}"


def notice_session(channel: str, user: str) -> str:
    return f"notice:{channel}/{user}"


def reads_of(group: str) -> str:
    """The session in which the read positions of a group's members are counted."""
    return f"reads:{session_name(group)}"


def mailbox_of(user: str) -> str:
    return f"user:{user}"


def batch_session(name: str) -> str:
    return f"batch:{name}"


def slot_session(slot: int) -> str:
    """The session for what the owner of a slot keeps about it. It lies in that slot itself."""
    return f"{SLOT_SESSION}{slot}"


def session_name(session: str) -> str:
    """What follows the prefix; all of it for an open session."""
    kind = session_kind(session)
    return session if kind is SessionKind.OPEN else session.partition(":")[2]


def users_of(session: str) -> tuple[str, ...]:
    """The users whom the id itself names: two of a direct session (one, with oneself), one of a
    notice channel or of a mailbox, none otherwise."""
    kind, name = session_kind(session), session_name(session)
    if kind is SessionKind.DIRECT:
        return tuple(dict.fromkeys(name.split("/")))
    if kind is SessionKind.NOTICE:
        return (name.partition("/")[2],)
    return (name,) if kind is SessionKind.MAILBOX else ()


def peer_of(session: str, user: str) -> str:
    """The other user of a direct session, or the user himself in his notes to himself."""
    others = [name for name in users_of(session) if name != user]
    return others[0] if others else user


def check_session(session: object) -> str:
    """``session`` if it may name one; otherwise BadRequest or TooLarge says why."""
    return _checked(check_text("session", session, SESSION_BYTES_MAX))


@lru_cache(_NAMES_KNOWN_MAX)
def _checked(text: str) -> str:
    kind, name = session_kind(text), session_name(text)
    if kind is SessionKind.DIRECT:
        users = name.split("/")
        if len(users) != 2 or users != sorted(users):
            raise BadRequest(f"{text!r}: a direct session is direct:A/B, two users in order")
        for user in users:
            check_name("user", user)
    elif kind is SessionKind.NOTICE:
        channel, slash, user = name.partition("/")
        if not slash or channel not in NOTICE_CHANNELS:
            channels = ", ".join(NOTICE_CHANNELS)
            raise BadRequest(f"{text!r}: a notice session is notice:CHANNEL/USER, with {channels}")
        check_name("user", user)
    elif kind is SessionKind.SLOT:
        if not name.isascii() or not name.isdigit() or str(int(name)) != name:
            raise BadRequest(f"{text!r}: slot:N is reserved for the servers")
    elif kind is not SessionKind.OPEN:
        check_name("the name after the colon", name)
    return text
