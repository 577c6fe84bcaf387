"""What an owner knows of one session's state (design 5.4): facts that the tables said, and those of
newer events, which may not have committed yet.

A key that is not known is unknown, never absent. What is forgotten has to be in every table that
may be asked for it again: ``forget_settled`` says from which lsn on.
"""

from __future__ import annotations

from collections.abc import Iterable

from im_actors.core.facts import Fact
from im_actors.core.rules import EventHead, Needs

FACTS_KNOWN_MAX = 4_096
"""Facts of one session in memory; above it those that the tables hold are forgotten."""


class Knowledge:
    """``facts`` and ``events`` are what the rules look at; see ``rules.Known``."""

    __slots__ = ("_mark", "_seqs", "events", "facts")

    def __init__(self) -> None:
        self.facts: dict[str, Fact | None] = {}
        self.events: dict[int, EventHead | None] = {}
        """For the send that is being decided on; all others are asked for again."""
        self._seqs: dict[str, int] = {}
        """By key: the event that said it, 0 where there is none."""
        self._mark = (0, 0)
        """(seq, lsn): all up to this event is in this record or before it."""

    def __len__(self) -> int:
        return len(self._seqs)

    def said_at(self, key: str) -> int:
        """The seq of the event that said what is known of a key."""
        return self._seqs[key]

    def said(self, facts: Iterable[Fact]) -> None:
        """Take in facts; of each key the newest holds, whichever comes first."""
        seqs = self._seqs
        for fact in facts:
            if fact.seq >= seqs.get(fact.key, 0):
                seqs[fact.key] = fact.seq
                self.facts[fact.key] = None if fact.value is None else fact

    def loaded(self, keys: Iterable[str], facts: Iterable[Fact]) -> None:
        """The tables' answer to these keys: one that they have no fact of has none."""
        self.said(facts)
        for key in keys:
            if key not in self._seqs:
                self._seqs[key], self.facts[key] = 0, None

    def lacks(self, needs: Needs) -> Needs:
        """What of it is not known."""
        keys = [key for key in needs.keys if key not in self.facts]
        events = [seq for seq in needs.events if seq not in self.events]
        return Needs(tuple(dict.fromkeys(keys)), tuple(dict.fromkeys(events)))

    def forget_settled(self, committed_seq: int, last_lsn: int, applied_lsn: int) -> int:
        """Forget facts of which the tables with ``applied_lsn`` have the event; the lsn that others
        have to have applied from now on. ``last_lsn``: the record of ``committed_seq``."""
        settled = 0
        if last_lsn <= applied_lsn:
            self._mark = (committed_seq, last_lsn)
        seq, lsn = self._mark
        if lsn <= applied_lsn:
            for key in [key for key, said in self._seqs.items() if said <= seq]:
                del self._seqs[key], self.facts[key]
            settled, self._mark = lsn, (committed_seq, last_lsn)
        return settled
