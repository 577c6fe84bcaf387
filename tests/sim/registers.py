"""Sessions with rules, for the simulation: registers that are added to and taken from.

Every change is computed from the facts that the owner knows, so a fact that is lost, stale or taken
twice shows as a wrong number for ever after. What is right is said by a model of its own, which is
told nothing but the committed events, in order.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from im_actors.core import rules_for
from im_actors.core.facts import is_state, pack_state, read_request
from im_actors.core.model import Event, EventKind, Record, decode_event, record_events
from im_actors.core.rules import (
    SERVER,
    Accept,
    Decision,
    Known,
    Needs,
    Nothing,
    Refuse,
    Request,
    messages_only,
)
from im_actors.core.serving import Send
from im_actors.errors import BadRequest, NotFound, TooLate
from tests.sim.mailboxes import RULES, has_rules
from tests.sim.network import Process

if TYPE_CHECKING:
    from tests.sim.shards import SimShard
    from tests.sim.world import World

PREFIX = "group:register-"
NOTED = "noted"
"""The key of what servers say; a note says nothing new unless it says more."""
KEYS = 4
REFUSALS = (TooLate.code, NotFound.code)


def asked_for(event: Event) -> bytes:
    """What was sent."""
    if not is_state(event.kind):
        return event.body
    return msgpack.packb(msgpack.unpackb(event.body)[:2])


def is_register(session: str) -> bool:
    return session.startswith(PREFIX)


# -- the rules under test's owner --------------------------------------------------------------


def decide(known: Known, request: Request) -> Decision:
    """``add KEY AMOUNT``; ``take KEY AMOUNT``, if there is so much; ``recall SEQ``, of a change by
    the user himself; the servers' ``upto TOTAL``; and messages."""
    if not is_register(known.session):
        ruled = has_rules(known.session)
        return rules_for.decide(known, request, RULES) if ruled else messages_only(known, request)
    try:
        what, args = read_request(request.body)
    except BadRequest:
        what, args = "", []
    match what:
        case "add" | "take":
            return _changed(known, request, what, args)
        case "recall":
            return _recalled(known, request, args)
        case "upto":
            return _noted(known, request, args)
    return Accept(request.kind, request.body)


def _changed(known: Known, request: Request, what: str, args: list[Any]) -> Decision:
    key, amount, _ = args
    if what == "add" and not known.facts.keys() >= {key, "sum"}:
        return Needs((key, "sum"))
    # One after the other: what is known by then must not be forgotten before both are.
    for needed in (key, "sum"):
        if needed not in known.facts:
            return Needs((needed,))
    old, total = _number(known, key), _number(known, "sum")
    if what == "take":
        if amount > old:
            return Refuse(TooLate(f"{key} is {old}"))
        amount = -amount
    new = old + amount
    value = msgpack.packb(new) if new else None
    facts = [(key, new, value), ("sum", 0, msgpack.packb(total + amount))]
    return Accept(EventKind.GROUP, pack_state(what, args, facts))


def _recalled(known: Known, request: Request, args: list[Any]) -> Decision:
    seq, _ = args
    if seq not in known.events:
        return Needs(events=(seq,))
    head = known.events[seq]
    if head is None or not is_state(head.kind) or head.device != request.device:
        return Refuse(NotFound(f"{seq} is no change of {request.user}"))
    facts = [(f"recalled/{seq}", 0, msgpack.packb([head.seq, head.kind, head.time_ms]))]
    return Accept(EventKind.GROUP, pack_state("recall", args, facts))


def _noted(known: Known, request: Request, args: list[Any]) -> Decision:
    (total,) = args
    if request.device != SERVER:
        return Refuse(NotFound("notes are for servers"))
    if NOTED not in known.facts:
        return Needs((NOTED,))
    if total <= _number(known, NOTED):
        return Nothing()
    fact = (NOTED, 0, msgpack.packb(total))
    return Accept(EventKind.NOTE, pack_state("upto", args, [fact]))


def _number(known: Known, key: str) -> int:
    fact = known.facts[key]
    return 0 if fact is None else msgpack.unpackb(fact.value)


# -- what is right -----------------------------------------------------------------------------


