"""What gateways ask replicas, in frames of ``wire.links``.

READ, LIST_FACTS, COUNT and COUNT_RANKS ask a replica what it has of a session. ``head`` is the
highest seq that the asker has heard of: the replica waits a moment for it, and then answers with
what it has and its own ``last_seq``. ``code`` is 0, or says that it cannot answer: its copy has a
hole (NOT_REACHABLE), or it has too much to do (OVERLOADED). What LIST_FACTS asks (core.fact_lists):

    what 0, args [after_rank, after_key, limit]   those with a rank, the greatest first
    what 1, args [prefix, after_key, limit]       those whose key begins so, by key
    what 2, args [[key, ...]]                     those of these keys, at most 512
    what 3, args [seq, limit]                     those said by events above seq, by seq and key

The value of a fact is bin, or nil when it is gone. COUNT asks how many events after ``after`` and
up to ``upto`` are messages, not of ``user``, and not recalled by an event up to ``last_seq``.
COUNT_RANKS asks how many facts have a rank in each of a few ranges, the ends among them, all at one
``last_seq``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar, get_type_hints

from im_actors.core.fact_lists import FactQuery, OfKeys, Prefixed, Ranked, Since, check_query
from im_actors.core.facts import RANK_MAX
from im_actors.errors import ProtocolViolation
from im_actors.wire.links import InsideType, pack_frame, read_names


class PageAsked(NamedTuple):
    """A READ."""

    request: int
    session: str
    after: int
    before: int
    limit: int
    head: int


class FactsAsked(NamedTuple):
    """A LIST_FACTS."""

    request: int
    session: str
    head: int
    query: FactQuery


class CountAsked(NamedTuple):
    """A COUNT."""

    request: int
    session: str
    head: int
    after: int
    upto: int
    user: str


class RanksAsked(NamedTuple):
    """A COUNT_RANKS."""

    request: int
    session: str
    head: int
    ranges: tuple[tuple[int, int], ...]


Question = PageAsked | FactsAsked | CountAsked | RanksAsked
Q = TypeVar("Q", PageAsked, CountAsked)

QUESTIONS = frozenset(
    map(
        int,
        (InsideType.READ, InsideType.LIST_FACTS, InsideType.COUNT, InsideType.COUNT_RANKS),
    )
)
"""The types of their frames."""

RANGES_MAX = 4
"""Ranges of one COUNT_RANKS."""

_FIELDS = {kind: tuple(get_type_hints(kind).values()) for kind in (PageAsked, CountAsked)}
_QUERIES: tuple[type[FactQuery], ...] = (Ranked, Prefixed, OfKeys, Since)
"""By their number in LIST_FACTS."""
_ARGS: dict[type[FactQuery], tuple[type[Any], ...]] = {
    Ranked: (int, str, int),
    Prefixed: (str, str, int),
    OfKeys: (list,),
    Since: (int, int),
}


def pack_question(question: Question) -> bytes:
    """The frame that asks it."""
    match question:
        case PageAsked():
            return pack_frame((InsideType.READ, *question))
        case CountAsked():
            return pack_frame((InsideType.COUNT, *question))
        case RanksAsked():
            return pack_frame((InsideType.COUNT_RANKS, *question))
        case FactsAsked(request, session, head, query):
            what = _QUERIES.index(type(query))
            return pack_frame((InsideType.LIST_FACTS, request, session, head, what, query))


def read_question(message: list[Any]) -> Question:
    """What a frame asks, within bounds; ProtocolViolation when it is nothing to be asked."""
    try:
        match message:
            case [InsideType.READ, *fields]:
                return _plain(PageAsked, fields)
            case [InsideType.COUNT, *fields]:
                return _plain(CountAsked, fields)
            case [InsideType.COUNT_RANKS, *fields]:
                return _ranks_asked(*fields)
            case [InsideType.LIST_FACTS, *fields]:
                return _facts_asked(*fields)
        raise ValueError(f"frames of type {message[0]} ask nothing")
    except Exception as error:
        # Taking apart what has another form fails in as many ways as there are forms.
        raise ProtocolViolation(f"a question to a replica cannot be read: {error}") from None


def _plain(kind: type[Q], fields: list[Any]) -> Q:
    if tuple(map(type, fields)) != _FIELDS[kind]:
        raise ValueError(f"{kind.__name__} has fields of other types")
    return kind(*fields)


def _facts_asked(request: Any, session: Any, head: Any, what: Any, args: Any) -> FactsAsked:
    if (type(request), type(session), type(head), type(what)) != (int, str, int, int):
        raise ValueError("LIST_FACTS has fields of other types")
    kind = dict(enumerate(_QUERIES))[what]
    if tuple(map(type, args)) != _ARGS[kind]:
        raise ValueError(f"{kind.__name__} has fields of other types")
    query = OfKeys(read_names(args[0])) if kind is OfKeys else kind(*args)
    return FactsAsked(request, session, head, check_query(query))


def _ranks_asked(request: Any, session: Any, head: Any, ranges: Any) -> RanksAsked:
    if (type(request), type(session), type(head), type(ranges)) != (int, str, int, list):
        raise ValueError("COUNT_RANKS has fields of other types")
    if len(ranges) > RANGES_MAX:
        raise ValueError(f"{len(ranges)} ranges at once, the limit is {RANGES_MAX}")
    for low, high in ranges:
        if not (type(low) is type(high) is int and low >= 1 and high <= RANK_MAX):
            raise ValueError(f"{low} to {high} is no range of ranks")
    return RanksAsked(request, session, head, tuple((low, high) for low, high in ranges))
