"""A replica's files and the two threads that use them: one for the journal, one for the history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TypeVar

from im_actors.core.formats import FORMATS, Formats
from im_actors.core.model import Record
from im_actors.core.replica import SlotLog, drop_unfinished, log_from_disk
from im_actors.core.storage_ops import StorageOp
from im_actors.errors import CorruptData, DiskFailed
from im_actors.server.threads import name_thread
from im_actors.storage.directory import DataDirectory, open_directory
from im_actors.storage.history import History
from im_actors.storage.journal import Journal, RecordHead
from im_actors.storage.steps import Pacer

FREE_BYTES_MIN = 8 * 1024 * 1024
LOAD_BYTES_MAX = 8 * 1024 * 1024

T = TypeVar("T")


class ReplicaStorage:
    """The open data directory. Calls on the history have one thread; so have
    those on the journal, but for ``try_commit``."""

    def __init__(
        self,
        path: Path,
        cluster: str,
        replica: str,
        form: int = FORMATS.newest,
        formats: Formats = FORMATS,
    ) -> None:
        self.path = path
        self._form = form
        self._formats = formats
        self._cluster = cluster
        self._replica = replica
        self.journal_thread = _one_thread(replica, "journal")
        self.history_thread = _one_thread(replica, "history")
        self.pacer = Pacer()
        self.journal_lock = Lock()
        """Held by whoever uses the journal: its thread, or the event loop for a small commit."""
        self.data: DataDirectory
        self.journal: Journal
        self.history: History

    async def open(self) -> tuple[dict[int, SlotLog], list[tuple[int, Record]]]:
        """The logs as they are on disk, and the records that history does not have yet.

        Corrupt data is put aside and the directory comes back as a new, empty disk: what it held
        is unknown, never taken for absent, and the other replicas fill it.
        """
        self.data = await self.in_journal(self._open_directory)
        try:
            return await self._load()
        except CorruptData as error:
            await self.quarantine(str(error))
            return await self._load()

    def _open_directory(self) -> DataDirectory:
        data = open_directory(self.path, self._cluster, self._replica, self._form, self._formats)
        free = data.free_bytes()
        if free < FREE_BYTES_MIN:
            data.close()
            raise DiskFailed(
                f"{self.path}: only {free} bytes are free, at least {FREE_BYTES_MIN} are needed:"
                " make room; the replica comes back by itself"
            )
        return data

    async def _load(self) -> tuple[dict[int, SlotLog], list[tuple[int, Record]]]:
        self.history = await self.in_history(self.data.open_history)
        self.history.rest = self.pacer.rest
        self.journal = await self.in_journal(self.data.open_journal)
        images = await self.in_journal(self.journal.load)
        for slot, applied in list((await self.in_history(self.history.applied)).items()):
            image = images.get(slot)
            if applied and drop_unfinished(image.meta if image else None):
                await self.in_history(self.history.drop, slot)
        applied_lsns = await self.in_history(self.history.applied)
        logs: dict[int, SlotLog] = {}
        waiting: list[tuple[int, Record]] = []
        for slot, image in images.items():
            applied, has = applied_lsns.get(slot, 0), partial(self.history.has, slot)
            logs[slot] = await self.in_history(
                log_from_disk, slot, image.meta, image.records, applied, has
            )
            records = await self.in_journal(self._read_all, slot, image.records)
            waiting += [(slot, record) for record in records]
        return logs, waiting

    def _read_all(self, slot: int, heads: list[RecordHead]) -> list[Record]:
        found: list[Record] = []
        remaining = [head.lsn for head in heads]
        while remaining:
            run = self.journal.read(slot, remaining[0], remaining[-1], LOAD_BYTES_MAX)
            if not run:
                raise CorruptData(f"{self.path}: slot {slot} lsn {remaining[0]} cannot be read")
            found += run
            remaining = [lsn for lsn in remaining if lsn > run[-1].lsn]
        return found

    async def quarantine(self, reason: str) -> Path:
        """Put journal and history aside; afterwards the disk is a new one."""

        def move() -> Path:
            return self.data.quarantine(reason)

        await self.in_history(lambda: None)
        return await self.in_journal(move)

    async def close(self) -> None:
        """Checkpoint and close everything; errors of a dying disk are not hidden."""
        try:
            if hasattr(self, "history"):
                await self.in_history(self.history.close)
            if hasattr(self, "journal"):
                await self.in_journal(self.journal.close)
        finally:
            if hasattr(self, "data"):
                self.data.close()
            self.journal_thread.shutdown(wait=True)
            self.history_thread.shutdown(wait=True)

    async def abandon(self) -> None:
        """Let go of everything after a failure."""
        if hasattr(self, "history"):
            await self.in_history(self.history.abandon)
        if hasattr(self, "journal"):
            await self.in_journal(self.journal.abandon)
        if hasattr(self, "data"):
            self.data.close()
        self.journal_thread.shutdown(wait=True)
        self.history_thread.shutdown(wait=True)

    def try_commit(self, ops: list[StorageOp]) -> bool:
        """Commit in the calling thread, unless another one is using the journal."""
        if not self.journal_lock.acquire(blocking=False):
            return False
        try:
            self.journal.commit(ops)
        finally:
            self.journal_lock.release()
        return True

    def commit(self, ops: list[StorageOp]) -> None:
        """Commit as soon as nobody else uses the journal; called in its thread."""
        with self.journal_lock:
            self.journal.commit(ops)

    async def in_journal(self, call: Callable[..., T], *args: object) -> T:
        def locked() -> T:
            with self.journal_lock:
                return call(*args)

        return await asyncio.get_running_loop().run_in_executor(self.journal_thread, locked)

    async def in_history(self, call: Callable[..., T], *args: object) -> T:
        """Somebody waits for the outcome, so what the thread does before goes on without a rest."""
        self.pacer.hurry()
        try:
            return await self.in_history_gently(call, *args)
        finally:
            self.pacer.relax()

    def in_history_gently(self, call: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """In small steps with rests, as long as nobody waits for the thread."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self.history_thread, call, *args)


def _one_thread(replica: str, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(
        1, thread_name_prefix=f"{replica}-{name}", initializer=name_thread, initargs=(name,)
    )
