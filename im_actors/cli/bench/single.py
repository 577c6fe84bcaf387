"""One load, closed or open loop: what ``im-actors bench`` does unless it is told more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from im_actors.cli.bench.plan import Load
from im_actors.cli.bench.processes import Generators
from im_actors.cli.bench.report import Curves, checked, described, measured
from im_actors.cli.bench.server_side import ServerSide


@dataclass(frozen=True, slots=True, kw_only=True)
class Single:
    """What is asked for."""

    load: Load
    rate: float | None
    """None: closed loop."""
    window: int
    seconds: float
    warmup_s: float
    burst: int = 1


async def single(
    asked: Single, server: ServerSide | None, moved: Callable[[int, int], None]
) -> tuple[dict[str, Any], Curves]:
    """The report of one run, without its surroundings, and its latencies."""
    load = asked.load
    parts = [load.part(number) for number in range(load.processes)]
    async with Generators(parts, server, moved) as generators:
        figures = await generators.phase(
            asked.seconds, asked.warmup_s, asked.rate, asked.window, asked.burst
        )
        outcome = await generators.finish()
    report = {
        "mode": "closed" if asked.rate is None else "open",
        "window": asked.window,
        "rate": asked.rate,
        "burst": asked.burst,
        "seconds": asked.seconds,
        "warmup_s": asked.warmup_s,
        **described(load),
        **measured(figures),
        "refused": dict(figures.refused),
        **checked(outcome),
    }
    return report, {"ack": figures.ack, "delivery": figures.delivery}
