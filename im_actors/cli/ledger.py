"""The ledger: what was sent and ACKed, what readers saw, and the figures of a run.

Whether the two agree is judged by ``im_actors.proof``, whose module ``anomalies`` says what each
name means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from im_actors.proof import ClientHistory

MESSAGE = 1
COUNTED_AS = {
    "lost-write": "lost",
    "unseen": "lost",
    "duplicate": "duplicated",
    "reorder": "reordered",
    "nonmonotonic-poll": "reordered",
    "poll-skip": "gaps",
}
"""The number of the verdict that an anomaly adds to; the others are ``mismatched``."""

Key = tuple[str, str, int]
"""(conversation, device address, the device's own number)."""


class Entry:
    """One message that a client accepted."""

    __slots__ = ("acked_s", "body", "copies", "epoch", "key", "sender", "sent_s", "seq")

    def __init__(self, key: Key, sender: str, body: bytes, sent_s: float) -> None:
        self.key = key
        self.sender = sender
        """The sender in the file; several may share one client."""
        self.body = body
        self.sent_s = sent_s
        self.acked_s: float | None = None
        self.seq = 0
        self.epoch = 0
        self.copies = 0


class Seen(NamedTuple):
    """One event as a reader got it."""

    seq: int
    device: str
    n: int
    body: bytes
    at_s: float


@dataclass(slots=True)
class View:
    """What one reader got of one conversation, in the order in which it got it."""

    reader: str
    conversation: str
    events: list[Seen] = field(default_factory=list)

    @property
    def last_seq(self) -> int:
        return self.events[-1].seq if self.events else 0


@dataclass(slots=True)
class Verdict:
    """What the ledger found. Each number counts distinct messages or places, however many readers
    met them."""

    sent: int = 0
    acked: int = 0
    received: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    gaps: int = 0
    mismatched: int = 0
    anomalies: list[str] = field(default_factory=list)
    """The first of them, in words."""

    @property
    def ok(self) -> bool:
        wrong = self.lost + self.duplicated + self.reordered + self.gaps + self.mismatched
        return wrong == 0 and self.acked == self.sent


class Ledger:
    """Keeps the book during a run and checks it afterwards."""

    def __init__(self) -> None:
        self.entries: dict[Key, Entry] = {}
        self._sends: list[Entry] = []
        """In the order of sending, also those whose key another one has taken."""
        self.followers: list[View] = []
        self.finals: list[View] = []

    def sent(
        self, conversation: str, device: str, n: int, sender: str, body: bytes, at_s: float
    ) -> Entry:
        """A client accepted a message and gave it number ``n``."""
        key = (conversation, device, n)
        entry = self.entries[key] = Entry(key, sender, body, at_s)
        self._sends.append(entry)
        return entry

    @staticmethod
    def acked(entry: Entry, seq: int, epoch: int, copies: int, at_s: float) -> None:
        """The receipt of a message."""
        assert entry.acked_s is None, f"{entry.key} was booked twice"
        entry.seq, entry.epoch, entry.copies, entry.acked_s = seq, epoch, copies, at_s

    def follower(self, reader: str, conversation: str) -> View:
        """A reader that follows from the beginning."""
        self.followers.append(View(reader, conversation))
        return self.followers[-1]

    def final(self, reader: str, conversation: str) -> View:
        """A fresh reader of the whole history, after everything has come to rest."""
        self.finals.append(View(reader, conversation))
        return self.finals[-1]

    def check(self) -> Verdict:
        """Compare everything."""
        history = ClientHistory()
        for entry in self._sends:
            history.sent(*entry.key, MESSAGE, entry.body)
            if entry.acked_s is not None:
                history.acked(*entry.key, entry.seq, entry.epoch, entry.copies)
        delivered: set[Key] = set()
        for view in self.followers:
            history.following(view.reader, view.conversation)
            for seq, device, n, kind, body in _shown(view):
                history.delivered(view.reader, view.conversation, seq, device, n, kind, body)
                delivered.add((view.conversation, device, n))
        for view in self.finals:
            history.final_read(view.conversation, _shown(view), view.reader)
        history.finish()
        return self._verdict(history, len(delivered & self.entries.keys()))

    def _verdict(self, history: ClientHistory, received: int) -> Verdict:
        acked = sum(entry.acked_s is not None for entry in self.entries.values())
        verdict = Verdict(len(self.entries), acked, received)
        for name, count in history.counts.items():
            number = COUNTED_AS.get(name, "mismatched")
            setattr(verdict, number, getattr(verdict, number) + count)
        verdict.anomalies = [str(anomaly) for anomaly in history.anomalies]
        return verdict

    # -- figures ---------------------------------------------------------------------------------

    def ack_ms(self) -> list[float]:
        return [
            (entry.acked_s - entry.sent_s) * 1000
            for entry in self.entries.values()
            if entry.acked_s is not None
        ]

    def delivery_ms(self) -> list[float]:
        """From the send to the first follower that had it."""
        first: dict[Key, float] = {}
        for view in self.followers:
            for seen in view.events:
                key = (view.conversation, seen.device, seen.n)
                first[key] = min(seen.at_s, first.get(key, math.inf))
        return [
            (at_s - self.entries[key].sent_s) * 1000
            for key, at_s in first.items()
            if key in self.entries
        ]


def quantiles(values: Iterable[float]) -> dict[str, float | None]:
    """p50, p99 and max by nearest rank, rounded to a hundredth; None without values."""
    ranked = sorted(values)
    if not ranked:
        return {"p50": None, "p99": None, "max": None}

    def rank(share: float) -> float:
        return round(ranked[max(0, math.ceil(share * len(ranked)) - 1)], 2)

    return {"p50": rank(0.5), "p99": rank(0.99), "max": round(ranked[-1], 2)}


def _shown(view: View) -> Iterable[tuple[int, str, int, int, bytes]]:
    # Readers are shown messages only.
    return ((seen.seq, seen.device, seen.n, MESSAGE, seen.body) for seen in view.events)
