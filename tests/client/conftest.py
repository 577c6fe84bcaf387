"""A small gateway that keeps the protocol, and breaks it when a test asks for it."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from ssl import SSLContext
from typing import Any

import pytest

from im_actors.core.model import Event, EventKind, encode_event, make_key
from im_actors.errors import ImError, KeyConflict, OutOfOrder, Unauthenticated
from im_actors.net.connection import FramedProtocol
from im_actors.net.listener import Listener, listen
from im_actors.wire import messages as m
from im_actors.wire.codec import Message, encode_frame
from im_actors.wire.limits import Limits

TIME_MS = 1_700_000_000_000
Nack = tuple[type[ImError], int]
"""An error and its retry_after_ms."""


class Peer(FramedProtocol):
    """The gateway's end of one connection."""

    def __init__(self, gateway: FakeGateway) -> None:
        super().__init__()
        self.gateway = gateway
        self.hello: m.Hello | None = None
        self.followed: set[str] = set()
        self.said_bye = False

    def opened(self) -> None:
        self.gateway.peers.append(self)
        self.gateway.connects += 1
        self.gateway.pulse()

    def on_closed(self, error: ImError | None) -> None:
        self.gateway.peers.remove(self)
        self.gateway.pulse()

    def frames_received(self, messages: list[Message]) -> None:
        for message in messages:
            if not self.gateway.silent:
                self.gateway.serve(self, message)
        self.gateway.pulse()

    def tell(self, message: Sequence[Any]) -> None:
        self.send(encode_frame(message))


