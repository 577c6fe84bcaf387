"""Waits for the hosts of a Ray cluster to come, each with its disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from im_actors.actors.placement import Host, absent, disks, offered
from im_actors.core.model import COPIES
from im_actors.errors import NotReachable

LOOK_S = 0.5
"""Between two looks at which hosts are there."""
TELL_S = 10.0
"""Who waits hears of it at least so often."""

Say = Callable[[str], None]


def wait_for_hosts(
    replicas: Sequence[str],
    known: Mapping[str, str],
    look: Callable[[], list[Host]],
    hosts_s: float,
    say: Say,
) -> list[Host]:
    """The hosts, when there is a disk for each replica. NotReachable: not within ``hosts_s``.

    Replicas of ``known``, which have been placed before, may stay away when three disks are there:
    they rejoin when their hosts are back, and new ones are never put in their place.
    """
    deadline = time.monotonic() + hosts_s
    told, told_s = "", 0.0
    while True:
        hosts = look()
        missing = absent(replicas, hosts, known)
        if not missing:
            return hosts
        left_s = deadline - time.monotonic()
        count = len(disks(hosts))
        found = f"{count} of {len(replicas)} disks are there, missing: {', '.join(missing)}"
        if left_s <= 0:
            there = offered(hosts)
            back = sum(known[name] in there for name in replicas if name in known)
            if known.keys() >= set(replicas) and back >= COPIES:
                say(f"{found}; going on without")
                return hosts
            raise NotReachable(_not_there(found, hosts_s, hosts))
        if found != told or time.monotonic() - told_s > TELL_S:
            told, told_s = found, time.monotonic()
            say(f"{found} ({left_s:.0f} s left)")
        time.sleep(LOOK_S)


def _not_there(found: str, hosts_s: float, hosts: Sequence[Host]) -> str:
    here = ", ".join(host.address for host in hosts) or "none"
    return (
        f"after {hosts_s:.0f} s {found}. Hosts that Ray knows: {here}. A data host says its disk"
        " when it starts Ray (--resources='{\"im_disk_NAME\": 1}'); ray status and the host itself"
        " say why one is missing. Ask for fewer --replicas, or wait longer with --hosts-timeout"
    )
