"""A gateway: where clients connect. It owns no state that matters, and knows nothing of Ray.

Its parts, each without sockets of its own:

    clients ── ClientConnection ──┬── Router     sends ────────▶ shards ── Relays ─▶ shards
                                  ├── Followers  pushes ◀─────── shards
                                  ├── Pulls      history ──────▶ replicas, by Reads
                                  └── UserSide   lists, groups, signals ▶ by all of these
                                      Peers      the links to both, as the directory says
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import socket
from collections.abc import Sequence
from random import Random
from ssl import SSLContext
from typing import Any

from im_actors.core.directory import Directory
from im_actors.core.ratelimit import TokenBucket
from im_actors.errors import BadRequest, ImError, SetupError, Unauthenticated
from im_actors.gateway.batch_reads import Contents
from im_actors.gateway.client_connection import ClientConnection
from im_actors.gateway.config import Clock, GatewayConfig
from im_actors.gateway.followers import Followers
from im_actors.gateway.peers import Peers, ReplicaPeer, RouteChange, ShardPeer
from im_actors.gateway.pulls import Pulls
from im_actors.gateway.reads import Reads
from im_actors.gateway.relays import Relays
from im_actors.gateway.replica_facts import ReplicaFacts
from im_actors.gateway.router import Router
from im_actors.gateway.tokens import check_token, require_jwt
from im_actors.gateway.user_side import UserSide
from im_actors.mailbox.tier_facts import FactPage
from im_actors.net.link import LinkConfig, PeerInfo
from im_actors.net.listener import Listener, listen
from im_actors.net.shares import Shares
from im_actors.wire.codec import Message, encode_frame
from im_actors.wire.links import InsideType
from im_actors.wire.messages import Hello, Pull
from im_actors.wire.queries import Query, Signal, refusal

logger = logging.getLogger(__name__)

_RESULTS = int(InsideType.RESULTS)
_PUSHED = int(InsideType.PUSHED)
_WATCHED = int(InsideType.WATCHED)
_RELAY = int(InsideType.RELAY)
_RELAYED = int(InsideType.RELAYED)
_RELAY_SENDS = int(InsideType.RELAY_SENDS)
_SENDS_RELAYED = int(InsideType.SENDS_RELAYED)
_SIGNAL = int(InsideType.SIGNAL)
_ARE_HERE = int(InsideType.ARE_HERE)
_READ_ANSWERS = frozenset(
    map(
        int,
        (InsideType.PAGE, InsideType.FACTS, InsideType.COUNTED, InsideType.RANKS_COUNTED),
    )
)


class GatewayNode:
    """One gateway. All of it runs in the event loop in which ``start`` was called.

    ``secret`` is the cluster's, for the links to shards and replicas; the one that signs the
    tokens of clients is in ``config``.
    """

    def __init__(
        self,
        name: str,
        config: GatewayConfig,
        secret: bytes,
        rng: Random,
        clock: Clock | None = None,
        link_config: LinkConfig | None = None,
    ) -> None:
        clock = clock or Clock()
        links = link_config or LinkConfig()
        self._formats = links.formats
        self.name = name
        self.config = config.validate()
        self.now_ms = clock.monotonic_ms
        self.wall_ms = clock.wall_ms
        self._rng = rng
        self._listeners: list[Listener] = []
        self._timers: list[asyncio.TimerHandle] = []
        self._connections: set[ClientConnection] = set()
        self.shares = Shares(config.shares, config.strangers_max, bool(config.token_secret))
        self._stopped = False
        self._answered = asyncio.Event()
        """Set while draining, when no connection waits for an answer any more."""
        self.draining = False
        """No new sends and no new connections."""
        self.violations = 0
        incarnation = f"{name}.{rng.getrandbits(48):012x}"
        self.peers = Peers(
            PeerInfo("gateway", name, incarnation),
            secret,
            rng,
            links,
            self,
        )
        self.router = Router(self.peers, config, self._call_soon)
        self.relays = Relays(self.peers)
        self.send_relays = Relays(self.peers, InsideType.RELAY_SENDS, InsideType.SENDS_RELAYED)
        self.reads = Reads(self.peers, config)
        self.contents = Contents(self._batch_facts)
        self.followers = Followers(self.peers, self.contents, config)
        self.pulls = Pulls(self.reads, self.contents, config, self._known_head)
        self.user_side: UserSide | None = None
        if config.limits.queries:
            self.user_side = UserSide(
                name,
                config,
                self.peers,
                self.followers,
                self.reads,
                self.pulls,
                self._known_head,
                clock,
            )

    # ---- for its owner

    @property
    def host(self) -> str:
        return self._listeners[0].host if self._listeners else ""

    @property
    def port(self) -> int:
        return self._listeners[0].port if self._listeners else 0

    async def start(
        self,
        host: str,
        port: int = 0,
        reuse_port: bool = False,
        ssl: SSLContext | None = None,
    ) -> None:
        """Let clients in at this address; may be called again for another one. SetupError when
        that is not possible or not safe."""
        await self._check_address(host)
        self._listeners.append(
            await listen(
                functools.partial(ClientConnection, self),
                host,
                port,
                reuse_port=reuse_port,
                ssl=ssl,
                connections_max=self.config.connections_max,
                guard=self,
            )
        )
        if not self._timers:
            self._every(self.config.tick_ms, self._tick)
            self._every(self.config.sweep_ms, self._sweep)
            if self.user_side is not None:
                self.user_side.mailboxes.start()

    def directory(self, directory: Directory) -> None:
        """Route by ``directory`` from now on, unless it is older than the present one."""
        if self.peers.follow(directory) and self.user_side is not None:
            self.user_side.months_dropped(directory.dropped)

    async def drain(self) -> None:
        """Leave in order: no new connections, no new sends; say BYE, deliver the answers that are
        still to come, for at most ``drain_ms``, and close. For a planned removal."""
        if not self.draining:
            self.draining = True
            for listener in self._listeners:
                listener.close()
            for connection in self._connections:
                connection.say_bye("this gateway is stopping", self._reconnect_after_ms())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain_ms / 1000):
                await self._answered.wait()
        for connection in list(self._connections):
            connection.close()
        for listener in self._listeners:
            await listener.wait_closed()

    async def stop(self) -> None:
        """``drain``, and give up the links. A stopped gateway does not start again."""
        if self._stopped:
            return
        self._stopped = True
        await self.drain()
        for timer in self._timers:
            timer.cancel()
        await self._close_reading()
        self.peers.close()
        await self.peers.wait_closed()

    async def crash(self) -> None:
        """Stop as a killed process would, for tests: no BYE, no answer that was to come."""
        self._stopped = self.draining = True
        for timer in self._timers:
            timer.cancel()
        for listener in self._listeners:
            listener.close()
            listener.abort_connections()
            await listener.wait_closed()
        await self._close_reading()
        self.peers.close()
        await self.peers.wait_closed()

    def status(self) -> dict[str, Any]:
        """What ``im-actors status`` shows of a gateway; all of it JSON."""
        router, followers, pulls, peers = self.router, self.followers, self.pulls, self.peers
        return {
            "name": self.name,
            "address": f"{self.host}:{self.port}",
            "formats": list(self._formats),
            "draining": self.draining,
            "directory": peers.directory.version if peers.directory is not None else None,
            "connections": len(self._connections),
            "strangers": self.shares.strangers,
            "users": self.shares.users,
            "refused": self.shares.refused,
            "outstanding": router.outstanding,
            "outstanding_bytes": router.outstanding_bytes,
            "lines": router.turns.status(),
            "held": {str(slot): rows for slot, rows in sorted(router.held_rows().items())},
            "accepted": router.accepted,
            "acked": router.acked,
            "nacked": router.nacked,
            "offered_again": router.offered_again,
            "notes_relayed": self.relays.relayed,
            "batch_sends_relayed": self.send_relays.relayed,
            "sessions_followed": len(followers),
            "follows": followers.follows,
            "pushed": followers.pushed,
            "pushes_dropped": followers.dropped,
            "slow_readers": len(followers.behind),
            "pulls": len(pulls),
            "pulls_answered": pulls.answered,
            "pulls_failed": pulls.failed,
            "violations": self.violations,
            **router.latencies.status(),
            **(self.user_side.status() if self.user_side is not None else {}),
            "shards": {shard.incarnation: shard.status() for shard in peers.shards.values()},
            "replicas": {replica.name: replica.status() for replica in peers.replicas.values()},
        }

    def story(self, session: str, n: int | None = None) -> list[str]:
        """What went other than smoothly with a session, or with its messages number ``n``."""
        return self.router.story.story(*((session,) if n is None else (session, n)))

    # ---- for connections

    def arrived(self, host: str) -> ImError | None:
        """Of the listener: whether a connection from there is one too many."""
        return self.shares.arrived(host, self.now_ms())

    def gone(self, host: str) -> None:
        self.shares.gone(host, self.now_ms())

    def connection_opened(self, connection: ClientConnection) -> None:
        """Let the connection say HELLO."""
        self._connections.add(connection)

    def check_hello(self, connection: ClientConnection, hello: Hello) -> int | None:
        """Unauthenticated or Forbidden when this client may not come in; until when it may stay,
        in ms since 1970, None: for ever."""
        config = self.config
        if config.token_secret:
            return check_token(config.token_secret, hello.token, hello.user, hello.device)
        if not config.insecure_open and not is_loopback(connection.peer_host):
            raise Unauthenticated(
                "this server has no token secret, so only clients on its own host may come in"
            )
        return None

    def greeted(self, connection: ClientConnection, hello: Hello) -> TokenBucket:
        """It is a stranger no more: what its sends are taken from. Overloaded: its user has too
        many connections."""
        return self.shares.greeted(connection.peer_host, hello.user, self.now_ms())

    def connection_welcomed(self, connection: ClientConnection, hello: Hello) -> None:
        if self.user_side is not None:
            self.user_side.online.came(connection)

    def follow(self, connection: ClientConnection, sessions: list[str], now_ms: int) -> None:
        """Of a FOLLOW; errors are those of ``Followers.follow``."""
        if self.user_side is not None:
            self.user_side.access.follow(connection, sessions, now_ms)
        else:
            self.followers.follow(connection, sessions, now_ms)

    def unfollow(self, connection: ClientConnection, sessions: list[str]) -> None:
        if self.user_side is not None:
            self.user_side.access.unfollow(connection, sessions)
        else:
            self.followers.unfollow(connection, sessions)

    def pull(self, connection: ClientConnection, pull: Pull, now_ms: int) -> None:
        if self.user_side is not None:
            self.user_side.access.pull(connection, pull, now_ms)
        else:
            self.pulls.pull(connection, pull, now_ms)

    def query(self, connection: ClientConnection, query: Query) -> None:
        if self.user_side is not None:
            self.user_side.queries.ask(connection, query)
        else:
            unknown = BadRequest(f"there is no query {query.what!r} here")
            connection.send(encode_frame(refusal(query.request, unknown)))

    def signal(self, connection: ClientConnection, signal: Signal, now_ms: int) -> None:
        if self.user_side is not None:
            self.user_side.signals.said(connection, signal, now_ms)

    def connection_closed(self, connection: ClientConnection) -> None:
        """Forget it. Its sends go on; nobody is told of their answers."""
        self._connections.discard(connection)
        self.followers.left(connection)
        if connection.hello is not None:
            if self.user_side is not None:
                self.user_side.online.left(connection)
            self.shares.left(connection.peer_host, connection.hello.user, self.now_ms())

    # ---- PeerEvents

    def shard_up(self, shard: ShardPeer) -> None:
        now_ms = self.now_ms()
        self.router.shard_up(shard, now_ms)
        self.followers.shard_up(shard, now_ms)
        if self.user_side is not None:
            self.user_side.shard_up(shard)

    def shard_down(self, shard: ShardPeer) -> None:
        self.router.shard_down(shard, self.now_ms())
        self.relays.shard_down(shard)
        self.send_relays.shard_down(shard)
        if self.user_side is not None:
            self.user_side.shard_down(shard)

    def shard_frames(self, shard: ShardPeer, messages: list[Message]) -> None:
        now_ms = self.now_ms()
        pushed: list[Any] = []
        for message in messages:
            kind = message[0]
            if kind == _RESULTS:
                self.router.results(shard, message[1], now_ms)
            elif kind == _PUSHED:
                # What one read brought goes on as one batch.
                pushed += message[1]
            elif kind == _WATCHED:
                self.followers.watched(shard, message[1])
            elif kind == _RELAY:
                self.relays.asked(shard, message[1], now_ms)
            elif kind == _RELAYED:
                self.relays.answered(message[1])
            elif kind == _RELAY_SENDS:
                self.send_relays.asked(shard, message[1], now_ms)
            elif kind == _SENDS_RELAYED:
                self.send_relays.answered(message[1])
            elif kind == _SIGNAL and self.user_side is not None:
                self.user_side.signals.came(message[1])
            elif kind == _ARE_HERE and self.user_side is not None:
                self.user_side.presence.answered(message[1], message[2])
        self.router.flush_answers()
        if pushed:
            self.followers.pushed_events(pushed)
            if self.router.latencies.push_due:
                self.router.latencies.pushed(pushed[0][1], self.wall_ms())

    def replica_down(self, replica: ReplicaPeer) -> None:
        self.reads.replica_down(replica, self.now_ms())

    def replica_frames(self, replica: ReplicaPeer, messages: list[Message]) -> None:
        now_ms = self.now_ms()
        for message in messages:
            if message[0] in _READ_ANSWERS:
                self.reads.answered(message, now_ms)

    def routes_changed(self, changes: dict[int, RouteChange]) -> None:
        now_ms = self.now_ms()
        self.router.routes_changed(changes, now_ms)
        self.followers.routes_changed(changes, now_ms)
        if self.user_side is not None:
            self.user_side.routes_changed(changes)

    # ---- inside

    async def _check_address(self, host: str) -> None:
        if self.config.token_secret:
            require_jwt()
            return
        if self.config.insecure_open:
            logger.warning("%s takes every client at its word, on %s", self.name, host)
            return
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise SetupError(f"cannot listen on {host}: {error.strerror or error}") from error
        if not all(is_loopback(str(entry[4][0])) for entry in found):
            raise SetupError(
                f"without a token secret clients are taken at their word, so {host or 'any host'}"
                " is not a safe address to listen on: configure a token secret, or listen on"
                " 127.0.0.1"
            )

    async def _batch_facts(self, batch: str, keys: Sequence[str]) -> FactPage:
        facts = ReplicaFacts(self.reads, self.now_ms)
        return await facts.of_keys(batch, keys, self._known_head(batch))

    async def _close_reading(self) -> None:
        await asyncio.gather(self.pulls.close(), self.followers.close(), self.contents.close())
        if self.user_side is not None:
            await self.user_side.close()

    def _reconnect_after_ms(self) -> int:
        return self._rng.randint(0, self.config.reconnect_after_ms)

    def _known_head(self, session: str) -> int:
        return max(self.followers.head(session), self.router.heads.get(session, 0))

    def _call_soon(self, callback: Any) -> object:
        return asyncio.get_running_loop().call_soon(callback)

    def _every(self, period_ms: int, work: Any) -> None:
        """Call ``work(now_ms)`` again and again. An error in it is logged and ends nothing."""
        loop = asyncio.get_running_loop()
        place = len(self._timers)

        def again() -> None:
            self._timers[place] = loop.call_later(period_ms / 1000, again)
            work(self.now_ms())

        self._timers.append(loop.call_later(period_ms / 1000, again))

    def _tick(self, now_ms: int) -> None:
        self.router.latencies.tick()
        self.router.tick(now_ms)
        self.relays.tick(now_ms)
        self.send_relays.tick(now_ms)
        self.followers.tick(now_ms)
        self.reads.tick(now_ms)
        if self.user_side is not None:
            self.user_side.presence.tick()
        if self.draining and not any(c.outstanding for c in self._connections):
            self._answered.set()

    def _sweep(self, now_ms: int) -> None:
        self.shares.forget(now_ms)
        for connection in list(self._connections):
            connection.look_after(now_ms)


def is_loopback(host: str) -> bool:
    """Whether an IP address is this host's own, also in its IPv4-in-IPv6 form."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
