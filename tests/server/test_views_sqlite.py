"""The view store in a file: locks, damage, a failing disk."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from im_actors.core.model import SLOTS_MAX, View, ViewState
from im_actors.errors import (
    CorruptData,
    DiskFailed,
    NewerFormat,
    RolledBack,
    Unknown,
    WrongDirectory,
)
from im_actors.server.views import (
    encode_view,
)
from im_actors.server.views_sqlite import WAL_BYTES_MAX, SqliteViewStore
from tests.support_views import (
    SqlitePlace,
    active,
    claim,
    first,
)

OTHER_PROCESS = """
import asyncio, sys
from pathlib import Path
from im_actors.core.model import View
from im_actors.server.views_sqlite import SqliteViewStore

async def main():
    store = SqliteViewStore(Path(sys.argv[1]), "c1")
    await store.open()
    old = View(7, 0, 0, "", ())
    await store.create(old)
    await store.swap(old, View(7, 1, 0, "shard-1.a", ()))
    print("swapped", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""
SWAPPED = View(7, 1, ViewState.RECOVERING, "shard-1.a", ())


@pytest.fixture
def other_process(tmp_path: Path) -> Any:
    """A process that has the file open, has swapped a view, and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "views.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"swapped\n"
    yield process
    process.kill()
    process.communicate()


async def test_a_file_in_use_by_another_process(
    tmp_path: Path, other_process: subprocess.Popen[bytes]
) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    with pytest.raises(WrongDirectory, match=f"in use by pid {other_process.pid}"):
        await place.open()
    os.kill(other_process.pid, signal.SIGSTOP)
    with pytest.raises(WrongDirectory, match="in use"):
        await place.open()
    os.kill(other_process.pid, signal.SIGCONT)


async def test_what_was_answered_survives_kill_9(
    tmp_path: Path, other_process: subprocess.Popen[bytes]
) -> None:
    other_process.kill()
    other_process.wait()
    store = await SqlitePlace(tmp_path / "views.db").open()
    assert await store.read_all() == {7: SWAPPED}
    await store.close()


async def test_the_second_process_waits_for_the_first_to_end(
    tmp_path: Path, other_process: subprocess.Popen[bytes]
) -> None:
    store = SqliteViewStore(tmp_path / "views.db", "c1", lock_wait_s=30)
    opening = asyncio.ensure_future(store.open())
    done, _ = await asyncio.wait([opening], timeout=0.1)
    assert not done
    other_process.kill()
    await opening
    assert await store.read(7) == SWAPPED
    await store.close()


async def test_a_file_is_open_once_in_one_process_too(tmp_path: Path) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    store = await place.open()
    with pytest.raises(WrongDirectory, match="in use"):
        await place.open()
    await store.create(first())
    await store.close()
    await (await place.open()).close()


async def test_a_file_of_a_newer_version(tmp_path: Path) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    await (await place.open()).close()
    place.sql("PRAGMA user_version=99")
    with pytest.raises(NewerFormat, match="format 99"):
        await place.open()


async def test_a_file_of_another_cluster(tmp_path: Path) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    await (await place.open()).close()
    place.cluster = "c2"
    with pytest.raises(WrongDirectory, match="belongs to cluster 'c1'"):
        await place.open()


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("DELETE FROM store", "lost its identity"),
        ("UPDATE store SET record = 'x'", "damaged"),
    ],
)
async def test_a_file_with_a_damaged_identity(tmp_path: Path, statement: str, text: str) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    store = await place.open()
    await store.create(first())
    await store.close()
    place.sql(statement)
    with pytest.raises(CorruptData, match=text):
        await place.open(store.identity)


async def test_a_table_that_is_no_longer_keyed_by_its_slot(tmp_path: Path) -> None:
    """One flipped bit; SQLite finds nothing wrong, and no view."""
    place = SqlitePlace(tmp_path / "views.db")
    store = await place.open()
    await store.create(first())
    await store.close()
    data = place.path.read_bytes()
    where = data.find(b"PRIMARY", data.find(b"TABLE views"))
    place.path.write_bytes(data[:where] + b"PRIOARY" + data[where + 7 :])
    with pytest.raises(CorruptData, match="not those of a view store"):
        await place.open(store.identity)


async def test_a_row_of_another_type(tmp_path: Path) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    await (await place.open()).close()
    place.sql("INSERT INTO views VALUES(7, ?)", encode_view(first()).decode())
    place.sql("INSERT INTO views VALUES(8, 8)")
    store = await place.open()
    for slot in (7, 8):
        with pytest.raises(CorruptData):
            await store.read(slot)
    await store.close()


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    place.path.write_bytes(b"something else " * 100)
    with pytest.raises(CorruptData, match="bring back a good copy"):
        await place.open()


async def test_a_file_that_is_gone(tmp_path: Path) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    store = await place.open()
    await store.close()
    place.path.unlink()
    with pytest.raises(RolledBack, match="is empty"):
        await place.open(store.identity)
    assert not place.path.exists()
    place.path.touch()
    with pytest.raises(RolledBack, match="is empty"):
        await place.open(store.identity)


async def test_a_file_without_content_where_a_store_is_expected(tmp_path: Path) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    place.sql("PRAGMA journal_mode=WAL")
    before = place.path.read_bytes()
    assert before
    with pytest.raises(CorruptData, match="no content"):
        await place.open("0123456789abcdef")
    assert place.path.read_bytes() == before


async def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskFailed):
        await SqlitePlace(tmp_path / "file" / "views.db").open()


async def test_settings_are_what_they_should_be(tmp_path: Path) -> None:
    store = await SqlitePlace(tmp_path / "views.db").open()

    def ask() -> list[object]:
        names = ("journal_mode", "synchronous")
        return [store._open_database.row(f"PRAGMA {name}")[0] for name in names]

    assert await store._run(ask) == ["wal", 2]
    await store.close()


async def test_a_full_disk(tmp_path: Path) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    store = await place.open()

    def limit_pages() -> None:
        pages = store._open_database.row("PRAGMA page_count")[0]
        store._open_database.row(f"PRAGMA max_page_count={pages}")

    await store._run(limit_pages)
    answered: dict[int, View] = {}

    async def fill() -> None:
        for slot in range(SLOTS_MAX):
            answered[slot] = await store.create(first(slot))

    with pytest.raises(DiskFailed, match="free some space"):
        await fill()
    assert answered
    with pytest.raises(DiskFailed):
        await store.create(first(SLOTS_MAX - 1))
    await store.close()
    again = await place.open(store.identity)
    assert (await again.read_all()).items() >= answered.items()
    await again.close()


async def test_a_failed_commit_is_unknown(tmp_path: Path) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    store = await place.open()
    old = await store.create(first())

    class Broken:
        """A connection whose COMMIT takes effect and reports an error."""

        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection

        def execute(self, sql: str, *values: Any) -> Any:
            result = self._connection.execute(sql, *values)
            if sql == "COMMIT":
                raise sqlite3.OperationalError("disk I/O error")
            return result

        def close(self) -> None:
            self._connection.close()

    database: Any = store._open_database
    database.connection = Broken(database.connection)
    with pytest.raises(Unknown, match="or not"):
        await store.swap(old, claim(old))
    for _ in range(2):
        with pytest.raises(DiskFailed):
            await store.swap(old, claim(old))
        with pytest.raises(DiskFailed):
            await store.read(7)
    await store.close()
    again = await place.open()
    assert await again.swap(old, claim(old)) == claim(old)
    await again.close()


async def test_what_a_shard_changes_at_the_same_moment_shares_transactions(tmp_path: Path) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    store = await place.open()
    olds = [await store.create(first(slot)) for slot in range(32)]
    database: Any = store._open_database
    begun: list[int] = []
    transaction = database.transaction

    def counted() -> Any:
        begun.append(1)
        return transaction()

    database.transaction = counted
    held = asyncio.Event()
    loop = asyncio.get_running_loop()
    go_on = threading.Event()
    store._thread.submit(lambda: (loop.call_soon_threadsafe(held.set), go_on.wait()))
    await held.wait()
    changing = [asyncio.ensure_future(store.swap(old, claim(old))) for old in olds]
    # Two more of the same slot: one that comes too late, and one that goes on from the first.
    changing.append(asyncio.ensure_future(store.swap(olds[0], claim(olds[0], "shard-2.b"))))
    changing.append(asyncio.ensure_future(store.swap(claim(olds[1]), active(claim(olds[1])))))
    await asyncio.sleep(0)
    go_on.set()
    found = await asyncio.gather(*changing)
    assert found == [*map(claim, olds), claim(olds[0]), active(claim(olds[1]))]
    assert len(begun) == 1
    await store.close()
    again = await place.open()
    assert await again.read_all() == {**dict(enumerate(found[:32])), 1: found[-1]}
    await again.close()


async def test_a_view_that_its_transaction_did_not_write_is_told_to_nobody(tmp_path: Path) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    store = await place.open()
    old = await store.create(first())
    other = await store.create(first(8))
    go_on = threading.Event()
    store._thread.submit(go_on.wait)
    changes = (
        store.swap(old, claim(old)),
        store.swap(old, claim(old, "shard-2.b")),
        store.swap(claim(other), active(claim(other))),
    )
    changing = [asyncio.ensure_future(change) for change in changes]
    await asyncio.sleep(0)
    database: Any = store._open_database

    def refuse() -> Any:
        raise DiskFailed("no")

    database.transaction = refuse
    go_on.set()
    found = await asyncio.gather(*changing, return_exceptions=True)
    assert [type(outcome) for outcome in found] == [Unknown, Unknown, View]
    assert found[2] == other, "it was not part of the transaction"
    await store.close()


async def test_the_wal_stays_small(tmp_path: Path) -> None:
    place = SqlitePlace(tmp_path / "views.db")
    store = await place.open()
    view = await store.create(first())
    for _ in range(400):
        view = await store.swap(view, claim(view))
    wal_bytes = place.path.with_name("views.db-wal").stat().st_size
    assert WAL_BYTES_MAX / 2 < wal_bytes < WAL_BYTES_MAX + 65_536
    await store.close()
    again = await place.open()
    assert await again.read(7) == view
    await again.close()
