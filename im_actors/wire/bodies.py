"""The bodies of what is sent: texts, and small msgpack arrays that say what is to be changed.

Servers look into the latter, so their form is checked where they come in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack

from im_actors.core.facts import read_request
from im_actors.core.model import EventKind, check_text, pack
from im_actors.errors import BadRequest
from im_actors.wire.limits import QUERY_NAME_BYTES_MAX

_NOT_SENT = (EventKind.NOTE, EventKind.DROPPED)
SENT_KINDS = tuple(int(kind) for kind in EventKind if kind not in _NOT_SENT)
"""What clients may send; NOTEs are for servers to make."""
GROUP_CHANGES = (
    "create", "add", "join", "leave", "remove", "role", "mute", "title", "joining", "dissolve",
)  # fmt: skip
"""What a SEND of kind GROUP may ask for."""
MAILBOX_CHANGES = (
    "read", "received", "pin", "mute", "hide", "fold", "delete", "device", "kick",
)  # fmt: skip
"""What a SEND of kind MAILBOX may ask for."""
BATCH_CHANGES = ("create", "recipients", "start", "pause", "resume", "cancel", "recall")
"""What a SEND of kind BATCH may ask for."""
_SEQ_MAX = (1 << 63) - 1


class Target(NamedTuple):
    """What a RECALL or an EDIT is about. ``text`` None: it is a recall."""

    seq: int
    text: bytes | None


def pack_recall(seq: int) -> bytes:
    return pack((seq,))


def pack_edit(seq: int, text: bytes) -> bytes:
    return pack((seq, text))


def read_target(kind: int, body: bytes) -> Target:
    """The target of a RECALL or an EDIT as it is sent; BadRequest says what is wrong with it."""
    is_edit = kind == EventKind.EDIT
    fields = _unpacked(body)
    if type(fields) is not list or len(fields) != 1 + is_edit:
        raise BadRequest(f"the body must be a msgpack array [seq{', text' if is_edit else ''}]")
    seq, text = fields[0], fields[1] if is_edit else None
    if type(seq) is not int or not 0 < seq <= _SEQ_MAX:
        raise BadRequest("the body must name the seq of an event")
    if is_edit and type(text) is not bytes:
        raise BadRequest("the new text must be a msgpack bin")
    return Target(seq, text)


def check_kind_body(kind: int, body: bytes) -> None:
    """BadRequest when ``body`` is not one of an event of this kind."""
    match kind:
        case EventKind.VOID:
            if body:
                raise BadRequest("a VOID has no body")
        case EventKind.RECALL | EventKind.EDIT:
            read_target(kind, body)
        case EventKind.GROUP | EventKind.MAILBOX | EventKind.BATCH:
            check_text("what is asked for", read_request(body)[0], QUERY_NAME_BYTES_MAX)


def _unpacked(body: bytes) -> Any:
    try:
        return msgpack.unpackb(body, raw=False)
    except Exception:
        return None
