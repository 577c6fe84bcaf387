"""What a new owner must know of each session (design 5.4), kept beside history in ``state.db``.

Every merge here is commutative and idempotent: backfill applies old records after new ones, and
after a crash records are applied again. So counters merge by maximum, and the window of a device's
last sends is a set of (n, seq) of which the newest are kept.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from im_actors.core.messages import DeviceImage, SessionImage
from im_actors.core.model import DEVICE_WINDOW
from im_actors.errors import CorruptData, InvariantBroken
from im_actors.storage.database import Database, Format

DEVICES_CACHED_MAX = 32_768
"""Of all sessions together; a cached device holds up to 1.5 kB of window."""

FORMAT = Format(
    name="history state",
    version=1,
    # ``guard`` is a checksum of its row: SQLite's pages have none, and a wrong counter served to an
    # owner is a seq given twice.
    schema=(
        "CREATE TABLE sessions(id INTEGER PRIMARY KEY, slot INTEGER NOT NULL,"
        " session TEXT NOT NULL UNIQUE, last_seq INTEGER NOT NULL, last_key INTEGER NOT NULL,"
        " guard INTEGER NOT NULL)",
        "CREATE INDEX sessions_of_slot ON sessions(slot)",
        "CREATE TABLE devices(session INTEGER NOT NULL, device TEXT NOT NULL,"
        " last_n INTEGER NOT NULL, recent BLOB NOT NULL, guard INTEGER NOT NULL,"
        " PRIMARY KEY(session, device)) WITHOUT ROWID",
        "CREATE TABLE spans(session INTEGER NOT NULL, month INTEGER NOT NULL,"
        " first_seq INTEGER NOT NULL, PRIMARY KEY(session, month)) WITHOUT ROWID",
        "CREATE TABLE applied(slot INTEGER PRIMARY KEY, lsn INTEGER NOT NULL,"
        " guard INTEGER NOT NULL)",
        "CREATE TABLE months(month INTEGER PRIMARY KEY)",
        "CREATE TABLE dropping(slot INTEGER PRIMARY KEY)",
    ),
    page_bytes=16_384,
    cache_kib=32_768,
)

SENT = struct.Struct(">QI")
"""One send in a device's window: its seq (0 = not known here) and its body checksum. Consecutive n,
the last one is ``last_n``: fixed-width, so that a send is added by appending 12 bytes."""
_WINDOW_BYTES = DEVICE_WINDOW * SENT.size
_UNKNOWN = bytes(SENT.size)
_pack_sent = SENT.pack


class DeviceEntry:
    """A device's part of the dedup set."""

    __slots__ = ("dirty", "last_n", "recent")

    def __init__(self, last_n: int = 0, recent: bytes = b"") -> None:
        self.last_n = last_n
        self.recent = bytearray(recent)
        self.dirty = False

    def add(self, n: int, seq: int, checksum: int) -> None:
        """Take in a send, in any order, also again."""
        if n == self.last_n + 1:
            self.last_n = n
            self.recent += _pack_sent(seq, checksum)
            return
        self._place(n, seq, checksum)

    def _place(self, n: int, seq: int, checksum: int) -> None:
        recent, size = self.recent, SENT.size
        if n > self.last_n:
            # A hole: what lies between comes later, by backfill.
            missing = n - self.last_n - 1
            if missing >= DEVICE_WINDOW or not self.last_n:
                recent.clear()
            else:
                recent += _UNKNOWN * missing
            recent += _pack_sent(seq, checksum)
            self.last_n = n
            return
        back = self.last_n - n
        if back >= DEVICE_WINDOW:
            return
        known = len(recent) // size
        if back >= known:
            recent[:0] = _UNKNOWN * (back + 1 - known)
        at = len(recent) - (back + 1) * size
        recent[at : at + size] = _pack_sent(seq, checksum)

    def window(self) -> bytes:
        """The stored form of the window."""
        if len(self.recent) > _WINDOW_BYTES:
            del self.recent[:-_WINDOW_BYTES]
        return bytes(self.recent)


class SessionEntry:
    """A session's row, with those of its devices that were used lately."""

    __slots__ = (
        "devices",
        "dirty",
        "fresh",
        "id",
        "last_key",
        "last_seq",
        "name",
        "slot",
        "spans",
        "spans_dirty",
    )

    def __init__(self, identity: int, slot: int, name: str, last_seq: int, last_key: int) -> None:
        self.id = identity
        self.slot = slot
        self.name = name
        self.last_seq = last_seq
        self.last_key = last_key
        self.devices: dict[str, DeviceEntry] = {}
        self.spans: dict[int, int] = {}
        """month -> lowest seq of it: where to look for a seq without asking every month."""
        self.spans_dirty = False
        self.dirty = False
        self.fresh = False
        """No row of it was in the file when it came: its devices need not be looked up."""


