"""Months listed, moved and dropped under a whole cluster in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from im_actors.client import Client
from im_actors.core.model import Event, EventKind
from im_actors.core.owner import OwnerSettings
from im_actors.errors import BadRequest, MonthAway, NotFound, TooLate
from im_actors.server import clock
from im_actors.storage.months import month_at
from im_actors.storage.places import month_text
from im_actors.testing import LocalCluster

BACK_MS = 40 * 24 * 3600 * 1000
TALK = "direct:alice/bob"
QUICK = OwnerSettings(replace_after_ms=600, seal_wait_ms=200)


@pytest.fixture
def come_home(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Owners live 40 days ago, until this is called."""
    back = [BACK_MS]
    monkeypatch.setattr("im_actors.server.shard.now_ms", lambda: clock.now_ms() - back[0])

    def now() -> None:
        back[0] = 0

    return now


@pytest.fixture
async def cluster(tmp_path: Path, come_home: Callable[[], None]) -> AsyncIterator[LocalCluster]:
    running = LocalCluster(tmp_path / "data", slots=4, shards=1, replicas=4, owner=QUICK)
    async with running:
        yield running


def old_month() -> str:
    return f"{datetime.fromtimestamp((clock.now_ms() - BACK_MS) / 1000, UTC):%Y-%m}"


async def say(client: Client, *texts: str) -> int:
    sent = [await client.send(TALK, text) for text in texts]
    return [(await one.acked(timeout=30)).seq for one in sent][-1]


async def talk(alice: Client, come_home: Callable[[], None]) -> None:
    """Four old messages, one of them edited, and two new ones."""
    await say(alice, "old 1", "old 2", "old 3", "old 4")
    await (await alice.edit(TALK, 2, "old and edited")).acked(timeout=30)
    come_home()
    await say(alice, "new 6", "new 7")


def told(events: Any) -> list[tuple[int, str, bool]]:
    return [(event.seq, event.text, event.dropped) for event in events]


async def followed(client: Client, seq: int) -> list[Event]:
    """All from the first on."""
    events: list[Event] = []
    async with asyncio.timeout(60):
        async for event in client.follow(TALK, after=0):
            events.append(event)
            if event.seq >= seq:
                break
    return events


async def holders(cluster: LocalCluster, month: str) -> dict[str, dict[str, Any]]:
    """The replicas that have a month, with what they tell of it."""
    found = await cluster.operations.months()
    return {name: row for name, rows in found.items() for row in rows if row["month"] == month}


WHOLE = [(1, "old 1", False), (3, "old 3", False), (4, "old 4", False)]
GONE = [(seq, "", True) for seq in (1, 2, 3, 4, 5)]
NEW = [(6, "new 6", False), (7, "new 7", False)]


async def test_a_month_is_dropped(
    cluster: LocalCluster, come_home: Callable[[], None], tmp_path: Path
) -> None:
    """On those that run, on one that was down, and on one that becomes a member later."""
    async with Client(cluster.url, user="alice", store=tmp_path / "alice.db") as alice:
        await talk(alice, come_home)
        month, operations = old_month(), cluster.operations
        for wrong, error in (
            ("2026-13", BadRequest),
            ("9999-01", BadRequest),
            ("2020-02", NotFound),
        ):
            with pytest.raises(error):
                await operations.drop_month(wrong, False)
        dry = await operations.drop_month(month, True)
        assert sum(row["events"] for row in dry["replicas"].values() if row) >= 15
        async with Client(cluster.url, user="bob", store=tmp_path / "bob.db") as bob:
            await bob.connected(timeout=60)
            assert told((await bob.history(TALK)).events)[2:4] == WHOLE[1:]
        members = sorted(await holders(cluster, month))
        assert len(members) >= 3
        down = members[0]
        await cluster.crash(down, hold=True)
        done = await operations.drop_month(month, False)
        assert set(done["results"].values()) == {None}
        assert done["absent"] == [down]
        await cluster.wait_serving()
        await say(alice, "and on")
        async with Client(cluster.url, user="bob", store=tmp_path / "fresh.db") as bob:
            expected = [*GONE, *NEW, (8, "and on", False)]
            assert told(await followed(bob, 8)) == expected
            assert told((await bob.history(TALK)).events) == expected
            row = await bob.conversation(TALK)
            assert row is not None
            assert (row.unread, row.preview) == (7, "and on")
        with pytest.raises(TooLate):
            # What was dropped is still found, and judged as the message that it was.
            await (await alice.recall(TALK, 1)).acked(timeout=30)
        cluster.release(down)
        async with asyncio.timeout(30):
            while True:
                rows = await holders(cluster, month)
                if down in rows and all(row["dropped"] for row in rows.values()):
                    break
                await asyncio.sleep(0.02)
        verdict = await cluster.verify()
        assert verdict["ok"], verdict["problems"]
        assert verdict["dropped"] >= 5


