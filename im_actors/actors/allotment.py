"""Which host each actor belongs to while a cluster on several hosts grows and shrinks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from im_actors.actors.placement import (
    WITHOUT_DATA,
    Host,
    lasting,
    place,
    read_places,
    spread,
    strays,
    write_places,
)
from im_actors.server.topology import Topology


class Allotment:
    """Keeps the places beside ``cluster.json``, and in ``places``, which the platform goes by."""

    def __init__(self, data: Path, places: dict[str, str], look: Callable[[], list[Host]]) -> None:
        """``look`` finds the hosts that are there, and blocks for a moment."""
        self._data = data
        self._places = places
        self._look = look
        self._known = read_places(data)
        places.update(self._known)

    async def allot(self, topology: Topology) -> None:
        """Give each new replica a disk, and each other new actor a host. SetupError: there are not
        enough."""
        hosts = await asyncio.to_thread(self._look)
        free = [host for host in hosts if host.address not in topology.hosts_out]
        replicas = [d.name for d in topology.desired() if d.kind == "replica"]
        others = _without_data(topology)
        lasts = place(replicas, free, lasting(self._known, topology))
        # Who strays stays there until it is resettled.
        here = {name: self._known[name] for name in others if name in self._known}
        self._write(lasts | spread(others, topology.replicas, hosts, lasts | here) | here)

    def strays(self, topology: Topology) -> list[str]:
        """Shards and gateways beside which no replica stays."""
        return strays(_without_data(topology), topology.replicas, self._known)

    async def resettle(self, name: str, topology: Topology) -> None:
        """Give a stray, which must not run now, a host where a replica stays."""
        hosts = await asyncio.to_thread(self._look)
        placed = spread(_without_data(topology), topology.replicas, hosts, self._known)
        self._write(self._known | {name: placed[name]})

    def _write(self, known: dict[str, str]) -> None:
        write_places(self._data, known)
        self._known = known
        self._places.update(known)


def _without_data(topology: Topology) -> list[str]:
    return [desired.name for desired in topology.desired() if desired.kind in WITHOUT_DATA]
