"""The nouns of the protocol: events, records, views, members (design sections 2 and 5).

Events, records and messages are named tuples and not dataclasses: msgpack packs a tuple in C as the
array that the wire needs, so the hot path neither copies nor converts them.
"""

from __future__ import annotations

import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import msgpack

from im_actors.errors import BadRequest, TooLarge

SLOTS_DEFAULT = 64
SLOTS_MAX = 1024
COPIES = 3
DEVICE_WINDOW = 128
"""Most sends that a device may have un-ACKed in one session, and how many of its last seqs the
dedup state remembers directly. One number: an honest resend is always within it."""
BODY_BYTES_MAX = 65_536
SESSION_BYTES_MAX = 320
NAME_BYTES_MAX = 128

KEY_EPOCH_MS = 1_577_836_800_000
"""Message keys count milliseconds from 2020-01-01T00:00:00Z."""
_KEY_COUNTER_BITS = 12
_KEY_SLOT_BITS = 10
_KEY_TIME_SHIFT = _KEY_COUNTER_BITS + _KEY_SLOT_BITS
_KEY_COUNTER_MAX = (1 << _KEY_COUNTER_BITS) - 1


SLOT_SESSION = "slot:"
"""What the sessions begin with that lie in the slot which they name."""


class EventKind(IntEnum):
    """What an event is. A VOID takes a seq and shows nothing: its sender withdrew its own counter
    after a definite refusal, so that later sends are not held up by the hole. From RECALL on events
    change a session's state (``core.facts``)."""

    VOID = 0
    MESSAGE = 1
    RECALL = 2
    """Takes an earlier message back (``core.overlays``)."""
    EDIT = 3
    """Gives an earlier message a new text (``core.overlays``)."""
    GROUP = 4
    """A group was made, or its members, their roles or its settings changed."""
    MAILBOX = 5
    """A user changed something in his own mailbox: read position, pin, a deleted message."""
    NOTE = 6
    """A server wrote down what follows from events elsewhere."""
    BATCH = 7
    """A batch message was ordered, or went on, or was stopped."""
    DROPPED = 8
    """A message whose content an operator has dropped with its month; its body is empty. No state
    event, and nobody sends one: it is what became of a MESSAGE (``core.dropping``)."""


STATE_KINDS_FROM = EventKind.RECALL
"""Events of this kind and above carry facts, but for DROPPED."""
MESSAGE_KINDS = frozenset((int(EventKind.MESSAGE), int(EventKind.DROPPED)))
"""What is a message, whether or not its content is still there."""


class Change(NamedTuple):
    """What an event did to its group."""

    what: str
    args: list[Any]
    users: list[str]
    """Whose membership it changed."""


class Event(NamedTuple):
    """One entry of a session's timeline. ``device`` is the address "user/device"."""

    session: str
    seq: int
    key: int
    kind: int
    device: str
    n: int
    body: bytes

    @property
    def sender(self) -> str:
        return self.device.partition("/")[0]

    @property
    def time_ms(self) -> int:
        return key_time_ms(self.key)

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", errors="replace")

    @property
    def recalled(self) -> bool:
        """Whether its sender took it back. Of an event as it is in the timeline nobody knows; the
        client's ``Shown`` does, and so with the others."""
        return False

    @property
    def edited(self) -> bool:
        return False

    @property
    def dropped(self) -> bool:
        """Whether its content was dropped with its month."""
        return self.kind == EventKind.DROPPED

    @property
    def target(self) -> int | None:
        """The seq of the message that a recall or an edit is about."""
        return None

    @property
    def change(self) -> Change | None:
        """What was done to a group."""
        return None


class Record(NamedTuple):
    """One entry of a slot's log: events that were committed together.

    ``payload`` is a msgpack array: the record's index (``RecordIndex``) and then the encoded
    events, or one integer, the key of an EpochStart.
    """

    lsn: int
    epoch: int
    payload: bytes
    checksum: int


class Member(NamedTuple):
    """A replica together with the identity of its disk: another disk is another member."""

    replica: str
    disk: str


class ViewState(IntEnum):
    RECOVERING = 0
    ACTIVE = 1


class View(NamedTuple):
    """Who may write a slot, and where. Changed only by compare-and-swap on the whole record."""

    slot: int
    epoch: int
    state: int
    owner: str
    members: tuple[Member, ...]


