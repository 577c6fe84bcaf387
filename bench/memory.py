"""``python -m bench.memory``: what sessions cost in memory, per kind of process.

Stages, each after the one before: ``started`` (nothing is there yet), ``followed`` (each session
has one follower and no message), ``active`` (each has messages, too), ``idle`` (still followed,
nothing was sent for a minute, so that the shard has forgotten them), ``left`` (nobody follows any
more).
Figures are resident memory; replicas are three processes. What Python keeps for reuse counts.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.loading import fill_by, load_to
from bench.machine import describe
from bench.running import Cluster, say, until_quiet
from bench.takeover import run
from im_actors.cli.bench.processes import Generators
from im_actors.cli.bench.server_side import ServerSide
from im_actors.cli.target import running_cluster

KINDS = ("gateway", "shard", "replica", "controller")
IDLE_S = 180.0
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
        await until_quiet(lambda: idle(cluster), IDLE_S)
        await look("idle")
    await until_quiet(lambda: unfollowed(cluster))
    await look("left")
    return found


async def idle(cluster: Cluster) -> str:
    status = await cluster.call("status")
    known = sum(of["sessions"] for of in status["shards"].values())
    lag = max(of["apply_lag_records"] for of in status["replicas"].values())
    return f"{known} sessions in memory, {lag} records to apply" if known or lag else ""


async def unfollowed(cluster: Cluster) -> str:
    gateways = (await cluster.call("status"))["gateways"].values()
    left = sum(of["sessions_followed"] for of in gateways)
    return f"{left} sessions followed" if left else ""


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
