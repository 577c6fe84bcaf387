"""A mailbox's truth, kept as dumbly as possible, and the parts that the reading side is given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgpack

from im_actors.core.facts import Fact
from im_actors.core.model import pack
from im_actors.errors import NotReachable
from im_actors.mailbox.rows import (
    END,
    TOP,
    Change,
    Copy,
    Entry,
    Flag,
    Head,
    Listing,
    Place,
    entry_place,
    live_rank,
)
from im_actors.mailbox.tier_facts import FactPage
from im_actors.mailbox.tiers import Changed, Put, Tier


class PlainRows:
    """Rows whose value is msgpack [unread, flags, label]."""

    def entry(self, fact: Fact) -> Entry:
        session = fact.key.removeprefix("c/")
        if fact.value is None:
            return Entry(session, fact.seq, 0, 0, 0, "", None)
        unread, flags, label = msgpack.unpackb(fact.value)
        return Entry(session, fact.seq, fact.rank, unread, flags, label, fact.value)

    def standing(self, user: str) -> list[Entry]:
        return []

    def rank(self, entry: Entry, head: Head | None) -> int:
        return live_rank(entry, head)

    def encode(self, entry: Entry, head: Head | None) -> bytes:
        unread = head.unread if head is not None else entry.unread
        return pack((entry.session, entry.seq, entry.rank, unread, entry.value))


class FakeHeads:
    """Heads by session, the same for all users; those of ``cold`` have to be loaded first."""

    def __init__(self) -> None:
        self.changes = 0
        self.heads: dict[str, Head] = {}
        self.marks: dict[str, int] = {}
        self.cold: set[str] = set()
        self.loads = 0

    def set(self, session: str, key: int, unread: int) -> None:
        self.changes += 1
        self.marks[session] = self.changes
        self.heads[session] = Head(self.changes, key, unread, b"")

    def mark(self, session: str) -> int:
        return 0 if session in self.cold else self.marks.get(session, 0)

    def head(self, entry: Entry) -> Head | None:
        return None if entry.session in self.cold else self.heads.get(entry.session)

    async def load(self, entries: Sequence[Entry]) -> None:
        self.loads += 1
        self.cold -= {entry.session for entry in entries}
        self.changes += 1


def fact(
    session: str, seq: int, rank: int, unread: int = 0, flags: int = 0, label: str = ""
) -> Fact:
    return Fact("c/" + session, seq, rank, pack((unread, int(flags), label)))


class Truth:
    """All events of one mailbox: event n is at n - 1, as the facts that it says."""

    def __init__(self) -> None:
        self.events: list[list[Fact]] = []

    @property
    def version(self) -> int:
        return len(self.events)

    def write(self, *rows: tuple[str, int, int, int, str]) -> None:
        """One event with rows (session, rank, unread, flags, label)."""
        seq = self.version + 1
        self.events.append([fact(s, seq, *rest) for s, *rest in rows])  # type: ignore[arg-type]

    def forget(self, session: str) -> None:
        self.events.append([Fact("c/" + session, self.version + 1, 0, None)])

    def rows(self, version: int | None = None) -> dict[str, Entry]:
        """All rows as they are at a version, listed or not."""
        form = PlainRows()
        events = self.events if version is None else self.events[:version]
        facts = [fact for said in events for fact in said if fact.key.startswith("c/")]
        return {fact.key[2:]: form.entry(fact) for fact in facts}

    def static(self, version: int | None = None) -> list[Entry]:
        rows = self.rows(version).values()
        return sorted((r for r in rows if r.rank and not r.flags & Flag.LIVE), key=entry_place)

    def listed(self, heads: FakeHeads, label: str | None, unread_only: bool) -> list[str]:
        """The sessions of a list, in order."""
        return [session for session, _ in self.shown(heads, label, unread_only)]

    def shown(self, heads: FakeHeads, label: str, unread_only: bool) -> list[tuple[str, int]]:
        """(session, unread) of a list, in order."""
        found = []
        for row in self.rows().values():
            rank, unread = row.rank, row.unread
            head = heads.heads.get(row.session)
            if rank and row.flags & Flag.LIVE and head is not None:
                rank = head.key + (1 << 62 if row.flags & Flag.PINNED else 0)
                unread = head.unread
            if rank and label in (None, row.label) and (unread or not unread_only):
                found.append((-rank, row.session, unread))
        return [(session, unread) for _, session, unread in sorted(found)]

    # ---- what a tier that has everything would say at some version

    def page(self, after: Place, limit: int, version: int | None = None) -> Copy:
        at = self.version if version is None else version
        rows = [row for row in self.static(at) if entry_place(row) > after]
        place = entry_place(rows[limit - 1]) if len(rows) > limit else END
        return Copy(at, rows[:limit], {Listing.ALL: place})

    def live(self, version: int | None = None) -> Copy:
        at = self.version if version is None else version
        rows = [r for r in self.rows(at).values() if r.rank and r.flags & Flag.LIVE]
        return Copy(at, rows, {Listing.LIVE: END})

    def everything(self) -> Copy:
        rows = self.page(TOP, 1 << 30).entries
        return Copy(
            self.version, [*rows, *self.live().entries], {Listing.ALL: END, Listing.LIVE: END}
        )


class ColdTier:
    """Has everything, as it was ``lag`` events ago; keeps nothing that it is told."""

    def __init__(self, truths: dict[str, Truth], name: str = "cold") -> None:
        self.name = name
        self.truths = truths
        self.lag = 0
        self.asked: list[str] = []
        """What it was asked: first, page, unread, live, rows."""

    def _at(self, user: str, what: str) -> tuple[Truth, int]:
        self.asked.append(what)
        truth = self.truths[user]
        return truth, max(0, truth.version - self.lag)

    async def first_page(self, user: str, limit: int, at_least: int) -> Copy | None:
        truth, version = self._at(user, "first")
        return truth.page(TOP, limit, version)

    async def page(self, user: str, after: Place, limit: int, at_least: int) -> Copy | None:
        truth, version = self._at(user, "page")
        return truth.page(after, limit, version)

    async def whole(self, user: str, listing: Listing, at_least: int) -> Copy | None:
        truth, version = self._at(user, listing.name.lower())
        return truth.live(version) if listing is Listing.LIVE else None

    async def rows(self, user: str, sessions: Sequence[str], at_least: int) -> Copy | None:
        truth, version = self._at(user, "rows")
        rows = truth.rows(version)
        return Copy(version, [rows[name] for name in sessions if name in rows], {})

    async def put(self, user: str, update: Change | Copy) -> Put:
        raise AssertionError("the last tier is told nothing")

    async def drop(self, user: str) -> None:
        raise AssertionError("the last tier forgets nothing")

    async def close(self) -> None:
        pass


class Replicas:
    """A FactReader over a truth, a few facts at a time, as it was up to ``lag`` events ago; but
    who asks for more is answered by another replica."""

    def __init__(self, truths: dict[str, Truth], page_max: int = 1_000) -> None:
        self.truths = truths
        self.page_max = page_max
        self.lag = 0
        self.asked: list[str] = []

    def _facts(self, session: str, what: str, at_least: int) -> tuple[int, list[Fact]]:
        self.asked.append(what)
        truth = self.truths[session.removeprefix("user:")]
        version = max(0, truth.version - self.lag, min(at_least, truth.version))
        newest = {fact.key: fact for facts in truth.events[:version] for fact in facts}
        return version, list(newest.values())

    def _page(self, version: int, facts: list[Fact], limit: int) -> FactPage:
        limit = min(limit, self.page_max)
        return FactPage(version, facts[:limit], len(facts) > limit)

    async def ranked(
        self, session: str, after_rank: int, after_key: str, limit: int, at_least: int
    ) -> FactPage:
        version, facts = self._facts(session, "ranked", at_least)
        below = [f for f in facts if not after_rank or (f.rank, f.key) < (after_rank, after_key)]
        ordered = sorted((f.rank, f.key, f) for f in below if f.rank)[::-1]
        return self._page(version, [f for _, _, f in ordered], limit)

    async def prefixed(
        self, session: str, prefix: str, after_key: str, limit: int, at_least: int
    ) -> FactPage:
        version, facts = self._facts(session, "prefixed", at_least)
        found = sorted(f for f in facts if f.key.startswith(prefix) and f.key > after_key)
        return self._page(version, found, limit)

    async def of_keys(self, session: str, keys: Sequence[str], at_least: int) -> FactPage:
        version, facts = self._facts(session, "keys", at_least)
        return FactPage(version, [f for f in facts if f.key in keys], False)

    async def since(self, session: str, seq: int, limit: int, at_least: int) -> FactPage:
        version, facts = self._facts(session, "since", at_least)
        found = sorted((f.seq, f) for f in facts if f.seq > seq)
        limit = min(limit, self.page_max)
        end = found[limit - 1][0] if len(found) > limit else version
        page = [f for seq, f in found if seq <= end]
        return FactPage(version, page, len(page) < len(found))


class Timeline:
    """Where views catch up. ``broken``: it cannot be read."""

    def __init__(self, truths: dict[str, Truth]) -> None:
        self.truths = truths
        self.broken = False
        self.whole = False
        """Say what holds now of all that changed, and not a few events."""
        self.reads = 0

    async def since(self, user: str, after: int, upto: int) -> Changed:
        self.reads += 1
        if self.broken:
            raise NotReachable("no replica answers")
        events = self.truths[user].events
        if self.whole:
            newest = {fact.key: fact for facts in events for fact in facts}
            return Changed(len(events), [fact for fact in newest.values() if fact.seq > after])
        some = events[after : after + 3]
        return Changed(after + len(some), [fact for facts in some for fact in facts])


class Faulty:
    """A tier that fails or stands still when it is told to."""

    def __init__(self, tier: Tier) -> None:
        self.name = tier.name
        self.inner = tier
        self.failing = False
        self.still = asyncio.Event()
        self.still.set()
        self.waiting = 0
        self.calls = 0

    async def _pass(self) -> None:
        self.calls += 1
        self.waiting += 1
        try:
            await self.still.wait()
        finally:
            self.waiting -= 1
        if self.failing:
            raise NotReachable(f"{self.name} is broken")

    async def first_page(self, user: str, limit: int, at_least: int) -> Copy | None:
        await self._pass()
        return await self.inner.first_page(user, limit, at_least)

    async def page(self, user: str, after: Place, limit: int, at_least: int) -> Copy | None:
        await self._pass()
        return await self.inner.page(user, after, limit, at_least)

    async def whole(self, user: str, listing: Listing, at_least: int) -> Copy | None:
        await self._pass()
        return await self.inner.whole(user, listing, at_least)

    async def rows(self, user: str, sessions: Sequence[str], at_least: int) -> Copy | None:
        await self._pass()
        return await self.inner.rows(user, sessions, at_least)

    async def put(self, user: str, update: Change | Copy) -> Put:
        await self._pass()
        return await self.inner.put(user, update)

    async def drop(self, user: str) -> None:
        await self._pass()
        await self.inner.drop(user)

    async def close(self) -> None:
        self.still.set()
        await self.inner.close()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until it holds; pytest's timeout is the limit."""
    while not condition():
        await asyncio.sleep(0.001)
