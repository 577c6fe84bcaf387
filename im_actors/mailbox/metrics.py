"""What the reading side counts, for status and alarms."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)

UPDATE_DELAY_MS_WARN = 1_000
WARN_EVERY_S = 60.0


@dataclass(slots=True)
class TierCounts:
    """One tier's."""

    hits: int = 0
    """Answers that could be used."""
    misses: int = 0
    """It does not have it."""
    stale: int = 0
    """It is older than what the asker has heard of."""
    failed: int = 0
    """Errors, reading and writing."""
    slow: int = 0
    """Another one was faster after this one had taken too long."""
    hedges_started: int = 0
    """It was asked because the one before was slow."""
    hedges_won: int = 0
    """And its answer came first."""
    breaker_openings: int = 0
    updates: int = 0
    updates_late: int = 0
    """Updates that came when it had a newer version."""
    updates_whole: int = 0
    """Updates that replaced everything of a user."""


@dataclass(slots=True)
class MailboxMetrics:
    """Of one gateway."""

    tiers: dict[str, TierCounts] = field(default_factory=dict)
    memory_hits: int = 0
    memory_misses: int = 0
    loads: int = 0
    shared: int = 0
    """Askers who waited for what another one was loading."""
    behind: int = 0
    """Answers older than what the asker had heard of, because nobody had a newer one."""
    heads_unknown: int = 0
    """Groups listed by an old head, because theirs could not be read."""
    evicted: int = 0
    trimmed: int = 0
    prewarmed: int = 0
    prewarms_dropped: int = 0
    drifts: int = 0
    """Recounts whose sums were not the kept ones."""
    update_delay_ms: int = 0
    """From the commit of a change to its being in a tier: the last one,"""
    update_delay_ms_max: int = 0
    """the greatest,"""
    updates_slow: int = 0
    """and how many took more than a second."""
    _warned_s: float | None = None

    def tier(self, name: str) -> TierCounts:
        return self.tiers.setdefault(name, TierCounts())

    def updated(self, tier: str, delay_ms: int, now_s: float) -> None:
        """A change is in a tier, so long after its commit. Warns above a second, once a minute."""
        self.update_delay_ms = delay_ms
        self.update_delay_ms_max = max(self.update_delay_ms_max, delay_ms)
        if delay_ms <= UPDATE_DELAY_MS_WARN:
            return
        self.updates_slow += 1
        if self._warned_s is None or now_s - self._warned_s >= WARN_EVERY_S:
            self._warned_s = now_s
            log.warning(
                "mailboxes: a change took %d ms to reach the tier %s (%d slow ones up to now)",
                delay_ms,
                tier,
                self.updates_slow,
            )

    def status(self) -> dict[str, Any]:
        """All of it, and the hit rates."""
        found = dataclasses.asdict(self)
        del found["_warned_s"]
        found["memory_hit_rate"] = _rate(self.memory_hits, self.memory_misses)
        for name, counts in self.tiers.items():
            missed = counts.misses + counts.stale + counts.failed + counts.slow
            found["tiers"][name]["hit_rate"] = _rate(counts.hits, missed)
        return found


def _rate(hits: int, others: int) -> float:
    return round(hits / (hits + others), 4) if hits + others else 0.0
