"""Batch messages through a whole cluster in one process, whose shards are killed on the way."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from im_actors.client import Client
from im_actors.core.batch import (
    COPIED_BYTES_MAX,
    JOB_KEY,
    PROGRESS_KEY,
    Job,
    JobState,
    Progress,
    chunked,
    event_body,
)
from im_actors.core.batch_run import BatchSettings, ChannelSettings
from im_actors.core.fact_lists import OfKeys
from im_actors.core.model import Event, EventKind, decode_event, slot_of
from im_actors.core.names import batch_session, notice_session
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.spans import PREVIEW_CHARS_MAX
from im_actors.testing import LocalCluster
from im_actors.wire.questions import FactsAsked, PageAsked, Question, pack_question
from tests.test_notes import PATIENCE_S, SLOTS, Replicas, running

RULES = RuleSettings(services=frozenset({"shop"}))
QUOTAS = BatchSettings(
    high=ChannelSettings(800, 64), daily=ChannelSettings(200, 16), answer_ms=500, read_ms=500
)
CONTENT = "Summer sale! " * 400


class Reader:
    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self.number = 0

    async def ask(self, question: Question) -> list[Any]:
        """The answer of one of the replicas, whichever is up."""
        replicas = self.replicas
        link = next(link for link in replicas.links.values() if link.up)
        answer = asyncio.get_running_loop().create_future()
        replicas.answers[question.request] = answer
        link.send(pack_question(question))
        found = await asyncio.wait_for(answer, PATIENCE_S)
        assert found[2] == 0
        return list(found)

    async def fact(self, session: str, key: str) -> bytes | None:
        self.number += 1
        found = await self.ask(FactsAsked(self.number, session, 0, OfKeys((key,))))
        return found[4][0][3] if found[4] else None

    async def job(self, session: str) -> JobState:
        value = await self.fact(session, JOB_KEY)
        return Job.from_bytes(value).state if value is not None else JobState.OPEN

    async def progress(self, session: str) -> Progress:
        return Progress.from_bytes(await self.fact(session, PROGRESS_KEY))

    async def until(self, session: str, *states: JobState) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.job(session) not in states:
                await asyncio.sleep(0.02)

    async def events(self, session: str) -> list[Event]:
        self.number += 1
        found = await self.ask(PageAsked(self.number, session, 0, 0, 100, 0))
        return [decode_event(data) for data in found[4]]


async def order(im: Client, name: str, users: list[str], channel: str) -> str:
    await im.batches.create(name, CONTENT, channel, total=len(users))
    for number, chunk in enumerate(chunked(users)):
        await im.batches.recipients(name, number, chunk)
    await (await im.batches.start(name)).acked(PATIENCE_S)
    return batch_session(name)


def owner_of(cluster: LocalCluster, session: str) -> str:
    (view,) = [v for v in cluster.directory().views if v.slot == slot_of(session, SLOTS)]
    return view.owner.partition(".")[0]


async def kinds(reader: Reader, users: list[str]) -> Counter[tuple[int, ...]]:
    """How many users have events of which kinds; VOIDs, which show nothing, left out."""
    found: Counter[tuple[int, ...]] = Counter()
    for user in users:
        events = await reader.events(notice_session("system", user))
        found[tuple(e.kind for e in events if e.kind != EventKind.VOID)] += 1
    return found


async def heard_of(online: Client, unread: int) -> None:
    """Wait until the device itself knows of so many unread notices."""
    user = online._engine.user
    async with asyncio.timeout(PATIENCE_S):
        while not user.mailbox.known.as_of_ms or user.mailbox.total() != unread:
            await asyncio.sleep(0.02)


async def test_everybody_gets_it_once_whatever_is_killed(tmp_path: Path) -> None:
    users = [f"user{number}" for number in range(600)]
    async with running(tmp_path, rules=RULES, batches=QUOTAS) as (cluster, replicas):
        reader = Reader(replicas)
        watching = Client(cluster.url, "user8", "phone", None)
        async with watching as online, Client(cluster.url, "shop", "pc", None) as im:
            await heard_of(online, 0)
            session = await order(im, "sale", users, "high")
            for done in range(3):
                async with asyncio.timeout(PATIENCE_S):
                    while (await reader.progress(session)).chunks < min(done, 1):
                        await asyncio.sleep(0.02)
                await cluster.crash(owner_of(cluster, session))
                await cluster.wait_serving()
            await reader.until(session, JobState.DONE)
            assert (await reader.progress(session))[:5] == (2, 600, 0, 0, True)
            info = await im.batches.status("sale")
            assert info is not None
            assert (info.state, info.told, info.sent) == ("done", 600, 600)
            assert await im.batches.outcomes("sale", 1) == (users[500:], {}, {})
            assert await kinds(reader, users) == {(EventKind.MESSAGE,): 600}
            (event,) = await reader.events(notice_session("system", "user7"))
            assert event.device == "shop/batch:sale"
            assert len(CONTENT) > COPIED_BYTES_MAX
            assert event.body == event_body(CONTENT.encode())
            await heard_of(online, 1)
            async with Client(cluster.url, "user9", "phone", None) as late:
                await late.connected(PATIENCE_S)
                (row,) = (await late.conversations()).conversations
                assert (row.session, row.unread) == (notice_session("system", "user9"), 1)
                assert row.preview == CONTENT[:PREVIEW_CHARS_MAX]
            await (await im.batches.recall("sale")).acked(PATIENCE_S)
            await reader.until(session, JobState.RECALLED)
            assert (await reader.progress(session)).recalled == 600
            assert await kinds(reader, users) == {(EventKind.MESSAGE, EventKind.RECALL): 600}
            await heard_of(online, 0)


async def test_who_was_not_reached_before_a_cancel_gets_nothing(tmp_path: Path) -> None:
    users = [f"user{number}" for number in range(300)]
    async with running(tmp_path, rules=RULES, batches=QUOTAS) as (cluster, replicas):
        reader = Reader(replicas)
        async with Client(cluster.url, "shop", "pc", None) as im:
            session = await order(im, "sale", users, "daily")
            async with asyncio.timeout(PATIENCE_S):
                while not await reader.events(notice_session("system", "user20")):
                    await asyncio.sleep(0.02)
            await cluster.crash(owner_of(cluster, session))
            await cluster.wait_serving()
            await (await im.batches.cancel("sale")).acked(PATIENCE_S)
            await reader.until(session, JobState.CANCELLED)
            progress = await reader.progress(session)
            assert progress.settled
            assert 20 <= progress.sent < 300
            found = await kinds(reader, users)
            assert found == {(EventKind.MESSAGE,): progress.sent, (): 300 - progress.sent}
