"""The statements of a client's store."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import aiosqlite

from im_actors.core.model import Event, decode_event
from im_actors.core.outbox_words import Key, OutboxRow
from im_actors.storage.client_schema import guard_of

BATCH_ROWS_MAX = 160
"""Most rows of one statement: 6 columns each, below the 999 variables of old builds of SQLite."""

ROW = ", ".join(OutboxRow._fields)
Statement = tuple[str, Sequence[Any]]


async def transaction(db: aiosqlite.Connection, statements: list[Statement]) -> None:
    """All or nothing. One statement is a transaction by itself and costs one trip to the thread."""
    if len(statements) == 1:
        await db.execute_fetchall(*statements[0])
        return
    await db.execute_fetchall("BEGIN IMMEDIATE")
    for sql, values in statements:
        await db.execute_fetchall(sql, values)
    await db.execute_fetchall("COMMIT")


def inserts(rows: Iterable[OutboxRow]) -> list[Statement]:
    values = [guarded(row) for row in rows]
    return many(f"INSERT OR REPLACE INTO outbox ({ROW}, guard) VALUES", values)


def deletes(keys: list[Key]) -> list[Statement]:
    """A trigger moves the counter past a row that is deleted: until then the row itself says which
    n are used up, so an insert is the only statement of a send."""
    # Any simpler form reads the whole table. CROSS JOIN fixes the order: keys, then index.
    return [
        (
            f"WITH gone (session, n) AS (VALUES {_marks(len(part), 2)}) DELETE FROM outbox WHERE "
            "id IN (SELECT o.id FROM gone CROSS JOIN outbox o USING (session, n))",
            [value for key in part for value in key],
        )
        for part in _parts(keys)
    ]


def forgets(names: list[tuple[str, str]]) -> list[Statement]:
    """Kept values that are kept no more."""
    return [
        (
            f"DELETE FROM kept WHERE (area, name) IN (VALUES {_marks(len(part), 2)})",
            [value for name in part for value in name],
        )
        for part in _parts(names)
    ]


def many(head: str, rows: Sequence[Sequence[Any]]) -> list[Statement]:
    """One statement for many rows. ``executemany`` gives up the GIL once per row, and gets it back
    only after 5 ms each time when the event loop is busy."""
    return [
        (f"{head} {_marks(len(part), len(part[0]))}", [v for row in part for v in row])
        for part in _parts(rows)
    ]


def _parts(rows: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (rows[i : i + BATCH_ROWS_MAX] for i in range(0, len(rows), BATCH_ROWS_MAX))


@functools.lru_cache(maxsize=1024)
def _marks(rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return ", ".join([row] * rows)


async def pragma(db: aiosqlite.Connection, name: str) -> int:
    rows = list(await db.execute_fetchall(f"PRAGMA {name}"))
    return int(rows[0][0])


def guarded(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*row, guard_of(*row))


def events(rows: Iterable[Sequence[Any]]) -> list[Event]:
    """Those of the cached events that are as they were written."""
    return [decode_event(row[2]) for row in rows if row[3] == guard_of(*row[:3])]


def lenient_text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def newest_first(event: Event) -> tuple[int, str]:
    return -event.key, event.session
