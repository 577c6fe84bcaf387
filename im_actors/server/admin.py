"""The operator's door: calls on the controller over a link, so that the command line needs no Ray.

170 CALL    [170, request, method, arguments as JSON]
171 RESULT  [171, request, ok, result as JSON, or the error's code and text]
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from im_actors.errors import BadRequest, ImError, NotReachable, SetupError, error_for
from im_actors.net.link import Link, LinkConfig, PeerInfo
from im_actors.net.link_connection import LinkConnection
from im_actors.net.link_server import LinkCallbacks, LinkServer
from im_actors.net.tls import Certificates
from im_actors.server.cluster_file import RunFile
from im_actors.wire.links import pack_frame

CALL = 170
RESULT = 171

Method = Callable[..., Awaitable[Any]]


class AdminServer:
    """Serves named methods to whoever knows the cluster secret."""

    def __init__(
        self, name: str, secret: bytes, methods: dict[str, Method], links: LinkConfig | None = None
    ) -> None:
        self._methods = methods
        self._tasks: set[asyncio.Task[None]] = set()
        me = PeerInfo("controller", name, name)
        self._server = LinkServer(me, secret, self._linked, config=links)

    async def start(self, address: str, port: int = 0) -> int:
        """Listen; the port."""
        await self._server.start(address, port)
        return self._server.port

    @property
    def port(self) -> int:
        return self._server.port

    async def stop(self) -> None:
        """Let nobody in any more and drop what is under way."""
        for task in list(self._tasks):
            task.cancel()
        self._server.close()
        await self._server.wait_closed()

    def _linked(self, peer: PeerInfo, connection: LinkConnection) -> LinkCallbacks:
        return LinkCallbacks(partial(self._frames, connection), lambda _: None)

    def _frames(self, connection: LinkConnection, messages: list[Any]) -> None:
        for message in messages:
            if message[0] == CALL:
                task = asyncio.get_running_loop().create_task(self._call(connection, *message[1:]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _call(
        self, connection: LinkConnection, request: int, method: str, arguments: str
    ) -> None:
        try:
            found = self._methods.get(method)
            if found is None:
                raise BadRequest(f"the controller has no method {method!r}")
            result = json.dumps(await found(*json.loads(arguments)))
            answer: tuple[Any, ...] = (RESULT, request, True, result)
        except ImError as error:
            answer = (RESULT, request, False, json.dumps([error.code, str(error)]))
        except Exception as error:
            answer = (RESULT, request, False, json.dumps([SetupError.code, repr(error)]))
        connection.send(pack_frame(answer))


def links_of(run: RunFile) -> LinkConfig | None:
    """How to connect with the actors of the cluster that runs; SetupError when its certificates
    cannot be used."""
    files = run.tls.files
    return LinkConfig.secured(Certificates(files) if files is not None else None)


def admin_of(run: RunFile, secret: bytes, timeout_s: float = 10.0) -> AdminClient:
    """A client for the cluster that runs; SetupError as for ``links_of``."""
    return AdminClient(run.admin_address, run.admin_port, secret, timeout_s, links_of(run))


class AdminClient:
    """Calls the controller. Use as ``async with``; NotReachable when nobody answers in time."""

    def __init__(
        self,
        address: str,
        port: int,
        secret: bytes,
        timeout_s: float = 10.0,
        links: LinkConfig | None = None,
    ) -> None:
        self._target = (address, port)
        self._secret = secret
        self._timeout_s = timeout_s
        self._link_config = links
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self._up = asyncio.Event()
        self._reason = "no answer"
        self._link: Link | None = None

    async def __aenter__(self) -> AdminClient:
        self._link = Link(
            PeerInfo("admin", "im-actors", "1"),
            self._secret,
            *self._target,
            on_up=lambda _: self._up.set(),
            on_frames=self._frames,
            on_down=self._down,
            rng=random.Random(),
            config=self._link_config,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._link is not None
        self._link.close()
        await self._link.wait_closed()

    def _down(self, reason: str) -> None:
        self._reason = reason
        self._up.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(NotReachable(f"the controller went away: {reason}"))

    def _frames(self, messages: list[Any]) -> None:
        for message in messages:
            future = self._waiting.pop(message[1], None) if message[0] == RESULT else None
            if future is not None and not future.done():
                if message[2]:
                    future.set_result(json.loads(message[3]))
                else:
                    future.set_exception(error_for(*json.loads(message[3])))

    async def call(self, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """The method's result; its error, with its code."""
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                await self._up.wait()
                assert self._link is not None
                self._next += 1
                future = self._waiting[self._next] = asyncio.get_running_loop().create_future()
                self._link.send(pack_frame((CALL, self._next, method, json.dumps(arguments))))
                return await future
        except TimeoutError:
            host, port = self._target
            raise NotReachable(
                f"the controller at {host}:{port} does not answer ({self._reason}):"
                " is the cluster up? im-actors up starts it"
            ) from None
