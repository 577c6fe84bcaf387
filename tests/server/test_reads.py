"""What a replica answers over a link: to gateways about facts and counts, to owners about facts and
events."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from im_actors.core.fact_lists import FactQuery, OfKeys, Prefixed, Ranked, Since
from im_actors.core.facts import RANK_MAX, Fact, pack_state
from im_actors.core.messages import (
    Append,
    Drop,
    EventFound,
    FactsLoaded,
    FindEvent,
    FindKey,
    KeyFound,
    LoadFacts,
    Prepare,
    Seal,
)
from im_actors.core.model import (
    Event,
    EventKind,
    Member,
    View,
    encode_event,
    epoch_start,
    make_key,
    make_record,
    pack_record,
    record_events,
    record_index,
    sealed_record,
    slot_of,
    unpack_sends,
)
from im_actors.errors import NotReachable, Overloaded
from im_actors.net.link import Link, PeerInfo
from im_actors.server.replica import ReplicaConfig, ReplicaNode
from im_actors.storage import counting
from im_actors.wire.links import (
    InsideType,
    pack_frame,
    pack_inside,
    read_facts,
    read_inside,
)
from im_actors.wire.questions import (
    CountAsked,
    FactsAsked,
    PageAsked,
    Question,
    RanksAsked,
    pack_question,
)

SLOTS = 8
SESSION = "group:g"
SLOT = slot_of(SESSION, SLOTS)
SECRET = b"s" * 16
EPOCH = 1
WAIT_S = 60


def key_of(lsn: int) -> int:
    return make_key(1_700_000_000_000 + lsn, SLOT, 0)


class Peer:
    """A link to the node, and what came over it."""

    def __init__(self, node: ReplicaNode) -> None:
        self.up, self.down = asyncio.Event(), asyncio.Event()
        self.answers: asyncio.Queue[list[Any]] = asyncio.Queue()
        address = node.address
        self.link = Link(
            PeerInfo("gateway", "g", "x"),
            SECRET,
            address.address,
            address.port,
            on_up=lambda _: self.up.set(),
            on_frames=self._came,
            on_down=lambda _: self.down.set(),
            rng=random.Random(1),
            expected_id="r",
        )

    def _came(self, messages: list[Any]) -> None:
        for message in messages:
            self.answers.put_nowait(message)

    async def ask(self, question: Question) -> list[Any]:
        self.link.send(pack_question(question))
        return await self.answer()

    async def answer(self) -> list[Any]:
        async with asyncio.timeout(WAIT_S):
            return await self.answers.get()

    async def request(self, request: Any) -> Any:
        """An owner's request and the replica's answer."""
        self.link.send(pack_inside(InsideType.REQUESTS, [request]))
        _, rows = await self.answer()
        (answer,) = read_inside(rows)
        return answer

    async def facts(self, query: FactQuery, head: int = 0) -> tuple[int, int, list[Fact], bool]:
        """code, last seq, facts, more."""
        frame, request, code, last_seq, rows, more = await self.ask(
            FactsAsked(7, SESSION, head, query)
        )
        assert (frame, request) == (InsideType.FACTS, 7)
        return code, last_seq, list(read_facts(rows)), more


class Owner:
    """Writes the slot of one session: each event a record, committed by the next append."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.lsn = 0

    async def take(self, start_lsn: int = 1) -> None:
        view = View(SLOT, EPOCH, 0, "o", tuple(Member(f"r{n}", f"d{n}") for n in (2, 3, 4)))
        await self.peer.request(Seal(SLOT, EPOCH, view))
        await self.peer.request(Prepare(SLOT, EPOCH, 0, start_lsn, ()))
        self.lsn = start_lsn
        record = epoch_start(SLOT, self.lsn, EPOCH, key_of(self.lsn))
        await self.peer.request(Append(SLOT, EPOCH, start_lsn - 1, 0, 0, (record,)))

    def append(self, kind: EventKind, body: bytes, commit: bool = True) -> Append:
        seq, self.lsn = self.lsn, self.lsn + 1
        event = Event(SESSION, seq, key_of(self.lsn), int(kind), "alice/phone", seq, body)
        record = make_record(SLOT, self.lsn, EPOCH, [encode_event(event)])
        return Append(SLOT, EPOCH, seq, EPOCH, self.lsn if commit else seq, (record,))

    async def say(self, *facts: tuple[str, int, bytes | None], commit: bool = True) -> None:
        body = pack_state("put", [], facts)
        await self.peer.request(self.append(EventKind.GROUP, body, commit))

    async def send(self, text: bytes = b"hello") -> None:
        await self.peer.request(self.append(EventKind.MESSAGE, text))

    async def commit(self) -> None:
        await self.peer.request(Append(SLOT, EPOCH, self.lsn, EPOCH, self.lsn, ()))


