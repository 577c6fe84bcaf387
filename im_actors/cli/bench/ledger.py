"""What was ACKed and what was read, held against each other. A run in which they do not agree is
void."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from im_actors.cli.bench.following import DEVICE_BITS

DEVICE_MASK = (1 << DEVICE_BITS) - 1
Sent = Mapping[str, "array[int]"]
"""Per session, at n - 1: the negative of the seq of message n; above 0: it has no ACK."""


@dataclass(slots=True)
class Ledger:
    """Counts of messages; those of ``received`` and below count once for each follower."""

    sent: int = 0
    acked: int = 0
    refused: int = 0
    """Refusals for now; each was followed by a resend."""
    unanswered: int = 0
    """Sent, and neither ACKed nor refused for good when the run ended."""
    received: int = 0
    lost: int = 0
    """ACKed, and not read at the seq of the ACK, or not read by one of the followers."""
    duplicated: int = 0
    """In a timeline twice, or pushed twice to one follower."""
    reordered: int = 0
    """In a timeline before an earlier message of the same device."""
    gaps: int = 0
    """Seqs that a follower was never given although it was given higher ones."""

    @property
    def sound(self) -> bool:
        wrong = (self.unanswered, self.lost, self.duplicated, self.reordered, self.gaps)
        return not any(wrong)

    def add(self, other: Mapping[str, int]) -> None:
        for name, count in other.items():
            setattr(self, name, getattr(self, name) + count)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_timelines(ledger: Ledger, contents: Mapping[str, array[int]]) -> None:
    """Each timeline by itself: once each, and those of one device in the order of n."""
    for timeline in contents.values():
        last: dict[int, int] = {}
        counts: Counter[int] = Counter()
        for content in timeline:
            if content == 0:
                continue
            n, device = content >> DEVICE_BITS, content & DEVICE_MASK
            before = last.get(device, 0)
            if n > before:
                last[device] = n
                continue
            counts = counts or Counter(timeline)
            if counts[content] > 1:
                ledger.duplicated += 1
            else:
                ledger.reordered += 1


def check_acks(
    ledger: Ledger, senders: Iterable[tuple[int, Sent]], contents: Mapping[str, array[int]]
) -> None:
    """Each ACK against the timeline; senders are (device, what it sent)."""
    nothing: array[int] = array("q")
    for device, sent in senders:
        for session, entries in sent.items():
            ledger.sent += len(entries)
            timeline = contents.get(session, nothing)
            length = len(timeline)
            for index, entry in enumerate(entries):
                if entry > 0:
                    ledger.unanswered += 1
                    continue
                ledger.acked += 1
                content = index + 1 << DEVICE_BITS | device
                if -entry > length or timeline[-entry - 1] != content:
                    ledger.lost += 1


def check_cursor(ledger: Ledger, cursor: int, early: int, length: int) -> None:
    """One follower of one session: where it has come to, how many events it holds back for want of
    earlier ones, and how long the timeline is."""
    if early:
        ledger.gaps += 1
    ledger.lost += max(0, length - cursor - early)