class FakeGateway:
    """Dedups by (session, device, n), refuses gaps, numbers, pushes and answers pulls."""

    def __init__(self) -> None:
        self.limits = Limits(queries=0)
        self.peers: list[Peer] = []
        self.connects = 0
        self.timelines: dict[str, list[Event]] = {}
        self.keys: dict[tuple[str, str, int], Event] = {}
        self.next_n: dict[tuple[str, str], int] = {}
        self.seen: Counter[tuple[str, str, int]] = Counter()
        """How often each key was received."""
        self.pings = 0
        self.pulls: list[m.Pull] = []
        self.log: list[int] = []
        """Types of the frames received."""
        # What to do wrong:
        self.token: str | None = None
        self.silent = False
        self.swallow_acks = False
        self.cut_before_accepting = 0
        self.cut_after_accepting = 0
        self.nack: Callable[[list[Any]], Nack | None] = lambda entry: None
        self.mangle: Callable[[list[Event]], list[Event]] = lambda events: events
        self.lose_pulls = 0
        self._listener: Listener | None = None
        self._pulse = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"im://127.0.0.1:{self.port}"

    async def start(self, tls: SSLContext | None = None) -> None:
        self._listener = await listen(lambda: Peer(self), "127.0.0.1", self.port, ssl=tls)
        self.port = self._listener.port

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener.abort_connections()
            await self._listener.wait_closed()
            self._listener = None

    def cut(self) -> None:
        for peer in list(self.peers):
            peer.abort()

    def pulse(self) -> None:
        self._pulse.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for what frames and connections bring about."""
        async with asyncio.timeout(60):
            while not condition():
                self._pulse.clear()
                await self._pulse.wait()

    # -- the protocol ----------------------------------------------------------------------------

    def serve(self, peer: Peer, message: Message) -> None:
        self.log.append(message[0])
        if peer.hello is None:
            self._greet(peer, message)
            return
        match message[0]:
            case m.SEND:
                self._send(peer, m.check_send(message, self.limits))
            case m.FOLLOW:
                names = m.check_follow(message, self.limits)
                peer.followed.update(names)
                peer.tell(m.heads([(s, len(self.timelines.get(s, ()))) for s in names]))
            case m.UNFOLLOW:
                peer.followed.difference_update(m.check_unfollow(message, self.limits))
            case m.PULL:
                self._pull(peer, m.check_pull(message, self.limits))
            case m.PING:
                self.pings += 1
                peer.tell(m.pong(message[1]))
            case m.BYE:
                peer.close()

    def _greet(self, peer: Peer, message: Message) -> None:
        peer.hello = m.check_hello(message)
        if self.token is not None and peer.hello.token != self.token:
            error = Unauthenticated("the token is not valid")
            peer.close(encode_frame(m.error_message(error)))
            return
        peer.tell(m.welcome("fake", TIME_MS, self.limits))

    def _send(self, peer: Peer, sends: m.Sends) -> None:
        assert peer.hello is not None
        if self.cut_before_accepting:
            self.cut_before_accepting -= 1
            peer.abort()
            return
        acks: list[m.Ack] = []
        nacks = list(sends.refused)
        fresh: list[Event] = []
        for entry in sends.accepted:
            answer, event = self._take(peer.hello.address, entry)
            if event is not None:
                fresh.append(event)
            (acks if isinstance(answer, m.Ack) else nacks).append(answer)
        self._publish(fresh)
        if self.cut_after_accepting:
            self.cut_after_accepting -= 1
            peer.abort()
            return
        if acks and not self.swallow_acks:
            peer.tell(m.acks(acks))
        if nacks:
            peer.tell(m.nacks(nacks))

    def _take(self, device: str, entry: list[Any]) -> tuple[Any, Event | None]:
        session, n, kind, body = entry
        self.seen[session, device, n] += 1
        known = self.keys.get((session, device, n))
        expected = self.next_n.get((session, device), 1)
        if known is not None:
            if kind == EventKind.MESSAGE and known.body != body:
                return m.nack_of(session, n, KeyConflict("taken"), expected), None
            return self._ack(known), None
        if n != expected:
            return m.nack_of(session, n, OutOfOrder(f"expected {expected}"), expected), None
        wrong = self.nack(entry)
        if wrong is not None:
            return m.nack_of(session, n, wrong[0]("scripted", wrong[1])), None
        event = self._commit(session, device, n, kind, body)
        return self._ack(event), event

    def _ack(self, event: Event) -> m.Ack:
        return m.Ack(event.session, event.n, event.seq, 1, 3, event.time_ms)

    def _commit(self, session: str, device: str, n: int, kind: int, body: bytes) -> Event:
        timeline = self.timelines.setdefault(session, [])
        seq = len(timeline) + 1
        event = Event(session, seq, make_key(TIME_MS + seq, 1, 0), kind, device, n, body)
        timeline.append(event)
        self.keys[session, device, n] = event
        self.next_n[session, device] = n + 1
        return event

    def post(self, session: str, *texts: str, device: str = "bob/pc-00000000") -> None:
        """Somebody else writes."""
        fresh = []
        for text in texts:
            n = self.next_n.get((session, device), 1)
            fresh.append(self._commit(session, device, n, EventKind.MESSAGE, text.encode()))
        self._publish(fresh)

    def _publish(self, events: list[Event]) -> None:
        for peer in list(self.peers):
            wanted = self.mangle([e for e in events if e.session in peer.followed])
            if wanted and not self.silent:
                peer.tell(m.push([encode_event(e) for e in wanted]))

    def _pull(self, peer: Peer, pull: m.Pull) -> None:
        self.pulls.append(pull)
        if self.lose_pulls:
            self.lose_pulls -= 1
            return
        timeline = self.timelines.get(pull.session, [])
        found = [e for e in timeline if e.seq > pull.after]
        if pull.before:
            found = [e for e in found if e.seq < pull.before]
        newest = pull.before > 0 or pull.after < 0
        found = found[-pull.limit :] if newest else found[: pull.limit]
        encoded = [encode_event(e) for e in found]
        peer.tell(m.events(pull.request, pull.session, len(timeline), encoded))

    # -- for assertions --------------------------------------------------------------------------

    def texts(self, session: str) -> list[str]:
        """What everybody reads, in order."""
        timeline = self.timelines.get(session, [])
        return [e.text for e in timeline if e.kind == EventKind.MESSAGE]


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    gateway = FakeGateway()
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
async def another() -> AsyncIterator[FakeGateway]:
    """A gateway that knows nothing of the first one."""
    gateway = FakeGateway()
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
def gateway_class() -> type[FakeGateway]:
    """For tests that serve it in a loop of their own."""
    return FakeGateway


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[SSLContext, SSLContext]:
    """A server's context for localhost, and a client's that trusts it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is needed to make a certificate")
    directory: Path = tmp_path_factory.mktemp("tls")
    chain, key = str(directory / "chain.pem"), str(directory / "key.pem")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2",
         "-keyout", key, "-out", chain],
        check=True, capture_output=True,
    )  # fmt: skip
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(chain, key)
    return server, ssl.create_default_context(cafile=chain)
