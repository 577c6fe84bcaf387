"""``index.db``: where each session's events are, what a new owner must know of it (design 5.4), and
how far history goes. One transaction changes all of it.

A row of ``runs`` is a stretch of consecutive events of one session: (lsn, sends) of each record
that holds some of them, exactly as the record's own index says it. So rows are few, and nothing
here is done for each event. The devices' last n are brought into ``devices`` only every FOLD_EVENTS
events of a session ("folded"); the newer part is read from its runs. What the few events say that
change a session's state is in ``facts`` (storage.facts).

Staging is in memory and may be read at once; ``write`` makes it durable. Records come in any order
and repeatedly: backfill brings old ones after new ones, and a crash between the month files and
this one brings them again. A record's part is in the index wholly or not at all.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import msgpack

from im_actors.core.facts import Fact
from im_actors.core.messages import DeviceImage, SessionImage
from im_actors.core.model import DEVICE_WINDOW, Part
from im_actors.errors import CorruptData, InvariantBroken
from im_actors.storage import facts, places
from im_actors.storage.database import Database, Format
from im_actors.storage.facts import FactTable
from im_actors.storage.places import PlaceTable
from im_actors.storage.runs import RUN_EVENTS_MAX, Run
from im_actors.storage.steps import Rest, in_steps, no_rest

SESSIONS_CACHED_MAX = 32_768
COUNT_SESSIONS = 1_024
"""Sessions whose events are counted in one step."""
FOLD_EVENTS = 512
"""So many events of a session may be in runs only, as far as its devices' last n go. With fewer of
them loading a session costs less; but where many devices share a session, and each has a row, it
is folding that costs."""
FOLD_EVENTS_MIN = 128
"""Enough where few devices share a session."""
RECENT_EVENTS = 128
"""The window of last sends that an owner is given comes from so many last events of the session. A
resend of anything older is looked up by its key."""

FORMAT = Format(
    name="history index",
    version=3,
    # ``guard`` is a checksum of its row: SQLite's pages have none, and a wrong counter served to an
    # owner is a seq given twice. Small pages: in the long run each session has a leaf of its own,
    # and a transaction that touches 2,000 sessions writes 2,000 of them.
    schema=(
        "CREATE TABLE sessions(id INTEGER PRIMARY KEY, slot INTEGER NOT NULL,"
        " session TEXT NOT NULL UNIQUE, last_seq INTEGER NOT NULL, folded_seq INTEGER NOT NULL,"
        " guard INTEGER NOT NULL)",
        "CREATE INDEX sessions_of_slot ON sessions(slot)",
        "CREATE TABLE runs(session INTEGER NOT NULL, first_seq INTEGER NOT NULL,"
        " last_seq INTEGER NOT NULL, month INTEGER NOT NULL, parts BLOB NOT NULL,"
        " guard INTEGER NOT NULL, PRIMARY KEY(session, first_seq)) WITHOUT ROWID",
        "CREATE TABLE devices(session INTEGER NOT NULL, device TEXT NOT NULL,"
        " last_n INTEGER NOT NULL, guard INTEGER NOT NULL, PRIMARY KEY(session, device))"
        " WITHOUT ROWID",
        "CREATE TABLE applied(slot INTEGER PRIMARY KEY, lsn INTEGER NOT NULL,"
        " guard INTEGER NOT NULL)",
        "CREATE TABLE months(month INTEGER PRIMARY KEY)",
        "CREATE TABLE filling(slot INTEGER PRIMARY KEY)",
        "CREATE TABLE dropping(slot INTEGER PRIMARY KEY)",
        *facts.SCHEMA,
        *places.SCHEMA,
    ),
    migrations={1: facts.create, 2: places.create},
    page_bytes=4_096,
    cache_kib=32_768,
)

_RUN = "SELECT session, first_seq, last_seq, month, parts, guard FROM runs WHERE session=?"
_SESSION = "SELECT id, slot, session, last_seq, folded_seq, guard FROM sessions"
_DEVICE = "SELECT session, device, last_n, guard FROM devices"
_ABSENT = (
    # Of each name asked for: what lies at or below it in the index of names, and above it. 1: an
    # entry whose row says the same, 0: one whose row does not, 2: that of the name itself.
    "SELECT asked.key, (SELECT iif((SELECT at.session FROM sessions AS at WHERE at.id=near.id)"
    " IS NOT near.session, 0, 1 + (near.session = asked.value)) FROM sessions AS near"
    " INDEXED BY sqlite_autoindex_sessions_1 WHERE near.session <= asked.value"
    " ORDER BY near.session DESC LIMIT 1), (SELECT (SELECT at.session FROM sessions AS at"
    " WHERE at.id=near.id) IS near.session FROM sessions AS near"
    " INDEXED BY sqlite_autoindex_sessions_1 WHERE near.session > asked.value"
    " ORDER BY near.session LIMIT 1) FROM json_each(?) AS asked"
)
_STORED = (
    "SELECT asked.key FROM json_each(?) AS asked"
    " CROSS JOIN sessions ON sessions.session=asked.value"
)
_RUN_HEAD = struct.Struct(">4q")
_pack = msgpack.Packer(autoreset=True).pack
_unpack = msgpack.unpackb


class SessionEntry:
    """A session's row, and what is staged of it."""

    __slots__ = (
        "fold_events",
        "folded_seq",
        "id",
        "late",
        "name",
        "open",
        "runs",
        "slot",
        "stored",
        "stored_seq",
    )

    def __init__(
        self, identity: int, slot: int, name: str, stored_seq: int, folded_seq: int
    ) -> None:
        self.id = identity
        self.slot = slot
        self.name = name
        self.stored_seq = stored_seq
        self.folded_seq = folded_seq
        """Of the events up to here the devices' last n are in their rows."""
        self.fold_events = FOLD_EVENTS
        """After how many more events they will be brought there."""
        self.stored = True
        """Whether it has a row."""
        self.runs: list[Run] = []
        """Staged, by ascending seq, above ``stored_seq``."""
        self.open: Run | None = None
        """The last of them."""
        self.late: list[Run] = []
        """Staged, below what was here before, in any order."""

    @classmethod
    def begun(cls, identity: int, slot: int, name: str, run: Run) -> SessionEntry:
        """Of a session that has no row, with its first events."""
        entry = cls(identity, slot, name, 0, 0)
        entry.stored = False
        entry.runs.append(run)
        entry.open = run
        return entry

    @property
    def last_seq(self) -> int:
        return self.open.last_seq if self.open is not None else self.stored_seq

    def settle(self) -> None:
        """What was staged is in the file."""
        self.stored_seq = self.last_seq
        self.stored = True
        self.open = None
        self.runs = []
        self.late = []


