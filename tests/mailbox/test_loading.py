"""The door to mailboxes: right whatever the tiers do, loaded once, and nothing left behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest

from im_actors.errors import BadRequest, NotReachable, Overloaded
from im_actors.mailbox.cursor import Query, read_cursor
from im_actors.mailbox.hedging import HedgeConfig
from im_actors.mailbox.hot import HotAccounts, HotConfig
from im_actors.mailbox.loading import MailboxConfig, Mailboxes
from im_actors.mailbox.metrics import MailboxMetrics
from im_actors.mailbox.rows import END, TOP, Flag, Listing
from im_actors.mailbox.tier_facts import FactTier
from im_actors.mailbox.tier_redis import RedisTier
from im_actors.mailbox.tier_sqlite import SqliteTier
from im_actors.mailbox.tiers import Changed, Tier
from im_actors.mailbox.updates import UpdateConfig
from im_actors.mailbox.view import MailboxView
from tests.mailbox.fakes import (
    ColdTier,
    FakeHeads,
    Faulty,
    PlainRows,
    Replicas,
    Timeline,
    Truth,
    eventually,
)
from tests.mailbox.test_view import World
from tests.support_redis import MakeRedis, RedisServer

FAST = HedgeConfig(delay_ms_min=1, delay_ms_max=5, delay_ms_unknown=2, open_ms_min=20)
PATIENT = replace(FAST, delay_ms_min=10_000, delay_ms_max=10_000, delay_ms_unknown=10_000)
"""Nobody is asked too because a busy machine lets a tier wait."""


class Rig:
    """A gateway's mailboxes with one user, alice, over a warm and a cold tier."""

    def __init__(
        self, path: Path, tier: Tier | None = None, of_facts: bool = False, **config: Any
    ) -> None:
        self.truth = Truth()
        self.truths = {"alice": self.truth}
        self.heads = FakeHeads()
        self.timeline = Timeline(self.truths)
        self.hot = tier
        self.warm = Faulty(SqliteTier(path / "warm.db"))
        self.cold_tier = ColdTier(self.truths)
        self.replicas = Replicas(self.truths, 3)
        facts = FactTier(self.replicas, PlainRows())
        self.cold = Faulty(facts if of_facts else self.cold_tier)
        self.now_s = 1_000.0
        self.wall_ms = 5_000_000
        config.setdefault("hedge", FAST)
        self.boxes = Mailboxes(
            [*([tier] if tier is not None else []), self.warm, self.cold],
            PlainRows(),
            lambda _: self.heads,
            facts if of_facts else self.timeline,
            MailboxConfig(**config),
            lambda: self.now_s,
            lambda: self.wall_ms,
        )

    def fill(self, count: int, unread: int = 0, user: str = "alice") -> None:
        truth = self.truths.setdefault(user, Truth())
        for n in range(count):
            truth.write((f"direct:{user}/{n}", len(truth.events) + 1, unread, 0, ""))

    def write(self, session: str, rank: int, unread: int = 0, flags: int = 0) -> None:
        """A change that is pushed at once."""
        self.truth.write((session, rank, unread, flags, ""))
        self.push(self.truth.version)

    def push(self, seq: int) -> None:
        self.boxes.pushed("alice", seq, self.wall_ms, self.truth.events[seq - 1])

    async def sessions(self, query: Query | None = None, at_least: int = 0) -> list[str]:
        """The whole list, page by page."""
        return [name for name, _ in await self.shown(query or Query(limit=50), at_least)]

    async def shown(self, query: Query, at_least: int = 0) -> list[tuple[str, int]]:
        found = []
        while True:
            page = await self.boxes.page("alice", query, at_least)
            assert page.version >= at_least
            found += [(row[0], row[3]) for row in msgpack.unpackb(page.encoded)]
            if not page.cursor:
                return found
            query = read_cursor(page.cursor, query)

    def view(self, user: str = "alice") -> MailboxView:
        view = self.boxes.views.get(user)
        assert view is not None
        return view


MakeRig = Callable[..., Rig]


