"""History: every committed record of a replica, for ever, and what is read from it (design 6).

The directory ``history/`` has one file per month with the records as they came (``storage.places``
says which of them lie elsewhere, and which have no content any more), and ``index.db``: where each
session's events are in them, what a new owner must know, and how far history goes. A record lies in
the month of its first message key; the key of an EpochStart is in its payload. Keys never decrease
along a log, so neither do months.

Several files cannot change in one transaction, so they change in this order: months, then the index
with ``applied``. After a crash in between the months hold more than ``applied`` says; the journal
still has those records, and applying them again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgpack

from im_actors.core.dropping import dropped_record
from im_actors.core.fact_lists import FactPage, FactQuery
from im_actors.core.facts import Fact, record_facts
from im_actors.core.messages import SessionImage
from im_actors.core.model import (
    Event,
    Record,
    RecordIndex,
    decode_event,
    record_checksum,
    record_events,
    record_index,
)
from im_actors.errors import CorruptData, ImError, InvariantBroken, MonthAway
from im_actors.storage.database import Format, fsync_directory
from im_actors.storage.facts import STAGED_COUNT_MAX, STAGED_READ_MAX
from im_actors.storage.index import FORMAT as INDEX_FORMAT
from im_actors.storage.index import IndexFile, SessionEntry
from im_actors.storage.journal import LSN_BITS, LSN_MAX, row_id
from im_actors.storage.months import FORMAT as MONTH_FORMAT
from im_actors.storage.months import MonthFile, MonthSpan, month_of
from im_actors.storage.rewriting import Reached, drop_month, move_month, nothing
from im_actors.storage.runs import Place
from im_actors.storage.scan import SlotScan, scan_history
from im_actors.storage.steps import Rest, in_steps, no_rest

MONTHS_OPEN_MAX = 4
WAL_BYTES_MAX = 8 << 20
"""A WAL that has grown to this is checkpointed after the write that grew it. The disk is the
journal's, too, and a checkpoint of many megabytes holds up its fsyncs."""
READ_BYTES_MAX = 512 * 1024
SEQ_MAX = 1 << 62


class HistoryPage(NamedTuple):
    """Encoded events by ascending seq, without a hole; ``last_seq`` is the newest in history."""

    events: list[bytes]
    last_seq: int


class Sent(NamedTuple):
    """An event as its sender knows it: ``checksum`` is that of the body that was sent, of which the
    owner may have made another."""

    seq: int
    key: int
    checksum: int