def session_guard(identity: int, slot: int, name: str, last_seq: int, folded_seq: int) -> int:
    return zlib.crc32(f"{identity} {slot} {last_seq} {folded_seq} {name}".encode())


def run_guard(session: int, first_seq: int, last_seq: int, month: int, parts: bytes) -> int:
    return zlib.crc32(parts, zlib.crc32(_RUN_HEAD.pack(session, first_seq, last_seq, month)))


def device_guard(session: int, device: str, last_n: int) -> int:
    return zlib.crc32(f"{session} {last_n} {device}".encode())


def applied_guard(slot: int, lsn: int) -> int:
    return zlib.crc32(f"{slot} {lsn}".encode())


class IndexFile:
    """``index.db`` and what is staged for it."""

    def __init__(self, path: Path, create: bool, form: Format = FORMAT) -> None:
        self.db = Database(path, form, create)
        try:
            self.applied = self._load_applied()
            self.months = {month for (month,) in self.db.int_rows("SELECT month FROM months")}
            self.filling = {slot for (slot,) in self.db.int_rows("SELECT slot FROM filling")}
            """Slots of which the months may have records that the index does not, at or below what
            is applied: a crash in the middle of backfill. It will bring them again."""
            self._next_id = self.db.row("SELECT coalesce(max(id), 0) + 1 FROM sessions")[0]
            self.places = PlaceTable(self.db, path.parent)
        except BaseException:
            self.db.abandon()
            raise
        self.facts = FactTable(self.db)
        self._cache: dict[str, SessionEntry] = {}
        """Entries without anything staged; the ones at the front were not used for longest."""
        self._staged: dict[str, SessionEntry] = {}
        self.late = False
        """Whether something is staged that cannot be read before it is written."""

    def _load_applied(self) -> dict[int, int]:
        applied = {}
        for slot, lsn, guard in self.db.rows("SELECT slot, lsn, guard FROM applied"):
            # One that is too high would make a hole look like a log.
            if guard != applied_guard(slot, lsn):
                raise CorruptData(f"{self.db.path}: the applied lsn of slot {slot} is damaged")
            applied[slot] = lsn
        return applied

    # -- staging ---------------------------------------------------------------------------------

    def stage(self, slot: int, lsn: int, month: int, parts: list[Part]) -> None:
        """Take in the index of a record; the same record again changes nothing."""
        staged = self._staged.get
        new = self._new(parts)
        # For each session of each record: names are bound, and calls are few.
        for name, first_seq, length, sends in parts:
            entry = staged(name)
            if entry is None and name in new:
                begun = Run(first_seq, first_seq + length - 1, month, [lsn, sends])
                self._staged[name] = SessionEntry.begun(self._next_id, slot, name, begun)
                self._next_id += 1
                continue
            if entry is None or entry.slot != slot:
                entry = self._enter(name, slot, first_seq)
            run = entry.open
            if (
                run is not None
                and first_seq == run.last_seq + 1
                and first_seq - run.first_seq < RUN_EVENTS_MAX
                and month == run.month
            ):
                run.last_seq += length
                run.parts += (lsn, sends)
            else:
                run = Run(first_seq, first_seq + length - 1, month, [lsn, sends])
                self._begin(entry, run)

    def stage_facts(self, stated: Iterable[tuple[str, list[Fact]]]) -> None:
        """Take in what the state events of a record say, whose parts have been staged."""
        for name, said in stated:
            entry = self._staged[name]
            self.facts.stage(entry.id, entry.stored_seq, said)

    def replace_facts(self, facts: Sequence[tuple[str, Fact]]) -> None:
        """Write these (session, fact) in the place of what the same events have said before."""
        sessions = {name: entry.id for name, _ in facts if (entry := self.session(name))}
        with self.db.transaction() as connection:
            known = [(sessions[name], fact) for name, fact in facts if name in sessions]
            self.facts.replace(connection, known)

    def events_by_month(self) -> Iterator[Counter[int] | None]:
        """How many events of each month there are, in parts that are to be added up; between them
        None, where other work may be done."""
        select = (
            "SELECT month, sum(last_seq - first_seq + 1) FROM runs"
            " WHERE session BETWEEN ? AND ? GROUP BY month"
        )
        for first in range(1, self._next_id, COUNT_SESSIONS):
            yield Counter(dict(self.db.int_rows(select, (first, first + COUNT_SESSIONS - 1))))
            yield None

    def _new(self, parts: list[Part]) -> set[str]:
        """The sessions that begin in these parts and have no row: one statement for all."""
        staged, cached = self._staged, self._cache
        first = [
            name
            for name, seq, *_ in parts
            if seq == 1 and name not in staged and name not in cached
        ]
        if not first:
            return set()
        known = {first[at] for (at,) in self.db.rows(_STORED, (json.dumps(first),))}
        return set(first) - known if known else set(first)

    def _enter(self, name: str, slot: int, first_seq: int) -> SessionEntry:
        """The session's entry, loaded, or made if it is new."""
        entry = self._staged.get(name) or self._cache.pop(name, None)
        entry = entry or self._load(name, absent=first_seq == 1)
        if entry is None:
            entry = SessionEntry(self._next_id, slot, name, 0, 0)
            entry.stored = False
            self._next_id += 1
        if entry.slot != slot:
            raise InvariantBroken(f"session {name!r} is in slot {entry.slot} and in slot {slot}")
        self._staged[name] = entry
        return entry

    def _begin(self, entry: SessionEntry, run: Run) -> None:
        if run.first_seq > entry.last_seq:
            entry.runs.append(run)
            entry.open = run
        elif not self._has(entry, run.first_seq):
            self.late = True
            if not (entry.late and entry.late[-1].join(run)):
                entry.late.append(run)

    def _has(self, entry: SessionEntry, seq: int) -> bool:
        staged = chain(entry.runs, entry.late)
        if any(run.first_seq <= seq <= run.last_seq for run in staged):
            return True
        found = self.run_at(entry.id, seq)
        return found is not None and found.last_seq >= seq

    def prepare(self, months: Iterable[int], filling: set[int]) -> None:
        """Note what has to be known after a crash before the months have all of it: which months
        there are, and which slots get records that ``applied`` does not tell from others."""
        fresh, slots = set(months) - self.months, filling - self.filling
        if fresh or slots:
            with self.db.transaction() as connection:
                connection.executemany("INSERT INTO months VALUES(?)", [(m,) for m in fresh])
                connection.executemany("INSERT INTO filling VALUES(?)", [(s,) for s in slots])
            self.months |= fresh
            self.filling |= slots

    def write(self, applied: dict[int, int], filled: set[int], rest: Rest = no_rest) -> None:
        """Make what is staged durable, and how far history goes, in one transaction. ``filled``:
        what was said to be filling before."""
        marks = {slot: lsn for slot, lsn in applied.items() if lsn > self.applied.get(slot, -1)}
        entries = list(self._staged.values())
        with self.db.transaction() as connection:
            for rows in in_steps(_run_rows(entries, rest), rest):
                connection.executemany("INSERT INTO runs VALUES(?,?,?,?,?,?)", rows)
            for step in in_steps(entries, rest):
                self._fold_due(connection, step)
            _put_sessions(connection, entries, rest)
            self.facts.write(connection, rest)
            connection.executemany(
                "INSERT OR REPLACE INTO applied VALUES(?,?,?)",
                [(slot, lsn, applied_guard(slot, lsn)) for slot, lsn in marks.items()],
            )
            connection.executemany("DELETE FROM filling WHERE slot=?", [(s,) for s in filled])
        self.applied.update(marks)
        self.filling -= filled
        self._settle(entries)

    def _settle(self, entries: list[SessionEntry]) -> None:
        for entry in entries:
            entry.settle()
            self._cache[entry.name] = entry
        self._staged.clear()
        self.facts.settle()
        self.late = False
        # In one pass: deleting the first key of a dict again and again walks over what was deleted.
        for name in list(islice(self._cache, max(0, len(self._cache) - SESSIONS_CACHED_MAX))):
            del self._cache[name]

    def _fold_due(self, connection: sqlite3.Connection, entries: Sequence[SessionEntry]) -> None:
        for entry in entries:
            if entry.late:
                self._fold_late(connection, entry)
            run = entry.open
            if run is not None and run.last_seq - entry.folded_seq >= entry.fold_events:
                self._fold(connection, entry)

    def _fold(self, connection: sqlite3.Connection, entry: SessionEntry) -> None:
        """Bring what only runs say of the devices into their rows."""
        last_n: dict[str, int] = {}
        for run in self._stored_runs(entry.id, entry.folded_seq + 1):
            last_n.update(run.last_n())
        _put_devices(connection, entry.id, last_n)
        entry.folded_seq = entry.last_seq
        entry.fold_events = min(max(FOLD_EVENTS_MIN, 8 * len(last_n)), FOLD_EVENTS)

    def _fold_late(self, connection: sqlite3.Connection, entry: SessionEntry) -> None:
        """Runs that come below what is folded are folded when they come."""
        last_n: dict[str, int] = {}
        for run in entry.late:
            for device, n in run.last_n().items() if run.first_seq <= entry.folded_seq else ():
                last_n[device] = max(n, last_n.get(device, 0))
        known = dict(self.devices(entry.id)) if last_n else {}
        newer = {device: n for device, n in last_n.items() if n > known.get(device, 0)}
        _put_devices(connection, entry.id, newer)

    # -- sessions --------------------------------------------------------------------------------

    def session(self, name: str) -> SessionEntry | None:
        """What is known of a session, staged or stored."""
        return self._staged.get(name) or self._load(name)

    def _load(self, name: str, absent: bool = False) -> SessionEntry | None:
        """The session's row. ``absent``: it is not expected to have one."""
        row = self.db.row(f"{_SESSION} WHERE session=?", (name,))
        if row is None:
            if not absent:
                self._check_neighbours(name)
            return None
        if row[2] != name:
            raise CorruptData(
                f"{self.db.path}: the index leads from session {name!r} to {row[2]!r}"
            )
        return self._entry(row)

    def absent(self, names: Iterable[str]) -> set[str]:
        """Those of these sessions that nothing is known of; like ``session``, for many."""
        asked = [name for name in names if name not in self._staged]
        found = set()
        for at, below, above in self.db.rows(_ABSENT, (json.dumps(asked),)):
            if below == 2:
                continue
            if below == 0 or above == 0:
                raise CorruptData(f"{self.db.path}: the index of sessions is damaged")
            found.add(asked[at])
        return found

    def _check_neighbours(self, name: str) -> None:
        """A name whose bytes have changed in the index is not found, and is still in its place: a
        session must not begin anew, with seqs that it has given, for that."""
        for order, side in (("DESC", "<"), ("ASC", ">")):
            near = self.db.row(
                "SELECT session, id FROM sessions INDEXED BY sqlite_autoindex_sessions_1"
                f" WHERE session {side} ? ORDER BY session {order} LIMIT 1",
                (name,),
            )
            if near is not None:
                row = self.db.row("SELECT session FROM sessions WHERE id=?", near[1:])
                if row is None or row[0] != near[0]:
                    raise CorruptData(f"{self.db.path}: the index of sessions is damaged")

    def _entry(self, row: tuple[int, int, str, int, int, int]) -> SessionEntry:
        if row[5] != session_guard(*row[:5]):
            raise CorruptData(f"{self.db.path}: the row of session {row[2]!r} is damaged")
        return SessionEntry(*row[:5])

    def sessions_of(self, slot: int, after_id: int, limit: int) -> list[SessionEntry]:
        """Some of the stored sessions of a slot, by ascending id."""
        select = f"{_SESSION} WHERE slot=? AND id>? ORDER BY id LIMIT ?"
        return [self._entry(row) for row in self.db.rows(select, (slot, after_id, limit))]

    def devices(self, session: int) -> Iterator[tuple[str, int]]:
        """A session's devices with their last n, as far as they are folded."""
        for row in self.db.rows(f"{_DEVICE} WHERE session=? ORDER BY device", (session,)):
            yield self._device(row)

    def device_n(self, session: int, device: str) -> int:
        """The last n of a device, as far as it is folded; 0 when it has no row."""
        row = self.db.row(f"{_DEVICE} WHERE session=? AND device=?", (session, device))
        return 0 if row is None else self._device(row)[1]

    def _device(self, row: tuple[int, str, int, int]) -> tuple[str, int]:
        session, device, last_n, guard = row
        if type(last_n) is not int or guard != device_guard(session, device, last_n):
            raise CorruptData(
                f"{self.db.path}: the row of device {device!r} in session {session} is damaged"
            )
        return device, last_n

    # -- runs ------------------------------------------------------------------------------------

    def runs(self, session: SessionEntry, after: int, before: int, newest: bool) -> Iterator[Run]:
        """The runs with events between the two seqs, by ascending seq, or by descending for
        ``newest``. Nothing ``late`` may be staged."""
        staged = [r for r in session.runs if r.first_seq < before and r.last_seq > after]
        if newest:
            yield from reversed(staged)
            select = f"{_RUN} AND first_seq<? ORDER BY first_seq DESC"
            for row in self.db.rows(select, (session.id, before)):
                run = self._run(row)
                if run.last_seq <= after:
                    return
                yield run
            return
        for run in self._stored_runs(session.id, after + 1):
            if run.first_seq >= before:
                return
            yield run
        yield from staged

    def _stored_runs(self, session: int, from_seq: int) -> Iterator[Run]:
        """The stored runs from the one that has ``from_seq`` on."""
        first = self.run_at(session, from_seq)
        if first is not None and first.last_seq >= from_seq:
            yield first
        select = f"{_RUN} AND first_seq>? ORDER BY first_seq"
        for row in self.db.rows(select, (session, from_seq)):
            yield self._run(row)

    def run_at(self, session: int, seq: int) -> Run | None:
        """The last stored run that begins at or below ``seq``."""
        select = f"{_RUN} AND first_seq<=? ORDER BY first_seq DESC LIMIT 1"
        row = self.db.row(select, (session, seq))
        return None if row is None else self._run(row)

    def _run(self, row: tuple[int, int, int, int, bytes, int]) -> Run:
        session, first_seq, last_seq, month, parts, guard = row
        typed = type(parts) is bytes and all(type(value) is int for value in row[:4])
        if not typed or guard != run_guard(session, first_seq, last_seq, month, parts):
            raise CorruptData(
                f"{self.db.path}: the run of session {session} from seq {first_seq} is damaged"
            )
        return Run(first_seq, last_seq, month, _unpack(parts))

    def count(self, session: int) -> int:
        """How many events the stored runs of a session hold."""
        select = "SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM runs WHERE session=?"
        return int(self.db.row(select, (session,))[0])

    # -- images ----------------------------------------------------------------------------------

    def image(self, name: str) -> tuple[SessionImage, bool]:
        """What a new owner needs of one session (last_seq 0 when it is not known); false when rows
        are missing that a session of a complete slot has."""
        entry = self.session(name)
        if entry is None:
            return SessionImage(name, 0, ()), True
        last_n, recent, known_seq = self._counters(entry)
        devices = tuple(
            DeviceImage(device, n, tuple(recent.get(device, ())[-DEVICE_WINDOW:]))
            for device, n in sorted(last_n.items())
        )
        # Every seq of a session is some device's next n, so the counters of the devices add up to
        # its last seq. A row that damage has hidden would pass for a device that never sent.
        whole = known_seq == sum(last_n.values()) == entry.last_seq
        return SessionImage(name, entry.last_seq, devices), whole

    def _counters(
        self, entry: SessionEntry
    ) -> tuple[dict[str, int], dict[str, list[tuple[int, int]]], int]:
        """Each device's last n and its last sends, and up to which seq nothing is missing."""
        newer: dict[str, int] = {}
        recent: dict[str, list[tuple[int, int]]] = {}
        recent_floor = max(entry.last_seq - RECENT_EVENTS, 0)
        known_seq, expected = entry.folded_seq, 0
        floor = min(known_seq, recent_floor)
        for run in self.runs(entry, floor, entry.last_seq + 1, newest=False):
            if expected and run.first_seq != expected:
                # Across a hole a device's n do not follow one another.
                recent.clear()
            expected = run.last_seq + 1
            if run.first_seq <= known_seq + 1:
                known_seq = max(known_seq, run.last_seq)
            run.counters(recent_floor, newer, recent)
        last_n = dict(self.devices(entry.id))
        last_n.update((d, n) for d, n in newer.items() if n > last_n.get(d, 0))
        return last_n, recent, known_seq

    # -- dropping --------------------------------------------------------------------------------

    def begin_drop(self, slot: int) -> None:
        """From here on the slot counts as not applied, also after a crash half way."""
        with self.db.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO dropping VALUES(?)", (slot,))
            connection.execute("DELETE FROM applied WHERE slot=?", (slot,))
            connection.execute("DELETE FROM filling WHERE slot=?", (slot,))
        self.applied.pop(slot, None)
        self.filling.discard(slot)
        for entry in [entry for entry in self._staged.values() if entry.slot == slot]:
            self.facts.forget(entry.id)
            del self._staged[entry.name]
        self._cache.clear()

    def dropping(self) -> list[int]:
        """Slots whose deletion a crash has interrupted."""
        return [slot for (slot,) in self.db.int_rows("SELECT slot FROM dropping")]

    def finish_drop(self, slot: int) -> None:
        gone = list(self.db.int_rows("SELECT id FROM sessions WHERE slot=?", (slot,)))
        with self.db.transaction() as connection:
            connection.executemany("DELETE FROM devices WHERE session=?", gone)
            connection.executemany("DELETE FROM runs WHERE session=?", gone)
            self.facts.drop(connection, gone)
            connection.executemany("DELETE FROM sessions WHERE id=?", gone)
            connection.execute("DELETE FROM dropping WHERE slot=?", (slot,))


