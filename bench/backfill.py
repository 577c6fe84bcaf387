"""``python -m bench.backfill``: how fast a lost disk is filled again, and what live traffic feels.

A cluster of three replicas has so many messages. At a steady rate of sends, one replica loses its
directory and its process; it comes back with an empty disk, joins all of its slots again, and the
other two fill it. Latencies of ACKs before, in the first seconds (in which writes wait for the
third copy), and during the rest of the backfill. Latency is measured from the intended time of
sending.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.loading import fill, load_to
from bench.machine import describe, fsync_us
from bench.running import Cluster, run, say
from bench.takeover import until_started_again
from im_actors.cli.bench.latencies import Latencies
from im_actors.cli.bench.processes import Generators
from im_actors.errors import ImError

VICTIM = "replica-3"
LOOK_S = 0.1
PHASE_S = 2.0
BEFORE_S = 10.0
FIRST_S = 10.0
FILL_S = 900.0


async def measure(cluster: Cluster, args: argparse.Namespace) -> dict[str, Any]:
    await cluster.settled()
    messages = await fill(cluster.address, args.messages, bytes=args.bytes)
    await cluster.settled()
    load = load_to(cluster.address, bytes=args.bytes)
    async with Generators([load], None) as generators:
        before = (await generators.phase(BEFORE_S, 1.0, rate=args.rate)).ack
        begun = time.monotonic()
        filling = asyncio.create_task(lose_disk_and_wait(cluster))
        try:
            first = (await generators.phase(FIRST_S, 0.0, rate=args.rate)).ack
            during = Latencies()
            while not filling.done():
                during.add((await generators.phase(PHASE_S, 0.0, rate=args.rate)).ack.counts())
            joined_s, filled_s = await filling
        finally:
            filling.cancel()
        outcome = await generators.finish()
    if not outcome.sound:
        raise RuntimeError(f"void: {outcome.problems}")
    seconds = filled_s - joined_s
    return {
        "messages": messages,
        "joined_s": round(joined_s - begun, 2),
        "filled_s": round(filled_s - begun, 2),
        "msgs_per_s": round(messages / seconds) if seconds else None,
        "ack_ms": {
            "before": before.summary(),
            "first_seconds": first.summary(),
            "during": during.summary(),
        },
    }


async def lose_disk_and_wait(cluster: Cluster) -> tuple[float, float]:
    """When the replica was a member of all slots again, and when it had all of their history."""
    pid = (await cluster.pids())[VICTIM]
    os.rename(cluster.data / VICTIM, cluster.directory / "lost")
    os.kill(pid, signal.SIGKILL)
    await until_started_again(cluster, VICTIM, pid)
    joined_s = 0.0
    deadline = time.monotonic() + FILL_S
    while time.monotonic() < deadline:
        try:
            status = await cluster.call("status")
        except ImError:
            status = {"healthy": False}
        if status["healthy"]:
            joined_s = joined_s or time.monotonic()
            if not status["replicas"][VICTIM]["incomplete_slots"]:
                return joined_s, time.monotonic()
        await asyncio.sleep(LOOK_S)
    raise RuntimeError(f"{VICTIM} was not filled within {FILL_S:.0f} s")


def backfill(args: argparse.Namespace) -> dict[str, Any]:
    with Cluster(args.directory) as cluster:
        fsync = fsync_us(cluster.directory)
        found = asyncio.run(measure(cluster, args))
    say(f"filled after {found['filled_s']} s")
    settings = {name: getattr(args, name) for name in ("messages", "bytes", "rate")}
    return {**found, "settings": settings, "fsync_us": fsync, "machine": describe()}


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['messages']:,} messages: a member again after {report['joined_s']} s, filled"
        f" after {report['filled_s']} s, {report['msgs_per_s'] or 0:,} messages a second",
        "",
        f"| ACK, ms, at {report['settings']['rate']:,.0f} a second | p50 | p99 | p99.9 | max |",
        "|---" * 5 + "|",
    ]
    for when, of in report["ack_ms"].items():
        cells = (f"{of[name]:.1f}" for name in ("p50", "p99", "p99_9", "max")) if of else "----"
        lines.append(f"| {when.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.backfill", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000, help="(default: 1000000)")
    parser.add_argument("--bytes", type=int, default=128, help="of a message (default: 128)")
    parser.add_argument("--rate", type=float, default=2_000, help="of live sends (default: 2000)")
    parser.add_argument("--directory", type=Path, help="for the data (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    return run(parser.parse_args(argv), backfill, table)


if __name__ == "__main__":
    sys.exit(main())
