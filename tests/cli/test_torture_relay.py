"""The relay: what it does to bytes, and whom it names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from im_actors.actors.relay import relayed
from im_actors.cli.torture import relay as module
from im_actors.cli.torture.relay import TO_DIALER, TO_LISTENER, Relay, Trouble
from im_actors.core.directory import GatewayAddress, ReplicaAddress
from im_actors.core.formats import FORMATS
from im_actors.errors import NotReachable
from im_actors.net.link_connection import LINK_HELLO
from im_actors.wire import messages
from im_actors.wire.codec import encode_frame
from im_actors.wire.limits import Limits

LINK_FRAME = encode_frame((LINK_HELLO, FORMATS.newest, "shard", "shard-1", "life", b"n" * 16))
WAIT_S = 60.0


class Listener:
    """An actor that listens: it keeps what comes and can speak."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.ended = asyncio.Event()
        self.heard = asyncio.Event()
        self.writer: asyncio.StreamWriter | None = None

    async def serve(self) -> tuple[asyncio.Server, int]:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        return server, server.sockets[0].getsockname()[1]

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        try:
            while data := await reader.read(1000):
                self.got += data
                self.heard.set()
        except ConnectionError:
            pass
        finally:
            self.ended.set()
            writer.close()

    async def has(self, data: bytes) -> None:
        async with asyncio.timeout(WAIT_S):
            while bytes(self.got) != data:
                self.heard.clear()
                await self.heard.wait()


class Scene:
    """A relay, a listener "replica-1" behind it, and a dialer."""

    relay: Relay
    listener: Listener
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    scene.relay, scene.listener = Relay(), Listener()
    server, port = await scene.listener.serve()
    door = await scene.relay.open("replica-1", "127.0.0.1", port)
    assert door != ("127.0.0.1", port)
    assert await scene.relay.open("replica-1", "127.0.0.1", port) == door
    scene.reader, scene.writer = await asyncio.open_connection(*door)
    scene.writer.write(LINK_FRAME)
    await scene.listener.has(LINK_FRAME)
    yield scene
    scene.writer.close()
    await scene.relay.close()
    server.close()
    await server.wait_closed()


async def read(scene: Scene, size: int) -> bytes:
    async with asyncio.timeout(WAIT_S):
        return await scene.reader.readexactly(size)


async def lost(scene: Scene) -> None:
    async with asyncio.timeout(WAIT_S):
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await scene.reader.readexactly(1)
        await scene.listener.ended.wait()


async def say(scene: Scene, text: bytes) -> None:
    assert scene.listener.writer is not None
    scene.listener.writer.write(text)
    await scene.listener.writer.drain()


async def test_bytes_pass_both_ways_and_the_ends_are_known(scene: Scene) -> None:
    await say(scene, b"welcome")
    assert await read(scene, 7) == b"welcome"
    (pipe,) = scene.relay.between_actors()
    assert pipe.ends == {"shard-1", "replica-1"}


async def test_a_cut_resets_both_sides(scene: Scene) -> None:
    assert scene.relay.cut(["replica-2"]) == 0
    assert scene.relay.cut(["shard-1"]) == 1
    await lost(scene)
    assert not scene.relay.pipes


async def test_an_orderly_end_delivers_the_last_words(scene: Scene) -> None:
    scene.writer.write(b"last words")
    scene.writer.close()
    await scene.listener.has(LINK_FRAME + b"last words")
    async with asyncio.timeout(WAIT_S):
        await scene.listener.ended.wait()


async def test_what_is_delayed_comes_later_and_in_order(scene: Scene) -> None:
    trouble = Trouble(actor="replica-1", delay_s=0.2, directions=(TO_LISTENER,))
    scene.relay.begin(trouble)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for number in range(5):
        scene.writer.write(b"%d" % number)
        await scene.writer.drain()
    await say(scene, b"now")
    assert await read(scene, 3) == b"now"
    await scene.listener.has(LINK_FRAME + b"01234")
    assert loop.time() - begun >= 0.2
    scene.relay.end(trouble)


