"""Listening: a bounded number of framed connections, and errors that say what to do."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from ssl import SSLContext
from typing import Protocol, cast

from im_actors.errors import ImError, Overloaded, SetupError, ShuttingDown
from im_actors.net.connection import FramedProtocol, host_of
from im_actors.wire.codec import encode_frame
from im_actors.wire.messages import error_message, server_bye

logger = logging.getLogger(__name__)

CONNECTIONS_MAX = 20_000
REFUSALS_MAX = 100
"""Connections above the bound that are being told so; further ones are dropped without a word."""
BACKLOG = 1_024
TLS_HANDSHAKE_S = 5.0


class Guard(Protocol):
    """Who decides which addresses may connect."""

    def arrived(self, host: str) -> ImError | None:
        """A connection from an IP address, before a word or a handshake of it was read: count it,
        or say why not; ``retry_after_ms`` of that tells when it may come again."""

    def gone(self, host: str) -> None:
        """One that was counted is no more."""


class _Everybody:
    def arrived(self, host: str) -> None:
        return None

    def gone(self, host: str) -> None:
        return None


class Listener:
    """An open port and its connections. Made by ``listen``."""

    def __init__(
        self,
        factory: Callable[[], FramedProtocol],
        connections_max: int,
        ssl: SSLContext | None,
        guard: Guard,
    ) -> None:
        self._factory = factory
        self._connections_max = connections_max
        self._ssl = ssl
        self.guard = guard
        self.handshakes: set[asyncio.Task[None]] = set()
        """Of TLS, under way."""
        self._refused: set[FramedProtocol] = set()
        self._counted: set[FramedProtocol] = set()
        """Those that the guard has to be told of when they are gone."""
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
        for handshake in self.handshakes:
            handshake.cancel()

    def abort_connections(self, error: ImError | None = None) -> None:
        """Cut all connections at once."""
        for connection in [*self.connections, *self._refused]:
            connection.abort(error)

    async def wait_closed(self) -> None:
        """Return when all connections are gone; call ``close`` first."""
        if self.handshakes:
            await asyncio.wait(set(self.handshakes))
        for connection in [*self.connections, *self._refused]:
            await connection.wait_closed()

    # ---- Gate

    def admit(self, connection: FramedProtocol) -> bool:
        """The bound is kept here: a connection counts when it can be spoken on."""
        if self._ssl:
            self._counted.add(connection)
        refusal = self._refusal(connection)
        if refusal is None:
            self.connections.add(connection)
            return True
        if len(self._refused) >= REFUSALS_MAX:
            connection.abort()
            return False
        self._refused.add(connection)
        if refusal.retry_after_ms:
            last = server_bye(str(refusal), refusal.retry_after_ms)
        else:
            last = error_message(refusal)
        connection.close(encode_frame(last))
        return False

    def left(self, connection: FramedProtocol) -> None:
        """Make room for the next one."""
        self.connections.discard(connection)
        self._refused.discard(connection)
        if connection in self._counted:
            self._counted.remove(connection)
            self.guard.gone(connection.peer_host)

    def shake_hands(self, sock: socket.socket, host: str, ssl: SSLContext) -> None:
        """Begin TLS with an address that the guard has counted."""
        connection = self._accept()

        def over(task: asyncio.Task[None]) -> None:
            self.handshakes.discard(task)
            if not connection.made:
                self.guard.gone(host)

        secured = self._secured(connection, sock, ssl)
        task = asyncio.get_running_loop().create_task(secured)
        self.handshakes.add(task)
        task.add_done_callback(over)

    # ---- inside

    def _refusal(self, connection: FramedProtocol) -> ImError | None:
        if self._closed:
            return ShuttingDown()
        if len(self.connections) >= self._connections_max:
            return Overloaded(f"all {self._connections_max} connections are in use here")
        if self._ssl:
            return None  # The guard was asked before the handshake, which is what costs.
        refusal = self.guard.arrived(connection.peer_host)
        if refusal is None:
            self._counted.add(connection)
        return refusal

    async def _start(self, host: str, port: int, reuse_port: bool, backlog: int) -> None:
        ssl = self._ssl
        self._server = await asyncio.get_running_loop().create_server(
            self._accept if ssl is None else lambda: _Door(self, ssl),
            host,
            port,
            backlog=backlog,
            reuse_port=reuse_port or None,
        )
        name = self._server.sockets[0].getsockname()
        self.host, self.port = name[0], name[1]

    async def _secured(
        self, connection: FramedProtocol, sock: socket.socket, ssl: SSLContext
    ) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, sock, ssl=ssl, ssl_handshake_timeout=TLS_HANDSHAKE_S
            )
        except OSError as error:
            logger.debug("a TLS handshake failed: %s", error)

    def _accept(self) -> FramedProtocol:
        connection = self._factory()
        connection.gate = self
        return connection


class _Door(asyncio.Protocol):
    """An accepted connection to a listener with TLS: the guard is asked, then the handshake begins.

    ``create_server`` would ask nobody before the handshake, and count one that never ends nowhere.
    The socket is handed on before a byte of it was read.
    """

    def __init__(self, listener: Listener, ssl: SSLContext) -> None:
        self._listener = listener
        self._ssl = ssl

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        host = host_of(transport)
        if self._listener.guard.arrived(host) is None:
            try:
                sock = transport.get_extra_info("socket").dup()
            except OSError:  # No file descriptor is left.
                self._listener.guard.gone(host)
            else:
                self._listener.shake_hands(sock, host, self._ssl)
        # uvloop's transports do not inherit asyncio.Transport, so no isinstance here. Who was
        # refused is told nothing: that would take a handshake.
        cast(asyncio.Transport, transport).abort()


async def listen(
    factory: Callable[[], FramedProtocol],
    host: str,
    port: int,
    *,
    reuse_port: bool = False,
    ssl: SSLContext | None = None,
    connections_max: int = CONNECTIONS_MAX,
    guard: Guard | None = None,
    backlog: int = BACKLOG,
) -> Listener:
    """Open ``port`` (0: any free one) on ``host``; ``factory`` makes each connection.

    SetupError says what is wrong with the address, in words for the one who configured it.
    """
    listener = Listener(factory, connections_max, ssl, guard or _Everybody())
    try:
        await listener._start(host, port, reuse_port, backlog)
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
