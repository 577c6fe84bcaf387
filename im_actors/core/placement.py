"""Where things go: slots to shards, members to replicas, by rendezvous hashing.

Highest random weight (Thaler and Ravishankar 1998): every observer computes the same answer from
the names alone, and when one name comes or goes only the slots that it wins or loses move.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from im_actors.core.model import COPIES
from im_actors.core.takeover import ReplicaInfo


def weight(slot: int, name: str) -> int:
    digest = hashlib.blake2b(f"{slot}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def ranked(slot: int, names: Iterable[str]) -> list[str]:
    """All names, the slot's first choice first."""
    return sorted(names, key=lambda name: (weight(slot, name), name), reverse=True)


def owner_for(slot: int, shards: Iterable[str]) -> str | None:
    """The shard that should own the slot, None when there is no shard."""
    return next(iter(ranked(slot, shards)), None)


def ranked_replicas(slot: int, replicas: Sequence[ReplicaInfo]) -> list[ReplicaInfo]:
    by_name = {info.name: info for info in replicas}
    return [by_name[name] for name in ranked(slot, by_name)]


def members_for(slot: int, replicas: Sequence[ReplicaInfo]) -> list[ReplicaInfo]:
    """Three replicas on distinct hosts; on the same host only when there are fewer hosts than
    copies (design 5.3: a degraded placement, shown by ``status``). Fewer than three: all."""
    order = ranked_replicas(slot, replicas)
    hosts: set[str] = set()
    first: list[ReplicaInfo] = []
    for info in order:
        if info.host not in hosts:
            hosts.add(info.host)
            first.append(info)
    return (first + [info for info in order if info not in first])[:COPIES]
