"""Which actor has which port, as /proc tells it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


class Owner(NamedTuple):
    """Whose port it is."""

    kind: str
    name: str


CLIENT = Owner("client", "client")
"""Whoever is no actor."""


def ports_of(actors: Mapping[str, int]) -> dict[int, Owner]:
    """The ports of these actors (name to process id), those of their connections included."""
    owners: dict[str, Owner] = {}
    for name, pid in actors.items():
        owner = Owner(name.rpartition("-")[0] or name, name)
        owners |= dict.fromkeys(_sockets(pid), owner)
    lines: list[str] = []
    for table in TABLES:
        path = Path(table)
        lines += path.read_text().splitlines()[1:] if path.exists() else []
    return join_ports(lines, owners)


def join_ports(lines: Iterable[str], owners: Mapping[str, Owner]) -> dict[int, Owner]:
    """Local port to owner, from lines of /proc/net/tcp; ``owners`` is by socket inode."""
    found = {}
    for line in lines:
        fields = line.split()
        owner = owners.get(fields[9])
        if owner is not None:
            found[int(fields[1].rpartition(":")[2], 16)] = owner
    return found


def _sockets(pid: int) -> list[str]:
    """Inodes of the sockets that a process has open."""
    inodes = []
    folder = Path(f"/proc/{pid}/fd")
    for name in os.listdir(folder) if folder.exists() else ():
        # It may have closed one meanwhile: the others count all the same.
        with contextlib.suppress(OSError):
            target = os.readlink(folder / name)
            if target.startswith("socket:["):
                inodes.append(target[len("socket:[") : -1])
    return inodes
