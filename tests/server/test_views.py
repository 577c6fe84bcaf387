"""Both kinds of view store: the same promises, kept by a file and by a real Redis."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from im_actors.core.model import SLOTS_MAX, Member, View, ViewState
from im_actors.errors import (
    BadRequest,
    CorruptData,
    DiskFailed,
    ImError,
    InvariantBroken,
    NewerFormat,
    NotReachable,
    RolledBack,
    SetupError,
    ShuttingDown,
    TooLarge,
    Unknown,
    WrongDirectory,
)
from im_actors.server import views as views_module
from im_actors.server.views import (
    VIEW_BYTES_MAX,
    ViewStore,
    check_view,
    decode_view,
    encode_view,
    open_view_store,
    pack,
)
from im_actors.server.views_redis import CONNECTIONS_MAX, SAFE_SETTINGS, RedisViewStore
from im_actors.server.views_sqlite import WAL_BYTES_MAX, SqliteViewStore

if TYPE_CHECKING:
    from tests.support_redis import MakeRedis, RedisServer

pytest_plugins = ["tests.support_redis"]

MEMBERS = (Member("r1", "d1"), Member("r2", "d2"), Member("r3", "d3"))
OTHERS = (Member("r1", "d1"), Member("r2", "d2"), Member("r4", "d4"))


def first(slot: int = 7) -> View:
    return View(slot, 0, ViewState.RECOVERING, "", MEMBERS)


def claim(old: View, owner: str = "shard-1.a") -> View:
    return View(old.slot, old.epoch + 1, ViewState.RECOVERING, owner, old.members)


def active(old: View, members: tuple[Member, ...] = OTHERS) -> View:
    return old._replace(state=ViewState.ACTIVE, members=members)


# -- a place where a store can be opened again and again -------------------------------------------


class Place(Protocol):
    cluster: str

    async def open(self, expected: str | None = None) -> ViewStore: ...

    def plant(self, slot: int, record: bytes) -> None:
        """Put bytes in the place of a record; the store is closed."""


class SqlitePlace:
    def __init__(self, path: Path) -> None:
        self.cluster = "c1"
        self.path = path

    async def open(self, expected: str | None = None) -> SqliteViewStore:
        store = SqliteViewStore(self.path, self.cluster, lock_wait_s=0)
        await store.open(expected)
        return store

    def sql(self, statement: str, *values: object) -> None:
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute(statement, values)
        connection.close()

    def plant(self, slot: int, record: bytes) -> None:
        self.sql("INSERT OR REPLACE INTO views VALUES(?, ?)", slot, record)


class RedisPlace:
    def __init__(self, server: RedisServer, timeout_s: float = 5.0) -> None:
        self.cluster = f"c-{uuid.uuid4().hex[:8]}"
        self.server = server
        self.timeout_s = timeout_s

    async def open(
        self, expected: str | None = None, *, allow_unsafe: bool = False
    ) -> RedisViewStore:
        store = RedisViewStore(
            self.server.url, self.cluster, self.timeout_s, allow_unsafe=allow_unsafe
        )
        await store.open(expected)
        return store

    def key(self, name: object) -> str:
        return f"im:{{{self.cluster}}}:{name}"

    def plant(self, slot: int, record: bytes) -> None:
        self.server.command("SET", self.key(f"view:{slot}"), record)


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return SqlitePlace(tmp_path / "views.db")
    return RedisPlace(request.getfixturevalue("redis_server"))


@pytest.fixture
async def store(place: Place) -> AsyncIterator[ViewStore]:
    opened = await place.open()
    yield opened
    await opened.close()


# -- what both promise -----------------------------------------------------------------------------


async def test_a_new_store_is_empty(store: ViewStore) -> None:
    assert await store.read_all() == {}
    assert await store.read(0) is None
    assert await store.read(SLOTS_MAX - 1) is None
    assert store.identity


async def test_create_puts_a_view_once(store: ViewStore) -> None:
    assert await store.create(first()) == first()
    assert await store.create(first()) == first()
    other = first()._replace(members=OTHERS)
    assert await store.create(other) == first()
    assert await store.read(7) == first()


async def test_a_view_comes_back_as_it_was(store: ViewStore) -> None:
    odd = View(1023, (1 << 63) - 1, ViewState.ACTIVE, 'é "\\\n/{}', (*MEMBERS[:2], Member("", "ß")))
    await store.create(odd)
    found = await store.read(1023)
    assert found == odd
    assert found is not None
    assert all(type(member) is Member for member in found.members)
    assert type(found.members) is tuple


async def test_swap_takes_the_slot_through_an_epoch(store: ViewStore) -> None:
    old = await store.create(first())
    mine = claim(old)
    assert await store.swap(old, mine) == mine
    assert await store.swap(mine, active(mine)) == active(mine)
    assert await store.read_all() == {7: active(mine)}


async def test_a_lost_swap_says_who_won(store: ViewStore) -> None:
    old = await store.create(first())
    theirs = claim(old, "shard-2.b")
    await store.swap(old, theirs)
    assert await store.swap(old, claim(old)) == theirs
    assert await store.read(7) == theirs


async def test_the_same_swap_again_finds_itself_done(store: ViewStore) -> None:
    old = await store.create(first())
    assert await store.swap(old, claim(old)) == claim(old)
    assert await store.swap(old, claim(old)) == claim(old)
    assert await store.swap(claim(old), claim(old)) == claim(old)


@pytest.mark.parametrize(
    "other",
    [
        {"members": OTHERS},
        {"members": MEMBERS[:2]},
        {"members": (MEMBERS[1], MEMBERS[0], MEMBERS[2])},
        {"members": (*MEMBERS[:2], Member("r3", "another disk"))},
        {"state": ViewState.ACTIVE},
        {"owner": "shard-9.z"},
        {"epoch": 6},
    ],
    ids=str,
)
async def test_the_whole_record_is_compared(store: ViewStore, other: dict[str, Any]) -> None:
    held = View(7, 5, ViewState.RECOVERING, "shard-1.a", MEMBERS)
    await store.create(held)
    expected = held._replace(**other)
    assert await store.swap(expected, claim(expected, "shard-3.c")) == held
    assert await store.read(7) == held


async def test_one_of_many_concurrent_swaps_wins(store: ViewStore) -> None:
    old = await store.create(first())
    claims = [claim(old, f"shard-{n}.x") for n in range(40)]
    results = await asyncio.gather(*(store.swap(old, mine) for mine in claims))
    assert len(set(results)) == 1
    assert [mine for mine in claims if mine == results[0]] == [await store.read(7)]


async def test_one_of_many_concurrent_creates_wins(store: ViewStore) -> None:
    wanted = [first()._replace(members=(Member(f"r{n}", "d"),)) for n in range(40)]
    results = await asyncio.gather(*(store.create(view) for view in wanted))
    assert len(set(results)) == 1
    assert results[0] in wanted


async def test_concurrent_changes_of_many_slots(store: ViewStore) -> None:
    async def take(slot: int) -> View:
        view = await store.create(first(slot))
        view = await store.swap(view, claim(view))
        return await store.swap(view, active(view))

    taken = await asyncio.gather(*(take(slot) for slot in range(64)))
    assert await store.read_all() == {view.slot: view for view in taken}


async def test_reopening_keeps_views_and_identity(place: Place) -> None:
    store = await place.open()
    view = await store.create(first())
    view = await store.swap(view, claim(view))
    await store.create(first(8))
    await store.close()
    again = await place.open(store.identity)
    assert again.identity == store.identity
    assert await again.read_all() == {7: view, 8: first(8)}
    await again.close()
    unasked = await place.open()
    assert unasked.identity == store.identity
    await unasked.close()


async def test_another_store_than_the_expected_one(place: Place) -> None:
    await (await place.open()).close()
    with pytest.raises(RolledBack, match="another one"):
        await place.open("0123456789abcdef")


async def test_an_empty_store_where_one_is_expected(place: Place) -> None:
    for _ in range(2):  # the refusal leaves nothing behind that would be taken for a store
        with pytest.raises(RolledBack, match=r"is empty.*im-actors repair"):
            await place.open("0123456789abcdef")


async def test_a_swap_in_a_slot_without_a_view(store: ViewStore) -> None:
    with pytest.raises(RolledBack, match="slot 7"):
        await store.swap(first(), claim(first()))
    assert await store.read(7) is None


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (first(7), claim(first(8)), BadRequest),
        (claim(first()), first(), InvariantBroken),
        (claim(first(), "a"), active(claim(first(), "b")), InvariantBroken),
        (active(claim(first())), claim(first()), InvariantBroken),
        (active(claim(first())), active(claim(first()), MEMBERS), InvariantBroken),
    ],
    ids=["other slot", "epoch back", "two owners", "state back", "active changed"],
)
async def test_swaps_that_the_protocol_never_makes(
    store: ViewStore, old: View, new: View, error: type[ImError]
) -> None:
    await store.create(old)
    with pytest.raises(error):
        await store.swap(old, new)
    assert await store.read(old.slot) == old


@pytest.mark.parametrize(
    "bad",
    [
        {"slot": -1},
        {"slot": SLOTS_MAX},
        {"slot": True},
        {"epoch": -1},
        {"epoch": 1 << 63},
        {"epoch": 1.0},
        {"state": 2},
        {"state": True},
        {"owner": None},
        {"owner": "\ud800"},
        {"members": [Member("r", "d")]},
        {"members": (("r",),)},
        {"members": (("r", 1),)},
    ],
    ids=str,
)
async def test_what_is_no_view_is_refused(store: ViewStore, bad: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        await store.create(first()._replace(**bad))
    assert await store.read_all() == {}


async def test_sizes_have_a_limit(store: ViewStore) -> None:
    with pytest.raises(TooLarge):
        await store.create(first()._replace(owner="x" * VIEW_BYTES_MAX))
    with pytest.raises(BadRequest):
        await store.read(SLOTS_MAX)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"ABSENT",
        b"null",
        b"[]",
        b"[" * 5000,
        b"\xff\xfe",
        encode_view(first(8)),
        encode_view(first()).replace(b"r1", b"r9"),
        encode_view(first()) + b" ",
        encode_view(first())[:-1],
        pack([7, 0, 0, ""]),
        pack([7, "0", 0, "", []]),
        pack([7, 0, 0, "", [["r1"]]]),
        b"x" * (VIEW_BYTES_MAX + 1),
    ],
    ids=lambda record: record[:24].decode(errors="replace"),
)
async def test_damage_is_never_taken_for_absent(place: Place, record: bytes) -> None:
    await (await place.open()).close()
    place.plant(7, record)
    store = await place.open()
    for call in (store.read(7), store.read_all(), store.create(first())):
        with pytest.raises(CorruptData):
            await call
    with pytest.raises(CorruptData):
        await store.swap(first(), claim(first()))
    assert await store.read(8) is None
    await store.close()


async def test_a_record_of_a_newer_format(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    await (await place.open()).close()
    with monkeypatch.context() as newer:
        newer.setattr(views_module, "FORMAT_VERSION", 2)
        record = encode_view(first())
    place.plant(7, record)
    store = await place.open()
    with pytest.raises(NewerFormat, match="format 2"):
        await store.read(7)
    await store.close()


async def test_a_store_of_a_newer_format(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(views_module, "FORMAT_VERSION", 2)
        await (await place.open()).close()
    with pytest.raises(NewerFormat, match="install a newer"):
        await place.open()


async def test_a_closed_store_says_so(place: Place) -> None:
    store = await place.open()
    await store.close()
    await store.close()
    calls: list[Awaitable[object]] = [
        store.read(7),
        store.read_all(),
        store.create(first()),
        store.swap(first(), claim(first())),
    ]
    for call in calls:
        with pytest.raises(ShuttingDown):
            await call


async def test_closing_waits_for_what_is_under_way(place: Place) -> None:
    store = await place.open()
    creating = [asyncio.ensure_future(store.create(first(slot))) for slot in range(20)]
    await asyncio.sleep(0)  # each has begun
    await store.close()
    done = [task.result() for task in creating if task.exception() is None]
    again = await place.open()
    assert set(done) <= set((await again.read_all()).values())
    assert all(isinstance(t.exception(), ShuttingDown | Unknown | None) for t in creating)
    await again.close()


async def test_a_cancelled_call_leaves_the_store_in_order(place: Place) -> None:
    store = await place.open()
    for slot in range(30):
        task = asyncio.ensure_future(store.create(first(slot)))
        for _ in range(slot % 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await store.create(first(slot)) == first(slot)
        assert await store.read(slot) == first(slot)
    await store.close()


@st.composite
def _steps(draw: st.DrawFn) -> list[tuple[str, int, int, str, tuple[Member, ...]]]:
    members = st.sampled_from([MEMBERS, OTHERS, ()])
    words = st.sampled_from(["create", "claim", "activate", "stale"])
    step = st.tuples(words, st.integers(0, 2), st.integers(0, 3), st.sampled_from("ab"), members)
    return draw(st.lists(step, max_size=25))


async def _play(
    store: ViewStore, steps: list[tuple[str, int, int, str, tuple[Member, ...]]]
) -> dict[int, View]:
    """The steps, against the store and against a dict."""
    model: dict[int, View] = {}
    past: dict[int, list[View]] = {slot: [] for slot in range(3)}
    for word, slot, number, owner, members in steps:
        if word == "create":
            view = View(slot, number, ViewState.RECOVERING, owner, members)
            model.setdefault(slot, view)
            assert await store.create(view) == model[slot]
        elif slot in model:
            old = model[slot]
            if word == "stale" and past[slot]:
                old = past[slot][number % len(past[slot])]
            if word == "activate" and old.state == ViewState.RECOVERING:
                new = active(old, members)
            else:
                new = claim(old, owner)
            if model[slot] == old:
                past[slot].append(old)
                model[slot] = new
            assert await store.swap(old, new) == model[slot]
        assert await store.read(slot) == model.get(slot)
    assert await store.read_all() == model
    return model


@settings(max_examples=40, deadline=None)
@given(steps=_steps())
def test_a_file_does_what_a_dict_does(
    steps: list[tuple[str, int, int, str, tuple[Member, ...]]],
) -> None:
    async def run(directory: str) -> None:
        place = SqlitePlace(Path(directory) / "views.db")
        store = await place.open()
        model = await _play(store, steps)
        await store.close()
        store = await place.open(store.identity)
        assert await store.read_all() == model
        await store.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(directory))


@settings(max_examples=40, deadline=None)
@given(steps=_steps())
def test_redis_does_what_a_dict_does(
    redis_server: RedisServer, steps: list[tuple[str, int, int, str, tuple[Member, ...]]]
) -> None:
    async def run() -> None:
        store = await RedisPlace(redis_server).open()
        await _play(store, steps)
        await store.close()

    asyncio.run(run())


# -- the byte form ---------------------------------------------------------------------------------

_names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_views = st.builds(
    View,
    st.integers(0, SLOTS_MAX - 1),
    st.integers(0, (1 << 63) - 1),
    st.sampled_from(ViewState),
    _names,
    st.lists(st.builds(Member, _names, _names), max_size=3).map(tuple),
)


@given(view=_views, other=_views)
def test_bytes_are_equal_when_views_are(view: View, other: View) -> None:
    data = encode_view(check_view(view))
    assert decode_view(view.slot, data, "here") == view
    assert (data == encode_view(other)) == (view == other)
    # Also when it came over a wire, where an IntEnum is an int.
    assert encode_view(view._replace(state=int(view.state))) == data


@given(view=_views, at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_flipped_bit_is_noticed(view: View, at: int, bit: int) -> None:
    data = bytearray(encode_view(view))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(CorruptData):
        decode_view(view.slot, bytes(data), "here")


# -- opening by name -------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "sqlite"])
async def test_a_file_is_the_default(tmp_path: Path, url: str) -> None:
    store = await open_view_store(url, tmp_path / "new" / "data", "c1")
    await store.create(first())
    await store.close()
    assert (tmp_path / "new" / "data" / "views.db").exists()
    again = await open_view_store(url, tmp_path / "new" / "data", "c1", store.identity)
    assert await again.read(7) == first()
    await again.close()


async def test_redis_by_its_address(redis_server: RedisServer, tmp_path: Path) -> None:
    cluster = uuid.uuid4().hex
    store = await open_view_store(redis_server.url, tmp_path, cluster)
    await store.create(first())
    await store.close()
    other = await open_view_store(redis_server.url, tmp_path, f"{cluster}2")
    assert await other.read_all() == {}
    assert other.identity != store.identity
    await other.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "url", ["etcd://here", "redis", "file.db", "redis://host:port", "redis://[::1", "http://h"]
)
async def test_an_address_that_names_no_store(tmp_path: Path, url: str) -> None:
    with pytest.raises(SetupError):
        await open_view_store(url, tmp_path, "c1")


async def test_a_cluster_id_that_would_break_the_hash_tag(tmp_path: Path) -> None:
    for cluster in ("a}b", "{", ""):
        with pytest.raises(BadRequest):
            await open_view_store("redis://127.0.0.1:1", tmp_path, cluster)


# -- SQLite ----------------------------------------------------------------------------------------

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
    with pytest.raises(CorruptData, match="im-actors repair"):
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


async def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskFailed):
        await SqlitePlace(tmp_path / "file" / "views.db").open()


async def test_settings_are_what_they_should_be(tmp_path: Path) -> None:
    store = await SqlitePlace(tmp_path / "views.db").open()

    def ask(name: str) -> object:
        return store._open_database.row(f"PRAGMA {name}")[0]

    found = [await store._run(lambda n=name: ask(n)) for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 2]
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


# -- Redis -----------------------------------------------------------------------------------------

WAIT_S = 20.0


async def until_answered(call: Callable[[], Awaitable[Any]]) -> Any:
    """The answer of ``call``, as soon as it is not that the store cannot be reached."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return await call()
        except (NotReachable, Unknown):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_two_controllers_on_one_redis(redis_server: RedisServer) -> None:
    place = RedisPlace(redis_server)
    one, two = await asyncio.gather(place.open(), place.open())
    assert one.identity == two.identity
    old = await one.create(first())
    stores = [one, two] * 10
    claims = [claim(old, f"shard-{n}.x") for n in range(20)]
    pairs = zip(stores, claims, strict=True)
    results = await asyncio.gather(*(store.swap(old, mine) for store, mine in pairs))
    assert len(set(results)) == 1
    assert results[0] in claims
    await one.close()
    await two.close()


