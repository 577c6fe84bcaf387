"""How a batch stands, who got it, and contents that events have only the head of."""

from __future__ import annotations

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
from im_actors.core.facts import pack_request
from im_actors.core.model import Event, EventKind, decode_event, encode_event
from im_actors.core.rule_settings import RuleSettings
from im_actors.errors import BadRequest, Forbidden, NotFound, NotReachable
from im_actors.gateway import batch_reads
from im_actors.gateway.batch_reads import BatchQueries, Contents
from im_actors.mailbox.tier_facts import FactPage
from tests.core.deciding import Deciding

LONG = b"Summer sale! " * 400


class Store:
    def __init__(self) -> None:
        self.batches: dict[str, Deciding] = {}
        self.reads = 0
        self.fails = False

    async def read(self, session: str, keys: Sequence[str]) -> FactPage:
        self.reads += 1
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


async def test_the_whole_content_is_read_once(store: Store) -> None:
    store.order("sale", LONG)
    contents = Contents(store.read)
    for _ in range(3):
        (data,) = await contents.whole([message(event_body(LONG))])
        assert decode_event(data) == decode_event(message(LONG))
    assert store.reads == 1


async def test_what_is_whole_already_is_left_alone(store: Store) -> None:
    contents = Contents(store.read)
    by_hand = encode_event(
        Event("notice:system/ann", 1, 5, EventKind.MESSAGE, "shop/pc", 1, event_body(LONG))
    )
    for data in (message(b"hello"), by_hand, message(event_body(LONG), session="team")):
        assert await contents.whole([data]) == [data]
    assert store.reads == 0
    store.order("sale", "wait…".encode())
    assert await contents.whole([message("wait…".encode())]) == [message("wait…".encode())]
    assert Contents.concerned("notice:system/ann")
    assert not Contents.concerned("team")


async def test_the_head_is_shown_while_nobody_has_the_content(store: Store) -> None:
    contents = Contents(store.read)
    head = message(event_body(LONG))
    store.fails = True
    assert await contents.whole([head]) == [head]
    store.fails = False
    assert await contents.whole([head]) == [head]
    store.order("sale", LONG)
    assert await contents.whole([head]) == [message(LONG)]


async def test_contents_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_reads, "CONTENTS_MAX", 2)
    contents = Contents(store.read)
    for name in ("a", "b", "c", "a"):
        store.order(name, LONG)
        await contents.whole([message(event_body(LONG), name)])
    assert store.reads == 4
    assert len(contents._known) == 2
