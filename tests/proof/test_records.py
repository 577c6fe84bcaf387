"""The bytes, as they are read without the code that writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core import facts, model
from im_actors.proof import records

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(0, 2**63 - 1)
events = st.builds(
    model.Event, texts, numbers, numbers, st.integers(0, 3), texts, numbers, st.binary(max_size=50)
)


@given(st.lists(events, min_size=1, max_size=5), st.integers(0, 1023), numbers, numbers)
def test_records_mean_what_was_written(
    batch: list[model.Event], slot: int, lsn: int, epoch: int
) -> None:
    record = model.make_record(slot, lsn, epoch, [model.encode_event(event) for event in batch])
    read = records.read_payload(record.payload)
    assert read.start_key is None
    assert [tuple(event) for event in read.events] == [tuple(event) for event in batch]
    assert records.is_intact(slot, *record)
    assert not records.is_intact(slot, *record._replace(payload=record.payload + b"!"))
    assert not records.is_intact(slot + 1, *record)


def test_an_index_that_tells_other_events_is_no_payload() -> None:
    event = model.Event("team", 1, 2, 1, "alice/phone", 1, b"hello")
    lies = [
        ("other", 1, "alice/phone", 1, model.body_checksum(1, b"hello")),
        ("team", 2, "alice/phone", 1, model.body_checksum(1, b"hello")),
        ("team", 1, "bob/phone", 1, model.body_checksum(1, b"hello")),
        ("team", 1, "alice/phone", 2, model.body_checksum(1, b"hello")),
        ("team", 1, "alice/phone", 1, model.body_checksum(0, b"hello")),
    ]
    data = [model.encode_event(event)]
    for lie in lies:
        with pytest.raises(ValueError, match="index"):
            records.read_payload(model.pack_record([lie], (2, 2), data))
    with pytest.raises(ValueError, match="index"):
        records.read_payload(model.pack_record([], (2, 2), data))


def test_a_change_of_state_is_made_from_what_was_sent() -> None:
    sent = facts.pack_request("create", "Climbers", ["bob", "eve"])
    for args in (["Climbers", ["bob", "eve"]], ["Climbers"]):
        body = facts.pack_state("create", args, [("g", 0, b"row")])
        assert records.made_from(4, body, sent)
    assert not records.made_from(4, facts.pack_state("create", ["Other"], []), sent)
    assert not records.made_from(4, facts.pack_state("add", [], []), sent)


def test_a_recall_is_of_the_message_that_was_named() -> None:
    body = facts.pack_state("edit", [7], [("x", 7, b"row")])
    assert records.made_from(3, body, model.pack((7, b"text")))
    assert not records.made_from(3, body, model.pack((8, b"text")))


@pytest.mark.parametrize("kind", [2, 4])
@pytest.mark.parametrize("body", [b"", b"text", b"\xc1", b"\x92\xa1a\x90", b"\x03"])
def test_what_is_no_change_of_state_is_made_from_nothing(kind: int, body: bytes) -> None:
    assert not records.made_from(kind, body, facts.pack_request("add", "bob", 3))
    assert not records.made_from(kind, facts.pack_state("add", [1], []), body)


@given(st.integers(0, 1023), numbers, numbers, numbers)
def test_epoch_starts(slot: int, lsn: int, epoch: int, key: int) -> None:
    record = model.epoch_start(slot, lsn, epoch, key)
    assert records.read_payload(record.payload) == (key, ())
    assert records.is_intact(slot, *record)


@given(texts, st.integers(1, 1024))
def test_slots(session: str, slots: int) -> None:
    assert records.slot_of(session, slots) == model.slot_of(session, slots)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_record_are_a_value_error(data: bytes) -> None:
    for read in (records.read_payload, records.read_event):
        try:
            read(data)
        except ValueError:
            continue
        assert data


@pytest.mark.parametrize("data", [b"", b"\x90", b"\x91\xc0", b"\x92\x01\x02", b"\x91\xc4\x01\x90"])
def test_what_is_no_payload(data: bytes) -> None:
    with pytest.raises(ValueError):
        records.read_payload(data)


@pytest.mark.parametrize("index", range(7))
def test_every_field_of_an_event_has_its_type(index: int) -> None:
    event = model.Event("team", 1, 2, 1, "alice/phone", 1, b"hello")
    assert records.read_event(model.encode_event(event)) == event
    wrong = [*event[:index], None, *event[index + 1 :]]
    with pytest.raises(ValueError):
        records.read_event(model.pack(wrong))
