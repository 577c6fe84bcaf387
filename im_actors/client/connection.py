"""The client's connection: it carries out what the dialer decides.

It greets, pings, hangs up and dials again by itself; its owner hears of frames, and of the moments
at which sending becomes possible and stops being so.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Protocol

from im_actors.client import dialer as d
from im_actors.client.config import Address, ClientConfig, Url
from im_actors.errors import ImError, NotReachable, SetupError
from im_actors.net.connection import FramedProtocol
from im_actors.net.tls import client_context, why_not
from im_actors.wire import answers, messages
from im_actors.wire.codec import Message, encode_frame
from im_actors.wire.limits import Limits

Token = str | Callable[[], str | Awaitable[str | None] | None] | None


class Owner(Protocol):
    """Who uses a connection."""

    def online(self) -> None:
        """The server said WELCOME: sending is possible from now on."""

    def offline(self) -> None:
        """It is no longer."""

    def refused(self, error: ImError) -> None:
        """The server does not want this client; waiting alone will not mend it."""

    def frame_received(self, frame: Message) -> None:
        """A frame that is not the connection's own business. An ImError that this raises closes
        the connection as a violation of the protocol."""

    def warn(self, error: ImError) -> None:
        """For the log."""

    def changed(self) -> None:
        """State or deadline may have changed."""


class Link(FramedProtocol):
    """One TCP connection. A link that was let go is not heard any more."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection: Connection | None = connection

    def opened(self) -> None:
        if self._connection is None:
            self.abort()
        else:
            self._connection.link_opened(self)

    def frames_received(self, messages: list[Message]) -> None:
        if self._connection is not None:
            self._connection.received(self, messages)

    def on_closed(self, error: ImError | None) -> None:
        if self._connection is not None:
            self._connection.link_closed(error)

    def let_go(self) -> None:
        self._connection = None


