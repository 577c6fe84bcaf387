"""Following: pushes, heads, and what happens to readers that are slow."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core.model import Event, encode_event
from im_actors.errors import Overloaded, TooLarge
from im_actors.gateway import followers as module
from im_actors.gateway.followers import event_seq
from im_actors.wire import messages as m
from tests.gateway.fakes import Cluster, RawClient, cluster, eventually, text

MIB = 1024 * 1024


@given(
    st.builds(str.__mul__, st.text(min_size=1, max_size=8), st.integers(1, 40)),
    st.one_of(st.integers(1, (1 << 63) - 1), st.integers(1, 70_000)),
)
def test_the_seq_is_found_without_decoding(session: str, seq: int) -> None:
    assert event_seq(encode_event(Event(session, seq, 1, 1, "alice/phone", 1, b"body"))) == seq


async def following(c: Cluster, user: str, *sessions: str) -> RawClient:
    client = await c.client(user)
    await client.send(m.follow(sessions))
    await client.until(lambda: len(client.rows(m.HEADS)) == len(sessions))
    return client


async def test_followers_get_the_head_and_then_every_event_in_order() -> None:
    async with cluster(slots=4) as c:
        c.log.commit("team", "bob/pc", 1, 1, b"earlier")
        reader = await following(c, "alice", "team", "empty")
        assert sorted(reader.rows(m.HEADS)) == [["empty", 0], ["team", 1]]
        writer = await c.client("carol")
        for n in range(1, 51):
            await writer.send(text("team", n), text("unrelated", n))
        await reader.until(lambda: len(reader.pushed) == 50)
        assert [(event.session, event.seq) for event in reader.pushed] == [
            ("team", seq) for seq in range(2, 52)
        ]
        assert writer.of(m.PUSH) == []


async def test_one_batch_of_many_sessions_is_one_push_for_their_only_follower() -> None:
    async with cluster() as c:
        reader = await following(c, "alice", "a", "b", "c")
        events = [c.log.commit(s, "x/y", n, 1, b"") for n in (1, 2) for s in "abc"]
        c.shards[0].push(*events)
        await reader.until(lambda: len(reader.pushed) == 6)
        assert len(reader.of(m.PUSH)) == 1


async def test_a_second_follower_is_told_what_was_pushed_and_the_shard_is_asked_once() -> None:
    async with cluster() as c:
        first = await following(c, "alice", "team")
        c.shards[0].push(*(c.log.commit("team", "x/y", n, 1, b"") for n in (1, 2, 3)))
        await first.until(lambda: len(first.pushed) == 3)
        second = await following(c, "bob", "team")
        assert second.rows(m.HEADS) == [["team", 3]]
        assert c.shards[0].watches == [["team"]]
        c.shards[0].push(c.log.commit("team", "x/y", 4, 1, b""))
        await second.until(lambda: second.pushed)
        await first.until(lambda: len(first.pushed) == 4)
        assert [event.seq for event in second.pushed] == [4]


async def test_following_twice_is_answered_twice_and_pushed_once() -> None:
    async with cluster() as c:
        reader = await following(c, "alice", "team")
        await reader.send(m.follow(["team", "team"]))
        await reader.until(lambda: len(reader.rows(m.HEADS)) == 2)
        c.shards[0].push(c.log.commit("team", "x/y", 1, 1, b""))
        await reader.until(lambda: reader.pushed)
        await reader.send(m.ping(1))
        await reader.until(lambda: reader.of(m.PONG))
        assert len(reader.pushed) == 1
        assert c.gateway.status()["follows"] == 1


async def test_the_last_to_leave_ends_the_watch() -> None:
    async with cluster() as c:
        first = await following(c, "alice", "team", "other")
        second = await following(c, "bob", "team")
        await first.send(m.unfollow(["team", "never followed"]))
        await first.send(m.ping(1))
        await first.until(lambda: first.of(m.PONG))
        assert c.shards[0].unwatches == []
        await second.close()
        await eventually(lambda: c.shards[0].unwatches == [["team"]])
        await first.close()
        await eventually(lambda: c.shards[0].unwatches == [["team"], ["other"]])
        assert c.gateway.status()["sessions_followed"] == c.gateway.status()["follows"] == 0


async def test_a_new_owner_is_asked_and_all_followers_learn_its_head() -> None:
    async with cluster() as c:
        readers = [await following(c, user, "team") for user in ("alice", "bob")]
        # The old owner's last push is lost.
        c.log.commit("team", "x/y", 1, 1, b"")
        c.move(1)
        for reader in readers:
            await reader.heads(2)
            assert reader.rows(m.HEADS)[-1] == ["team", 1]
        assert c.shards[1].watches == [["team"]]
        await eventually(lambda: c.shards[0].unwatches == [["team"]])
        c.shards[1].push(c.log.commit("team", "x/y", 2, 1, b""))
        await readers[0].until(lambda: readers[0].pushed)
        assert readers[0].pushed[0].seq == 2


async def test_a_link_that_was_cut_is_followed_by_heads() -> None:
    async with cluster() as c:
        reader = await following(c, "alice", "team")
        c.shards[0].cut()
        await eventually(lambda: not c.all_up())
        c.log.commit("team", "x/y", 1, 1, b"")
        await reader.until(lambda: ["team", 1] in reader.rows(m.HEADS))


async def test_a_watch_is_repeated_until_the_slot_is_served() -> None:
    async with cluster(watch_ms=20) as c:
        c.shards[0].owned.clear()
        client = await c.client()
        await client.send(m.follow(["team"]))
        await eventually(lambda: len(c.shards[0].watches) >= 3)
        assert client.rows(m.HEADS) == []
        c.shards[0].owned.add(0)
        await client.until(lambda: client.rows(m.HEADS) == [["team", 0]])


async def test_a_slot_that_becomes_active_is_asked_at_once() -> None:
    async with cluster(watch_ms=60_000) as c:
        c.shards[0].owned.clear()
        c.state = 0  # type: ignore[assignment]
        c.tell()
        client = await c.client()
        await client.send(m.follow(["team"]))
        await eventually(lambda: c.shards[0].watches)
        c.shards[0].owned.add(0)
        c.state = 1  # type: ignore[assignment]
        c.tell()
        await client.until(lambda: client.rows(m.HEADS) == [["team", 0]])


async def test_a_head_is_never_below_what_was_pushed() -> None:
    async with cluster() as c:
        reader = await following(c, "alice", "team")
        events = [c.log.commit("team", "x/y", n, 1, b"") for n in (1, 2, 3)]
        c.shards[0].push(*events)
        await reader.until(lambda: len(reader.pushed) == 3)
        del c.log.sessions["team"][1:]  # an owner that lags
        c.move(1)
        await reader.until(lambda: len(reader.rows(m.HEADS)) == 2)
        assert reader.rows(m.HEADS)[-1] == ["team", 3]


async def test_more_sessions_than_a_connection_may_follow_end_it() -> None:
    limits = m.Limits(follow_sessions=2)
    async with cluster(limits=limits) as c:
        reader = await following(c, "alice", "a", "b")
        await reader.send(m.follow(["b"]))
        await reader.until(lambda: len(reader.rows(m.HEADS)) == 3)
        await reader.send(m.follow(["c"]))
        await reader.until(lambda: reader.ended)
        assert reader.of(m.ERROR)[0][1] == TooLarge.code


async def test_more_follows_than_a_gateway_takes_are_refused_and_the_connection_stays() -> None:
    async with cluster(follows_max=2) as c:
        reader = await following(c, "alice", "a", "b")
        await reader.send(m.follow(["c"]), m.ping(1))
        await reader.until(lambda: reader.of(m.PONG))
        assert reader.of(m.ERROR)[0][1] == Overloaded.code


# ---- slow readers


async def push_much(c: Cluster, session: str, mib: int, first: int) -> int:
    """Push ``mib`` MiB of events; returns the last n."""
    body = b"x" * 65_000
    for n in range(first, first + 16 * mib):
        c.shards[0].push(c.log.commit(session, "x/y", n, 1, body))
        if n % 16 == 0:
            pushed = total(c)
            await eventually(partial(more_than, c, pushed))
    return first + 16 * mib - 1


def total(c: Cluster) -> int:
    return c.gateway.followers.pushed + c.gateway.followers.dropped


def more_than(c: Cluster, count: int) -> bool:
    return total(c) > count


async def test_a_slow_reader_is_told_to_pull_and_slows_nobody() -> None:
    async with cluster() as c:
        slow = await (await c.connect(receive_bytes=4096)).hello("slow")
        await slow.send(m.follow(["team", "quiet"]))
        await slow.until(lambda: len(slow.rows(m.HEADS)) == 2)
        quick = await following(c, "quick", "team")
        await slow.stop_reading()
        last = await push_much(c, "team", 12, 1)
        await quick.until(lambda: len(quick.pushed) == last)
        assert [event.seq for event in quick.pushed] == list(range(1, last + 1))
        status = c.gateway.status()
        assert status["slow_readers"] == 1
        assert status["pushes_dropped"] > 0
        (behind,) = c.gateway.followers.behind
        assert behind.buffered_bytes < 2 * MIB

        slow.start_reading()
        await slow.until(lambda: len(slow.rows(m.HEADS)) == 3)
        assert slow.rows(m.HEADS)[2] == ["team", last]
        seqs = [event.seq for event in slow.pushed]
        assert seqs == list(range(1, len(seqs) + 1)), "what was not dropped has no hole"
        assert c.gateway.status()["slow_readers"] == 0
        c.shards[0].push(c.log.commit("team", "x/y", last + 1, 1, b""))
        await slow.until(lambda: slow.pushed[-1].seq == last + 1)


async def test_a_reader_that_stays_behind_is_closed() -> None:
    async with cluster(slow_reader_ms=50) as c:
        slow = await (await c.connect(receive_bytes=4096)).hello("slow")
        await slow.send(m.follow(["team"]))
        await slow.until(lambda: slow.rows(m.HEADS))
        await slow.stop_reading()
        await push_much(c, "team", 8, 1)
        await eventually(lambda: c.gateway.status()["connections"] == 0)
        assert c.gateway.status()["follows"] == 0


async def test_large_batches_are_split_into_frames() -> None:
    async with cluster() as c:
        reader = await following(c, "alice", "team")
        other = await following(c, "bob", "team")
        events = [c.log.commit("team", "x/y", n, 1, b"x" * 60_000) for n in range(1, 41)]
        c.shards[0].push(*events)
        for client in (reader, other):
            await client.events(40)
            assert len(client.of(m.PUSH)) == 3
            assert [event.seq for event in client.pushed] == list(range(1, 41))


async def test_many_sessions_are_watched_in_several_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"session {i}" for i in range(300)]
    monkeypatch.setattr(module, "WATCH_SESSIONS_MAX", 128)
    async with cluster() as c:
        reader = await following(c, "alice", *names)
        assert [len(names) for names in c.shards[0].watches] == [128, 128, 44]
        assert sorted(reader.rows(m.HEADS)) == sorted([name, 0] for name in names)
        assert max(len(message[1]) for message in reader.of(m.HEADS)) <= 128
