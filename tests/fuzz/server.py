"""Servers that say what no server should, to the SDK's client.

Whatever comes, the client keeps running: nothing is raised in its tasks and callbacks, it takes
messages, and once a true gateway is there again it delivers them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from im_actors.client import Client
from im_actors.client.config import ClientConfig
from im_actors.core.model import Event, encode_event
from im_actors.errors import ImError
from im_actors.testing import LocalCluster
from im_actors.wire import messages as m
from im_actors.wire.codec import FrameDecoder
from im_actors.wire.limits import Limits
from tests.fuzz import corpus
from tests.fuzz.complaints import Complaints
from tests.fuzz.mutate import frame_of, mutated_bytes, mutated_message

PATIENCE_S = 30
LIES = [message for message in corpus.PROTOCOL if 64 < message[0] != m.SERVER_BYE]
SESSIONS = ("team", "user:alice", "other")
ODD_NUMBERS = (-(2**63), -1, 0, 1, 2, 3, 5, 1_000, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
QUICK = ClientConfig(
    reconnect_base_ms=1,
    reconnect_cap_ms=20,
    refused_retry_ms=20,
    welcome_timeout_ms=300,
    probe_ms=200,
    history_timeout_ms=300,
    drain_ms=1,
)


def a_number(rng: random.Random) -> int:
    return rng.choice(ODD_NUMBERS) if rng.random() < 0.4 else rng.randint(1, 20)


def an_event(rng: random.Random, session: str, seq: int, address: str) -> bytes:
    device = rng.choice((address, "bob/phone", "x", ""))
    kind = rng.choice((0, 1, 1, 1, 7, a_number(rng)))
    data = encode_event(
        Event(session, seq, a_number(rng), kind, device, a_number(rng), rng.randbytes(5))
    )
    return mutated_bytes(rng, data) if rng.random() < 0.05 else data


def plausible(rng: random.Random, address: str) -> list[Any]:
    """A message of the right form, with numbers that may be anything."""
    session = rng.choice((*SESSIONS, "never heard of"))
    number = a_number(rng)
    start = a_number(rng)
    run = [an_event(rng, session, min(start + i, 2**64 - 1), address) for i in range(3)]
    match rng.randrange(11):
        case 0:
            return [m.ACK, [[session, number, a_number(rng), a_number(rng), 3, a_number(rng)]]]
        case 1:
            code = rng.choice((0, 100, 101, 102, 102, 103, 111, 200, 203, 299, 303, a_number(rng)))
            return [m.NACK, [[session, number, code, a_number(rng), a_number(rng), "no"]]]
        case 2:
            return [m.EVENTS, number, session, a_number(rng), rng.choice((0, 0, 0, 200, 300)), run]
        case 3:
            refused = [rng.choice(SESSIONS), 0, rng.choice((0, 111, a_number(rng)))]
            return [m.HEADS, [[session, number], [rng.choice(SESSIONS), a_number(rng)], refused]]
        case 4:
            return [m.PUSH, run]
        case 5:
            return [m.ERROR, rng.choice((200, 201, 121, 110, 303, a_number(rng))), "no"]
        case 6:
            return [m.SERVER_BYE, "bye", rng.choice((0, 5))]
        case 7:
            return [
                m.SIGNALED,
                [[session, "bob", rng.choice(("typing", "x")), rng.choice((True, []))]],
            ]
        case 8 | 9:
            code = rng.choice((0, 0, 0, 0, 100, 200, a_number(rng)))
            return [m.ANSWER, number, code, "no", a_value(rng, session)]
        case _:
            return [m.PONG, number]


def a_value(rng: random.Random, session: str) -> Any:
    """Of some query, mostly of the right form."""
    version = a_number(rng)
    row = [
        session, version, *(a_number(rng) for _ in range(4)), "bob", "hi", a_number(rng),
        rng.choice((None, [0, 9, 1, [[4, 4]]], [a_number(rng), a_number(rng), a_number(rng), []])),
        *(a_number(rng) for _ in range(4)), "", "",
    ]  # fmt: skip
    values = (
        [version, [row, row], rng.choice((None, "next")), a_number(rng)],
        [version, [row], rng.random() < 0.5],
        [version, rng.choice((row, None))],
        [version, a_number(rng)],
        [[a_number(rng), a_number(rng), rng.choice((2, 3)), rng.choice((None, b"new"))]],
        [version, [["phone", "about", a_number(rng), True]]],
        [version, "title", "bob", a_number(rng), "owner", True, 0, a_number(rng)],
    )
    value = rng.choice(values)
    if rng.random() < 0.9:
        return value
    return (mutated_message(rng, [0, value]) or [None])[-1]


def a_welcome(rng: random.Random) -> list[Any]:
    welcome = list(m.welcome("gateway", 5, Limits()))
    if rng.random() < 0.5:
        key = rng.choice(list(welcome[4]))
        welcome[4] = welcome[4] | {key: rng.choice((a_number(rng), None, "x", 1.5))}
    return welcome


class Liar:
    """A server that answers HELLO, mostly, and then says anything."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._asked = [3]
        self.said = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rng = self._rng
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(2):
                address = await self._hello(reader)
                writer.write(self._first(address))
                listening = asyncio.create_task(self._listen(reader))
                try:
                    for _ in range(rng.randint(0, 12)):
                        writer.write(self._something(address))
                        self.said += 1
                        await writer.drain()
                        await asyncio.sleep(rng.choice((0, 0, 0.01)))
                finally:
                    listening.cancel()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Remember which queries wait for an answer, so that some get one."""
        decoder = FrameDecoder()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                asked = [message for message in decoder.feed(data) if message[0] == m.QUERY]
                self._asked = [*self._asked, *(message[1] for message in asked)][-8:]

    async def _hello(self, reader: asyncio.StreamReader) -> str:
        decoder = FrameDecoder()
        while True:
            data = await reader.read(1 << 16)
            if not data:
                raise ConnectionResetError
            for message in decoder.feed(data):
                if message[0] == m.HELLO:
                    return f"{message[2]}/{message[3]}"

    def _first(self, address: str) -> bytes:
        if self._rng.random() < 0.9:
            return frame_of(a_welcome(self._rng))
        return self._something(address)

    def _something(self, address: str) -> bytes:
        rng = self._rng
        message = plausible(rng, address)
        if message[0] == m.ANSWER:
            message[1] = rng.choice(self._asked)
        if message[0] == m.SERVER_BYE:
            # An odd one is obeyed: never to come back, or in a million years.
            return frame_of(message)
        match rng.randrange(6):
            case 0:
                return mutated_bytes(rng, frame_of(message))
            case 1:
                return frame_of(mutated_message(rng, message))
            case 2:
                return frame_of(mutated_message(rng, rng.choice(LIES)))
            case _:
                return frame_of(message)


class Front:
    """One port, behind which is a liar or, later, a true gateway."""

    def __init__(self, liar: Liar) -> None:
        self._liar = liar
        self.gateway: tuple[str, int] | None = None

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.gateway is None:
            await self._liar(reader, writer)
            return
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*self.gateway)
            await asyncio.gather(_pass_on(reader, far_writer), _pass_on(far_reader, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def one_round(cluster: LocalCluster, seed: int, lies: int = 150) -> int:
    """Lie to one client, then let it talk to the cluster. Returns how much was said."""
    rng = random.Random(seed)
    liar = Liar(rng)
    front = Front(liar)
    server = await asyncio.start_server(front, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(PATIENCE_S):
            await _lied_to(cluster, front, liar, port, seed, lies)
    finally:
        server.close()
        await server.wait_closed()
    return liar.said


async def _lied_to(
    cluster: LocalCluster, front: Front, liar: Liar, port: int, seed: int, lies: int
) -> None:
    url = f"im://127.0.0.1:{port}"
    user = f"alice-{seed}"
    with tempfile.TemporaryDirectory(prefix="im_actors-fuzz-") as directory:
        store = Path(directory) / "store.db"
        async with Client(url, user, store=store, config=QUICK, rng=random.Random(seed)) as client:
            await _talk(client, cluster, front, liar, seed, lies)


async def _talk(
    client: Client, cluster: LocalCluster, front: Front, liar: Liar, seed: int, lies: int
) -> None:
    readers = [asyncio.create_task(_read(client, session)) for session in SESSIONS]
    while liar.said < lies:
        for session in SESSIONS:
            await client.send(session, "x")
        with contextlib.suppress(Exception):
            await client.history("team", limit=3)
        await _use(client)
        await asyncio.sleep(0.02)
    front.gateway = cluster.node("gateway-1").host, cluster.node("gateway-1").port
    # A session of which no lie was told: what was lied about may be a conflict for ever.
    sent = await client.send(f"true-{seed}", "x")
    while sent.ack is None:
        # The last refusal of the liar is told until the client is in.
        with contextlib.suppress(ImError):
            await sent.acked(timeout=PATIENCE_S)
        await asyncio.sleep(0.01)
    assert sent.ack.seq == 1
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


async def _use(client: Client) -> None:
    """Everything that a list on a screen needs. What it is told may be nonsense, and is an error of
    ours then."""
    asked: tuple[Callable[[], Awaitable[Any]], ...] = (
        client.conversations,
        client.unread,
        client.devices,
        lambda: client.mark_read("other", 1),
        lambda: client.conversation("team"),
        lambda: client.receipts("team", 1),
        lambda: client.groups.info("g"),
        lambda: client.groups.members("g"),
    )
    found = await asyncio.gather(*(ask() for ask in asked), return_exceptions=True)
    odd = [error for error in found if isinstance(error, Exception)]
    assert all(isinstance(error, ImError) for error in odd), odd
    client.who_types("team")


async def _read(client: Client, session: str) -> None:
    with contextlib.suppress(Exception):
        async for _ in client.follow(session):
            pass


async def fuzz(seconds: float, first: int) -> int:
    """Rounds until the time is over; prints the seed that breaks something. 1 if one did."""
    end = time.monotonic() + seconds
    seed, said = first, 0
    async with LocalCluster(slots=2) as cluster:
        while time.monotonic() < end or seed == first:
            with Complaints().listening() as complaints:
                try:
                    said += await one_round(cluster, seed)
                    assert not complaints.found, "\n".join(complaints.found)
                except (Exception, AssertionError):
                    print(f"\nserver: seed {seed} failed\n{traceback.format_exc()}")
                    print(f"replay: python -m tests.fuzz --target server --seed {seed} --seconds 0")
                    return 1
            seed += 1
    print(f"server: {said} lies in {seed - first} rounds, 0 failed")
    return 0
