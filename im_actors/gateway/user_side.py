"""The gateway's part of the user side, put together: who may read, lists, groups, devices, signals.

Access ─── LiveSessions ── the groups that somebody here follows or asks for
Queries ┬─ Mailboxes ───── the lists, in memory, Redis, a file, and the replicas' facts
        └─ Online ──────── the users who are connected here, and their devices
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from im_actors.gateway import access
from im_actors.gateway.access import Access, may_by_id
from im_actors.gateway.config import Clock, GatewayConfig
from im_actors.gateway.followers import Followers
from im_actors.gateway.live import LiveSessions
from im_actors.gateway.online import Online
from im_actors.gateway.pulls import Pulls
from im_actors.gateway.queries import Queries
from im_actors.gateway.reads import Reads
from im_actors.gateway.replica_facts import ReplicaFacts
from im_actors.gateway.rows import MailboxRows, UserHeads
from im_actors.mailbox.loading import MailboxConfig, Mailboxes
from im_actors.mailbox.tier_facts import FactTier
from im_actors.mailbox.tiers import Tier
from im_actors.wire.codec import encode_frame
from im_actors.wire.queries import SIGNALS, Signal, Signaled, signaled


class Client(access.Client, Protocol):
    """What this module knows of a client connection."""

    signals: dict[str, int]
    """When it sent the last signal of a session, in ms."""


class UserSide:
    """All of it, for one gateway. ``at_least`` tells the highest seq known of a session."""

    def __init__(
        self,
        name: str,
        config: GatewayConfig,
        followers: Followers,
        reads: Reads,
        pulls: Pulls,
        at_least: Callable[[str], int],
        clock: Clock,
    ) -> None:
        now_ms = clock.monotonic_ms
        replicas = ReplicaFacts(reads, now_ms)
        form = MailboxRows()
        cold = FactTier(replicas, form)
        self._followers = followers
        self._config = config
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
        self.queries = Queries(
            self.mailboxes, self.live, self.access, self.online, replicas, config, at_least
        )

    def signal(self, sender: Client, signal: Signal, now_ms: int) -> None:
        """Tell it to the other users' connections here that follow the session, if it is the
        sender's to write in; too many are dropped."""
        if signal.what not in SIGNALS or not self._may_signal(sender, signal.session):
            return
        if now_ms - sender.signals.get(signal.session, -1 << 62) < self._config.signal_ms:
            return
        if len(sender.signals) >= self._config.limits.follow_sessions:
            sender.signals.clear()
        sender.signals[signal.session] = now_ms
        row = Signaled(signal.session, sender.user, signal.what, signal.value)
        frame = encode_frame(signaled([row]))
        for follower in self._followers.followers_of(signal.session):
            client: Client = follower  # type: ignore[assignment]
            if client.user != sender.user and client.writable:
                client.send(frame)

    def _may_signal(self, sender: Client, session: str) -> bool:
        # Who follows a group is a member.
        return session in sender.follows or bool(may_by_id(sender.user, session))

    def status(self) -> dict[str, Any]:
        """All of it JSON."""
        return {
            "live_sessions": len(self.live),
            "queries": len(self.queries),
            "queries_answered": self.queries.answered,
            "queries_failed": self.queries.failed,
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
