"""Messages between actors, carried by the links of ``net`` (types from 140 on).

They are inside: both ends run the same release, know the cluster secret, and are trusted with the
structure of what they send. One frame carries what one turn of the event loop produced.

    140 REQUESTS  [140, [[kind, ...fields], ...]]    owner or replica to a replica (core.messages)
    141 ANSWERS   [141, [[kind, ...fields], ...]]    and back
    142 READ      [142, request, session, after, before, limit, head]     gateway to a replica
    143 PAGE      [143, request, code, last_seq, [event bin, ...]]        and back
    150 SUBMIT    [150, [[token, slot, session, device, n, kind, body], ...]]   gateway to a shard
    151 RESULTS   [151, [[token, code, seq, epoch, time_ms, expected_n], ...]]  and back
    152 WATCH     [152, [session, ...]]              gateway to a shard: push this session's events
    153 UNWATCH   [153, [session, ...]]
    154 WATCHED   [154, [[session, head], ...]]      the answer to WATCH, when the slot is served
    155 PUSHED    [155, [[session, event bin], ...]] committed events, per session in seq order
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any

from im_actors.core import messages as m
from im_actors.core.model import Record, view_of
from im_actors.wire.codec import encode_frame

LINK_FRAME_BYTES_MAX = 32 * 1024 * 1024


class InsideType(IntEnum):
    """The frames of the data plane between actors."""

    REQUESTS = 140
    ANSWERS = 141
    READ = 142
    PAGE = 143
    SUBMIT = 150
    RESULTS = 151
    WATCH = 152
    UNWATCH = 153
    WATCHED = 154
    PUSHED = 155


_KINDS: tuple[type[Any], ...] = (
    m.Append,
    m.Appended,
    m.Seal,
    m.Sealed,
    m.Prepare,
    m.Prepared,
    m.Refused,
    m.Need,
    m.Fetch,
    m.Fetched,
    m.Drop,
    m.Dropped,
    m.LoadSessions,
    m.SessionsLoaded,
    m.FindKey,
    m.KeyFound,
)
_KIND_OF = {kind: number for number, kind in enumerate(_KINDS)}


def _records(rows: Iterable[Sequence[Any]]) -> tuple[Record, ...]:
    return tuple(Record._make(row) for row in rows)


def _epochs(rows: Iterable[Sequence[int]]) -> m.Epochs:
    return tuple((row[0], row[1]) for row in rows)


def _images(rows: Iterable[Sequence[Any]]) -> tuple[m.SessionImage, ...]:
    return tuple(
        m.SessionImage(
            session,
            last_seq,
            tuple(
                m.DeviceImage(device, last_n, tuple((seq, checksum) for seq, checksum in recent))
                for device, last_n, recent in devices
            ),
        )
        for session, last_seq, devices in rows
    )


# Only the fields that are not plain numbers and strings: (index, how to read it).
_NESTED: dict[type[Any], tuple[tuple[int, Callable[[Any], Any]], ...]] = {
    m.Append: ((5, _records),),
    m.Fetched: ((3, _records),),
    m.Seal: ((2, view_of),),
    m.Drop: ((2, view_of),),
    m.Sealed: ((3, _epochs),),
    m.Prepare: ((4, _epochs),),
    m.LoadSessions: ((4, tuple),),
    m.SessionsLoaded: ((4, _images),),
}


def pack_inside(frame_type: int, batch: Iterable[Any]) -> bytes:
    """REQUESTS or ANSWERS with core messages."""
    rows = [(_KIND_OF[type(message)], *message) for message in batch]
    return encode_frame((frame_type, rows), LINK_FRAME_BYTES_MAX)


def read_inside(rows: Iterable[list[Any]]) -> list[Any]:
    """The core messages of REQUESTS or ANSWERS."""
    found = []
    for row in rows:
        kind = _KINDS[row[0]]
        fields = row[1:]
        for index, read in _NESTED.get(kind, ()):
            fields[index] = read(fields[index])
        found.append(kind._make(fields))
    return found


def pack_frame(message: Sequence[Any]) -> bytes:
    """Any other frame of this module."""
    return encode_frame(message, LINK_FRAME_BYTES_MAX)
