"""Notes, on their way out of a shard: one ``core.diffusion.Diffusion`` for each slot it serves.

A note for a slot that is served here is handed over at once; every other one goes through a gateway
to the shard that serves its slot. A note that gets lost on the way is told again.

    Published ─▶ Diffusion ─▶ Tell ──┬─ our slot ──▶ its owner ───────────┐
    (slot's log)      ▲              └─ another ──▶ RELAY ─▶ gateway ─▶ … │
                      └────────────── Told ◀──── answer ◀──── RELAYED ◀───┘
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from im_actors.core import diffusion as dif
from im_actors.core.backoff import Alarms
from im_actors.core.facts import Fact, is_state
from im_actors.core.hearers import hearers
from im_actors.core.model import (
    Event,
    EventKind,
    Record,
    decode_event,
    record_events,
    record_index,
    slot_of,
)
from im_actors.core.names import Heard, heard, slot_session
from im_actors.core.notes import cursor_key, cursor_note, read_cursor
from im_actors.core.owner_words import FactsAsked, LogAsked, OwnerEvent
from im_actors.core.rules import SERVER
from im_actors.core.serving import OK, PendingEvent, Send
from im_actors.errors import NotReachable, Overloaded, SlotMoving, Unknown

logger = logging.getLogger(__name__)

CURSOR = "notes"
CURSOR_TOKEN = 0
"""A cursor that was not written down is written down again with the next one: nobody waits."""
QUIET_RECORDS_MAX = 1_000
"""So many records in which nobody has to hear of anything are told to the diffusion together."""
DELAY_WARN_MS = 1_000
WARN_EVERY_MS = 60_000

_LATER = frozenset((SlotMoving.code, Unknown.code, Overloaded.code, NotReachable.code))
_ALL, _NOBODY = Heard.ALL, Heard.NOBODY


class Shard(Protocol):
    """What the notes need of the shard that they leave."""

    slots: int

    def serves(self, slot: int) -> bool: ...

    def commit_lsn(self, slot: int) -> int: ...

    def ask_owner(self, slot: int, event: OwnerEvent) -> None:
        """Its effects are carried out before this returns."""

    def hand_over(self, slot: int, notes: list[Send]) -> None:
        """The answers come to ``Telling.answered``: each note's token begins with ``NOTES``."""

    def relay(self, rows: list[tuple[int, str, bytes]]) -> None:
        """Give [token, session, body] to a gateway, if there is one."""

    def plan_flush(self) -> None:
        """Let ``Telling.flush`` be called in this turn of the loop."""


class _Slot:
    """One slot's diffusion, and what it has not been told of yet."""

    __slots__ = ("asked", "diffusion", "last_lsn", "quiet_lsn")

    def __init__(self) -> None:
        self.diffusion = dif.Diffusion(hearers)
        self.asked = 0
        """Counts the questions for the cursor: an answer to an earlier one says nothing."""
        self.quiet_lsn = self.last_lsn = 0
        """The first record that the diffusion was not told of, and the last one of all."""


