"""Batch messages, on their way out of a shard: one ``core.batch_run.BatchRun`` for all that it
serves.

    BATCH events ─▶ BatchRun ─▶ Send ──┬─ our slot ──▶ its owner ──────────────┐
    of our slots       ▲               └─ another ──▶ relay ─▶ gateway ─▶ …    │
                       └──────────────── Answered ◀────────────────────────────┘

While clients of other lines of business send, no more of this is on its way than the batches' share
(``core.lines``); the rest waits here.

Which batches are active when a slot comes here its own session says, and the events in its log that
are newer than that.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from im_actors.core import batch_words as words
from im_actors.core.batch_rules import LISTED_KEY, read_listed
from im_actors.core.batch_run import BatchRun, BatchSettings
from im_actors.core.facts import Fact, event_facts, read_state
from im_actors.core.lines import Line, Lines, LineSettings, line_of
from im_actors.core.model import Event, EventKind, slot_of
from im_actors.core.names import SessionKind, session_kind, session_name, slot_session
from im_actors.core.rules import SERVER
from im_actors.core.serving import Send
from im_actors.errors import error_for

logger = logging.getLogger(__name__)

ALONE_MAX = 1 << 30
"""While nobody else sends the channels' own quotas are the only ones."""
SAID = 0
"""The token of what is noted in a batch itself: that it holds is heard by its event."""


class FactsToken(NamedTuple):
    """With which facts are asked for: it comes back with them."""

    session: str
    keys: tuple[str, ...]


class Row(NamedTuple):
    """A send to a session that another shard serves."""

    token: int
    session: str
    device: str
    n: int
    kind: int
    body: bytes


class Shard(Protocol):
    """What the batches need of the shard that they leave."""

    slots: int

    def serves(self, slot: int) -> bool: ...

    def read_facts(self, slot: int, token: FactsToken) -> None:
        """Ask the owner; the answer, if there is one, comes to ``Batches.facts_known``."""

    def hand_over(self, slot: int, sends: list[Send]) -> None:
        """The answers come to ``Batches.answered``: each send's token begins with ``BATCHES``."""

    def relay_sends(self, rows: list[Row]) -> None:
        """Give them to a gateway, if there is one; the answers come to ``Batches.answered``."""

    def plan_flush(self) -> None:
        """Let ``Batches.flush`` be called in this turn of the loop."""


