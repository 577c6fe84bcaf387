"""What a replica's shell owes to its machine: nothing leaves before it is on disk (design 5.6)."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from im_actors.core import replica as rep
from im_actors.core.messages import Append, Appended, Seal, Sealed
from im_actors.core.model import Member, View, ViewState, epoch_start
from im_actors.errors import DiskFailed, ImError
from im_actors.server.replica import ReplicaNode
from im_actors.storage.journal import Journal
from im_actors.wire.links import InsideType, read_inside

SLOT, EPOCH = 3, 1
WAIT_S = 60
"""Longest wait for what has to come."""


class Peer:
    """Stands for the connection that the answers leave on."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.came = asyncio.Event()

    def send(self, frame: bytes) -> None:
        kind, rows = msgpack.unpackb(frame[4:])
        assert kind == InsideType.ANSWERS
        self.answers += read_inside(rows)
        self.came.set()

    send_now = send

    async def received(self, count: int) -> list[type]:
        async with asyncio.timeout(WAIT_S):
            while len(self.answers) < count:
                self.came.clear()
                await self.came.wait()
        return [type(answer) for answer in self.answers]


class Gate:
    """A journal whose commits wait to be let through, and may fail then."""

    def __init__(self, journal: Journal) -> None:
        self._commit = journal.commit
        self.began = threading.Event()
        self.open = threading.Event()
        self.error: ImError | None = None
        self.commits = 0

    def commit(self, ops: Sequence[Any]) -> None:
        self.commits += 1
        self.began.set()
        assert self.open.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        self._commit(ops)


class Shell:
    def __init__(self, path: Path) -> None:
        self.failures: list[ImError] = []
        self.failed = asyncio.Event()
        self.node = ReplicaNode(
            "r1", "host", path, "cluster", 8, bytes(16), random.Random(1), self._fatal
        )
        self.peer = Peer()

    def _fatal(self, error: ImError) -> None:
        self.failures.append(error)
        self.failed.set()

    async def start(self) -> None:
        await self.node.start("127.0.0.1")
        members = (Member("r1", self.node.disk), Member("r2", "d2"), Member("r3", "d3"))
        self.view = View(SLOT, EPOCH, ViewState.RECOVERING, "owner", members)
        self.gate = Gate(self.node._storage.journal)
        self.node._storage.journal.commit = self.gate.commit  # type: ignore[method-assign]

    def ask(self, request: Any) -> None:
        self.node._handle(rep.Asked(self.peer, request))

    async def commit_began(self) -> None:
        """The write is under way, and everything that could leave without it has left."""
        await asyncio.to_thread(self.gate.began.wait, WAIT_S)
        for _ in range(10):
            await asyncio.sleep(0)


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    shell = Shell(tmp_path / "r1")
    await shell.start()
    yield shell
    shell.gate.open.set()
    await shell.node.crash()


async def test_an_answer_waits_for_its_own_write(shell: Shell) -> None:
    shell.ask(Seal(SLOT, EPOCH, shell.view))
    await shell.commit_began()
    assert shell.peer.answers == []
    shell.gate.open.set()
    assert await shell.peer.received(1) == [Sealed]


async def test_what_came_during_a_write_waits_for_the_next_one(shell: Shell) -> None:
    shell.ask(Seal(SLOT, EPOCH, shell.view))
    await shell.commit_began()
    shell.ask(Append(SLOT, EPOCH, 0, 0, 0, (epoch_start(SLOT, 1, EPOCH, 7),)))
    shell.ask(Append(SLOT, EPOCH, 1, EPOCH, 0, ()))
    for _ in range(10):
        await asyncio.sleep(0)
    assert shell.peer.answers == []
    shell.gate.open.set()
    assert await shell.peer.received(3) == [Sealed, Appended, Appended]
    assert shell.gate.commits == 2, "what came meanwhile is one transaction"


async def test_after_a_failed_write_nothing_leaves_and_nothing_is_tried_again(shell: Shell) -> None:
    shell.gate.error = DiskFailed("no more")
    shell.ask(Seal(SLOT, EPOCH, shell.view))
    shell.gate.open.set()
    async with asyncio.timeout(WAIT_S):
        await shell.failed.wait()
    shell.ask(Seal(SLOT, EPOCH, shell.view))
    for _ in range(10):
        await asyncio.sleep(0)
    assert shell.failures == [shell.gate.error]
    assert shell.peer.answers == []
    assert shell.gate.commits == 1


async def sealed(shell: Shell) -> None:
    """The promise and the first record of the epoch are on disk."""
    shell.gate.open.set()
    shell.ask(Seal(SLOT, EPOCH, shell.view))
    shell.ask(small_append(1))
    await shell.peer.received(2)
    shell.peer.answers.clear()
    shell.gate.commits = 0


def small_append(lsn: int) -> Append:
    record = epoch_start(SLOT, lsn, EPOCH, 7)
    return Append(SLOT, EPOCH, lsn - 1, EPOCH if lsn > 1 else 0, 0, (record,))


async def test_a_small_commit_needs_no_thread(shell: Shell) -> None:
    await sealed(shell)
    shell.ask(small_append(2))
    shell.node._flush()
    assert shell.gate.commits == 1
    assert await shell.peer.received(1) == [Appended]


async def test_a_small_commit_waits_for_whoever_uses_the_journal(shell: Shell) -> None:
    await sealed(shell)
    storage, leave = shell.node._storage, threading.Event()
    other = asyncio.create_task(storage.in_journal(leave.wait, WAIT_S))
    async with asyncio.timeout(WAIT_S):
        while not storage.journal_lock.locked():
            await asyncio.sleep(0)
    shell.ask(small_append(2))
    shell.node._flush()
    assert shell.gate.commits == 0
    assert shell.peer.answers == []
    leave.set()
    assert await shell.peer.received(1) == [Appended]
    assert await other


async def test_a_slow_disk_does_not_hold_up_the_loop_twice(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sealed(shell)
    now = [100.0]
    # Not the module's own function: the clock of all that runs here counts with it, too.
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    monkeypatch.setattr("im_actors.server.replica.time", clock)

    def slow(ops: Sequence[Any]) -> None:
        now[0] += 0.5
        threads.append(threading.current_thread())

    threads: list[threading.Thread] = []
    shell.node._storage.journal.commit = slow  # type: ignore[method-assign]
    for lsn in (2, 3):
        shell.ask(small_append(lsn))
        shell.node._flush()
        await shell.peer.received(lsn - 1)
    assert threads[0] is threading.current_thread()
    assert threads[1] is not threading.current_thread()


async def test_a_failed_small_commit_ends_the_replica_too(shell: Shell) -> None:
    await sealed(shell)
    shell.gate.error = DiskFailed("no more")
    shell.ask(small_append(2))
    shell.node._flush()
    assert shell.peer.answers == []
    async with asyncio.timeout(WAIT_S):
        await shell.failed.wait()
    assert shell.failures == [shell.gate.error]
    assert shell.peer.answers == []
