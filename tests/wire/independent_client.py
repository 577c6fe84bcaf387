"""A client written from PROTOCOL.md alone, with the standard library and msgpack and nothing else.

It shows that the document is enough to write one: whatever could not be known from it was a defect
of the document. The numbers in comments are the document's sections.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import random
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

VERSION = 1
HELLO, SEND, FOLLOW, UNFOLLOW, PULL, PING, BYE = range(1, 8)
WELCOME, ACK, NACK, EVENTS, PONG, ERROR, SERVER_BYE, HEADS, PUSH = range(65, 74)
VOID, MESSAGE = 0, 1
OUT_OF_ORDER, KEY_CONFLICT = 102, 103
FRAME_BYTES = 1_048_576
KEY_EPOCH_MS = 1_577_836_800_000
HELD_BACK_MAX = 1000
RETRY_MS = (1000, 3000, 5000)
EMPTY_PAGE_MS = (100, 200, 400, 800, 1600, 2000)
RECONNECT_MS = (500, 1000, 2000, 4000, 5000)


def encode(message: list[Any]) -> bytes:
    """A frame (2)."""
    packed: bytes = msgpack.packb(message)
    return len(packed).to_bytes(4, "big") + packed


def decode(payload: bytes) -> list[Any]:
    message = msgpack.unpackb(payload)
    if not isinstance(message, list) or not message or not isinstance(message[0], int):
        raise ConnectionError("the server sent what is not a message")
    return message


def retryable(code: int) -> bool:
    """By the code's range, so that unknown codes have a meaning too (10)."""
    return 200 <= code < 300


def make_token(secret: bytes, **claims: Any) -> str:
    """A JSON Web Token (4)."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    header = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    signed = f"{header}.{part(json.dumps(claims).encode())}"
    return f"{signed}.{part(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


class Event(NamedTuple):
    """An entry of a session's timeline (5.3)."""

    session: str
    seq: int
    key: int
    kind: int
    device: str
    n: int
    body: bytes

    @property
    def time_ms(self) -> int:
        return (self.key >> 22) + KEY_EPOCH_MS

    @property
    def sender(self) -> str:
        return self.device.partition("/")[0]


def read_event(encoded: bytes) -> Event:
    return Event(*msgpack.unpackb(encoded))


class Row(NamedTuple):
    """A message that has no ACK yet."""

    n: int
    kind: int
    body: bytes


