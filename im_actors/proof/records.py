"""The bytes of events and records, read by rules of its own: a checker that decodes with the code
under test shares its mistakes."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import msgpack

VOID = 0


class Event(NamedTuple):
    """One entry of a session's timeline."""

    session: str
    seq: int
    key: int
    kind: int
    device: str
    n: int
    body: bytes


class Batch(NamedTuple):
    """What one record of a log holds: events, or the key that an epoch starts with."""

    start_key: int | None
    events: tuple[Event, ...]


def read_event(data: bytes) -> Event:
    """ValueError for bytes that are no event."""
    return _event(_unpacked(data))


def read_payload(payload: bytes) -> Batch:
    """ValueError for bytes that are no payload of a record."""
    parts = _unpacked(payload)
    if not isinstance(parts, list) or not parts:
        raise ValueError("a record holds an array that is not empty")
    if len(parts) == 1 and type(parts[0]) is int:
        return Batch(parts[0], ())
    events = tuple(read_event(part) for part in parts[1:])
    if parts[0] != _index(events):
        raise ValueError("the index of a record says something else than its events")
    return Batch(None, events)


def is_intact(slot: int, lsn: int, epoch: int, payload: bytes, checksum: int) -> bool:
    """Whether a record has its checksum: 4 bytes of CRC-32 over its place and its payload, then 4
    of Adler-32 over its payload."""
    place = slot.to_bytes(4, "big") + lsn.to_bytes(8, "big") + epoch.to_bytes(8, "big")
    halves = zlib.crc32(place + payload), zlib.adler32(payload)
    expected = b"".join(half.to_bytes(4, "big") for half in halves)
    return int.from_bytes(expected, "big", signed=True) == checksum


def slot_of(session: str, slots: int) -> int:
    """The slot whose log a session is in."""
    return zlib.crc32(session.encode()) % slots


def _index(events: tuple[Event, ...]) -> list[Any]:
    """The index that belongs to these events: first and last key, and for each stretch of one
    session its name, first seq, length and what was sent (place, device, n, checksum)."""
    stretches: list[tuple[str, int, list[tuple[int, str, int, int]]]] = []
    newest: dict[str, int] = {}
    for place, event in enumerate(events):
        own = newest.get(event.session)
        if own is None or event.seq != stretches[own][1] + len(stretches[own][2]):
            own = newest[event.session] = len(stretches)
            stretches.append((event.session, event.seq, []))
        checksum = zlib.crc32(event.body, event.kind)
        stretches[own][2].append((place, event.device, event.n, checksum))
    index: list[Any] = [events[0].key, events[-1].key] if events else [0, 0]
    for session, first, sent in stretches:
        flat = [first, *(field for entry in sent for field in entry)]
        index += [session, first, len(sent), msgpack.packb(flat)]
    return index


def _unpacked(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data)
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"not msgpack: {error}") from None


def _event(fields: Any) -> Event:
    if not isinstance(fields, list) or len(fields) != 7:
        raise ValueError("an event has seven fields")
    session, seq, key, kind, device, n, body = fields
    texts = type(session) is str and type(device) is str and type(body) is bytes
    if not texts or any(type(number) is not int for number in (seq, key, kind, n)):
        raise ValueError("a field of an event has a wrong type")
    return Event(session, seq, key, kind, device, n, body)
