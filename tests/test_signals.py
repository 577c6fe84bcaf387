"""Signals, presence and devices between two gateways that know nothing of each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from im_actors.client import Client, Forbidden
from im_actors.client.conversations import Signal
from im_actors.core.rule_settings import RuleSettings
from im_actors.errors import TooLarge
from im_actors.gateway import GatewayConfig
from im_actors.testing import LocalCluster

TALK = "direct:alice/bob"
GROUP = "group:climbers"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    gateway = GatewayConfig(signal_ms=1, signal_hearers_max=10)
    rules = RuleSettings(devices_max=2)
    async with LocalCluster(tmp_path / "data", gateways=2, gateway=gateway, rules=rules) as cluster:
        yield cluster


def urls(cluster: LocalCluster) -> list[str]:
    """One for each gateway."""
    return [f"im://{address}" for address in cluster.url.removeprefix("im://").split(",")]


async def acked(sending: Awaitable[Any]) -> int:
    return int((await (await sending).acked(timeout=30)).seq)


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.01)


async def heard(hearing: Client, say: Callable[[], None]) -> Signal:
    """The next signal, which is said until it is heard: any may get lost."""
    signals = aiter(hearing.signals())
    coming = asyncio.ensure_future(anext(signals))
    async with asyncio.timeout(60):
        while not coming.done():
            say()
            await asyncio.wait([coming], timeout=0.02)
    await signals.aclose()  # type: ignore[attr-defined]
    return coming.result()


async def test_signals_reach_the_other_gateway_also_after_a_takeover(cluster: LocalCluster) -> None:
    first, second = urls(cluster)
    async with Client(first, user="alice") as alice, Client(second, user="bob") as bob:
        await asyncio.gather(alice.connected(20), bob.connected(20))
        # In a direct session he need not follow it.
        assert await heard(bob, lambda: alice.typing(TALK)) == (TALK, "alice", "typing", True)
        assert bob.who_types(TALK) == ["alice"]
        await acked(alice.groups.create("climbers", "Climbers", ["bob"]))
        both = (GROUP, "team")
        following = [client.follow(session) for client in (alice, bob) for session in both]
        for session in both:
            await acked(bob.send(session, "hi"))
            await until(lambda session=session: has(alice, session))  # type: ignore[misc]
            found = await heard(alice, lambda session=session: bob.here(session))  # type: ignore[misc]
            assert found == (session, "bob", "presence", True)
        for broken in ("shard-1", "shard-2"):
            await cluster.crash(broken)
            await cluster.wait_serving()
            assert (await heard(bob, lambda: alice.typing(TALK, False))).value is False
        for follower in following:
            follower.close()


async def has(client: Client, session: str) -> bool:
    return bool((await client.history(session)).events)


async def test_who_is_online_anywhere_is_told(cluster: LocalCluster) -> None:
    first, second = urls(cluster)
    async with Client(first, user="alice") as alice:
        await alice.connected(20)
        assert await alice.who_is_online(TALK) == []
        async with Client(second, user="bob") as bob, Client(first, user="carol") as carol:
            await asyncio.gather(bob.connected(20), carol.connected(20))
            await acked(alice.groups.create("climbers", "Climbers", ["bob", "carol", "dave"]))
            await until(lambda: online(alice, GROUP, ["bob", "carol"]))
            assert await online(alice, TALK, ["bob"])
            await cluster.crash("shard-1")
            await cluster.wait_serving()
            await cluster.crash("shard-2")
            await cluster.wait_serving()
            await until(lambda: online(alice, GROUP, ["bob", "carol"]))
            await cluster.crash("gateway-2", hold=True)
            await until(lambda: online(alice, GROUP, ["carol"]))
            cluster.release("gateway-2")
            await until(lambda: online(alice, GROUP, ["bob", "carol"]))
            with pytest.raises(Forbidden):
                await alice.who_is_online("direct:bob/carol")
            with pytest.raises(Forbidden):
                await alice.who_is_online("team")
            await acked(alice.groups.add("climbers", *[f"u{n}" for n in range(7)]))
            with pytest.raises(TooLarge):
                await alice.who_is_online(GROUP)
        await until(lambda: online(alice, TALK, []))


async def online(client: Client, session: str, users: list[str]) -> bool:
    return sorted(await client.who_is_online(session)) == users


async def test_devices_at_different_gateways_are_listed_limited_and_kicked(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    first, second = urls(cluster)

    def device(url: str, name: str) -> Client:
        return Client(url, user="alice", device=name, store=tmp_path / f"{name}.db")

    async with device(first, "phone") as phone, device(second, "pad") as pad:
        await until(lambda: listed(phone, {"phone": True, "pad": True}))
        await until(lambda: listed(pad, {"phone": True, "pad": True}))
        async with device(second, "third") as third:
            refused = (await third.connected(20), third)[1]
            async with asyncio.timeout(60):
                while not isinstance(refused.status().last_error, Forbidden):
                    await asyncio.sleep(0.01)
            assert await listed(phone, {"phone": True, "pad": True})
        name = next(d.device for d in await phone.devices() if d.device.startswith("pad"))
        await acked(phone.kick(name))
        async with asyncio.timeout(60):
            while pad.status().online or not isinstance(pad.status().last_error, Forbidden):
                await asyncio.sleep(0.01)
        await until(lambda: listed(phone, {"phone": True}))
    async with device(first, "pad") as pad, device(second, "phone") as phone:
        # Kicked at one gateway is kicked at all of them.
        async with asyncio.timeout(60):
            while not isinstance(pad.status().last_error, Forbidden):
                await asyncio.sleep(0.01)
        assert await listed(phone, {"phone": True})


async def listed(client: Client, expected: dict[str, bool]) -> bool:
    found = {row.device.rpartition("-")[0]: row.online for row in await client.devices()}
    return found == expected
