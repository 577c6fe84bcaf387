"""How long until it went on after a fault.

From the moment at which the fault was ordered to the first ACK of a message that was sent *after*
it was done, through what it hit: the slots of a shard or of a replica, the clients of a gateway.
ACKs that were already under way do not count. ``all_slots`` is when each slot that was hit has had
such an ACK.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from im_actors.cli.torture.book import Entry
from im_actors.cli.torture.schedule import EVERYTHING


@dataclass(eq=False, slots=True)
class Hit:
    """A fault that was injected."""

    kind: str
    target: str
    ordered_s: float
    done_s: float = 0.0
    slots: frozenset[int] = frozenset()
    """Those of the shard or the replica; empty: nothing can be said, any slot will do."""
    devices: frozenset[str] | None = None
    """Clients that were cut off; None: all."""
    during: str = ""
    """What was still being repaired when it came."""
    recovered_s: float | None = None
    """Seconds until the first ACK."""
    all_slots_s: float | None = None
    left: set[int] = field(default_factory=set)
    """Slots that have had no ACK yet."""

    def see(self, entry: Entry) -> None:
        """A message has its ACK."""
        assert entry.acked_s is not None
        if entry.sent_s < self.done_s or (self.slots and entry.slot not in self.slots):
            return
        if self.devices is not None and entry.key[1] not in self.devices:
            return
        took_s = entry.acked_s - self.ordered_s
        if self.recovered_s is None or took_s < self.recovered_s:
            self.recovered_s = took_s
        self.left.discard(entry.slot)
        if not self.left and self.all_slots_s is None:
            self.all_slots_s = took_s

    overtaken: bool = False
    """Before an ACK came, everything was stopped: how long it took says nothing of this fault."""

    @property
    def over(self) -> bool:
        return self.overtaken or (self.recovered_s is not None and self.all_slots_s is not None)


class Recovery:
    """All faults of a run and what has become of them."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.hits: list[Hit] = []
        self._say = say
        self._seen = 0

    def add(self, hit: Hit) -> None:
        """A fault was done; the same one again is fine."""
        if hit in self.hits:
            return
        if hit.kind in EVERYTHING:
            for other in self.hits:
                other.overtaken |= not other.over
        hit.left = set(hit.slots)
        self.hits.append(hit)

    def follow(self, acked: Sequence[Entry]) -> None:
        """Look at what was ACKed since the last time."""
        fresh = acked[self._seen :]
        self._seen = len(acked)
        for hit in self.hits:
            if hit.over or not hit.done_s:
                continue
            before = hit.recovered_s
            for entry in fresh:
                hit.see(entry)
            if before is None and hit.recovered_s is not None:
                self._say(
                    f"           {hit.kind} of {hit.target}: on after {hit.recovered_s:.2f} s"
                )

    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        counts: dict[str, int] = {}
        for hit in self.hits:
            counts[hit.kind] = counts.get(hit.kind, 0) + 1
        return dict(sorted(counts.items()))

    def to_json(self) -> dict[str, dict[str, Any]]:
        """By kind, in milliseconds. ``count`` are the faults after which a message was ACKed."""
        found: dict[str, dict[str, Any]] = {}
        for kind in self.counts():
            hits = [hit for hit in self.hits if hit.kind == kind]
            took = [hit.recovered_s for hit in hits if hit.recovered_s is not None]
            slots = [hit.all_slots_s for hit in hits if hit.all_slots_s is not None]
            found[kind] = {"count": len(took), **_figures(took), "all_slots": _figures(slots)}
        return found


def _figures(seconds: list[float]) -> dict[str, int | None]:
    if not seconds:
        return {"p50": None, "max": None}
    return {
        "p50": round(statistics.median(seconds) * 1000),
        "max": round(max(seconds) * 1000),
    }
