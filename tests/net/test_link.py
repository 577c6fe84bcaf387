"""Links between actors: the handshake, heartbeats, and staying up."""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from im_actors.core.formats import FORMATS, Formats
from im_actors.errors import ImError, LinkRefused, Overloaded, SetupError
from im_actors.net import link_connection
from im_actors.net.link import (
    Link,
    LinkCallbacks,
    LinkConfig,
    LinkConnection,
    LinkServer,
    PeerInfo,
)
from im_actors.net.tls import Certificates, TlsFiles
from im_actors.wire.codec import FrameDecoder, Message, encode_frame
from im_actors.wire.messages import ERROR

SECRET = b"the secret of this cluster"
SHARD = PeerInfo("shard", "s1", "incarnation-1")
REPLICA = PeerInfo("replica", "r1", "disk-1")
CONFIG = LinkConfig(
    connect_timeout_ms=60_000,
    handshake_timeout_ms=60_000,
    ping_after_ms=40,
    down_after_ms=60_000,
    backoff_ms_min=2,
    backoff_ms_max=20,
)
IMPATIENT = replace(CONFIG, handshake_timeout_ms=1_000, down_after_ms=1_000)
"""Where somebody is silent: a busy machine may be, too."""
NONCE = b"n" * 16


class Log:
    """What one side heard, and a way to wait for more."""

    def __init__(self) -> None:
        self.ups: list[PeerInfo] = []
        self.messages: list[Message] = []
        self.downs: list[str] = []
        self.order: list[str] = []
        self.changed = asyncio.Event()

    def up(self, peer: PeerInfo) -> None:
        self.ups.append(peer)
        self._note("up")

    def frames(self, messages: list[Message]) -> None:
        self.messages += messages
        self._note("frames")

    def down(self, reason: str) -> None:
        self.downs.append(reason)
        self._note("down")

    def _note(self, what: str) -> None:
        self.order.append(what)
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Side:
    """A LinkServer with its log and its last connection."""

    def __init__(self) -> None:
        self.log = Log()
        self.connections: list[LinkConnection] = []
        self.refusal: ImError | None = None
        self.greeting = b""
        self.server: LinkServer

    def handle(self, peer: PeerInfo, connection: LinkConnection) -> LinkCallbacks:
        if self.refusal is not None:
            raise self.refusal
        self.connections.append(connection)
        self.log.up(peer)
        if self.greeting:
            connection.send(self.greeting)
        return LinkCallbacks(self.log.frames, self.log.down)


class Net:
    """Makes servers and links, and checks at the end that nothing of them is left."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def serve(
        self, secret: bytes = SECRET, me: PeerInfo = REPLICA, port: int = 0, **options: Any
    ) -> Side:
        side = Side()
        options.setdefault("config", CONFIG)
        side.server = LinkServer(me, secret, side.handle, **options)
        await side.server.start("127.0.0.1", port)
        self._stack.push_async_callback(self._stop, side.server)
        return side

    def dial(self, port: int, secret: bytes = SECRET, **options: Any) -> tuple[Link, Log]:
        log = Log()
        options.setdefault("config", CONFIG)
        link = Link(
            SHARD,
            secret,
            "127.0.0.1",
            port,
            on_up=log.up,
            on_frames=log.frames,
            on_down=log.down,
            rng=Random(1),
            **options,
        )
        self._stack.push_async_callback(self._stop, link)
        return link, log

    @staticmethod
    async def _stop(end: Link | LinkServer) -> None:
        end.close()
        async with asyncio.timeout(60):
            await end.wait_closed()


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        yield Net(stack)
    # asyncio itself may still be accepting a connection, in a task that ends by itself.
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _, left = await asyncio.wait(others, timeout=60)
        assert not left, "a task was left behind"


class Stranger:
    """A peer made by hand: a socket and frames."""

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._messages: list[Message] = []
        self.sock = sock
        sock.setblocking(False)

    @classmethod
    async def connect(cls, port: int) -> Stranger:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(sock)

    async def send(self, *message: Any) -> None:
        await self._loop.sock_sendall(self.sock, encode_frame(message))

    async def read(self) -> Message | None:
        """The next message, None at the end."""
        async with asyncio.timeout(60):
            while not self._messages:
                try:
                    data = await self._loop.sock_recv(self.sock, 1 << 16)
                except ConnectionError:
                    return None
                if not data:
                    return None
                self._messages = self._decoder.feed(data)
        return self._messages.pop(0)

    async def read_other_than_pings(self) -> Message | None:
        while (message := await self.read()) and message[0] in (132, 133):
            pass
        return message


@pytest.fixture
async def trap() -> AsyncIterator[socket.socket]:
    """A port that connections can be made to; nobody answers there unless the test does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


