"""The dialing side of links: one that keeps itself up. ``link_connection`` describes the handshake.

The names that users of links need are all importable from here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from random import Random

from im_actors.errors import ImError, LinkRefused, ProtocolViolation
from im_actors.net.link_connection import (
    LINK_ACCEPTED,
    LINK_CHALLENGE,
    LINK_HELLO,
    LINK_PROOF,
    NONCE_BYTES,
    LinkConfig,
    LinkConnection,
    LinkState,
    LinkType,
    PeerInfo,
    check_nonce,
    check_proof,
    check_secret,
    read_identity,
)
from im_actors.net.link_server import Handler, LinkCallbacks, LinkServer
from im_actors.wire.codec import Message, encode_frame


class _Dialed(LinkConnection):
    """The dialer's side of one attempt."""

    def __init__(self, link: Link, me: PeerInfo, secret: bytes, config: LinkConfig) -> None:
        super().__init__(me, secret, config)
        self._link = link
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._listener: PeerInfo | None = None
        self._speaks = 0

    def opened(self) -> None:
        if self._state is LinkState.DOWN:
            # Given up while the kernel was still connecting.
            self.abort()
            return
        self._link._open_connections.add(self)
        self.set_deadline(self._config.down_after_ms, "the listener's answer")
        self.send(encode_frame((LINK_HELLO, self._config.formats.newest, *self._me, self._nonce)))

    def handshake(self, message: Message) -> None:
        if self._listener is None:
            self._prove(message)
        elif message[0] == LINK_ACCEPTED:
            self.go_up(self._listener, self._speaks)
            self._link._went_up(self._listener)
        else:
            raise ProtocolViolation("link: an unexpected message in the handshake")

    def deliver(self, messages: list[Message]) -> None:
        self._link._on_frames(messages)

    def violated(self, error: ImError) -> None:
        if isinstance(error, LinkRefused):
            # Whoever cannot prove itself is told nothing.
            self.close(b"", error)
        else:
            super().violated(error)

    def went_down(self, was_up: bool, reason: str) -> None:
        self._link._attempt_over(self, was_up, reason)

    def on_closed(self, error: ImError | None) -> None:
        super().on_closed(error)
        self._link._open_connections.discard(self)

    def _prove(self, message: Message) -> None:
        if message[0] != LINK_CHALLENGE or len(message) != 7 or type(message[1]) is not int:
            raise ProtocolViolation("the listener does not speak the handshake of links")
        listener = read_identity(message[2:5])
        nonce_s = check_nonce(message[5])
        check_proof(message[6], self.proof(b"listener", self._nonce, nonce_s), "listener")
        self._link._check_identity(listener)
        self._speaks = self._config.formats.accepted(message[1], "link format")
        self._listener = listener
        self.send(encode_frame((LINK_PROOF, self.proof(b"dialer", nonce_s, self._nonce))))