def limits(**config: Any) -> ReplicaConfig:
    """Nothing is applied but by a read, and a read waits for its turn on a busy machine."""
    return ReplicaConfig(**{"apply_every_ms": 3_600_000, "turn_wait_ms": WAIT_S * 1000, **config})


class Rig:
    def __init__(self, path: Path, config: ReplicaConfig) -> None:
        self.failures: list[Exception] = []
        rng, fail = random.Random(1), self.failures.append
        self.node = ReplicaNode("r", "h", path, "c", SLOTS, SECRET, rng, fail, config)

    async def start(self) -> None:
        await self.node.start("127.0.0.1")
        self.peer = Peer(self.node)
        await self.peer.up.wait()
        self.owner = Owner(self.peer)

    async def stop(self) -> None:
        self.peer.link.close()
        await self.node.stop()


@pytest.fixture
def config() -> ReplicaConfig:
    return limits()


@pytest.fixture
async def rig(tmp_path: Path, config: ReplicaConfig) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path / "r", config)
    await rig.start()
    yield rig
    await rig.stop()
    assert not rig.failures


async def test_facts_are_read_as_soon_as_they_are_committed(rig: Rig) -> None:
    peer, owner = rig.peer, rig.owner
    await owner.take()
    await owner.say(("m/bob", 0, b"1"), ("c/x", 5, b"2"))
    await owner.say(("c/y", 9, b"3"), ("m/bob", 0, None))
    await owner.say(("c/x", 7, b"4"), commit=False)
    bob, old, new = Fact("m/bob", 2, 0, None), Fact("c/x", 1, 5, b"2"), Fact("c/y", 2, 9, b"3")
    assert await peer.facts(Ranked(0, "", 10)) == (0, 2, [new, old], False)
    assert await peer.facts(Ranked(0, "", 1)) == (0, 2, [new], True)
    assert await peer.facts(Ranked(9, "c/y", 1)) == (0, 2, [old], False)
    assert await peer.facts(Prefixed("m/", "", 10)) == (0, 2, [bob], False)
    assert await peer.facts(OfKeys(("c/y", "nothing", "c/x"))) == (0, 2, [new, old], False)
    assert await peer.facts(Since(1, 10)) == (0, 2, [new, bob], False)
    await owner.commit()
    assert await peer.facts(Ranked(0, "", 1)) == (0, 3, [new], True)
    assert await peer.facts(OfKeys(("c/x",))) == (0, 3, [Fact("c/x", 3, 7, b"4")], False)


async def test_a_question_waits_for_the_head_that_is_known_elsewhere(rig: Rig) -> None:
    peer, owner = rig.peer, rig.owner
    await owner.take()
    await owner.say(("k", 0, b"1"), commit=False)
    rig.node._reads._limits = limits(head_wait_ms=WAIT_S * 1000)
    for question in (
        FactsAsked(1, SESSION, 1, OfKeys(("k",))),
        CountAsked(2, SESSION, 1, 0, 9, "bob"),
        PageAsked(3, SESSION, 0, 0, 9, 1),
    ):
        peer.link.send(pack_question(question))
    # It goes on answering what needs not wait.
    assert await peer.facts(OfKeys(("k",))) == (0, 0, [], False)
    await owner.peer.request(Append(SLOT, EPOCH, owner.lsn, EPOCH, owner.lsn - 1, ()))
    assert peer.answers.empty()
    peer.link.send(
        pack_inside(InsideType.REQUESTS, [Append(SLOT, EPOCH, owner.lsn, EPOCH, owner.lsn, ())])
    )
    found = {message[0]: message for message in [await peer.answer() for _ in range(4)]}
    assert found[InsideType.FACTS] == [145, 1, 0, 1, [["k", 1, 0, b"1"]], False]
    assert found[InsideType.COUNTED] == [147, 2, 0, 1, 0]
    assert found[InsideType.PAGE][:4] == [143, 3, 0, 1]


async def test_a_head_that_does_not_come_is_told(rig: Rig) -> None:
    await rig.owner.take()
    await rig.owner.say(("k", 0, b"1"))
    assert await rig.peer.facts(OfKeys(("k",)), head=5) == (0, 1, [Fact("k", 1, 0, b"1")], False)
    assert await rig.peer.ask(CountAsked(9, SESSION, 5, 0, 9, "")) == [147, 9, 0, 1, 0]


