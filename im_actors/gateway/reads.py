"""Reads of what replicas hold: one is asked, or another one when that does not do.

Any member of a slot's view has a true prefix of what is committed, perhaps an old one. The asker
says the highest seq that it knows of; a replica that has less waits a moment for it, and if it
still has less, another one is asked. The best that came is the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from im_actors.errors import ImError, MonthAway, NotReachable, Overloaded
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.peers import Peers, ReplicaPeer
from im_actors.wire.codec import Message


class Found(NamedTuple):
    """What a replica answered: the session's last seq as it has it, and the rest of the frame."""

    last_seq: int
    rest: Message


class Read:
    """One question on its way."""

    __slots__ = (
        "asked",
        "away",
        "best",
        "deadline_ms",
        "done",
        "frame",
        "needed",
        "replica",
        "slot",
    )

    def __init__(
        self,
        slot: int,
        frame: Callable[[int], bytes],
        needed: int,
        done: Callable[[Found | ImError], None],
    ) -> None:
        self.slot = slot
        self.frame = frame
        """The frame that asks, under a number."""
        self.needed = needed
        """The last seq that a replica must have to answer in full, as far as one can know here."""
        self.done = done
        self.asked: list[ReplicaPeer] = []
        self.replica: ReplicaPeer | None = None
        """The one that is being asked."""
        self.deadline_ms = 0
        self.best: Found | None = None
        self.away = False
        """Whether one has said that what is asked for lies where it cannot be reached."""


class Reads:
    """All reads without an answer."""

    def __init__(self, peers: Peers, config: GatewayConfig) -> None:
        self._peers = peers
        self._config = config
        self._open: dict[int, Read] = {}
        """By number, and so in the order of their deadlines."""
        self._number = 0
        self.asked_again = 0

    def __len__(self) -> int:
        return len(self._open)

    def ask(
        self,
        session: str,
        frame: Callable[[int], bytes],
        needed: int,
        done: Callable[[Found | ImError], None],
        now_ms: int,
    ) -> None:
        """Ask the members of the session's slot. ``done`` is called once: with what was found, or
        with a retryable error, perhaps before this returns."""
        if len(self._open) >= self._config.pulls_max:
            done(Overloaded("too many reads wait here", self._config.retry_after_ms))
        elif not self._peers.slots:
            done(NotReachable("this gateway is starting", self._config.retry_after_ms))
        else:
            self._ask(Read(self._peers.slot_of(session), frame, needed, done), now_ms)

    def answered(self, message: Message, now_ms: int) -> None:
        """A replica's answer: [type, number, code, last_seq, ...]."""
        read = self._take(message[1])
        if read is None:
            return
        if message[2] == 0:
            found = Found(message[3], message[4:])
            if read.best is None or found.last_seq > read.best.last_seq:
                read.best = found
            if found.last_seq >= read.needed:
                read.done(found)
                return
        read.away |= message[2] == MonthAway.code
        self._ask(read, now_ms)

    def replica_down(self, replica: ReplicaPeer, now_ms: int) -> None:
        """Ask others what it was asked."""
        numbers = [number for number, read in self._open.items() if read.replica is replica]
        for number in numbers:
            self._ask_next(number, now_ms)

    def tick(self, now_ms: int) -> None:
        """Pass over replicas that are too slow."""
        late = []
        for number, read in self._open.items():
            if read.deadline_ms > now_ms:
                break
            late.append(number)
        for number in late:
            self._ask_next(number, now_ms)

    # ---- inside

    def _take(self, number: int) -> Read | None:
        read = self._open.pop(number, None)
        if read is not None and read.replica is not None:
            read.replica.outstanding -= 1
            read.replica = None
        return read

    def _ask_next(self, number: int, now_ms: int) -> None:
        read = self._take(number)
        if read is not None:
            self._ask(read, now_ms)

    def _ask(self, read: Read, now_ms: int) -> None:
        """Ask the next replica, or answer with what there is."""
        while len(read.asked) < self._config.read_tries:
            replica = self._choose(read)
            if replica is None:
                break
            self.asked_again += bool(read.asked)
            read.asked.append(replica)
            self._number += 1
            if replica.send(read.frame(self._number)):
                read.replica = replica
                read.deadline_ms = now_ms + self._config.read_ms
                replica.outstanding += 1
                self._open[self._number] = read
                return
        if read.best is not None:
            read.done(read.best)
        elif read.away:
            read.done(MonthAway("these events were moved to a disk that is not there now"))
        else:
            read.done(NotReachable(f"none of {len(read.asked)} replicas asked could answer"))

    def _choose(self, read: Read) -> ReplicaPeer | None:
        """The nearest of those not asked yet; among equals the least busy, then any in turn."""
        candidates = [r for r in self._peers.members(read.slot) if r not in read.asked]
        if not candidates:
            return None
        turn = self._number % len(candidates)
        host = self._config.host_label
        return min(
            candidates[turn:] + candidates[:turn],
            key=lambda replica: (not host or replica.host != host, replica.outstanding),
        )
