"""The warm tier: the newest 600 conversations of each user whose list was read here, in a local
SQLite file of the gateway.

A cache that outlives a restart: nothing in it has to be durable, so no commit waits for the disk
(synchronous=NORMAL), and a file that cannot be read is replaced by an empty one. One thread has the
only connection and each call is one transaction of its own, so nothing interleaves, and a caller
that is cancelled leaves nothing half done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from im_actors.errors import CorruptData, DiskFailed, ImError, Overloaded
from im_actors.mailbox.rows import (
    END,
    TOP,
    Change,
    Copy,
    Entry,
    Flag,
    Listing,
    Place,
    decode_entry,
    encode_entry,
    entry_place,
)
from im_actors.mailbox.tiers import PAGE_ROWS_MAX, Outcome, Put

log = logging.getLogger(__name__)

T = TypeVar("T")

ROWS_PER_USER_MAX = 600
USERS_MAX = 20_000
"""Most users; those whose copy was written longest ago go first."""
WAITING_MAX = 1_000
"""Most calls that wait for the thread."""
_FORMAT = 2
_FORGET_PART = 20
"""When there are too many users, this part of them goes at once."""

_SCHEMA = (
    "CREATE TABLE copies (user TEXT PRIMARY KEY, version INTEGER, rank INTEGER, session TEXT,"
    " live INTEGER, unread INTEGER, written INTEGER) WITHOUT ROWID",
    "CREATE INDEX copies_written ON copies (written)",
    "CREATE TABLE rows (user TEXT, session TEXT, seq INTEGER, rank INTEGER, live INTEGER,"
    " unread INTEGER, packed BLOB, PRIMARY KEY (user, session)) WITHOUT ROWID",
    "CREATE INDEX rows_order ON rows (user, live, rank, session)",
    "CREATE INDEX rows_unread ON rows (user) WHERE unread",
)
_PAGE = (
    "SELECT packed FROM rows WHERE user = ? AND live = 0 AND (rank, session) > (?, ?)"
    " AND (rank, session) <= (?, ?) ORDER BY rank, session LIMIT ?"
)
_LIVE = "SELECT packed FROM rows WHERE user = ? AND live = 1"
_UNREAD = "SELECT packed FROM rows WHERE user = ? AND unread"


class _Held(NamedTuple):
    """What there is of a user."""

    version: int
    complete: Place
    live: bool
    unread: bool


class SqliteTier:
    """A Tier in one file, which no other process may use."""

    def __init__(
        self,
        path: Path,
        *,
        rows_max: int = ROWS_PER_USER_MAX,
        users_max: int = USERS_MAX,
        name: str = "sqlite",
    ) -> None:
        self.name = name
        self._path = path
        self._rows_max = rows_max
        self._users_max = users_max
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="warm")
        self._connection: sqlite3.Connection | None = None
        self._waiting = 0

    async def first_page(self, user: str, limit: int, at_least: int) -> Copy | None:
        return await self._call(self._first_page, user, limit)

    async def page(self, user: str, after: Place, limit: int, at_least: int) -> Copy | None:
        return await self._call(self._page, user, after, limit)

    async def whole(self, user: str, listing: Listing, at_least: int) -> Copy | None:
        return await self._call(self._whole, user, listing)

    async def rows(self, user: str, sessions: Sequence[str], at_least: int) -> Copy | None:
        return await self._call(self._find, user, tuple(sessions))

    async def put(self, user: str, update: Change | Copy) -> Put:
        return await self._call(self._put, user, update)

    async def drop(self, user: str) -> None:
        await self._call(self._drop, user)

    async def close(self) -> None:
        """When all that was asked for is done."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    # ---- in the thread: reading

    def _first_page(self, user: str, limit: int) -> Copy | None:
        held = self._held(user)
        if held is None:
            return None
        copy = self._page(user, TOP, limit)
        entries = list(copy.entries) if copy is not None else []
        complete = {Listing.ALL: copy.complete[Listing.ALL] if copy is not None else TOP}
        for listing, has, sql in (
            (Listing.LIVE, held.live, _LIVE),
            (Listing.UNREAD, held.unread, _UNREAD),
        ):
            if has:
                entries += self._entries(sql, user)
                complete[listing] = END
        return Copy(held.version, entries, complete)

    def _page(self, user: str, after: Place, limit: int) -> Copy | None:
        assert 0 < limit <= PAGE_ROWS_MAX, limit
        held = self._held(user)
        if held is None or after >= held.complete:
            return None
        entries = self._entries(_PAGE, user, *after, *held.complete, limit)
        place = entry_place(entries[-1]) if len(entries) >= limit else held.complete
        return Copy(held.version, entries, {Listing.ALL: place})

    def _whole(self, user: str, listing: Listing) -> Copy | None:
        held = self._held(user)
        live = listing is Listing.LIVE
        if held is None or not (held.live if live else held.unread):
            return None
        return Copy(held.version, self._entries(_LIVE if live else _UNREAD, user), {listing: END})

    def _find(self, user: str, sessions: tuple[str, ...]) -> Copy | None:
        held = self._held(user)
        sql = "SELECT packed FROM rows WHERE user = ? AND session = ?"
        entries = [entry for session in sessions for entry in self._entries(sql, user, session)]
        # A row that is not here may exist: this is the newest part of the mailbox only.
        if held is None or len(entries) < len(sessions):
            return None
        return Copy(held.version, entries, {})

    def _held(self, user: str) -> _Held | None:
        sql = "SELECT version, rank, session, live, unread FROM copies WHERE user = ?"
        row = self._open().execute(sql, (user,)).fetchone()
        if row is None:
            return None
        version, rank, session, live, unread = row
        return _Held(version, (rank, session), bool(live), bool(unread))

    def _entries(self, sql: str, *values: object) -> list[Entry]:
        return [_unguarded(packed) for (packed,) in self._open().execute(sql, values)]

    # ---- in the thread: writing

    def _put(self, user: str, update: Change | Copy) -> Put:
        held = self._held(user)
        version = held.version if held is not None else -1
        if isinstance(update, Change):
            if version >= update.version:
                return Put(Outcome.LATE, version)
            if held is None or version < update.since:
                return Put(Outcome.GAP, version)
        elif version > update.version:
            return Put(Outcome.LATE, version)
        with self._transaction() as run:
            if isinstance(update, Copy):
                run("DELETE FROM rows WHERE user = ?", (user,))
                wholes = [update.complete.get(w) == END for w in (Listing.LIVE, Listing.UNREAD)]
                held = _Held(update.version, update.complete[Listing.ALL], *wholes)
            assert held is not None
            self._write_rows(run, user, update.entries)
            self._write_copy(run, user, self._bounded(run, user, held), update.version)
            if version < 0:
                self._bound_users(run)
        return Put(Outcome.TAKEN, update.version)

    def _write_rows(self, run: Run, user: str, entries: Iterable[Entry]) -> None:
        for entry in entries:
            newer = "SELECT 1 FROM rows WHERE user = ? AND session = ? AND seq >= ?"
            if run(newer, (user, entry.session, entry.seq)).fetchone():
                continue
            if not entry.rank:
                run("DELETE FROM rows WHERE user = ? AND session = ?", (user, entry.session))
                continue
            live = int(bool(entry.flags & Flag.LIVE))
            unread = int(bool(entry.unread and not live))
            row = (user, entry.session, entry.seq, -entry.rank, live, unread, _guarded(entry))
            run("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def _bounded(self, run: Run, user: str, held: _Held) -> _Held:
        """Forget what is too much of a user; what there is then."""
        count = "SELECT count(*) FROM rows WHERE user = ? AND live = ?"
        live, static = (run(count, (user, kind)).fetchone()[0] for kind in (1, 0))
        if live > self._rows_max:
            run("DELETE FROM rows WHERE user = ? AND live = 1", (user,))
            held, live = held._replace(live=False), 0
        room = self._rows_max - live
        if static <= room:
            return held
        tail = (
            "SELECT rank, session, unread FROM rows WHERE user = ? AND live = 0"
            " ORDER BY rank, session LIMIT -1 OFFSET ?"
        )
        last = TOP
        for rank, session, unread in run(tail, (user, max(0, room - 1))).fetchall():
            if last == TOP and room:
                last = (rank, session)
                continue
            run("DELETE FROM rows WHERE user = ? AND session = ?", (user, session))
            held = held._replace(unread=held.unread and not unread)
        return held._replace(complete=min(held.complete, last))

    def _write_copy(self, run: Run, user: str, held: _Held, version: int) -> None:
        turn = run("SELECT coalesce(max(written), 0) + 1 FROM copies").fetchone()[0]
        row = (user, version, *held.complete, int(held.live), int(held.unread), turn)
        run("INSERT OR REPLACE INTO copies VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def _bound_users(self, run: Run) -> None:
        if run("SELECT count(*) FROM copies").fetchone()[0] <= self._users_max:
            return
        oldest = "SELECT user FROM copies ORDER BY written LIMIT ?"
        for (user,) in run(oldest, (1 + self._users_max // _FORGET_PART,)).fetchall():
            self._delete(run, user)

    def _drop(self, user: str) -> None:
        with self._transaction() as run:
            self._delete(run, user)

    def _delete(self, run: Run, user: str) -> None:
        run("DELETE FROM rows WHERE user = ?", (user,))
        run("DELETE FROM copies WHERE user = ?", (user,))

    # ---- the thread and the file

    async def _call(self, work: Callable[..., T], *values: Any) -> T:
        if self._waiting >= WAITING_MAX:
            raise Overloaded("too many calls wait for the warm tier")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._guard, work, values)
        finally:
            self._waiting -= 1

    def _guard(self, work: Callable[..., T], values: Sequence[Any]) -> T:
        try:
            return work(*values)
        except sqlite3.OperationalError as error:
            self._close()
            raise DiskFailed(f"the warm tier {self._path}: {error}") from error
        except (sqlite3.DatabaseError, ValueError) as error:
            self._replace(error)
            raise CorruptData(f"the warm tier {self._path} was replaced: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[Run]:
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection.execute
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._connection = _connect(self._path)
            except (sqlite3.DatabaseError, ImError) as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._replace(error)
                self._connection = _connect(self._path)
        return self._connection

    def _replace(self, error: Exception) -> None:
        """Begin with an empty file."""
        log.warning("the warm tier %s begins anew: %s", self._path, error)
        self._close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


Run = Callable[..., sqlite3.Cursor]


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None, timeout=0.0, check_same_thread=False)
    try:
        run = connection.execute
        run("PRAGMA locking_mode=EXCLUSIVE")
        run("PRAGMA journal_mode=WAL").fetchall()
        run("PRAGMA synchronous=NORMAL")
        run("PRAGMA trusted_schema=OFF")
        version = run("PRAGMA user_version").fetchone()[0]
        if version == 0:
            run("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                run(statement)
            run(f"PRAGMA user_version={_FORMAT}")
            run("COMMIT")
        elif version != _FORMAT:
            raise ValueError(f"{path} has format {version}, this version uses {_FORMAT}")
    except BaseException:
        connection.close()
        raise
    return connection


def _guarded(entry: Entry) -> bytes:
    packed = encode_entry(entry)
    return packed + zlib.crc32(packed).to_bytes(4, "big")


def _unguarded(data: bytes) -> Entry:
    packed = data[:-4]
    if zlib.crc32(packed).to_bytes(4, "big") != data[-4:]:
        raise ValueError("a row's checksum does not hold")
    return decode_entry(packed)
