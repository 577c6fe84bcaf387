"""One run from a seed, to its end or to the first difference."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from im_actors.core.model import EventKind
from tests.usermodel.cluster import Faulty
from tests.usermodel.days import Days
from tests.usermodel.town import Town

NAMES = ("ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal")


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    steps: int
    quiet: int
    """Steps between two quiet points."""
    users: int
    devices: int
    faults: tuple[str, ...]
    stores: bool = True

    def command(self) -> str:
        return (
            f"python -m tests.usermodel --seed {self.seed} --steps {self.steps} "
            f"--quiet {self.quiet} --users {self.users} --devices {self.devices} "
            f"--faults {','.join(self.faults)}"
        )


@dataclass(slots=True)
class Outcome:
    steps: int = 0
    asked: int = 0
    events: int = 0
    quiet_points: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    elapsed_s: float = 0.0
    failure: str = ""
    story: list[str] = field(default_factory=list)

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.steps + other.steps,
            self.asked + other.asked,
            self.events + other.events,
            self.quiet_points + other.quiet_points,
            self.faults + other.faults,
            self.elapsed_s + other.elapsed_s,
        )

    def fields(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "asked": self.asked,
            "events": self.events,
            "quiet_points": self.quiet_points,
            "faults": sum(self.faults.values()),
            "elapsed_s": round(self.elapsed_s, 1),
        }

    def summary(self) -> str:
        words = ", ".join(f"{value} {name}" for name, value in self.fields().items())
        return f"{'FAILED' if self.failure else 'ok'}: {words}"


async def run(plan: Plan, directory: Path) -> Outcome:
    rng = Random(plan.seed)
    stores = directory / "stores" if plan.stores else None
    if stores is not None:
        stores.mkdir()
    async with Faulty(directory, Random(rng.random())) as cluster:
        town = Town(cluster, NAMES[: plan.users], Random(rng.random()), stores)
        days = Days(town, Random(rng.random()), plan.faults)

        async def live(outcome: Outcome) -> None:
            await days.begin(plan.devices)
            while outcome.steps < plan.steps:
                steps = min(plan.quiet, plan.steps - outcome.steps)
                await days.run(steps)
                await town.rest()
                outcome.steps += steps
                outcome.quiet_points += 1

        return await carefully(town, live)


async def carefully(town: Town, live: Callable[[Outcome], Awaitable[None]]) -> Outcome:
    """To the end or to the first difference, with what led to it."""
    outcome, began = Outcome(), time.monotonic()
    try:
        await live(outcome)
    except Exception as error:  # whatever it is, its seed and its story are wanted
        outcome.failure = f"{type(error).__name__}: {error}"
        if not isinstance(error, AssertionError):
            outcome.failure += "\n" + traceback.format_exc()
        outcome.story = list(town.story)
    finally:
        for device in town.devices:
            if device.mode != "closed":
                await device.close(crash=True)
    outcome.asked = town.asked
    outcome.events = sum(
        line.kind != EventKind.NOTE for t in town.model.timelines.values() for line in t.lines
    )
    outcome.faults = Counter(" ".join(text.split()[:2]) for text in town.cluster.done)
    outcome.elapsed_s = time.monotonic() - began
    return outcome
