"""``python -m bench.takeover``: how long nobody is answered when a process is killed.

A probe sends a small message every few milliseconds, in turn to sessions of every slot. A process
is killed (kill -9); the time from the kill to the first ACK of a message that was *sent after* it,
through what was hit: the slots of a shard or replica, the clients that a gateway had. ``all`` is
until each slot, or each client, that was hit has had one. The next kill waits for everything to be
as before: all slots served, all actors up, an idle process at hand; before a gateway's, also that
the clients have been connected for as long as lets them reconnect without a growing wait.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.machine import describe, fsync_us
from bench.probe import Probe, Probed
from bench.running import Cluster, run, say, until_quiet
from im_actors.errors import ImError

KINDS = ("shard", "replica", "gateway")
CLIENTS = 4
BUCKET_MS = 100


@dataclass(eq=False, slots=True)
class Kill:
    """One killed process."""

    kind: str
    name: str
    begin: int
    """Number of messages that had been sent before."""
    at_s: float
    hit: set[int]
    """The slots of a shard or replica, the clients of a gateway."""
    seen_s: dict[int, float] = field(default_factory=dict)
    """When each of them had its first ACK."""

    def look(self, messages: Sequence[Probed]) -> None:
        for message in messages[self.begin :]:
            part = message.client if self.kind == "gateway" else message.slot
            if part in self.hit and message.acked_s and message.sent_s >= self.at_s:
                known = self.seen_s.get(part, message.acked_s)
                self.seen_s[part] = min(known, message.acked_s)

    @property
    def first_ms(self) -> float:
        return (min(self.seen_s.values()) - self.at_s) * 1000

    @property
    def all_ms(self) -> float:
        return (max(self.seen_s.values()) - self.at_s) * 1000


async def measure(cluster: Cluster, args: argparse.Namespace) -> dict[str, list[Kill]]:
    """Kill as asked for, the kinds in turn, so that slow hours of the machine meet all of them."""
    kills: dict[str, list[Kill]] = {kind: [] for kind in args.kinds}
    slots = (await cluster.call("status"))["slots"]["total"]
    host, port = cluster.address
    async with Probe(f"im://{host}:{port}", slots, CLIENTS, args.every_ms) as probe:
        for number in range(args.kills):
            for kind in args.kinds:
                kill = await one_kill(cluster, probe, kind, number)
                kills[kind].append(kill)
                say(f"{number + 1:3} {kill.name}: {kill.first_ms:.0f} ms, all {kill.all_ms:.0f} ms")
        await probe.stop()
        if wrong := probe.wrong():
            raise RuntimeError(f"void: {wrong} messages were lost, doubled or out of order")
    return kills


async def one_kill(cluster: Cluster, probe: Probe, kind: str, number: int) -> Kill:
    """Kill one process and return when everything is as before."""
    await cluster.settled(probe.restless if kind == "gateway" else lambda: "")
    name, hit = await aim(cluster, kind, number)
    pid = (await cluster.pids())[name]
    connects = probe.connects()
    kill = Kill(kind, name, len(probe.messages), time.monotonic(), hit)
    os.kill(pid, signal.SIGKILL)
    wanted = len(hit)

    def unanswered() -> str:
        if kind == "gateway":
            pairs = zip(connects, probe.connects(), strict=True)
            kill.hit = {n for n, (before, now) in enumerate(pairs) if now > before}
        kill.look(probe.messages)
        left = wanted - len(kill.seen_s)
        return f"{left} of {wanted} without an ACK" if left > 0 else ""

    await until_started_again(cluster, name, pid)
    await cluster.settled(unanswered)
    return kill


async def aim(cluster: Cluster, kind: str, number: int) -> tuple[str, set[int]]:
    """The next actor of a kind in turn that has something to do, and the slots that it has."""
    status = await cluster.call("status")
    if kind == "shard":
        working = {name: set(of["serving"]) for name, of in status["shards"].items()}
    elif kind == "replica":
        members = {int(slot): names for slot, names in status["slots"]["members"].items()}
        working = {
            name: {slot for slot, names in members.items() if name in names}
            for name in status["replicas"]
        }
    else:
        working = {n: set(range(of["connections"])) for n, of in status["gateways"].items()}
    names = sorted(name for name, parts in working.items() if parts)
    name = names[number % len(names)]
    return name, working[name]


async def until_started_again(cluster: Cluster, name: str, pid: int) -> None:
    async def still() -> str:
        try:
            return "" if (await cluster.pids())[name] != pid else f"{name} has not come back"
        except ImError as error:
            return str(error)

    await until_quiet(still)


# -- figures ---------------------------------------------------------------------------------------


def summary(kills: list[Kill]) -> dict[str, Any]:
    """Milliseconds; of 50 kills p99 is the worst one."""
    first = [kill.first_ms for kill in kills]
    buckets = Counter(int(ms // BUCKET_MS) * BUCKET_MS for ms in first)
    return {
        "kills": len(kills),
        "first_ack_ms": spread(first),
        "all_ms": spread([kill.all_ms for kill in kills]),
        "histogram_ms": {str(ms): buckets[ms] for ms in sorted(buckets)},
    }


def spread(values: list[float]) -> dict[str, int]:
    """Nearest rank: a value that occurred."""
    found = sorted(values)

    def at(share: float) -> int:
        return round(found[max(0, -(-int(share * 100) * len(found) // 100) - 1)])

    return {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": round(found[-1])}


def table(report: dict[str, Any]) -> str:
    lines = ["| killed | kills | p50 | p90 | p99 | max | p99 of all | how many from … ms |"]
    lines.append("|---" * 8 + "|")
    for kind, of in report["kinds"].items():
        first = " | ".join(str(of["first_ack_ms"][name]) for name in ("p50", "p90", "p99", "max"))
        histogram = " ".join(f"{ms}:{count}" for ms, count in of["histogram_ms"].items())
        lines.append(f"| {kind} | {of['kills']} | {first} | {of['all_ms']['p99']} | {histogram} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.takeover", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of each kind (default: 50)")
    parser.add_argument("--kinds", type=_kinds, default=list(KINDS), help="default: all three")
    parser.add_argument("--every-ms", type=float, default=2.0, help="between probes (default: 2)")
    parser.add_argument("--shards", type=int, default=1, help="(default: 1)")
    parser.add_argument("--gateways", type=int, default=1, help="(default: 1)")
    parser.add_argument("--directory", type=Path, help="for the data (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    return run(parser.parse_args(argv), takeover, table)


def takeover(args: argparse.Namespace) -> dict[str, Any]:
    with Cluster(args.directory, shards=args.shards, gateways=args.gateways) as cluster:
        fsync = fsync_us(cluster.directory)
        kills = asyncio.run(measure(cluster, args))
    return {
        "kinds": {kind: summary(of) for kind, of in kills.items()},
        "settings": {n: getattr(args, n) for n in ("kills", "every_ms", "shards", "gateways")},
        "fsync_us": fsync,
        "machine": describe(),
    }


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if unknown := set(kinds) - set(KINDS):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: none of {', '.join(KINDS)}")
    return kinds


if __name__ == "__main__":
    sys.exit(main())
