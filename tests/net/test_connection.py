"""Framed connections over real sockets; the peer is a plain socket that the test holds in hand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from im_actors.errors import BadRequest, ImError, NotReachable, Overloaded, ProtocolViolation
from im_actors.net import connection as module
from im_actors.net.connection import FramedProtocol
from im_actors.wire.codec import FrameDecoder, encode_frame
from im_actors.wire.messages import ERROR


class Recorder(FramedProtocol):
    """Keeps what the hooks heard."""

    def __init__(self, **limits: int) -> None:
        super().__init__(**limits)
        self.reads: list[list[list[Any]]] = []
        self.closings: list[ImError | None] = []
        self.pauses: list[str] = []
        self.changed = asyncio.Event()
        self.on_messages: Callable[[list[list[Any]]], None] = lambda messages: None

    def opened(self) -> None:
        self.changed.set()

    def frames_received(self, messages: list[list[Any]]) -> None:
        self.reads.append(messages)
        self.changed.set()
        self.on_messages(messages)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.pauses.append("pause")
        self.changed.set()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.pauses.append("resume")
        self.changed.set()

    def on_closed(self, error: ImError | None) -> None:
        self.closings.append(error)
        self.changed.set()

    @property
    def messages(self) -> list[list[Any]]:
        return [message for read in self.reads for message in read]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Peer:
    """The other end: a socket without any protocol."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.sock, data)

    async def read_to_end(self) -> list[list[Any]]:
        data = b""
        async with asyncio.timeout(60):
            while chunk := await self.loop.sock_recv(self.sock, 1 << 16):
                data += chunk
        return FrameDecoder().feed(data)

    async def read(self, count: int) -> list[list[Any]]:
        decoder = FrameDecoder()
        messages: list[list[Any]] = []
        async with asyncio.timeout(60):
            while len(messages) < count:
                chunk = await self.loop.sock_recv(self.sock, 1 << 16)
                assert chunk, "the connection ended early"
                messages += decoder.feed(chunk)
        return messages


