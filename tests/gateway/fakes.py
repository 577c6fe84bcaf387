"""Shards, replicas and clients as a gateway sees them, over real sockets and to the test's script.

The shards of a ``Cluster`` share one ``Log``, as real ones do through the replicas: a new owner
knows what the old one committed.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from im_actors.core.directory import Directory, ReplicaAddress, ShardAddress
from im_actors.core.fact_lists import FACT_PAGE_MAX, FactQuery, OfKeys, Prefixed, Ranked, Since
from im_actors.core.facts import Fact, event_facts, newest
from im_actors.core.model import (
    Event,
    EventKind,
    Member,
    View,
    ViewState,
    decode_event,
    encode_event,
    make_key,
    slot_of,
)
from im_actors.core.overlays import event_overlay
from im_actors.errors import OutOfOrder, SlotMoving
from im_actors.gateway import Clock, GatewayConfig, GatewayNode
from im_actors.net.link import LinkCallbacks, LinkConfig, LinkConnection, LinkServer, PeerInfo
from im_actors.server.presence import Presence
from im_actors.wire import messages as m
from im_actors.wire import queries as q
from im_actors.wire.codec import FrameDecoder, Message, encode_frame
from im_actors.wire.limits import Limits
from im_actors.wire.links import InsideType, pack_frame
from im_actors.wire.questions import (
    CountAsked,
    FactsAsked,
    PageAsked,
    Question,
    RanksAsked,
    read_question,
)
from tests.fact_model import count_ranks

SECRET = b"the cluster's secret, for tests"
LINKS = LinkConfig(backoff_ms_min=5, backoff_ms_max=20)
TIME_MS = 1_767_225_600_000
PLAIN = Limits(queries=0)
"""Without the user side: no session is followed or read but those that clients name."""
PATIENCE_S = 60


async def eventually(condition: Callable[[], Any]) -> None:
    """Return as soon as ``condition()`` holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


class Log:
    """What is committed."""

    def __init__(self) -> None:
        self.sessions: dict[str, list[bytes]] = {}
        self.seqs: dict[tuple[str, str, int], int] = {}
        self.last_n: dict[tuple[str, str], int] = {}

    def commit(self, session: str, device: str, n: int, kind: int, body: bytes) -> bytes:
        events = self.sessions.setdefault(session, [])
        key = make_key(TIME_MS + len(events), 0, 0)
        events.append(encode_event(Event(session, len(events) + 1, key, kind, device, n, body)))
        self.seqs[session, device, n] = len(events)
        self.last_n[session, device] = n
        return events[-1]

    def head(self, session: str) -> int:
        return len(self.sessions.get(session, ()))


