"""What every tier has to do, against the real Redis and a real file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from im_actors.errors import CorruptData, NotReachable
from im_actors.mailbox.rows import (
    END,
    TOP,
    Change,
    Copy,
    Entry,
    Flag,
    Listing,
    decode_entry,
    encode_entry,
    entry_place,
)
from im_actors.mailbox.tier_redis import RedisTier
from im_actors.mailbox.tier_sqlite import SqliteTier
from im_actors.mailbox.tiers import Outcome, Put, Tier
from tests.mailbox.fakes import Truth
from tests.mailbox.test_view import World
from tests.support_redis import MakeRedis

ROWS_MAX = 12
MakeTier = Callable[..., Tier]
SEEDS = range(6)


@pytest.fixture(params=["redis", "sqlite"])
async def make_tier(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeTier]:
    """Makes tiers that are small, so that their bounds are met."""
    tiers: list[Tier] = []

    server = None
    if request.param == "redis":
        server = request.getfixturevalue("make_redis")(appendonly="no")

    def make(name: str, rows_max: int = ROWS_MAX) -> Tier:
        tier: Tier
        if server is not None:
            tier = RedisTier(server.url, name, rows_max=rows_max)
        else:
            tier = SqliteTier(tmp_path / f"{name}.db", rows_max=rows_max)
        tiers.append(tier)
        return tier

    yield make
    for tier in tiers:
        await tier.close()


def changed(truth: Truth, since: int, version: int) -> Change:
    rows = [row for row in truth.rows(version).values() if row.seq > since]
    return Change(since, version, rows)


def at(truth: Truth, version: int, rng: Random) -> Copy:
    """A copy at a version with as much as a view may have."""
    static, live = truth.static(version), list(truth.live(version).entries)
    count = rng.randint(0, len(static) + 2)
    place = entry_place(static[count - 1]) if 0 < count < len(static) else END if count else TOP
    complete = {Listing.ALL: place, Listing.LIVE: END}
    rows = {row.session: row for row in static[:count] + live}
    if rng.random() < 0.7:
        complete[Listing.UNREAD] = END
        rows.update((row.session, row) for row in static if row.unread)
    return Copy(version, list(rows.values()), complete)


async def check(tier: Tier, truth: Truth, user: str, rng: Random) -> None:
    """Whatever it answers was so at the version that it says."""
    limit = rng.randint(1, 8)
    copy = await tier.first_page(user, limit, 0)
    if copy is None:
        return
    static = truth.static(copy.version)
    rows = {row.session: row for row in copy.entries}
    assert all(truth.rows(copy.version)[session] == row for session, row in rows.items())
    must = [row for row in static if entry_place(row) <= copy.complete[Listing.ALL]]
    if Listing.UNREAD in copy.complete:
        must += [row for row in static if row.unread]
    if Listing.LIVE in copy.complete:
        must += truth.live(copy.version).entries
    assert {row.session for row in must} <= set(rows)
    after = copy.complete[Listing.ALL]
    while after != END:
        page = await tier.page(user, after, limit, 0)
        if page is None:
            break
        until = page.complete[Listing.ALL]
        assert until > after
        assert page.entries == [row for row in static if after < entry_place(row) <= until]
        after = until
    for listing in (Listing.LIVE, Listing.UNREAD):
        whole = await tier.whole(user, listing, 0)
        if whole is not None:
            expected = truth.live(copy.version).entries
            if listing is Listing.UNREAD:
                expected = [row for row in static if row.unread]
            assert sorted(whole.entries) == sorted(expected)
    some = rng.sample(sorted(rows), min(len(rows), 3))
    found = await tier.rows(user, some, 0)
    assert found is not None
    assert {row.session: row for row in found.entries} == {name: rows[name] for name in some}


async def test_what_a_tier_answers_was_so_whatever_it_was_told(
    make_tier: MakeTier,
) -> None:
    tier = make_tier("random")
    for seed in SEEDS:
        print(f"seed {seed}")
        world = World(Random(seed))
        truth, rng, user = world.truth, world.rng, f"user-{seed}"
        truth.write(world.row(world.names[0]))
        version = -1
        for _ in range(25):
            for _ in range(rng.randint(0, 4)):
                world.change()
            upto = rng.randint(max(0, truth.version - 8), truth.version)
            if rng.random() < 0.25:
                put = await tier.put(user, at(truth, upto, rng))
                expected = Outcome.LATE if version > upto else Outcome.TAKEN
            else:
                since = rng.randint(max(0, upto - 8), upto)
                put = await tier.put(user, changed(truth, since, upto))
                late = version >= upto
                gap = version < since or version < 0
                expected = Outcome.LATE if late else Outcome.GAP if gap else Outcome.TAKEN
            version = upto if expected is Outcome.TAKEN else version
            assert put == Put(expected, version)
            await check(tier, truth, user, rng)
            if rng.random() < 0.05:
                await tier.drop(user)
                version = -1
                assert await tier.first_page(user, 5, 0) is None


def many(count: int, unread: int = 0) -> Truth:
    truth = Truth()
    truth.write(*((f"direct:a/{n}", n + 1, unread, 0, "") for n in range(count)))
    return truth


async def test_a_late_update_never_overwrites_a_newer_one(
    make_tier: MakeTier,
) -> None:
    tier, truth = make_tier("late"), many(5)
    for n in range(4):
        truth.write(("direct:a/0", 100 + n, n, 0, ""))
    assert await tier.put("alice", truth.everything()) == Put(Outcome.TAKEN, 5)
    assert await tier.put("alice", changed(truth, 1, 3)) == Put(Outcome.LATE, 5)
    older = Copy(3, truth.static(3), {Listing.ALL: END})
    assert await tier.put("alice", older) == Put(Outcome.LATE, 5)
    found = await tier.rows("alice", ["direct:a/0"], 0)
    assert found == Copy(5, [truth.rows()["direct:a/0"]], {})


async def test_it_keeps_the_newest_and_says_how_far_it_goes(
    make_tier: MakeTier,
) -> None:
    tier, truth = make_tier("bounded"), many(30, unread=1)
    copy = truth.everything()
    await tier.put("alice", copy._replace(complete={**copy.complete, Listing.UNREAD: END}))
    first = await tier.first_page("alice", 5, 0)
    assert first is not None
    static = truth.static()
    assert first.complete == {Listing.ALL: entry_place(static[4]), Listing.LIVE: END}
    rest = await tier.page("alice", entry_place(static[4]), 1_000, 0)
    assert rest is not None
    assert rest.entries == static[5:ROWS_MAX]
    assert rest.complete == {Listing.ALL: entry_place(static[ROWS_MAX - 1])}
    assert await tier.page("alice", entry_place(static[ROWS_MAX - 1]), 5, 0) is None
    assert await tier.whole("alice", Listing.UNREAD, 0) is None
    assert await tier.rows("alice", ["direct:a/0"], 0) is None, "it may exist"


async def test_many_groups_come_whole(make_tier: MakeTier) -> None:
    tier, truth = make_tier("groups", rows_max=3_500), many(3)
    truth.write(*((f"group:{n}", n + 1, 0, int(Flag.LIVE), "") for n in range(3_000)))
    await tier.put("alice", truth.everything())
    whole = await tier.whole("alice", Listing.LIVE, 0)
    assert whole is not None
    assert len(whole.entries) == 3_000
    first = await tier.first_page("alice", 2, 0)
    assert first is not None
    assert len(first.entries) == 3_002


async def test_users_do_not_see_each_other(make_tier: MakeTier) -> None:
    tier = make_tier("users")
    for user in ("alice", "a}b", "a}", "al"):
        await tier.put(user, many(len(user)).everything())
    await tier.drop("al")
    for user in ("alice", "a}b", "a}"):
        copy = await tier.first_page(user, 10, 0)
        assert copy is not None
        assert len(copy.entries) == len(user)
    assert await tier.first_page("al", 10, 0) is None


async def test_concurrent_updates_end_at_the_newest(make_tier: MakeTier) -> None:
    tier, world = make_tier("racing", rows_max=100), World(Random(1))
    for _ in range(60):
        world.change()
    truth = world.truth
    await tier.put("alice", Copy(0, [], {Listing.ALL: END, Listing.LIVE: END}))
    puts = [
        tier.put("alice", changed(truth, since, upto))
        for since in range(0, truth.version, 5)
        for upto in (min(since + 7, truth.version), truth.version)
    ]
    world.rng.shuffle(puts)
    await asyncio.gather(*puts)
    copy = await tier.first_page("alice", 100, 0)
    assert copy is not None
    assert copy.version == truth.version
    assert sorted(copy.entries) == sorted([*truth.static(), *truth.live().entries])


# ---- Redis alone


async def test_redis_forgets_after_a_while_without_use(make_redis: MakeRedis) -> None:
    server = make_redis(appendonly="no")
    tier = RedisTier(server.url, "c", kept_s=1_000)
    await tier.put("alice", many(3).everything())
    for kind in ("meta", "rows", "order"):
        assert server.command("EXPIRE", f"im:{{c:alice}}:{kind}", "5") == b":1\r\n"
    await tier.first_page("alice", 3, 0)
    for kind in ("meta", "rows", "order"):
        assert int(server.command("TTL", f"im:{{c:alice}}:{kind}")[1:]) > 900
    await tier.close()


async def test_redis_may_forget_scripts_and_everything_else(make_redis: MakeRedis) -> None:
    server = make_redis(appendonly="no")
    tier, truth = RedisTier(server.url, "c"), many(3)
    await tier.put("alice", truth.everything())
    server.command("SCRIPT", "FLUSH")
    copy = await tier.first_page("alice", 10, 0)
    assert copy is not None
    assert copy.entries == truth.static()
    server.command("FLUSHALL")
    server.command("SCRIPT", "FLUSH")
    assert await tier.first_page("alice", 10, 0) is None
    assert await tier.put("alice", Change(0, 9, [])) == Put(Outcome.GAP, -1)
    await tier.close()


async def test_connections_to_a_redis_that_was_restarted_do_no_harm(make_redis: MakeRedis) -> None:
    server = make_redis(appendonly="no")
    tier, truth = RedisTier(server.url, "c"), many(3)
    # Several at once, for a connection each.
    await asyncio.gather(*(tier.put(f"user-{n}", truth.everything()) for n in range(8)))
    server.restart()
    answers = [await tier.put(f"user-{n}", truth.everything()) for n in range(8)]
    assert answers == [Put(Outcome.TAKEN, 1)] * 8
    await tier.close()


async def test_redis_with_something_else_under_our_keys(make_redis: MakeRedis) -> None:
    server = make_redis(appendonly="no")
    tier, truth = RedisTier(server.url, "c"), many(3)
    await tier.put("alice", truth.everything())
    server.command("HSET", "im:{c:alice}:rows", "direct:a/1", "0" * 36 + "rubbish")
    with pytest.raises(CorruptData, match="alice"):
        await tier.first_page("alice", 10, 0)
    server.command("HSET", "im:{c:alice}:meta", "format", "99")
    assert await tier.first_page("alice", 10, 0) is None
    assert await tier.put("alice", truth.everything()) == Put(Outcome.TAKEN, 1)
    server.command("DEL", "im:{c:alice}:rows")
    server.command("SET", "im:{c:alice}:rows", "text")
    with pytest.raises(NotReachable):
        await tier.first_page("alice", 10, 0)
    await tier.drop("alice")
    assert await tier.first_page("alice", 10, 0) is None
    await tier.close()


async def test_callers_who_give_up_leave_no_connection_behind(make_redis: MakeRedis) -> None:
    server = make_redis(appendonly="no")
    tier = RedisTier(server.url, "c")
    await tier.put("alice", many(3).everything())

    async def give_up() -> None:
        task = asyncio.ensure_future(tier.first_page("alice", 10, 0))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for _ in range(50):
        await asyncio.gather(*(give_up() for _ in range(4)))
    copy = await tier.first_page("alice", 10, 0)
    assert copy is not None
    assert copy.version == 1
    # The one that asks is a connection too.
    assert server.command("CLIENT", "LIST").count(b" addr=") <= 2 + 4
    await tier.close()


# ---- SQLite alone


async def test_the_file_outlives_a_restart(tmp_path: Path) -> None:
    truth = many(5)
    tier = SqliteTier(tmp_path / "warm.db")
    await tier.put("alice", truth.everything())
    await tier.close()
    tier = SqliteTier(tmp_path / "warm.db")
    copy = await tier.first_page("alice", 10, 0)
    assert copy is not None
    assert copy.entries == truth.static()
    await tier.close()


async def test_a_file_that_is_damaged_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "warm.db"
    tier = SqliteTier(path)
    await tier.put("alice", many(5).everything())
    await tier.close()
    data = path.read_bytes()
    place = data.index(b"direct:a/3", data.index(b"direct:a/2")) + 12
    path.write_bytes(data[:place] + bytes((data[place] ^ 1,)) + data[place + 1 :])
    tier = SqliteTier(path)
    with pytest.raises(CorruptData):
        await read_all(tier)
    assert await tier.first_page("alice", 10, 0) is None
    await tier.close()
    path.write_bytes(b"not a database at all" * 1_000)
    tier = SqliteTier(path)
    assert await tier.first_page("alice", 10, 0) is None
    assert await tier.put("alice", many(5).everything()) == Put(Outcome.TAKEN, 1)
    await tier.close()


async def read_all(tier: Tier) -> Copy | None:
    return await tier.first_page("alice", 10, 0)


async def test_the_users_written_longest_ago_go_first(tmp_path: Path) -> None:
    tier = SqliteTier(tmp_path / "warm.db", users_max=40)
    for n in range(41):
        await tier.put(f"user-{n}", many(2).everything())
    kept = [n for n in range(41) if await tier.first_page(f"user-{n}", 5, 0) is not None]
    assert kept == list(range(3, 41))
    await tier.close()


async def test_a_caller_who_gives_up_does_not_halve_an_update(tmp_path: Path) -> None:
    tier, truth = SqliteTier(tmp_path / "warm.db"), many(300)
    tasks: list[Awaitable[Put]] = []
    for n in range(20):
        task = asyncio.ensure_future(tier.put(f"user-{n}", truth.everything()))
        await asyncio.sleep(0)
        task.cancel()
        tasks.append(task)
    await asyncio.gather(*tasks, return_exceptions=True)
    sizes = set()
    for n in range(20):
        copy = await tier.first_page(f"user-{n}", 1_000, 0)
        sizes.add(None if copy is None else len(copy.entries))
    assert sizes <= {None, 300}
    await tier.close()


def test_rows_that_are_none_are_refused() -> None:
    entry = Entry("direct:a/b", 1, 2, 3, 0, "", b"x")
    assert decode_entry(encode_entry(entry)) == entry
    for wrong in (b"", b"\xc1", b"\x90", encode_entry(entry._replace(seq=-1))):
        with pytest.raises(ValueError):
            decode_entry(wrong)
