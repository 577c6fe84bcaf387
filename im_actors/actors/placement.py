"""Which host a replica belongs to, in a Ray cluster of several hosts.

A replica is tied to a custom resource of its host and never to a node id: a restarted raylet is a
new node, and its disk is the old one. Hosts say which disk they have:

    ray start … --resources='{"im_disk_a": 1}'

Where no host does, the resource ``node:<address>`` that Ray gives to every host stands in. The
choice is made once and remembered beside ``cluster.json``: an empty directory on another host must
never come up under the name of a replica that has data elsewhere.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from im_actors.errors import CorruptData, DiskFailed, SetupError

DISK = "im_disk_"
NODE = "node:"
FILE = "placement.json"


class Host(NamedTuple):
    """A node of a Ray cluster."""

    address: str
    resources: tuple[str, ...]

    @property
    def own(self) -> str:
        """The resource that names the host itself."""
        return NODE + self.address


def place(replicas: Iterable[str], hosts: Sequence[Host], known: dict[str, str]) -> dict[str, str]:
    """Replica to resource. What is ``known`` stays; new ones go where the fewest are."""
    disks = sorted({r for host in hosts for r in host.resources if r.startswith(DISK)})
    offered = disks or sorted(host.own for host in hosts)
    if not offered:
        raise SetupError("that Ray has no host that is alive")
    placed = dict(known)
    used = Counter(placed.values())
    for replica in replicas:
        if replica not in placed:
            resource = min(offered, key=lambda name: (used[name], name))
            placed[replica] = resource
            used[resource] += 1
    return placed


def read_places(data: Path) -> dict[str, str]:
    """What was chosen before; empty when nothing was."""
    path = data / FILE
    try:
        places = json.loads(path.read_text())["places"]
        return {str(name): str(resource) for name, resource in places.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptData(f"{path} cannot be read ({error}); bring back a good copy") from None


def write_places(data: Path, places: dict[str, str]) -> None:
    """After a crash the file is the old one or the new one."""
    path = data / FILE
    fresh = path.with_name(f".{FILE}.new")
    try:
        with fresh.open("w") as file:
            json.dump({"format": 1, "places": places}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        raise DiskFailed(f"{path} cannot be written: {error.strerror}") from None