class Link:
    """Dials, and dials again, until ``close``. Made inside a running event loop.

    ``on_up(peer)``, then ``on_frames(messages)`` per read, then ``on_down(reason)``, once per time
    that the link was up. ``on_down`` is also called when an attempt fails for another reason than
    the last one told, so that a link that never comes up says why. After ``close`` none is called.

    Nothing is queued while the link is down: what was sent before may or may not have arrived, and
    only the caller's protocol knows what to send again.
    """

    def __init__(
        self,
        me: PeerInfo,
        secret: bytes,
        host: str,
        port: int,
        *,
        on_up: Callable[[PeerInfo], None],
        on_frames: Callable[[list[Message]], None],
        on_down: Callable[[str], None],
        rng: Random,
        config: LinkConfig | None = None,
        expected_id: str = "",
        expected_incarnation: str = "",
    ) -> None:
        self._me = me
        self._secret = check_secret(secret)
        self._target = (host, port)
        self._on_up = on_up
        self._on_frames = on_frames
        self._on_down = on_down
        self._rng = rng
        self._config = (config or LinkConfig()).validate()
        self._expected_id = expected_id
        self._expected_incarnation = expected_incarnation
        self._loop = asyncio.get_running_loop()
        self._connection: _Dialed | None = None
        self._open_connections: set[_Dialed] = set()
        """Also those that were given up and are still closing."""
        self._dialing: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._attempts = 0
        self._up_at = 0.0
        self._closed = False
        self.peer: PeerInfo | None = None
        """Who is there, while the link is up."""
        self.reason = "not connected yet"
        """Why the link is down, or was the last time."""
        self._dial()

    @property
    def up(self) -> bool:
        return self.peer is not None

    @property
    def target(self) -> tuple[str, int]:
        return self._target

    @property
    def format(self) -> int:
        """What the link speaks while it is up."""
        return self._connection.format if self._connection and self.up else 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes that the kernel has not taken yet; 0 while down."""
        return self._connection.buffered_bytes if self._connection and self.up else 0

    def send(self, frame: bytes) -> bool:
        """Send one or more encoded frames. False: the link is down and they were dropped."""
        if self.peer is None or self._connection is None:
            return False
        return self._connection.send(frame)

    def send_now(self, frame: bytes) -> bool:
        """The same without waiting for the end of this turn of the loop."""
        if self.peer is None or self._connection is None:
            return False
        return self._connection.send_now(frame)

    def retarget(self, host: str, port: int) -> None:
        """Dial another address from now on; the same address: without waiting any longer."""
        if self._closed:
            return
        moved = (host, port) != self._target
        self._target = (host, port)
        if moved:
            self._attempts = 0
            self._give_up(f"now dialing {host}:{port}")
        if self._connection is None:
            self._cancel_retry()
            self._dial()

    def close(self) -> None:
        """Stop, for good. What was sent still leaves, within the bounds of a closing connection."""
        if self._closed:
            return
        self._closed = True
        self._cancel_retry()
        self._give_up("closed here")

    async def wait_closed(self) -> None:
        """Return when no connection and no task is left; call ``close`` first."""
        if self._dialing:
            await asyncio.wait(set(self._dialing))
        for connection in list(self._open_connections):
            await connection.wait_closed()

    # ---- inside

    def _dial(self) -> None:
        self._retry = None
        connection = _Dialed(self, self._me, self._secret, self._config)
        self._connection = connection
        task = self._loop.create_task(self._connect(connection))
        self._dialing.add(task)
        task.add_done_callback(self._dialing.discard)

    async def _connect(self, connection: _Dialed) -> None:
        host, port = self._target
        timeout_ms, tls = self._config.connect_timeout_ms, self._config.tls
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                ssl = tls.dialing if tls else None
                await self._loop.create_connection(lambda: connection, host, port, ssl=ssl)
        except TimeoutError:
            self._failed(connection, f"no connection within {timeout_ms} ms")
        except (OSError, ValueError, OverflowError) as error:
            self._failed(connection, str(error) or type(error).__name__)

    def _failed(self, connection: _Dialed, why: str) -> None:
        host, port = self._target
        connection.go_down(f"cannot connect to {host}:{port}: {why}")

    def _check_identity(self, listener: PeerInfo) -> None:
        for what, expected, found in (
            ("id", self._expected_id, listener.id),
            ("incarnation", self._expected_incarnation, listener.incarnation),
        ):
            if expected and found != expected:
                raise LinkRefused(f"{listener} answered, the {what} {expected} was expected")

    def _went_up(self, peer: PeerInfo) -> None:
        self.peer = peer
        self._up_at = self._loop.time()
        self._on_up(peer)

    def _give_up(self, reason: str) -> None:
        """Drop the connection, or the attempt to make one."""
        connection, self._connection = self._connection, None
        for task in self._dialing:
            task.cancel()
        if connection is None:
            return
        was_up = connection.up
        self.peer = None
        connection.close()
        connection.go_down(reason)
        self._report(was_up, reason)

    def _attempt_over(self, connection: _Dialed, was_up: bool, reason: str) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self.peer = None
        if was_up and (self._loop.time() - self._up_at) * 1000 >= self._config.backoff_ms_max:
            self._attempts = 0
        self._retry = self._loop.call_later(self._next_delay_ms() / 1000, self._dial)
        self._report(was_up, reason)

    def _next_delay_ms(self) -> float:
        # A link that comes up and falls at once counts as failed, or it would be dialed in a loop.
        doubled = self._config.backoff_ms_min << min(self._attempts, 20)
        self._attempts += 1
        return min(self._config.backoff_ms_max, doubled) * self._rng.uniform(0.5, 1.0)

    def _report(self, was_up: bool, reason: str) -> None:
        if self._closed or not (was_up or reason != self.reason):
            return
        self.reason = reason
        self._on_down(reason)

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None


__all__ = [
    "Handler",
    "Link",
    "LinkCallbacks",
    "LinkConfig",
    "LinkConnection",
    "LinkServer",
    "LinkType",
    "PeerInfo",
]
