"""What an owner keeps while it serves a slot: counters, dedup sets, what is not committed yet.

It outlives a takeover that the owner carries out on itself (a replica was replaced), so that the
seqs given stay the same; it is thrown away when anybody else held the slot in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

from im_actors.core.batch import is_batch_device
from im_actors.core.facts import Fact, event_facts, record_facts
from im_actors.core.knowledge import FACTS_KNOWN_MAX
from im_actors.core.lines import LINES, Line, Lines, LineSettings, line_of, weight_of
from im_actors.core.messages import SessionImage
from im_actors.core.model import (
    STATE_KINDS_FROM,
    Indexed,
    Record,
    decode_event,
    key_time_ms,
    next_key,
    pack,
    pack_record,
    record_index,
    sealed_record,
    unpack_sends,
)
from im_actors.core.recent import RecentRecords
from im_actors.core.rules import (
    SERVER,
    Accept,
    Decide,
    Decision,
    EventHead,
    Known,
    Needs,
    Refuse,
    Request,
    messages_only,
)
from im_actors.core.sessions import ANCIENT, FULL, GAP, KNOWN, NEW, SessionState
from im_actors.errors import (
    ImError,
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
REFUSALS_MAX = 4_096
"""Refusals that are remembered: as long as a copy of what was refused may be on its way."""
POSTPONED_MAX = 1_024
"""Decisions that wait for what they rest on to commit; further ones are to be asked for later."""
REASON_BYTES_MAX = 200
"""What a refusal says of why, at most; the rest is cut off."""


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """Bounds of one slot's owner."""

    pending_events_max: int = 8_192
    """Events that are numbered and not committed, or wait for what is to be known of their
    session."""
    pending_bytes_max: int = 16 * 1024 * 1024
    records_in_flight_max: int = 1
    """Records sent and not committed. What arrives meanwhile is the next record."""
    apply_lag_lsns_max: int = 20_000
    """Records that the slowest member may have journaled and not applied to history."""
    sessions_max: int = 20_000
    """Session states in memory; idle ones above it are forgotten (they stay in the tables)."""
    lines: LineSettings = field(default_factory=LineSettings)
    """How the lines of business share a slot that is half full."""
    recent_bytes_max: int = 64 * 1024
    """Newest committed records that are kept for those who recall or edit what is in them."""

    def validate(self) -> None:
        for name in self.__slots__:
            if name != "lines" and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        self.lines.validate()


class Send(NamedTuple):
    """One message to be numbered. ``token`` is the caller's, returned with the answer. A server's
    note has the device SERVER and ``n`` 0: its number is the owner's affair."""

    token: Any
    session: str
    device: str
    n: int
    kind: int
    body: bytes


class Answer(NamedTuple):
    """What became of a send: ``code`` 0 with seq, epoch and time, or an error code."""

    token: Any
    code: int
    seq: int
    epoch: int
    time_ms: int
    hint: int | str
    """For OUT_OF_ORDER and KEY_CONFLICT the device's next n. For what was refused on other grounds
    the reason, for people, or 0: the code says it all."""

    @property
    def expected_n(self) -> int:
        return self.hint if isinstance(self.hint, int) else 0


class PendingEvent:
    """An event with a seq that is not committed yet, and who waits for it."""

    __slots__ = ("data", "entry", "key", "seq", "session", "waiters")
    changes_state = False

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


class PendingChange(PendingEvent):
    """One that changes its session's state: the index of its record has to say so."""

    __slots__ = ()
    changes_state = True


class Flight(NamedTuple):
    """A record on its way to the members."""

    record: Record
    events: list[PendingEvent]


_new = tuple.__new__
"""Makes a named tuple from a tuple in half the time of a call of its class."""


_CHANGES_STATE = int(STATE_KINDS_FROM)


def refused(token: Any, code: int, hint: int | str = 0) -> Answer:
    return Answer(token, code, 0, 0, 0, hint)


def _outcome(token: Any, code: int, hint: int | str, seq: int, epoch: int, time_ms: int) -> Answer:
    return refused(token, code, hint) if code else Answer(token, OK, seq, epoch, time_ms, 0)


