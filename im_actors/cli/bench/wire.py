"""What sending and reading connections have in common: the greeting, the heartbeat, the end."""

from __future__ import annotations

import asyncio
import resource
import ssl
import time
from typing import Any, cast

from im_actors.errors import ImError, NotReachable, SetupError
from im_actors.net.connection import tune_socket
from im_actors.net.tls import why_not
from im_actors.wire import messages as m
from im_actors.wire.answers import read_error
from im_actors.wire.codec import Message, encode_frame

USER_TIMEOUT_MS = 10_000
FILES_OF_ITS_OWN = 64
PING = encode_frame(m.ping(1))


def micros() -> int:
    """Microseconds, of a clock that all processes of this machine share."""
    return time.monotonic_ns() // 1000


class Wire(asyncio.Protocol):
    """One connection. ``welcome`` is done when it may be used; the first thing that breaks it
    later goes to ``failed``, which is overridden."""

    def __init__(self, device: str, user: str, token: str | None) -> None:
        self.device = device
        self._hello = encode_frame(m.hello(user, device, token, "im_actors bench"))
        self._closing = False
        self.server = ""
        """The name of the gateway at the other end."""
        self.welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def failed(self, error: ImError) -> None:
        """The connection is of no use any more."""
        raise NotImplementedError

    def ping(self) -> None:
        """A sign of life."""
        if not self._transport.is_closing():
            self._transport.write(PING)

    def close(self) -> None:
        self._closing = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        tune_socket(transport.get_extra_info("socket"), USER_TIMEOUT_MS)
        self._transport.write(self._hello)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(NotReachable(f"{self.device}: the connection has ended: {error or 'closed'}"))

    def rare(self, message: Message) -> None:
        """A message that comes seldom: part of the greeting, or of the end."""
        kind = message[0]
        if kind == m.WELCOME:
            self.server = message[2]
            if not self.welcome.done():
                self.welcome.set_result(None)
        elif kind == m.ERROR:
            self._end(read_error(message))
        elif kind == m.SERVER_BYE:
            self._end(NotReachable(f"{self.device}: the gateway says bye: {message[1]}"))

    def _end(self, error: ImError) -> None:
        if self._closing:
            return
        self._closing = True
        if self.welcome.done():
            self.failed(error)
        else:
            self.welcome.set_exception(error)
        self._transport.abort()


async def connect_all(
    wires: list[tuple[Any, tuple[str, int]]],
    tls: ssl.SSLContext | None = None,
    server_name: str = "",
    at_once: int = 128,
) -> list[Any]:
    """Connections made by these factories to these addresses, all of them welcomed. The error of
    the first that fails; NotReachable when there is nobody, SetupError when they are too many or
    a certificate is not believed. ``server_name``: what it has to be for, if not for the address.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FILES_OF_ITS_OWN
    if len(wires) > most:
        raise SetupError(
            f"{len(wires)} connections in one process, which may open {most}: raise the limit of"
            " open files (ulimit -n), or give more --processes"
        )
    loop = asyncio.get_running_loop()

    async def one(factory: Any, host: str, port: int) -> Any:
        try:
            name = (server_name or host) if tls else None
            _, wire = await loop.create_connection(
                factory, host, port, ssl=tls, server_hostname=name
            )
        except ssl.SSLError as error:
            raise SetupError(f"no TLS with {host}:{port}: {why_not(error)}") from None
        except OSError as error:
            raise NotReachable(f"{host}:{port} cannot be reached: {error}") from None
        await wire.welcome
        return wire

    made: list[Any] = []
    for start in range(0, len(wires), at_once):
        part = wires[start : start + at_once]
        made += await asyncio.gather(*(one(make, host, port) for make, (host, port) in part))
    return made
