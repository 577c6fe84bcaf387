"""A session with an owner that does nothing but decide: it loads what a rule asks for, and keeps
what it accepts."""

from __future__ import annotations

from im_actors.core.facts import Fact, event_facts, newest, read_state
from im_actors.core.model import Event, EventKind, make_key
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.rules import SERVER, Accept, EventHead, Known, Needs, Nothing, Refuse, Request
from im_actors.core.rules_for import decide
from im_actors.errors import ImError

ROUNDS_MAX = 4
"""Most times that a rule may ask for more."""


class Deciding:
    """``asked`` is all that rules asked for, ``nothings`` how often a note said nothing new."""

    def __init__(self, session: str, settings: RuleSettings | None = None) -> None:
        self.session = session
        self.settings = settings or RuleSettings()
        self.events: list[Event] = []
        self.facts: dict[str, Fact] = {}
        self.now_ms = 1_700_000_000_000
        self.asked: list[Needs] = []
        self.nothings = 0

    def decide(self, device: str, kind: int, body: bytes) -> Accept | Refuse | Nothing:
        request = Request(device, int(kind), body, self.now_ms)
        known = Known(self.session, len(self.events), {}, {})
        for _ in range(ROUNDS_MAX):
            decision = decide(known, request, self.settings)
            if not isinstance(decision, Needs):
                return decision
            self.asked.append(decision)
            assert decision.keys or decision.events
            assert not set(decision.keys) & set(known.facts), "asked for what is known"
            known.facts.update({key: self.facts.get(key) for key in decision.keys})
            known.events.update({seq: self._head(seq) for seq in decision.events})
        raise AssertionError(f"asked {ROUNDS_MAX} times: {self.asked[-ROUNDS_MAX:]}")

    def send(self, device: str, kind: int, body: bytes) -> Event | None:
        """The event that was accepted, None for Nothing; raises the refusal."""
        decision = self.decide(device, kind, body)
        if isinstance(decision, Refuse):
            raise decision.error
        if isinstance(decision, Nothing):
            self.nothings += 1
            return None
        seq = len(self.events) + 1
        key = make_key(self.now_ms, 0, seq % 4096)
        event = Event(self.session, seq, key, decision.kind, device, seq, decision.body)
        self.events.append(event)
        for fact in event_facts(event):
            newest(self.facts, fact)
        return event

    def refusal(self, device: str, kind: int, body: bytes) -> ImError:
        """Why it is refused; it has to be, and definitely."""
        decision = self.decide(device, kind, body)
        assert isinstance(decision, Refuse), decision
        assert decision.error.definite
        assert not decision.error.retryable
        assert str(decision.error)
        return decision.error

    def say(self, device: str, text: str) -> Event:
        event = self.send(device, EventKind.MESSAGE, text.encode())
        assert event is not None
        return event

    def note(self, body: bytes) -> Event | None:
        return self.send(SERVER, EventKind.NOTE, body)

    def value(self, key: str) -> bytes | None:
        return self.facts[key].value if key in self.facts else None

    def what(self, event: Event | None) -> str:
        assert event is not None
        return read_state(event.body).what

    def _head(self, seq: int) -> EventHead | None:
        if not 0 < seq <= len(self.events):
            return None
        event = self.events[seq - 1]
        return EventHead(seq, event.kind, event.device, event.time_ms)