async def test_a_read_whose_turn_comes_too_late_is_not_done(rig: Rig) -> None:
    await rig.owner.take()
    await rig.owner.send()
    rig.node._reads._limits = limits(turn_wait_ms=1)
    free, reached = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        free.wait(WAIT_S)
        time.sleep(0.005)  # the turn of what waits is over by then

    holding = asyncio.create_task(rig.node._storage.in_history(hold))
    await asyncio.to_thread(reached.wait, WAIT_S)
    question = PageAsked(7, SESSION, 0, 0, 10, 0)
    rig.peer.link.send(pack_question(question))
    async with asyncio.timeout(WAIT_S):
        while not rig.node._reads._under_way:
            await asyncio.sleep(0.001)
    free.set()
    await holding
    assert await rig.peer.answer() == [InsideType.PAGE, 7, NotReachable.code, 0, []]
    rig.node._reads._limits = limits()
    assert (await rig.peer.ask(question))[2] == 0


async def test_counts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "STEP_EVENTS", 2)
    peer, owner = rig.peer, rig.owner
    await owner.take()
    for _ in range(7):
        await owner.send()
    await owner.say(("k", 0, b""))
    recall = pack_state("recall", [3], [])
    await peer.request(owner.append(EventKind.RECALL, recall))
    assert await peer.ask(CountAsked(1, SESSION, 9, 0, 9, "bob")) == [147, 1, 0, 9, 6]
    assert await peer.ask(CountAsked(1, SESSION, 9, 2, 4, "bob")) == [147, 1, 0, 9, 1]
    assert await peer.ask(CountAsked(1, SESSION, 9, 0, 9, "alice")) == [147, 1, 0, 9, 0]
    assert await peer.ask(CountAsked(1, SESSION, 9, 9, 9, "bob")) == [147, 1, 0, 9, 0]


async def test_ranks_are_counted(rig: Rig) -> None:
    await rig.owner.take()
    await rig.owner.say(("a", 3, b"1"), ("b", 5, b""), ("c", 0, b""))
    asked = RanksAsked(1, SESSION, 1, ((1, RANK_MAX), (4, 5), (6, 9)))
    assert await rig.peer.ask(asked) == [149, 1, 0, 1, [2, 1, 0]]


async def test_owners_are_told_facts_and_what_events_are(rig: Rig) -> None:
    peer, owner = rig.peer, rig.owner
    await owner.take()
    await owner.say(("a", 3, b"1"), ("b", 2, None))
    await owner.send()
    load = LoadFacts(SLOT, EPOCH, 5, 3, SESSION, ("b", "nothing", "a"))
    find = FindEvent(SLOT, EPOCH, 6, 3, SESSION, 2)
    # The tables have not applied what the owner asks for.
    assert await peer.request(load) == FactsLoaded(SLOT, EPOCH, 5, False, ())
    assert await peer.request(find) == EventFound(SLOT, EPOCH, 6, False, 0, 0, 0, "")
    rig.node._apply()
    async with asyncio.timeout(WAIT_S):
        while rig.node.machine.logs[SLOT].applied_lsn < 3:
            await asyncio.sleep(0.001)
    facts = (Fact("b", 1, 0, None), Fact("a", 1, 3, b"1"))
    assert await peer.request(load) == FactsLoaded(SLOT, EPOCH, 5, True, facts)
    kind = int(EventKind.MESSAGE)
    told = EventFound(SLOT, EPOCH, 6, True, 2, key_of(3), kind, "alice/phone")
    assert await peer.request(find) == told
    for seq in (0, 3, 1 << 63):
        none = EventFound(SLOT, EPOCH, 6, True, 0, 0, 0, "")
        assert await peer.request(find._replace(seq=seq)) == none
    assert (await peer.request(load._replace(session="group:other"))).facts == ()


async def test_owners_are_told_the_checksum_of_what_was_sent(rig: Rig) -> None:
    """The body that was committed is another one, made of it; a resend is not."""
    await rig.owner.take()
    record = rig.owner.append(EventKind.GROUP, pack_state("put", [], [("k", 1, b"")])).records[0]
    (part,) = record_index(record.payload).parts
    ((_, device, n, _),) = unpack_sends(part[3])
    sent = [(SESSION, 1, device, n, 77)]
    payload = pack_record(sent, (key_of(2), key_of(2)), record_events(record.payload), [0])
    again = sealed_record(SLOT, 2, EPOCH, payload)
    await rig.peer.request(Append(SLOT, EPOCH, 1, EPOCH, 2, (again,)))
    rig.node._apply()
    async with asyncio.timeout(WAIT_S):
        while rig.node.machine.logs[SLOT].applied_lsn < 2:
            await asyncio.sleep(0.001)
    find = FindKey(SLOT, EPOCH, 6, 2, SESSION, device, n)
    assert await rig.peer.request(find) == KeyFound(SLOT, EPOCH, 6, True, 1, key_of(2), 77)


async def test_an_event_whose_row_is_lost_is_unknown_and_not_absent(rig: Rig) -> None:
    await rig.owner.take()
    await rig.owner.send()
    await rig.owner.send()
    rig.node._apply()
    async with asyncio.timeout(WAIT_S):
        while rig.node.machine.logs[SLOT].applied_lsn < 3:
            await asyncio.sleep(0.001)
    rig.node._storage.history.index.db.connection.execute("DELETE FROM runs")
    find = FindEvent(SLOT, EPOCH, 6, 3, SESSION, 2)
    assert (await rig.peer.request(find)).ready is False