async def accepted(server: socket.socket) -> Stranger:
    async with asyncio.timeout(60):
        sock, _ = await asyncio.get_running_loop().sock_accept(server)
    return Stranger(sock)


def proof(label: bytes, first: bytes, second: bytes, secret: bytes = SECRET) -> bytes:
    return hmac.digest(secret, label + first + second, "sha256")


# ---- both sides of ours


async def test_up_frames_both_ways_and_a_clean_close(net: Net) -> None:
    side = await net.serve()
    link, log = net.dial(side.server.port)
    assert not link.send(encode_frame([140, 0])), "nothing is queued before the link is up"
    await log.until(lambda: link.up)
    await side.log.until(lambda: side.log.ups)
    assert log.ups == [REPLICA]
    assert link.peer == REPLICA
    assert side.log.ups == [SHARD]
    assert side.connections[0].peer == SHARD
    assert side.server.links == side.connections

    assert link.send(encode_frame([140, 1]) + encode_frame([140, 2]))
    await side.log.until(lambda: len(side.log.messages) == 2)
    side.connections[0].send(encode_frame([141, 1]))
    await log.until(lambda: log.messages)
    assert side.log.messages == [[140, 1], [140, 2]]
    assert log.messages == [[141, 1]]

    link.send(encode_frame([140, 3]))
    link.close()
    assert not link.send(encode_frame([140, 4]))
    await side.log.until(lambda: side.log.downs)
    assert side.log.messages[-1] == [140, 3], "what was sent before close still arrives"
    assert side.log.order[0] == "up"
    assert side.log.order[-1] == "down"
    assert len(side.log.downs) == 1
    assert log.downs == [], "after close nothing is called"


async def test_what_the_listener_says_at_once_arrives(net: Net) -> None:
    side = await net.serve()
    side.greeting = encode_frame([150, "welcome"])
    _, log = net.dial(side.server.port)
    await log.until(lambda: log.messages)
    assert log.messages == [[150, "welcome"]]
    assert log.order == ["up", "frames"]


async def test_an_idle_link_stays_up_and_hears_no_heartbeats(net: Net) -> None:
    quick = replace(CONFIG, down_after_ms=200)
    side = await net.serve(config=quick)
    _, log = net.dial(side.server.port, config=quick)
    await side.log.until(lambda: side.log.ups)
    connection = side.connections[0]
    writes = connection.writes
    # Ten writes of an idle side are ten heartbeats, longer than silence is allowed to be.
    async with asyncio.timeout(60):
        while connection.writes < writes + 10:
            await asyncio.sleep(0.005)
    assert connection.up
    assert log.messages == side.log.messages == []
    assert log.downs == side.log.downs == []


async def test_reconnect_after_the_listener_is_gone(net: Net) -> None:
    first = await net.serve()
    port = first.server.port
    link, log = net.dial(port)
    await log.until(lambda: log.ups)
    first.server.close()
    await first.server.wait_closed()
    await log.until(lambda: len(log.downs) >= 2)
    assert not link.up
    assert "cannot connect" in link.reason
    assert first.log.downs == ["closed here"]
    second = await net.serve(port=port, me=REPLICA._replace(incarnation="disk-2"))
    await log.until(lambda: len(log.ups) == 2)
    assert log.ups[1].incarnation == "disk-2"
    assert link.send(encode_frame([140, 1]))
    await second.log.until(lambda: second.log.messages)


