"""Write diffusion: what other sessions have to hear of what a slot committed (design section 9).

A message between two users changes both their mailboxes, a membership change that of the member, a
read position what the other side sees. Each lies in a slot of its own, so the owner of the slot in
which it happened tells the owner of that one, by a *note*. Notes are told at least once, in any
order, and the one who hears takes from them only what is new to him: the result is exact.

    committed ──▶ take ──▶ waiting (one note for each hearer and subject, joined as they come)
                              │ told, one at a time for each              ▲
                              ▼                                           │ refused, or no answer
                           in flight ── answered ──▶ done                 │
                              └───────────────────────────────────────────┘

The *cursor* is the lsn up to which all notes are answered. It is written down in the slot's own
session from time to time; a new owner starts from it and reads from the log what lies above. The
same way is taken when there is no room: what was not taken at once is read from the log later, so
memory is bounded and nothing is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice
from typing import NamedTuple, Protocol

from im_actors.core.model import Event


@dataclass(frozen=True, slots=True)
class DiffusionSettings:
    """Bounds and waits, in milliseconds."""

    in_flight_max: int = 512
    """Notes told and not answered."""
    waiting_max: int = 20_000
    """Notes that are not answered. Above it the log is read later."""
    answer_ms: int = 3_000
    """A note without an answer is told again after this."""
    retry_ms_min: int = 50
    retry_ms_max: int = 2_000
    save_every_ms: int = 5_000
    """How often the cursor is written down, at most: what a new owner tells again."""
    save_lsns: int = 10_000
    """After so many records it is written down although nothing was told: what it reads again."""
    read_records_max: int = 256
    """Records read from the log at a time."""

    def validate(self) -> None:
        if self.retry_ms_min > self.retry_ms_max:
            raise ValueError("retry_ms_min is above retry_ms_max")


class Subject(NamedTuple):
    """Who hears (a session), and of what."""

    hearer: str
    about: str


class Note(Protocol):
    """What there is to say of one subject."""

    def joined(self, later: Note) -> Note | None:
        """This note and the next one of the same subject, in one; None: that would be too much for
        one."""

    def body(self) -> bytes:
        """The body of the event by which the hearer is told."""


class Subjects(Protocol):
    """Which notes follow from an event."""

    def __call__(self, event: Event) -> Iterable[tuple[Subject, Note]]: ...


# -- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Began:
    """The slot is served here: notes up to ``cursor_lsn`` are told, and the log is committed up to
    ``commit_lsn``."""

    cursor_lsn: int
    commit_lsn: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The slot is not served here any more."""


@dataclass(frozen=True, slots=True)
class Committed:
    """Records ``first_lsn`` .. ``last_lsn`` have committed; these are the events of them that may
    concern others, in order."""

    first_lsn: int
    last_lsn: int
    events: list[Event]


@dataclass(frozen=True, slots=True)
class LogRead:
    """The answer to ReadLog: the events of records ``first_lsn`` .. ``last_lsn``, perhaps of fewer
    than asked for; ``last_lsn`` below ``first_lsn``: they could not be read now."""

    first_lsn: int
    last_lsn: int
    events: list[Event]


@dataclass(frozen=True, slots=True)
class Told:
    """A note was answered: it holds, or it has to be told again."""

    token: int
    holds: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


DiffusionEvent = Began | Ended | Committed | LogRead | Told | Tick


# -- effects -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tell:
    """Give the note to the owner of the hearer's slot; answer with Told."""

    token: int
    hearer: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ReadLog:
    """Read committed records of this slot; answer with LogRead."""

    first_lsn: int
    last_lsn: int


@dataclass(frozen=True, slots=True)
class SaveCursor:
    """Write down that all notes up to ``lsn`` are told."""

    lsn: int


DiffusionEffect = Tell | ReadLog | SaveCursor


# -- the machine -------------------------------------------------------------------------------


