"""How the tiers follow the views: each change of a view is put into every tier that keeps copies.

Per tier and user one update is under way at a time, and what changes meanwhile is in the next one,
so a busy user costs few updates and an idle one has no delay. An update carries all rows that
changed since the version which the tier is known to have. A tier that lacks what came before gets
the view as a whole. Nothing waits for an update and nothing rests on one: a tier that was not told
is an old tier, and readers find out by its version.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from im_actors.errors import ImError
from im_actors.mailbox.hedging import Clock, Guard
from im_actors.mailbox.metrics import MailboxMetrics
from im_actors.mailbox.rows import Change, Copy
from im_actors.mailbox.tiers import Outcome, Tier
from im_actors.mailbox.view import MailboxView


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateConfig:
    writers: int = 4
    """Updates under way at a time, per tier."""
    waiting_max: int = 50_000
    """Users whose tier waits for an update; further ones are left out."""
    change_rows_max: int = 500
    """A change of more rows becomes a whole copy."""
    copy_rows_max: int = 2_000
    """Rows of a whole copy."""
    put_ms: float = 5_000.0
    """After so long an update has failed."""


class Updates:
    """All tiers that keep copies of views."""

    def __init__(
        self,
        guards: Sequence[Guard],
        view_of: Callable[[str], MailboxView | None],
        metrics: MailboxMetrics,
        config: UpdateConfig,
        clock: Clock = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._copy_rows_max = config.copy_rows_max
        self._writers = [
            _Writer(guard, view_of, metrics, config, clock, wall_ms) for guard in guards
        ]

    def loaded(self, user: str, tier: str, version: int) -> None:
        """A view was made from what ``tier`` has; the other tiers may want it."""
        for writer in self._writers:
            if writer.tier.name == tier:
                writer.confirmed[user] = version
            else:
                writer.confirmed.pop(user, None)
                writer.changed(user, 0)

    def grew(self, user: str, rows: int) -> None:
        """His view has more of his list than before: tiers that have room for it may want it."""
        if rows <= self._copy_rows_max:
            for writer in self._writers:
                writer.grown.add(user)
                writer.changed(user, 0)

    def changed(self, user: str, time_ms: int) -> None:
        """His view changed, by an event of that time."""
        for writer in self._writers:
            writer.changed(user, time_ms)

    def forget(self, user: str) -> None:
        """His view is gone, and with it what could be put."""
        for writer in self._writers:
            writer.confirmed.pop(user, None)
            writer.waiting.pop(user, None)
            writer.grown.discard(user)

    @property
    def idle(self) -> bool:
        return not any(writer.waiting or writer.busy for writer in self._writers)

    async def settled(self) -> None:
        """Return when every tier has been told everything, or has failed to be."""
        while tasks := [task for writer in self._writers for task in writer.busy.values()]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        for writer in self._writers:
            writer.waiting.clear()
        await self.settled()


class _Writer:
    """One tier's updates."""

    def __init__(
        self,
        guard: Guard,
        view_of: Callable[[str], MailboxView | None],
        metrics: MailboxMetrics,
        config: UpdateConfig,
        clock: Clock,
        wall_ms: Callable[[], int],
    ) -> None:
        self.tier: Tier = guard.tier
        self.confirmed: dict[str, int] = {}
        """Versions that the tier is known to have had, of users with a view."""
        self.waiting: dict[str, int] = {}
        """Users with changes to put, with the time of the oldest; 0: of no change."""
        self.grown: set[str] = set()
        """Users to be put as a whole."""
        self.busy: dict[str, asyncio.Task[None]] = {}
        self._guard = guard
        self._view_of = view_of
        self._metrics = metrics
        self._config = config
        self._clock = clock
        self._wall_ms = wall_ms

    def changed(self, user: str, time_ms: int) -> None:
        if user not in self.waiting and len(self.waiting) >= self._config.waiting_max:
            self.confirmed.pop(user, None)
            self.grown.discard(user)
            return
        self.waiting[user] = self.waiting.get(user, 0) or time_ms
        self._start()

    def _start(self) -> None:
        while len(self.busy) < self._config.writers:
            # Of the first few at most ``writers`` are busy.
            user = next((user for user in self.waiting if user not in self.busy), None)
            if user is None:
                return
            time_ms = self.waiting.pop(user)
            task = asyncio.get_running_loop().create_task(self._write(user, time_ms))
            self.busy[user] = task
            task.add_done_callback(partial(self._done, user))

    def _done(self, user: str, _: asyncio.Task[None]) -> None:
        del self.busy[user]
        self._start()

    async def _write(self, user: str, time_ms: int) -> None:
        if not self._guard.breaker.allows(self._clock()):
            self.confirmed.pop(user, None)
            return
        began_s = self._clock()
        try:
            async with asyncio.timeout(self._config.put_ms / 1000):
                taken = await self._put(user)
        except (ImError, OSError):
            # What became of it is unknown: the next update is a whole copy.
            self.confirmed.pop(user, None)
            self._guard.counts.failed += 1
            self._guard.bad()
            return
        self._guard.wrote(self._clock() - began_s)
        if taken and time_ms:
            delay_ms = max(0, self._wall_ms() - time_ms)
            self._metrics.updated(self.tier.name, delay_ms, self._clock())

    async def _put(self, user: str) -> bool:
        """Whether the tier has the view's version now."""
        view = self._view_of(user)
        if view is None:
            return False
        whole = user in self.grown
        self.grown.discard(user)
        if not whole:
            known = self.confirmed.get(user)
            if known == view.version:
                return True
            # Unknown: if the tier has what the view began with, the changes since then are enough.
            since = view.base if known is None else known
            change = view.changes(since, self._config.change_rows_max)
            if change is not None and await self._offer(user, change):
                return True
            view = self._view_of(user)
        return view is not None and await self._offer(
            user, view.snapshot(self._config.copy_rows_max)
        )

    async def _offer(self, user: str, update: Change | Copy) -> bool:
        """False: it lacks what came before."""
        put = await self.tier.put(user, update)
        counts = self._guard.counts
        counts.updates += 1
        counts.updates_late += put.outcome is Outcome.LATE
        counts.updates_whole += isinstance(update, Copy)
        if put.outcome is Outcome.GAP:
            self.confirmed.pop(user, None)
            return False
        if self._view_of(user) is not None:
            # Late: somebody else has told it at least as much.
            self.confirmed[user] = update.version
        return True
