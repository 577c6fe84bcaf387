"""Reads a replica's whole history back from the disk and checks it, for ``im-actors verify``.

The reading shares no state with the code that wrote: sessions, devices and where events are, all
is derived anew from the events and compared with what the index says.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from im_actors.core.dropping import is_dropped
from im_actors.core.facts import is_state
from im_actors.core.model import (
    Event,
    Record,
    body_checksum,
    decode_event,
    record_events,
    record_index,
    unpack_sends,
)
from im_actors.errors import CorruptData, MonthAway
from im_actors.storage.index import SessionEntry
from im_actors.storage.journal import LSN_MAX, Journal, checked_record
from im_actors.storage.months import MonthFile
from im_actors.storage.runs import Place
from im_actors.storage.scan_facts import Difference, FactCheck

if TYPE_CHECKING:
    from im_actors.storage.history import History

CHUNK_RECORDS = 256
SESSIONS_CHUNK = 256
PROBLEMS_MAX = 100
"""Problems told per slot; the rest is only counted."""

CORRUPT, ORDER, TABLES, FACTS, AWAY = "corrupt", "order", "tables", "facts", "away"


class Problem(NamedTuple):
    """Something that is wrong. ``kind``: "corrupt" (bytes have changed), "order" (the log says what
    it may not say), "tables" (the index disagrees with the records), "facts" (so do the facts),
    "away" (a month was not looked at). lsn 0: no one record.
    """

    kind: str
    slot: int
    lsn: int
    text: str


@dataclass(slots=True)
class SlotScan:
    """What is on disk of one slot. ``runs``: (first lsn, the checksums from there on); intact
    records only. 8 bytes a record."""

    slot: int
    runs: list[tuple[int, array[int]]] = field(default_factory=list)
    events: int = 0
    epochs: list[tuple[int, int]] = field(default_factory=list)
    """(epoch, its first lsn)."""
    problems: list[Problem] = field(default_factory=list)
    problems_untold: int = 0
    divergent: int = 0
    """Facts that are not what the events say."""
    dropped: dict[int, int] = field(default_factory=dict)
    """lsn -> how many of its events have lost their content with their month: only of those records
    that have such ones."""
    away: list[str] = field(default_factory=list)
    """Months that could not be looked at: they were moved to where nothing is now."""

    def problem(self, kind: str, lsn: int, text: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(kind, self.slot, lsn, f"slot {self.slot}: {text}"))
        else:
            self.problems_untold += 1

    def add(self, lsn: int, checksum: int) -> bool:
        """Note a record; whether it follows the one before without a hole."""
        follows = bool(self.runs) and self.runs[-1][0] + len(self.runs[-1][1]) == lsn
        if not follows:
            self.runs.append((lsn, array("q")))
        self.runs[-1][1].append(checksum)
        return follows


class _Session:
    """What the records say of a session."""

    __slots__ = ("events", "id", "last_n", "last_seq", "places", "stretch")

    def __init__(self, identity: int | None) -> None:
        self.id = identity
        self.last_seq = 0
        self.events = 0
        self.stretch = -1
        """The stretch of log in which it was seen last: across a hole nothing has to follow."""
        self.last_n: dict[str, int] = {}
        self.places: Iterator[Place] = iter(())
        """What the index says of the events that come next."""


def scan_history(history: History, slots: Iterable[int] | None = None) -> Iterator[SlotScan | None]:
    """See ``History.scan``."""
    # What SQLite holds in memory would hide what has become of the disk.
    history.forget_pages()
    for slot in _slots_of(history) if slots is None else slots:
        scanner = _SlotScanner(history, slot)
        while scanner.step():
            yield None
        yield scanner.found


def _slots_of(history: History) -> list[int]:
    slots = set(history.applied())
    for month in history.months():
        try:
            slots.update(history.month(month).slots())
        except (CorruptData, MonthAway):
            # The scan of the slots that are known will meet it and tell.
            continue
    return sorted(slots)


class _SlotScanner:
    def __init__(self, history: History, slot: int) -> None:
        self.found = SlotScan(slot)
        self._history = history
        self._slot = slot
        self._sessions: dict[str, _Session] = {}
        self._last_lsn = 0
        self._last_epoch = 0
        self._last_key = 0
        self._stretch = 0
        self._month = 0
        self._unreadable: set[int] = set()
        self._facts = FactCheck(lenient=bool(history.index.places.unfinished()))
        self._differences: Iterator[Difference | None] | None = None
        """What comparing them finds, when everything else has been read."""
        self._told: set[str] = set()

    def step(self) -> bool:
        """Do a part of the work; false when the slot is done."""
        if self._differences is not None:
            return self._compare_facts(self._differences)
        upto = self._history.applied().get(self._slot, LSN_MAX)
        for month in self._history.months():
            if month < self._month or month in self._unreadable:
                continue
            self._month = month
            try:
                if self._read_chunk(self._history.month(month), month, upto):
                    return True
            except (CorruptData, MonthAway) as error:
                self._unreadable.add(month)
                self._stretch += 1
                if type(error) is MonthAway:
                    self.found.away.append(str(error))
                else:
                    self.found.problem(CORRUPT, 0, str(error))
        if not self._finish(upto):
            return False
        seen = {name: session.last_seq for name, session in self._sessions.items()}
        self._differences = self._facts.compare(self._history.index, self._slot, seen)
        return True

    def _read_chunk(self, file: MonthFile, month: int, upto: int) -> bool:
        """Whether there was anything. Beyond ``upto`` the journal has the records too, and the
        tables may not have them yet."""
        seen = 0
        for row in file.rows(self._slot, self._last_lsn + 1, upto):
            seen += 1
            lsn = self._last_lsn = row[0] & LSN_MAX
            try:
                self._take(month, checked_record(file.db.path, self._slot, row))
            except CorruptData as error:
                self._stretch += 1
                self.found.problem(CORRUPT, lsn, str(error))
            if seen >= CHUNK_RECORDS:
                break
        return seen > 0

    # -- records ---------------------------------------------------------------------------------

    def _take(self, month: int, record: Record) -> None:
        if not self.found.add(record.lsn, record.checksum) and record.lsn > 1:
            self._stretch += 1
        if record.epoch < self._last_epoch:
            text = f"epoch {record.epoch} follows {self._last_epoch} at lsn {record.lsn}"
            self.found.problem(ORDER, record.lsn, text)
        elif record.epoch > self._last_epoch:
            self.found.epochs.append((record.epoch, record.lsn))
        self._last_epoch = max(self._last_epoch, record.epoch)
        events = list(map(decode_event, record_events(record.payload)))
        sent = _sent_checksums(record, events)
        for position, event in enumerate(events):
            self.found.events += 1
            session = self._take_event(record.lsn, event)
            if is_state(event.kind):
                self._take_facts(record.lsn, event)
            if is_dropped(event):
                self.found.dropped[record.lsn] = self.found.dropped.get(record.lsn, 0) + 1
            checksum = sent.get(position, body_checksum(event.kind, event.body))
            self._check_place(session, event, (month, record.lsn, position), checksum)

    def _take_event(self, lsn: int, event: Event) -> _Session:
        session = self._sessions.get(event.session)
        if session is None:
            row = self._row(event.session)
            session = self._sessions[event.session] = _Session(row.id if row else None)
        # From lsn 1 on without a hole everything is known; otherwise only what was seen is.
        known = self._stretch == 0 or session.stretch == self._stretch
        name = f"session {event.session!r}"
        if known and event.seq != session.last_seq + 1:
            text = f"{name}: seq {event.seq} follows {session.last_seq} at lsn {lsn}"
            self.found.problem(ORDER, lsn, text)
        if event.key <= self._last_key:
            self.found.problem(ORDER, lsn, f"key {event.key} follows {self._last_key} at lsn {lsn}")
        self._last_key = max(self._last_key, event.key)
        session.last_seq = max(session.last_seq, event.seq)
        session.events += 1
        session.stretch = self._stretch
        self._take_device(session, lsn, event)
        return session

    def _take_facts(self, lsn: int, event: Event) -> None:
        try:
            self._facts.take(event)
        except Exception as error:
            # It fails in as many ways as a body can be wrong.
            text = f"what {event.session!r} seq {event.seq} says at lsn {lsn} cannot be read"
            self.found.problem(FACTS, lsn, f"{text}: {error}")

    def _take_device(self, session: _Session, lsn: int, event: Event) -> None:
        last_n = session.last_n.get(event.device, 0)
        # A device's n goes 1, 2, 3: then one that is not above the last is a key used twice.
        if event.n <= last_n or (self._stretch == 0 and event.n != last_n + 1):
            what = "a duplicate key" if event.n <= last_n else "a gap"
            text = (
                f"{what}: ({event.session!r}, {event.device!r}, {event.n}) at lsn {lsn} follows "
                f"n {last_n}"
            )
            self.found.problem(ORDER, lsn, text)
        session.last_n[event.device] = max(last_n, event.n)

    def _check_place(
        self, session: _Session, event: Event, at: tuple[int, int, int], checksum: int
    ) -> None:
        expected = Place(event.seq, *at, event.device, event.n, checksum)
        try:
            found = self._place(session, event.seq)
        except CorruptData as error:
            self._damaged(str(error))
            return
        if found is None and self._slot in self._history.index.filling:
            return
        if found != expected:
            text = (
                f"session {event.session!r} seq {event.seq} is in lsn {at[1]} at {at[2]}, the "
                f"index says {'nothing' if found is None else found[1:]}"
            )
            self.found.problem(TABLES, at[1], text)

    def _place(self, session: _Session, seq: int) -> Place | None:
        """What the index says of an event. Those of a session are asked for by rising seq."""
        for place in session.places:
            if place.seq >= seq:
                # One that is too far on is not needed again: the next question reads it anew.
                return place if place.seq == seq else None
        run = None if session.id is None else self._history.index.run_at(session.id, seq)
        session.places = iter(()) if run is None else run.places()
        return next((place for place in session.places if place.seq == seq), None)

    def _row(self, name: str) -> SessionEntry | None:
        try:
            return self._history.index.session(name)
        except CorruptData as error:
            self._damaged(str(error))
            return None

    def _damaged(self, text: str) -> None:
        """Tell of a damaged row of the index, once."""
        if text not in self._told:
            self._told.add(text)
            self.found.problem(CORRUPT, 0, text)

    # -- tables ----------------------------------------------------------------------------------

    def _finish(self, upto: int) -> bool:
        """Compare the tables with the records, in one step: nothing is applied meanwhile. Whether
        all records and all rows could be read."""
        complete = len(self.found.runs) == 1 and self.found.runs[0][0] == 1
        complete = (
            complete
            and not self.found.away
            and upto < LSN_MAX
            and self._slot not in self._history.index.filling
        )
        unchecked = set(self._sessions) if complete else set()
        after = 0
        try:
            while rows := self._history.index.sessions_of(self._slot, after, SESSIONS_CHUNK):
                for row in rows:
                    after = row.id
                    last_n = self._last_n(row)
                    if complete:
                        unchecked.discard(row.name)
                        self._compare(row, last_n)
        except CorruptData as error:
            self._damaged(str(error))
            return False
        for name in sorted(unchecked):
            self.found.problem(TABLES, 0, f"session {name!r} has records and no state")
        return complete

    def _compare_facts(self, differences: Iterator[Difference | None]) -> bool:
        """Go on with it; false at the end."""
        try:
            for difference in differences:
                if difference is None:
                    return True
                if difference.corrupt:
                    self._damaged(difference.text)
                else:
                    self.found.divergent += difference.facts
                    self.found.problem(FACTS, 0, difference.text)
        except CorruptData as error:
            self._damaged(str(error))
        return False

    def _last_n(self, row: SessionEntry) -> dict[str, int]:
        """The devices of a session as a new owner would be told."""
        index = self._history.index
        last_n = dict(index.devices(row.id))
        for run in index.runs(row, row.folded_seq, row.last_seq + 1, newest=False):
            for device, n in run.last_n().items():
                last_n[device] = max(n, last_n.get(device, 0))
        return last_n

    def _compare(self, row: SessionEntry, last_n: dict[str, int]) -> None:
        said = self._sessions.get(row.name) or _Session(row.id)
        pairs: list[tuple[str, object, object]] = [
            ("id", row.id, said.id),
            ("last seq", row.last_seq, said.last_seq),
            ("devices", last_n, said.last_n),
            ("events", self._history.index.count(row.id), said.events),
        ]
        for what, tables, records in pairs:
            if tables != records:
                told = "" if what == "devices" else f": {tables} in the index, {records} by them"
                text = f"session {row.name!r}: {what} disagree with the records{told}"
                self.found.problem(TABLES, 0, text)


def _sent_checksums(record: Record, events: list[Event]) -> dict[int, int]:
    """The checksums of the bodies that are not here as they were sent, by position: of state events
    the owner has made others, and what was dropped is gone. Only the record itself says them."""
    others = [at for at, e in enumerate(events) if is_state(e.kind) or e.dropped]
    if not others:
        return {}
    parts = record_index(record.payload).parts
    found = {s.position: s.checksum for part in parts for s in unpack_sends(part[3])}
    return {position: found.get(position, 0) for position in others}


# -- the journal -----------------------------------------------------------------------------------


class JournalRecord(NamedTuple):
    """A record of the journal as a scan finds it."""

    lsn: int
    checksum: int
    events: int


@dataclass(slots=True)
class JournalScan:
    """What the journal holds of a slot: the intact records, ascending. ``commit_lsn`` is the
    highest commit point that came with one of them."""

    slot: int
    records: list[JournalRecord] = field(default_factory=list)
    commit_lsn: int = 0
    problems: list[Problem] = field(default_factory=list)


def scan_journal(
    journal: Journal, slots: Iterable[int] | None = None
) -> Iterator[JournalScan | None]:
    """Read the journal back from the disk and check it: one JournalScan per slot, and between them
    None, where other work may be done in this thread."""
    journal.forget_pages()
    for slot in journal.slots() if slots is None else slots:
        found = JournalScan(slot)
        epoch = 0
        for count, lsn in enumerate(journal.lsns(slot), start=1):
            epoch = _scan_one(journal, found, lsn, epoch)
            if count % CHUNK_RECORDS == 0:
                yield None
        found.commit_lsn = journal.commit_lsn(slot)
        yield found


def _scan_one(journal: Journal, found: JournalScan, lsn: int, epoch: int) -> int:
    slot = found.slot
    try:
        records = journal.read(slot, lsn, lsn, 0)
    except CorruptData as error:
        found.problems.append(Problem(CORRUPT, slot, lsn, f"slot {slot}: {error}"))
        return epoch
    # Trimmed since the list was made: history has it.
    for record in records:
        if record.epoch < epoch:
            text = f"slot {slot}: epoch {record.epoch} follows {epoch} at lsn {lsn}"
            found.problems.append(Problem(ORDER, slot, lsn, text))
        events = len(record_events(record.payload))
        found.records.append(JournalRecord(lsn, record.checksum, events))
        epoch = max(epoch, record.epoch)
    return epoch
