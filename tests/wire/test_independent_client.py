"""The client that was written from PROTOCOL.md alone, against a real cluster."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from im_actors.gateway.config import GatewayConfig
from im_actors.testing import LocalCluster
from tests.wire import independent_client as own
from tests.wire.test_protocol import examples

shared = pytest.mark.asyncio(loop_scope="module")
"""For the tests that use the one cluster of this module, in its event loop."""
ANSWER_S = 20
"""No answer takes nearly as long; a missing one fails the test instead of hanging it."""
SECRET = "0123456789abcdef0123456789abcdef"
BAD_REQUEST, TOO_LARGE, UNAUTHENTICATED, FORBIDDEN = 100, 101, 110, 111
UNKNOWN_VERSION, PROTOCOL_VIOLATION = 120, 121


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[LocalCluster]:
    async with LocalCluster(slots=4, gateways=2) as running:
        yield running


def gateways(cluster: LocalCluster) -> list[tuple[str, int]]:
    addresses = cluster.url.removeprefix("im://").split(",")
    return [(host, int(port)) for host, _, port in (one.rpartition(":") for one in addresses)]


@contextlib.asynccontextmanager
async def bare(cluster: LocalCluster, gateway: int = 0) -> AsyncIterator[own.Connection]:
    """A connection without HELLO."""
    async with asyncio.timeout(ANSWER_S):
        connection = await own.Connection.open(*gateways(cluster)[gateway])
        try:
            yield connection
        finally:
            await connection.close()


@contextlib.asynccontextmanager
async def connected(
    cluster: LocalCluster, user: str = "alice", gateway: int = 0
) -> AsyncIterator[own.Connection]:
    async with bare(cluster, gateway) as connection:
        assert (await connection.hello(user, "phone-00000001"))[0] == own.WELCOME
        yield connection


async def answers(connection: own.Connection, count: int) -> list[list[Any]]:
    """Rows of ACKs and NACKs, each with the type of its message before it."""
    rows: list[list[Any]] = []
    while len(rows) < count:
        message = await connection.receive()
        if message[0] in (own.ACK, own.NACK):
            rows += [[message[0], *row] for row in message[1]]
    return rows


async def next_of(connection: own.Connection, kind: int) -> list[Any]:
    while (message := await connection.receive())[0] != kind:
        pass
    return message


async def the_end(connection: own.Connection) -> list[list[Any]]:
    """Everything until the server closes."""
    messages = []
    with contextlib.suppress(EOFError):
        while True:
            messages.append(await connection.receive())
    return messages


# -- the module itself -------------------------------------------------------------------------


def test_it_imports_nothing_but_the_standard_library_and_msgpack() -> None:
    tree = ast.parse(Path(own.__file__).read_text())
    names = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    roots = {name.partition(".")[0] for name in names}
    assert roots - sys.stdlib_module_names == {"msgpack"}
    calls = [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and hasattr(n.func, "id")]
    assert "__import__" not in calls


@pytest.mark.parametrize("example", examples(), ids=lambda e: str(e.message[0]))
def test_it_writes_and_reads_the_examples(example: Any) -> None:
    assert own.encode(example.message) == example.frame
    assert own.decode(example.frame[4:]) == example.message


# -- message by message ------------------------------------------------------------------------


@shared
async def test_welcome_names_the_limits(cluster: LocalCluster) -> None:
    async with bare(cluster) as connection:
        kind, version, server, time_ms, limits, *_ = await connection.hello("alice", "phone")
    assert (kind, version, type(server)) == (own.WELCOME, 1, str)
    assert abs(time_ms / 1000 - time.time()) < 3600
    assert limits == {
        "window": 128,
        "frame_bytes": 1048576,
        "body_bytes": 65536,
        "heartbeat_ms": 10000,
        "pull_events": 500,
        "follow_sessions": 1000,
        "queries": 8,
    }


@shared
async def test_a_resend_gets_the_seq_of_then_here_and_on_another_gateway(
    cluster: LocalCluster,
) -> None:
    entries = [["resend", n, 1, b"text %d" % n] for n in (1, 2, 3)]
    async with connected(cluster) as connection:
        connection.send([own.SEND, entries])
        first = await answers(connection, 3)
        connection.send([own.SEND, entries[:1]], [own.SEND, entries[2:]])
        again = await answers(connection, 2)
    assert sorted(row[1:4] for row in first) == [["resend", n, n] for n in (1, 2, 3)]
    assert {(row[0], row[5]) for row in first} == {(own.ACK, 3)}
    assert sorted(row[1:4] for row in again) == [["resend", 1, 1], ["resend", 3, 3]]
    async with connected(cluster, gateway=1) as other:
        other.send([own.SEND, entries])
        resent = await answers(other, 3)
    assert sorted(row[:4] for row in resent) == sorted(row[:4] for row in first)


@shared
async def test_an_earlier_send_has_to_come_first(cluster: LocalCluster) -> None:
    async with connected(cluster) as connection:
        connection.send([own.SEND, [["gap", n, 1, b""] for n in (1, 3, 4)]])
        rows = {row[2]: row for row in await answers(connection, 3)}
        assert rows[1][0] == own.ACK
        assert [(rows[n][0], rows[n][3], rows[n][5]) for n in (3, 4)] == [
            (own.NACK, own.OUT_OF_ORDER, 2)
        ] * 2
        connection.send([own.SEND, [["gap", n, 1, b""] for n in (2, 3, 4)]])
        assert sorted(row[2:4] for row in await answers(connection, 3)) == [[2, 2], [3, 3], [4, 4]]


@shared
async def test_a_key_names_one_body_for_ever(cluster: LocalCluster) -> None:
    async with connected(cluster) as connection:
        connection.send([own.SEND, [["conflict", 1, 1, b"one"], ["conflict", 2, 1, b"two"]]])
        await answers(connection, 2)
        connection.send([own.SEND, [["conflict", 1, 1, b"another"]]])
        (row,) = await answers(connection, 1)
        assert (row[0], row[2], row[3], row[5]) == (own.NACK, 1, own.KEY_CONFLICT, 3)


@shared
async def test_a_void_takes_its_seq_or_tells_that_of_the_message(cluster: LocalCluster) -> None:
    async with connected(cluster) as connection:
        connection.send([own.SEND, [["void", 1, 0, b""], ["void", 2, 1, b"taken"]]])
        assert sorted(row[2:4] for row in await answers(connection, 2)) == [[1, 1], [2, 2]]
        connection.send([own.SEND, [["void", 2, 0, b""]]])
        (row,) = await answers(connection, 1)
        assert (row[0], row[2], row[3]) == (own.ACK, 2, 2)
        connection.send([own.PULL, 1, "void", 0, 0, 10])
        page = await next_of(connection, own.EVENTS)
        events = [own.read_event(encoded) for encoded in page[5]]
        assert [(e.kind, e.body) for e in events] == [(0, b""), (1, b"taken")]


@shared
async def test_what_is_followed_is_pushed_and_headed(cluster: LocalCluster) -> None:
    async with connected(cluster) as alice, connected(cluster, "bob") as bob:
        alice.send([own.SEND, [["follow", 1, 1, b"before"]]])
        await answers(alice, 1)
        bob.send([own.FOLLOW, ["follow", "follow-empty"]])
        heads: dict[str, int] = {}
        while len(heads) < 2:
            heads |= {row[0]: row[1] for row in (await next_of(bob, own.HEADS))[1]}
        assert heads["follow-empty"] == 0
        assert heads["follow"] <= 1
        alice.send([own.SEND, [["follow", 2, 1, b"after"]]])
        (ack,) = await answers(alice, 1)
        event = own.read_event((await next_of(bob, own.PUSH))[1][-1])
        assert (event.session, event.seq, event.n, event.body) == ("follow", 2, 2, b"after")
        assert (event.device, event.sender) == ("alice/phone-00000001", "alice")
        assert event.time_ms == ack[6]
        bob.send([own.UNFOLLOW, ["follow"]], [own.PING, -5])
        assert await next_of(bob, own.PONG) == [own.PONG, -5]
        alice.send([own.SEND, [["follow", 3, 1, b"not for bob"]]])
        await answers(alice, 1)
        bob.send([own.PING, 6])
        assert await bob.receive() == [own.PONG, 6]


@shared
async def test_pages(cluster: LocalCluster) -> None:
    async with connected(cluster) as connection:
        connection.send([own.SEND, [["pages", n, 1, b"%d" % n] for n in range(1, 21)]])
        await answers(connection, 20)

        async def page(after: int, before: int, limit: int) -> list[int]:
            connection.send([own.PULL, 7, "pages", after, before, limit])
            while not (answer := await next_of(connection, own.EVENTS))[5]:
                connection.send([own.PULL, 7, "pages", after, before, limit])
            assert (answer[1], answer[2], answer[4]) == (7, "pages", 0)
            return [own.read_event(encoded).seq for encoded in answer[5]]

        async def complete(after: int, before: int, limit: int, seqs: range) -> None:
            """A copy that lags gives an older or a shorter page; it gets there."""
            while (got := await page(after, before, limit)) != list(seqs):
                assert set(got) < set(range(1, 21))

        await complete(-1, 0, 5, range(16, 21))
        await complete(0, 16, 5, range(11, 16))
        await complete(0, 0, 5, range(1, 6))
        await complete(5, 0, 5, range(6, 11))
        await complete(17, 0, 500, range(18, 21))
        await complete(3, 8, 10, range(4, 8))
        await complete(-1, 4, 10, range(1, 4))


@shared
async def test_bye_ends_it(cluster: LocalCluster) -> None:
    async with connected(cluster) as connection:
        connection.send([own.PING, 1], [own.BYE, "closed by user"])
        assert await the_end(connection) == [[own.PONG, 1]]


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (["refused", 1, 1, b"x" * 65_537], TOO_LARGE),
        (["refused" * 100, 1, 1, b""], TOO_LARGE),
        (["", 1, 1, b""], BAD_REQUEST),
        (["refused\n", 1, 1, b""], BAD_REQUEST),
        (["refused", 1, 2, b""], BAD_REQUEST),
        (["refused", 1, 0, b"not empty"], BAD_REQUEST),
        (["refused", 1, 1, "str"], BAD_REQUEST),
        (["refused", 0, 1, b""], BAD_REQUEST),
    ],
    ids=["body", "long name", "no name", "control", "kind", "void body", "body type", "n"],
)
@shared
async def test_a_wrong_entry_is_refused_and_the_others_are_taken(
    cluster: LocalCluster, entry: list[Any], code: int
) -> None:
    session = f"beside {entry[0][:20]!r} {entry[1]} {entry[2]} {len(entry[3])}"
    async with connected(cluster) as connection:
        connection.send([own.SEND, [entry, [session, 1, 1, b"fine"]]])
        rows = sorted(await answers(connection, 2))
        assert [rows[0][0], rows[0][1], rows[0][3]] == [own.ACK, session, 1]
        assert (rows[1][0], rows[1][1], rows[1][3]) == (own.NACK, entry[0], code)


HELLO = own.encode([own.HELLO, 1, "alice", "phone", None, ""])


def after_hello(*message: Any) -> bytes:
    return HELLO + own.encode(list(message))


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (own.encode([own.PING, 1]), PROTOCOL_VIOLATION),
        (own.encode([own.HELLO, 1, "alice", "phone", None]), PROTOCOL_VIOLATION),
        (own.encode([own.HELLO, 0, "alice", "phone", None, ""]), UNKNOWN_VERSION),
        (b"GET / HTTP/1.1\r\n\r\n", TOO_LARGE),
        (after_hello(own.HELLO, 1, "alice", "phone", None, ""), PROTOCOL_VIOLATION),
        (after_hello(own.PING, 1, 2), PROTOCOL_VIOLATION),
        (after_hello(own.PING, 1.0), BAD_REQUEST),
        (after_hello(own.PONG, 1), PROTOCOL_VIOLATION),
        (after_hello(63, 1), PROTOCOL_VIOLATION),
        (after_hello(own.SEND, []), PROTOCOL_VIOLATION),
        (after_hello(own.SEND, [["s", 1, 1, b""]] * 129), PROTOCOL_VIOLATION),
        (after_hello(own.SEND, [["s", 1, 1]]), PROTOCOL_VIOLATION),
        (after_hello(own.SEND, [["s", 1.0, 1, b""]]), PROTOCOL_VIOLATION),
        (after_hello(own.SEND, [["s" * 1025, 1, 1, b""]]), PROTOCOL_VIOLATION),
        (after_hello(own.FOLLOW, ["a\n"]), BAD_REQUEST),
        (after_hello(own.FOLLOW, ["a"] * 1001), TOO_LARGE),
        (after_hello(own.PULL, 0, "a", 0, 0, 1), BAD_REQUEST),
        (after_hello(own.PULL, 1, "a", -2, 0, 1), BAD_REQUEST),
        (HELLO + b"\x00\x00\x00\x01\xc0", PROTOCOL_VIOLATION),
        (HELLO + b"\x00\x00\x00\x00", PROTOCOL_VIOLATION),
        (HELLO + b"\x00\x10\x00\x01", TOO_LARGE),
    ],
    ids=[
        *("no hello", "hello short", "version", "http", "hello twice", "more fields", "float"),
        *("server type", "unknown type", "no entries", "window", "three fields", "n type"),
        *("echo", "name", "names", "request", "after", "nil", "empty", "long frame"),
    ],
)
@shared
async def test_a_violation_is_told_and_the_connection_closed(
    cluster: LocalCluster, sent: bytes, code: int
) -> None:
    async with bare(cluster) as connection:
        connection.write(sent)
        *before, last = await the_end(connection)
    assert [message[0] for message in before] == [own.WELCOME] * (
        sent.startswith(HELLO) and len(sent) > len(HELLO)
    )
    assert last[0] == own.ERROR
    assert last[1] == code


async def test_tokens() -> None:
    now = int(time.time())
    good = {"sub": "alice", "aud": "im_actors", "iat": now, "exp": now + 3600}
    cases: list[tuple[str | None, int | None]] = [
        (own.make_token(SECRET.encode(), **good), None),
        (own.make_token(SECRET.encode(), **good, dev="phone"), None),
        (own.make_token(SECRET.encode(), **good, dev="phone-3f9a2c71"), None),
        (None, UNAUTHENTICATED),
        ("what", UNAUTHENTICATED),
        (own.make_token(b"another secret" * 3, **good), UNAUTHENTICATED),
        (
            own.make_token(SECRET.encode(), **good | {"exp": now - 60, "iat": now - 120}),
            UNAUTHENTICATED,
        ),
        (own.make_token(SECRET.encode(), **good | {"aud": "else"}), UNAUTHENTICATED),
        (own.make_token(SECRET.encode(), **good | {"sub": "bob"}), FORBIDDEN),
        (own.make_token(SECRET.encode(), **good, dev="laptop"), FORBIDDEN),
    ]
    async with LocalCluster(slots=1, gateway=GatewayConfig(token_secret=SECRET)) as cluster:
        for token, code in cases:
            async with bare(cluster) as connection:
                answer = await connection.hello("alice", "phone-3f9a2c71", token)
                got = None if answer[0] == own.WELCOME else answer[1]
                assert got == code, token


# -- the whole client --------------------------------------------------------------------------


class Running:
    """Clients that run beside the test."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._gateways = gateways(cluster)
        self._tasks: dict[own.Client, asyncio.Task[None]] = {}

    def start(self, store: own.Store, user: str) -> own.Client:
        client = own.Client(store, user, "phone", self._gateways)
        self._tasks[client] = asyncio.create_task(client.run())
        return client

    async def stop(self, client: own.Client) -> None:
        """As a crash of the app does: nothing is said and nothing is waited for."""
        task = self._tasks.pop(client)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def until(self, client: own.Client, condition: Callable[[], bool]) -> None:
        waiting = asyncio.ensure_future(client.until(condition))
        await asyncio.wait(
            {waiting, self._tasks[client]},
            timeout=ANSWER_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert waiting.done(), "the client has ended or gets no further"
        await waiting

    async def close(self) -> None:
        for client in list(self._tasks):
            await self.stop(client)


@pytest_asyncio.fixture(loop_scope="module")
async def running(cluster: LocalCluster) -> AsyncIterator[Running]:
    clients = Running(cluster)
    yield clients
    await clients.close()


@shared
async def test_two_clients_talk_through_crashes(
    cluster: LocalCluster, running: Running, tmp_path: Path
) -> None:
    """The app, both gateways and a shard crash; every message is there once, in one order."""
    count = 100
    stores = {name: own.Store(tmp_path / name) for name in ("alice", "bob")}
    clients = {name: running.start(store, name) for name, store in stores.items()}
    for client in clients.values():
        client.follow("talk")
    for n in range(1, count + 1):
        for name, client in clients.items():
            client.send("talk", b"%s %d" % (name.encode(), n))
        if n == 25:
            await running.until(clients["alice"], lambda: stores["alice"].cursor("talk") >= 1)
            await running.stop(clients["alice"])
            clients["alice"] = running.start(stores["alice"], "alice")
            clients["alice"].follow("talk")
        elif n in (40, 80):
            await cluster.crash("gateway-1" if n == 40 else "gateway-2")
        elif n == 60:
            await cluster.crash("shard-1")
    for name, client in clients.items():
        store = stores[name]
        await running.until(client, lambda store=store: store.cursor("talk") == 2 * count)
        await running.until(client, lambda store=store: not store.sessions_to_send())
    timeline = stores["alice"].shown("talk")
    assert timeline == stores["bob"].shown("talk")
    assert [event.seq for event in timeline] == list(range(1, 2 * count + 1))
    for name in clients:
        texts = [event.body for event in timeline if event.sender == name]
        assert texts == [b"%s %d" % (name.encode(), n) for n in range(1, count + 1)]
    assert await clients["bob"].history("talk", 77) == timeline


@shared
async def test_a_refused_message_becomes_a_void_and_the_later_ones_go_on(
    running: Running, tmp_path: Path
) -> None:
    alice = running.start(own.Store(tmp_path / "alice"), "alice")
    alice.follow("refuse")
    bodies = [b"1", b"x" * 65_537, *(b"%d" % n for n in range(3, 151))]
    for body in bodies:
        alice.send("refuse", body)
    await running.until(alice, lambda: not alice.store.sessions_to_send())
    await running.until(alice, lambda: alice.store.cursor("refuse") == 150)
    assert alice.refused == {("refuse", 2): TOO_LARGE}
    assert [alice.store.outcome("refuse", n) for n in (1, 2, 3)] == [
        (1, False),
        (2, True),
        (3, False),
    ]
    assert [e.body for e in alice.store.shown("refuse")] == [b for b in bodies if len(b) < 10]


@shared
async def test_full_frames(running: Running, tmp_path: Path) -> None:
    """The largest bodies reach the frame's bound before the window's."""
    alice = running.start(own.Store(tmp_path / "alice"), "alice")
    bodies = [bytes([n]) * 65_536 for n in range(20)]
    for body in bodies:
        alice.send("full", body)
    await running.until(alice, lambda: not alice.store.sessions_to_send())
    assert [event.body for event in await alice.history("full", 500)] == bodies
