"""Mutations of messages and of bytes, from a seed."""

from __future__ import annotations

import copy
import random
from typing import Any

import msgpack

from tests.fuzz.corpus import ODD_VALUES, framed

ODD_BYTES = bytes([0, 1, 0x7F, 0x80, 0x90, 0x91, 0xA1, *range(0xC0, 0xE0), 0xFF])
"""Among them every byte that begins something in msgpack."""


def frame_of(message: Any) -> bytes:
    """A frame, whatever it holds."""
    return framed(msgpack.packb(message))


def mutated_message(rng: random.Random, message: list[Any]) -> list[Any]:
    """The message with one to three things wrong with it, or none of them."""
    wrong = copy.deepcopy(message)
    for number in range(rng.choice((0, 1, 1, 1, 2, 3))):
        place = _any_list(rng, wrong)
        # Many copies of many copies of many copies would be more than a length can say.
        _change(rng, place, most_copies=1_001 if number == 0 else 2)
    return wrong


def _any_list(rng: random.Random, value: list[Any]) -> list[Any]:
    """The message or one of the lists in it, the lower ones as likely as the upper ones."""
    lists = [value]
    while inner := [item for item in lists[-1] if type(item) is list and item]:
        lists.append(rng.choice(inner))
        if len(lists) > 6:
            break
    return rng.choice(lists)


def _change(rng: random.Random, place: list[Any], most_copies: int) -> None:
    if not place:
        place.append(_odd(rng))
        return
    at = rng.randrange(len(place))
    match rng.randrange(6):
        case 0:
            del place[at]
        case 1:
            place.insert(at, _odd(rng))
        case 2:
            place[at:at] = [place[at]] * min(most_copies, rng.choice((1, 2, 130, 1_001)))
        case 3 if type(place[at]) is int:
            moved = place[at] + rng.choice((-1, 1, 64, 128))
            place[at] = max(-(2**63), min(2**64 - 1, moved))
        case _:
            place[at] = _odd(rng)


def _odd(rng: random.Random) -> Any:
    # A copy: what is put into a message may be changed in its turn.
    return copy.deepcopy(rng.choice(ODD_VALUES))


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """The bytes with a few changes at random places."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.choice(ODD_BYTES)
            case 2:
                out[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                del out[at : at + rng.randint(1, 8)]
            case 4:
                start = rng.randrange(len(out) + 1)
                out[at:at] = out[start : start + rng.randint(1, 40)]
            case _:
                # A header that says something else than the truth.
                out[:4] = rng.choice((0, 1, len(out), 2**20, 2**20 + 1, 2**32 - 1)).to_bytes(
                    4, "big"
                )
    return bytes(out)


def mutated_frame(rng: random.Random, corpus: list[list[Any]]) -> bytes:
    """A frame that is good, wrong in a field, or wrong in its bytes."""
    message = rng.choice(corpus)
    if rng.random() < 0.5:
        return frame_of(mutated_message(rng, message))
    return mutated_bytes(rng, frame_of(message))


def mutated_stream(rng: random.Random, corpus: list[list[Any]]) -> bytes:
    """What one connection may carry: mostly wrong frames, sometimes pure noise."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randint(0, 300))
    return b"".join(mutated_frame(rng, corpus) for _ in range(rng.randint(1, 6)))
