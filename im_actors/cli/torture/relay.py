"""A TCP relay between actors, and before clients, that cuts, delays, holds or swallows on demand.

Actors advertise a door of the relay in place of the port on which they listen (``actors.relay``).
Who is at the ends is read from the first frames, which name them; so a fault can hit one link, one
direction of it, or all links of one actor, and it is known which clients a gateway has.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from im_actors.errors import ImError
from im_actors.net.link_connection import LINK_HELLO
from im_actors.wire.codec import FrameDecoder, Message
from im_actors.wire.messages import HELLO, WELCOME

LOOPBACK = "127.0.0.1"
HELLO_BYTES_MAX = 4_096
"""A first frame that is longer is no link's: its dialer stays unnamed."""
WAITING_BYTES_MAX = 64 * 1024 * 1024
"""A connection that is held or delayed and has more under way is reset, as by a full buffer."""
TO_LISTENER, TO_DIALER = 0, 1
BOTH = (TO_LISTENER, TO_DIALER)


@dataclass(eq=False, slots=True, kw_only=True)
class Trouble:
    """What happens to bytes on some links for a while.

    With ``hold`` they arrive when the trouble is over, with ``swallow`` never, and the connection
    is reset then, as a peer would do that has lost its state.
    """

    actor: str
    """Links of this actor, as dialer or listener."""
    peer: str = ""
    """Only those with this one; empty: with all."""
    directions: tuple[int, ...] = BOTH
    delay_s: float = 0.0
    hold: bool = False
    swallow: bool = False

    def meets(self, pipe: Pipe, direction: int) -> bool:
        hit = self.actor in pipe.ends and (not self.peer or self.peer in pipe.ends)
        return hit and direction in self.directions


class Relay:
    """All doors. Made inside a running event loop; ``start``, then ``close``."""

    def __init__(self) -> None:
        self.doors: dict[tuple[str, int], tuple[str, int]] = {}
        """Where an actor listens, to where it can be reached instead."""
        self.pipes: set[Pipe] = set()
        self.troubles: list[Trouble] = []
        self.swallowed_bytes = 0
        self._servers: list[asyncio.Server] = []
        self._opening = asyncio.Lock()

    async def start(self) -> str:
        """Listen for actors that want a door; "HOST:PORT"."""
        server = await asyncio.start_server(self._asked, LOOPBACK, 0)
        self._servers.append(server)
        return f"{LOOPBACK}:{_port(server)}"

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for pipe in list(self.pipes):
            pipe.abort()
        for server in self._servers:
            await server.wait_closed()

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                wanted = json.loads(await reader.readline())
                host, port = await self.open(wanted["name"], wanted["address"], wanted["port"])
                writer.write(json.dumps({"address": host, "port": port}).encode() + b"\n")
                await writer.drain()
        except (TimeoutError, ValueError, KeyError, OSError):
            pass  # Who asks gets no answer, and asks again.
        finally:
            writer.close()

    async def open(self, name: str, host: str, port: int) -> tuple[str, int]:
        """A door to ``name``, which listens there; the same one again for the same place."""
        async with self._opening:
            if (host, port) not in self.doors:
                server = await asyncio.get_running_loop().create_server(
                    lambda: _Side(Pipe(self, name, (host, port))), LOOPBACK, 0
                )
                self._servers.append(server)
                self.doors[host, port] = (LOOPBACK, _port(server))
            return self.doors[host, port]

    async def open_another(self, name: str, host: str, port: int) -> tuple[str, int]:
        """A further door to the same place, which troubles meet by its own name."""
        async with self._opening:
            self.doors.pop((host, port), None)
        return await self.open(name, host, port)

    # -- faults --------------------------------------------------------------------------------

    def begin(self, trouble: Trouble) -> None:
        self.troubles.append(trouble)

    def end(self, trouble: Trouble) -> None:
        """What was held goes on its way; what has lost bytes is reset."""
        self.troubles.remove(trouble)
        for pipe in list(self.pipes):
            if pipe.tainted and any(trouble.meets(pipe, way) for way in BOTH):
                pipe.abort()
            else:
                pipe.flush()

    def cut(self, actors: Iterable[str] = ()) -> int:
        """Reset all connections of these actors, or all there are; how many there were."""
        chosen = set(actors)
        hit = [p for p in self.pipes if not chosen or chosen & p.ends]
        for pipe in hit:
            pipe.abort()
        return len(hit)

    def fate(self, pipe: Pipe, direction: int) -> Trouble | None:
        return next((t for t in self.troubles if t.meets(pipe, direction)), None)

    def between_actors(self) -> list[Pipe]:
        """The links that are up."""
        return [pipe for pipe in self.pipes if pipe.dialer and not pipe.gateway]

    def devices_of(self, end: str) -> frozenset[str]:
        """The clients that are connected to this gateway, or by this door."""
        return frozenset(p.dialer for p in self.pipes if p.gateway and end in p.ends)


