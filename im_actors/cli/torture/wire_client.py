"""A client that speaks the protocol frame by frame: it does on purpose what the SDK avoids, such as
sending an old message again through another gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from im_actors.errors import NotReachable
from im_actors.wire import answers, messages
from im_actors.wire.codec import FrameDecoder, Message, encode_frame

READ_BYTES = 65_536


class WireClient:
    """One connection. Every method raises NotReachable, or another ImError, when it is of no use
    any more; then there has to be another one."""

    def __init__(self, timeout_s: float = 3.0) -> None:
        self.server = ""
        """The name of the gateway at the other end."""
        self._timeout_s = timeout_s
        self._decoder = FrameDecoder()
        self._came: list[Message] = []
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._request = 0

    @classmethod
    async def connect(cls, host: str, port: int, user: str, device: str) -> WireClient:
        """Say HELLO. ``device`` is the address without the user."""
        client = cls()
        try:
            async with asyncio.timeout(client._timeout_s):
                client._reader, client._writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            raise NotReachable(f"{host}:{port}: {error!r}") from None
        try:
            client._write(messages.hello(user, device, None, "torture"))
            client.server = answers.read_welcome(await client._next()).server
        except BaseException:
            client.close()
            raise
        return client

    def close(self) -> None:
        self._writer.transport.abort()

    async def send(
        self, session: str, n: int, kind: int, body: bytes
    ) -> messages.Ack | messages.Nack:
        """Send one message and return what the server says of it."""
        self._write(messages.send([(session, n, kind, body)]))
        while True:
            message = await self._next()
            rows: Sequence[messages.Ack | messages.Nack] = ()
            if message[0] == messages.ACK:
                rows = answers.read_acks(message)
            elif message[0] == messages.NACK:
                rows = answers.read_nacks(message)
            for row in rows:
                if (row.session, row.n) == (session, n):
                    return row

    async def pull(self, session: str, after: int, limit: int) -> answers.Events:
        """What follows ``after``. The answer's ``code`` may say that there is none."""
        self._request += 1
        self._write(messages.pull(self._request, session, after, 0, limit))
        while True:
            message = await self._next()
            if message[0] == messages.EVENTS:
                page = answers.read_events(message)
                if page.request == self._request:
                    return page

    def _write(self, message: Sequence[Any]) -> None:
        self._writer.write(encode_frame(message))

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout(self._timeout_s):
                while not self._came:
                    data = await self._reader.read(READ_BYTES)
                    if not data:
                        raise NotReachable("the connection has ended")
                    self._came += self._decoder.feed(data)
                    if self._decoder.error is not None:
                        raise self._decoder.error
        except (OSError, TimeoutError) as error:
            raise NotReachable(repr(error)) from None
        message = self._came.pop(0)
        if message[0] == messages.ERROR:
            raise answers.read_error(message)
        if message[0] == messages.SERVER_BYE:
            raise NotReachable("the gateway says bye")
        return message
