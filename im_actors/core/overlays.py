"""Recalls and edits: what became of a message after it was sent.

The message stays as it is in the timeline. What happened to it last is a fact of its session, the
*overlay*, under a key and a rank that are its seq: so a reader who jumps into old history asks for
the overlays of his page by a range of ranks, and need not have read what came after.

A SEND of a RECALL has the body msgpack [seq], that of an EDIT [seq, text bin].
"""

from __future__ import annotations

from typing import NamedTuple

import msgpack

from im_actors.core.batch import is_batch_device
from im_actors.core.facts import FACT_VALUE_BYTES_MAX, event_facts, pack_state
from im_actors.core.lookup import Lookup
from im_actors.core.model import MESSAGE_KINDS, Event, EventKind, pack
from im_actors.core.operations import NUMBER_MAX
from im_actors.core.rows import pack_row, unpack_row
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.rules import SERVER, Accept, EventHead, Request
from im_actors.errors import BadRequest, Forbidden, NotFound, TooLarge, TooLate

EDIT_BYTES_MAX = FACT_VALUE_BYTES_MAX - 512
"""A new text has to fit into a fact, with who wrote it."""

_PREFIX = "x/"
_VERBS = {int(EventKind.RECALL): "recall", int(EventKind.EDIT): "edit"}


class Target(NamedTuple):
    """What a recall (``text`` None) or an edit is about."""

    seq: int
    text: bytes | None


class Overlay(NamedTuple):
    """What happened last to a message: ``kind`` is RECALL or EDIT, ``text`` None when recalled, and
    of an edit when it was dropped with its month. The seq of its fact is that of the event which
    did it."""

    kind: int
    user: str
    text: bytes | None

    @property
    def dropped(self) -> bool:
        return self.kind == EventKind.EDIT and self.text is None

    def to_bytes(self) -> bytes:
        return pack_row(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Overlay:
        return cls(*unpack_row("an overlay", data, 3))


def overlay_key(seq: int) -> str:
    return f"{_PREFIX}{seq:016x}"


def overlay_rank(seq: int) -> int:
    """The overlays of the messages a..b have the ranks overlay_rank(a)..overlay_rank(b), and no
    other fact of the session has one of these."""
    return seq


def recall_request(seq: int) -> bytes:
    """The body of a SEND that takes a message back."""
    return pack((seq,))


def edit_request(seq: int, text: bytes) -> bytes:
    """The body of a SEND that gives a message a new text."""
    return pack((seq, text))


def read_target(kind: int, body: bytes) -> Target:
    """What a SEND of a RECALL or an EDIT is about; BadRequest or TooLarge say what is wrong."""
    try:
        fields = msgpack.unpackb(body, raw=False)
    except Exception:
        fields = None
    if type(fields) is not list or len(fields) != (2 if kind == EventKind.EDIT else 1):
        raise BadRequest("the body must be msgpack [seq] of a recall, [seq, text] of an edit")
    seq, text = fields[0], fields[1] if len(fields) == 2 else None
    if type(seq) is not int or not 0 < seq <= NUMBER_MAX:
        raise BadRequest("the body must name the seq of a message")
    if text is not None and type(text) is not bytes:
        raise BadRequest("the new text must be a msgpack bin")
    if text is not None and len(text) > EDIT_BYTES_MAX:
        raise TooLarge(
            f"the new text is {len(text)} bytes, the limit of an edit is {EDIT_BYTES_MAX}: "
            "recall the message and send another"
        )
    return Target(seq, text)


def event_overlay(event: Event) -> tuple[int, Overlay]:
    """(seq of the message, what it became) of a committed RECALL or EDIT."""
    (fact,) = event_facts(event)
    assert fact.key.startswith(_PREFIX), fact.key
    assert fact.value is not None, fact.key
    return fact.rank, Overlay.from_bytes(fact.value)


def decide_overlay(
    lookup: Lookup, request: Request, settings: RuleSettings, others: bool = False
) -> Accept:
    """Take a recall or an edit, or raise why not. ``others``: the user may recall what others
    wrote, and at any time; an edit is always the author's own."""
    seq, text = read_target(request.kind, request.body)
    verb, key = _VERBS[request.kind], overlay_key(seq)
    if seq > lookup.known.last_seq:
        raise NotFound(f"there is no event {seq} in {lookup.session!r} to {verb}")
    lookup.want(key, events=(seq,))
    head, known = lookup.head(seq), lookup.value(key)
    if head is None or head.kind not in MESSAGE_KINDS:
        raise NotFound(f"event {seq} of {lookup.session!r} is no message: name one to {verb}")
    if known is not None and Overlay.from_bytes(known).kind == EventKind.RECALL:
        raise TooLate(f"message {seq} has been recalled already; nothing is left to {verb}")
    _check_author(head, request, settings, others and request.kind == EventKind.RECALL)
    row = Overlay(request.kind, request.user, text).to_bytes()
    return Accept(request.kind, pack_state(verb, [seq], [(key, overlay_rank(seq), row)]))


def _check_author(head: EventHead, request: Request, settings: RuleSettings, others: bool) -> None:
    if others:
        return
    verb = _VERBS[request.kind]
    made_by_server = SERVER in (head.device, request.device) and head.device != request.device
    if made_by_server or head.device.partition("/")[0] != request.user:
        raise Forbidden(f"message {head.seq} is not yours: only its sender may {verb} it")
    if is_batch_device(request.device) and request.device == head.device:
        return  # A batch is taken back by those who sent it, whenever they find that it was wrong.
    limit_ms = settings.recall_ms if request.kind == EventKind.RECALL else settings.edit_ms
    if limit_ms and request.now_ms - head.time_ms > limit_ms:
        raise TooLate(
            f"a message may be {verb}ed for {limit_ms / 1000:g} s after it was sent: "
            "send another instead"
        )
