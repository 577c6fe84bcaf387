"""The door to mailboxes: conversation lists, totals and single conversations of any user.

A view in memory answers when it is as new as the asker needs. Otherwise it is brought up to date
from the mailbox's events, or loaded from the tiers, the nearest first (``hedging``); what a view
needs besides, rows further down, the unread ones, groups, is loaded when somebody asks for it. Of
all that is loaded one flight is under way per user and kind, whoever waits for it, and it goes on
when its askers leave.

Version numbers keep it right. The asker says what he has heard of, and the gateway adds what it
has: an older answer is used only if nobody has a newer one, and then says its version. Follow a
mailbox before asking, so that no change falls between the load and the first push.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from im_actors.core.facts import Fact
from im_actors.errors import BadRequest, ImError, NotReachable, Overloaded
from im_actors.mailbox.cursor import Query
from im_actors.mailbox.hedging import Clock, Hedge, HedgeConfig
from im_actors.mailbox.hot import HotAccounts, HotConfig
from im_actors.mailbox.memory import Views
from im_actors.mailbox.metrics import MailboxMetrics
from im_actors.mailbox.rows import END, Copy, Entry, Heads, Listing, Place, RowFormat
from im_actors.mailbox.tiers import PAGE_ROWS_MAX, Changes, Tier
from im_actors.mailbox.updates import UpdateConfig, Updates
from im_actors.mailbox.view import Delta, MailboxView, Needs, Page, Recount, Totals

T = TypeVar("T")

PAGE_MAX = 500
"""Most rows of one page or delta."""
RELOADS_MAX = 2
"""How often a list is loaded anew for one answer, when what tiers say does not fit together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxConfig:
    """What is kept in memory, and how long an asker waits."""

    rows_max: int = 500_000
    """Rows of all views; a row is about 1 KB."""
    rows_kept: int = 2_000
    """What a large view is cut back to before views are dropped."""
    first_rows: int = 200
    """Rows of the first load: a few screens."""
    prewarm_rows: int = 600
    """Rows that are loaded in advance for large and hot accounts."""
    large_accounts: frozenset[str] = frozenset()
    """Users whose lists are loaded at the start and not dropped."""
    prewarms: int = 2
    """Loads in advance under way at a time,"""
    prewarms_waiting_max: int = 256
    """and waiting; further ones are left out."""
    flights_max: int = 10_000
    """Loads under way."""
    catch_up_max: int = 2_000
    """Events that are read to bring a view up to date; of more it is loaded anew."""
    answer_ms: float = 3_000.0
    """How long an asker waits."""
    heads_ms: float = 500.0
    """How long the list waits for heads of groups before it shows what it knows of them."""
    hedge: HedgeConfig = field(default_factory=HedgeConfig)
    updates: UpdateConfig = field(default_factory=UpdateConfig)
    hot: HotConfig = field(default_factory=HotConfig)


class Conversation(NamedTuple):
    version: int
    entry: Entry | None
    """None: the user has no such conversation."""
    encoded: bytes
    """As clients get it; b"" for none."""


