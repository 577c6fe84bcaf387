"""Receipts on a whole cluster: what came, what was read, and by how many in a group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from im_actors.client import Client, ClientConfig
from im_actors.client.conversations import Conversation
from im_actors.testing import LocalCluster

TALK = "direct:alice/bob"
GROUP = "group:climbers"
QUICK = ClientConfig(received_ms=20)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(tmp_path / "data", gateways=2) as cluster:
        yield cluster


async def acked(sending: Awaitable[Any]) -> int:
    return int((await (await sending).acked(timeout=30)).seq)


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.01)


async def talk_of(client: Client) -> Conversation:
    found = await client.conversation(TALK)
    assert found is not None
    return found


async def test_what_a_device_keeps_is_delivered_and_then_read(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    first, second = (f"im://{address}" for address in cluster.url[5:].split(","))
    async with Client(first, user="alice") as alice:
        for text in ("one", "two"):
            await acked(alice.send(TALK, text))
        async with Client(second, user="bob", config=QUICK) as forgetful:
            await anext(aiter(forgetful.follow(TALK, after=0)))
            await acked(forgetful.pin(TALK))
            # What is in memory only has not come to stay.
            assert (await talk_of(alice)).peer_delivered_seq == 0
        async with Client(second, user="bob", store=tmp_path / "bob.db", config=QUICK) as bob:
            following = bob.follow(TALK, after=0)
            await anext(aiter(following))
            await until(lambda: came(alice, 2))
            talk, found = await talk_of(alice), await alice.receipts(TALK, 2)
            assert (talk.peer_delivered_seq, talk.peer_read_seq) == (2, 0)
            assert (found.read, found.delivered) == (0, True)
            assert (await alice.receipts(TALK, 3)).delivered is False
            await acked(bob.mark_read(TALK, 2))
            await until(lambda: read_by(alice, TALK, 2, ["bob"]))
            following.close()


async def came(client: Client, seq: int) -> bool:
    return (await talk_of(client)).peer_delivered_seq >= seq


async def read_by(client: Client, session: str, seq: int, users: list[str]) -> bool:
    found = await client.receipts(session, seq)
    assert found.read >= len(found.users)
    return (found.read, sorted(found.users)) == (len(users), users)


async def test_receipts_of_a_large_group_are_counted(cluster: LocalCluster) -> None:
    first, second = (f"im://{address}" for address in cluster.url[5:].split(","))
    names = [f"user-{n:03}" for n in range(300)]
    async with (
        Client(first, user="alice") as alice,
        Client(second, user=names[0]) as one,
        Client(first, user=names[1]) as two,
        Client(second, user=names[2]) as three,
    ):
        await acked(alice.groups.create("climbers", "Climbers", names))
        for text in ("one", "two"):
            await acked(alice.send(GROUP, text))
        assert await read_by(alice, GROUP, 2, [])
        for reader, seq in ((one, 3), (two, 2), (three, 3)):
            await acked(reader.mark_read(GROUP, seq))
        await until(lambda: read_by(alice, GROUP, 2, names[:3]))
        assert await read_by(alice, GROUP, 3, [names[0], names[2]])
        # Nobody is told of himself.
        await until(lambda: read_by(one, GROUP, 2, names[1:3]))
        found = await alice.receipts(GROUP, 2, limit=1)
        assert (found.read, len(found.users), found.delivered) == (3, 1, None)
        # A takeover loses none, and who leaves is counted no more.
        await cluster.crash("shard-1")
        await acked(three.groups.leave("climbers"))
        await until(lambda: read_by(alice, GROUP, 3, [names[0]]))
        # Who comes later has read what came later only.
        await acked(alice.groups.add("climbers", names[2]))
        seq = await acked(alice.send(GROUP, "three"))
        await acked(three.mark_read(GROUP, seq))
        await until(lambda: read_by(alice, GROUP, seq, [names[2]]))
        assert await read_by(alice, GROUP, 3, [names[0]])
