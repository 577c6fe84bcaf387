"""Groups as their users see them: who may do what, said once more and simply.

The model is told nothing but the committed events of a group, in order, and what was asked for. It
shares no code with the rules under test.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack

from im_actors.core.model import Event, EventKind

MEMBER_PREFIX = "m/"
STRANGER, MEMBER, ADMIN, OWNER = range(4)
ROLES = {"member": MEMBER, "admin": ADMIN, "owner": OWNER}
NOBODY = (STRANGER, 0, 0, 0)
OPERATIONS = ("create", "add", "join", "leave", "remove", "role", "mute", "title", "joining",
              "dissolve")  # fmt: skip

Row = tuple[int, int, int, int]
"""(role, joined seq, left seq, muted until)."""


class Standing(NamedTuple):
    """A group at one moment."""

    title: str = ""
    made: bool = False
    dissolved: bool = False
    joining: bool = False
    muted_until_ms: int = 0
    rows: tuple[tuple[str, Row], ...] = ()
    """Of everybody who is or was in it."""

    def row(self, user: str) -> Row:
        return dict(self.rows).get(user, NOBODY)

    def role(self, user: str) -> int:
        return self.row(user)[0]

    def members(self) -> int:
        return sum(row[0] != STRANGER for _, row in self.rows)

    def put(self, rows: dict[str, Row]) -> Standing:
        return self._replace(rows=tuple(sorted({**dict(self.rows), **rows}.items())))


def refuses(group: Standing, user: str, kind: int, body: bytes, now_ms: int) -> bool | None:
    """Whether a group that stands so refuses it; None: that rests on more than the group."""
    if kind == EventKind.GROUP:
        what, args = msgpack.unpackb(body)[:2]
        return _refuses_change(group, user, what, args)
    role = group.role(user)
    if not group.made or group.dissolved or role == STRANGER:
        return True
    silent = group.row(user)[3] > now_ms or (group.muted_until_ms > now_ms and role == MEMBER)
    if kind == EventKind.MESSAGE:
        return silent
    # Whether there is such a message, and whose it is, the timeline says.
    return True if kind == EventKind.EDIT and silent else None


def _refuses_change(group: Standing, user: str, what: str, args: list[Any]) -> bool:
    if what == "create":
        return group.made
    if not group.made or group.dissolved:
        return True
    mine = group.role(user)
    match what:
        case "join":
            return mine == STRANGER and not group.joining
        case "leave":
            return mine not in (MEMBER, ADMIN)
        case "remove":
            return mine < ADMIN or any(group.role(other) >= mine for other in args[0])
        case "role":
            return mine != OWNER or group.role(args[0]) not in (MEMBER, ADMIN)
        case "mute" if args[0] is not None:
            return mine < ADMIN or not STRANGER < group.role(args[0]) < mine
        case "dissolve":
            return mine != OWNER
    return mine < ADMIN


def after(group: Standing, user: str, what: str, args: list[Any], seq: int) -> Standing:
    """How the group stands when this was done at ``seq``."""
    match what:
        case "create":
            title, users = args
            rows: dict[str, Row] = dict.fromkeys(users, (MEMBER, seq, 0, 0))
            return Standing(title, made=True).put({**rows, user: (OWNER, seq, 0, 0)})
        case "add" | "join":
            new = [other for other in (args[0] if args else [user]) if not group.role(other)]
            return group.put({other: (MEMBER, seq, 0, group.row(other)[3]) for other in new})
        case "remove" | "leave":
            gone = [other for other in (args[0] if args else [user]) if group.role(other)]
            return group.put({o: (STRANGER, group.row(o)[1], seq, group.row(o)[3]) for o in gone})
        case "role":
            other, role = args[0], ROLES[args[1]]
            _, joined, left, muted = group.row(other)
            if role != OWNER:
                return group.put({other: (role, joined, left, muted)})
            return group.put({other: (OWNER, joined, left, 0), user: (ADMIN, *group.row(user)[1:])})
        case "mute":
            other, until_ms = args
            if other is None:
                return group._replace(muted_until_ms=until_ms)
            return group.put({other: (*group.row(other)[:3], until_ms)})
        case "title":
            return group._replace(title=args[0])
        case "joining":
            return group._replace(joining=args[0])
    assert what == "dissolve", what
    return group._replace(dissolved=True)


class GroupModel:
    """One group by its committed events alone."""

    def __init__(self) -> None:
        self.standings = [Standing()]
        """By seq: how it stands after that event."""
        self.senders: list[tuple[int, str]] = []
        """(kind, user) by seq - 1."""
        self.readable: dict[str, dict[int, int]] = {}
        """user -> the event that let him in -> the last one that came while he was in."""

    def refuses(self, seq: int, user: str, kind: int, body: bytes, now_ms: int) -> bool | None:
        """Whether what is asked for has to be refused after the event ``seq``."""
        return refuses(self.standings[seq], user, kind, body, now_ms)

    def may_read(self, user: str, seq: int) -> bool:
        """Whether an event has ever been this user's to read."""
        return any(first <= seq <= last for first, last in self.readable.get(user, {}).items())

    def take_in(self, event: Event, asked: bytes) -> str | None:
        """The next committed event, and what was sent; what is wrong with it."""
        group, user = self.standings[-1], event.device.partition("/")[0]
        wrong = None
        if event.kind != EventKind.VOID:
            wrong = self._wrong(group, user, event, asked)
        if event.kind == EventKind.GROUP:
            what, args = msgpack.unpackb(asked)
            group = after(group, user, what, args, event.seq)
            wrong = wrong or _wrong_rows(self.standings[-1], group, event)
        self.standings.append(group)
        for other, (role, joined, left, _) in group.rows:
            if role != STRANGER or left == event.seq:
                self.readable.setdefault(other, {})[joined] = event.seq
        self.senders.append((event.kind, user))
        return wrong

    def _wrong(self, group: Standing, user: str, event: Event, asked: bytes) -> str | None:
        if refuses(group, user, event.kind, asked, event.time_ms):
            return f"seq {event.seq}: {user} may not, and has: {event.kind} {asked!r} in {group}"
        if event.kind in (EventKind.RECALL, EventKind.EDIT):
            target = msgpack.unpackb(asked)[0]
            kind, author = self.senders[target - 1]
            others = event.kind == EventKind.RECALL and group.role(user) >= ADMIN
            if kind != EventKind.MESSAGE or (author != user and not others):
                return f"seq {event.seq}: {user} changes seq {target}, kind {kind} of {author}"
        return None


def _wrong_rows(before: Standing, group: Standing, event: Event) -> str | None:
    """What the event's rows say otherwise than the model."""
    rows = {key: value for key, _, value in msgpack.unpackb(event.body)[2]}
    said = {
        key.removeprefix(MEMBER_PREFIX): tuple(msgpack.unpackb(value)[1:])
        for key, value in rows.items()
        if key.startswith(MEMBER_PREFIX)
    }
    changed = dict(set(group.rows) - set(before.rows))
    wrong = [user for user in changed if said.get(user) != changed[user]]
    wrong += [user for user in said if said[user] != group.row(user)]
    if wrong:
        return f"seq {event.seq}: the rows of {wrong} are {said}, expected {changed}"
    return wrong_group(group, rows["g"]) if "g" in rows else None


def wrong_group(group: Standing, value: bytes) -> str | None:
    """What a row of the group itself says otherwise than the model."""
    _, title, owner, _, members, joining, muted, dissolved = msgpack.unpackb(value)
    found = (title, group.role(owner), members, joining, muted, bool(dissolved))
    expected = (group.title, OWNER, group.members(), group.joining, group.muted_until_ms,
                group.dissolved)  # fmt: skip
    return None if found == expected else f"the group is {found}, expected {expected}"
