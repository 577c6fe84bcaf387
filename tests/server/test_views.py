"""Both kinds of view store: the same promises, kept by a file and by a real Redis."""

from __future__ import annotations

import asyncio
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from im_actors.core.model import SLOTS_MAX, Member, View, ViewState
from im_actors.errors import (
    BadRequest,
    CorruptData,
    ImError,
    InvariantBroken,
    NewerFormat,
    RolledBack,
    SetupError,
    ShuttingDown,
    TooLarge,
    Unknown,
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
from tests.support_views import (
    MEMBERS,
    OTHERS,
    Place,
    RedisPlace,
    SqlitePlace,
    active,
    claim,
    first,
)

if TYPE_CHECKING:
    from tests.support_redis import RedisServer


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
        with pytest.raises(RolledBack, match=r"is empty.*data back"):
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
