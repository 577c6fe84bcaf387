"""The ledger: what was sent and ACKed, what readers saw, and whether the two agree.

It shares nothing with the code that it judges: only strings, numbers and bytes come in, and every
rule is written out again here. The names of the anomalies are Jepsen's:

    lost-write            ACKed, and not in the conversation when it is read at the end
    unseen                ACKed and in the conversation, but a follower never got it
    duplicate             one message at two places, or one place given to a reader twice
    inconsistent-offsets  a message is not where its ACK says, or two ACKs name one place
    poll-skip             a reader got seq k+2 after k: a gap
    nonmonotonic-poll     a reader got a lower seq after a higher one
    reordered             a sender's messages are not in the order in which they were sent
    wrong-content         the text differs, or nobody sent such a message
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

ANOMALIES_TOLD_MAX = 50
GAP_COUNTED_MAX = 100_000
"""A reader that jumps further has a gap of at least so many."""

Key = tuple[str, str, int]
"""(conversation, device address, the device's own number)."""


class Entry:
    """One message that a client accepted."""

    __slots__ = ("acked_s", "body", "copies", "epoch", "index", "key", "sender", "sent_s", "seq")

    def __init__(self, key: Key, sender: str, index: int, body: bytes, sent_s: float) -> None:
        self.key = key
        self.sender = sender
        """The sender in the file; several may share one client."""
        self.index = index
        """Grows with every send, so it is the order of sending."""
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
        self.repeated_keys: list[Key] = []
        self.followers: list[View] = []
        self.finals: list[View] = []

    def sent(
        self, conversation: str, device: str, n: int, sender: str, body: bytes, at_s: float
    ) -> Entry:
        """A client accepted a message and gave it number ``n``."""
        key = (conversation, device, n)
        entry = Entry(key, sender, len(self.entries) + len(self.repeated_keys), body, at_s)
        if key in self.entries:
            self.repeated_keys.append(key)
        self.entries[key] = entry
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
        return _Check(self).run()

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


class _Check:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._verdict = Verdict()
        self._found: dict[str, set[tuple[object, ...]]] = {
            name: set() for name in ("lost", "duplicated", "reordered", "gaps", "mismatched")
        }

    def run(self) -> Verdict:
        entries = self._ledger.entries
        self._check_acks()
        delivered: set[Key] = set()
        kept: set[Key] = set()
        for view in self._ledger.followers:
            delivered |= self._check_view(view)
        for view in self._ledger.finals:
            kept |= self._check_view(view)
        for key, entry in entries.items():
            if entry.acked_s is not None and not (key in kept and key in delivered):
                name = "unseen" if key in kept else "lost-write"
                self._note("lost", name, key, f"{_named(key)} was ACKed at seq {entry.seq}")
        verdict = self._verdict
        verdict.sent = len(entries)
        verdict.acked = sum(entry.acked_s is not None for entry in entries.values())
        verdict.received = len(delivered & entries.keys())
        for name, found in self._found.items():
            setattr(verdict, name, len(found))
        return verdict

    def _note(self, kind: str, name: str, what: tuple[object, ...], text: str) -> None:
        if what not in self._found[kind]:
            self._found[kind].add(what)
            if len(self._verdict.anomalies) < ANOMALIES_TOLD_MAX:
                self._verdict.anomalies.append(f"{name}: {text}")

    def _check_acks(self) -> None:
        """No place twice; a device's numbers and places in the order of its sends."""
        places: dict[tuple[str, int], Key] = {}
        last: dict[tuple[str, str], Entry] = {}
        for key in self._ledger.repeated_keys:
            self._note("mismatched", "inconsistent-offsets", key, f"{_named(key)} was given twice")
        for key, entry in self._ledger.entries.items():
            conversation, device, n = key
            before = last.get((conversation, device))
            if before is not None and n <= before.key[2]:
                self._note("reordered", "reordered", key, f"{_named(key)} came after a higher one")
            last[conversation, device] = entry
            if entry.acked_s is None:
                continue
            other = places.setdefault((conversation, entry.seq), key)
            if other != key:
                text = f"seq {entry.seq} was ACKed for {_named(other)} and for {_named(key)}"
                self._note("mismatched", "inconsistent-offsets", key, text)

    def _check_view(self, view: View) -> set[Key]:
        """The keys that the reader got."""
        self._check_numbers(view)
        places: dict[Key, int] = {}
        last: dict[str, tuple[int, int]] = {}
        for seen in sorted(view.events, key=lambda event: event.seq):
            key = (view.conversation, seen.device, seen.n)
            place = places.setdefault(key, seen.seq)
            if place != seen.seq:
                text = f"{_named(key)} is at seq {place} and at seq {seen.seq}"
                self._note("duplicated", "duplicate", (*key, seen.seq), text)
                continue
            entry = self._ledger.entries.get(key)
            if entry is None:
                text = f"nobody sent {_named(key)}, which is at seq {seen.seq}"
                self._note("mismatched", "wrong-content", key, text)
                continue
            self._check_content(view, entry, seen)
            index_before, seq_before = last.get(seen.device, (-1, 0))
            if entry.index < index_before and seen.seq > seq_before:
                text = f"{_named(key)} at seq {seen.seq} was sent before what is at {seq_before}"
                self._note("reordered", "reordered", key, text)
            last[seen.device] = (entry.index, seen.seq)
        return set(places)

    def _check_numbers(self, view: View) -> None:
        """A reader gets 1, 2, 3 …"""
        expected = 1
        had: set[int] = set()
        where = f"{view.reader} in {view.conversation!r}"
        for seen in view.events:
            seq = seen.seq
            if seq in had:
                text = f"{where} got seq {seq} again"
                self._note("duplicated", "duplicate", (view.conversation, seq), text)
            elif seq < expected:
                text = f"{where} got seq {seq} after {expected - 1}"
                self._note("reordered", "nonmonotonic-poll", (view.conversation, seq), text)
            else:
                for missing in range(expected, min(seq, expected + GAP_COUNTED_MAX)):
                    text = f"{where} got seq {seq} and not {missing}"
                    self._note("gaps", "poll-skip", (view.conversation, missing), text)
            had.add(seq)
            expected = max(expected, seq + 1)

    def _check_content(self, view: View, entry: Entry, seen: Seen) -> None:
        if seen.body != entry.body:
            text = f"{view.reader} got other bytes for {_named(entry.key)}"
            self._note("mismatched", "wrong-content", entry.key, text)
        if entry.acked_s is not None and seen.seq != entry.seq:
            text = f"{_named(entry.key)} was ACKed at seq {entry.seq} and read at seq {seen.seq}"
            self._note("mismatched", "inconsistent-offsets", entry.key, text)


def _named(key: Sequence[object]) -> str:
    conversation, device, n = key
    return f"message {n} of {device} in {conversation!r}"