def view_of(fields: Sequence[Any]) -> View:
    """A view from its unpacked msgpack or JSON form."""
    slot, epoch, state, owner, members = fields
    return View(slot, epoch, state, owner, tuple(Member(*m) for m in members))


pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack
"""msgpack. A plain tuple with the fields of an Event packs to the same bytes as the Event."""


def encode_event(event: Event) -> bytes:
    """The one byte form of an event: on the wire, in records and in history."""
    return pack(event)


def decode_event(data: bytes) -> Event:
    return Event._make(msgpack.unpackb(data, raw=False))


_new = tuple.__new__
"""Makes a named tuple from a tuple in half the time of a call of its class."""

Part = tuple[str, int, int, bytes]
"""The events of one session in one record: session, first seq, how many, and ``sends``. Their seqs
follow one another. ``sends`` is opaque to everybody but ``unpack_sends``: three replicas keep it
and look into it only when somebody asks, so that indexing costs them nothing for each event."""


class RecordIndex(NamedTuple):
    """What a replica has to know of a record, so that it need not decode the events."""

    first_key: int
    last_key: int
    changes: list[int]
    """Positions of the events that change their session's state."""
    parts: list[Part]


class Sent(NamedTuple):
    """One event of a part: where in the record it is, and its key in the dedup set."""

    position: int
    device: str
    n: int
    checksum: int


Indexed = tuple[str, int, str, int, int]
"""What the index needs of an event: session, seq, device, n, body checksum."""


def pack_record(
    entries: Iterable[Indexed],
    keys: tuple[int, int],
    events: list[bytes],
    changes: Sequence[int] = (),
) -> bytes:
    """The payload of a record: ``entries`` in the order of ``events``, ``keys`` the first and the
    last one, ``changes`` the positions of state events."""
    latest: dict[str, list[Any]] = {}
    latest_of = latest.get
    parts: list[tuple[str, list[Any]]] = []
    for position, (session, seq, device, n, checksum) in enumerate(entries):
        part = latest_of(session)
        if part is not None and seq == part[0] + (len(part) >> 2):
            part += (position, device, n, checksum)
        else:
            # A second part of one session: only where its seqs have a hole, which is a defect that
            # the index tells like everything else.
            part = latest[session] = [seq, position, device, n, checksum]
            parts.append((session, part))
    index: list[Any] = [*keys, changes]
    for session, part in parts:
        index += (session, part[0], len(part) >> 2, pack(part))
    return pack([index, *events])


def record_index(payload: bytes) -> RecordIndex:
    """The index of a record; that of an EpochStart has no parts."""
    index = msgpack.unpackb(payload)[0]
    if type(index) is int:
        return RecordIndex(index, index, [], [])
    # Records of the first releases have no list of changes, and no state events.
    has_changes = len(index) > 2 and type(index[2]) is list
    fields = iter(index[3:] if has_changes else index[2:])
    parts = list(zip(fields, fields, fields, fields, strict=True))
    return RecordIndex(index[0], index[1], index[2] if has_changes else [], parts)


def unpack_sends(sends: bytes) -> list[Sent]:
    """The events of a part, by ascending seq."""
    fields = iter(msgpack.unpackb(sends)[1:])
    return list(map(Sent, fields, fields, fields, fields))


def record_events(payload: bytes) -> list[bytes]:
    """The encoded events of a record, in order; none for an EpochStart."""
    entries: list[Any] = msgpack.unpackb(payload)
    return entries[1:]


def record_keys(payload: bytes) -> tuple[int, int]:
    """The first and the last message key of a record. They never decrease along a log."""
    return record_index(payload)[:2]


_pack_head = struct.Struct(">IQQ").pack


def record_checksum(slot: int, lsn: int, epoch: int, payload: bytes) -> int:
    """CRC-32 of the record's place and payload and Adler-32 of the payload: 64 bits, signed as
    SQLite stores integers. It is against disks and bugs, and computed four times a record; 64 bits
    of BLAKE2b took four times as long."""
    crc = zlib.crc32(payload, zlib.crc32(_pack_head(slot, lsn, epoch)))
    return (crc - (crc >> 31 << 32)) << 32 | zlib.adler32(payload)