class Batches:
    """The batch messages of all slots of one shard. Nothing goes out before ``flush``."""

    def __init__(
        self,
        name: str,
        shard: Shard,
        now: int,
        settings: BatchSettings | None = None,
        lines: LineSettings | None = None,
    ) -> None:
        self._name = name
        self._shard = shard
        self._run = BatchRun(now, settings)
        self._asks: list[tuple[int, FactsToken]] = []
        lines = lines or LineSettings()
        self._lines = Lines(lines, ALONE_MAX, lines.rows)
        self._waiting: deque[words.Send] = deque()
        """For their turn; no more than the channels have in flight."""
        self._sends: dict[int, list[Send]] = {}
        self._relays: list[Row] = []

    # -- from the slots' owners ----------------------------------------------------------------

    def activated(self, slot: int) -> None:
        """The slot is served here from now on, or under another epoch."""
        self._ask(slot, FactsToken(slot_session(slot), (LISTED_KEY,)))

    def facts_known(self, token: FactsToken, facts: Mapping[str, Fact | None], now: int) -> None:
        session, keys = token
        if session_kind(session) is SessionKind.SLOT:
            fact = facts.get(LISTED_KEY)
            listed = read_listed(fact.value if fact is not None else None)
            if self._shard.serves(int(session_name(session))):
                self._handle(words.Began(tuple(listed)), now)
            return
        known = tuple(fact for fact in facts.values() if fact is not None)
        self._handle(words.FactsRead(session, keys, known), now)

    def saw(self, events: Iterable[Event], live: bool, now: int) -> None:
        """Committed events of slots that are served here, of any sessions; ``live``: they have
        committed just now, and were not read from the log."""
        for event in events:
            if session_kind(event.session) is SessionKind.BATCH and event.kind != EventKind.VOID:
                facts = event_facts(event)
                # One that changed nothing has started nothing.
                started = live and bool(facts) and read_state(event.body).what == "start"
                self._handle(words.Changed(event.session, tuple(facts), started), now)

    def left(self, slot: int, now: int) -> None:
        """The slot is not served here any more."""
        gone = [name for name in self._run.runs if slot_of(name, self._shard.slots) == slot]
        if gone:
            self._handle(words.Ended(tuple(gone)), now)

    # -- answers -------------------------------------------------------------------------------

    def answered(self, rows: Iterable[Sequence[int]], now: int) -> None:
        """What owners say, ours or others': (token, code, seq, …); or a gateway in their place:
        (token, code)."""
        answers = []
        for token, code, *rest in rows:
            if token != SAID:
                answers.append((token, code, rest[0] if rest else 0))
            elif code and not error_for(code).retryable:
                logger.error("ALARM %s: progress of a batch is refused: %d", self._name, code)
        if answers:
            self._handle(words.Answered(tuple(answers)), now)
            if self._waiting:
                self._shard.plan_flush()

    def others_send(self, session: str, now: int) -> None:
        """A client has sent something to this session."""
        self._lines.used_ms[line_of(session)] = now

    # -- time ----------------------------------------------------------------------------------

    def next_ms(self) -> int | None:
        """When ``tick`` is due."""
        return self._run.deadline_ms()

    def tick(self, now: int) -> None:
        due = self._run.deadline_ms()
        if due is not None and due <= now:
            self._handle(words.Tick(), now)

    def status(self) -> dict[str, int]:
        channels = self._run.channels.items()
        counts = {f"batch_sends_{name}": channel.sent for name, channel in channels}
        return {"batches_active": len(self._run.runs), **counts}

    # -- what the machine wants done -----------------------------------------------------------

    def flush(self, now: int) -> None:
        """Hand out what has gathered. What the owners answer at once goes the same way."""
        if self._waiting:
            self._take_turns(now)
        while self._asks:
            asks, self._asks = self._asks, []
            for slot, token in asks:
                self._shard.read_facts(slot, token)
        sends, self._sends = self._sends, {}
        for slot, several in sends.items():
            self._shard.hand_over(slot, several)
        if self._relays:
            relays, self._relays = self._relays, []
            self._shard.relay_sends(relays)

    def _ask(self, slot: int, token: FactsToken) -> None:
        self._asks.append((slot, token))
        self._shard.plan_flush()

    def _handle(self, event: words.BatchEvent, now: int) -> None:
        slots = self._shard.slots
        effects = self._run.handle(event, now)
        for effect in effects:
            match effect:
                case words.Send():
                    self._waiting.append(effect)
                case words.ReadFacts(session, keys):
                    self._ask(slot_of(session, slots), FactsToken(session, keys))
                case words.Say(session, body):
                    note = Send((BATCHES, SAID), session, SERVER, 0, int(EventKind.NOTE), body)
                    self._sends.setdefault(slot_of(session, slots), []).append(note)
        if effects:
            self._shard.plan_flush()

    def _take_turns(self, now: int) -> None:
        waiting = self._waiting
        in_flight = sum(channel.in_flight for channel in self._run.channels.values())
        room = self._lines.limits(now)[Line.BATCH] - max(0, in_flight - len(waiting))
        for _ in range(min(room, len(waiting))):
            self._send(waiting.popleft())

    def _send(self, send: words.Send) -> None:
        token, session, device, n, kind, body = (
            send.token, send.session, send.device, send.n, send.kind, send.body,
        )  # fmt: skip
        slot = slot_of(session, self._shard.slots)
        if self._shard.serves(slot):
            row = Send((BATCHES, token), session, device, n, kind, body)
            self._sends.setdefault(slot, []).append(row)
        else:
            self._relays.append(Row(token, session, device, n, kind, body))


class _Batches:
    """In the place of the connection that a send came from: our own batches."""


BATCHES: Any = _Batches()