class FakeShard:
    """Serves the slots in ``owned``; of the others it knows nothing."""

    def __init__(self, name: str, log: Log) -> None:
        self.name = name
        self.incarnation = f"{name}.1"
        self.log = log
        self.owned: set[int] = set()
        self.slots = 1
        self.silent = False
        """Take frames and say nothing, like a process that is stopped."""
        self.answer: Callable[[list[Any]], tuple[int, int, Any] | None] = lambda row: None
        """A script: (code, seq, hint) in place of the true answer."""
        self.submits: list[list[Any]] = []
        self.watches: list[list[str]] = []
        self.unwatches: list[list[str]] = []
        self.watchers: dict[LinkConnection, set[str]] = {}
        self.presence = Presence(1)
        self.signals: list[list[Any]] = []
        self.heres: list[list[Any]] = []
        info = PeerInfo("shard", name, self.incarnation)
        self.server = LinkServer(info, SECRET, self._linked, config=LINKS)

    async def start(self) -> None:
        await self.server.start("127.0.0.1", 0)

    @property
    def address(self) -> ShardAddress:
        return ShardAddress(self.name, self.incarnation, "127.0.0.1", self.server.port)

    @property
    def submitted(self) -> list[int]:
        return [row[4] for rows in self.submits for row in rows]

    def cut(self) -> None:
        for link in self.server.links:
            link.abort()

    async def stop(self) -> None:
        self.server.close()
        await self.server.wait_closed()

    def push(self, *events: bytes) -> None:
        for link, sessions in self.watchers.items():
            rows = [(decode_event(e).session, e) for e in events]
            rows = [row for row in rows if row[0] in sessions]
            if rows:
                link.send(pack_frame((InsideType.PUSHED, rows)))

    def _linked(self, peer: PeerInfo, link: LinkConnection) -> LinkCallbacks:
        assert peer.role == "gateway"
        self.watchers[link] = set()
        return LinkCallbacks(
            lambda messages: self._frames(link, messages), lambda _: self._left(link)
        )

    def _left(self, link: LinkConnection) -> None:
        self.watchers.pop(link, None)
        self.presence.left(link)

    def _frames(self, link: LinkConnection, messages: list[Message]) -> None:
        for message in messages:
            if message[0] == InsideType.SUBMIT:
                self.submits.append(message[1])
                if not self.silent:
                    self._submitted(link, message[1])
            elif message[0] == InsideType.WATCH:
                self.watches.append(message[1])
                self._watch(link, message[1])
            elif message[0] == InsideType.UNWATCH:
                self.unwatches.append(message[1])
                self.watchers[link] -= set(message[1])
            elif message[0] == InsideType.SIGNAL:
                watchers: dict[str, list[LinkConnection]] = {}
                for watcher, sessions in self.watchers.items():
                    for session in sessions:
                        watchers.setdefault(session, []).append(watcher)
                self.signals += message[1]
                self.presence.signaled(link, message[1], watchers, 0)
            elif message[0] == InsideType.HERE:
                self.heres.append(message[1:])
                self.presence.here(link, message[1], message[2])
            elif message[0] == InsideType.WHO_IS_HERE:
                if not self.silent:
                    self.presence.asked(link, message[1], message[2])
            else:
                raise AssertionError(message)

    def _submitted(self, link: LinkConnection, rows: list[list[Any]]) -> None:
        results: list[tuple[Any, ...]] = []
        committed: list[bytes] = []
        for row in rows:
            token, slot, session, device, n, kind, body = row
            assert slot == slot_of(session, self.slots)
            scripted = self.answer(row)
            if scripted is not None:
                code, seq, expected = scripted
            else:
                code, seq, expected = self._commit(slot, session, device, n, kind, body, committed)
            results.append((token, code, seq, 7, TIME_MS, expected))
        link.send(pack_frame((InsideType.RESULTS, results)))
        self.push(*committed)

    def _commit(
        self,
        slot: int,
        session: str,
        device: str,
        n: int,
        kind: int,
        body: bytes,
        committed: list[bytes],
    ) -> tuple[int, int, int]:
        if slot not in self.owned:
            return SlotMoving.code, 0, 0
        known = self.log.seqs.get((session, device, n))
        if known is not None:
            return 0, known, 0
        expected = self.log.last_n.get((session, device), 0) + 1
        if n != expected:
            return OutOfOrder.code, 0, expected
        committed.append(self.log.commit(session, device, n, kind, body))
        return 0, self.log.head(session), 0

    def _watch(self, link: LinkConnection, sessions: list[str]) -> None:
        self.watchers[link].update(sessions)
        if self.silent:
            return
        served = [s for s in sessions if slot_of(s, self.slots) in self.owned]
        if served:
            heads = [(session, self.log.head(session)) for session in served]
            link.send(pack_frame((InsideType.WATCHED, heads)))


