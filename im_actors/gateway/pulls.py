"""Pages of history: a PULL becomes a READ to a replica, and its PAGE the EVENTS for the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

from im_actors.errors import ImError, Overloaded
from im_actors.gateway.batch_reads import Contents
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.reads import Found, Reads
from im_actors.wire.codec import encode_frame
from im_actors.wire.links import InsideType, pack_frame
from im_actors.wire.messages import NUMBER_MAX, Pull, events, fit_events

_READ = int(InsideType.READ)


class Bounds(NamedTuple):
    """The events of a session that a reader may have."""

    first: int
    last: int


ALL = Bounds(1, NUMBER_MAX)


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


class Pulls:
    """All PULLs without an answer. ``head_of`` tells the highest seq known of a session."""

    def __init__(
        self,
        reads: Reads,
        contents: Contents,
        config: GatewayConfig,
        head_of: Callable[[str], int],
    ) -> None:
        self._reads = reads
        self._contents = contents
        self._config = config
        self._head_of = head_of
        self._tasks: set[asyncio.Task[None]] = set()
        self.waiting = 0
        self.answered = 0
        self.failed = 0

    def __len__(self) -> int:
        return self.waiting

    def has_room(self, reader: Reader) -> bool:
        """Whether one more of its PULLs may wait."""
        return reader.pulls < self._config.pulls_per_connection

    def refuse(self, reader: Reader, pull: Pull, error: ImError) -> None:
        """Answer without events."""
        self._fail(reader, pull, 0, error)

    def nothing(self, reader: Reader, pull: Pull, bounds: Bounds) -> None:
        """Answer that there is nothing there for this reader."""
        head = min(self._head_of(pull.session), bounds.last)
        answer = events(pull.request, pull.session, head, (), first=bounds.first)
        reader.send(encode_frame(answer))

    def pull(self, reader: Reader, pull: Pull, now_ms: int, bounds: Bounds = ALL) -> None:
        """Answer with EVENTS, soon. The pull is within the bounds, and the reader is told them."""
        head = self._head_of(pull.session)
        limit = self._config.pulls_per_connection
        if not self.has_room(reader):
            self._fail(reader, pull, head, Overloaded(f"{limit} pulls of this connection wait"))
            return

        def frame(number: int) -> bytes:
            return pack_frame(
                (_READ, number, pull.session, pull.after, pull.before, pull.limit, head)
            )

        def finish(outcome: Found | ImError) -> None:
            reader.pulls -= 1
            self.waiting -= 1
            if isinstance(outcome, Found):
                self._answer(reader, pull, head, outcome, bounds)
            else:
                self._fail(reader, pull, head, outcome)

        def done(outcome: Found | ImError) -> None:
            if isinstance(outcome, Found) and self._contents.concerned(pull.session):
                self._complete(pull, outcome, finish)
            else:
                finish(outcome)

        reader.pulls += 1
        self.waiting += 1
        self._reads.ask(pull.session, frame, _needed(pull, head), done, now_ms)

    async def close(self) -> None:
        """Return when nothing runs any more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- inside

    def _complete(
        self, pull: Pull, found: Found, finish: Callable[[Found | ImError], None]
    ) -> None:
        """Put whole contents in the place of heads, at once if they are known."""
        events = self._contents.ready(found.rest[0])
        if events is not None:
            finish(Found(found.last_seq, [events]))
            return
        task = asyncio.get_running_loop().create_task(self._read_contents(pull, found, finish))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_contents(
        self, pull: Pull, found: Found, finish: Callable[[Found | ImError], None]
    ) -> None:
        newest = _from_the_end(pull)
        events = found.rest[0]
        try:
            order = reversed(events) if newest else iter(events)
            whole = await self._contents.whole(order, self._config.limits.frame_bytes)
        except ImError as error:
            finish(error)
        else:
            finish(Found(found.last_seq, [whole[::-1] if newest else whole]))

    def _answer(self, reader: Reader, pull: Pull, head: int, found: Found, bounds: Bounds) -> None:
        head = min(max(head, found.last_seq), bounds.last)
        if reader.buffered_bytes > self._config.slow_reader_bytes:
            # It has not read what it pulled before; a page more would only lie here.
            self._fail(reader, pull, head, Overloaded("read the earlier pages first"))
            return
        frame_bytes = self._config.limits.frame_bytes
        fitting = fit_events(found.rest[0], frame_bytes, _from_the_end(pull))
        answer = events(pull.request, pull.session, head, fitting, first=bounds.first)
        frame = encode_frame(answer)
        reader.send(frame)
        reader.page_sent(len(frame))
        self.answered += 1

    def _fail(self, reader: Reader, pull: Pull, head: int, error: ImError) -> None:
        self.failed += 1
        reader.send(encode_frame(events(pull.request, pull.session, head, (), error.code)))


def _from_the_end(pull: Pull) -> bool:
    """Whether it asks for the newest events of its stretch."""
    return pull.before > 0 or pull.after < 0


def _needed(pull: Pull, head: int) -> int:
    """The last seq that a replica must have to answer in full, as far as one can know here."""
    if pull.before:
        return min(head, pull.before - 1)
    if pull.after >= 0:
        return min(head, pull.after + pull.limit)
    return head
