"""Facts: a session's state is what its newest events say (design section 9).

An event that changes state (the members of a group, a user's conversation list, the progress of a
batch) carries the rows that result, whole and never as a difference. Of one key the fact with the
greatest seq holds. So whoever keeps facts may take them in any order and repeatedly, from appends,
takeovers and backfill alike, and nobody but the owner has to know what they mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgpack

from im_actors.core.model import (
    STATE_KINDS_FROM,
    Event,
    EventKind,
    decode_event,
    pack,
    record_index,
)
from im_actors.errors import BadRequest, TooLarge

FACT_KEY_BYTES_MAX = 400
FACT_VALUE_BYTES_MAX = 32_768
RANK_MAX = (1 << 63) - 1
_DROPPED = int(EventKind.DROPPED)


class Fact(NamedTuple):
    """One row of a session's state. ``seq`` is that of the event that said it; ``rank`` is its
    place in the session's ordered list, the greatest first, 0 for none; ``value`` None: gone, and
    in no ordered list."""

    key: str
    seq: int
    rank: int
    value: bytes | None


class StateBody(NamedTuple):
    """The body of a committed state event. ``what`` and ``args`` are what the sender asked for,
    ``facts`` are (key, rank, value), and what became of it."""

    what: str
    args: list[Any]
    facts: list[tuple[str, int, bytes | None]]


def is_state(kind: int) -> bool:
    """Whether events of this kind carry facts."""
    return kind >= STATE_KINDS_FROM and kind != _DROPPED


def pack_request(what: str, *args: Any) -> bytes:
    """The body of a SEND that asks for a change of state."""
    return pack((what, args))


def read_request(body: bytes) -> tuple[str, list[Any]]:
    """What a SEND asks for; BadRequest when it is not such a body."""
    try:
        what, args = msgpack.unpackb(body, raw=False, strict_map_key=False)
    except Exception:
        raise BadRequest("the body must be a msgpack array [what, arguments]") from None
    if type(what) is not str or type(args) is not list:
        raise BadRequest("the body must be a msgpack array [str, array]")
    return what, args


def pack_state(
    what: str, args: Iterable[Any], facts: Iterable[tuple[str, int, bytes | None]]
) -> bytes:
    """The body of a committed state event. TooLarge names a fact above its limits; BadRequest a key
    that would have two of them, of which nobody could say which one holds."""
    rows = list(facts)
    keys = [key for key, _, _ in rows]
    if len(set(keys)) < len(keys):
        twice = next(key for at, key in enumerate(keys) if key in keys[:at])
        raise BadRequest(f"{twice!r} would be said twice")
    for key, rank, value in rows:
        assert 0 <= rank <= RANK_MAX, rank
        if len(key.encode()) > FACT_KEY_BYTES_MAX or len(value or b"") > FACT_VALUE_BYTES_MAX:
            raise TooLarge(f"{key!r} would take {len(value or b'')} bytes of state")
    return pack((what, list(args), rows))


def read_state(body: bytes) -> StateBody:
    """The parts of a committed state event's body."""
    what, args, facts = msgpack.unpackb(body, raw=False, strict_map_key=False)
    return StateBody(what, args, [(key, rank, value) for key, rank, value in facts])


def event_facts(event: Event) -> list[Fact]:
    """What an event says of its session's state; nothing unless it is a state event."""
    if not is_state(event.kind):
        return []
    return [
        Fact(key, event.seq, 0 if value is None else rank, value)
        for key, rank, value in read_state(event.body).facts
    ]


def record_facts(payload: bytes) -> Iterator[tuple[str, list[Fact]]]:
    """(session, facts) of each state event of a record, in order. Costs nothing for a record that
    has none: its index says so."""
    changes = record_index(payload).changes
    if changes:
        entries = msgpack.unpackb(payload)
        for position in changes:
            event = decode_event(entries[1 + position])
            yield event.session, event_facts(event)


def newest(facts: dict[str, Fact], fact: Fact) -> bool:
    """Take a fact into ``facts`` unless a newer one of its key is there; whether it was taken."""
    known = facts.get(fact.key)
    if known is not None and known.seq >= fact.seq:
        return False
    facts[fact.key] = fact
    return True
