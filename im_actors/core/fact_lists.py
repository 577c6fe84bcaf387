"""What can be asked about the facts of a session, besides single keys: pages of lists.

A page has so many facts as were asked for and so many bytes as a frame should have, and says
whether there are more. The next one is asked for with the last fact of this one; facts that change
meanwhile appear in their new place, so they may be met twice or be passed over, and their seq says
that they are newer than the list.
"""

from __future__ import annotations

from typing import NamedTuple

from im_actors.core.facts import RANK_MAX, Fact
from im_actors.errors import BadRequest

FACT_KEYS_MAX = 512
"""So many facts may be asked for by their keys at once: with the largest values they fit a frame
between actors."""
FACT_PAGE_MAX = 1_000
"""Facts of one page; who asks for more gets so many."""
FACT_PAGE_BYTES_MAX = 512 * 1024
SEQ_MAX = 1 << 62


class Ranked(NamedTuple):
    """The facts that have a rank, the greatest (rank, key) first, below (``after_rank``,
    ``after_key``); ``after_rank`` 0: from the top. Facts that are gone are not in it."""

    after_rank: int
    after_key: str
    limit: int


class Prefixed(NamedTuple):
    """The facts whose key begins with ``prefix``, by ascending key from above ``after_key`` on;
    also those that are gone."""

    prefix: str
    after_key: str
    limit: int


class OfKeys(NamedTuple):
    """The facts of these keys, in their order; a key without a fact is left out."""

    keys: tuple[str, ...]


class Since(NamedTuple):
    """The facts that events above ``seq`` have said and that still hold, by ascending (seq, key);
    also those that are gone. A page ends with the last fact of an event, beyond the limit if need
    be."""

    seq: int
    limit: int


FactQuery = Ranked | Prefixed | OfKeys | Since


class FactPage(NamedTuple):
    """``more``: the list goes on."""

    facts: list[Fact]
    more: bool


def check_query(query: FactQuery) -> FactQuery:
    """The query with its limit brought into bounds; BadRequest when it asks what cannot be."""
    match query:
        case OfKeys(keys):
            if len(keys) > FACT_KEYS_MAX:
                raise BadRequest(f"{len(keys)} keys at once, the limit is {FACT_KEYS_MAX}")
            return query
        case Ranked(after_rank, _, _) if not 0 <= after_rank <= RANK_MAX:
            raise BadRequest(f"{after_rank} is no rank")
        case Since(seq, _) if not 0 <= seq <= SEQ_MAX:
            raise BadRequest(f"{seq} is no seq")
    if query.limit < 1:
        raise BadRequest("a page has at least one fact")
    return query._replace(limit=min(query.limit, FACT_PAGE_MAX))