def _line_of(session: str, device: str) -> Line | None:
    """None: a note, which is no line's."""
    if device == SERVER:
        return None
    return Line.BATCH if is_batch_device(device) else line_of(session)


def _reason(error: ImError) -> str:
    return error.detail.encode("utf-8", "replace")[:REASON_BYTES_MAX].decode("utf-8", "ignore")


class Serving:
    """The counters and dedup sets of one slot, and its uncommitted events."""

    def __init__(self, slot: int, limits: ServingLimits, decide: Decide = messages_only) -> None:
        self.slot = slot
        self.limits = limits
        self.decide = decide
        self.sessions: dict[str, SessionState] = {}
        self.waiting: dict[str, list[Send]] = {}
        """Sends of sessions of which something is being loaded, in order. All that comes later
        waits behind them."""
        self.waiting_events = 0
        self.unloaded: list[str] = []
        """Sessions in ``waiting`` whose state is to be loaded; the owner takes them from here."""
        self.needs: dict[str, Needs] = {}
        """What has to be known of a session for its first send in ``waiting``; the owner takes
        this from here."""
        self.postponed: dict[tuple[str, int], list[tuple[Any, int, int | str]]] = {}
        """(session, seq) -> (token, code, hint): decided on what is known up to that event, and
        told when it has committed: nothing that is not committed ever leaves here."""
        self.postponed_answers = 0
        self.refused: dict[tuple[str, str], tuple[int, int, int]] = {}
        """(session, device) -> (n, checksum, code) of its last refusal, the newest at the end. A
        copy that comes late is refused as well, whatever the rules would say by then, and without
        the reason, which would be the most of what is remembered."""
        self.crowded: set[str] = set()
        """Sessions of which more facts are known than are to be kept."""
        self.changes_open = 0
        """How many of ``open`` change their session's state."""
        self.open: deque[PendingEvent] = deque()
        self.flights: deque[Flight] = deque()
        self.pending: dict[tuple[str, int], PendingEvent] = {}
        self.pending_bytes = 0
        events_max = limits.pending_events_max
        self._lines = Lines(limits.lines, events_max, events_max // 2)
        """Counted only when it gets tight."""
        self.recent = RecentRecords(limits.recent_bytes_max)
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
        events_half = self.limits.pending_events_max // 2
        bytes_half = self.limits.pending_bytes_max // 2
        tight = False
        for send in sends:
            room = (
                len(pending) + self.waiting_events < events_half
                and self.pending_bytes < bytes_half
                and not closed
            )
            if not room and not closed:
                if not tight:
                    tight = True
                    self._count_lines()
                room = self._line_has_room(send)
            state = sessions.get(send[1])
            if state is not None and state.ready:
                answer = self._admit(state, send, epoch, now_ms, room)
                if answer is not None:
                    answers.append(answer)
            elif room:
                if send.session not in self.waiting:
                    self.waiting[send.session] = []
                    self.unloaded.append(send.session)
                self.waiting[send.session].append(send)
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
        if kind > state.free_kind or not n:
            n = n or state.next_n(device)
            first = n == 1 and room and device not in state.devices
            if kind and (
                first or state.admit(device, n, kind, checksum, room, take=False)[0] is NEW
            ):
                decided = self._decide(state, send, n, checksum, epoch, now_ms)
                if not isinstance(decided, Accept):
                    return decided
                # The checksum stays that of what was sent: a resend has to be known again.
                kind, body = decided
        outcome, seq = state.admit(device, n, kind, checksum, room)
        if outcome is NEW:
            self.last_key = key = next_key(self.last_key, now_ms, self.slot)
            data = pack((session, seq, key, kind, device, n, body))
            made = PendingEvent if kind < _CHANGES_STATE else PendingChange
            event = made(state, (session, seq, device, n, checksum), key, data, token)
            self.pending[session, seq] = event
            self.pending_bytes += len(data)
            self.open.append(event)
            if made is PendingChange:
                self.changes_open += 1
                self._said(state, event_facts(decode_event(data)))
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
        if outcome is GAP:
            return refused(token, OutOfOrder.code, seq)
        if state.last_seq != state.committed_seq:
            # The other body may be one that has not committed, and is lost with this owner.
            return refused(token, Unknown.code)
        return refused(token, KeyConflict.code, seq)

    # -- the lines' shares, when the slot is half full ----------------------------------------

    def _count_lines(self) -> None:
        rows = self._lines.open
        rows[:] = [0] * LINES
        for event in self.pending.values():
            line = _line_of(event.entry[0], event.entry[2])
            if line is not None:
                rows[line] += weight_of(event.data)
        for send in (send for sends in self.waiting.values() for send in sends):
            line = _line_of(send.session, send.device)
            if line is not None:
                rows[line] += weight_of(send.body)

    def _line_has_room(self, send: Send) -> bool:
        limits = self.limits
        full = (
            len(self.pending) + self.waiting_events >= limits.pending_events_max
            or self.pending_bytes >= limits.pending_bytes_max
        )
        line = _line_of(send.session, send.device)
        if line is None:
            return not full
        rows = self._lines.open
        if rows[line] >= self._lines.limits(0, full)[line]:
            return False
        rows[line] += weight_of(send.body)
        return True

    def loaded(self, image: SessionImage, epoch: int, now_ms: int) -> list[Answer]:
        """A session's state has come from the tables: decide on what waited for it."""
        state = self.sessions.get(image.session)
        if state is None:
            state = self.sessions[image.session] = SessionState(image.session)
        if not state.loaded:
            state.merge(image)
        return self._decide_waiting(state, epoch, now_ms)

    # -- what the rules decide -----------------------------------------------------------------

    def _decide(
        self, state: SessionState, send: Send, n: int, checksum: int, epoch: int, now_ms: int
    ) -> Accept | Answer | None:
        """What the rules say of a send that is new; otherwise its answer, or None: it comes later.
        VOIDs are nobody's affair but their sender's."""
        token, session, device, _, kind, body = send
        if self.refused:
            before = self.refused.get((session, device))
            if before is not None and before[:2] == (n, checksum):
                return self._postpone(state, token, before[2], 0, epoch, now_ms)
        decision = self._decision(state, _new(Request, (device, kind, body, now_ms)))
        if isinstance(decision, Accept):
            return decision
        match decision:
            case Refuse(error):
                self._remember_refusal((session, device), (n, checksum, error.code))
                return self._postpone(state, token, error.code, _reason(error), epoch, now_ms)
            case Needs():
                self._wait(state, send, decision)
                return None
            case _:
                assert device == SERVER, f"{device} asks for something and is told nothing"
                return self._postpone(state, token, OK, 0, epoch, now_ms)

    def _remember_refusal(self, who: tuple[str, str], what: tuple[int, int, int]) -> None:
        self.refused.pop(who, None)
        self.refused[who] = what
        if len(self.refused) > REFUSALS_MAX:
            del self.refused[next(iter(self.refused))]

    def _decision(self, state: SessionState, request: Request) -> Decision:
        """What the rules say; Needs only what has to be loaded. A rule may raise its refusal."""
        asked: Needs | None = None
        while True:
            knowledge = state.knowledge
            facts = {} if knowledge is None else knowledge.facts
            events = {} if knowledge is None else knowledge.events
            try:
                known = _new(Known, (state.name, state.last_seq, facts, events))
                decision = self.decide(known, request)
            except ImError as error:
                decision = Refuse(error)
            if type(decision) is not Needs:
                # Another send may ask for what was not there yet.
                events.clear()
                return decision
            assert decision != asked, f"a rule for {state.name!r} asks again for {asked}"
            asked = decision
            self._look_at_own(state, decision.events)
            lacking = state.know().lacks(decision)
            if any(lacking):
                return lacking

    def _look_at_own(self, state: SessionState, seqs: tuple[int, ...]) -> None:
        """Of events that no table can have, those that are not committed and those to come, and of
        those that the tables may not have yet."""
        for seq in seqs:
            if (state.name, seq) in self.pending:
                event = decode_event(self.pending[state.name, seq].data)
                head = EventHead(seq, event.kind, event.device, event.time_ms)
                state.know().events[seq] = head
            elif not 0 < seq <= state.last_seq:
                state.know().events[seq] = None
            elif (recent := self.recent.head(state.name, seq)) is not None:
                state.know().events[seq] = recent

    def _said(self, state: SessionState, facts: list[Fact]) -> None:
        """Facts of events that are newer than all that is known."""
        knowledge = state.know()
        knowledge.said(facts)
        if len(knowledge) > FACTS_KNOWN_MAX:
            self.crowded.add(state.name)

    def _postpone(
        self,
        state: SessionState,
        token: Any,
        code: int,
        hint: int | str,
        epoch: int,
        now_ms: int,
    ) -> Answer | None:
        """The outcome of a send that takes no seq. It rests on what is known, and so it is told
        when all of that has committed."""
        if state.last_seq == state.committed_seq:
            return _outcome(token, code, hint, state.last_seq, epoch, now_ms)
        if self.postponed_answers >= POSTPONED_MAX:
            return refused(token, Overloaded.code)
        self.postponed_answers += 1
        outcomes = self.postponed.setdefault((state.name, state.last_seq), [])
        outcomes.append((token, code, hint))
        return None

    def _wait(self, state: SessionState, send: Send, needs: Needs) -> None:
        """Something has to be known first. All that comes later of this session waits behind."""
        self.needs[state.name] = needs
        state.ready = False
        self.waiting[state.name] = [send]
        self.waiting_events += 1
        self.pending_bytes += len(send.body)

    def facts_loaded(self, session: str, keys: tuple[str, ...], facts: tuple[Fact, ...]) -> None:
        """The tables have said what there is under these keys."""
        state = self.sessions[session]
        knowledge = state.know()
        knowledge.loaded(keys, facts)
        if len(knowledge) > FACTS_KNOWN_MAX:
            self.crowded.add(session)

    def committed_facts(self, session: str, keys: tuple[str, ...]) -> dict[str, Fact | None]:
        """What is known to be committed under these keys. A key of which a change has not committed
        yet is left out."""
        state = self.sessions.get(session)
        if state is None or state.knowledge is None:
            return {}
        knowledge, seq = state.knowledge, state.committed_seq
        known = [key for key in keys if key in knowledge.facts and knowledge.said_at(key) <= seq]
        return {key: knowledge.facts[key] for key in known}

    def hidden_lsn(self, session: str, keys: tuple[str, ...]) -> int:
        """The newest committed record of a session, if a change of one of these keys has not
        committed; otherwise 0."""
        state = self.sessions.get(session)
        if state is None or state.knowledge is None:
            return 0
        knowledge, seq = state.knowledge, state.committed_seq
        hidden = any(key in knowledge.facts and knowledge.said_at(key) > seq for key in keys)
        return state.last_lsn if hidden else 0

    def event_found(self, session: str, seq: int, head: EventHead | None) -> None:
        """History has said what this event is."""
        self.sessions[session].know().events[seq] = head

    def decide_again(self, session: str, epoch: int, now_ms: int) -> list[Answer]:
        """What a session's first waiting send needed is known now."""
        state = self.sessions[session]
        state.ready = True
        return self._decide_waiting(state, epoch, now_ms)

    def _decide_waiting(self, state: SessionState, epoch: int, now_ms: int) -> list[Answer]:
        """Decide on what waits, in order, up to the next that needs something."""
        state.used_ms = now_ms
        waiting = self.waiting.pop(state.name, [])
        answers = []
        for position, send in enumerate(waiting, 1):
            self.waiting_events -= 1
            self.pending_bytes -= len(send.body)
            answer = self._admit(state, send, epoch, now_ms)
            if answer is not None:
                answers.append(answer)
            if not state.ready:
                self.waiting[state.name] += waiting[position:]
                break
        return answers

    def forget_facts(self, applied_lsn: int) -> int:
        """Forget facts of crowded sessions that the tables have; the lsn from which on tables may
        be asked for them again."""
        floor = 0
        for name in [name for name in sorted(self.crowded) if name not in self.waiting]:
            state = self.sessions.get(name)
            if state is not None:
                lsn, seq = state.last_lsn, state.committed_seq
                floor = max(floor, state.know().forget_settled(seq, lsn, applied_lsn))
            if state is None or len(state.know()) <= FACTS_KNOWN_MAX:
                self.crowded.discard(name)
        return floor

    # -- committing ----------------------------------------------------------------------------

    def cut_record(self, lsn: int, epoch: int) -> Record | None:
        """The next record from what is open, None when nothing is or enough is in flight."""
        if not self.open or len(self.flights) >= self.limits.records_in_flight_max:
            return None
        events = self._next_events()
        changes: list[int] = []
        if self.changes_open:
            changes = [position for position, event in enumerate(events) if event.changes_state]
            self.changes_open -= len(changes)
        payload = pack_record(
            [event.entry for event in events],
            (events[0].key, events[-1].key),
            [event.data for event in events],
            changes,
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
            self.recent.keep(record)
            if self.postponed:
                self._tell_postponed(committed, epoch, answers)
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

    def _tell_postponed(
        self, committed: list[PendingEvent], epoch: int, answers: list[Answer]
    ) -> None:
        for event in committed:
            time_ms = key_time_ms(event.key)
            for token, code, hint in self.postponed.pop((event.session.name, event.seq), ()):
                self.postponed_answers -= 1
                answers.append(_outcome(token, code, hint, event.seq, epoch, time_ms))

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
            self.changes_open += sum(event.changes_state for event in flight.events)
        return kept, reopened

    def replay(self, records: list[Record]) -> None:
        """Take in the end of the log that the tables may not have (a new owner only)."""
        for record in records:
            index = record_index(record.payload)
            for session, first_seq, _, sends in index.parts:
                state = self.sessions.get(session)
                if state is None:
                    state = self.sessions[session] = SessionState(session)
                for seq, (_, device, n, checksum) in enumerate(unpack_sends(sends), first_seq):
                    state.replay(seq, device, n, checksum, record.lsn)
            if index.changes:
                for session, facts in record_facts(record.payload):
                    self._said(self.sessions[session], facts)
            self.recent.keep(record)

    def abandon(self) -> list[Answer]:
        """The slot is somebody else's: everything pending is answered "unknown, ask again"."""
        answers = [
            refused(token, Unknown.code)
            for event in self.pending.values()
            for token in event.waiters
        ]
        answers += [refused(send.token, Unknown.code) for send in self.ancient]
        told_later = [row[0] for rows in self.postponed.values() for row in rows]
        answers += [refused(token, Unknown.code) for token in told_later]
        # These were never numbered, so the answer is definite.
        parked = [send for sends in self.waiting.values() for send in sends]
        answers += [refused(send.token, SlotMoving.code) for send in parked]
        self.__init__(self.slot, self.limits, self.decide)  # type: ignore[misc]
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
        changes = sum(event.changes_state for event in self.open)
        postponed = sum(map(len, self.postponed.values()))
        if (changes, postponed) != (self.changes_open, self.postponed_answers):
            raise InvariantBroken(f"slot {self.slot}: {changes} changes, {postponed} postponed")
        waiting = sum(map(len, self.waiting.values()))
        if waiting != self.waiting_events:
            raise InvariantBroken(f"slot {self.slot}: {waiting} of {self.waiting_events} wait")
        if lost := self.postponed.keys() - self.pending.keys():
            raise InvariantBroken(f"slot {self.slot}: nothing will tell the outcomes at {lost}")
        for name, state in self.sessions.items():
            if state.loaded and state.ready == (name in self.waiting):
                raise InvariantBroken(f"slot {self.slot}: sends of {name!r} wait out of turn")
        expected = {name: state.committed_seq for name, state in self.sessions.items()}
        ordered = [event for flight in self.flights for event in flight.events] + list(self.open)
        for event in ordered:
            name = event.session.name
            expected[name] += 1
            if event.seq != expected[name]:
                raise InvariantBroken(
                    f"I5: session {name!r}: seq {event.seq} where {expected[name]} has to follow"
                )
