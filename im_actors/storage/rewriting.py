"""Moves a month's file to another directory, or drops its content: both write it anew.

    1  note in the index what is to become of the month
    2  copy the rows to a new file; who writes to the month meanwhile writes to both
    3  read the new file back and compare
    4  close it, and make its name durable
    5  switch the month's place in the index: one transaction
    6  delete the old file
    7  forget the note

A crash before 5 leaves the old file as the month and one after it the new file; ``tidy`` of
``storage.places`` removes the other one. All of it goes in steps, between which the history is
read and written as ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from im_actors.core.dropping import dropped_fact, dropped_record, edits_of
from im_actors.core.facts import event_facts
from im_actors.core.model import Record
from im_actors.errors import BadRequest, CorruptData, DiskFailed, MonthAway, Overloaded
from im_actors.storage.database import fsync_directory
from im_actors.storage.journal import LSN_BITS, checked_record
from im_actors.storage.months import MonthFile, RecordRow
from im_actors.storage.places import Place, Rewriting, month_text, remove_file

if TYPE_CHECKING:
    from im_actors.storage.history import History

WAL_BYTES_MAX = 8 << 20
"""A copy's WAL that has grown to this is checkpointed."""
FACTS_STEP = 1_000
"""Texts of edits that are removed from the state in one transaction."""

Reached = Callable[[str], None]


def nothing(step: str) -> None:
    """For who does not want to be told of the steps."""


def move_month(
    history: History, month: int, directory: Path, reached: Reached = nothing
) -> Iterator[None]:
    """Move a month to a directory, which is made if its parent is there; to the history's own
    directory: back."""
    history.write()
    home = directory.resolve() == history.path.resolve()
    source = history.index.places.of(month)
    target = source._replace(directory="" if home else str(directory.resolve()))
    yield from _rewrite(history, month, target, reached)


def drop_month(history: History, month: int, reached: Reached = nothing) -> Iterator[None]:
    """Delete the content of a month's events and leave the rest of them."""
    history.write()
    if month not in history.index.months:
        # What backfill may still bring to it has no content either.
        history.index.places.note_dropped(month)
        return
    target = history.index.places.of(month)._replace(dropped=True)
    yield from _rewrite(history, month, target, reached)


def _rewrite(history: History, month: int, target: Place, reached: Reached) -> Iterator[None]:
    job = _job(history, month, target)
    if job is None:
        return
    places = history.index.places
    if not target.dropped:
        _make_directory(job, history)
    places.begin(job)
    reached("begun")
    history.month(month)
    # From here on what backfill brings to a month that is dropped has no content; what was staged
    # before has been written.
    remove_file(places.path_at(month, target))
    away = bool(target.directory)
    copy = MonthFile(places.path_at(month, target), True, away, history.month_form)
    history.copies[month] = copy
    try:
        reached("made")
        yield from _copy(history, job, copy, reached)
        yield from _compare(history, job, copy)
        reached("compared")
        yield from _forget_texts(history, job)
        copy.db.close()
    finally:
        history.copies.pop(month, None)
        copy.db.abandon()
    # No step ends before the switch: whoever writes now writes to one file only.
    _sync(copy.db.path)
    reached("closed")
    with history.index.db.transaction() as connection:
        places.switch(connection, job)
    places.switched(job)
    reached("switched")
    history.forget_month(month)
    if remove_file(places.path_at(month, job.source)):
        reached("removed")
        places.end(month)
    reached("ended")


def _job(history: History, month: int, target: Place) -> Rewriting | None:
    """What there is to do; None when nothing is."""
    places = history.index.places
    if month not in history.index.months:
        raise BadRequest(f"there is no month {month_text(month)} here")
    if month in history.copies:
        raise Overloaded(f"{month_text(month)} is being rewritten already: wait until that is done")
    places.tidy()
    source = places.of(month)
    if source == target and not target.dropped:
        return None
    job = places.rewriting.get(month)
    if job is not None and source == job.target:
        former = places.path_at(month, job.source)
        raise MonthAway(f"{former} could not be deleted yet: mount its directory first")
    if job is not None and not target.dropped:
        raise Overloaded(f"the content of {month_text(month)} is being dropped: wait for that")
    if source == target:
        return None  # Dropped already.
    return Rewriting(month, source, target)


def _make_directory(job: Rewriting, history: History) -> None:
    directory = history.index.places.path_at(job.month, job.target).parent
    if not directory.parent.is_dir():
        raise BadRequest(f"{directory.parent} is no directory on this host: mount or make it first")
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        fsync_directory(directory.parent)
    except OSError as error:
        raise DiskFailed(f"{directory}: {error.strerror or error}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    fsync_directory(path.parent)


def _copy(history: History, job: Rewriting, copy: MonthFile, reached: Reached) -> Iterator[None]:
    after = -1
    while rows := history.month(job.month).rows_after(after):
        after = rows[-1][0]
        if job.target.dropped:
            rows = [_without_content(copy, row) for row in rows]
        copy.add(rows)
        if copy.db.wal_bytes() > WAL_BYTES_MAX:
            # All of it at the end would hold up the thread for as long as the month is large.
            copy.db.checkpoint(truncate=True)
        reached("copied")
        yield None


def _without_content(copy: MonthFile, row: RecordRow) -> RecordRow:
    slot = row[0] >> LSN_BITS
    record = dropped_record(slot, checked_record(copy.db.path, slot, row))
    return row[0], record.epoch, record.checksum, record.payload


def _compare(history: History, job: Rewriting, copy: MonthFile) -> Iterator[None]:
    """Read the copy from the disk; CorruptData when it is not the month."""
    copy.db.forget_pages()
    after = -1
    while rows := history.month(job.month).rows_after(after):
        found = {row[0]: row for row in copy.rows_between(rows[0][0], rows[-1][0])}
        after = rows[-1][0]
        for row in rows:
            if not _is_copy(job, copy, row, found.get(row[0])):
                slot, lsn = row[0] >> LSN_BITS, row[0] & ((1 << LSN_BITS) - 1)
                raise CorruptData(f"{copy.db.path}: slot {slot} lsn {lsn} is not what was copied")
        yield None


def _is_copy(job: Rewriting, copy: MonthFile, row: RecordRow, found: RecordRow | None) -> bool:
    if found is None:
        return False
    checked_record(copy.db.path, row[0] >> LSN_BITS, found)
    # What an owner commits to an old month while it is dropped keeps its content.
    same = found[1:3] == row[1:3]
    return same or (job.target.dropped and found[1:] == _without_content(copy, row)[1:])


def _forget_texts(history: History, job: Rewriting) -> Iterator[None]:
    """Remove from the state what the edits of a month that is dropped have said."""
    after = -1
    while job.target.dropped and (rows := history.month(job.month).rows_after(after)):
        after = rows[-1][0]
        records = [Record(place, epoch, payload, sum_) for place, epoch, sum_, payload in rows]
        facts = [
            (event.session, dropped_fact(fact))
            for record in records
            for event in edits_of(record)
            for fact in event_facts(event)
        ]
        for start in range(0, len(facts), FACTS_STEP):
            history.index.replace_facts(facts[start : start + FACTS_STEP])
        yield None