class Model:
    """One register by its committed events alone."""

    def __init__(self) -> None:
        self.events: list[tuple[int, str, int]] = []
        """(kind, device, time) by seq - 1."""
        self.facts: dict[str, tuple[int, int, bytes | None]] = {}
        """key -> (seq, rank, value)."""
        self.numbers: dict[str, list[tuple[int, int]]] = {}
        """key -> (seq, number) of each change."""

    def number(self, key: str, upto_seq: int) -> int:
        rows = [number for seq, number in self.numbers.get(key, ()) if seq <= upto_seq]
        return rows[-1] if rows else 0

    def may_recall(self, device: str, target: int, last_seq: int) -> bool:
        if not 0 < target <= min(last_seq, len(self.events)):
            return False
        kind, sender, _ = self.events[target - 1]
        return kind >= EventKind.GROUP and sender == device

    def expected(self, what: str, args: list[Any]) -> list[list[Any]] | str:
        """The facts of the next event, or why it must not be there."""
        seq = len(self.events)
        if what in ("add", "take"):
            key, amount, _ = args
            change = amount if what == "add" else -amount
            new, total = self.number(key, seq) + change, self.number("sum", seq) + change
            if new < 0:
                return f"takes {amount} of {self.number(key, seq)}"
            return [[key, new, msgpack.packb(new) if new else None],
                    ["sum", 0, msgpack.packb(total)]]  # fmt: skip
        if what == "recall":
            target, _ = args
            if not 0 < target <= seq:
                return f"recalls {target}, which is not there"
            kind, _, time_ms = self.events[target - 1]
            return [[f"recalled/{target}", 0, msgpack.packb([target, kind, time_ms])]]
        (total,) = args
        if total <= self.number(NOTED, seq):
            return f"notes {total} after {self.number(NOTED, seq)}"
        return [[NOTED, 0, msgpack.packb(total)]]

    def take_in(self, event: Event) -> str | None:
        """The next committed event; what is wrong with it."""
        wrong = None
        if event.kind >= EventKind.GROUP:
            what, args, facts = msgpack.unpackb(event.body)
            expected = self.expected(what, args)
            if facts != expected:
                wrong = f"{what} {args[:2]} is {facts} at seq {event.seq}, expected {expected}"
            for key, rank, value in facts:
                self.facts[key] = (event.seq, rank, value)
                number = msgpack.unpackb(value) if value is not None else 0
                if type(number) is int:
                    self.numbers.setdefault(key, []).append((event.seq, number))
        self.events.append((event.kind, event.device, event.time_ms))
        return wrong


class Reason(NamedTuple):
    """What a refusal rested on."""

    last_seq: int
    number: int | None
    """What there was to take from."""
    epoch: int


