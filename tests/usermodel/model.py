"""The plain model: timelines as lists of lines, and what each user should see of them.

It knows the rules of PROTOCOL.md, section 13, and nothing of how the servers keep them. It is fed
with what was asked for (``Op``) in the order that the timelines have, says of each whether it was
right to take or to refuse it, and computes every list from the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from im_actors.core.model import EventKind
from im_actors.core.names import SessionKind, peer_of, session_kind, session_name, users_of

PREVIEW_CHARS = 100
OWNER, ADMIN, MEMBER = "owner", "admin", "member"
KINDS = {"message": EventKind.MESSAGE, "recall": EventKind.RECALL, "edit": EventKind.EDIT}


@dataclass(eq=False, slots=True)
class Op:
    """Something that a device asked for. ``floor``: what of the session was known to be there."""

    user: str
    address: str
    session: str
    n: int
    what: str
    args: list[Any]
    floor: int
    sent: Any = None
    """The handle; None: of a former life of the device, which nobody can ask any more."""
    abandoned: bool = False
    """Its device is gone for good: it may have been taken or not."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.session, self.address, self.n

    @property
    def kind(self) -> int:
        if self.what in KINDS:
            return KINDS[self.what]
        mine = session_kind(self.session) is SessionKind.MAILBOX
        return EventKind.MAILBOX if mine else EventKind.GROUP

    def __str__(self) -> str:
        return f"{self.address} #{self.n}: {self.what} {str(self.args)[:50]} in {self.session}"


@dataclass(slots=True)
class Line:
    """An event. ``user`` wrote it; of a batch that is the service."""

    seq: int
    key: int
    time_ms: int
    kind: int
    user: str
    text: str = ""
    recalled: bool = False
    edited: bool = False


@dataclass(slots=True)
class Member:
    role: str
    joined: int
    left: int = 0
    muted: bool = False
    spans: list[tuple[int, int]] = field(default_factory=list)
    """From when to when he was in it before."""

    @property
    def is_in(self) -> bool:
        return self.joined > self.left