class Mailboxes:
    """All mailboxes that one gateway reads. ``tiers``: the nearest first, the last has everything;
    all but the last keep copies of what is read here. ``heads`` gives those for one user."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        form: RowFormat,
        heads: Callable[[str], Heads],
        changes: Changes,
        config: MailboxConfig,
        clock: Clock = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.metrics = MailboxMetrics()
        self.hedge = Hedge(tiers, config.hedge, self.metrics, clock)
        self.views = Views(config.rows_max, config.rows_kept, config.large_accounts, self.metrics)
        guards = self.hedge.guards[:-1]
        self.updates = Updates(guards, self.views.get, self.metrics, config.updates, clock, wall_ms)
        self.views.on_drop = self.updates.forget
        self._tiers = tiers
        self._form = form
        self._heads = heads
        self._changes = changes
        self._config = config
        self._clock = clock
        self._flights: dict[Hashable, asyncio.Task[Any]] = {}
        self._told: dict[str, int] = {}
        """Of users whose view is being loaded: what was pushed meanwhile."""
        self._hot = HotAccounts(config.hot)
        self._prewarms = asyncio.Semaphore(config.prewarms)
        self._prewarming: set[str] = set()

    # ---- asking

    async def page(self, user: str, query: Query, at_least: int = 0) -> Page:
        """A page of the list, that knows of everything up to ``at_least`` if anybody does."""
        _check_limit(query.limit)
        self._asked(user)
        return await self._answer(user, at_least, lambda view: view.page(query))

    async def totals(self, user: str, at_least: int = 0) -> Totals:
        """What is unread in all conversations; the list is loaded along with it."""
        self._asked(user)
        return await self._answer(user, at_least, MailboxView.totals)

    async def listed(self, user: str, query: Query, at_least: int = 0) -> tuple[Page, Totals]:
        """``page`` and ``totals`` of one moment."""
        _check_limit(query.limit)
        self._asked(user)
        return await self._answer(user, at_least, lambda view: _listed(view, query))

    async def delta(self, user: str, since: int, limit: int, at_least: int = 0) -> Delta | None:
        """What changed after ``since``; None: unknown by now, the list has to be read anew."""
        _check_limit(limit)
        view = await self._view(user, max(at_least, since))
        await self._know_heads(user, view)
        delta = view.delta(since, limit)
        self.views.settle(user)
        return delta

    async def conversation(self, user: str, session: str, at_least: int = 0) -> Conversation:
        """One row, wherever in the list it is, or hidden."""
        view = await self._view(user, at_least)
        entry = view.entry(session)
        if not view.knows(session):
            find = partial(self._find, view, user, session)
            entry = await self._flight((user, "row", session), find)
        await self._know_heads(user, view)
        if view.entry(session) is not None:
            entry, encoded = view.entry(session), view.encoded(session)
        elif entry is not None:
            # The view was cut back while we waited.
            encoded = self._form.encode(entry, None)
        if entry is None or (entry.value is None and not view.lists(session)):
            return Conversation(view.version, None, b"")
        return Conversation(view.version, entry, encoded)

    def recount(self, user: str) -> Recount | None:
        """Compute the sums of a user's view anew; None: he has none in memory."""
        view = self.views.get(user)
        if view is None:
            return None
        recount = view.recount()
        self.metrics.drifts += recount.drifted
        return recount

    # ---- being told

    def pushed(self, user: str, seq: int, time_ms: int, facts: Sequence[Fact]) -> None:
        """Event ``seq`` of a user's mailbox, committed at ``time_ms``."""
        view = self.views.get(user)
        if user in self._told:
            self._told[user] = max(self._told[user], seq)
        if view is None:
            return
        view.feed(seq, facts)
        if view.lacks() < 0:
            self.updates.changed(user, time_ms)

    def heard(self, user: str, version: int) -> None:
        """The mailbox has at least so many events."""
        if user in self._told:
            self._told[user] = max(self._told[user], version)
        view = self.views.get(user)
        if view is not None:
            view.hear(version)

    def drop(self, user: str) -> None:
        """Nobody here follows this mailbox any more."""
        self.views.drop(user)

    def start(self) -> None:
        """Load what is to be there before the first ask."""
        for user in sorted(self._config.large_accounts):
            self.prewarm(user)

    def prewarm(self, user: str) -> None:
        """Load a user's list in the background, unless too many wait for that."""
        if user in self._prewarming:
            return
        if len(self._prewarming) >= self._config.prewarms_waiting_max:
            self.metrics.prewarms_dropped += 1
            return
        self._prewarming.add(user)
        self._fly((user, "prewarm"), lambda: self._prewarm(user))

    async def close(self) -> None:
        """Return when nothing runs any more, and the tiers are closed."""
        while self._flights:
            for task in self._flights.values():
                task.cancel()
            await asyncio.wait(set(self._flights.values()))
        await self.updates.close()
        await self.hedge.close()
        for tier in self._tiers:
            await tier.close()

    # ---- answering

    async def _answer(self, user: str, at_least: int, ask: Callable[[MailboxView], T | Needs]) -> T:
        """Load what the view needs, until it can answer."""
        view = await self._view(user, at_least)
        await self._know_heads(user, view)
        answer = ask(view)
        if isinstance(answer, Needs):
            try:
                async with asyncio.timeout(self._config.answer_ms / 1000):
                    answer, view = await self._load_for(user, view, answer, at_least, ask)
            except TimeoutError:
                raise NotReachable("the list is being loaded, ask again") from None
        self.views.settle(user)
        return cast(T, answer)

    async def _load_for(
        self,
        user: str,
        view: MailboxView,
        needs: Needs,
        at_least: int,
        ask: Callable[[MailboxView], T | Needs],
    ) -> tuple[T, MailboxView]:
        for _ in range(RELOADS_MAX + 1):
            while await self._extend(user, view, needs):
                await self._know_heads(user, view)
                answer = ask(view)
                if not isinstance(answer, Needs):
                    return answer, view
                needs = answer
            # What came does not fit to the view: begin with a new one.
            if self.views.get(user) is view:
                self.views.drop(user)
            view = await self._view(user, max(at_least, view.version))
            await self._know_heads(user, view)
            answer = ask(view)
            if not isinstance(answer, Needs):
                return answer, view
            needs = answer
        raise NotReachable("the tiers contradict each other, and the mailbox cannot be read")

    async def _know_heads(self, user: str, view: MailboxView) -> None:
        """Bring groups to their places, as far as their heads can be read."""
        unknown = view.refresh()
        with contextlib.suppress(ImError, OSError):
            async with asyncio.timeout(self._config.heads_ms / 1000):
                # A flight that others began, and what came to the list meanwhile, leave some open.
                for _ in range(RELOADS_MAX + 1):
                    if not unknown:
                        return
                    load = partial(self._heads(user).load, unknown)
                    await self._flight((user, "heads"), load)
                    unknown = view.refresh()
        self.metrics.heads_unknown += len(view.refresh())

    # ---- views

    async def _view(self, user: str, at_least: int) -> MailboxView:
        """The user's view, at ``at_least`` or newer if anybody is."""
        view = self.views.touch(user)
        if view is not None and view.version >= max(at_least, view.heard):
            self.metrics.memory_hits += 1
            return view
        self.metrics.memory_misses += 1
        key = (user, "view")
        joined = key in self._flights
        try:
            async with asyncio.timeout(self._config.answer_ms / 1000):
                view = await self._flight(key, lambda: self._renew(user, at_least))
                if joined and view.version < at_least:
                    # It had begun before we asked, for somebody who knew less.
                    view = await self._flight(key, lambda: self._renew(user, at_least))
        except TimeoutError:
            raise NotReachable("the list is being loaded, ask again") from None
        self.metrics.behind += view.version < max(at_least, view.heard)
        return view

    async def _renew(self, user: str, at_least: int) -> MailboxView:
        view = self.views.get(user)
        if view is not None:
            view.hear(at_least)
            if await self._catch_up(user, view, view.heard):
                return view
            at_least = view.heard
        try:
            return await self._load(user, at_least)
        except (ImError, OSError):
            if view is None:
                raise
            # Old is better than nothing, and says its version.
            return view

    async def _load(self, user: str, at_least: int) -> MailboxView:
        """A new view from the tiers."""
        self._told[user] = at_least
        try:
            limit = self._config.first_rows
            found = await self.hedge.ask(
                user, lambda tier: tier.first_page(user, limit, at_least), at_least
            )
        finally:
            told = self._told.pop(user, at_least)
        if found is None:
            raise NotReachable("no tier has this mailbox")
        self.metrics.loads += 1
        known = self.views.get(user)
        if known is not None and known.version >= found.copy.version:
            return known
        standing = self._form.standing(user)
        view = MailboxView(found.copy, self._form, self._heads(user), standing)
        view.hear(told)
        self.views.put(user, view)
        self.updates.loaded(user, found.tier, found.copy.version)
        if view.lacks() >= 0:
            await self._catch_up(user, view, told)
        return view

    async def _catch_up(self, user: str, view: MailboxView, upto: int) -> bool:
        """Read the mailbox's events up to ``upto``. False: it is not possible now."""
        if upto - view.version > self._config.catch_up_max:
            return False
        before = reached = view.version
        try:
            async with asyncio.timeout(self._config.answer_ms / 1000):
                while view.version < upto:
                    # Pushes may come meanwhile: what is read begins where the view was before.
                    view.advance(*await self._changes.since(user, reached, upto))
                    if view.version == reached:
                        break
                    reached = view.version
        except (ImError, OSError):
            pass
        if view.version > before and self.views.get(user) is view:
            self.updates.changed(user, 0)
        return view.version >= upto

    # ---- more of a view

    async def _extend(self, user: str, view: MailboxView, needs: Needs) -> bool:
        """Load rows into a view. False: it has to be loaded anew."""
        key = (user, "more", needs.listing)
        return await self._flight(key, lambda: self._more(user, view, needs))

    async def _more(self, user: str, view: MailboxView, needs: Needs) -> bool:
        base, (listing, after) = view.base, needs
        if listing is Listing.ALL:
            limit = PAGE_ROWS_MAX if len(view) >= PAGE_ROWS_MAX else self._config.first_rows
            page = partial(_page_of, user=user, after=after, limit=limit, at_least=base)
            found = await self.hedge.ask(user, page, base)
        else:
            found = await self.hedge.ask(user, lambda t: t.whole(user, listing, base), base)
        if found is not None:
            copy: Copy | None = found.copy if await self._fit(user, view, found.copy) else None
        elif listing is Listing.UNREAD:
            # The rows above are in the view already, if they still are afterwards.
            after = view.complete[Listing.ALL]
            copy = await self._scan_unread(user, view, after)
        else:
            raise NotReachable("no tier has the rest of this mailbox")
        if copy is None or not view.merge(copy, after):
            return False
        if self.views.get(user) is view:
            self.updates.grew(user, len(view))
        return True

    async def _scan_unread(self, user: str, view: MailboxView, after: Place) -> Copy | None:
        """The unread rows of the list's rest, from all of its pages; None: it cannot be had. The
        pages may be of different versions, as long as the view has all changes in between."""
        version = view.version
        unread: list[Entry] = []
        while after != END:
            base = view.base
            page = partial(_page_of, user=user, after=after, limit=PAGE_ROWS_MAX, at_least=base)
            found = await self.hedge.ask(user, page, base)
            if found is None or not await self._fit(user, view, found.copy):
                return None
            version = min(version, found.copy.version)
            unread += [entry for entry in found.copy.entries if entry.unread]
            after = found.copy.complete[Listing.ALL]
        return Copy(version, unread, {Listing.UNREAD: END})

    async def _find(self, view: MailboxView, user: str, session: str) -> Entry | None:
        """Look for one row in the tiers."""
        base = view.base
        found = await self.hedge.ask(user, lambda tier: tier.rows(user, [session], base), base)
        if found is None or not await self._fit(user, view, found.copy):
            raise NotReachable("no tier can say whether there is this conversation")
        if view.base > found.copy.version:
            raise NotReachable("the list was cut back while this was looked for, ask again")
        view.learn(found.copy)
        return view.entry(session)

    async def _fit(self, user: str, view: MailboxView, copy: Copy) -> bool:
        """Give a view the changes between it and a copy, whichever is older. False: it cannot."""
        if copy.version >= view.base:
            return await self._catch_up(user, view, copy.version)
        after, upto = copy.version, view.base
        if upto - after > self._config.catch_up_max:
            return False
        between: list[Fact] = []
        try:
            async with asyncio.timeout(self._config.answer_ms / 1000):
                while after < upto:
                    changed = await self._changes.since(user, after, upto)
                    if changed.upto <= after:
                        return False
                    between += changed.facts
                    after = changed.upto
        except (ImError, OSError):
            return False
        if view.base > upto:
            # It was trimmed meanwhile, and has forgotten what came after these.
            return False
        view.reach_back(copy.version, between)
        return True

    # ---- in advance

    def _asked(self, user: str) -> None:
        if self._hot.asked(user, self._clock()):
            self.prewarm(user)

    async def _prewarm(self, user: str) -> None:
        try:
            async with self._prewarms:
                await self._answer(user, 0, MailboxView.totals)
                view = await self._view(user, 0)
                step = self._config.first_rows
                for _ in range(step, self._config.prewarm_rows, step):
                    needs = Needs(Listing.ALL, view.complete[Listing.ALL])
                    if needs.after == END or not await self._extend(user, view, needs):
                        break
                self.metrics.prewarmed += 1
        except (ImError, OSError):
            self.metrics.prewarms_dropped += 1
        finally:
            self._prewarming.discard(user)

    # ---- flights

    async def _flight(self, key: Hashable, load: Callable[[], Awaitable[T]]) -> T:
        """What ``load`` brings, or what the flight of this key that is under way brings."""
        task = self._flights.get(key)
        # One that has ended and not landed yet would be waited for without giving up the loop.
        if task is None or task.done():
            if len(self._flights) >= self._config.flights_max:
                raise Overloaded("too many lists are being loaded here")
            task = self._fly(key, load)
        else:
            self.metrics.shared += 1
        # An asker who leaves does not take the others' answer with him.
        return cast(T, await asyncio.shield(task))

    def _fly(self, key: Hashable, load: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(load())
        self._flights[key] = task
        task.add_done_callback(partial(self._landed, key))
        return task

    def _landed(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        if self._flights.get(key) is task:
            del self._flights[key]
        if not task.cancelled():
            task.exception()


def _listed(view: MailboxView, query: Query) -> tuple[Page, Totals] | Needs:
    totals = view.totals()
    page = view.page(query)
    if isinstance(totals, Needs):
        return totals
    return page if isinstance(page, Needs) else (page, totals)


async def _page_of(tier: Tier, user: str, after: Place, limit: int, at_least: int) -> Copy | None:
    return await tier.page(user, after, limit, at_least)


def _check_limit(limit: int) -> None:
    if not 0 < limit <= PAGE_MAX:
        raise BadRequest(f"limit is {limit}, allowed are 1 to {PAGE_MAX}")
