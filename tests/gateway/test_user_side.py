"""Rights, groups, lists and devices at a gateway, against fakes that say what they are told to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from im_actors.core.conversation import Conversation, conversation_key
from im_actors.core.devices import Device, device_key
from im_actors.core.facts import pack_state
from im_actors.core.groups import (
    GROUP_KEY,
    Group,
    Membership,
    Role,
    member_key,
    member_rank,
)
from im_actors.core.model import EventKind, decode_event
from im_actors.core.overlays import Overlay, overlay_key
from im_actors.errors import BadRequest, Forbidden, NotFound, NotReachable, Overloaded
from im_actors.gateway.access import clip, may_by_id
from im_actors.gateway.pulls import Bounds
from im_actors.wire import messages as m
from im_actors.wire import queries as q
from im_actors.wire.limits import Limits
from im_actors.wire.messages import NUMBER_MAX, Pull
from tests.gateway.fakes import Cluster, cluster, eventually, page_of

GROUP = "group:g"
USERS = {"limits": Limits(queries=8)}


class Writer:
    """Commits what the owners of groups and mailboxes would."""

    def __init__(self, running: Cluster, push: bool = True) -> None:
        self.cluster = running
        self.n = 0
        self.push = push
        """Otherwise it is as if the pushes had been lost."""
        self.joined: dict[str, int] = {}

    def event(self, session: str, kind: int, body: bytes, device: str = "bob/phone") -> int:
        self.n += 1
        data = self.cluster.log.commit(session, device, self.n, kind, body)
        if self.push:
            self.cluster.shards[0].push(data)
        return self.cluster.log.head(session)

    def message(self, count: int = 1, session: str = GROUP, sender: str = "bob") -> int:
        return [self.event(session, 1, b"hello", f"{sender}/phone") for _ in range(count)][-1]

    def members(self, **roles: Role) -> int:
        """Let these users in or out."""
        seq = self.cluster.log.head(GROUP) + 1
        group = Group("Climbers", "bob", 1, len(roles)).to_bytes()
        facts = [(GROUP_KEY, 0, group)]
        for user, role in roles.items():
            out = role is Role.STRANGER
            joined = self.joined.setdefault(user, seq)
            row = Membership(role, joined, seq if out else 0)
            facts.append((member_key(user), member_rank(row), row.to_bytes()))
        return self.event(GROUP, EventKind.GROUP, pack_state("add", [], facts))

    def recall(self, target: int) -> int:
        row = Overlay(EventKind.RECALL, "bob", None).to_bytes()
        body = pack_state("recall", [target], [(overlay_key(target), target, row)])
        return self.event(GROUP, EventKind.RECALL, body)

    def row(self, user: str, session: str, row: Conversation) -> int:
        fact = (conversation_key(session), row.rank(), row.to_bytes())
        return self.event(f"user:{user}", EventKind.NOTE, pack_state("note", [], [fact]), "*")

    def device(self, user: str, device: str, kicked_ms: int) -> int:
        row = Device("a phone", 1, kicked_ms).to_bytes()
        facts = [(device_key(device), 0, row)]
        return self.event(f"user:{user}", EventKind.MAILBOX, pack_state("kick", [device], facts))


def seqs(client: Any) -> list[int]:
    return [event.seq for event in client.pushed]


async def page(client: Any, pull: Pull) -> tuple[int, int, list[int]]:
    """(head, code, seqs) of the answer."""
    await client.send(m.pull(*pull))
    await client.until(lambda: any(e[1] == pull.request for e in client.of(m.EVENTS)))
    found = next(e for e in client.of(m.EVENTS) if e[1] == pull.request)
    return found[3], found[4], [decode_event(data).seq for data in found[5]]


# ---- rights


@pytest.mark.parametrize(
    ("session", "may"),
    [
        ("team", True),
        ("direct:alice/bob", True),
        ("direct:bob/carol", False),
        ("user:alice", True),
        ("user:bob", False),
        ("notice:system/alice", True),
        ("notice:system/bob", False),
        ("slot:3", False),
        ("batch:sale", False),
        ("group:g", None),
    ],
)
def test_the_id_of_a_session_says_who_reads_it(session: str, may: bool | None) -> None:
    assert may_by_id("alice", session) is may


@pytest.mark.parametrize("after", [-1, 0, 3, 5, 7, 9, 12])
@pytest.mark.parametrize("before", [0, 1, 4, 6, 9, 13])
@pytest.mark.parametrize("limit", [1, 3, 20])
@pytest.mark.parametrize("left", [0, 8])
def test_a_page_is_the_readable_part_of_the_page(
    after: int, before: int, limit: int, left: int
) -> None:
    everything: list[Any] = list(range(1, 13))
    clipped = clip(Pull(1, GROUP, after, before, limit), Bounds(5, left or 12))
    found = [] if clipped is None else page_of(everything, *_bounds(clipped))
    readable = [seq for seq in everything if 5 <= seq <= (left or 12)]
    wanted = [seq for seq in readable if seq > after and (not before or seq < before)]
    newest = before > 0 or after < 0
    assert found == (wanted[-limit:] if newest else wanted[:limit])


def _bounds(pull: Pull) -> tuple[int, int, int]:
    return pull.after, min(pull.before, 1 << 40), pull.limit


def test_of_a_group_of_which_nothing_is_his_to_read_he_has_no_page() -> None:
    assert clip(Pull(1, GROUP, 0, 0, 10), Bounds(1, 0)) is None
    assert clip(Pull(1, GROUP, -1, NUMBER_MAX, 10), Bounds(1, 0)) is None


async def test_follow_and_pull_of_what_one_may_not_read_are_refused() -> None:
    async with cluster(**USERS) as running:
        writer = Writer(running)
        writer.members(bob=Role.OWNER)
        writer.message(session="direct:bob/carol")
        alice = await running.client()
        wanted = ["team", "direct:bob/carol", GROUP, "group:none", "slot:1"]
        await alice.send(m.follow(wanted))
        await alice.heads(5)
        assert {row[0]: row[1:] for row in alice.rows(m.HEADS)} == {
            "team": [0],
            "direct:bob/carol": [0, Forbidden.code],
            GROUP: [0, Forbidden.code],
            "group:none": [0, NotFound.code],
            "slot:1": [0, Forbidden.code],
        }
        writer.message(3)
        writer.message(session="direct:bob/carol")
        writer.message(session="team")
        await alice.events(1)
        assert [event.session for event in alice.pushed] == ["team"]
        for number, (session, code) in enumerate(
            [
                ("direct:bob/carol", Forbidden.code),
                (GROUP, Forbidden.code),
                ("group:none", NotFound.code),
            ],
            1,
        ):
            assert await page(alice, Pull(number, session, 0, 0, 10)) == (0, code, [])


async def test_a_member_follows_from_when_he_joined_and_no_event_after_he_is_out() -> None:
    async with cluster(**USERS) as running:
        writer = Writer(running)
        writer.members(bob=Role.OWNER)
        writer.message(4)
        joined = writer.members(alice=Role.MEMBER)
        alice, bob = await running.client(), await running.client("bob")
        for client in (alice, bob):
            await client.send(m.follow([GROUP]))
            await client.heads(1)
        assert await page(alice, Pull(1, GROUP, 0, 0, 10)) == (joined, 0, [joined])
        assert await page(alice, Pull(2, GROUP, -1, 0, 10)) == (joined, 0, [joined])
        writer.message(2)
        # In one batch, as a shard pushes it.
        log, shard = running.log, running.shards[0]
        writer.push = False
        left = writer.members(alice=Role.STRANGER)
        last = writer.message(2)
        shard.push(*log.sessions[GROUP][left - 1 :])
        await bob.until(lambda: seqs(bob)[-1:] == [last])
        await alice.heads(2)
        assert seqs(alice) == list(range(joined + 1, left + 1))
        assert alice.rows(m.HEADS)[-1] == [GROUP, 0, Forbidden.code]
        assert await page(alice, Pull(3, GROUP, 0, 0, 10)) == (
            left, 0, list(range(joined, left + 1)),
        )  # fmt: skip
        await alice.send(m.follow([GROUP]))
        await alice.heads(3)
        assert alice.rows(m.HEADS)[-1] == [GROUP, left]
        writer.push = True
        writer.message(1)
        await bob.until(lambda: seqs(bob)[-1:] == [last + 1])
        assert seqs(alice)[-1] == left


async def test_who_was_let_out_while_pushes_were_lost_is_pushed_no_more() -> None:
    async with cluster(**USERS, live_ms=100, read_ms=100, retry_ms_max=50) as running:
        writer = Writer(running)
        writer.members(bob=Role.OWNER, alice=Role.MEMBER)
        alice = await running.client()
        await alice.send(m.follow([GROUP]))
        await alice.heads(1)
        bob = await running.client("bob")
        await bob.send(m.follow([GROUP]))
        await bob.heads(1)
        writer.push = False
        writer.members(alice=Role.STRANGER)
        writer.message(2)
        for replica in running.replicas:
            replica.silent = True
        writer.push = True
        last = writer.message(1)
        # Nobody knows yet who has left, so nobody is pushed to.
        await eventually(lambda: running.gateway.followers.dropped)
        assert alice.pushed == bob.pushed == []
        for replica in running.replicas:
            replica.silent = False
        await alice.until(lambda: [GROUP, 0, Forbidden.code] in alice.rows(m.HEADS))
        await bob.until(lambda: [GROUP, last] in bob.rows(m.HEADS))
        writer.message(1)
        await bob.events(1)
        assert alice.pushed == []


async def test_a_page_ends_where_it_is_known_that_the_reader_is_in() -> None:
    async with cluster(**USERS) as running:
        writer = Writer(running)
        writer.members(bob=Role.OWNER, alice=Role.MEMBER)
        edited = writer.message(2)
        alice = await running.client()
        assert await page(alice, Pull(1, GROUP, 0, 0, 10)) == (3, 0, [1, 2, 3])
        # The replicas have it already that she is out; the gateway has not heard of it.
        writer.push = False
        left = writer.members(bob=Role.OWNER, alice=Role.STRANGER)
        writer.message(2)
        asked = [Pull(3, GROUP, 1, 0, 10), Pull(5, GROUP, -1, 0, 2), Pull(7, GROUP, 0, 6, 3)]
        pages = [await page(alice, pull) for pull in asked]
        assert [seqs for _, _, seqs in pages] == [[2, 3], [2, 3], [1, 2, 3]]
        assert await page(alice, Pull(9, GROUP, edited, 0, 10)) == (edited, 0, [])
        writer.push = True
        writer.message(1)
        await eventually(lambda: running.gateway.user_side.live.get(GROUP) is None)
        assert await page(alice, Pull(11, GROUP, 1, 0, 10)) == (left, 0, [2, 3, left])


async def test_a_group_is_not_believed_before_its_owner_and_a_replica_agree() -> None:
    async with cluster(**USERS, live_ms=200) as running:
        writer = Writer(running)
        writer.members(bob=Role.OWNER)
        writer.members(alice=Role.MEMBER)
        for replica in running.replicas:
            replica.lag = 1
        alice = await running.client()
        answer = await alice.ask("members", GROUP, None, 10)
        assert answer[2] == NotReachable.code
        await alice.send(m.follow([GROUP]))
        for replica in running.replicas:
            replica.lag = 0
        await alice.heads(1)
        assert alice.rows(m.HEADS) == [[GROUP, 2]]
        answer = await alice.ask("members", GROUP, None, 10)
        assert [row[:2] for row in answer[4][1]] == [["bob", "owner"], ["alice", "member"]]


# ---- lists


async def test_a_list_is_fed_by_what_is_pushed_and_by_groups() -> None:
    async with cluster(**USERS) as running:
        writer = Writer(running)
        writer.members(bob=Role.OWNER, alice=Role.MEMBER)
        writer.row("alice", GROUP, Conversation().joined(1, 1))
        alice = await running.client()
        answer = await alice.ask("conversations", None, 25, False, "")
        assert [row[0] for row in answer[4][1]] == [GROUP]
        assert (answer[4][0], answer[4][3]) == (1, 0)
        writer.message(3)
        writer.message(2, sender="alice")
        last = writer.recall(2)
        await eventually(lambda: running.gateway.followers.head(GROUP) == last)
        answer = await alice.ask("conversations", None, 25, False, "")
        row = q.read_row(answer[4][1][0])
        assert (row.unread, row.last_seq, row.title) == (2, last, "Climbers")
        assert row.inputs == [1, last, 4, [[2, 2], [5, 7]]]
        assert answer[4][3] == 2
        version = writer.row("alice", GROUP, Conversation().joined(1, 1).read(3))
        await eventually(lambda: running.gateway.followers.head("user:alice") == version)
        assert (await alice.ask("unread"))[4] == [version, 1]
        changes = (await alice.ask("changes", 1, 10))[4]
        assert (changes[0], changes[2]) == (version, True)
        assert [(row[0], row[8]) for row in changes[1]] == [(GROUP, 1)]


NOTICES = "notice:system/alice"


async def test_notices_are_listed_although_no_mailbox_says_anything_of_them() -> None:
    async with cluster(**USERS) as running:
        writer = Writer(running)
        alice = await running.client()
        assert (await alice.ask("conversations", None, 25, False, ""))[4] == [0, [], None, 0]
        assert (await alice.ask("conversation", NOTICES))[4] == [0, None]
        last = writer.message(2, session=NOTICES, sender="shop")
        await eventually(lambda: running.gateway.followers.head(NOTICES) == last)
        _, rows, _, total = (await alice.ask("conversations", None, 25, False, ""))[4]
        row = q.read_row(rows[0])
        assert (row.session, row.version, row.last_seq, row.unread) == (NOTICES, 0, 2, 2)
        assert (row.sender, row.preview, row.inputs) == ("shop", "hello", [0, 2, 0, []])
        assert (len(rows), total) == (1, 2)
        assert q.read_row((await alice.ask("conversation", NOTICES))[4][1]) == row


@pytest.mark.parametrize("noted", [Conversation(), Conversation(last_seq=1, last_key=1)])
async def test_a_channel_of_notices_is_read_hidden_and_comes_back(noted: Conversation) -> None:
    async with cluster(**USERS) as running:
        writer = Writer(running)
        writer.message(3, session=NOTICES, sender="shop")
        alice = await running.client()

        async def says(row: Conversation) -> list[tuple[int, int]]:
            version = writer.row("alice", NOTICES, row)
            await eventually(lambda: running.gateway.followers.head("user:alice") == version)
            head = running.log.head(NOTICES)
            await eventually(lambda: running.gateway.followers.head(NOTICES) in (0, head))
            found = (await alice.ask("conversations", None, 25, False, ""))[4]
            rows = [q.read_row(row) for row in found[1]]
            assert found[3] == sum(row.unread for row in rows)
            return [(row.last_seq, row.unread) for row in rows]

        assert await says(noted.read(1)) == [(3, 2)]
        assert await says(noted.read(1).hide(3)) == []
        writer.message(session=NOTICES, sender="shop")
        assert await says(noted.read(1).hide(3).mute(True)) == [(4, 3)]
        assert await says(noted.read(4).hide(1)) == [(4, 0)]


async def test_changes_from_before_memory_come_from_the_replicas() -> None:
    async with cluster(**USERS) as running:
        writer = Writer(running)
        for n in range(1, 5):
            writer.row("alice", f"direct:alice/u{n}", Conversation(last_seq=n, last_key=n))
        alice = await running.client()
        assert (await alice.ask("unread"))[4][0] == 4
        version, rows, complete = (await alice.ask("changes", 1, 10))[4]
        assert (version, complete) == (4, True)
        assert [row[0] for row in rows] == [f"direct:alice/u{n}" for n in (2, 3, 4)]


async def test_who_is_far_behind_is_counted_once_and_then_by_events() -> None:
    async with cluster(**USERS) as running:
        writer = Writer(running, push=False)
        writer.members(bob=Role.OWNER, alice=Role.MEMBER)
        writer.row("alice", GROUP, Conversation().joined(1, 1))
        writer.message(400)
        alice = await running.client()
        writer.push = True

        def counts() -> int:
            return sum(
                type(question).__name__ == "CountAsked"
                for replica in running.replicas
                for question in replica.questions
            )

        async def unread(expected: int) -> None:
            head = running.log.head(GROUP)
            await eventually(lambda: running.gateway.followers.head(GROUP) in (0, head))
            assert (await alice.ask("unread"))[4][1] == expected

        await unread(400)
        writer.message(2)
        await unread(402)
        assert counts() == 1
        writer.recall(5)
        await unread(401)
        assert counts() == 2


async def test_a_list_with_a_group_that_cannot_be_read_is_an_error_and_no_wrong_count() -> None:
    async with cluster(slots=1, **USERS, live_ms=100) as running:
        writer = Writer(running)
        writer.members(bob=Role.OWNER, alice=Role.MEMBER)
        writer.message(2)
        writer.row("alice", GROUP, Conversation().joined(1, 1))
        alice = await running.client()
        running.shards[0].silent = True
        answer = await alice.ask("unread")
        assert answer[2] == NotReachable.code
        running.shards[0].silent = False
        while (answer := await alice.ask("unread"))[2]:
            assert answer[2] == NotReachable.code
        assert answer[4][1] == 2


async def test_what_was_read_of_a_group_that_cannot_be_read_now_is_not_unread() -> None:
    async with cluster(slots=1, **USERS, live_ms=100, read_ms=50) as running:
        writer = Writer(running)
        joined = writer.members(bob=Role.OWNER, alice=Role.MEMBER)
        last = writer.message(2)
        row = Conversation().joined(joined, 1)
        writer.row("alice", GROUP, row)
        alice = await running.client()
        while (await alice.ask("unread"))[4:] != [[1, 2]]:
            await asyncio.sleep(0)
        writer.push = False
        writer.message(1)
        for replica in running.replicas:
            replica.silent = True
        writer.push = True
        writer.message(1)
        writer.row("alice", GROUP, row.read(last))
        await eventually(lambda: running.gateway.user_side.live.get(GROUP) is None)
        _, rows, _, total = (await alice.ask("conversations", None, 10, False, None))[4]
        found = q.read_row(rows[0])
        assert (found.last_seq, found.read_seq, found.unread, total) == (last, last, 0, 0)


async def test_more_queries_than_allowed_and_wrong_ones_are_refused_alone() -> None:
    async with cluster(limits=Limits(queries=2)) as running:
        for replica in running.replicas:
            replica.silent = True
        alice = await running.client()
        await alice.send(*[q.query(n, "unread", []) for n in range(1, 5)])
        await alice.until(lambda: len(alice.of(m.ANSWER)) == 2)
        assert {answer[2] for answer in alice.of(m.ANSWER)} == {Overloaded.code}
        assert (await alice.ask("nonsense"))[2] == BadRequest.code
        assert (await alice.ask("changes", "x", 1))[2] == BadRequest.code
        assert not alice.ended


async def test_of_many_groups_those_asked_for_last_are_kept_and_those_that_are_followed() -> None:
    async with cluster(**USERS, live_sessions_max=6) as running:
        names = [f"group:{n}" for n in range(12)]
        writer = Writer(running)
        writer.members(alice=Role.MEMBER)
        alice = await running.client()
        await alice.send(m.follow([GROUP]))
        await alice.heads(1)
        live = running.gateway.user_side.live  # type: ignore[union-attr]
        for name in names:
            assert (await alice.ask("group", name))[2] == NotFound.code
            assert len(live) <= 6
        assert live.get(GROUP) is not None
        assert live.get(names[-1]) is not None
        assert live.get(names[0]) is None
        dropped = {session for sessions in running.shards[0].unwatches for session in sessions}
        assert dropped >= set(names[:6])
        writer.members(alice=Role.STRANGER)
        await alice.heads(2)
        for name in names[:3]:
            writer.message(2, session=name)
            writer.row("alice", name, Conversation().joined(1, 1))
        head = running.log.head("user:alice")
        await eventually(lambda: running.gateway.followers.head("user:alice") == head)
        for name in names:
            # Those that were forgotten come back when a list shows them.
            assert (await alice.ask("unread"))[4] == [head, 3]
            await alice.ask("group", name)
            assert len(live) <= 6


# ---- devices and signals


async def test_a_kicked_device_is_closed_and_not_let_in_again() -> None:
    async with cluster(**USERS) as running:
        writer = Writer(running)
        writer.device("alice", "phone", 0)
        phone = await (await running.connect()).hello("alice", device="phone")
        other = await (await running.connect()).hello("alice", device="laptop")
        await eventually(lambda: running.gateway.followers.head("user:alice") == 1)
        answer = await other.ask("devices")
        assert answer[4][1] == [["phone", "a phone", 1, True]]
        writer.device("alice", "phone", 5)
        await phone.until(lambda: phone.ended)
        assert phone.of(m.ERROR)[0][1] == Forbidden.code
        phone = await (await running.connect()).hello("alice", device="phone")
        await phone.until(lambda: phone.ended)
        assert phone.of(m.ERROR)[0][1] == Forbidden.code
        writer.push = False
        writer.device("alice", "laptop", 6)
        running.move(to=1)
        await other.until(lambda: other.ended)


async def test_signals_go_to_the_other_users_who_follow() -> None:
    async with cluster(**USERS, signal_ms=1_000_000) as running:
        writer = Writer(running)
        writer.members(bob=Role.OWNER, alice=Role.MEMBER)
        alice, bob, carol = [await running.client(user) for user in ("alice", "bob", "carol")]
        for client in (alice, bob, carol):
            await client.send(m.follow([GROUP, "team"]))
            await client.heads(2)
        await carol.send(q.signal(GROUP, "typing", True))
        await alice.send(
            q.signal(GROUP, "typing", True),
            q.signal(GROUP, "typing", False),
            q.signal("team", "unheard of", True),
            q.signal("team", "presence", True),
        )
        await asyncio.gather(
            bob.until(lambda: len(bob.of(m.SIGNALED)) == 2),
            carol.until(lambda: len(carol.of(m.SIGNALED)) == 1),
        )
        assert bob.rows(m.SIGNALED) == [
            [GROUP, "alice", "typing", True], ["team", "alice", "presence", True],
        ]  # fmt: skip
        assert alice.of(m.SIGNALED) == []
