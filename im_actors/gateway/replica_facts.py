"""Questions to replicas as coroutines: facts, events and counts of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from im_actors.core.fact_lists import FactQuery, OfKeys, Prefixed, Ranked, Since
from im_actors.core.model import Event, decode_event
from im_actors.errors import ImError, NotReachable
from im_actors.gateway.reads import Found, Reads
from im_actors.mailbox.tier_facts import FactPage
from im_actors.wire.links import read_facts
from im_actors.wire.questions import (
    CountAsked,
    FactsAsked,
    PageAsked,
    Question,
    RanksAsked,
    pack_question,
)


class EventPage(NamedTuple):
    last_seq: int
    """The last seq that the replica has of the session."""
    events: list[Event]


class ReplicaFacts:
    """A ``FactReader``, and more. All raise NotReachable or Overloaded when nobody can answer."""

    def __init__(self, reads: Reads, now_ms: Callable[[], int]) -> None:
        self._reads = reads
        self._now_ms = now_ms

    async def ranked(
        self, session: str, after_rank: int, after_key: str, limit: int, at_least: int
    ) -> FactPage:
        return await self._facts(session, Ranked(after_rank, after_key, limit), at_least)

    async def prefixed(
        self, session: str, prefix: str, after_key: str, limit: int, at_least: int
    ) -> FactPage:
        return await self._facts(session, Prefixed(prefix, after_key, limit), at_least)

    async def of_keys(self, session: str, keys: Sequence[str], at_least: int) -> FactPage:
        return await self._facts(session, OfKeys(tuple(keys)), at_least)

    async def since(self, session: str, seq: int, limit: int, at_least: int) -> FactPage:
        return await self._facts(session, Since(seq, limit), at_least)

    async def current(self, session: str, keys: Sequence[str], at_least: int) -> FactPage:
        """Facts as they are at ``at_least`` or later; NotReachable when no replica is there yet."""
        page = await self.of_keys(session, keys, at_least)
        _check_reached(session, page.version, at_least)
        return page

    async def events(
        self, session: str, after: int, before: int, limit: int, at_least: int
    ) -> EventPage:
        """What a PULL with these gives; NotReachable when no replica has ``at_least``."""
        found = await self._ask(
            session,
            lambda number: PageAsked(number, session, after, before, limit, at_least),
            at_least,
        )
        _check_reached(session, found.last_seq, at_least)
        return EventPage(found.last_seq, [decode_event(data) for data in found.rest[0]])

    async def count(self, session: str, after: int, upto: int, user: str) -> int:
        """Messages above ``after`` up to ``upto``, not the user's own and not recalled."""
        found = await self._ask(
            session, lambda number: CountAsked(number, session, upto, after, upto, user), upto
        )
        _check_reached(session, found.last_seq, upto)
        return int(found.rest[0])

    async def count_ranks(
        self, session: str, ranges: Sequence[tuple[int, int]], at_least: int
    ) -> tuple[int, list[int]]:
        """(version, how many facts have a rank in each of these ranges)."""
        asked = tuple(ranges)
        found = await self._ask(
            session, lambda number: RanksAsked(number, session, at_least, asked), at_least
        )
        return found.last_seq, [int(count) for count in found.rest[0]]

    async def _facts(self, session: str, query: FactQuery, at_least: int) -> FactPage:
        found = await self._ask(
            session, lambda number: FactsAsked(number, session, at_least, query), at_least
        )
        rows, more = found.rest[:2]
        return FactPage(found.last_seq, read_facts(rows), bool(more))

    async def _ask(self, session: str, question: Callable[[int], Question], needed: int) -> Found:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(outcome: Found | ImError) -> None:
            if answer.done():
                return  # Whoever asked has left.
            if isinstance(outcome, Found):
                answer.set_result(outcome)
            else:
                answer.set_exception(outcome)

        def frame(number: int) -> bytes:
            return pack_question(question(number))

        self._reads.ask(session, frame, needed, done, self._now_ms())
        found: Found = await answer
        return found


def _check_reached(session: str, version: int, at_least: int) -> None:
    if version < at_least:
        raise NotReachable(f"no replica has {session!r} up to {at_least}, one has it to {version}")
