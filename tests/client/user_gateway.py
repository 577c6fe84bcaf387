"""A gateway with a user side: small, slow, and computing every answer from the timelines anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from im_actors.core.facts import pack_state, read_request, read_state
from im_actors.core.model import Event, EventKind, pack
from im_actors.core.names import SessionKind, mailbox_of, session_kind, users_of
from im_actors.errors import BadRequest, Forbidden, ImError, NotFound
from im_actors.wire import messages as m
from im_actors.wire import queries as q
from im_actors.wire.bodies import read_target
from im_actors.wire.codec import Message
from im_actors.wire.limits import Limits
from tests.client.conftest import FakeGateway, Peer

PINNED = 1 << 62
SERVER = "*"


class Settings:
    """What a user said of a conversation."""

    def __init__(self) -> None:
        self.version = 0
        self.read = self.delivered = self.hidden = 0
        self.pinned = self.muted = False
        self.label = ""


class UserGateway(FakeGateway):
    """Direct sessions and groups. Everybody is a member of a group who was named in it."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits()
        self.settings: dict[tuple[str, str], Settings] = {}
        self.titles: dict[str, str] = {}
        self.members: dict[str, dict[str, str]] = {}
        self.known_devices: dict[str, dict[str, str]] = {}
        self.queries: list[q.Query] = []
        # What to do wrong:
        self.answers_none = False
        self.query_error: ImError | None = None
        self.lag = 0
        """How many of the next answers come from a copy that has nothing new."""

    # -- writing ---------------------------------------------------------------------------------

    def serve(self, peer: Peer, message: Message) -> None:
        if peer.hello is not None and message[0] == m.QUERY:
            self.log.append(m.QUERY)
            self._query(peer, q.check_query(message))
        elif peer.hello is not None and message[0] == m.FOLLOW:
            refused = [name for name in message[1] if not self._may_read(peer.hello.user, name)]
            for name in refused:
                code = Forbidden.code if name in self.members else NotFound.code
                peer.tell(m.heads([(name, 0, code)]))
            if allowed := [name for name in message[1] if name not in refused]:
                super().serve(peer, [m.FOLLOW, allowed])
        elif peer.hello is not None and message[0] == m.SIGNAL:
            signal = q.check_signal(message)
            row = q.Signaled(signal.session, peer.hello.user, signal.what, signal.value)
            for other in self.peers:
                if other is not peer and signal.session in other.followed:
                    other.tell(q.signaled([row]))
        else:
            super().serve(peer, message)

    def _may_read(self, user: str, session: str) -> bool:
        is_group = session_kind(session) is SessionKind.GROUP
        return not is_group or user in self.members.get(session, ())

    def _take(self, device: str, entry: list[Any]) -> tuple[Any, Event | None]:
        session, n, kind, body = entry
        fresh = (session, device, n) not in self.keys
        if fresh and n == self.next_n.get((session, device), 1):
            try:
                entry = [session, n, kind, self._decided(device, session, kind, body)]
            except ImError as error:
                return m.nack_of(session, n, error), None
        return super()._take(device, entry)

    def _decided(self, device: str, session: str, kind: int, body: bytes) -> bytes:
        """The body as it is committed, or the error."""
        user = device.partition("/")[0]
        if kind in (EventKind.RECALL, EventKind.EDIT):
            target = read_target(kind, body)
            timeline = self.timelines.get(session, [])
            if target.seq > len(timeline):
                raise NotFound(f"there is no event {target.seq}")
            if timeline[target.seq - 1].sender != user:
                raise Forbidden("it is not yours")
            verb = "recall" if kind == EventKind.RECALL else "edit"
            value = pack([1, kind, user, target.text])
            return pack_state(verb, [target.seq], [(f"x/{target.seq:016x}", target.seq, value)])
        if kind == EventKind.MAILBOX:
            what, args = read_request(body)
            self._change(user, what, args)
            return pack_state(what, args, [])
        if kind == EventKind.GROUP:
            what, args = read_request(body)
            changed = self._change_group(user, session, what, args)
            return pack_state(what, args, [(f"m/{name}", 1, b"") for name in changed])
        return body

    def _change(self, user: str, what: str, args: list[Any]) -> None:
        mailbox = mailbox_of(user)
        if what == "device":
            self.known_devices.setdefault(user, {})[args[0]] = args[1]
            return
        if what == "kick":
            if args[0] not in self.known_devices.get(user, {}):
                raise NotFound(f"{user} has no device {args[0]}")
            del self.known_devices[user][args[0]]
            return
        if what == "received":
            for session, seq in args[0]:
                received = self.settings.setdefault((user, session), Settings())
                received.delivered = max(received.delivered, seq)
                self.notes = [
                    *self.notes,
                    *(self._note(name, session) for name in users_of(session)),
                ]
            return
        session, value = args
        settings = self.settings.setdefault((user, session), Settings())
        settings.version = len(self.timelines.get(mailbox, ())) + 1
        match what:
            case "read":
                settings.read = max(settings.read, value)
            case "pin":
                settings.pinned = value
            case "mute":
                settings.muted = value
            case "hide":
                settings.hidden = value
            case "fold":
                settings.label = value

    def _change_group(self, user: str, session: str, what: str, args: list[Any]) -> list[str]:
        if what == "create":
            self.titles[session] = args[0]
            self.members[session] = {user: "owner"} | dict.fromkeys(args[1], "member")
            return list(self.members[session])
        members = self.members.get(session)
        if members is None:
            raise NotFound(f"there is no {session}")
        if user not in members and what != "join":
            raise Forbidden(f"{user} is no member of {session}")
        match what:
            case "add":
                members.update(dict.fromkeys(args[0], "member"))
                return list(args[0])
            case "remove":
                for name in args[0]:
                    members.pop(name)
                return list(args[0])
            case "role":
                members[args[0]] = args[1]
                return [args[0]]
            case "title":
                self.titles[session] = args[0]
            case "join":
                members[user] = "member"
                return [user]
            case "leave":
                del members[user]
                return [user]
        return []

    def _commit(self, session: str, device: str, n: int, kind: int, body: bytes) -> Event:
        event = super()._commit(session, device, n, kind, body)
        if session_kind(session) is SessionKind.DIRECT:
            self.notes = [self._note(user, session) for user in users_of(session)]
        return event

    def read(self, user: str, session: str, seq: int) -> None:
        """On a device of his own."""
        self.settings.setdefault((user, session), Settings()).read = seq
        self.notes = [self._note(name, session) for name in users_of(session)]
        self._publish([])

    def _note(self, user: str, session: str) -> Event:
        mailbox = mailbox_of(user)
        settings = self.settings.setdefault((user, session), Settings())
        settings.version = len(self.timelines.get(mailbox, ())) + 1
        n = self.next_n.get((mailbox, SERVER), 1)
        body = pack_state("span", [session], [])
        return super()._commit(mailbox, SERVER, n, EventKind.NOTE, body)

    notes: Sequence[Event] = ()

    def _publish(self, events: list[Event]) -> None:
        notes, self.notes = self.notes, ()
        super()._publish([*events, *notes])

    # -- reading ---------------------------------------------------------------------------------

    def row(self, user: str, session: str) -> q.ConversationRow:
        """From the timeline, event by event."""
        settings = self.settings.get((user, session), Settings())
        timeline = self.timelines.get(session, [])
        gone: dict[int, int] = {}
        texts: dict[int, str] = {}
        for event in timeline:
            if event.kind in (EventKind.RECALL, EventKind.EDIT):
                target, said = overlay(event)
                gone[target] = event.kind
                texts[target] = (said or b"").decode()
        counts = [
            event.seq
            for event in timeline
            if event.kind == EventKind.MESSAGE
            and event.sender != user
            and gone.get(event.seq) != EventKind.RECALL
        ]
        unread = [seq for seq in counts if seq > settings.read]
        last = len(timeline)
        skips = [[s, s] for s in range(settings.read + 1, last + 1) if s not in unread]
        shown = [event for event in timeline if event.kind == EventKind.MESSAGE][-1:]
        others = [name for name in users_of(session) if name != user]
        peer = self.settings.get((others[0], session), Settings()) if others else Settings()
        key = timeline[-1].key if timeline else 0
        hidden = bool(last) and settings.hidden >= last
        return q.ConversationRow(
            session=session,
            version=settings.version,
            rank=0 if hidden else key | PINNED if settings.pinned else key,
            last_seq=last,
            time_ms=timeline[-1].time_ms if timeline else 0,
            kind=gone.get(shown[0].seq, 1) if shown else 0,
            sender=shown[0].sender if shown else "",
            preview=texts.get(shown[0].seq, shown[0].text) if shown else "",
            unread=len(unread),
            inputs=[settings.read, last, len(skips), skips],
            read_seq=settings.read,
            peer_read_seq=peer.read,
            peer_delivered_seq=peer.delivered,
            flags=settings.pinned | settings.muted << 1 | hidden << 2,
            label=settings.label,
            title=self.titles.get(session, ""),
        )

    def rows(self, user: str) -> list[q.ConversationRow]:
        names = [s for s in self.timelines if user in users_of(s) and s != mailbox_of(user)]
        names += [s for s, members in self.members.items() if user in members]
        rows = [self.row(user, session) for session in names]
        return sorted(rows, key=lambda row: (-row.rank, row.session))

    def version(self, user: str) -> int:
        return len(self.timelines.get(mailbox_of(user), ()))

    def _query(self, peer: Peer, query: q.Query) -> None:
        self.queries.append(query)
        if self.answers_none:
            return
        assert peer.hello is not None
        try:
            if self.query_error is not None:
                raise self.query_error
            value = self._answer(peer.hello.user, query.what, q.check_arguments(query))
        except ImError as error:
            peer.tell(q.refusal(query.request, error))
        else:
            peer.tell(q.answer(query.request, value))

    def _answer(self, user: str, what: str, args: list[Any]) -> Any:
        version = self.version(user)
        listed = [row for row in self.rows(user) if row.rank]
        total = sum(row.unread for row in listed)
        match what, args:
            case "conversations", [cursor, limit, unread_only, label]:
                rows = [
                    row
                    for row in listed
                    if label in (None, row.label) and (row.unread or not unread_only)
                ]
                if cursor:
                    rank, session = cursor.split("|")
                    rows = [r for r in rows if (-r.rank, r.session) > (-int(rank), session)]
                if self.lag:
                    self.lag -= 1
                    return [0, [], None, 0]
                page = rows[:limit]
                more = f"{page[-1].rank}|{page[-1].session}" if len(rows) > limit else None
                return [version, page, more, total]
            case "conversation", [session]:
                known = [row for row in self.rows(user) if row.session == session]
                return [version, known[0] if known else None]
            case "unread", []:
                return [version, total]
            case "changes", [since, limit]:
                if self.lag:
                    self.lag -= 1
                    return [since, [], True]
                rows = sorted((r for r in self.rows(user) if r.version > since), key=_version)
                complete = len(rows) <= limit
                return [version if complete else rows[limit - 1].version, rows[:limit], complete]
            case "group", [session]:
                return self._group(user, session)
            case "members", [session, after, limit]:
                return self._members(session, after, limit)
            case "devices", []:
                devices = self.known_devices.get(user, {})
                return [version, [[name, about, 5, True] for name, about in devices.items()]]
            case "receipts", [session, seq, limit]:
                members = [*users_of(session), *self.members.get(session, ())]
                read = [u for u in members if u != user and self.has_read(u, session) >= seq]
                return [len(read), read[:limit]]
            case "presence", [session, limit]:
                others = {peer.hello.user for peer in self.peers if peer.hello} - {user}
                there = sorted(others & {*users_of(session), *self.members.get(session, ())})
                return [len(there), there[:limit]]
            case "overlays", [session, first, last]:
                return self._overlays(user, session, first, last)
        raise BadRequest(what)

    def has_read(self, user: str, session: str) -> int:
        return self.settings.get((user, session), Settings()).read

    def _group(self, user: str, session: str) -> list[Any]:
        members = self.members.get(session)
        if members is None:
            raise NotFound(f"there is no {session}")
        owner = next(name for name, role in members.items() if role == "owner")
        role = members.get(user, "")
        return [1, self.titles[session], owner, len(members), role, False, 0, 0]

    def _members(self, session: str, after: str | None, limit: int) -> list[Any]:
        names = list(self.members[session])
        names = names[names.index(after) + 1 :] if after else names
        rows = [[name, self.members[session][name], 1, 0] for name in names[:limit]]
        return [1, rows, names[limit - 1] if len(names) > limit else None]

    def _overlays(self, user: str, session: str, first: int, last: int) -> list[Any]:
        rows: dict[int, list[Any]] = {}
        for event in self.timelines.get(mailbox_of(user), []):
            what, args, *_ = read_state(event.body)
            if what == "delete" and args[0] == session and first <= args[1] <= last:
                rows[-args[1]] = [args[1], 0, 0, None]
        for event in self.timelines.get(session, []):
            if event.kind in (EventKind.RECALL, EventKind.EDIT):
                target, text = overlay(event)
                if first <= target <= last:
                    rows[target] = [target, event.seq, event.kind, text]
        return list(rows.values())


def overlay(event: Event) -> tuple[int, bytes | None]:
    import msgpack

    _, (target,), ((_, _, value),) = msgpack.unpackb(event.body)
    return target, msgpack.unpackb(value)[3]


def _version(row: q.ConversationRow) -> int:
    return row.version
