"""Steps in words, for a counterexample."""

from __future__ import annotations

from typing import Any

from im_actors.core import owner as own
from im_actors.core.model import Record
from tests.exhaustive import rules
from tests.exhaustive.frozen import Names, freeze, thaw
from tests.exhaustive.machines import Label
from tests.exhaustive.names import OWNERS, REPLICAS, Exchange, Things, unchanged


def first_names(exchanges: list[Exchange]) -> dict[str, str]:
    """The names that everybody had at the beginning, by those after these exchanges."""
    now_of = unchanged()
    for exchange in exchanges:
        now_of = {old: exchange.names[now] for old, now in now_of.items()}
    return {now: old for old, now in now_of.items()}


def told(things: Things, label: Label, names: Names) -> str:
    """A step in words."""
    kind, index, *parts = label
    who = names[REPLICAS[index]] if kind == "replica" else names[f"{OWNERS[index]}1"][0]
    return " ".join([who, *(_word(things, part, names) for part in parts)])


def _word(things: Things, part: Any, names: Names) -> str:
    if type(part) is not tuple:
        return str(part)
    if part[0] in REPLICAS:
        return f"[{names[part[0]]} {_word(things, part[1:], names)}]"
    if part[0] in ("gets", "hears"):
        return f"{part[0]} {_short(thaw(freeze(things.value(part[1]), names)))}"
    return " ".join(map(str, part))


def _short(item: Any) -> str:
    """A message, without what every message says and what people cannot read."""
    if isinstance(item, own.ReplicaAnswered):
        return f"{item.member.replica}'s {_short(item.answer)}"
    if type(item) is tuple:
        return f"{item[1]}'s {_short(item[2])}"
    words = [
        f"{name}={_short_value(value)}"
        for name, value in zip(item._fields, item, strict=True)
        if name not in ("slot", "view", "bytes_max", "request", "reason", "sessions", "images")
    ]
    return f"{type(item).__name__}({', '.join(words)})"


def _short_value(value: Any) -> str:
    if type(value) is tuple and value and isinstance(value[0], Record):
        entries = [rules.entry_of(record) for record in value]
        lsns = [record.lsn for record in value]
        return " ".join(
            f"[{lsn}: epoch {entry[0]}, n {[event[2] for event in entry[2]]}]"
            for lsn, entry in zip(lsns, entries, strict=True)
        )
    return str(value)
