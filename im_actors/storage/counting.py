"""Counts the messages that a reader has not seen, from the events themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgpack

from im_actors.core.model import MESSAGE_KINDS, EventKind

if TYPE_CHECKING:
    from im_actors.storage.history import History

STEP_EVENTS = 256
_RECALL = int(EventKind.RECALL)


class Count(NamedTuple):
    """``whole`` is false when events are missing here (or the slot was deleted meanwhile)."""

    whole: bool
    messages: int


def count_messages(
    history: History, session: str, after: int, upto: int, last_seq: int, user: str
) -> Iterator[Count | None]:
    """How many events with ``after`` < seq <= ``upto`` are messages, not of ``user``, and not
    recalled by an event up to ``last_seq``.

    Nothing says where the recalls are, so every event from ``after`` to ``last_seq`` is read: some
    10 µs each where one session has a record for itself, and one byte of memory for each that may
    count. Done in steps of STEP_EVENTS events: between them comes None, where others may use the
    history's thread, and at the end the count.
    """
    after, upto = max(after, 0), min(upto, last_seq)
    counts = bytearray(max(upto - after, 0))
    seen = after if counts else last_seq
    while seen < last_seq:
        page = history.read(session, seen, 0, STEP_EVENTS).events
        if not page:
            break
        for data in page:
            _, seen, _, kind, device, _, body = msgpack.unpackb(data)
            if kind in MESSAGE_KINDS and seen <= upto:
                counts[seen - after - 1] = device.partition("/")[0] != user
            elif kind == _RECALL and seen <= last_seq:
                target = recalled_seq(body)
                if after < target <= upto:
                    counts[target - after - 1] = 0
        yield None
    yield Count(seen >= last_seq, sum(counts))


def recalled_seq(body: bytes) -> int:
    """Which event a RECALL takes back; 0 when its body does not say. The body is [seq], or, of one
    that has facts, [what, [seq], facts]."""
    try:
        fields = msgpack.unpackb(body)
        seq = fields[0] if len(fields) == 1 else fields[1][0]
    except Exception:
        return 0
    return seq if type(seq) is int else 0
