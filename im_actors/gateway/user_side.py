"""The gateway's part of the user side, put together: who may read, lists, groups, devices, signals.

Access ─── LiveSessions ── the groups that somebody here follows or asks for
Queries ┬─ Mailboxes ───── the lists, in memory, Redis, a file, and the replicas' facts
        ├─ Online ──────── the users who are connected here, and their devices
        └─ Presence ────── those who are connected elsewhere
Signals ───────────────── typing and presence, here and by shards to other gateways
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from im_actors.gateway.access import Access
from im_actors.gateway.config import Clock, GatewayConfig
from im_actors.gateway.followers import Followers
from im_actors.gateway.live import LiveSessions
from im_actors.gateway.online import Online
from im_actors.gateway.peers import Peers, RouteChange, ShardPeer
from im_actors.gateway.presence import Presence
from im_actors.gateway.pulls import Pulls
from im_actors.gateway.queries import Queries
from im_actors.gateway.reads import Reads
from im_actors.gateway.replica_facts import ReplicaFacts
from im_actors.gateway.rows import MailboxRows, UserHeads
from im_actors.gateway.signals import Signals
from im_actors.mailbox.loading import MailboxConfig, Mailboxes
from im_actors.mailbox.tier_facts import FactTier
from im_actors.mailbox.tiers import Tier


class UserSide:
    """All of it, for one gateway. ``at_least`` tells the highest seq known of a session."""

    def __init__(
        self,
        name: str,
        config: GatewayConfig,
        peers: Peers,
        followers: Followers,
        reads: Reads,
        pulls: Pulls,
        at_least: Callable[[str], int],
        clock: Clock,
    ) -> None:
        now_ms = clock.monotonic_ms
        replicas = ReplicaFacts(reads, now_ms)
        self._form = form = MailboxRows()
        cold = FactTier(replicas, form)
        self.live = LiveSessions(followers, replicas, config, now_ms)
        self.mailboxes = Mailboxes(
            [*_near_tiers(name, config), cold],
            form,
            partial(UserHeads, self.live),
            cold,
            MailboxConfig(rows_max=config.mailbox_rows_max, large_accounts=config.large_accounts),
            wall_ms=clock.wall_ms,
        )
        self.access = Access(self.live, followers, pulls, config, at_least, now_ms)
        self.online = Online(followers, replicas, self.mailboxes, config, now_ms)
        self.presence = Presence(peers, config, self.online.devices)
        self.online.on_changed = self.presence.changed
        self.signals = Signals(peers, followers, self.live, self.online, config)
        self.queries = Queries(
            self.mailboxes,
            self.live,
            self.access,
            self.online,
            self.presence,
            replicas,
            config,
            at_least,
        )

    def months_dropped(self, months: Iterable[int]) -> None:
        """The content of these months is gone, also where only its beginning was shown."""
        if self._form.dropped != frozenset(months):
            self._form.dropped = frozenset(months)
            self.mailboxes.views.encode_anew()

    def shard_up(self, shard: ShardPeer) -> None:
        self.presence.renew(shard.slots)

    def shard_down(self, shard: ShardPeer) -> None:
        self.presence.shard_down(shard)

    def routes_changed(self, changes: dict[int, RouteChange]) -> None:
        self.presence.renew(slot for slot, change in changes.items() if change.taken_over)

    def status(self) -> dict[str, Any]:
        """All of it JSON."""
        return {
            "live_sessions": len(self.live),
            "queries": len(self.queries),
            "queries_answered": self.queries.answered,
            "queries_failed": self.queries.failed,
            "signals": self.signals.passed,
            "signals_dropped": self.signals.dropped,
            "mailboxes": self.mailboxes.metrics.status(),
        }

    async def close(self) -> None:
        """Return when nothing runs any more."""
        await asyncio.gather(
            self.access.close(), self.queries.close(), self.online.close(), self.live.close()
        )
        await self.mailboxes.close()


def _near_tiers(name: str, config: GatewayConfig) -> list[Tier]:
    """Those that are configured. Their modules are in an extra, or need a disk."""
    tiers: list[Tier] = []
    if config.mailbox_redis:
        from im_actors.mailbox.tier_redis import RedisTier

        tiers.append(RedisTier(config.mailbox_redis, config.mailbox_cluster))
    if config.mailbox_dir:
        from im_actors.mailbox.tier_sqlite import SqliteTier

        directory = Path(config.mailbox_dir)
        directory.mkdir(parents=True, exist_ok=True)
        tiers.append(SqliteTier(directory / f"{name}.db"))
    return tiers