def recent_sends(window: bytes) -> tuple[tuple[int, int], ...]:
    """The (seq, checksum) of consecutive sends up to the newest, as far as they are all known."""
    sends = list(SENT.iter_unpack(window))
    for index in range(len(sends) - 1, -1, -1):
        if not sends[index][0]:
            del sends[: index + 1]
            break
    return tuple((seq, checksum) for seq, checksum in sends)


def session_guard(identity: int, slot: int, name: str, last_seq: int, last_key: int) -> int:
    return zlib.crc32(f"{identity} {slot} {last_seq} {last_key} {name}".encode())


def device_guard(session: int, device: str, last_n: int, recent: bytes) -> int:
    return zlib.crc32(recent, zlib.crc32(f"{session} {last_n} {device}".encode()))


def applied_guard(slot: int, lsn: int) -> int:
    return zlib.crc32(f"{slot} {lsn}".encode())


class StateFile:
    """``state.db`` and its cache. What was merged is on disk after ``write``."""

    def __init__(self, path: Path, create: bool) -> None:
        self.db = Database(path, FORMAT, create)
        try:
            self.applied = self._load_applied()
            self.months = {month for (month,) in self.db.int_rows("SELECT month FROM months")}
            self._next_id = self.db.row("SELECT coalesce(max(id), 0) + 1 FROM sessions")[0]
        except BaseException:
            self.db.abandon()
            raise
        self._cache: dict[str, SessionEntry] = {}
        self._devices_cached = 0
        self._new: list[SessionEntry] = []
        self._touched: list[SessionEntry] = []

    def _load_applied(self) -> dict[int, int]:
        applied = {}
        for slot, lsn, guard in self.db.rows("SELECT slot, lsn, guard FROM applied"):
            # One that is too high would make a hole look like a log.
            if guard != applied_guard(slot, lsn):
                raise CorruptData(f"{self.db.path}: the applied lsn of slot {slot} is damaged")
            applied[slot] = lsn
        return applied

    # -- applying --------------------------------------------------------------------------------

    def touch(self, name: str, slot: int) -> SessionEntry:
        """The session's entry, to be changed: loaded, or made if it is new."""
        entry = self._cache.pop(name, None) or self._load(name) or self._create(name, slot)
        # Back in at the end: the ones at the front were not used for longest.
        self._cache[name] = entry
        if entry.slot != slot:
            raise InvariantBroken(f"session {name!r} is in slot {entry.slot} and in slot {slot}")
        if not entry.dirty:
            entry.dirty = True
            self._touched.append(entry)
        return entry

    def _load(self, name: str) -> SessionEntry | None:
        found = self.session(name)
        if found is not None:
            found.spans = self.spans(found.id)
        return found

    def _create(self, name: str, slot: int) -> SessionEntry:
        entry = SessionEntry(self._next_id, slot, name, 0, 0)
        entry.fresh = True
        self._next_id += 1
        self._new.append(entry)
        return entry

    def device(self, entry: SessionEntry, device: str) -> DeviceEntry:
        """The device's entry, to be changed; for one that ``entry.devices`` does not have yet."""
        row = None if entry.fresh else self.device_row(entry.id, device)
        loaded = DeviceEntry() if row is None else DeviceEntry(*row)
        entry.devices[device] = loaded
        self._devices_cached += 1
        return loaded

    def reserve(self, months: Iterable[int]) -> None:
        """Make the ids of new sessions and the new months durable.

        Before any month file uses them: an id given to another session after a crash would leave
        timeline rows that point to a stranger's events.
        """
        fresh = [month for month in months if month not in self.months]
        if not fresh and not self._new:
            return
        rows = [
            (e.id, e.slot, e.name, 0, 0, session_guard(e.id, e.slot, e.name, 0, 0))
            for e in self._new
        ]
        with self.db.transaction() as connection:
            connection.executemany("INSERT INTO sessions VALUES(?,?,?,?,?,?)", rows)
            connection.executemany("INSERT INTO months VALUES(?)", [(m,) for m in fresh])
        self.months.update(fresh)
        self._new.clear()

    def write(self, applied: dict[int, int]) -> None:
        """Write what was touched, and how far history goes, in one transaction."""
        marks = {slot: lsn for slot, lsn in applied.items() if lsn > self.applied.get(slot, -1)}
        sessions, devices, spans = self._rows()
        with self.db.transaction() as connection:
            connection.executemany(
                "UPDATE sessions SET last_seq=?, last_key=?, guard=? WHERE id=?", sessions
            )
            connection.executemany("INSERT OR REPLACE INTO devices VALUES(?,?,?,?,?)", devices)
            connection.executemany("INSERT OR REPLACE INTO spans VALUES(?,?,?)", spans)
            connection.executemany(
                "INSERT OR REPLACE INTO applied VALUES(?,?,?)",
                [(slot, lsn, applied_guard(slot, lsn)) for slot, lsn in marks.items()],
            )
        self.applied.update(marks)
        self._touched.clear()
        self._evict()

    def _rows(
        self,
    ) -> tuple[
        list[tuple[int, int, int, int]],
        list[tuple[int, str, int, bytes, int]],
        list[tuple[int, int, int]],
    ]:
        sessions, devices, spans = [], [], []
        for entry in self._touched:
            entry.dirty = False
            guard = session_guard(entry.id, entry.slot, entry.name, entry.last_seq, entry.last_key)
            sessions.append((entry.last_seq, entry.last_key, guard, entry.id))
            for name, device in entry.devices.items():
                if device.dirty:
                    device.dirty = False
                    recent = device.window()
                    sealed = device_guard(entry.id, name, device.last_n, recent)
                    devices.append((entry.id, name, device.last_n, recent, sealed))
            if entry.spans_dirty:
                entry.spans_dirty = False
                spans += [(entry.id, month, seq) for month, seq in entry.spans.items()]
        devices.sort()
        return sessions, devices, spans

    def _evict(self) -> None:
        while self._devices_cached > DEVICES_CACHED_MAX:
            entry = self._cache.pop(next(iter(self._cache)))
            self._devices_cached -= len(entry.devices)

    # -- reading ---------------------------------------------------------------------------------

    def session(self, name: str) -> SessionEntry | None:
        """The session's row, without devices and spans, in an entry of its own."""
        row = self.db.row(
            "SELECT id, slot, session, last_seq, last_key, guard FROM sessions WHERE session=?",
            (name,),
        )
        if row is None:
            self._check_neighbours(name)
            return None
        if row[2] != name:
            raise CorruptData(
                f"{self.db.path}: the index leads from session {name!r} to {row[2]!r}"
            )
        return self._entry(row)

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
        """Some of the sessions of a slot, by ascending id."""
        rows = self.db.rows(
            "SELECT id, slot, session, last_seq, last_key, guard FROM sessions"
            " WHERE slot=? AND id>? ORDER BY id LIMIT ?",
            (slot, after_id, limit),
        )
        return [self._entry(row) for row in rows]

    def spans(self, session: int) -> dict[int, int]:
        """The months that the session has events in, ascending, and the lowest seq of each."""
        select = "SELECT month, first_seq FROM spans WHERE session=? ORDER BY month"
        return dict(self.db.int_rows(select, (session,)))

    def devices(self, session: int) -> Iterator[tuple[str, int, bytes]]:
        """A session's devices: (device, last_n, window)."""
        select = "SELECT device, last_n, recent, guard FROM devices WHERE session=? ORDER BY device"
        for row in self.db.rows(select, (session,)):
            yield self._checked(session, row)

    def _checked(self, session: int, row: tuple[str, int, bytes, int]) -> tuple[str, int, bytes]:
        device, last_n, recent, guard = row
        if type(recent) is not bytes or guard != device_guard(session, device, last_n, recent):
            raise CorruptData(
                f"{self.db.path}: the row of device {device!r} in session {session} is damaged"
            )
        return device, last_n, recent

    def device_row(self, session: int, device: str) -> tuple[int, bytes] | None:
        """A device's last n and window."""
        row = self.db.row(
            "SELECT device, last_n, recent, guard FROM devices WHERE session=? AND device=?",
            (session, device),
        )
        return None if row is None else self._checked(session, row)[1:]

    def image(self, name: str) -> SessionImage:
        """What a new owner needs of one session; last_seq 0 when it is not known."""
        entry = self.session(name)
        if entry is None:
            return SessionImage(name, 0, ())
        devices = tuple(
            DeviceImage(device, last_n, recent_sends(window))
            for device, last_n, window in self.devices(entry.id)
        )
        return SessionImage(name, entry.last_seq, devices)

    # -- dropping --------------------------------------------------------------------------------

    def begin_drop(self, slot: int) -> None:
        """From here on the slot counts as not applied, also after a crash half way."""
        with self.db.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO dropping VALUES(?)", (slot,))
            connection.execute("DELETE FROM applied WHERE slot=?", (slot,))
        self.applied.pop(slot, None)

    def dropping(self) -> list[int]:
        """Slots whose deletion a crash has interrupted."""
        return [slot for (slot,) in self.db.int_rows("SELECT slot FROM dropping")]

    def session_ids(self, slot: int) -> list[int]:
        select = "SELECT id FROM sessions WHERE slot=?"
        return [identity for (identity,) in self.db.int_rows(select, (slot,))]

    def finish_drop(self, slot: int, sessions: list[int]) -> None:
        gone = [(session,) for session in sessions]
        with self.db.transaction() as connection:
            connection.executemany("DELETE FROM devices WHERE session=?", gone)
            connection.executemany("DELETE FROM spans WHERE session=?", gone)
            connection.executemany("DELETE FROM sessions WHERE id=?", gone)
            connection.execute("DELETE FROM dropping WHERE slot=?", (slot,))
        self._cache.clear()
        self._devices_cached = 0
