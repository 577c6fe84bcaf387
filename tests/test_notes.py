"""Notes reach the mailboxes: a whole cluster in one process, broken in the middle."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from im_actors.client import Client
from im_actors.core.conversation import Conversation, conversation_key
from im_actors.core.fact_lists import OfKeys
from im_actors.core.model import EventKind, slot_of
from im_actors.core.names import direct_session, group_session, mailbox_of
from im_actors.gateway.relays import Relays
from im_actors.net.link import Link, PeerInfo
from im_actors.testing import LocalCluster
from im_actors.wire.questions import FactsAsked, pack_question

PATIENCE_S = 60
SLOTS = 8


class Replicas:
    """Asks replicas for the rows of mailboxes."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.links: dict[str, Link] = {}
        self.answers: dict[int, asyncio.Future[Any]] = {}

    def connect(self) -> None:
        me = PeerInfo("gateway", "the test", "1")
        for replica in self.cluster.directory().replicas:
            self.links[replica.name] = Link(
                me,
                self.cluster.cluster.secret_bytes,
                replica.address,
                replica.port,
                on_up=lambda _: None,
                on_frames=self._frames,
                on_down=lambda _: None,
                rng=random.Random(1),
            )

    async def close(self) -> None:
        for link in self.links.values():
            link.close()
            await link.wait_closed()

    def _frames(self, messages: list[Any]) -> None:
        for message in messages:
            self.answers.pop(message[1]).set_result(message)

    async def row(self, user: str, session: str) -> Conversation | None:
        """The row as every replica has it; None: they do not agree yet, or have none."""
        rows = set()
        for link in self.links.values():
            await until(lambda link=link: link.up)
            request = len(self.answers) + random.getrandbits(40)
            answer = self.answers[request] = asyncio.get_running_loop().create_future()
            query = OfKeys((conversation_key(session),))
            link.send(pack_question(FactsAsked(request, mailbox_of(user), 0, query)))
            _, _, code, _, facts, _ = await answer
            assert code == 0
            rows.add(facts[0][3] if facts else None)
        (value, *others) = rows
        return None if others or value is None else Conversation.from_bytes(value)


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(path: Path, **kwargs: Any) -> AsyncIterator[tuple[LocalCluster, Replicas]]:
    async with LocalCluster(path / "data", slots=SLOTS, **kwargs) as cluster:
        replicas = Replicas(cluster)
        replicas.connect()
        try:
            yield cluster, replicas
        finally:
            await replicas.close()


class Talk:
    """What two users did in their session, by the answers alone."""

    def __init__(self) -> None:
        self.messages: dict[int, tuple[str, str, EventKind]] = {}
        """seq -> (sender, text, what made it so)."""
        self.events = 0
        self.read: dict[str, int] = {}

    def row(self, user: str, peer: str) -> dict[str, Any]:
        """What a mailbox has to say."""
        read = self.read.get(user, 0)
        last = max(self.messages)
        sender, text, kind = self.messages[last]
        return {
            "last_seq": self.events,
            "read_seq": read,
            "unread": sum(
                seq > read and by == peer and kind != EventKind.RECALL
                for seq, (by, _, kind) in self.messages.items()
            ),
            "peer_read_seq": self.read.get(peer, 0),
            "preview": (last, int(kind), sender, text),
        }


def said(row: Conversation | None) -> dict[str, Any]:
    """The same of a row that was found."""
    if row is None:
        return {}
    preview = row.preview
    return {
        "last_seq": row.last_seq,
        "read_seq": row.read_seq,
        "unread": row.unread().number,
        "peer_read_seq": row.peer_read_seq,
        "preview": preview and (preview.seq, preview.kind, preview.sender, preview.text),
    }


async def act(talk: Talk, client: Client, me: str, session: str, rng: random.Random) -> None:
    """One step of a user, up to its answer."""
    mine = [
        s for s, (by, _, kind) in talk.messages.items() if by == me and kind != EventKind.RECALL
    ]
    choice = rng.random()
    if choice < 0.15 and talk.messages:
        seq = rng.choice(list(talk.messages))
        await (await client.mark_read(session, seq)).acked(timeout=PATIENCE_S)
        talk.read[me] = max(talk.read.get(me, 0), seq)
        return
    if choice < 0.3 and mine:
        seq = rng.choice(mine)
        if choice < 0.22:
            sent, changed = await client.recall(session, seq), (me, "", EventKind.RECALL)
        else:
            text = f"new text {rng.random()}"
            sent, changed = await client.edit(session, seq, text), (me, text, EventKind.EDIT)
        await sent.acked(timeout=PATIENCE_S)
        talk.messages[seq] = changed
    else:
        text = f"text {rng.random()}"
        seq = (await (await client.send(session, text)).acked(timeout=PATIENCE_S)).seq
        talk.messages[seq] = (me, text, EventKind.MESSAGE)
    talk.events += 1


