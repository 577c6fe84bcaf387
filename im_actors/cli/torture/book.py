"""What was sent and ACKed, by whom and when; the checkers hear of it here, in the right order."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable
from typing import Protocol

from im_actors.cli.torture.writer import body_of

MESSAGE = 1
RECENT = 200
"""Half of the old messages that are sent again are among so many that were ACKed last."""

Key = tuple[str, str, int]
"""(session, device address, n)."""


class SendHistory(Protocol):
    """The part of the checkers that senders need."""

    def sent(self, session: str, device: str, n: int, kind: int, body: bytes) -> None: ...

    def acked(
        self, session: str, device: str, n: int, seq: int, epoch: int = 0, copies: int = 3
    ) -> None: ...

    def refused(self, session: str, device: str, n: int) -> None: ...


class Entry:
    """One message."""

    __slots__ = ("acked_s", "kept", "key", "sent_s", "seq", "slot", "user")

    def __init__(self, key: Key, user: str, slot: int, sent_s: float) -> None:
        self.key = key
        self.user = user
        self.slot = slot
        self.sent_s = sent_s
        self.kept = False
        """Accepted: it has to arrive. What was only tried may."""
        self.acked_s: float | None = None
        self.seq = 0

    @property
    def body(self) -> bytes:
        session, _, n = self.key
        return body_of(self.user, session, n)


class Book:
    """All messages of a run."""

    def __init__(self, history: SendHistory, slots: int) -> None:
        self._history = history
        self._slots = slots
        self.entries: dict[Key, Entry] = {}
        self.acked_entries: list[Entry] = []
        self.refused_count = 0
        self.heads: dict[str, int] = {}
        """The highest seq that was ACKed in each session."""
        self.waiting: set[Key] = set()
        """Accepted and not answered."""
        self.unheard: set[Key] = set()
        """Answered, but whoever got the answer was killed: it has to be asked for again."""

    @property
    def sent(self) -> int:
        """Messages that were accepted."""
        return sum(entry.kept for entry in self.entries.values())

    @property
    def acked(self) -> int:
        return len(self.acked_entries)

    def tried(self, user: str, device: str, session: str, n: int, at_s: float) -> None:
        """It may be sent from now on. Again: it was not accepted before a crash."""
        key = (session, device, n)
        known = self.entries.get(key)
        if known is None:
            slot = zlib.crc32(session.encode()) % self._slots
            self.entries[key] = Entry(key, user, slot, at_s)
            self._history.sent(session, device, n, MESSAGE, body_of(user, session, n))
        elif known.acked_s is None:
            known.sent_s = at_s

    def kept(self, device: str, session: str, n: int) -> None:
        """It was accepted."""
        entry = self.entries[session, device, n]
        entry.kept = True
        if entry.acked_s is None:
            self.waiting.add(entry.key)

    def acked_at(
        self, device: str, session: str, n: int, seq: int, epoch: int, copies: int, at_s: float
    ) -> None:
        """It has an ACK; perhaps another one."""
        self._history.acked(session, device, n, seq, epoch, copies)
        entry = self.entries.get((session, device, n))
        if entry is None:
            return
        self.unheard.discard(entry.key)
        self.waiting.discard(entry.key)
        if entry.acked_s is None:
            entry.kept, entry.acked_s, entry.seq = True, at_s, seq
            self.acked_entries.append(entry)
            self.heads[session] = max(seq, self.heads.get(session, 0))

    def refused(self, device: str, session: str, n: int) -> None:
        """It was refused for good."""
        self._history.refused(session, device, n)
        self.waiting.discard((session, device, n))
        self.refused_count += 1

    def reopened(
        self, device: str, next_n: dict[str, int], pending: Iterable[tuple[str, int]]
    ) -> None:
        """A device starts again from its file: what the file has forgotten was ACKed, whether
        anybody heard of it or not."""
        has = {(session, device, n) for session, n in pending}
        for session, following in next_n.items():
            # Numbers are given in turn, so only the last ones can be open.
            for n in range(following - 1, 0, -1):
                entry = self.entries.get((session, device, n))
                if entry is None:
                    break
                if entry.acked_s is None:
                    entry.kept = True
                    self.waiting.add(entry.key)
                    if entry.key not in has:
                        self.unheard.add(entry.key)

    def some_acked(self, rng: random.Random) -> Entry | None:
        """An old message or a fresh one."""
        found = self.acked_entries
        if not found:
            return None
        return rng.choice(found[-RECENT:] if rng.random() < 0.5 else found)
