"""Who is connected where, and signals on their way: nothing of it is stored, and any of it may get
lost.

A gateway watches the mailbox of each user who is connected there, and each session that somebody
there follows. So the shard that serves a session knows which gateways may have somebody who hears a
signal of it, without being told anything more; it hands the signal on to them. Which devices a user
has there the gateway says besides, and says it again to whoever serves the slot next.

It is done beside the data: a signal is never queued here, waits for nothing, and is dropped when
there are too many or its gateway is slow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from im_actors.core.model import slot_of
from im_actors.core.names import mailbox_of
from im_actors.core.ratelimit import TokenBucket
from im_actors.wire.links import InsideType, pack_frame

SIGNALS_PER_S = 5_000
"""Signals that a shard hands on, in the long run and at once: some percents of its time."""
SLOW_BYTES = 256 * 1024
"""A gateway that has more than this unread gets no signals: what it is sent has to be new."""


class Gateway(Protocol):
    """What this module knows of the link to one."""

    @property
    def buffered_bytes(self) -> int: ...

    def send(self, frame: bytes) -> bool: ...


class Presence:
    """Of all slots that one shard serves."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._here: dict[Gateway, dict[int, dict[str, list[str]]]] = {}
        """By gateway and slot: the users there and their devices. A gateway has no more users than
        it has connections."""
        self._rate = TokenBucket(SIGNALS_PER_S, SIGNALS_PER_S)
        self.signals = self.dropped = 0

    def here(self, gateway: Gateway, slots: Iterable[int], rows: Iterable[Sequence[Any]]) -> None:
        """Of ``slots`` forget what the gateway has said; then take [user, devices], none: gone."""
        known = self._here.setdefault(gateway, {})
        for slot in slots:
            known.pop(slot, None)
        for user, devices in rows:
            users = known.setdefault(slot_of(mailbox_of(user), self._slots), {})
            if devices:
                users[user] = devices
            else:
                users.pop(user, None)

    def left(self, gateway: Gateway) -> None:
        self._here.pop(gateway, None)

    def devices(self, user: str) -> list[str]:
        """Those of a user that are connected anywhere, sorted."""
        slot = slot_of(mailbox_of(user), self._slots)
        found = (known.get(slot, {}).get(user, ()) for known in self._here.values())
        return sorted({device for devices in found for device in devices})

    def asked(self, gateway: Gateway, request: int, users: Iterable[str]) -> None:
        """Answer with [user, devices] of those who are connected."""
        rows = [(user, devices) for user in users if (devices := self.devices(user))]
        gateway.send(pack_frame((InsideType.ARE_HERE, request, rows)))

    def signaled(
        self,
        gateway: Gateway,
        rows: Iterable[Sequence[Any]],
        watchers: Mapping[str, Collection[Gateway]],
        now_ms: int,
    ) -> None:
        """Hand signals, [hearer, …], on to the other gateways that watch what hears them."""
        batches: dict[Gateway, list[Sequence[Any]]] = {}
        for row in rows:
            if self._rate.take(1, now_ms):
                self.dropped += 1
                continue
            self.signals += 1
            for other in watchers.get(row[0], ()):
                if other is gateway:
                    continue
                if other.buffered_bytes > SLOW_BYTES:
                    self.dropped += 1
                else:
                    batches.setdefault(other, []).append(row)
        for other, batch in batches.items():
            other.send(pack_frame((InsideType.SIGNAL, batch)))