async def test_reasons_that_stay_the_same_are_told_once(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    attempts = 0
    delays = []
    link, log = net.dial(port)
    dial, next_delay_ms = Link._dial, Link._next_delay_ms

    def counted(self: Link) -> None:
        nonlocal attempts
        attempts += 1
        log.changed.set()
        dial(self)

    def noted(self: Link) -> float:
        delays.append(next_delay_ms(self))
        return delays[-1]

    monkeypatch.setattr(Link, "_dial", counted)
    monkeypatch.setattr(Link, "_next_delay_ms", noted)
    await log.until(lambda: attempts >= 6)
    assert len(log.downs) == 1
    assert log.downs[0].startswith(f"cannot connect to 127.0.0.1:{port}")
    assert link.reason == log.downs[0]
    for i, delay in enumerate(delays):
        highest = min(CONFIG.backoff_ms_max, CONFIG.backoff_ms_min * 2**i)
        assert highest / 2 <= delay <= highest


async def test_retarget(net: Net) -> None:
    first, second = await net.serve(), await net.serve(me=REPLICA._replace(id="r2"))
    link, log = net.dial(first.server.port)
    await log.until(lambda: log.ups)
    link.retarget("127.0.0.1", first.server.port)
    assert link.up, "the same target changes nothing"
    link.retarget("127.0.0.1", second.server.port)
    assert not link.up
    assert log.downs == [f"now dialing 127.0.0.1:{second.server.port}"]
    await log.until(lambda: len(log.ups) == 2)
    assert log.ups[1].id == "r2"
    await first.log.until(lambda: first.log.downs)
    assert log.order == ["up", "down", "up"]


async def test_retarget_to_the_same_address_dials_without_waiting(net: Net) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    slow = LinkConfig(backoff_ms_min=3_600_000, backoff_ms_max=3_600_000)
    link, log = net.dial(port, config=slow)
    await log.until(lambda: log.downs)
    await net.serve(port=port)
    link.retarget("127.0.0.1", port)
    await log.until(lambda: link.up)


async def test_retarget_while_connecting(net: Net) -> None:
    side = await net.serve()
    link, log = net.dial(1)
    link.retarget("127.0.0.1", side.server.port)
    await log.until(lambda: link.up)
    assert log.order[-1] == "up"
    assert log.ups == [REPLICA]


async def test_close_while_connecting(net: Net) -> None:
    side = await net.serve()
    link, log = net.dial(side.server.port)
    link.close()
    await link.wait_closed()
    link.retarget("127.0.0.1", side.server.port)
    assert log.order == []


async def test_the_server_closes(net: Net) -> None:
    side = await net.serve()
    link, log = net.dial(side.server.port)
    await side.log.until(lambda: side.log.ups)
    await log.until(lambda: link.up)
    side.connections[0].send(encode_frame([141, "last"]))
    side.server.close()
    await log.until(lambda: log.downs)
    assert log.messages == [[141, "last"]]
    assert "closed the connection" in log.downs[0]


async def test_one_link_is_closed_by_its_handler(net: Net) -> None:
    side = await net.serve()
    _, log = net.dial(side.server.port)
    await log.until(lambda: log.ups)
    await side.log.until(lambda: side.log.ups)
    side.connections[0].close()
    assert side.log.downs == ["closed here"]
    await log.until(lambda: len(log.ups) == 2)


async def test_the_handler_refuses_a_peer(net: Net) -> None:
    side = await net.serve()
    side.refusal = Overloaded("no more shards here")
    link, log = net.dial(side.server.port)
    await log.until(lambda: "no more shards here" in log.downs)
    assert not link.up
    assert side.log.order == []


async def test_frames_that_break_the_protocol_take_the_link_down(net: Net) -> None:
    side = await net.serve()
    link, log = net.dial(side.server.port)
    await log.until(lambda: link.up)
    link.send(b"\0\0\0\1\x01")
    await log.until(lambda: log.downs)
    assert "array" in log.downs[0]
    assert "array" in side.log.downs[0]
    await log.until(lambda: len(log.ups) == 2)


async def test_large_frames(net: Net) -> None:
    side = await net.serve()
    link, log = net.dial(side.server.port)
    await log.until(lambda: link.up)
    for i in range(20):
        link.send(encode_frame([140, i, b"x" * 1_000_000]))
    assert link.buffered_bytes > 0
    await side.log.until(lambda: len(side.log.messages) == 20)
    assert [message[1] for message in side.log.messages] == list(range(20))


def with_tls(files: TlsFiles) -> LinkConfig:
    return replace(CONFIG, tls=Certificates(files))


async def test_tls(net: Net, authorities: Any) -> None:
    ours, _ = authorities
    side = await net.serve(config=with_tls(ours.sign("b", "DNS:other.test")))
    link, log = net.dial(side.server.port, config=with_tls(ours.sign("a")))
    await log.until(lambda: link.up)
    link.send(encode_frame([140, 1]))
    await side.log.until(lambda: side.log.messages)


async def test_tls_against_a_listener_without(net: Net, authorities: Any) -> None:
    side = await net.serve()
    _, log = net.dial(side.server.port, config=with_tls(authorities[0].sign("a")))
    await log.until(lambda: log.downs)
    assert log.ups == []


@pytest.mark.parametrize("stranger", [0, 1])
async def test_either_side_refuses_a_certificate_of_others(
    net: Net, authorities: Any, stranger: int, tmp_path: Path
) -> None:
    ours, theirs = authorities
    mine, other = ours.sign("a"), theirs.sign("b")
    # The stranger believes us, so that it is for us to refuse.
    both = tmp_path / "both.pem"
    both.write_text(ours.certificate.read_text() + theirs.certificate.read_text())
    configs = [with_tls(mine), with_tls(other._replace(authorities=str(both)))]
    side = await net.serve(config=configs[1 - stranger])
    _, log = net.dial(side.server.port, config=configs[stranger])
    await log.until(lambda: log.downs)
    assert (log.ups, side.log.ups) == ([], [])


async def test_a_dialer_without_tls_is_not_let_in(net: Net, authorities: Any) -> None:
    side = await net.serve(config=with_tls(authorities[0].sign("a")))
    _, log = net.dial(side.server.port)
    await log.until(lambda: log.downs)
    assert (log.ups, side.log.ups) == ([], [])


# ---- secrets and identities


async def test_wrong_secret_at_the_dialer(net: Net) -> None:
    side = await net.serve()
    _, log = net.dial(side.server.port, secret=b"another cluster's secret")
    await log.until(lambda: log.downs)
    assert "another cluster secret" in log.downs[0]
    assert log.ups == []
    assert side.log.ups == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"expected_incarnation": "disk-7"}, "the incarnation disk-7 was expected"),
        ({"expected_id": "r7"}, "the id r7 was expected"),
    ],
    ids=["incarnation", "id"],
)
async def test_a_listener_that_is_not_the_expected_one(
    net: Net, options: dict[str, Any], says: str
) -> None:
    side = await net.serve()
    link, log = net.dial(side.server.port, **options)
    await log.until(lambda: log.downs)
    assert says in log.downs[0]
    assert str(REPLICA) in log.downs[0]
    assert not link.up
    assert side.log.ups == []