class Registers:
    """All of them: what owners decide, what was committed, and what was told."""

    def __init__(self, world: World, names: list[str], rng: Random) -> None:
        self.world = world
        self.rng = rng
        self.models = {name: Model() for name in names}
        self.notes = {name: Notes(self, name) for name in names}
        self._taken = dict.fromkeys(range(world.slots), 0)
        self._refused: dict[bytes, list[Reason]] = {}
        """By body."""
        self._told: set[tuple[str, str, bytes]] = set()
        """(session, device, body) of what clients know to be refused."""

    def start(self) -> None:
        for notes in self.notes.values():
            self.world.clock.later(self.rng.uniform(0, 2_000), notes.tell)

    def decide(self, shard: SimShard, slot: int, known: Known, request: Request) -> Decision:
        """The rules, and a memory of what they refused, and why."""
        decision = decide(known, request)
        if type(decision) is Refuse and is_register(known.session):
            what, args = msgpack.unpackb(request.body)
            seen = _number(known, args[0]) if what == "take" else None
            reason = Reason(known.last_seq, seen, shard.owners[slot].epoch)
            self._refused.setdefault(request.body, []).append(reason)
        elif type(decision) is Needs:
            self.world.met("rule_needs")
        elif type(decision) is Nothing:
            self.world.met("note_says_nothing")
        return decision

    def request(self, session: str, rng: Random) -> bytes:
        """What a client asks of a register."""
        key, nonce = f"c/{rng.randrange(KEYS)}", rng.randbytes(6)
        if rng.random() < 0.15:
            last = len(self.models[session].events)
            # Most of them of what is new, or not there yet.
            first = 1 if rng.random() < 0.3 else max(1, last - 2)
            return msgpack.packb(["recall", [rng.randint(first, last + 3), nonce]])
        what, most = ("add", 3) if rng.random() < 0.5 else ("take", 5)
        return msgpack.packb([what, [key, rng.randint(1, most), nonce]])

    def committed(self, slot: int) -> None:
        """Take in what the ledger has got since the last time."""
        log = self.world.ledger.log.get(slot, [])
        for record in log[self._taken[slot] :]:
            for event in map(decode_event, record_events(record.payload)):
                model = self.models.get(event.session)
                if model is None:
                    continue
                if wrong := model.take_in(event):
                    key = (event.session, event.device, event.n)
                    self.world.fail("wrong-change", wrong, slot, key)
                if (event.session, event.device, asked_for(event)) in self._told:
                    self._taken_after_refusal(record, event)
        self._taken[slot] = len(log)

    def _taken_after_refusal(self, record: Record, event: Event) -> None:
        """A new owner does not know what the one before it refused: an early copy of that may be
        taken before the VOID comes. An owner itself does not change its mind."""
        if any(reason.epoch == record.epoch for reason in self._refused[asked_for(event)]):
            key = (event.session, event.device, event.n)
            text = f"{key} was refused for good, and is at seq {event.seq}"
            self.world.fail("refused-write", text, self.world.slot_of(event.session), key)
        self.world.met("taken_after_refusal")

    def refused(self, session: str, device: str, body: bytes, code: int) -> None:
        """A client was told so: it must be true of a state that was committed."""
        model = self.models[session]
        if not self.world.watched(session):
            return
        self._told.add((session, device, body))
        what, args = msgpack.unpackb(body)
        last_seq, reasons = len(model.events), self._refused.get(body, [])
        for seq, seen, _ in reasons:
            if what == "take":
                true = seen == model.number(args[0], seq)
            else:
                true = not model.may_recall(device, args[0], seq)
            if true and seq <= last_seq:
                self.world.met(f"refused_by_rule_{code}")
                return
        text = f"{what} {args[:2]} of {device} in {session!r}, seen {reasons}"
        slot = self.world.slot_of(session)
        self.world.fail("wrong-refusal", f"{text}, committed up to {last_seq}", slot)

    def unsettled(self) -> str | None:
        """What no owner has confirmed yet."""
        for name, notes in self.notes.items():
            if notes.confirmed < notes.total:
                return f"{name} noted {notes.total}, confirmed is {notes.confirmed}"
        return None

    def finish(self) -> None:
        """Every member's tables have the facts of the committed events."""
        for name, model in self.models.items():
            slot = self.world.slot_of(name)
            for member in self.world.store.views[slot].members:
                facts = self.world.replicas[member.replica].disk.facts.get(name, {})
                found = {key: tuple(fact[1:]) for key, fact in facts.items()}
                if found != model.facts:
                    text = f"{member}: {name!r} is {found}, committed is {model.facts}"
                    self.world.fail("wrong-facts", text, slot)


class Notes:
    """A server that tells one register how many things happened elsewhere: again and again, until
    it is confirmed, to whoever seems to own the slot."""

    def __init__(self, registers: Registers, session: str) -> None:
        self.registers = registers
        self.session = session
        self.total = self.confirmed = 0

    def tell(self) -> None:
        registers, world = self.registers, self.registers.world
        rng = registers.rng
        if world.clock.now_ms < world.writing_ms and rng.random() < 0.5:
            self.total += rng.randint(1, 3)
        slot = world.slot_of(self.session)
        serving = [s for s in world.shards if s.running and s.serves(slot)]
        if self.total and serving:
            shard = rng.choice(serving)
            source: Process = rng.choice(list(world.gateways.values()))
            total = rng.randint(max(1, self.total - 3), self.total)
            body = msgpack.packb(["upto", [total]])
            note = Send((self, total), self.session, SERVER, 0, int(EventKind.NOTE), body)
            arrived = shard.alive(lambda: shard.noted(slot, [note]))
            world.network.send(source, shard, arrived, note[1:])
        world.clock.later(rng.uniform(20, 1_500), self.tell)

    def send(self, frame: tuple[int, list[tuple[Any, ...]]]) -> bool:
        """Answers, as a gateway would get them."""
        world = self.registers.world
        for total, code, *_ in frame[1]:
            if code in REFUSALS:
                world.fail("note-refused", f"{self.session!r} refuses {total}: {code}")
            if code:
                world.met(f"note_{code}")
                continue
            model = self.registers.models[self.session]
            held = model.number(NOTED, len(model.events))
            if world.watched(self.session) and held < total:
                text = f"{self.session!r} confirmed {total}, committed is {held}"
                world.fail("note-lost", text, world.slot_of(self.session))
            self.confirmed = max(self.confirmed, total)
        return True