@pytest.fixture
async def make_rig(tmp_path: Path) -> AsyncIterator[MakeRig]:
    """Makes one rig, and sees that it leaves nothing behind."""
    rigs: list[Rig] = []

    def make(tier: Tier | None = None, of_facts: bool = False, **config: Any) -> Rig:
        rigs.append(Rig(tmp_path, tier, of_facts, **config))
        return rigs[-1]

    before = len(asyncio.all_tasks())
    yield make
    for rig in rigs:
        await rig.boxes.close()
    assert len(asyncio.all_tasks()) == before


async def test_the_first_page_costs_one_read_and_the_next_none(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(500)
    page = await rig.boxes.page("alice", Query(limit=25))
    assert [entry.session for entry in page.entries] == rig.truth.listed(rig.heads, "", False)[:25]
    assert rig.cold_tier.asked == ["first", "live"]
    await rig.boxes.page("alice", read_cursor(page.cursor, Query(limit=25)))
    assert rig.cold_tier.asked == ["first", "live"]
    assert (rig.boxes.metrics.memory_hits, rig.boxes.metrics.memory_misses) == (1, 1)


async def test_going_down_loads_what_is_below(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(700, unread=1)
    assert await rig.sessions() == rig.truth.listed(rig.heads, "", False)
    assert rig.cold_tier.asked.count("page") == 3
    assert (await rig.boxes.totals("alice")).unread == 700
    assert "unread" not in rig.cold_tier.asked, "the list is whole, so the sum is known"


async def test_the_total_of_a_large_account_does_not_load_its_list(make_rig: MakeRig) -> None:
    rig = make_rig(first_rows=20)
    rig.fill(3_000)
    for n in (5, 500, 2_000):
        rig.truth.write((f"direct:alice/{n}", n + 1, 4, 0, ""))
    totals = await rig.boxes.totals("alice")
    assert (totals.unread, totals.conversations) == (12, 3)
    assert len(rig.view()) <= 23
    assert await rig.sessions(Query(unread_only=True)) == rig.truth.listed(rig.heads, "", True)
    rig.write("direct:alice/700", 9_000, unread=1)
    rig.write("direct:alice/5", 9_001, unread=0)
    assert (await rig.boxes.totals("alice")).unread == 9


async def test_a_page_and_its_sum_are_of_one_moment(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(300, unread=2)
    page, totals = await rig.boxes.listed("alice", Query(limit=500))
    assert totals.unread == sum(entry.unread for entry in page.entries) == 600
    # Between two looks the view may go, and come back from a tier that knows less.
    assert rig.boxes.metrics.memory_misses + rig.boxes.metrics.memory_hits == 1


async def test_many_askers_one_load(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(50)
    rig.cold.still.clear()
    asks = [asyncio.ensure_future(rig.boxes.page("alice", Query())) for _ in range(20)]
    asks += [asyncio.ensure_future(rig.boxes.totals("alice")) for _ in range(20)]  # type: ignore[arg-type]
    await eventually(lambda: rig.cold.waiting == 1)
    asks[0].cancel()
    rig.cold.still.set()
    done = await asyncio.gather(*asks, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert not [answer for answer in done[1:] if isinstance(answer, BaseException)]
    assert rig.cold_tier.asked == ["first", "live"]


async def test_what_is_pushed_while_loading_is_not_lost(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(10)
    rig.cold.still.clear()
    ask = asyncio.ensure_future(rig.boxes.page("alice", Query()))
    await eventually(lambda: rig.cold.waiting == 1)
    rig.cold_tier.lag = 1  # the copy is of before the push
    rig.write("direct:alice/3", 100, unread=2)
    rig.cold.still.set()
    page = await ask
    assert page.version == 11
    assert page.entries[0].session == "direct:alice/3"


async def test_a_view_that_missed_pushes_catches_up(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(10)
    await rig.sessions()
    for n in range(7):
        rig.truth.write((f"direct:alice/{n}", 100 + n, 1, 0, ""))
    rig.push(17)
    assert rig.view().lacks() == 10
    assert await rig.sessions() == rig.truth.listed(rig.heads, "", False)
    assert rig.timeline.reads == 2
    assert rig.cold_tier.asked == ["first", "live"]


async def test_far_behind_it_is_loaded_anew(make_rig: MakeRig) -> None:
    rig = make_rig(catch_up_max=5)
    rig.fill(10)
    await rig.sessions()
    rig.fill(6)
    assert await rig.sessions(at_least=16) == rig.truth.listed(rig.heads, "", False)
    assert rig.timeline.reads == 0
    assert rig.boxes.metrics.loads == 2


async def test_an_old_list_is_better_than_none_and_says_so(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(10)
    await rig.sessions()
    rig.fill(1)
    rig.timeline.broken = rig.cold.failing = rig.warm.failing = True
    page = await rig.boxes.page("alice", Query(), at_least=11)
    assert (page.version, len(page.entries)) == (10, 10)
    assert rig.boxes.metrics.behind == 1
    rig.boxes.drop("alice")
    with pytest.raises(NotReachable):
        await rig.boxes.page("alice", Query())


async def test_a_stale_replica_is_caught_up_with(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(10)
    rig.cold_tier.lag = 4
    assert await rig.sessions(at_least=10) == rig.truth.listed(rig.heads, "", False)
    assert rig.boxes.metrics.behind == 0
    rig.boxes.drop("alice")
    rig.timeline.broken = True
    await rig.boxes.updates.settled()
    await rig.warm.drop("alice")
    assert (await rig.boxes.page("alice", Query())).version == 6
    page = await rig.boxes.page("alice", Query(), at_least=10)
    assert page.version == 6
    assert rig.boxes.metrics.behind == 1


async def test_a_flight_for_somebody_who_knew_less_is_not_enough(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(10)
    rig.cold.still.clear()
    first = asyncio.ensure_future(rig.boxes.page("alice", Query()))
    await eventually(lambda: rig.cold.waiting == 1)
    rig.cold_tier.lag = 3
    second = asyncio.ensure_future(rig.boxes.page("alice", Query(), at_least=10))
    rig.cold.still.set()
    assert (await first).version >= 7
    assert (await second).version == 10


async def test_conversations_wherever_they_are(make_rig: MakeRig) -> None:
    rig = make_rig(first_rows=5)
    rig.fill(50)
    rig.truth.write(("direct:alice/7", 0, 3, 0, ""))
    rig.truth.forget("direct:alice/8")
    assert (await rig.boxes.conversation("alice", "direct:alice/2")).entry is not None
    hidden = await rig.boxes.conversation("alice", "direct:alice/7")
    assert hidden.entry is not None
    assert (hidden.entry.rank, hidden.entry.unread) == (0, 3)
    assert msgpack.unpackb(hidden.encoded)[0] == "direct:alice/7"
    for session in ("direct:alice/8", "direct:alice/nobody"):
        gone = await rig.boxes.conversation("alice", session)
        assert (gone.entry, gone.encoded) == (None, b"")
    rig.cold.failing = True
    with pytest.raises(NotReachable):
        await rig.boxes.conversation("alice", "direct:alice/9")


async def test_groups_stand_where_their_heads_say(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(10)
    rig.truth.write(("group:a", 2, 0, int(Flag.LIVE), ""), ("group:b", 3, 0, int(Flag.LIVE), ""))
    rig.heads.set("group:a", 50, 7)
    rig.heads.set("group:b", 60, 1)
    rig.heads.cold = {"group:a", "group:b"}
    assert (await rig.sessions())[:2] == ["group:b", "group:a"]
    assert rig.heads.loads == 1
    rig.heads.set("group:a", 70, 8)
    assert (await rig.sessions())[:2] == ["group:a", "group:b"]
    assert (await rig.boxes.totals("alice")).unread == 9
    assert rig.heads.loads == 1


async def test_heads_that_cannot_be_read_do_not_hold_up_the_list(make_rig: MakeRig) -> None:
    rig = make_rig(heads_ms=10)
    rig.fill(3)
    rig.truth.write(("group:a", 2, 0, int(Flag.LIVE), ""))

    async def never(entries: object) -> None:
        await asyncio.Event().wait()

    rig.heads.load = never  # type: ignore[method-assign, assignment]
    assert len(await rig.sessions()) == 4
    assert rig.boxes.metrics.heads_unknown > 0


async def test_a_delta_for_a_client_that_knows_more_than_the_view(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(10)
    await rig.sessions()
    rig.truth.write(("direct:alice/3", 50, 1, 0, ""))
    rig.truth.write(("direct:alice/4", 51, 1, 0, ""))
    delta = await rig.boxes.delta("alice", 11, 100)
    assert delta is not None
    assert (delta.version, [e.session for e in delta.entries]) == (12, ["direct:alice/4"])
    assert await rig.boxes.delta("alice", 3, 100) is None


async def test_a_flight_that_has_just_ended_is_not_joined(make_rig: MakeRig) -> None:
    rig = make_rig(first_rows=5)
    rig.fill(100)
    view = await rig.boxes._view("alice", 0)

    async def ended() -> bool:
        return True

    key = ("alice", "more", Listing.LIVE)
    task = asyncio.ensure_future(ended())
    await task
    rig.boxes._flights[key] = task
    assert len((await rig.boxes.page("alice", Query())).entries) == 25
    assert view.complete[Listing.LIVE] == END


@pytest.mark.parametrize("kept", [0, 3])
async def test_memory_that_runs_short_while_unread_rows_are_looked_for(
    make_rig: MakeRig, kept: int
) -> None:
    rig = make_rig(first_rows=20)
    rig.fill(2_000, unread=1)
    await rig.boxes.page("alice", Query())
    page = rig.cold_tier.page

    async def short(*args: Any) -> Any:
        if rig.cold_tier.asked.count("page") == 1:
            rig.view().trim(kept)
        return await page(*args)

    rig.cold_tier.page = short  # type: ignore[method-assign]
    assert (await rig.boxes.totals("alice")).unread == 2_000


async def test_memory_that_runs_short_while_a_conversation_is_looked_for(
    make_rig: MakeRig,
) -> None:
    rig = make_rig(first_rows=5)
    rig.fill(50)
    rig.truth.write(("group:a", 2, 0, int(Flag.LIVE), ""))
    await rig.boxes.page("alice", Query())
    rig.heads.cold = {"group:a"}
    rig.heads.changes += 1

    async def load(entries: object) -> None:
        rig.view().trim(0)

    rig.heads.load = load  # type: ignore[method-assign, assignment]
    found = await rig.boxes.conversation("alice", "direct:alice/2")
    assert found.entry == rig.truth.rows()["direct:alice/2"]
    assert msgpack.unpackb(found.encoded)[0] == "direct:alice/2"


async def test_memory_that_runs_short_while_the_past_is_read(make_rig: MakeRig) -> None:
    rig = make_rig(first_rows=5)
    rig.fill(30)
    await rig.boxes.page("alice", Query(limit=5))
    for n in range(4):
        rig.write(f"direct:alice/{n}", 100 + n)
    await rig.boxes.updates.settled()
    rig.boxes.drop("alice")
    view = await rig.boxes._view("alice", 34)
    since = rig.timeline.since

    async def slowly(user: str, after: int, upto: int) -> Changed:
        changed = await since(user, after, upto)
        rig.write("direct:alice/9", 200)
        view.trim(0)  # forgets what has just been said, and keeps changes from now on
        return changed

    rig.timeline.since = slowly  # type: ignore[method-assign]
    assert not await rig.boxes._fit("alice", view, rig.truth.page(TOP, 9, version=31))
    assert view.base == 35


@pytest.mark.parametrize("lag", [1, 4, 9])
async def test_the_rest_of_a_list_from_a_replica_that_lags(make_rig: MakeRig, lag: int) -> None:
    rig = make_rig(first_rows=5)
    rig.fill(30, unread=1)
    await rig.boxes.page("alice", Query(limit=5))
    for n in range(12):
        rig.write(f"direct:alice/{n % 4}", 100 + n, unread=n % 2)
    await rig.boxes.updates.settled()
    rig.boxes.drop("alice")
    rig.cold_tier.lag = lag  # the warm tier has the top, newer than this
    assert await rig.sessions(None, 42) == rig.truth.listed(rig.heads, "", False)
    assert (await rig.boxes.totals("alice")).unread == 28
    rig.boxes.drop("alice")
    rig.timeline.broken = True
    rig.cold_tier.lag = 0
    assert await rig.sessions(None, 42) == rig.truth.listed(rig.heads, "", False)


async def test_limits_are_checked(make_rig: MakeRig) -> None:
    rig = make_rig(flights_max=1)
    rig.fill(1)
    for limit in (0, -1, 501):
        with pytest.raises(BadRequest, match="limit"):
            await rig.boxes.page("alice", Query(limit=limit))
        with pytest.raises(BadRequest, match="limit"):
            await rig.boxes.delta("alice", 0, limit)
    rig.fill(1, user="bob")
    rig.cold.still.clear()
    ask = asyncio.ensure_future(rig.boxes.page("alice", Query()))
    await eventually(lambda: rig.cold.waiting == 1)
    with pytest.raises(Overloaded):
        await rig.boxes.page("bob", Query())
    rig.cold.still.set()
    await ask


async def test_memory_is_bounded(make_rig: MakeRig) -> None:
    rig = make_rig(rows_max=1_000, rows_kept=50, large_accounts=frozenset({"alice"}))
    rig.fill(600)
    await rig.sessions()
    assert rig.boxes.views.rows == 601
    for n in range(30):
        rig.fill(40, user=f"user-{n}")
        await rig.boxes.page(f"user-{n}", Query())
        assert rig.boxes.views.rows <= 1_000
    assert len(rig.view()) == 50
    assert await rig.sessions() == rig.truth.listed(rig.heads, "", False)
    for n in range(30):
        await rig.boxes.page(f"user-{n}", Query())
    assert rig.boxes.metrics.evicted > 0
    assert len(rig.view()) >= 50, "a large account is not dropped"


async def test_a_drift_is_found_and_counted(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(3, unread=2)
    assert rig.boxes.recount("alice") is None
    await rig.boxes.totals("alice")
    rig.view()._unread += 1
    recount = rig.boxes.recount("alice")
    assert recount is not None
    assert recount.drifted
    assert rig.boxes.metrics.drifts == 1
    assert (await rig.boxes.totals("alice")).unread == 6


# ---- tiers are told


async def test_the_warm_tier_follows_the_view(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(300)
    await rig.boxes.totals("alice")
    await rig.boxes.updates.settled()
    for n in range(40):
        rig.write(f"direct:alice/{n}", 1_000 + n, unread=1)
    rig.write("direct:alice/2", 0)
    await rig.boxes.updates.settled()
    counts = rig.boxes.metrics.tier("sqlite")
    assert counts.updates <= 8, "what came meanwhile was one update"
    copy = await rig.warm.first_page("alice", 1_000, 0)
    assert copy is not None
    assert copy.version == rig.truth.version
    assert copy.complete[Listing.UNREAD] == END
    rig.boxes.drop("alice")
    rig.cold.failing = True
    page = await rig.boxes.page("alice", Query(limit=100), 341)
    names = [entry.session for entry in page.entries]
    assert names == rig.truth.listed(rig.heads, "", False)[:100]


async def test_a_tier_that_lost_everything_gets_all_of_it_again(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(30)
    await rig.sessions()
    await rig.boxes.updates.settled()
    await rig.warm.drop("alice")
    rig.write("direct:alice/1", 100)
    await rig.boxes.updates.settled()
    copy = await rig.warm.first_page("alice", 100, 0)
    assert copy is not None
    assert copy.version == 31
    assert list(copy.entries) == rig.truth.static()


async def test_a_tier_that_fails_hears_of_it_later(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(30)
    await rig.sessions()
    await rig.boxes.updates.settled()
    rig.warm.failing = True
    for n in range(6):
        rig.write(f"direct:alice/{n}", 100 + n)
        await rig.boxes.updates.settled()
    assert rig.boxes.metrics.tier("sqlite").breaker_openings == 1
    rig.warm.failing = False
    rig.now_s += 60
    rig.write("direct:alice/9", 200)
    await rig.boxes.updates.settled()
    copy = await rig.warm.first_page("alice", 100, 0)
    assert copy is not None
    assert copy.version == 37
    assert list(copy.entries) == rig.truth.static()


async def test_a_tier_that_takes_updates_slowly_is_still_passed_over(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(3)
    await rig.sessions()
    await rig.boxes.updates.settled()
    guard = rig.boxes.hedge.guards[0]
    while not guard.breaker.is_open:
        guard.bad()
    rig.now_s += 60
    rig.warm.still.clear()
    rig.write("direct:alice/1", 100)
    await eventually(lambda: rig.warm.waiting == 1)
    rig.now_s += 2
    rig.warm.still.set()
    await rig.boxes.updates.settled()
    assert guard.breaker.is_open
    # And is asked again as soon as it is quick.
    rig.write("direct:alice/1", 101)
    await rig.boxes.updates.settled()
    assert not guard.breaker.is_open


async def test_slow_updates_are_told_once_a_minute(
    make_rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig()
    rig.fill(3)
    await rig.sessions()
    await rig.boxes.updates.settled()

    async def slow(rank: int, seconds: float) -> None:
        rig.warm.still.clear()
        rig.write("direct:alice/1", rank)
        await eventually(lambda: rig.warm.waiting == 1)
        rig.wall_ms += int(seconds * 1000)
        rig.warm.still.set()
        await rig.boxes.updates.settled()

    with caplog.at_level(logging.WARNING):
        await slow(100, 0.9)
        assert not caplog.records
        await slow(101, 1.5)
        await slow(102, 1.2)
        assert len(caplog.records) == 1
        rig.now_s += 61
        await slow(103, 4)
    assert len(caplog.records) == 2
    assert "4000 ms" in caplog.text
    metrics = rig.boxes.metrics
    assert (metrics.update_delay_ms, metrics.update_delay_ms_max, metrics.updates_slow) == (
        *(4_000, 4_000),
        3,
    )
    assert metrics.status()["tiers"]["sqlite"]["updates"] > 0


async def test_updates_that_wait_are_bounded(make_rig: MakeRig) -> None:
    rig = make_rig(updates=UpdateConfig(writers=1, waiting_max=2))
    users = [f"user-{n}" for n in range(6)]
    for user in users:
        rig.fill(1, user=user)
    for user in users:
        await rig.boxes.page(user, Query())
    await rig.boxes.updates.settled()
    rig.warm.still.clear()
    for user in users:
        rig.truths[user].write(("direct:x/y", 50, 0, 0, ""))
        rig.boxes.pushed(user, 2, 0, rig.truths[user].events[1])
    writer = rig.boxes.updates._writers[0]
    assert (len(writer.busy), len(writer.waiting)) == (1, 2)
    rig.warm.still.set()
    await rig.boxes.updates.settled()


# ---- in advance


async def test_large_accounts_are_there_before_the_first_ask(make_rig: MakeRig) -> None:
    rig = make_rig(large_accounts=frozenset({"alice"}), prewarm_rows=600)
    rig.fill(3_000, unread=1)
    rig.boxes.start()
    await eventually(lambda: rig.boxes.metrics.prewarmed == 1)
    asked = len(rig.cold_tier.asked)
    await rig.boxes.page("alice", Query(limit=500))
    assert (await rig.boxes.totals("alice")).unread == 3_000
    assert len(rig.cold_tier.asked) == asked


async def test_asking_for_the_total_loads_the_list_too(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.fill(300)
    await rig.boxes.totals("alice")
    asked = len(rig.cold_tier.asked)
    await rig.boxes.page("alice", Query())
    assert len(rig.cold_tier.asked) == asked


async def test_accounts_asked_for_often_are_loaded_further(make_rig: MakeRig) -> None:
    rig = make_rig(hot=HotConfig(asks=10), first_rows=50)
    rig.fill(2_000)
    for _ in range(9):
        await rig.boxes.page("alice", Query())
    assert len(rig.view()) == 50
    await rig.boxes.page("alice", Query())
    await eventually(lambda: rig.boxes.metrics.prewarmed == 1)
    assert len(rig.view()) >= 600


async def test_loads_in_advance_are_bounded(make_rig: MakeRig) -> None:
    rig = make_rig(prewarms=1, prewarms_waiting_max=3)
    rig.cold.still.clear()
    for n in range(6):
        rig.fill(1, user=f"user-{n}")
        rig.boxes.prewarm(f"user-{n}")
    await eventually(lambda: rig.cold.waiting == 1)
    assert rig.boxes.metrics.prewarms_dropped == 3
    rig.cold.still.set()
    await eventually(lambda: rig.boxes.metrics.prewarmed == 3)


def test_hot_accounts_fade_and_are_bounded() -> None:
    hot = HotAccounts(HotConfig(half_life_s=10, asks=10, accounts_max=100))
    assert [n for n in range(1, 30) if hot.asked("alice", 0.0)] == [10]
    assert not hot.asked("alice", 1.0)
    for _ in range(5):
        hot.asked("alice", 100.0)
    assert [n for n in range(1, 30) if hot.asked("alice", 100.0)] == [5], "it had cooled"
    for n in range(1_000):
        hot.asked(f"user-{n}", 101.0)
        assert len(hot) <= 100
    assert not hot.asked("alice", 101.0), "those asked for most are remembered"
    assert MailboxMetrics().status()["memory_hit_rate"] == 0.0


# ---- everything at once, against the model


class Storm:
    """Random changes, lost pushes and faults of all tiers; every answer has to be the model's."""

    def __init__(self, rig: Rig, seed: int, server: RedisServer | None = None) -> None:
        self.rng = Random(seed)
        self.world = World(self.rng)
        self.rig = rig
        self.server = server
        rig.truth = rig.truths["alice"] = self.world.truth
        rig.heads = self.world.heads

    async def step(self) -> None:
        rig, rng, truth = self.rig, self.rng, self.world.truth
        for _ in range(rng.randint(0, 5)):
            before = truth.version
            self.world.change()
            if truth.version > before and rng.random() < 0.8:
                rig.push(truth.version)
        fault = rng.random()
        if fault < 0.1:
            rig.boxes.drop("alice")
        elif fault < 0.2:
            rig.warm.failing = not rig.warm.failing
        elif fault < 0.3:
            rig.cold_tier.lag = rig.replicas.lag = rng.choice((0, 0, 2, 9))
        elif fault < 0.35:
            await rig.warm.inner.drop("alice")
        elif fault < 0.4 and rig.boxes.views.get("alice") is not None:
            rig.view().trim(rng.randint(0, 10))
        elif fault < 0.5 and self.server is not None:
            self.server.command(*rng.choice((("FLUSHALL",), ("SCRIPT", "FLUSH"))))
        elif fault < 0.55:
            await rig.boxes.updates.settled()
        elif fault < 0.6:
            rig.timeline.whole = not rig.timeline.whole
        elif fault < 0.65:
            await rig.warm.inner.put("alice", truth.page((-(1 << 62), ""), 5, truth.version // 2))
        rig.now_s += rng.choice((0, 0.1, 2))
        await asyncio.gather(self.disturb(), *(self.ask() for _ in range(rng.choice((1, 1, 4)))))

    async def disturb(self) -> None:
        """While others ask: a push that comes again or late, or memory that runs short."""
        for _ in range(self.rng.randint(0, 6)):
            await asyncio.sleep(0)
        if self.world.truth.version and self.rng.random() < 0.3:
            self.rig.push(self.rng.randint(1, self.world.truth.version))
        view = self.rig.boxes.views.get("alice")
        if view is not None and self.rng.random() < 0.2:
            view.trim(self.rng.randint(0, 10))

    async def ask(self) -> None:
        rig, rng, truth = self.rig, self.rng, self.world.truth
        label, unread_only = rng.choice(("", "", "shops")), rng.random() < 0.4
        query = Query(label, unread_only, limit=rng.randint(1, 12))
        expected = truth.shown(rig.heads, label, unread_only)
        assert await rig.shown(query, truth.version) == expected
        if rng.random() < 0.4:
            unread = sum(n for part in ("", "shops") for _, n in truth.shown(rig.heads, part, True))
            assert (await rig.boxes.totals("alice", truth.version)).unread == unread
        session = rng.choice(self.world.names)
        if rng.random() < 0.3:
            found = await rig.boxes.conversation("alice", session, truth.version)
            row = truth.rows().get(session)
            assert found.entry == (row if row is not None and row.value is not None else None)
        recount = rig.boxes.recount("alice")
        assert recount is None or not recount.drifted


@pytest.mark.parametrize("seed", range(10))
async def test_answers_are_right_whatever_the_tiers_do(make_rig: MakeRig, seed: int) -> None:
    rig = make_rig(first_rows=4, of_facts=seed % 2 == 1)
    storm = Storm(rig, seed)
    for _ in range(25):
        await storm.step()


# ---- a real Redis


def hot_rig(make_rig: MakeRig, server: RedisServer, **config: Any) -> Rig:
    return make_rig(RedisTier(server.url, "c", timeout_s=10), **config)


@pytest.mark.parametrize("seed", range(3))
async def test_answers_are_right_with_a_redis_that_forgets(
    make_rig: MakeRig, make_redis: MakeRedis, seed: int
) -> None:
    server = make_redis(appendonly="no")
    storm = Storm(hot_rig(make_rig, server, first_rows=4), seed, server)
    for _ in range(25):
        await storm.step()


async def hot_reader(
    make_rig: MakeRig, server: RedisServer, groups: int = 0, hedge: HedgeConfig = PATIENT
) -> Rig:
    """A gateway whose Redis has alice's list, with 30 unread, and whose memory has not."""
    rig = hot_rig(make_rig, server, hedge=hedge)
    rig.fill(30, unread=1)
    for n in range(groups):
        rig.truth.write((f"group:{n}", 31 + n, 0, int(Flag.LIVE), ""))
    await rig.boxes.totals("alice")
    await rig.boxes.updates.settled()
    while not rig.boxes.metrics.tier("redis").hits:
        rig.boxes.drop("alice")
        assert await rig.sessions() == rig.truth.listed(rig.heads, "", False)
    rig.boxes.drop("alice")
    return rig


async def right(rig: Rig) -> None:
    """The list is what it should be, also when memory has nothing."""
    for _ in range(4):
        rig.boxes.drop("alice")
        assert await rig.sessions(None, rig.truth.version) == rig.truth.listed(rig.heads, "", False)
        assert (await rig.boxes.totals("alice")).unread == 30


async def test_redis_killed_and_back_empty(make_rig: MakeRig, make_redis: MakeRedis) -> None:
    server = make_redis(appendonly="no")
    rig = await hot_reader(make_rig, server)
    server.kill()
    await right(rig)
    server.start()
    rig.now_s += 60
    await right(rig)
    await rig.boxes.updates.settled()
    rig.write("direct:alice/3", 100, unread=1)
    await rig.boxes.updates.settled()
    hits = rig.boxes.metrics.tier("redis").hits
    await right(rig)
    assert rig.boxes.metrics.tier("redis").hits > hits, "it is of use again"


async def test_redis_stands_still(make_rig: MakeRig, make_redis: MakeRedis) -> None:
    server = make_redis(appendonly="no")
    rig = await hot_reader(make_rig, server, hedge=FAST)
    server.pause()
    await right(rig)
    counts = rig.boxes.metrics.tiers
    assert sum(tier.hedges_won for tier in counts.values()) + counts["redis"].failed > 0
    server.resume()
    rig.now_s += 60
    await right(rig)
    await rig.boxes.updates.settled()
    await rig.boxes.hedge.close()
    # What was cancelled has been hung up: no more connections than can be in use, and the asker's.
    assert server.command("CLIENT", "LIST").count(b" addr=") <= 6


async def test_redis_with_a_version_of_long_ago(make_rig: MakeRig, make_redis: MakeRedis) -> None:
    server = make_redis(appendonly="no")
    rig = await hot_reader(make_rig, server)
    rig.fill(3, unread=1)
    rig.truth.write(("direct:alice/4", 500, 1, 0, ""))
    await right(rig)
    assert rig.boxes.metrics.tier("redis").stale > 0
    server.command("HSET", "im:{c:alice}:meta", "version", "7")
    await rig.warm.drop("alice")
    await right(rig)


async def test_redis_emptied_behind_our_back(make_rig: MakeRig, make_redis: MakeRedis) -> None:
    server = make_redis(appendonly="no")
    rig = await hot_reader(make_rig, server)
    server.command("FLUSHALL")
    await right(rig)


@pytest.mark.parametrize("kind", ["meta", "rows", "order", "live", "unread"])
async def test_redis_that_dropped_a_key(
    make_rig: MakeRig, make_redis: MakeRedis, kind: str
) -> None:
    server = make_redis(appendonly="no")
    rig = await hot_reader(make_rig, server, groups=2)
    assert server.command("DEL", f"im:{{c:alice}}:{kind}") == b":1\r\n"
    await rig.warm.drop("alice")
    await right(rig)
    await rig.boxes.updates.settled()
    assert rig.hot is not None
    copy = await rig.hot.first_page("alice", 100, 0)
    assert copy is not None
    assert len(copy.entries) >= 32, "it has everything again"
