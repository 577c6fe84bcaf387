"""The shell of a replica: what it does with its files between two lives of a slot."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from im_actors.core import replica as rep
from im_actors.core.messages import Append, Drop, Prepare, Seal
from im_actors.core.model import (
    Event,
    Member,
    View,
    decode_event,
    encode_event,
    epoch_start,
    make_key,
    make_record,
)
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
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.001)


async def started(path: Path, failures: list[Exception], **config: Any) -> ReplicaNode:
    rng = random.Random(1)
    node = ReplicaNode(
        "r", "h", path, "c", 8, b"s" * 16, rng, failures.append, ReplicaConfig(**config)
    )
    await node.start("127.0.0.1")
    return node


def ask(node: ReplicaNode, requests: list[Any]) -> None:
    for request in requests:
        node._handle(rep.Asked(Peer(), request))


def append(epoch: int, lsn: int, *seqs: int) -> Append:
    """The next record of the slot, with events of one session; it commits the one before."""
    key = make_key(1_700_000_000_000 + lsn, SLOT, 0)
    events = [
        encode_event(Event("s", seq, key + index, 1, "u/d", seq, b"%d" % epoch))
        for index, seq in enumerate(seqs, start=1)
    ]
    record = make_record(SLOT, lsn, epoch, events)
    return Append(SLOT, epoch, lsn - 1, epoch, lsn - 1, (record,))


def commit(epoch: int, lsn: int) -> Append:
    return Append(SLOT, epoch, lsn, epoch, lsn, ())


async def page(node: ReplicaNode) -> tuple[int, list[int]]:
    head, events = await node._reads.page(SLOT, "s", 0, 0, 100, 0)
    return head, [decode_event(event).seq for event in events]


async def test_a_read_sees_what_is_committed_without_a_transaction(tmp_path: Path) -> None:
    failures: list[Exception] = []
    node = await started(tmp_path, failures, apply_every_ms=3_600_000)
    ask(node, [*life(1, 1), append(1, 2, 1, 2), append(1, 3, 3)])
    await until(lambda: node._queue.backlog() == 3)
    assert await page(node) == (2, [1, 2])
    ask(node, [append(1, 4, 4, 5), commit(1, 4)])
    await until(lambda: node._queue.backlog() == 4)
    for _ in range(2):
        assert await page(node) == (5, [1, 2, 3, 4, 5])
    assert node.machine.logs[SLOT].applied_lsn == 0
    assert node._storage.history.applied() == {}
    # What a read has brought in is durable with the next transaction, and then forgotten.
    node._apply()
    await until(lambda: node.machine.logs[SLOT].applied_lsn == 4)
    assert node._storage.history.applied() == {SLOT: 4}
    assert node._queue.backlog() == 0
    assert await page(node) == (5, [1, 2, 3, 4, 5])
    await node.stop()
    assert not failures


async def test_what_only_a_read_has_seen_is_there_after_a_crash(tmp_path: Path) -> None:
    failures: list[Exception] = []
    node = await started(tmp_path, failures, apply_every_ms=3_600_000)
    ask(node, [*life(1, 1), append(1, 2, 1, 2), append(1, 3, 3)])
    await until(lambda: node._queue.backlog() == 3)
    assert await page(node) == (2, [1, 2])
    await node.crash()
    node = await started(tmp_path, failures, apply_every_ms=3_600_000)
    assert await page(node) == (2, [1, 2])
    ask(node, [commit(1, 3)])
    await until(lambda: node._queue.ready)
    assert await page(node) == (3, [1, 2, 3])
    await node.stop()
    assert not failures


async def test_a_slot_that_begins_anew_does_not_show_what_a_read_had_brought_in(
    tmp_path: Path,
) -> None:
    failures: list[Exception] = []
    node = await started(tmp_path, failures, apply_every_ms=3_600_000)
    ask(node, [*life(1, 1), append(1, 2, 1, 2), append(1, 3, 3), commit(1, 3)])
    await until(lambda: node._queue.backlog() == 3)
    assert await page(node) == (3, [1, 2, 3])
    ask(node, [Drop(SLOT, 1, View(SLOT, 1, 1, "o1", ELSEWHERE))])
    await until(lambda: node.machine.logs[SLOT].dropping is None)
    ask(node, [*life(2, 2), append(2, 2, 1), commit(2, 2)])
    await until(lambda: node._queue.backlog() == 2)
    assert await page(node) == (1, [1])
    node._apply()
    await until(lambda: node.machine.logs[SLOT].applied_lsn == 2)
    assert node._queue.backlog() == 0
    assert await page(node) == (1, [1])
    await node.stop()
    assert not failures


async def test_a_slot_that_begins_anew_is_not_trimmed_by_its_past(tmp_path: Path) -> None:
    failures: list[Exception] = []
    node = await started(tmp_path, failures, apply_every_ms=1, trim_every_ms=3_600_000)
    ask(node, [*life(1, 1), Append(SLOT, 1, 1, 1, 1, ())])
    await until(lambda: node._storage.history.applied() == {SLOT: 1} and not node._applying)
    ask(node, [Drop(SLOT, 1, View(SLOT, 1, 1, "o1", ELSEWHERE))])
    await until(lambda: node.machine.logs[SLOT].dropping is None)
    ask(node, life(2, 2))
    await until(lambda: node._storage.journal.lsns(SLOT) == [1] and not node._writing)
    node._trim()
    await asyncio.gather(*node._tasks)
    assert node._storage.journal.lsns(SLOT) == [1]
    await node.stop()
    assert not failures


async def test_a_slot_that_leaves_during_a_report_is_not_missed_in_it(tmp_path: Path) -> None:
    failures: list[Exception] = []
    node = await started(tmp_path, failures)
    ask(node, [*life(1, 1), append(1, 2, 1, 2), commit(1, 2)])
    await until(lambda: node.machine.logs[SLOT].applied_lsn == 2)
    assert [slot["records"] for slot in (await node.report())["slots"]] == [2]
    report = asyncio.ensure_future(node.report())
    await asyncio.sleep(0)  # It has looked at what should be here, and has not seen the files.
    ask(node, [Drop(SLOT, 1, View(SLOT, 1, 1, "o1", ELSEWHERE))])
    assert (await report)["slots"] == []
    await until(lambda: node.machine.logs[SLOT].dropping is None)
    assert [slot["missing"] for slot in (await node.report())["slots"]] in ([], [[]])
    await node.stop()
    assert not failures


async def test_what_is_staged_in_parts_is_trimmed_in_parts_of_a_bounded_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("im_actors.server.replica.TRIMS_MAX", 2)
    never = 3_600_000
    failures: list[Exception] = []
    node = await started(
        tmp_path, failures, apply_every_ms=never, stage_every_ms=never, trim_every_ms=never
    )
    ask(node, life(1, 1))
    for lsn in range(2, 6):
        ask(node, [append(1, lsn, lsn - 1), commit(1, lsn)])
        await until(lambda lsn=lsn: node._queue.backlog() == lsn)
        node._stage()
    assert node._storage.history.applied() == {}
    node._apply()
    await until(lambda: node.machine.logs[SLOT].applied_lsn == 5)
    assert [upto[SLOT] for upto in node._trims] == [2, 5]
    assert node._storage.journal.lsns(SLOT) == [1, 2, 3, 4, 5]
    node._trim()
    await asyncio.gather(*node._tasks)
    assert node._storage.journal.lsns(SLOT) == [3, 4, 5]
    await node.stop()
    assert not failures


async def test_more_than_enough_waiting_lets_history_go_on_without_rests(tmp_path: Path) -> None:
    never = 3_600_000
    failures: list[Exception] = []
    node = await started(
        tmp_path, failures, apply_every_ms=never, stage_every_ms=never, apply_bytes=1
    )
    node._applying = True
    ask(node, [*life(1, 1), append(1, 2, 1), commit(1, 2)])
    await until(lambda: node._hurried)
    assert node._storage.pacer._hurry.is_set()
    node._applying = False
    node._apply_soon()
    await until(lambda: node.machine.logs[SLOT].applied_lsn == 2)
    assert not node._hurried
    assert not node._storage.pacer._hurry.is_set()
    await node.stop()
    assert not failures
