"""Fan-out: one session with many followers, some of which may not read for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from im_actors.cli.bench.plan import Load
from im_actors.cli.bench.processes import Generators
from im_actors.cli.bench.report import Curves, checked, described, measured
from im_actors.cli.bench.server_side import ServerSide
from im_actors.errors import SetupError

SENDERS = 4
"""Connections that send to the session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fanout:
    """What is asked for."""

    load: Load
    """Of all generators together; ``followers`` is the fan-out."""
    rate: float | None
    window: int
    seconds: float
    warmup_s: float
    slow: int
    """Followers that do not read in the second phase."""

    def validate(self) -> Fanout:
        if self.load.followers < 1:
            raise SetupError("--fanout must be at least 1")
        if not 0 <= self.slow < self.load.followers:
            raise SetupError("--slow-readers must be fewer than --fanout")
        return self

    def parts(self) -> Iterator[Load]:
        """One generator that sends, and others that read, so that neither waits for the other."""
        readers = min(self.load.processes, self.load.followers)
        senders = replace(self.load, sessions=1, connections=min(SENDERS, self.load.connections))
        yield replace(senders, processes=1, followers=0)
        for number in range(readers):
            share = self.load.followers // readers + (number < self.load.followers % readers)
            yield replace(senders, followers=share, number=number + 1, sends=False)


async def fan_out(
    fanout: Fanout, server: ServerSide | None, moved: Callable[[int, int], None]
) -> tuple[dict[str, Any], Curves]:
    """The report of one run, without its surroundings, and its latencies."""
    parts = list(fanout.parts())
    readers = len(parts) - 1
    drive = (fanout.seconds, fanout.warmup_s, fanout.rate, fanout.window)
    slow_figures = None
    async with Generators(parts, server, moved) as generators:
        figures = await generators.phase(*drive)
        if fanout.slow:
            slow_figures = await generators.phase(*drive, slow=-(-fanout.slow // readers))
        outcome = await generators.finish()
    if len(outcome.digests) > 1:
        outcome.wrong += 1
        outcome.problems.append("not all followers have read what the history has")
    report = {
        "mode": "fanout",
        "window": fanout.window,
        "rate": fanout.rate,
        "seconds": fanout.seconds,
        "warmup_s": fanout.warmup_s,
        **described(fanout.load),
        "connections": parts[0].connections,
        "sessions": 1,
        "followers_at": dict(generators.followers),
        "slow_readers": fanout.slow,
        **measured(figures),
        "with_slow_readers": slow_figures and measured(slow_figures),
        "refused": dict(figures.refused),
        **checked(outcome),
    }
    curves = {"ack": figures.ack, "delivery": figures.delivery}
    if slow_figures is not None:
        curves["delivery, with slow readers"] = slow_figures.delivery
    return report, curves
