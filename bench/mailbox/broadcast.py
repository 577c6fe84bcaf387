"""A batch on the channel of high priority, alone and with a chat beside it.

The recipients have never got a notice before. The chat is an open loop at a steady rate; its ACKs
are counted from the moment at which a message was meant to be sent, first without a batch and then,
in the same run and from the same generator, until the batch is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.batch import client_of, names, tell, upload
from bench.loading import WINDOW, load_to
from bench.running import Cluster
from im_actors.cli.bench.latencies import Latencies
from im_actors.cli.bench.processes import Generators

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
    async with client_of(cluster) as im:
        await upload(im, "alone", names(asked.alone, "alone"))
        alone = await tell(cluster, im, "alone", asked.alone, moved=moved)
        say(f"a batch alone: {alone.recipients_per_s:,} recipients/s")
        await upload(im, "beside", names(asked.beside, "beside"))
        load = load_to(cluster.address, connections=16, sessions=400)
        async with Generators([load], None) as chat:
            idle = await chat.phase(asked.seconds, WARMUP_S, asked.chat_rate, window=WINDOW)
            running = asyncio.create_task(tell(cluster, im, "beside", asked.beside, moved=moved))
            beside, acked = Latencies(), 0
            while not running.done():
                figures = await chat.phase(PHASE_S, 0.0, asked.chat_rate, window=WINDOW)
                beside.add(figures.ack.counts())
                acked += figures.acked
            told = await running
    before, meanwhile = idle.ack.summary(), beside.summary()
    if before is None or meanwhile is None:
        raise RuntimeError("the chat was not acknowledged")
    return {
        "recipients": asked.alone,
        "recipients_per_s": alone.recipients_per_s,
        "recipients_beside": asked.beside,
        "recipients_per_s_beside": told.recipients_per_s,
        "chat_rate": asked.chat_rate,
        "chat_acked_beside": acked,
        "chat_ms": before,
        "chat_ms_beside": meanwhile,
        "chat_p99_ratio": round(meanwhile["p99"] / before["p99"], 2),
    }
