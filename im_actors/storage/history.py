"""History: every committed record of a replica, for ever, and what is read from it (design 6).

The directory ``history/`` has one file per month, and ``state.db``: what a new owner must know of
each session, and how far history goes. A record lies in the month of its first message key; the
key of an EpochStart is in its payload. Keys never decrease along a log, so neither do months.

Several files cannot change in one transaction, so they change in this order: new session ids,
months, then the state with ``applied``. After a crash in between the months hold more than
``applied`` says; the journal still has those records, and applying them again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from im_actors.core.messages import SessionImage
from im_actors.core.model import Event, Record, body_checksum, decode_event, record_checksum
from im_actors.errors import CorruptData, InvariantBroken
from im_actors.storage.database import fsync_directory
from im_actors.storage.journal import LSN_BITS
from im_actors.storage.months import (
    MonthFile,
    MonthSpan,
    Place,
    RecordRow,
    TimelineRow,
    month_name,
    month_of,
)
from im_actors.storage.scan import SlotScan, scan_history
from im_actors.storage.states import SessionEntry, StateFile, recent_sends

MONTHS_OPEN_MAX = 4
WAL_BYTES_MAX = 64 << 20
"""A WAL that has grown to this is checkpointed after the apply that grew it."""
READ_BYTES_MAX = 512 * 1024
FIND_PAGE = 256
SEQ_MAX = 1 << 62

_unpack = msgpack.unpackb
_NO_KEY = MonthSpan(0, 1, 0)


class HistoryPage(NamedTuple):
    """Encoded events by ascending seq, without a hole; ``last_seq`` is the newest in history."""

    events: list[bytes]
    last_seq: int


class _Decoded(NamedTuple):
    slot: int
    record: Record
    first_key: int
    events: list[tuple[Any, ...]]


class _MonthRows(NamedTuple):
    records: list[RecordRow]
    timeline: list[TimelineRow]


class History:
    """The directory ``history/``. Used from one thread. Dead after a failed write."""

    def __init__(self, path: Path, create: bool = True) -> None:
        self.path = path
        if create:
            path.mkdir(mode=0o700, exist_ok=True)
            fsync_directory(path.parent)
        elif not path.is_dir():
            raise CorruptData(f"{path} is missing although this replica has written it")
        self.states = StateFile(path / "state.db", create)
        self._open: dict[int, MonthFile] = {}
        self._last_month: dict[int, int] = {}
        """slot -> the month that its last read record was in: where to look first."""
        try:
            for month in self.states.months:
                if not (path / month_name(month)).exists():
                    raise CorruptData(f"{path / month_name(month)} is missing")
            for slot in self.states.dropping():
                self.drop(slot)
        except BaseException:
            self.abandon()
            raise

    # -- applying --------------------------------------------------------------------------------

    def apply(self, batch: list[tuple[int, Record]], applied: dict[int, int]) -> None:
        """Add committed records (slot, record) and raise ``applied``; on disk when this returns.

        In any order and repeatedly. A damaged record raises CorruptData before anything is written.
        """
        self.states.db.check_alive()
        decoded = [self._decode(slot, record) for slot, record in batch]
        try:
            months = self._merge(decoded)
            for month in months:
                self.month(month)
            self.states.reserve(months)
            for month, rows in months.items():
                self.month(month).write(*rows)
            self.states.write(applied)
            self._checkpoint_if_due()
        except BaseException as error:
            # The cache may now hold what the disk does not.
            self.states.db.died(error)
            raise

    def _decode(self, slot: int, record: Record) -> _Decoded:
        lsn, epoch, payload, checksum = record
        if record_checksum(slot, lsn, epoch, payload) != checksum:
            raise CorruptData(f"slot {slot} lsn {lsn} comes to history with a wrong checksum")
        try:
            entries = _unpack(payload)
            if entries and type(entries[0]) is int:
                return _Decoded(slot, record, entries[0], [])
            events = [_unpack(entry, use_list=False) for entry in entries]
            return _Decoded(slot, record, events[0][2] if events else 0, events)
        except (ValueError, TypeError, IndexError, msgpack.exceptions.UnpackException) as error:
            raise InvariantBroken(f"slot {slot} lsn {lsn} is intact and no record") from error

    def _merge(self, decoded: list[_Decoded]) -> dict[int, _MonthRows]:
        """Bring the records into the session states; returns the rows for each month."""
        months: dict[int, _MonthRows] = {}
        span = _NO_KEY
        rows = _MonthRows([], [])
        touched: dict[str, SessionEntry] = {}
        for slot, (lsn, epoch, payload, checksum), first_key, events in decoded:
            if not span.first_key <= first_key < span.end_key:
                span = month_of(first_key)
                rows = months.setdefault(span.month, _MonthRows([], []))
            rows.records.append((slot << LSN_BITS | lsn, epoch, checksum, payload))
            add_row = rows.timeline.append
            # Once per event of everything that is sent: names are bound, and calls are few.
            for position, (name, seq, key, kind, address, n, body) in enumerate(events):
                entry = touched.get(name)
                if entry is None or entry.slot != slot:
                    entry = touched[name] = self.states.touch(name, slot)
                add_row((entry.id, seq, lsn, position))
                if seq > entry.last_seq:
                    entry.last_seq = seq
                if key > entry.last_key:
                    entry.last_key = key
                if seq < entry.spans.get(span.month, SEQ_MAX):
                    entry.spans[span.month] = seq
                    entry.spans_dirty = True
                device = entry.devices.get(address) or self.states.device(entry, address)
                device.dirty = True
                device.add(n, seq, body_checksum(kind, body))
        return months

    def _checkpoint_if_due(self) -> None:
        for db in (self.states.db, *(file.db for file in self._open.values())):
            if db.wal_bytes() > WAL_BYTES_MAX:
                db.checkpoint(truncate=True)

    def applied(self) -> dict[int, int]:
        """Each slot's lsn up to which history holds what it was given, on disk."""
        return dict(self.states.applied)

    # -- months ----------------------------------------------------------------------------------

    def months(self) -> list[int]:
        """The months that there are files for, ascending, each as year * 100 + month."""
        return sorted(self.states.months)

    def month(self, month: int) -> MonthFile:
        """The file of a month, opened if need be; the one not used for longest is closed for it."""
        file = self._open.pop(month, None)
        if file is None:
            while len(self._open) >= MONTHS_OPEN_MAX:
                self._open.pop(next(iter(self._open))).db.close()
            known = month in self.states.months
            file = MonthFile(self.path / month_name(month), create=not known)
        self._open[month] = file
        return file

    # -- records ---------------------------------------------------------------------------------

    def records(self, slot: int, first_lsn: int, last_lsn: int, bytes_max: int) -> list[Record]:
        """Consecutive records from ``first_lsn`` on, verified: at most about ``bytes_max``, at
        least one if it is here."""
        found: list[Record] = []
        size = 0
        while first_lsn <= last_lsn and (size < bytes_max or not found):
            month = self._month_with(slot, first_lsn)
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
        hint = self._last_month.get(slot)
        if hint is not None and self.month(hint).has(slot, lsn):
            return hint
        for month in reversed(self.months()):
            if month != hint and self.month(month).has(slot, lsn):
                self._last_month[slot] = month
                return month
        return None

    # -- events ----------------------------------------------------------------------------------

    def read(
        self, session: str, after: int, before: int, limit: int, bytes_max: int = READ_BYTES_MAX
    ) -> HistoryPage:
        """Events with ``after`` < seq < ``before`` (0: no upper bound): with ``before`` the newest
        ``limit`` of them, without it the oldest; after=-1 and before=0: the newest page.

        The page is the part without a hole at the side asked for: empty when the very next event is
        not here (backfill is under way). At most about ``bytes_max``, at least one event.
        """
        known = self.states.session(session)
        if known is None or limit <= 0:
            return HistoryPage([], known.last_seq if known else 0)
        newest = before > 0 or after < 0
        upper = before if before > 0 else SEQ_MAX
        places = self._places(known, max(after, 0), upper, limit, newest)
        events = self._load(known, places, bytes_max)
        return HistoryPage(events[::-1] if newest else events, known.last_seq)

    def _places(
        self, session: SessionEntry, after: int, before: int, limit: int, newest: bool
    ) -> list[tuple[int, Place]]:
        """(month, place) of consecutive events from the side asked for; none if that one's own
        event is not here."""
        places: list[tuple[int, Place]] = []
        step = -1 if newest else 1
        expected = min(before - 1, session.last_seq) if newest else after + 1
        for month in self._months_of(session.id, after, before, newest):
            wanted = limit - len(places)
            found = self.month(month).places(session.id, after, before, wanted, newest)
            if newest and not places and found and found[0].seq > expected:
                # Applied to the month, and not yet to the state, when the process crashed.
                expected = found[0].seq
            for place in found:
                if place.seq != expected:
                    return places
                places.append((month, place))
                expected += step
            if len(places) >= limit:
                break
        return places

    def _months_of(self, session: int, after: int, before: int, newest: bool) -> list[int]:
        """The months that can have the stretch, in the order in which to look."""
        spans = self.states.spans(session)
        months = [month for month, first in spans.items() if first < before]
        # Months ascend with seqs: of those that begin at or below the stretch only the last counts.
        below = [month for month in months if spans[month] <= after + 1]
        months = [month for month in months if not below or month >= below[-1]]
        return months[::-1] if newest else months

    def _load(
        self, session: SessionEntry, places: list[tuple[int, Place]], bytes_max: int
    ) -> list[bytes]:
        """The events at these places, in their order, as far as ``bytes_max`` goes."""
        events: list[bytes] = []
        size = 0
        loaded: tuple[int, list[bytes]] = (-1, [])
        for month, place in places:
            if loaded[0] != place.lsn:
                loaded = (place.lsn, self._entries(month, session.slot, place.lsn))
            event = self._checked_entry(session.name, place, loaded[1])
            size += len(event)
            if events and size > bytes_max:
                break
            events.append(event)
        return events

    def _entries(self, month: int, slot: int, lsn: int) -> list[bytes]:
        run = self.month(month).run(slot, lsn, lsn, 0)
        if not run:
            raise CorruptData(f"{self.path}: the timeline names slot {slot} lsn {lsn}: not there")
        entries: list[bytes] = _unpack(run[0].payload)
        return entries

    def _checked_entry(self, session: str, place: Place, entries: list[bytes]) -> bytes:
        """The event at a place, if it is the one that the timeline says."""
        if 0 <= place.position < len(entries):
            found = _unpack(entries[place.position])
            if found[0] == session and found[1] == place.seq:
                return entries[place.position]
        raise CorruptData(
            f"{self.path}: the timeline of session {session!r} seq {place.seq} points to another "
            f"event (lsn {place.lsn}, position {place.position})"
        )

    # -- session states --------------------------------------------------------------------------

    def session_states(self, names: list[str]) -> list[SessionImage]:
        """What a new owner must know of these sessions; one never seen has last_seq 0."""
        return [self.states.image(name) for name in names]

    def whole_states(self, names: list[str]) -> list[SessionImage] | None:
        """``session_states`` of a slot that is complete here; None when rows are missing.

        Every seq of a session is some device's next n, so the counters of the devices add up to its
        last seq. A row that damage has hidden would be taken for a device that never sent.
        """
        images = self.session_states(names)
        for image in images:
            if sum(device.last_n for device in image.devices) != image.last_seq:
                return None
        return images

    def find(self, session: str, device: str, n: int) -> Event | None:
        """The event with this key. For a resend from before the window: reads backwards."""
        known = self.states.session(session)
        row = self.states.device_row(known.id, device) if known else None
        if known is None or row is None or not 0 < n <= row[0]:
            return None
        before = 0
        sends = recent_sends(row[1])
        if sends and n > row[0] - len(sends):
            before = sends[n - row[0] - 1][0] + 1
        elif sends:
            before = sends[0][0]
        while True:
            page = self.read(session, -1, before, FIND_PAGE)
            for data in reversed(page.events):
                event = decode_event(data)
                if event.device == device and event.n == n:
                    return event
            if not page.events:
                return None
            before = decode_event(page.events[0]).seq
            if before <= 1:
                return None

    # -- the whole -------------------------------------------------------------------------------

    def scan(self, slots: Iterable[int] | None = None) -> Iterator[SlotScan | None]:
        """Read everything of these slots (None: all) from the disk and check it: one SlotScan per
        slot, and between them None, where other work may be done in this thread."""
        return scan_history(self, slots)

    def drop(self, slot: int) -> None:
        """Delete everything of a slot. A crash half way is made good at the next opening."""
        self.states.begin_drop(slot)
        sessions = self.states.session_ids(slot)
        for month in self.months():
            self.month(month).drop(slot, sessions)
        self.states.finish_drop(slot, sessions)

    def forget_pages(self) -> None:
        """Make the next reads see the disk and not a cache."""
        self.states.db.forget_pages()
        for file in self._open.values():
            file.db.forget_pages()

    def bytes_on_disk(self) -> int:
        return sum(file.stat().st_size for file in self.path.iterdir())

    def close(self) -> None:
        """Checkpoint and close all files; failed ones are only released."""
        while self._open:
            self._open.popitem()[1].db.close()
        self.states.db.close()

    def abandon(self) -> None:
        """Close without a checkpoint's promise, after a failure."""
        while self._open:
            self._open.popitem()[1].db.abandon()
        self.states.db.abandon()
