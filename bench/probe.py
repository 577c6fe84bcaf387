"""A steady trickle of small sends to every slot, to see when each of them is answered again."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from itertools import count, cycle
from typing import Any

from im_actors.client import Client
from im_actors.client.config import ClientConfig
from im_actors.core.model import slot_of

RECONNECT_RESET_S = ClientConfig().reconnect_cap_ms / 1000
"""A connection that lasted so long is followed by a short wait before the next one."""


class Probed:
    """One message. ``acked_s`` is 0 until its ACK is there."""

    __slots__ = ("acked_s", "client", "sent_s", "seq", "session", "slot")

    def __init__(self, client: int, session: str, slot: int, sent_s: float) -> None:
        self.client = client
        self.session = session
        self.slot = slot
        self.sent_s = sent_s
        self.acked_s = 0.0
        self.seq = 0


class Probe:
    """Clients of the SDK, each with a session in every slot; use it as ``async with``."""

    def __init__(self, url: str, slots: int, clients: int, every_ms: float) -> None:
        self._url = url
        self._slots = slots
        self._client_count = clients
        self._every_s = every_ms / 1000
        self._stack = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self.messages: list[Probed] = []

    async def __aenter__(self) -> Probe:
        run = f"{time.time_ns():x}"
        self._clients = [
            await self._stack.enter_async_context(
                Client(self._url, f"probe-{number}", connect_timeout=10.0)
            )
            for number in range(self._client_count)
        ]
        self._targets = [
            (number, session, slot)
            for number in range(self._client_count)
            for slot in range(self._slots)
            for session in [session_in(slot, self._slots, f"probe-{run}-{number}")]
        ]
        self._connects = self.connects()
        self._since_s = [time.monotonic()] * self._client_count
        self._sender = asyncio.create_task(self._send_forever())
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.stop()
        await self._stack.__aexit__(*error)

    async def stop(self) -> None:
        """Send no more; return when all that was sent has its ACK."""
        self._sender.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def connects(self) -> list[int]:
        """How often each client has connected."""
        return [client.status().connects for client in self._clients]

    def restless(self) -> str:
        """Clients whose last connection is so young that they would wait longer before the next
        one; empty when there is none."""
        now, before = time.monotonic(), self._connects
        self._connects = self.connects()
        self._since_s = [
            since if known == current else now
            for since, known, current in zip(self._since_s, before, self._connects, strict=True)
        ]
        young = sum(now - since < RECONNECT_RESET_S for since in self._since_s)
        return f"{young} clients have connected only just" if young else ""

    def wrong(self) -> int:
        """Messages that were lost, doubled or out of order: each session has one sender, so its
        seqs have to be 1, 2, 3 … in the order of sending."""
        seqs: dict[str, list[int]] = defaultdict(list)
        for message in self.messages:
            seqs[message.session].append(message.seq)
        return sum(
            seq != expected for found in seqs.values() for expected, seq in enumerate(found, 1)
        )

    async def _send_forever(self) -> None:
        due = time.monotonic()
        for number, session, slot in cycle(self._targets):
            due = max(due + self._every_s, time.monotonic() - 0.1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            message = Probed(number, session, slot, time.monotonic())
            self.messages.append(message)
            sent = await self._clients[number].send(session, b"probe")
            task = asyncio.create_task(self._answered(message, sent))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answered(self, message: Probed, sent: Any) -> None:
        ack = await sent.acked()
        message.acked_s, message.seq = time.monotonic(), ack.seq


def session_in(slot: int, slots: int, prefix: str) -> str:
    """A session's name that belongs to this slot."""
    names = (f"{prefix}-{slot}-{number}" for number in count())
    return next(name for name in names if slot_of(name, slots) == slot)
