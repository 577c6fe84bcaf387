"""The client over TCP, against a gateway that does what a test tells it."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from pathlib import Path
from random import Random
from ssl import SSLContext
from typing import Any

import pytest

from im_actors.client import LIVE, Client, ClientConfig, SendState
from im_actors.errors import (
    BadRequest,
    DiskFailed,
    Forbidden,
    KeyConflict,
    NotReachable,
    SetupError,
    ShuttingDown,
    SlotMoving,
    TooLarge,
    Unauthenticated,
    Unknown,
)
from im_actors.storage import client_statements
from im_actors.wire.limits import Limits

NOWHERE = "im://127.0.0.1:1"
QUICK = ClientConfig(
    reconnect_base_ms=1, reconnect_cap_ms=20, refused_retry_ms=50, probe_ms=50, drain_ms=0,
    history_timeout_ms=60_000,
)  # fmt: skip


def client(url: str, user: str = "alice", **options: Any) -> Client:
    return Client(url, user, "phone", config=options.pop("config", QUICK), **options)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "alice.db"


# --- sending --------------------------------------------------------------------------------------


async def test_send_ack_follow_history(gateway: Any, store: Path) -> None:
    async with client(gateway.url, store=store) as im:
        sent = await im.send("team", "hello")
        ack = await sent.acked(timeout=60)
        assert (ack.session, ack.n, ack.seq, ack.copies) == ("team", 1, 1, 3)
        assert ack.latency_ms is not None
        assert ack.latency_ms > 0
        assert sent.state is SendState.ACKED
        event = await im.follow("team").next(timeout=60)
        assert (event.seq, event.sender, event.text, event.kind) == (1, "alice", "hello", 1)
        assert event.device == im.address
        page = await im.history("team")
        assert (page.events, page.offline, page.complete) == ([event], False, True)


async def test_bytes_that_are_not_text_pass(gateway: Any) -> None:
    async with client(gateway.url) as im:
        await (await im.send("team", b"\xff\x00")).acked(timeout=60)
        assert (await im.follow("team").next(10)).body == b"\xff\x00"


async def test_sending_needs_no_connection_and_survives_a_restart(
    gateway: Any, store: Path
) -> None:
    async with client(NOWHERE, store=store) as im:
        sent = [await im.send("team", str(i)) for i in range(3)]
        assert {s.state for s in sent} == {SendState.PENDING}
        address = im.address
        with pytest.raises(Unknown, match="stays in the outbox"):
            await sent[0].acked(timeout=0.01)
    async with client(gateway.url, store=store) as im:
        assert im.address == address
        restored = im.outbox("team")
        await im.send("team", "3")
        acks = [await s.acked(timeout=60) for s in restored]
        assert [(a.n, a.seq, a.latency_ms) for a in acks] == [
            (1, 1, None),
            (2, 2, None),
            (3, 3, None),
        ]
        assert await im.follow("team", after=3).next(10)
    assert gateway.texts("team") == ["0", "1", "2", "3"]


async def test_many_sends_arrive_once_and_in_order_while_the_connection_is_cut(
    gateway: Any, store: Path
) -> None:
    gateway.cut_before_accepting = 1
    gateway.cut_after_accepting = 2
    async with client(gateway.url, store=store) as im:
        sent = []
        for i in range(400):
            sent.append(await im.send(f"s{i % 3}", str(i)))
            if i % 100 == 50:
                gateway.cut()
        for s in sent:
            await s.acked(timeout=60)
        assert gateway.connects >= 4
        assert im.outbox() == []
    for k in range(3):
        assert gateway.texts(f"s{k}") == [str(i) for i in range(400) if i % 3 == k]


async def test_a_lost_ack_is_asked_for_again_with_the_same_key(gateway: Any) -> None:
    gateway.swallow_acks = True
    async with client(gateway.url) as im:
        sent = await im.send("team", "once")
        await gateway.until(lambda: gateway.texts("team"))
        assert sent.state is SendState.IN_FLIGHT
        assert "has not answered yet" in im.where(sent).text
        gateway.swallow_acks = False
        await sent.acked(timeout=60)  # the ladder's first step is a second
    assert gateway.texts("team") == ["once"]
    assert gateway.seen["team", im.address, 1] == 2


async def test_a_refused_message_ends_with_its_reason_and_holds_nobody_up(gateway: Any) -> None:
    gateway.nack = lambda entry: (Forbidden, 0) if entry[3] == b"bad" else None
    async with client(gateway.url) as im:
        bad, good = await im.send("team", "bad"), await im.send("team", "good")
        with pytest.raises(Forbidden, match="scripted") as refused:
            await bad.acked(timeout=60)
        assert refused.value.definite
        assert (await good.acked(timeout=60)).n == 2
        assert bad.state is SendState.REFUSED
        assert im.where(bad).text.startswith("refused: scripted")
        events = im.follow("team")
        assert (await events.next(10)).seq == 2, "the VOID is not shown"


async def test_a_busy_server_is_obeyed(gateway: Any) -> None:
    tries: list[int] = []

    def moving(entry: list[Any]) -> Any:
        tries.append(entry[1])
        return (SlotMoving, 30) if len(tries) <= 3 else None

    gateway.nack = moving
    async with client(gateway.url) as im:
        sent = [await im.send("team", str(i)) for i in range(5)]
        for s in sent:
            await s.acked(timeout=60)
    assert gateway.texts("team") == ["0", "1", "2", "3", "4"]
    assert max(gateway.seen.values()) <= 4, "one resend of the run per refusal"


async def test_an_old_copy_of_a_store_never_reuses_a_key(gateway: Any, store: Path) -> None:
    async with client(gateway.url, store=store) as im:
        await (await im.send("team", "1")).acked(timeout=60)
    copy = store.read_bytes()  # noqa: ASYNC240
    async with client(gateway.url, store=store) as im:
        for text in ("2", "3"):
            await (await im.send("team", text)).acked(timeout=60)
    store.write_bytes(copy)  # noqa: ASYNC240
    async with client(gateway.url, store=store) as im:
        sent = await im.send("team", "4")
        assert sent.n == 2
        ack = await sent.acked(timeout=60)
        assert (sent.n, ack.n, ack.seq) == (4, 4, 4)
    assert gateway.texts("team") == ["1", "2", "3", "4"]


async def test_wrong_sends_raise_at_once(gateway: Any) -> None:
    async with client(gateway.url) as im:
        for session, body, kind in [
            ("", "x", BadRequest),
            ("a\nb", "x", BadRequest),
            ("s", "x" * 65_537, TooLarge),
            ("s", "\ud800", BadRequest),
            ("s", 5, BadRequest),
        ]:
            with pytest.raises(kind):
                await im.send(session, body)  # type: ignore[arg-type]
        assert (await (await im.send("s", "x")).acked(10)).n == 1
    with pytest.raises(ShuttingDown):
        await im.send("s", "x")


async def test_large_bodies_are_cut_into_frames(gateway: Any) -> None:
    async with client(gateway.url) as im:
        sent = [await im.send("team", b"x" * 65_536) for _ in range(60)]
        for s in sent:
            await s.acked(timeout=60)


async def test_where_is_my_message(gateway: Any, store: Path) -> None:
    async with client(NOWHERE, store=store) as im:
        sent = await im.send("team", "x")
        assert "on this device" in im.where(sent).text
        assert im.where(("team", 9)).text == "this device never sent such a message"
    async with client(gateway.url, store=store) as im:
        for left in im.outbox():
            await left.acked(10)
        where = im.where(("team", 1))
        assert where.state is SendState.ACKED
        assert where.text == "delivered: seq 1, on 3 disks"
        assert any("acked" in line for line in where.story)
    async with client(gateway.url, store=store) as im:
        assert "it was answered" in im.where(("team", 1)).text


async def test_waiting_is_interrupted_when_the_client_closes() -> None:
    async with client(NOWHERE) as im:
        sent = await im.send("team", "x")
        waiting = asyncio.create_task(sent.acked())
        reading = asyncio.create_task(im.follow("team").next())
        await asyncio.sleep(0)
    with pytest.raises(Unknown, match="closed"):
        await waiting
    with pytest.raises(StopAsyncIteration):
        await reading


async def test_a_clean_exit_waits_for_missing_acks(gateway: Any) -> None:
    async with client(gateway.url, config=ClientConfig()) as im:
        await im.send("team", "first and only")
    assert gateway.texts("team") == ["first and only"]


async def test_a_row_too_large_for_another_servers_frames_is_refused(
    gateway: Any, store: Path
) -> None:
    async with client(NOWHERE, store=store) as im:
        await im.send("team", "x" * 60_000)
        await im.send("team", "short")
    gateway.limits = Limits(frame_bytes=20_000, body_bytes=10_000)
    async with client(gateway.url, store=store) as im:
        large, short = im.outbox()
        with pytest.raises(TooLarge):
            await large.acked(timeout=60)
        await short.acked(timeout=60)
        with pytest.raises(TooLarge):
            await im.send("team", "x" * 10_001)


async def test_a_full_disk_refuses_sends_and_keeps_what_it_has(
    gateway: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*args: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    gateway.swallow_acks = True
    async with client(gateway.url, store=store) as im:
        kept = await im.send("team", "kept")
        with monkeypatch.context() as patch:
            patch.setattr(client_statements, "transaction", full)
            for _ in range(2):
                with pytest.raises(DiskFailed, match="full"):
                    await im.send("team", "not kept")
        assert im.outbox() == [kept]
        gateway.swallow_acks = False
        gateway.cut()
        await kept.acked(timeout=60)
    async with client(gateway.url, store=store) as im:
        await (await im.send("team", "again")).acked(timeout=60)
    assert gateway.texts("team") == ["kept", "again"]


# --- reading --------------------------------------------------------------------------------------


async def test_history_and_live_are_one_stream_across_reconnects(gateway: Any) -> None:
    gateway.post("team", *map(str, range(1, 1_001)))
    async with client(gateway.url) as im:
        got = []
        async for event in im.follow("team", after=0):
            got.append(event.seq)
            if event.seq % 400 == 0:
                gateway.cut()
            if event.seq in (1_000, 1_100):
                gateway.post("team", *["more"] * 100)
            if event.seq == 1_200:
                break
    assert got == list(range(1, 1_201))


@pytest.mark.parametrize("seed", range(5))
async def test_pushes_that_are_lost_doubled_and_shuffled(gateway: Any, seed: int) -> None:
    rng = Random(seed)

    def mangle(events: list[Any]) -> list[Any]:
        kept = [e for e in events for _ in range(rng.choice([0, 1, 1, 1, 2]))]
        rng.shuffle(kept)
        return kept

    gateway.mangle = mangle
    async with client(gateway.url) as im:
        events = im.follow("team")
        await im.connected(10)
        for i in range(50):
            gateway.post("team", *[str(i)] * rng.randrange(1, 8))
            await asyncio.sleep(0)
        gateway.mangle = lambda events: events
        gateway.post("team", "last")
        total = len(gateway.timelines["team"])
        assert [(await events.next(10)).seq for _ in range(total)] == list(range(1, total + 1))


async def test_a_restarted_program_goes_on_where_it_stopped(gateway: Any, store: Path) -> None:
    gateway.post("team", *"abcdefgh")
    async with client(gateway.url, store=store) as im:
        async for event in im.follow("team"):
            if event.text == "c":
                break
    async with client(gateway.url, store=store) as im:
        follower = im.follow("team")
        assert [(await follower.next(10)).text for _ in range(2)] == ["d", "e"]
        follower.close()
        assert (await im.follow("team").next(10)).text == "f"
        assert (await im.follow("team", after=0).next(10)).text == "a"
        assert (await im.follow("team", after=6).next(10)).text == "g"
    async with client(NOWHERE, store=store) as im:
        assert (await im.follow("team").next(10)).text == "g", "from the store, offline"


async def test_only_looking_does_not_move_the_position(gateway: Any, store: Path) -> None:
    gateway.post("team", *"abc")
    async with client(gateway.url, store=store) as im:
        assert (await im.follow("team", after=2).next(10)).text == "c"
        assert (await im.follow("team", after=0).next(10)).text == "a"
    async with client(gateway.url, store=store) as im:
        assert (await im.follow("team").next(10)).text == "a"


async def test_live_shows_only_what_is_new(gateway: Any) -> None:
    gateway.post("team", "old")
    async with client(gateway.url) as im:
        live = im.follow("team", after=LIVE)
        await gateway.until(lambda: any("team" in p.followed for p in gateway.peers))
        gateway.post("team", "new")
        assert (await live.next(10)).text == "new"


async def test_several_followers_see_the_same(gateway: Any) -> None:
    async with client(gateway.url) as im:
        followers = [im.follow("team", after=0) for _ in range(3)]
        other = im.follow("other")
        gateway.post("team", "a", "b")
        gateway.post("other", "c")
        for follower in followers:
            assert [(await follower.next(10)).text for _ in range(2)] == ["a", "b"]
        assert (await other.next(10)).text == "c"


async def test_a_dropped_follower_ends_its_stream(gateway: Any) -> None:
    gateway.post("team", "a")
    async with client(gateway.url) as im:
        async for _ in im.follow("team"):
            break
        gc.collect()
        await gateway.until(lambda: gateway.peers and not gateway.peers[0].followed)
        assert im.status().followed == 0


async def test_a_slow_reader_does_not_grow_the_memory(gateway: Any) -> None:
    async with client(gateway.url) as im:
        events = im.follow("team")
        await gateway.until(lambda: any("team" in p.followed for p in gateway.peers))
        for _ in range(50):
            gateway.post("team", *["x"] * 100)
            await asyncio.sleep(0)
        await (await im.send("end", "x")).acked(10)
        assert len(events._feed.events) <= 1_024
        assert [(await events.next(10)).seq for _ in range(5_000)] == list(range(1, 5_001))


async def test_a_timeout_of_next_loses_nothing(gateway: Any) -> None:
    async with client(gateway.url) as im:
        events = im.follow("team")
        with pytest.raises(TimeoutError):
            await events.next(timeout=0.01)
        gateway.post("team", "a")
        assert (await events.next(10)).text == "a"


async def test_history_pages_back_to_the_beginning(gateway: Any) -> None:
    gateway.post("team", *map(str, range(1, 26)))
    async with client(gateway.url) as im:
        await im.connected(10)
        page = await im.history("team", limit=10)
        assert [e.seq for e in page.events] == list(range(16, 26))
        page = await im.history("team", before=page.before, limit=10)
        assert [e.seq for e in page.events] == list(range(6, 16))
        page = await im.history("team", before=page.before, limit=10)
        assert [e.seq for e in page.events] == [1, 2, 3, 4, 5]
        assert page.before is None
        assert (await im.history("nobody")).events == []


async def test_history_and_sessions_work_offline_from_the_store(gateway: Any, store: Path) -> None:
    gateway.post("team", *map(str, range(1, 31)))
    gateway.post("other", "x")
    async with client(gateway.url, store=store) as im:
        await im.connected(10)
        assert (await im.history("team", local=True)).events == []
        await im.history("team", limit=20)
        await im.history("other")
        asked = len(gateway.pulls)
        page = await im.history("team", limit=10, local=True)
        assert (page.offline, len(page.events), len(gateway.pulls)) == (True, 10, asked)
    async with client(NOWHERE, store=store) as im:
        page = await im.history("team", limit=10)
        assert (page.offline, page.complete, page.before) == (True, True, 21)
        assert [e.seq for e in page.events] == list(range(21, 31))
        page = await im.history("team", before=page.before, limit=20)
        assert [e.seq for e in page.events] == list(range(11, 21))
        assert not page.complete, "the store has no more, the server may"
        assert page.before == 11
        assert (await im.history("unknown")).events == []
        await im.send("new", "x")
        infos = {info.session: info for info in await im.sessions()}
        assert set(infos) == {"team", "other", "new"}
        assert infos["team"].last is not None
        assert infos["team"].last.seq == 30
        assert infos["new"].pending == 1


async def test_a_silent_server_leaves_history_to_the_store(gateway: Any) -> None:
    async with client(gateway.url) as im:
        await im.connected(10)
        gateway.silent = True
        assert (await im.history("team")).offline


async def test_a_follower_is_read_by_one_task(gateway: Any) -> None:
    async with client(gateway.url) as im:
        events = im.follow("team")
        reading = asyncio.create_task(events.next())
        await asyncio.sleep(0)
        with pytest.raises(BadRequest, match="one task"):
            await events.next()
        gateway.post("team", "a")
        assert (await reading).text == "a"


# --- the connection -------------------------------------------------------------------------------


async def test_entering_needs_a_server_only_on_demand(gateway: Any) -> None:
    async with client(gateway.url, connect_timeout=60) as im:
        assert im.status().online
    with pytest.raises(NotReachable, match="cannot connect"):
        async with client(NOWHERE, connect_timeout=0.2):
            pass


async def test_the_next_address_is_tried(gateway: Any) -> None:
    async with client(f"{NOWHERE},127.0.0.1:{gateway.port}", connect_timeout=60) as im:
        assert im.status().server == f"127.0.0.1:{gateway.port}"


async def test_a_server_that_comes_later_is_found(gateway: Any) -> None:
    await gateway.stop()
    async with client(gateway.url) as im:
        sent = await im.send("team", "x")
        await gateway.start()
        await sent.acked(timeout=60)


async def test_a_refused_token_is_told_and_tried_rarely(gateway: Any) -> None:
    gateway.token = "right"
    slow = ClientConfig(drain_ms=0, refused_retry_ms=60_000)
    async with client(gateway.url, token="wrong", config=slow) as im:
        sent = await im.send("team", "x")
        for _ in range(2):
            with pytest.raises(Unauthenticated, match="not valid"):
                await sent.acked(timeout=60)
        with pytest.raises(Unauthenticated):
            await im.connected(timeout=60)
        assert sent.state is SendState.PENDING
        assert isinstance(im.status().last_error, Unauthenticated)
        assert gateway.connects == 1


async def test_a_renewed_token_is_used(gateway: Any) -> None:
    gateway.token = "2"
    tokens = iter("12")

    async def token() -> str:
        return next(tokens)

    async with client(gateway.url, token=token) as im:
        sent = await im.send("team", "x")
        with pytest.raises(Unauthenticated):
            await sent.acked(timeout=60)
        await gateway.until(lambda: gateway.texts("team"))
        await sent.acked(timeout=60)


async def test_a_dead_connection_is_noticed_while_an_answer_is_missing(gateway: Any) -> None:
    async with client(gateway.url) as im:
        await im.connected(10)
        gateway.silent = True
        sent = await im.send("team", "x")
        await gateway.until(lambda: not gateway.peers)
        gateway.silent = False
        await sent.acked(timeout=60)
        assert im.status().connects == 2


async def test_an_idle_client_is_heard_of(gateway: Any) -> None:
    gateway.limits = type(gateway.limits)(heartbeat_ms=100)
    async with client(gateway.url) as im:
        await im.connected(10)
        await gateway.until(lambda: gateway.pings >= 3)
        assert gateway.connects == 1


async def test_goodbyes_of_the_server_are_obeyed(gateway: Any) -> None:
    from im_actors.wire.codec import encode_frame
    from im_actors.wire.messages import server_bye

    async with client(gateway.url) as im:
        await im.connected(10)
        gateway.peers[0].close(encode_frame(server_bye("restart", 30)))
        await gateway.until(lambda: gateway.connects == 2)
        await im.connected(10)
        sent = await im.send("team", "x")
        gateway.peers[-1].close(encode_frame(server_bye("go away", -1)))
        await gateway.until(lambda: not gateway.peers)
        assert im.status().state == "stopped"
        if sent.state is not SendState.ACKED:
            with pytest.raises(ShuttingDown, match="go away"):
                await sent.acked(timeout=60)


async def test_a_server_that_breaks_the_protocol_is_left(gateway: Any) -> None:
    async with client(gateway.url) as im:
        await im.connected(10)
        gateway.peers[0].tell([66, [["no", "ack"]]])
        await gateway.until(lambda: gateway.connects == 2)
        assert "ACK" in str(im.status().last_error)


async def test_frames_of_a_newer_server_are_passed_over(gateway: Any) -> None:
    async with client(gateway.url) as im:
        await im.connected(10)
        gateway.peers[0].tell([99, "news"])
        await (await im.send("team", "x")).acked(10)
        assert gateway.connects == 1


@pytest.mark.parametrize("seed", range(4))
async def test_everything_at_once(gateway: Any, store: Path, seed: int) -> None:
    """Cuts, swallowed ACKs, refusals and mangled pushes; two writers, each reads both."""
    rng = Random(seed)

    def mangle(events: list[Any]) -> list[Any]:
        kept = [e for e in events for _ in range(rng.choice([0, 1, 1, 2]))]
        rng.shuffle(kept)
        return kept

    gateway.mangle = mangle
    gateway.nack = lambda entry: (SlotMoving, 5) if rng.random() < 0.05 else None
    async with client(gateway.url, store=store) as a, client(gateway.url, user="bob") as b:
        readers = [a.follow("team"), b.follow("team", after=0)]
        sent = []
        for i in range(150):
            sent += [await a.send("team", f"a{i}"), await b.send("team", f"b{i}")]
            if rng.random() < 0.1:
                gateway.swallow_acks = not gateway.swallow_acks
                gateway.cut()
            if rng.random() < 0.1:
                gateway.cut_after_accepting = 1
            if rng.random() < 0.1:
                await asyncio.sleep(0)
        gateway.swallow_acks = False
        gateway.mangle, gateway.nack = lambda events: events, lambda entry: None
        gateway.cut()
        acks = [await s.acked(timeout=60) for s in sent]
        assert sorted(ack.seq for ack in acks) == list(range(1, 301))
        for reader in readers:
            texts = [(await reader.next(20)).text for _ in range(300)]
            for user in "ab":
                assert [t for t in texts if t[0] == user] == [f"{user}{i}" for i in range(150)]


async def test_tls(gateway: Any, certificate: tuple[SSLContext, SSLContext], store: Path) -> None:
    server, trusting = certificate
    await gateway.stop()
    gateway.port = 0
    await gateway.start(server)
    url = f"ims://localhost:{gateway.port}"
    async with client(url, ssl=trusting, connect_timeout=60) as im:
        await (await im.send("team", "secret")).acked(timeout=60)
    with pytest.raises(SetupError, match="signed it is not believed here"):
        async with client(url, connect_timeout=60):
            pass


async def test_two_clusters_and_one_store_are_told_apart(
    gateway: Any, another: Any, store: Path
) -> None:
    async with client(gateway.url, store=store) as im:
        await (await im.send("team", "x")).acked(10)
    async with client(another.url, store=store) as im:
        sent = await im.send("team", "y")
        with pytest.raises(Unknown, match="another cluster"):
            await sent.acked(timeout=0.5)
        assert "another cluster" in str(im.status().last_error)
        assert another.texts("team") == []


@pytest.mark.parametrize(
    "url", ["127.0.0.1:7070", "http://x", "im://", "im://a:b", "im://a:0", "im://u@h", "im://a,,b"]
)
def test_wrong_urls_are_explained(url: str) -> None:
    with pytest.raises(SetupError):
        client(url)


def test_wrong_names_are_refused() -> None:
    for user, device in [("", "x"), ("a/b", "x"), ("a", "x\n"), ("a", "/")]:
        with pytest.raises(BadRequest):
            Client(NOWHERE, user, device)
    with pytest.raises(SetupError):
        client(NOWHERE, config=ClientConfig(reconnect_base_ms=9, reconnect_cap_ms=8))


async def test_hundred_clients_in_one_process(gateway: Any) -> None:
    clients = [client(gateway.url, user=f"u{i}") for i in range(100)]
    for im in clients:
        await im.__aenter__()
    sent = [await im.send(f"s{i % 7}", str(i)) for im in clients for i in range(20)]
    for s in sent:
        await s.acked(timeout=30)
    for im in clients:
        await im.__aexit__(None, None, None)
    assert sum(map(len, gateway.timelines.values())) == 2_000
    assert KeyConflict not in {type(s.error) for s in sent}
