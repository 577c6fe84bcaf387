"""One framed connection: bytes in become messages, frames out become one write per loop turn.

Pure callbacks: a connection has no task, and no timer but the one that bounds its closing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, ClassVar, Protocol, cast

from im_actors.errors import ImError, NotReachable, Overloaded, ProtocolViolation
from im_actors.wire.codec import (
    ARRAY_ITEMS_MAX,
    FRAME_BYTES_MAX,
    FrameDecoder,
    Message,
    encode_frame,
)
from im_actors.wire.messages import error_message

CLOSE_LINGER_MS = 1_000
"""How long a closing connection waits for the peer to take the last frames and to close too."""
BUFFERED_BYTES_MAX = 64 * 1_048_576
"""A connection whose peer leaves more than this unread is cut. Users act long before it."""
WRITE_HIGH_BYTES = 256 * 1_024
KEEPALIVE_IDLE_S = 10
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_PROBES = 3


class Gate(Protocol):
    """What a listener does with the connections that it accepted."""

    def admit(self, connection: FramedProtocol) -> bool:
        """Count the connection in; False: it was closed instead, its hooks are never called."""

    def left(self, connection: FramedProtocol) -> None:
        """The connection is lost."""


class FramedProtocol(asyncio.Protocol):
    """A connection that speaks frames. Subclass it and override the hooks:

    ``opened()``                   once, when bytes can flow
    ``frames_received(messages)``  once per read, with all messages that it completed, never none
    ``violated(error)``            the peer broke the protocol; sends ERROR and closes, by default
    ``pause_writing()``, ``resume_writing()``  the peer reads slowly, or no longer (call super)
    ``on_closed(error)``           exactly once; None when either side closed in an orderly way

    An ``ImError`` raised by ``frames_received`` counts as a violation with this error. After
    ``close`` nothing is received any more. All of it runs in one event loop.
    """

    user_timeout_ms: ClassVar[int] = 10_000
    """How long sent bytes may stay unacknowledged by the peer's kernel (TCP_USER_TIMEOUT)."""
    buffered_bytes_max: ClassVar[int] = BUFFERED_BYTES_MAX

    def __init__(
        self, frame_bytes_max: int = FRAME_BYTES_MAX, array_items_max: int = ARRAY_ITEMS_MAX
    ) -> None:
        self._decoder = FrameDecoder(frame_bytes_max, array_items_max)
        self._feed = self._decoder.feed
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._error: ImError | None = None
        self._open = False
        self._lost = False
        self._closed_here = False
        self._receiving = False
        self._admitted = True
        self._waiter: asyncio.Future[None] | None = None
        self.peer_host = ""
        """The IP address at the other end; empty when there is none."""
        self.gate: Gate | None = None
        """Set by the listener before the connection is made."""
        self.writable = True
        """False between ``pause_writing`` and ``resume_writing``."""
        self.writes = 0
        """Writes so far; heartbeats look at whether it moved."""

    # ---- hooks

    def opened(self) -> None:
        """The connection is up."""

    def frames_received(self, messages: list[Message]) -> None:
        """Messages arrived."""
        raise NotImplementedError

    def violated(self, error: ImError) -> None:
        """The peer broke the protocol: tell it why and close."""
        self.close(encode_frame(error_message(error)), error)

    def on_closed(self, error: ImError | None) -> None:
        """The connection is gone, for good."""

    # ---- for users

    @property
    def is_open(self) -> bool:
        """Whether ``send`` still takes frames."""
        return self._open

    @property
    def made(self) -> bool:
        """Whether there was ever a connection, with TLS: a handshake that was completed."""
        return self._transport is not None

    @property
    def lost(self) -> bool:
        """Whether ``on_closed`` was called."""
        return self._lost

    @property
    def buffered_bytes(self) -> int:
        """Bytes that were sent here and that the kernel has not taken yet."""
        if self._transport is None:
            return self._queued_bytes
        return self._queued_bytes + self._transport.get_write_buffer_size()

    @property
    def peername(self) -> str:
        """The peer's address, for logs."""
        name = self._transport.get_extra_info("peername") if self._transport else None
        if isinstance(name, tuple) and len(name) >= 2:
            return f"{name[0]}:{name[1]}"
        return str(name or "unknown")

    def send(self, frame: bytes) -> bool:
        """Queue one or more encoded frames; they leave in order, in one write with the others of
        this read (from inside ``frames_received``) or of this turn of the loop (from elsewhere).
        False: the connection is closed and the frame was dropped."""
        if not self._open:
            return False
        if not self._queue and not self._receiving:
            assert self._loop is not None
            self._loop.call_soon(self._flush)
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        return True

    def send_now(self, frame: bytes) -> bool:
        """``send``, for who has gathered all that this turn is going to send: no further turn of
        the loop is waited for."""
        if not self._open:
            return False
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        if not self._receiving:
            self._flush()
        return True

    def close(self, final_frame: bytes = b"", error: ImError | None = None) -> None:
        """Close in order: what was sent before, and ``final_frame``, still reach a peer that
        reads. ``error`` is what ``on_closed`` will tell. A second close does nothing."""
        if not self._open:
            return
        if final_frame:
            self._queue.append(final_frame)
        self._flush()
        if not self._open:
            return
        self._open = False
        self._closed_here = True
        self._error = error
        self._decoder.forget()
        self._bound_closing()
        transport = self._transport
        assert transport is not None
        if not transport.can_write_eof():
            transport.close()
            return
        # Closing a socket that holds unread bytes makes the kernel send a reset, which can destroy
        # the last frame on its way. So: end our half, read until the peer ends its own.
        with contextlib.suppress(OSError, RuntimeError):
            transport.resume_reading()
        with contextlib.suppress(OSError, RuntimeError):
            transport.write_eof()

    def abort(self, error: ImError | None = None) -> None:
        """Close at once; what was not written yet is lost."""
        if self._lost or self._transport is None:
            return
        self._open = False
        self._closed_here = True
        self._error = self._error or error
        self._transport.abort()

    def pause_reading(self) -> None:
        """Stop reading, so that the peer's sends come to a stand; what was read is delivered."""
        if self._open and self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Undo ``pause_reading``."""
        if self._open and self._transport is not None:
            self._transport.resume_reading()

    async def wait_closed(self) -> None:
        """Return when ``on_closed`` was called."""
        if self._lost:
            return
        if self._waiter is None:
            self._waiter = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._waiter)

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's and the TLS transports do not inherit asyncio.Transport, so no isinstance here.
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self.peer_host = host_of(transport)
        tune_socket(self._transport.get_extra_info("socket"), self.user_timeout_ms)
        self._open = True
        self._admitted = self.gate is None or self.gate.admit(self)
        if self._admitted:
            self.opened()

    def data_received(self, data: bytes) -> None:
        if not self._open:
            return
        # Answers that are given at once leave at the end of this call and need no further turn of
        # the loop, which would cost a system call more than the write itself.
        self._receiving = True
        try:
            messages = self._feed(data)
            if messages:
                self.frames_received(messages)
            while self._decoder.greeting and self._open and (messages := self._feed(b"")):
                self.frames_received(messages)
            if self._decoder.error is not None:
                raise self._decoder.error
        except ImError as error:
            self.violated(error)
        finally:
            self._receiving = False
            self._flush()

    def eof_received(self) -> None:
        # Returning None makes asyncio write what is buffered and close.
        if self._open and self._decoder.pending_bytes:
            self._error = ProtocolViolation("the peer closed in the middle of a frame")
        self._flush()
        self._open = False
        self._bound_closing()

    def connection_lost(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._open = False
        self._lost = True
        self._queue.clear()
        self._queued_bytes = 0
        if self._linger is not None:
            self._linger.cancel()
        if self._error is None and error is not None and not self._closed_here:
            self._error = NotReachable(f"connection to {self.peername} lost: {error}")
        try:
            if self._admitted:
                self.on_closed(self._error)
        finally:
            if self.gate is not None:
                self.gate.left(self)
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True

    # ---- inside

    def _bound_closing(self) -> None:
        """A peer that neither reads nor closes must not keep the connection for ever."""
        if self._linger is None and self._loop is not None and self._transport is not None:
            self._linger = self._loop.call_later(CLOSE_LINGER_MS / 1000, self._transport.abort)

    def _flush(self) -> None:
        """Hand everything that this turn collected to the transport, in one write."""
        queue = self._queue
        if not queue or self._transport is None or self._lost:
            return
        data = queue[0] if len(queue) == 1 else b"".join(queue)
        self._queue = []
        self._queued_bytes = 0
        self.writes += 1
        self._transport.write(data)
        if not self.writable and self._transport.get_write_buffer_size() > self.buffered_bytes_max:
            self.abort(Overloaded(f"{self.peername} left {self.buffered_bytes_max} bytes unread"))


def host_of(transport: asyncio.BaseTransport) -> str:
    """The IP address at the other end; empty when there is none."""
    name = transport.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) and name else ""


def tune_socket(sock: Any, user_timeout_ms: int) -> None:
    """No delay for small writes, and a kernel that notices a peer which is gone.

    Heartbeats find it too, and sooner; this covers connections on which nothing waits for them.
    """
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    options = [
        (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", KEEPALIVE_PROBES),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", user_timeout_ms),
    ]
    for level, name, value in options:
        option = getattr(socket, name, None)
        if option is not None:
            # A platform may know the name and refuse the value; the heartbeats are still there.
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, value)