async def test_the_expected_listener(net: Net) -> None:
    side = await net.serve()
    link, log = net.dial(side.server.port, expected_id="r1", expected_incarnation="disk-1")
    await log.until(lambda: link.up)


async def test_a_listener_with_a_wrong_proof_gets_no_proof(net: Net, trap: socket.socket) -> None:
    _, log = net.dial(trap.getsockname()[1])
    stranger = await accepted(trap)
    hello = await stranger.read()
    assert hello is not None
    assert hello[:5] == [128, FORMATS.newest, *SHARD]
    await stranger.send(
        129, FORMATS.newest, *REPLICA, NONCE, proof(b"listener", hello[5], NONCE, b"wrong")
    )
    assert await stranger.read() is None
    stranger.sock.close()
    await log.until(lambda: log.downs)
    assert "another cluster secret" in log.downs[0]


async def test_a_listener_that_returns_the_dialers_own_words(net: Net, trap: socket.socket) -> None:
    _, log = net.dial(trap.getsockname()[1])
    stranger = await accepted(trap)
    hello = await stranger.read()
    assert hello is not None
    nonce = hello[5]
    await stranger.send(129, FORMATS.newest, *REPLICA, nonce, proof(b"dialer", nonce, nonce))
    assert await stranger.read() is None
    stranger.sock.close()
    await log.until(lambda: log.downs)
    assert log.ups == []


