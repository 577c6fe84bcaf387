"""``python -m bench.cold_start``: how long a start from full disks takes.

``history``: the cluster has served so many messages and applied them, then every process of it is
killed, under load. ``journal``: the worst case, so many messages in the journal that history does
not have at all: they are written through a cluster whose replicas do not apply, which is then
abandoned like a killed one. In both cases ``up_s`` is the whole of ``im-actors up``, Ray included,
until all slots are served, and ``replica_s`` the part of the slowest replica: from the call that
starts it until it listens, with files opened and journal read.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.loading import fill, fill_by, load_to
from bench.machine import describe, fsync_us
from bench.running import Cluster, run, say, until_quiet
from im_actors.cli.bench.processes import Generators
from im_actors.client import Client
from im_actors.server.replica import ReplicaConfig
from im_actors.testing.local import LocalCluster

CASES = ("history", "journal")
SLOTS = 64
NEVER_MS = 10**9
NEVER_BYTES = 1 << 40
APPLIED_S = 600.0


async def fill_journals(data: Path, args: argparse.Namespace) -> int:
    """A directory as replicas leave it that have journaled everything and applied nothing."""
    config = ReplicaConfig(
        apply_every_ms=NEVER_MS, apply_bytes=NEVER_BYTES, apply_bytes_max=NEVER_BYTES
    )
    cluster = LocalCluster(data, slots=SLOTS, shards=1, replica=config)
    await cluster.start()
    try:
        gateway = cluster.controller.running("gateway")[0]
        return await fill((gateway.address, gateway.port), args.messages, **load_of(args))
    finally:
        logging.disable(logging.ERROR)  # The controller would tell of every actor that goes.
        for kind in ("gateway", "shard", "replica"):
            for name in cluster.controller.running_names()[kind]:
                await cluster.crash(name, hold=True)
        await cluster.stop()
        logging.disable(logging.NOTSET)


def load_of(args: argparse.Namespace) -> dict[str, Any]:
    return {"bytes": args.bytes, "sessions": args.sessions}


async def fill_and_kill(cluster: Cluster, args: argparse.Namespace) -> int:
    async with Generators([load_to(cluster.address, **load_of(args))], None) as generators:
        acked = await fill_by(generators, args.messages)
        last = asyncio.create_task(generators.phase(5.0, 0.0, window=64))
        await asyncio.sleep(2.0)
        await asyncio.to_thread(cluster.kill_everything)
        await asyncio.wait([last])
        return acked


def start_again(cluster: Cluster) -> dict[str, Any]:
    """Measure one start."""
    size = sum(file.stat().st_size for file in cluster.data.rglob("*") if file.is_file())
    begun = time.monotonic()
    cluster.up()
    up_s = time.monotonic() - begun
    first_s = asyncio.run(first_ack(cluster))
    replicas = asyncio.run(cluster.call("status"))["replicas"].values()
    applying = max(of["waiting_records"] for of in replicas)
    applied_s = asyncio.run(applied(cluster)) if applying else 0.0
    return {
        "up_s": round(up_s, 2),
        "replica_s": round(max(of["start_ms"] for of in replicas) / 1000, 2),
        "first_ack_ms": round(first_s * 1000),
        "records_to_apply": applying,
        "applied_after_s": round(applied_s, 1),
        "bytes_on_disk": size,
    }


async def first_ack(cluster: Cluster) -> float:
    """One message through the cluster that says it serves: seconds."""
    host, port = cluster.address
    async with Client(f"im://{host}:{port}", "cold-start", connect_timeout=10.0) as client:
        begun = time.monotonic()
        await (await client.send("cold-start", b"first")).acked()
        return time.monotonic() - begun


async def applied(cluster: Cluster) -> float:
    """Seconds until history has what the journal had."""
    begun = time.monotonic()

    async def lag() -> str:
        replicas = (await cluster.call("status"))["replicas"].values()
        left = max(of["apply_lag_records"] for of in replicas)
        return f"{left} records to apply" if left else ""

    await until_quiet(lag, APPLIED_S)
    return time.monotonic() - begun


def cold_start(args: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for case in args.cases:
        cluster = Cluster(args.directory, slots=SLOTS)
        try:
            if case == "journal":
                acked = asyncio.run(fill_journals(cluster.data, args))
            else:
                cluster.up()
                acked = asyncio.run(fill_and_kill(cluster, args))
            found[case] = {"messages": acked, **start_again(cluster)}
            say(f"{case}: {found[case]}")
            fsync = fsync_us(cluster.directory)
        finally:
            cluster.__exit__()
    settings = {name: getattr(args, name) for name in ("messages", "bytes", "sessions")}
    return {"cases": found, "settings": settings, "fsync_us": fsync, "machine": describe()}


def table(report: dict[str, Any]) -> str:
    lines = ["| on disk | messages | up, s | slowest replica, s | first ACK, ms | to apply after |"]
    lines.append("|---" * 6 + "|")
    for case, of in report["cases"].items():
        lines.append(
            f"| {case}, {of['bytes_on_disk'] / 1e6:,.0f} MB | {of['messages']:,} | {of['up_s']}"
            f" | {of['replica_s']} | {of['first_ack_ms']}"
            f" | {of['records_to_apply']:,} records, {of['applied_after_s']} s |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cold_start", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000, help="(default: 1000000)")
    parser.add_argument("--bytes", type=int, default=128, help="of a message (default: 128)")
    parser.add_argument("--sessions", type=int, default=2_000, help="(default: 2000)")
    parser.add_argument("--cases", type=_cases, default=list(CASES), help="default: both")
    parser.add_argument("--directory", type=Path, help="for the data (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    return run(parser.parse_args(argv), cold_start, table)


def _cases(text: str) -> list[str]:
    cases = text.split(",")
    if unknown := set(cases) - set(CASES):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: none of {', '.join(CASES)}")
    return cases


if __name__ == "__main__":
    sys.exit(main())
