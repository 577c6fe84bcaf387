"""The client for plain programs, against a gateway in another thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from im_actors.client import ClientConfig, SendState, ShuttingDown, Unknown
from im_actors.client.sync import LIVE, Client
from im_actors.errors import Forbidden, NotReachable

NOWHERE = "im://127.0.0.1:1"


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The gateway, served by an event loop of its own; ``do`` runs a call there."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    gateway = request.getfixturevalue("gateway_class")()

    def wait(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(20)

    async def call(what: Any, *args: Any) -> Any:
        return what(*args)

    gateway.do = lambda what, *args: wait(call(what, *args))
    gateway.wait = wait
    wait(gateway.start())
    yield gateway
    wait(gateway.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_the_same_calls_without_await(served: Any, tmp_path: Path) -> None:
    with Client(served.url, user="alice", device="phone", store=tmp_path / "a.db") as im:
        sent = im.send("team", "hello")
        ack = sent.acked(timeout=60)
        assert (ack.seq, sent.ack, sent.state, sent.error) == (1, ack, SendState.ACKED, None)
        assert sent.acked() is ack
        assert (sent.session, sent.n) == ("team", 1)
        im.connected(timeout=60)
        assert im.status().online
        assert im.address.startswith("alice/phone-")
        served.do(served.post, "team", "world")
        texts = []
        for event in im.follow("team"):
            texts.append(event.text)
            if len(texts) == 2:
                break
        assert texts == ["hello", "world"]
        assert [e.text for e in im.history("team").events] == texts
        assert [s.session for s in im.sessions()] == ["team"]
        assert im.outbox() == []
        assert im.where(sent).text.startswith("delivered")
        assert im.where(("team", 1)).ack == ack
        assert im.story("team")


def test_a_plain_program_goes_on_where_it_stopped(served: Any, tmp_path: Path) -> None:
    served.do(served.post, "team", *"abcdef")
    with Client(served.url, "alice", "phone", tmp_path / "a.db") as im:
        follower = im.follow("team")
        assert [follower.next(10).text for _ in range(2)] == ["a", "b"]
    with Client(served.url, "alice", "phone", tmp_path / "a.db") as im:
        with im.follow("team") as follower:
            assert follower.next(10).text == "c"
        assert im.follow("team").next(10).text == "d"


def test_timeouts_and_errors_come_through(served: Any) -> None:
    quick = ClientConfig(drain_ms=0)
    with Client(NOWHERE, "alice", config=quick) as im:
        sent = im.send("team", "x")
        with pytest.raises(Unknown):
            sent.acked(timeout=0.01)
        with pytest.raises(NotReachable):
            im.connected(timeout=0.01)
        with pytest.raises(TimeoutError):
            im.follow("team").next(timeout=0.01)
        assert sent.state is SendState.PENDING
        assert [s.n for s in im.outbox()] == [1]
    served.nack = lambda entry: (Forbidden, 0) if entry[3] else None
    with Client(served.url, "alice", config=quick) as im, pytest.raises(Forbidden):
        im.send("team", "x").acked(timeout=60)


def test_a_closed_client_says_so(served: Any) -> None:
    im = Client(served.url, "alice")
    with pytest.raises(ShuttingDown, match="with block"):
        im.send("team", "x")
    with im:
        follower = im.follow("team", after=LIVE)
    with pytest.raises(ShuttingDown):
        im.send("team", "x")
    with pytest.raises(ShuttingDown):
        follower.next()
    assert list(follower) == []
    follower.close()


def test_entering_that_fails_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    with pytest.raises(NotReachable), Client(NOWHERE, "alice", connect_timeout=0.05):
        pass
    assert threading.active_count() <= before + 1, "the one that waits for the end of the program"


def test_many_threads_share_a_client(served: Any, tmp_path: Path) -> None:
    with (
        Client(served.url, "alice", "phone", tmp_path / "a.db") as im,
        ThreadPoolExecutor(8) as pool,
    ):
        acks = list(pool.map(lambda i: im.send("team", str(i)).acked(20), range(200)))
    assert sorted(a.seq for a in acks) == list(range(1, 201))
    assert len(set(served.texts("team"))) == 200
