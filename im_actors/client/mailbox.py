"""A user's conversation list as one device has it: what servers said last, and on top of it what
this device asked for and has no ACK of yet.

Rows are absolute and have versions, so they may come in any order and again. A change that the user
asks for is shown at once, also offline. It is forgotten when it is refused, or when the mailbox is
known up to the event that it became.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgpack

from im_actors.client.shown import read_said
from im_actors.core.model import MESSAGE_KINDS, Event, EventKind, pack
from im_actors.core.names import SessionKind, session_kind
from im_actors.core.outbox_words import SendState
from im_actors.core.spans import PREVIEW_CHARS_MAX
from im_actors.wire.limits import SKIPS_MAX
from im_actors.wire.queries import ConversationRow, RowFlag, read_row

ROWS_MAX = 2_000
"""Most conversations that a device keeps for reading offline: the first ones of the list."""
PINNED_RANK = 1 << 62
"""Added to the rank of what is pinned."""

Keep = Callable[[str, str, bytes | None], None]
"""``ClientStore.keep``."""


class Pending(NamedTuple):
    """A change that this device sent. ``outcome`` is the state of the send, and its seq once there
    is an ACK."""

    what: str
    args: list[Any]
    outcome: Callable[[], tuple[SendState, int]]


_LIVE = (SessionKind.GROUP, SessionKind.OPEN, SessionKind.NOTICE)
"""Of these the mailbox does not say what happens in them."""


class Known(NamedTuple):
    """How much a device knows of the list as a whole."""

    version: int
    """Every change up to this event of the mailbox is in the rows, as far as they are kept."""
    total: int
    """Unread of all conversations."""
    total_version: int
    """What happened up to this event of the mailbox is in the total."""
    as_of_ms: int
    """When a server last said so, by this computer's clock."""


