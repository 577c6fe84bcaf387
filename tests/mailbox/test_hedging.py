"""Which tier is asked when, what wins, and that nothing is left behind."""

from __future__ import annotations

import asyncio

import pytest

from im_actors.errors import CorruptData, NotReachable
from im_actors.mailbox.hedging import Breaker, Found, Hedge, HedgeConfig, Latency
from im_actors.mailbox.metrics import MailboxMetrics
from im_actors.mailbox.rows import Copy
from im_actors.mailbox.tiers import Tier
from tests.mailbox.fakes import ColdTier, Faulty, Truth, eventually

CONFIG = HedgeConfig(delay_ms_min=1, delay_ms_max=5, delay_ms_unknown=2)
NEVER = HedgeConfig(delay_ms_min=60_000, delay_ms_max=60_000, delay_ms_unknown=60_000)


class Rig:
    """Three tiers that have everything, and may be made worse."""

    def __init__(self, config: HedgeConfig = CONFIG) -> None:
        self.truth = Truth()
        for n in range(5):
            self.truth.write((f"direct:a/{n}", n + 1, 0, 0, ""))
        self.now_s = 100.0
        self.metrics = MailboxMetrics()
        self.cold = [ColdTier({"alice": self.truth}, name) for name in ("hot", "warm", "cold")]
        self.hot, self.warm, self.last = self.tiers = [Faulty(tier) for tier in self.cold]
        self.hedge = Hedge(self.tiers, config, self.metrics, lambda: self.now_s)

    async def ask(self, at_least: int = 0) -> Found | None:
        return await self.hedge.ask("alice", first, at_least)

    def breaker(self, name: str) -> Breaker:
        return next(g.breaker for g in self.hedge.guards if g.tier.name == name)


async def first(tier: Tier) -> Copy | None:
    return await tier.first_page("alice", 10, 0)


async def test_the_nearest_answers_alone() -> None:
    rig = Rig(NEVER)
    found = await rig.ask()
    assert found is not None
    assert (found.tier, found.behind) == ("hot", False)
    assert [tier.calls for tier in rig.tiers] == [1, 0, 0]
    assert rig.metrics.tier("hot").hits == 1


async def test_a_slow_tier_is_overtaken_and_cancelled() -> None:
    rig = Rig()
    rig.hot.still.clear()
    found = await rig.ask()
    assert found is not None
    assert found.tier == "warm"
    await eventually(lambda: rig.hot.waiting == 0 and rig.hedge.losers == 0)
    assert len(asyncio.all_tasks()) == 1
    assert rig.metrics.tier("warm").hedges_started == 1
    assert rig.metrics.tier("warm").hedges_won == 1
    assert rig.metrics.tier("cold").hedges_started == 0


async def test_the_first_may_still_win_after_the_next_was_asked() -> None:
    rig = Rig()
    rig.hot.still.clear()
    rig.warm.still.clear()
    rig.last.still.clear()
    ask = asyncio.ensure_future(rig.ask())
    await eventually(lambda: rig.last.waiting == 1)
    rig.hot.still.set()
    found = await ask
    assert found is not None
    assert found.tier == "hot"
    assert rig.metrics.tier("cold").hedges_won == 0
    await eventually(lambda: rig.hedge.losers == 0)
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("how", ["failing", "stale", "without it"])
async def test_the_next_one_is_asked_at_once_when_that_is_certain(how: str) -> None:
    rig = Rig(NEVER)
    if how == "failing":
        rig.hot.failing = True
    elif how == "stale":
        rig.cold[0].lag = 1
    else:
        rig.cold[0].first_page = _nothing  # type: ignore[method-assign]
    found = await rig.ask(at_least=5)
    assert found is not None
    assert (found.tier, found.copy.version, found.behind) == ("warm", 5, False)
    counts = rig.metrics.tier("hot")
    assert (counts.failed, counts.stale, counts.misses) == (
        int(how == "failing"),
        int(how == "stale"),
        int(how == "without it"),
    )
    assert rig.metrics.tier("warm").hedges_started == 0


async def _nothing(user: str, limit: int, at_least: int) -> Copy | None:
    return None


async def test_the_newest_of_the_old_is_better_than_nothing() -> None:
    rig = Rig(NEVER)
    for tier, lag in zip(rig.cold, (3, 1, 2), strict=True):
        tier.lag = lag
    found = await rig.ask(at_least=5)
    assert found is not None
    assert (found.tier, found.copy.version, found.behind) == ("warm", 4, True)


async def test_only_the_last_tier_can_say_that_there_is_nothing() -> None:
    rig = Rig(NEVER)
    for tier in rig.cold:
        tier.first_page = _nothing  # type: ignore[method-assign]
    assert await rig.ask() is None
    rig.warm.failing = True
    assert await rig.ask() is None
    rig.warm.failing, rig.last.failing = False, True
    with pytest.raises(NotReachable, match="cold is broken"):
        await rig.ask()


