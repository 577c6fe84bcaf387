"""Devices of users: clients that come and go over one store, and what followers were shown."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any

from im_actors.client import Client
from im_actors.client.config import ClientConfig
from im_actors.core.model import Event
from im_actors.errors import ImError, RequestError
from tests.usermodel.model import Op
from tests.usermodel.settling import Difference

NOWHERE = "im://127.0.0.1:1"
"""Nobody listens there."""
QUICK = ClientConfig(reconnect_base_ms=20, reconnect_cap_ms=400, history_timeout_ms=15_000)


class Device:
    """One device of one user. ``store`` None: what it knows ends with it."""

    def __init__(self, user: str, name: str, store: Path | None, seed: int) -> None:
        self.user = user
        self.name = name
        self.store = store
        self.address = ""
        self.mode = "closed"
        """closed, tunnel (open, and no server in reach), online."""
        self.follows = True
        """Otherwise it only opens lists and histories."""
        self.gone = False
        self.crashed = False
        """It may be handed its last events again."""
        self.open_ops: dict[tuple[str, str, int], Op] = {}
        self.shown: dict[str, list[Event]] = {}
        """What its followers were handed since the last quiet point, by session."""
        self.last: dict[str, int] = {}
        """The last seq of each, up to the last quiet point."""
        self._seed = seed
        self._lives = 0
        self._client: Client | None = None
        self._following: dict[str, asyncio.Task[None]] = {}

    def __str__(self) -> str:
        return f"{self.user}/{self.name}"

    @property
    def im(self) -> Client:
        assert self._client is not None, self
        return self._client

    async def open(self, url: str) -> None:
        self._lives += 1
        rng = Random(self._seed * 1_000 + self._lives)
        self._client = Client(url, self.user, self.name, self.store, config=QUICK, rng=rng)
        await self._client.__aenter__()
        if self.address not in ("", self._client.address):
            raise Difference(f"{self} was {self.address} and is {self._client.address}")
        self.address = self._client.address
        self.mode = "tunnel" if url == NOWHERE else "online"
        pending = {(sent.session, self.address, sent.n): sent for sent in self._client.outbox()}
        for key, op in self.open_ops.items():
            if op.sent is None or (op.sent.ack is None and op.sent.error is None):
                op.sent = pending.get(key)

    async def close(self, crash: bool = False) -> None:
        """``crash``: as a program that is killed; what it handed out is not marked as consumed."""
        client, self._client, self.mode = self.im, None, "closed"
        tasks, self._following = self._following, {}
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        self.crashed = self.crashed or crash
        await client._engine.close(drain=not crash)

    def waits(self, op: Op) -> bool:
        """Whether an op is in its outbox, for all that anybody knows."""
        if self._client is None:
            return op.sent is None or (op.sent.ack is None and op.sent.error is None)
        return any(op.key[::2] == (sent.session, sent.n) for sent in self.im.outbox())

    def follow(self, session: str) -> None:
        if not self.follows:
            return
        task = self._following.get(session)
        if task is None or task.done():
            self._following[session] = asyncio.create_task(self._collect(session))

    async def _collect(self, session: str) -> None:
        try:
            async for event in self.im.follow(session):
                self.shown.setdefault(session, []).append(event)
        except RequestError:
            pass  # it is not his to read any more

    def reached(self, session: str) -> int:
        shown = self.shown.get(session)
        return shown[-1].seq if shown else self.last.get(session, 0)

    async def ask(self, what: str, *args: Any) -> Any:
        """A question to the servers; None: there was no answer from them."""
        try:
            found = await getattr(self.im, what)(*args)
        except ImError as error:
            if isinstance(error, RequestError):
                raise Difference(f"{self} asks {what}{args} and meets {error!r}") from None
            return None
        return None if found.offline else found
