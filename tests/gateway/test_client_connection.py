"""The public face: what clients do wrong, and clients that do nothing at all."""

from __future__ import annotations

import struct
from functools import partial
from typing import Any

import pytest

from im_actors.errors import (
    BadRequest,
    Overloaded,
    ProtocolViolation,
    RateLimited,
    ShuttingDown,
    TooLarge,
    UnknownVersion,
)
from im_actors.gateway import Clock
from im_actors.gateway.tokens import make_token
from im_actors.net.shares import CROWDED_MS, ShareSettings
from im_actors.wire import messages as m
from im_actors.wire.codec import encode_frame
from tests.gateway.fakes import RawClient, cluster, eventually, text


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


HELLO = encode_frame(m.hello("alice", "phone", None, ""))
STRANGERS: dict[str, tuple[bytes, int]] = {
    "no HELLO": (encode_frame(text("team", 1)), ProtocolViolation.code),
    "PING first": (encode_frame(m.ping(1)), ProtocolViolation.code),
    "too old a version": (encode_frame((1, 0, "alice", "phone", None, "")), UnknownVersion.code),
    "a later version's HELLO": (encode_frame((1, 99, {})), ProtocolViolation.code),
    "a version that is no number": (encode_frame((1, "1")), ProtocolViolation.code),
    "a user with a slash": (encode_frame(m.hello("a/b", "x", None, "")), BadRequest.code),
    "no user": (encode_frame((1, 1, None, "phone", None, "")), BadRequest.code),
    "too long a name": (encode_frame(m.hello("a" * 129, "x", None, "")), TooLarge.code),
    "too many fields": (encode_frame((1, 1, "a", "b", None, "", 7)), ProtocolViolation.code),
    "a frame too large": (struct.pack(">I", 1 << 30), TooLarge.code),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", TooLarge.code),
    "broken msgpack": (frame(b"\xc1\xc1"), ProtocolViolation.code),
    "no array": (frame(b"\x01"), ProtocolViolation.code),
    "an empty array": (frame(b"\x90"), ProtocolViolation.code),
    "an empty frame": (frame(b""), ProtocolViolation.code),
}
GUESTS: dict[str, tuple[bytes, int]] = {
    "HELLO twice": (HELLO, ProtocolViolation.code),
    "an unknown type": (encode_frame((60,)), ProtocolViolation.code),
    "a server's type": (encode_frame((66, [])), ProtocolViolation.code),
    "a link's type": (encode_frame((150, [])), ProtocolViolation.code),
    "a type below 0": (encode_frame((-1,)), ProtocolViolation.code),
    "SEND without entries": (encode_frame((2, [])), ProtocolViolation.code),
    "SEND of a map": (encode_frame((2, {"a": 1})), ProtocolViolation.code),
    "too many entries": (encode_frame(text("team", *range(1, 130))), ProtocolViolation.code),
    "an entry of three": (encode_frame((2, [["team", 1, 1]])), ProtocolViolation.code),
    "n as text": (encode_frame((2, [["team", "1", 1, b""]])), ProtocolViolation.code),
    "FOLLOW of a number": (encode_frame((3, [7])), BadRequest.code),
    "PULL with limit 0": (encode_frame((5, 1, "team", 0, 0, 0)), BadRequest.code),
    "PULL without a number": (encode_frame((5, None, "team", 0, 0, 1)), BadRequest.code),
    "PING of text": (encode_frame((6, "x")), BadRequest.code),
    "BYE of a number": (encode_frame((7, 7)), BadRequest.code),
    "an array too large": (
        frame(b"\x92\x02\xdd" + struct.pack(">I", 100_000)),
        ProtocolViolation.code,
    ),
    "a deep array": (frame(b"\x91" * 5_000 + b"\x01"), ProtocolViolation.code),
}


@pytest.mark.parametrize("case", STRANGERS)
async def test_a_stranger_who_breaks_the_protocol(case: str) -> None:
    sent, code = STRANGERS[case]
    async with cluster() as c:
        client = await c.connect()
        await client.send_bytes(sent)
        await client.until(lambda: client.ended)
        (error,) = client.received
        assert error[:2] == [m.ERROR, code]
        assert error[2]
        assert c.gateway.status()["violations"] == 1


@pytest.mark.parametrize("case", GUESTS)
async def test_a_guest_who_does(case: str) -> None:
    sent, code = GUESTS[case]
    async with cluster() as c:
        client = await c.client()
        bystander = await c.client("bob")
        await client.send_bytes(encode_frame(text("team", 1)) + sent + encode_frame(m.ping(1)))
        await client.until(lambda: client.ended)
        assert [message[:2] for message in client.of(m.ERROR)] == [[m.ERROR, code]]
        assert client.of(m.PONG) == [], "nothing after the violation is carried out"
        await eventually(lambda: c.log.head("team") == 1)  # and what came before it is
        await bystander.send(m.ping(2))
        await bystander.until(lambda: bystander.of(m.PONG))


