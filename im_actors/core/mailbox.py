"""What a user may change in his own mailbox, and the rows that result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from im_actors.core.conversation import Conversation, conversation_key
from im_actors.core.deleted import deleted_key, with_deleted
from im_actors.core.devices import decide_device
from im_actors.core.facts import pack_request, pack_state
from im_actors.core.lookup import Lookup
from im_actors.core.model import make_key
from im_actors.core.names import SessionKind, session_kind, session_name, users_of
from im_actors.core.operations import read_operation
from im_actors.core.rows import pack_row, unpack_row
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.rules import Accept, Request
from im_actors.errors import BadRequest, Forbidden

_LISTED = (SessionKind.OPEN, SessionKind.DIRECT, SessionKind.GROUP, SessionKind.NOTICE)
_BEGUN_BY_USERS = (SessionKind.OPEN, SessionKind.NOTICE)


def read_request(session: str, seq: int) -> bytes:
    """The user has read the conversation up to ``seq``."""
    return pack_request("read", session, seq)


def received_request(positions: Sequence[tuple[str, int]]) -> bytes:
    """A device of the user holds these direct conversations, each up to its seq."""
    return pack_request("received", list(positions))


def received_key(session: str) -> str:
    """The key of how far a direct conversation has come to the user's devices, unless he has read
    further: then nobody has to be told."""
    return f"v/{session}"


def read_received(value: bytes | None) -> int:
    """The seq of such a fact."""
    return int(unpack_row("what was received", value, 1)[0]) if value is not None else 0


def pin_request(session: str, pinned: bool) -> bytes:
    return pack_request("pin", session, pinned)


def mute_request(session: str, muted: bool) -> bytes:
    return pack_request("mute", session, muted)


def hide_request(session: str, upto_seq: int) -> bytes:
    """Leave the conversation out of the list until an event above ``upto_seq``; 0: show it."""
    return pack_request("hide", session, upto_seq)


def fold_request(session: str, label: str) -> bytes:
    """Fold the conversation under a label; "": under none."""
    return pack_request("fold", session, label)


def delete_request(session: str, seq: int) -> bytes:
    """Do not show the message ``seq`` to this user any more."""
    return pack_request("delete", session, seq)


def decide_mailbox(lookup: Lookup, request: Request, settings: RuleSettings) -> Accept:
    """What becomes of a user's send to his own mailbox; raises why it is not taken. What changes
    nothing is taken too: its sender waits for its seq."""
    what, args = read_operation(request.kind, request.body)
    if what in ("device", "kick"):
        return decide_device(lookup, request, settings, what, args)
    user = session_name(lookup.session)
    if what == "received":
        return _decide_received(lookup, request, user, args[0])
    session, value = args
    if session_kind(session) not in _LISTED:
        raise BadRequest(f"{what}: {session!r} is not a conversation: name one of a list")
    if users_of(session) and user not in users_of(session):
        raise Forbidden(f"{what}: {session!r} is not a conversation of {user}")
    if what == "delete":
        lookup.want(conversation_key(session), deleted_key(session, value))
    facts = _row_facts(lookup, request, what, session, value)
    if what == "delete":
        facts += _deleted_facts(lookup, session, value)
    return Accept(request.kind, pack_state(what, args, facts))


def _decide_received(
    lookup: Lookup, request: Request, user: str, positions: list[tuple[str, int]]
) -> Accept:
    """Take those that are further than what all devices have said before; what the user has read
    he has received."""
    for session, _ in positions:
        if session_kind(session) is not SessionKind.DIRECT or user not in users_of(session):
            raise Forbidden(f"received: {session!r} is not a direct conversation of {user}")
    keys = [key(session) for session, _ in positions for key in (conversation_key, received_key)]
    lookup.want(*keys)
    facts: _Facts = [
        (received_key(session), 0, pack_row((seq,)))
        for session, seq in positions
        if seq > read_received(lookup.value(received_key(session)))
        and seq > _row(lookup, session).read_seq
    ]
    return Accept(request.kind, pack_state("received", [positions], facts))


_Facts = list[tuple[str, int, bytes | None]]


def _row(lookup: Lookup, session: str) -> Conversation:
    data = lookup.value(conversation_key(session))
    return Conversation.from_bytes(data) if data is not None else Conversation()


def _row_facts(lookup: Lookup, request: Request, what: str, session: str, value: Any) -> _Facts:
    key, row = conversation_key(session), _row(lookup, session)
    changed: Conversation = getattr(row, what)(value)
    if changed == row:
        return []
    # A group begins when it lets the user in: nothing of it is for him to see before.
    if session_kind(session) in _BEGUN_BY_USERS:
        changed = changed.begun(make_key(request.now_ms, 0, 0))
    return [(key, changed.rank(), changed.to_bytes())]


def _deleted_facts(lookup: Lookup, session: str, seq: int) -> _Facts:
    key = deleted_key(session, seq)
    known = lookup.value(key)
    value = with_deleted(known, seq)
    return [(key, 0, value)] if value != known else []