async def test_an_ask_ends_in_time_and_leaves_nothing() -> None:
    rig = Rig(HedgeConfig(answer_ms=20, delay_ms_unknown=1))
    for tier in rig.tiers:
        tier.still.clear()
    with pytest.raises(NotReachable, match="in time"):
        await rig.ask()
    await rig.hedge.close()
    assert sum(tier.waiting for tier in rig.tiers) == 0
    assert len(asyncio.all_tasks()) == 1


async def test_an_asker_who_leaves_takes_his_asks_with_him() -> None:
    rig = Rig()
    for tier in rig.tiers:
        tier.still.clear()
    ask = asyncio.ensure_future(rig.ask())
    await eventually(lambda: rig.last.waiting == 1)
    ask.cancel()
    await asyncio.gather(ask, return_exceptions=True)
    await rig.hedge.close()
    assert sum(tier.waiting for tier in rig.tiers) == 0
    assert len(asyncio.all_tasks()) == 1


async def test_what_cannot_be_read_is_dropped() -> None:
    rig = Rig(NEVER)
    dropped: list[str] = []

    async def corrupt(user: str, limit: int, at_least: int) -> Copy | None:
        raise CorruptData("rubbish")

    async def drop(user: str) -> None:
        dropped.append(user)

    rig.cold[0].first_page = corrupt  # type: ignore[method-assign]
    rig.cold[0].drop = drop  # type: ignore[method-assign]
    found = await rig.ask()
    assert found is not None
    assert found.tier == "warm"
    assert dropped == ["alice"]


async def test_a_tier_that_fails_is_left_out_for_a_while() -> None:
    rig = Rig(NEVER)
    rig.hot.failing = True
    for _ in range(5):
        await rig.ask()
    assert rig.hot.calls == NEVER.failures_max
    assert rig.metrics.tier("hot").breaker_openings == 1
    rig.now_s += NEVER.open_ms_min / 1000
    await rig.ask()
    await rig.ask()
    assert rig.hot.calls == NEVER.failures_max + 1, "one trial"
    rig.now_s += NEVER.open_ms_min / 1000
    await rig.ask()
    assert rig.hot.calls == NEVER.failures_max + 1, "twice as long"
    rig.now_s += NEVER.open_ms_min / 1000
    rig.hot.failing = False
    for _ in range(2):
        found = await rig.ask()
        assert found is not None
        assert found.tier == "hot"


async def test_the_last_tier_is_asked_whatever_it_did() -> None:
    rig = Rig(NEVER)
    for tier in rig.tiers:
        tier.failing = True
    for _ in range(8):
        with pytest.raises(NotReachable):
            await rig.ask()
    assert [tier.calls for tier in rig.tiers] == [3, 3, 8]
    rig.last.failing = False
    found = await rig.ask()
    assert found is not None
    assert found.tier == "cold"


async def test_a_tier_that_stands_still_is_left_out_too() -> None:
    rig = Rig()
    rig.hot.still.clear()

    async def ask_and_wait() -> None:
        ask = asyncio.ensure_future(rig.ask())
        await eventually(lambda: rig.hot.waiting == 1 or ask.done())
        rig.now_s += 1  # much more than the delay
        await ask

    for _ in range(CONFIG.failures_max):
        await ask_and_wait()
    assert rig.breaker("hot").is_open
    assert rig.metrics.tier("hot").slow == CONFIG.failures_max
    calls = rig.hot.calls
    await rig.ask()
    assert rig.hot.calls == calls


def test_only_one_tries_a_tier_that_was_left_out() -> None:
    breaker = Breaker(CONFIG)
    for _ in range(CONFIG.failures_max):
        assert breaker.allows(0.0)
        breaker.bad(0.0)
    assert not breaker.allows(0.4)
    assert [breaker.allows(0.6) for _ in range(3)] == [True, False, False]
    breaker.undecided()
    assert breaker.allows(0.6)
    breaker.good()
    assert all(breaker.allows(0.6) for _ in range(3))


def test_the_time_that_a_breaker_is_open_has_a_bound() -> None:
    breaker, now_s = Breaker(CONFIG), 0.0
    for _ in range(CONFIG.failures_max):
        breaker.bad(now_s)
    for _ in range(20):
        now_s += CONFIG.open_ms_max / 1000
        assert breaker.allows(now_s)
        assert breaker.bad(now_s)
    assert not breaker.allows(now_s + CONFIG.open_ms_max / 1000 - 1)
    assert breaker.allows(now_s + CONFIG.open_ms_max / 1000)


def test_the_delay_is_the_95th_percentile_within_bounds() -> None:
    config = HedgeConfig(delay_ms_min=2, delay_ms_max=50, delay_ms_unknown=20)
    latency = Latency(config)
    assert latency.delay_s == 0.020
    for n in range(100):
        latency.add(0.001 * (n % 20))
    assert 0.017 <= latency.delay_s <= 0.019
    for _ in range(config.samples):
        latency.add(0.0001)
    assert latency.delay_s == 0.002
    for _ in range(config.samples):
        latency.add(3.0)
    assert latency.delay_s == 0.050
