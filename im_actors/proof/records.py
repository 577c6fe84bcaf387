"""The bytes of events and records, read by rules of its own: a checker that decodes with the code
under test shares its mistakes."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import msgpack

VOID = 0
RECALL, EDIT = 2, 3
CHANGES_FROM = RECALL
"""Events of this kind and above change their session's state."""


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
    if not _is_index_of(parts[0], events):
        raise ValueError("the index of a record says something else than its events")
    return Batch(None, events)


def made_from(kind: int, body: bytes, sent: bytes) -> bool:
    """Whether an owner may have made this body of a change of state from the one that was sent: of
    a recall or an edit [seq, ...], of others [what, arguments]. Committed it is [what, arguments,
    rows]; arguments that the rows say too may be left out, at the end or at the beginning."""
    try:
        what, arguments, _ = _unpacked(body)
        asked = _unpacked(sent)
        if kind in (RECALL, EDIT):
            return bool(arguments == asked[:1])
        wanted, count = asked[1], len(arguments)
        kept = (wanted[:count], wanted[len(wanted) - count :])
        return bool(what == asked[0] and count <= len(wanted) and arguments in kept)
    except (TypeError, ValueError, IndexError):
        return False


def is_intact(slot: int, lsn: int, epoch: int, payload: bytes, checksum: int) -> bool:
    """Whether a record has its checksum: 4 bytes of CRC-32 over its place and its payload, then 4
    of Adler-32 over its payload."""
    place = slot.to_bytes(4, "big") + lsn.to_bytes(8, "big") + epoch.to_bytes(8, "big")
    halves = zlib.crc32(place + payload), zlib.adler32(payload)
    expected = b"".join(half.to_bytes(4, "big") for half in halves)
    return int.from_bytes(expected, "big", signed=True) == checksum


def slot_of(session: str, slots: int) -> int:
    """The slot whose log a session is in."""
    if session[:5] == "slot:" and session[5:].isdecimal():
        return int(session[5:]) % slots
    return zlib.crc32(session.encode()) % slots


def _is_index_of(index: Any, events: tuple[Event, ...]) -> bool:
    """Whether it is the index that belongs to these events: first and last key, the places of those
    that change their session's state, and for each stretch of one session its name, first seq,
    length and what was sent (place, device, n, checksum)."""
    if not isinstance(index, list) or len(index) < 2:
        return False
    # The first releases had no places of changes, and no events that would be there.
    fields = index[2:] if index[2:3] and type(index[2]) is str else index[3:]
    changes = [place for place, event in enumerate(events) if event.kind >= CHANGES_FROM]
    if len(fields) < len(index) - 2 and index[2] != changes:
        return False
    if index[:2] != ([events[0].key, events[-1].key] if events else [0, 0]):
        return False
    return len(fields) % 4 == 0 and _without_changed(fields, changes) == _stretches(events, changes)


def _without_changed(fields: list[Any], changes: list[int]) -> list[Any]:
    """The stretches of an index, flat. The checksum of what was sent tells nothing of an event that
    the owner made from it: None stands for it."""
    found: list[Any] = []
    for at in range(0, len(fields), 4):
        flat = _unpacked(fields[at + 3]) if type(fields[at + 3]) is bytes else None
        if not isinstance(flat, list) or len(flat) % 4 != 1:
            return [None]
        for entry in range(1, len(flat), 4):
            if flat[entry] in changes:
                flat[entry + 3] = None
        found += [*fields[at : at + 3], flat]
    return found


def _stretches(events: tuple[Event, ...], changes: list[int]) -> list[Any]:
    stretches: list[list[Any]] = []
    newest: dict[str, list[Any]] = {}
    for place, event in enumerate(events):
        own = newest.get(event.session)
        if own is None or event.seq != own[1] + own[2]:
            own = newest[event.session] = [event.session, event.seq, 0, [event.seq]]
            stretches.append(own)
        checksum = None if place in changes else zlib.crc32(event.body, event.kind)
        own[2] += 1
        own[3] += [place, event.device, event.n, checksum]
    return [field for stretch in stretches for field in stretch]


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
