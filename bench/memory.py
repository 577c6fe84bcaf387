"""``python -m bench.memory``: what sessions cost in memory, per kind of process.

Stages, each after the one before: ``started`` (nothing is there yet), ``followed`` (each session
has one follower and no message), ``active`` (each has messages, too), ``idle`` (nobody follows or
sends any more; a shard forgets idle sessions when a slot has more than 20,000), ``on_disk`` (the
slots have moved to another shard, which loads a session when it is used). Figures are resident
memory; replicas are three processes, shards are two. What Python keeps for reuse counts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.loading import fill_by, load_to
from bench.machine import describe
from bench.running import Cluster, run, say, until_quiet
from bench.takeover import aim, until_started_again
from im_actors.cli.bench.processes import Generators
from im_actors.cli.bench.server_side import ServerSide
from im_actors.cli.target import running_cluster

KINDS = ("gateway", "shard", "replica", "controller")
PER = 100_000


async def measure(cluster: Cluster, args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Resident bytes per stage and kind."""
    found: dict[str, dict[str, int]] = {}
    await cluster.settled()

    async def look(stage: str) -> None:
        side = await ServerSide.find(running_cluster(cluster.data))
        if side is None:
            raise RuntimeError("the processes of the cluster are not to be seen")
        rss = side.usage().rss_bytes
        found[stage] = {kind: rss[kind] for kind in KINDS}
        say(f"{stage}: " + told(found[stage]))

    await look("started")
    load = load_to(
        cluster.address, sessions=args.sessions, followers=1, connections=args.connections
    )
    async with Generators([load], None) as generators:
        await look("followed")
        # Each session is written by two connections, in turn.
        await fill_by(generators, 2 * args.sessions)
        await look("active")
    await until_quiet(lambda: unfollowed(cluster))
    await look("idle")
    await move_slots(cluster)
    await look("on_disk")
    return found


async def move_slots(cluster: Cluster) -> None:
    """End the shard that has the slots; the one that stands by takes them."""
    name, _ = await aim(cluster, "shard", 0)
    pid = (await cluster.pids())[name]
    os.kill(pid, signal.SIGKILL)
    await until_started_again(cluster, name, pid)
    await cluster.settled()


async def unfollowed(cluster: Cluster) -> str:
    status = await cluster.call("status")
    left = sum(of["sessions_followed"] for of in status["gateways"].values())
    lag = max(of["apply_lag_records"] for of in status["replicas"].values())
    return f"{left} sessions followed, {lag} records to apply" if left or lag else ""


def told(rss: dict[str, int]) -> str:
    return ", ".join(f"{kind} {size / 1e6:.0f} MB" for kind, size in rss.items())


def memory(args: argparse.Namespace) -> dict[str, Any]:
    with Cluster(args.directory) as cluster:
        found = asyncio.run(measure(cluster, args))
    started = found["started"]
    more = {
        stage: {kind: round((rss[kind] - started[kind]) * PER / args.sessions) for kind in KINDS}
        for stage, rss in found.items()
        if stage != "started"
    }
    return {
        "sessions": args.sessions,
        "rss_bytes": found,
        "more_per_100000": more,
        "machine": describe(),
    }


def table(report: dict[str, Any]) -> str:
    lines = ["| MB | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    started = report["rss_bytes"]["started"]
    lines.append(_row("started", started, ""))
    lines += [_row(stage, more, "+") for stage, more in report["more_per_100000"].items()]
    return "\n".join(lines)


def _row(stage: str, sizes: dict[str, int], sign: str) -> str:
    cells = (f"{sizes[kind] / 1e6:{sign}.0f}" for kind in KINDS)
    return f"| {stage} | " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--sessions", type=int, default=100_000, help="(default: 100000)")
    parser.add_argument("--connections", type=int, default=64, help="that send (default: 64)")
    parser.add_argument("--directory", type=Path, help="for the data (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    return run(parser.parse_args(argv), memory, table)


if __name__ == "__main__":
    sys.exit(main())