class Connection:
    """At most one link at a time, and at most one task, which dials."""

    def __init__(
        self,
        owner: Owner,
        url: Url,
        user: str,
        token: Token,
        ssl_context: ssl.SSLContext | None,
        config: ClientConfig,
        rng: Random,
    ) -> None:
        self._owner = owner
        self._tls = _context(url, ssl_context, config)
        self._refusal = SetupError if len(url.addresses) == 1 else NotReachable
        """Waiting does not mend a server's certificate; another server may have a good one."""
        self._user = user
        self._device = ""
        self._token = token
        self._hello_token: str | None = None
        self._config = config
        self._link: Link | None = None
        self._last_link: Link | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._last_heard_ms = 0
        self._last_sent_ms = 0
        self._silent = True
        """Nothing has come over the present link yet."""
        self.dialer = d.Dialer(url.addresses, config, rng)
        self.limits = Limits()
        """Those of the last WELCOME; the defaults before the first one."""
        self.version = 0
        """Of the protocol, on the connection of the last WELCOME."""
        self.count = 0
        """How often a server said WELCOME."""

    @property
    def is_online(self) -> bool:
        return self.dialer.state is d.LinkState.ONLINE

    def start(self, device: str) -> None:
        """``device`` with the install id, without the user."""
        self._device = device
        self._handle(d.Started())

    def close(self) -> None:
        self._handle(d.Closed())

    async def wait_closed(self) -> None:
        """After ``close``: return when the goodbye is said, or soon anyway."""
        if self._last_link is not None:
            await self._last_link.wait_closed()

    def tick(self, waiting: bool) -> None:
        """Call it when ``dialer.deadline_ms()`` has come; ``waiting``: for an answer."""
        self._handle(d.Ticked(self._last_heard_ms, self._last_sent_ms, waiting))

    def send(self, message: Sequence[object]) -> None:
        assert self._link is not None, "sending is possible between online and offline"
        self._last_sent_ms = _now_ms()
        self._link.send(encode_frame(message, self.limits.frame_bytes))

    def _handle(self, event: d.DialerEvent) -> None:
        for effect in self.dialer.handle(event, _now_ms()):
            match effect:
                case d.Dial():
                    self._dialing = asyncio.create_task(self._dial(effect.address))
                case d.SendHello():
                    agent, token = self._config.agent, self._hello_token
                    newest = self._config.versions.newest
                    self.send(messages.hello(self._user, self._device, token, agent, newest))
                case d.SendPing():
                    self.send(messages.ping(effect.token))
                case d.HangUp():
                    self._hang_up()
                case d.GoOnline():
                    self.count += 1
                    self._owner.online()
                case d.GoOffline():
                    self._owner.offline()
                case d.TellRefused():
                    self._owner.refused(effect.error)
        self._owner.changed()

    # -- the link --------------------------------------------------------------------------------

    async def _dial(self, address: Address) -> None:
        error: ImError
        try:
            self._hello_token = await self._fetch_token()
            name = (self._config.tls_server_name or address.host) if self._tls else None
            await asyncio.get_running_loop().create_connection(
                lambda: Link(self), address.host, address.port, ssl=self._tls, server_hostname=name
            )
            return
        except ssl.SSLError as problem:
            error = self._refusal(f"no TLS with {address}: {why_not(problem)}")
        except OSError as problem:
            error = NotReachable(f"cannot connect to {address}: {problem}")
        except ImError as problem:
            error = problem
        self._dialing = None
        self._handle(d.LinkLost(error))

    async def _fetch_token(self) -> str | None:
        if not callable(self._token):
            return self._token
        try:
            token = self._token()
            return token if token is None or isinstance(token, str) else await token
        except ImError:
            raise
        except Exception as error:
            # The user's function may raise anything; the dialer must hear of it all the same.
            raise NotReachable(f"the token could not be had: {error!r}") from error

    def link_opened(self, link: Link) -> None:
        self._link = self._last_link = link
        self._dialing = None
        self._silent = True
        self._last_heard_ms = self._last_sent_ms = _now_ms()
        self._handle(d.LinkOpened())

    def link_closed(self, error: ImError | None) -> None:
        self._link = None
        if self._silent and self._tls is None:
            # What a door with TLS makes of HELLO is nothing that it could answer.
            how = error or f"{self.dialer.address} closed the connection"
            error = NotReachable(
                f"{how}, and said nothing: does it want TLS, ims:// and not im://?"
            )
        self._handle(d.LinkLost(error))

    def _hang_up(self) -> None:
        if self._dialing is not None:
            self._dialing.cancel()
            self._dialing = None
        link, self._link = self._link, None
        if link is not None:
            link.let_go()
            link.close(encode_frame(messages.bye("closing")))

    # -- frames ----------------------------------------------------------------------------------

    def received(self, link: Link, frames: list[Message]) -> None:
        """An ImError that this raises closes the connection as a violation of the protocol."""
        self._silent = False
        self._last_heard_ms = _now_ms()
        for frame in frames:
            if self._link is not link:
                return  # an earlier one of them ended the connection
            match frame[0]:
                case messages.ERROR:
                    error = answers.read_error(frame)
                    if error.retryable:
                        self._owner.warn(error)
                    self._handle(d.ErrorReceived(error))
                case messages.SERVER_BYE:
                    bye = answers.read_bye(frame)
                    self._handle(d.ByeReceived(bye.reason, bye.reconnect_after_ms))
                case messages.PONG:
                    pass  # that something was heard is all that counts
                case _ if self.is_online:
                    self._owner.frame_received(frame)
                case _:
                    welcome = answers.read_welcome(frame, self._config.versions)
                    self.limits, self.version = welcome.limits, welcome.version
                    self._handle(d.Welcomed(self.limits.heartbeat_ms))


def _context(url: Url, given: ssl.SSLContext | None, config: ClientConfig) -> ssl.SSLContext | None:
    named = [name for name in ("tls_ca", "tls_server_name") if getattr(config, name)]
    if named and not url.tls:
        raise SetupError(f"{' and '.join(named)}: the address has to begin with ims:// for TLS")
    if given is not None and config.tls_ca:
        raise SetupError("ssl and tls_ca exclude each other")
    if not url.tls:
        return None
    return given or client_context(config.tls_ca)


def _now_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)
