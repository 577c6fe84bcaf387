"""Virtual time and a network that drops, delays, duplicates, reorders and partitions."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

ROLL_BACKS = 0.04
"""Share of the seeds in which the view store loses its last changes. It is to be noticed."""


class Clock:
    """A heap of callbacks. Time passes only between them."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def later(self, delay_ms: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now_ms + max(0.0, delay_ms), self._count, call))

    def step(self) -> bool:
        if not self._heap:
            return False
        self.now_ms, _, call = heapq.heappop(self._heap)
        call()
        return True

    @property
    def now(self) -> int:
        """Whole milliseconds since the Unix epoch, as the machines want them."""
        return 1_700_000_000_000 + int(self.now_ms)


@dataclass
class Faults:
    """What a run may suffer; each seed draws a subset and its rates (swarm testing)."""

    drop: float = 0.0
    duplicate: float = 0.0
    slow: float = 0.0
    crash_replica: float = 0.0
    crash_shard: float = 0.0
    pause_shard: float = 0.0
    partition: float = 0.0
    one_way: float = 0.0
    wipe_disk: float = 0.0
    flip_bit: float = 0.0
    stuck_disk: float = 0.0
    slow_apply: float = 0.0
    torn_batch: float = 0.0
    slow_sync: float = 0.0
    store_slow: float = 0.0
    store_reply_lost: float = 0.0
    roll_back: float = 0.0
    needless_take: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)

    def happened(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def rates(self) -> dict[str, float]:
        return {k: v for k, v in vars(self).items() if isinstance(v, float) and v > 0}

    @classmethod
    def swarm(cls, rng: random.Random) -> Faults:
        ranges = {
            "drop": 0.08, "duplicate": 0.15, "slow": 0.15, "crash_replica": 0.6,
            "crash_shard": 0.6, "pause_shard": 0.4, "partition": 0.5, "one_way": 0.4,
            "wipe_disk": 0.15, "flip_bit": 0.1, "torn_batch": 0.02, "slow_sync": 0.1,
            "stuck_disk": 0.01, "slow_apply": 0.3, "store_slow": 0.4, "store_reply_lost": 0.4,
            "needless_take": 0.6,
        }  # fmt: skip
        chosen = {k: rng.uniform(0.1, 1.0) * top for k, top in ranges.items() if rng.random() < 0.5}
        if rng.random() < ROLL_BACKS:
            # With a disk lost as well, nobody may be left who knows that the store went back.
            chosen = {k: v for k, v in chosen.items() if k not in ("wipe_disk", "flip_bit")}
            chosen["roll_back"] = 1.0
        return cls(**chosen)

    def heal(self) -> None:
        for kind in self.rates():
            setattr(self, kind, 0.0)


class Network:
    """Delivers calls between named nodes, or does not."""

    def __init__(self, clock: Clock, rng: random.Random, faults: Faults) -> None:
        self.clock = clock
        self.rng = rng
        self.faults = faults
        self.blocked: set[tuple[str, str]] = set()

    def reachable(self, source: str, target: str) -> bool:
        return (source, target) not in self.blocked

    def send(self, source: str, target: str, call: Callable[[], None]) -> None:
        faults, rng = self.faults, self.rng
        if not self.reachable(source, target):
            return
        if faults.drop and rng.random() < faults.drop:
            faults.happened("drop")
            return
        copies = 1
        if faults.duplicate and rng.random() < faults.duplicate:
            faults.happened("duplicate")
            copies = 2
        for _ in range(copies):
            delay = rng.uniform(0.1, 2.0)
            if faults.slow and rng.random() < faults.slow:
                faults.happened("slow")
                delay = rng.uniform(5.0, 1_500.0)
            self.clock.later(delay, lambda: self._deliver(source, target, call))

    def _deliver(self, source: str, target: str, call: Callable[[], None]) -> None:
        if self.reachable(source, target):
            call()
