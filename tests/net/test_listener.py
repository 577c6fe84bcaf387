"""Listening: clear errors, a bounded number of connections, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable

import pytest

from im_actors.errors import ImError, RateLimited, SetupError
from im_actors.net import listener as module
from im_actors.net.connection import FramedProtocol
from im_actors.net.listener import listen
from im_actors.wire.codec import FrameDecoder, Message, encode_frame
from im_actors.wire.messages import ERROR


class Echo(FramedProtocol):
    def frames_received(self, messages: list[Message]) -> None:
        for message in messages:
            self.send(encode_frame(message))


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: list[object]
) -> Message:
    writer.write(encode_frame(message))
    return await answer(reader)


async def answer(reader: asyncio.StreamReader) -> Message:
    async with asyncio.timeout(60):
        header = await reader.readexactly(4)
        payload = await reader.readexactly(int.from_bytes(header, "big"))
    (message,) = FrameDecoder().feed(header + payload)
    return message


async def end(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(60):
        assert await reader.read() == b""


async def test_port_and_host_are_known() -> None:
    listener = await listen(Echo, "127.0.0.1", 0)
    assert listener.host == "127.0.0.1"
    assert listener.port > 0
    listener.close()
    await listener.wait_closed()


async def test_port_in_use() -> None:
    first = await listen(Echo, "127.0.0.1", 0)
    with pytest.raises(SetupError, match=f":{first.port}: the port is in use"):
        await listen(Echo, "127.0.0.1", first.port)
    first.close()


async def test_reuse_port() -> None:
    first = await listen(Echo, "127.0.0.1", 0, reuse_port=True)
    second = await listen(Echo, "127.0.0.1", first.port, reuse_port=True)
    assert second.port == first.port
    first.close()
    second.close()


async def test_address_not_available() -> None:
    with pytest.raises(SetupError, match="no network interface"):
        await listen(Echo, "203.0.113.77", 0)


async def test_a_port_that_is_none() -> None:
    with pytest.raises(SetupError, match=r"cannot listen on .*:70000"):
        await listen(Echo, "127.0.0.1", 70_000)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EACCES, "denied"), "ports below 1024"),
        (OSError(errno.EMFILE, "too many"), "ulimit"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "cannot be resolved"),
        (OSError(errno.EIO, "strange"), "strange"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_other_reasons_in_words(
    monkeypatch: pytest.MonkeyPatch, error: OSError, says: str
) -> None:
    async def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "create_server", fail)
    with pytest.raises(SetupError, match=says):
        await listen(Echo, "example.invalid", 80)


async def test_connections_are_bounded() -> None:
    listener = await listen(Echo, "127.0.0.1", 0, connections_max=2)
    streams = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(2)]
    for reader, writer in streams:
        assert await ask(reader, writer, [6, 1]) == [6, 1]
    assert len(listener.connections) == 2

    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    assert (await answer(reader))[:2] == [ERROR, 200]
    await end(reader)
    writer.close()
    assert await ask(*streams[0], [6, 2]) == [6, 2]

    (left,) = [c for c in listener.connections if c.peername.endswith(_port(streams[1][1]))]
    streams[1][1].close()
    await left.wait_closed()
    streams[1] = await asyncio.open_connection("127.0.0.1", listener.port)
    assert await ask(*streams[1], [6, 3]) == [6, 3], "there is room again"

    listener.close()
    listener.abort_connections()
    await listener.wait_closed()
    assert not listener.connections
    for _, writer in streams:
        writer.close()


def _port(writer: asyncio.StreamWriter) -> str:
    return str(writer.get_extra_info("sockname")[1])


async def test_even_the_refusals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSALS_MAX", 0)
    listener = await listen(Echo, "127.0.0.1", 0, connections_max=0)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    listener.close()
    await listener.wait_closed()


async def test_close_leaves_connections_to_their_users() -> None:
    listener = await listen(Echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    assert await ask(reader, writer, [6, 1]) == [6, 1]
    listener.close()
    assert await ask(reader, writer, [6, 2]) == [6, 2]
    for connection in list(listener.connections):
        connection.close()
    await end(reader)
    writer.close()
    await listener.wait_closed()


async def test_tls(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server, client = tls
    listener = await listen(Echo, "127.0.0.1", 0, ssl=server)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=client)
    assert await ask(reader, writer, [6, 1]) == [6, 1]
    for connection in list(listener.connections):
        connection.close(encode_frame([71, "bye", -1]))
    assert await answer(reader) == [71, "bye", -1]
    await end(reader)
    writer.close()
    listener.close()
    await listener.wait_closed()


async def test_a_failed_tls_handshake_takes_no_place(
    tls: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    server, client = tls
    listener = await listen(Echo, "127.0.0.1", 0, ssl=server, connections_max=1)
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"this is not TLS, not even nearly\r\n\r\n")
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()
    assert not listener.connections
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=client)
    assert await ask(reader, writer, [6, 1]) == [6, 1]
    writer.close()
    listener.close()
    listener.abort_connections()
    await listener.wait_closed()


class Counting:
    """A guard that counts, and refuses when it is told to."""

    def __init__(self) -> None:
        self.here = self.ever = 0
        self.refuses = False

    def arrived(self, host: str) -> ImError | None:
        assert host == "127.0.0.1"
        if self.refuses:
            return RateLimited("slower", 250)
        self.here += 1
        self.ever += 1
        return None

    def gone(self, host: str) -> None:
        self.here -= 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_guard_is_asked_and_told(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server, client = tls
    guard = Counting()
    for contexts in ((None, None), (server, client)):
        guard.ever, guard.refuses = 0, False
        listener = await listen(Echo, "127.0.0.1", 0, ssl=contexts[0], guard=guard)
        first = await asyncio.open_connection("127.0.0.1", listener.port, ssl=contexts[1])
        assert await ask(*first, [6, 1]) == [6, 1]
        guard.refuses = True
        if contexts[0] is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            assert await answer(reader) == [71, "slower", 250]
            writer.close()
        else:
            # It is not worth a handshake, so there is no way to tell it.
            with pytest.raises((OSError, EOFError)):
                await asyncio.open_connection("127.0.0.1", listener.port, ssl=client)
        assert (guard.here, guard.ever) == (1, 1)
        first[1].close()
        await until(lambda: guard.here == 0)
        listener.close()
        await listener.wait_closed()


async def test_handshakes_that_never_end(
    tls: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted from the first moment on, and end after a while."""
    monkeypatch.setattr(module, "TLS_HANDSHAKE_S", 0.2)
    guard = Counting()
    listener = await listen(Echo, "127.0.0.1", 0, ssl=tls[0], guard=guard)
    silent = await asyncio.open_connection("127.0.0.1", listener.port)
    slow = await asyncio.open_connection("127.0.0.1", listener.port)
    slow[1].write(b"\x16\x03\x01")
    await until(lambda: guard.ever == 2)
    assert not listener.connections
    for reader, writer in (silent, slow):
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
    await until(lambda: guard.here == 0)
    # One that is under way does not outlive the listener.
    monkeypatch.setattr(module, "TLS_HANDSHAKE_S", 60.0)
    _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    await until(lambda: guard.here == 1)
    listener.close()
    listener.abort_connections()
    await listener.wait_closed()
    assert guard.here == 0
    writer.close()


def test_tls_on_the_loop_of_the_actors(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """What comes at once with the end of the handshake is not lost, on either kind of loop."""
    uvloop = pytest.importorskip("uvloop")

    async def talk() -> None:
        listener = await listen(Echo, "127.0.0.1", 0, ssl=tls[0], guard=(guard := Counting()))
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=tls[1])
            assert await ask(reader, writer, [6, 1]) == [6, 1]
            writer.close()
        await until(lambda: guard.here == 0)
        # In one write with the last part of the handshake, as an eager client may do.
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        end = tls[1].wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
        writer.write(to_server.read())
        while True:
            to_client.write(await reader.read(65_536))
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                break
        end.write(encode_frame([6, 7]))
        writer.write(to_server.read())
        got = b""
        async with asyncio.timeout(60):
            while got != encode_frame([6, 7]):
                to_client.write(await reader.read(65_536))
                with contextlib.suppress(ssl.SSLWantReadError):
                    got += end.read(65_536)
        writer.close()
        listener.close()
        listener.abort_connections()
        await listener.wait_closed()

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(talk())
