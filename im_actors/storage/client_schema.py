"""The tables of a client's store, and how older files get them."""

from __future__ import annotations

import zlib

FORMAT = 3
"""``PRAGMA user_version`` of the files that this version writes."""
APPLICATION_ID = 0x494D4353
"""``PRAGMA application_id``, "IMCS": tells our files from other programs' SQLite files."""

SCHEMA = """
CREATE TABLE identity (user TEXT NOT NULL, device TEXT NOT NULL, install TEXT NOT NULL);
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY, session TEXT NOT NULL, n INTEGER NOT NULL, kind INTEGER NOT NULL,
    body BLOB NOT NULL, created_ms INTEGER NOT NULL, UNIQUE (session, n));
CREATE TABLE counters (session TEXT PRIMARY KEY, next_n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER used AFTER DELETE ON outbox BEGIN
    INSERT INTO counters VALUES (old.session, old.n + 1)
    ON CONFLICT (session) DO UPDATE SET next_n = max(next_n, excluded.next_n);
END;
CREATE TABLE cursors (session TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE timeline (
    session TEXT NOT NULL, seq INTEGER NOT NULL, event BLOB NOT NULL,
    PRIMARY KEY (session, seq)) WITHOUT ROWID;
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
GUARDS = """
ALTER TABLE identity ADD COLUMN guard INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN guard INTEGER NOT NULL DEFAULT 0;
ALTER TABLE counters ADD COLUMN guard INTEGER NOT NULL DEFAULT 0;
ALTER TABLE cursors ADD COLUMN guard INTEGER NOT NULL DEFAULT 0;
ALTER TABLE timeline ADD COLUMN guard INTEGER NOT NULL DEFAULT 0;
UPDATE identity SET guard = guard_of(user, device, install);
UPDATE outbox SET guard = guard_of(session, n, kind, body, created_ms);
UPDATE counters SET guard = guard_of(session, next_n);
UPDATE cursors SET guard = guard_of(session, seq);
UPDATE timeline SET guard = guard_of(session, seq, event);
DROP TRIGGER used;
CREATE TRIGGER used AFTER DELETE ON outbox BEGIN
    INSERT INTO counters VALUES (old.session, old.n + 1, guard_of(old.session, old.n + 1))
    ON CONFLICT (session) DO UPDATE SET next_n = excluded.next_n, guard = excluded.guard
    WHERE excluded.next_n > next_n;
END;
"""
KEPT = """
CREATE TABLE kept (
    area TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL, guard INTEGER NOT NULL,
    PRIMARY KEY (area, name)) WITHOUT ROWID;
"""
"""What the servers said of the user side: conversations, what became of messages, members. Small
values by area and name, for reading offline."""
MIGRATIONS: dict[int, str] = {0: SCHEMA, 1: GUARDS, 2: KEPT}
"""From a version to the next one; version 0 is an empty file."""


def guard_of(*values: str | int | bytes) -> int:
    """A checksum of a row's values and their types: SQLite keeps a type with each value."""
    checksum = 0
    for value in values:
        kind = "i" if isinstance(value, int) else "b" if isinstance(value, bytes) else "s"
        data = value if isinstance(value, bytes) else format(value).encode()
        checksum = zlib.crc32(data, zlib.crc32(f"{kind}{len(data)}:".encode(), checksum))
    return checksum