class Mailbox:
    """The rows. Nothing here waits."""

    def __init__(self, keep: Keep, changed: Callable[[], None] = lambda: None) -> None:
        self._keep = keep
        self._changed = changed
        """To be called when rows, totals or the user's own changes are others than before."""
        self._rows: dict[str, ConversationRow] = {}
        self._pending: list[Pending] = []
        self.known = Known(0, 0, 0, 0)

    def __len__(self) -> int:
        return len(self._rows)

    def restore(self, kept: Mapping[str, Mapping[str, bytes]]) -> None:
        """With what a store kept."""
        for value in kept.get("conversation", {}).values():
            row = read_row(msgpack.unpackb(value, raw=False))
            self._rows[row.session] = row
        if known := kept.get("mailbox", {}).get("known"):
            self.known = Known(*msgpack.unpackb(known))

    # -- being told ------------------------------------------------------------------------------

    def take(self, rows: Iterable[ConversationRow]) -> None:
        """Of two rows the one with the greater version holds; of one version, which a group has
        for long, the one that knows more events."""
        for row in rows:
            known = self._rows.get(row.session)
            if known is None or (known.version, known.last_seq) <= (row.version, row.last_seq):
                self._set(row, counted=row.version <= self.known.total_version)
        if len(self._rows) > ROWS_MAX + ROWS_MAX // 10:
            for row in sorted(self._rows.values(), key=place)[ROWS_MAX:]:
                del self._rows[row.session]
                self._keep("conversation", row.session, None)
            self._changed()

    def look(self, row: ConversationRow) -> None:
        """A row that was asked for because its session has gone on: the total knows nothing of it
        yet."""
        known = self._rows.get(row.session)
        if known is None or (known.version, known.last_seq) <= (row.version, row.last_seq):
            self._set(row)

    def last_seq(self, session: str) -> int:
        """The last event that this device knows of a conversation."""
        row = self._rows.get(session)
        return row.last_seq if row is not None else 0

    def begin(self, rows: Iterable[ConversationRow]) -> None:
        """These are the first ones of the list, and of the others nothing is known any more."""
        taken = list(rows)
        for session in self._rows.keys() - {row.session for row in taken}:
            del self._rows[session]
            self._keep("conversation", session, None)
        self.take(taken)

    def saw(self, events: Iterable[Event], user: str) -> None:
        """Events of sessions of which the mailbox itself says nothing. What does not follow the
        row's last event is left to the next row that a server sends."""
        for event in events:
            row = self._rows.get(event.session)
            if (
                row is not None
                and _is_known(row)
                and event.seq == row.last_seq + 1
                and session_kind(event.session) in _LIVE
            ):
                self._set(followed(row, event, user))

    def learned(self, version: int, now_ms: int) -> None:
        """Every change up to this version has been told, as a server says."""
        if version >= self.known.version:
            self._know(self.known._replace(version=version, as_of_ms=now_ms))

    def counted(self, version: int, total: int, now_ms: int) -> None:
        """A server said how much is unread at this version."""
        if version >= self.known.total_version:
            self._know(self.known._replace(total=total, total_version=version, as_of_ms=now_ms))

    def _know(self, known: Known) -> None:
        if known.total != self.known.total:
            self._changed()
        self.known = known
        self._keep("mailbox", "known", pack(known))

    def _set(self, row: ConversationRow, counted: bool = False) -> None:
        """``counted``: the total has it already, as it has all rows up to its version."""
        known = self._rows.get(row.session)
        if row != known:
            if not counted:
                more = row.unread - (known.unread if known else 0)
                self._know(self.known._replace(total=max(0, self.known.total + more)))
            self._rows[row.session] = row
            self._keep("conversation", row.session, pack(row))
            self._changed()

    # -- the user's own changes ------------------------------------------------------------------

    def asked(self, pending: Pending) -> None:
        """The user wants this, and it is in the outbox."""
        self._settle()
        self._pending.append(pending)
        self._changed()

    def _settle(self) -> None:
        """Forget what has come back as a row, and what was refused."""
        version = self.known.version
        open_: list[Pending] = []
        for pending in self._pending:
            state, seq = pending.outcome()
            done = state is SendState.ACKED and seq <= version
            if not done and state is not SendState.REFUSED:
                open_.append(pending)
        self._pending = open_

    # -- reading ---------------------------------------------------------------------------------

    def row(self, session: str) -> ConversationRow | None:
        """One conversation with the user's own changes."""
        self._settle()
        row = self._rows.get(session)
        return self.changed(row) if row else None

    def rows(self) -> list[ConversationRow]:
        """What is in the list, in its order."""
        self._settle()
        rows = map(self.changed, self._rows.values())
        return sorted((row for row in rows if row.rank), key=place)

    def changed(self, row: ConversationRow, version: int | None = None) -> ConversationRow:
        """A row, whoever said it, with the user's own changes that it cannot have yet, or that are
        not there yet at ``version``."""
        upto = row.version if version is None else version
        for pending in self._pending:
            if pending.args[:1] == [row.session]:
                state, seq = pending.outcome()
                if state is not SendState.ACKED or seq > upto:
                    row = apply(row, pending.what, pending.args[1:])
        return row

    def total(self) -> int:
        """Unread of all conversations, with the user's own changes."""
        self._settle()
        sessions = {pending.args[0] for pending in self._pending if pending.args}
        rows = [row for session in sessions if (row := self._rows.get(session))]
        version = self.known.total_version
        less = sum(row.unread - self.changed(row, version).unread for row in rows)
        return max(0, self.known.total - less)


def row_of_event(event: Event, text: str) -> ConversationRow:
    """All that a device knows of a conversation of which nobody told it but its last event."""
    is_message = event.kind in MESSAGE_KINDS
    return ConversationRow(
        session=event.session,
        version=0,
        rank=event.key,
        last_seq=event.seq,
        time_ms=event.time_ms,
        kind=int(event.kind) if is_message else 0,
        sender=event.sender if is_message else "",
        preview=text[:PREVIEW_CHARS_MAX] if is_message else "",
        unread=0,
        inputs=None,
        read_seq=0,
        peer_read_seq=0,
        peer_delivered_seq=0,
        flags=0,
        label="",
        title="",
    )


def place(row: ConversationRow) -> tuple[int, str]:
    """Sorts as the list is shown."""
    return -row.rank, row.session


