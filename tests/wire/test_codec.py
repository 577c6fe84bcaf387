"""The frame codec, fed whole, byte by byte, in random pieces, with trailing bytes, with garbage."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.errors import ImError, ProtocolViolation, TooLarge
from im_actors.wire.codec import HEADER_BYTES, MAP_ITEMS_MAX, FrameDecoder, encode_frame

FRAMES: list[list[Any]] = [
    [2, [["team", 1, 1, b"hello"]]],
    [6, 3],
    [131],
    [65, 1, "gateway", 1767225600000, {"window": 128}],
    [5, 1, "séance", -1, 0, 2**63 - 1, None, True, 0.5],
]


def feed_in_pieces(decoder: FrameDecoder, data: bytes, size: int) -> list[list[Any]]:
    messages = []
    for start in range(0, len(data), size):
        messages += decoder.feed(data[start : start + size])
    return messages


def raw_frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 61, 1_000])
def test_pieces_of_any_size(size: int) -> None:
    data = b"".join(map(encode_frame, FRAMES))
    decoder = FrameDecoder()
    assert feed_in_pieces(decoder, data, size) == FRAMES
    assert decoder.pending_bytes == 0
    assert decoder.error is None


@pytest.mark.parametrize("extra", range(1, 12))
def test_trailing_bytes_wait_for_the_rest(extra: int) -> None:
    first, second = map(encode_frame, FRAMES[:2])
    second += encode_frame(FRAMES[0])
    decoder = FrameDecoder()
    assert decoder.feed(first + second[:extra])[:1] == FRAMES[:1]
    rest = decoder.feed(second[extra:])
    assert rest[-1] == FRAMES[0]
    assert decoder.pending_bytes == 0


def test_a_large_frame_in_many_pieces_is_kept_once() -> None:
    message = [2, b"x" * 1_000_000]
    data = encode_frame(message) + encode_frame([6, 1])
    decoder = FrameDecoder()
    assert feed_in_pieces(decoder, data[:-10], 1_448) == []
    assert decoder.pending_bytes == len(data) - 10
    assert decoder.feed(data[-10:]) == [message, [6, 1]]


def test_empty_feed() -> None:
    assert FrameDecoder().feed(b"") == []


VIOLATIONS = {
    "not an array": raw_frame(b"\x01"),
    "a map": raw_frame(b"\x80"),
    "an empty array": raw_frame(b"\x90"),
    "a type that is a string": raw_frame(msgpack.packb(["2", 1])),
    "a type that is a bool": raw_frame(msgpack.packb([True])),
    "a type that is a float": raw_frame(msgpack.packb([2.0])),
    "no bytes at all": raw_frame(b""),
    "a truncated array": raw_frame(b"\x92\x01"),
    "bytes after the array": raw_frame(b"\x91\x01\x01"),
    "the byte that msgpack never uses": raw_frame(b"\x92\x01\xc1"),
    "text that is not UTF-8": raw_frame(b"\x92\x01\xa1\xff"),
    "a surrogate": raw_frame(b"\x92\x01\xa3\xed\xa0\x80"),
    "an extension": raw_frame(msgpack.packb([1, msgpack.ExtType(5, b"x")])),
    "an extension of no bytes": raw_frame(b"\x92\x01\xc7\x00\x05"),
    "a timestamp": raw_frame(msgpack.packb([1, msgpack.Timestamp(1)])),
    "a map with an int key": raw_frame(msgpack.packb([1, {1: 2}])),
    "a map with an array key": raw_frame(b"\x92\x01\x81\x90\x01"),
    "a map that is too large": raw_frame(
        msgpack.packb([1, {str(i): i for i in range(MAP_ITEMS_MAX + 1)}])
    ),
    "a huge array that is not there": raw_frame(b"\x92\x01\xdd\xff\xff\xff\xff"),
    "nesting without end": raw_frame(b"\x92\x01" + b"\x91" * 100_000),
}


@pytest.mark.parametrize("bad", VIOLATIONS.values(), ids=VIOLATIONS.keys())
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "between good frames"])
@pytest.mark.parametrize("size", [1, 1_000_000], ids=["byte by byte", "whole"])
def test_violation(bad: bytes, alone: bool, size: int) -> None:
    good = encode_frame([6, 1])
    decoder = FrameDecoder()
    data = bad if alone else good + good + bad + good
    messages = []
    for start in range(0, len(data), size):
        messages += decoder.feed(data[start : start + size])
        if decoder.error is not None:
            break
    assert messages == ([] if alone else [[6, 1], [6, 1]])
    assert isinstance(decoder.error, ProtocolViolation)
    with pytest.raises(ProtocolViolation):
        decoder.feed(good)


def test_a_frame_above_the_limit_is_refused_by_its_header() -> None:
    decoder = FrameDecoder(frame_bytes_max=100)
    exact = [1, b"x" * 96]
    assert decoder.feed(encode_frame(exact)) == [exact]
    assert decoder.feed(encode_frame([6, 1]) + (101).to_bytes(4, "big")) == [[6, 1]]
    assert isinstance(decoder.error, TooLarge)
    assert decoder.pending_bytes == 0


def test_an_array_above_its_limit() -> None:
    decoder = FrameDecoder(array_items_max=10)
    assert decoder.feed(encode_frame([1, list(range(10))])) == [[1, list(range(10))]]
    assert decoder.feed(encode_frame([1, list(range(11))])) == []
    assert isinstance(decoder.error, ProtocolViolation)


def test_encoding_refuses_what_the_peer_would() -> None:
    with pytest.raises(TooLarge):
        encode_frame([1, b"x" * 97], frame_bytes_max=100)


@pytest.mark.parametrize("size", [1, 3, 1_000])
def test_a_stranger_gets_one_frame_at_a_time_within_tighter_limits(size: int) -> None:
    greeting, more = [1, "hello"], [2, list(range(500))]
    data = encode_frame(greeting) + encode_frame(more) + encode_frame(greeting)
    decoder = FrameDecoder()
    decoder.greet(20, 4)
    messages: list[list[Any]] = []
    for start in range(0, len(data), size):
        messages += decoder.feed(data[start : start + size])
        if messages and decoder.greeting:
            assert messages == [greeting]
            messages += decoder.go_on(10_000, 1_000)
    assert messages == [greeting, more, greeting]
    assert decoder.pending_bytes == 0


@pytest.mark.parametrize("bad", [[1, "x" * 20], [1, [0] * 5]], ids=["long", "many"])
def test_what_is_too_large_for_a_greeting_is_an_error(bad: list[Any]) -> None:
    decoder = FrameDecoder()
    decoder.greet(20, 4)
    assert decoder.feed(encode_frame(bad) + encode_frame([6, 1])) == []
    assert isinstance(decoder.error, ProtocolViolation | TooLarge)
    assert decoder.pending_bytes == 0


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=80)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=12,
)
a_message = st.builds(
    lambda kind, rest: [kind, *rest], st.integers(0, 255), st.lists(values, max_size=5)
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(bounds)]


@given(st.lists(a_message, max_size=5), st.lists(st.integers(0, 600), max_size=10))
def test_round_trip_in_any_pieces(messages: list[list[Any]], places: list[int]) -> None:
    data = b"".join(map(encode_frame, messages))
    decoder = FrameDecoder()
    decoded = [m for piece in cut(data, places) for m in decoder.feed(piece)]
    assert decoded == messages
    assert decoder.error is None
    assert decoder.pending_bytes == 0


def feed_until_error(pieces: list[bytes]) -> tuple[list[list[Any]], ImError | None]:
    decoder = FrameDecoder(frame_bytes_max=4_096, array_items_max=256)
    messages = []
    for piece in pieces:
        messages += decoder.feed(piece)
        if decoder.error is not None:
            break
    return messages, decoder.error


noise = st.lists(
    st.binary(max_size=60)
    | st.binary(max_size=60).map(raw_frame)
    | st.binary(max_size=20).map(lambda data: raw_frame(b"\x93\x01" + data))
    | a_message.map(encode_frame),
    max_size=6,
).map(b"".join)


@given(noise, st.lists(st.integers(0, 400), max_size=8))
def test_noise_gives_the_same_messages_and_error_in_any_pieces(
    data: bytes, places: list[int]
) -> None:
    whole, error = feed_until_error([data])
    pieces, error_of_pieces = feed_until_error(cut(data, places))
    assert pieces == whole
    assert type(error_of_pieces) is type(error)
    assert error is None or isinstance(error, ImError)
