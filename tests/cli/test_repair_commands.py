"""repair, on the directories of a cluster that is down."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from im_actors.client import Client
from im_actors.errors import CorruptData, RolledBack
from im_actors.server.cluster_file import read_cluster
from im_actors.server.views import FILE, open_view_store
from im_actors.storage.directory import open_existing
from tests.cli.conftest import ClusterThread, Result
from tests.support_redis import MakeRedis

pytestmark = pytest.mark.slow
Run = Callable[..., Result]


@pytest.fixture
def four(tmp_path: Path) -> Any:
    """A cluster of four replicas, that is down and has ten messages in each of six sessions."""
    cluster = ClusterThread(tmp_path / "cluster", replicas=4, slots=4, shards=1)
    cluster.data.mkdir()
    cluster.start()
    cluster.run(say(cluster, range(10)))
    cluster.stop()
    yield cluster
    cluster.close()


async def say(cluster: ClusterThread, numbers: range) -> None:
    async with Client(cluster.cluster.url, user="alice", store=cluster.data / "alice.db") as alice:
        sent = [await alice.send(f"s{n % 6}", f"{n // 6}") for n in range(6 * len(numbers))]
        for one in sent:
            await one.acked(timeout=60)


async def sizes(cluster: ClusterThread) -> list[int]:
    async with Client(cluster.cluster.url, user="bob", store=None) as bob:
        await bob.connected(timeout=60)
        return [len((await bob.history(f"s{n}", limit=100)).events) for n in range(6)]


def serves(im: Run, cluster: ClusterThread, messages: int) -> None:
    """It starts, has everything, takes more, and the copies are equal."""
    cluster.start()
    assert cluster.run(sizes(cluster)) == [messages] * 6
    cluster.run(say(cluster, range(2)))
    assert cluster.run(sizes(cluster)) == [messages + 2] * 6
    found = cluster.run(cluster.cluster.verify(repair=False))
    assert not found["divergent"]
    assert not found["corrupt"]
    cluster.stop()


def views_of(data: Path) -> dict[int, Any]:
    async def read() -> dict[int, Any]:
        cluster = read_cluster(data)
        assert cluster is not None
        known = cluster.view_store_identity
        store = await open_view_store("", data / "controller", cluster.cluster, known)
        try:
            return await store.read_all()
        finally:
            await store.close()

    return asyncio.run(read())


@pytest.mark.timeout(60)
def test_a_lost_view_store_is_rebuilt(im: Run, four: ClusterThread) -> None:
    data = four.data
    store = data / "controller" / FILE
    before = views_of(data)
    assert im("repair", "--data", data)[:2] == (
        0,
        "view store: ok\nthere is no view to be rebuilt\n",
    )
    assert views_of(data) == before
    store.unlink()
    with pytest.raises(RolledBack, match="im-actors repair"):
        views_of(data)
    code, out, _ = im("repair", "--dry-run", "--json", "--data", data)
    dry = json.loads(out)
    assert (code, dry["changes"], dry["refused"], dry["done"]) == (0, 4, [], False)
    assert not store.exists()
    code, out, _ = im("repair", "--data", data)
    assert code == 0
    assert "rebuilt 4 views" in out
    after = views_of(data)
    for slot, view in after.items():
        assert view.epoch > before[slot].epoch
        # All three are equal ends of one log: a clean stop.
        assert set(view.members) == set(before[slot].members)
    serves(im, four, 10)


@pytest.mark.timeout(60)
def test_a_damaged_and_an_old_store_are_rebuilt(
    im: Run, four: ClusterThread, tmp_path: Path
) -> None:
    data = four.data
    controller = data / "controller"
    shutil.copytree(controller, tmp_path / "old")
    four.start()
    four.stop()
    shutil.rmtree(controller)
    shutil.copytree(tmp_path / "old", controller)
    code, out, _ = im("repair", "--data", data)
    assert code == 0
    assert "a disk has promised" in out
    assert "rebuilt 4 views" in out
    (controller / FILE).write_bytes(b"SQLite format 3" + b"\x07" * 5000)
    with pytest.raises(CorruptData, match="im-actors repair"):
        views_of(data)
    assert im("repair", "--data", data)[0] == 0
    assert list(controller.glob(f"lost-*-{FILE}"))
    serves(im, four, 10)


def test_it_refuses_what_it_cannot_know(im: Run, four: ClusterThread, tmp_path: Path) -> None:
    data = four.data
    before = views_of(data)
    slot = 2
    members = [member.replica for member in before[slot].members]
    away = tmp_path / "away"
    away.mkdir()
    for name in members:
        (data / name).rename(away / name)
    code, out, err = im("repair", "--data", data)
    assert code == 1
    assert "none of its members is here" in out
    assert "nothing was changed: something of slots" in err
    assert str(slot) in err
    assert "MAY BE LOST" in out
    assert views_of(data) == before
    # The same when nothing here speaks of the others, as far as somebody says that there are more.
    assert json.loads(im("repair", "--dry-run", "--json", "--data", data)[1])[
        "absent"
    ].keys() == set(members)
    more = im("repair", "--dry-run", "--json", "--replicas", 6, "--data", data)[1]
    assert json.loads(more)["absent"].keys() == {*members, "replica-5", "replica-6"}
    also = [part for name in members for part in ("--also", away / name)]
    assert im("repair", "--data", data, *also)[0] == 0
    assert views_of(data) == before
    code, out, _ = im("repair", "--data", data, "--accept-loss", str(slot), "--json")
    assert json.loads(out)["slots"][slot]["action"] == "rebuild"
    rest = json.loads(out)["refused"]
    assert slot not in rest
    assert im("repair", "--data", data, "--accept-loss", "some")[0] == 2
    (data / "run.json").write_text("{}")
    assert im("repair", "--data", data)[0] == 1


@pytest.mark.timeout(60)
def test_one_copy_of_three_is_enough(im: Run, tmp_path: Path) -> None:
    """It needs no repair, and repair says so."""
    cluster = ClusterThread(tmp_path / "cluster", slots=4, shards=1)
    cluster.data.mkdir()
    cluster.start()
    try:
        cluster.run(say(cluster, range(10)))
        cluster.stop()
        for name in ("replica-1", "replica-3"):
            shutil.rmtree(cluster.data / name)
        code, out, _ = im("repair", "--dry-run", "--data", cluster.data)
        assert code == 0
        assert "1 of 3 copies are here" in out
        assert "no view to be rebuilt" in out
        # The same without the view store: what one has is then all that there is.
        (cluster.data / "controller" / FILE).unlink()
        assert im("repair", "--data", cluster.data)[0] == 0
        serves(im, cluster, 10)
        disks = {open_existing_disk(cluster.data / f"replica-{n}") for n in (1, 2, 3)}
        assert len(disks) == 3
    finally:
        cluster.close()


@pytest.mark.timeout(60)
def test_views_in_redis_are_rebuilt_and_restored(
    im: Run, make_redis: MakeRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis, copy = make_redis(), tmp_path / "copy"
    cluster = ClusterThread(tmp_path / "cluster", slots=4, shards=1, redis=redis.url)
    cluster.data.mkdir()
    cluster.start()
    try:
        cluster.run(say(cluster, range(10)))
        assert im("backup", copy, "--data", cluster.data)[0] == 0
        cluster.stop()
        redis.kill()
        code, _, err = im("repair", "--redis", redis.url, "--data", cluster.data)
        assert code == 1, "that it cannot be reached does not say that it is lost"
        assert str(redis.port) in err
        redis.wipe()
        redis.start()
        assert "say --redis URL" in im("repair", "--data", cluster.data)[2]
        monkeypatch.setenv("IM_ACTORS_REDIS", redis.url)
        code, out, _ = im("repair", "--data", cluster.data)
        assert code == 0
        assert "rebuilt 4 views" in out
        serves(im, cluster, 10)
    finally:
        cluster.close()
    assert im("restore", copy, "--data", tmp_path / "back")[0] == 0
    restored = ClusterThread(tmp_path / "back", slots=4, shards=1, redis=redis.url)
    try:
        restored.start()
        assert restored.run(sizes(restored)) == [10] * 6
    finally:
        restored.close()


def open_existing_disk(path: Path) -> str:
    directory = open_existing(path)
    directory.close()
    return directory.disk