class Pipe:
    """One connection through the relay: the dialer's side, the listener's side, and what waits."""

    def __init__(self, relay: Relay, listener: str, target: tuple[str, int]) -> None:
        self.listener = listener
        self.dialer = ""
        """An actor's name, or a client's device address; empty until it has said it."""
        self.gateway = ""
        """Which one a client has met."""
        self.tainted = False
        self._relay = relay
        self._target = target
        self._sides: list[asyncio.Transport | None] = [None, None]
        """Where bytes of each direction go: the listener, the dialer."""
        self._waiting: tuple[deque[tuple[float, bytes]], ...] = (deque(), deque())
        self._waiting_bytes = 0
        self._timers: list[asyncio.TimerHandle | None] = [None, None]
        self._first: list[bytearray | None] = [bytearray(), bytearray()]
        """The first bytes of each direction, until they have been read."""
        self._loop = asyncio.get_running_loop()
        self._dialing: asyncio.Task[Any] | None = None

    @property
    def ends(self) -> set[str]:
        return {self.dialer, self.listener, self.gateway} - {""}

    def accepted(self, transport: asyncio.Transport) -> None:
        self._sides[TO_DIALER] = transport
        self._relay.pipes.add(self)
        self._dialing = self._loop.create_task(self._dial())

    async def _dial(self) -> None:
        try:
            await self._loop.create_connection(lambda: _Far(self), *self._target)
        except OSError:
            self.abort()

    def connected(self, transport: asyncio.Transport) -> None:
        if self not in self._relay.pipes:
            transport.abort()
            return
        self._sides[TO_LISTENER] = transport
        self.flush()

    def received(self, direction: int, data: bytes) -> None:
        if self._first[direction] is not None:
            self._read_name(direction, data)
        waiting, trouble = self._waiting[direction], self._relay.fate(self, direction)
        if trouble is not None and trouble.swallow:
            self.tainted = True
            self._relay.swallowed_bytes += len(data)
        elif trouble is None and not waiting and (side := self._sides[direction]) is not None:
            side.write(data)
        else:
            due = self._loop.time() + (trouble.delay_s if trouble else 0.0)
            # Bytes never overtake each other, whatever has become of the delay meanwhile.
            waiting.append((max(due, waiting[-1][0]) if waiting else due, data))
            self._waiting_bytes += len(data)
            if self._waiting_bytes > WAITING_BYTES_MAX:
                self.abort()
            else:
                self._pass_on(direction)

    def flush(self) -> None:
        for direction in BOTH:
            self._pass_on(direction)

    def _pass_on(self, direction: int) -> None:
        side, waiting = self._sides[direction], self._waiting[direction]
        trouble = self._relay.fate(self, direction)
        if side is None or (trouble is not None and trouble.hold):
            return
        now = self._loop.time()
        while waiting and (waiting[0][0] <= now or trouble is None):
            data = waiting.popleft()[1]
            self._waiting_bytes -= len(data)
            side.write(data)
        if waiting and self._timers[direction] is None:
            self._timers[direction] = self._loop.call_at(waiting[0][0], self._rung, direction)

    def _rung(self, direction: int) -> None:
        self._timers[direction] = None
        self._pass_on(direction)

    def _read_name(self, direction: int, data: bytes) -> None:
        first = self._first[direction]
        assert first is not None
        first += data
        try:
            messages = FrameDecoder(HELLO_BYTES_MAX).feed(bytes(first))
        except ImError:
            messages = []
        if messages or len(first) > HELLO_BYTES_MAX:
            self._first[direction] = None
        if messages and direction == TO_LISTENER:
            self.dialer = _dialer(messages[0])
        elif messages and messages[0][0] == WELCOME:
            self.gateway = str(messages[0][2])

    def blocked(self, direction: int, on: bool) -> None:
        """The far side of ``direction`` takes no more, or takes again: read no faster."""
        source = self._sides[1 - direction]
        if source is not None and not source.is_closing():
            source.pause_reading() if on else source.resume_reading()

    def lost(self, error: Exception | None) -> None:
        """One side is gone. After an orderly end the other one still gets what was sent to it."""
        if error is not None:
            self.abort()
            return
        sides = list(self._sides)
        self._sides = [None, None]
        self.abort()
        for side in sides:
            if side is not None:
                side.close()

    def abort(self) -> None:
        """Reset both sides; what was under way is gone."""
        self._relay.pipes.discard(self)
        if self._dialing is not None:
            self._dialing.cancel()
        for direction, side in enumerate(self._sides):
            timer = self._timers[direction]
            if timer is not None:
                timer.cancel()
            self._waiting[direction].clear()
            if side is not None:
                side.abort()


class _Side(asyncio.Protocol):
    """The dialer's side: what it receives goes to the listener."""

    direction = TO_LISTENER

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pipe.accepted(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._pipe.received(self.direction, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._pipe.lost(error)

    def pause_writing(self) -> None:
        self._pipe.blocked(1 - self.direction, True)

    def resume_writing(self) -> None:
        self._pipe.blocked(1 - self.direction, False)


class _Far(_Side):
    """The listener's side."""

    direction = TO_DIALER

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pipe.connected(cast(asyncio.Transport, transport))


def _dialer(message: Message) -> str:
    """Who says HELLO, to an actor or to a gateway."""
    if message[0] == LINK_HELLO and len(message) > 3:
        return str(message[3])
    if message[0] == HELLO and len(message) > 3:
        return f"{message[2]}/{message[3]}"
    return ""


def _port(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])
