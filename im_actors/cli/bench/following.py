"""One reading connection, and what all of a generator's have read.

A follower does what the protocol asks of a reader (its section 7): it goes on by seq, holds back
what came early, and pulls what it lacks. What it reads is decoded once, however many followers get
the same bytes, and compared with what is known of that seq.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from array import array
from collections import defaultdict
from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from im_actors.cli.bench.wire import Wire, micros
from im_actors.errors import ImError
from im_actors.wire import messages as m
from im_actors.wire.codec import Message, encode_frame

if TYPE_CHECKING:
    from im_actors.cli.bench.generator import Generator

CHUNKS_MAX = 256
"""Chunks of bytes whose content is remembered, for the other followers that get the same."""
FOLLOW_SESSIONS_MAX = 1_000
PAGE_EVENTS = 500
PULLS_MAX = 8
"""PULLs of one connection that wait for their page."""
PULL_AGAIN_S = 0.1
DEVICE_BITS = 20
SLOW_BUFFER_BYTES = 4_096
BUFFER_BYTES = 4 * 1024 * 1024

_read_length = Struct(">I").unpack_from
_read_stamp = Struct(">Q").unpack_from


class Chunk(NamedTuple):
    """Bytes of a connection, decoded."""

    runs: list[tuple[str, int, int]]
    """Pushed events: session, first and last seq, without a hole between."""
    stamps: list[int]
    """When they were meant to be sent."""
    others: list[Message]
    """Messages that are no PUSH, in order; they follow the pushes."""
    rest: bytes
    """The start of a frame that is not complete."""


def _new_contents() -> array[int]:
    return array("q")


class Timelines:
    """Which message has which seq, as the followers read it."""

    def __init__(self, run: Generator) -> None:
        self.run = run
        self.contents: defaultdict[str, array[int]] = defaultdict(_new_contents)
        """Per session, at seq - 1: n, and in the lowest bits the device; 0: not read by anybody."""
        self._chunks: dict[bytes, Chunk] = {}
        self._remembers = run.load.followers > 1
        self._devices = {
            f"{run.load.user}/{run.load.device(number)}": number
            for number in range(run.load.connections)
        }
        self._filler = run.filler

    def chunk(self, data: bytes) -> Chunk:
        """Decode, or remember that it was decoded before."""
        if not self._remembers:
            return self._decode(data)
        known = self._chunks.get(data)
        if known is None:
            if len(self._chunks) >= CHUNKS_MAX:
                del self._chunks[next(iter(self._chunks))]
            known = self._chunks[data] = self._decode(data)
        return known

    def digest(self) -> str:
        """Names all that was read: two generators with the same sessions have to agree on it."""
        digest = hashlib.blake2b(digest_size=16)
        for session, contents in sorted(self.contents.items()):
            digest.update(session.encode())
            digest.update(contents.tobytes())
        return digest.hexdigest()

    def _decode(self, data: bytes) -> Chunk:
        events: list[bytes] = []
        others: list[Message] = []
        view = memoryview(data)
        at, size = 0, len(data)
        while size - at >= 4:
            end = at + 4 + _read_length(data, at)[0]
            if end > size:
                break
            message = msgpack.unpackb(view[at + 4 : end])
            if message[0] == m.PUSH:
                events += message[1]
            else:
                others.append(message)
            at = end
        return Chunk(*self.read(events), others, data[at:])

    def read(self, events: Sequence[bytes]) -> tuple[list[tuple[str, int, int]], list[int]]:
        """Take the contents of these events to the timelines: their runs and their stamps."""
        contents, devices, filler = self.contents, self._devices, self._filler
        runs: list[tuple[str, int, int]] = []
        stamps: list[int] = []
        unpacker = msgpack.Unpacker(max_buffer_size=0)
        unpacker.feed(b"".join(events))
        session, first, last = "", 0, 0
        for name, seq, _, kind, device, n, body in unpacker:
            if seq != last + 1 or name != session:
                if first:
                    runs.append((session, first, last))
                session, first = name, seq
            last = seq
            content = n << DEVICE_BITS | devices.get(device, -1)
            known = contents[name]
            if seq == len(known) + 1:
                known.append(content)
            else:
                self._put(name, seq, content)
            if kind != 1 or not body.endswith(filler):
                self.run.problem(f"{name} {seq} has another body than the one that was sent")
            stamps.append(_read_stamp(body)[0])
        if first:
            runs.append((session, first, last))
        return runs, stamps

    def _put(self, session: str, seq: int, content: int) -> None:
        known = self.contents[session]
        known.extend([0] * (seq - len(known)))
        if known[seq - 1] == 0:
            known[seq - 1] = content
        elif known[seq - 1] != content:
            self.run.problem(f"{session} {seq} was read with two contents")


class Follower(Wire):
    """Follows some sessions that one user may read, 1,000 at most."""

    def __init__(self, run: Generator, device: str, sessions: list[str]) -> None:
        super().__init__(device, run.load.reader(sessions[0]), run.load.token)
        self.run = run
        self.cursors = dict.fromkeys(sessions, 0)
        """Up to these seqs everything was read."""
        self.heads: dict[str, int] = {}
        """As the gateway told them last."""
        self.slow = False
        """It did not read for some time, so what it reads says nothing about the server."""
        self.repeated = 0
        """Events that came again although nothing was pulled."""
        self._timelines = run.timelines
        self._pending = b""
        self._early: dict[str, set[int]] = {}
        self._wanted: dict[str, None] = {}
        """Sessions that wait for their PULL, in order."""
        self._pulling: dict[int, str] = {}
        self._pulled: set[str] = set()
        self._request = 0

    def follow(self) -> None:
        self._transport.write(encode_frame(m.follow(list(self.cursors))))

    def stop_reading(self) -> None:
        self.slow = True
        # Else the kernel takes megabytes for it, and the gateway does not notice for a while.
        self._set_buffer(SLOW_BUFFER_BYTES)
        self._transport.pause_reading()

    def successor(self) -> Follower:
        """The same reader on another connection; it goes on where this one has come to."""
        other = Follower(self.run, self.device, list(self.cursors))
        other.cursors.update(self.cursors)
        other.slow, other.repeated = self.slow, self.repeated
        return other

    def go_on_reading(self) -> None:
        if self.slow and not self._transport.is_closing():
            self._set_buffer(BUFFER_BYTES)
            self._transport.resume_reading()

    def _set_buffer(self, size: int) -> None:
        with contextlib.suppress(OSError):
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    @property
    def followed(self) -> bool:
        """Whether all heads were told."""
        return len(self.heads) == len(self.cursors)

    def early(self, session: str) -> int:
        """Events that were read and whose turn has not come."""
        return len(self._early.get(session, ()))

    def data_received(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
        chunk = self._timelines.chunk(data)
        self._pending = chunk.rest
        if chunk.runs:
            self._advance(chunk.runs)
            self._count(chunk.stamps)
        for message in chunk.others:
            self._other(message)

    def failed(self, error: ImError) -> None:
        if self.slow:
            # A gateway may cut a client that does not read, and the client comes back.
            self.run.replace(self)
        else:
            self.run.problem(str(error))

    # ---- inside

    def _count(self, stamps: list[int]) -> None:
        run = self.run
        now = micros()
        run.arrived += len(stamps)
        if self.slow:
            return
        since = run.since
        if stamps[0] < since or stamps[-1] < since:
            stamps = [stamp for stamp in stamps if stamp >= since]
        run.delivery.raw += [now - stamp for stamp in stamps]

    def _advance(self, runs: list[tuple[str, int, int]]) -> None:
        cursors, early = self.cursors, self._early
        received = 0
        for session, first, last in runs:
            cursor = cursors[session]
            if first == cursor + 1 and not early:
                cursors[session] = last
                received += last - cursor
            else:
                self._out_of_turn(session, first, last)
        self.run.received += received

    def _out_of_turn(self, session: str, first: int, last: int) -> None:
        """A repeat, or early, or on time while others are early."""
        cursor = start = self.cursors[session]
        if first <= cursor and session not in self._pulled:
            self.repeated += min(last, cursor) - first + 1
        early = self._early.setdefault(session, set())
        early.update(range(max(first, cursor + 1), last + 1))
        while cursor + 1 in early:
            cursor += 1
            early.remove(cursor)
        self.cursors[session] = cursor
        self.run.received += cursor - start
        if early:
            self._want(session)
        else:
            del self._early[session]

    def _other(self, message: Message) -> None:
        kind = message[0]
        if kind == m.HEADS:
            for session, head in message[1]:
                self.heads[session] = max(head, self.heads.get(session, 0))
                if head > self.cursors[session]:
                    self._want(session)
        elif kind == m.EVENTS:
            self._page(message)
        else:
            self.rare(message)

    def _want(self, session: str) -> None:
        if session not in self._pulling.values():
            self._wanted[session] = None
            self._pull()

    def _pull(self) -> None:
        while self._wanted and len(self._pulling) < PULLS_MAX:
            session = next(iter(self._wanted))
            del self._wanted[session]
            self._pulled.add(session)
            self._request += 1
            self._pulling[self._request] = session
            self._transport.write(
                encode_frame(m.pull(self._request, session, self.cursors[session], 0, PAGE_EVENTS))
            )

    def _page(self, message: list[Any]) -> None:
        _, request, session, head, _, events = message
        del self._pulling[request]
        self.heads[session] = max(head, self.heads.get(session, 0))
        before = self.cursors[session]
        if events:
            runs, _ = self._timelines.read(events)
            self.run.pulled += len(events)
            self._advance(runs)
        if self.cursors[session] < self.heads[session] or session in self._early:
            if self.cursors[session] > before:
                self._want(session)
            else:
                # The copy that answered lags.
                asyncio.get_running_loop().call_later(PULL_AGAIN_S, self._want, session)
        self._pull()
