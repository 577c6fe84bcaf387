"""Which devices are connected, here and at other gateways.

The shard that serves a user's mailbox is told of his devices here, and asked for those elsewhere.
It keeps nothing: so it is told anew when its link comes up or a slot has another owner. What is
told is collected for a tick, and who cannot be asked at the moment is taken to have no devices
elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from im_actors.core.names import mailbox_of
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.peers import Peers, ShardPeer
from im_actors.wire.links import InsideType, pack_frame
from im_actors.wire.messages import in_batches

ROWS_MAX = 2_048
"""Users in one frame."""
DEVICES_MAX = 64
"""Devices of one user that others are told of."""

_Asked = tuple[ShardPeer, asyncio.Future[list[Any]]]


class Presence:
    """All of it, for one gateway. ``devices_of`` tells a user's devices that are connected here."""

    def __init__(
        self, peers: Peers, config: GatewayConfig, devices_of: Callable[[str], set[str]]
    ) -> None:
        self._peers = peers
        self._config = config
        self._devices_of = devices_of
        self._users: set[str] = set()
        """Of whom shards have to know."""
        self._changed: set[str] = set()
        self._renewed: set[int] = set()
        """Slots of which everything has to be told again."""
        self._asked: dict[int, _Asked] = {}
        self._number = 0

    def changed(self, user: str) -> None:
        """A device of his has come or gone."""
        if self._devices_of(user):
            self._users.add(user)
        else:
            self._users.discard(user)
        self._changed.add(user)

    def renew(self, slots: Iterable[int]) -> None:
        """Whoever serves these slots knows nothing."""
        self._renewed.update(slots)

    def tick(self) -> None:
        """Tell what has gathered."""
        if not self._peers.slots or not (self._changed or self._renewed):
            return
        slots, self._renewed = self._renewed, set()
        changed, self._changed = self._changed, set()
        if slots:
            changed |= {user for user in self._users if self._slot_of(user) in slots}
        rows: dict[ShardPeer, list[tuple[str, list[str]]]] = {}
        for user in changed:
            shard = self._peers.routes[self._slot_of(user)]
            if shard is not None and shard.up:
                devices = sorted(self._devices_of(user))[:DEVICES_MAX]
                rows.setdefault(shard, []).append((user, devices))
        for shard in self._peers.shards.values():
            self._tell(shard, slots & shard.slots, rows.get(shard, []))

    async def devices(self, users: Sequence[str]) -> dict[str, set[str]]:
        """The devices of these users that are connected anywhere, as far as can be said now."""
        found = {user: set(self._devices_of(user)) for user in users}
        by_shard: dict[ShardPeer, list[str]] = {}
        for user in users if self._peers.slots else ():
            shard = self._peers.routes[self._slot_of(user)]
            if shard is not None and shard.up:
                by_shard.setdefault(shard, []).append(user)
        answers = [self._ask(shard, names) for shard, names in by_shard.items()]
        for rows in await asyncio.gather(*answers):
            for user, devices in rows:
                found[user].update(devices)
        return found

    def answered(self, request: int, rows: list[Any]) -> None:
        asked = self._asked.get(request)
        if asked is not None and not asked[1].done():
            asked[1].set_result(rows)

    def shard_down(self, shard: ShardPeer) -> None:
        for asked, answer in self._asked.values():
            if asked is shard and not answer.done():
                answer.set_result([])

    # ---- inside

    def _slot_of(self, user: str) -> int:
        return self._peers.slot_of(mailbox_of(user))

    def _tell(self, shard: ShardPeer, slots: set[int], rows: list[tuple[str, list[str]]]) -> None:
        if not slots and not rows:
            return
        for part in in_batches(rows, ROWS_MAX) if rows else ([],):
            shard.send(pack_frame((InsideType.HERE, sorted(slots), part)))
            slots = set()

    async def _ask(self, shard: ShardPeer, users: list[str]) -> list[Any]:
        self._number += 1
        number = self._number
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = (shard, answer)
        try:
            shard.send(pack_frame((InsideType.WHO_IS_HERE, number, users)))
            async with asyncio.timeout(self._config.presence_ms / 1000):
                return await answer
        except TimeoutError:
            return []
        finally:
            del self._asked[number]
