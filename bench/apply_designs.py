"""Designs of history that were weighed against the one in ``im_actors.storage.history``: just their
tables, written with the same care, so that the comparison can be repeated."""

from __future__ import annotations

import sqlite3
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgpack

from im_actors.core.model import (
    DEVICE_WINDOW,
    Record,
    body_checksum,
    record_checksum,
    record_events,
)

Batch = list[tuple[int, Record]]
_SENT = struct.Struct(">QI")
_WINDOW_BYTES = DEVICE_WINDOW * _SENT.size
WAL_BYTES_MAX = 64 << 20


class PerEvent:
    """What all of them do: decode each event, and keep each session's counters and each device's
    window of last sends in rows. ``tables`` and ``write`` are the design."""

    tables: tuple[str, ...] = ()
    page_bytes = 16_384

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = sqlite3.connect(path, isolation_level=None)
        for pragma in ("locking_mode=EXCLUSIVE", f"page_size={self.page_bytes}"):
            self.db.execute(f"PRAGMA {pragma}")
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=0"):
            self.db.execute(f"PRAGMA {pragma}").fetchall()
        self.db.execute("PRAGMA cache_size=-65536")
        for table in (
            "CREATE TABLE sessions(id INTEGER PRIMARY KEY, name TEXT UNIQUE, last_seq INTEGER)",
            "CREATE TABLE devices(session INTEGER, device TEXT, last_n INTEGER, recent BLOB,"
            " PRIMARY KEY(session, device)) WITHOUT ROWID",
            *self.tables,
        ):
            self.db.execute(table)
        self.ids: dict[str, int] = {}
        self.windows: dict[tuple[int, str], bytearray] = defaultdict(bytearray)

    def apply(self, batch: Batch) -> None:
        last_seq: dict[int, int] = {}
        last_n: dict[tuple[int, str], int] = {}
        fresh = []
        events: list[tuple[int, int, int, int, bytes]] = []
        for slot, (lsn, epoch, payload, checksum) in batch:
            assert record_checksum(slot, lsn, epoch, payload) == checksum
            for position, data in enumerate(record_events(payload)):
                name, seq, _, kind, device, n, body = msgpack.unpackb(data)
                identity = self.ids.get(name)
                if identity is None:
                    identity = self.ids[name] = len(self.ids) + 1
                    fresh.append((identity, name, 0))
                events.append((identity, seq, lsn, position, data))
                last_seq[identity] = seq
                last_n[identity, device] = n
                self.windows[identity, device] += _SENT.pack(seq, body_checksum(kind, body))
        self.db.execute("BEGIN")
        self.db.executemany("INSERT INTO sessions VALUES(?,?,?)", fresh)
        self.write(batch, events)
        self._write_counters(last_seq, last_n)
        self.db.execute("COMMIT")
        if self.path.with_name(self.path.name + "-wal").stat().st_size > WAL_BYTES_MAX:
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _write_counters(self, last_seq: dict[int, int], last_n: dict[tuple[int, str], int]) -> None:
        rows = []
        for (session, device), n in last_n.items():
            window = self.windows[session, device]
            del window[:-_WINDOW_BYTES]
            rows.append((session, device, n, bytes(window)))
        rows.sort()
        self.db.executemany("INSERT OR REPLACE INTO devices VALUES(?,?,?,?)", rows)
        seqs = [(seq, session) for session, seq in last_seq.items()]
        self.db.executemany("UPDATE sessions SET last_seq=? WHERE id=?", seqs)

    def write(self, batch: Batch, events: list[Any]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.db.close()


class ClusteredRows(PerEvent):
    """Records as they came, and one row per event in the order of (session, seq)."""

    tables = (
        "CREATE TABLE records(id INTEGER PRIMARY KEY, epoch INTEGER, checksum INTEGER,"
        " payload BLOB)",
        "CREATE TABLE timeline(session INTEGER, seq INTEGER, lsn INTEGER, position INTEGER,"
        " PRIMARY KEY(session, seq)) WITHOUT ROWID",
    )

    def write(self, batch: Batch, events: list[Any]) -> None:
        rows = sorted((slot << 44 | r.lsn, r.epoch, r.checksum, r.payload) for slot, r in batch)
        self.db.executemany("INSERT INTO records VALUES(?,?,?,?)", rows)
        events.sort()
        places = [event[:4] for event in events]
        self.db.executemany("INSERT INTO timeline VALUES(?,?,?,?)", places)


class AppendAndIndex(PerEvent):
    """Events at the end of one table as they came, and an index from (session, seq) to them."""

    tables = (
        "CREATE TABLE events(id INTEGER PRIMARY KEY, lsn INTEGER, data BLOB)",
        "CREATE TABLE places(session INTEGER, seq INTEGER, event INTEGER,"
        " PRIMARY KEY(session, seq)) WITHOUT ROWID",
    )
    last_id = 0

    def write(self, batch: Batch, events: list[Any]) -> None:
        first = self.last_id + 1
        rows = [(i, event[2], event[4]) for i, event in enumerate(events, first)]
        self.db.executemany("INSERT INTO events VALUES(?,?,?)", rows)
        places = sorted((event[0], event[1], i) for i, event in enumerate(events, first))
        self.db.executemany("INSERT INTO places VALUES(?,?,?)", places)
        self.last_id += len(events)


class SessionRuns(PerEvent):
    """One row per session and transaction, with the events themselves."""

    tables = (
        "CREATE TABLE runs(session INTEGER, first_seq INTEGER, last_seq INTEGER, events BLOB,"
        " PRIMARY KEY(session, first_seq)) WITHOUT ROWID",
    )

    def write(self, batch: Batch, events: list[Any]) -> None:
        runs: dict[int, list[Any]] = {}
        for session, seq, _, _, data in events:
            run = runs.get(session)
            if run is None:
                runs[session] = [seq, data]
            else:
                run.append(data)
        pack = msgpack.Packer(autoreset=True).pack
        rows = sorted((s, r[0], r[0] + len(r) - 2, pack(r[1:])) for s, r in runs.items())
        self.db.executemany("INSERT INTO runs VALUES(?,?,?,?)", rows)


OTHERS = {
    "clustered rows": ClusteredRows,
    "append plus index": AppendAndIndex,
    "runs per session, with the events": SessionRuns,
}
