"""Notes: what servers write into mailboxes, and into the sessions of their slots, because of events
elsewhere. They come at least once, in any number of tries; what they say is taken once."""

from __future__ import annotations

from typing import Any, NamedTuple

from im_actors.core.conversation import Conversation, conversation_key
from im_actors.core.facts import pack_request, pack_state, read_state
from im_actors.core.groups import Role, event_memberships
from im_actors.core.lookup import Lookup
from im_actors.core.mailbox import received_key
from im_actors.core.model import Event, EventKind, pack
from im_actors.core.names import (
    SessionKind,
    mailbox_of,
    peer_of,
    session_kind,
    session_name,
    users_of,
)
from im_actors.core.operations import read_operation
from im_actors.core.reads import Reader
from im_actors.core.rows import pack_row, unpack_row
from im_actors.core.rules import Accept, Nothing, Request
from im_actors.core.spans import Preview, Range, Span
from im_actors.errors import BadRequest


def span_note(session: str, span: Span) -> bytes:
    """Of a direct session's events, for the mailbox of one of its users."""
    preview = list(span.preview) if span.preview is not None else None
    skips, recalled = _flat(span.skips), _flat(span.recalled)
    return pack_request(
        "span", session, span.from_seq, span.to_seq, span.last_key, preview, skips, recalled
    )


def _flat(pairs: tuple[Range, ...]) -> list[int]:
    return [number for pair in pairs for number in pair]


def joined_note(session: str, seq: int, key: int) -> bytes:
    """The group's event ``seq``, of this message key, let the mailbox's user in."""
    return pack_request("joined", session, seq, key)


def left_note(session: str, seq: int) -> bytes:
    """The group's event ``seq`` let the mailbox's user out."""
    return pack_request("left", session, seq)


def receipt_note(session: str, read_seq: int, delivered_seq: int) -> bytes:
    """The other user of a direct session has read, and received, up to there."""
    return pack_request("receipt", session, read_seq, delivered_seq)


def cursor_note(name: str, lsn: int) -> bytes:
    """Of a slot: what the owner calls ``name`` is done up to ``lsn``."""
    return pack_request("cursor", name, lsn)


def cursor_key(name: str) -> str:
    return f"u/{name}"


def read_cursor(value: bytes | None) -> int:
    """The lsn of a cursor's fact; 0 when there is none."""
    return int(unpack_row("a cursor", value, 1)[0]) if value is not None else 0


def membership_notes(event: Event) -> list[tuple[str, bytes]]:
    """(mailbox, note) for all whom a committed GROUP event let in or out."""
    notes = []
    for user, row in event_memberships(event):
        if row.role is Role.STRANGER:
            notes.append((mailbox_of(user), left_note(event.session, event.seq)))
        elif row.joined_seq == event.seq:
            note = joined_note(event.session, event.seq, event.key)
            notes.append((mailbox_of(user), note))
    return notes


_LET_IN = b"\x93" + pack("joined")
"""How the body of a committed note that somebody was let in begins. Most notes are of other kinds,
and need not be taken apart."""


class Receipt(NamedTuple):
    """Of a direct session: up to where one of its users has read, and received, 0 for not told."""

    session: str
    read_seq: int
    delivered_seq: int


def receipts_of(event: Event) -> list[tuple[str, Receipt]]:
    """(the other user's mailbox, receipt) of the direct sessions of which a committed MAILBOX event
    says that its user has read them or received them."""
    if event.kind != EventKind.MAILBOX or not (state := read_state(event.body)).facts:
        return []
    match state.what, state.args:
        case "read", [session, seq]:
            found = [Receipt(session, seq, seq)]
        case "received", [positions]:
            moved = {key for key, *_ in state.facts}
            ahead = [(of, seq) for of, seq in positions if received_key(of) in moved]
            found = [Receipt(session, 0, seq) for session, seq in ahead]
        case _:
            return []
    user = session_name(event.session)
    talks = [one for one in found if session_kind(one.session) is SessionKind.DIRECT]
    peers = [(peer_of(receipt.session, user), receipt) for receipt in talks]
    return [(mailbox_of(peer), receipt) for peer, receipt in peers if peer != user]


