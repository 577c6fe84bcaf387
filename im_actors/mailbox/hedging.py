"""Hedged reads over tiers: the nearest is asked; if it takes longer than it usually does, the next
one is asked too. The first good answer wins, and the others are cancelled.

What is usual is the 95th percentile of a tier's last answers, within bounds. A tier that fails or
is too slow several times running is left out for a while (its breaker is open), then tried by one
asker. The last tier is always asked: it is the one that has everything.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from im_actors.errors import CorruptData, ImError, NotReachable
from im_actors.mailbox.metrics import MailboxMetrics
from im_actors.mailbox.rows import Copy
from im_actors.mailbox.tiers import Tier

Clock = Callable[[], float]
Ask = Callable[[Tier], Awaitable[Copy | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeConfig:
    samples: int = 128
    """Last answers of a tier from which the delay is derived."""
    delay_ms_min: float = 2.0
    """A tier has at least so long before the next one is asked too."""
    delay_ms_max: float = 50.0
    """And at most so long, however slow it has been."""
    delay_ms_unknown: float = 20.0
    """Before it has answered a few times."""
    failures_max: int = 3
    """Failures and slow answers running that open the breaker."""
    open_ms_min: float = 500.0
    """How long it is open the first time; it doubles while trials fail."""
    open_ms_max: float = 30_000.0
    answer_ms: float = 3_000.0
    """After so long an ask ends without an answer."""


class Latency:
    """The last answers' times of one tier."""

    def __init__(self, config: HedgeConfig) -> None:
        self._config = config
        self._samples: deque[float] = deque(maxlen=config.samples)
        self._delay_s = config.delay_ms_unknown / 1000
        self._fresh = 0

    def add(self, seconds: float) -> None:
        self._samples.append(seconds)
        self._fresh += 1
        if self._fresh >= 8:
            # Sorting for every answer would cost more than a few stale milliseconds do.
            self._fresh = 0
            config, ordered = self._config, sorted(self._samples)
            usual = ordered[len(ordered) * 95 // 100]
            self._delay_s = min(max(usual, config.delay_ms_min / 1000), config.delay_ms_max / 1000)

    @property
    def delay_s(self) -> float:
        """How long to wait for this tier before the next one is asked too."""
        return self._delay_s


class Breaker:
    """Whether a tier is asked at all."""

    def __init__(self, config: HedgeConfig) -> None:
        self._config = config
        self._failures = 0
        self._open_ms = config.open_ms_min
        self._until_s = 0.0
        self._trial = False
        self.is_open = False

    def allows(self, now_s: float) -> bool:
        """Ask only if it does, and tell the outcome: when the time is over, one may try."""
        if not self.is_open:
            return True
        if self._trial or now_s < self._until_s:
            return False
        self._trial = True
        return True

    def good(self) -> None:
        self._failures = 0
        self._open_ms = self._config.open_ms_min
        self._trial = self.is_open = False

    def undecided(self) -> None:
        """It was not given the time to answer."""
        self._trial = False

    def bad(self, now_s: float) -> bool:
        """Whether this opens it (again)."""
        self._failures += 1
        if not self.is_open and self._failures < self._config.failures_max:
            return False
        if self.is_open:
            if not self._trial:
                return False
            self._open_ms = min(self._open_ms * 2, self._config.open_ms_max)
        self._trial, self.is_open = False, True
        self._until_s = now_s + self._open_ms / 1000
        return True


class Guard:
    """A tier with what is known of its health."""

    def __init__(
        self, tier: Tier, config: HedgeConfig, metrics: MailboxMetrics, clock: Clock
    ) -> None:
        self.tier = tier
        self.latency = Latency(config)
        self.breaker = Breaker(config)
        self.counts = metrics.tier(tier.name)
        self._quick_s = config.delay_ms_max / 1000
        self._clock = clock

    def good(self) -> None:
        self.breaker.good()

    def wrote(self, seconds: float) -> None:
        """An update was taken, after so long. A tier that takes them slowly may answer slowly, too:
        that it takes them is no reason to let askers wait for it again."""
        if seconds <= self._quick_s:
            self.breaker.good()
        else:
            self.breaker.undecided()

    def bad(self) -> None:
        self.counts.breaker_openings += self.breaker.bad(self._clock())


class Found(NamedTuple):
    """An answer and who gave it. ``behind``: nobody had one that is new enough."""

    copy: Copy
    tier: str
    behind: bool


class Hedge:
    """Asks tiers, the nearest first."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        config: HedgeConfig,
        metrics: MailboxMetrics,
        clock: Clock = time.monotonic,
    ) -> None:
        self.guards = [Guard(tier, config, metrics, clock) for tier in tiers]
        self._config = config
        self._clock = clock
        self._losers: set[asyncio.Task[Copy | None]] = set()

    @property
    def losers(self) -> int:
        """Cancelled asks that have not ended yet."""
        return len(self._losers)

    async def ask(self, user: str, ask: Ask, at_least: int) -> Found | None:
        """The first answer that is at ``at_least`` or newer; without one, the newest there is;
        None: nobody has it, the last tier included. NotReachable: that one did not say."""
        race = _Race(self, user, ask, at_least)
        try:
            async with asyncio.timeout(self._config.answer_ms / 1000):
                return await race.run()
        except TimeoutError:
            race.errors.append("no answer in time")
            return race.rest()
        finally:
            race.release()
            self._cancel(race.running)

    async def close(self) -> None:
        """Return when nothing runs any more."""
        while self._losers:
            await asyncio.wait(set(self._losers))

    def allowed(self) -> list[Guard]:
        now = self._clock()
        *others, last = self.guards
        return [guard for guard in others if guard.breaker.allows(now)] + [last]

    def now(self) -> float:
        return self._clock()

    def _cancel(self, running: dict[asyncio.Task[Copy | None], _Lap]) -> None:
        """Those that lost. They are not waited for: nobody's answer depends on their end."""
        now = self._clock()
        for task, lap in running.items():
            guard, took = lap.guard, now - lap.started_s
            if took > guard.latency.delay_s:
                guard.counts.slow += 1
                guard.latency.add(took)
                guard.bad()
            else:
                guard.breaker.undecided()
            task.cancel()
            self._losers.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Copy | None]) -> None:
        self._losers.discard(task)
        if not task.cancelled():
            task.exception()