@pytest.mark.parametrize(
    ("question", "refused"),
    [
        (FactsAsked(7, SESSION, 0, Since(0, 5)), [145, 7, NotReachable.code, 0, [], False]),
        (CountAsked(7, SESSION, 0, 0, 9, "bob"), [147, 7, NotReachable.code, 0, 0]),
        (PageAsked(7, SESSION, 0, 0, 9, 0), [143, 7, NotReachable.code, 0, []]),
    ],
)
async def test_a_copy_with_a_hole_says_that_it_does_not_know(
    rig: Rig, question: Question, refused: list[Any]
) -> None:
    assert await rig.peer.ask(question) == refused, "never written here"
    await rig.owner.take(start_lsn=5)
    assert not rig.node.machine.logs[SLOT].complete
    assert await rig.peer.ask(question) == refused


async def test_a_slot_that_is_deleted_while_it_is_counted_is_not_known(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.owner.take()
    await rig.owner.send()
    node = rig.node
    count, dropped = counting.count_messages, threading.Event()

    def count_and_drop(*values: Any) -> Any:
        view = View(SLOT, EPOCH, 1, "o", tuple(Member(f"r{n}", f"d{n}") for n in (2, 3, 4)))
        drop = Drop(SLOT, EPOCH, view)
        loop = node._loop
        loop.call_soon_threadsafe(rig.peer.link.send, pack_inside(InsideType.REQUESTS, [drop]))
        yield from count(*values)
        dropped.wait(WAIT_S)

    monkeypatch.setattr("im_actors.server.reads.count_messages", count_and_drop)
    rig.peer.link.send(pack_question(CountAsked(7, SESSION, 0, 0, 9, "bob")))
    async with asyncio.timeout(WAIT_S):
        while node.machine.logs[SLOT].dropping is None:
            await asyncio.sleep(0.001)
    dropped.set()
    frames = {message[0]: message for message in [await rig.peer.answer() for _ in range(2)]}
    assert frames[InsideType.COUNTED] == [147, 7, NotReachable.code, 0, 0]


@pytest.mark.parametrize(
    ("question", "frame"),
    [
        (FactsAsked(7, SESSION, 9, Since(0, 5)), [145, 7, Overloaded.code, 0, [], False]),
        (CountAsked(7, SESSION, 9, 0, 9, "bob"), [147, 7, Overloaded.code, 0, 0]),
        (RanksAsked(7, SESSION, 9, ((1, 5),)), [149, 7, Overloaded.code, 0, []]),
        (PageAsked(7, SESSION, 0, 0, 9, 9), [143, 7, Overloaded.code, 0, []]),
    ],
)
async def test_too_many_reads_are_refused(rig: Rig, question: Question, frame: list[Any]) -> None:
    await rig.owner.take()
    rig.node._reads._limits = limits(reads_max=2, head_wait_ms=WAIT_S * 1000)
    for number in (1, 2):
        waiting = FactsAsked(number, SESSION, 1, OfKeys(("k",)))
        rig.peer.link.send(pack_question(waiting))
    assert await rig.peer.ask(question) == frame
    send = rig.owner.append(EventKind.MESSAGE, b"what they wait for")
    rig.peer.link.send(pack_inside(InsideType.REQUESTS, [send]))
    answers = [await rig.peer.answer() for _ in range(3)]
    assert {answer[1] for answer in answers if answer[0] == InsideType.FACTS} == {1, 2}
    rig.node._reads._limits = limits()
    assert (await rig.peer.ask(question))[2] == 0


@pytest.mark.parametrize(
    "message",
    [
        (144, 7, SESSION, 0, 9, [1, 2]),
        (144, 7, SESSION, 0, 0, [-1, "", 5]),
        (144, 7, SESSION, 0, 0, [1, "", 0]),
        (144, 7, None, 0, 3, [1, 2]),
        (146, 7, SESSION, 0, 0, 9),
        (146, 7, SESSION, 0, "0", 9, "bob"),
        (142, 7, SESSION),
    ],
    ids=str,
)
async def test_what_is_no_question_ends_the_link_and_nothing_else(
    rig: Rig, message: tuple[Any, ...]
) -> None:
    stranger = Peer(rig.node)
    await stranger.up.wait()
    stranger.link.send(pack_frame(message))
    async with asyncio.timeout(WAIT_S):
        await stranger.down.wait()
    stranger.link.close()
    await rig.owner.take()
    await rig.owner.send()
    assert (await rig.peer.ask(PageAsked(1, SESSION, 0, 0, 9, 0)))[:4] == [143, 1, 0, 1]