class FakeReplica:
    """Answers reads from the log, ``lag`` events behind it."""

    def __init__(self, name: str, log: Log, host: str) -> None:
        self.name, self.host, self.log = name, host, log
        self.disk = f"disk-{name}"
        self.lag = 0
        self.code = 0
        self.silent = False
        self.reads: list[list[Any]] = []
        self.questions: list[Question] = []
        """All others."""
        info = PeerInfo("replica", name, self.disk)
        self.server = LinkServer(info, SECRET, self._linked, config=LINKS)

    async def start(self) -> None:
        await self.server.start("127.0.0.1", 0)

    async def stop(self) -> None:
        self.server.close()
        await self.server.wait_closed()

    @property
    def address(self) -> ReplicaAddress:
        return ReplicaAddress(self.name, self.disk, self.host, "127.0.0.1", self.server.port)

    def _linked(self, peer: PeerInfo, link: LinkConnection) -> LinkCallbacks:
        return LinkCallbacks(lambda messages: self._frames(link, messages), lambda _: None)

    def _frames(self, link: LinkConnection, messages: list[Message]) -> None:
        for message in messages:
            question = read_question(message)
            if isinstance(question, PageAsked):
                self.reads.append(list(question[1:]))
            else:
                self.questions.append(question)
            if not self.silent:
                link.send(pack_frame(self._answer(question)))

    def _answer(self, question: Question) -> tuple[Any, ...]:
        events = self.log.sessions.get(question.session, [])
        events = events[: max(0, len(events) - self.lag)]
        last = 0 if self.code else len(events)
        start = (question.request, self.code, last)
        match question:
            case PageAsked(_, _, after, before, limit):
                page = [] if self.code else page_of(events, after, before, limit)
                return InsideType.PAGE, *start, page
            case FactsAsked(_, _, _, query):
                facts = [] if self.code else facts_of(events, query)
                return InsideType.FACTS, *start, facts, False
            case RanksAsked(_, _, _, ranges):
                ranked = facts_of(events, Ranked(0, "", FACT_PAGE_MAX))
                return InsideType.RANKS_COUNTED, *start, count_ranks(ranked, ranges)
            case CountAsked(_, _, _, after, upto, user):
                decoded = [decode_event(data) for data in events]
                gone = {event_overlay(e)[0] for e in decoded if e.kind == EventKind.RECALL}
                counted = [
                    e
                    for e in decoded
                    if after < e.seq <= upto
                    and e.kind == EventKind.MESSAGE
                    and e.sender != user
                    and e.seq not in gone
                ]
                return InsideType.COUNTED, *start, 0 if self.code else len(counted)


def page_of(events: list[bytes], after: int, before: int, limit: int) -> list[bytes]:
    """What PROTOCOL.md says that a PULL gives."""
    if before:
        return events[max(0, after) : before - 1][-limit:]
    if after == -1:
        return events[-limit:]
    return events[after:][:limit]


def facts_of(events: list[bytes], query: FactQuery) -> list[Fact]:
    """All facts that the query asks for, whatever its limit."""
    found: dict[str, Fact] = {}
    for data in events:
        for fact in event_facts(decode_event(data)):
            newest(found, fact)
    facts = list(found.values())
    match query:
        case OfKeys(keys):
            return [fact for fact in facts if fact.key in keys]
        case Prefixed(prefix, after, _):
            return sorted(f for f in facts if f.key.startswith(prefix) and f.key > after)
        case Since(seq, _):
            return sorted((f for f in facts if f.seq > seq), key=lambda f: (f.seq, f.key))
        case Ranked(rank, key, _):
            below = [f for f in facts if f.rank and (not rank or (f.rank, f.key) < (rank, key))]
            return sorted(below, key=lambda f: (f.rank, f.key), reverse=True)