def make_record(slot: int, lsn: int, epoch: int, events: list[bytes]) -> Record:
    """A record of encoded events. An owner, which knows the entries of its index, packs faster."""
    found = [decode_event(data) for data in events]
    entries = [(e.session, e.seq, e.device, e.n, body_checksum(e.kind, e.body)) for e in found]
    keys = (found[0].key, found[-1].key) if found else (0, 0)
    changes = [at for at, e in enumerate(found) if e.kind >= STATE_KINDS_FROM and not e.dropped]
    return sealed_record(slot, lsn, epoch, pack_record(entries, keys, events, changes))


def sealed_record(slot: int, lsn: int, epoch: int, payload: bytes) -> Record:
    """The record of a payload, with its checksum."""
    return _new(Record, (lsn, epoch, payload, record_checksum(slot, lsn, epoch, payload)))


def epoch_start(slot: int, lsn: int, epoch: int, key: int) -> Record:
    """The first record of an epoch. It holds no event, only a key, so that a new owner learns from
    the last record alone where the slot's keys go on."""
    return sealed_record(slot, lsn, epoch, pack([key]))


def record_intact(slot: int, record: Record) -> bool:
    lsn, epoch, payload, checksum = record
    return checksum == record_checksum(slot, lsn, epoch, payload)


def slot_of(session: str, slots: int) -> int:
    """The slot that a session belongs to: fixed for the life of a cluster."""
    if session.startswith(SLOT_SESSION) and session[len(SLOT_SESSION) :].isdecimal():
        return int(session[len(SLOT_SESSION) :]) % slots
    return zlib.crc32(session.encode()) % slots


def make_key(time_ms: int, slot: int, counter: int) -> int:
    """A time-ordered message key; ``counter`` tells keys of one millisecond apart."""
    assert 0 <= slot < SLOTS_MAX
    assert 0 <= counter < 1 << _KEY_COUNTER_BITS
    return (
        (max(0, time_ms - KEY_EPOCH_MS) << _KEY_TIME_SHIFT) | (slot << _KEY_COUNTER_BITS) | counter
    )


def next_key(last_key: int, time_ms: int, slot: int) -> int:
    """The next key of a slot: never at or below ``last_key``, also when the clock goes back."""
    if time_ms < KEY_EPOCH_MS:
        time_ms = KEY_EPOCH_MS
    key = (time_ms - KEY_EPOCH_MS) << _KEY_TIME_SHIFT | slot << _KEY_COUNTER_BITS
    if key > last_key:
        return key
    if last_key & _KEY_COUNTER_MAX == _KEY_COUNTER_MAX:
        return make_key(key_time_ms(last_key) + 1, slot, 0)
    return last_key + 1


def key_time_ms(key: int) -> int:
    """Milliseconds since the Unix epoch."""
    return (key >> _KEY_TIME_SHIFT) + KEY_EPOCH_MS


def key_slot(key: int) -> int:
    return (key >> _KEY_COUNTER_BITS) & (SLOTS_MAX - 1)


def body_checksum(kind: int, body: bytes) -> int:
    """Tells a resend from another message under the same key."""
    return zlib.crc32(body, kind)


def check_name(what: str, name: object, bytes_max: int = NAME_BYTES_MAX) -> str:
    """``name`` if it may name a user or a device; otherwise BadRequest or TooLarge says why."""
    return check_text(what, name, bytes_max, forbidden="/")


def check_text(what: str, text: object, bytes_max: int, forbidden: str = "") -> str:
    if not isinstance(text, str) or not text:
        raise BadRequest(f"{what} must be a string that is not empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise BadRequest(f"{what} holds a lone surrogate, which UTF-8 cannot carry") from None
    if size > bytes_max:
        raise TooLarge(f"{what} is {size} bytes of UTF-8, the limit is {bytes_max}")
    if any(unicodedata.category(c) == "Cc" or c in forbidden for c in text):
        hint = f" or {forbidden!r}" if forbidden else ""
        raise BadRequest(f"{what} must not hold control characters{hint}")
    return text


def check_body(body: object) -> bytes:
    if not isinstance(body, bytes):
        raise BadRequest("body must be bytes")
    if len(body) > BODY_BYTES_MAX:
        raise TooLarge(f"body is {len(body)} bytes, the limit is {BODY_BYTES_MAX}")
    return body
