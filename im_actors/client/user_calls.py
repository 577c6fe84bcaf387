"""The part of the client that is about a user's conversations and not about one timeline."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from im_actors.client.batches import Batches
from im_actors.client.conversations import (
    Conversation,
    ConversationList,
    Device,
    Receipts,
    Signal,
    Unread,
    conversation_of,
)
from im_actors.client.groups import Groups
from im_actors.client.mailbox import place, row_of_event
from im_actors.client.results import Sent
from im_actors.client.user_side import now_ms
from im_actors.core.model import EventKind, check_name
from im_actors.core.names import SessionKind, check_session, direct_session, session_kind
from im_actors.errors import BadRequest, NotFound, RetryableError, ShuttingDown
from im_actors.wire.bodies import pack_edit, pack_recall
from im_actors.wire.limits import QUERY_ROWS_MAX
from im_actors.wire.queries import ConversationRow, read_fields, read_row

if TYPE_CHECKING:
    from im_actors.client.engine import Engine

SIGNALS_HELD_MAX = 256
"""Most signals that wait for their reader; the oldest are dropped."""


class UserCalls:
    """Conversations, unread counts, groups, devices.

    Reads come from the server, or from the local store when no server answers; the results say
    which. Changes are sent like messages: they are in the store when the call returns, are seen
    here at once, arrive once, and end as acked or refused.
    """

    _engine: Engine

    # -- the list --------------------------------------------------------------------------------

    async def conversations(
        self,
        limit: int = 25,
        after: str | None = None,
        *,
        unread_only: bool = False,
        label: str | None = "",
        local: bool = False,
    ) -> ConversationList:
        """The user's conversations, newest first; ``after`` is ``next`` of the page before.
        ``label``: what is folded under it; empty: what is not folded; None: all of it.
        ``local``: what this device knows, at once; ``list_changed`` tells when that is more."""
        if not 1 <= limit <= QUERY_ROWS_MAX:
            raise BadRequest(f"limit is {limit}, it must be 1 to {QUERY_ROWS_MAX}")
        behind, cursor = _read_next(after)
        user = self._engine.user
        if not local and (after is None or cursor is not None):
            try:
                page = await user.page(cursor, limit, unread_only, label)
            except RetryableError:
                pass
            else:
                newest = user.mailbox
                rows = [newest.row(row.session) or newest.changed(row) for row in page.rows]
                following = _next(page.rows[-1], page.cursor) if page.rows and page.cursor else None
                return self._list(rows, following, offline=False)
        offline = not (local and self._engine.connection.is_online)
        return await self._local_list(limit, behind, unread_only, label, offline)

    def labels(self) -> list[str]:
        """The labels under which this device knows conversations to be folded, sorted."""
        return sorted({row.label for row in self._engine.user.mailbox.rows()} - {""})

    async def list_changed(self, since: int = 0) -> int:
        """Wait until this device knows more of the list than it did when this returned ``since``.
        Changes that come together are told once. ShuttingDown when the client is closed."""
        user = self._engine.user
        while user.list_version <= since:
            if user.closed:
                raise ShuttingDown("the client is closed")
            user.list_news.clear()
            await user.list_news.wait()
        return user.list_version

    async def _local_list(
        self,
        limit: int,
        behind: tuple[int, str] | None,
        unread_only: bool,
        label: str | None,
        offline: bool,
    ) -> ConversationList:
        mailbox = self._engine.user.mailbox
        rows = [
            row
            for row in (mailbox.rows() if len(mailbox) else await self._rows_of_timelines())
            if label in (None, row.label)
            and (row.unread or not unread_only)
            and (behind is None or place(row) > behind)
        ]
        following = _next(rows[limit - 1], None) if len(rows) > limit else None
        return self._list(rows[:limit], following, offline)

    async def _rows_of_timelines(self) -> list[ConversationRow]:
        """Nobody told this device of the list yet: what it has read and sent is better than an
        empty screen."""
        engine = self._engine
        rows = []
        for event in await engine.store.last_events():
            if event.session != engine.user.session:
                shown = engine.user.overlays.shown([event])
                rows.append(row_of_event(event, "".join(found.text for found in shown)))
        return sorted(rows, key=place)

    def _list(
        self, rows: list[ConversationRow], following: str | None, offline: bool
    ) -> ConversationList:
        mailbox = self._engine.user.mailbox
        return ConversationList(
            [self._conversation(row) for row in rows],
            following,
            mailbox.total(),
            offline,
            mailbox.known.as_of_ms,
        )

    def _conversation(self, row: ConversationRow) -> Conversation:
        pending = sum(sent.session == row.session for sent in self._engine.receipts)
        return conversation_of(row, self._engine.user.user, pending)

    async def conversation(self, session: str) -> Conversation | None:
        """One of them, with what its unread count is made of; None: there is nothing of it."""
        check_session(session)
        user = self._engine.user
        try:
            _, fields = read_fields(
                "conversation", await user.ask("conversation", session), int, (list, type(None))
            )
        except RetryableError:
            row = user.mailbox.row(session)
        else:
            row = read_row(fields) if fields is not None else None
            if row is not None:
                user.mailbox.take([row])
                row = user.mailbox.changed(row)
        return self._conversation(row) if row else None

    async def unread(self) -> Unread:
        """How many messages wait for the user, over all conversations."""
        user = self._engine.user
        offline = False
        try:
            version, total = read_fields("unread", await user.ask("unread"), int, int)
            user.mailbox.counted(version, total, now_ms())
        except RetryableError:
            offline = True
        return Unread(user.mailbox.total(), offline, user.mailbox.known.as_of_ms)

    # -- one conversation ------------------------------------------------------------------------

    def direct(self, peer: str) -> str:
        """The session of this user and another one; with oneself it is for notes."""
        return direct_session(self._engine.user.user, check_name("user", peer))

    async def mark_read(self, session: str, seq: int) -> Sent:
        """The user has read up to ``seq``. It never goes back."""
        return await self._change("read", session, _seq(seq))

    async def pin(self, session: str, pinned: bool = True) -> Sent:
        return await self._change("pin", session, pinned)

    async def mute(self, session: str, muted: bool = True) -> Sent:
        """No bell for this one; it counts as unread all the same."""
        return await self._change("mute", session, muted)

    async def hide(self, session: str, hidden: bool = True) -> Sent:
        """Take it out of the list until its next message, or put it back. NotFound when nothing is
        known of it."""
        found = await self.conversation(session) if hidden else None
        if hidden and not (found and found.last_seq):
            raise NotFound(f"nothing is known of {session!r} that could be hidden")
        return await self._change("hide", session, found.last_seq if found else 0)

    async def fold(self, session: str, label: str) -> Sent:
        """Put it under a label; an empty one takes it out."""
        return await self._change("fold", session, label)

    async def delete(self, session: str, seq: int) -> Sent:
        """Show this user the event ``seq`` no more, on none of his devices."""
        return await self._change("delete", session, _seq(seq))

    async def _change(self, what: str, session: str, value: Any) -> Sent:
        return await self._engine.user.change(what, check_session(session), value)

    async def recall(self, session: str, seq: int) -> Sent:
        """Take a message back, for everybody."""
        return await self._engine.send(session, pack_recall(_seq(seq)), EventKind.RECALL)

    async def edit(self, session: str, seq: int, text: str | bytes) -> Sent:
        """Give a message a new text, for everybody."""
        body = text.encode() if isinstance(text, str) else text
        return await self._engine.send(session, pack_edit(_seq(seq), body), EventKind.EDIT)

    async def receipts(self, session: str, seq: int, limit: int = QUERY_ROWS_MAX) -> Receipts:
        """Who has read up to ``seq`` or further. Without a server only for direct sessions, from
        what is known of them."""
        check_session(session)
        row = self._engine.user.mailbox.row(session)
        is_direct = session_kind(session) is SessionKind.DIRECT
        try:
            answer = await self._engine.user.ask("receipts", session, _seq(seq), limit)
            read, users = read_fields("receipts", answer, int, list)
            delivered = answer[2] if len(answer) > 2 else None
            offline = False
        except RetryableError:
            if not is_direct or row is None:
                raise
            peer = conversation_of(row, self._engine.user.user, 0).title
            users = [peer] if row.peer_read_seq >= seq else []
            read, offline = len(users), True
            delivered = int(row.peer_delivered_seq >= seq)
        came = bool(delivered or read) if is_direct and delivered is not None else None
        return Receipts(read, [str(user) for user in users], came, offline)

    # -- groups and devices ----------------------------------------------------------------------

    @property
    def groups(self) -> Groups:
        return Groups(self._engine)

    @property
    def batches(self) -> Batches:
        """For services: one content for many recipients."""
        return Batches(self._engine)

    async def devices(self) -> list[Device]:
        """The user's devices; without a server as they were known last."""
        user = self._engine.user
        try:
            _, rows = read_fields("devices", await user.ask("devices"), int, list)
            found = [read_fields("devices", row, str, str, int, bool) for row in rows]
            user.remember("devices", found)
        except RetryableError:
            found = user.remembered("devices") or []
        return [Device(*row) for row in found]

    async def kick(self, device: str) -> Sent:
        """Cut one of the user's devices off; it comes back only as a new one."""
        return await self._engine.user.change("kick", check_name("device", device))

    # -- signals ---------------------------------------------------------------------------------

    def typing(self, session: str, typing: bool = True) -> None:
        """Tell the other user of a direct session, or those who follow the session, that the user
        writes, if that is possible now."""
        self._engine.user.requests.signal(check_session(session), "typing", typing)

    def here(self, session: str, here: bool = True) -> None:
        """Tell them that the user is there, or goes."""
        self._engine.user.requests.signal(check_session(session), "presence", here)

    def who_types(self, session: str) -> list[str]:
        """The users who write in a direct session, or in one that is followed."""
        return _true(self._engine.user.signals_of(session, "typing"))

    def who_is_here(self, session: str) -> list[str]:
        return _true(self._engine.user.signals_of(session, "presence"))

    async def who_is_online(self, session: str, limit: int = QUERY_ROWS_MAX) -> list[str]:
        """The other users of a direct session, or of a group that is not large, who are connected
        at the moment, as far as servers know; at most ``limit`` of them."""
        check_session(session)
        answer = await self._engine.user.ask("presence", session, limit)
        _, users = read_fields("presence", answer, int, list)
        return [str(user) for user in users]

    async def signals(self) -> AsyncIterator[Signal]:
        """What others signal in direct sessions and those that are followed, as it comes. Nothing
        of it is stored, and anything may be missing. Ends when the client is closed."""
        held: deque[Signal] = deque(maxlen=SIGNALS_HELD_MAX)
        news = asyncio.Event()
        with self._engine.user.hearing(held, news):
            while not self._engine.user.closed:
                while held:
                    yield held.popleft()
                news.clear()
                await news.wait()


def _true(values: dict[str, Any]) -> list[str]:
    return [user for user, value in values.items() if value is True]


def _seq(seq: int) -> int:
    if type(seq) is not int or seq < 1:
        raise BadRequest(f"seq is {seq!r}, it must be the number of an event")
    return seq


def _next(last: ConversationRow, cursor: str | None) -> str:
    """Where a page goes on: for the server by its cursor, here by the last row's place."""
    return f"{last.rank}/{quote(cursor or '', safe='')}/{last.session}"


def _read_next(after: str | None) -> tuple[tuple[int, str] | None, str | None]:
    """The place in the local list, and the server's cursor if it comes from one."""
    if after is None:
        return None, None
    rank, _, rest = after.partition("/")
    cursor, slash, session = rest.partition("/")
    if not rank.isdecimal() or not slash:
        raise BadRequest(f"{after!r} is not the end of a page of conversations")
    return (-int(rank), session), unquote(cursor) or None