async def test_a_stranger_may_send_on_with_hello_and_not_more_than_hello_without_it() -> None:
    """What comes behind HELLO waits undecoded until HELLO is found good."""
    sends = b"".join(encode_frame(text(f"team-{n}", *range(1, 100))) for n in range(40))
    async with cluster() as c:
        client = await c.connect()
        await client.send_bytes(HELLO + sends)
        await client.until(lambda: len(client.acked) == 40 * 99)
        stranger = await c.connect()
        await stranger.send_bytes(struct.pack(">I", 16_385))
        await stranger.until(lambda: stranger.ended)
        assert [message[:2] for message in stranger.received] == [[m.ERROR, TooLarge.code]]


ASKS: dict[str, tuple[Any, ...]] = {
    "PING": m.ping(1),
    "FOLLOW": m.follow(["a", "b", "c"]),
    "UNFOLLOW": m.unfollow(["a", "b", "c"]),
    "PULL": m.pull(1, "team", 0, 0, 10),
    "entries that are refused": (2, [["team", 0, 1, b""]] * 3),
    "entries that come too early": text("team", 7, 8, 9),
}


@pytest.mark.parametrize("asked", ASKS.values(), ids=ASKS)
async def test_who_asks_for_more_than_its_share_is_not_read_from(asked: tuple[Any, ...]) -> None:
    async with cluster(asks_per_s=1, asks_burst=10) as c:
        greedy, modest = await c.client(), await c.client("bob")
        await greedy.send(*[asked] * 20)
        (connection,) = [x for x in c.gateway._connections if x.address.startswith("alice")]
        await eventually(lambda: not connection._transport.is_reading())
        await greedy.send(m.ping(2))
        await modest.send(m.ping(3))
        await modest.until(lambda: modest.of(m.PONG))
        assert [m.PONG, 2] not in greedy.received


