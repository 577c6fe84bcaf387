"""A gateway hands notes of shards on to the shards that serve their sessions."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from im_actors.errors import Overloaded, SlotMoving
from im_actors.gateway import relays as module
from im_actors.gateway.relays import FORGET_MS, Relays
from im_actors.wire.links import InsideType

SLOTS = {"user:a": 0, "user:b": 1, "user:c": 2}


class FakeShard:
    def __init__(self, up: bool = True) -> None:
        self.up = up
        self.frames: list[Any] = []

    def send_now(self, frame: bytes) -> bool:
        self.frames.append(msgpack.unpackb(frame[4:]))
        return True

    def take(self) -> list[Any]:
        taken, self.frames = self.frames, []
        return taken


class FakePeers:
    def __init__(self, *routes: FakeShard | None) -> None:
        self.routes = list(routes)
        self.slots = len(routes)

    def slot_of(self, session: str) -> int:
        return SLOTS[session]


def setting(*routes: FakeShard | None) -> tuple[Any, FakeShard]:
    return Relays(FakePeers(*routes)), FakeShard()  # type: ignore[arg-type]


def row(token: int, session: str) -> tuple[int, str, bytes]:
    return token, session, b"note %d" % token


def test_notes_go_to_the_shards_of_their_slots_and_the_answers_come_back() -> None:
    one, other = FakeShard(), FakeShard()
    relays, teller = setting(one, other, one)
    rows = [row(7, "user:a"), row(8, "user:b"), row(9, "user:c")]
    relays.asked(teller, rows, 0)
    ((kind, to_one),) = one.take()
    ((_, to_other),) = other.take()
    assert kind == InsideType.RELAY
    assert [r[1:] for r in to_one] == [["user:a", b"note 7"], ["user:c", b"note 9"]]
    assert [r[1:] for r in to_other] == [["user:b", b"note 8"]]
    relays.answered([[to_one[0][0], 0], [to_one[1][0], 5], [999, 0]])
    relays.answered([[to_other[0][0], 0]])
    assert teller.take() == [
        [InsideType.RELAYED, [[7, 0], [9, 5]]],
        [InsideType.RELAYED, [[8, 0]]],
    ]
    assert len(relays) == 0


def test_tokens_of_two_shards_are_not_mixed_up() -> None:
    hearer, second = FakeShard(), FakeShard()
    relays, first = setting(hearer)
    relays.asked(first, [row(1, "user:a")], 0)
    relays.asked(second, [row(1, "user:a")], 0)
    numbers = [rows[0][0] for _, rows in hearer.take()]
    relays.answered([[numbers[1], 0]])
    assert (first.take(), len(second.take())) == ([], 1)


@pytest.mark.parametrize("routes", [(), (None,), (FakeShard(up=False),)])
def test_what_cannot_be_handed_on_is_answered_at_once(routes: tuple[FakeShard | None]) -> None:
    relays, teller = setting(*routes)
    relays.asked(teller, [row(1, "user:a")], 0)
    assert teller.take() == [[InsideType.RELAYED, [[1, SlotMoving.code]]]]


def test_so_many_are_on_their_way_and_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RELAYS_MAX", 1)
    relays, teller = setting(FakeShard())
    relays.asked(teller, [row(1, "user:a"), row(2, "user:a")], 0)
    assert teller.take() == [[InsideType.RELAYED, [[2, Overloaded.code]]]]


def test_a_lost_shard_leaves_nothing_behind() -> None:
    one, other = FakeShard(), FakeShard()
    relays, teller = setting(one, other)
    relays.asked(teller, [row(1, "user:a"), row(2, "user:b")], 0)
    relays.asked(one, [row(3, "user:b")], 0)
    relays.shard_down(one)
    assert teller.take() == [[InsideType.RELAYED, [[1, SlotMoving.code]]]]
    assert len(one.take()) == 1  # The note; nothing for its own one.
    assert len(relays) == 1


def test_what_is_not_answered_is_forgotten() -> None:
    relays, teller = setting(FakeShard())
    relays.asked(teller, [row(1, "user:a")], 0)
    relays.asked(teller, [row(2, "user:a")], 1)
    relays.tick(FORGET_MS)
    assert len(relays) == 1
    relays.tick(FORGET_MS + 1)
    assert len(relays) == 0
