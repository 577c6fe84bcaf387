"""Messages between actors, carried by the links of ``net`` (types from 140 on).

They are inside: both ends know the cluster secret and run the same release, but for the minutes in
which one is replaced by the next. One frame carries what one turn of the event loop produced. What
142 to 149 mean is in ``wire.questions``.

    140 REQUESTS  [140, [[kind, ...fields], ...]]    owner or replica to a replica (core.messages)
    141 ANSWERS   [141, [[kind, ...fields], ...]]    and back
    142 READ      [142, request, session, after, before, limit, head]     gateway to a replica
    143 PAGE      [143, request, code, last_seq, [event bin, ...]]        and back
    144 LIST_FACTS [144, request, session, head, what, args]              gateway to a replica
    145 FACTS     [145, request, code, last_seq, [[key, seq, rank, value], ...], more]   and back
    146 COUNT     [146, request, session, head, after, upto, user]        gateway to a replica
    147 COUNTED   [147, request, code, last_seq, count]                   and back
    148 COUNT_RANKS [148, request, session, head, [[low, high], ...]]     gateway to a replica
    149 RANKS_COUNTED [149, request, code, last_seq, [count, ...]]        and back
    150 SUBMIT    [150, [[token, slot, session, device, n, kind, body], ...]]   gateway to a shard
    151 RESULTS   [151, [[token, code, seq, epoch, time_ms, hint], ...]]    and back; ``hint`` as in
                                                 core.serving.Answer, an int or a str
    152 WATCH     [152, [session, ...]]              gateway to a shard: push this session's events
    153 UNWATCH   [153, [session, ...]]
    154 WATCHED   [154, [[session, head], ...]]      the answer to WATCH, when the slot is served
    155 PUSHED    [155, [[session, event bin], ...]] committed events, per session in seq order
    156 RELAY     [156, [[token, session, body], ...]]   notes: a shard to a gateway, any one, and
                                                 the gateway to the shards that serve the sessions
    157 RELAYED   [157, [[token, code], ...]]        and back, the same way
    158 RELAY_SENDS [158, [[token, session, device, n, kind, body], ...]]   batch messages, likewise
    159 SENDS_RELAYED [159, [[token, code, seq], ...]]
    160 SIGNAL    [160, [[hearer, session, user, what, value], ...]]   a gateway to the shard that
                                       serves the hearer, and on to others that watch it
    161 HERE      [161, [slot, ...], [[user, [device, ...]], ...]]   a gateway to a shard: of these
                                       slots nobody is here any more, and then who is
    162 WHO_IS_HERE [162, request, [user, ...]]                      a gateway to a shard
    163 ARE_HERE  [163, request, [[user, [device, ...]], ...]]       and back

Most requests and answers of a busy cluster are of three kinds and say one thing each of many slots.
Several of them in a row are one row of columns, in which each field has a list:

    [21, slots, epochs, prev_lsns, commit_lsns, payloads, checksums]   Append of one record each,
                                                  of the epoch, after a record of the same epoch
    [22, slots, epochs, durable_lsns, commit_lsns, applied_lsns, completes]               Appended
    [23, slots, epochs, commit_lsns]                                                     Committed
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from itertools import chain, groupby, repeat
from operator import add
from typing import Any, get_type_hints

from im_actors.core import messages as m
from im_actors.core.facts import Fact
from im_actors.core.model import Record, View, view_of
from im_actors.errors import ProtocolViolation
from im_actors.wire.codec import encode_frame

LINK_FRAME_BYTES_MAX = 32 * 1024 * 1024


class InsideType(IntEnum):
    """The frames of the data plane between actors."""

    REQUESTS = 140
    ANSWERS = 141
    READ = 142
    PAGE = 143
    LIST_FACTS = 144
    FACTS = 145
    COUNT = 146
    COUNTED = 147
    COUNT_RANKS = 148
    RANKS_COUNTED = 149
    SUBMIT = 150
    RESULTS = 151
    WATCH = 152
    UNWATCH = 153
    WATCHED = 154
    PUSHED = 155
    RELAY = 156
    RELAYED = 157
    RELAY_SENDS = 158
    SENDS_RELAYED = 159
    SIGNAL = 160
    HERE = 161
    WHO_IS_HERE = 162
    ARE_HERE = 163


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
    m.Committed,
    m.LoadFacts,
    m.FactsLoaded,
    m.FindEvent,
    m.EventFound,
)
_KIND_OF = {kind: number for number, kind in enumerate(_KINDS)}

_PLAIN = (int, str, bool)
_TYPES: dict[type[Any], tuple[type[Any], ...]] = {
    kind: tuple(hint if hint in _PLAIN else list for hint in get_type_hints(kind).values())
    for kind in _KINDS
}
"""What the fields of each kind are in msgpack."""
_RECORD_TYPES = (int, int, bytes, int)


def _records(rows: list[Any]) -> tuple[Record, ...]:
    for row in rows:
        if tuple(map(type, row)) != _RECORD_TYPES:
            raise ValueError("a record has a field of a wrong type")
    return tuple(map(Record._make, rows))


def _epochs(rows: list[Any]) -> m.Epochs:
    return tuple((_int(epoch), _int(first_lsn)) for epoch, first_lsn in rows)


def _images(rows: list[Any]) -> tuple[m.SessionImage, ...]:
    # A batch loads one session for each recipient, most of which nobody has met before.
    new, image, none = tuple.__new__, m.SessionImage, ()
    found = []
    for session, last_seq, rows_of_devices in rows:
        devices = none if rows_of_devices == [] else tuple(map(_device, rows_of_devices))
        found.append(new(image, (_str(session), _int(last_seq), devices)))
    return tuple(found)


def _device(row: list[Any]) -> m.DeviceImage:
    device, last_n, recent = row
    pairs = tuple((_int(seq), _int(checksum)) for seq, checksum in recent)
    return m.DeviceImage(_str(device), _int(last_n), pairs)


def _view(fields: list[Any]) -> View:
    view = view_of(fields)
    for number in view[:3]:
        _int(number)
    for name in (view.owner, *(part for member in view.members for part in member)):
        _str(name)
    return view


def read_names(rows: list[Any]) -> tuple[str, ...]:
    return tuple(map(_str, rows))


def read_facts(rows: list[Any]) -> tuple[Fact, ...]:
    """The facts of a FACTS frame."""
    return tuple(
        Fact(_str(key), _int(seq), _int(rank), value if value is None else _bytes(value))
        for key, seq, rank, value in rows
    )


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise ValueError(f"{type(value).__name__} in the place of bytes")
    return value


def _int(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{type(value).__name__} in the place of an int")
    return value


def _str(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{type(value).__name__} in the place of a str")
    return value


# Only the fields that are not plain numbers and strings: (index, how to read it).
_NESTED: dict[type[Any], tuple[tuple[int, Callable[[Any], Any]], ...]] = {
    m.Append: ((5, _records),),
    m.Fetched: ((3, _records),),
    m.Seal: ((2, _view),),
    m.Drop: ((2, _view),),
    m.Sealed: ((3, _epochs),),
    m.Prepare: ((4, _epochs),),
    m.LoadSessions: ((4, read_names),),
    m.SessionsLoaded: ((4, _images),),
    m.LoadFacts: ((5, read_names),),
    m.FactsLoaded: ((4, read_facts),),
}


_FORMS = {number: (kind, _TYPES[kind], _NESTED.get(kind, ())) for number, kind in enumerate(_KINDS)}


_APPENDS = len(_KINDS)
_APPENDEDS = _APPENDS + 1
_COMMITTEDS = _APPENDS + 2
_PLAIN_KINDS = {m.Appended: _APPENDEDS, m.Committed: _COMMITTEDS}
_COLUMN_TYPES: dict[int, tuple[type[Any], ...]] = {
    _APPENDS: (int, int, int, int, bytes, int),
    _APPENDEDS: _TYPES[m.Appended],
    _COMMITTEDS: _TYPES[m.Committed],
}
_new = tuple.__new__


def pack_inside(frame_type: int, batch: Iterable[Any]) -> bytes:
    """REQUESTS or ANSWERS with core messages."""
    rows: list[Any] = []
    for kind, several in groupby(batch, type):
        run = list(several)
        columns = _columns_of(kind, run) if len(run) > 1 else None
        if columns is not None:
            rows.append(columns)
        else:
            number = _KIND_OF[kind]
            rows += [(number, *message) for message in run]
    return encode_frame((frame_type, rows), LINK_FRAME_BYTES_MAX)


def _columns_of(kind: type[Any], run: list[Any]) -> tuple[Any, ...] | None:
    """Messages of one kind as columns; None if they cannot be."""
    if kind is m.Append:
        return _append_columns(run)
    number = _PLAIN_KINDS.get(kind)
    return None if number is None else (number, *zip(*run, strict=True))


def _append_columns(run: list[m.Append]) -> tuple[Any, ...] | None:
    slots, epochs, prev_lsns, prev_epochs, commit_lsns, records = zip(*run, strict=True)
    if prev_epochs != epochs or set(map(len, records)) != {1}:
        return None
    lsns, of_epochs, payloads, checksums = zip(*chain.from_iterable(records), strict=True)
    if of_epochs != epochs or lsns != tuple(map(add, prev_lsns, repeat(1))):
        return None
    return _APPENDS, slots, epochs, prev_lsns, commit_lsns, payloads, checksums


def read_inside(rows: Iterable[list[Any]]) -> list[Any]:
    """The core messages of REQUESTS or ANSWERS. ProtocolViolation, and none of them, when one is
    not as this release sends it: a machine must not be handed what it cannot take."""
    try:
        found: list[Any] = []
        for row in rows:
            if row[0] in _COLUMN_TYPES:
                found += _read_columns(*row)
            else:
                found.append(_read_one(row))
        return found
    except Exception as error:
        # Taking apart what has another form fails in as many ways as there are forms.
        raise ProtocolViolation(f"a message between actors cannot be read: {error}") from None


def _read_columns(number: int, *columns: list[Any]) -> list[Any]:
    for kind, column in zip(_COLUMN_TYPES[number], columns, strict=True):
        if type(column) is not list or set(map(type, column)) != {kind}:
            raise ValueError(f"a column has another type than {kind.__name__}")
    rows = zip(*columns, strict=True)
    if number == _APPENDEDS:
        return [_new(m.Appended, row) for row in rows]
    if number == _COMMITTEDS:
        return [_new(m.Committed, row) for row in rows]
    return [
        _new(
            m.Append,
            (slot, epoch, prev, epoch, commit, (_new(Record, (prev + 1, epoch, body, checksum)),)),
        )
        for slot, epoch, prev, commit, body, checksum in rows
    ]


def _read_one(row: list[Any]) -> Any:
    kind, types, nested = _FORMS[row[0]]
    del row[0]
    if tuple(map(type, row)) != types:
        raise ValueError(f"{kind.__name__} has fields of other types")
    for index, read in nested:
        row[index] = read(row[index])
    # Its fields have been counted, which ``_make`` would do again.
    return _new(kind, row)


def pack_frame(message: Sequence[Any]) -> bytes:
    """Any other frame of this module."""
    return encode_frame(message, LINK_FRAME_BYTES_MAX)