class _Lap(NamedTuple):
    """One tier's part in a race."""

    guard: Guard
    started_s: float
    hedge: bool


class _Race:
    """One ask."""

    def __init__(self, hedge: Hedge, user: str, ask: Ask, at_least: int) -> None:
        self.running: dict[asyncio.Task[Copy | None], _Lap] = {}
        self.errors: list[str] = []
        self._hedge = hedge
        self._user = user
        self._ask = ask
        self._at_least = at_least
        self._candidates = deque(hedge.allowed())
        self._best: Found | None = None
        self._denied = False

    async def run(self) -> Found | None:
        self._start(hedge=False)
        while self.running:
            wait_s = self._patience() if self._candidates else None
            done, _ = await asyncio.wait(
                self.running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                found = self._judge(task, self.running.pop(task))
                if found is not None:
                    return found
            if self._candidates and (not done or not self.running):
                self._start(hedge=not done)
        return self.rest()

    def rest(self) -> Found | None:
        """What there is when nobody can be asked any more."""
        if self._best is None and not self._denied:
            raise NotReachable("no tier can answer: " + "; ".join(self.errors))
        return self._best

    def _start(self, hedge: bool) -> None:
        guard = self._candidates.popleft()
        guard.counts.hedges_started += hedge
        task = asyncio.ensure_future(self._one(guard))
        self.running[task] = _Lap(guard, self._hedge.now(), hedge)

    async def _one(self, guard: Guard) -> Copy | None:
        try:
            return await self._ask(guard.tier)
        except CorruptData:
            # What cannot be read is not there; left as it is it would fail for ever.
            await guard.tier.drop(self._user)
            raise

    def _patience(self) -> float:
        """Until the one asked last has had its time."""
        lap = list(self.running.values())[-1]
        return max(0.0, lap.started_s + lap.guard.latency.delay_s - self._hedge.now())

    def _judge(self, task: asyncio.Task[Copy | None], lap: _Lap) -> Found | None:
        guard = lap.guard
        counts = guard.counts
        error = task.exception()
        if error is not None:
            if not isinstance(error, (ImError, OSError)):
                raise error
            counts.failed += 1
            guard.bad()
            self.errors.append(f"{guard.tier.name}: {error}")
            return None
        guard.latency.add(self._hedge.now() - lap.started_s)
        guard.good()
        copy = task.result()
        if copy is None:
            counts.misses += 1
            # What the last tier does not have does not exist, whatever the others might say.
            self._denied = self._denied or guard is self._hedge.guards[-1]
            return None
        if copy.version < self._at_least:
            counts.stale += 1
            if self._best is None or copy.version > self._best.copy.version:
                self._best = Found(copy, guard.tier.name, behind=True)
            return None
        counts.hits += 1
        counts.hedges_won += lap.hedge
        return Found(copy, guard.tier.name, behind=False)

    def release(self) -> None:
        """Those that were allowed and not asked."""
        while self._candidates:
            self._candidates.popleft().breaker.undecided()
