"""Listening: a bounded number of framed connections, and errors that say what to do."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from ssl import SSLContext

from im_actors.errors import ImError, Overloaded, SetupError, ShuttingDown
from im_actors.net.connection import FramedProtocol
from im_actors.wire.codec import encode_frame
from im_actors.wire.messages import error_message

CONNECTIONS_MAX = 20_000
REFUSALS_MAX = 100
"""Connections above the bound that are being told so; further ones are dropped without a word."""
BACKLOG = 1_024
TLS_HANDSHAKE_S = 5.0


class Listener:
    """An open port and its connections. Made by ``listen``."""

    def __init__(self, factory: Callable[[], FramedProtocol], connections_max: int) -> None:
        self._factory = factory
        self._connections_max = connections_max
        self._refused: set[FramedProtocol] = set()
        self._server: asyncio.Server | None = None
        self._closed = False
        self.connections: set[FramedProtocol] = set()
        """All that were admitted and are not lost yet."""
        self.host = ""
        self.port = 0
        """The real ones, also when port 0 was asked for."""

    def close(self) -> None:
        """Accept no more; the connections stay, and are their users' to close."""
        self._closed = True
        if self._server is not None:
            self._server.close()

    def abort_connections(self, error: ImError | None = None) -> None:
        """Cut all connections at once."""
        for connection in [*self.connections, *self._refused]:
            connection.abort(error)

    async def wait_closed(self) -> None:
        """Return when all connections are gone; call ``close`` first."""
        for connection in [*self.connections, *self._refused]:
            await connection.wait_closed()

    # ---- Gate

    def admit(self, connection: FramedProtocol) -> bool:
        """The bound is kept here and not when a connection is accepted: one that fails in its TLS
        handshake is never made and never lost, and would be counted for ever."""
        if not self._closed and len(self.connections) < self._connections_max:
            self.connections.add(connection)
            return True
        if len(self._refused) >= REFUSALS_MAX:
            connection.abort()
            return False
        self._refused.add(connection)
        refusal = Overloaded(f"all {self._connections_max} connections are in use here")
        connection.close(encode_frame(error_message(ShuttingDown() if self._closed else refusal)))
        return False

    def left(self, connection: FramedProtocol) -> None:
        """Make room for the next one."""
        self.connections.discard(connection)
        self._refused.discard(connection)

    # ---- inside

    async def _start(
        self, host: str, port: int, reuse_port: bool, ssl: SSLContext | None, backlog: int
    ) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            self._accept,
            host,
            port,
            backlog=backlog,
            reuse_port=reuse_port or None,
            ssl=ssl,
            ssl_handshake_timeout=TLS_HANDSHAKE_S if ssl else None,
        )
        name = self._server.sockets[0].getsockname()
        self.host, self.port = name[0], name[1]

    def _accept(self) -> FramedProtocol:
        connection = self._factory()
        connection.gate = self
        return connection


async def listen(
    factory: Callable[[], FramedProtocol],
    host: str,
    port: int,
    *,
    reuse_port: bool = False,
    ssl: SSLContext | None = None,
    connections_max: int = CONNECTIONS_MAX,
    backlog: int = BACKLOG,
) -> Listener:
    """Open ``port`` (0: any free one) on ``host``; ``factory`` makes each connection.

    SetupError says what is wrong with the address, in words for the one who configured it.
    """
    listener = Listener(factory, connections_max)
    try:
        await listener._start(host, port, reuse_port, ssl, backlog)
    except (OSError, OverflowError, ValueError) as error:
        raise SetupError(f"cannot listen on {host}:{port}: {_why(error, port)}") from error
    return listener


def _why(error: Exception, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return f"the host name cannot be resolved ({error.strerror})"
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return "the port is in use by another process; stop that one or choose another port"
    if number == errno.EADDRNOTAVAIL:
        return "no network interface of this machine has that address"
    if number in (errno.EACCES, errno.EPERM):
        low = "; ports below 1024 need the right to bind them" if 0 < port < 1024 else ""
        return f"permission denied{low}"
    if number == errno.EMFILE:
        return "this process has no file descriptors left; raise its limit (ulimit -n)"
    return str(error) or type(error).__name__
