"""The client's store on real files."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import pytest

from im_actors.core.model import Event, EventKind, encode_event, make_key
from im_actors.core.outbox_words import Key, OutboxRow
from im_actors.errors import (
    BadRequest,
    CorruptData,
    DiskFailed,
    ImError,
    NewerFormat,
    WrongDirectory,
)
from im_actors.storage import client_schema, client_statements, client_store
from im_actors.storage.client_store import (
    CachedEvent,
    ClientStore,
    MemoryStore,
    Opened,
    SqliteStore,
    open_store,
)

EVENT = Event("s", 1, make_key(1_700_000_000_000, 0, 0), EventKind.MESSAGE, "bob/1", 1, b"hi")


class Log:
    """What a store reports."""

    def __init__(self) -> None:
        self.saved: list[Key] = []
        self.batches = 0
        self.failed: list[ImError] = []
        self.news = asyncio.Event()

    def on_saved(self, keys: list[Key]) -> None:
        self.saved += keys
        self.batches += 1
        self.news.set()

    def on_failed(self, error: ImError) -> None:
        self.failed.append(error)
        self.news.set()

    async def until_saved(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.saved) < count:
                self.news.clear()
                await self.news.wait()


async def opened(path: Path, log: Log | None = None) -> tuple[SqliteStore, Opened]:
    store = SqliteStore(path, "alice", "phone")
    log = log or Log()
    return store, await store.open(log.on_saved, log.on_failed)


def row(n: int, session: str = "s", body: bytes = b"hi", kind: int = 1) -> OutboxRow:
    return OutboxRow(session, n, kind, body, 1_000 + n)


def cached(*seqs: int, session: str = "s") -> list[CachedEvent]:
    return [
        CachedEvent(
            session,
            seq,
            encode_event(Event(session, seq, make_key(seq, 0, 0), 1, "a/b", seq, b"x")),
        )
        for seq in seqs
    ]


def seqs(events: Iterable[Event]) -> list[int]:
    return [event.seq for event in events]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "alice.db"


async def test_what_was_saved_is_there_after_reopening(path: Path) -> None:
    log = Log()
    store, first = await opened(path, log)
    assert first.rows == []
    for n in (1, 2, 3):
        store.save(row(n))
    store.save(row(1, "t", b"\x00\xff"))
    await log.until_saved(4)
    store.set_cursor("s", 7)
    await store.set_setting("colour", "blue")
    await store.close()
    store, again = await opened(path)
    assert again.address == first.address
    assert again.address.startswith("alice/phone-")
    assert sorted(again.rows) == [row(1), row(2), row(3), row(1, "t", b"\x00\xff")]
    assert again.next_n == {"s": 4, "t": 2}
    assert again.cursors == {"s": 7}
    assert await store.setting("colour") == "blue"
    assert await store.setting("size") is None
    await store.close()


async def test_a_deleted_row_leaves_its_number_used(path: Path) -> None:
    log = Log()
    store, _ = await opened(path, log)
    store.save(row(1))
    store.save(row(2))
    await log.until_saved(2)
    store.delete([("s", 1), ("s", 2)])
    await store.close()
    store, again = await opened(path)
    assert again.rows == []
    assert again.next_n == {"s": 3}
    await store.close()


async def test_a_row_is_replaced_in_one_transaction(path: Path) -> None:
    log = Log()
    store, _ = await opened(path, log)
    store.save(row(1))
    store.save(row(2))
    await log.until_saved(2)
    store.save(row(1, body=b"", kind=EventKind.VOID), replaces=1)
    store.save(row(9), replaces=2)
    await log.until_saved(4)
    await store.close()
    store, again = await opened(path)
    assert sorted(again.rows) == [row(1, body=b"", kind=EventKind.VOID), row(9)]
    assert again.next_n == {"s": 10}
    await store.close()


async def test_concurrent_saves_share_transactions_and_keep_their_order(path: Path) -> None:
    log = Log()
    store, _ = await opened(path, log)
    for n in range(1, 5_001):
        store.save(row(n))
    await log.until_saved(5_000)
    assert [n for _, n in log.saved] == list(range(1, 5_001))
    assert log.batches <= 10
    store.delete([("s", n) for n in range(1, 5_000)])
    await store.close()
    store, again = await opened(path)
    assert again.rows == [row(5_000)]
    await store.close()


async def test_the_cache_answers_both_ways(path: Path) -> None:
    for store in (SqliteStore(path, "alice", "phone"), MemoryStore("alice", "phone")):
        log = Log()
        await store.open(log.on_saved, log.on_failed)
        store.cache(cached(5, 1, 2, 3))
        store.cache(cached(3, 9))
        store.cache(cached(50, session="other"))
        assert seqs(await store.events_after("s", 1, 3)) == [2, 3, 5]
        assert seqs(await store.events_after("s", 9, 3)) == []
        assert seqs(await store.events_before("s", None, 2)) == [5, 9]
        assert seqs(await store.events_before("s", 5, 10)) == [1, 2, 3]
        assert [(e.session, e.seq) for e in await store.last_events()] == [("other", 50), ("s", 9)]
        assert await store.events_before("unknown", None, 5) == []
        await store.close()


async def test_the_cache_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_store, "CACHE_EVENTS_PER_SESSION", 100)
    monkeypatch.setattr(client_store, "_PRUNE_EVERY", 50)
    for store in (SqliteStore(path, "alice", "phone"), MemoryStore("alice", "phone")):
        log = Log()
        await store.open(log.on_saved, log.on_failed)
        for start in range(1, 1_001, 10):
            store.cache(cached(*range(start, start + 10)))
            await store.flush()
        kept = seqs(await store.events_after("s", 0, 10_000))
        assert kept == list(range(kept[0], 1_001))
        assert 100 <= len(kept) <= 200
        await store.close()


async def test_events_that_wait_to_be_cached_are_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_store, "LAZY_EVENTS_MAX", 10)
    store, _ = await opened(path)
    for seq in range(1, 101):
        store.cache(cached(seq))
    assert len(await store.events_after("s", 0, 1_000)) == 10
    await store.close()


async def test_another_user_or_device_is_refused(path: Path) -> None:
    store, _ = await opened(path)
    await store.close()
    for user, device in [("bob", "phone"), ("alice", "tablet")]:
        wrong = SqliteStore(path, user, device)
        with pytest.raises(WrongDirectory, match="is the store of user 'alice', device 'phone'"):
            await wrong.open(lambda keys: None, lambda error: None)
    store, _ = await opened(path)
    await store.close()


async def test_a_newer_format_is_refused_and_left_alone(path: Path) -> None:
    store, _ = await opened(path)
    await store.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    before = path.read_bytes()  # noqa: ASYNC240
    with pytest.raises(NewerFormat, match="format 99"):
        await opened(path)
    assert path.read_bytes() == before  # noqa: ASYNC240


async def test_a_file_of_the_first_format_is_brought_to_this_one(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.executescript(client_schema.SCHEMA)
        db.execute("INSERT INTO identity VALUES ('alice', 'phone', 'abc')")
        db.execute("INSERT INTO outbox VALUES (1, 's', 7, 1, x'6869', 5)")
        db.execute("INSERT INTO counters VALUES ('t', 4)")
        db.execute("INSERT INTO cursors VALUES ('s', 3)")
        db.execute("INSERT INTO timeline VALUES ('s', 1, ?)", (encode_event(EVENT),))
        db.execute(f"PRAGMA application_id = {client_schema.APPLICATION_ID}")
        db.execute("PRAGMA user_version = 1")
    for _ in range(2):
        store, found = await opened(path)
        assert found.address == "alice/phone-abc"
        assert found.rows == [OutboxRow("s", 7, 1, b"hi", 5)]
        assert (found.next_n, found.cursors) == ({"s": 8, "t": 4}, {"s": 3})
        assert await store.events_after("s", 0, 9) == [EVENT]
        await store.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE identity SET install = 'other'",
        "UPDATE outbox SET body = x'00'",
        "UPDATE outbox SET n = 8",
        "UPDATE counters SET next_n = 2",
        "UPDATE counters SET next_n = next_n + 0.5",
        "UPDATE cursors SET session = 'x'",
    ],
)
async def test_a_changed_row_is_refused(path: Path, change: str) -> None:
    store, _ = await opened(path)
    store.save(OutboxRow("s", 1, 1, b"hi", 5))
    store.save(OutboxRow("t", 4, 1, b"ho", 5))
    store.set_cursor("s", 3)
    await store.flush()
    store.delete([("t", 4)])
    await store.close()
    with sqlite3.connect(path) as db:
        assert db.execute(change).rowcount == 1
    with pytest.raises(CorruptData, match="is not as written"):
        await opened(path)


async def test_a_changed_event_is_not_cached(path: Path) -> None:
    store, _ = await opened(path)
    store.cache([CachedEvent("s", 1, encode_event(EVENT)), CachedEvent("t", 1, b"")])
    await store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE timeline SET event = x'93' WHERE session = 't'")
    store, _ = await opened(path)
    assert await store.events_after("t", 0, 9) == []
    assert await store.events_before("t", None, 9) == []
    assert await store.last_events() == [EVENT]
    mended = EVENT._replace(session="t")
    store.cache([CachedEvent("t", 1, encode_event(mended))])
    assert await store.events_after("t", 0, 9) == [mended]
    await store.close()


async def test_what_is_kept(path: Path) -> None:
    store, first = await opened(path)
    assert first.kept == {}
    for name in ("a", "b", "c"):
        store.keep("one", name, name.encode())
    store.keep("two", "a", b"")
    await store.flush()
    store.keep("one", "b", b"new")
    store.keep("one", "c", None)
    store.keep("two", "never there", None)
    await store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("UPDATE kept SET value = x'00' WHERE area = 'two'").rowcount == 1
    store, again = await opened(path)
    assert again.kept == {"one": {"a": b"a", "b": b"new"}}, "what was changed is not kept"
    await store.close()


async def test_a_file_of_the_second_format_is_brought_to_this_one(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.create_function("guard_of", -1, client_schema.guard_of)
        db.executescript(client_schema.SCHEMA + client_schema.GUARDS)
        identity = "'alice', 'phone', 'abc'"
        db.execute(f"INSERT INTO identity VALUES ({identity}, guard_of({identity}))")
        db.execute(f"PRAGMA application_id = {client_schema.APPLICATION_ID}")
        db.execute("PRAGMA user_version = 2")
    store, found = await opened(path)
    assert (found.address, found.kept) == ("alice/phone-abc", {})
    store.keep("area", "name", b"value")
    await store.close()
    store, found = await opened(path)
    assert found.kept == {"area": {"name": b"value"}}
    await store.close()


async def test_files_of_other_programs_are_refused(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(WrongDirectory, match="another program"):
        await opened(path)
    path.write_bytes(b"just text, and a lot of it" * 100)  # noqa: ASYNC240
    with pytest.raises(CorruptData, match="damaged"):
        await opened(path)


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongDirectory, match="there is no directory"):
        await opened(tmp_path / "no" / "alice.db")


async def test_one_process_at_a_time(path: Path) -> None:
    store, _ = await opened(path)
    with pytest.raises(WrongDirectory, match=f"in use by process {os.getpid()}"):
        await opened(path)
    link = path.parent / "link.db"
    link.symlink_to(path)
    with pytest.raises(WrongDirectory, match="in use"):
        await opened(link)
    await store.close()
    store, _ = await opened(path)
    await store.close()
    await store.close()


HOLDER = """
    import asyncio, sys
    from im_actors.storage.client_store import SqliteStore
    from im_actors.core.outbox_words import OutboxRow

    async def main():
        saved = asyncio.Event()
        store = SqliteStore(sys.argv[1], "alice", "phone")
        await store.open(lambda keys: saved.set(), lambda error: None)
        store.save(OutboxRow("s", 1, 1, b"kept", 5))
        await saved.wait()
        print("saved", flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


async def test_killed_after_saving(path: Path) -> None:
    """Another process holds the store; kill -9 frees it, and what it had saved is there."""
    child = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(path)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"saved\n"
    with pytest.raises(WrongDirectory, match=f"in use by process {child.pid}"):
        await opened(path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    store, again = await opened(path)
    assert again.rows == [OutboxRow("s", 1, 1, b"kept", 5)]
    await store.close()


async def test_no_room_for_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(DiskFailed, match="No space left"):
            await opened(path)
    store, _ = await opened(path)
    await store.close()


async def test_damage_in_the_log_is_no_shorter_log(path: Path) -> None:
    """SQLite would open it and have fewer rows, of messages that were accepted."""
    log = Log()
    store, _ = await opened(path, log)
    for n in range(1, 6):
        store.save(row(n, body=b"body %d" % n * 50))
        await log.until_saved(n)
    copy = path.with_name("copy.db")
    for end in ("", "-wal"):
        copy.with_name(copy.name + end).write_bytes(path.with_name(path.name + end).read_bytes())
    await store.close()
    wal = copy.with_name("copy.db-wal")
    data = bytearray(wal.read_bytes())
    data[data.find(b"body 2")] ^= 1
    wal.write_bytes(data)
    with pytest.raises(CorruptData, match=r"copy\.db is damaged"):
        await opened(copy)


async def test_a_row_that_is_hidden_is_damage(path: Path) -> None:
    log = Log()
    store, _ = await opened(path, log)
    store.save(row(1, session="hidden"))
    await log.until_saved(1)
    await store.close()
    data = bytearray(path.read_bytes())  # noqa: ASYNC240
    # In the index of (session, n): the row is intact and would not be found to be deleted.
    data[data.rfind(b"hidden")] ^= 1
    path.write_bytes(data)  # noqa: ASYNC240
    with pytest.raises(CorruptData, match="is damaged"):
        await opened(path)


async def test_a_failing_disk_is_reported_once_and_nothing_is_taken_for_saved(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    store, _ = await opened(path, log)
    store.save(row(1))
    await log.until_saved(1)

    async def full(*args: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(client_statements, "transaction", full)
    store.save(row(2))
    async with asyncio.timeout(60):
        while not log.failed:
            log.news.clear()
            await log.news.wait()
    assert isinstance(log.failed[0], DiskFailed)
    assert "disk is full" in str(log.failed[0])
    with pytest.raises(DiskFailed):
        await store.events_after("s", 0, 1)
    store.save(row(3))
    await store.close()
    monkeypatch.undo()
    assert log.saved == [("s", 1)]
    assert len(log.failed) == 1
    store, again = await opened(path)
    assert again.rows == [row(1)]
    await store.close()


async def test_a_cancelled_caller_disturbs_nothing(path: Path) -> None:
    store, _ = await opened(path)
    store.cache(cached(1, 2))
    reading = asyncio.create_task(store.events_after("s", 0, 10))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert seqs(await store.events_after("s", 0, 10)) == [1, 2]
    await store.close()


async def test_a_cancelled_open_lets_go_of_the_file(path: Path) -> None:
    opening = asyncio.create_task(opened(path))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    store, _ = await opened(path)
    await store.close()


async def test_deleting_by_key_uses_the_index(path: Path) -> None:
    store, _ = await opened(path)
    await store.close()
    ((sql, values),) = [
        s for s in client_statements.deletes([("s", 1), ("t", 2)]) if "DELETE" in s[0]
    ]
    with sqlite3.connect(path) as db:
        db.create_function("guard_of", -1, client_schema.guard_of)
        plan = " ".join(str(step) for step in db.execute(f"EXPLAIN QUERY PLAN {sql}", values))
    assert "SEARCH o " in plan, plan
    assert "SCAN outbox" not in plan, plan
    assert "SCAN o " not in plan, plan


def test_which_store_is_opened(tmp_path: Path) -> None:
    stores: list[ClientStore] = [
        open_store(None, "alice", "phone"),
        open_store(":memory:", "alice", "phone"),
        open_store(tmp_path / "x.db", "alice", "phone"),
        open_store(str(tmp_path / "x.db"), "alice", "phone"),
    ]
    assert [type(s) for s in stores] == [MemoryStore, MemoryStore, SqliteStore, SqliteStore]
    with pytest.raises(BadRequest):
        open_store(None, "a/b", "phone")


async def test_a_memory_store_reports_in_batches() -> None:
    log = Log()
    store = MemoryStore("alice", "phone")
    opened_ = await store.open(log.on_saved, log.on_failed)
    assert opened_.address.startswith("alice/phone-")
    for n in range(100):
        store.save(row(n))
    assert log.saved == []
    await log.until_saved(100)
    assert log.batches == 1