@dataclass(slots=True)
class Timeline:
    """One session."""

    session: str
    services: frozenset[str]
    lines: list[Line] = field(default_factory=list)
    title: str | None = None
    """None: there is no such group."""
    members: dict[str, Member] = field(default_factory=dict)
    joining: bool = False
    all_muted: bool = False
    dissolved: bool = False

    @property
    def last(self) -> int:
        return len(self.lines)

    def role(self, user: str) -> str:
        member = self.members.get(user)
        return member.role if member is not None and member.is_in else ""

    # ---- what may be done

    def verdict(self, user: str, what: str, args: list[Any]) -> str:
        """The name of the error that it meets; empty: it is taken."""
        match session_kind(self.session):
            case SessionKind.GROUP:
                return self._group_verdict(user, what, args)
            case SessionKind.DIRECT:
                wrong = user not in users_of(self.session)
            case SessionKind.NOTICE:
                own = self.session.startswith("notice:service/") and user in users_of(self.session)
                wrong = user not in self.services and not own
            case _:
                wrong = False
        if wrong:
            return "Forbidden"
        return "" if what == "message" else self._overlay_verdict(user, what, args[0], False)

    def _group_verdict(self, user: str, what: str, args: list[Any]) -> str:
        if what == "create":
            return "Forbidden" if self.title is not None else ""
        if self.title is None:
            return "NotFound"
        if self.dissolved:
            return "TooLate"
        role = self.role(user)
        leads = role in (OWNER, ADMIN)
        match what:
            case "message":
                return "" if self._has_voice(user) else "Forbidden"
            case "recall":
                return self._overlay_verdict(user, what, args[0], leads) if role else "Forbidden"
            case "edit":
                voice = self._has_voice(user)
                return self._overlay_verdict(user, what, args[0], False) if voice else "Forbidden"
            case "join":
                return "" if role or self.joining else "Forbidden"
            case "leave":
                return "" if role in (ADMIN, MEMBER) else "Forbidden"
            case "role" | "dissolve" if role != OWNER:
                return "Forbidden"
            case "role":
                return {"": "NotFound", OWNER: "Forbidden"}.get(self.role(args[0]), "")
            case "dissolve":
                return ""
        if not leads:
            return "Forbidden"
        below = ("", MEMBER) if role == ADMIN else ("", MEMBER, ADMIN)
        if what == "remove":
            return "" if all(self.role(name) in below for name in args[0]) else "Forbidden"
        if what == "mute" and args[0] is not None:
            target = self.role(args[0])
            return "NotFound" if not target else "" if target in below else "Forbidden"
        return ""

    def _has_voice(self, user: str) -> bool:
        role = self.role(user)
        if not role or (self.all_muted and role == MEMBER):
            return False
        return not self.members[user].muted

    def _overlay_verdict(self, user: str, what: str, seq: int, others: bool) -> str:
        if seq > self.last or self.lines[seq - 1].kind != EventKind.MESSAGE:
            return "NotFound"
        line = self.lines[seq - 1]
        if line.recalled:
            return "TooLate"
        return "" if line.user == user or (others and what == "recall") else "Forbidden"

    # ---- what becomes of it

    def apply(self, line: Line, what: str, args: list[Any]) -> None:
        assert line.seq == self.last + 1
        self.lines.append(line)
        match what, args:
            case "message", [text]:
                line.text = text
            case "recall", [target]:
                self.lines[target - 1].recalled = True
            case "edit", [target, text]:
                self.lines[target - 1].edited = True
                self.lines[target - 1].text = line.text = text
            case _:
                self._apply_to_group(line, what, args)

    def _apply_to_group(self, line: Line, what: str, args: list[Any]) -> None:
        match what, args:
            case "create", [title, users]:
                self.title = title
                self.members = {user: Member(MEMBER, line.seq) for user in users}
                self.members[line.user] = Member(OWNER, line.seq)
            case "add", [users]:
                self._let_in(users, line.seq)
            case "join", []:
                self._let_in([line.user], line.seq)
            case "leave", []:
                self.members[line.user].left = line.seq
            case "remove", [users]:
                for user in users:
                    if self.role(user):
                        self.members[user].left = line.seq
            case "role", [user, role]:
                if role == OWNER:
                    self.members[line.user].role = ADMIN
                    self.members[user].muted = False
                self.members[user].role = role
            case "mute", [None, until]:
                self.all_muted = until > 0
            case "mute", [user, until]:
                self.members[user].muted = until > 0
            case "title", [title]:
                self.title = title
            case "joining", [allowed]:
                self.joining = allowed
            case "dissolve", []:
                self.dissolved = True

    def _let_in(self, users: list[str], seq: int) -> None:
        for user in users:
            if not self.role(user):
                known = self.members.get(user)
                # A mute outlives going out and coming back.
                muted = known is not None and known.muted
                spans = [*known.spans, (known.joined, known.left)] if known is not None else []
                self.members[user] = Member(MEMBER, seq, 0, muted, spans)

    # ---- what a user sees

    def readable(self, user: str) -> tuple[int, int]:
        """The first and the last seq that he may read; (1, 0): nothing."""
        kind = session_kind(self.session)
        if kind is SessionKind.GROUP:
            member = self.members.get(user)
            if member is None:
                return 1, 0
            return member.joined, self.last if member.is_in else member.left
        if kind is SessionKind.OPEN or user in users_of(self.session):
            return 1, self.last
        return 1, 0

    def sees(self, user: str) -> bool:
        """It may be in his list."""
        if session_kind(self.session) is SessionKind.MAILBOX:
            return False
        if session_kind(self.session) is SessionKind.GROUP:
            return bool(self.role(user))
        return self.readable(user)[1] > 0


@dataclass(slots=True)
class Row:
    """What a user's mailbox says of a conversation."""

    read: int = 0
    pinned: bool = False
    muted: bool = False
    hidden: int = 0
    label: str = ""
    deleted: set[int] = field(default_factory=set)
    begun: bool = False
    """An open session is in the list of who has changed something about it."""

    def state(self) -> tuple[object, ...]:
        return self.read, self.pinned, self.muted, self.hidden, self.label


class Seen(NamedTuple):
    """A row of a list as its user should see it."""

    session: str
    title: str
    last_seq: int
    time_ms: int
    sender: str
    preview: str
    kind: int
    unread: int
    read_seq: int
    peer_read_seq: int
    pinned: bool
    muted: bool
    label: str


