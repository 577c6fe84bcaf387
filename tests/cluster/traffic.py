"""Clients outside of the cluster that write and read all the time, and the checkers of what they
saw and of what the disks hold at the end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import statistics
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from im_actors.cli.torture.book import Book
from im_actors.cli.torture.judge import alarms_in, logs_of
from im_actors.cli.torture.recovery import Hit, Recovery
from im_actors.cli.torture.run import session_names
from im_actors.cli.torture.writer import body_of
from im_actors.client import Client, ImError, Sent, Unknown
from im_actors.proof import Anomaly, History
from im_actors.proof.records import slot_of

SLOTS = 64
SESSIONS = 16
WRITERS = 4
READERS = 2
RATE = 40.0
"""Messages a second, all writers together."""
WINDOW = 200
"""Messages of one writer without an answer: while the cluster is away, no more are sent."""
SOME = 800
GO_ON_S = 90.0
DRAIN_S = 90.0
READ_S = 60.0
DEVICE = "outside"
AGAIN_S = 0.2

Shown = tuple[int, str, int, int, bytes]
"""(seq, device, n, kind, body)."""


class Traffic:
    """Runs in a thread of its own. ``token`` makes one for a user."""

    def __init__(self, url: str, token: Callable[[str], str], seed: int) -> None:
        self.history = History(tell=self._anomaly, slots=SLOTS)
        self.book = Book(self.history, SLOTS)
        self.recovery = Recovery(lambda text: None)
        self.sessions = session_names(SESSIONS, SLOTS)
        self.slots = frozenset(slot_of(session, SLOTS) for session in self.sessions)
        self.failed: list[BaseException] = []
        self.last: dict[tuple[str, str], int] = {}
        """(reader, session) -> the last seq that it got."""
        self._url, self._token = url, token
        self._rng = random.Random(seed)
        self._stopped = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="traffic", daemon=True)
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: set[asyncio.Task[None]] = set()

    # -- for the test --------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()
        self._do(self._begin(), 10.0)

    def hit(self, kind: str, target: str, fault: Callable[[], None]) -> Hit:
        """Inject a fault, and return when every session has had an ACK of a message that was sent
        after it."""
        hit = Hit(kind, target, time.monotonic(), slots=self.slots)
        fault()
        hit.done_s = time.monotonic()
        self.recovery.add(hit)
        self.wait(lambda: hit.over, GO_ON_S, f"not all sessions go on after {kind}")
        print(f"{kind} of {target}: {self._first_acks(hit)}", flush=True)
        return hit

    @contextlib.contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """What is sent meanwhile has to get its ACK; says how long these took."""
        begun = time.monotonic()
        yield
        end = time.monotonic()
        self.wait(lambda: not self._waits_since(end), GO_ON_S, f"no ACK of what was sent in {what}")
        entries = [e for e in list(self.book.entries.values()) if begun <= e.sent_s < end]
        took = sorted(1000 * (e.acked_s - e.sent_s) for e in entries if e.acked_s is not None)
        assert took, f"nothing was sent in {what}"
        p50, p99 = (took[int(len(took) * share)] for share in (0.5, 0.99))
        print(
            f"{what}, {end - begun:.0f} s: {len(took)} of {len(entries)} ACKed,"
            f" after p50 {p50:.0f} ms, p99 {p99:.0f} ms, max {took[-1]:.0f} ms",
            flush=True,
        )

    def some(self, what: str, count: int = SOME) -> None:
        """Watch until so many more messages have their ACK."""
        wanted = self.book.acked + count
        with self.watching(what):
            seconds = GO_ON_S + 2 * count / RATE
            self.wait(lambda: self.book.acked >= wanted, seconds, f"it stands still: {what}")

    def _waits_since(self, end: float) -> bool:
        """Whether something that was sent before has no ACK yet."""
        return any(self.book.entries[key].sent_s < end for key in list(self.book.waiting))

    def _first_acks(self, hit: Hit) -> str:
        """When each session went on."""
        first: dict[str, float] = {}
        for entry in self.book.acked_entries:
            session = entry.key[0]
            if entry.sent_s >= hit.done_s and entry.acked_s is not None:
                first[session] = min(first.get(session, 1e9), entry.acked_s - hit.done_s)
        took = sorted(first.values())
        return (
            f"it took {hit.done_s - hit.ordered_s:.2f} s; sessions go on {took[0]:.2f} s (first),"
            f" {statistics.median(took):.2f} s (median), {took[-1]:.2f} s (last) after it"
        )

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert not self.failed, self.failed
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: {self._behind()}")
            time.sleep(0.05)
            self._do(self._follow(), 10.0)

    def drain(self) -> None:
        """Send no more; return when all that was sent has its ACK and has come to all readers."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self.wait(lambda: not self.book.waiting, DRAIN_S, "messages have no ACK")
        self.wait(lambda: not self._unread(), READ_S, "readers have not got everything")

    def read_everything(self, urls: Sequence[str]) -> None:
        """Every session by each of these gateways."""
        for url in urls:
            self._do(self._read_by(url), READ_S)

    def adopt(self, session: str, texts: Sequence[str]) -> None:
        """A session that others have written, these texts in this order."""
        events = self._do(self._events(session), READ_S)
        assert [body.decode() for *_, body in events] == list(texts)
        for (_, device, n, kind, _), text in zip(events, texts, strict=True):
            self.history.sent(session, device, n, kind, text.encode())

    def read_disks(self, disks: dict[str, Path], members: dict[str, list[str]]) -> None:
        """The logs of all members, when no process has them: replica to its directory."""
        for name, path in disks.items():
            slots = [int(slot) for slot, names in members.items() if name in names]
            for slot, records in logs_of(path, slots):
                self.history.final_log(name, slot, records)

    def verdict(self) -> dict[str, int]:
        """Anomalies by name."""
        self.history.finish()
        return self.history.counts

    def stop(self) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(Exception):
                self._do(self._end(), 10.0)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10.0)

    # -- in the loop ---------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    async def _begin(self) -> None:
        for number in range(WRITERS):
            self._spawn(self._write(f"writer-{number}"))
        for number in range(READERS):
            self._spawn(self._read(f"reader-{number}"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed.append(error)

    async def _end(self) -> None:
        for task in [*self._tasks, *self._waiting]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._waiting, return_exceptions=True)

    async def _follow(self) -> None:
        self.recovery.follow(self.book.acked_entries)

    def _client(self, user: str, url: str = "") -> Client:
        return Client(url or self._url, user, DEVICE, token=lambda: self._token(user))

    async def _write(self, user: str) -> None:
        async with self._client(user) as client:
            for session in self._in_turn():
                if self._stopped.is_set():
                    await asyncio.Event().wait()
                while len(client.outbox()) >= WINDOW:
                    await asyncio.sleep(AGAIN_S)
                await self._send(client, user, session)
                await asyncio.sleep(self._rng.expovariate(RATE / WRITERS))

    def _in_turn(self) -> Iterator[str]:
        return itertools.cycle(self._rng.sample(self.sessions, len(self.sessions)))

    async def _send(self, client: Client, user: str, session: str) -> None:
        # The SDK has no word for it: nobody else has to know a number before it is given.
        n = client._engine.outbox.next_n(session)
        self.book.tried(user, client.address, session, n, time.monotonic())
        sent = await client.send(session, body_of(user, session, n))
        assert sent.n == n
        self.book.kept(client.address, session, n)
        task = self._loop.create_task(self._acked(client.address, sent))
        task.add_done_callback(self._ended)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _acked(self, device: str, sent: Sent) -> None:
        while sent.ack is None:
            try:
                await sent.acked()
            except Unknown:
                await asyncio.sleep(AGAIN_S)
            except ImError:
                if sent.error is not None:
                    self.book.refused(device, sent.session, sent.n)
                    return
                await asyncio.sleep(AGAIN_S)
        ack = sent.ack
        self.book.acked_at(
            device, ack.session, ack.n, ack.seq, ack.epoch, ack.copies, time.monotonic()
        )

    async def _read(self, user: str) -> None:
        async with self._client(user) as client, asyncio.TaskGroup() as group:
            for session in self.sessions:
                self.history.following(user, session)
                group.create_task(self._take(user, client, session))

    async def _take(self, user: str, client: Client, session: str) -> None:
        follower = client.follow(session, after=0)
        while True:
            for e in await follower.take(256):
                self.history.delivered(user, session, e.seq, e.device, e.n, int(e.kind), e.body)
                self.last[user, session] = e.seq

    def _unread(self) -> list[str]:
        return [
            f"{user} is at {self.last.get((user, session), 0)} of {head} in {session!r}"
            for user in (f"reader-{number}" for number in range(READERS))
            for session, head in self.book.heads.items()
            if self.last.get((user, session), 0) < head
        ]

    def _behind(self) -> str:
        waiting = sorted(self.book.waiting)[:3]
        return f"{len(self.book.waiting)} wait, e.g. {waiting}; unread {self._unread()[:3]}"

    async def _read_by(self, url: str) -> None:
        async with self._client("auditor", url) as client:
            for session in self.sessions:
                events = await self._whole(client, session)
                self.history.final_read(session, events, f"auditor by {url}")

    async def _events(self, session: str) -> list[Shown]:
        async with self._client("auditor") as client:
            return await self._whole(client, session)

    async def _whole(self, client: Client, session: str) -> list[Shown]:
        """What a gateway gives may be an old prefix for a moment."""
        while True:
            page = await client.history(session, limit=10_000)
            events = [(e.seq, e.device, e.n, int(e.kind), e.body) for e in page.events]
            if not page.offline and events and events[-1][0] >= self.book.heads.get(session, 0):
                return events
            await asyncio.sleep(AGAIN_S)

    def _anomaly(self, anomaly: Anomaly) -> None:
        print(f"ANOMALY {anomaly}", flush=True)


def alarms(disks: Sequence[Path]) -> list[str]:
    """What actors have sounded an alarm about, from the logs on each host's disk."""
    return [line for disk in disks for line in alarms_in(disk)]
