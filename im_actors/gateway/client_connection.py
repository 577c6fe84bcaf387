"""One client's connection: it greets, then hands each message to the part that deals with it.

STRANGER ── HELLO is good ──▶ WELCOME ── BYE, violation, silence, too far behind ──▶ CLOSING
    └────── HELLO is bad, late, or not the first ──────────────────────────────────────▲
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from im_actors.core.ratelimit import TokenBucket
from im_actors.errors import ImError, Overloaded, RateLimited, ShuttingDown
from im_actors.net.connection import FramedProtocol
from im_actors.wire import messages as m
from im_actors.wire.codec import Message, encode_frame
from im_actors.wire.limits import (
    CLIENT_ARRAY_ITEMS_MAX,
    HELLO_BYTES_MAX,
    HELLO_ITEMS_MAX,
    ROWS_PER_FRAME_MAX,
)
from im_actors.wire.messages import Hello, in_batches
from im_actors.wire.queries import check_query, check_signal

if TYPE_CHECKING:
    from im_actors.gateway.node import GatewayNode

logger = logging.getLogger(__name__)

PULL_ASKS = 5
"""A PULL costs about as much as so many names of a FOLLOW."""
PAGE_BYTES_PER_ASK = 4_096
"""And its page costs one more for so many bytes."""
OVERLOADED_ASKS = 10
"""An entry that was OVERLOADED counts as so many. Who goes on sending more than there is room for
would otherwise cost the processor that work needs."""
REST_MS_MIN = 20
"""Resting is not worth the timer for less."""


_OVERLOADED = Overloaded.code


class ClientConnection(FramedProtocol):
    """The server's side of one client connection."""

    def __init__(self, node: GatewayNode) -> None:
        config = node.config
        super().__init__()
        self._decoder.greet(HELLO_BYTES_MAX, HELLO_ITEMS_MAX)
        self._node = node
        self._limits = config.limits
        self._asks = TokenBucket(config.asks_per_s, config.asks_burst)
        self._later: list[Message] = []
        """What was read and waits, with all that was not read, until ``_resume``."""
        self._resume: asyncio.TimerHandle | None = None
        self._heard_bytes = 0
        self._expires_ms: int | None = None
        """When the client's token does, in ms since 1970."""
        self._bucket: TokenBucket
        """What its sends are taken from, from its HELLO on."""
        self.hello: Hello | None = None
        """None: a stranger."""
        self.address = ""
        self.heard_ms = 0
        """When something came for the last time."""
        self.behind_since_ms: int | None = None
        """Since when there has been more unread than the kernel takes; None: there is not."""
        self.outstanding = 0
        self.pulls = 0
        self.queries = 0
        self.asked: set[str] = set()
        self.signals: dict[str, int] = {}
        self.follows: set[str] = set()
        self.missed: set[str] = set()
        self.ack_rows: list[tuple[Any, ...]] = []
        self.nack_rows: list[tuple[Any, ...]] = []

    # ---- FramedProtocol

    def opened(self) -> None:
        self.heard_ms = self._node.now_ms()
        self._node.connection_opened(self)

    def frames_received(self, messages: list[Message]) -> None:
        now_ms = self.heard_ms = self._node.now_ms()
        if self.hello is None:
            self._greet(messages[0])
            if self.hello is None:
                return
            messages = self._decoder.go_on(self._limits.frame_bytes, CLIENT_ARRAY_ITEMS_MAX)
        if self._resume is not None:
            self._later += messages
        else:
            self._carry_out(messages, now_ms)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.behind_since_ms = self._node.now_ms()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.behind_since_ms = None
        self._node.followers.caught_up(self)

    def violated(self, error: ImError) -> None:
        logger.info("%s %s: %s", self.address or "a stranger", self.peername, error)
        self._node.violations += 1
        super().violated(error)

    def on_closed(self, error: ImError | None) -> None:
        self._later.clear()
        if self._resume is not None:
            self._resume.cancel()
        self._node.connection_closed(self)

    # ---- what others call

    @property
    def user(self) -> str:
        return self.hello.user if self.hello is not None else ""

    @property
    def device(self) -> str:
        """Without the user."""
        return self.hello.device if self.hello is not None else ""

    def flush_answers(self) -> None:
        """Send the ACKs and NACKs that have gathered."""
        if self.nack_rows:
            overloaded = sum([row[2] == _OVERLOADED for row in self.nack_rows])
            asked = len(self.nack_rows) + overloaded * (OVERLOADED_ASKS - 1)
            self._spend(asked, self._node.now_ms())
        for kind, rows in ((m.ACK, self.ack_rows), (m.NACK, self.nack_rows)):
            if not rows:
                continue
            if len(rows) <= ROWS_PER_FRAME_MAX:
                self.send(encode_frame((kind, rows)))
            else:
                self.send(b"".join(encode_frame((kind, part)) for part in in_batches(rows)))
            # The frame is made, and the list belongs to nobody else.
            rows.clear()
        self._check_unread()

    def page_sent(self, size: int) -> None:
        """A page of so many bytes was sent."""
        self._spend(size / PAGE_BYTES_PER_ASK, self._node.now_ms())

    def say_bye(self, reason: str, reconnect_after_ms: int) -> None:
        """Tell the client that the connection is about to end; it stays open."""
        self.send(encode_frame(m.server_bye(reason, reconnect_after_ms)))

    def look_after(self, now_ms: int) -> None:
        """Close when the client is silent or behind for too long, or its token has expired."""
        if self._decoder.pending_bytes != self._heard_bytes:
            # Part of a frame is a sign of life, too.
            self._heard_bytes = self._decoder.pending_bytes
            if self.hello is not None:
                self.heard_ms = now_ms
        if self._resume is not None:
            self.heard_ms = now_ms  # It is not listened to, which is no silence of its own.
        self._check_unread()
        silent_ms = now_ms - self.heard_ms
        limits = self._limits
        if self.hello is None:
            if silent_ms >= limits.hello_timeout_ms:
                self._end("HELLO did not come in time", self._node.config.retry_after_ms)
        elif silent_ms >= limits.heartbeat_ms * limits.heartbeats_missed:
            self._end(f"nothing was heard for {silent_ms} ms", 0)
        elif (
            self.behind_since_ms is not None
            and now_ms - self.behind_since_ms >= self._node.config.slow_reader_ms
        ):
            self._end("this client reads too slowly", self._node.config.retry_after_ms)
        elif self._expires_ms is not None and self._node.wall_ms() >= self._expires_ms:
            self._end("the token has expired; come back with a new one", 0)

    # ---- inside

    def _carry_out(self, messages: list[Message], now_ms: int) -> None:
        try:
            for index, message in enumerate(messages):
                if self._resume is not None:
                    self._later = messages[index:]
                    break
                if not self._open:
                    break
                if message[0] == m.SEND:
                    self._send_received(message, now_ms)
                    if self.nack_rows:
                        # At once: it may be that what follows has to wait.
                        self.flush_answers()
                else:
                    self._spend(self._rare_received(message, now_ms), now_ms)
        finally:
            self._node.router.flush_answers()

    def _spend(self, asked: float, now_ms: int) -> None:
        """Count what was done for it. Who asks for more than its share is not read from for a
        while, so that everybody else has theirs."""
        wait_ms = self._asks.spend(asked, now_ms)
        if not wait_ms or self._resume is not None or not self._open:
            return
        assert self._loop is not None
        self.pause_reading()
        self._resume = self._loop.call_later(max(wait_ms, REST_MS_MIN) / 1000, self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        if not self._open:
            return
        later, self._later = self._later, []
        self.heard_ms = self._node.now_ms()
        self.resume_reading()
        try:
            self._carry_out(later, self.heard_ms)
        except ImError as error:
            self.violated(error)

    def _check_unread(self) -> None:
        if not self.writable and self.buffered_bytes > self._node.config.buffered_bytes_max:
            self.abort(Overloaded("the client does not read its answers"))

    def _end(self, reason: str, reconnect_after_ms: int) -> None:
        logger.info("%s %s: %s", self.address or "a stranger", self.peername, reason)
        self.close(encode_frame(m.server_bye(reason, reconnect_after_ms)))

    def _greet(self, message: Message) -> None:
        hello = m.check_hello(message, self._node.config.versions)
        self._expires_ms = self._node.check_hello(self, hello)
        try:
            self._bucket = self._node.greeted(self, hello)
        except Overloaded as error:
            self._end(str(error), error.retry_after_ms)
            return
        self.hello = hello
        self.address = hello.address
        name, now_ms = self._node.name, self._node.wall_ms()
        self.send(encode_frame(m.welcome(name, now_ms, self._limits, hello.version)))
        self._node.connection_welcomed(self, hello)

    def _send_received(self, message: Message, now_ms: int) -> None:
        accepted, refused = m.check_send(message, self._limits)
        router = self._node.router
        if refused:
            router.nack(self, refused)
        if not accepted:
            return
        if self._node.draining:
            router.refuse(self, accepted, ShuttingDown("this gateway is stopping; reconnect"))
        elif router.is_full:
            # First of all, as it costs least and says nothing against this client.
            router.submit(self, accepted, now_ms)
        elif wait_ms := self._bucket.take(len(accepted), now_ms):
            router.refuse(self, accepted, RateLimited("slower, please", wait_ms))
        else:
            router.submit(self, accepted, now_ms)

    def _rare_received(self, message: Message, now_ms: int) -> int:
        """Returns how much was asked for, as ``GatewayConfig.asks_per_s`` counts it."""
        match message[0]:
            case m.FOLLOW:
                sessions = m.check_follow(message, self._limits)
                try:
                    self._node.follow(self, sessions, now_ms)
                except Overloaded as error:
                    # Retryable, so the connection stays.
                    self.send(encode_frame(m.error_message(error)))
                return len(sessions)
            case m.UNFOLLOW:
                sessions = m.check_unfollow(message, self._limits)
                self._node.unfollow(self, sessions)
                return len(sessions)
            case m.PULL:
                self._node.pull(self, m.check_pull(message, self._limits), now_ms)
                return PULL_ASKS
            case m.PING:
                self.send(encode_frame(m.pong(m.check_ping(message))))
            case m.BYE:
                logger.debug("%s says bye: %s", self.address, m.check_bye(message))
                self.close()
            case m.QUERY:
                self._node.query(self, check_query(message))
                return PULL_ASKS
            case m.SIGNAL:
                self._node.signal(self, check_signal(message), now_ms)
            case _:
                m.refuse_type(message)
        return 1
