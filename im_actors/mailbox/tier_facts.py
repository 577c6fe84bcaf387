"""The cold tier: the facts of mailboxes, as the replicas hold them. It has everything.

Replicas list facts by rank, the greatest (rank, key) first; lists here have the sessions of one
rank in ascending order. So ranks are never parted between two pages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from im_actors.core.facts import Fact
from im_actors.core.names import mailbox_of
from im_actors.errors import NotReachable
from im_actors.mailbox.rows import (
    CONVERSATION,
    END,
    TOP,
    Change,
    Copy,
    Listing,
    Place,
    RowFormat,
)
from im_actors.mailbox.tiers import Changed, Put

FACTS_MAX = 1_000
"""Most facts that are asked for at once."""
FIRST_FACTS = 100
"""The same, where most lists have fewer and what follows them is not wanted."""
_LAST = "\U0010ffff"
"""Sorts behind all that a name can continue with, but for itself."""
_AFTER = CONVERSATION[:-1] + chr(ord(CONVERSATION[-1]) + 1)
"""Sorts behind the keys of all conversations."""


class FactPage(NamedTuple):
    version: int
    """The last seq that the replica has of the session."""
    facts: Sequence[Fact]
    more: bool
    """The list goes on behind the last of these."""


class FactReader(Protocol):
    """Questions to replicas about the facts of a session. One that has less than ``at_least`` is
    passed over for another; the best that came is the answer."""

    async def ranked(
        self, session: str, after_rank: int, after_key: str, limit: int, at_least: int
    ) -> FactPage:
        """Facts with a rank, the greatest (rank, key) first, below the one named; rank 0: all."""

    async def prefixed(
        self, session: str, prefix: str, after_key: str, limit: int, at_least: int
    ) -> FactPage:
        """Facts by ascending key, above ``after_key``."""

    async def of_keys(self, session: str, keys: Sequence[str], at_least: int) -> FactPage:
        """The facts of these keys, as far as there are any."""

    async def since(self, session: str, seq: int, limit: int, at_least: int) -> FactPage:
        """Facts above ``seq`` that still hold, by ascending seq; no event is parted."""


class FactTier:
    """A Tier, and the Changes of mailboxes. ``noted`` are the sessions of whose events mailboxes
    are told, by what their ids begin with; the head of all others is read when the list is read.
    """

    def __init__(
        self,
        reader: FactReader,
        form: RowFormat,
        noted: Sequence[str] = ("direct:",),
        name: str = "cold",
    ) -> None:
        self.name = name
        self._reader = reader
        self._form = form
        # What lies between them: (above this key, and below that one).
        starts = [CONVERSATION, *(CONVERSATION + prefix + _LAST for prefix in sorted(noted))]
        ends = [*(CONVERSATION + prefix for prefix in sorted(noted)), _AFTER]
        self._live = list(zip(starts, ends, strict=True))

    async def first_page(self, user: str, limit: int, at_least: int) -> Copy | None:
        page, live = await asyncio.gather(
            self._page(user, TOP, limit, at_least), self._all_live(user, at_least)
        )
        if live.version != page.version:
            # Of different moments: what is live is asked for by itself.
            return page
        rows = [*page.entries, *live.entries]
        return Copy(page.version, rows, {**page.complete, **live.complete})

    async def page(self, user: str, after: Place, limit: int, at_least: int) -> Copy | None:
        return await self._page(user, after, limit, at_least)

    async def _page(self, user: str, after: Place, limit: int, at_least: int) -> Copy:
        mailbox, rank = mailbox_of(user), -after[0] if after != TOP else 0
        # Those of the same rank once more: which of them are behind ``after`` is decided here.
        after_rank, after_key = (rank + 1 if rank else 0), ""
        facts: list[Fact] = []
        versions = set()
        while True:
            page = await self._reader.ranked(mailbox, after_rank, after_key, limit + 2, at_least)
            versions.add(page.version)
            facts += page.facts
            kept = [f for f in facts if f.rank > facts[-1].rank] if page.more else facts
            fresh = [fact for fact in kept if _place(fact) > after]
            if fresh or not page.more:
                break
            after_rank, after_key = facts[-1].rank, facts[-1].key
        if len(versions) > 1:
            raise NotReachable("the list changed while it was read")
        fresh.sort(key=_place)
        rows = [self._form.entry(fact) for fact in fresh if fact.key.startswith(CONVERSATION)]
        place = _place(fresh[-1]) if page.more else END
        return Copy(page.version, rows, {Listing.ALL: place})

    async def whole(self, user: str, listing: Listing, at_least: int) -> Copy | None:
        return await self._all_live(user, at_least) if listing is Listing.LIVE else None

    async def _all_live(self, user: str, at_least: int) -> Copy:
        found = [self._between(user, after, end, at_least) for after, end in self._live]
        parts = await asyncio.gather(*found)
        # By their keys rows stay where they are: a page of later only has some of them newer.
        rows = [self._form.entry(fact) for part in parts for fact in part.facts]
        version = min(part.version for part in parts)
        return Copy(version, [row for row in rows if row.rank], {Listing.LIVE: END})

    async def _between(self, user: str, after: str, end: str, at_least: int) -> FactPage:
        """All facts of conversations whose keys lie above one and below another."""
        facts: list[Fact] = []
        limit, more = FIRST_FACTS, True
        versions = set()
        while more:
            page = await self._reader.prefixed(
                mailbox_of(user), CONVERSATION, after, limit, at_least
            )
            versions.add(page.version)
            inside = [fact for fact in page.facts if fact.key < end]
            facts += inside
            more = page.more and len(inside) == len(page.facts) > 0
            after, limit = (facts[-1].key if facts else after), FACTS_MAX
        return FactPage(min(versions), facts, False)

    async def rows(self, user: str, sessions: Sequence[str], at_least: int) -> Copy | None:
        keys = [CONVERSATION + session for session in sessions]
        page = await self._reader.of_keys(mailbox_of(user), keys, at_least)
        return Copy(page.version, [self._form.entry(fact) for fact in page.facts], {})

    async def since(self, user: str, after: int, upto: int) -> Changed:
        """What changed after ``after``: the mailbox's ``Changes``."""
        facts: list[Fact] = []
        seq, more, version = after, True, upto
        while more:
            page = await self._reader.since(mailbox_of(user), seq, FACTS_MAX, version)
            if page.version < version and facts:
                # The first pages left out what only this one's replica does not know to be old.
                raise NotReachable("the replicas differ too much")
            facts += page.facts
            version = page.version
            more = page.more and bool(page.facts)
            seq = facts[-1].seq if facts else seq
        return Changed(version, facts)

    async def put(self, user: str, update: Change | Copy) -> Put:
        raise AssertionError("replicas are told by the log")

    async def drop(self, user: str) -> None:
        """Nothing is forgotten here."""

    async def close(self) -> None:
        pass


def _place(fact: Fact) -> Place:
    return -fact.rank, fact.key.removeprefix(CONVERSATION)
