"""Simulated gateway processes around the real gateway: its router, followers, pulls and
connections, with virtual time and the simulation's connections in the place of asyncio's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from im_actors.core.directory import Directory, GatewayAddress, ReplicaAddress, ShardAddress
from im_actors.errors import Forbidden, ImError, KeyConflict
from im_actors.gateway.client_connection import ClientConnection
from im_actors.gateway.config import Clock, GatewayConfig
from im_actors.gateway.followers import Followers
from im_actors.gateway.node import GatewayNode
from im_actors.gateway.peers import Peer, Peers, ReplicaPeer, ShardPeer
from im_actors.gateway.pulls import Pulls
from im_actors.gateway.reads import Reads
from im_actors.gateway.relays import Relays
from im_actors.gateway.router import Router
from im_actors.gateway.user_side import UserSide
from im_actors.net.link import LinkConfig, PeerInfo
from im_actors.wire.codec import Message
from im_actors.wire.limits import Limits
from im_actors.wire.links import InsideType
from im_actors.wire.messages import nack_of
from tests.sim.loop import SimEventLoop
from tests.sim.network import End, Process

if TYPE_CHECKING:
    from tests.sim.world import World

CONFIG = GatewayConfig(
    limits=Limits(queries=0), insecure_open=True, tick_ms=100, retry_after_ms=100
)
"""Without the user side."""
LISTS_CONFIG = replace(CONFIG, limits=Limits())
"""With it: there are users who ask for their conversations."""
REFUSED = b"refuse me "
"""Bodies that begin with this no gateway takes, until the policy changes."""
UNREAD_BYTES = 2 * CONFIG.slow_reader_bytes


class SimLink:
    """What a gateway uses of ``net.link.Link``: it dials until it is closed."""

    def __init__(
        self,
        gateway: SimGateway,
        target: str,
        incarnation: str,
        on_up: Callable[[], None],
        on_frames: Callable[[list[Message]], None],
        on_down: Callable[[], None],
    ) -> None:
        self.gateway = gateway
        self.target = (target, 1)
        self.reason = "not connected"
        self.end: End | None = None
        self._incarnation = incarnation
        self._on_up, self._on_frames, self._on_down = on_up, on_frames, on_down
        self._closed = False
        gateway.later(gateway.rng.uniform(0.2, 5.0), self._dial)

    @property
    def up(self) -> bool:
        return self.end is not None

    def send(self, frame: bytes) -> bool:
        return self.end is not None and self.end.send(frame)

    send_now = send

    def retarget(self, host: str, port: int) -> None:
        """Processes keep their names here, and so their addresses."""

    def close(self) -> None:
        self._closed = True
        if self.end is not None:
            self.end.close()
            self.end = None

    def _dial(self) -> None:
        if self._closed:
            return
        gateway = self.gateway
        target = gateway.world.processes[self.target[0]]
        same = gateway.world.incarnation_of(target) == self._incarnation
        self.end = gateway.world.network.connect(gateway, target) if same else None
        if self.end is None:
            gateway.later(gateway.rng.uniform(50, 500), self._dial)
            return
        self.end.on_data = lambda message: self._on_frames([message])
        self.end.on_lost = self._lost
        self._on_up()

    def _lost(self) -> None:
        if not self._closed:
            self.end = None
            self._on_down()
            self.gateway.later(self.gateway.rng.uniform(10, 500), self._dial)


class SimPeers(Peers):
    """The real routing, over simulated links."""

    def __init__(self, gateway: SimGateway, node: GatewayNode) -> None:
        me = PeerInfo("gateway", gateway.name, str(gateway.life))
        super().__init__(me, b"", gateway.rng, LinkConfig(), node)
        self._gateway = gateway

    def _shard_link(self, shard: ShardPeer, address: ShardAddress) -> Any:
        events = self._events
        return SimLink(
            self._gateway,
            address.name,
            address.incarnation,
            lambda: events.shard_up(shard),
            lambda messages: events.shard_frames(shard, messages),
            lambda: events.shard_down(shard),
        )

    def _replica_link(self, replica: ReplicaPeer, address: ReplicaAddress) -> Any:
        events = self._events
        return SimLink(
            self._gateway,
            address.name,
            address.disk,
            lambda: None,
            lambda messages: events.replica_frames(replica, messages),
            lambda: events.replica_down(replica),
        )

    def _hang_up(self, peer: Peer) -> None:
        if peer.link is not None:
            peer.link.close()
            peer.link = None


class SimNode(GatewayNode):
    """The real node on simulated peers and time."""

    def __init__(self, gateway: SimGateway) -> None:
        clock = Clock(lambda: gateway.clock.now, lambda: gateway.clock.now)
        config = LISTS_CONFIG if gateway.world.mailboxes.listed else CONFIG
        super().__init__(gateway.name, config, b"", random.Random(0), clock)
        self.gateway = gateway
        self.peers = SimPeers(gateway, self)
        self.router = Router(self.peers, CONFIG, gateway.soon)
        self.relays = Relays(self.peers)
        self.send_relays = Relays(self.peers, InsideType.RELAY_SENDS, InsideType.SENDS_RELAYED)
        self.followers = Followers(self.peers, self.contents, CONFIG)
        self.reads = Reads(self.peers, CONFIG)
        self.pulls = Pulls(self.reads, self.contents, CONFIG, self._known_head)
        if self.user_side is not None:
            parts = (self.peers, self.followers, self.reads, self.pulls, self._known_head)
            self.user_side = UserSide(gateway.name, config, *parts, clock)


class SimTimer:
    """What a connection uses of ``asyncio.TimerHandle``."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self._call = None

    def fire(self) -> None:
        if self._call is not None:
            self._call()


