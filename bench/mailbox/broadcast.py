"""A batch on the channel of high priority, alone and with a chat beside it.

The recipients have never got a notice before. The chat is an open loop at a steady rate; its ACKs
are counted from the moment at which a message was meant to be sent, first without a batch and then,
in the same run and from the same generator, until the batch is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.loading import WINDOW, load_to
from bench.running import Cluster
from im_actors.cli.bench.latencies import Latencies
from im_actors.cli.bench.processes import Generators
from im_actors.client import BatchInfo, Client
from im_actors.core.batch import chunked
from im_actors.errors import RetryableError

SERVICE = "shop"
"""Who sends batches; a service of the cluster."""
CONTENT = "Summer sale: everything that floats is half the price until Sunday."
CHUNKS_ON_THEIR_WAY = 8
ACK_S = 60.0
POLL_S = 0.1
WARMUP_S = 1.0
PHASE_S = 2.0
"""The chat beside a batch is told in parts of this length, until the batch is done."""

Moved = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Broadcast:
    alone: int
    """Recipients of the batch that runs alone,"""
    beside: int
    """and of the one with the chat beside it."""
    chat_rate: float
    """Messages per second."""
    seconds: float
    """Of the chat without a batch."""


async def broadcast(
    cluster: Cluster, asked: Broadcast, say: Callable[[str], None], moved: Moved
) -> dict[str, Any]:
    host, port = cluster.address
    async with Client(f"im://{host}:{port}", SERVICE, "bench", None) as im:
        await _upload(im, "alone", asked.alone)
        alone_s = await _tell(im, "alone", asked.alone, moved)
        say(f"a batch alone: {asked.alone / alone_s:,.0f} recipients/s")
        await _upload(im, "beside", asked.beside)
        load = load_to(cluster.address, connections=16, sessions=400)
        async with Generators([load], None) as chat:
            idle = await chat.phase(asked.seconds, WARMUP_S, asked.chat_rate, window=WINDOW)
            running = asyncio.create_task(_tell(im, "beside", asked.beside, moved))
            beside, acked = Latencies(), 0
            while not running.done():
                figures = await chat.phase(PHASE_S, 0.0, asked.chat_rate, window=WINDOW)
                beside.add(figures.ack.counts())
                acked += figures.acked
            beside_s = await running
    before, meanwhile = idle.ack.summary(), beside.summary()
    if before is None or meanwhile is None:
        raise RuntimeError("the chat was not acknowledged")
    return {
        "recipients": asked.alone,
        "recipients_per_s": round(asked.alone / alone_s),
        "recipients_beside": asked.beside,
        "recipients_per_s_beside": round(asked.beside / beside_s),
        "chat_rate": asked.chat_rate,
        "chat_acked_beside": acked,
        "chat_ms": before,
        "chat_ms_beside": meanwhile,
        "chat_p99_ratio": round(meanwhile["p99"] / before["p99"], 2),
    }


def _names(batch: str, recipients: int) -> Sequence[str]:
    return [f"{batch}-{number:07}" for number in range(recipients)]


async def _upload(im: Client, batch: str, recipients: int) -> None:
    """Order a batch; afterwards it only has to be started."""
    await (await im.batches.create(batch, CONTENT, "high", total=recipients)).acked(ACK_S)
    chunks = chunked(_names(batch, recipients))
    for start in range(0, len(chunks), CHUNKS_ON_THEIR_WAY):
        part = enumerate(chunks[start : start + CHUNKS_ON_THEIR_WAY], start)
        for sent in [await im.batches.recipients(batch, number, chunk) for number, chunk in part]:
            await sent.acked(ACK_S)


async def _tell(im: Client, batch: str, recipients: int, moved: Moved) -> float:
    """Start an uploaded batch; the seconds until everybody is told. RuntimeError: not everybody."""
    began = time.monotonic()
    await (await im.batches.start(batch)).acked(ACK_S)
    while True:
        info = await _status(im, batch)
        if info is not None:
            moved(info.told, recipients)
            if info.at_rest:
                break
        await asyncio.sleep(POLL_S)
    took_s = time.monotonic() - began
    if info.state != "done" or info.sent != recipients:
        raise RuntimeError(f"the batch is {info.state}: {info.sent} of {recipients} were sent to")
    return took_s


async def _status(im: Client, batch: str) -> BatchInfo | None:
    try:
        return await im.batches.status(batch)
    except RetryableError:
        return None
