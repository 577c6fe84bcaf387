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
from im_actors.core.names import NOTICE_CHANNELS, SessionKind, notice_session, session_kind
from im_actors.core.spans import FOR_EVER, Preview, Range
from im_actors.errors import ImError, NotReachable
from im_actors.gateway.live import LiveSession, LiveSessions
from im_actors.mailbox.rows import Entry, Flag, Head, live_rank
from im_actors.storage.months import month_at
from im_actors.wire.limits import SKIPS_MAX
from im_actors.wire.queries import RowFlag

INPUTS_EVENTS_MAX = 512
"""A live session's unread count is explained when it is about at most so many events."""
_ROWS_KNOWN_MAX = 16_384
_LIVE = (SessionKind.GROUP, SessionKind.OPEN, SessionKind.NOTICE)
_NOTHING = Preview(0, 0, int(EventKind.VOID), "", "")

read_conversation = lru_cache(_ROWS_KNOWN_MAX)(Conversation.from_bytes)


def row_of(entry: Entry) -> Conversation:
    """What the mailbox says; of a row that only stands there, nothing."""
    return Conversation() if entry.value is None else read_conversation(entry.value)


def base_of(row: Conversation) -> int:
    """Above it events may be unread."""
    return max(row.read_seq, row.joined_seq)


class MailboxRows:
    """The ``RowFormat`` of mailboxes."""

    def __init__(self) -> None:
        self.dropped: frozenset[int] = frozenset()
        """Months whose content was dropped. The beginning of a last message is a part of the
        mailbox's state, and is not shown any more."""

    def standing(self, user: str) -> list[Entry]:
        """The channels of notices: who sends there writes into no mailbox."""
        channels = [notice_session(channel, user) for channel in NOTICE_CHANNELS]
        return [Entry(session, 0, 1, 0, int(Flag.LIVE), "", None) for session in channels]

    def entry(self, fact: Fact) -> Entry:
        session = conversation_of(fact.key)
        assert session is not None, fact.key
        if fact.value is None:
            return Entry(session, fact.seq, 0, 0, 0, "", None)
        row = read_conversation(fact.value)
        kind, rank = session_kind(session), fact.rank
        live = kind in _LIVE
        if kind is SessionKind.NOTICE:
            # One that was noted once may say that it is hidden where it ended then.
            rank = rank or row.last_key or 1
        flags = (
            (Flag.PINNED if row.pinned else 0)
            | (Flag.MUTED if row.muted else 0)
            | (Flag.LIVE if live else 0)
        )
        unread = 0 if live else row.unread().number
        return Entry(session, fact.seq, rank, unread, int(flags), row.label, fact.value)

    def rank(self, entry: Entry, head: Head | None) -> int:
        if head is not None and row_of(entry).hidden_at(head.seq):
            return 0
        if session_kind(entry.session) is SessionKind.NOTICE:
            # A channel is no conversation before its first notice.
            begun = entry.value if head is None else head.key
            if not begun:
                return 0
        return live_rank(entry, head)

    def encode(self, entry: Entry, head: Head | None) -> bytes:
        row = row_of(entry)
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
        live = self._live.known(entry.session)
        if live is None:
            return None
        row = row_of(entry)
        unread = live.unread(self._user, base_of(row))
        if unread is None:
            return None
        notice = session_kind(entry.session) is SessionKind.NOTICE
        # What was refused leaves events, too, and a channel of these alone says nothing yet.
        key = 0 if notice and live.preview is None else live.last_key
        return Head(live.upto, key, unread, pack(self._said(live, row)))

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
        await self._live.count(live, self._user, base_of(row_of(entry)))

    def _said(self, live: LiveSession, row: Conversation) -> list[Any]:
        preview, group, base = live.preview, live.group, base_of(row)
        if preview is None or preview.seq < row.joined_seq:
            # What was said before he came is not his to read.
            preview = _NOTHING
        elif row.preview is not None and row.preview[:2] == (preview.seq, FOR_EVER):
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
