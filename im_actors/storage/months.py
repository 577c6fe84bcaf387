"""One month of history: committed records, as they came."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from im_actors.core.model import Record, key_time_ms, make_key
from im_actors.errors import InvariantBroken
from im_actors.storage.database import Database, Format
from im_actors.storage.journal import LSN_BITS, LSN_MAX, checked_record, row_id
from im_actors.storage.steps import Rest, in_steps, no_rest

FORMAT = Format(
    name="history month",
    version=2,
    schema=(
        "CREATE TABLE records(id INTEGER PRIMARY KEY, epoch INTEGER NOT NULL,"
        " checksum INTEGER NOT NULL, payload BLOB NOT NULL)",
    ),
    page_bytes=16_384,
    cache_kib=32_768,
)

WRITE_BYTES_MAX = 512 * 1024
"""Payload bytes of one transaction, and one record more."""
ROWS_MAX = 1_024
"""Most rows that are copied in one step."""

RecordRow = tuple[int, int, int, bytes]


class MonthSpan(NamedTuple):
    """A month as year * 100 + month, with its message keys from ``first`` to below ``end``."""

    month: int
    first_key: int
    end_key: int


def month_of(key: int) -> MonthSpan:
    """The UTC month that a message key belongs to."""
    at = datetime.fromtimestamp(key_time_ms(key) / 1000, UTC)
    year, month = (at.year + 1, 1) if at.month == 12 else (at.year, at.month + 1)
    return MonthSpan(
        at.year * 100 + at.month,
        _first_key(at.year, at.month),
        _first_key(year, month),
    )


def month_at(time_ms: int) -> int:
    """The UTC month of a time in milliseconds since 1970, as year * 100 + month."""
    at = datetime.fromtimestamp(time_ms / 1000, UTC)
    return at.year * 100 + at.month


def _first_key(year: int, month: int) -> int:
    return make_key(int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1000, 0, 0)


class MonthFile:
    """The file of one month. Rows are only ever added, but for ``drop``."""

    def __init__(
        self, path: Path, create: bool, removable: bool = False, form: Format = FORMAT
    ) -> None:
        self.db = Database(path, form, create, removable)

    def write(self, records: list[RecordRow], rest: Rest = no_rest) -> None:
        """Add records; the same ones again are fine. On disk when this returns, but not in one
        transaction: one fsync of many megabytes holds up all others on the same disk."""
        records.sort()
        for part in _parts(records):
            self._write(part, rest)
            rest()

    def _write(self, records: list[RecordRow], rest: Rest) -> None:
        insert = "INSERT OR IGNORE INTO records VALUES(?,?,?,?)"
        with self.db.transaction() as connection:
            added = 0
            for step in in_steps(records, rest):
                added += connection.executemany(insert, step).rowcount
            if added != len(records):
                self._check_equal(records)

    def _check_equal(self, records: list[RecordRow]) -> None:
        """I3: a committed lsn has the same bytes for ever."""
        for place, epoch, checksum, _ in records:
            found = self.db.row("SELECT epoch, checksum FROM records WHERE id=?", (place,))
            if found != (epoch, checksum):
                raise InvariantBroken(
                    f"I3: slot {place >> LSN_BITS} lsn {place & LSN_MAX} is in history as {found} "
                    f"and comes again as {(epoch, checksum)}"
                )

    def run(self, slot: int, first_lsn: int, last_lsn: int, bytes_max: int) -> list[Record]:
        """Consecutive records from ``first_lsn`` on, verified: at least one if it is here."""
        found: list[Record] = []
        size = 0
        for record in self.records(slot, first_lsn, last_lsn):
            size += len(record.payload)
            if record.lsn != first_lsn + len(found) or (found and size > bytes_max):
                break
            found.append(record)
        return found

    def records(self, slot: int, first_lsn: int, last_lsn: int) -> Iterator[Record]:
        """The records of a stretch, verified, with whatever holes it has."""
        for row in self.rows(slot, first_lsn, last_lsn):
            yield checked_record(self.db.path, slot, row)

    def rows(self, slot: int, first_lsn: int, last_lsn: int) -> Iterator[RecordRow]:
        """The rows of a stretch of records as they are, not verified."""
        return self.db.rows(
            "SELECT id, epoch, checksum, payload FROM records WHERE id BETWEEN ? AND ? ORDER BY id",
            (row_id(slot, first_lsn), row_id(slot, min(last_lsn, LSN_MAX))),
        )

    def rows_after(self, place: int) -> list[RecordRow]:
        """The next rows behind a place, of whatever slot, not verified; none at the end."""
        found: list[RecordRow] = []
        size = 0
        select = "SELECT id, epoch, checksum, payload FROM records WHERE id>? ORDER BY id LIMIT ?"
        for row in self.db.rows(select, (place, ROWS_MAX)):
            found.append(row)
            size += len(row[3])
            if size >= WRITE_BYTES_MAX:
                break
        return found

    def rows_between(self, first: int, last: int) -> Iterator[RecordRow]:
        """The rows from one place to another, not verified."""
        select = "SELECT id, epoch, checksum, payload FROM records WHERE id BETWEEN ? AND ?"
        return self.db.rows(select, (first, last))

    def add(self, rows: list[RecordRow]) -> None:
        """Add rows that are not here yet; what is here stays."""
        with self.db.transaction() as connection:
            connection.executemany("INSERT OR IGNORE INTO records VALUES(?,?,?,?)", rows)

    def ends(self, slot: int) -> tuple[RecordRow, RecordRow]:
        """The first and the last row of a slot that has some."""
        select = "SELECT id, epoch, checksum, payload FROM records WHERE id BETWEEN ? AND ?"
        span = (row_id(slot, 0), row_id(slot, LSN_MAX))
        first = self.db.row(f"{select} ORDER BY id LIMIT 1", span)
        return first, self.db.row(f"{select} ORDER BY id DESC LIMIT 1", span)

    def next_lsn(self, slot: int, from_lsn: int) -> int | None:
        """The lowest lsn of the slot at or above ``from_lsn`` that is here."""
        row = self.db.row(
            "SELECT id FROM records WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 1",
            (row_id(slot, from_lsn), row_id(slot, LSN_MAX)),
        )
        return None if row is None else row[0] & LSN_MAX

    def has(self, slot: int, lsn: int) -> bool:
        select = "SELECT 1 FROM records WHERE id=?"
        return self.db.row(select, (row_id(slot, lsn),)) is not None

    def slots(self) -> list[int]:
        """The slots that have records here."""
        found: list[int] = []
        slot = 0
        while True:
            row = self.db.row("SELECT id FROM records WHERE id>=? LIMIT 1", (row_id(slot, 0),))
            if row is None:
                return found
            found.append(row[0] >> LSN_BITS)
            slot = found[-1] + 1

    def drop(self, slot: int) -> None:
        """Delete the records of a slot."""
        with self.db.transaction() as connection:
            connection.execute(
                "DELETE FROM records WHERE id BETWEEN ? AND ?",
                (row_id(slot, 0), row_id(slot, LSN_MAX)),
            )


def _parts(records: list[RecordRow]) -> Iterator[list[RecordRow]]:
    """The records in parts for one transaction each; neighbours, which share pages, together."""
    start = size = 0
    for end, record in enumerate(records, start=1):
        size += len(record[3])
        if size >= WRITE_BYTES_MAX or end == len(records):
            yield records[start:end]
            start, size = end, 0
