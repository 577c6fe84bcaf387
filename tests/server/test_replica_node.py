"""The shell of a replica: what it does with its files between two lives of a slot."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from im_actors.core import replica as rep
from im_actors.core.messages import Append, Drop, Prepare, Seal
from im_actors.core.model import Member, View, epoch_start, make_key
from im_actors.server.replica import ReplicaConfig, ReplicaNode

SLOT = 3
ELSEWHERE = tuple(Member(f"r{n}", f"d{n}") for n in (2, 3, 4))


def life(epoch: int, key: int) -> list[Any]:
    """An owner begins the slot from nothing and appends one record."""
    view = View(SLOT, epoch, 0, f"o{epoch}", ELSEWHERE)
    record = epoch_start(SLOT, 1, epoch, make_key(1_700_000_000_000 + key, SLOT, 0))
    return [
        Seal(SLOT, epoch, view),
        Prepare(SLOT, epoch, 0, 1, ()),
        Append(SLOT, epoch, 0, 0, 0, (record,)),
    ]


class Peer:
    """Where answers go; nobody reads them."""

    def send(self, frame: bytes) -> None:
        pass

    send_now = send


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not done():
            await asyncio.sleep(0.001)


async def test_a_slot_that_begins_anew_is_not_trimmed_by_its_past(tmp_path: Path) -> None:
    config = ReplicaConfig(apply_every_ms=1)
    failures: list[Exception] = []
    rng = random.Random(1)
    node = ReplicaNode("r", "h", tmp_path, "c", 8, b"s" * 16, rng, failures.append, config)
    await node.start("127.0.0.1")
    node._trim_due = float("inf")

    def ask(requests: list[Any]) -> None:
        for request in requests:
            node._handle(rep.Asked(Peer(), request))

    ask([*life(1, 1), Append(SLOT, 1, 1, 1, 1, ())])
    await until(lambda: node._storage.history.applied() == {SLOT: 1} and not node._applying)
    ask([Drop(SLOT, 1, View(SLOT, 1, 1, "o1", ELSEWHERE))])
    await until(lambda: node.machine.logs[SLOT].dropping is None)
    ask(life(2, 2))
    await until(lambda: node._storage.journal.lsns(SLOT) == [1] and not node._writing)
    node._trim_due = 0
    node._trim_if_due()
    await asyncio.gather(*node._tasks)
    assert node._storage.journal.lsns(SLOT) == [1]
    await node.stop()
    assert not failures
