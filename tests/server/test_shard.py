"""The shell of a shard, by itself."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgpack

from im_actors.core.model import EventKind, View, slot_of
from im_actors.core.names import mailbox_of
from im_actors.core.rules import SERVER
from im_actors.errors import Forbidden, SlotMoving
from im_actors.server.shard import ShardNode
from im_actors.wire.links import InsideType


class NoViews:
    """A view store that never answers."""

    async def read(self, slot: int) -> View | None:
        await asyncio.Event().wait()

    async def swap(self, old: View, new: View) -> View:
        await asyncio.Event().wait()
        return new


async def test_a_stopped_shard_starts_no_timer_for_what_it_was_about_to_send() -> None:
    """A timer would wake its owners, and they would try to take their slots back."""
    node = ShardNode("shard-1", 4, bytes(16), NoViews(), random.Random(1), lambda view: None)
    await node.start("127.0.0.1")
    node.take([0], "test")
    await node.crash()
    for _ in range(5):
        await asyncio.sleep(0)
    assert node._timer is None
    assert node._hold_timer is None


class Gateway:
    """A link to a gateway, and what went out on it."""

    is_open = True

    def __init__(self) -> None:
        self.frames: list[Any] = []

    def send_now(self, data: bytes) -> None:
        decoder = msgpack.Unpacker()
        while data:
            size = int.from_bytes(data[:4], "big")
            decoder.feed(data[4 : 4 + size])
            self.frames.append(decoder.unpack())
            data = data[4 + size :]


async def test_notes_come_by_relay_and_by_nothing_else() -> None:
    node = ShardNode("shard-1", 4, bytes(16), NoViews(), random.Random(1), lambda view: None)
    await node.start("127.0.0.1")
    gateway: Any = Gateway()
    session, kind = mailbox_of("alice"), int(EventKind.NOTE)
    row = [1, slot_of(session, 4), session, SERVER, 0, kind, b"note"]
    node._frames(gateway, [[InsideType.SUBMIT, [row]], [InsideType.RELAY, [[2, session, b"note"]]]])
    while len(gateway.frames) < 2:
        await asyncio.sleep(0)
    await node.crash()
    # The slot has no owner here, so the note is to be told again.
    assert sorted(gateway.frames, key=lambda frame: frame[0]) == [
        [InsideType.RESULTS, [[1, Forbidden.code, 0, 0, 0, 0]]],
        [InsideType.RELAYED, [[2, SlotMoving.code]]],
    ]
    assert node.acked == 0