async def test_who_asked_for_too_much_gets_it_in_order_and_later() -> None:
    async with cluster(asks_per_s=2_000, asks_burst=10) as c:
        client = await c.client()
        messages = [m.ping(n) if n % 3 else text("team", n // 3) for n in range(3, 153)]
        await client.send(*messages)
        await client.until(lambda: len(client.acked) == 50)
        await client.until(lambda: len(client.of(m.PONG)) == 100)
        assert [pong[1] for pong in client.of(m.PONG)] == [n for n in range(3, 153) if n % 3]
        await client.send_bytes(encode_frame(m.ping(1)) * 50 + encode_frame((63,)))
        await client.until(lambda: client.ended)
        await eventually(lambda: c.gateway.status()["connections"] == 0)


async def test_half_a_frame_and_a_frame_byte_by_byte() -> None:
    async with cluster() as c:
        client = await c.client()
        data = encode_frame(text("team", 1))
        for i in range(len(data)):
            await client.send_bytes(data[i : i + 1])
        await client.until(lambda: client.acked)
        await client.send_bytes(data[:7])
        client.sock.shutdown(1)
        await client.until(lambda: client.ended)
        await eventually(lambda: c.gateway.status()["connections"] == 0)


class Hands:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        self.clock = Clock(lambda: 0, lambda: self.now_ms)


@pytest.mark.parametrize("sent", [b"", HELLO[:9]])
async def test_hello_that_does_not_come(sent: bytes) -> None:
    hands = Hands()
    async with cluster(clock=hands.clock) as c:
        client, guest = await c.connect(), await c.client()
        await client.send_bytes(sent)
        await eventually(lambda: c.gateway.status()["strangers"] == 1)
        hands.now_ms += 4_999
        await guest.send(m.ping(1))
        await guest.until(lambda: guest.of(m.PONG))
        assert not client.ended
        hands.now_ms += 1
        await client.until(lambda: client.ended)
        assert client.received[0][0] == m.SERVER_BYE
        assert not guest.ended
        await client.close()
        await eventually(lambda: c.gateway.status()["connections"] == 1)
        assert c.gateway.status()["strangers"] == 0


def pongs(client: RawClient, count: int) -> bool:
    return len(client.of(m.PONG)) == count


@pytest.mark.parametrize("sent", [b"", encode_frame(text("team", 1))[:9]])
async def test_silence_ends_a_connection_and_pings_keep_it(sent: bytes) -> None:
    hands = Hands()
    async with cluster(clock=hands.clock) as c:
        silent, lively = await c.client(), await c.client("bob")
        await silent.send_bytes(sent)
        if sent:
            # Half a frame counts as a sign of life, once.
            await eventually(lambda: any(con._heard_bytes for con in c.gateway._connections))
        for beat in range(3):
            assert not silent.ended
            hands.now_ms += 10_000
            await lively.send(m.ping(beat))
            await lively.until(partial(pongs, lively, beat + 1))
        await silent.until(lambda: silent.ended)
        assert silent.received[-1][:1] == [m.SERVER_BYE]
        assert not lively.ended


async def test_bye_ends_it_in_order() -> None:
    async with cluster() as c:
        client = await c.client()
        await client.send(text("team", 1), m.bye("closed by user"), text("team", 2))
        await client.until(lambda: client.ended)
        await eventually(lambda: c.log.head("team") == 1)
        assert client.of(m.ERROR) == []


async def test_several_connections_of_one_device() -> None:
    async with cluster() as c:
        first, second = await c.client(), await c.client()
        assert c.gateway.status()["users"] == 1
        await first.send(text("team", 1))
        await first.until(lambda: first.acked)
        await second.send(text("team", 1, 2))
        await second.until(lambda: len(second.acked) == 2)
        assert c.log.head("team") == 2
        await first.close()
        await eventually(lambda: c.gateway.status()["connections"] == 1)
        assert c.gateway.status()["users"] == 1


async def flood(client: RawClient, data: bytes) -> None:
    while True:
        await client.send_bytes(data)


async def test_who_never_reads_his_answers_is_cut() -> None:
    settings: dict[str, Any] = {
        "limits": m.Limits(frame_bytes=262_144, follow_sessions=100),
        "slow_reader_bytes": 262_144,
        "buffered_bytes_max": 800_000,
    }
    async with cluster(**settings) as c:
        client = await (await c.connect(receive_bytes=4096)).hello()
        await client.stop_reading()
        wrong = encode_frame(m.send([("s" * 1_000, n, 1, b"") for n in range(1, 129)]))
        with pytest.raises(ConnectionError):
            await flood(client, wrong)
        await eventually(lambda: c.gateway.status()["connections"] == 0)


async def test_too_many_strangers_and_too_many_connections() -> None:
    async with cluster(strangers_max=1, connections_max=2) as c:
        guest = await c.client()
        stranger = await c.connect()
        await eventually(lambda: c.gateway.status()["strangers"] == 1)
        third = await c.connect()
        await third.until(lambda: third.ended)
        assert third.received[0][1] == Overloaded.code
        await stranger.hello("bob")
        assert not guest.ended
    async with cluster(strangers_max=1) as c:
        stranger = await c.connect()
        await eventually(lambda: c.gateway.status()["strangers"] == 1)
        second = await c.connect()
        await second.until(lambda: second.ended)
        assert second.received[0][1] == Overloaded.code
        await stranger.hello()
        await c.client("bob")


async def test_an_address_that_comes_too_often_is_told_when_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("im_actors.net.connection.host_of", lambda _: "192.0.2.7")
    shares = ShareSettings(attempts_per_s=1, attempts_burst=2)
    async with cluster(insecure_open=True, shares=shares) as c:
        await c.client()
        second = await c.client()
        third = await c.connect()
        await third.until(lambda: third.ended)
        kind, reason, reconnect_after_ms = third.received[0]
        assert (kind, reason) == (
            m.SERVER_BYE,
            "too many connections a second from your address",
        )
        assert 0 < reconnect_after_ms <= 1_000
        assert not second.ended
        status = c.gateway.status()
        assert (status["connections"], status["strangers"], status["refused"]) == (2, 0, 1)


async def test_a_user_with_too_many_connections_is_told_when_to_come_back() -> None:
    secret = "s" * 32
    shares = ShareSettings(connections_per_user=1)
    async with cluster(token_secret=secret, shares=shares) as c:
        token = make_token(secret, "alice")
        first, second = await c.connect(), await c.connect()
        await first.hello(token=token)
        await second.send(m.hello("alice", "tablet", token, ""), text("team", 1))
        await second.until(lambda: second.ended)
        ((kind, reason, reconnect_after_ms),) = second.received
        assert (kind, reconnect_after_ms) == (m.SERVER_BYE, CROWDED_MS)
        assert "'alice' has too many connections" in reason
        await (await c.connect()).hello("bob", make_token(secret, "bob"))
        await first.close()
        await eventually(lambda: c.gateway.status()["users"] == 1)
        await (await c.connect()).hello(token=token)


async def test_the_connections_of_a_user_share_his_sends() -> None:
    secret = "s" * 32
    shares = ShareSettings(sends_per_s=1, sends_burst=128)
    async with cluster(token_secret=secret, shares=shares) as c:
        token = make_token(secret, "alice")
        phone = await (await c.connect()).hello(token=token)
        tablet = await (await c.connect()).hello(token=token, device="tablet")
        await phone.send(text("team", *range(1, 129)))
        await phone.until(lambda: len(phone.acked) == 128)
        await tablet.send(text("team", 1))
        await tablet.until(lambda: tablet.rows(m.NACK))
        assert tablet.rows(m.NACK)[0][2] == RateLimited.code
        assert tablet.rows(m.NACK)[0][3] > 0


async def test_sends_while_stopping_are_refused_definitely() -> None:
    async with cluster() as c:
        client = await c.client()
        c.gateway.draining = True
        await client.send(text("team", 1))
        await client.until(lambda: client.rows(m.NACK))
        assert client.rows(m.NACK)[0][2] == ShuttingDown.code
        c.gateway.draining = False
