"""History reads from replicas that lag, fail, fall silent or are gone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from im_actors.core.model import decode_event
from im_actors.errors import NotReachable, Overloaded
from im_actors.wire import messages as m
from tests.gateway.fakes import Cluster, RawClient, cluster, eventually, page_of, text


def fill(c: Cluster, count: int, body: bytes = b"text") -> None:
    for n in range(1, count + 1):
        c.log.commit("team", "x/y", n, 1, body)


async def pulled(
    client: RawClient, after: int, before: int, limit: int, request: int = 1
) -> list[Any]:
    """[head, code, [seq, ...]] of the answer."""
    await client.send(m.pull(request, "team", after, before, limit))
    await client.until(lambda: [e for e in client.of(m.EVENTS) if e[1] == request])
    (_, _, session, head, code, events) = next(e for e in client.of(m.EVENTS) if e[1] == request)
    assert session == "team"
    return [head, code, [decode_event(data).seq for data in events]]


def reads(c: Cluster) -> list[int]:
    return [len(replica.reads) for replica in c.replicas]


@pytest.mark.parametrize(
    ("after", "before", "limit"), [(0, 0, 5), (7, 0, 100), (-1, 0, 4), (0, 9, 3), (5, 9, 100)]
)
async def test_a_page_is_what_the_protocol_says(after: int, before: int, limit: int) -> None:
    async with cluster() as c:
        fill(c, 20)
        client = await c.client()
        expected = page_of(c.log.sessions["team"], after, before, limit)
        head, code, seqs = await pulled(client, after, before, limit)
        assert (head, code) == (20, 0)
        assert seqs == [decode_event(data).seq for data in expected]
        assert sum(reads(c)) == 1


async def test_the_limit_is_lowered_to_what_welcome_says() -> None:
    async with cluster(limits=m.Limits(pull_events=10)) as c:
        fill(c, 20)
        assert (await pulled(await c.client(), 0, 0, 1_000))[2] == list(range(1, 11))


async def test_a_lagging_replica_is_passed_over() -> None:
    async with cluster(host_label="host-2") as c:
        client = await c.client()
        await client.send(text("team", 1, 2, 3))
        await client.until(lambda: len(client.acked) == 3)
        c.replicas[1].lag = 2
        assert await pulled(client, 0, 0, 100) == [3, 0, [1, 2, 3]]
        assert c.replicas[1].reads == [["team", 0, 0, 100, 3]], "the nearest is asked first"
        assert sum(reads(c)) == 2


async def test_a_lagging_replica_does_for_what_it_has() -> None:
    async with cluster(host_label="host-2") as c:
        client = await c.client()
        await client.send(text("team", *range(1, 11)))
        await client.until(lambda: len(client.acked) == 10)
        c.replicas[1].lag = 4
        assert await pulled(client, 0, 0, 6, 1) == [10, 0, [1, 2, 3, 4, 5, 6]]
        assert await pulled(client, 0, 7, 3, 2) == [10, 0, [4, 5, 6]]
        assert reads(c) == [0, 2, 0]


async def test_when_all_lag_the_best_true_prefix_is_the_answer() -> None:
    async with cluster() as c:
        client = await c.client()
        await client.send(text("team", *range(1, 11)))
        await client.until(lambda: len(client.acked) == 10)
        for replica, lag in zip(c.replicas, (5, 2, 9), strict=True):
            replica.lag = lag
        assert await pulled(client, 0, 0, 100) == [10, 0, list(range(1, 9))]
        assert reads(c) == [1, 1, 1]


async def test_the_head_is_known_from_following() -> None:
    async with cluster() as c:
        fill(c, 5)
        client = await c.client()
        await client.send(m.follow(["team"]))
        await client.until(lambda: client.rows(m.HEADS))
        await pulled(client, 0, 0, 10)
        assert [read for r in c.replicas for read in r.reads] == [["team", 0, 0, 10, 5]]


async def test_a_replica_with_a_hole_is_passed_over() -> None:
    async with cluster(host_label="host-1") as c:
        fill(c, 3)
        c.replicas[0].code = NotReachable.code
        assert await pulled(await c.client(), 0, 0, 10) == [3, 0, [1, 2, 3]]


async def test_no_replica_has_it() -> None:
    async with cluster() as c:
        fill(c, 3)
        for replica in c.replicas:
            replica.code = NotReachable.code
        assert await pulled(await c.client(), 0, 0, 10) == [0, NotReachable.code, []]
        assert reads(c) == [1, 1, 1]
        assert c.gateway.status()["pulls"] == 0


async def test_a_silent_replica_is_passed_over() -> None:
    async with cluster(read_ms=30, host_label="host-3") as c:
        fill(c, 3)
        c.replicas[2].silent = True
        assert await pulled(await c.client(), 0, 0, 10) == [3, 0, [1, 2, 3]]


async def test_a_replica_that_goes_away_is_passed_over() -> None:
    async with cluster(read_ms=60_000, host_label="host-3") as c:
        fill(c, 3)
        c.replicas[2].silent = True
        client = await c.client()
        await client.send(m.pull(1, "team", 0, 0, 10))
        await eventually(lambda: c.replicas[2].reads)
        await c.replicas[2].stop()
        await client.until(lambda: client.of(m.EVENTS))
        assert len(client.of(m.EVENTS)[0][5]) == 3


async def test_a_replica_that_leaves_the_directory_is_passed_over() -> None:
    async with cluster(read_ms=60_000, host_label="host-3") as c:
        fill(c, 3)
        c.replicas[2].silent = True
        client = await c.client()
        await client.send(m.pull(1, "team", 0, 0, 10))
        await eventually(lambda: c.replicas[2].reads)
        gone = c.replicas.pop()
        c.tell()
        await client.until(lambda: client.of(m.EVENTS))
        assert client.of(m.EVENTS)[0][4] == 0
        await gone.stop()


async def test_without_any_replica() -> None:
    async with cluster() as c:
        for replica in c.replicas:
            await replica.stop()
        await eventually(lambda: not any(r.up for r in c.gateway.peers.replicas.values()))
        assert (await pulled(await c.client(), 0, 0, 10))[1] == NotReachable.code


async def test_too_many_pulls_at_once() -> None:
    async with cluster(pulls_per_connection=2, pulls_max=3, read_ms=60_000) as c:
        for replica in c.replicas:
            replica.silent = True
        client, other = await c.client(), await c.client("bob")
        for request in (1, 2, 3):
            await client.send(m.pull(request, "team", 0, 0, 10))
        await client.until(lambda: client.of(m.EVENTS))
        for request in (1, 2):
            await other.send(m.pull(request, "team", 0, 0, 10))
        await other.until(lambda: other.of(m.EVENTS))
        assert [e[1:] for e in client.of(m.EVENTS)] == [[3, "team", 0, Overloaded.code, []]]
        assert [e[1:] for e in other.of(m.EVENTS)] == [[2, "team", 0, Overloaded.code, []]]
        for replica in c.replicas:
            await replica.stop()
        await client.until(lambda: len(client.of(m.EVENTS)) == 3)
        assert c.gateway.status()["pulls"] == 0


async def test_reads_are_spread_over_replicas() -> None:
    async with cluster() as c:
        fill(c, 3)
        client = await c.client()
        for request in range(1, 10):
            await pulled(client, 0, 0, 10, request)
        assert reads(c) == [3, 3, 3]


@pytest.mark.parametrize(("after", "kept"), [(0, "oldest"), (-1, "newest")])
async def test_a_page_fits_a_frame(after: int, kept: str) -> None:
    async with cluster() as c:
        fill(c, 30, b"x" * 65_000)
        head, code, seqs = await pulled(await c.client(), after, 0, 100)
        assert (head, code) == (30, 0)
        assert seqs == (list(range(1, 17)) if kept == "oldest" else list(range(15, 31)))


async def test_a_reader_that_does_not_read_gets_no_further_pages() -> None:
    async with cluster() as c:
        fill(c, 16, b"x" * 65_000)
        client = await (await c.connect(receive_bytes=4096)).hello()
        await client.stop_reading()
        for request in range(1, 41):
            await client.send(m.pull(request, "team", 0, 0, 16))
            await eventually(partial(done, c, request))
        client.start_reading()
        await client.until(lambda: len(client.of(m.EVENTS)) == 40)
        codes = [e[4] for e in client.of(m.EVENTS)]
        assert set(codes) == {0, Overloaded.code}
        assert codes[-1] == Overloaded.code


def done(c: Cluster, count: int) -> bool:
    return c.gateway.pulls.answered + c.gateway.pulls.failed == count