def apply(row: ConversationRow, what: str, args: list[Any]) -> ConversationRow:
    """The row as it will be when the owner has taken this change."""
    match what, args:
        case "read", [int(seq)]:
            return _read(row, seq)
        case "pin", [bool(on)]:
            rank = row.rank & ~PINNED_RANK
            rank = rank | PINNED_RANK if on and rank else rank
            return _flagged(row._replace(rank=rank), RowFlag.PINNED, on)
        case "mute", [bool(on)]:
            return _flagged(row, RowFlag.MUTED, on)
        case "hide", [int(seq)]:
            hidden = row.last_seq <= seq
            return _flagged(row._replace(rank=0) if hidden else row, RowFlag.HIDDEN, hidden)
        case "fold", [str(label)]:
            return row._replace(label=label)
        case _:
            return row


def _is_known(row: ConversationRow) -> bool:
    """Whether it says where the conversation ends. That of a group whose member the user is no
    more does not: it must not come back when the old events are read again."""
    return not row.flags & RowFlag.LEFT and bool(row.last_seq or row.inputs)


def followed(row: ConversationRow, event: Event, user: str) -> ConversationRow:
    """The row with the event that follows its last one."""
    rank = event.key | PINNED_RANK if row.flags & RowFlag.PINNED else event.key
    row = row._replace(
        rank=rank,
        last_seq=event.seq,
        time_ms=event.time_ms,
        flags=int(row.flags & ~RowFlag.HIDDEN),
    )
    is_message = event.kind in MESSAGE_KINDS
    if is_message:
        preview = event.text[:PREVIEW_CHARS_MAX]
        row = row._replace(kind=int(event.kind), sender=event.sender, preview=preview)
    if row.inputs is None:
        return row
    base, _, skipped, ranges = row.inputs[:4]
    uncounted = [] if is_message and event.sender != user else [event.seq]
    if event.kind == EventKind.RECALL and (found := read_said(event)):
        uncounted.append(found[0])
    for seq in uncounted:
        skipped, ranges = _skipping(base, skipped, ranges, seq)
    unread = max(0, event.seq - base - skipped)
    return row._replace(unread=unread, inputs=[base, event.seq, skipped, ranges])


def _skipping(
    base: int, skipped: int, ranges: list[list[int]], seq: int
) -> tuple[int, list[list[int]]]:
    """How many events do not count and which, with this one too, unless it does not already; or it
    is older than those of which it is told whether they do: that is for the next row to say."""
    told = sum(last - first + 1 for first, last in ranges) == skipped or seq > ranges[0][0]
    if seq <= base or not told or any(first <= seq <= last for first, last in ranges):
        return skipped, ranges
    joined: list[list[int]] = []
    for first, last in sorted([*ranges, [seq, seq]]):
        if joined and joined[-1][1] == first - 1:
            joined[-1] = [joined[-1][0], last]
        else:
            joined.append([first, last])
    return skipped + 1, joined[-SKIPS_MAX:]


def _flagged(row: ConversationRow, flag: RowFlag, on: bool) -> ConversationRow:
    return row._replace(flags=int(row.flags | flag if on else row.flags & ~flag))


def _read(row: ConversationRow, seq: int) -> ConversationRow:
    """Exact as far as the row says which events do not count, and never below 0 otherwise."""
    if seq <= row.read_seq:
        return row
    if row.inputs is None:
        unread = 0 if seq >= row.last_seq else min(row.unread, row.last_seq - seq)
        return row._replace(read_seq=seq, unread=unread)
    base, last, _, ranges = row.inputs[:4]
    base = max(base, seq)
    left = [[max(first, base + 1), end] for first, end in ranges if end > base]
    skipped = sum(end - first + 1 for first, end in left)
    unread = min(row.unread, max(0, last - base - skipped))
    return row._replace(read_seq=seq, unread=unread, inputs=[base, last, skipped, left])


def intact(rows: Iterable[Any]) -> list[ConversationRow]:
    """The rows of an answer."""
    return [read_row(row) for row in rows]
