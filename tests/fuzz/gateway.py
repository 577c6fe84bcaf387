"""A cluster in this process, attacked over TCP by connections that do all that clients should not.

Each round: attackers come in over many connections, a well-behaved client talks beside them, and
afterwards everything that the attackers left behind has to be gone: connections, follows, pulls,
rows without an answer, at the gateway and at the shards.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from im_actors.client import Client
from im_actors.gateway.client_connection import ClientConnection
from im_actors.gateway.config import GatewayConfig
from im_actors.testing import LocalCluster
from im_actors.wire import messages as m
from im_actors.wire.codec import FrameDecoder, encode_frame
from im_actors.wire.limits import Limits
from tests.fuzz import corpus, doors
from tests.fuzz.complaints import Complaints
from tests.fuzz.mutate import frame_of, mutated_frame, mutated_stream

PATIENCE_S = 30
"""No connection lasts nearly as long that should end; one that hangs fails the run."""
HONEST = "honest"
"""A session that no attacker names."""
HONEST_SENDS = 40

QUICK = GatewayConfig(
    limits=Limits(
        heartbeat_ms=400,
        heartbeats_missed=2,
        hello_timeout_ms=400,
        follow_sessions=300,
        frame_bytes=262_144,
    ),
    connections_max=80,
    strangers_max=40,
    outstanding_per_connection=256,
    follows_max=1_000,
    pulls_max=40,
    slow_reader_bytes=256 * 1024,
    slow_reader_ms=500,
    buffered_bytes_max=1024 * 1024,
    sweep_ms=50,
)
"""Limits that attackers meet."""


class Attacker:
    """One raw connection."""

    def __init__(
        self, rng: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.rng = rng
        self.name = f"mallory-{rng.getrandbits(40):x}"
        self._reader = reader
        self._writer = writer
        self._decoder = FrameDecoder()
        self.heard: Counter[int] = Counter()
        """Messages from the server, by type."""

    async def write(self, data: bytes) -> None:
        """Until the server takes no more or has closed."""
        self._writer.write(data)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(1):
                await self._writer.drain()

    async def write_in_pieces(self, data: bytes) -> None:
        while data:
            size = self.rng.randint(1, max(2, len(data)))
            await self.write(data[:size])
            data = data[size:]
            await asyncio.sleep(0)

    async def hello(self) -> None:
        await self.write(frame_of([m.HELLO, 1, self.name, "phone", None, "mallory"]))

    def end(self) -> None:
        """Close the sending half."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    def abort(self) -> None:
        self._writer.transport.abort()

    async def read_for(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.until_closed()

    async def until_closed(self) -> None:
        """Read on; every frame of the server has to be a good one."""
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(1 << 16):
                for message in self._decoder.feed(data):
                    self.heard[message[0]] += 1
                assert self._decoder.error is None, self._decoder.error

    def pause_reading(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


Attack = Callable[[Attacker], Awaitable[None]]


async def noise(a: Attacker) -> None:
    await a.write_in_pieces(mutated_stream(a.rng, corpus.FROM_CLIENTS))


async def http(a: Attacker) -> None:
    await a.write(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")


async def bombs(a: Attacker) -> None:
    if a.rng.random() < 0.5:
        await a.hello()
    await a.write(a.rng.choice(list(corpus.BOMBS.values())))


async def odd_hello(a: Attacker) -> None:
    await a.write(mutated_frame(a.rng, [corpus.PROTOCOL[0]]))


async def wrong_version(a: Attacker) -> None:
    version = a.rng.choice((0, 2, -1, 2**64 - 1))
    await a.write(frame_of([m.HELLO, version, "mallory", "phone", None, "", "more"]))


async def hello_twice(a: Attacker) -> None:
    await a.hello()
    await a.hello()


async def odd_frames(a: Attacker) -> None:
    await a.hello()
    for _ in range(a.rng.randint(1, 8)):
        await a.write_in_pieces(mutated_frame(a.rng, corpus.FROM_CLIENTS))


async def types_of_others(a: Attacker) -> None:
    await a.hello()
    others = [*corpus.PROTOCOL[7:], *corpus.BETWEEN_ACTORS, *corpus.HANDSHAKE]
    await a.write(frame_of(a.rng.choice(others)))


async def half_open(a: Attacker) -> None:
    if a.rng.random() < 0.7:
        await a.hello()
    await a.write(frame_of([m.SEND, [[a.name, 1, 1, b"x" * 100]]])[: a.rng.randint(0, 60)])
    a.end()


async def reset(a: Attacker) -> None:
    await a.hello()
    await a.write(frame_of([m.FOLLOW, [a.name, "team"]]) + b"\x00\x00")
    await a.read_for(a.rng.random() / 10)
    a.abort()


async def silent(a: Attacker) -> None:
    if a.rng.random() < 0.5:
        await a.hello()


async def slow_loris(a: Attacker) -> None:
    """A HELLO that never ends, a byte at a time: the bytes must not buy more time."""
    for byte in frame_of([m.HELLO, 1, "x" * 100, "phone", None, ""])[:90]:
        await a.write(bytes([byte]))
        await a.read_for(0.02)


async def slow_frame(a: Attacker) -> None:
    await a.hello()
    for byte in frame_of([m.SEND, [[a.name, 1, 1, b"x" * 100]]])[:30]:
        await a.write(bytes([byte]))
        await a.read_for(0.01)


async def odd_sends(a: Attacker) -> None:
    """Counters, sessions and bodies at and beyond their limits; what is good is committed."""
    await a.hello()
    numbers = [0, -1, 1, 1, 2, 5, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]
    names = [a.name, "", "x" * 320, "x" * 321, "a\nb", "\u202e"]
    bodies: list[Any] = [b"", b"x", b"x" * 65_536, b"x" * 65_537, "text", None]
    for _ in range(10):
        entries = [
            [a.rng.choice(names), a.rng.choice(numbers), a.rng.choice((0, 1, 1, 2)), body]
            for body in a.rng.choices(bodies, k=a.rng.randint(1, 3))
        ]
        await a.write(frame_of([m.SEND, entries]))
    await a.read_for(0.2)


async def send_flood(a: Attacker) -> None:
    """More without an answer than one connection may have, new and resent, then gone."""
    await a.hello()
    entries = [[f"{a.name}-{n % 7}", n // 7 + 1, 1, b"x" * 50] for n in range(700)]
    for _ in range(2):
        for start in range(0, len(entries), 128):
            await a.write(frame_of([m.SEND, entries[start : start + 128]]))
    await a.read_for(a.rng.random() / 2)


async def follow_flood(a: Attacker) -> None:
    await a.hello()
    for turn in range(20):
        names = [f"{a.name}-{turn % 2}-{n}" for n in range(a.rng.choice((1, 100, 150)))]
        await a.write(frame_of([m.FOLLOW, names]))
        if a.rng.random() < 0.3:
            await a.write(frame_of([m.UNFOLLOW, [*names, "never followed"]]))
    await a.read_for(0.2)


async def pull_flood(a: Attacker) -> None:
    await a.hello()
    for n in range(300):
        await a.write(frame_of([m.PULL, 1 + n % 5, "team", n % 3 - 1, n % 4, 2**63 - 1]))
    await a.read_for(0.2)


async def never_reading(a: Attacker) -> None:
    """Ask for much and take nothing, until the server has had enough."""
    a.pause_reading()
    await a.hello()
    await a.write(frame_of([m.SEND, [[a.name, n, 1, b"x" * 65_000] for n in (1, 2, 3)]]))
    names = [f"{a.name}-{'x' * 200}-{n}" for n in range(200)]
    pages = frame_of([m.PULL, 1, a.name, -1, 0, 500]) * 16
    small = frame_of([m.FOLLOW, names]) + frame_of([m.PING, 1]) * 100
    small += b"".join(frame_of([m.PULL, 1, name, -1, 0, 500]) for name in names)
    for _ in range(12):
        await a.write(pages + small)
        await asyncio.sleep(0.005)


async def good(a: Attacker) -> None:
    """Not an attacker at all."""
    await a.hello()
    await a.write(frame_of([m.SEND, [[a.name, n, 1, b"fine"] for n in (1, 2, 3)]]))
    await a.write(encode_frame(m.bye("done")))


ATTACKS: tuple[Attack, ...] = (
    *(noise, http, bombs, odd_hello, wrong_version, hello_twice, types_of_others),
    *[odd_frames] * 12,
    *(half_open, reset, silent, slow_loris, slow_frame, odd_sends, send_flood, follow_flood),
    *(pull_flood, never_reading, good),
)


async def attack(rng: random.Random, port: int, how: Attack) -> None:
    """One connection, from its start to its end, which the server has to bring about."""
    small = how is never_reading
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        streams = await asyncio.open_connection(sock=sock)
    except OSError:
        sock.close()
        return
    attacker = Attacker(rng, *streams)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await how(attacker)
            with contextlib.suppress(RuntimeError):
                attacker._writer.transport.resume_reading()  # type: ignore[attr-defined]
            await attacker.until_closed()
    except TimeoutError:
        raise AssertionError(f"{how.__name__}: the server does not end the connection") from None
    finally:
        await attacker.close()


def left_behind(cluster: LocalCluster) -> dict[str, int]:
    """How much the gateways and shards hold that belongs to connections."""
    found: Counter[str] = Counter()
    for name in ("gateway-1",):
        node = cluster.node(name)
        router, followers = node.router, node.followers
        # What lists need is kept, and has its own bound.
        lists = node.user_side.live._sessions if node.user_side is not None else {}
        held: dict[str, Any] = {
            "connections": node._connections,
            "accepted": range(node.shares.connections),
            "strangers": range(node.shares.strangers),
            "users": range(node.shares.users),
            "rows in flight": router._in_flight,
            "held slots": router._held,
            "held rows": router._slot_of_held,
            "expiries": router._expiries,
            "unanswered": router._unanswered,
            "watches": followers._watches.keys() - lists.keys(),
            "watches by slot": [w for slot in followers._by_slot for w in slot if w not in lists],
            "watches unanswered": followers._unanswered,
            "behind": followers.behind,
            "reads": node.reads._open,
        }
        for listener in node._listeners:
            held["listener"] = [*listener.connections, *listener._refused]
        found.update({what: len(those) for what, those in held.items()})
        found.update({"bytes": router.outstanding_bytes, "follows": followers.follows})
        found["reads of replicas"] += sum(r.outstanding for r in node.peers.replicas.values())
    for name in ("shard-1", "shard-2"):
        node = cluster.node(name)
        found["watchers"] += len(node._watchers.keys() - lists.keys())
        found["watched"] += sum(len(those - lists.keys()) for those in node._watched.values())
        found["results"] += len(node._results) + len(node._pushes)
        for owner in node._owners.values():
            serving = owner.serving
            found["pending"] += len(serving.pending) + len(serving.waiting) + len(serving.open)
    return {what: count for what, count in found.items() if count}


def live_connections() -> list[ClientConnection]:
    """Connections that anything still refers to."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is ClientConnection]


async def until_forgotten(before: int) -> None:
    """Nothing refers to more connections than before the attack."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while len(found := live_connections()) > before:
        if asyncio.get_running_loop().time() > deadline:
            holders = [type(holder).__name__ for holder in gc.get_referrers(found[0])]
            raise AssertionError(f"{len(found)} connections are kept, one by {holders}")
        del found
        await asyncio.sleep(0.05)


async def until_empty(cluster: LocalCluster) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while left_behind(cluster):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"left behind: {left_behind(cluster)}") from None


async def honest_client(cluster: LocalCluster, name: str, done: asyncio.Event) -> list[str]:
    """Sends while the attack goes on, and to its end; every message is ACKed once."""
    texts: list[str] = []
    async with Client(cluster.url, user=name) as client:
        while len(texts) < HONEST_SENDS or not done.is_set():
            texts.append(f"{name} {len(texts)}")
            sent = await client.send(f"{HONEST}-{name}", texts[-1])
            ack = await sent.acked(timeout=PATIENCE_S)
            assert ack.seq == len(texts), f"{ack} for message {len(texts)}"
    return texts


async def read_back(cluster: LocalCluster, name: str, texts: list[str]) -> None:
    """A reader who was not there sees all of it once, in order."""
    async with asyncio.timeout(PATIENCE_S), Client(cluster.url, user="reader") as client:
        seen = []
        async for event in client.follow(f"{HONEST}-{name}", after=0):
            assert event.seq == len(seen) + 1
            seen.append(event.text)
            if len(seen) == len(texts):
                break
        assert seen == texts


async def one_round(cluster: LocalCluster, seed: int, connections: int) -> int:
    """Attack, check what is left. Returns how many connections there were."""
    rng = random.Random(seed)
    port = cluster.node("gateway-1").port
    before = len(live_connections())
    over = asyncio.Event()
    name = f"alice-{seed}"
    honest = asyncio.create_task(honest_client(cluster, name, over))
    hows = [ATTACKS[n % len(ATTACKS)] for n in range(connections)]
    rng.shuffle(hows)
    try:
        async with asyncio.TaskGroup() as attackers:
            for how in hows:
                attackers.create_task(attack(random.Random(rng.random()), port, how))
    finally:
        over.set()
        texts = await honest
    await read_back(cluster, name, texts)
    await until_empty(cluster)
    await until_forgotten(before)
    return connections


@contextlib.asynccontextmanager
async def attacked_cluster() -> AsyncIterator[LocalCluster]:
    """A cluster with close limits; at its end its replicas have to agree."""
    async with LocalCluster(slots=4, gateway=QUICK) as cluster:
        yield cluster
        verdict = await cluster.verify()
        assert not verdict["divergent"], verdict
        assert not verdict["corrupt"], verdict
        assert not verdict["missing"], verdict


async def fuzz(seconds: float, first: int) -> int:
    """Rounds until the time is over; prints the seed that breaks something. 1 if one did."""
    end = time.monotonic() + seconds
    seed, connections = first, 0
    with Complaints().listening() as complaints:
        try:
            async with attacked_cluster() as cluster:
                while time.monotonic() < end or seed == first:
                    connections += await one_round(cluster, seed, 2 * len(ATTACKS))
                    connections += await doors.one_round(cluster, seed, 60)
                    assert not complaints.found, "\n".join(complaints.found)
                    seed += 1
        except Exception:
            print(f"\ngateway: seed {seed} failed\n{traceback.format_exc()}")
            print(f"replay: python -m tests.fuzz --target gateway --seed {seed} --seconds 1")
            return 1
    print(f"gateway: {connections} connections in {seed - first} rounds, 0 failed")
    return 0