class History:
    """The directory ``history/``. Used from one thread. Dead after a failed write."""

    def __init__(
        self,
        path: Path,
        create: bool = True,
        index_form: Format = INDEX_FORMAT,
        month_form: Format = MONTH_FORMAT,
    ) -> None:
        """The forms are what its files look like; older ones are migrated."""
        self.path = path
        self.month_form = month_form
        self.rest: Rest = no_rest
        """Called now and then in the middle of long work; takes its time."""
        if create:
            path.mkdir(mode=0o700, exist_ok=True)
            fsync_directory(path.parent)
        elif not path.is_dir():
            raise CorruptData(f"{path} is missing although this replica has written it")
        self.index = IndexFile(path / "index.db", create, index_form)
        self._open: dict[int, MonthFile] = {}
        self.copies: dict[int, MonthFile] = {}
        """New files of months that are being written anew: what comes to them goes there too."""
        self._last_month: dict[int, int] = {}
        """slot -> the month that its last read record was in: where to look first."""
        self._staged: dict[int, dict[int, Record]] = {}
        """month -> row id -> a record that is not on disk yet."""
        self._marks: dict[int, int] = {}
        """What ``applied`` will be when they are."""
        self._filling: set[int] = set()
        """Slots that get records at or below what is applied, or that nothing was applied of."""
        self._span = MonthSpan(0, 1, 0)
        try:
            self.index.places.tidy()
            for month in self.index.months:
                if not self.index.places.of(month).directory:
                    self._check_exists(month)
            for slot in self.index.dropping():
                self.drop(slot)
        except BaseException:
            self.abandon()
            raise

    # -- applying --------------------------------------------------------------------------------

    def apply(self, batch: list[tuple[int, Record]], applied: dict[int, int]) -> None:
        """Add committed records (slot, record) and raise ``applied``; on disk when this returns.

        In any order and repeatedly. A damaged record raises CorruptData before anything changes.
        """
        self.stage(batch, applied)
        self.write()

    def stage(self, batch: list[tuple[int, Record]], applied: dict[int, int]) -> None:
        """Like ``apply``, in memory only: what is staged is read, and durable after ``write``.
        MonthAway, before anything changes, when a month of it cannot be written to."""
        self.index.db.check_alive()
        indexes: list[RecordIndex] = []
        for step in in_steps(batch, self.rest):
            indexes += [self._index_of(slot, record) for slot, record in step]
        if self.index.places.moved:
            for month in {month_of(index.first_key).month for index in indexes}:
                self.month(month)
        try:
            for pairs in in_steps(list(zip(batch, indexes, strict=True)), self.rest):
                for (slot, record), index in pairs:
                    self._stage(slot, record, index)
            for slot, lsn in applied.items():
                self._marks[slot] = max(lsn, self._marks.get(slot, 0))
        except BaseException as error:
            # Half of it is staged.
            self.index.db.died(error)
            raise

    def _stage(self, slot: int, record: Record, index: RecordIndex) -> None:
        if not self._span.first_key <= index.first_key < self._span.end_key:
            self._span = month_of(index.first_key)
        month = self._span.month
        if record.lsn <= self.index.applied.get(slot, LSN_MAX):
            self._filling.add(slot)
            if self.index.places.drops(month):
                # What is committed only now stays whole: somebody waits for it, and it is no old
                # content but that of an owner whose clock is wrong.
                record = dropped_record(slot, record)
        self._staged.setdefault(month, {})[row_id(slot, record.lsn)] = record
        self.index.stage(slot, record.lsn, month, index.parts)
        if index.changes:
            self.index.stage_facts(_facts_of(slot, record))

    def write(self) -> None:
        """Make durable what is staged."""
        self.index.db.check_alive()
        try:
            for month in self._staged:
                self.month(month)
            self.index.prepare(self._staged, self._filling)
            for month, records in self._staged.items():
                rows = [(i, r.epoch, r.checksum, r.payload) for i, r in records.items()]
                self.month(month).write(rows, self.rest)
                self._write_copy(month, rows)
            self.index.write(self._marks, self._filling, self.rest)
            for staged in (self._staged, self._marks, self._filling):
                staged.clear()
            self._checkpoint_if_due()
        except BaseException as error:
            # Memory may now hold what the disk does not.
            self.index.db.died(error)
            raise

    def _write_copy(self, month: int, rows: list[tuple[int, int, int, bytes]]) -> None:
        copy = self.copies.get(month)
        if copy is not None:
            try:
                copy.add(rows)
            except ImError:
                # The file is dead, and whoever makes it finds that at the next step.
                del self.copies[month]

    @staticmethod
    def _index_of(slot: int, record: Record) -> RecordIndex:
        lsn, epoch, payload, checksum = record
        if record_checksum(slot, lsn, epoch, payload) != checksum:
            raise CorruptData(f"slot {slot} lsn {lsn} comes to history with a wrong checksum")
        try:
            return record_index(payload)
        except (ValueError, TypeError, IndexError, msgpack.exceptions.UnpackException) as error:
            raise InvariantBroken(f"slot {slot} lsn {lsn} is intact and no record") from error

    def _checkpoint_if_due(self) -> None:
        for db in (self.index.db, *(file.db for file in self._open.values() if file.db.alive)):
            if db.wal_bytes() > WAL_BYTES_MAX:
                db.checkpoint(truncate=True)

    def applied(self) -> dict[int, int]:
        """Each slot's lsn up to which history holds what it was given, on disk."""
        return dict(self.index.applied)

    # -- months ----------------------------------------------------------------------------------

    def months(self) -> list[int]:
        """The months that there are files for, ascending, each as year * 100 + month."""
        return sorted(self.index.months)

    def month(self, month: int) -> MonthFile:
        """The file of a month, opened if need be; the one not used for longest is closed for it.
        MonthAway when it was moved to where nothing is now."""
        places = self.index.places
        moved = bool(places.of(month).directory)
        file = self._open.pop(month, None)
        if moved and not places.path(month).exists():
            if file is not None:
                file.db.abandon()
            raise MonthAway(f"{places.path(month)} is not there: is its directory mounted?")
        if file is None or (moved and not file.db.alive):
            while len(self._open) >= MONTHS_OPEN_MAX:
                _close(self._open.pop(next(iter(self._open))))
            known = month in self.index.months
            file = MonthFile(places.path(month), not known, moved, self.month_form)
            for slot in places.left_over.get(month, ()):
                file.drop(slot)
            if month in places.left_over:
                places.no_left_over(month)
        self._open[month] = file
        return file

    def move(self, month: int, directory: Path, reached: Reached = nothing) -> Iterator[None]:
        """Move a month to another directory, in steps; ``reached`` is told of each."""
        return move_month(self, month, directory, reached)

    def drop_content(self, month: int, reached: Reached = nothing) -> Iterator[None]:
        """Delete the content of a month's events, in steps; the rest of them stays."""
        return drop_month(self, month, reached)

    def forget_month(self, month: int) -> None:
        """Close the month's file: it is another one now."""
        file = self._open.pop(month, None)
        if file is not None:
            _close(file)

    def _check_exists(self, month: int) -> None:
        path = self.index.places.path(month)
        if not path.exists():
            raise CorruptData(f"{path} is missing")

    def away(self) -> list[str]:
        """The files of months that cannot be reached."""
        places = self.index.places
        moved = [places.path(month) for month in self.months() if places.of(month).directory]
        return [str(path) for path in moved if not path.exists()]

    # -- records ---------------------------------------------------------------------------------

    def records(self, slot: int, first_lsn: int, last_lsn: int, bytes_max: int) -> list[Record]:
        """Consecutive records from ``first_lsn`` on, verified: at most about ``bytes_max``, at
        least one if it is here."""
        found: list[Record] = []
        size = 0
        while first_lsn <= last_lsn and (size < bytes_max or not found):
            try:
                month = self._month_with(slot, first_lsn)
            except MonthAway:
                if not found:
                    raise
                break
            if month is None:
                break
            run = self.month(month).run(slot, first_lsn, last_lsn, bytes_max - size)
            if found and size + len(run[0].payload) > bytes_max:
                break
            found += run
            size += sum(len(record.payload) for record in run)
            first_lsn = run[-1].lsn + 1
        return found

    def has(self, slot: int, lsn: int) -> bool:
        return self._month_with(slot, lsn) is not None

    def _month_with(self, slot: int, lsn: int) -> int | None:
        """The month that a record is in; MonthAway when it may be in one that is away."""
        hint = self._last_month.get(slot)
        months = [month for month in reversed(self.months()) if month != hint]
        away: MonthAway | None = None
        for month in months if hint is None else (hint, *months):
            try:
                if self.month(month).has(slot, lsn):
                    self._last_month[slot] = month
                    return month
            except MonthAway as error:
                away = error
        if away is not None:
            raise away
        return None

    # -- events ----------------------------------------------------------------------------------

    def read(
        self, session: str, after: int, before: int, limit: int, bytes_max: int = READ_BYTES_MAX
    ) -> HistoryPage:
        """Events with ``after`` < seq < ``before`` (0: no upper bound): with ``before`` the newest
        ``limit`` of them, without it the oldest; after=-1 and before=0: the newest page.

        The page is the part without a hole at the side asked for: empty when the very next event is
        not here (backfill is under way). At most about ``bytes_max``, at least one event. MonthAway
        when the month of that event is away.
        """
        known = self._session(session)
        if known is None or limit <= 0:
            return HistoryPage([], known.last_seq if known else 0)
        newest = before > 0 or after < 0
        upper = before if before > 0 else SEQ_MAX
        places = self._places(known, max(after, 0), upper, limit, newest)
        events = self._load(known, places, bytes_max)
        return HistoryPage(events[::-1] if newest else events, known.last_seq)

    def _session(self, name: str) -> SessionEntry | None:
        if self.index.late:
            # What backfill brings is not in the order in which it could be read from memory.
            self.write()
        return self.index.session(name)

    def _places(
        self, session: SessionEntry, after: int, before: int, limit: int, newest: bool
    ) -> list[Place]:
        """Consecutive events from the side asked for; none if that one's own event is not here."""
        places: list[Place] = []
        expected = min(before - 1, session.last_seq) if newest else after + 1
        for run in self.index.runs(session, after, before, newest):
            if not run.first_seq <= expected <= run.last_seq:
                break
            stretch = [p for p in run.places() if after < p.seq < before]
            places += reversed(stretch) if newest else stretch
            expected = run.first_seq - 1 if newest else run.last_seq + 1
            if len(places) >= limit:
                break
        return places[:limit]

    def _load(self, session: SessionEntry, places: list[Place], bytes_max: int) -> list[bytes]:
        """The events at these places, in their order, as far as ``bytes_max`` goes."""
        events: list[bytes] = []
        size = 0
        loaded: tuple[int, list[bytes]] = (-1, [])
        for place in places:
            if loaded[0] != place.lsn:
                try:
                    loaded = (place.lsn, self._events_of(session.slot, place))
                except MonthAway:
                    if not events:
                        raise
                    break
            event = self._checked_event(session.name, place, loaded[1])
            size += len(event)
            if events and size > bytes_max:
                break
            events.append(event)
        return events

    def _events_of(self, slot: int, place: Place) -> list[bytes]:
        """The events of the record that a place is in."""
        staged = self._staged.get(place.month, {}).get(row_id(slot, place.lsn))
        if staged is not None:
            return record_events(staged.payload)
        run = self.month(place.month).run(slot, place.lsn, place.lsn, 0)
        if not run:
            raise CorruptData(
                f"{self.path}: the index names slot {slot} lsn {place.lsn}: not there"
            )
        return record_events(run[0].payload)

    def _checked_event(self, session: str, place: Place, events: list[bytes]) -> bytes:
        """The event at a place, if it is the one that the index says."""
        if 0 <= place.position < len(events):
            found = msgpack.unpackb(events[place.position])
            if found[0] == session and found[1] == place.seq:
                return events[place.position]
        raise CorruptData(
            f"{self.path}: the index of session {session!r} seq {place.seq} points to another "
            f"event (lsn {place.lsn}, position {place.position})"
        )

    # -- session states --------------------------------------------------------------------------

    def session_states(self, names: list[str]) -> list[SessionImage]:
        """What is known of these sessions; one never seen has last_seq 0."""
        if self.index.late:
            self.write()
        return [self.index.image(name)[0] for name in names]

    def whole_states(self, names: list[str]) -> list[SessionImage] | None:
        """``session_states`` of a slot that is complete here, for a new owner; None when rows are
        missing."""
        if self.index.late:
            self.write()
        absent = self.index.absent(names)
        images = []
        for name in names:
            if name in absent:
                images.append(SessionImage(name, 0, ()))
                continue
            image, whole = self.index.image(name)
            if not whole:
                return None
            images.append(image)
        return images

    def find(self, session: str, device: str, n: int) -> Sent | None:
        """The event with this key. For a resend from before the window: reads backwards."""
        known = self._session(session)
        if known is None:
            return None
        folded_n = self.index.device_n(known.id, device)
        for run in self.index.runs(known, 0, known.last_seq + 1, newest=True):
            if run.last_seq <= known.folded_seq and n > folded_n:
                return None
            place = run.find(device, n)
            if place is not None:
                if place.n != n:
                    return None  # Newer than what the device has sent, or not here.
                event = decode_event(self._load(known, [place], 0)[0])
                return Sent(event.seq, event.key, place.checksum)
        return None

    def event(self, session: str, seq: int) -> tuple[Event | None, int]:
        """One event of a session, if it is here, and the session's last seq."""
        last_seq = self.last_seq(session)
        if not 0 < seq <= last_seq:
            return None, last_seq
        events = self.read(session, seq - 1, seq + 1, 1).events
        return decode_event(events[0]) if events else None, last_seq

    # -- facts -----------------------------------------------------------------------------------

    def last_seq(self, session: str) -> int:
        """The newest event of a session in history; 0 when there is none."""
        known = self.index.session(session)
        return known.last_seq if known else 0

    def facts(self, session: str, query: FactQuery) -> tuple[int, FactPage]:
        """The session's last seq here, and the facts asked for as its events up to there say."""
        known = self.index.session(session)
        if known is None:
            return 0, FactPage([], False)
        if self.index.facts.staged(known.id) > STAGED_READ_MAX:
            self.write()
        return known.last_seq, self.index.facts.page(known.id, query)

    def count_ranks(self, session: str, ranges: Iterable[tuple[int, int]]) -> tuple[int, list[int]]:
        """The session's last seq here, and how many of its facts have a rank in each range, the
        ends among them."""
        known = self.index.session(session)
        if known is None:
            return 0, [0 for _ in ranges]
        if self.index.facts.staged(known.id) > STAGED_COUNT_MAX:
            self.write()
        counts = [self.index.facts.count(known.id, low, high) for low, high in ranges]
        return known.last_seq, counts

    # -- the whole -------------------------------------------------------------------------------

    def scan(self, slots: Iterable[int] | None = None) -> Iterator[SlotScan | None]:
        """Read everything of these slots (None: all) from the disk and check it: one SlotScan per
        slot, and between them None, where other work may be done in this thread."""
        return scan_history(self, slots)

    def drop(self, slot: int) -> None:
        """Delete everything of a slot. A crash half way is made good at the next opening."""
        self.index.begin_drop(slot)
        self._marks.pop(slot, None)
        self._filling.discard(slot)
        for records in self._staged.values():
            for place in [place for place in records if place >> LSN_BITS == slot]:
                del records[place]
        for month in self.months():
            try:
                self.month(month).drop(slot)
            except MonthAway:
                self.index.places.leave_over(month, slot)
            if month in self.copies:
                self.copies[month].drop(slot)
        self.index.finish_drop(slot)

    def forget_pages(self) -> None:
        """Make the next reads see the disk and not a cache."""
        self.index.db.forget_pages()
        for file in self._open.values():
            if file.db.alive:
                file.db.forget_pages()

    def bytes_on_disk(self) -> int:
        places = self.index.places
        moved = [places.path(month) for month in self.months() if places.of(month).directory]
        files = [*self.path.iterdir(), *(path for path in moved if path.exists())]
        return sum(file.stat().st_size for file in files)

    def close(self) -> None:
        """Checkpoint and close all files; failed ones are only released."""
        while self._open:
            _close(self._open.popitem()[1])
        self.index.db.close()

    def abandon(self) -> None:
        """Close without a checkpoint's promise, after a failure."""
        while self._open:
            self._open.popitem()[1].db.abandon()
        self.index.db.abandon()


def _close(file: MonthFile) -> None:
    """Checkpoint and close; of a moved month that is away there is nothing to be checkpointed."""
    try:
        file.db.close()
    except MonthAway:
        file.db.abandon()


def _facts_of(slot: int, record: Record) -> list[tuple[str, list[Fact]]]:
    try:
        return list(record_facts(record.payload))
    except (ValueError, TypeError, IndexError, msgpack.exceptions.UnpackException) as error:
        raise InvariantBroken(
            f"slot {slot} lsn {record.lsn} is intact and what it says of a state is not"
        ) from error
