"""Random days of three devices against a gateway that computes everything from its timelines: at
each quiet moment the local lists and totals are what it says, online and offline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from im_actors.client import Client, ClientConfig
from im_actors.core.model import EventKind, pack
from tests.client.user_gateway import UserGateway

CONFIG = ClientConfig(
    reconnect_base_ms=1, reconnect_cap_ms=20, probe_ms=50, drain_ms=0, history_timeout_ms=60_000
)
SESSIONS = ("direct:alice/bob", "direct:alice/carol", "direct:alice/alice")
STEPS = 60


class Day:
    """What happens, and what is expected of it."""

    def __init__(self, gateway: UserGateway, stores: Path, seed: int) -> None:
        self.gateway = gateway
        self.rng = Random(seed)
        self.stores = stores
        self.devices: dict[str, Client] = {}
        self.steps: tuple[Callable[[], Any], ...] = (
            self.post, self.post, self.recall, self.send, self.read, self.read, self.settings,
            self.cut, self.restart, self.lag,
        )  # fmt: skip

    async def open(self, name: str) -> None:
        client = Client(
            self.gateway.url, "alice", name, self.stores / f"{name}.db", config=CONFIG,
            rng=Random(self.rng.random()),
        )  # fmt: skip
        self.devices[name] = await client.__aenter__()

    async def close(self, name: str) -> None:
        await self.devices.pop(name).__aexit__(None, None, None)

    def session(self) -> str:
        return self.rng.choice(SESSIONS)

    def device(self) -> Client:
        return self.rng.choice(list(self.devices.values()))

    async def post(self) -> None:
        session = self.rng.choice(SESSIONS[:2])
        peer = session.rpartition("/")[2]
        self.gateway.post(session, "hello", device=f"{peer}/pc-00000000")

    async def recall(self) -> None:
        """The last message of the other user, by himself."""
        session = SESSIONS[0]
        theirs = [
            event.seq
            for event in self.gateway.timelines.get(session, ())
            if event.sender == "bob" and event.kind == EventKind.MESSAGE
        ]
        if theirs:
            device = "bob/pc-00000000"
            n = self.gateway.next_n[session, device]
            entry = [session, n, int(EventKind.RECALL), pack([theirs[-1]])]
            _, event = self.gateway._take(device, entry)
            assert event is not None
            self.gateway._publish([event])

    async def send(self) -> None:
        await self.device().send(self.session(), "mine")

    async def read(self) -> None:
        session = self.session()
        last = len(self.gateway.timelines.get(session, ()))
        if last:
            await self.device().mark_read(session, self.rng.randint(1, last))

    async def settings(self) -> None:
        im, session, on = self.device(), self.session(), self.rng.random() < 0.5
        change = self.rng.choice((im.pin, im.mute))
        await change(session, on)

    async def cut(self) -> None:
        self.gateway.cut()
        if self.rng.random() < 0.3:
            await self.gateway.stop()
            await asyncio.sleep(0)
            await self.gateway.start()

    async def lag(self) -> None:
        """Some answers come from a copy that has nothing new."""
        self.gateway.lag = self.rng.randint(1, 3)

    async def restart(self) -> None:
        name = self.rng.choice(list(self.devices))
        await self.close(name)
        await self.open(name)

    async def quiet(self) -> None:
        """Everything has arrived everywhere."""
        for im in self.devices.values():
            await im.connected(20)
            for sent in im.outbox():
                await sent.acked(20)
        async with asyncio.timeout(60):
            while not all(self.agrees(im) for im in self.devices.values()):
                await asyncio.sleep(0.005)

    def agrees(self, im: Client) -> bool:
        """What the device shows by itself, without asking."""
        user = im._engine.user
        expected = [row for row in self.gateway.rows("alice") if row.rank]
        total = sum(row.unread for row in expected)
        return user.mailbox.rows() == expected and user.mailbox.total() == total

    async def offline(self) -> None:
        """What a device shows that finds no server is what it showed last."""
        name = self.rng.choice(list(self.devices))
        before = self.devices[name]._engine.user.mailbox.rows()
        total = self.devices[name]._engine.user.mailbox.total()
        await self.close(name)
        url = "im://127.0.0.1:1"
        async with Client(url, "alice", name, self.stores / f"{name}.db", config=CONFIG) as im:
            page = await im.conversations(100)
            assert [(c.session, c.unread, c.last_seq) for c in page.conversations] == [
                (row.session, row.unread, row.last_seq) for row in before
            ]
            assert (page.offline, page.unread) == (True, total)
        await self.open(name)


@pytest.mark.parametrize("seed", range(3))
async def test_random_days(tmp_path: Path, seed: int) -> None:
    gateway = UserGateway()
    await gateway.start()
    day = Day(gateway, tmp_path, seed)
    try:
        for name in ("phone", "pad", "pc"):
            await day.open(name)
        for step in range(1, STEPS + 1):
            await day.rng.choice(day.steps)()
            if step % 20 == 0:
                await day.quiet()
                await day.offline()
    finally:
        for name in list(day.devices):
            await day.close(name)
        await gateway.stop()
