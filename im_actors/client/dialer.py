"""When to dial, whom, when to give a connection up: the client's connection as a state machine.

    WAITING --time--> DIALING --link--> GREETING --WELCOME--> ONLINE
       ^                 |                 |                     |
       +---- failure ----+-----------------+---------------------+

A refusal for good (a bad token, another protocol version) is told to the user and tried again only
rarely: a token can be renewed, but a crowd of refused clients must not be a load. A server that
says "do not come back" is believed: STOPPED.

Pure, like the machines of ``core``: the caller carries out the effects and reports what happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from random import Random

from im_actors.client.config import Address, ClientConfig
from im_actors.core.backoff import full_jitter_ms, stretched_ms
from im_actors.errors import ImError, NotReachable, ShuttingDown

PINGS_UNANSWERED_MAX = 2
"""So many pings without any sign of the server, and one more interval, end a connection."""


class LinkState(StrEnum):
    WAITING = "waiting"
    DIALING = "dialing"
    GREETING = "greeting"
    ONLINE = "online"
    STOPPED = "stopped"


# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    pass


@dataclass(frozen=True, slots=True)
class LinkOpened:
    """The TCP connection is up, and TLS where it is used."""


@dataclass(frozen=True, slots=True)
class Welcomed:
    heartbeat_ms: int


@dataclass(frozen=True, slots=True)
class LinkLost:
    """Dialing failed or the connection ended; ``error`` says why, where that is known."""

    error: ImError | None


@dataclass(frozen=True, slots=True)
class ErrorReceived:
    """The server reported an error of the whole connection."""

    error: ImError


@dataclass(frozen=True, slots=True)
class ByeReceived:
    reason: str
    reconnect_after_ms: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed. ``waiting``: an answer is being waited for, so silence means more."""

    last_heard_ms: int
    last_sent_ms: int
    waiting: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """The user closes the client."""


DialerEvent = (
    Started | LinkOpened | Welcomed | LinkLost | ErrorReceived | ByeReceived | Ticked | Closed
)


# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect, within the configured time; feed LinkOpened or LinkLost back."""

    address: Address


@dataclass(frozen=True, slots=True)
class SendHello:
    pass


