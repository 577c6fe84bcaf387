"""Overload: twice of what a cluster can take, and whether it is well afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from im_actors.cli.bench.plan import Load
from im_actors.cli.bench.processes import Figures, Generators, Outcome
from im_actors.cli.bench.report import Curves, checked, described, measured, server_cpu
from im_actors.cli.bench.server_side import ServerSide
from im_actors.errors import OutOfOrder, Overloaded, RateLimited

OVER = 2.0
"""Offered, as a multiple of what the closed loop gave."""
CALM = 0.3
"""Offered before and after, in the same way."""
CLOSED_S = 10.0
CALM_S = 5.0
CALM_WARMUP_S = 1.0
WARMUP_S = 3.0
LOOK_S = 0.5
DEFINITE = {Overloaded.code, RateLimited.code}
FOLLOWING = OutOfOrder.code
"""What comes behind a refused message of a device is refused with it, by this code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """What is asked for."""

    load: Load
    window: int
    seconds: float
    burst: int
    """Messages that one connection sends at once: the closed loop, too, sends several."""

    @property
    def expected_s(self) -> float:
        """How long all of it takes, about."""
        return CLOSED_S + WARMUP_S + 2 * (CALM_S + CALM_WARMUP_S) + OVER * self.seconds


async def overload(
    asked: Overload,
    server: ServerSide | None,
    moved: Callable[[int, int], None],
    say: Callable[[str], None],
) -> tuple[dict[str, Any], Curves]:
    """The report of one run, without its surroundings, and its latencies."""
    load = asked.load
    parts = [load.part(number) for number in range(load.processes)]
    async with Generators(parts, server, moved) as generators:
        say("closed loop: how much it takes")
        best = await generators.phase(CLOSED_S, WARMUP_S, window=asked.window)
        say(f"{best.msgs_per_s:,.0f} msg/s; some of that, to know the latency")
        before = await generators.phase(
            CALM_S, CALM_WARMUP_S, CALM * best.msgs_per_s, burst=asked.burst
        )
        say(f"twice as much for {asked.seconds:g} s, then what was refused is sent again")
        memory = Memory(server)
        async with memory:
            during = await generators.phase(
                asked.seconds, 0.0, OVER * best.msgs_per_s, burst=asked.burst
            )
        say("the same as before")
        after = await generators.phase(
            CALM_S, CALM_WARMUP_S, CALM * best.msgs_per_s, burst=asked.burst
        )
        outcome = await generators.finish()
    report = {
        "mode": "overload",
        **described(load),
        "window": asked.window,
        "burst": asked.burst,
        "rate": round(OVER * best.msgs_per_s, 1),
        "seconds": asked.seconds,
        "best_msgs_per_s": round(best.msgs_per_s, 1),
        "best_server_cpu": server_cpu(best),
        **measured(during),
        "share_of_best": round(during.msgs_per_s / best.msgs_per_s, 3),
        "settled_s": round(during.settled_s, 1),
        "calm_ack_ms": {"before": before.ack.summary(), "after": after.ack.summary()},
        "refused": dict(during.refused),
        **refusals(during, outcome),
        "rss_bytes": memory.to_json(),
        **checked(outcome),
    }
    phases = {"before": before, "at twice the load": during, "after": after}
    return report, {f"ack, {name}": figures.ack for name, figures in phases.items()}


def refusals(during: Figures, outcome: Outcome) -> dict[str, Any]:
    """Whether each refusal says for sure that nothing happened, and when to come back."""
    others = {c: n for c, n in during.refused.items() if c not in DEFINITE and c != FOLLOWING}
    return {"refused_otherwise": others, "refused_without_wait": outcome.without_wait}


class Memory:
    """Looks at the memory of the servers for as long as it is entered."""

    def __init__(self, server: ServerSide | None) -> None:
        self._server = server
        self.before: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.after: dict[str, int] = {}

    async def __aenter__(self) -> Memory:
        self.before = self._look()
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self.after = self._look()

    def to_json(self) -> dict[str, dict[str, int]] | None:
        """Bytes of the processes of each kind together; None when they are not on this machine."""
        if self._server is None:
            return None
        return {"before": self.before, "max": self.most, "after": self.after}

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._look()

    def _look(self) -> dict[str, int]:
        now = self._server.usage().rss_bytes if self._server is not None else {}
        for kind, size in now.items():
            self.most[kind] = max(size, self.most.get(kind, 0))
        return now
