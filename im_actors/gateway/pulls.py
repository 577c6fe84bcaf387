"""History reads: a PULL becomes a READ to one replica, or to another one when that does not do.

Any member of the slot's view has a true prefix of the session, perhaps an old one. The gateway says
the highest seq that it knows of; a replica that has less waits a moment for it, and if it still has
less, another one is asked. The best that came is what the client gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from im_actors.errors import ImError, NotReachable, Overloaded
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.peers import Peers, ReplicaPeer
from im_actors.wire.codec import encode_frame
from im_actors.wire.links import InsideType, pack_frame
from im_actors.wire.messages import Pull, events, fit_events

_READ = int(InsideType.READ)


class Reader(Protocol):
    """What this module knows of a client connection."""

    pulls: int
    """PULLs without an answer."""

    @property
    def buffered_bytes(self) -> int:
        """Bytes that it has not read yet."""

    def send(self, frame: bytes) -> bool:
        """Send encoded frames."""

    def page_sent(self, size: int) -> None:
        """A page was sent, of so many bytes: large ones are a part of what it may ask for."""


class Page(NamedTuple):
    last_seq: int
    """The session's last seq as the replica has it."""
    events: list[bytes]


class Read:
    """One PULL on its way."""

    __slots__ = ("asked", "best", "deadline_ms", "head", "pull", "reader", "replica", "slot")

    def __init__(self, reader: Reader, pull: Pull, slot: int, head: int) -> None:
        self.reader = reader
        self.pull = pull
        self.slot = slot
        self.head = head
        self.asked: list[ReplicaPeer] = []
        self.replica: ReplicaPeer | None = None
        """The one that is being asked."""
        self.deadline_ms = 0
        self.best: Page | None = None

    @property
    def needed(self) -> int:
        """The last seq that a replica must have to answer in full, as far as one can know here."""
        pull = self.pull
        if pull.before:
            return min(self.head, pull.before - 1)
        if pull.after >= 0:
            return min(self.head, pull.after + pull.limit)
        return self.head


class Pulls:
    """All PULLs without an answer. ``head_of`` tells the highest seq known of a session."""

    def __init__(self, peers: Peers, config: GatewayConfig, head_of: Callable[[str], int]) -> None:
        self._peers = peers
        self._config = config
        self._head_of = head_of
        self._reads: dict[int, Read] = {}
        """By the number of the READ, and so in the order of their deadlines."""
        self._number = 0
        self.answered = 0
        self.failed = 0
        self.asked_again = 0

    def __len__(self) -> int:
        return len(self._reads)

    def pull(self, reader: Reader, pull: Pull, now_ms: int) -> None:
        """Answer with EVENTS, soon."""
        head = self._head_of(pull.session)
        if reader.pulls >= self._config.pulls_per_connection:
            limit = self._config.pulls_per_connection
            self._fail(reader, pull, head, Overloaded(f"{limit} pulls of this connection wait"))
        elif len(self._reads) >= self._config.pulls_max:
            self._fail(reader, pull, head, Overloaded("too many pulls wait here"))
        elif not self._peers.slots:
            self._fail(reader, pull, head, NotReachable("this gateway is starting"))
        else:
            reader.pulls += 1
            self._ask(Read(reader, pull, self._peers.slot_of(pull.session), head), now_ms)

    def page(self, message: Sequence[Any], now_ms: int) -> None:
        """A replica's PAGE: [type, request, code, last_seq, events]."""
        _, number, code, last_seq, encoded = message
        read = self._take(number)
        if read is None:
            return
        if code == 0:
            page = Page(last_seq, encoded)
            if read.best is None or last_seq > read.best.last_seq:
                read.best = page
            if last_seq >= read.needed:
                self._answer(read, page)
                return
        self._ask(read, now_ms)

    def replica_down(self, replica: ReplicaPeer, now_ms: int) -> None:
        """Ask others what it was asked."""
        numbers = [number for number, read in self._reads.items() if read.replica is replica]
        for number in numbers:
            self._ask_next(number, now_ms)

    def tick(self, now_ms: int) -> None:
        """Pass over replicas that are too slow."""
        late = []
        for number, read in self._reads.items():
            if read.deadline_ms > now_ms:
                break
            late.append(number)
        for number in late:
            self._ask_next(number, now_ms)

    # ---- inside

    def _take(self, number: int) -> Read | None:
        read = self._reads.pop(number, None)
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
            pull = read.pull
            frame = pack_frame(
                (
                    *(_READ, self._number, pull.session),
                    *(pull.after, pull.before, pull.limit, read.head),
                )
            )
            if replica.send(frame):
                read.replica = replica
                read.deadline_ms = now_ms + self._config.read_ms
                replica.outstanding += 1
                self._reads[self._number] = read
                return
        self._give_up(read)

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

    def _give_up(self, read: Read) -> None:
        if read.best is not None:
            self._answer(read, read.best)
            return
        read.reader.pulls -= 1
        why = f"none of {len(read.asked)} replicas asked could answer"
        self._fail(read.reader, read.pull, read.head, NotReachable(why))

    def _answer(self, read: Read, page: Page) -> None:
        reader, pull = read.reader, read.pull
        reader.pulls -= 1
        head = max(read.head, page.last_seq)
        if reader.buffered_bytes > self._config.slow_reader_bytes:
            # It has not read what it pulled before; a page more would only lie here.
            self._fail(reader, pull, head, Overloaded("read the earlier pages first"))
            return
        newest = pull.before > 0 or pull.after < 0
        fitting = fit_events(page.events, self._config.limits.frame_bytes, newest)
        frame = encode_frame(events(pull.request, pull.session, head, fitting))
        reader.send(frame)
        reader.page_sent(len(frame))
        self.answered += 1

    def _fail(self, reader: Reader, pull: Pull, head: int, error: ImError) -> None:
        self.failed += 1
        reader.send(encode_frame(events(pull.request, pull.session, head, (), error.code)))
