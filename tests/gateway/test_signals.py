"""Signals and presence at a gateway: what passes, what is dropped, and what shards are told."""

from __future__ import annotations

from typing import Any

from im_actors.gateway import Clock
from im_actors.gateway.signals import SESSIONS_AT_ONCE_MAX
from im_actors.wire import messages as m
from im_actors.wire import queries as q
from im_actors.wire.links import InsideType, pack_frame
from tests.gateway.fakes import Cluster, RawClient, cluster, eventually
from tests.gateway.test_user_side import GROUP, USERS, Role, Writer

TALK = "direct:alice/bob"


def typing(session: str, value: bool = True) -> tuple[Any, ...]:
    return q.signal(session, "typing", value)


async def settled(client: RawClient) -> None:
    """All that it has sent was carried out."""
    before = len(client.of(m.PONG))
    await client.send(m.ping(1))
    await client.until(lambda: len(client.of(m.PONG)) > before)


async def test_in_a_direct_session_the_other_user_hears_without_following() -> None:
    async with cluster(**USERS) as running:
        alice, pad, bob, eve = [await running.client(u) for u in ("alice", "alice", "bob", "eve")]
        await eve.send(typing(TALK))
        await alice.send(typing(TALK))
        await bob.until(lambda: bob.of(m.SIGNALED))
        assert bob.rows(m.SIGNALED) == [[TALK, "alice", "typing", True]]
        await settled(eve)
        for client in (alice, pad, eve):
            await settled(client)
            assert client.of(m.SIGNALED) == []
        # The shard that serves bob's mailbox is told, once, for other gateways.
        shard = running.shards[0]
        await eventually(lambda: shard.signals)
        assert shard.signals == [["user:bob", TALK, "alice", "typing", True]]


async def test_what_comes_from_another_gateway_is_told_here() -> None:
    async with cluster(**USERS) as running:
        bob, carol = await running.client("bob"), await running.client("carol")
        for client in (bob, carol):
            await client.send(m.follow(["team"]))
            await client.heads(1)
        rows = [
            ["user:bob", TALK, "alice", "typing", True],
            ["team", "team", "carol", "presence", False],
            ["user:nobody", "direct:alice/nobody", "alice", "typing", True],
        ]
        for link in running.shards[0].watchers:
            link.send(pack_frame((InsideType.SIGNAL, rows)))
        await bob.until(lambda: len(bob.of(m.SIGNALED)) == 2)
        assert bob.rows(m.SIGNALED) == [rows[0][1:], rows[1][1:]]
        assert carol.of(m.SIGNALED) == []


async def test_too_much_is_dropped() -> None:
    rate, frozen = SESSIONS_AT_ONCE_MAX + 1, Clock(monotonic_ms=lambda: 1_000)
    async with cluster(clock=frozen, **USERS, signals_per_s=rate) as running:
        bob = await running.client("bob")
        loud, louder = await running.client("alice"), await running.client("eve")
        signals = running.gateway.user_side.signals
        await loud.send(*[typing(f"direct:alice/u{n:02}") for n in range(SESSIONS_AT_ONCE_MAX)])
        # One session more than a connection may signal in, and one of them again.
        await loud.send(typing(TALK), typing("direct:alice/u00", False))
        await settled(loud)
        assert (signals.passed, signals.dropped) == (SESSIONS_AT_ONCE_MAX, 2)
        # More than the gateway lets through.
        await louder.send(*[typing(f"direct:eve/w{n:02}") for n in range(5)])
        await settled(louder)
        assert (signals.passed, signals.dropped) == (rate, 6)
        assert bob.of(m.SIGNALED) == []


async def test_large_groups_and_sessions_of_many_followers_have_no_signals() -> None:
    async with cluster(**USERS, signal_hearers_max=2) as running:
        writer = Writer(running)
        writer.members(bob=Role.OWNER, alice=Role.MEMBER, carol=Role.MEMBER)
        clients = [await running.client(user) for user in ("alice", "bob", "carol")]
        for client in clients:
            await client.send(m.follow([GROUP, "team"]))
            await client.heads(2)
        await clients[0].send(typing(GROUP), typing("team"))
        for client in clients:
            await settled(client)
            assert client.of(m.SIGNALED) == []
        await clients[2].send(m.unfollow(["team"]))
        await settled(clients[2])
        await clients[1].send(typing("team"))
        await clients[0].until(lambda: clients[0].of(m.SIGNALED))


async def told(running: Cluster, shard: int, user: str, devices: list[str]) -> None:
    await eventually(lambda: running.shards[shard].presence.devices(user) == devices)


async def test_shards_are_told_who_is_here_and_told_again_when_they_change() -> None:
    async with cluster(slots=4, **USERS) as running:
        phone = await (await running.connect()).hello("alice", device="phone")
        await (await running.connect()).hello("alice", device="pad")
        await told(running, 0, "alice", ["pad", "phone"])
        await phone.close()
        await told(running, 0, "alice", ["pad"])
        running.move(to=1)
        await told(running, 1, "alice", ["pad"])
        before = len(running.shards[1].heres)
        running.shards[1].cut()
        await eventually(lambda: len(running.shards[1].heres) > before)
        await told(running, 1, "alice", ["pad"])


async def test_devices_of_other_gateways_are_shown_and_a_silent_shard_is_not_waited_for() -> None:
    async with cluster(**USERS, presence_ms=50) as running:
        bob = await running.client("bob")
        shard = running.shards[0]
        await told(running, 0, "bob", ["phone"])
        other: Any = type("Other", (), {"buffered_bytes": 0})()
        shard.presence.here(other, [], [("alice", ["pc"])])
        assert (await bob.ask("presence", TALK, 5))[4] == [1, ["alice"]]
        shard.silent = True
        assert (await bob.ask("presence", TALK, 5))[4] == [0, []]