async def test_the_last_message_of_a_conversation_is_told_as_dropped(
    cluster: LocalCluster, come_home: Callable[[], None], tmp_path: Path
) -> None:
    async with Client(cluster.url, user="alice", store=tmp_path / "alice.db") as alice:
        await say(alice, "the last")
        async with Client(cluster.url, user="bob", store=tmp_path / "bob.db") as bob:
            await bob.connected(timeout=60)
            async with asyncio.timeout(60):
                while (await bob.conversations()).unread != 1:
                    await asyncio.sleep(0.01)
            come_home()
            await cluster.operations.drop_month(old_month(), False)
            async with asyncio.timeout(60):
                while True:
                    row = await bob.conversation(TALK)
                    if row is not None and row.kind == EventKind.DROPPED:
                        break
                    await asyncio.sleep(0.01)
            assert (row.preview, row.unread, row.sender) == ("", 1, "alice")


async def test_a_month_is_moved_and_its_disk_goes_away(
    cluster: LocalCluster, come_home: Callable[[], None], tmp_path: Path
) -> None:
    async with Client(cluster.url, user="alice", store=tmp_path / "alice.db") as alice:
        await talk(alice, come_home)
        month, slow = old_month(), tmp_path / "slow"
        with pytest.raises(BadRequest):
            await cluster.operations.move_month(month_text(month_at(clock.now_ms())), str(slow))
        results = await cluster.operations.move_month(month, str(slow))
        assert all("is no directory" in str(error) for error in results.values() if error)
        slow.mkdir()
        names = sorted(await holders(cluster, month))
        for name in names:
            assert await cluster.operations.move_month(month, str(slow), name) == {name: None}
        for row in (await holders(cluster, month)).values():
            assert row["moved"]
            assert row["directory"].startswith(str(slow))
        async with Client(cluster.url, user="bob", store=tmp_path / "bob.db") as bob:
            await bob.connected(timeout=60)
            assert told((await bob.history(TALK, before=5)).events)[2:4] == WHOLE[1:]
        slow.rename(tmp_path / "unplugged")
        assert await say(alice, "and on") == 8
        async with Client(cluster.url, user="bob", store=tmp_path / "fresh.db") as bob:
            await bob.connected(timeout=60)
            page = await bob.history(TALK, limit=10)
            assert [event.seq for event in page.events] == [6, 7, 8]
            with pytest.raises(MonthAway):
                await bob.history(TALK, before=5)
            async with asyncio.timeout(30):
                while not all(
                    status["months_away"]
                    for name, status in (await cluster.status())["replicas"].items()
                    if name in names
                ):
                    await asyncio.sleep(0.02)
            verdict = await cluster.verify()
            assert not verdict["ok"]
            assert (verdict["missing"], verdict["corrupt"], verdict["repairing"]) == (0, 0, [])
            (tmp_path / "unplugged").rename(slow)
            assert told((await bob.history(TALK, before=5)).events)[2:4] == WHOLE[1:]
        verdict = await cluster.verify()
        assert verdict["ok"], verdict["problems"]
