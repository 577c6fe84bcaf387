"""Groups, conversation lists and devices through the SDK against a whole cluster in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from im_actors.client import Client
from im_actors.core.model import Event
from im_actors.core.owner import OwnerSettings
from im_actors.errors import Forbidden, NotFound
from im_actors.gateway import GatewayConfig
from im_actors.testing import LocalCluster
from tests.support_redis import MakeRedis

GROUP = "group:climbers"
QUICK = OwnerSettings(replace_after_ms=600, seal_wait_ms=200)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(tmp_path / "data", gateways=2) as running:
        yield running


async def acked(sending: Any) -> int:
    """The seq that a change became."""
    sent = await sending
    return int((await sent.acked(timeout=30)).seq)


async def talk(client: Client, session: str, count: int) -> int:
    """The seq of the last of so many messages."""
    sent = [
        await client.send(session, f"{client.address.partition('/')[0]} {n}") for n in range(count)
    ]
    return [(await one.acked(timeout=30)).seq for one in sent][-1]


async def talk_on(client: Client, session: str) -> None:
    """Until something is refused."""
    while True:
        await talk(client, session, 1)


async def has_read(client: Client, session: str, seq: int, expected: list[str]) -> None:
    """Wait until the receipts say so; those of users at other gateways may be a moment old."""
    async with asyncio.timeout(60):
        while (await client.receipts(session, seq)).users != expected:
            await asyncio.sleep(0.01)


async def unread_of(client: Client, session: str, expected: int) -> None:
    """Wait until the server says so: replicas may be a moment behind a message of others."""
    found = None
    async with asyncio.timeout(60):
        while found != expected:
            row = await client.conversation(session)
            found = row.unread if row is not None else None
            await asyncio.sleep(0.01)


async def until_event(client: Client, session: str, seq: int, after: int = 0) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(60):
        async for event in client.follow(session, after=after):
            events.append(event)
            if event.seq >= seq:
                break
    return events


async def test_only_members_read_a_group_and_only_from_when_they_joined(
    cluster: LocalCluster,
) -> None:
    async with (
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
        Client(cluster.url, user="carol") as carol,
    ):
        await acked(alice.groups.create("climbers", "Climbers", ["bob"]))
        assert await talk(alice, GROUP, 3) == 4
        texts = [event.text for event in await until_event(bob, GROUP, 4) if event.text]
        assert texts[-3:] == ["alice 0", "alice 1", "alice 2"]
        with pytest.raises(Forbidden):
            await until_event(carol, GROUP, 4)
        with pytest.raises(Forbidden):
            await carol.history(GROUP)
        with pytest.raises(Forbidden, match="carol is not a member of group:climbers"):
            await talk(carol, GROUP, 1)
        with pytest.raises(NotFound):
            await carol.history("group:nowhere")

        joined = await acked(alice.groups.add("climbers", "carol"))
        await talk(bob, GROUP, 1)
        page = await carol.history(GROUP)
        assert page.events[0].seq == joined
        followed = await until_event(carol, GROUP, joined + 1)
        assert [event.seq for event in followed] == [joined, joined + 1]
        # Who comes back goes on where he came back.
        await acked(alice.groups.remove("climbers", "carol"))
        await talk(bob, GROUP, 2)
        back = await acked(alice.groups.add("climbers", "carol"))
        await talk(bob, GROUP, 1)
        followed = await until_event(carol, GROUP, back + 1, after=joined + 1)
        assert [event.seq for event in followed] == [back, back + 1]


async def test_who_follows_a_group_that_he_left_is_pushed_to_when_he_is_back(
    cluster: LocalCluster,
) -> None:
    async with (
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
    ):
        await acked(alice.groups.create("climbers", "Climbers", ["bob"]))
        await bob.conversations()
        left = await acked(bob.groups.leave("climbers"))
        async with bob.follow(GROUP, after=0) as follower:
            while (await follower.next(20)).seq < left:
                pass
            await acked(alice.groups.add("climbers", "bob"))
            said = await talk(alice, GROUP, 1)
            while (await follower.next(20)).seq < said:
                pass


async def test_a_list_says_nothing_of_a_group_from_before_or_without_being_in_it(
    cluster: LocalCluster,
) -> None:
    async with (
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
        Client(cluster.url, user="carol") as carol,
    ):
        await acked(alice.groups.create("climbers", "Climbers", []))
        await talk(alice, GROUP, 1)
        await acked(alice.groups.add("climbers", "bob"))
        await acked(carol.pin(GROUP))
        await unread_of(bob, GROUP, 0)
        row = await bob.conversation(GROUP)
        assert row is not None
        assert (row.sender, row.preview) == ("", "")
        assert (await carol.conversations()).conversations == []
        seq = await talk(alice, GROUP, 1)
        await acked(bob.delete(GROUP, seq))
        await unread_of(bob, GROUP, 1)
        row = await bob.conversation(GROUP)
        assert row is not None
        assert (row.sender, row.preview) == ("alice", "")


async def test_a_direct_session_is_read_by_its_two_users_only(cluster: LocalCluster) -> None:
    async with (
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
        Client(cluster.url, user="carol") as carol,
    ):
        await talk(alice, "direct:alice/bob", 2)
        assert len(await until_event(bob, "direct:alice/bob", 2)) == 2
        for session in ("direct:alice/bob", "user:alice", "slot:1"):
            with pytest.raises(Forbidden):
                await carol.history(session)


async def test_who_is_removed_is_pushed_no_more_and_reads_what_came_before(
    cluster: LocalCluster,
) -> None:
    async with (
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
    ):
        await acked(alice.groups.create("climbers", "Climbers", ["bob"]))
        seen: list[int] = []

        async def follow() -> None:
            async for event in bob.follow(GROUP, after=0):
                seen.append(event.seq)

        following = asyncio.create_task(follow())
        await talk(alice, GROUP, 2)
        async with asyncio.timeout(60):
            while len(seen) < 3:
                await asyncio.sleep(0.01)
        removed = await acked(alice.groups.remove("climbers", "bob"))
        await talk(alice, GROUP, 2)
        with pytest.raises(Forbidden):
            async with asyncio.timeout(60):
                await following
        assert seen == list(range(1, removed + 1))
        page = await bob.history(GROUP)
        assert [event.seq for event in page.events][-1] == removed
        with pytest.raises(Forbidden):
            await talk(bob, GROUP, 1)


async def test_what_a_group_is_and_who_is_in_it(cluster: LocalCluster) -> None:
    async with (
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
        Client(cluster.url, user="zoe") as zoe,
    ):
        names = [f"user{n:03}" for n in range(150)]
        await acked(alice.groups.create("climbers", "Climbers", names))
        await acked(alice.groups.add("climbers", "bob"))
        await acked(alice.groups.role("climbers", "bob", "admin"))
        info = await bob.groups.info("climbers")
        assert info is not None
        assert (info.title, info.owner, info.members) == ("Climbers", "alice", 152)
        assert (info.role, info.offline) == ("admin", False)
        outside = await zoe.groups.info("climbers")
        assert outside is not None
        assert outside.role == ""
        with pytest.raises(Forbidden):
            await zoe.groups.members("climbers")
        with pytest.raises(NotFound):
            await zoe.groups.info("nowhere")

        found: list[tuple[str, str]] = []
        after: str | None = None
        while True:
            page = await alice.groups.members("climbers", after, limit=40)
            found += [(member.user, member.role) for member in page.members]
            after = page.next
            if after is None:
                break
        assert found[:2] == [("alice", "owner"), ("bob", "admin")]
        assert sorted(name for name, role in found if role == "member") == names


async def test_unread_of_a_group_is_counted_for_each_reader(cluster: LocalCluster) -> None:
    async with (
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
    ):
        await acked(alice.groups.create("climbers", "Climbers", ["bob"]))
        await acked(bob.mute(GROUP))
        await talk(alice, GROUP, 5)
        own = await talk(bob, GROUP, 2)
        await unread_of(bob, GROUP, 5)
        await acked(bob.mark_read(GROUP, 4))
        await unread_of(bob, GROUP, 2)
        await acked(alice.recall(GROUP, 5))
        await unread_of(bob, GROUP, 1)
        row = await bob.conversation(GROUP)
        assert row is not None
        assert (row.title, row.last_seq, row.muted) == ("Climbers", own + 1, True)
        assert (row.sender, row.preview) == ("bob", "bob 1")
        assert row.inputs is not None
        assert row.inputs.last - row.inputs.base - row.inputs.skipped == 1
        listed = await bob.conversations()
        assert [one.session for one in listed.conversations] == [GROUP]
        assert (listed.unread, listed.offline) == (1, False)
        assert (await bob.unread()).count == 1


async def test_a_reader_far_behind_is_counted_by_a_replica(cluster: LocalCluster) -> None:
    async with (
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
    ):
        await acked(alice.groups.create("climbers", "Climbers", ["bob"]))
        await talk(bob, GROUP, 10)
        for _ in range(5):
            await talk(alice, GROUP, 100)
        await acked(bob.pin(GROUP))
        await unread_of(bob, GROUP, 500)
        await talk(alice, GROUP, 1)
        await unread_of(bob, GROUP, 501)
        await acked(alice.recall(GROUP, 20))
        await unread_of(bob, GROUP, 500)


async def test_a_list_of_groups_is_paged_and_its_changes_are_told(cluster: LocalCluster) -> None:
    names = [f"g{n}" for n in range(12)]
    async with (
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
    ):
        for name in names:
            await acked(alice.groups.create(name, name.upper(), ["bob"]))
            await acked(bob.mute(f"group:{name}"))
        for name in names:
            await talk(alice, f"group:{name}", 1)
        expected = [f"group:{name}" for name in reversed(names)]
        async with asyncio.timeout(60):
            while (await bob.unread()).count != 12:
                await asyncio.sleep(0.01)
        found: list[str] = []
        page = await bob.conversations(limit=5)
        while True:
            assert not page.offline
            found += [row.session for row in page.conversations]
            if page.next is None:
                break
            page = await bob.conversations(after=page.next, limit=5)
        assert found == expected
        await acked(bob.mark_read("group:g3", 2))
        await acked(bob.fold("group:g4", "quiet"))
        assert (await bob.unread()).count == 11
        only = await bob.conversations(unread_only=True, limit=50)
        assert [row.session for row in only.conversations] == [
            name for name in expected if name not in ("group:g3", "group:g4")
        ]
        folded = await bob.conversations(label="quiet")
        assert [row.session for row in folded.conversations] == ["group:g4"]


async def test_a_device_that_is_kicked_is_cut_off_until_it_is_let_in(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    url = cluster.url
    async with (
        Client(url, user="alice", device="phone", store=str(tmp_path / "phone")) as phone,
        Client(url, user="alice", device="laptop", store=str(tmp_path / "laptop")) as laptop,
    ):
        async with asyncio.timeout(60):
            while len(await phone.devices()) < 2:
                await asyncio.sleep(0.02)
        devices = {device.device: device for device in await phone.devices()}
        name = laptop.address.partition("/")[2]
        assert name in devices
        await acked(phone.kick(name))
        with pytest.raises(Forbidden):
            await talk(laptop, "team", 1)
        assert [device.device for device in await phone.devices()] == [
            phone.address.partition("/")[2]
        ]
    async with Client(url, user="alice", device="laptop", store=str(tmp_path / "laptop")) as again:
        # Whether it is refused at HELLO or a moment later, it is not let do anything for long.
        with pytest.raises(Forbidden):
            await talk_on(again, "team")
    async with Client(url, user="alice", device="phone", store=str(tmp_path / "phone")) as phone:
        await acked(phone._engine.user.change("device", name, "let in again"))
    async with Client(url, user="alice", device="laptop", store=str(tmp_path / "laptop")) as again:
        await talk(again, "team", 1)
        assert len(await again.devices()) == 2


async def test_what_was_said_of_old_messages_is_asked_for_by_range(cluster: LocalCluster) -> None:
    async with Client(cluster.url, user="alice") as alice:
        await talk(alice, "team", 10)
        await acked(alice.recall("team", 3))
        await acked(alice.edit("team", 4, "better"))
        await acked(alice.edit("team", 9, "best"))
        await acked(alice.delete("team", 5))
    async with Client(cluster.url, user="alice", device="new") as alice:
        await alice.connected(20)
        rows = await alice._engine.user.ask("overlays", "team", 2, 8)
        assert sorted(row[:1] + row[2:] for row in rows) == [
            [3, 2, None], [4, 3, b"better"], [5, 0, None],
        ]  # fmt: skip


async def test_direct_sessions_appear_in_both_lists_with_their_unread_counts(
    cluster: LocalCluster,
) -> None:
    session = "direct:alice/bob"
    async with (
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
        Client(cluster.url, user="bob", device="tablet") as tablet,
    ):
        await talk(alice, session, 4)
        await talk(bob, session, 1)
        await unread_of(bob, session, 4)
        await unread_of(alice, session, 1)
        await acked(bob.mark_read(session, 3))
        await unread_of(bob, session, 1)
        await unread_of(tablet, session, 1)
        await acked(alice.recall(session, 4))
        await unread_of(bob, session, 0)
        listed = await tablet.conversations()
        assert [(row.session, row.unread) for row in listed.conversations] == [(session, 0)]
        assert listed.conversations[0].title == "alice"
        await has_read(alice, session, 2, ["bob"])
        assert (await alice.receipts(session, 4)).users == []


async def test_who_is_added_finds_the_group_in_his_list_and_who_leaves_does_not(
    cluster: LocalCluster,
) -> None:
    async with (
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
    ):
        await acked(alice.groups.create("climbers", "Climbers", ["bob"]))
        await talk(alice, GROUP, 3)
        await unread_of(bob, GROUP, 3)
        listed = await bob.conversations()
        assert [(row.title, row.unread) for row in listed.conversations] == [("Climbers", 3)]
        assert (await alice.receipts(GROUP, 2)).users == []
        await acked(bob.mark_read(GROUP, 3))
        await has_read(alice, GROUP, 2, ["bob"])
        await acked(bob.groups.leave("climbers"))
        async with asyncio.timeout(60):
            while (await bob.conversations()).conversations:
                await asyncio.sleep(0.01)
        assert (await bob.unread()).count == 0


async def test_typing_is_told_to_the_others_who_follow(cluster: LocalCluster) -> None:
    session = "direct:alice/bob"
    url = cluster.url.partition(",")[0]
    async with Client(url, user="alice") as alice, Client(url, user="bob") as bob:
        await talk(alice, session, 1)
        await until_event(bob, session, 1)
        following = bob.follow(session, after=0)
        hearing = bob.signals()
        heard = asyncio.ensure_future(anext(hearing))
        while not heard.done():
            alice.typing(session)
            await asyncio.wait([heard], timeout=1)
        signal = await heard
        assert (signal.session, signal.user, signal.value) == (session, "alice", True)
        await hearing.aclose()
        following.close()


@pytest.mark.parametrize("broken", ["shard-1", "shard-2", "replica-1", "replica-3"])
async def test_lists_stay_right_while_actors_are_killed(tmp_path: Path, broken: str) -> None:
    """A server's answer holds what was ACKed before it was asked for, or there is none."""
    groups = [f"group:g{n}" for n in range(6)]
    async with (
        LocalCluster(tmp_path / "data", replicas=4, owner=QUICK) as cluster,
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
    ):
        for group in groups:
            await acked(alice.groups.create(group, group, ["bob"]))
            await acked(bob.mark_read(group, 1))
        await cluster.crash(broken)
        sent = dict.fromkeys(groups, 0)
        for _ in range(5):
            for group in groups:
                await talk(alice, group, 1)
                sent[group] += 1
            listed = await bob.conversations(limit=50)
            if not listed.offline:
                assert {row.session for row in listed.conversations} == set(groups)
                assert all(row.unread <= sent[row.session] for row in listed.conversations)
            await acked(bob.mark_read(groups[0], sent[groups[0]] + 1))
            row = await bob.conversation(groups[0])
            assert row is not None
            assert row.read_seq == sent[groups[0]] + 1
        for group in groups[1:]:
            await unread_of(bob, group, 5)
        async with asyncio.timeout(60):
            while (await bob.unread()).count != 25:
                await asyncio.sleep(0.01)


