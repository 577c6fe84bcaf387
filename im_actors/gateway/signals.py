"""Signals: typing and presence, from client to client, never stored.

In a direct session the other user's connections hear them, elsewhere the connections that follow
the session. Those of this gateway are told at once. Those of others are reached through the shard
that serves what hears the signal, the other user's mailbox or the session: it knows which gateways
watch it, because they do so anyway to be pushed its events. So there are no links between gateways,
and nothing more to keep true when an owner changes.

Signals may get lost and must not cost anything else: one that is too much is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, cast

from im_actors.core.names import SessionKind, mailbox_of, peer_of, session_kind
from im_actors.core.ratelimit import TokenBucket
from im_actors.gateway import access
from im_actors.gateway.access import may_by_id
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.followers import Followers
from im_actors.gateway.live import LiveSessions
from im_actors.gateway.online import Online
from im_actors.gateway.peers import Peers
from im_actors.wire.codec import encode_frame
from im_actors.wire.links import InsideType, pack_frame
from im_actors.wire.queries import SIGNALS, Signal, Signaled, signaled

SESSIONS_AT_ONCE_MAX = 32
"""Sessions that one connection may signal in within ``signal_ms``."""
SLOW_BYTES = 256 * 1024
"""A shard that has more than this unread gets no signals: sends come first."""


class Client(access.Client, Protocol):
    """What this module knows of a client connection."""

    signals: dict[str, int]
    """When it sent the last signal of a session, in ms."""


class Signals:
    """All that pass through one gateway."""

    def __init__(
        self,
        peers: Peers,
        followers: Followers,
        live: LiveSessions,
        online: Online,
        config: GatewayConfig,
    ) -> None:
        self._peers = peers
        self._followers = followers
        self._live = live
        self._online = online
        self._config = config
        self._rate = TokenBucket(config.signals_per_s, config.signals_per_s)
        self.passed = self.dropped = 0

    def said(self, sender: Client, signal: Signal, now_ms: int) -> None:
        """Tell it to the other users who hear the session, if it is the sender's to write in."""
        if signal.what not in SIGNALS or not self._may(sender, signal.session):
            return
        if not self._is_rare(sender, signal.session, now_ms) or self._rate.take(1, now_ms):
            self.dropped += 1
            return
        self.passed += 1
        row = Signaled(signal.session, sender.user, signal.what, signal.value)
        hearer = self._hearer(sender.user, signal.session)
        self._tell(hearer, row)
        shard = self._peers.routes[self._peers.slot_of(hearer)] if self._peers.slots else None
        link = shard.link if shard is not None else None
        if link is not None and link.up and link.buffered_bytes <= SLOW_BYTES:
            link.send(pack_frame((InsideType.SIGNAL, [(hearer, *row)])))

    def came(self, rows: Iterable[Sequence[Any]]) -> None:
        """Through a shard, from another gateway: [hearer, session, user, what, value]."""
        for hearer, *row in rows:
            self._tell(hearer, Signaled(*row))

    # ---- inside

    def _hearer(self, user: str, session: str) -> str:
        if session_kind(session) is SessionKind.DIRECT:
            return mailbox_of(peer_of(session, user))
        return session

    def _tell(self, hearer: str, row: Signaled) -> None:
        of_user = session_kind(hearer) is SessionKind.MAILBOX
        found = self._online.clients(hearer) if of_user else self._followers.followers_of(hearer)
        hearing = cast(Sequence[Client], found)
        if len(hearing) > self._config.signal_hearers_max:
            self.dropped += 1
            return
        frame = encode_frame(signaled([row]))
        for client in hearing:
            if client.user != row.user and client.writable:
                client.send(frame)

    def _may(self, sender: Client, session: str) -> bool:
        if session_kind(session) is not SessionKind.GROUP:
            return bool(may_by_id(sender.user, session))
        # Who follows a group is a member, and what somebody follows is live.
        group = self._live.group(session)
        few = group is not None and group.members <= self._config.signal_hearers_max
        return session in sender.follows and few

    def _is_rare(self, sender: Client, session: str, now_ms: int) -> bool:
        """Whether the connection has not signalled too much of late; it is noted."""
        oldest_ms, said = now_ms - self._config.signal_ms, sender.signals
        if said.get(session, oldest_ms - 1) > oldest_ms:
            return False
        said.pop(session, None)
        while said and next(iter(said.values())) <= oldest_ms:
            del said[next(iter(said))]
        if len(said) >= SESSIONS_AT_ONCE_MAX:
            return False
        said[session] = now_ms
        return True