async def shake_hands(stranger: Stranger, nonce: bytes = NONCE) -> bytes:
    """Up to the challenge; returns the proof that is right for it."""
    await stranger.send(128, FORMATS.newest, *SHARD, nonce)
    challenge = await stranger.read()
    assert challenge is not None
    assert challenge[:5] == [129, FORMATS.newest, *REPLICA]
    assert challenge[6] == proof(b"listener", nonce, challenge[5])
    return proof(b"dialer", challenge[5], nonce)


async def test_a_dialer_made_by_hand(net: Net) -> None:
    side = await net.serve()
    stranger = await Stranger.connect(side.server.port)
    await stranger.send(130, await shake_hands(stranger))
    assert await stranger.read() == [131]
    await side.log.until(lambda: side.log.ups)
    await stranger.send(132, 77)
    async with asyncio.timeout(60):
        while await stranger.read() != [133, 77]:
            pass
    stranger.sock.close()
    await side.log.until(lambda: side.log.downs)


@pytest.mark.parametrize(
    ("listens", "dials", "speaks"),
    [((5, 5), (5, 6), 5), ((5, 6), (5, 5), 5), ((5, 6), (5, 6), 6), ((4, 6), (6, 7), 6)],
    ids=str,
)
async def test_a_link_speaks_the_newest_format_that_both_sides_know(
    net: Net, listens: tuple[int, int], dials: tuple[int, int], speaks: int
) -> None:
    side = await net.serve(config=replace(CONFIG, formats=Formats(*listens)))
    link, log = net.dial(side.server.port, config=replace(CONFIG, formats=Formats(*dials)))
    await log.until(lambda: link.up)
    await side.log.until(lambda: side.log.ups)
    assert link.format == speaks
    assert [connection.format for connection in side.server.links] == [speaks]


@pytest.mark.parametrize(
    ("listens", "dials", "why"),
    [
        (
            (6, 7),
            (5, 5),
            "link format 5 is not spoken here, only 6 to 7: update the side that",
        ),
        ((5, 5), (6, 7), "the other side speaks link format 5, this one 6 to 7: update the other"),
    ],
    ids=str,
)
async def test_sides_without_a_common_format_say_who_is_to_be_updated(
    net: Net, listens: tuple[int, int], dials: tuple[int, int], why: str
) -> None:
    side = await net.serve(config=replace(CONFIG, formats=Formats(*listens)))
    _, log = net.dial(side.server.port, config=replace(CONFIG, formats=Formats(*dials)))
    await log.until(lambda: log.downs)
    assert why in log.downs[0]
    assert log.ups == side.log.ups == []


async def test_hello_of_a_later_release_may_have_more_fields(net: Net) -> None:
    side = await net.serve()
    stranger = await Stranger.connect(side.server.port)
    await stranger.send(128, FORMATS.newest + 1, *SHARD, NONCE, "of a later release")
    challenge = await stranger.read()
    assert challenge is not None
    assert challenge[:2] == [129, FORMATS.newest]
    stranger.sock.close()


async def test_a_replayed_proof(net: Net) -> None:
    side = await net.serve()
    first = await Stranger.connect(side.server.port)
    recorded = await shake_hands(first)
    await first.send(130, recorded)
    assert await first.read() == [131]
    second = await Stranger.connect(side.server.port)
    assert await shake_hands(second) != recorded, "each connection has a nonce of its own"
    await second.send(130, recorded)
    answer = await second.read()
    assert answer is not None
    assert answer[:2] == [ERROR, LinkRefused.code]
    assert await second.read() is None
    assert len(side.log.ups) == 1
    for stranger in (first, second):
        stranger.sock.close()


