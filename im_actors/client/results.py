"""What the client's calls return."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from im_actors.core.model import Event
from im_actors.core.outbox_words import SendState
from im_actors.errors import ImError

if TYPE_CHECKING:
    from im_actors.client.engine import Engine


class Ack(NamedTuple):
    """The receipt of a message: it is on ``copies`` disks and has its place in the conversation."""

    session: str
    n: int
    """The sender's own number."""
    seq: int
    """The message's place in its session."""
    epoch: int
    copies: int
    time_ms: int
    """When the server took it, since the Unix epoch."""
    latency_ms: float | None
    """From ``send`` to the ACK; None when another run of the program sent it."""


class Sent:
    """A send that was accepted: it is in the outbox until the server answers for good."""

    __slots__ = (
        "_ack", "_engine", "_error", "_saved", "_started", "_waiter", "n", "session",
    )  # fmt: skip

    def __init__(self, engine: Engine, session: str, n: int, started: float | None) -> None:
        self._engine = engine
        self._started = started
        self._ack: Ack | None = None
        self._error: ImError | None = None
        self._saved: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.session = session
        self.n = n
        """The sender's number. It changes when the server knows another message by it, which
        happens only to a store that was restored from an old copy."""

    @property
    def state(self) -> SendState:
        """saving, pending, in flight, acked or refused."""
        if self._ack is not None:
            return SendState.ACKED
        if self._error is not None:
            return SendState.REFUSED
        view = self._engine.outbox.row(self.session, self.n)
        assert view is not None, self._engine.outbox.story(self.session, self.n)
        return view.state

    @property
    def ack(self) -> Ack | None:
        """The receipt, once there is one."""
        return self._ack

    @property
    def error(self) -> ImError | None:
        """Why it was refused for good, if it was."""
        return self._error

    @property
    def kind(self) -> int | None:
        """The kind of the event that it asks for; None once there is an answer."""
        view = self._engine.outbox.row(self.session, self.n)
        return view.row.kind if view is not None else None

    @property
    def body(self) -> bytes | None:
        """What is sent, as long as there is no answer: a program that comes back shows by it what
        still waits from its last run."""
        view = self._engine.outbox.row(self.session, self.n)
        return view.row.body if view is not None else None

    async def acked(self, timeout: float | None = None) -> Ack:
        """Wait for the receipt.

        Raises the error of a message that was *refused*: it had no effect and is not sent again.
        Every other error leaves the message in the outbox, and says so by ``state``: Unknown after
        ``timeout`` seconds or when the client is closed, or the error that the whole connection
        was refused with, such as Unauthenticated.
        """
        if self._ack is None and self._error is None:
            await self._engine.wait_for_answer(self, timeout)
        if self._error is not None:
            raise self._error
        assert self._ack is not None
        return self._ack

    def _settle(self, ack: Ack | None, error: ImError | None) -> None:
        self._ack, self._error = ack, error
        self._wake()

    def _wake(self, error: Callable[[], ImError] | None = None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error())

    def __repr__(self) -> str:
        return f"Sent(session={self.session!r}, n={self.n}, state={str(self.state)!r})"


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a conversation, in order of seq."""

    events: list[Event]
    before: int | None
    """Give this to ``history`` for the page of what came before; None at the beginning."""
    offline: bool
    """The server did not answer, so this is what the local store has: newer events may exist."""
    complete: bool
    """Nothing is missing inside the page. Always so, unless ``offline``."""


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A conversation as this device knows it."""

    session: str
    last: Event | None
    """The newest event in the local store; None also when it is one that nobody is shown."""
    pending: int
    """Sends without an answer."""
    cursor: int
    """The seq up to which ``follow`` was consumed on this device."""


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a client."""

    state: str
    """waiting, dialing, greeting, online or stopped."""
    address: str
    """The device address that the server and other devices see."""
    server: str | None
    """host:port that is being used or tried."""
    pending: int
    """Sends without an answer, those in flight included."""
    in_flight: int
    followed: int
    """Sessions that are followed, the user's own mailbox not counted."""
    connects: int
    """How often the connection was established."""
    last_error: ImError | None
    """The last thing that went wrong, also when it was mended since."""

    @property
    def online(self) -> bool:
        return self.state == "online"


@dataclass(frozen=True, slots=True)
class Where:
    """The answer to "where is my message?"."""

    session: str
    n: int
    state: SendState | None
    """None: this device has no such message, or has forgotten its end."""
    text: str
    """The answer in words."""
    ack: Ack | None
    error: ImError | None
    """Why it was refused, or what the last try met."""
    attempts: int
    """How often it was sent by this run of the program."""
    story: list[str]
    """What this device did with it, oldest first; each line begins with milliseconds."""
