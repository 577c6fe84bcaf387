"""What a run may suffer. Each seed draws a subset and its rates (swarm testing): with everything on
all the time, one fault would hide another."""

from __future__ import annotations

import random
from collections.abc import Iterable

COMMON = {
    # The network: chances per message, and per look at the troubles for the partitions.
    "drop": 0.05,
    "duplicate": 0.15,
    "delay": 0.08,
    "reorder": 0.5,
    "cut": 0.02,
    "partition": 0.5,
    "one_way": 0.4,
    # Processes: chances per look at the troubles.
    "crash_replica": 0.5,
    "crash_shard": 0.5,
    "crash_gateway": 0.4,
    "crash_controller": 0.4,
    "crash_client": 0.5,
    "crash_all": 0.06,
    "pause_replica": 0.3,
    "pause_shard": 0.4,
    "pause_gateway": 0.3,
    "pause_controller": 0.3,
    # Disks: chances per sync, read or apply; the last four per look at the troubles.
    "torn_batch": 0.02,
    "slow_sync": 0.1,
    "stuck_disk": 0.01,
    "slow_apply": 0.3,
    "bad_read": 0.05,
    "disk_full": 0.15,
    "wipe_disk": 0.15,
    "flip_journal": 0.1,
    "flip_history": 0.1,
    # The view store: chances per call; roll_back once.
    "store_slow": 0.2,
    "store_reply_lost": 0.3,
    "roll_back": 1.0,
    # The control plane: chances per look at the views.
    "second_controller": 0.5,
    "needless_take": 0.25,
    # Clients: chances per write, send or read.
    "slow_save": 0.2,
    "stray": 0.3,
    "forged": 0.2,
    "refusal": 0.03,
    "slow_reader": 0.2,
}
"""Kind -> the highest rate that is drawn."""
RARE = {
    "garbled": 0.02,
    "small_frames": 1.0,
    "slow_history": 0.3,
    "dead_disk": 0.1,
    "late": 0.1,
}
"""Drawn in every RARE_SEEDS-th seed only: what they disturb would hide what the others show."""
RARE_SEEDS = 5
OF_REGISTERS = {
    "slow_load": 0.3,
}
"""Only where sessions have rules."""
KINDS = {**COMMON, **RARE, **OF_REGISTERS}
ROLL_BACKS = 0.04
"""Share of the seeds in which the view store loses its last changes. It is to be noticed."""
LOSSES = ("wipe_disk", "flip_journal", "flip_history")
"""With a disk lost as well, nobody may be left who knows that the store went back."""


def kind_of(word: str) -> str:
    """The kind of a word like ``drop`` or ``drop=0.4``."""
    return word.partition("=")[0]


def _only(words: Iterable[str], rates: dict[str, float]) -> dict[str, float]:
    """Exactly these kinds, with the rates that the words say, or those that the seed has."""
    told = {kind_of(word): word.partition("=")[2] for word in words}
    return {kind: float(told[kind] or rate) for kind, rate in rates.items() if kind in told}


def rare(seed: int, rng: random.Random, only: Iterable[str] | None = None) -> dict[str, float]:
    """A seed's rates of the rare kinds."""
    rates = {kind: rng.uniform(0.1, 1.0) * top for kind, top in RARE.items()}
    chosen = {kind for kind in RARE if rng.random() < 0.5 and seed % RARE_SEEDS == 3}
    return _only(chosen if only is None else only, rates)


def of_registers(rng: random.Random, only: Iterable[str] | None = None) -> dict[str, float]:
    """A seed's rates of what only rules meet."""
    rates = {kind: rng.uniform(0.1, 1.0) * top for kind, top in OF_REGISTERS.items()}
    chosen = {kind for kind in OF_REGISTERS if rng.random() < 0.5}
    return _only(chosen if only is None else only, rates)


class Faults:
    """The rates of one run, and what was injected."""

    def __init__(self, rates: dict[str, float]) -> None:
        self.rates = rates
        self.counts: dict[str, int] = {}

    def rate(self, kind: str) -> float:
        return self.rates.get(kind, 0.0)

    def strikes(self, kind: str, rng: random.Random) -> bool:
        """Whether the fault happens now; it is counted."""
        rate = self.rates.get(kind)
        if not rate or rng.random() >= rate:
            return False
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return True

    def happened(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def heal(self) -> None:
        self.rates = {}


def duration_ms(rng: random.Random, longest_ms: float) -> float:
    """Mostly short: a cluster that is never whole commits nothing that could be lost."""
    return rng.uniform(20, longest_ms if rng.random() < 0.25 else min(800.0, longest_ms))


def swarm(rng: random.Random, only: Iterable[str] | None = None) -> dict[str, float]:
    """A seed's rates. ``only``: exactly these kinds, with the rates that the seed has for them, or
    with the one that stands behind the kind: ``drop=0.4``."""
    rates = {kind: rng.uniform(0.1, 1.0) * top for kind, top in COMMON.items()}
    chosen = {kind for kind in COMMON if rng.random() < 0.5}
    rolls_back = rng.random() < ROLL_BACKS
    if only is not None:
        return _only(only, rates)
    chosen.discard("roll_back")
    if rolls_back:
        chosen = (chosen | {"roll_back"}) - set(LOSSES)
        rates["roll_back"] = 1.0
    return {kind: rate for kind, rate in rates.items() if kind in chosen}
