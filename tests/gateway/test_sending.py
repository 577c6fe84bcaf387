"""Sends through a whole gateway, over sockets; ``test_router`` has the fine points."""

from __future__ import annotations

from typing import Any

from im_actors.errors import (
    BadRequest,
    Forbidden,
    Overloaded,
    RateLimited,
    SlotMoving,
    Unknown,
)
from im_actors.net.shares import ShareSettings
from im_actors.wire import messages as m
from tests.gateway.fakes import TIME_MS, cluster, eventually, text


async def test_a_message_is_acked() -> None:
    async with cluster() as c:
        client = await c.client()
        await client.send(text("team", 1, body="grüße".encode()))
        await client.until(lambda: client.acked)
        assert client.rows(m.ACK) == [["team", 1, 1, 7, 3, TIME_MS]]
        row = c.shards[0].submits[0][0]
        assert row[1:] == [0, "team", "alice/phone", 1, 1, "grüße".encode()]
        welcome = client.of(m.WELCOME)[0]
        assert welcome[1:3] == [1, "gateway-1"]
        assert welcome[4]["window"] == 128


async def test_what_one_turn_brings_leaves_in_one_frame_and_is_acked_in_one_write() -> None:
    async with cluster(slots=4) as c:
        client = await c.client()
        sends = [text(f"session {i}", *range(1, 11)) for i in range(20)]
        await client.send(*sends)
        await client.until(lambda: len(client.acked) == 200)
        assert len(c.shards[0].submits) == 1
        assert [len(message[1]) for message in client.of(m.ACK)] == [128, 72]


async def test_sends_right_behind_hello_are_carried_out() -> None:
    async with cluster() as c:
        client = await c.connect()
        await client.send(m.hello("alice", "phone", None, ""), text("team", 1))
        await client.until(lambda: client.acked)
        assert [message[0] for message in client.received] == [m.WELCOME, m.ACK]


async def test_a_wrong_entry_is_refused_alone() -> None:
    async with cluster() as c:
        client = await c.client()
        await client.send(m.send([("team", 1, 1, b"good"), ("team", 2, 9, b"kind")]))
        await client.until(lambda: client.acked and client.rows(m.NACK))
        assert client.acked == [1]
        assert [row[1:3] for row in client.rows(m.NACK)] == [[2, BadRequest.code]]


async def test_a_moving_slot_is_not_seen_by_clients() -> None:
    async with cluster(slots=4) as c:
        client = await c.client()
        c.move(1, tell=False)
        for n in range(1, 51):
            await client.send(text("team", n))
        await eventually(lambda: c.gateway.router.offered_again)
        c.tell()
        await client.send(*(text("team", n) for n in range(51, 61)))
        await client.until(lambda: len(client.acked) == 60)
        assert client.acked == list(range(1, 61))
        assert client.rows(m.NACK) == []
        assert c.gateway.status()["held"] == {}


async def test_a_cut_link_with_rows_outstanding() -> None:
    async with cluster() as c:
        client = await c.client()
        c.shards[0].silent = True
        await client.send(text("team", 1, 2, 3))
        await eventually(lambda: c.shards[0].submitted)
        # Two of them were committed, and nobody heard of it.
        c.log.commit("team", "alice/phone", 1, 1, b"text")
        c.log.commit("team", "alice/phone", 2, 1, b"text")
        c.shards[0].cut()
        c.move(1)
        await client.until(lambda: len(client.acked) == 3)
        assert [row[1:3] for row in client.rows(m.ACK)] == [[1, 1], [2, 2], [3, 3]]
        assert c.shards[1].submitted == [1, 2, 3]
        assert c.log.head("team") == 3


async def test_the_same_owner_gets_rows_again_when_its_link_is_back() -> None:
    async with cluster() as c:
        client = await c.client()
        c.shards[0].silent = True
        await client.send(text("team", 1))
        await eventually(lambda: c.shards[0].submitted)
        c.shards[0].silent = False
        c.shards[0].cut()
        await client.until(lambda: client.acked)
        assert c.shards[0].submitted == [1, 1]


async def test_a_silent_shard_ends_in_unknown() -> None:
    async with cluster(answer_ms=30, hold_ms=120, retry_ms_max=20, retry_after_ms=77) as c:
        client = await c.client()
        c.shards[0].silent = True
        await client.send(text("team", 1))
        await client.until(lambda: client.rows(m.NACK))
        assert client.rows(m.NACK)[0][:5] == ["team", 1, Unknown.code, 77, 0]
        assert len(c.shards[0].submitted) > 1, "it was asked again in between"


async def test_without_an_owner_the_refusal_is_definite() -> None:
    async with cluster(answer_ms=30, hold_ms=60, retry_ms_max=20) as c:
        client = await c.client()
        await c.shards[0].stop()
        await eventually(lambda: not c.all_up())
        await client.send(text("team", 1))
        await client.until(lambda: client.rows(m.NACK))
        assert client.rows(m.NACK)[0][1:3] == [1, SlotMoving.code]


