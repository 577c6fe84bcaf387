"""Links: authenticated connections between actors that keep themselves up.

The handshake proves to both sides that the other one has the cluster's secret, without sending it:

    dialer:   [128, newest, role, id, incarnation, nonce_c]
    listener: [129, format, role, id, incarnation, nonce_s,
               hmac(secret, "listener" + nonce_c + nonce_s)]
    dialer:   [130, hmac(secret, "dialer" + nonce_s + nonce_c)]
    listener: [131]

Both nonces are new for each connection, so a recorded proof is good for none other, and the two
labels keep a proof from being sent back to its maker. ``newest`` is the newest format that the
dialer knows, and ``format`` the newest that both do: the rest of the link is in it. The handshake
is the same in all formats, but for further fields of HELLO. What the frames carry afterwards is
neither hidden nor signed; that is the part of TLS, where the network is not trusted.

A link is declared down after silence. Each side sends something at least every ``ping_after_ms``,
so that neither depends on the other's answer getting past a full send buffer.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import ClassVar, NamedTuple

from im_actors.core.formats import FORMATS, Formats
from im_actors.errors import (
    ImError,
    LinkRefused,
    NotReachable,
    ProtocolViolation,
    SetupError,
    error_for,
)
from im_actors.net.connection import FramedProtocol
from im_actors.net.tls import Certificates
from im_actors.wire.codec import ARRAY_ITEMS_MAX, Message, encode_frame
from im_actors.wire.links import LINK_FRAME_BYTES_MAX
from im_actors.wire.messages import ERROR

NONCE_BYTES = 16
SECRET_BYTES_MIN = 16
IDENTITY_BYTES_MAX = 128
HANDSHAKE_FRAME_BYTES_MAX = 2_048
"""Before a peer has proved itself, it cannot make this side hold more than this."""
HANDSHAKE_ITEMS_MAX = 16
"""Most elements of an array in the handshake."""


class LinkType(IntEnum):
    """The messages that a link keeps to itself. Everything else is passed on."""

    HELLO = 128
    CHALLENGE = 129
    PROOF = 130
    ACCEPTED = 131
    PING = 132
    PONG = 133


LINK_HELLO = int(LinkType.HELLO)
LINK_CHALLENGE = int(LinkType.CHALLENGE)
LINK_PROOF = int(LinkType.PROOF)
LINK_ACCEPTED = int(LinkType.ACCEPTED)
_PING = int(LinkType.PING)
_PONG = int(LinkType.PONG)
_CONTROL = frozenset((ERROR, *map(int, LinkType)))


class PeerInfo(NamedTuple):
    """Who an actor says it is. A replica's incarnation is its disk's identity."""

    role: str
    id: str
    incarnation: str

    def __str__(self) -> str:
        return f"{self.role} {self.id} ({self.incarnation})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """Times and bounds of a link. Both sides should have the same."""

    connect_timeout_ms: int = 1_000
    """For the TCP connection, with TLS: for its handshake too."""
    handshake_timeout_ms: int = 5_000
    """The listener's patience with a dialer. The dialer's is ``down_after_ms``."""
    ping_after_ms: int = 500
    """A side that has received nothing, or sent nothing, for so long sends a LINK_PING."""
    down_after_ms: int = 2_500
    """A link on which nothing was received for so long is down."""
    backoff_ms_min: int = 50
    """The first wait before dialing again; it doubles with each attempt that fails."""
    backoff_ms_max: int = 1_000
    """The longest wait. A link that was up for this long starts over at the shortest."""
    frame_bytes_max: int = LINK_FRAME_BYTES_MAX
    """Most bytes of msgpack in one frame."""
    connections_max: int = 1_000
    """Most links that a LinkServer holds."""
    formats: Formats = FORMATS
    """What this side can speak."""
    tls: Certificates | None = field(default=None, repr=False)
    """What either side shows and believes; None: links are not encrypted."""

    @classmethod
    def secured(cls, certificates: Certificates | None) -> LinkConfig:
        """The defaults, with TLS where the certificates do for links."""
        return cls(tls=certificates if certificates and certificates.for_links else None)

    def validate(self) -> LinkConfig:
        """Itself; SetupError when a value or a pair of them makes no sense."""
        for name in self.__slots__:
            if name in ("tls", "formats"):
                continue
            value = getattr(self, name)
            if type(value) is not int or value <= 0:
                raise SetupError(f"link: {name} is {value!r}, it must be a positive integer")
        if self.down_after_ms < 2 * self.ping_after_ms:
            raise SetupError("link: down_after_ms must be at least twice ping_after_ms")
        if self.backoff_ms_max < self.backoff_ms_min:
            raise SetupError("link: backoff_ms_max is below backoff_ms_min")
        if self.frame_bytes_max < HANDSHAKE_FRAME_BYTES_MAX:
            raise SetupError(f"link: frame_bytes_max is below {HANDSHAKE_FRAME_BYTES_MAX}")
        return self


class LinkState(Enum):
    HANDSHAKE = "handshake"
    UP = "up"
    DOWN = "down"


class LinkConnection(FramedProtocol):
    """One connection of a link, on either side. Users call ``send``, ``close`` and the properties
    of ``FramedProtocol``; ``peer`` is set once the link is up."""

    user_timeout_ms: ClassVar[int] = 5_000

    def __init__(self, me: PeerInfo, secret: bytes, config: LinkConfig) -> None:
        super().__init__(config.frame_bytes_max)
        self._decoder.greet(HANDSHAKE_FRAME_BYTES_MAX, HANDSHAKE_ITEMS_MAX)
        self._me = me
        self._secret = secret
        self._config = config
        self._state = LinkState.HANDSHAKE
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = self._pinged_at = self._tick_at = 0.0
        self._writes_seen = 0
        self.peer = PeerInfo("", "", "")
        self.format = 0
        """What the link speaks, once it is up."""

    @property
    def up(self) -> bool:
        """Whether both sides have proved themselves and nobody has closed."""
        return self._state is LinkState.UP

    # ---- what the two sides do differently

    def handshake(self, message: Message) -> None:
        """The next message of the handshake."""
        raise NotImplementedError

    def deliver(self, messages: list[Message]) -> None:
        """Messages for the user of the link."""
        raise NotImplementedError

    def went_down(self, was_up: bool, reason: str) -> None:
        """Called once; nothing is delivered after it."""
        raise NotImplementedError

    # ---- FramedProtocol

    def data_received(self, data: bytes) -> None:
        # Here and not per message: half of a large frame is a sign of life too.
        if self._loop is not None:
            self._heard_at = self._loop.time()
        super().data_received(data)

    def frames_received(self, messages: list[Message]) -> None:
        if self._state is not LinkState.UP:
            self._shake_hands(messages)
            return
        for message in messages:
            if message[0] in _CONTROL:
                break
        else:
            self.deliver(messages)
            return
        passed_on = [m for m in messages if m[0] not in _CONTROL or self._control(m)]
        if passed_on and self._state is LinkState.UP:
            self.deliver(passed_on)

    def close(self, final_frame: bytes = b"", error: ImError | None = None) -> None:
        super().close(final_frame, error)
        self.go_down(str(error) if error else "closed here")

    def abort(self, error: ImError | None = None) -> None:
        super().abort(error)
        self.go_down(str(error) if error else "closed here")

    def eof_received(self) -> None:
        super().eof_received()
        self.on_closed(self._error)

    def on_closed(self, error: ImError | None) -> None:
        self.go_down(str(error) if error else f"{self.peername} closed the connection")

    # ---- inside

    def _shake_hands(self, messages: list[Message]) -> None:
        for message in messages:
            if message[0] == ERROR:
                self._control(message)
                return
            self.handshake(message)
            if self._state is LinkState.UP:
                # The peer may speak as soon as it is sure of us, in the same write.
                early = self._decoder.go_on(self._config.frame_bytes_max, ARRAY_ITEMS_MAX)
                if early:
                    self.frames_received(early)
            if self._state is not LinkState.HANDSHAKE:
                return

    def _control(self, message: Message) -> bool:
        """Act on a message of the link's own; False, for it is not passed on."""
        kind = message[0]
        types = tuple(map(type, message[1:]))
        if kind == _PING and types == (int,):
            self.send(encode_frame((_PONG, message[1])))
        elif kind == ERROR and types == (int, str):
            # A stranger may have written this, and it goes into logs.
            detail = "".join(c if c.isprintable() else " " for c in message[2])
            self.close(b"", error_for(message[1], detail))
        elif kind != _PONG:
            raise ProtocolViolation(f"a link does not take a message of type {kind} here")
        return False

    def set_deadline(self, timeout_ms: int, doing: str) -> None:
        def late() -> None:
            self.abort(NotReachable(f"{doing} took longer than {timeout_ms} ms"))

        assert self._loop is not None
        self._timer = self._loop.call_later(timeout_ms / 1000, late)

    def go_up(self, peer: PeerInfo, speaks: int) -> None:
        assert self._state is LinkState.HANDSHAKE
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._state = LinkState.UP
        self.peer = peer
        self.format = speaks
        self._heard_at = self._pinged_at = self._loop.time()
        self._writes_seen = self.writes
        self._next_tick(self._heard_at)

    def go_down(self, reason: str) -> None:
        if self._state is LinkState.DOWN:
            return
        was_up = self._state is LinkState.UP
        self._state = LinkState.DOWN
        if self._timer is not None:
            self._timer.cancel()
        self.went_down(was_up, reason)

    def _next_tick(self, now: float) -> None:
        assert self._loop is not None
        # Twice per ping, so that silence is found at most half a ping late.
        self._tick_at = now + self._config.ping_after_ms / 2000
        self._timer = self._loop.call_at(self._tick_at, self._tick)

    def _tick(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        ping_after = self._config.ping_after_ms / 1000
        late = now - self._tick_at
        if late > ping_after / 2:
            # This process stood still. What it could not hear then is not the peer's silence.
            self._heard_at = min(now, self._heard_at + late)
        silent = now - self._heard_at
        if silent * 1000 >= self._config.down_after_ms:
            self.abort(NotReachable(f"nothing was heard for {silent * 1000:.0f} ms"))
            return
        if now - self._pinged_at >= ping_after:
            if silent >= ping_after or self.writes == self._writes_seen:
                self.send(encode_frame((_PING, self.writes)))
                # The ping itself is the next write, and no reason to leave out the one after it.
                self._writes_seen = self.writes + 1
            else:
                self._writes_seen = self.writes
            self._pinged_at = now
        self._next_tick(now)

    def proof(self, label: bytes, first: bytes, second: bytes) -> bytes:
        return hmac.digest(self._secret, label + first + second, "sha256")


def read_identity(fields: Message) -> PeerInfo:
    for value in fields:
        if type(value) is not str or not 0 < len(value.encode()) <= IDENTITY_BYTES_MAX:
            raise ProtocolViolation("link: role, id and incarnation must be short strings")
    return PeerInfo(*fields)


def check_nonce(nonce: object) -> bytes:
    if type(nonce) is not bytes or len(nonce) != NONCE_BYTES:
        raise ProtocolViolation(f"link: a nonce must be {NONCE_BYTES} bytes")
    return nonce


def check_proof(proof: object, expected: bytes, whose: str) -> None:
    if type(proof) is not bytes or not hmac.compare_digest(proof, expected):
        raise LinkRefused(f"the {whose} has another cluster secret")


def check_secret(secret: bytes) -> bytes:
    if type(secret) is not bytes or len(secret) < SECRET_BYTES_MIN:
        raise SetupError(f"the cluster secret must be at least {SECRET_BYTES_MIN} bytes")
    return secret
