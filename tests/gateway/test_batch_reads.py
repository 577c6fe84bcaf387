"""How a batch stands, who got it, and contents that events have only the head of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from im_actors.core.batch import (
    Outcome,
    batch_device,
    create_request,
    event_body,
    progress_note,
    recipients_request,
)
from im_actors.core.dropping import dropped_event
from im_actors.core.facts import pack_request
from im_actors.core.model import Event, EventKind, decode_event, encode_event
from im_actors.core.rule_settings import RuleSettings
from im_actors.errors import BadRequest, Forbidden, NotFound, NotReachable
from im_actors.gateway import batch_reads
from im_actors.gateway.batch_reads import BatchQueries, Contents
from im_actors.mailbox.tier_facts import FactPage
from im_actors.wire import messages as m
from tests.core.deciding import Deciding
from tests.gateway.fakes import Cluster, cluster

LONG = b"Summer sale! " * 400


class Store:
    def __init__(self) -> None:
        self.batches: dict[str, Deciding] = {}
        self.reads = 0
        self.fails = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self, session: str, keys: Sequence[str]) -> FactPage:
        self.reads += 1
        await self.gate.wait()
        if self.fails:
            raise NotReachable("nobody is there")
        batch = self.batches.get(session)
        if batch is None:
            return FactPage(0, [], False)
        found = [batch.facts[key] for key in keys if key in batch.facts]
        return FactPage(len(batch.events), found, False)

    def order(self, name: str, content: bytes) -> Deciding:
        session = f"batch:{name}"
        batch = Deciding(session, RuleSettings(services=frozenset({"shop"})))
        batch.send("shop/pc", EventKind.BATCH, create_request(content, "high"))
        batch.send("shop/pc", EventKind.BATCH, recipients_request(0, ["ann", "bob"]))
        batch.send("shop/pc", EventKind.BATCH, pack_request("start"))
        self.batches[session] = batch
        return batch


@pytest.fixture
def store() -> Store:
    return Store()


async def test_how_it_stands_and_who_got_it(store: Store) -> None:
    queries = BatchQueries(store.read)
    assert await queries.batch("shop", "batch:sale") == [0, None]
    batch = store.order("sale", b"hello")
    batch.note(progress_note(False, 0, [Outcome(1, ((1, 111),))]))
    version, fields = await queries.batch("shop", "batch:sale")
    assert version == 4
    assert fields[:4] == [3, "shop", "high", "system"]
    assert fields[9:14] == [1, 1, 1, 0, True]
    assert await queries.outcomes("shop", "batch:sale", 0) == [4, ["ann", "bob"], [1, 111], []]


async def test_only_for_who_ordered_it(store: Store) -> None:
    store.order("sale", b"hello")
    queries = BatchQueries(store.read)
    with pytest.raises(Forbidden):
        await queries.batch("eve", "batch:sale")
    with pytest.raises(Forbidden):
        await queries.outcomes("eve", "batch:sale", 0)
    with pytest.raises(NotFound):
        await queries.outcomes("shop", "batch:sale", 1)
    with pytest.raises(NotFound):
        await queries.outcomes("shop", "batch:other", 0)
    with pytest.raises(BadRequest):
        await queries.batch("shop", "team")


def message(body: bytes, name: str = "sale", session: str = "notice:system/ann") -> bytes:
    device = batch_device("shop", f"batch:{name}")
    return encode_event(Event(session, 1, 5, EventKind.MESSAGE, device, 1, body))


async def shown(contents: Contents, *events: bytes) -> list[bytes]:
    return await contents.whole(events, 1 << 20)


async def test_the_whole_content_is_read_once(store: Store) -> None:
    store.order("sale", LONG)
    contents, head = Contents(store.read), message(event_body(LONG))
    assert contents.ready([head]) is None
    found = await asyncio.gather(*(shown(contents, head) for _ in range(5)))
    assert found == [[message(LONG)]] * 5
    assert contents.ready([head, message(b"hello")]) == [message(LONG), message(b"hello")]
    assert store.reads == 1


async def test_who_gives_up_does_not_end_it_for_others(store: Store) -> None:
    store.order("sale", LONG)
    store.gate = asyncio.Event()
    contents = Contents(store.read)
    first, second = (asyncio.create_task(shown(contents, message(event_body(LONG)))) for _ in "ab")
    await asyncio.sleep(0)
    first.cancel()
    store.gate.set()
    assert await second == [message(LONG)]
    assert store.reads == 1


async def test_what_is_whole_already_is_left_alone(store: Store) -> None:
    contents = Contents(store.read)
    by_hand = encode_event(
        Event("notice:system/ann", 1, 5, EventKind.MESSAGE, "shop/pc", 1, event_body(LONG))
    )
    dropped = encode_event(dropped_event(decode_event(message(event_body(LONG)))))
    for data in (message(b"hello"), by_hand, message(event_body(LONG), session="team"), dropped):
        assert contents.ready([data]) == [data]
    assert store.reads == 0
    store.order("sale", "wait…".encode())
    assert await shown(contents, message("wait…".encode())) == [message("wait…".encode())]
    assert Contents.concerned("notice:system/ann")
    assert not Contents.concerned("team")


async def test_nobody_gets_the_head_for_the_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He would keep it for ever."""
    monkeypatch.setattr(batch_reads, "WAITS_MS", (1, 1))
    contents, head = Contents(store.read), message(event_body(LONG))
    store.fails = True
    with pytest.raises(NotReachable, match="batch:sale cannot be read now"):
        await shown(contents, head)
    assert await shown(contents, message(b"hello"), head) == [message(b"hello")]
    assert store.reads == 6
    store.fails = False
    with pytest.raises(NotReachable):
        await shown(contents, head)  # The replicas have not heard of it.
    store.order("sale", LONG)
    assert await shown(contents, head) == [message(LONG)]