@pytest.mark.parametrize(
    "hello",
    [
        (1, 1, "alice", "phone", None, ""),
        (128,),
        (128, FORMATS.newest),
        (128, FORMATS.newest, *SHARD, NONCE, "a field too many"),
        (128, FORMATS.newest, *SHARD),
        (128, FORMATS.newest, *SHARD, b"short"),
        (128, FORMATS.newest, *SHARD, "n" * 16),
        (128, FORMATS.newest, "shard", "", "x", NONCE),
        (128, FORMATS.newest, "shard", 7, "x", NONCE),
        (128, FORMATS.newest, "shard", "x" * 129, "x", NONCE),
        (130, b"x" * 32),
        (131,),
        (132, 1),
        (140, "data"),
        (128, FORMATS.newest, *SHARD, b"x" * 5_000),
    ],
    ids=lambda message: str(message)[:40],
)
async def test_a_dialer_that_does_not_keep_to_the_handshake(
    net: Net, hello: tuple[Any, ...]
) -> None:
    side = await net.serve()
    stranger = await Stranger.connect(side.server.port)
    await stranger.send(*hello)
    answer = await stranger.read()
    assert answer is not None
    assert answer[0] == ERROR
    assert await stranger.read() is None
    stranger.sock.close()
    assert side.log.order == []


@pytest.mark.parametrize(
    "second",
    [(130,), (130, b""), (130, "text"), (130, b"x" * 32), (128, FORMATS.newest, *SHARD, NONCE)],
    ids=str,
)
async def test_a_dialer_without_a_proof(net: Net, second: tuple[Any, ...]) -> None:
    side = await net.serve()
    stranger = await Stranger.connect(side.server.port)
    await shake_hands(stranger)
    await stranger.send(*second)
    answer = await stranger.read()
    assert answer is not None
    assert answer[0] == ERROR
    stranger.sock.close()
    assert side.log.order == []


@pytest.mark.parametrize(
    "answer",
    [
        (131,),
        (129, FORMATS.newest, *REPLICA),
        (65, 1, "g", 0, {}),
        (ERROR, 304, "not you"),
        (ERROR,),
        (140, 1),
    ],
    ids=str,
)
async def test_a_listener_that_does_not_keep_to_the_handshake(
    net: Net, trap: socket.socket, answer: tuple[Any, ...]
) -> None:
    _, log = net.dial(trap.getsockname()[1])
    stranger = await accepted(trap)
    await stranger.read()
    await stranger.send(*answer)
    await log.until(lambda: log.downs)
    stranger.sock.close()
    assert log.ups == []
    if answer[0] == ERROR and len(answer) == 3:
        assert log.downs == ["not you"]


@pytest.mark.parametrize("secret", [b"", b"short", "a string of enough letters"])
async def test_a_secret_that_is_none(secret: Any) -> None:
    with pytest.raises(SetupError, match="secret"):
        LinkServer(REPLICA, secret, Side().handle)


# ---- silence


@pytest.mark.parametrize("begun", [False, True], ids=["nothing", "half"])
async def test_a_handshake_that_stalls_at_the_listener(net: Net, begun: bool) -> None:
    side = await net.serve(config=IMPATIENT)
    stranger = await Stranger.connect(side.server.port)
    if begun:
        await shake_hands(stranger)
    assert await stranger.read() is None, "the listener has let go"
    assert side.log.order == []
    stranger.sock.close()


async def test_a_black_hole(net: Net, trap: socket.socket) -> None:
    # The kernel accepts, as it does for a process that is stopped; nobody answers.
    link, log = net.dial(trap.getsockname()[1], config=IMPATIENT)
    await log.until(lambda: log.downs)
    assert log.downs == ["the listener's answer took longer than 1000 ms"]
    assert not link.up
    for _ in range(3):
        stranger = await accepted(trap)
        stranger.sock.close()


