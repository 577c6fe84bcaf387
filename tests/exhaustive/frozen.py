"""Machines as values: the real objects of ``core`` to hashable trees and back, names exchanged.

A tree holds everything that decides what a machine does next and nothing else: two machines with
equal trees behave alike, so the explorer keeps one of them.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections import deque
from collections.abc import Mapping
from enum import Enum
from types import FunctionType
from typing import Any

from im_actors.core.model import Member, View
from im_actors.core.owner import OwnerSettings
from im_actors.core.serving import ServingLimits
from im_actors.core.takeover import ReplicaInfo

Names = Mapping[str, str]

NO_NAMES: Names = {}


class ConstantRandom:
    """Jitter decides only how long somebody waits; here everybody may wait for any time."""

    def uniform(self, _low: float, high: float) -> float:
        return high


class Silence:
    """A story that nobody keeps: what a machine remembers for people decides nothing."""

    def note(self, *_: object) -> None:
        pass

    def story(self, *_: object) -> list[str]:
        return []


RANDOM = ConstantRandom()
SILENCE = Silence()
_LEAVES = (
    *(int, float, bytes, type(None), Enum, FunctionType),
    *(OwnerSettings, ServingLimits, ConstantRandom, Silence),
)
_FIELDS: dict[type, tuple[str, ...]] = {}


class _Again:
    """Stands in a tree for an object that was met before: machines share some of their parts."""


def freeze(value: Any, names: Names = NO_NAMES) -> Any:
    """The tree of ``value``, with every name exchanged as ``names`` says."""
    return _freeze(value, names, {})


def thaw(tree: Any) -> Any:
    """The object that ``freeze`` made ``tree`` of."""
    return _thaw(tree, [])


def _fields(kind: type, value: Any = None) -> tuple[str, ...]:
    known = _FIELDS.get(kind)
    if known is None:
        if dataclasses.is_dataclass(kind):
            known = tuple(field.name for field in dataclasses.fields(kind))
        else:
            known = tuple(getattr(kind, "__slots__", None) or vars(value))
        _FIELDS[kind] = known
    assert value is None or len(getattr(value, "__dict__", known)) == len(known), kind
    return known


def _freeze(value: Any, names: Names, seen: dict[int, int]) -> Any:
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, _LEAVES):
        return value
    kind = type(value)
    if kind is View:
        # The order of members decides nothing but the order in which they are spoken to.
        members = sorted(_freeze(member, names, seen) for member in value.members)
        owner = names.get(value.owner, value.owner)
        return (kind, value.slot, value.epoch, int(value.state), owner, (tuple, *members))
    if isinstance(value, tuple | list):
        items = [_freeze(item, names, seen) for item in value]
        if kind is tuple and _by_member(value):
            items.sort(key=repr)
        return (kind, *items)
    if kind is array:
        return (kind, value.typecode, *value)
    if kind is deque:
        return (kind, value.maxlen, *[_freeze(item, names, seen) for item in value])
    if kind is dict:
        keyed = [(_freeze(key, names, seen), item) for key, item in value.items()]
        keyed.sort(key=lambda pair: repr(pair[0]))
        pairs = [(key, _freeze(item, names, seen)) for key, item in keyed]
        if len({key for key, _ in pairs}) < len(pairs):
            pairs.sort(key=repr)
        return (kind, *pairs)
    if kind is set:
        return (kind, *sorted([_freeze(item, names, seen) for item in value], key=repr))
    if id(value) in seen:
        return (_Again, seen[id(value)])
    seen[id(value)] = len(seen)
    return (kind, *[_freeze(getattr(value, name), names, seen) for name in _fields(kind, value)])


def _by_member(value: tuple[Any, ...]) -> bool:
    """Whether these are replicas, or something for each of some replicas: in any order."""
    heads = [item[0] if type(item) is tuple and item else item for item in value]
    return bool(heads) and all(isinstance(head, Member | ReplicaInfo) for head in heads)


def _thaw(tree: Any, seen: list[Any]) -> Any:
    if type(tree) is not tuple:
        return tree
    kind = tree[0]
    if kind is _Again:
        return seen[tree[1]]
    if kind is array:
        return array(tree[1], tree[2:])
    if kind is deque:
        return deque([_thaw(item, seen) for item in tree[2:]], tree[1])
    if kind is dict:
        return {_thaw(key, seen): _thaw(item, seen) for key, item in tree[1:]}
    if kind in (tuple, list, set):
        return kind([_thaw(item, seen) for item in tree[1:]])
    if issubclass(kind, tuple):
        return kind._make([_thaw(item, seen) for item in tree[1:]])
    value = kind.__new__(kind)
    seen.append(value)
    for name, item in zip(_fields(kind), tree[1:], strict=True):
        object.__setattr__(value, name, _thaw(item, seen))
    return value
