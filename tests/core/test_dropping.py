"""What is left of a record whose month was dropped."""

from __future__ import annotations

import pytest

from im_actors.core.dropping import dropped_event, dropped_record, edits_of, is_dropped
from im_actors.core.facts import event_facts, pack_state, record_facts
from im_actors.core.model import (
    Event,
    EventKind,
    decode_event,
    encode_event,
    epoch_start,
    make_record,
    record_events,
    record_index,
    record_intact,
)
from im_actors.core.overlays import Overlay, event_overlay, overlay_key, overlay_rank
from im_actors.core.spans import preview_of, span_of
from im_actors.core.window import Window


def edit(seq: int, target: int, text: bytes) -> Event:
    row = Overlay(int(EventKind.EDIT), "ann", text).to_bytes()
    body = pack_state("edit", [target], [(overlay_key(target), overlay_rank(target), row)])
    return message(seq)._replace(kind=int(EventKind.EDIT), body=body)


def message(seq: int, body: bytes = b"hello") -> Event:
    return Event("s", seq, 1000 + seq, int(EventKind.MESSAGE), "ann/phone", seq, body)


EVENTS = [message(1), edit(2, 1, b"hello, Bob"), message(3)]
RECORD = make_record(5, 9, 2, [encode_event(event) for event in EVENTS])


def test_the_timeline_stays_and_the_content_goes() -> None:
    record = dropped_record(5, RECORD)
    assert record_intact(5, record)
    assert (record.lsn, record.epoch) == (9, 2)
    # Dedup goes by this: places, senders, and checksums of what was sent.
    assert record_index(record.payload) == record_index(RECORD.payload)
    found = [decode_event(data) for data in record_events(record.payload)]
    assert [e[:3] + e[4:6] for e in found] == [e[:3] + e[4:6] for e in EVENTS]
    assert [e.kind for e in found] == [EventKind.DROPPED, EventKind.EDIT, EventKind.DROPPED]
    assert all(map(is_dropped, found))
    assert not any(map(is_dropped, EVENTS))
    assert found[0].body == b""
    assert event_overlay(found[1]) == (1, Overlay(int(EventKind.EDIT), "ann", None))
    assert b"Bob" not in record.payload
    assert [facts for _, facts in record_facts(record.payload)] == [event_facts(found[1])]
    assert [event.seq for event in edits_of(record)] == [2]


def test_twice_is_once_and_what_has_no_content_is_left_alone() -> None:
    once = dropped_record(5, RECORD)
    assert dropped_record(5, once) == once
    start = epoch_start(5, 10, 3, 1004)
    assert dropped_record(5, start) is start


@pytest.mark.parametrize("kind", [k for k in EventKind if k not in (1, 3)])
def test_state_is_no_content(kind: EventKind) -> None:
    event = message(1)._replace(kind=int(kind), body=pack_state("put", [], [("k", 1, b"v")]))
    assert dropped_event(event) == event


def test_it_counts_and_is_shown_like_the_message_that_it_was() -> None:
    gone = [dropped_event(event) for event in EVENTS]
    whole, left = span_of("bob", EVENTS), span_of("bob", gone)
    assert left._replace(preview=None) == whole._replace(preview=None)
    assert [preview.kind for event in gone for preview in preview_of(event)] == [8, 8, 8]
    assert {preview.text for event in gone for preview in preview_of(event)} == {""}
    counts = []
    for events in (EVENTS, gone):
        window = Window()
        for event in events:
            window.add(event)
        counts.append(
            (window.unread("bob", 0), window.unread("ann", 0), window.uncounted("bob", 0))
        )
    assert counts[0] == counts[1] == (2, 0, [(2, 2)])
