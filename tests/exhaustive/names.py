"""Things as small numbers, and the exchange of equal roles.

Every machine, message and set of messages gets a number when it is first met; a state of the whole
cluster is a tuple of such numbers. Names are exchanged on the things themselves, once per thing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from tests.exhaustive.frozen import Names, freeze, thaw

REPLICAS = "ABCD"
DISKS = "abcd"
OWNERS = "pq"
LIVES_MAX = 9


def unchanged() -> dict[str, str]:
    """Every name as it is."""
    owners = [f"{owner}{life}" for owner in OWNERS for life in range(1, LIVES_MAX)]
    return {name: name for name in (*REPLICAS, *DISKS, *owners)}


class Exchange:
    """One way to exchange owners and replicas: position ``i`` goes to position ``owners[i]``,
    ``replicas[i]``."""

    def __init__(self, number: int, owners: tuple[int, ...], replicas: tuple[int, ...]) -> None:
        self.number = number
        self.owners = owners
        self.replicas = replicas
        self.identity = owners == tuple(range(len(owners))) and replicas == tuple(
            range(len(replicas))
        )
        self.names: Names = {
            **unchanged(),
            **{REPLICAS[i]: REPLICAS[to] for i, to in enumerate(replicas)},
            **{DISKS[i]: DISKS[to] for i, to in enumerate(replicas)},
            **{
                f"{OWNERS[i]}{life}": f"{OWNERS[to]}{life}"
                for i, to in enumerate(owners)
                for life in range(1, LIVES_MAX)
            },
        }
        self.things: dict[int, int] = {}
        self.sets: dict[int, int] = {}


def all_exchanges(owners: int, replicas: int) -> list[Exchange]:
    pairs = itertools.product(
        itertools.permutations(range(owners)), itertools.permutations(range(replicas))
    )
    return [Exchange(number, *pair) for number, pair in enumerate(pairs)]


class Things:
    """Numbers for things and for sets of things."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self.trees: list[Any] = []
        self._set_numbers: dict[tuple[int, ...], int] = {(): 0}
        self.sets: list[tuple[int, ...]] = [()]
        self._added: dict[tuple[int, int], int] = {}
        self.blank = Exchange(-1, (), ())
        """All names become one: what is left tells roles apart and not who plays them."""
        self.blank.names = dict.fromkeys(unchanged(), "*")
        self.blank.identity = False

    def number(self, tree: Any) -> int:
        known = self._numbers.get(tree)
        if known is None:
            known = self._numbers[tree] = len(self.trees)
            self.trees.append(tree)
        return known

    def number_of(self, value: Any) -> int:
        return self.number(freeze(value))

    def value(self, number: int) -> Any:
        """A fresh object of the thing."""
        return thaw(self.trees[number])

    def set_number(self, members: Iterable[int]) -> int:
        """The number of a multiset of things."""
        key = tuple(sorted(members))
        known = self._set_numbers.get(key)
        if known is None:
            known = self._set_numbers[key] = len(self.sets)
            self.sets.append(key)
        return known

    def added(self, set_number: int, thing: int) -> int:
        """The set with ``thing`` in it."""
        key = (set_number, thing)
        known = self._added.get(key)
        if known is None:
            members = self.sets[set_number]
            known = set_number if thing in members else self.set_number((*members, thing))
            self._added[key] = known
        return known

    def exchanged(self, exchange: Exchange, number: int) -> int:
        known = exchange.things.get(number)
        if known is None:
            known = self.number(freeze(thaw(self.trees[number]), exchange.names))
            exchange.things[number] = known
        return known

    def set_exchanged(self, exchange: Exchange, set_number: int) -> int:
        known = exchange.sets.get(set_number)
        if known is None:
            members = [self.exchanged(exchange, thing) for thing in self.sets[set_number]]
            known = exchange.sets[set_number] = self.set_number(members)
        return known
