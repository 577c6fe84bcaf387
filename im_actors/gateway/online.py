"""The users who are online here: their mailboxes are followed, for the lists and the devices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from im_actors.core.devices import Device, device_key
from im_actors.core.facts import Fact, event_facts
from im_actors.core.model import decode_event
from im_actors.core.names import mailbox_of, session_name
from im_actors.errors import Forbidden, RetryableError
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.followers import Followers
from im_actors.gateway.replica_facts import ReplicaFacts
from im_actors.mailbox.loading import Mailboxes
from im_actors.wire.codec import encode_frame
from im_actors.wire.messages import error_message

_DEVICE = device_key("")


class Client(Protocol):
    """What this module knows of a client connection."""

    @property
    def user(self) -> str: ...

    @property
    def device(self) -> str:
        """Without the user."""

    def close(self, last_frame: bytes = b"") -> None: ...


class _User:
    """One user with at least one connection here."""

    def __init__(self) -> None:
        self.clients: set[Client] = set()
        self.upto = -1
        """The mailbox's events up to here were seen, or what they say of devices was looked up."""
        self.known = asyncio.Event()
        """The owner has told the mailbox's head."""
        self.looking: asyncio.Task[None] | None = None


class Online:
    """All of them."""

    def __init__(
        self,
        followers: Followers,
        replicas: ReplicaFacts,
        mailboxes: Mailboxes,
        config: GatewayConfig,
        now_ms: Callable[[], int],
    ) -> None:
        self._followers = followers
        self._replicas = replicas
        self._mailboxes = mailboxes
        self._config = config
        self._now_ms = now_ms
        self._users: dict[str, _User] = {}
        self.on_changed: Callable[[str], None] = lambda user: None
        """A device of this user has come or gone."""

    def came(self, client: Client) -> None:
        """It is welcome, unless its device turns out to be kicked."""
        user = self._users.get(client.user)
        if user is None:
            user = self._users[client.user] = _User()
            user.clients.add(client)
            self._followers.listen(mailbox_of(client.user), self, self._now_ms())
        else:
            user.clients.add(client)
            if user.known.is_set():
                self._look(client.user, user)
        self.on_changed(client.user)

    def left(self, client: Client) -> None:
        user = self._users.get(client.user)
        if user is None or client not in user.clients:
            return
        user.clients.discard(client)
        if not user.clients:
            del self._users[client.user]
            self._followers.unlisten(mailbox_of(client.user))
            if user.looking is not None:
                user.looking.cancel()
        self.on_changed(client.user)

    def clients(self, mailbox: str) -> list[Client]:
        """The connections here of the user whose mailbox this is."""
        known = self._users.get(session_name(mailbox))
        return list(known.clients) if known is not None else []

    def devices(self, user: str) -> set[str]:
        """Those that are connected here."""
        known = self._users.get(user)
        return {client.device for client in known.clients} if known is not None else set()

    async def ready(self, user: str) -> None:
        """Wait a moment for the head of the user's mailbox, so that nothing old is shown to who
        comes back; without it the replicas' word has to do."""
        known = self._users.get(user)
        if known is None or known.known.is_set():
            return
        try:
            async with asyncio.timeout(self._config.mailbox_head_ms / 1000):
                await known.known.wait()
        except TimeoutError:
            pass

    async def close(self) -> None:
        tasks = [user.looking for user in self._users.values() if user.looking is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- Listener

    def pushed(self, session: str, events: list[bytes]) -> bool:
        name = session_name(session)
        user = self._users[name]
        for data in events:
            event = decode_event(data)
            facts = event_facts(event)
            self._mailboxes.pushed(name, event.seq, event.time_ms, facts)
            if event.seq == user.upto + 1:
                user.upto = event.seq
            self._heed(user, facts)
        return True

    def told(self, session: str, head: int) -> None:
        name = session_name(session)
        user = self._users[name]
        user.known.set()
        self._mailboxes.heard(name, head)
        if head > user.upto:
            user.upto = head
            self._look(name, user)

    # ---- devices

    def _heed(self, user: _User, facts: Iterable[Fact]) -> None:
        for fact in facts:
            if not fact.key.startswith(_DEVICE) or fact.value is None:
                continue
            if Device.from_bytes(fact.value).kicked_ms:
                name = fact.key.removeprefix(_DEVICE)
                for client in [c for c in user.clients if c.device == name]:
                    kicked = Forbidden(f"the device {name} was kicked: let it in from another one")
                    client.close(encode_frame(error_message(kicked)))

    def _look(self, name: str, user: _User) -> None:
        """Look up whether devices were kicked that are connected."""
        if user.looking is not None and not user.looking.done():
            # It may be about fewer clients, or an older head.
            user.looking.cancel()
        if user.upto > 0:
            user.looking = asyncio.get_running_loop().create_task(self._look_up(name, user))

    async def _look_up(self, name: str, user: _User) -> None:
        while user.clients:
            keys = sorted({device_key(client.device) for client in user.clients})
            try:
                page = await self._replicas.current(mailbox_of(name), keys[:512], user.upto)
            except RetryableError:
                await asyncio.sleep(self._config.retry_ms_max / 1000)
                continue
            self._heed(user, page.facts)
            return
