"""Writers that are killed, readers, resenders and the judge, on a cluster in this process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from im_actors.cli.torture import judge, readers
from im_actors.cli.torture.book import Book
from im_actors.cli.torture.readers import FollowingReader, Puller, Resender, Twin
from im_actors.cli.torture.wire_client import WireClient
from im_actors.cli.torture.writers import WriterProcess
from im_actors.errors import ImError, KeyConflict, NotReachable, Overloaded, SlotMoving
from im_actors.proof import History
from im_actors.testing import LocalCluster
from im_actors.wire.messages import Nack, nack_of

SLOTS = 8
SESSIONS = ["one", "two", "three"]
WAIT_S = 60.0


class Scene:
    """A cluster, the checkers and the book."""

    def __init__(self, cluster: LocalCluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.history = History(slots=SLOTS)
        self.book = Book(self.history, SLOTS)
        self.ways = [
            (host, int(port))
            for host, _, port in (
                part.rpartition(":") for part in cluster.url.removeprefix("im://").split(",")
            )
        ]
        self.writers: list[WriterProcess] = []

    def start_writers(self, rate: float = 100.0) -> WriterProcess:
        order = {
            "url": self.cluster.url,
            "rate": rate,
            "window": 16,
            "seed": 1,
            "writers": [
                {"user": f"w{n}", "store": str(self.directory / f"w{n}.db"), "sessions": SESSIONS}
                for n in (1, 2)
            ],
        }
        writer = WriterProcess("writers-1", order, self.book, self.directory / "writers.log")
        self.writers.append(writer)
        writer.start()
        return writer

    def pump(self) -> None:
        for writer in self.writers:
            writer.pump()

    async def acked(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while self.book.acked < count:
                await asyncio.sleep(0.02)

    async def settled(self, writer: WriterProcess) -> None:
        writer.stop()
        async with asyncio.timeout(WAIT_S):
            await writer.done.wait()
        assert await writer.end() in (0, None, -9)

    async def final_read(self) -> None:
        client = await WireClient.connect(*self.ways[0], "auditor", "a")
        try:
            for session in SESSIONS:
                found: list[Any] = []
                async with asyncio.timeout(WAIT_S):
                    while len(found) < self.book.heads.get(session, 0):
                        found = await readers.whole_history(client, session)
                self.history.final_read(session, found, "auditor")
        finally:
            client.close()

    async def members(self) -> dict[str, list[str]]:
        members: dict[str, list[str]] = (await self.cluster.status())["slots"]["members"]
        return members


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with LocalCluster(tmp_path / "data", slots=SLOTS, gateways=2) as cluster:
        scene = Scene(cluster, tmp_path)
        yield scene
        for writer in scene.writers:
            await writer.end()


async def test_what_a_killed_writer_accepted_ends_acked(scene: Scene) -> None:
    writer = scene.start_writers()
    await scene.acked(40)
    await writer.crash()
    assert not writer.running
    waiting = set(scene.book.waiting)
    sent = scene.book.sent
    writer.start()
    await scene.acked(sent + 20)
    await scene.settled(writer)
    assert scene.book.sent == scene.book.acked + len(scene.book.unheard)
    assert waiting <= {entry.key for entry in scene.book.acked_entries} | scene.book.unheard
    resender = Resender(scene.ways, scene.book, random.Random(1))
    for key in list(scene.book.unheard):
        await resender.send_again(scene.book.entries[key])
    assert scene.book.sent == scene.book.acked
    await scene.final_read()
    assert not scene.history.finish()


async def test_everything_that_reads_and_resends_agrees(scene: Scene) -> None:
    rng = random.Random(2)
    reader = FollowingReader("r", scene.cluster.url, SESSIONS, scene.history, scene.pump)
    puller = Puller(scene.ways, SESSIONS, scene.history, scene.pump, rng)
    resender = Resender(scene.ways, scene.book, rng)
    twin = Twin("twin", scene.ways, SESSIONS, scene.book, rng)
    tasks = [asyncio.create_task(work.run()) for work in (reader, puller, resender)]
    twins = asyncio.create_task(twin.run())
    writer = scene.start_writers()
    async with asyncio.timeout(WAIT_S):
        while min(puller.pages, resender.resent, twin.doubled) < 4:
            await asyncio.sleep(0.02)
        twin.stopping = True
        await twins
        await scene.settled(writer)
        while reader.behind(scene.book.heads):
            await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await scene.final_read()
    assert not scene.history.finish()
    assert reader.received == scene.book.acked == scene.book.sent


async def test_the_logs_on_disk_are_judged(scene: Scene) -> None:
    await scene.settled(await one_after(scene, 60))
    members = await scene.members()
    await scene.cluster.stop()
    judge.read_logs(scene.cluster.data, members, scene.history)
    assert not scene.history.finish()
    # What only a client can know is missed in those logs.
    liar = History(slots=SLOTS)
    liar.sent("one", "x/1", 1, 1, b"never arrived")
    liar.acked("one", "x/1", 1, 999, 1, 3)
    judge.read_logs(scene.cluster.data, members, liar)
    liar.finish()
    assert liar.counts["lost-write"] == 1
    assert liar.counts["wrong-content"] == scene.book.acked, "nobody is known to have sent them"


async def one_after(scene: Scene, count: int) -> WriterProcess:
    writer = scene.start_writers()
    await scene.acked(count)
    return writer


async def test_a_log_that_lacks_a_record_is_found(scene: Scene) -> None:
    await scene.settled(await one_after(scene, 40))
    members = await scene.members()
    await scene.cluster.stop()
    for path in sorted(scene.cluster.data.glob("replica-*")):
        slots = [int(slot) for slot, names in members.items() if path.name in names]
        for slot, records in judge.logs_of(path, slots):
            assert [record[0] for record in records] == list(range(1, len(records) + 1))
            if path.name == "replica-2" and len(records) > 3:
                del records[-2]
            scene.history.final_log(path.name, slot, records)
    scene.history.finish()
    assert set(scene.history.counts) == {"replica-divergence"}


def test_alarms_are_found_in_the_logs(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    assert judge.alarms_in(tmp_path) == []
    (tmp_path / "logs" / "shard-1.log").write_text("INFO serves\n")
    (tmp_path / "logs" / "replica-1.log.1").write_text("x ERROR 7 ALARM replica-1 slot 3: back\n")
    (alarm,) = judge.alarms_in(tmp_path)
    assert "slot 3: back" in alarm
    assert alarm.startswith("replica-1.log.1: ")


@pytest.mark.parametrize(
    ("error", "found"), [(Overloaded, {}), (SlotMoving, {}), (KeyConflict, {"refused-write": 1})]
)
async def test_only_a_refusal_for_good_of_an_acked_message_is_wrong(
    monkeypatch: pytest.MonkeyPatch, error: type[ImError], found: dict[str, int]
) -> None:
    history = History(slots=SLOTS)
    book = Book(history, SLOTS)
    book.tried("w", "w/1", "one", 1, 0.0)
    book.acked_at("w/1", "one", 1, 1, 1, 3, 1.0)
    entry = book.entries["one", "w/1", 1]

    class Refusing:
        async def send(self, session: str, n: int, kind: int, body: bytes) -> Nack:
            return nack_of(session, n, error("no"))

        def close(self) -> None:
            pass

    async def connect(*_: object) -> Any:
        return Refusing()

    monkeypatch.setattr(readers.WireClient, "connect", connect)
    await Resender([("127.0.0.1", 1)], book, random.Random(1)).send_again(entry)
    history.final_read("one", [(1, "w/1", 1, 1, entry.body)])
    history.finish()
    assert history.counts == found


async def test_a_gateway_that_is_gone_is_not_reachable(scene: Scene) -> None:
    client = await WireClient.connect(*scene.ways[0], "u", "d")
    assert client.server.startswith("gateway-")
    await scene.cluster.crash(client.server)
    with pytest.raises(NotReachable):
        await client.pull("one", 0, 10)
    client.close()