async def test_a_peer_that_falls_silent_is_pinged_and_then_given_up(
    net: Net, trap: socket.socket
) -> None:
    link, log = net.dial(trap.getsockname()[1], config=IMPATIENT)
    stranger = await accepted(trap)
    hello = await stranger.read()
    assert hello is not None
    await stranger.send(129, FORMATS.newest, *REPLICA, NONCE, proof(b"listener", hello[5], NONCE))
    assert await stranger.read() == [130, proof(b"dialer", NONCE, hello[5])]
    await stranger.send(131)
    await log.until(lambda: link.up)
    ping = await stranger.read()
    assert ping is not None
    assert ping[0] == 132
    await log.until(lambda: log.downs)
    assert "nothing was heard" in log.downs[0]
    stranger.sock.close()


async def test_half_a_frame_is_a_sign_of_life(net: Net) -> None:
    side = await net.serve()
    stranger = await Stranger.connect(side.server.port)
    await stranger.send(130, await shake_hands(stranger))
    assert await stranger.read() == [131]
    frame = encode_frame([140, b"x" * 40])
    loop = asyncio.get_running_loop()
    for byte in frame[:-1]:
        await loop.sock_sendall(stranger.sock, bytes([byte]))
        # Each heartbeat of the other side is a measure of time that has passed there.
        assert (await stranger.read() or [None])[0] == 132
    assert side.log.downs == []
    await loop.sock_sendall(stranger.sock, frame[-1:])
    await side.log.until(lambda: side.log.messages)
    stranger.sock.close()
    await side.log.until(lambda: side.log.downs)


async def test_standing_still_oneself_is_not_the_peers_silence(net: Net) -> None:
    side = await net.serve()
    link, log = net.dial(side.server.port)
    await log.until(lambda: link.up)
    await side.log.until(lambda: side.log.ups)
    connection = side.connections[0]
    loop = asyncio.get_running_loop()
    # As if the loop had been stuck for ten seconds: all of it lies between two ticks.
    connection._heard_at -= 10
    connection._tick_at -= 10
    heard_at = connection._heard_at
    connection._tick()
    assert connection.up
    assert connection._heard_at > heard_at + 9
    assert connection._heard_at <= loop.time()


async def test_control_messages_are_kept_from_the_user(net: Net) -> None:
    side = await net.serve()
    stranger = await Stranger.connect(side.server.port)
    await stranger.send(130, await shake_hands(stranger))
    await stranger.read()
    await asyncio.get_running_loop().sock_sendall(
        stranger.sock,
        b"".join(map(encode_frame, [[140, 1], [132, 5], [133, 5], [140, 2], [132, 6]])),
    )
    await side.log.until(lambda: len(side.log.messages) == 2)
    assert side.log.messages == [[140, 1], [140, 2]]
    for token in (5, 6):
        async with asyncio.timeout(60):
            while await stranger.read() != [133, token]:
                pass
    await stranger.send(128, FORMATS.newest, *SHARD, NONCE)
    answer = await stranger.read_other_than_pings()
    assert answer is not None
    assert answer[0] == ERROR, "a handshake in the middle is a violation"
    stranger.sock.close()


async def test_links_are_bounded(net: Net) -> None:
    side = await net.serve(config=LinkConfig(connections_max=1))
    _, first = net.dial(side.server.port)
    await first.until(lambda: first.ups)
    _, second = net.dial(side.server.port)
    await second.until(lambda: second.downs)
    assert "connections are in use" in second.downs[0]
    assert second.ups == []


# ---- configuration


@pytest.mark.parametrize(
    "wrong",
    [
        {"ping_after_ms": 0},
        {"down_after_ms": 900},
        {"backoff_ms_min": 2_000},
        {"frame_bytes_max": 100},
        {"connect_timeout_ms": 1.5},
    ],
    ids=str,
)
def test_config(wrong: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match=next(iter(wrong))):
        LinkConfig(**wrong).validate()


def test_types_are_apart_from_those_of_clients() -> None:
    assert min(link_connection.LinkType) == 128
