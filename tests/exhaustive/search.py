"""Breadth first through all states of a configuration, equal roles merged.

Why merging is sound: the protocol asks for the names of owners and replicas only whether two are
the same, but for ties: which of several equally good members is read from. There the explorer takes
every choice (``Space._compute_owner_step``), so with a state all of its renamings behave alike.
"""

from __future__ import annotations

import gc
import itertools
import re
import time
from dataclasses import dataclass, field
from typing import Any

from tests.exhaustive.bounds import Bounds
from tests.exhaustive.machines import Label
from tests.exhaustive.names import OWNERS, Exchange
from tests.exhaustive.replica_node import Broken
from tests.exhaustive.space import OWNER, VIEW, Space, State
from tests.exhaustive.words import first_names, told


@dataclass(slots=True)
class Counterexample:
    """The shortest way to a broken rule."""

    text: str
    steps: list[str]

    def __str__(self) -> str:
        lines = [f"{number:3} {step}" for number, step in enumerate(self.steps, 1)]
        return "\n".join([*lines, f"    {self.text}"])


@dataclass(slots=True)
class Outcome:
    """What a search found."""

    bounds: Bounds
    states: int = 0
    steps: int = 0
    depth: int = 0
    ends: int = 0
    """States in which nothing can happen any more."""
    seconds: float = 0.0
    complete: bool = True
    """False: the limit of states was met before the end."""
    broken: Counterexample | None = None
    met: dict[str, int] = field(default_factory=dict)


class Search:
    def __init__(self, bounds: Bounds) -> None:
        self.space = Space(bounds)
        self.bounds = bounds
        self._by_moves: dict[Any, Exchange] = {
            (e.owners, e.replicas): e for e in self.space.exchanges
        }
        self._plain = self._by_moves[tuple(range(len(OWNERS))), tuple(range(self.space.count))]

    def run(self, states_max: int | None = None, seconds_max: float | None = None) -> Outcome:
        """Explore to the end, or to one of the limits (CPU seconds)."""
        collects = gc.isenabled()
        # What is kept is tuples of numbers: there are no cycles in them to look for.
        gc.disable()
        try:
            return self._run(states_max, seconds_max)
        finally:
            if collects:
                gc.enable()

    def _run(self, states_max: int | None, seconds_max: float | None) -> Outcome:
        outcome = Outcome(self.bounds)
        started = time.process_time()
        space = self.space
        try:
            first, _ = self.merged(space.initial())
        except Broken as broken:
            outcome.broken = Counterexample(str(broken), ["on the way to the settled beginning"])
            return outcome
        came_from: dict[int, int] = {hash(first): 0}
        level = [first]
        limit = self.bounds.steps or 1 << 62
        while level and outcome.broken is None and outcome.complete and outcome.depth < limit:
            following: list[State] = []
            for state in level:
                steps = outcome.steps
                twins = {state}
                for label, after in space.successors(state):
                    outcome.steps += 1
                    if after in twins:
                        continue
                    twins.add(after)
                    if isinstance(after, Broken):
                        outcome.broken = self._counterexample(came_from, state, label, after)
                        break
                    merged, _ = self.merged(after)
                    mark = hash(merged)
                    if mark not in came_from:
                        came_from[mark] = hash(state)
                        following.append(merged)
                if outcome.steps == steps:
                    outcome.ends += 1
                if outcome.broken is not None:
                    break
                full = states_max is not None and len(came_from) >= states_max
                late = seconds_max is not None and time.process_time() - started > seconds_max
                if full or late:
                    outcome.complete = False
                    break
            level = following
            outcome.depth += 1
        outcome.states = len(came_from)
        outcome.seconds = time.process_time() - started
        return outcome

    # -- equal roles ---------------------------------------------------------------------------

    def merged(self, state: State) -> tuple[State, Exchange]:
        """The one of all renamings of ``state`` that stands for them, and how to get to it."""
        found = [(self.exchanged(e, state), e) for e in self._candidates(state)]
        return found[0] if len(found) == 1 else min(found, key=lambda pair: pair[0])

    def _candidates(self, state: State) -> list[Exchange]:
        """The exchanges that sort owners and replicas by what they are; several if some are alike
        but for their part in the whole."""
        space, things = self.space, self.space.things
        blank = things.blank
        owners = [
            (
                things.exchanged(blank, state[OWNER + i]),
                things.set_exchanged(blank, state[space.calls + i]),
                things.set_exchanged(blank, state[space.answers + i]),
            )
            for i in range(len(OWNERS))
        ]
        replicas = [
            (
                things.exchanged(blank, state[space.replica + i]),
                things.set_exchanged(blank, state[space.requests + i]),
            )
            for i in range(space.count)
        ]
        if all(a < b for a, b in itertools.pairwise(replicas)) and owners[0] < owners[1]:
            return [self._plain]
        return [
            self._by_moves[pair]
            for pair in itertools.product(_sortings(owners), _sortings(replicas))
        ]

    def exchanged(self, exchange: Exchange, state: State) -> State:
        if exchange.identity:
            return state
        space, things = self.space, self.space.things
        new = list(state)
        new[VIEW] = things.exchanged(exchange, state[VIEW])
        for i, to in enumerate(exchange.owners):
            new[OWNER + to] = things.exchanged(exchange, state[OWNER + i])
            for place in (space.calls, space.answers):
                new[place + to] = things.set_exchanged(exchange, state[place + i])
        for i, to in enumerate(exchange.replicas):
            new[space.replica + to] = things.exchanged(exchange, state[space.replica + i])
            new[space.requests + to] = things.set_exchanged(exchange, state[space.requests + i])
        return tuple(new)

    # -- the way to a state --------------------------------------------------------------------

    def _counterexample(
        self, came_from: dict[int, int], state: State, label: Label, broken: Broken
    ) -> Counterexample:
        marks = [hash(state)]
        while came_from[marks[-1]]:
            marks.append(came_from[marks[-1]])
        marks.reverse()
        at, exchange = self.merged(self.space.initial())
        steps = []
        back = [exchange]
        for mark in marks[1:]:
            for step, after in self.space.successors(at):
                if isinstance(after, Broken):
                    continue
                merged, exchange = self.merged(after)
                if hash(merged) == mark:
                    steps.append(told(self.space.things, step, first_names(back)))
                    back.append(exchange)
                    at = merged
                    break
            else:
                raise AssertionError("the way back is lost")
        names = first_names(back)
        steps.append(told(self.space.things, label, names))
        text = re.sub(
            r"\b([A-D]|[pq]\d)\b", lambda found: names.get(found[0], found[0]), str(broken)
        )
        return Counterexample(text, steps)


def _sortings(parts: list[Any]) -> list[tuple[int, ...]]:
    """The ways to put ``parts`` into order: for each, where every part goes."""
    groups = [
        [index for index, _ in group]
        for _, group in itertools.groupby(
            sorted(enumerate(parts), key=lambda pair: pair[1]), key=lambda pair: pair[1]
        )
    ]
    found = []
    for arranged in itertools.product(*map(itertools.permutations, groups)):
        order = [index for group in arranged for index in group]
        to = [0] * len(parts)
        for place, index in enumerate(order):
            to[index] = place
        found.append(tuple(to))
    return found
