"""Who runs where: what the controller tells every actor."""

from __future__ import annotations

from typing import NamedTuple

from im_actors.core.model import Member, View
from im_actors.core.takeover import ReplicaInfo


class ReplicaAddress(NamedTuple):
    """A running replica: its name, disk, the host it shares a fate with, and where it listens."""

    name: str
    disk: str
    host: str
    address: str
    port: int

    @property
    def member(self) -> Member:
        return Member(self.name, self.disk)

    @property
    def info(self) -> ReplicaInfo:
        return ReplicaInfo(self.name, self.disk, self.host)


class ShardAddress(NamedTuple):
    """A running shard incarnation and where it listens. Views name the incarnation."""

    name: str
    incarnation: str
    address: str
    port: int


class Directory(NamedTuple):
    """One state of the cluster. ``version`` grows; an actor ignores an older one.

    ``dropped`` are the months (year * 100 + month) whose content is dropped, on every replica: one
    that was down meanwhile learns of it here."""

    version: int
    slots: int
    replicas: tuple[ReplicaAddress, ...]
    shards: tuple[ShardAddress, ...]
    views: tuple[View, ...]
    dropped: tuple[int, ...] = ()

    def owner_of(self, slot: int) -> ShardAddress | None:
        """The shard that the slot's view names, if that incarnation runs."""
        view = self.views[slot] if slot < len(self.views) else None
        if view is None:
            return None
        return next((s for s in self.shards if s.incarnation == view.owner), None)


class GatewayAddress(NamedTuple):
    """A running gateway and where clients reach it."""

    name: str
    address: str
    port: int