def _run_rows(
    entries: list[SessionEntry], rest: Rest = no_rest
) -> list[tuple[int, int, int, int, bytes, int]]:
    rows = []
    crc32, run_head = zlib.crc32, _RUN_HEAD.pack
    for step in in_steps(entries, rest):
        for entry in step:
            session = entry.id
            for run in chain(entry.runs, entry.late) if entry.late else entry.runs:
                first_seq, last_seq, month = run.first_seq, run.last_seq, run.month
                parts = _pack(run.parts)
                guard = crc32(parts, crc32(run_head(session, first_seq, last_seq, month)))
                rows.append((session, first_seq, last_seq, month, parts, guard))
    # By key, so that neighbours share a page.
    rows.sort()
    return rows


def _put_sessions(connection: sqlite3.Connection, entries: list[SessionEntry], rest: Rest) -> None:
    fresh, known = [], []
    for entry in entries:
        identity, slot, name, run = entry.id, entry.slot, entry.name, entry.open
        last_seq = entry.stored_seq if run is None else run.last_seq
        folded_seq = entry.folded_seq
        guard = session_guard(identity, slot, name, last_seq, folded_seq)
        if entry.stored:
            known.append((last_seq, folded_seq, guard, identity))
        else:
            fresh.append((identity, slot, name, last_seq, folded_seq, guard))
    for rows in in_steps(fresh, rest):
        connection.executemany("INSERT INTO sessions VALUES(?,?,?,?,?,?)", rows)
    known.sort(key=lambda row: row[3])
    update = "UPDATE sessions SET last_seq=?, folded_seq=?, guard=? WHERE id=?"
    for changed in in_steps(known, rest):
        connection.executemany(update, changed)


def _put_devices(connection: sqlite3.Connection, session: int, last_n: dict[str, int]) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO devices VALUES(?,?,?,?)",
        [(session, name, n, device_guard(session, name, n)) for name, n in sorted(last_n.items())],
    )
