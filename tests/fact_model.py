"""What replicas answer about facts, the dumb way: everything in memory, sorted anew each time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgpack

from im_actors.core.fact_lists import FactQuery, OfKeys, Prefixed, Ranked, Since
from im_actors.core.facts import Fact
from im_actors.core.model import Event, EventKind


def said_by(event: Event) -> list[Fact]:
    """The facts of a state event."""
    if event.kind in (EventKind.VOID, EventKind.MESSAGE):
        return []
    body = msgpack.unpackb(event.body, strict_map_key=False)
    if not isinstance(body, list) or len(body) != 3:
        return []
    rows = [(key, 0 if value is None else rank, value) for key, rank, value in body[2]]
    return [Fact(key, event.seq, rank, value) for key, rank, value in rows]


def facts_of(events: Iterable[Event]) -> dict[str, Fact]:
    """What events say, the newest of each key."""
    return {f.key: f for event in sorted(events, key=lambda e: e.seq) for f in said_by(event)}


def fact_page(known: Mapping[str, Fact], query: FactQuery) -> tuple[list[Fact], bool]:
    """The facts of a page, and whether there are more."""
    facts = known.values()
    match query:
        case OfKeys(keys):
            return [known[key] for key in keys if key in known], False
        case Ranked(rank, key, limit):
            below = [f for f in facts if f.rank and (not rank or (f.rank, f.key) < (rank, key))]
            below.sort(key=lambda f: (f.rank, f.key), reverse=True)
            return below[:limit], len(below) > limit
        case Prefixed(prefix, key, limit):
            found = sorted(f for f in facts if f.key.startswith(prefix) and f.key > key)
            return found[:limit], len(found) > limit
        case Since(seq, limit):
            newer = sorted((f for f in facts if f.seq > seq), key=lambda f: (f.seq, f.key))
            while limit < len(newer) and newer[limit].seq == newer[limit - 1].seq:
                limit += 1
            return newer[:limit], len(newer) > limit


def count_messages(events: Collection[Event], after: int, upto: int, user: str) -> int:
    """What a COUNT counts."""
    recalled = {_target(event) for event in events if event.kind == EventKind.RECALL}
    counted = [e for e in events if e.kind == EventKind.MESSAGE and after < e.seq <= upto]
    return sum(e.sender != user and e.seq not in recalled for e in counted)


def count_ranks(facts: Collection[Fact], ranges: Iterable[tuple[int, int]]) -> list[int]:
    """What a COUNT_RANKS counts."""
    return [sum(low <= fact.rank <= high for fact in facts) for low, high in ranges]


def _target(recall: Event) -> int:
    body = msgpack.unpackb(recall.body)
    return body[0] if isinstance(body[0], int) else body[1][0]
