"""Who may do what in a group, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from types import MappingProxyType
from typing import Any, NamedTuple

from im_actors.core.facts import pack_state
from im_actors.core.groups import (
    GROUP_KEY,
    ROLE_NAMES,
    Group,
    Membership,
    Role,
    member_key,
    member_rank,
)
from im_actors.core.lookup import Lookup
from im_actors.core.model import BODY_BYTES_MAX, EventKind
from im_actors.core.operations import read_operation
from im_actors.core.overlays import decide_overlay
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.rules import Accept, Request
from im_actors.errors import Forbidden, NotFound, TooLarge, TooLate

STRANGER, MEMBER, ADMIN, OWNER = Role

_ANY = frozenset(Role)
RIGHTS: Mapping[str, Mapping[Role, Set[Role]]] = MappingProxyType(
    {
        # What is done: by whom, and of which roles those may be to whom it is done.
        "send": {MEMBER: _ANY, ADMIN: _ANY, OWNER: _ANY},
        "send while all are muted": {ADMIN: _ANY, OWNER: _ANY},
        "recall what others wrote": {ADMIN: _ANY, OWNER: _ANY},
        "add": {ADMIN: _ANY, OWNER: _ANY},
        "join": {STRANGER: _ANY, MEMBER: _ANY, ADMIN: _ANY, OWNER: _ANY},
        "leave": {MEMBER: _ANY, ADMIN: _ANY},
        "remove": {ADMIN: {STRANGER, MEMBER}, OWNER: {STRANGER, MEMBER, ADMIN}},
        "role": {OWNER: {MEMBER, ADMIN}},
        "mute": {ADMIN: {MEMBER}, OWNER: {MEMBER, ADMIN}},
        "mute all": {ADMIN: _ANY, OWNER: _ANY},
        "title": {ADMIN: _ANY, OWNER: _ANY},
        "joining": {ADMIN: _ANY, OWNER: _ANY},
        "dissolve": {OWNER: _ANY},
    }
)
"""Who adds a member again, or removes a stranger, changes nothing and is not refused."""

_HINTS = {
    ("leave", OWNER): "hand the group over first (role), or dissolve it",
    ("send while all are muted", MEMBER): "wait until its admins let all send again",
}


class _Acting(NamedTuple):
    """A member, or a stranger, about to do something in a group that exists."""

    lookup: Lookup
    request: Request
    settings: RuleSettings
    group: Group
    row: Membership | None

    @property
    def session(self) -> str:
        return self.lookup.session

    @property
    def user(self) -> str:
        return self.request.user

    @property
    def role(self) -> Role:
        return _role_of(self.row)

    def may(self, what: str) -> None:
        """Go on only if his role allows it."""
        if self.role in RIGHTS[what]:
            return
        if self.role is STRANGER:
            raise Forbidden(
                f"{self.user} is not a member of {self.session}: ask an admin to add you"
            )
        able = " or ".join(role.name.lower() for role in sorted(RIGHTS[what], reverse=True))
        hint = _HINTS.get((what, self.role), f"ask its {able}")
        raise Forbidden(f"{what}: a group's {self.role.name.lower()} may not: {hint}")

    def may_to(self, what: str, user: str, role: Role) -> None:
        if role is STRANGER and role not in RIGHTS[what][self.role]:
            raise NotFound(f"{what}: {user} is not a member of {self.session}: add him first")
        if role not in RIGHTS[what][self.role]:
            raise Forbidden(
                f"{what}: a group's {self.role.name.lower()} may not do it to {user}, "
                f"its {role.name.lower()}"
            )


class _Change(NamedTuple):
    """What an operation does: the group as it is then, the memberships that change."""

    group: Group
    members: dict[str, Membership] = {}  # noqa: RUF012 - never changed
    args: tuple[Any, ...] = ()


_Operation = Callable[[_Acting, list[Any]], _Change]


def decide_group(lookup: Lookup, request: Request, settings: RuleSettings) -> Accept:
    """What becomes of a send to a group; raises why it is not taken."""
    if request.kind == EventKind.GROUP:
        return _decide_change(lookup, request, settings)
    lookup.want(GROUP_KEY, member_key(request.user))
    acting = _acting(lookup, request, settings)
    if request.kind == EventKind.RECALL:
        # Also the muted may take back what they said.
        acting.may("send")
    else:
        _check_voice(acting, request.now_ms)
    if request.kind == EventKind.MESSAGE:
        return Accept(request.kind, request.body)
    others = acting.role in RIGHTS["recall what others wrote"]
    return decide_overlay(lookup, request, settings, others)


def _decide_change(lookup: Lookup, request: Request, settings: RuleSettings) -> Accept:
    what, args = read_operation(request.kind, request.body)
    named = args[-1] if what in _TO_MANY else args[:1] if what in _TO_ONE else []
    if len(named) > settings.group_add_max:
        raise TooLarge(
            f"{what}: {len(named)} users, the limit is {settings.group_add_max} at a time: "
            "name fewer and the rest afterwards"
        )
    if what == "create":
        return Accept(request.kind, _packed(what, _create(lookup, request, settings, args), lookup))
    users = [request.user, *(user for user in named if user is not None)]
    lookup.want(GROUP_KEY, *map(member_key, users))
    acting = _acting(lookup, request, settings)
    acting.may("mute all" if (what, named) == ("mute", [None]) else what)
    return Accept(request.kind, _packed(what, _OPERATIONS[what](acting, args), lookup))


_TO_MANY = ("create", "add", "remove")
_TO_ONE = ("role", "mute")


def _packed(what: str, change: _Change, lookup: Lookup) -> bytes:
    """The committed body. Of users whom a request named it has their rows only, not their names
    again: a thousand of them have to fit."""
    facts = [
        (member_key(user), member_rank(row), row.to_bytes()) for user, row in change.members.items()
    ]
    known = lookup.value(GROUP_KEY)
    group = change.group.to_bytes()
    if group != known:
        facts.append((GROUP_KEY, 0, group))
    body = pack_state(what, change.args, facts)
    if len(body) > BODY_BYTES_MAX:
        raise TooLarge(
            f"{what}: the event would be {len(body)} bytes, the limit is {BODY_BYTES_MAX}: "
            "name fewer users at a time"
        )
    return body


def _acting(lookup: Lookup, request: Request, settings: RuleSettings) -> _Acting:
    data = lookup.value(GROUP_KEY)
    if data is None:
        raise NotFound(f"there is no {lookup.session}: create it first")
    group = Group.from_bytes(data)
    if group.dissolved_ms:
        raise TooLate(f"{lookup.session} was dissolved: make a group of another name")
    return _Acting(lookup, request, settings, group, _row(lookup, request.user))


def _row(lookup: Lookup, user: str) -> Membership | None:
    data = lookup.value(member_key(user))
    return Membership.from_bytes(data) if data is not None else None


def _role_of(row: Membership | None) -> Role:
    return row.role if row is not None else STRANGER


def _check_voice(acting: _Acting, now_ms: int) -> None:
    acting.may("send")
    assert acting.row is not None
    if acting.group.muted_until_ms > now_ms:
        acting.may("send while all are muted")
    if acting.row.muted_until_ms > now_ms:
        raise Forbidden(
            f"{acting.user} is muted in {acting.session} for another "
            f"{(acting.row.muted_until_ms - now_ms + 999) // 1000} s: wait, or ask an admin"
        )


# ---- the operations; each is asked only when RIGHTS lets the user do it at all


def _create(lookup: Lookup, request: Request, settings: RuleSettings, args: list[Any]) -> _Change:
    title, users = args
    if lookup.value(GROUP_KEY) is not None:
        raise Forbidden(f"there is, or was, a {lookup.session} already: choose another name")
    seq, maker = lookup.next_seq, request.user
    members = {user: Membership(MEMBER, seq) for user in users}
    members[maker] = Membership(OWNER, seq)
    _check_size(len(members), settings)
    return _Change(Group(title, maker, request.now_ms, len(members)), members, (title,))


def _check_size(members: int, settings: RuleSettings) -> None:
    if members > settings.group_members_max:
        raise TooLarge(
            f"the group would have {members} members, the limit is {settings.group_members_max}: "
            "remove some, or make another group"
        )


def _let_in(acting: _Acting, users: Iterable[str]) -> _Change:
    members = {}
    for user in users:
        row = _row(acting.lookup, user)
        if _role_of(row) is STRANGER:
            # A mute outlives going out and coming back: else that would be the way around it.
            until_ms = row.muted_until_ms if row is not None else 0
            members[user] = Membership(MEMBER, acting.lookup.next_seq, 0, until_ms)
    group = acting.group._replace(members=acting.group.members + len(members))
    _check_size(group.members, acting.settings)
    return _Change(group, members)


def _let_out(acting: _Acting, users: Iterable[str]) -> _Change:
    members = {}
    for user in users:
        row = _row(acting.lookup, user)
        if row is not None and row.role is not STRANGER:
            members[user] = row._replace(role=STRANGER, left_seq=acting.lookup.next_seq)
    return _Change(acting.group._replace(members=acting.group.members - len(members)), members)


def _add(acting: _Acting, args: list[Any]) -> _Change:
    return _let_in(acting, args[0])


def _join(acting: _Acting, args: list[Any]) -> _Change:
    if acting.role is STRANGER and not acting.group.joining:
        raise Forbidden(f"{acting.session} is not open to all: ask an admin to add you")
    return _let_in(acting, [acting.user])


def _leave(acting: _Acting, args: list[Any]) -> _Change:
    return _let_out(acting, [acting.user])


def _remove(acting: _Acting, args: list[Any]) -> _Change:
    for user in args[0]:
        acting.may_to("remove", user, _role_of(_row(acting.lookup, user)))
    return _let_out(acting, args[0])


def _target(acting: _Acting, what: str, user: str) -> Membership:
    row = _row(acting.lookup, user)
    acting.may_to(what, user, _role_of(row))
    assert row is not None
    return row


def _role(acting: _Acting, args: list[Any]) -> _Change:
    user, role = args[0], ROLE_NAMES[args[1]]
    row = _target(acting, "role", user)
    members = {user: row._replace(role=role)}
    if role is not OWNER:
        return _Change(acting.group, members, tuple(args))
    assert acting.row is not None
    # Nobody could let a muted owner speak again.
    members = {
        user: row._replace(role=OWNER, muted_until_ms=0),
        acting.user: acting.row._replace(role=ADMIN),
    }
    return _Change(acting.group._replace(owner=user), members, tuple(args))


def _mute(acting: _Acting, args: list[Any]) -> _Change:
    user, until_ms = args
    if user is None:
        return _Change(acting.group._replace(muted_until_ms=until_ms), args=tuple(args))
    row = _target(acting, "mute", user)
    return _Change(acting.group, {user: row._replace(muted_until_ms=until_ms)}, tuple(args))


def _title(acting: _Acting, args: list[Any]) -> _Change:
    return _Change(acting.group._replace(title=args[0]), args=tuple(args))


def _joining(acting: _Acting, args: list[Any]) -> _Change:
    return _Change(acting.group._replace(joining=args[0]), args=tuple(args))


def _dissolve(acting: _Acting, args: list[Any]) -> _Change:
    return _Change(acting.group._replace(dissolved_ms=max(1, acting.request.now_ms)))


_OPERATIONS: dict[str, _Operation] = {
    "add": _add,
    "join": _join,
    "leave": _leave,
    "remove": _remove,
    "role": _role,
    "mute": _mute,
    "title": _title,
    "joining": _joining,
    "dissolve": _dissolve,
}
