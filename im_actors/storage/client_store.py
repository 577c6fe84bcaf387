"""The client's store: what a device must not forget, in one SQLite file per device address.

It keeps the outbox (promise P1), the device counters, the read cursors, and a cache of timelines
for reading offline. Two of a kind: ``SqliteStore`` for a path, ``MemoryStore`` for ``None`` and
``":memory:"``; ``open_store`` picks one.

One task owns the SQLite connection and everybody else queues work for it, so statements of one
transaction never interleave with others, and a caller that is cancelled disturbs nothing. Work
is of two kinds. *Durable*: outbox rows; all that came in while the last commit was waiting for the
disk is the next transaction, so many concurrent sends share one fsync. *Lazy*: deletions, cursors
and the cache; collected for a moment, because losing the last of them costs a resend or a pull.

Every row has a guard, a checksum of its values. A damaged row of the outbox, a counter or the
identity is an error, because a message would be changed or a number used twice; a damaged event of
the cache is one that is not cached.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import aiosqlite

from im_actors.core.model import Event, check_name, decode_event
from im_actors.core.outbox_words import Key, OutboxRow
from im_actors.errors import (
    CorruptData,
    DiskFailed,
    ImError,
    NewerFormat,
    ShuttingDown,
    WrongDirectory,
)
from im_actors.storage import client_statements as st
from im_actors.storage.client_schema import APPLICATION_ID, FORMAT, MIGRATIONS, guard_of
from im_actors.storage.file_lock import FileLock
from im_actors.storage.wal_check import check_wal

BATCH_STATEMENTS_MAX = 8
"""Most such statements in one durable transaction: bounds how long the first send of it waits."""
LAZY_MS = 200
"""How long lazy work is collected before it is written: what a crash makes be done again."""
LAZY_EVENTS_MAX = 20_000
"""Most events that wait to be cached; more are not cached at all, and pulled when needed."""
CACHE_EVENTS_PER_SESSION = 5_000
"""About how many of a session's newest events are kept for reading offline."""
_PRUNE_EVERY = 1_000
"""Cached events of a session after which its old ones are looked for."""


class Opened(NamedTuple):
    """What a store knows when it is opened. ``address`` is "user/device-install"."""

    address: str
    rows: list[OutboxRow]
    next_n: dict[str, int]
    cursors: dict[str, int]
    kept: Mapping[str, Mapping[str, bytes]] = MappingProxyType({})
    """By area and name; see ``ClientStore.keep``."""


class CachedEvent(NamedTuple):
    session: str
    seq: int
    event: bytes


class ClientStore(Protocol):
    """What the client needs of a store. Writes are queued and never wait."""

    instant: bool
    """True when a row counts as saved as soon as it is handed over."""

    async def open(self, on_saved: OnSaved, on_failed: OnFailed) -> Opened:
        """``on_saved`` hears of rows that are on disk, in order; ``on_failed`` once, when the disk
        fails: nothing is saved from then on."""

    def save(self, row: OutboxRow, replaces: int = 0) -> None:
        """Write a row durably and remove the one that it replaces, in one transaction."""

    def delete(self, keys: Iterable[Key]) -> None: ...

    def set_cursor(self, session: str, seq: int) -> None: ...

    def cache(self, events: Iterable[CachedEvent]) -> None: ...

    def keep(self, area: str, name: str, value: bytes | None) -> None:
        """Keep what a server said, for reading offline; None: no more. The keeper bounds it."""

    async def events_after(self, session: str, after: int, limit: int) -> list[Event]:
        """The oldest cached events above ``after``, ascending, perhaps with gaps."""

    async def events_before(self, session: str, before: int | None, limit: int) -> list[Event]:
        """The newest cached events below ``before``, ascending, perhaps with gaps."""

    async def last_events(self) -> list[Event]:
        """The last cached event of every session, newest first."""

    async def setting(self, name: str) -> str | None: ...

    async def set_setting(self, name: str, value: str) -> None: ...

    async def flush(self) -> None:
        """Write everything that is queued."""

    async def close(self) -> None:
        """Write everything that is queued and let go of the file. Twice is harmless."""


OnSaved = Callable[[list[Key]], None]
OnFailed = Callable[[ImError], None]


def open_store(path: str | os.PathLike[str] | None, user: str, device: str) -> ClientStore:
    """The store of one device; it is opened with ``open()``."""
    if path is None or str(path) == ":memory:":
        return MemoryStore(user, device)
    return SqliteStore(path, user, device)