async def test_redis_that_is_down(make_redis: MakeRedis) -> None:
    server = make_redis()
    place = RedisPlace(server)
    store = await place.open()
    old = await store.create(first())
    server.kill()
    with pytest.raises(NotReachable):
        await store.read(7)
    with pytest.raises(NotReachable):
        await store.read_all()
    with pytest.raises(Unknown):
        await store.swap(old, claim(old))
    with pytest.raises(Unknown):
        await store.create(first(8))
    with pytest.raises(NotReachable):
        await place.open(store.identity)
    server.start()
    assert await until_answered(lambda: store.read_all()) == {7: old}
    assert await until_answered(lambda: store.swap(old, claim(old))) == claim(old)
    await store.close()


async def test_redis_that_does_not_answer(make_redis: MakeRedis) -> None:
    """The outcome of a swap that got no answer is open: here it takes effect later."""
    server = make_redis()
    place = RedisPlace(server, timeout_s=0.3)
    store = await place.open()
    old = await until_answered(lambda: store.create(first()))
    server.pause()
    for call, error in (
        (store.swap(old, claim(old)), Unknown),
        (store.read(7), NotReachable),
        (store.read_all(), NotReachable),
        (place.open(), NotReachable),
    ):
        began = time.monotonic()
        with pytest.raises(error):
            await call
        assert time.monotonic() - began < 5, "the timeout is far exceeded"
    server.resume()
    deadline = time.monotonic() + WAIT_S
    while await until_answered(lambda: store.read(7)) != claim(old):
        assert time.monotonic() < deadline
    assert await until_answered(lambda: store.swap(old, claim(old))) == claim(old)
    await store.close()


