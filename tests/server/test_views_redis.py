"""The view store in Redis: restarts, lost answers, lost data, unsafe settings."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from im_actors.errors import (
    CorruptData,
    NotReachable,
    RolledBack,
    SetupError,
    Unknown,
)
from im_actors.server.views_redis import CONNECTIONS_MAX, SAFE_SETTINGS, RedisViewStore
from tests.support_views import (
    RedisPlace,
    claim,
    first,
)

if TYPE_CHECKING:
    from tests.support_redis import MakeRedis, RedisServer

WAIT_S = 60.0


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
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(error):
                await call
    server.resume()
    deadline = time.monotonic() + WAIT_S
    while await until_answered(lambda: store.read(7)) != claim(old):
        assert time.monotonic() < deadline
    assert await until_answered(lambda: store.swap(old, claim(old))) == claim(old)
    await store.close()


async def test_more_calls_than_connections_time_out_together(make_redis: MakeRedis) -> None:
    server = make_redis()
    timeout_s, turns = 1.0, 40
    store = await RedisPlace(server, timeout_s).open()
    server.pause()
    began = time.monotonic()
    slots = range(turns * CONNECTIONS_MAX)
    calls = [store.create(first(slot)) for slot in slots]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, Unknown) for result in results)
    assert time.monotonic() - began < turns * timeout_s, "one after the other"
    server.resume()
    for slot in slots:
        assert await until_answered(partial(store.create, first(slot))) == first(slot)
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
        with pytest.raises(RolledBack, match=r"is empty.*data back"):
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