@dataclass(slots=True)
class Pending:
    """One subject's note that is not answered, and what came since it was told."""

    note: Note
    first_lsn: int
    """Not above that of the first record that it is about."""
    since_ms: int
    token: int = 0
    """0: waits to be told."""
    tries: int = 0
    later: Pending | None = None

    def add(self, added: Pending) -> None:
        """Join what came later of the same subject to the last note that was not told yet."""
        last = self
        while last.later is not None:
            last = last.later
        joined = None if last.token else last.note.joined(added.note)
        if joined is None:
            last.later = added
        else:
            last.note = joined


class Diffusion:
    """The notes of one slot."""

    def __init__(self, subjects: Subjects, settings: DiffusionSettings | None = None) -> None:
        self.subjects = subjects
        self.settings = settings or DiffusionSettings()
        self.told = 0
        """Notes that were answered, since the start."""
        self._token = 0
        self._now_ms = 0
        self._effects: list[DiffusionEffect] = []
        self._forget()

    def _forget(self) -> None:
        self.serving = False
        self.taken_lsn = 0
        """Up to here the log is taken in."""
        self.commit_lsn = 0
        self.saved_lsn = 0
        self._pending: dict[Subject, Pending] = {}
        self._in_flight: dict[int, Subject] = {}
        """By token."""
        self._ready: dict[Subject, None] = {}
        """Subjects that may be told now, in order."""
        self._dues: list[tuple[int, int, Subject]] = []
        """A heap of (due_ms, token, subject); also of notes that are answered by now."""
        self._reading_ms: int | None = None
        """When to give up waiting for LogRead; None: nothing is being read."""
        self._save_ms = 0
        self._told_since_save = False

    def handle(self, event: DiffusionEvent, now_ms: int) -> list[DiffusionEffect]:
        """Take in one event; the effects are to be carried out in order."""
        self._now_ms = now_ms
        effects: list[DiffusionEffect] = []
        self._effects = effects
        match event:
            case Began(cursor_lsn, commit_lsn):
                self._began(cursor_lsn, commit_lsn)
            case Ended():
                self._forget()
            case Committed(first_lsn, last_lsn, events):
                self._committed(first_lsn, last_lsn, events)
            case LogRead(first_lsn, last_lsn, events):
                self._log_read(first_lsn, last_lsn, events)
            case Told(token, holds):
                self._told(token, holds)
            case Tick():
                self._tick()
        if self.serving:
            self._tell_ready()
            self._read_on()
            self._save()
        return effects

    def deadline_ms(self) -> int | None:
        """When the machine next wants a Tick."""
        dues = self._dues
        while dues and self._is_settled(dues[0]):
            heappop(dues)
        found = [dues[0][0]] if dues else []
        if self._reading_ms is not None:
            found.append(self._reading_ms)
        if self.serving and self._told_since_save:
            found.append(self._save_ms)
        return min(found, default=None)

    @property
    def waiting(self) -> int:
        """Notes that are not answered."""
        return len(self._pending)

    def delay_ms(self, now_ms: int) -> int:
        """For how long the oldest note has waited."""
        return now_ms - min((p.since_ms for p in self._pending.values()), default=now_ms)

    def cursor_lsn(self) -> int:
        """Up to here every note is answered."""
        # A note that was answered and has a later one to tell counts from that one on.
        open_lsns = [pending.first_lsn for pending in self._pending.values()]
        return min(open_lsns, default=self.taken_lsn + 1) - 1

    # -- the log -------------------------------------------------------------------------------

    def _began(self, cursor_lsn: int, commit_lsn: int) -> None:
        self._forget()
        self.serving = True
        self.taken_lsn = self.saved_lsn = cursor_lsn
        self.commit_lsn = commit_lsn
        self._save_ms = self._now_ms + self.settings.save_every_ms

    def _committed(self, first_lsn: int, last_lsn: int, events: list[Event]) -> None:
        if not self.serving or last_lsn <= self.commit_lsn:
            return
        self.commit_lsn = last_lsn
        # Out of turn, or no room: it is in the log, and will be read from there.
        if first_lsn == self.taken_lsn + 1 and self._has_room():
            self._take(first_lsn, last_lsn, events)

    def _log_read(self, first_lsn: int, last_lsn: int, events: list[Event]) -> None:
        # Without records it is asked again when the time for the answer is over.
        if self._reading_ms is not None and first_lsn == self.taken_lsn + 1 <= last_lsn:
            self._reading_ms = None
            self._take(first_lsn, last_lsn, events)

    def _take(self, first_lsn: int, last_lsn: int, events: list[Event]) -> None:
        self.taken_lsn = last_lsn
        for event in events:
            for subject, note in self.subjects(event):
                # The first of these records, whichever it came in: the cursor stays below it.
                self._add(subject, note, first_lsn)

    def _has_room(self) -> bool:
        return len(self._pending) < self.settings.waiting_max

    def _read_on(self) -> None:
        if self._reading_ms is None and self.taken_lsn < self.commit_lsn and self._has_room():
            self._reading_ms = self._now_ms + self.settings.answer_ms
            last_lsn = min(self.commit_lsn, self.taken_lsn + self.settings.read_records_max)
            self._effects.append(ReadLog(self.taken_lsn + 1, last_lsn))

    def _save(self) -> None:
        if self._now_ms < self._save_ms:
            return
        cursor_lsn = self.cursor_lsn()
        far = cursor_lsn - self.saved_lsn >= self.settings.save_lsns
        if cursor_lsn > self.saved_lsn and (self._told_since_save or far):
            self.saved_lsn = cursor_lsn
            self._told_since_save = False
            self._effects.append(SaveCursor(cursor_lsn))
        self._save_ms = self._now_ms + self.settings.save_every_ms

    # -- the notes -----------------------------------------------------------------------------

    def _add(self, subject: Subject, note: Note, lsn: int) -> None:
        pending = self._pending.get(subject)
        added = Pending(note, lsn, self._now_ms)
        if pending is None:
            self._wait(subject, added)
        else:
            pending.add(added)

    def _wait(self, subject: Subject, pending: Pending) -> None:
        self._pending[subject] = pending
        self._ready[subject] = None

    def _tell_ready(self) -> None:
        room = self.settings.in_flight_max - len(self._in_flight)
        for subject in list(islice(self._ready, room)):
            del self._ready[subject]
            pending = self._pending[subject]
            self._token += 1
            pending.token = self._token
            self._in_flight[self._token] = subject
            heappush(self._dues, (self._now_ms + self.settings.answer_ms, self._token, subject))
            self._effects.append(Tell(self._token, subject.hearer, pending.note.body()))

    def _told(self, token: int, holds: bool) -> None:
        subject = self._in_flight.pop(token, None)
        if subject is None:
            return
        if not holds:
            self._put_off(subject)
            return
        self.told += 1
        self._told_since_save = True
        later = self._pending.pop(subject).later
        if later is not None:
            self._wait(subject, later)

    def _put_off(self, subject: Subject) -> None:
        """Tell it again after a while, with what came since."""
        settings, pending = self.settings, self._pending[subject]
        pending.token = 0
        later, pending.later = pending.later, None
        while later is not None:
            added, later = later, later.later
            added.later = None
            pending.add(added)
        wait_ms = min(settings.retry_ms_max, settings.retry_ms_min << min(pending.tries, 10))
        pending.tries += 1
        heappush(self._dues, (self._now_ms + wait_ms, 0, subject))

    def _is_settled(self, due: tuple[int, int, Subject]) -> bool:
        _, token, subject = due
        pending = self._pending.get(subject)
        return pending is None or pending.token != token or subject in self._ready

    def _tick(self) -> None:
        dues = self._dues
        while dues and dues[0][0] <= self._now_ms:
            due = heappop(dues)
            _, token, subject = due
            if self._is_settled(due):
                continue
            if token:
                del self._in_flight[token]
                self._put_off(subject)
            else:
                self._ready[subject] = None
        if self._reading_ms is not None and self._reading_ms <= self._now_ms:
            self._reading_ms = None
