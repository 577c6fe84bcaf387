"""The names of what can go wrong, most of them Jepsen's, and a tally of what did.

What clients see:

    lost-write            ACKed, and not in the session when everything is read at the end
    unseen                ACKed and in the session, but a follower never got it
    duplicate             one message at two places, or one place given to a reader twice
    inconsistent-offsets  two messages for one place, or a message that is not where its ACK says
    ack-mismatch          two ACKs of one message name two places, or an ACK is for no message
    reorder               a device's messages are not in the order in which it sent them
    poll-skip             a reader got seq k+2 after k, and k+1 is a message
    nonmonotonic-poll     a reader got a lower seq after a higher one, or a source went back
    precommitted-read     somebody read what was not committed then, or is not there at the end
    wrong-content         the bytes differ from what was sent, or nobody sent such a message
    refused-write         refused for good and yet in the session: "unknown" was told as "failed"
    reused-number         a device gave one number to two messages

What disks hold:

    gap                   the committed seqs of a session are not 1, 2, 3 … along the log
    key-back              the message keys of a log go back
    epoch-back            the epochs of a log or of a view go back
    replica-divergence    two copies of a committed record differ, or one lacks it
    two-owners            two incarnations own a slot in one epoch
    commit-below-three    committed, believed committed or ACKed with fewer than three copies
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

NAMES = (
    "lost-write",
    "unseen",
    "duplicate",
    "inconsistent-offsets",
    "ack-mismatch",
    "reorder",
    "poll-skip",
    "nonmonotonic-poll",
    "precommitted-read",
    "wrong-content",
    "refused-write",
    "reused-number",
    "gap",
    "key-back",
    "epoch-back",
    "replica-divergence",
    "two-owners",
    "commit-below-three",
)
ANOMALIES_TOLD_MAX = 50

Key = tuple[str, int]
"""(device address, the device's own number): with its session it names a message for ever."""


class Anomaly(NamedTuple):
    """One broken promise, and the message that it concerns, if it is about one."""

    name: str
    text: str
    session: str | None = None
    key: Key | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


class Tally:
    """Counts each anomaly once, however many observations show it, and keeps the first in words."""

    def __init__(self, tell: Callable[[Anomaly], None] | None = None) -> None:
        self._tell = tell
        self._found: set[tuple[object, ...]] = set()
        self.counts: dict[str, int] = {}
        self.told: list[Anomaly] = []

    def note(
        self,
        name: str,
        what: tuple[object, ...],
        text: str,
        session: str | None = None,
        key: Key | None = None,
    ) -> None:
        """``what`` tells anomalies of one name apart."""
        assert name in NAMES, name
        if (name, *what) in self._found:
            return
        self._found.add((name, *what))
        self.counts[name] = self.counts.get(name, 0) + 1
        anomaly = Anomaly(name, text, session, key)
        if len(self.told) < ANOMALIES_TOLD_MAX:
            self.told.append(anomaly)
        if self._tell is not None:
            self._tell(anomaly)
