"""A group's rows: what it is, who is in it, and who may read what.

Facts of ``group:NAME``: "g" is the group, "m/" + user one membership. Members are listed by rank:
the owner, the admins, then who has been there longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from im_actors.core.facts import event_facts, pack_request
from im_actors.core.model import Event, EventKind
from im_actors.core.rows import pack_row, unpack_row

GROUP_KEY = "g"
MEMBER_RANK_MIN = 1 << 62
"""Ranks from here on are members'; overlays lie below."""

_MEMBER_PREFIX = "m/"
_ROLE_SHIFT = 56
_SEQ_MASK = (1 << _ROLE_SHIFT) - 1
_ROWS_KNOWN_MAX = 8_192


class Role(IntEnum):
    """What somebody is in a group. A stranger was never in it, or is not any more."""

    STRANGER = 0
    MEMBER = 1
    ADMIN = 2
    OWNER = 3


ROLE_NAMES = {"member": Role.MEMBER, "admin": Role.ADMIN, "owner": Role.OWNER}


class Group(NamedTuple):
    """The group itself. Times are milliseconds since the Unix epoch, 0: never."""

    title: str
    owner: str
    created_ms: int
    members: int
    """How many there are, the owner included."""
    joining: bool = False
    """Whether anybody may join."""
    muted_until_ms: int = 0
    """Until then only the owner and the admins send."""
    dissolved_ms: int = 0

    def to_bytes(self) -> bytes:
        return pack_row(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Group:
        return _group(data)


class Membership(NamedTuple):
    """One user in a group. He reads from ``joined_seq`` on, the event that let him in; when he is
    out (STRANGER), up to ``left_seq``, the event that let him out.

    Who comes back has a new ``joined_seq``: what was before it is not his to read any more, neither
    what happened while he was away nor what he had seen before.
    """

    role: Role
    joined_seq: int
    left_seq: int = 0
    muted_until_ms: int = 0

    def to_bytes(self) -> bytes:
        return pack_row((int(self.role), *self[1:]))

    @classmethod
    def from_bytes(cls, data: bytes) -> Membership:
        return _membership(data)


@lru_cache(_ROWS_KNOWN_MAX)
def _group(data: bytes) -> Group:
    return Group(*unpack_row("a group", data, len(Group._fields)))


@lru_cache(_ROWS_KNOWN_MAX)
def _membership(data: bytes) -> Membership:
    role, *fields = unpack_row("a membership", data, len(Membership._fields))
    return Membership(Role(role), *fields)


def member_key(user: str) -> str:
    return f"{_MEMBER_PREFIX}{user}"


def member_rank(membership: Membership) -> int:
    """The place among the members, the greatest first; 0 when he is not one."""
    if membership.role is Role.STRANGER:
        return 0
    return MEMBER_RANK_MIN | membership.role << _ROLE_SHIFT | (_SEQ_MASK - membership.joined_seq)


def may_read(membership: Membership | None, seq: int) -> bool:
    """Whether the event ``seq`` is this user's to read; None: he was never in the group."""
    if membership is None or seq < membership.joined_seq:
        return False
    return membership.role is not Role.STRANGER or seq <= membership.left_seq


def readable(membership: Membership | None) -> tuple[int, int | None]:
    """(first, last) seq that is this user's to read, last None: up to the end. first > last when
    there is nothing."""
    if membership is None:
        return 1, 0
    out = membership.role is Role.STRANGER
    return membership.joined_seq, membership.left_seq if out else None


def event_memberships(event: Event) -> list[tuple[str, Membership]]:
    """(user, what he is now) of all whom a committed GROUP event changed."""
    if event.kind != EventKind.GROUP:
        return []
    return [
        (fact.key.removeprefix(_MEMBER_PREFIX), Membership.from_bytes(fact.value))
        for fact in event_facts(event)
        if fact.value is not None and fact.key.startswith(_MEMBER_PREFIX)
    ]


# ---- bodies of SENDs of kind GROUP


def create_request(title: str, users: Sequence[str]) -> bytes:
    """Make the group, its maker the owner, ``users`` its first members."""
    return pack_request("create", title, list(users))


def add_request(users: Sequence[str]) -> bytes:
    return pack_request("add", list(users))


def join_request() -> bytes:
    return pack_request("join")


def leave_request() -> bytes:
    return pack_request("leave")


def remove_request(users: Sequence[str]) -> bytes:
    return pack_request("remove", list(users))


def role_request(user: str, role: str) -> bytes:
    """``role`` is "admin", "member", or "owner" to hand the group over."""
    return pack_request("role", user, role)


def mute_request(user: str | None, until_ms: int) -> bytes:
    """``user`` None: all but the owner and the admins. ``until_ms`` 0: they may send again."""
    return pack_request("mute", user, until_ms)


def title_request(title: str) -> bytes:
    return pack_request("title", title)


def joining_request(allowed: bool) -> bytes:
    """Whether anybody may join without being added."""
    return pack_request("joining", allowed)


def dissolve_request() -> bytes:
    return pack_request("dissolve")