class SimLoop:
    """What a connection uses of the event loop."""

    def __init__(self, gateway: SimGateway) -> None:
        self._gateway = gateway

    def call_later(self, delay_s: float, call: Callable[[], None]) -> SimTimer:
        timer = SimTimer(call)
        self._gateway.later(delay_s * 1_000, timer.fire)
        return timer


class SimConnection(ClientConnection):
    """The real server's side of a client connection, on one end of a simulated one."""

    def __init__(self, node: SimNode, end: End) -> None:
        super().__init__(node)
        self._serial = next(node.gateway.world.serials)
        self._sim = node.gateway
        self._sim_end = end
        self._slow = False
        self._loop: Any = SimLoop(node.gateway)
        self._open = True
        end.on_data = self.data_received
        end.on_lost = lambda: self.connection_lost(None)
        self.opened()

    def __hash__(self) -> int:
        # The gateway keeps connections in sets: their order must not depend on addresses.
        return self._serial

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def buffered_bytes(self) -> int:
        return UNREAD_BYTES if self._slow else 0

    def send(self, frame: bytes) -> bool:
        return self._open and self._sim_end.send(frame)

    send_now = send

    def close(self, final_frame: bytes = b"", error: ImError | None = None) -> None:
        if self._open:
            if final_frame:
                self._sim_end.send(final_frame)
            self._sim_end.close()
            self._closed_here = True
            self.connection_lost(None)

    def abort(self, error: ImError | None = None) -> None:
        self.close()

    def read_slowly(self, duration_ms: float) -> None:
        """The client does not read for a while: what it is sent piles up."""
        if self._open and not self._slow:
            self._slow = True
            self.pause_writing()
            self._sim.later(duration_ms, self._reads_again)

    def _reads_again(self) -> None:
        self._slow = False
        if self._open:
            self.resume_writing()

    def _send_received(self, message: Message, now_ms: int) -> None:
        """With a policy that refuses some bodies for good."""
        rows, world = message[1], self._sim.world
        strict = world.clock.now_ms < world.strict_until_ms
        refused = [row for row in rows if strict and row[3].startswith(REFUSED)]
        kept = [row for row in rows if row not in refused]
        if refused:
            error = Forbidden("this gateway does not take such messages")
            self._node.router.nack(self, [nack_of(row[0], row[1], error) for row in refused])
        if kept:
            super()._send_received([message[0], kept], now_ms)


class Stray:
    """Brings a copy of a send from the past, or a forged one; looks at the answers."""

    def __init__(self, world: World, address: str, forged: bool) -> None:
        self.world = world
        self.address = address
        self.forged = forged
        self.outstanding = 0
        self.ack_rows: list[tuple[Any, ...]] = []
        self.nack_rows: list[tuple[Any, ...]] = []

    def flush_answers(self) -> None:
        for session, n, seq, epoch, copies, _ in self.ack_rows:
            key = (session, self.address, n)
            if self.forged:
                self.world.fail("forged", f"another body for {key} was acked as {seq}", key=key)
            self.world.acked(key, seq, epoch, copies)
        for nack in self.nack_rows:
            key = (nack[0], self.address, nack[1])
            one_form = not self.forged and key not in self.world.withdrawn
            if nack[2] == KeyConflict.code and one_form:
                self.world.fail("conflict", f"{key} was sent in one form only", key=key)
            self.world.met(f"stray_{'forged_' if self.forged else ''}{nack[2]}")
        self.ack_rows, self.nack_rows = [], []


class SimGateway(Process):
    """One gateway process. It loses everything when it crashes."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.rng = world.rng_for(name)
        self.node: SimNode | None = None
        self._loop: SimEventLoop | None = None
        """Only where there is a user side."""
        self._past: list[SimNode] = []
        """Of lives that are over: what waits in them is not to be woken by the garbage collector
        in the middle of another one."""

    @property
    def address(self) -> GatewayAddress:
        return GatewayAddress(self.name, self.name, 1)

    def take(self, call: Callable[[], None]) -> None:
        if self.world.mailboxes.listed:
            super().take(lambda: self._in_loop(call))
        else:
            super().take(call)

    def _in_loop(self, call: Callable[[], None]) -> None:
        if self._loop is not None:
            self._loop.run(call)

    def started(self) -> None:
        self.node = SimNode(self)
        if self.world.mailboxes.listed:
            self._loop = SimEventLoop(self)
            self._past.append(self.node)
        self.world.stories.add(
            f"{self.name}.{self.life}", self.node.router.story.story, of_slots=False
        )
        self.later(CONFIG.tick_ms, self._tick)
        self.later(CONFIG.sweep_ms, self._sweep)

    def crashed(self) -> None:
        self.node = None
        self._loop = None

    def directory(self, directory: Directory) -> None:
        assert self.node
        self.node.directory(directory)

    def accept(self, end: End) -> None:
        assert self.node
        SimConnection(self.node, end)

    def _tick(self) -> None:
        assert self.node
        self.node._tick(self.clock.now)
        self.later(CONFIG.tick_ms, self._tick)

    def _sweep(self) -> None:
        assert self.node
        faults = self.world.faults
        for connection in self.node._connections:
            if faults.strikes("slow_reader", self.rng):
                connection.read_slowly(self.rng.uniform(20, 3_000))
        self.node._sweep(self.clock.now)
        self.later(CONFIG.sweep_ms, self._sweep)

    # -- troubles ------------------------------------------------------------------------------

    def stray(self, address: str, entries: list[tuple[str, int, int, bytes]], forged: bool) -> None:
        """Copies of sends arrive here, from wherever they were kept."""
        assert self.node
        sender = Stray(self.world, address, forged)
        self.node.router.submit(sender, entries, self.clock.now)
        self.node.router.flush_answers()
