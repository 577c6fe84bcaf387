"""Readers that are pushed to and readers that pull, and those who send old messages again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from im_actors.cli.torture.book import MESSAGE, Book, Entry
from im_actors.cli.torture.wire_client import WireClient
from im_actors.cli.torture.writer import body_of
from im_actors.client import Client, Follower, ImError, NotReachable
from im_actors.errors import error_for
from im_actors.wire.messages import Ack, Nack

TAKE_MAX = 256
PAGE = 500
PULL_EVERY_S = 0.2
RESEND_EVERY_S = 0.2
TWIN_EVERY_S = 0.25
AFTER_TROUBLE_S = 0.3
USES_MAX = 20
"""A connection of a puller is given up after so many pages, for another gateway."""

Shown = tuple[int, str, int, int, bytes]
"""(seq, device, n, kind, body)."""
Ways = Sequence[tuple[str, int]]


class ReadHistory(Protocol):
    """The part of the checkers that readers need."""

    def following(self, reader: str, session: str, after: int = 0) -> None: ...

    def delivered(
        self, reader: str, session: str, seq: int, device: str, n: int, kind: int, body: bytes
    ) -> None: ...

    def polled(
        self,
        source: str | None,
        session: str,
        head: int,
        after: int = 0,
        events: Sequence[Shown] = (),
    ) -> None: ...

    def final_read(self, session: str, events: Sequence[Shown], reader: str = "final") -> None: ...


class FollowingReader:
    """A client that follows all sessions from their beginning."""

    def __init__(
        self,
        name: str,
        url: str,
        sessions: Sequence[str],
        history: ReadHistory,
        pump: Callable[[], None],
    ) -> None:
        self.name = name
        self.last: dict[str, int] = dict.fromkeys(sessions, 0)
        self.received = 0
        self.client = Client(url, name, "torture")
        self._history = history
        self._pump = pump
        """Books what the writers have told: nothing may be read before it was sent."""

    async def run(self) -> None:
        """Until cancelled."""
        async with self.client, asyncio.TaskGroup() as group:
            for session in self.last:
                self._history.following(self.name, session)
                group.create_task(self._follow(self.client.follow(session, after=0)))

    async def _follow(self, follower: Follower) -> None:
        session = follower.session
        while True:
            events = await follower.take(TAKE_MAX)
            self._pump()
            for e in events:
                self._history.delivered(
                    self.name, session, e.seq, e.device, e.n, int(e.kind), e.body
                )
                self.last[session] = e.seq
            self.received += len(events)

    def behind(self, heads: dict[str, int]) -> dict[str, int]:
        """The sessions in which it has not got everything that was ACKed."""
        return {s: head for s, head in heads.items() if self.last.get(s, 0) < head}


class Puller:
    """Asks for pages of history, of any session, from anywhere on."""

    def __init__(
        self,
        ways: Ways,
        sessions: Sequence[str],
        history: ReadHistory,
        pump: Callable[[], None],
        rng: random.Random,
    ) -> None:
        self.pages = 0
        self._ways = ways
        self._sessions = sessions
        self._history = history
        self._pump = pump
        self._rng = rng
        self._heads: dict[str, int] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                client = await WireClient.connect(*self._rng.choice(self._ways), "puller", "p")
                try:
                    for _ in range(USES_MAX):
                        await self._pull(client)
                        await asyncio.sleep(PULL_EVERY_S)
                finally:
                    client.close()
            except ImError:
                await asyncio.sleep(AFTER_TROUBLE_S)

    async def _pull(self, client: WireClient) -> None:
        session = self._rng.choice(self._sessions)
        after = max(0, self._heads.get(session, 0) - self._rng.randint(0, 100))
        page = await client.pull(session, after, 100)
        if page.code:
            return
        self._pump()
        self.pages += 1
        self._heads[session] = max(page.head, self._heads.get(session, 0))
        self._history.polled(None, session, page.head, after, shown(page.events))


def shown(events: Sequence[object]) -> list[Shown]:
    return [(e.seq, e.device, e.n, int(e.kind), e.body) for e in events]  # type: ignore[attr-defined]


class Resender:
    """Sends messages again that have long been ACKed, through whichever gateway: the answer has to
    name the same seq. Also asks for the ACKs of which the owner was killed before it heard."""

    def __init__(self, ways: Ways, book: Book, rng: random.Random) -> None:
        self.resent = 0
        self._ways = ways
        self._book = book
        self._rng = rng

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(RESEND_EVERY_S)
            unheard = self._book.unheard
            key = next(iter(unheard), None) if self._rng.random() < 0.5 else None
            entry = self._book.entries[key] if key else self._book.some_acked(self._rng)
            if entry is not None:
                try:
                    await self.send_again(entry)
                except ImError:
                    await asyncio.sleep(AFTER_TROUBLE_S)

    async def send_again(self, entry: Entry) -> None:
        session, address, n = entry.key
        user, _, device = address.partition("/")
        client = await WireClient.connect(*self._rng.choice(self._ways), user, device)
        try:
            answer = await client.send(session, n, MESSAGE, entry.body)
        finally:
            client.close()
        now_s = time.monotonic()
        if isinstance(answer, Ack):
            self.resent += 1
            self._book.acked_at(address, session, n, answer.seq, answer.epoch, answer.copies, now_s)
        elif _is_final(answer):
            # It has an ACK, so no refusal can be true.
            self._book.refused(address, session, n)


class Twin:
    """A device that sends each message through two connections at the same moment, to two gateways
    where it finds them. Both answers have to name one seq."""

    def __init__(
        self, name: str, ways: Ways, sessions: Sequence[str], book: Book, rng: random.Random
    ):
        self.doubled = 0
        """Messages that both connections have ACKed."""
        self._name = name
        self._ways = ways
        self._sessions = sessions
        self._book = book
        self._rng = rng
        self._last_n: dict[str, int] = {}
        self._open: tuple[str, int] | None = None
        self.stopping = False

    async def run(self) -> None:
        """Until ``stopping``, and everything that was begun has its ACK."""
        while not (self.stopping and self._open is None):
            clients: list[WireClient] = []
            try:
                clients = await self._two()
                for _ in range(USES_MAX):
                    if self.stopping and self._open is None:
                        break
                    await self._send(clients)
                    await asyncio.sleep(self._rng.expovariate(1.0) * TWIN_EVERY_S)
            except ImError:
                await asyncio.sleep(AFTER_TROUBLE_S)
            finally:
                for client in clients:
                    client.close()

    async def _two(self) -> list[WireClient]:
        """Two connections, to different gateways if a few tries find them."""
        first = await WireClient.connect(*self._rng.choice(self._ways), self._name, "twin")
        try:
            for _ in range(5):
                second = await WireClient.connect(*self._rng.choice(self._ways), self._name, "twin")
                if second.server != first.server:
                    break
                second.close()
            else:
                second = await WireClient.connect(*self._rng.choice(self._ways), self._name, "twin")
        except BaseException:
            first.close()
            raise
        return [first, second]

    async def _send(self, clients: list[WireClient]) -> None:
        if self._open is None:
            session = self._rng.choice(self._sessions)
            n = self._last_n[session] = self._last_n.get(session, 0) + 1
            self._open = (session, n)
            self._book.tried(self._name, f"{self._name}/twin", session, n, time.monotonic())
            self._book.kept(f"{self._name}/twin", session, n)
        session, n = self._open
        body = body_of(self._name, session, n)
        answers = await asyncio.gather(
            *(client.send(session, n, MESSAGE, body) for client in clients),
            return_exceptions=True,
        )
        acks = [answer for answer in answers if isinstance(answer, Ack)]
        for ack in acks:
            self._book.acked_at(
                f"{self._name}/twin",
                *(session, n, ack.seq, ack.epoch, ack.copies, time.monotonic()),
            )
        if any(map(_is_final, answers)):
            self._book.refused(f"{self._name}/twin", session, n)
            self._open = None
        if acks:
            self._open = None
            self.doubled += len(acks) == len(clients)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        if not acks:
            await asyncio.sleep(AFTER_TROUBLE_S)


def _is_final(answer: object) -> bool:
    """A refusal, and not only the wish that it be sent again later."""
    return isinstance(answer, Nack) and not error_for(answer.code, answer.detail).retryable


async def whole_history(client: WireClient, session: str) -> list[Shown]:
    """All events, oldest first; NotReachable when the server did not give all of it."""
    found: list[Shown] = []
    while True:
        page = await client.pull(session, found[-1][0] if found else 0, PAGE)
        if page.code:
            raise NotReachable(f"the history of {session!r} was not given: {page.code}")
        found += shown(page.events)
        if not page.events or found[-1][0] >= page.head:
            return found
