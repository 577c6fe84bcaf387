"""The shards and replicas that the directory names, and the links to them.

The directory says what should be; this module makes the links follow it and keeps the routing table
that the hot path reads: slot to shard. What to send is decided elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from random import Random
from typing import Any, Protocol

from im_actors.core.directory import Directory, ReplicaAddress, ShardAddress
from im_actors.core.lines import Line, line_of
from im_actors.core.model import Member, View, ViewState, slot_of
from im_actors.net.link import Link, LinkConfig, PeerInfo
from im_actors.wire.codec import Message

SESSIONS_CACHED_MAX = 131_072
"""Sessions whose place is remembered; the cache starts over when it is full."""


class PeerEvents(Protocol):
    """What the owner of the links does when something happens on one of them."""

    def shard_up(self, shard: ShardPeer) -> None:
        """Frames can be sent to it; nothing sent before is certain to have arrived."""

    def shard_down(self, shard: ShardPeer) -> None:
        """No answer to what was sent comes any more."""

    def shard_frames(self, shard: ShardPeer, messages: list[Message]) -> None:
        """What one read brought."""

    def replica_down(self, replica: ReplicaPeer) -> None:
        """The same, or it is not in the directory any more."""

    def replica_frames(self, replica: ReplicaPeer, messages: list[Message]) -> None:
        """What one read brought."""

    def routes_changed(self, changes: dict[int, RouteChange]) -> None:
        """The directory routes these slots in another way than before."""


class Peer:
    """One actor that the gateway is connected to, or tries to be."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.link: Link | None = None

    @property
    def up(self) -> bool:
        return self.link is not None and self.link.up

    def send(self, frame: bytes) -> bool:
        """False: the link is down, and the frame was dropped."""
        return self.link is not None and self.link.send(frame)

    def send_now(self, frame: bytes) -> bool:
        """The same without waiting for the end of this turn of the loop."""
        return self.link is not None and self.link.send_now(frame)

    def status(self) -> dict[str, Any]:
        link = self.link
        if link is None or link.up:
            return {"up": self.up}
        return {"up": False, "reason": link.reason}


class ShardPeer(Peer):
    """One incarnation of a shard."""

    def __init__(self, address: ShardAddress) -> None:
        super().__init__(address.name)
        self.incarnation = address.incarnation
        self.slots: set[int] = set()
        """The slots that are routed to it."""
        self.batch: list[tuple[Any, ...]] = []
        """Rows of SUBMIT that leave at the end of this turn of the loop. Always the same list."""


class ReplicaPeer(Peer):
    """One replica on one disk."""

    def __init__(self, address: ReplicaAddress) -> None:
        super().__init__(address.name)
        self.member = address.member
        self.host = address.host
        self.outstanding = 0
        """Reads that it has not answered."""


class RouteChange:
    """How a slot's route changed with a new directory."""

    __slots__ = ("after", "before", "serves", "taken_over")

    def __init__(
        self, before: ShardPeer | None, after: ShardPeer | None, taken_over: bool, serves: bool
    ) -> None:
        self.before = before
        self.after = after
        self.taken_over = taken_over
        """The owner or the epoch is another one; otherwise only the state of the same epoch."""
        self.serves = serves
        """The view is ACTIVE."""