def new_install() -> str:
    """The id of a new store: 8 hex digits. A store that was lost and made anew counts from n = 1
    again; under its old name its messages would be taken for resends."""
    return secrets.token_hex(4)


class MemoryStore:
    """A store that forgets everything when it is closed."""

    instant = True

    def __init__(self, user: str, device: str) -> None:
        self._address = f"{check_name('user', user)}/{check_name('device', device)}-{new_install()}"
        self._saved: list[Key] = []
        self._timelines: dict[str, dict[int, bytes]] = {}
        self._settings: dict[str, str] = {}
        self._on_saved: OnSaved = lambda keys: None

    async def open(self, on_saved: OnSaved, on_failed: OnFailed) -> Opened:
        self._on_saved = on_saved
        return Opened(self._address, [], {}, {})

    def save(self, row: OutboxRow, replaces: int = 0) -> None:
        if not self._saved:
            asyncio.get_running_loop().call_soon(self._report)
        self._saved.append((row.session, row.n))

    def _report(self) -> None:
        saved, self._saved = self._saved, []
        self._on_saved(saved)

    def delete(self, keys: Iterable[Key]) -> None:
        pass

    def set_cursor(self, session: str, seq: int) -> None:
        pass

    def cache(self, events: Iterable[CachedEvent]) -> None:
        for session, seq, event in events:
            timeline = self._timelines.get(session)
            if timeline is None:
                timeline = self._timelines[session] = {}
            timeline[seq] = event
            if len(timeline) > 2 * CACHE_EVENTS_PER_SESSION:
                oldest = sorted(timeline)[:CACHE_EVENTS_PER_SESSION]
                for old in oldest:
                    del timeline[old]

    def keep(self, area: str, name: str, value: bytes | None) -> None:
        pass

    async def events_after(self, session: str, after: int, limit: int) -> list[Event]:
        timeline = self._timelines.get(session, {})
        seqs = sorted(seq for seq in timeline if seq > after)[:limit]
        return [decode_event(timeline[seq]) for seq in seqs]

    async def events_before(self, session: str, before: int | None, limit: int) -> list[Event]:
        timeline = self._timelines.get(session, {})
        seqs = sorted(seq for seq in timeline if before is None or seq < before)[-limit:]
        return [decode_event(timeline[seq]) for seq in seqs]

    async def last_events(self) -> list[Event]:
        last = [decode_event(t[max(t)]) for t in self._timelines.values()]
        return sorted(last, key=st.newest_first)

    async def setting(self, name: str) -> str | None:
        return self._settings.get(name)

    async def set_setting(self, name: str, value: str) -> None:
        self._settings[name] = value

    async def flush(self) -> None:
        pass

    async def close(self) -> None:
        pass


class _Lazy:
    """Work that may wait; later values of one key replace earlier ones."""

    def __init__(self) -> None:
        self.deleted: list[Key] = []
        self.cursors: dict[str, int] = {}
        self.events: list[CachedEvent] = []
        self.settings: dict[str, str] = {}
        self.kept: dict[tuple[str, str], bytes | None] = {}

    def __bool__(self) -> bool:
        return bool(self.deleted or self.cursors or self.events or self.settings or self.kept)


_SHARING = (
    "two programs that share a client store would use the same message numbers; give each a store "
    "and a device of its own"
)
_LAST_EVENTS = """
WITH RECURSIVE names (session) AS (
    SELECT min(session) FROM timeline UNION ALL
    SELECT (SELECT min(session) FROM timeline t WHERE t.session > names.session)
    FROM names WHERE session IS NOT NULL)
SELECT t.session, t.seq, t.event, t.guard FROM names JOIN timeline t ON t.session = names.session
AND t.seq = (SELECT max(seq) FROM timeline u WHERE u.session = names.session)
"""
"""Jumps from session to session by the index; GROUP BY would read every event."""
_SELECT_ROWS = f"SELECT {st.ROW}, guard FROM outbox"
_SELECT_EVENTS = "SELECT session, seq, event, guard FROM timeline WHERE session = ? AND seq"