class Telling:
    """The notes of all slots of one shard. Nothing goes out before ``flush``."""

    def __init__(self, name: str, shard: Shard) -> None:
        self._name = name
        self._shard = shard
        self._slots: dict[int, _Slot] = {}
        self._alarms: Alarms[int] = Alarms()
        self._asks: list[tuple[int, OwnerEvent]] = []
        self._notes: dict[int, list[Send]] = {}
        self._relays: list[tuple[int, str, bytes]] = []
        self._warned: dict[str, int] = {}
        """By what it is about: when it was last said."""
        self._look_ms = 0
        """When to look next whether notes wait for too long."""
        self.refused = 0
        """Answers that say that a note cannot be taken: an operator has to look."""

    # -- from the slots' owners ----------------------------------------------------------------

    def activated(self, slot: int) -> None:
        """The slot is served here from now on, or under another epoch."""
        known = self._slots.setdefault(slot, _Slot())
        known.asked += 1
        question = FactsAsked(known.asked, slot_session(slot), (cursor_key(CURSOR),))
        self._ask(slot, question)

    def facts_known(self, slot: int, token: int, facts: dict[str, Fact | None], now: int) -> None:
        """How far the notes of a slot have been told, by whoever served it."""
        known = self._slots[slot]
        if token != known.asked:
            return
        fact = facts[cursor_key(CURSOR)]
        commit_lsn = self._shard.commit_lsn(slot)
        known.last_lsn, known.quiet_lsn = commit_lsn, commit_lsn + 1
        cursor_lsn = read_cursor(fact.value if fact is not None else None)
        self._handle(slot, dif.Began(cursor_lsn, commit_lsn), now)

    def published(
        self, slot: int, first_lsn: int, last_lsn: int, events: list[Event], now: int
    ) -> None:
        """Records have committed; ``events`` are those that others may have to hear of."""
        known = self._slots.get(slot)
        if known is None:
            return
        if first_lsn != known.last_lsn + 1:
            known.quiet_lsn = first_lsn
        known.last_lsn = last_lsn
        if events or last_lsn - known.quiet_lsn >= QUIET_RECORDS_MAX:
            first_lsn, known.quiet_lsn = known.quiet_lsn, last_lsn + 1
            self._handle(slot, dif.Committed(first_lsn, last_lsn, events), now)

    def log_known(self, slot: int, first_lsn: int, records: Sequence[Record], now: int) -> None:
        events = [event for record in records for event in heard_events(record.payload)]
        self._handle(slot, dif.LogRead(first_lsn, records[-1].lsn, events), now)

    def left(self, slot: int, now: int) -> None:
        """The slot is not served here any more."""
        known = self._slots.get(slot)
        if known is not None:
            # The same diffusion goes on later: no token is given twice.
            known.asked += 1
            self._handle(slot, dif.Ended(), now)

    # -- answers -------------------------------------------------------------------------------

    def answered(self, rows: Iterable[tuple[Any, ...]], now: int) -> None:
        """What our own owners say: (token, code, …)."""
        for (slot, token), code, *_ in rows:
            self._told(slot, token, code, now)

    def relayed(self, rows: Iterable[Sequence[int]], now: int) -> None:
        """What others say, or a gateway in their place: [token, code]."""
        for number, code in rows:
            token, slot = divmod(number, self._shard.slots)
            self._told(slot, token, code, now)

    def _told(self, slot: int, token: int, code: int, now: int) -> None:
        if code and code not in _LATER:
            self.refused += 1
            text = f"ALARM {self._name} slot {slot}: a note is refused with code {code}"
            self._warn(logging.ERROR, f"refused {slot}", text, now)
        if slot in self._slots and token != CURSOR_TOKEN:
            self._handle(slot, dif.Told(token, code == OK), now)

    # -- time ----------------------------------------------------------------------------------

    def next_ms(self) -> int | None:
        """When ``tick`` is due."""
        return self._alarms.next_ms()

    def tick(self, now: int) -> None:
        for slot in self._alarms.due(now):
            self._handle(slot, dif.Tick(), now)
        if now >= self._look_ms:
            # Each note that waits is looked at for this.
            self._look_ms = now + DELAY_WARN_MS
            delay_ms = self.status(now)["notes_delay_ms"]
            if delay_ms > DELAY_WARN_MS:
                text = f"{self._name}: notes have waited for {delay_ms} ms"
                self._warn(logging.WARNING, "delay", text, now)

    def status(self, now: int) -> dict[str, int]:
        """Notes that wait, and for how long the oldest of them has; those that were told."""
        diffusions = [known.diffusion for known in self._slots.values()]
        return {
            "notes_waiting": sum(diffusion.waiting for diffusion in diffusions),
            "notes_told": sum(diffusion.told for diffusion in diffusions),
            "notes_delay_ms": max((d.delay_ms(now) for d in diffusions), default=0),
            "notes_refused": self.refused,
        }

    def unsettled(self, slot: int) -> str | None:
        """What of a slot that is served has not been told yet; None: everything has."""
        known = self._slots.get(slot)
        if known is None or not known.diffusion.serving:
            return "the cursor has not been read"
        diffusion = known.diffusion
        if diffusion.waiting or diffusion.taken_lsn < diffusion.commit_lsn:
            taken = f"{diffusion.taken_lsn} of {diffusion.commit_lsn}"
            return f"{diffusion.waiting} notes wait, records are taken up to {taken}"
        return None

    # -- what the machines want done -----------------------------------------------------------

    def flush(self) -> None:
        """Hand out what has gathered. What the owners answer at once goes the same way."""
        while self._asks:
            asks, self._asks = self._asks, []
            for slot, question in asks:
                self._shard.ask_owner(slot, question)
        notes, self._notes = self._notes, {}
        for slot, sends in notes.items():
            self._shard.hand_over(slot, sends)
        if self._relays:
            relays, self._relays = self._relays, []
            self._shard.relay(relays)

    def _ask(self, slot: int, question: OwnerEvent) -> None:
        self._asks.append((slot, question))
        self._shard.plan_flush()

    def _handle(self, slot: int, event: dif.DiffusionEvent, now: int) -> None:
        diffusion = self._slots[slot].diffusion
        for effect in diffusion.handle(event, now):
            match effect:
                case dif.Tell(token, hearer, body):
                    self._tell(slot, token, hearer, body)
                case dif.ReadLog(first_lsn, last_lsn):
                    self._ask(slot, LogAsked(first_lsn, last_lsn))
                case dif.SaveCursor(lsn):
                    session, body = slot_session(slot), cursor_note(CURSOR, lsn)
                    self._note(slot, slot, CURSOR_TOKEN, session, body)
        due = diffusion.deadline_ms()
        if due is None:
            self._alarms.clear(slot)
        else:
            self._alarms.set(slot, due)

    def _tell(self, slot: int, token: int, hearer: str, body: bytes) -> None:
        shard = self._shard
        hears = slot_of(hearer, shard.slots)
        if shard.serves(hears):
            self._note(hears, slot, token, hearer, body)
        else:
            self._relays.append((token * shard.slots + slot, hearer, body))
            shard.plan_flush()

    def _note(self, hears: int, slot: int, token: int, session: str, body: bytes) -> None:
        note = Send((NOTES, (slot, token)), session, SERVER, 0, int(EventKind.NOTE), body)
        self._notes.setdefault(hears, []).append(note)
        self._shard.plan_flush()

    def _warn(self, level: int, about: str, text: str, now: int) -> None:
        """Say it, at most once in a while."""
        said = self._warned.get(about)
        if said is None or now - said >= WARN_EVERY_MS:
            self._warned[about] = now
            logger.log(level, "%s", text)


class _Notes:
    """In the place of the connection that a send came from: our own notes."""


NOTES = _Notes()


def heard_pending(events: Iterable[PendingEvent]) -> list[Event]:
    """Of committed events those that others may have to hear of. An event of an open session costs
    a look at one flag."""
    return [
        decode_event(event.data)
        for event in events
        if event.session.heard and (event.session.heard is _ALL or event.changes_state)
    ]


def heard_events(payload: bytes) -> Iterator[Event]:
    """The same of a record that was read."""
    sessions = [session for session, *_ in record_index(payload).parts]
    if all(heard(session) is _NOBODY for session in sessions):
        return
    for event in map(decode_event, record_events(payload)):
        kind = heard(event.session)
        if kind is _ALL or (kind is Heard.CHANGES and is_state(event.kind)):
            yield event