class Model:
    def __init__(self, services: frozenset[str] = frozenset()) -> None:
        self.services = services
        self.timelines: dict[str, Timeline] = {}
        self.rows: dict[str, dict[str, Row]] = {}
        self.devices: dict[str, dict[str, bool]] = {}
        """By user: his devices, and whether they were kicked."""

    def timeline(self, session: str) -> Timeline:
        return self.timelines.setdefault(session, Timeline(session, self.services))

    def row(self, user: str, session: str) -> Row:
        return self.rows.setdefault(user, {}).setdefault(session, Row())

    # ---- mailboxes

    def mailbox_verdict(self, user: str, address: str, what: str, args: list[Any]) -> str:
        known = self.devices.get(user, {})
        if what in ("device", "kick"):
            if known.get(address.partition("/")[2]):
                return "Forbidden"
            return "NotFound" if what == "kick" and known.get(args[0], True) else ""
        named = users_of(args[0])
        return "Forbidden" if named and user not in named else ""

    def apply_to_mailbox(self, user: str, what: str, args: list[Any]) -> None:
        if what in ("device", "kick"):
            self.devices.setdefault(user, {})[args[0]] = what == "kick"
            return
        row, value = self.row(user, args[0]), args[1]
        before = row.state()
        match what:
            case "read":
                row.read = max(row.read, value)
            case "pin":
                row.pinned = value
            case "mute":
                row.muted = value
            case "hide":
                row.hidden = value
            case "fold":
                row.label = value
            case "delete":
                row.deleted.add(value)
        row.begun = row.begun or what == "delete" or row.state() != before

    # ---- lists

    def list_of(self, user: str, before_seq: int = 0) -> list[Seen]:
        """All that is in his list, folded or not, in its order."""
        ranked = []
        for timeline in self.timelines.values():
            if (seen := self._seen(user, timeline)) is not None:
                key = timeline.lines[-1].key
                ranked.append((not seen.pinned, -key, seen.session, seen))
        return [seen for *_, seen in sorted(ranked)]

    def unread(self, user: str) -> int:
        return sum(seen.unread for seen in self.list_of(user))

    def base(self, user: str, timeline: Timeline) -> int:
        """Above it messages may be unread."""
        member = timeline.members.get(user)
        row = self.rows.get(user, {}).get(timeline.session, Row())
        return max(row.read, member.joined if member is not None else 0)

    def _seen(self, user: str, timeline: Timeline) -> Seen | None:
        session, kind = timeline.session, session_kind(timeline.session)
        row = self.rows.get(user, {}).get(session, Row())
        if not timeline.lines or not timeline.sees(user):
            return None
        if kind is SessionKind.OPEN and not row.begun:
            return None
        kinds = {line.kind for line in timeline.lines}
        if kind is SessionKind.NOTICE and EventKind.MESSAGE not in kinds:
            return None
        if 0 < timeline.last <= row.hidden:
            return None
        first, _ = timeline.readable(user)
        base = self.base(user, timeline)
        unread = sum(
            line.kind == EventKind.MESSAGE and not line.recalled and line.user != user
            for line in timeline.lines[base:]
        )
        shown = self._preview(timeline.lines[first - 1 :], row)
        return Seen(
            session,
            self._title(user, timeline),
            timeline.last,
            timeline.lines[-1].time_ms,
            *shown,
            unread,
            base,
            self._peer_read(user, session),
            row.pinned,
            row.muted,
            row.label,
        )

    def _preview(self, lines: list[Line], row: Row) -> tuple[str, str, int]:
        """Sender, text and kind of the last message as it stands now."""
        for line in reversed(lines):
            if line.kind == EventKind.MESSAGE:
                if line.seq in row.deleted:
                    return line.user, "", EventKind.VOID
                if line.recalled:
                    return line.user, "", EventKind.RECALL
                kind = EventKind.EDIT if line.edited else EventKind.MESSAGE
                return line.user, line.text[:PREVIEW_CHARS], kind
        return "", "", EventKind.VOID

    def _title(self, user: str, timeline: Timeline) -> str:
        match session_kind(timeline.session):
            case SessionKind.GROUP:
                return timeline.title or ""
            case SessionKind.DIRECT:
                return peer_of(timeline.session, user)
            case _:
                return session_name(timeline.session).partition("/")[0]

    def _peer_read(self, user: str, session: str) -> int:
        if session_kind(session) is not SessionKind.DIRECT:
            return 0
        peer = peer_of(session, user)
        return 0 if peer == user else self.rows.get(peer, {}).get(session, Row()).read

    # ---- timelines

    def shown(self, user: str, session: str) -> list[tuple[int, int, str, str]]:
        """(seq, kind, sender, text) of what he is shown of a session now."""
        timeline = self.timelines[session]
        first, last = timeline.readable(user)
        deleted = self.row(user, session).deleted
        return [
            (line.seq, line.kind, line.user, "" if line.recalled else line.text)
            for line in timeline.lines[first - 1 : last]
            if line.kind != EventKind.VOID and line.seq not in deleted
        ]