async def expect(replicas: Replicas, user: str, session: str, expected: dict[str, Any]) -> None:
    """The row comes to this."""
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(PATIENCE_S):
            while (found := said(await replicas.row(user, session))) != expected:
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{user}: {session}: {found}, expected {expected}") from None


async def wreck(cluster: LocalCluster, talks: list[Talk], every: int) -> None:
    """Kill one after the other on the way."""
    killed = 0
    for name in ("shard-1", "gateway-1", "shard-2", "gateway-2", "shard-3"):
        killed += every
        await until(lambda at=killed: sum(talk.events for talk in talks) >= at)
        await cluster.crash(name)


@pytest.mark.parametrize("seed", [1, 2])
async def test_mailboxes_are_exact_whatever_is_killed(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    relayed: list[Any] = []
    answered = Relays.answered
    monkeypatch.setattr(
        Relays, "answered", lambda self, rows: answered(self, relayed.extend(rows) or rows)
    )
    rng = random.Random(seed)
    pairs = [("alice", "bob"), ("alice", "carol"), ("bob", "carol")]
    talks = {pair: Talk() for pair in pairs}
    async with (
        running(tmp_path, shards=3, gateways=2) as (cluster, replicas),
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
        Client(cluster.url, user="carol") as carol,
    ):
        clients = {"alice": alice, "bob": bob, "carol": carol}

        async def talk(pair: tuple[str, str], steps: int) -> None:
            for me in (rng.choice(pair) for _ in range(steps)):
                await act(talks[pair], clients[me], me, direct_session(*pair), rng)

        wrecking = asyncio.create_task(wreck(cluster, list(talks.values()), 20))
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(talk(pair, 60) for pair in pairs))
            await wrecking
        for pair, done in talks.items():
            for user, peer in (pair, pair[::-1]):
                await expect(replicas, user, direct_session(*pair), done.row(user, peer))
        assert any(code == 0 for _, code in relayed), "no note went from one shard to another"
        assert sum(status["notes_refused"] for status in statuses(cluster)) == 0


async def test_all_members_of_a_new_group_have_its_row(tmp_path: Path) -> None:
    users = [f"user-{number}" for number in range(1_000)]
    async with (
        running(tmp_path, shards=2) as (cluster, replicas),
        Client(cluster.url, user="alice") as alice,
    ):
        sent = await alice.groups.create("climbers", "Climbers", users)
        seq = (await sent.acked(timeout=PATIENCE_S)).seq
        assert len({slot_of(mailbox_of(user), SLOTS) for user in users}) == SLOTS
        for user in ["alice", *users]:
            async with asyncio.timeout(PATIENCE_S):
                while (row := await replicas.row(user, group_session("climbers"))) is None:
                    await asyncio.sleep(0.02)
            assert (row.joined_seq, row.read_seq, row.out) == (seq, seq, False)
        await until(lambda: all(not s["notes_waiting"] for s in statuses(cluster)))
        assert sum(status["notes_told"] for status in statuses(cluster)) == 1_001


def statuses(cluster: LocalCluster) -> list[dict[str, Any]]:
    return [cluster.node(name).status() for name in cluster.controller.running_names()["shard"]]


async def test_what_was_not_told_is_told_by_the_next_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        running(tmp_path, shards=2) as (cluster, replicas),
        Client(cluster.url, user="alice") as alice,
    ):
        peer, session, owner = apart(cluster)
        talk = Talk()
        await act(talk, alice, "alice", session, Always(0.9))
        await expect(replicas, peer, session, talk.row(peer, "alice"))
        monkeypatch.setattr(Relays, "asked", lambda *_: None)
        for _ in range(3):
            await act(talk, alice, "alice", session, Always(0.9))
        node = cluster.node(owner.partition(".")[0])
        await until(lambda: node.status()["notes_waiting"])
        monkeypatch.undo()
        await cluster.crash(node.name)
        await expect(replicas, peer, session, talk.row(peer, "alice"))


class Always(random.Random):
    """No chance in it."""

    def __init__(self, value: float) -> None:
        super().__init__(1)
        self.value = value

    def random(self) -> float:
        return self.value


def apart(cluster: LocalCluster) -> tuple[str, str, str]:
    """(peer, session, owner): of a session of alice's and the mailbox of her peer the slots are
    served by different shards."""
    views = cluster.directory().views
    for peer in (f"peer-{number}" for number in range(1_000)):
        session = direct_session("alice", peer)
        owner = views[slot_of(session, SLOTS)].owner
        if owner != views[slot_of(mailbox_of(peer), SLOTS)].owner:
            return peer, session, owner
    raise AssertionError("one shard serves everything")