class Store:
    """The client's own file: its id, the outbox, the cursors and what was shown (4, 6, 7)."""

    def __init__(self, path: Path | str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(
            """
            pragma journal_mode = wal;
            pragma synchronous = normal; -- enough for a crash of the app
            create table if not exists identity(store text not null);
            create table if not exists counters(session text primary key, n int not null);
            create table if not exists outbox(
                session text, n int, kind int not null, body blob not null,
                primary key(session, n));
            create table if not exists outcomes(
                session text, n int, seq int not null, refused int not null,
                primary key(session, n));
            create table if not exists shown(
                session text, seq int, event blob not null, primary key(session, seq));
            """
        )
        if not self._db.execute("select 1 from identity").fetchone():
            self._db.execute(
                "insert into identity values(?)", (f"{random.SystemRandom().getrandbits(32):08x}",)
            )

    @property
    def id(self) -> str:
        return str(self._db.execute("select store from identity").fetchone()[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._db:
            self._db.execute("begin immediate")
            yield

    def add(self, session: str, body: bytes) -> int:
        """Save a message under the session's next n."""
        with self._transaction():
            self._db.execute(
                "insert into counters values(?, 1) on conflict do update set n = n + 1", (session,)
            )
            n = self._db.execute("select n from counters where session = ?", (session,))
            number = int(n.fetchone()[0])
            self._db.execute(
                "insert into outbox values(?, ?, ?, ?)", (session, number, MESSAGE, body)
            )
        return number

    def sessions_to_send(self) -> list[str]:
        return [row[0] for row in self._db.execute("select distinct session from outbox")]

    def rows(self, session: str, from_n: int, count: int) -> list[Row]:
        found = self._db.execute(
            "select n, kind, body from outbox where session = ? and n >= ? order by n limit ?",
            (session, from_n, count),
        )
        return [Row(*row) for row in found]

    def acked(self, session: str, n: int, seq: int) -> None:
        """The entry leaves the outbox; acked as a VOID, it is settled as refused."""
        with self._transaction():
            self._db.execute(
                "insert or ignore into outcomes"
                " select session, n, ?, kind = 0 from outbox where session = ? and n = ?",
                (seq, session, n),
            )
            self._db.execute("delete from outbox where session = ? and n = ?", (session, n))

    def make_void(self, session: str, n: int) -> None:
        self._db.execute(
            "update outbox set kind = 0, body = x'' where session = ? and n = ?", (session, n)
        )

    def outcome(self, session: str, n: int) -> tuple[int, bool] | None:
        """(seq, refused) of a settled message, None while it has no answer."""
        row = self._db.execute(
            "select seq, refused from outcomes where session = ? and n = ?", (session, n)
        ).fetchone()
        return row and (row[0], bool(row[1]))

    def cursor(self, session: str) -> int:
        row = self._db.execute("select max(seq) from shown where session = ?", (session,))
        return row.fetchone()[0] or 0

    def show(self, event: Event) -> None:
        """The event is next: keep it, which moves the cursor."""
        self._db.execute(
            "insert into shown values(?, ?, ?)", (event.session, event.seq, msgpack.packb(event))
        )

    def shown(self, session: str) -> list[Event]:
        """What a reader sees: VOIDs and unknown kinds take their seq and show nothing (5.3)."""
        rows = self._db.execute(
            "select event from shown where session = ? order by seq", (session,)
        )
        events = [read_event(row[0]) for row in rows]
        return [event for event in events if event.kind == MESSAGE]

    def close(self) -> None:
        self._db.close()


class Connection:
    """One TCP connection that carries frames (2, 3)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        return cls(*await asyncio.open_connection(host, port))

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def send(self, *messages: list[Any]) -> None:
        self.write(b"".join(encode(message) for message in messages))

    async def receive(self) -> list[Any]:
        """The next message. Raises EOFError when the server has closed."""
        try:
            length = int.from_bytes(await self._reader.readexactly(4), "big")
            if length > FRAME_BYTES:
                raise ConnectionError("the server sent a frame that is too long")
            return decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise EOFError("the connection has ended") from error

    async def hello(self, user: str, device: str, token: str | None = None) -> list[Any]:
        """HELLO and its answer."""
        self.send([HELLO, VERSION, user, device, token, "independent/1.0"])
        return await self.receive()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Refused(Exception):
    """The server refused the connection or a page, with this code."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code


class Page(NamedTuple):
    head: int
    code: int
    events: list[Event]


@dataclass
class Lane:
    """Sending in one session, on one connection (6)."""

    next_n: int = 0
    waiting: set[int] = field(default_factory=set)
    """Sent and without an answer."""
    halted: bool = False
    """A NACK came: once all that was sent is answered, send again from the lowest n."""
    delay_ms: int = 0
    failures: int = 0
    conflict: bool = False


@dataclass
class Inbox:
    """Reading one session (7)."""

    early: dict[int, Event] = field(default_factory=dict)
    head: int = 0
    pulling: bool = False


class Client:
    """Sends what its store holds and keeps the sessions that it follows without a gap."""

    def __init__(
        self, store: Store, user: str, device: str, gateways: list[tuple[str, int]]
    ) -> None:
        self.store = store
        self.user = user
        self.device = f"{device}-{store.id}"
        self.changed = asyncio.Condition()
        self.refused: dict[tuple[str, int], int] = {}
        self._gateways = gateways
        self._inboxes: dict[str, Inbox] = {}
        self._lanes: dict[str, Lane] = {}
        self._pulls: dict[int, asyncio.Future[Page]] = {}
        self._requests = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection: Connection | None = None
        self._limits: dict[str, int] = {}
        self._wrote_at = 0.0
        self._pings_unanswered = 0
        self._reconnect_after_ms: int | None = None

    # -- for the user --------------------------------------------------------------------------

    def send(self, session: str, body: bytes) -> int:
        """Save, then send: the n of the message, which is on disk when this returns."""
        n = self.store.add(session, body)
        if self._connection is not None:
            self._pump(session)
        return n

    def follow(self, session: str) -> None:
        self._inboxes.setdefault(session, Inbox())
        if self._connection is not None:
            self._write([FOLLOW, [session]])

    async def until(self, condition: Any) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)

    async def pull(self, session: str, after: int, before: int, limit: int) -> Page:
        self._requests += 1
        request = self._requests
        self._pulls[request] = asyncio.get_running_loop().create_future()
        try:
            self._write([PULL, request, session, after, before, limit])
            return await self._pulls[request]
        finally:
            del self._pulls[request]

    async def history(self, session: str, limit: int) -> list[Event]:
        """Everything, paged backwards (8)."""
        page = await self._page(session, -1, 0, limit)
        events = page.events
        while events and events[0].seq > 1:
            events = (await self._page(session, 0, events[0].seq, limit)).events + events
        return events

    async def _page(self, session: str, after: int, before: int, limit: int) -> Page:
        for wait_ms in EMPTY_PAGE_MS:
            page = await self.pull(session, after, before, limit)
            if page.code and not retryable(page.code):
                raise Refused(page.code, "pull")
            if page.events or (not page.code and not before and not page.head):
                return page
            await asyncio.sleep(wait_ms / 1000)
        raise TimeoutError("no copy answers")

    # -- the connection ------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, and again after each end, until cancelled or refused for good (3)."""
        failures = 0
        turn = 0
        while True:
            host, port = self._gateways[turn % len(self._gateways)]
            turn += 1
            self._reconnect_after_ms = None
            try:
                await self._live(await Connection.open(host, port))
                failures = 0
            except (OSError, EOFError, TimeoutError):
                failures += 1
            if self._reconnect_after_ms == -1:
                return
            bound = RECONNECT_MS[min(failures, len(RECONNECT_MS) - 1)]
            wait_ms = self._reconnect_after_ms or random.uniform(0, bound)
            await asyncio.sleep(wait_ms / 1000)

    async def _live(self, connection: Connection) -> None:
        try:
            answer = await connection.hello(self.user, self.device)
            if answer[0] == ERROR:
                raise Refused(*answer[1:3]) if not retryable(answer[1]) else EOFError(answer[2])
            self._limits = answer[4]
            self._connection = connection
            self._pings_unanswered = 0
            self._start(self._heartbeat())
            self._begin()
            while True:
                self._handle(await connection.receive())
                async with self.changed:
                    self.changed.notify_all()
        finally:
            self._connection = None
            for task in self._tasks:
                task.cancel()
            for pull in self._pulls.values():
                pull.cancel()
            await connection.close()

    def _begin(self) -> None:
        """What every connection starts with: resend, then follow; the server remembers nothing."""
        self._lanes = {}
        for session in self.store.sessions_to_send():
            self._pump(session)
        names = list(self._inboxes)
        for start in range(0, len(names), self._limits["follow_sessions"]):
            self._write([FOLLOW, names[start : start + self._limits["follow_sessions"]]])
        for inbox in self._inboxes.values():
            inbox.pulling = False

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _write(self, message: list[Any]) -> None:
        if self._connection is None:
            raise ConnectionError("not connected")
        self._wrote_at = time.monotonic()
        self._connection.send(message)

    async def _heartbeat(self) -> None:
        """PING when idle; close when two are unanswered (9)."""
        interval = self._limits["heartbeat_ms"] / 1000
        while self._connection is not None:
            idle = time.monotonic() - self._wrote_at
            if idle >= interval:
                if self._pings_unanswered == 2:
                    return await self._connection.close()
                self._pings_unanswered += 1
                self._write([PING, self._pings_unanswered])
                idle = 0
            await asyncio.sleep(interval - idle)
        return None

    def _handle(self, message: list[Any]) -> None:
        """One message of the server; further fields and unknown types are ignored (12)."""
        self._pings_unanswered = 0
        kind = message[0]
        if kind == ACK:
            for session, n, seq, *_ in message[1]:
                self._acked(session, n, seq)
        elif kind == NACK:
            for session, n, code, retry_after_ms, expected_n, *_ in message[1]:
                self._nacked(session, n, code, retry_after_ms, expected_n)
        elif kind == EVENTS:
            request, _session, head, code, events = message[1:6]
            pull = self._pulls.get(request)
            if pull is not None and not pull.done():
                pull.set_result(Page(head, code, [read_event(event) for event in events]))
        elif kind == HEADS:
            for session, head, *_ in message[1]:
                self._heard(session, head)
        elif kind == PUSH:
            for encoded in message[1]:
                self._arrived(read_event(encoded))
        elif kind == ERROR:
            if not retryable(message[1]):
                raise Refused(message[1], message[2])
        elif kind == SERVER_BYE:
            self._reconnect_after_ms = message[2]

    # -- sending -------------------------------------------------------------------------------

    def _pump(self, session: str) -> None:
        """Send what the window and the frame have room for, in the order of n."""
        lane = self._lanes.setdefault(session, Lane())
        room = self._limits["window"] - len(lane.waiting)
        if lane.halted or lane.conflict or room <= 0:
            return
        rows = self.store.rows(session, lane.next_n, room)
        for entries in self._frames(session, rows):
            self._write([SEND, entries])
        lane.waiting.update(row.n for row in rows)
        if rows:
            lane.next_n = rows[-1].n + 1

    def _frames(self, session: str, rows: Iterable[Row]) -> Iterator[list[list[Any]]]:
        """Groups of entries that a frame has room for."""
        overhead = len(session.encode()) + 32
        entries: list[list[Any]] = []
        size = 16
        for row in rows:
            more = len(row.body) + overhead
            if entries and size + more > self._limits["frame_bytes"]:
                yield entries
                entries, size = [], 16
            entries.append([session, row.n, row.kind, row.body])
            size += more
        if entries:
            yield entries

    def _acked(self, session: str, n: int, seq: int) -> None:
        lane = self._lanes.setdefault(session, Lane())
        self.store.acked(session, n, seq)
        lane.waiting.discard(n)
        lane.failures = 0
        self._go_on(session, lane)

    def _nacked(self, session: str, n: int, code: int, retry_after_ms: int, expected: int) -> None:
        lane = self._lanes.setdefault(session, Lane())
        lane.waiting.discard(n)
        lane.halted = True
        if retryable(code):
            step_ms = RETRY_MS[min(lane.failures, len(RETRY_MS) - 1)] * random.uniform(1, 1.2)
            lane.failures += 1
            lane.delay_ms = max(lane.delay_ms, retry_after_ms or int(step_ms))
        elif code == KEY_CONFLICT:
            lane.conflict = True
        elif code != OUT_OF_ORDER and code < 200:
            self.refused[session, n] = code
            self.store.make_void(session, n)
        elif code >= 300:
            lane.conflict = True
        self._go_on(session, lane)

    def _go_on(self, session: str, lane: Lane) -> None:
        if not lane.halted:
            self._pump(session)
        elif not lane.waiting:
            self._start(self._again(session, lane, lane.delay_ms))
            lane.delay_ms = 0

    async def _again(self, session: str, lane: Lane, delay_ms: int) -> None:
        await asyncio.sleep(delay_ms / 1000)
        lane.halted = False
        lane.next_n = 0
        self._pump(session)

    # -- reading -------------------------------------------------------------------------------

    def _heard(self, session: str, head: int) -> None:
        inbox = self._inboxes.get(session)
        if inbox is not None:
            inbox.head = max(inbox.head, head)
            self._fill(session, inbox)

    def _arrived(self, event: Event) -> None:
        """An event in whatever order (7): shown when it is next, held back when it is early."""
        inbox = self._inboxes.get(event.session)
        if inbox is None:
            return
        inbox.head = max(inbox.head, event.seq)
        if event.seq > self.store.cursor(event.session):
            inbox.early[event.seq] = event
        self._show_next(event.session, inbox)
        if len(inbox.early) > HELD_BACK_MAX:
            del inbox.early[max(inbox.early)]
        self._fill(event.session, inbox)

    def _show_next(self, session: str, inbox: Inbox) -> None:
        following = self.store.cursor(session) + 1
        while following in inbox.early:
            self.store.show(inbox.early.pop(following))
            following += 1

    def _fill(self, session: str, inbox: Inbox) -> None:
        if inbox.head > self.store.cursor(session) and not inbox.pulling:
            inbox.pulling = True
            self._start(self._pull_missing(session, inbox))

    async def _pull_missing(self, session: str, inbox: Inbox) -> None:
        empty = 0
        while (cursor := self.store.cursor(session)) < inbox.head:
            page = await self.pull(session, cursor, 0, self._limits["pull_events"])
            inbox.head = max(inbox.head, page.head)
            for event in page.events:
                if event.seq > self.store.cursor(session):
                    inbox.early[event.seq] = event
            self._show_next(session, inbox)
            if page.events:
                empty = 0
                continue
            await asyncio.sleep(EMPTY_PAGE_MS[min(empty, len(EMPTY_PAGE_MS) - 1)] / 1000)
            empty += 1
        inbox.pulling = False
        async with self.changed:
            self.changed.notify_all()