async def test_more_calls_than_connections_time_out_together(make_redis: MakeRedis) -> None:
    server = make_redis()
    store = await RedisPlace(server, timeout_s=0.3).open()
    server.pause()
    began = time.monotonic()
    calls = [store.create(first(slot)) for slot in range(4 * CONNECTIONS_MAX)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, Unknown) for result in results)
    assert time.monotonic() - began < 5
    server.resume()
    for slot in range(4 * CONNECTIONS_MAX):
        assert await until_answered(lambda s=slot: store.create(first(s))) == first(slot)
    await store.close()


async def test_what_redis_answered_survives_kill_9(make_redis: MakeRedis) -> None:
    server = make_redis()
    place = RedisPlace(server)
    store = await place.open()
    view = await store.create(first())
    for _ in range(20):
        view = await store.swap(view, claim(view))
    server.restart()
    assert await until_answered(lambda: store.read(7)) == view
    await store.close()


async def test_redis_restarted_empty(make_redis: MakeRedis) -> None:
    server = make_redis()
    place = RedisPlace(server)
    store = await place.open()
    old = await store.create(first())
    server.kill()
    server.wipe()
    server.start()

    async def refused(call: Callable[[], Awaitable[Any]]) -> None:
        with pytest.raises(RolledBack, match=r"is empty.*im-actors repair"):
            await until_answered(call)

    # In the store that was open all the time, and in a restarted controller that remembers it.
    await refused(lambda: store.read(7))
    await refused(lambda: store.read_all())
    await refused(lambda: store.create(first(8)))
    await refused(lambda: store.swap(old, claim(old)))
    await refused(lambda: place.open(store.identity))
    assert server.command("DBSIZE") == b":0\r\n"
    # Somebody made a new store there meanwhile.
    await (await place.open()).close()
    with pytest.raises(RolledBack, match="another one"):
        await store.create(first(8))
    with pytest.raises(RolledBack, match="another one"):
        await place.open(store.identity)
    await store.close()


