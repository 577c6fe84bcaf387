"""backup and restore, under a whole cluster in one process."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from im_actors.client import Client
from im_actors.server.cluster_file import read_cluster
from im_actors.server.views import FILE, open_view_store
from im_actors.storage.directory import open_existing
from im_actors.testing import LocalCluster
from tests.cli.conftest import ClusterThread, Result

Run = Callable[..., Result]


async def keep_sending(cluster: LocalCluster, store: Path, stop: asyncio.Event) -> dict[int, str]:
    """The text of each seq that was ACKed in session "busy"."""
    acked: dict[int, str] = {}
    async with Client(cluster.url, user="carol", store=store) as carol:
        while not stop.is_set():
            said = [f"{len(acked)} {i}" for i in range(20)]
            sent = [await carol.send("busy", text) for text in said]
            for text, one in zip(said, sent, strict=True):
                acked[(await one.acked(timeout=60)).seq] = text
    return acked


async def texts(cluster: LocalCluster, session: str, tmp_path: Path) -> list[str]:
    async with Client(cluster.url, user="reader", store=tmp_path / "reader.db") as reader:
        await reader.connected(timeout=60)
        return [event.text for event in (await reader.history(session, limit=1000)).events]


@pytest.mark.timeout(60)
def test_a_cluster_goes_on_from_its_backup(
    im: Run, own_cluster: ClusterThread, tmp_path: Path
) -> None:
    data, copy, back = own_cluster.data, tmp_path / "copy", tmp_path / "back"
    for text in ("one", "two"):
        assert im("send", "team", text, "--as", "alice", "--data", data)[0] == 0
    stop = asyncio.Event()
    busy = asyncio.run_coroutine_threadsafe(
        keep_sending(own_cluster.cluster, tmp_path / "carol.db", stop), own_cluster._loop
    )
    code, out, err = im("backup", copy, "--dry-run", "--json", "--data", data)
    assert (code, err, copy.exists()) == (0, "", False)
    code, out, err = im("backup", copy, "--json", "--data", data)
    assert (code, err) == (0, "")
    first = json.loads(out)

    # The device of a client that dies between its send and the ACK.
    async def unanswered() -> None:
        async with Client("im://127.0.0.1:9", user="dora", store=tmp_path / "dora.db") as dora:
            await dora.send("team", "three")
        shutil.copy(tmp_path / "dora.db", tmp_path / "dora-again.db")

    own_cluster.run(unanswered())
    own_cluster.run(settle(own_cluster.cluster.url, tmp_path / "dora.db"))
    code, out, _ = im("backup", copy, "--dry-run", "--json", "--data", data)
    dry = json.loads(out)
    assert dry["records_new"] > 0
    assert dry["run"] == first["run"] == 1
    code, out, _ = im("backup", copy, "--data", data)
    assert code == 0
    assert "run 2: " in out
    assert "last lsn of each slot" in out
    own_cluster._loop.call_soon_threadsafe(stop.set)
    acked = busy.result(20)
    assert im("send", "team", "too late", "--as", "alice", "--data", data)[0] == 0

    code, out, err = im("restore", copy, "--data", data)
    assert (code, out) == (1, "")
    assert "is not empty" in err
    code, out, _ = im("restore", copy, "--dry-run", "--data", back)
    assert code == 0
    assert "would restore" in out
    assert not back.exists()
    code, out, err = im("restore", copy, "--data", back)
    assert code == 0, err
    assert "what was ACKed later is gone" in out
    assert f"im-actors up --data {back}" in out
    assert im("verify", "--data", back)[0] == 0
    nothing_in_common(data, back)

    restored = ClusterThread(back)
    restored.start()
    try:
        known = restored.run(texts(restored.cluster, "busy", tmp_path))
        assert [acked[seq] for seq in range(1, len(known) + 1)] == known
        assert len(known) < len(acked)
        team = ["one", "two", "three"]
        assert restored.run(texts(restored.cluster, "team", tmp_path)) == team
        # She was in the backup, and sends it again: the same seq, and no second message.
        again = restored.run(settle(restored.cluster.url, tmp_path / "dora-again.db"))
        assert again == [3]
        assert im("send", "team", "four", "--as", "erik", "--data", back)[0] == 0
        assert restored.run(texts(restored.cluster, "team", tmp_path)) == [*team, "four"]
        assert im("verify", "--data", back)[0] == 0
        code, _, err = im("backup", copy, "--data", back)
        assert code == 1
        assert "a restored cluster is a new one" in err
    finally:
        restored.close()


async def settle(url: str, store: Path) -> list[int]:
    """Connect with a store that has something to send; the seqs that it gets."""
    async with Client(url, user="dora", store=store) as dora:
        pending = dora.outbox()
        assert pending
        return [(await one.acked(timeout=60)).seq for one in pending]


def nothing_in_common(data: Path, back: Path) -> None:
    """No host of the old cluster can take part in the new one."""
    old, new = read_cluster(data), read_cluster(back)
    assert old is not None
    assert new is not None
    assert old.slots == new.slots
    for name in ("cluster", "secret", "view_store_identity"):
        assert getattr(old, name) != getattr(new, name)

    async def views() -> dict[int, Any]:
        store = await open_view_store("", back / "controller", new.cluster)
        try:
            return await store.read_all()
        finally:
            await store.close()

    epochs = [view.epoch for view in asyncio.run(views()).values()]
    assert len(epochs) == new.slots
    for number in (1, 2, 3):
        directory = open_existing(back / f"replica-{number}")
        assert directory.cluster == new.cluster
        directory.close()
    manifest = json.loads((back.parent / "copy" / "manifest.json").read_text())
    assert min(epochs) > manifest["promised"]
    assert (back / "controller" / FILE).exists()


def test_what_is_no_backup_is_refused_and_nothing_is_written(im: Run, tmp_path: Path) -> None:
    back = tmp_path / "back"
    for name, why in (("none", "no such directory"), ("empty", "the last that a backup writes")):
        if name == "empty":
            (tmp_path / name).mkdir()
        code, out, err = im("restore", tmp_path / name, "--data", back)
        assert (code, out) == (1, "")
        assert why in err
        assert not back.exists()
    code, _, err = im("backup", tmp_path / "copy", "--data", tmp_path / "nothing")
    assert code == 1
    assert "no cluster runs" in err
    assert not (tmp_path / "copy").exists()
