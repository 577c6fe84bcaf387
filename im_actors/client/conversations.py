"""What the calls of the user side return: conversations, groups, receipts, devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from im_actors.core.model import EventKind
from im_actors.core.names import SessionKind, peer_of, session_kind, session_name, users_of
from im_actors.wire.queries import ConversationRow, RowFlag


class Inputs(NamedTuple):
    """Why so many events are unread: those above ``base`` up to ``last``, without ``skipped`` of
    them, which are the user's own, recalled, or no messages. ``ranges`` are the skipped ones as
    (first, last), except for the oldest when there are very many."""

    base: int
    last: int
    skipped: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One entry of the user's conversation list."""

    session: str
    title: str
    """The other user of a direct session, the title of a group, a channel's or session's name."""
    last_seq: int
    time_ms: int
    """Of the last event."""
    sender: str
    """Of the last message, empty without one."""
    preview: str
    """The beginning of its text as it stands now."""
    kind: EventKind
    """MESSAGE; EDIT or RECALL when that became of it; VOID when the user deleted it for himself, or
    there is none."""
    unread: int
    inputs: Inputs | None
    """How ``unread`` comes about, when it is known."""
    read_seq: int
    peer_read_seq: int
    """Of a direct session: how far the other user has read."""
    peer_delivered_seq: int
    """Of a direct session: how far it has come to a device of the other user."""
    pinned: bool
    muted: bool
    hidden: bool
    left: bool
    """The user is no member any more."""
    label: str
    """Folded under it; empty: in the list itself."""
    pending: int
    """Sends of this device to it that have no answer yet."""


@dataclass(frozen=True, slots=True)
class ConversationList:
    """A part of the list, newest first."""

    conversations: list[Conversation]
    next: str | None
    """Give this to ``conversations`` for what follows; None at the end."""
    unread: int
    """Of all conversations, not only of these."""
    offline: bool
    """No server answered, or one that knew less: this is what the device knew at ``as_of_ms``, and
    what it did since."""
    as_of_ms: int
    """Since the Unix epoch, by this computer's clock; 0: no server ever said."""


@dataclass(frozen=True, slots=True)
class Unread:
    """How many messages wait for the user."""

    count: int
    offline: bool
    as_of_ms: int


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A group. Times are since the Unix epoch, 0: never."""

    session: str
    title: str
    owner: str
    members: int
    role: str
    """The user's own: owner, admin or member; empty when he is none."""
    joining: bool
    """Whether anybody may join."""
    muted_until_ms: int
    """Until then only the owner and the admins send."""
    dissolved_ms: int
    offline: bool


class Member(NamedTuple):
    user: str
    role: str
    joined_seq: int
    muted_until_ms: int


@dataclass(frozen=True, slots=True)
class MemberList:
    """A part of a group's members: the owner, the admins, then who has been there longest."""

    members: list[Member]
    next: str | None
    """Give this to ``members`` as ``after`` for what follows; None at the end."""
    offline: bool


@dataclass(frozen=True, slots=True)
class Receipts:
    """Who has read a message."""

    read: int
    """How many other users."""
    users: list[str]
    """Their names, or the first of them."""
    delivered: bool | None
    """Of a direct session: whether it came to a device of the other. None: not told."""
    offline: bool


class Device(NamedTuple):
    """One of the user's devices."""

    device: str
    about: str
    """What it says of itself."""
    since_ms: int
    online: bool


class Signal(NamedTuple):
    """Something that another user told the followers of a session, and nobody stored."""

    session: str
    user: str
    what: str
    value: Any


def conversation_of(row: ConversationRow, user: str, pending: int) -> Conversation:
    """A row in the words of the SDK."""
    flags = RowFlag(row.flags)
    inputs = None
    if row.inputs is not None:
        base, last, skipped, ranges = row.inputs[:4]
        inputs = Inputs(base, last, skipped, tuple((first, end) for first, end in ranges))
    known = row.kind in tuple(EventKind)
    return Conversation(
        session=row.session,
        title=title_of(row.session, user, row.title),
        last_seq=row.last_seq,
        time_ms=row.time_ms,
        sender=row.sender,
        preview=row.preview,
        kind=EventKind(row.kind) if known else EventKind.VOID,
        unread=row.unread,
        inputs=inputs,
        read_seq=row.read_seq,
        peer_read_seq=row.peer_read_seq,
        peer_delivered_seq=row.peer_delivered_seq,
        pinned=RowFlag.PINNED in flags,
        muted=RowFlag.MUTED in flags,
        hidden=RowFlag.HIDDEN in flags,
        left=RowFlag.LEFT in flags,
        label=row.label,
        pending=pending,
    )


def title_of(session: str, user: str, title: str = "") -> str:
    """What a conversation is called in ``user``'s list."""
    match session_kind(session):
        case SessionKind.DIRECT if user in users_of(session):
            return peer_of(session, user)
        case SessionKind.NOTICE:
            return session_name(session).partition("/")[0]
        case _:
            return title or session_name(session)