class SqliteStore:
    """A store in one file, which only one process may have open."""

    instant = False

    def __init__(self, path: str | os.PathLike[str], user: str, device: str) -> None:
        self._user = check_name("user", user)
        self._device = check_name("device", device)
        self._path = Path(os.path.realpath(path))
        self._lock: FileLock | None = None
        self._durable: list[tuple[OutboxRow, int]] = []
        self._lazy = _Lazy()
        self._reads: list[tuple[st.Statement | None, asyncio.Future[list[Any]]]] = []
        self._cached: dict[str, int] = {}
        """Events cached per session since its old ones were last looked for."""
        self._work = asyncio.Event()
        self._lazy_timer: asyncio.TimerHandle | None = None
        self._lazy_due = False
        self._closing = False
        self._owner: asyncio.Task[None] | None = None
        self._error: ImError | None = None
        self._on_saved: OnSaved = lambda keys: None
        self._on_failed: OnFailed = lambda error: None

    # -- opening and closing ---------------------------------------------------------------------

    async def open(self, on_saved: OnSaved, on_failed: OnFailed) -> Opened:
        """WrongDirectory, NewerFormat, CorruptData or DiskFailed says why it cannot be opened."""
        assert self._owner is None, "a store is opened once"
        self._on_saved, self._on_failed = on_saved, on_failed
        if not self._path.parent.is_dir():
            raise WrongDirectory(f"there is no directory {self._path.parent} for the client store")
        self._lock = FileLock(self._path, _SHARING)
        opened: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        # The task that opens the connection is the one that closes it, whatever happens to us.
        self._owner = asyncio.create_task(self._own(opened), name=f"client store {self._path}")
        try:
            return await asyncio.shield(opened)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        self._closing = True
        self._work.set()
        if self._owner is not None:
            await asyncio.shield(asyncio.gather(self._owner, return_exceptions=True))

    async def _own(self, opened: asyncio.Future[Opened]) -> None:
        """Open, work, close: the life of the connection."""
        try:
            torn = await asyncio.to_thread(_check_wal, self._path)
            async with aiosqlite.connect(self._path, isolation_level=None) as db:
                result = await self._prepare(db, torn)
                if not opened.done():
                    opened.set_result(result)
                await self._serve(db)
        except BaseException as error:
            problem = _problem(error, self._path)
            if opened.done():
                self._fail(problem)
            else:
                opened.set_exception(problem)
            if not isinstance(error, Exception):
                raise
        finally:
            if self._lazy_timer:
                self._lazy_timer.cancel()
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    async def _prepare(self, db: aiosqlite.Connection, torn: bool) -> Opened:
        version = await st.pragma(db, "user_version")
        application = await st.pragma(db, "application_id")
        foreign = application not in (0, APPLICATION_ID)
        if not version and not application:
            foreign = bool(await db.execute_fetchall("SELECT 1 FROM sqlite_master LIMIT 1"))
        if foreign:
            raise WrongDirectory(f"{self._path} is an SQLite file of another program")
        if version > FORMAT:
            raise NewerFormat(
                f"{self._path} has format {version}, this version of im_actors reads up to "
                f"{FORMAT}: install a newer one"
            )
        # A flipped bit can make text what is no UTF-8: for the guards to find.
        db.text_factory = st.lenient_text
        await db.create_function("guard_of", -1, guard_of, deterministic=True)
        await db.execute("PRAGMA trusted_schema = ON")  # Or the trigger could not call it.
        # To its end: the change is committed after the row that answers, and can fail there.
        await db.execute_fetchall("PRAGMA journal_mode = WAL")
        await db.execute("PRAGMA synchronous = FULL")
        if await st.pragma(db, "synchronous") != 2:
            raise DiskFailed(f"SQLite does not sync {self._path} fully; sends would not be safe")
        if torn:
            # What a torn transaction left would be taken for damage after the next torn one.
            await db.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
        await self._migrate(db, version)
        await self._check_tables(db)
        return await self._load(db)

    async def _check_tables(self, db: aiosqlite.Connection) -> None:
        """A row that damage hides is a message that is never sent, or a number used twice. The
        cached timelines are not looked at: they are large, and the server has them."""
        for table in ("identity", "outbox", "counters", "cursors"):
            found = list(await db.execute_fetchall(f"PRAGMA integrity_check({table})"))
            if found[0][0] != "ok":
                raise CorruptData(f"the client store {self._path} is damaged: {found[0][0]}")

    async def _migrate(self, db: aiosqlite.Connection, version: int) -> None:
        if version == FORMAT:
            return
        script = "".join(MIGRATIONS[step] for step in range(version, FORMAT))
        await db.executescript(
            f"BEGIN; {script} PRAGMA user_version = {FORMAT}; "
            f"PRAGMA application_id = {APPLICATION_ID}; COMMIT;"
        )

    async def _load(self, db: aiosqlite.Connection) -> Opened:
        found = await self._intact(db, "SELECT user, device, install, guard FROM identity")
        if not found:
            found = [(self._user, self._device, new_install())]
            await db.execute("INSERT INTO identity VALUES (?, ?, ?, ?)", st.guarded(found[0]))
        user, device, install = found[0]
        if (user, device) != (self._user, self._device):
            raise WrongDirectory(
                f"{self._path} is the store of user {user!r}, device {device!r}, not of user "
                f"{self._user!r}, device {self._device!r}: every device needs a file of its own"
            )
        rows = [OutboxRow._make(r) for r in await self._intact(db, _SELECT_ROWS)]
        next_n = dict(await self._intact(db, "SELECT session, next_n, guard FROM counters"))
        for row_ in rows:
            next_n[row_.session] = max(next_n.get(row_.session, 1), row_.n + 1)
        cursors = dict(await self._intact(db, "SELECT session, seq, guard FROM cursors"))
        return Opened(f"{user}/{device}-{install}", rows, next_n, cursors, await _kept(db))

    async def _intact(self, db: aiosqlite.Connection, sql: str) -> list[Any]:
        """The rows without their guards; CorruptData when one is not as it was written."""
        rows = list(await db.execute_fetchall(sql))
        for row in rows:
            if row[-1] != guard_of(*row[:-1]):
                text = f"the client store {self._path} is damaged: {row[:2]} is not as written"
                raise CorruptData(f"{text}; put it aside, and begin with a new one")
        return [row[:-1] for row in rows]

    # -- queueing --------------------------------------------------------------------------------

    def save(self, row: OutboxRow, replaces: int = 0) -> None:
        self._durable.append((row, replaces))
        self._work.set()

    def delete(self, keys: Iterable[Key]) -> None:
        self._lazy.deleted.extend(keys)
        self._later()

    def set_cursor(self, session: str, seq: int) -> None:
        self._lazy.cursors[session] = seq
        self._later()

    def cache(self, events: Iterable[CachedEvent]) -> None:
        if len(self._lazy.events) < LAZY_EVENTS_MAX:
            self._lazy.events.extend(events)
            self._later()

    def keep(self, area: str, name: str, value: bytes | None) -> None:
        self._lazy.kept[area, name] = value
        self._later()

    async def events_after(self, session: str, after: int, limit: int) -> list[Event]:
        sql = f"{_SELECT_EVENTS} > ? ORDER BY seq LIMIT ?"
        return st.events(await self._read((sql, (session, after, limit))))

    async def events_before(self, session: str, before: int | None, limit: int) -> list[Event]:
        sql = f"{_SELECT_EVENTS} < ? ORDER BY seq DESC LIMIT ?"
        bound = (1 << 63) - 1 if before is None else before
        return st.events(await self._read((sql, (session, bound, limit))))[::-1]

    async def last_events(self) -> list[Event]:
        return sorted(st.events(await self._read((_LAST_EVENTS, ()))), key=st.newest_first)

    async def setting(self, name: str) -> str | None:
        rows = await self._read(("SELECT value FROM settings WHERE name = ?", (name,)))
        return rows[0][0] if rows else None

    async def set_setting(self, name: str, value: str) -> None:
        self._lazy.settings[name] = value
        await self.flush()

    async def flush(self) -> None:
        await self._read(None)

    async def _read(self, statement: st.Statement | None) -> list[Any]:
        """Queued work is written before anything is read, so a read sees all that was queued."""
        if self._error is not None:
            raise type(self._error)(self._error.detail)
        if self._closing or self._owner is None:
            raise ShuttingDown("the client store is not open")
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._reads.append((statement, answer))
        self._work.set()
        return await answer

    def _later(self) -> None:
        if self._lazy_timer is None and not self._closing:
            loop = asyncio.get_running_loop()
            self._lazy_timer = loop.call_later(LAZY_MS / 1000, self._lazy_now)

    def _lazy_now(self) -> None:
        self._lazy_due = True
        self._work.set()

    # -- the owner's work ------------------------------------------------------------------------

    async def _serve(self, db: aiosqlite.Connection) -> None:
        while not (self._closing and not self._durable and not self._reads and not self._lazy):
            if self._durable:
                await self._write_durable(db)
            elif self._lazy and (self._lazy_due or self._reads or self._closing):
                await self._write_lazy(db)
            elif self._reads:
                await self._answer(db)
            else:
                await self._work.wait()
                self._work.clear()

    async def _write_durable(self, db: aiosqlite.Connection) -> None:
        count = st.BATCH_ROWS_MAX * BATCH_STATEMENTS_MAX
        batch, self._durable = self._durable[:count], self._durable[count:]
        gone = [(row.session, old) for row, old in batch if old and old != row.n]
        statements = [*st.inserts(row for row, _ in batch), *st.deletes(gone)]
        await st.transaction(db, statements)
        self._on_saved([(row.session, row.n) for row, _ in batch])

    async def _write_lazy(self, db: aiosqlite.Connection) -> None:
        lazy, self._lazy, self._lazy_due = self._lazy, _Lazy(), False
        if self._lazy_timer is not None:
            self._lazy_timer.cancel()
            self._lazy_timer = None
        statements = st.deletes(lazy.deleted)
        cursors = [st.guarded(cursor) for cursor in lazy.cursors.items()]
        statements += st.many("INSERT OR REPLACE INTO cursors VALUES", cursors)
        statements += st.many("INSERT OR REPLACE INTO settings VALUES", list(lazy.settings.items()))
        events = [st.guarded(event) for event in lazy.events]
        statements += st.many("INSERT OR REPLACE INTO timeline VALUES", events)
        statements += self._prunes(lazy.events)
        kept = [st.guarded((*at, value)) for at, value in lazy.kept.items() if value is not None]
        statements += st.many("INSERT OR REPLACE INTO kept VALUES", kept)
        statements += st.forgets([at for at, value in lazy.kept.items() if value is None])
        await st.transaction(db, statements)

    def _prunes(self, events: list[CachedEvent]) -> list[st.Statement]:
        for event in events:
            self._cached[event.session] = self._cached.get(event.session, 0) + 1
        full = [session for session, count in self._cached.items() if count >= _PRUNE_EVERY]
        for session in full:
            del self._cached[session]
        sql = (
            "DELETE FROM timeline WHERE session = ?1 AND seq <= "
            "(SELECT max(seq) FROM timeline WHERE session = ?1) - ?2"
        )
        return [(sql, (session, CACHE_EVENTS_PER_SESSION)) for session in full]

    async def _answer(self, db: aiosqlite.Connection) -> None:
        reads, self._reads = self._reads, []
        for statement, answer in reads:
            rows = list(await db.execute_fetchall(*statement)) if statement else []
            if not answer.done():
                answer.set_result(rows)

    def _fail(self, problem: ImError) -> None:
        """Nothing is tried again on this file: after a failed fsync SQLite may believe pages to be
        on disk that are not. What was saved before is read by the next open."""
        reads, self._reads = self._reads, []
        for _, answer in reads:
            if not answer.done():
                answer.set_exception(type(problem)(problem.detail))
        if self._error is None:
            self._error = problem
            self._durable.clear()
            self._lazy = _Lazy()
            self._on_failed(problem)