class Peers:
    """All of them, and who owns which slot."""

    def __init__(
        self, me: PeerInfo, secret: bytes, rng: Random, link_config: LinkConfig, events: PeerEvents
    ) -> None:
        self._me = me
        self._secret = secret
        self._rng = rng
        self._link_config = link_config
        self._events = events
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self.places: dict[str, tuple[int, Line]] = {}
        """By session, for the hot path: the same dict for ever. ``place_of`` fills it."""
        self.directory: Directory | None = None
        self.shards: dict[str, ShardPeer] = {}
        """By incarnation."""
        self.replicas: dict[Member, ReplicaPeer] = {}
        self.routes: list[ShardPeer | None] = []
        """By slot: the shard that the view names, if the directory has its address."""

    # ---- asking

    @property
    def slots(self) -> int:
        """0 until the first directory."""
        return len(self.routes)

    def slot_of(self, session: str) -> int:
        """The session's slot; call it only after the first directory has come."""
        return self.place_of(session)[0]

    def place_of(self, session: str) -> tuple[int, Line]:
        """The session's slot, and its line of business."""
        place = self.places.get(session)
        if place is None:
            if len(self.places) >= SESSIONS_CACHED_MAX:
                self.places.clear()
            place = slot_of(session, len(self.routes)), line_of(session)
            self.places[session] = place
        return place

    def view(self, slot: int) -> View | None:
        views = self.directory.views if self.directory is not None else ()
        return views[slot] if slot < len(views) else None

    def serves(self, slot: int) -> bool:
        """Whether the directory says that the slot's owner takes sends."""
        view = self.view(slot)
        return view is not None and view.state == ViewState.ACTIVE

    def members(self, slot: int) -> list[ReplicaPeer]:
        """The replicas of the slot's view that can be asked now."""
        view = self.view(slot)
        found = (self.replicas.get(member) for member in view.members) if view else ()
        return [replica for replica in found if replica is not None and replica.up]

    # ---- following the directory

    def follow(self, directory: Directory) -> bool:
        """Route by ``directory`` from now on; False: it is not newer than the present one."""
        old = self.directory
        if self._closed or (old is not None and directory.version <= old.version):
            return False
        assert old is None or old.slots == directory.slots, "a cluster's slots never change"
        old_routes = self.routes or [None] * directory.slots
        self.directory = directory
        self._follow_shards(directory.shards)
        self._follow_replicas(directory.replicas)
        self.routes = [self._route(slot) for slot in range(directory.slots)]
        for shard in self.shards.values():
            shard.slots.clear()
        for slot, route in enumerate(self.routes):
            if route is not None:
                route.slots.add(slot)
        changes = self._changes(old, old_routes)
        if changes:
            self._events.routes_changed(changes)
        return True

    def close(self) -> None:
        """Close all links, for good."""
        self._closed = True
        for peer in [*self.shards.values(), *self.replicas.values()]:
            self._hang_up(peer)
        self.shards.clear()
        self.replicas.clear()
        self.routes = [None] * len(self.routes)

    async def wait_closed(self) -> None:
        """Return when no link is left; call ``close`` first."""
        if self._closing:
            await asyncio.wait(set(self._closing))

    # ---- inside

    def _route(self, slot: int) -> ShardPeer | None:
        view = self.view(slot)
        return self.shards.get(view.owner) if view is not None else None

    def _changes(
        self, old: Directory | None, old_routes: list[ShardPeer | None]
    ) -> dict[int, RouteChange]:
        changes: dict[int, RouteChange] = {}
        for slot, route in enumerate(self.routes):
            view = self.view(slot)
            before = old.views[slot] if old is not None and slot < len(old.views) else None
            if view == before and route is old_routes[slot]:
                continue
            epochs = (before.epoch if before else 0, view.epoch if view else 0)
            taken_over = route is not old_routes[slot] or epochs[0] != epochs[1]
            changes[slot] = RouteChange(old_routes[slot], route, taken_over, self.serves(slot))
        return changes

    def _follow_shards(self, addresses: Iterable[ShardAddress]) -> None:
        # Nobody is told of a shard that is gone: its slots' new routes say all that matters.
        wanted = {address.incarnation: address for address in addresses}
        for incarnation in [known for known in self.shards if known not in wanted]:
            self._hang_up(self.shards.pop(incarnation))
        for incarnation, address in wanted.items():
            known = self.shards.get(incarnation)
            if known is not None:
                self._retarget(known, address.address, address.port)
                continue
            shard = self.shards[incarnation] = ShardPeer(address)
            shard.link = self._shard_link(shard, address)

    def _follow_replicas(self, addresses: Iterable[ReplicaAddress]) -> None:
        wanted = {address.member: address for address in addresses}
        for member in [known for known in self.replicas if known not in wanted]:
            replica = self.replicas.pop(member)
            self._hang_up(replica)
            self._events.replica_down(replica)
        for member, address in wanted.items():
            known = self.replicas.get(member)
            if known is not None:
                known.host = address.host
                self._retarget(known, address.address, address.port)
                continue
            replica = self.replicas[member] = ReplicaPeer(address)
            replica.link = self._replica_link(replica, address)

    def _shard_link(self, shard: ShardPeer, address: ShardAddress) -> Link:
        events = self._events
        return Link(
            self._me,
            self._secret,
            address.address,
            address.port,
            on_up=lambda _: events.shard_up(shard),
            on_frames=lambda messages: events.shard_frames(shard, messages),
            on_down=lambda _: events.shard_down(shard),
            rng=self._rng,
            config=self._link_config,
            expected_incarnation=address.incarnation,
        )

    def _replica_link(self, replica: ReplicaPeer, address: ReplicaAddress) -> Link:
        events = self._events
        return Link(
            self._me,
            self._secret,
            address.address,
            address.port,
            on_up=lambda _: None,
            on_frames=lambda messages: events.replica_frames(replica, messages),
            on_down=lambda _: events.replica_down(replica),
            rng=self._rng,
            config=self._link_config,
            expected_id=address.name,
            expected_incarnation=address.disk,
        )

    def _retarget(self, peer: Peer, host: str, port: int) -> None:
        # Without a change this would cut short the wait before the next dial, at each directory.
        if peer.link is not None and peer.link.target != (host, port):
            peer.link.retarget(host, port)

    def _hang_up(self, peer: Peer) -> None:
        if peer.link is not None:
            peer.link.close()
            closing = asyncio.get_running_loop().create_task(peer.link.wait_closed())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            peer.link = None