async def test_a_page_is_no_longer_than_asked_for(store: Store) -> None:
    store.order("sale", LONG)
    contents, head = Contents(store.read), message(event_body(LONG))
    assert len(await contents.whole([head] * 9, 3 * len(message(LONG)))) == 3
    assert len(await contents.whole([head] * 9, 1)) == 1


async def test_contents_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_reads, "CONTENTS_MAX", 2)
    monkeypatch.setattr(batch_reads, "FLIGHTS_MAX", 1)
    contents = Contents(store.read)
    for name in ("a", "b", "c", "a"):
        store.order(name, LONG)
        await shown(contents, message(event_body(LONG), name))
    assert (store.reads, len(contents)) == (4, 2)
    store.gate = asyncio.Event()
    first = asyncio.create_task(shown(contents, message(event_body(LONG), "b")))
    await asyncio.sleep(0)
    with pytest.raises(NotReachable, match="1 contents are being read"):
        await shown(contents, message(event_body(LONG), "sale"))
    store.gate.set()
    assert len(await first) == 1


# -- in a gateway ----------------------------------------------------------------------------------


def give(c: Cluster, name: str, *users: str) -> None:
    """Order a batch with a long content, and send it."""
    store = Store()
    for event in store.order(name, LONG).events:
        c.log.commit(event.session, event.device, event.n, event.kind, event.body)
    for user in users:
        device = batch_device("shop", f"batch:{name}")
        session = f"notice:system/{user}"
        data = c.log.commit(session, device, 1, EventKind.MESSAGE, event_body(LONG))
        for shard in c.shards:
            shard.push(data)


def bodies(encoded: Sequence[bytes]) -> list[bytes]:
    return [decode_event(data).body for data in encoded]


async def test_a_page_has_whole_contents() -> None:
    async with cluster() as c:
        give(c, "sale", "alice")
        give(c, "other", "alice")
        c.log.commit("notice:system/alice", "shop/pc", 1, EventKind.MESSAGE, b"short")
        client = await c.client()
        await client.send(m.pull(1, "notice:system/alice", 0, 0, 10))
        await client.until(lambda: client.of(m.EVENTS))
        await client.send(m.pull(2, "notice:system/alice", 0, 4, 10))
        await client.until(lambda: client.of(m.EVENTS)[1:])
        for answer in client.of(m.EVENTS):
            assert bodies(answer[5]) == [LONG, LONG, b"short"]


async def test_what_is_followed_comes_whole() -> None:
    """The first time by a pull, which the head calls for; when the content is known, at once."""
    async with cluster() as c:
        client, other = await c.client(), await c.client("bob")
        await client.send(m.follow(["notice:system/alice"]))
        await other.send(m.follow(["notice:system/bob"]))
        await client.until(lambda: client.of(m.HEADS))
        await other.until(lambda: other.of(m.HEADS))
        give(c, "sale", "alice")
        await client.until(lambda: client.of(m.HEADS)[1:])
        assert client.of(m.HEADS)[1][1] == [["notice:system/alice", 1]]
        assert client.of(m.PUSH) == []
        give(c, "sale", "bob")
        await other.until(lambda: other.of(m.PUSH))
        assert bodies(other.of(m.PUSH)[0][1]) == [LONG]


async def test_a_content_that_cannot_be_read_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_reads, "WAITS_MS", ())
    async with cluster() as c:
        give(c, "sale", "alice")
        lost = c.log.sessions.pop("batch:sale")
        client = await c.client()
        await client.send(m.pull(1, "notice:system/alice", 0, 0, 10))
        await client.until(lambda: client.of(m.EVENTS))
        assert client.of(m.EVENTS)[0][4:6] == [NotReachable.code, []]
        c.log.sessions["batch:sale"] = lost
        await client.send(m.pull(2, "notice:system/alice", 0, 0, 10))
        await client.until(lambda: client.of(m.EVENTS)[1:])
        assert bodies(client.of(m.EVENTS)[1][5]) == [LONG]
