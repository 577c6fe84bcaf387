"""A few seconds of what ``python -m tests.fuzz`` does for as long as one likes."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from im_actors.errors import ImError
from im_actors.wire.codec import FrameDecoder
from im_actors.wire.limits import CLIENT_ARRAY_ITEMS_MAX
from tests.fuzz import corpus
from tests.fuzz.__main__ import CORPORA, input_of
from tests.fuzz.mutate import frame_of
from tests.fuzz.targets import TARGETS

targets = pytest.mark.parametrize("target", TARGETS)
NESTING_MAX = 1_024
"""msgpack's own bound."""
POINTER_BYTES = 8

ODD = st.sampled_from(corpus.ODD_VALUES)
FRAMES = st.sampled_from([frame for frame in corpus.all_frames() if len(frame) < 400])


@st.composite
def a_message_with_odd_fields(draw: st.DrawFn) -> bytes:
    """A good message of which some fields hold what they should not."""
    message = list(draw(st.sampled_from([m for group in CORPORA.values() for m in group])))
    for at in draw(st.lists(st.integers(0, len(message)), max_size=2)):
        message[at : at + draw(st.integers(0, 1))] = [draw(ODD)]
    return frame_of(message)


@st.composite
def a_frame_with_odd_bytes(draw: st.DrawFn) -> bytes:
    frame = bytearray(draw(FRAMES))
    for at, count, by in draw(
        st.lists(
            st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=6)), max_size=3
        )
    ):
        frame[at : at + count] = by
    return bytes(frame)


streams = st.lists(
    FRAMES | a_message_with_odd_fields() | a_frame_with_odd_bytes() | st.binary(max_size=40),
    max_size=4,
).map(b"".join)


@targets
@settings(max_examples=40)
@given(data=streams)
def test_nothing_but_our_errors(target: str, data: bytes) -> None:
    TARGETS[target](data)


@targets
def test_the_mutations_of_the_long_run(target: str) -> None:
    first = random.SystemRandom().randrange(10**9)
    for seed in range(first, first + 150):
        try:
            TARGETS[target](input_of(target, seed))
        except Exception as error:
            error.add_note(f"python -m tests.fuzz --own --target {target} --seed {seed}")
            raise


@targets
@pytest.mark.parametrize("bomb", corpus.BOMBS.values(), ids=corpus.BOMBS)
def test_bombs(target: str, bomb: bytes) -> None:
    TARGETS[target](bomb)
    TARGETS[target](corpus.all_frames()[0] + bomb)


@pytest.mark.parametrize("size", [61, 1 << 20], ids=["in pieces", "whole"])
@pytest.mark.parametrize("bomb", corpus.BOMBS.values(), ids=corpus.BOMBS)
def test_a_bomb_takes_no_more_than_the_limits_say(bomb: bytes, size: int) -> None:
    """What is claimed and not there costs nothing but the places of one array per level."""
    parts = [bomb[at : at + size] for at in range(0, len(bomb), size)]
    tracemalloc.start()
    try:
        kept = _fed(parts)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    levels = min(NESTING_MAX, len(bomb) // 3)
    claimed = levels * CLIENT_ARRAY_ITEMS_MAX * POINTER_BYTES if b"\xdc\x20\x00" in bomb else 0
    assert peak <= claimed + 100 * len(bomb) + 200_000
    assert all(isinstance(message, list) for message in kept)


def _fed(parts: list[bytes]) -> list[list[Any]]:
    decoder = FrameDecoder(1 << 20, CLIENT_ARRAY_ITEMS_MAX)
    found: list[list[Any]] = []
    for part in parts:
        found += decoder.feed(part)
        if decoder.error is not None:
            assert isinstance(decoder.error, ImError)
            assert decoder.pending_bytes == 0
            break
    return found