def readers_of(event: Event) -> tuple[str, dict[str, Reader]]:
    """(group, its readers) of whom a committed event says that they have read in it, or have left;
    most events say it of nobody."""
    if event.kind == EventKind.GROUP:
        rows = event_memberships(event)
        out = {u: Reader(left_seq=row.left_seq) for u, row in rows if row.role is Role.STRANGER}
        return event.session, out
    # The mailbox may hear after his first reading that he was let in.
    let_in = event.kind == EventKind.NOTE and event.body.startswith(_LET_IN)
    if event.kind != EventKind.MAILBOX and not let_in:
        return "", {}
    state = read_state(event.body)
    if state.what not in ("read", "joined") or not state.facts:
        return "", {}
    session, value = state.args[0], state.facts[0][2]
    if session_kind(session) is not SessionKind.GROUP or value is None:
        return "", {}
    row = Conversation.from_bytes(value)
    reader = Reader(row.read_seq, row.joined_seq, row.left_seq)
    return session, {session_name(event.session): reader} if reader.counts else {}


def decide_note(lookup: Lookup, request: Request) -> Accept | Nothing:
    """What a note changes in a mailbox; raises when it cannot be meant for it."""
    what, args = read_operation(request.kind, request.body)
    if what not in _NOTES:
        raise BadRequest(f"{what} is not noted in a mailbox, only {', '.join(_NOTES)}")
    session = args[0]
    user = session_name(lookup.session)
    kinds = _NOTES[what]
    if session_kind(session) not in kinds or (users_of(session) and user not in users_of(session)):
        raise BadRequest(f"{what}: {session!r} is not a conversation to be noted in it of {user}")
    key = conversation_key(session)
    data = lookup.value(key)
    row = Conversation.from_bytes(data) if data is not None else Conversation()
    changed = _noted(row, what, args[1:])
    if changed == row:
        return Nothing()
    facts = [(key, changed.rank(), changed.to_bytes())]
    # The row says all of it.
    return Accept(request.kind, pack_state(what, [session], facts))


_NOTES = {
    # Notices were noted by the first releases; one of their shards may still tell of some.
    "span": (SessionKind.DIRECT, SessionKind.NOTICE),
    "receipt": (SessionKind.DIRECT,),
    "joined": (SessionKind.GROUP,),
    "left": (SessionKind.GROUP,),
}


def _noted(row: Conversation, what: str, args: list[Any]) -> Conversation:
    if what == "joined":
        return row.joined(*args)
    if what == "left":
        return row.left(*args)
    if what == "receipt":
        return row.receipt(*args)
    from_seq, to_seq, last_key, preview, skips, recalled = args
    if not _within(from_seq, to_seq, skips, recalled):
        raise BadRequest("span: its skips and recalls must lie in from_seq..to_seq")
    shown = Preview(*preview) if preview is not None else None
    return row.noted(Span(from_seq, to_seq, last_key, shown, tuple(skips), tuple(recalled)))


def _within(from_seq: int, to_seq: int, skips: list[Range], recalled: list[Range]) -> bool:
    edges = [seq for pair in skips for seq in pair]
    # No two ranges may touch the same seq, or it would be counted twice.
    ascending = all(low < high for low, high in zip(edges[1::2], edges[2::2], strict=False))
    inside = all(from_seq <= seq <= to_seq for seq in [*edges, *(by for _, by in recalled)])
    return from_seq <= to_seq and ascending and inside


def decide_cursor(lookup: Lookup, request: Request) -> Accept | Nothing:
    """What a note changes in the session of a slot."""
    what, args = read_operation(request.kind, request.body)
    if what != "cursor":
        raise BadRequest(f"{what} is not noted in a slot, only cursor")
    name, lsn = args
    if lsn <= read_cursor(lookup.value(cursor_key(name))):
        return Nothing()
    return Accept(request.kind, pack_state(what, args, [(cursor_key(name), 0, pack_row((lsn,)))]))


def noted_mailboxes(session: str) -> list[str]:
    """The mailboxes that a session's events are noted in: of all whom its id names."""
    if session_kind(session) is not SessionKind.DIRECT:
        return []
    return [mailbox_of(user) for user in users_of(session)]
