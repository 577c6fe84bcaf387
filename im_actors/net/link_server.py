"""The listening side of links; ``link_connection`` describes the handshake."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from im_actors.errors import ProtocolViolation
from im_actors.net.link_connection import (
    LINK_ACCEPTED,
    LINK_CHALLENGE,
    LINK_HELLO,
    LINK_PROOF,
    NONCE_BYTES,
    LinkConfig,
    LinkConnection,
    PeerInfo,
    check_nonce,
    check_proof,
    check_secret,
    read_identity,
)
from im_actors.net.listener import Listener, listen
from im_actors.wire.codec import Message, encode_frame

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkCallbacks:
    """What a LinkServer's handler wants to hear of one link."""

    on_frames: Callable[[list[Message]], None]
    on_down: Callable[[str], None]
    """Called once, with the reason; nothing comes after it."""


Handler = Callable[[PeerInfo, LinkConnection], LinkCallbacks]


class _Accepted(LinkConnection):
    """The listener's side."""

    def __init__(self, me: PeerInfo, secret: bytes, config: LinkConfig, handler: Handler) -> None:
        super().__init__(me, secret, config)
        self._handler = handler
        self._callbacks: LinkCallbacks | None = None
        self._dialer: PeerInfo | None = None
        self._expected_proof = b""
        self._speaks = 0

    def opened(self) -> None:
        self.set_deadline(self._config.handshake_timeout_ms, "the handshake")

    def handshake(self, message: Message) -> None:
        if self._dialer is None:
            self._challenge(message)
        else:
            self._accept(message, self._dialer)

    def deliver(self, messages: list[Message]) -> None:
        if self._callbacks is not None:
            self._callbacks.on_frames(messages)

    def went_down(self, was_up: bool, reason: str) -> None:
        if self._callbacks is None:
            logger.warning("link from %s refused: %s", self.peername, reason)
        else:
            self._callbacks.on_down(reason)

    def _challenge(self, message: Message) -> None:
        if message[0] != LINK_HELLO or len(message) < 2:
            raise ProtocolViolation("a link must begin with its HELLO")
        if type(message[1]) is not int:
            raise ProtocolViolation("link: the format must be an integer")
        formats = self._config.formats
        self._speaks = formats.agreed(message[1], "link format")
        if len(message) < 6 or (len(message) > 6 and message[1] <= formats.newest):
            raise ProtocolViolation("link: HELLO has 6 elements")
        self._dialer = read_identity(message[2:5])
        nonce_c = check_nonce(message[5])
        nonce_s = secrets.token_bytes(NONCE_BYTES)
        self._expected_proof = self.proof(b"dialer", nonce_s, nonce_c)
        proof = self.proof(b"listener", nonce_c, nonce_s)
        self.send(encode_frame((LINK_CHALLENGE, self._speaks, *self._me, nonce_s, proof)))

    def _accept(self, message: Message, dialer: PeerInfo) -> None:
        if message[0] != LINK_PROOF or len(message) != 2:
            raise ProtocolViolation("link: the proof was expected")
        check_proof(message[1], self._expected_proof, "dialer")
        self.send(encode_frame((LINK_ACCEPTED,)))
        self.go_up(dialer, self._speaks)
        self._callbacks = self._handler(dialer, self)
        if not self.up:
            self._callbacks.on_down("closed by its handler")


class LinkServer:
    """Takes links. ``handler(peer, connection)`` is called when one is up and returns what it wants
    to hear of it; an ImError that it raises refuses the peer with that error."""

    def __init__(
        self,
        me: PeerInfo,
        secret: bytes,
        handler: Handler,
        *,
        config: LinkConfig | None = None,
    ) -> None:
        self._me = me
        self._secret = check_secret(secret)
        self._handler = handler
        self._config = (config or LinkConfig()).validate()
        self._listener: Listener | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen; SetupError when that is not possible. Port 0: see ``port`` for the one chosen."""
        assert self._listener is None
        self._listener = await listen(
            lambda: _Accepted(self._me, self._secret, self._config, self._handler),
            host,
            port,
            ssl=tls.accepting if (tls := self._config.tls) else None,
            connections_max=self._config.connections_max,
        )

    @property
    def host(self) -> str:
        return self._listener.host if self._listener else ""

    @property
    def port(self) -> int:
        return self._listener.port if self._listener else 0

    @property
    def links(self) -> list[LinkConnection]:
        """Those that are up."""
        connections = self._listener.connections if self._listener else ()
        return [c for c in connections if isinstance(c, LinkConnection) and c.up]

    def close(self) -> None:
        """Listen no more and close all links in order; each handler's ``on_down`` is called."""
        if self._listener is None:
            return
        self._listener.close()
        for connection in list(self._listener.connections):
            connection.close()

    async def wait_closed(self) -> None:
        """Return when no connection is left."""
        if self._listener is not None:
            await self._listener.wait_closed()
