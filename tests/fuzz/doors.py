"""Strangers at the ports of shards, replicas and the controller, which only actors may use.

They have no secret, so whatever they send must be answered by a refusal or by nothing, end the
connection, and change nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

from im_actors.net.link_connection import NONCE_BYTES
from im_actors.testing import LocalCluster
from im_actors.wire.codec import FrameDecoder, Message
from tests.fuzz import corpus
from tests.fuzz.mutate import frame_of, mutated_stream

PATIENCE_S = 30
HELLO, CHALLENGE, PROOF, ACCEPTED, ERROR = 128, 129, 130, 131, 70
ACTORS = ("shard-1", "shard-2", "replica-1", "replica-2", "replica-3")


def ports(cluster: LocalCluster) -> list[int]:
    return [cluster._admin.port, *(cluster.node(name).address.port for name in ACTORS)]


def what_they_know(cluster: LocalCluster) -> dict[str, Any]:
    """What no stranger may change: links, owners, promises and logs."""
    found: dict[str, Any] = {}
    for name in ACTORS:
        node = cluster.node(name)
        found[name] = sorted((link.peer.role, link.peer.id) for link in node._server.links)
    for name in ACTORS[:2]:
        status = cluster.node(name).status()
        found[f"{name} serves"] = (status["incarnation"], status["serving"])
    for name in ACTORS[2:]:
        logs = cluster.node(name).machine.logs
        found[f"{name} holds"] = {
            slot: (log.promised, log.owner, log.view, tuple(log.epochs), tuple(log.held))
            for slot, log in logs.items()
        }
    return found


def a_stream(rng: random.Random) -> bytes:
    """What a stranger says: noise, bombs, parts of the handshake, what only actors may say."""
    hello = frame_of(corpus.HANDSHAKE[0])
    inside = [
        *corpus.BETWEEN_ACTORS,
        [150, [[1, 0, "team", "eve/x", 1, 1, b""]]],
        [170, 1, "x", "[]"],
    ]
    match rng.randrange(5):
        case 0:
            return mutated_stream(rng, corpus.HANDSHAKE)
        case 1:
            return rng.choice(list(corpus.BOMBS.values()))
        case 2:
            return hello + mutated_stream(rng, corpus.HANDSHAKE)
        case 3:
            proof = frame_of([PROOF, rng.randbytes(rng.choice((0, 31, 32)))])
            return hello + proof + frame_of(rng.choice(inside))
        case _:
            return frame_of(rng.choice(inside))


async def knock(rng: random.Random, port: int) -> list[Message]:
    """One connection: a stream in pieces, then the end; what was answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard: list[Message] = []
    decoder = FrameDecoder()
    data = a_stream(rng)
    try:
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                for at in range(0, len(data), size := rng.choice((7, 100, 5_000))):
                    writer.write(data[at : at + size])
                    await writer.drain()
                writer.write_eof()
                while part := await reader.read(1 << 16):
                    heard += decoder.feed(part)
        return heard
    except TimeoutError:
        raise AssertionError(f"port {port} keeps a stranger") from None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def one_round(cluster: LocalCluster, seed: int, connections: int) -> int:
    """Knock at all doors. Returns how many connections there were."""
    rng = random.Random(seed)
    before = what_they_know(cluster)
    there = ports(cluster)
    answers = await asyncio.gather(
        *(knock(random.Random(rng.random()), there[n % len(there)]) for n in range(connections))
    )
    for heard in answers:
        kinds = [message[0] for message in heard]
        assert kinds in ([], [CHALLENGE], [ERROR], [CHALLENGE, ERROR]), kinds
        for message in heard:
            # Nothing that another connection could use: a new nonce, and a proof of it.
            assert message[0] == ERROR or len(message[5]) == NONCE_BYTES
    async with asyncio.timeout(PATIENCE_S):
        while what_they_know(cluster) != before:
            await asyncio.sleep(0.05)
    return connections
