"""Which host a replica belongs to, in a Ray cluster of several hosts.

A replica is tied to a custom resource of its host and never to a node id: a restarted raylet is a
new node, and its disk is the old one. Hosts say which disk they have:

    ray start … --resources='{"im_disk_a": 1}'

Each disk has one replica. Where no host says so, and none that it is a head without data
(``im_head``), the resource ``node:<address>`` that Ray gives to every host stands in, which suits a
trial. The choice is made once and remembered beside ``cluster.json``: an empty directory on another
host must never come up under the name of a replica that has data elsewhere.

Shards and gateways have no data; they are spread over the hosts of the replicas all the same, so
that every data host has a gateway and none has two shards while another has none. When a host is
away, the others take its slots. When its replica leaves the cluster, they move to other hosts.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from im_actors.errors import CorruptData, DiskFailed, SetupError
from im_actors.server.topology import Topology, kind_of, number_of

DISK = "im_disk_"
HEAD = "im_head"
NODE = "node:"
FILE = "placement.json"
WITHOUT_DATA = ("shard", "gateway")


class Host(NamedTuple):
    """A node of a Ray cluster."""

    address: str
    resources: tuple[str, ...]

    @property
    def own(self) -> str:
        """The resource that names the host itself."""
        return NODE + self.address


def disks(hosts: Iterable[Host]) -> dict[str, str]:
    """Disk to the address of its host. SetupError: two hosts say that they have the same one."""
    found: dict[str, str] = {}
    for host in hosts:
        for resource in host.resources:
            if (
                resource.startswith(DISK)
                and found.setdefault(resource, host.address) != host.address
            ):
                raise SetupError(
                    f"{found[resource]} and {host.address} both say that they have {resource}:"
                    " the name of a disk is its own, see IM_ACTORS_DISK on these hosts"
                )
    return found


def _takes_disks(hosts: Iterable[Host]) -> bool:
    """Whether this Ray is one whose data hosts name their disks."""
    return any(r == HEAD or r.startswith(DISK) for host in hosts for r in host.resources)


def offered(hosts: Iterable[Host]) -> set[str]:
    """All resources of these hosts."""
    return {resource for host in hosts for resource in host.resources}


def absent(replicas: Sequence[str], hosts: Sequence[Host], known: Mapping[str, str]) -> list[str]:
    """What has to come before all replicas can be placed and run, in words; empty: nothing."""
    there = offered(hosts)
    placed = [(name, known[name]) for name in replicas if name in known]
    gone = [f"{resource} of {name}" for name, resource in placed if resource not in there]
    free = len(disks(hosts).keys() - known.values())
    fresh = len(replicas) - len(placed) - free
    if fresh > 0 and (_takes_disks(hosts) or not hosts):
        gone.append(f"{fresh} more {'disk' if fresh == 1 else 'disks'}")
    return gone


def place(
    replicas: Iterable[str], hosts: Sequence[Host], known: Mapping[str, str]
) -> dict[str, str]:
    """Replica to resource. What is ``known`` stays; each new one gets a disk of its own, or where
    hosts name none, the host that has the fewest. SetupError: there are not enough."""
    choice = sorted(disks(hosts) if _takes_disks(hosts) else {host.own for host in hosts})
    placed = dict(known)
    used = Counter(placed.values())
    for replica in replicas:
        if replica not in placed:
            resource = min(choice, key=lambda name: (used[name], name), default="")
            if not resource or (resource.startswith(DISK) and used[resource]):
                raise SetupError(f"there is no disk for {replica}: each replica has one of its own")
            placed[replica] = resource
            used[resource] += 1
    return placed


def spread(
    names: Sequence[str], replicas: Iterable[str], hosts: Sequence[Host], known: Mapping[str, str]
) -> dict[str, str]:
    """Actors without data to resources. Those that are beside one of these replicas stay there,
    each other one goes to that replica's host where the fewest of its kind are."""
    address = {resource: host.address for host in hosts for resource in host.resources}
    staying = {known[replica]: None for replica in replicas if replica in known}
    anchors: dict[str, str] = {}
    for resource in staying:
        anchors.setdefault(address.get(resource, resource), resource)
    placed = {name: known[name] for name in names if known.get(name) in staying}
    used = Counter((kind_of(n), address.get(place, place)) for n, place in placed.items())
    for name in names:
        if name not in placed and anchors:
            host = min(anchors, key=lambda host: used[kind_of(name), host])
            placed[name] = anchors[host]
            used[kind_of(name), host] += 1
    return placed


def strays(names: Iterable[str], replicas: Iterable[str], known: Mapping[str, str]) -> list[str]:
    """Actors without data that are where none of these replicas is."""
    staying = {known[replica] for replica in replicas if replica in known}
    return [name for name in names if name in known and staying and known[name] not in staying]


def lasting(places: Mapping[str, str], topology: Topology) -> dict[str, str]:
    """Those that hold for every start to come: not the ones of actors without data, nor of replicas
    that have left the cluster for good, whose disks may be given to others."""
    wanted = {desired.name for desired in topology.desired()}

    def lasts(name: str) -> bool:
        if kind_of(name) == "replica" and number_of(name) <= topology.replicas_made:
            return name in wanted
        return kind_of(name) not in WITHOUT_DATA

    return {name: place for name, place in places.items() if lasts(name)}


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
