"""Rows of conversation lists as clients get them, and where live ones end for one user."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgpack

from im_actors.core.conversation import Conversation, conversation_of
from im_actors.core.facts import Fact
from im_actors.core.model import EventKind, key_time_ms, pack
from im_actors.core.names import SessionKind, session_kind
from im_actors.core.spans import Preview, Range
from im_actors.errors import ImError, NotReachable
from im_actors.gateway.live import LiveSession, LiveSessions
from im_actors.mailbox.rows import Entry, Flag, Head, live_rank
from im_actors.storage.months import month_at
from im_actors.wire.limits import SKIPS_MAX
from im_actors.wire.queries import RowFlag

INPUTS_EVENTS_MAX = 512
"""A live session's unread count is explained when it is about at most so many events."""
_ROWS_KNOWN_MAX = 16_384
_LIVE = (SessionKind.GROUP, SessionKind.OPEN)
_NOTHING = Preview(0, 0, int(EventKind.VOID), "", "")

read_conversation = lru_cache(_ROWS_KNOWN_MAX)(Conversation.from_bytes)


def base_of(row: Conversation) -> int:
    """Above it events may be unread."""
    return max(row.read_seq, row.joined_seq)


class MailboxRows:
    """The ``RowFormat`` of mailboxes."""

    def __init__(self) -> None:
        self.dropped: frozenset[int] = frozenset()
        """Months whose content was dropped. The beginning of a last message is a part of the
        mailbox's state, and is not shown any more."""

    def entry(self, fact: Fact) -> Entry:
        session = conversation_of(fact.key)
        assert session is not None, fact.key
        if fact.value is None:
            return Entry(session, fact.seq, 0, 0, 0, "", None)
        row = read_conversation(fact.value)
        live = session_kind(session) in _LIVE
        flags = (
            (Flag.PINNED if row.pinned else 0)
            | (Flag.MUTED if row.muted else 0)
            | (Flag.LIVE if live else 0)
        )
        unread = 0 if live else row.unread().number
        return Entry(session, fact.seq, fact.rank, unread, int(flags), row.label, fact.value)

    def rank(self, entry: Entry, head: Head | None) -> int:
        if head is not None and entry.value is not None:
            row = read_conversation(entry.value)
            if row.hidden_at(head.seq):
                return 0
        return live_rank(entry, head)

    def encode(self, entry: Entry, head: Head | None) -> bytes:
        row = Conversation() if entry.value is None else read_conversation(entry.value)
        if entry.flags & Flag.LIVE and head is not None:
            said = msgpack.unpackb(head.preview, raw=False)
            last_seq, unread = head.seq, head.unread
        else:
            preview = row.preview
            shown = preview[2:] if preview is not None else (0, "", "")
            time_ms = key_time_ms(row.last_key) if row.last_seq else 0
            inputs = None if entry.flags & Flag.LIVE else _inputs(row)
            said = [time_ms, *shown, "", inputs]
            last_seq, unread = row.last_seq, entry.unread
        time_ms, kind, sender, text, title, inputs = said
        if self.dropped and text and month_at(time_ms) in self.dropped:
            kind, text = int(EventKind.DROPPED), ""
        hidden = row.hidden_at(last_seq)
        flags = (
            (RowFlag.PINNED if row.pinned else 0)
            | (RowFlag.MUTED if row.muted else 0)
            | (RowFlag.HIDDEN if hidden else 0)
            | (RowFlag.LEFT if row.out else 0)
        )
        return pack(
            (
                entry.session,
                entry.seq,
                self.rank(entry, head) if head is not None else entry.rank,
                last_seq,
                time_ms,
                kind,
                sender,
                text,
                unread,
                inputs,
                row.read_seq,
                row.peer_read_seq,
                row.peer_delivered_seq,
                int(flags),
                row.label,
                title,
            )
        )


class UserHeads:
    """The ``Heads`` of one user's live rows."""

    def __init__(self, live: LiveSessions, user: str) -> None:
        self._live = live
        self._user = user

    @property
    def changes(self) -> int:
        return self._live.changes

    def mark(self, session: str) -> int:
        live = self._live.get(session)
        return live.mark if live is not None else 0

    def head(self, entry: Entry) -> Head | None:
        live = self._live.get(entry.session)
        if live is None or entry.value is None:
            return None
        row = read_conversation(entry.value)
        unread = live.unread(self._user, base_of(row))
        if unread is None:
            return None
        return Head(live.upto, live.last_key, unread, pack(self._said(live, row)))

    async def load(self, entries: Sequence[Entry]) -> None:
        """NotReachable, in the end, when one of them cannot be known now."""
        loads = [self._load(entry) for entry in entries]
        failed = [e for e in await asyncio.gather(*loads, return_exceptions=True) if e is not None]
        for error in failed:
            if not isinstance(error, ImError):
                raise error
        if failed:
            raise NotReachable(f"{len(failed)} sessions of the list cannot be read: {failed[0]}")

    async def _load(self, entry: Entry) -> None:
        live = await self._live.current(entry.session)
        if entry.value is not None:
            await self._live.count(live, self._user, base_of(read_conversation(entry.value)))

    def _said(self, live: LiveSession, row: Conversation) -> list[Any]:
        preview, group, base = live.preview, live.group, base_of(row)
        if preview is None or preview.seq < row.joined_seq:
            # What was said before he came is not his to read.
            preview = _NOTHING
        elif row.preview is not None and row.preview.seq == preview.seq:
            preview = preview.deleted()
        shown = preview[2:]
        inputs = None
        if live.upto - base <= INPUTS_EVENTS_MAX:
            inputs = live_inputs(live, self._user, base)
        return [live.last_ms, *shown, group.title if group is not None else "", inputs]


def live_inputs(live: LiveSession, user: str, base: int) -> list[Any] | None:
    """The inputs of an unread count from the window; None: it does not reach so far."""
    ranges = live.window.uncounted(user, base)
    if ranges is None:
        return None
    skipped = sum(last - first + 1 for first, last in ranges)
    return [base, max(base, live.upto), skipped, ranges[-SKIPS_MAX:]]


def _inputs(row: Conversation) -> list[Any]:
    unread = row.unread()
    ranges: Sequence[Range] = row.uncounted()[-SKIPS_MAX:]
    return [unread.read_seq, unread.last_seq, unread.skipped + unread.recalled, ranges]
