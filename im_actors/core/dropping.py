"""What is left of events when an operator drops the content of their month (design 6 and 9).

The timeline stays: seq, key, sender, device and n of every event, and all that is state. Gone are
the bodies of messages, which become DROPPED, and the texts of edits, which become nil. What is left
is a record like any other, the same on every replica, so takeover, backfill and dedup need no rule
for it: the index of the record, with the checksums of what was sent, does not change.

The content of a batch message is no month's: timelines of later months share it.
"""

from __future__ import annotations

import msgpack

from im_actors.core.facts import Fact, read_state
from im_actors.core.model import (
    Event,
    EventKind,
    Record,
    decode_event,
    encode_event,
    pack,
    record_events,
    record_index,
    sealed_record,
)
from im_actors.core.overlays import Overlay, event_overlay

_CONTENT = (int(EventKind.MESSAGE), int(EventKind.EDIT))


def dropped_event(event: Event) -> Event:
    """The event without its content."""
    if event.kind == EventKind.MESSAGE:
        return event._replace(kind=int(EventKind.DROPPED), body=b"")
    if event.kind == EventKind.EDIT:
        what, args, facts = read_state(event.body)
        rows = [(key, rank, _dropped_value(value)) for key, rank, value in facts]
        return event._replace(body=pack((what, args, rows)))
    return event


def is_dropped(event: Event) -> bool:
    """Whether it is what ``dropped_event`` leaves of one that had a content."""
    if event.kind == EventKind.EDIT:
        return event_overlay(event)[1].dropped
    return event.kind == EventKind.DROPPED


def dropped_fact(fact: Fact) -> Fact:
    """The fact of an edit as its event says it without the content."""
    return fact._replace(value=_dropped_value(fact.value))


def dropped_record(slot: int, record: Record) -> Record:
    """The record without the content of its events, sealed anew; the same if it has none."""
    index, *entries = msgpack.unpackb(record.payload)
    events = [decode_event(data) for data in entries]
    if not any(event.kind in _CONTENT for event in events):
        return record
    payload = pack([index, *(encode_event(dropped_event(event)) for event in events)])
    return sealed_record(slot, record.lsn, record.epoch, payload)


def edits_of(record: Record) -> list[Event]:
    """The edits of a record. Costs next to nothing for one without state events."""
    changes = record_index(record.payload).changes
    entries = record_events(record.payload) if changes else []
    events = [decode_event(entries[position]) for position in changes]
    return [event for event in events if event.kind == EventKind.EDIT]


def _dropped_value(value: bytes | None) -> bytes | None:
    if value is None:
        return None
    return Overlay.from_bytes(value)._replace(text=None).to_bytes()
