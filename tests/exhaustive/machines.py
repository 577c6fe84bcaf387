"""What the machines make of events, computed once each, and which messages still matter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from im_actors.core import owner as own
from im_actors.core.messages import (
    Appended,
    Drop,
    Fetch,
    Fetched,
    FindKey,
    LoadSessions,
    Need,
    Prepared,
    Refused,
    Seal,
    Sealed,
)
from im_actors.core.model import Member
from im_actors.core.owner import Phase
from tests.exhaustive import rules
from tests.exhaustive.bounds import RULES, Bounds
from tests.exhaustive.names import DISKS, OWNERS, REPLICAS, Exchange, Things, all_exchanges
from tests.exhaustive.owner_node import may_drop, step
from tests.exhaustive.replica_node import Broken, ReplicaNode

Label = tuple[Any, ...]

_LATER: dict[type, tuple[Phase, ...]] = {
    Sealed: (Phase.SEALING,),
    Prepared: (Phase.SEALING, Phase.COPYING),
    Fetched: (Phase.SEALING, Phase.COPYING),
    Appended: (Phase.SEALING, Phase.COPYING, Phase.OPENING, Phase.ACTIVATING, Phase.SERVING),
    Need: (Phase.OPENING, Phase.ACTIVATING, Phase.SERVING),
    Refused: (Phase.SEALING, Phase.COPYING, Phase.OPENING, Phase.ACTIVATING, Phase.SERVING),
}
"""The phases of an attempt in which an answer of its own epoch may still be waited for."""


@dataclass(frozen=True, slots=True)
class Course:
    """Something that a replica can do by itself, one event after the other."""

    path: tuple[Label, ...]
    number: Any
    """The replica afterwards, or how it broke."""
    requests: int
    crashes: int
    outs: frozenset[Any]
    new: tuple[Any, ...]
    """Of these, what the last event brought."""


class Machines:
    """The steps of single machines. Everything is a number of ``things``."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.things = Things()
        self.count = bounds.replicas
        self.exchanges = all_exchanges(len(OWNERS), self.count)
        self.members = [Member(REPLICAS[i], DISKS[i]) for i in range(self.count)]
        self._owner_steps: dict[Any, Any] = {}
        self._replica_steps: dict[Any, Any] = {}
        self._owner_facts: dict[int, rules.OwnerFacts] = {}
        self._replica_facts: dict[int, rules.ReplicaFacts] = {}
        self._courses: dict[Any, list[Course]] = {}
        self._pruned_requests: dict[Any, Any] = {}
        self._pruned_answers: dict[Any, int] = {}
        self._stale: dict[Any, bool] = {}

    # -- facts ---------------------------------------------------------------------------------

    def owner_facts(self, number: int) -> rules.OwnerFacts:
        known = self._owner_facts.get(number)
        if known is None:
            known = self._owner_facts[number] = rules.owner_facts(self.things.value(number))
        return known

    def replica_facts(self, number: int) -> rules.ReplicaFacts:
        """Raises Broken if the replica by itself breaks a rule."""
        known = self._replica_facts.get(number)
        if known is None:
            known = self._replica_facts[number] = rules.replica_facts(
                self.things.value(number), self.bounds.judge == RULES
            )
        return known

    # -- replicas ------------------------------------------------------------------------------

    def _replica_step(self, number: int, event: Any) -> tuple[Any, tuple[Any, ...]]:
        """The replica after ``event`` and what it sends; (Broken, ()) when it breaks down."""
        key = (number, event)
        known = self._replica_steps.get(key)
        if known is None:
            known = self._replica_steps[key] = self._compute_replica_step(number, event)
        return known  # type: ignore[no-any-return]

    def _compute_replica_step(self, number: int, event: Any) -> tuple[Any, tuple[Any, ...]]:
        node = self.things.value(number)
        try:
            if event[0] == "item":
                kind, who, what = self.things.value(event[1])
                found = node.asked(who, what) if kind == "ask" else node.backfilled(who, what)
            elif event[0] == "ticked":
                found = node.ticked(event[1])
            elif event[0] == "does":
                found = node.task_done(event[1])
            else:
                found = node.restarted()
            after = self.things.number_of(_normal(node))
            self.replica_facts(after)
        except Exception as error:
            return _as_broken(error), ()
        return after, tuple(self._out_of_replica(node, out) for out in found)

    def _out_of_replica(self, node: ReplicaNode, out: Any) -> Any:
        kind, target, message = out
        if kind == "fetch":
            item = self.things.number_of(("ask", node.name, message))
            return ("replica", REPLICAS.index(target), item)
        if target in REPLICAS:
            item = self.things.number_of(("backfill", node.name, message))
            return ("replica", REPLICAS.index(target), item)
        answer = own.ReplicaAnswered(Member(node.name, node.disk_id), message)
        return ("owner", target, self.things.number_of(answer))

    def _local(self, number: int, requests: int, crashes: int) -> list[Course]:
        """All that a replica can do with the requests that are on their way to it."""
        key = (number, requests, crashes)
        known = self._courses.get(key)
        if known is None:
            known = self._courses[key] = self._compute_local(number, requests, crashes)
        return known

    def _compute_local(self, number: int, requests: int, crashes: int) -> list[Course]:
        first = Course((), number, requests, 0, frozenset(), ())
        found: dict[Any, list[Course]] = {(number, requests, 0): [first]}
        waiting = [first]
        for course in waiting:
            for label, after, outs in self._replica_events(course, crashes):
                longer = self._course_after(course, label, after, outs)
                key = (longer.number, longer.requests, longer.crashes)
                rivals = found.setdefault(key, [])
                # Who got there with more answers on their way can do all that this one can.
                if not any(rival.outs >= longer.outs for rival in rivals):
                    rivals.append(longer)
                    waiting.append(longer)
        return waiting

    def _replica_events(self, course: Course, crashes: int) -> Iterator[Any]:
        number = course.number
        if isinstance(number, Broken):
            return
        facts = self.replica_facts(number)
        events: list[Any] = [
            (("gets", item), ("item", item)) for item in self.things.sets[course.requests]
        ]
        events += [(("does", kind), ("does", place)) for place, kind in facts.tasks]
        sources = min(self.bounds.sources, self.count - 1)
        if facts.backfills:
            events += [(("backfills", i), ("ticked", i)) for i in range(sources)]
        if course.crashes < crashes:
            events.append((("restarts",), ("restarted",)))
        for label, event in events:
            after, outs = self._replica_step(number, event)
            if after != number or (event[0] == "ticked" and not course.outs.issuperset(outs)):
                yield label, after, outs

    def _course_after(self, course: Course, label: Label, after: Any, outs: Any) -> Course:
        crashes = course.crashes + (label[0] == "restarts")
        path = (*course.path, label)
        if isinstance(after, Broken):
            return Course(path, after, course.requests, crashes, course.outs, ())
        requests, answers = self._pruned(after, course.requests)
        new = tuple(dict.fromkeys((*outs, *answers)))
        return Course(path, after, requests, crashes, course.outs | frozenset(new), new)

    # -- messages that still matter -----------------------------------------------------------

    def _pruned(self, number: int, requests: int) -> tuple[int, tuple[Any, ...]]:
        """What a replica only answers, unchanged, it answers at once; what it can only refuse any
        more leaves the set of requests."""
        key = (number, requests)
        known = self._pruned_requests.get(key)
        if known is None:
            kept: list[int] = []
            answers: dict[Any, None] = {}
            for item in self.things.sets[requests]:
                after, outs = self._replica_step(number, ("item", item))
                if after == number:
                    answers.update(dict.fromkeys(outs))
                if not self._is_refused(number, item):
                    kept.append(item)
            known = self._pruned_requests[key] = (self.things.set_number(kept), tuple(answers))
        return known  # type: ignore[no-any-return]

    def _is_over(self, number: int, item: int, owners: list[int]) -> bool:
        """The replica does nothing about it, now and later, and nobody waits for the answer."""
        _, _, who, request = self.things.trees[item]
        if self.things.trees[item][1] != "ask" or who in REPLICAS:
            return False
        after, outs = self._replica_step(number, ("item", item))
        if after != number:
            return False
        owner = owners[OWNERS.index(who[0])]
        living = self.owner_facts(owner).me == who
        if living and not all(self._is_stale(owner, out[2]) for out in outs):
            return False
        kind, epoch = request[0], request[2]
        if kind in (LoadSessions, FindKey, Fetch):
            return not living or self._is_read_over(owner, request)
        facts = self.replica_facts(number)
        if facts.durable_promise != epoch or facts.tasks or kind is Drop:
            return False
        if kind is Seal:
            return not living or self.owner_facts(owner).phase is not Phase.SEALING
        if facts.applied_lsn < facts.held[-1][1] and self.bounds.loads:
            return False
        last_epoch = facts.epochs[-1][0] if facts.epochs else 0
        needs = any(self.things.trees[out[2]][2][0] is Need for out in outs)
        return last_epoch == epoch and not needs

    def _is_read_over(self, owner: int, request: Any) -> bool:
        facts = self.owner_facts(owner)
        if request[0] is Fetch:
            return facts.epoch != request[2] or facts.phase is not Phase.COPYING
        return facts.epoch != request[2] or request[3] not in facts.lookups

    def _is_refused(self, number: int, item: int) -> bool:
        after, outs = self._replica_step(number, ("item", item))
        if after != number or len(outs) != 1 or outs[0][0] != "owner":
            return False
        answer = self.things.value(outs[0][2]).answer
        if not isinstance(answer, Refused):
            return False
        # A promise that is not on disk may be forgotten.
        return answer.epoch < min(answer.promised, self.replica_facts(number).durable_promise)

    def _prune_answers(self, owner: int, answers: int) -> int:
        key = (owner, answers)
        known = self._pruned_answers.get(key)
        if known is None:
            kept = [i for i in self.things.sets[answers] if not self._is_stale(owner, i)]
            known = self._pruned_answers[key] = self.things.set_number(kept)
        return known

    def _is_stale(self, owner: int, item: int) -> bool:
        """Nothing comes of this answer, now or later."""
        key = (owner, item)
        known = self._stale.get(key)
        if known is None:
            known = self._stale[key] = self._compute_stale(owner, item)
        return known

    def _compute_stale(self, owner: int, item: int) -> bool:
        facts = self.owner_facts(owner)
        event = self.things.value(item)
        answer = event.answer
        if answer.epoch > facts.epoch:
            return False
        if answer.epoch == facts.epoch and facts.phase in _LATER.get(type(answer), ()):
            if facts.phase in (Phase.SERVING, Phase.OPENING, Phase.ACTIVATING):
                return self._tells_nothing(facts, event.member.replica, answer)
            return False
        if answer.epoch == facts.epoch and isinstance(answer, Appended):
            return True
        if self.bounds.late_acks and isinstance(answer, Appended):
            return False
        steps = self._owner_step(owner, ("item", item))
        return all(after == owner and not outs for after, outs in steps)

    @staticmethod
    def _tells_nothing(facts: rules.OwnerFacts, replica: str, answer: Any) -> bool:
        """What an Appended tells beside the durable lsn decides only when records are sent again,
        or a session is forgotten; and a Need below it was overtaken."""
        durable, complete = facts.durable.get(replica, (1 << 62, True))
        if isinstance(answer, Appended):
            if answer.applied_lsn > facts.applied.get(replica, answer.applied_lsn):
                return False
            old = answer.durable_lsn < durable
            return old or (answer.durable_lsn, answer.complete) == (durable, complete)
        return isinstance(answer, Need) and answer.from_lsn <= durable

    # -- owners --------------------------------------------------------------------------------

    def _owner_step(self, number: int, event: Any) -> list[tuple[Any, tuple[Any, ...]]]:
        """What the owner may become by ``event``, and what it then wants."""
        key = (number, event)
        known = self._owner_steps.get(key)
        if known is None:
            known = self._owner_steps[key] = self._compute_owner_step(number, event)
        return known  # type: ignore[no-any-return]

    def _compute_owner_step(self, number: int, event: Any) -> list[Any]:
        first, by_name = self._step_as(number, event, self.exchanges[0])
        found = [first]
        if by_name:
            # A choice between equals went by the name. Roles are exchanged freely only if every
            # choice is looked at, so the machine chooses once under each naming.
            for exchange in self.exchanges:
                if exchange.owners == (0, 1) and not exchange.identity:
                    other, _ = self._step_as(number, event, exchange)
                    if other not in found:
                        found.append(other)
        return found

    def _step_as(self, number: int, event: Any, exchange: Exchange) -> tuple[Any, bool]:
        things = self.things
        back = self._inverse(exchange)
        owner = things.value(things.exchanged(exchange, number))
        if event[0] in ("item", "event"):
            event = ("event", things.value(things.exchanged(exchange, event[1])))
        phase = owner.phase
        try:
            effects = step(owner, event)
            if owner.phase is Phase.SERVING and owner._tell_commit_ms is not None:
                # What may be said at any time may as well be said at once.
                effects += step(owner, ("due", "commit"))
            if self.bounds.spare_links and may_drop(owner):
                # Likewise: a former member's link may come up at any time.
                effects += step(owner, ("spare up",))
        except Exception as error:
            return (_as_broken(error), ()), False
        chosen = phase is Phase.SEALING and owner.phase is not Phase.SEALING
        outs = []
        for out in effects:
            chosen = chosen or (out[0] == "ask" and isinstance(out[2], LoadSessions | FindKey))
            outs.append(self._out_of_owner(owner.me, out, back))
        after = things.exchanged(back, things.number_of(owner))
        return (after, tuple(sorted(outs, key=repr))), chosen

    def _out_of_owner(self, me: str, out: Any, back: Exchange) -> Any:
        things = self.things
        if out[0] == "ask":
            item = things.exchanged(back, things.number_of(("ask", me, out[2])))
            return ("replica", back.replicas[REPLICAS.index(out[1])], item)
        if out[0] == "read":
            return ("call", things.number_of(("read",)))
        if out[0] == "swap":
            return ("call", things.exchanged(back, things.number_of(out)))
        return out

    def _inverse(self, exchange: Exchange) -> Exchange:
        turned = [0] * self.count
        for i, to in enumerate(exchange.replicas):
            turned[to] = i
        wanted = (exchange.owners, tuple(turned))
        return next(e for e in self.exchanges if (e.owners, e.replicas) == wanted)

    def _is_silent(self, before: int, after: Any, outs: Any) -> bool:
        if outs or isinstance(after, Broken) or after == before:
            return False
        old, new = self.owner_facts(before), self.owner_facts(after)
        same = (old.phase, old.epoch, old.commit_lsn) == (new.phase, new.epoch, new.commit_lsn)
        return same and old.promised_max == new.promised_max


def _as_broken(error: Exception) -> Broken:
    return error if isinstance(error, Broken) else Broken(f"{type(error).__name__}: {error}")


def _normal(node: ReplicaNode) -> ReplicaNode:
    """Which peer is asked next, and when, is the explorer's choice."""
    if node.log is not None:
        node.log.backfill_source = node.log.backfill_due_ms = 0
    return node
