"""QUERY and ANSWER: what a user asks that is not a timeline.

Lists and totals come from ``Mailboxes``, groups from the live sessions, the rest from the replicas'
facts. What is asked for is answered as of everything that this gateway has heard of, the asker's
own ACKs among it, or with an error that says when to ask again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from im_actors.core.deleted import deleted_keys, is_deleted
from im_actors.core.devices import Device, device_key
from im_actors.core.fact_lists import FACT_KEYS_MAX
from im_actors.core.facts import Fact
from im_actors.core.groups import (
    GROUP_KEY,
    MEMBER_RANK_MIN,
    ROLE_NAMES,
    Group,
    Membership,
    Role,
    member_key,
    member_rank,
)
from im_actors.core.model import EventKind, pack
from im_actors.core.names import SessionKind, mailbox_of, peer_of, session_kind
from im_actors.core.overlays import Overlay, overlay_rank
from im_actors.errors import (
    BadRequest,
    Forbidden,
    ImError,
    NotFound,
    NotReachable,
    Overloaded,
    TooLarge,
)
from im_actors.gateway.access import Access, may_by_id
from im_actors.gateway.batch_reads import BatchQueries
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.live import LiveSessions
from im_actors.gateway.online import Online
from im_actors.gateway.presence import Presence
from im_actors.gateway.receipts import ReceiptQueries
from im_actors.gateway.replica_facts import ReplicaFacts
from im_actors.gateway.rows import MailboxRows, UserHeads
from im_actors.mailbox.cursor import Query as ListQuery
from im_actors.mailbox.cursor import read_cursor
from im_actors.mailbox.loading import Mailboxes
from im_actors.mailbox.rows import CONVERSATION, Flag, packed_array
from im_actors.mailbox.tier_facts import FactPage
from im_actors.wire.codec import encode_frame
from im_actors.wire.limits import QUERY_ROWS_MAX
from im_actors.wire.queries import Query, check_arguments, encode_answer, refusal

logger = logging.getLogger(__name__)

OVERLAYS_RANGE_MAX = 10_000
"""Seqs that one question about overlays may span."""
OVERLAYS_BYTES_MAX = 512 * 1024
"""Bytes of their texts."""
_ROLES = {role: name for name, role in ROLE_NAMES.items()} | {Role.STRANGER: ""}
_MEMBER = member_key("")
_DEVICE = device_key("")


class Asker(Protocol):
    """What this module knows of a client connection."""

    queries: int
    """QUERYs without an answer."""

    @property
    def user(self) -> str: ...

    @property
    def buffered_bytes(self) -> int: ...

    def send(self, frame: bytes) -> bool: ...

    def page_sent(self, size: int) -> None: ...


class Queries:
    """All QUERYs without an answer. Values are made as msgpack at once."""

    def __init__(
        self,
        mailboxes: Mailboxes,
        live: LiveSessions,
        access: Access,
        online: Online,
        presence: Presence,
        replicas: ReplicaFacts,
        config: GatewayConfig,
        at_least: Callable[[str], int],
    ) -> None:
        self._mailboxes = mailboxes
        self._live = live
        self._access = access
        self._online = online
        self._presence = presence
        self._replicas = replicas
        self._config = config
        self._at_least = at_least
        self._rows = MailboxRows()
        self._batches = BatchQueries(self._current_facts)
        self._receipt_queries = ReceiptQueries(replicas, at_least)
        self._tasks: set[asyncio.Task[None]] = set()
        self.answered = 0
        self.failed = 0
        self._answers: dict[str, Callable[..., Awaitable[bytes]]] = {
            "conversations": self._conversations,
            "conversation": self._conversation,
            "unread": self._unread,
            "changes": self._changes,
            "group": self._group,
            "members": self._members,
            "devices": self._devices,
            "receipts": self._receipts,
            "presence": self._present,
            "overlays": self._overlays,
            "batch": self._batch,
            "outcomes": self._outcomes,
        }

    def __len__(self) -> int:
        return len(self._tasks)

    def ask(self, asker: Asker, query: Query) -> None:
        """Answer with ANSWER, soon."""
        limit = self._config.limits.queries
        try:
            args = check_arguments(query)
            if asker.queries >= limit:
                raise Overloaded(f"{limit} queries of this connection wait")
            if len(self._tasks) >= self._config.queries_max:
                raise Overloaded("too many queries wait here")
        except ImError as error:
            self._fail(asker, query, error)
            return
        asker.queries += 1
        task = asyncio.get_running_loop().create_task(self._answer(asker, query, args))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Return when nothing runs any more."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ---- inside

    async def _answer(self, asker: Asker, query: Query, args: list[Any]) -> None:
        try:
            value = await self._answers[query.what](asker.user, *args)
        except (ImError, OSError) as error:
            known = error if isinstance(error, ImError) else NotReachable(str(error))
            self._fail(asker, query, known)
        except Exception:
            # A defect in one answer is no reason to let the asker wait for ever.
            logger.exception("the query %s of %s failed", query.what, asker.user)
            self._fail(asker, query, NotReachable(f"{query.what} could not be answered"))
        else:
            self._send(asker, query, value)
        finally:
            asker.queries -= 1

    def _send(self, asker: Asker, query: Query, value: bytes) -> None:
        if asker.buffered_bytes > self._config.slow_reader_bytes:
            self._fail(asker, query, Overloaded("read the earlier answers first"))
            return
        frame = encode_answer(query.request, value)
        if len(frame) > self._config.limits.frame_bytes:
            self._fail(asker, query, TooLarge("the answer does not fit a frame: ask for less"))
            return
        asker.send(frame)
        asker.page_sent(len(frame))
        self.answered += 1

    def _fail(self, asker: Asker, query: Query, error: ImError) -> None:
        self.failed += 1
        asker.send(encode_frame(refusal(query.request, error)))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)

    async def _current_facts(self, session: str, keys: Sequence[str]) -> FactPage:
        return await self._replicas.current(session, keys, self._at_least(session))

    async def _batch(self, user: str, session: str) -> bytes:
        return pack(await self._batches.batch(user, session))

    async def _outcomes(self, user: str, session: str, chunk: int) -> bytes:
        return pack(await self._batches.outcomes(user, session, chunk))

    async def _heard(self, user: str) -> int:
        """What an answer about this user's mailbox has to know of at least."""
        await self._online.ready(user)
        return self._at_least(mailbox_of(user))

    # ---- lists

    async def _conversations(
        self, user: str, cursor: str | None, limit: int, unread_only: bool, label: str | None
    ) -> bytes:
        at_least = await self._heard(user)
        query = ListQuery(label, unread_only, limit=limit)
        if cursor is not None:
            query = read_cursor(cursor, query)
        page, totals = await self._mailboxes.listed(user, query, at_least)
        self._check_heads(user)
        return packed_array(
            (pack(page.version), page.encoded, pack(page.cursor or None), pack(totals.unread))
        )

    async def _unread(self, user: str) -> bytes:
        at_least = await self._heard(user)
        totals = await self._mailboxes.totals(user, at_least)
        self._check_heads(user)
        return packed_array((pack(self._version(user, at_least)), pack(totals.unread)))

    async def _conversation(self, user: str, session: str) -> bytes:
        found = await self._mailboxes.conversation(user, session, await self._heard(user))
        self._check_heads(user, session)
        return packed_array((pack(found.version), found.encoded or pack(None)))

    async def _changes(self, user: str, since: int, limit: int) -> bytes:
        at_least = await self._heard(user)
        delta = await self._mailboxes.delta(user, since, limit, at_least)
        if delta is None:
            return await self._old_changes(user, since, limit, at_least)
        self._check_heads(user)
        return packed_array((pack(delta.version), delta.encoded, pack(not delta.more)))

    async def _old_changes(self, user: str, since: int, limit: int, at_least: int) -> bytes:
        """From the replicas, as memory does not reach so far back."""
        page = await self._replicas.since(mailbox_of(user), since, limit, at_least)
        entries = [
            self._rows.entry(fact) for fact in page.facts if fact.key.startswith(CONVERSATION)
        ]
        heads = UserHeads(self._live, user)
        live = [entry for entry in entries if entry.flags & Flag.LIVE and entry.rank]
        await heads.load(live)
        found = {entry.session: heads.head(entry) for entry in live}
        rows = [self._rows.encode(entry, found.get(entry.session)) for entry in entries]
        version = page.facts[-1].seq if page.more else page.version
        return packed_array((pack(version), packed_array(rows), pack(not page.more)))

    def _version(self, user: str, at_least: int) -> int:
        view = self._mailboxes.views.get(user)
        return view.version if view is not None else at_least

    def _check_heads(self, user: str, session: str | None = None) -> None:
        """What is unread in a group of which nobody could say anything is not 0, but unknown."""
        view = self._mailboxes.views.get(user)
        if view is not None and view.refresh() and view.headless(session):
            raise NotReachable("groups of the list cannot be read at the moment, ask again")

    # ---- groups

    async def _group(self, user: str, session: str) -> bytes:
        _check_group(session)
        live = await self._live.current(session, self._at_least(session))
        value = await self._live.fact(live, GROUP_KEY)
        if value is None:
            raise NotFound(f"there is no group {session!r}")
        group = Group.from_bytes(value)
        row = await self._live.fact(live, member_key(user))
        role = Membership.from_bytes(row).role if row is not None else Role.STRANGER
        return pack(
            (
                live.upto,
                group.title,
                group.owner,
                group.members,
                _ROLES[role],
                group.joining,
                group.muted_until_ms,
                group.dissolved_ms,
            )
        )

    async def _members(self, user: str, session: str, after: str | None, limit: int) -> bytes:
        _check_group(session)
        await self._check_member(user, session)
        version, rows, more = await self._member_page(session, after, limit)
        found = [(name, _ROLES[row.role], row.joined_seq, row.muted_until_ms) for name, row in rows]
        return pack((version, found, rows[-1][0] if more else None))

    async def _check_member(self, user: str, session: str) -> None:
        membership = await self._access.membership(user, session)
        if membership.role is Role.STRANGER:
            raise Forbidden(f"{user} is no member of {session!r} any more")

    async def _member_page(
        self, session: str, after: str | None, limit: int
    ) -> tuple[int, list[tuple[str, Membership]], bool]:
        live = await self._live.current(session, self._at_least(session))
        rank, key = 0, ""
        if after is not None:
            key = member_key(after)
            value = await self._live.fact(live, key)
            rank = member_rank(Membership.from_bytes(value)) if value is not None else 0
            if not rank:
                raise NotFound(f"{after} is no member any more: begin at the top")
        page = await self._replicas.ranked(session, rank, key, limit, live.upto)
        _check_reached(page.version, live.upto)
        rows = [fact for fact in page.facts if fact.rank >= MEMBER_RANK_MIN]
        members = [_member(fact) for fact in rows]
        # What is ranked below the members is no member.
        more = page.more and len(rows) == len(page.facts)
        return page.version, members, more

    # ---- devices

    async def _devices(self, user: str) -> bytes:
        at_least = await self._heard(user)
        mailbox = mailbox_of(user)
        page = await self._replicas.prefixed(mailbox, _DEVICE, "", QUERY_ROWS_MAX, at_least)
        _check_reached(page.version, at_least)
        online = (await self._presence.devices([user]))[user]
        rows = []
        for fact in page.facts:
            device = Device.from_bytes(fact.value) if fact.value is not None else None
            if device is not None and not device.kicked_ms:
                name = fact.key.removeprefix(_DEVICE)
                rows.append((name, device.about, device.since_ms, name in online))
        return pack((page.version, rows))

    async def _present(self, user: str, session: str, limit: int) -> bytes:
        """Who else of a session is connected."""
        if session_kind(session) is SessionKind.GROUP:
            await self._check_member(user, session)
            users = await self._few_members(session)
        elif session_kind(session) is SessionKind.DIRECT and may_by_id(user, session):
            users = [peer_of(session, user)]
        else:
            raise Forbidden(f"nobody's presence in {session!r} is told to you")
        devices = await self._presence.devices([name for name in users if name != user])
        there = [name for name in devices if devices[name]]
        return pack((len(there), there[:limit]))

    async def _few_members(self, session: str) -> list[str]:
        live = await self._live.current(session, self._at_least(session))
        most = self._config.signal_hearers_max
        if live.group is not None and live.group.members > most:
            raise TooLarge(
                f"{session!r} has {live.group.members} members, presence is told of groups with "
                f"up to {most}"
            )
        _, members, _ = await self._member_page(session, None, most)
        return [name for name, _ in members]

    # ---- receipts

    async def _receipts(self, user: str, session: str, seq: int, limit: int) -> bytes:
        if session_kind(session) is SessionKind.GROUP:
            await self._check_member(user, session)
            return pack(await self._receipt_queries.group(user, session, seq, limit))
        if session_kind(session) is SessionKind.DIRECT and may_by_id(user, session):
            return pack(await self._receipt_queries.direct(user, session, seq, limit))
        raise Forbidden(f"there are no receipts for you in {session!r}")

    # ---- overlays

    async def _overlays(self, user: str, session: str, first: int, last: int) -> bytes:
        may = may_by_id(user, session)
        if may is None:
            bounds = await self._access.bounds(user, session)
            first, last = max(first, bounds.first), min(last, bounds.last)
        elif not may:
            raise Forbidden(f"{session!r} is not yours to read")
        if last - first >= OVERLAYS_RANGE_MAX:
            raise BadRequest(f"overlays: at most {OVERLAYS_RANGE_MAX} seqs at once")
        if last < first:
            return pack(())
        said, deleted = await asyncio.gather(
            self._said(session, first, last), self._deleted(user, session, first, last)
        )
        return pack(said + deleted)

    async def _said(self, session: str, first: int, last: int) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        rank, key, size, at_least = overlay_rank(last) + 1, "", 0, self._at_least(session)
        while True:
            page = await self._replicas.ranked(session, rank, key, QUERY_ROWS_MAX, at_least)
            _check_reached(page.version, at_least)
            facts = [fact for fact in page.facts if fact.rank >= overlay_rank(first)]
            for fact in facts:
                assert fact.value is not None, fact
                row = Overlay.from_bytes(fact.value)
                size += len(row.text or b"")
                rows.append((fact.rank, fact.seq, row.kind, row.text))
            if size > OVERLAYS_BYTES_MAX:
                raise TooLarge("overlays: too much text, ask for fewer seqs")
            if not page.more or len(facts) < len(page.facts):
                return rows
            rank, key = facts[-1].rank, facts[-1].key

    async def _deleted(
        self, user: str, session: str, first: int, last: int
    ) -> list[tuple[Any, ...]]:
        keys = deleted_keys(session, first, last)
        assert len(keys) <= FACT_KEYS_MAX
        at_least = await self._heard(user)
        page = await self._replicas.of_keys(mailbox_of(user), keys, at_least)
        _check_reached(page.version, at_least)
        values = {fact.key: fact.value for fact in page.facts}
        if not values:
            return []
        return [
            (seq, 0, int(EventKind.VOID), None)
            for seq in range(first, last + 1)
            if is_deleted(values.get(deleted_keys(session, seq, seq)[0]), seq)
        ]


def _member(fact: Fact) -> tuple[str, Membership]:
    assert fact.value is not None, fact
    return fact.key.removeprefix(_MEMBER), Membership.from_bytes(fact.value)


def _check_group(session: str) -> None:
    if session_kind(session) is not SessionKind.GROUP:
        raise BadRequest(f"{session!r} is no group")


def _check_reached(version: int, at_least: int) -> None:
    if version < at_least:
        raise NotReachable("no replica that answers knows what was heard of, ask again")