class RawClient:
    """A client that sends what it is told and remembers what it got."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.setblocking(False)
        self.received: list[Message] = []
        self.ended = False
        self._asked = 0
        self._decoder = FrameDecoder()
        self._reading: asyncio.Task[None] | None = None

    def start_reading(self) -> None:
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self.sock, 1 << 16):
                self.received += self._decoder.feed(data)
        except ConnectionError:
            pass
        self.ended = True

    async def send(self, *messages: Any) -> None:
        await self.send_bytes(b"".join(encode_frame(message) for message in messages))

    async def send_bytes(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def hello(
        self, user: str = "alice", token: str | None = None, device: str = "phone"
    ) -> RawClient:
        await self.send(m.hello(user, device, token, "test"))
        await self.until(lambda: self.of(m.WELCOME))
        return self

    async def until(self, condition: Callable[[], Any]) -> None:
        await eventually(condition)

    def of(self, kind: int) -> list[Message]:
        return [message for message in self.received if message[0] == kind]

    def rows(self, kind: int) -> list[Any]:
        """The rows of all ACK, NACK or HEADS."""
        return [row for message in self.of(kind) for row in message[1]]

    async def ask(self, what: str, *args: Any) -> Message:
        """The ANSWER to a query."""
        number = self._asked = self._asked + 1
        await self.send(q.query(number, what, args))
        await self.until(lambda: any(a[1] == number for a in self.of(m.ANSWER)))
        return next(answer for answer in self.of(m.ANSWER) if answer[1] == number)

    @property
    def acked(self) -> list[int]:
        return [row[1] for row in self.rows(m.ACK)]

    async def acks(self, count: int) -> None:
        await self.until(lambda: len(self.acked) == count)

    async def heads(self, count: int) -> None:
        await self.until(lambda: len(self.rows(m.HEADS)) == count)

    async def events(self, count: int) -> None:
        await self.until(lambda: len(self.pushed) == count)

    @property
    def pushed(self) -> list[Event]:
        return [decode_event(data) for data in self.rows(m.PUSH)]

    async def close(self) -> None:
        await self.stop_reading()
        self.sock.close()


class Cluster:
    """A gateway between its fakes."""

    def __init__(self, slots: int, config: GatewayConfig, clock: Clock | None) -> None:
        self.slots = slots
        self.log = Log()
        self.shards = [FakeShard(name, self.log) for name in ("shard-a", "shard-b")]
        self.replicas = [FakeReplica(f"replica-{i}", self.log, f"host-{i}") for i in range(1, 4)]
        self.gateway = GatewayNode(
            "gateway-1", config, SECRET, random.Random(1), clock, link_config=LINKS
        )
        self.version = 0
        self.epochs = [1] * slots
        self.owners = [self.shards[0]] * slots
        self.state = ViewState.ACTIVE
        self.clients: list[RawClient] = []

    @property
    def actors(self) -> list[FakeShard | FakeReplica]:
        return [*self.shards, *self.replicas]

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(replica.address.member for replica in self.replicas)

    def tell(self) -> None:
        """Give the gateway the directory as it is."""
        self.version += 1
        views = tuple(
            View(slot, self.epochs[slot], self.state, owner.incarnation, self.members)
            for slot, owner in enumerate(self.owners)
        )
        replicas = tuple(replica.address for replica in self.replicas)
        shards = tuple(shard.address for shard in self.shards)
        self.gateway.directory(Directory(self.version, self.slots, replicas, shards, views))

    def move(self, to: int, *, tell: bool = True) -> None:
        """Make another shard the owner of all slots."""
        for shard in self.shards:
            shard.owned.clear()
        self.shards[to].owned.update(range(self.slots))
        self.owners = [self.shards[to]] * self.slots
        self.epochs = [epoch + 1 for epoch in self.epochs]
        if tell:
            self.tell()

    async def start(self) -> None:
        for actor in self.actors:
            await actor.start()
        for shard in self.shards:
            shard.slots = self.slots
            shard.presence = Presence(self.slots)
        self.shards[0].owned.update(range(self.slots))
        self.tell()
        await eventually(self.all_up)
        await self.gateway.start("127.0.0.1", 0)

    def all_up(self) -> bool:
        peers = self.gateway.peers
        return all(peer.up for peer in (*peers.shards.values(), *peers.replicas.values()))

    async def stop(self) -> None:
        for client in self.clients:
            await client.close()
        await self.gateway.stop()
        for actor in self.actors:
            await actor.stop()

    async def connect(self, *, receive_bytes: int = 0) -> RawClient:
        """A connection that has said nothing yet. ``receive_bytes``: its kernel's buffer."""
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", self.gateway.port))
        client = RawClient(sock)
        client.start_reading()
        self.clients.append(client)
        return client

    async def client(self, user: str = "alice") -> RawClient:
        return await (await self.connect()).hello(user)


@asynccontextmanager
async def cluster(
    slots: int = 1, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[Cluster]:
    """A cluster that serves, with a gateway that ticks fast."""
    settings = {"tick_ms": 5, "sweep_ms": 20, "retry_ms_min": 10, "limits": PLAIN, **settings}
    config = GatewayConfig(**settings)
    running = Cluster(slots, config, clock)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


def text(session: str, *ns: int, body: bytes = b"text") -> tuple[Any, ...]:
    """A SEND."""
    return m.send([(session, n, 1, body) for n in ns])