async def test_what_is_held_comes_when_the_trouble_is_over(scene: Scene) -> None:
    trouble = Trouble(actor="shard-1", peer="replica-1", hold=True, directions=(TO_LISTENER,))
    scene.relay.begin(trouble)
    scene.writer.write(b"late")
    await scene.writer.drain()
    await say(scene, b"other way")
    assert await read(scene, 9) == b"other way"
    assert bytes(scene.listener.got) == LINK_FRAME
    scene.relay.end(trouble)
    await scene.listener.has(LINK_FRAME + b"late")


async def test_what_is_held_has_a_limit(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_BYTES_MAX", 1_000)
    trouble = Trouble(actor="replica-1", hold=True)
    scene.relay.begin(trouble)
    scene.writer.write(b"x" * 1_001)
    await lost(scene)
    scene.relay.end(trouble)


async def test_what_is_swallowed_never_comes_and_the_link_is_reset(scene: Scene) -> None:
    trouble = Trouble(actor="replica-1", swallow=True, directions=(TO_DIALER,))
    scene.relay.begin(trouble)
    await say(scene, b"never")
    scene.writer.write(b"heard")
    await scene.listener.has(LINK_FRAME + b"heard")
    async with asyncio.timeout(WAIT_S):
        while not scene.relay.swallowed_bytes:
            await asyncio.sleep(0)
    scene.relay.end(trouble)
    await lost(scene)
    assert scene.relay.swallowed_bytes == len(b"never")


async def test_a_trouble_leaves_other_links_alone(scene: Scene) -> None:
    trouble = Trouble(actor="replica-1", peer="shard-2", swallow=True)
    scene.relay.begin(trouble)
    await say(scene, b"fine")
    assert await read(scene, 4) == b"fine"
    scene.relay.end(trouble)
    await say(scene, b"still")
    assert await read(scene, 5) == b"still"


async def test_clients_and_their_gateway_are_known_by_their_greetings() -> None:
    relay, listener = Relay(), Listener()
    server, port = await listener.serve()
    one = await relay.open_another("clients-1", "127.0.0.1", port)
    other = await relay.open_another("clients-2", "127.0.0.1", port)
    assert one != other
    reader, writer = await asyncio.open_connection(*other)
    hello = encode_frame(messages.hello("alice", "phone", None, "test"))
    for part in (hello[:3], hello[3:10], hello[10:]):
        writer.write(part)
        await writer.drain()
    await listener.has(hello)
    assert listener.writer is not None
    welcome = encode_frame(messages.welcome("gateway-2", 0, Limits()))
    listener.writer.write(welcome)
    async with asyncio.timeout(WAIT_S):
        await reader.readexactly(len(welcome))
    assert relay.devices_of("gateway-2") == relay.devices_of("clients-2") == {"alice/phone"}
    assert not relay.devices_of("clients-1")
    assert not relay.between_actors()
    writer.close()
    await relay.close()
    server.close()


async def test_a_door_that_leads_nowhere_refuses() -> None:
    relay = Relay()
    server, port = await Listener().serve()
    server.close()
    await server.wait_closed()
    reader, writer = await asyncio.open_connection(*await relay.open("gone", "127.0.0.1", port))
    async with asyncio.timeout(WAIT_S):
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    writer.close()
    await relay.close()


async def test_shards_and_replicas_are_reached_by_a_door_and_gateways_are_not() -> None:
    relay = Relay()
    where = await relay.start()
    replica: Any = ReplicaAddress("replica-1", "disk", "host", "127.0.0.1", 4711)
    behind = await relayed(where, replica)
    assert behind == replica._replace(port=behind.port)
    assert behind.port != replica.port
    assert await relayed(where, replica) == behind
    gateway = GatewayAddress("gateway-1", "127.0.0.1", 7070)
    assert await relayed(where, gateway) == gateway
    assert await relayed("", replica) == replica
    await relay.close()
    with pytest.raises(NotReachable, match="no door"):
        await relayed(where, replica)


async def test_a_question_that_is_none_is_not_answered() -> None:
    relay = Relay()
    host, _, port = (await relay.start()).rpartition(":")
    for wrong in (b"nonsense\n", json.dumps({"name": "x"}).encode() + b"\n"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(wrong)
        async with asyncio.timeout(WAIT_S):
            assert await reader.read() == b""
        writer.close()
    await relay.close()
