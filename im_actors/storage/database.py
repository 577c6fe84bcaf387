"""One SQLite file under the house rules (design section 6).

WAL, synchronous=FULL set and read back, exactly one connection, a format version, and a WAL that is
checked before SQLite reads it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from im_actors.errors import (
    CorruptData,
    DiskFailed,
    ImError,
    MonthAway,
    NewerFormat,
    WrongDirectory,
)
from im_actors.storage.wal_check import check_wal

log = logging.getLogger(__name__)

Migration = Callable[[sqlite3.Connection], None]

_CORRUPT = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    # The statements here are fixed: they can only be wrong for a file whose schema has changed.
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
)
# A damaged schema can make SQLite's own error message something that is no UTF-8.
_FAILURES = (sqlite3.Error, OSError, UnicodeDecodeError)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@dataclass(frozen=True, slots=True)
class Format:
    """What a kind of file looks like. ``migrations[v]`` brings version v to v + 1."""

    name: str
    version: int
    schema: tuple[str, ...]
    migrations: Mapping[int, Migration] = field(default_factory=dict)
    page_bytes: int = 4096
    cache_kib: int = 8192


class Database:
    """An open file. After a failed write it is dead: every later call raises DiskFailed.

    A failed fsync must not be tried again: the kernel has marked the pages clean and dropped them,
    so the second try succeeds without having written anything. The process has to end.
    """

    def __init__(self, path: Path, form: Format, create: bool, removable: bool = False) -> None:
        """``removable``: it lies on a disk that this replica does not depend on; what fails there
        is MonthAway and not DiskFailed."""
        self.path = path
        self._failure: type[ImError] = MonthAway if removable else DiskFailed
        self.wal_path = path.with_name(path.name + "-wal")
        self._form = form
        self._dead: ImError | None = None
        if not create and not path.exists():
            raise CorruptData(f"{path} is missing although this replica has written it")
        torn = check_wal(self.wal_path).torn
        try:
            self.connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=0.0
            )
        except _FAILURES as error:
            raise self._translate(error) from error
        # Text that is no UTF-8 any more is for the checksums to find, not for an exception.
        self.connection.text_factory = _lenient_text
        try:
            self._prepare(create, torn)
        except _FAILURES as error:
            self.connection.close()
            raise self._translate(error) from error
        except BaseException:
            self.connection.close()
            raise

    def _prepare(self, create: bool, torn: bool) -> None:
        run = self.connection.execute
        fresh = self.path.stat().st_size == 0
        if fresh and not create:
            raise CorruptData(f"{self.path} is empty although this replica has written it")
        # Exclusive: the wal-index is in the heap, no -shm file, no lock calls per transaction; and
        # a second connection, with which some versions of SQLite corrupt a WAL, is impossible.
        run("PRAGMA locking_mode=EXCLUSIVE")
        run(f"PRAGMA page_size={self._form.page_bytes}")
        # To its end: the change is committed after the row that answers, and a failure there, which
        # nobody would hear of, leaves a file that a power cut can take back to before a commit.
        run("PRAGMA journal_mode=WAL").fetchall()
        run("PRAGMA synchronous=FULL")
        run("PRAGMA wal_autocheckpoint=0")
        run(f"PRAGMA cache_size=-{self._form.cache_kib}")
        run("PRAGMA mmap_size=0")
        run("PRAGMA trusted_schema=OFF")
        self._read_back(fresh)
        if torn:
            # What a torn transaction left would be taken for damage after the next torn one.
            log.info("%s: the last, unfinished transaction is dropped", self.wal_path)
            self._checkpoint("TRUNCATE")
        self._bring_to_version(create)
        if fresh:
            fsync_directory(self.path.parent)

    def _read_back(self, fresh: bool) -> None:
        expected: dict[str, object] = {
            "journal_mode": "wal",
            "synchronous": 2,
            "locking_mode": "exclusive",
            "wal_autocheckpoint": 0,
        }
        if fresh:
            expected["page_size"] = self._form.page_bytes
        for pragma, value in expected.items():
            found = self.connection.execute(f"PRAGMA {pragma}").fetchone()[0]
            if found != value:
                raise DiskFailed(
                    f"{self.path}: SQLite answers {pragma}={found!r} instead of {value!r}; "
                    "put the data directory on a local file system"
                )

    def _bring_to_version(self, create: bool) -> None:
        form, run = self._form, self.connection.execute
        version = run("PRAGMA user_version").fetchone()[0]
        if version > form.version:
            raise NewerFormat(
                f"{self.path} is a {form.name} of format {version}, this version of im_actors "
                f"reads up to {form.version}; install a newer one"
            )
        if 0 < version < form.version and version not in form.migrations:
            raise WrongDirectory(
                f"{self.path} is a {form.name} of format {version}, which this version of "
                f"im_actors does not read any more (it reads {form.version}); name an empty "
                "directory"
            )
        if version == 0 and not create:
            raise CorruptData(f"{self.path} has no content although this replica has written it")
        tables = run("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 0 and tables:
            raise WrongDirectory(f"{self.path} is an SQLite file, but not a {form.name}")
        run("BEGIN IMMEDIATE")
        if version == 0:
            # A crash between the creation of the file and this transaction leaves it empty.
            for statement in form.schema:
                run(statement)
        else:
            for older in range(version, form.version):
                form.migrations[older](self.connection)
        if version != form.version:
            run(f"PRAGMA user_version={form.version}")
        run("COMMIT")
        self._check_schema()

    def _check_schema(self) -> None:
        """A flipped bit in PRIMARY KEY still makes a table, in which no row is found by its key."""
        select = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"
        found = tuple(row[0] for row in self.connection.execute(select))
        if found != self._form.schema:
            raise CorruptData(f"{self.path}: its tables are not those of a {self._form.name}")

    # -- use -------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """BEGIN, the body, COMMIT: durable when the block is left. Any failure kills the object."""
        self.check_alive()
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException as error:
            raise self.died(error) from error

    def rows(self, sql: str, values: Iterable[Any] = ()) -> Iterator[Any]:
        """The rows of a SELECT, one by one. Errors are of im_actors."""
        self.check_alive()
        try:
            yield from self.connection.execute(sql, tuple(values))
        except _FAILURES as error:
            raise self._translate(error) from error

    def int_rows(self, sql: str, values: Iterable[Any] = ()) -> Iterator[Any]:
        """The rows of a SELECT of integers. SQLite keeps a type with each value, so one flipped bit
        can make NULL or text of a number: CorruptData."""
        for row in self.rows(sql, values):
            if any(type(value) is not int for value in row):
                raise CorruptData(f"{self.path}: {row!r} is where integers have to be ({sql})")
            yield row

    def row(self, sql: str, values: Iterable[Any] = ()) -> Any:
        """The first row of a SELECT, or None."""
        self.check_alive()
        try:
            return self.connection.execute(sql, tuple(values)).fetchone()
        except _FAILURES as error:
            raise self._translate(error) from error

    def checkpoint(self, truncate: bool = False) -> None:
        """Bring the WAL's content into the file; the WAL is then written from its start again."""
        self.check_alive()
        try:
            self._checkpoint("TRUNCATE" if truncate else "PASSIVE")
        except _FAILURES as error:
            raise self.died(error) from error

    def _checkpoint(self, mode: str) -> None:
        busy, frames, done = self.connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        if busy or frames != done:
            raise sqlite3.OperationalError(f"checkpoint stopped at frame {done} of {frames}")

    def forget_pages(self) -> None:
        """Drop SQLite's page cache, so that the next reads see the disk."""
        self.check_alive()
        self.connection.execute("PRAGMA shrink_memory")

    def structure_problems(self, problems_max: int = 10) -> list[str]:
        """What SQLite's own check of the file's structure finds; empty when it is sound."""
        try:
            found = [row[0] for row in self.rows(f"PRAGMA quick_check({problems_max})")]
        except CorruptData as error:
            return [str(error)]
        return [] if found == ["ok"] else [f"{self.path}: {text}" for text in found]

    def wal_bytes(self) -> int:
        return _size(self.wal_path)

    def bytes_on_disk(self) -> int:
        return _size(self.path) + _size(self.wal_path)

    def close(self) -> None:
        """Checkpoint and close. Closing a dead object releases it and raises nothing."""
        if self._dead is None:
            try:
                self._checkpoint("TRUNCATE")
                self.connection.close()
                self._dead = DiskFailed(f"{self.path} is closed")
            except _FAILURES as error:
                raise self.died(error) from error
        else:
            self.abandon()

    def abandon(self) -> None:
        """Close without promising anything; for a file that is dead or corrupt."""
        self._dead = self._dead or DiskFailed(f"{self.path} is closed")
        try:
            self.connection.close()
        except sqlite3.Error as error:
            log.warning("%s: closing after a failure: %s", self.path, error)

    # -- failure ---------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return self._dead is None

    def check_alive(self) -> None:
        if self._dead is not None:
            raise DiskFailed(f"{self.path} is not used again after: {self._dead}")

    def died(self, error: BaseException) -> BaseException:
        """Mark the object dead; returns what to raise."""
        known = isinstance(error, _FAILURES)
        raised = self._translate(error) if known else error
        self._dead = raised if isinstance(raised, ImError) else DiskFailed(repr(error))
        return raised

    def _translate(self, error: BaseException) -> ImError:
        code = getattr(error, "sqlite_errorcode", None)
        primary = code & 0xFF if isinstance(code, int) else None
        if primary in _CORRUPT or isinstance(error, UnicodeDecodeError):
            return CorruptData(
                f"{self.path}: {error}; quarantine this directory and let the other replicas fill "
                "a new one"
            )
        if primary in _BUSY:
            return WrongDirectory(f"{self.path} is in use by another process: {error}")
        hint = "free some space" if primary == sqlite3.SQLITE_FULL else "check the disk"
        return self._failure(f"{self.path}: {error}; {hint}, then start this replica again")


def _lenient_text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable; a new file's name may be lost without it."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