@dataclass(frozen=True, slots=True)
class SendPing:
    token: int


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the connection, or give up dialing; nothing of it is reported any more."""


@dataclass(frozen=True, slots=True)
class GoOnline:
    """The outbox and the inbox may use the connection from now on."""


@dataclass(frozen=True, slots=True)
class GoOffline:
    """They may no longer. Comes once after each GoOnline."""


@dataclass(frozen=True, slots=True)
class TellRefused:
    """Those who wait for the connection should hear that it will not come by waiting."""

    error: ImError


DialerEffect = Dial | SendHello | SendPing | HangUp | GoOnline | GoOffline | TellRefused


class Dialer:
    """The machine. ``handle`` is its one door; ``deadline_ms`` says when it wants a ``Ticked``."""

    def __init__(self, addresses: tuple[Address, ...], config: ClientConfig, rng: Random) -> None:
        assert addresses
        self._addresses = addresses
        self._config = config
        self._rng = rng
        self._next = rng.randrange(len(addresses))
        self._step = 0
        self._deadline_ms: int | None = None
        self._heartbeat_ms = 0
        self._online_since_ms = 0
        self._pings = 0
        self._pinged_ms = 0
        self.state = LinkState.WAITING
        self.address: Address | None = None
        """The one that is being tried or used."""
        self.error: ImError | None = None
        """Why there is no connection now; None while there is one."""
        self.refusal: ImError | None = None
        """The error that waiting does not mend, until a WELCOME proves otherwise."""

    def deadline_ms(self) -> int | None:
        return self._deadline_ms

    def handle(self, event: DialerEvent, now_ms: int) -> list[DialerEffect]:
        """Take one event and say what to do, to be carried out in this order."""
        if self.state is LinkState.STOPPED:
            return []
        match event:
            case Ticked():
                return self._ticked(event, now_ms)
            case Started():
                return self._dial(now_ms)
            case LinkOpened():
                self.state = LinkState.GREETING
                self._deadline_ms = now_ms + self._config.welcome_timeout_ms
                return [SendHello()]
            case Welcomed():
                return self._welcomed(event, now_ms)
            case LinkLost():
                error = event.error or NotReachable(f"{self.address} closed the connection")
                return self._lose(error, now_ms)
            case ErrorReceived():
                if event.error.retryable and self.state is LinkState.ONLINE:
                    return []  # about one request; the server keeps such a connection
                return [HangUp(), *self._lose(event.error, now_ms)]
            case ByeReceived():
                return [HangUp(), *self._bye(event, now_ms)]
            case Closed():
                return self._stop(ShuttingDown("the client is closed"))

    def _dial(self, now_ms: int) -> list[DialerEffect]:
        self.address = self._addresses[self._next % len(self._addresses)]
        self.state = LinkState.DIALING
        self._deadline_ms = now_ms + self._config.dial_timeout_ms
        return [Dial(self.address)]

    def _welcomed(self, event: Welcomed, now_ms: int) -> list[DialerEffect]:
        self.state = LinkState.ONLINE
        self.error = self.refusal = None
        self._heartbeat_ms = event.heartbeat_ms
        self._online_since_ms = now_ms
        self._pings = 0
        self._deadline_ms = now_ms + min(event.heartbeat_ms, self._config.probe_ms)
        return [GoOnline()]

    def _lose(self, error: ImError, now_ms: int, after_ms: int | None = None) -> list[DialerEffect]:
        """The connection is gone: the next address, after a while."""
        if self.state is LinkState.WAITING:
            return []
        online = self.state is LinkState.ONLINE
        # Only a connection that lasted proves the server well; one that is dropped after each
        # WELCOME must not be dialed without a pause.
        if online and now_ms - self._online_since_ms >= self._config.reconnect_cap_ms:
            self._step = 0
        self.state = LinkState.WAITING
        self.error = error
        self._next += 1
        effects: list[DialerEffect] = [GoOffline()] if online else []
        if error.retryable:
            wait_ms = self._backoff_ms() if after_ms is None else stretched_ms(after_ms, self._rng)
        else:
            wait_ms = stretched_ms(self._config.refused_retry_ms, self._rng)
            self.refusal = error
            effects.append(TellRefused(error))
        self._deadline_ms = now_ms + wait_ms
        return effects

    def _backoff_ms(self) -> int:
        config = self._config
        wait_ms = full_jitter_ms(
            self._step, config.reconnect_base_ms, config.reconnect_cap_ms, self._rng
        )
        # A round over all addresses counts as one failure: the next one may well be alive.
        if self._next % len(self._addresses) == 0:
            self._step += 1
        return wait_ms

    def _bye(self, event: ByeReceived, now_ms: int) -> list[DialerEffect]:
        error = ShuttingDown(f"{self.address} said goodbye: {event.reason}")
        if event.reconnect_after_ms < 0:
            return [*self._stop(error), TellRefused(error)]
        return self._lose(error, now_ms, event.reconnect_after_ms)

    def _stop(self, error: ImError) -> list[DialerEffect]:
        online = self.state is LinkState.ONLINE
        self.state = LinkState.STOPPED
        self.error = self.refusal = error
        self._deadline_ms = None
        return [GoOffline(), HangUp()] if online else [HangUp()]

    # -- time ------------------------------------------------------------------------------------

    def _ticked(self, event: Ticked, now_ms: int) -> list[DialerEffect]:
        if self._deadline_ms is None or now_ms < self._deadline_ms:
            return []
        match self.state:
            case LinkState.WAITING:
                return self._dial(now_ms)
            case LinkState.ONLINE:
                return self._watch(event, now_ms)
            case _:
                what = "connection" if self.state is LinkState.DIALING else "WELCOME"
                error = NotReachable(f"no {what} from {self.address} in time")
                return [HangUp(), *self._lose(error, now_ms)]

    def _watch(self, event: Ticked, now_ms: int) -> list[DialerEffect]:
        """The heartbeat: a PING when either direction was silent for an interval."""
        if event.last_heard_ms >= self._pinged_ms:
            self._pings = 0
        interval_ms = self._heartbeat_ms
        if event.waiting:
            interval_ms = min(interval_ms, self._config.probe_ms)
        quiet_since_ms = min(event.last_heard_ms, event.last_sent_ms)
        if self._pings:
            quiet_since_ms = max(quiet_since_ms, self._pinged_ms)
        effects: list[DialerEffect] = []
        if now_ms - quiet_since_ms >= interval_ms:
            if self._pings >= PINGS_UNANSWERED_MAX:
                error = NotReachable(f"{self.address} does not answer any more")
                return [HangUp(), *self._lose(error, now_ms)]
            self._pings += 1
            self._pinged_ms = quiet_since_ms = now_ms
            effects.append(SendPing(now_ms))
        # Whether an answer is waited for can change before the interval is over.
        self._deadline_ms = min(quiet_since_ms + interval_ms, now_ms + self._config.probe_ms)
        return effects