@asynccontextmanager
async def connected(protocol: Recorder) -> AsyncIterator[Peer]:
    """``protocol`` on one end of a TCP connection, a bare socket on the other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    theirs.setblocking(False)
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: protocol, sock=ours)
    try:
        yield Peer(theirs)
    finally:
        theirs.close()
        protocol.abort()
        await protocol.wait_closed()
        assert len(protocol.closings) == 1, "on_closed is called exactly once"


async def test_messages_of_one_read_come_in_one_call() -> None:
    protocol = Recorder()
    async with connected(protocol) as peer:
        await peer.send(encode_frame([6, 1]) + encode_frame([6, 2]) + encode_frame([6, 3])[:3])
        await protocol.until(lambda: len(protocol.messages) == 2)
        assert protocol.reads == [[[6, 1], [6, 2]]]
        await peer.send(encode_frame([6, 3])[3:])
        await protocol.until(lambda: len(protocol.reads) == 2)
        assert protocol.reads[1] == [[6, 3]]


async def test_frames_of_one_turn_leave_in_one_write() -> None:
    protocol = Recorder()
    async with connected(protocol) as peer:
        for i in range(10):
            assert protocol.send(encode_frame([6, i]))
        assert protocol.writes == 0
        assert protocol.buffered_bytes == 10 * len(encode_frame([6, 0]))
        assert await peer.read(10) == [[6, i] for i in range(10)]
        assert protocol.writes == 1
        assert protocol.buffered_bytes == 0


async def test_answers_to_one_read_leave_in_one_write_and_at_once() -> None:
    protocol = Recorder()
    written: list[int] = []

    def answer(messages: list[list[Any]]) -> None:
        for message in messages:
            protocol.send(encode_frame([69, message[1]]))
        written.append(protocol.writes)

    protocol.on_messages = answer
    async with connected(protocol) as peer:
        await peer.send(encode_frame([6, 1]) + encode_frame([6, 2]))
        assert await peer.read(2) == [[69, 1], [69, 2]]
        assert written == [0]
        assert protocol.writes == 1
        protocol.send(encode_frame([69, 3]))
        assert await peer.read(1) == [[69, 3]], "later frames go their usual way"


async def test_tcp_options() -> None:
    protocol = Recorder()
    async with connected(protocol):
        assert protocol._transport is not None
        sock = protocol._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            timeout_ms = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert timeout_ms == protocol.user_timeout_ms


async def test_close_delivers_what_was_sent_and_the_final_frame() -> None:
    protocol = Recorder()
    async with connected(protocol) as peer:
        protocol.send(encode_frame([6, 1]))
        protocol.close(encode_frame([7, "bye"]))
        assert not protocol.send(encode_frame([6, 2])), "nothing is taken after close"
        protocol.close(encode_frame([7, "again"]))
        assert await peer.read_to_end() == [[6, 1], [7, "bye"]]
        peer.sock.close()
        await protocol.wait_closed()
        assert protocol.closings == [None]


async def test_the_final_frame_survives_bytes_that_nobody_read() -> None:
    # The kernel answers unread bytes with a reset when the socket is closed, and a reset overtakes.
    protocol = Recorder()
    async with connected(protocol) as peer:
        protocol.pause_reading()
        await peer.send(encode_frame([2, b"x" * 100_000]))
        protocol.close(encode_frame([7, "bye"]))
        await peer.send(encode_frame([2, b"x" * 100_000]))
        assert await peer.read_to_end() == [[7, "bye"]]
        assert protocol.messages == [], "nothing is received after close"


async def test_a_peer_that_does_not_close_is_left_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CLOSE_LINGER_MS", 20)
    protocol = Recorder()
    async with connected(protocol):
        protocol.close()
        await protocol.until(lambda: protocol.lost)
        assert protocol.closings == [None]


async def test_a_peer_that_ended_its_half_and_does_not_read_is_left_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CLOSE_LINGER_MS", 20)
    protocol = Recorder()
    async with connected(protocol) as peer:
        protocol.send(encode_frame([1, b"x" * 1_000_000]) * 20)
        await protocol.until(lambda: not protocol.writable)
        peer.sock.shutdown(socket.SHUT_WR)
        await protocol.until(lambda: protocol.lost)


async def test_the_peer_closes() -> None:
    protocol = Recorder()
    async with connected(protocol) as peer:
        await peer.send(encode_frame([7, "bye"]))
        peer.sock.close()
        await protocol.wait_closed()
        assert protocol.messages == [[7, "bye"]]
        assert protocol.closings == [None]
        await protocol.wait_closed()


async def test_the_peer_closes_in_the_middle_of_a_frame() -> None:
    protocol = Recorder()
    async with connected(protocol) as peer:
        await peer.send(encode_frame([7, "bye"])[:-1])
        peer.sock.close()
        await protocol.wait_closed()
        assert isinstance(protocol.closings[0], ProtocolViolation)


async def test_a_reset() -> None:
    protocol = Recorder()
    async with connected(protocol) as peer:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.sock.close()
        await protocol.wait_closed()
        assert isinstance(protocol.closings[0], NotReachable)


async def test_a_violation_delivers_the_good_says_why_and_closes() -> None:
    protocol = Recorder()
    async with connected(protocol) as peer:
        await peer.send(encode_frame([6, 1]) + b"\0\0\0\1\x01" + encode_frame([6, 2]))
        ((kind, code, detail),) = await peer.read_to_end()
        assert (kind, code) == (ERROR, ProtocolViolation.code)
        assert "array" in detail
        assert protocol.messages == [[6, 1]]
        peer.sock.close()
        await protocol.wait_closed()
        assert isinstance(protocol.closings[0], ProtocolViolation)


async def test_an_error_of_ours_in_the_hook_is_told_and_closes() -> None:
    protocol = Recorder()

    def refuse(messages: list[list[Any]]) -> None:
        raise BadRequest("not like this")

    protocol.on_messages = refuse
    async with connected(protocol) as peer:
        await peer.send(encode_frame([6, 1]))
        assert await peer.read_to_end() == [[ERROR, BadRequest.code, "not like this"]]
        peer.sock.close()
        await protocol.wait_closed()
        assert isinstance(protocol.closings[0], BadRequest)


async def test_a_slow_reader_pauses_and_resumes_writing() -> None:
    protocol = Recorder()
    async with connected(protocol) as peer:
        frame = encode_frame([1, b"x" * 1_000_000])
        for _ in range(20):
            protocol.send(frame)
        await protocol.until(lambda: not protocol.writable)
        assert protocol.buffered_bytes > module.WRITE_HIGH_BYTES
        assert len(await peer.read(20)) == 20
        await protocol.until(lambda: protocol.writable)
        assert protocol.pauses == ["pause", "resume"]
        assert protocol.buffered_bytes <= module.WRITE_HIGH_BYTES


async def test_a_peer_that_never_reads_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FramedProtocol, "buffered_bytes_max", 3_000_000)
    protocol = Recorder()
    async with connected(protocol):
        frame = encode_frame([1, b"x" * 1_000_000])
        async with asyncio.timeout(60):
            while protocol.send(frame):
                await asyncio.sleep(0)
        await protocol.wait_closed()
        assert isinstance(protocol.closings[0], Overloaded)


async def test_abort() -> None:
    protocol = Recorder()
    async with connected(protocol) as peer:
        protocol.abort(NotReachable("given up"))
        protocol.abort(NotReachable("again"))
        await protocol.wait_closed()
        assert str(protocol.closings[0]) == "given up"
        assert await peer.read_to_end() == []


async def test_reading_can_be_paused() -> None:
    protocol = Recorder()
    async with connected(protocol) as peer:
        protocol.pause_reading()
        await peer.send(encode_frame([6, 1]))
        protocol.send(encode_frame([69, 1]))
        await peer.read(1)
        assert protocol.messages == []
        protocol.resume_reading()
        await protocol.until(lambda: protocol.messages == [[6, 1]])


async def test_frames_above_the_limit_of_the_connection() -> None:
    protocol = Recorder(frame_bytes_max=100)
    async with connected(protocol) as peer:
        await peer.send(encode_frame([1, b"x" * 200]))
        ((kind, code, _),) = await peer.read_to_end()
        assert (kind, code) == (ERROR, 101)
