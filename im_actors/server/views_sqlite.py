"""The views in an SQLite file of the controller: the default."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from im_actors.core.model import View
from im_actors.errors import (
    CorruptData,
    DiskFailed,
    ImError,
    ShuttingDown,
    Unknown,
    WrongDirectory,
)
from im_actors.server.views import (
    check_slot,
    check_swap,
    check_view,
    decode_view,
    encode_view,
    pack,
    store_lost,
    unpack,
    view_lost,
)
from im_actors.storage.database import Database, Format, fsync_directory

LOCK_WAIT_S = 5.0
"""How long a controller that was started again waits for the one before it to let go."""
LOCK_POLL_S = 0.02
WAL_BYTES_MAX = 1 << 20

FORMAT = Format(
    name="view store",
    version=1,
    schema=(
        "CREATE TABLE store(id INTEGER PRIMARY KEY CHECK(id = 1), record BLOB NOT NULL)",
        "CREATE TABLE views(slot INTEGER PRIMARY KEY, record BLOB NOT NULL)",
    ),
)

T = TypeVar("T")

Change = tuple[View | None, View]
"""(old, new); old is None for the first view of a slot."""


class SqliteViewStore:
    """A ViewStore in one file. What was answered is on disk: WAL, synchronous=FULL, one connection,
    one thread. Changes that come while one is being written are the next transaction together: a
    shard that takes over changes all of its slots at once, and an fsync for each would take longer
    than all the rest.

    A lock on ``<path>.lock`` lets one process in: a paused controller that wakes up while another
    one is running would otherwise compare against what it read before.
    """

    def __init__(self, path: Path, cluster: str, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.path = path
        self._cluster = cluster
        self._lock_wait_s = lock_wait_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="views")
        self._lock: int | None = None
        self._database: Database | None = None
        self._changes: deque[tuple[Change, Future[View]]] = deque()
        self._identity = ""
        self._closed = False

    @property
    def identity(self) -> str:
        return self._identity

    async def open(self, expected_identity: str | None = None) -> None:
        """Before anything else; the errors are those of ``open_view_store``."""
        try:
            await self._run(lambda: self._open(expected_identity))
        except BaseException:
            await self.close()
            raise

    async def read(self, slot: int) -> View | None:
        check_slot(slot)
        return await self._run(lambda: self._read(slot))

    async def read_all(self) -> dict[int, View]:
        return await self._run(self._read_all)

    async def create(self, view: View) -> View:
        check_view(view)
        return await self._change(None, view)

    async def swap(self, old: View, new: View) -> View:
        check_swap(old, new)
        return await self._change(old, new)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            closing = self._thread.submit(self._close)
            self._thread.shutdown(wait=False)
            await asyncio.wrap_future(closing)

    async def _run(self, call: Callable[[], T]) -> T:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _change(self, old: View | None, new: View) -> View:
        self._check_open()
        answer: Future[View] = Future()
        self._changes.append(((old, new), answer))
        # One of these calls takes all changes that wait, and the others find none.
        self._thread.submit(self._make_changes)
        return await asyncio.wrap_future(answer)

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDown(f"the view store {self.path} is closed")

    # -- in the thread -------------------------------------------------------------------------

    def _open(self, expected: str | None) -> None:
        with self._disk():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = take_lock(self.path, self._lock_wait_s)
            if expected is not None and not (self.path.exists() and self.path.stat().st_size):
                raise store_lost(str(self.path), self._cluster, expected, None)
            self._database = Database(self.path, FORMAT, create=expected is None)
            problems = self._database.structure_problems()
        if problems:
            raise CorruptData(f"{'; '.join(problems)}; {_REBUILD}")
        self._identity = self._read_identity() or self._make_identity()
        if expected not in (None, self._identity):
            assert expected is not None
            raise store_lost(str(self.path), self._cluster, expected, self._identity)

    def _read_identity(self) -> str | None:
        with self._disk():
            row = self._open_database.row("SELECT record FROM store")
            views = self._open_database.row("SELECT count(*) FROM views")[0]
        if row is None and views:
            raise CorruptData(f"{self.path} has views and has lost its identity; {_REBUILD}")
        if row is None:
            return None
        cluster, identity = unpack(row[0], f"the identity in {self.path}")
        if cluster != self._cluster:
            raise WrongDirectory(
                f"{self.path} belongs to cluster {cluster!r}, not to {self._cluster!r}"
            )
        return str(identity)

    def _make_identity(self) -> str:
        identity = uuid.uuid4().hex
        with self._disk(), self._open_database.transaction() as connection:
            record = pack([self._cluster, identity])
            connection.execute("INSERT INTO store VALUES(1, ?)", (record,))
        return identity

    @property
    def _open_database(self) -> Database:
        assert self._database is not None, "open() comes first"
        return self._database

    def _read(self, slot: int) -> View | None:
        with self._disk():
            row = self._open_database.row("SELECT record FROM views WHERE slot = ?", (slot,))
        return None if row is None else self._decoded(slot, row[0])

    def _read_all(self) -> dict[int, View]:
        with self._disk():
            rows = list(self._open_database.rows("SELECT slot, record FROM views ORDER BY slot"))
        return {slot: self._decoded(slot, record) for slot, record in rows}

    def _decoded(self, slot: int, record: object) -> View:
        return decode_view(slot, record, f"row {slot} of {self.path}")

    # Nobody else writes between the read and the write: one process, one connection, one thread.

    def _make_changes(self) -> None:
        changes: list[tuple[Change, Future[View]]] = []
        while self._changes:
            change, answer = self._changes.popleft()
            if answer.set_running_or_notify_cancel():
                changes.append((change, answer))
        fresh: dict[int, View] = {}
        outcomes = [self._outcome(change, fresh) for change, _ in changes]
        failure: Exception | None = None
        try:
            self._write([change for change, _ in outcomes if change])
        except Exception as error:
            failure = error
        for ((_, new), answer), (_, outcome) in zip(changes, outcomes, strict=True):
            # Who only compared with a view of this transaction may not be told of it either.
            failed = failure if new.slot in fresh else None
            _settle(answer, failed or outcome)

    def _outcome(
        self, change: Change, fresh: dict[int, View]
    ) -> tuple[Change | None, View | Exception]:
        """What has to be written, and the view that the store holds afterwards. ``fresh`` are the
        views that will be written before."""
        old, new = change
        try:
            held = fresh.get(new.slot) or self._read(new.slot)
            if held is None and old is not None:
                raise view_lost(str(self.path), new.slot)
        except Exception as error:
            return None, error
        if held != old or held == new:
            assert held is not None
            return None, held
        fresh[new.slot] = new
        return change, new

    def _write(self, changes: list[Change]) -> None:
        if not changes:
            return
        with self._writing() as connection:
            for old, new in changes:
                _write_one(connection, old, new)
        self._keep_small()

    def _keep_small(self) -> None:
        """After the commit: whatever goes wrong here concerns the next call, not this one."""
        database = self._open_database
        if database.wal_bytes() > WAL_BYTES_MAX:
            try:
                database.checkpoint()
            except ImError:
                # The object is dead and says so to the next caller; the view is in the WAL.
                assert not _alive(database)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        database = self._open_database
        with self._disk():
            database.check_alive()
        try:
            with self._disk(), database.transaction() as connection:
                yield connection
        except DiskFailed as error:
            if _is_full(error):
                raise
            # The commit may be on disk although it was reported as failed.
            raise Unknown(f"the view may have been written or not: {error}") from error

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """The errors of Database speak of replicas, which the others fill again; not so here."""
        try:
            yield
        except (CorruptData, DiskFailed) as error:
            cause = error.__cause__
            if not isinstance(cause, (sqlite3.Error, OSError)):
                raise
            if isinstance(error, CorruptData):
                raise CorruptData(f"{self.path}: {cause}; {_REBUILD}") from cause
            hint = "free some space" if _is_full(error) else "check the disk"
            raise DiskFailed(f"{self.path}: {cause}; {hint}, then start again") from cause
        except OSError as error:
            raise DiskFailed(f"{self.path}: {error.strerror or error}; check the disk") from error

    def _close(self) -> None:
        try:
            if self._database is not None:
                with self._disk():
                    self._database.close()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None


def _write_one(connection: sqlite3.Connection, old: View | None, new: View) -> None:
    if old is None:
        connection.execute("INSERT INTO views VALUES(?, ?)", (new.slot, encode_view(new)))
        return
    statement = "UPDATE views SET record = ? WHERE slot = ? AND record = ?"
    values = (encode_view(new), new.slot, encode_view(old))
    changed = connection.execute(statement, values).rowcount
    assert changed == 1, f"the view of slot {new.slot} changed under its only writer"


def _settle(answer: Future[View], outcome: View | Exception) -> None:
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


_REBUILD = (
    "bring back a good copy of the file, or rebuild it with im-actors repair; the replicas keep"
    " every message meanwhile"
)


def _is_full(error: DiskFailed) -> bool:
    return getattr(error.__cause__, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _alive(database: Database) -> bool:
    try:
        database.check_alive()
    except DiskFailed:
        return False
    return True


def take_lock(path: Path, wait_s: float) -> int:
    """The handle that keeps other processes out until it is closed, also by the process's end.

    Beside the file and not on it: closing any handle of a database drops SQLite's own locks.
    """
    lock_path = path.with_name(path.name + ".lock")
    made = not lock_path.exists()
    handle = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _wait_for_lock(handle, path, wait_s)
    except BaseException:
        os.close(handle)
        raise
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    if made:
        fsync_directory(path.parent)
    return handle


def _wait_for_lock(handle: int, path: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
                raise WrongDirectory(
                    f"{path} is in use by pid {owner}; stop that process"
                ) from None
            # There is no flock with a timeout; a signal that ends a waiting one needs the main
            # thread.
            time.sleep(LOCK_POLL_S)