async def _kept(db: aiosqlite.Connection) -> dict[str, dict[str, bytes]]:
    """What is as it was written; the rest comes from the server again."""
    try:
        rows = await db.execute_fetchall("SELECT area, name, value, guard FROM kept")
    except sqlite3.DatabaseError:
        return {}
    found: dict[str, dict[str, bytes]] = {}
    for area, name, value, guard in rows:
        if guard == guard_of(area, name, value):
            found.setdefault(area, {})[name] = value
    return found


# --- the world ------------------------------------------------------------------------------------


def _check_wal(path: Path) -> bool:
    """Whether an unfinished transaction is in the write-ahead log. SQLite reads a damaged one as a
    shorter one: everything accepted after the damage would be gone, and nobody would be told."""
    try:
        return check_wal(path.with_name(path.name + "-wal")).torn
    except CorruptData as error:
        raise CorruptData(
            f"the client store {path} is damaged: {error.detail.partition(';')[0]}; put it aside "
            "together with its -wal file, and begin with a new one"
        ) from error
    except OSError as error:
        raise DiskFailed(f"the client store {path} cannot be read: {error}") from error


def _problem(error: BaseException, path: Path) -> ImError:
    if isinstance(error, ImError):
        return error
    if isinstance(error, sqlite3.OperationalError):
        return DiskFailed(f"the client store {path} cannot be read or written: {error}")
    if isinstance(error, sqlite3.DatabaseError):
        return CorruptData(f"the client store {path} is damaged: {error}")
    return DiskFailed(f"the client store {path} was stopped: {error or type(error).__name__}")
