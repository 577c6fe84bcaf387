"""Says whether a store holds what its writer was told (``writers``); knows only lines and files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from im_actors.server.storage import ReplicaStorage
from im_actors.server.views_sqlite import SqliteViewStore
from im_actors.storage.client_store import Opened, SqliteStore
from im_actors.storage.scan import scan_history, scan_journal
from im_actors.storage.verify import join_scans
from tests.storage import writers


class Told(NamedTuple):
    """What a writer's lines say: steps below ``done`` were acknowledged, from ``asked`` on none was
    begun."""

    done: int
    asked: int
    disk: str
    failed: str


def read_lines(lines: Iterable[str], first: int = 0) -> Told:
    """``first``: the step that the writer began with; those before it were seen to be there."""
    words = [line.partition(" ") for line in lines]
    done = max((int(rest) + 1 for word, _, rest in words if word == "told"), default=first)
    asked = max((int(rest) + 1 for word, _, rest in words if word == "asked"), default=first)
    disk = next((rest for word, _, rest in words if word == "disk"), "")
    failed = next((rest for word, _, rest in words if word == "failed"), "")
    assert not [line for line in lines if line.startswith("refused")], "the plan is wrong"
    return Told(done, asked, disk, failed)


# -- a replica -------------------------------------------------------------------------------------


class OnDisk(NamedTuple):
    promised: int
    checksums: tuple[int, ...]


async def _read_replica(path: Path, deep: bool) -> tuple[str, dict[int, OnDisk], dict[int, int]]:
    storage = ReplicaStorage(path, "c", "r")
    try:
        logs, waiting = await storage.open()
        found: dict[int, OnDisk] = {}
        for slot, log in logs.items():
            past = storage.history.records(slot, 1, log.applied_lsn, 1 << 40)
            sums = {r.lsn: r.checksum for r in past}
            for there, record in waiting:
                if there == slot:
                    assert sums.setdefault(record.lsn, record.checksum) == record.checksum
            assert list(sums) == list(range(1, log.last_lsn + 1)), (slot, list(sums))
            found[slot] = OnDisk(log.promised, tuple(sums.values()))
        applied = {slot: lsn for slot, lsn in storage.history.applied().items() if lsn}
        if deep:
            _scan(storage)
        return storage.data.disk, found, applied
    finally:
        await storage.abandon()


def _scan(storage: ReplicaStorage) -> None:
    journals = [found for found in scan_journal(storage.journal) if found is not None]
    histories = [found for found in scan_history(storage.history) if found is not None]
    report = join_scans(journals, histories, storage.history.applied())
    assert not report.problems, report.problems


def check_replica(path: Path, seed: int, told: Told, deep: bool = False) -> int:
    """The number of steps that the files hold: every acknowledged one, none in part, no other."""
    disk, found, applied = asyncio.run(_read_replica(path, deep))
    quarantined = [entry.name for entry in path.iterdir() if entry.name.startswith("corrupt-")]
    assert not quarantined, (path / quarantined[0] / "reason.txt").read_text()
    if told.disk:
        assert disk == told.disk, "another disk answers in its place"
    slots = {slot: writers.SlotModel() for slot in writers.SLOTS}
    plan = writers.replica_plan(seed)
    for request in islice(plan, told.done):
        slots[request.slot].take(request)
    step = told.done
    while not _same(slots, found):
        if step == told.asked:
            raise AssertionError(f"{path} is in no state from {told.done} to {told.asked}: {found}")
        request = next(plan)
        slots[request.slot].take(request)
        step += 1
    for request in islice(plan, told.asked - step):
        slots[request.slot].commit_lsn = max(
            slots[request.slot].commit_lsn, getattr(request, "commit_lsn", 0)
        )
    for slot, lsn in applied.items():
        assert lsn <= slots[slot].commit_lsn, "applied to history above the commit point"
    return step


def _same(slots: dict[int, writers.SlotModel], found: dict[int, OnDisk]) -> bool:
    nothing = OnDisk(0, ())
    return all(
        found.get(slot, nothing) == (model.promised, tuple(r.checksum for r in model.records))
        for slot, model in slots.items()
    )


# -- a client's store ------------------------------------------------------------------------------


async def _read_client(path: Path) -> tuple[Opened, list[Any], list[str]]:
    store = SqliteStore(path / "client.db", "u", "d")
    problems: list[str] = []
    opened = await store.open(lambda keys: None, lambda error: problems.append(str(error)))
    events = await store.events_after("a", 0, 1 << 30)
    await store.close()
    return opened, events, problems


def check_client(path: Path, seed: int, told: Told, deep: bool = False) -> int:
    """Acknowledged rows are there until they are deleted, whole; their numbers stay used."""
    opened, events, problems = asyncio.run(_read_client(path))
    assert not problems
    rows = {(row.session, row.n): row for row in opened.rows}
    used = {session: n - 1 for session, n in opened.next_n.items()}
    there: list[int] = []
    for step in range(told.asked):
        row = writers.client_row(seed, step)
        found = rows.pop((row.session, row.n), None)
        assert found in (None, row), f"step {step} is there in part"
        if found is None and writers.client_deletes(step) and step + 10 < told.asked:
            found = row if used.get(row.session, 0) >= row.n else None
        if step < told.done:
            assert found, f"step {step} was told and is lost"
            assert used[row.session] >= row.n, f"the number of step {step} would be used again"
        if found:
            there.append(step)
    assert not rows, f"rows that nobody saved: {list(rows)}"
    assert there == list(range(len(there))), "a later row without an earlier one"
    for event in events:
        assert event.body == writers.client_row(seed, event.seq - 1).body
    assert opened.cursors.get("a", 0) <= told.asked
    return len(there)


# -- the view store --------------------------------------------------------------------------------


async def _read_views(path: Path) -> dict[int, Any]:
    store = SqliteViewStore(path / "views.db", "c")
    try:
        await store.open()
        return await store.read_all()
    finally:
        await store.close()


def check_views(path: Path, seed: int, told: Told, deep: bool = False) -> int:
    """The last view that was told of each slot, or the one that was on its way."""
    found = asyncio.run(_read_views(path))
    for steps in range(told.done, told.asked + 1):
        if found == {writers.view_at(step).slot: writers.view_at(step) for step in range(steps)}:
            return steps
    raise AssertionError(f"{path} is in no state from {told.done} to {told.asked}: {found}")


CHECKS: dict[str, Callable[..., int]] = {
    "replica": check_replica,
    "client": check_client,
    "views": check_views,
}
