"""A gateway that lies on request: what a load generator has to notice."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Any

from im_actors.core.model import Event, encode_event
from im_actors.net.connection import FramedProtocol
from im_actors.wire import messages as m
from im_actors.wire.codec import encode_frame
from im_actors.wire.limits import Limits

Rows = list[list[Any]]


class Connection(FramedProtocol):
    def __init__(self, gateway: FakeGateway) -> None:
        super().__init__()
        self.gateway = gateway
        self.address = ""

    def frames_received(self, messages: list[Any]) -> None:
        for message in messages:
            self.gateway.received(self, message)

    def tell(self, message: Any) -> None:
        self.send(encode_frame(message))


class FakeGateway:
    """Honest by default. A test replaces ``events_of`` or ``acks_of`` to change what is pushed or
    ACKed, or sets ``answering`` to hold everything back; ``refuse`` makes NACK rows."""

    def __init__(self) -> None:
        self.timelines: defaultdict[str, list[Event]] = defaultdict(list)
        self.followers: defaultdict[str, list[Connection]] = defaultdict(list)
        self.connections: list[Connection] = []
        self.sends: list[Rows] = []
        self.seqs: dict[tuple[str, str, int], int] = {}
        self.events_of: Callable[[list[Event]], list[Event]] = lambda events: events
        self.acks_of: Callable[[Rows], Rows] = lambda rows: rows
        self.refuse: Callable[[Rows], Rows] = lambda entries: []
        self.answering = asyncio.Event()
        self.answering.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FakeGateway:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connected, "127.0.0.1", 0)
        self.address = ("127.0.0.1", self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.close()
        for connection in self.connections:
            connection.abort()
        await asyncio.gather(*self._tasks, *(c.wait_closed() for c in self.connections))

    def _connected(self) -> Connection:
        connection = Connection(self)
        self.connections.append(connection)
        return connection

    def received(self, connection: Connection, message: Any) -> None:
        kind = message[0]
        if kind == m.HELLO:
            connection.address = f"{message[2]}/{message[3]}"
            connection.tell(m.welcome("fake", 0, Limits()))
        elif kind == m.FOLLOW:
            for session in message[1]:
                self.followers[session].append(connection)
            rows = [(session, len(self.timelines[session])) for session in message[1]]
            connection.tell(m.heads(rows))
        elif kind == m.SEND:
            self.sends.append(message[1])
            task = asyncio.create_task(self._answer(connection, message[1]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif kind == m.PULL:
            _, request, session, after, _, limit = message
            timeline = self.timelines[session]
            page = [encode_event(event) for event in timeline[after : after + limit]]
            connection.tell(m.events(request, session, len(timeline), page))

    async def _answer(self, connection: Connection, entries: Rows) -> None:
        await self.answering.wait()
        refused = self.refuse(entries)
        if refused:
            connection.tell(m.nacks(refused))
        numbers = {(row[0], row[1]) for row in refused}
        taken = [entry for entry in entries if (entry[0], entry[1]) not in numbers]
        rows, events = [], []
        for session, n, kind, body in taken:
            key = (session, connection.address, n)
            if key not in self.seqs:
                timeline = self.timelines[session]
                self.seqs[key] = len(timeline) + 1
                event = Event(
                    session, self.seqs[key], len(self.seqs), kind, connection.address, n, body
                )
                timeline.append(event)
                events.append(event)
            rows.append([session, n, self.seqs[key], 1, 3, 0])
        connection.tell(m.acks(self.acks_of(rows)))
        for event in self.events_of(events):
            for follower in self.followers[event.session]:
                follower.tell(m.push([encode_event(event)]))
