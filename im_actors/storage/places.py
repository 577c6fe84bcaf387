"""Where the months of a history lie: which were moved, which were dropped, what is under way.

A month's place is changed by writing its file anew somewhere else (``storage.rewriting``). What is
said here decides which of the two files is the month, so one row here is what a crash leaves.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from im_actors.errors import CorruptData
from im_actors.storage.database import Database, fsync_directory

SCHEMA = (
    "CREATE TABLE places(month INTEGER PRIMARY KEY, directory TEXT NOT NULL,"
    " dropped INTEGER NOT NULL, guard INTEGER NOT NULL)",
    "CREATE TABLE rewriting(month INTEGER PRIMARY KEY, source TEXT NOT NULL,"
    " source_dropped INTEGER NOT NULL, target TEXT NOT NULL, target_dropped INTEGER NOT NULL,"
    " guard INTEGER NOT NULL)",
    "CREATE TABLE left_over(month INTEGER NOT NULL, slot INTEGER NOT NULL,"
    " guard INTEGER NOT NULL, PRIMARY KEY(month, slot)) WITHOUT ROWID",
)


class Place(NamedTuple):
    """Where a month's file is. ``directory`` is empty for the history's own."""

    directory: str = ""
    dropped: bool = False
    """Whether its content was dropped: another file, so that each place has one content."""


class Rewriting(NamedTuple):
    """A month on its way from one place to another."""

    month: int
    source: Place
    target: Place


def month_text(month: int) -> str:
    """A month as people write it: 2026-09."""
    return f"{month // 100:04}-{month % 100:02}"


def month_name(month: int, dropped: bool = False) -> str:
    """The name of a month's file."""
    return f"{month_text(month)}{'.dropped' if dropped else ''}.db"


def remove_file(path: Path) -> bool:
    """Delete a database; whether it is certain that it is gone: where the directory is not there,
    it may be on a disk that is not."""
    if not path.parent.is_dir():
        return False
    for end in ("-wal", "-shm", ""):
        path.with_name(path.name + end).unlink(missing_ok=True)
    fsync_directory(path.parent)
    return True


def create(connection: sqlite3.Connection) -> None:
    """Make the tables in a file of the format before them: all months were in their own place."""
    for statement in SCHEMA:
        connection.execute(statement)


def _guard(*fields: object) -> int:
    return zlib.crc32(repr(fields).encode())


class PlaceTable:
    """The places of all months, in ``index.db``."""

    def __init__(self, db: Database, path: Path) -> None:
        self._db = db
        self._path = path
        """The history's own directory."""
        self._places = self._load_places()
        self.rewriting = self._load_rewriting()
        """By month."""
        self.left_over = self._load_left_over()
        """month -> slots that were deleted while the month was away."""

    def _load_places(self) -> dict[int, Place]:
        found = {}
        for month, directory, dropped, guard in self._rows("places"):
            if guard != _guard(month, directory, dropped):
                raise CorruptData(f"{self._db.path}: the place of month {month} is damaged")
            found[month] = Place(directory, bool(dropped))
        return found

    def _load_rewriting(self) -> dict[int, Rewriting]:
        found = {}
        for *fields, guard in self._rows("rewriting"):
            if guard != _guard(*fields):
                raise CorruptData(f"{self._db.path}: what becomes of a month is damaged")
            month, source, source_dropped, target, target_dropped = fields
            places = Place(source, bool(source_dropped)), Place(target, bool(target_dropped))
            found[month] = Rewriting(month, *places)
        return found

    def _load_left_over(self) -> dict[int, set[int]]:
        found: dict[int, set[int]] = defaultdict(set)
        for month, slot, guard in self._rows("left_over"):
            if guard != _guard(month, slot):
                raise CorruptData(f"{self._db.path}: what is to be deleted is damaged")
            found[month].add(slot)
        return found

    def _rows(self, table: str) -> list[tuple[Any, ...]]:
        return list(self._db.rows(f"SELECT * FROM {table}"))

    def of(self, month: int) -> Place:
        """Where a month is."""
        return self._places.get(month, Place())

    def path_at(self, month: int, place: Place) -> Path:
        return Path(place.directory or self._path) / month_name(month, place.dropped)

    def path(self, month: int) -> Path:
        """The month's file."""
        return self.path_at(month, self.of(month))

    def drops(self, month: int) -> bool:
        """Whether the month's content was dropped, or is being dropped."""
        job = self.rewriting.get(month)
        return self.of(month).dropped or (job is not None and job.target.dropped)

    def dropped(self) -> list[int]:
        """The months of which this holds."""
        return sorted(month for month in {*self._places, *self.rewriting} if self.drops(month))

    @property
    def moved(self) -> bool:
        """Whether any month is not in the history's own directory."""
        return any(place.directory for place in self._places.values())

    # -- changes ---------------------------------------------------------------------------------

    def begin(self, job: Rewriting) -> None:
        """A file is made at the target; the source is the month until ``switch``."""
        (source, source_dropped), (target, target_dropped) = job.source, job.target
        fields = (job.month, source, int(source_dropped), target, int(target_dropped))
        with self._db.transaction() as connection:
            insert = "INSERT OR REPLACE INTO rewriting VALUES(?,?,?,?,?,?)"
            connection.execute(insert, (*fields, _guard(*fields)))
        self.rewriting[job.month] = job

    def switch(self, connection: sqlite3.Connection, job: Rewriting) -> None:
        """From the end of the transaction that is under way on the target is the month; then call
        ``switched``."""
        fields = (job.month, job.target.directory, int(job.target.dropped))
        insert = "INSERT OR REPLACE INTO places VALUES(?,?,?,?)"
        connection.execute(insert, (*fields, _guard(*fields)))

    def switched(self, job: Rewriting) -> None:
        self._places[job.month] = job.target

    def end(self, month: int) -> None:
        """There is one file of the month again."""
        with self._db.transaction() as connection:
            connection.execute("DELETE FROM rewriting WHERE month=?", (month,))
        self.rewriting.pop(month, None)

    def note_dropped(self, month: int) -> None:
        """Of a month that there is no file of: if one comes, it will be without content."""
        job = Rewriting(month, Place(), Place(dropped=True))
        with self._db.transaction() as connection:
            self.switch(connection, job)
        self.switched(job)

    def leave_over(self, month: int, slot: int) -> None:
        """The slot is to be deleted from the month's file before that is used again."""
        with self._db.transaction() as connection:
            insert = "INSERT OR IGNORE INTO left_over VALUES(?,?,?)"
            connection.execute(insert, (month, slot, _guard(month, slot)))
        self.left_over[month].add(slot)

    def no_left_over(self, month: int) -> None:
        with self._db.transaction() as connection:
            connection.execute("DELETE FROM left_over WHERE month=?", (month,))
        del self.left_over[month]

    # -- after a crash ---------------------------------------------------------------------------

    def tidy(self) -> None:
        """Remove the files that are not months, as far as their directories are there. A move that
        had not come to its switch is given up; a drop is to be begun again."""
        for job in list(self.rewriting.values()):
            done = self.of(job.month) == job.target
            gone = remove_file(self.path_at(job.month, job.source if done else job.target))
            if (done and gone) or not (done or job.target.dropped):
                self.end(job.month)

    def unfinished(self) -> list[int]:
        """Months whose content is still to be dropped."""
        return [job.month for job in self.rewriting.values() if self.of(job.month) != job.target]
