"""Which fault comes when: drawn from a seed, every kind once before any comes again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from im_actors.errors import SetupError

KINDS = {
    "kill-shard": "kill -9 of a shard",
    "kill-replica": "kill -9 of a replica",
    "kill-gateway": "kill -9 of a gateway",
    "kill-controller": "kill -9 of the controller",
    "pause-shard": "SIGSTOP of a shard, SIGCONT later; half of them after it was replaced",
    "pause-replica": "the same with a replica",
    "pause-gateway": "the same with a gateway",
    "pause-controller": "the same with the controller",
    "cut-clients": "all connections of clients are reset",
    "delay-clients": "one way in for clients is slow",
    "blackhole-clients": "one way in for clients swallows everything",
    "crash-writers": "kill -9 of a process of writing clients, which starts again from its files",
    "cut-links": "connections between actors are reset",
    "delay-links": "the links of one actor are slow",
    "hold-links": "a link stands still, one way or both, and delivers everything late",
    "blackhole-links": "a link swallows everything, one way or both",
    "kill-raylet": "kill -9 of a raylet; its actors notice, and its node comes back",
    "kill-node": "kill -9 of a node: the raylet and all of its actors",
    "orphan-node": "a raylet is killed while its actors are stopped; they wake up beside others",
    "empty-disk": "a replica comes back without its directory",
    "restart-all": "a clean stop of the cluster under load, then a start on the same data",
    "kill-all": "kill -9 of every process of the cluster, then a start on the same data",
}
"""What ``--faults`` knows."""
EVERYTHING = ("restart-all", "kill-all")
PATIENT = ("empty-disk", *EVERYTHING)
"""These wait until other faults are over."""
GAP_S = (4.0, 8.0)
"""Between two faults."""
DURING_SHARE = 0.35
"""So many faults come while the one before is still being repaired."""


class Planned(NamedTuple):
    """The next fault: its kind, how long after the one before, and whether it is to meet a
    takeover or a backfill in the middle."""

    kind: str
    gap_s: float
    during: bool


def parse_kinds(text: str) -> list[str]:
    """ "kill-shard,empty-disk" and so on; "all" and nothing mean all of them. A name that ends
    with a dash stands for all that begin so: "pause-"."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or names == ["all"]:
        return list(KINDS)
    chosen: list[str] = []
    for name in names:
        found = [k for k in KINDS if k == name or (name.endswith("-") and k.startswith(name))]
        if not found:
            raise SetupError(f"--faults knows {', '.join(KINDS)}, and not {name!r}")
        chosen += [kind for kind in found if kind not in chosen]
    return chosen


class Schedule:
    """An endless row of faults. One seed and one list of kinds give the same row."""

    def __init__(self, kinds: Sequence[str], rng: random.Random) -> None:
        assert kinds
        self._kinds = list(kinds)
        self._rng = rng
        self._deck: list[str] = []
        self._last = ""

    def next(self) -> Planned:
        if not self._deck:
            self._deck = self._kinds[:]
            self._rng.shuffle(self._deck)
            if len(self._deck) > 1 and self._deck[-1] == self._last:
                self._deck.insert(0, self._deck.pop())
        self._last = self._deck.pop()
        # Drawn in any case, so that what one fault does leaves the others as they are.
        gap_s, during = self._rng.uniform(*GAP_S), self._rng.random() < DURING_SHARE
        return Planned(self._last, gap_s, during)
