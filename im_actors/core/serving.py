"""What an owner keeps while it serves a slot: counters, dedup sets, what is not committed yet.

It outlives a takeover that the owner carries out on itself (a replica was replaced), so that the
seqs given stay the same; it is thrown away when anybody else held the slot in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, NamedTuple
from zlib import crc32

from im_actors.core.messages import SessionImage
from im_actors.core.model import (
    Indexed,
    Record,
    key_time_ms,
    next_key,
    pack,
    pack_record,
    record_index,
    sealed_record,
    unpack_sends,
)
from im_actors.core.sessions import ANCIENT, FULL, GAP, KNOWN, NEW, SessionState
from im_actors.errors import (
    InvariantBroken,
    KeyConflict,
    OutOfOrder,
    Overloaded,
    SlotMoving,
    Unknown,
)

OK = 0
RECORD_BYTES_MAX = 256 * 1024
RECORD_EVENTS_MAX = 2_048
WAITERS_MAX = 8
"""Resends that wait for one uncommitted event; a further one takes the place of the oldest."""


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """Bounds of one slot's owner."""

    pending_events_max: int = 8_192
    """Events that are numbered and not committed, or wait for their session's state."""
    pending_bytes_max: int = 16 * 1024 * 1024
    records_in_flight_max: int = 1
    """Records sent and not committed. What arrives meanwhile is the next record."""
    apply_lag_lsns_max: int = 20_000
    """Records that the slowest member may have journaled and not applied to history."""
    sessions_max: int = 20_000
    """Session states in memory; idle ones above it are forgotten (they stay in the tables)."""

    def validate(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")


class Send(NamedTuple):
    """One message to be numbered. ``token`` is the caller's, returned with the answer."""

    token: Any
    session: str
    device: str
    n: int
    kind: int
    body: bytes


class Answer(NamedTuple):
    """What became of a send: ``code`` 0 with seq, epoch and time, or an error code.

    ``expected_n`` is the device's next n for OUT_OF_ORDER and KEY_CONFLICT.
    """

    token: Any
    code: int
    seq: int
    epoch: int
    time_ms: int
    expected_n: int


class PendingEvent:
    """An event with a seq that is not committed yet, and who waits for it."""

    __slots__ = ("data", "entry", "key", "seq", "session", "waiters")

    def __init__(
        self, session: SessionState, entry: Indexed, key: int, data: bytes, token: Any
    ) -> None:
        self.session = session
        self.seq = entry[1]
        self.entry = entry
        """What the index of its record will say of it."""
        self.key = key
        self.data = data
        self.waiters = [token]


class Flight(NamedTuple):
    """A record on its way to the members."""

    record: Record
    events: list[PendingEvent]


_new = tuple.__new__
"""Makes a named tuple from a tuple in half the time of a call of its class."""


def refused(token: Any, code: int, expected_n: int = 0) -> Answer:
    return Answer(token, code, 0, 0, 0, expected_n)


class Serving:
    """The counters and dedup sets of one slot, and its uncommitted events."""

    def __init__(self, slot: int, limits: ServingLimits) -> None:
        self.slot = slot
        self.limits = limits
        self.sessions: dict[str, SessionState] = {}
        self.waiting: dict[str, list[Send]] = {}
        """Sends whose session's state is being loaded."""
        self.waiting_events = 0
        self.open: deque[PendingEvent] = deque()
        self.flights: deque[Flight] = deque()
        self.pending: dict[tuple[str, int], PendingEvent] = {}
        self.pending_bytes = 0
        self.last_key = 0
        self.ancient: list[Send] = []
        """Resends that only history can answer; the owner takes them from here."""

    # -- admission -----------------------------------------------------------------------------

    def submit(
        self, sends: list[Send], epoch: int, now_ms: int, closed: bool = False
    ) -> list[Answer]:
        """Number what is new, answer what is known. New ones are answered when they commit;
        ``closed``: nothing new is taken. What is known is answered also when there is no room."""
        answers: list[Answer] = []
        sessions, pending = self.sessions, self.pending
        events_max, bytes_max = self.limits.pending_events_max, self.limits.pending_bytes_max
        for send in sends:
            room = (
                len(pending) + self.waiting_events < events_max
                and self.pending_bytes < bytes_max
                and not closed
            )
            state = sessions.get(send[1])
            if state is not None and state.loaded:
                answer = self._admit(state, send, epoch, now_ms, room)
                if answer is not None:
                    answers.append(answer)
            elif room:
                self.waiting.setdefault(send.session, []).append(send)
                self.waiting_events += 1
                self.pending_bytes += len(send.body)
            else:
                answers.append(refused(send.token, Overloaded.code))
        return answers

    def _admit(
        self, state: SessionState, send: Send, epoch: int, now_ms: int, room: bool = True
    ) -> Answer | None:
        token, session, device, n, kind, body = send
        state.used_ms = now_ms
        checksum = crc32(body, kind)
        outcome, seq = state.admit(device, n, kind, checksum, room)
        if outcome is NEW:
            self.last_key = key = next_key(self.last_key, now_ms, self.slot)
            data = pack((session, seq, key, kind, device, n, body))
            event = PendingEvent(state, (session, seq, device, n, checksum), key, data, token)
            self.pending[session, seq] = event
            self.pending_bytes += len(data)
            self.open.append(event)
            return None
        if outcome is KNOWN:
            pending = self.pending.get((session, seq))
            if pending is not None:
                # Known and not committed: the answer has to wait like the first one does.
                pending.waiters.append(token)
                if len(pending.waiters) <= WAITERS_MAX:
                    return None
                return refused(pending.waiters.pop(0), Unknown.code)
            # The key is not kept for committed events; the time is the ACK's and not the event's.
            return Answer(token, OK, seq, epoch, now_ms, 0)
        if outcome is ANCIENT:
            self.ancient.append(send)
            return None
        if outcome is FULL:
            return refused(token, Overloaded.code)
        code = OutOfOrder.code if outcome is GAP else KeyConflict.code
        return refused(token, code, seq)

    def loaded(self, image: SessionImage, epoch: int, now_ms: int) -> list[Answer]:
        """A session's state has come from the tables: decide on what waited for it."""
        state = self.sessions.get(image.session)
        if state is None:
            state = self.sessions[image.session] = SessionState(image.session)
        if not state.loaded:
            state.merge(image)
        state.used_ms = now_ms
        answers = []
        for send in self.waiting.pop(image.session, ()):
            self.waiting_events -= 1
            self.pending_bytes -= len(send.body)
            answer = self._admit(state, send, epoch, now_ms)
            if answer is not None:
                answers.append(answer)
        return answers

    # -- committing ----------------------------------------------------------------------------

    def cut_record(self, lsn: int, epoch: int) -> Record | None:
        """The next record from what is open, None when nothing is or enough is in flight."""
        if not self.open or len(self.flights) >= self.limits.records_in_flight_max:
            return None
        events = self._next_events()
        payload = pack_record(
            [event.entry for event in events],
            (events[0].key, events[-1].key),
            [event.data for event in events],
        )
        record = sealed_record(self.slot, lsn, epoch, payload)
        self.flights.append(_new(Flight, (record, events)))
        return record

    def _next_events(self) -> list[PendingEvent]:
        """What is open, as far as it fits into one record."""
        waiting = self.open
        size = 0
        for count, event in enumerate(waiting):
            size += len(event.data) + 5
            if count and (size > RECORD_BYTES_MAX or count == RECORD_EVENTS_MAX):
                return [waiting.popleft() for _ in range(count)]
        events = list(waiting)
        waiting.clear()
        return events

    def commit(self, lsn: int, epoch: int) -> tuple[list[Answer], list[PendingEvent]]:
        """Records up to ``lsn`` are committed: the answers that may leave, the events to push."""
        answers: list[Answer] = []
        events: list[PendingEvent] = []
        while self.flights and self.flights[0].record.lsn <= lsn:
            record, committed = self.flights.popleft()
            self._commit_events(committed, record.lsn, epoch, answers)
            events += committed
        return answers, events

    def _commit_events(
        self, events: list[PendingEvent], lsn: int, epoch: int, answers: list[Answer]
    ) -> None:
        pending = self.pending
        for event in events:
            session, seq = event.session, event.seq
            if seq != session.committed_seq + 1:
                raise InvariantBroken(
                    f"I5: session {session.name!r}: seq {seq} commits after {session.committed_seq}"
                )
            session.committed_seq = seq
            session.last_lsn = lsn
            del pending[session.name, seq]
            self.pending_bytes -= len(event.data)
            time_ms = key_time_ms(event.key)
            for token in event.waiters:
                answers.append(_new(Answer, (token, OK, seq, epoch, time_ms, 0)))

    # -- takeovers -----------------------------------------------------------------------------

    def keep(self, epochs_at: Any, last_lsn: int) -> tuple[int, list[Flight]]:
        """After a takeover by the same incarnation: the flights that the kept log holds stay, the
        others are open again, in order, with the seqs that they have.

        ``epochs_at(lsn)`` is the kept log's epoch. Returns the number kept and those reopened.
        """
        kept = 0
        for record, _ in self.flights:
            if record.lsn > last_lsn or epochs_at(record.lsn) != record.epoch:
                break
            kept += 1
        reopened = [self.flights.pop() for _ in range(len(self.flights) - kept)]
        for flight in reopened:
            self.open.extendleft(reversed(flight.events))
        return kept, reopened

    def replay(self, records: list[Record]) -> None:
        """Take in the end of the log that the tables may not have (a new owner only)."""
        for record in records:
            for session, first_seq, _, sends in record_index(record.payload).parts:
                state = self.sessions.get(session)
                if state is None:
                    state = self.sessions[session] = SessionState(session)
                for seq, (_, device, n, checksum) in enumerate(unpack_sends(sends), first_seq):
                    state.replay(seq, device, n, checksum, record.lsn)

    def abandon(self) -> list[Answer]:
        """The slot is somebody else's: everything pending is answered "unknown, ask again"."""
        answers = [
            refused(token, Unknown.code)
            for event in self.pending.values()
            for token in event.waiters
        ]
        answers += [refused(send.token, Unknown.code) for send in self.ancient]
        # These were never numbered, so the answer is definite.
        parked = [send for sends in self.waiting.values() for send in sends]
        answers += [refused(send.token, SlotMoving.code) for send in parked]
        self.__init__(self.slot, self.limits)  # type: ignore[misc]
        return answers

    def evict(self, idle_before_ms: int, applied_lsn: int, busy: Container[str] = ()) -> int:
        """Forget idle sessions that the tables hold; the highest lsn that touched one of them.

        ``busy`` sessions stay: an answer is on its way that was asked for under a lower floor, and
        joined with nothing it would pass for all there is.
        """
        excess = len(self.sessions) - self.limits.sessions_max
        floor = 0
        for name in list(self.sessions) if excess > 0 else ():
            state = self.sessions[name]
            settled = state.committed_seq == state.last_seq and state.last_lsn <= applied_lsn
            idle = state.used_ms < idle_before_ms and name not in self.waiting
            if settled and idle and name not in busy:
                floor = max(floor, state.last_lsn)
                del self.sessions[name]
        return floor

    def validate(self) -> None:
        """I5 and I6, as far as the owner can see them."""
        seen = sum(len(flight.events) for flight in self.flights) + len(self.open)
        if seen != len(self.pending):
            raise InvariantBroken(
                f"slot {self.slot}: {seen} events open, {len(self.pending)} known"
            )
        expected = {name: state.committed_seq for name, state in self.sessions.items()}
        ordered = [event for flight in self.flights for event in flight.events] + list(self.open)
        for event in ordered:
            name = event.session.name
            expected[name] += 1
            if event.seq != expected[name]:
                raise InvariantBroken(
                    f"I5: session {name!r}: seq {event.seq} where {expected[name]} has to follow"
                )
