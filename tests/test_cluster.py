"""A whole cluster in one process, used through the SDK, broken on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from im_actors.client import Client
from im_actors.core.model import Event
from im_actors.core.owner import OwnerSettings
from im_actors.errors import SetupError, WrongDirectory
from im_actors.gateway.config import GatewayConfig
from im_actors.server.controller import ControllerConfig
from im_actors.testing import LocalCluster

SESSION = "team"
QUICK = OwnerSettings(replace_after_ms=600, seal_wait_ms=200)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(tmp_path / "data", gateways=2) as running:
        yield running


async def send_all(client: Client, texts: list[str], session: str = SESSION) -> list[int]:
    """Send everything, pipelined; the seqs in the order of sending."""
    sent = [await client.send(session, text) for text in texts]
    return [(await one.acked(timeout=60)).seq for one in sent]


async def read_all(client: Client, count: int, session: str = SESSION) -> list[Event]:
    events: list[Event] = []
    async for event in client.follow(session, after=0):
        events.append(event)
        if len(events) == count:
            break
    return events


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def seqs(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


async def test_what_is_sent_is_read_in_order_by_everybody(cluster: LocalCluster) -> None:
    texts = [f"message {n}" for n in range(500)]
    async with (
        Client(cluster.url, user="alice") as alice,
        Client(cluster.url, user="bob") as bob,
        Client(cluster.url, user="carol") as carol,
    ):
        live = asyncio.create_task(read_all(bob, len(texts)))
        assert await send_all(alice, texts) == list(range(1, 501))
        for events in (await live, await read_all(carol, len(texts))):
            assert seqs(events) == list(range(1, 501))
            assert [event.text for event in events] == texts
            assert {event.sender for event in events} == {"alice"}


@pytest.mark.parametrize(
    "body", ["", "你好，世界", "👩‍👩‍👧‍👦🇪🇺", "مرحبا", "é\u0301", "x" * 65_536, "a\x00b\n"]
)
async def test_every_text_comes_back_byte_for_byte(cluster: LocalCluster, body: str) -> None:
    session = "会话 👋 " + str(len(body))
    async with Client(cluster.url, user="爱丽丝") as alice, Client(cluster.url, user="bob") as bob:
        await send_all(alice, [body], session)
        (event,) = await read_all(bob, 1, session)
        assert event.body == body.encode()
        assert event.sender == "爱丽丝"


@pytest.mark.parametrize("kind", ["shard", "replica", "gateway"])
async def test_a_killed_actor_costs_nothing_but_time(cluster: LocalCluster, kind: str) -> None:
    texts = [f"message {n}" for n in range(2_000)]
    async with Client(cluster.url, user="alice") as alice, Client(cluster.url, user="bob") as bob:
        reading = asyncio.create_task(read_all(bob, len(texts)))
        sending = asyncio.create_task(send_all(alice, texts))
        await until(lambda: sum(cluster.node(f"shard-{n}").acked for n in (1, 2)) > 200)
        for name in cluster.controller.running_names()[kind]:
            await cluster.crash(name)
            await until(lambda name=name: name in cluster.controller.running_names()[kind])
        assert await sending == list(range(1, len(texts) + 1))
        assert [event.text for event in await reading] == texts
    assert (await cluster.verify())["ok"]


async def test_a_new_start_from_the_directories_goes_on_where_the_old_one_ended(
    tmp_path: Path,
) -> None:
    for run in range(3):
        async with (
            LocalCluster(tmp_path) as cluster,
            Client(cluster.url, user="alice") as alice,
        ):
            seqs_given = await send_all(alice, [f"run {run} {n}" for n in range(20)])
            assert seqs_given == list(range(run * 20 + 1, run * 20 + 21))
            events = await read_all(alice, (run + 1) * 20)
            assert [event.text for event in events[:2]] == ["run 0 0", "run 0 1"]


async def test_everything_killed_at_once_loses_nothing_acknowledged(tmp_path: Path) -> None:
    store = tmp_path / "alice.db"
    texts = [f"message {n}" for n in range(3_000)]
    acked = 0
    async with (
        LocalCluster(tmp_path / "data") as cluster,
        Client(cluster.url, user="alice", device="d", store=store) as alice,
    ):
        sent = [await alice.send(SESSION, text) for text in texts]
        await sent[500].acked(timeout=30)
        names = [n for group in cluster.controller.running_names().values() for n in group]
        await asyncio.gather(*(cluster.crash(name, hold=True) for name in names))
        acked = sum(one.state.name == "ACKED" for one in sent)
    async with (
        LocalCluster(tmp_path / "data") as cluster,
        Client(cluster.url, user="alice", device="d", store=store) as alice,
    ):
        await until(lambda: not alice.outbox())
        events = await read_all(alice, len(texts))
    assert acked >= 500
    assert [event.text for event in events] == texts
    assert seqs(events) == list(range(1, len(texts) + 1))


async def test_a_spare_takes_the_place_of_a_lost_replica(tmp_path: Path) -> None:
    async with (
        LocalCluster(tmp_path, replicas=4, owner=QUICK) as cluster,
        Client(cluster.url, user="alice") as alice,
    ):
        sessions = [f"session {n}" for n in range(20)]
        for session in sessions:
            await send_all(alice, ["before"], session)
        await cluster.crash("replica-1", hold=True)
        for session in sessions:
            assert await send_all(alice, ["after"], session) == [2]
        await until(
            lambda: all("replica-1" not in str(v.members) for v in cluster.directory().views)
        )
        await until(lambda: all(_complete(cluster, f"replica-{n}") for n in (2, 3, 4)))
        cluster.release("replica-1")
        await until(lambda: "replica-1" in cluster.controller.running_names()["replica"])
        verdict = await cluster.verify()
        assert verdict["ok"], verdict


def _complete(cluster: LocalCluster, name: str) -> bool:
    return all(log.complete for log in cluster.node(name).machine.logs.values())


@pytest.mark.parametrize("part", ["journal", "history"])
async def test_a_flipped_byte_is_found_and_the_replica_repaired(tmp_path: Path, part: str) -> None:
    text = "a text that can be found in a file"
    async with (
        LocalCluster(tmp_path, owner=QUICK) as cluster,
        Client(cluster.url, user="alice") as alice,
    ):
        await send_all(alice, [text] * 50)
        if part == "journal":
            # A clean stop empties the journal; a killed replica leaves what it had not trimmed.
            await cluster.crash("replica-2", hold=True)
        else:
            logs = cluster.node("replica-2").machine.logs.values()
            await until(lambda: all(log.applied_lsn == log.last_lsn for log in logs))
    damaged = tmp_path / "replica-2"
    path = _file_with(damaged, text.encode(), part)
    assert path is not None
    _flip(path, text.encode())
    async with (
        LocalCluster(tmp_path, owner=QUICK) as cluster,
        Client(cluster.url, user="alice") as alice,
    ):
        disk = cluster.node("replica-2").disk
        first = await cluster.verify()
        assert first["corrupt"] or list(damaged.glob("corrupt-*")), first
        assert await send_all(alice, ["served all the same"]) == [51]
        await until(
            lambda: cluster.node("replica-2").disk != disk or list(damaged.glob("corrupt-*"))
        )
        await until(lambda: "replica-2" in cluster.controller.running_names()["replica"])
        await until(lambda: _complete(cluster, "replica-2"))
        await until(lambda: len(cluster.node("replica-2").machine.logs) == 8)
        assert await send_all(alice, ["three copies again"]) == [52]
        verdict = await cluster.verify()
        assert verdict["ok"], verdict
        assert len(await read_all(alice, 52)) == 52


def _file_with(directory: Path, needle: bytes, part: str) -> Path | None:
    files = sorted(directory.glob(f"{part}*")) + sorted(directory.glob(f"{part}/*"))
    return next((f for f in files if f.is_file() and needle in f.read_bytes()), None)


def _flip(path: Path, needle: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(needle) + 7] ^= 0x20
    path.write_bytes(data)


async def test_a_directory_in_use_is_not_opened_a_second_time(cluster: LocalCluster) -> None:
    other = LocalCluster(cluster.data, controller=ControllerConfig(first_start_ms=100))
    with pytest.raises(WrongDirectory, match="in use"):
        await other.start()
    await other.stop()
    assert (await cluster.status())["healthy"]


async def test_status_is_json_and_names_what_is_wrong(cluster: LocalCluster) -> None:
    async with cluster.admin() as admin:
        healthy = await admin.call("status")
        assert healthy["healthy"]
        await cluster.crash("replica-3", hold=True)
        sick = await admin.call("status")
        assert not sick["healthy"]
        assert sick["slots"]["unhealthy"][0]["why"] == "writes wait for replica-3"
        cluster.release("replica-3")
        await until(lambda: "replica-3" in cluster.controller.running_names()["replica"])
        story = await admin.call("story", SESSION)
        assert any("serves epoch" in line for line in story)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB where replica-2 will live."""
    disk = tmp_path / "replica-2"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False)


async def test_a_full_disk_stops_writes_loses_nothing_and_heals(
    tmp_path: Path, small_disk: Path
) -> None:
    async with (
        LocalCluster(tmp_path) as cluster,
        Client(cluster.url, user="alice") as alice,
    ):
        assert await send_all(alice, ["room enough"] * 10) == list(range(1, 11))
        filler = small_disk / "filler"
        with contextlib.suppress(OSError):
            filler.write_bytes(bytes(64 * 1024 * 1024))
        sent = [await alice.send(SESSION, "x" * 50_000) for _ in range(40)]
        await until(lambda: "make room" in str(cluster.controller._troubles.get("replica-2")))
        status = await cluster.status()
        assert "make room" in status["missing"]["replica-2"]
        assert not status["healthy"]
        filler.unlink()
        assert [(await one.acked(timeout=60)).seq for one in sent] == list(range(11, 51))
        assert len(await read_all(alice, 50)) == 50
        verdict = await cluster.verify()
        assert verdict["ok"], verdict


def test_a_setting_that_makes_no_sense_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="hold_ms is 0"):
        LocalCluster(tmp_path / "data", gateway=GatewayConfig(hold_ms=0))
    assert not (tmp_path / "data").exists()
