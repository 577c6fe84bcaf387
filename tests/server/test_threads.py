"""Threads have names that tools outside of Python see."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from im_actors.server.storage import ReplicaStorage
from im_actors.server.threads import name_thread


def seen_outside() -> str:
    return Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text().strip()


@pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="there is no /proc")
async def test_the_threads_of_a_replica_are_told_apart(tmp_path: Path) -> None:
    storage = ReplicaStorage(tmp_path, "cluster", "replica-1")
    try:
        assert await storage.in_journal(seen_outside) == "journal"
        assert await storage.in_history(seen_outside) == "history"
    finally:
        await storage.abandon()


@pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="there is no /proc")
def test_the_main_thread_keeps_the_name_of_its_process() -> None:
    before = seen_outside()
    name_thread("other")
    assert seen_outside() == before