async def test_another_gateway_goes_on_with_the_same_list(cluster: LocalCluster) -> None:
    async with (
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
    ):
        await acked(alice.groups.create("climbers", "Climbers", ["bob"]))
        for n in (1, 2):
            await talk(alice, GROUP, 2)
            await unread_of(bob, GROUP, 2 * n)
            await cluster.crash(f"gateway-{n}")
            await cluster.wait_serving()
            await talk(alice, "direct:alice/bob", 1)
        await unread_of(bob, "direct:alice/bob", 2)
        listed = await bob.conversations()
        assert {row.session: row.unread for row in listed.conversations} == {
            GROUP: 4,
            "direct:alice/bob": 2,
        }


async def test_a_gateway_that_starts_again_looks_into_its_file_and_says_nothing_old(
    tmp_path: Path,
) -> None:
    config = GatewayConfig(mailbox_dir=str(tmp_path / "warm"))
    async with (
        LocalCluster(tmp_path / "data", gateway=config) as cluster,
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
    ):
        await talk(alice, "direct:alice/bob", 3)
        await unread_of(bob, "direct:alice/bob", 3)
        warm = cluster.node("gateway-1").user_side.mailboxes
        async with asyncio.timeout(60):
            while not warm.metrics.tier("sqlite").updates or not warm.updates.idle:
                await asyncio.sleep(0.01)
        await cluster.crash("gateway-1", hold=True)
        cluster.release("gateway-1")
        await acked(bob.mark_read("direct:alice/bob", 2))
        await unread_of(bob, "direct:alice/bob", 1)
        listed = await bob.conversations()
        assert [(r.session, r.unread) for r in listed.conversations] == [("direct:alice/bob", 1)]
        again = cluster.node("gateway-1").user_side.mailboxes
        assert again is not warm
        counts = again.metrics.tier("sqlite")
        assert counts.hits + counts.stale > 0


async def test_lists_are_right_whatever_becomes_of_redis(
    tmp_path: Path, make_redis: MakeRedis
) -> None:
    redis = make_redis(appendonly="no")
    config = GatewayConfig(mailbox_redis=redis.url)
    async with (
        LocalCluster(tmp_path / "data", gateway=config, gateways=2) as cluster,
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
    ):
        unread = 0

        async def one_more(gateway: str) -> None:
            """A message, seen through a gateway that has nothing in memory."""
            nonlocal unread
            unread += 1
            await talk(alice, "direct:alice/bob", 1)
            await cluster.crash(gateway)
            await unread_of(bob, "direct:alice/bob", unread)
            listed = await bob.conversations()
            assert [row.unread for row in listed.conversations] == [unread]

        await one_more("gateway-1")
        await one_more("gateway-2")
        redis.kill()
        await one_more("gateway-1")
        await one_more("gateway-2")
        redis.wipe()
        redis.start()
        await one_more("gateway-1")
        redis.kill()
        redis.start()
        await one_more("gateway-2")
