"""The nouns: keys, checksums, encodings, names."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core import model
from im_actors.core.model import (
    Event,
    Member,
    View,
    ViewState,
    body_checksum,
    check_body,
    check_name,
    decode_event,
    encode_event,
    epoch_start,
    key_slot,
    key_time_ms,
    make_key,
    make_record,
    next_key,
    record_events,
    record_index,
    record_intact,
    record_keys,
    slot_of,
    unpack_sends,
    view_of,
)
from im_actors.core.names import check_session
from im_actors.errors import BadRequest, TooLarge

NOW_MS = 1_700_000_000_000
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def event(n: int = 1, key: int = 5) -> Event:
    return Event("team", n, key, 1, "alice/phone-1", n, b"hello")


@given(texts, st.integers(0, 2**62), texts, st.binary(max_size=50))
def test_an_event_survives_its_byte_form(session: str, seq: int, device: str, body: bytes) -> None:
    there = Event(session, seq, 7, 1, device, 3, body)
    assert decode_event(encode_event(there)) == there


def test_an_event_tells_its_sender_time_and_text() -> None:
    told = Event("team", 1, make_key(NOW_MS, 3, 0), 1, "alice/phone-1", 1, "grüße".encode())
    assert (told.sender, told.time_ms, told.text) == ("alice", NOW_MS, "grüße")


def test_text_that_is_not_utf8_is_shown_and_not_raised() -> None:
    assert Event("s", 1, 1, 1, "a/b", 1, b"\xff").text == "�"


def test_a_key_tells_its_time_and_slot() -> None:
    key = make_key(NOW_MS, 1023, 4095)
    assert (key_time_ms(key), key_slot(key)) == (NOW_MS, 1023)
    assert key < 1 << 63


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=300), st.integers(0, 1023))
def test_keys_of_a_slot_rise_whatever_the_clock_does(steps: list[int], slot: int) -> None:
    now_ms, last = NOW_MS, 0
    for step in steps:
        now_ms += step
        key = next_key(last, now_ms, slot)
        assert key > last
        assert key_slot(key) == slot
        last = key


def test_a_millisecond_that_is_full_spills_into_the_next() -> None:
    full = make_key(NOW_MS, 9, 4095)
    after = next_key(full, NOW_MS, 9)
    assert (key_time_ms(after), key_slot(after)) == (NOW_MS + 1, 9)


def test_a_record_gives_back_its_events_and_their_keys() -> None:
    data = [encode_event(event(1, 10)), encode_event(event(2, 12))]
    record = make_record(4, 7, 2, data)
    assert record_events(record.payload) == data
    assert record_keys(record.payload) == (10, 12)


def test_an_index_says_where_each_session_is_and_what_was_sent() -> None:
    mixed = [
        Event("team", 4, 10, 1, "alice/phone", 1, b"a"),
        Event("other", 1, 11, 0, "bob/tablet", 7, b""),
        Event("team", 5, 12, 1, "bob/tablet", 3, b"b"),
    ]
    record = make_record(4, 7, 2, [encode_event(event) for event in mixed])
    found = record_index(record.payload)
    assert (found.first_key, found.last_key) == (10, 12)
    told = [(*part[:3], unpack_sends(part[3])) for part in found.parts]
    assert told == [
        ("team", 4, 2, [(0, "alice/phone", 1, body_checksum(1, b"a")),
                        (2, "bob/tablet", 3, body_checksum(1, b"b"))]),
        ("other", 1, 1, [(1, "bob/tablet", 7, body_checksum(0, b""))]),
    ]  # fmt: skip


def test_a_hole_in_the_seqs_of_a_session_begins_another_part() -> None:
    data = [encode_event(event(n, n)) for n in (1, 2, 4, 4)]
    parts = record_index(make_record(4, 7, 2, data).payload).parts
    assert [part[1:3] for part in parts] == [(1, 2), (4, 1), (4, 1)]


def test_an_epoch_start_holds_a_key_and_no_event() -> None:
    record = epoch_start(4, 7, 2, 99)
    assert record_events(record.payload) == []
    assert record_keys(record.payload) == (99, 99)
    assert record_index(record.payload).parts == []


def test_a_checksum_covers_the_payload_and_its_place() -> None:
    record = make_record(4, 7, 2, [encode_event(event())])
    assert record_intact(4, record)
    flipped = record.payload[:-1] + bytes([record.payload[-1] ^ 1])
    moved = (record._replace(lsn=8), record._replace(epoch=3), record._replace(payload=flipped))
    assert not any(record_intact(4, other) for other in moved)
    assert not record_intact(5, record)


def test_a_checksum_fits_a_signed_64_bit_column() -> None:
    sums = [make_record(0, lsn, 1, []).checksum for lsn in range(200)]
    assert all(-(2**63) <= value < 2**63 for value in sums)
    assert min(sums) < 0 < max(sums)


def test_a_body_checksum_tells_kinds_apart() -> None:
    assert body_checksum(0, b"") != body_checksum(1, b"")
    assert body_checksum(1, b"a") != body_checksum(1, b"b")


def test_the_slot_of_a_session_is_fixed_for_ever() -> None:
    assert slot_of("team", 64) == zlib.crc32(b"team") % 64
    assert {slot_of(f"s{i}", 8) for i in range(200)} == set(range(8))


def test_a_view_comes_back_from_lists() -> None:
    view = View(3, 5, ViewState.ACTIVE, "shard.1", (Member("a", "d1"), Member("b", "d2")))
    assert view_of([3, 5, 1, "shard.1", [["a", "d1"], ["b", "d2"]]]) == view


@pytest.mark.parametrize("name", ["a/b", "", "a\x00b", "a\x85b", "a\x7f", "\ud800", 5, None, b"a"])
def test_a_name_that_could_mislead_is_refused(name: object) -> None:
    with pytest.raises(BadRequest):
        check_name("user", name)


def test_a_name_is_measured_in_bytes() -> None:
    assert check_name("user", "é" * 64) == "é" * 64
    with pytest.raises(TooLarge):
        check_name("user", "é" * 65)


def test_a_session_may_hold_a_slash_and_be_longer() -> None:
    assert check_session("a/b" * 80) == "a/b" * 80
    with pytest.raises(TooLarge):
        check_session("a" * 321)


def test_a_body_is_bytes_up_to_its_limit() -> None:
    assert check_body(b"x" * model.BODY_BYTES_MAX)
    with pytest.raises(TooLarge):
        check_body(b"x" * (model.BODY_BYTES_MAX + 1))
    with pytest.raises(BadRequest):
        check_body("x")