async def test_refusals_of_the_shard_reach_the_client() -> None:
    why = "alice is muted in group:x"
    answers: dict[int, Any] = {
        1: (Overloaded.code, 0, 0), 2: (102, 0, 5), 3: (103, 0, 6), 4: (Forbidden.code, 0, why),
        5: (Forbidden.code, 0, 0),
    }  # fmt: skip
    async with cluster() as c:
        client = await c.client()
        c.shards[0].answer = lambda row: answers[row[4]]
        await client.send(text("team", 1, 2, 3, 4, 5))
        await client.until(lambda: len(client.rows(m.NACK)) == 5)
        assert [row[1:5] for row in client.rows(m.NACK)] == [
            [1, 200, 500, 0],
            [2, 102, 0, 5],
            [3, 103, 0, 6],
            [4, 111, 0, 0],
            [5, 111, 0, 0],
        ]
        reason, none = [row[5] for row in client.rows(m.NACK)][3:]
        assert reason == why
        assert "may not do that" in none


async def test_too_fast_is_told_when_to_come_back() -> None:
    async with cluster(shares=ShareSettings(sends_per_s=10, sends_burst=128)) as c:
        client = await c.client()
        await client.send(text("team", *range(1, 129)), text("team", 129))
        await client.until(lambda: len(client.acked) == 128 and client.rows(m.NACK))
        session, n, code, retry_after_ms, *_ = client.rows(m.NACK)[0]
        assert (session, n, code) == ("team", 129, RateLimited.code)
        assert 0 < retry_after_ms <= 100


async def test_who_is_overloaded_and_goes_on_is_not_read_from_for_a_while() -> None:
    async with cluster(outstanding_per_connection=128, asks_per_s=1, asks_burst=30) as c:
        client, other = await c.client(), await c.client("bob")
        c.shards[0].silent = True
        await client.send(text("team", *range(1, 129)), *[text("team", n) for n in range(129, 140)])
        (connection,) = [x for x in c.gateway._connections if x.address.startswith("alice")]
        await eventually(lambda: not connection._transport.is_reading())
        await client.until(lambda: len(client.rows(m.NACK)) == 4)
        assert all(row[2] == Overloaded.code and row[3] > 0 for row in client.rows(m.NACK))
        await other.send(text("team", 1))
        await eventually(lambda: len(c.shards[0].submitted) == 129)
        assert len(client.rows(m.NACK)) == 4


async def test_a_full_gateway_says_that_it_is_full_and_not_that_the_client_is_too_fast() -> None:
    limits = {"outstanding_per_connection": 128, "outstanding_rows_max": 128}
    async with cluster(shares=ShareSettings(sends_per_s=1, sends_burst=128), **limits) as c:
        client = await c.client()
        c.shards[0].silent = True
        await client.send(text("team", *range(1, 129)), text("team", 129))
        await client.until(lambda: client.rows(m.NACK))
        assert client.rows(m.NACK)[0][2] == Overloaded.code


async def test_too_many_without_an_answer() -> None:
    async with cluster(outstanding_per_connection=200) as c:
        client, other = await c.client(), await c.client("bob")
        c.shards[0].silent = True
        await client.send(text("team", *range(1, 129)), text("team", *range(129, 257)))
        await client.until(lambda: len(client.rows(m.NACK)) == 56)
        assert {row[2] for row in client.rows(m.NACK)} == {Overloaded.code}
        assert [row[1] for row in client.rows(m.NACK)] == list(range(201, 257))
        await other.send(text("team", 1))
        await eventually(lambda: len(c.shards[0].submitted) == 201)


async def test_a_connection_that_is_gone_loses_nothing_but_its_answers() -> None:
    async with cluster() as c:
        client = await c.client()
        c.shards[0].answer = lambda row: (SlotMoving.code, 0, 0)
        await client.send(text("team", 1))
        await eventually(lambda: c.shards[0].submitted)
        await client.close()
        await eventually(lambda: c.gateway.status()["connections"] == 0)
        c.shards[0].answer = lambda row: None
        await eventually(lambda: c.log.head("team") == 1)
        await eventually(lambda: c.gateway.status()["outstanding"] == 0)
        again = await c.client()
        await again.send(text("team", 1))
        await again.until(lambda: again.acked)
        assert c.log.head("team") == 1


async def test_sessions_of_many_clients_keep_their_order_while_slots_move() -> None:
    async with cluster(slots=8) as c:
        clients = [await c.client(f"user{i}") for i in range(4)]
        for batch in range(10):
            for client in clients:
                ns = range(10 * batch + 1, 10 * batch + 11)
                await client.send(*(text(f"session {i}", *ns) for i in range(8)))
            c.move(batch % 2, tell=batch % 3 > 0)
            if batch % 4 == 3:
                c.shards[batch % 2].cut()
        c.tell()
        for client in clients:
            await client.acks(800)
            assert client.rows(m.NACK) == []
            keys = [(row[0], row[1]) for row in client.rows(m.ACK)]
            assert len(set(keys)) == 800
        for session in range(8):
            assert c.log.head(f"session {session}") == 400