async def test_redis_flushed(make_redis: MakeRedis) -> None:
    server = make_redis()
    store = await RedisPlace(server).open()
    await store.create(first())
    server.command("FLUSHALL")
    with pytest.raises(RolledBack):
        await store.create(first())
    await store.close()


UNSAFE = [
    ("appendonly", "no"),
    ("appendfsync", "everysec"),
    ("appendfsync", "no"),
    ("no-appendfsync-on-rewrite", "yes"),
    ("maxmemory-policy", "allkeys-lru"),
]


@pytest.mark.parametrize(("name", "value"), UNSAFE)
async def test_unsafe_settings_are_refused(
    make_redis: MakeRedis, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    place = RedisPlace(make_redis(**{name: value}))
    with pytest.raises(SetupError, match=rf"set {name} {SAFE_SETTINGS[name]} \(now {value}\)"):
        await place.open()
    assert place.server.command("DBSIZE") == b":0\r\n"
    with caplog.at_level(logging.WARNING):
        store = await place.open(allow_unsafe=True)
    assert name in caplog.text
    assert await store.create(first()) == first()
    await store.close()


async def test_redis_restarted_with_unsafe_settings(make_redis: MakeRedis) -> None:
    server = make_redis()
    store = await RedisPlace(server).open()
    old = await store.create(first())
    server.restart(appendfsync="everysec")
    with pytest.raises(SetupError, match="appendfsync always"):
        await until_answered(lambda: store.swap(old, claim(old)))
    assert await store.read(7) == old
    server.restart(appendfsync="always")
    assert await until_answered(lambda: store.swap(old, claim(old))) == claim(old)
    await store.close()


async def test_forbidden_config_is_a_warning(
    make_redis: MakeRedis, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = {"rename-command": "CONFIG hidden"}
    with caplog.at_level(logging.WARNING):
        store = await RedisPlace(make_redis(**hidden)).open()
    assert "does not let us read appendfsync, no-appendfsync-on-rewrite" in caplog.text
    assert await store.create(first()) == first()
    await store.close()
    # What INFO shows is still refused.
    with pytest.raises(SetupError, match="appendonly yes"):
        await RedisPlace(make_redis(**hidden, appendonly="no")).open()


async def test_a_replica_of_redis_is_refused(make_redis: MakeRedis) -> None:
    master = make_redis()
    replica = make_redis(replicaof=f"127.0.0.1 {master.port}")
    with pytest.raises(SetupError, match="name the master"):
        await RedisPlace(replica).open()


async def test_a_wrong_password_is_not_shown(make_redis: MakeRedis) -> None:
    server = make_redis(requirepass="right-one")
    for password, error in (("wrong-one", SetupError), ("right-one", None)):
        store = RedisViewStore(f"redis://:{password}@127.0.0.1:{server.port}/0", "c1", 5.0)
        if error is None:
            await store.open()
            assert await store.create(first()) == first()
        else:
            with pytest.raises(error) as caught:
                await store.open()
            assert password not in str(caught.value)
            assert str(server.port) in str(caught.value)
        await store.close()


async def test_a_full_redis_keeps_what_it_has(make_redis: MakeRedis) -> None:
    server = make_redis()
    store = await RedisPlace(server).open()
    old = await store.create(first())
    server.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(Unknown, match="maxmemory"):
        await store.swap(old, claim(old))
    assert await store.read(7) == old
    server.command("CONFIG", "SET", "maxmemory", "0")
    assert await store.swap(old, claim(old)) == claim(old)
    await store.close()


@pytest.mark.parametrize("words", [("LPUSH", "x"), ("HSET", "f", "x"), ("SADD", "x")], ids=str)
async def test_a_key_of_another_type(redis_server: RedisServer, words: tuple[str, ...]) -> None:
    place = RedisPlace(redis_server)
    store = await place.open()
    redis_server.command(words[0], place.key("view:7"), *words[1:])
    calls = (store.read(7), store.read_all(), store.create(first()))
    for call in (*calls, store.swap(first(), claim(first()))):
        with pytest.raises(CorruptData, match="no string"):
            await call
    assert await store.create(first(8)) == first(8)
    await store.close()


async def test_views_without_an_identity(redis_server: RedisServer) -> None:
    place = RedisPlace(redis_server)
    store = await place.open()
    await store.create(first())
    redis_server.command("DEL", place.key("store"))
    with pytest.raises(RolledBack):
        await store.read(7)
    await store.close()
    with pytest.raises(CorruptData, match="lost its identity"):
        await place.open()


async def test_scripts_that_redis_forgot(redis_server: RedisServer) -> None:
    store = await RedisPlace(redis_server).open()
    redis_server.command("SCRIPT", "FLUSH")
    assert await store.create(first()) == first()
    await store.close()
