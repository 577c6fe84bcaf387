"""``python -m bench.scale``: throughput, latency and CPU per message for 1, 2 and 4 shards, and
from them the costs that ``im-actors plan`` reckons with.

For each number of shards: as fast as it goes. With one shard also at parts of that rate, which
tells a message's cost from an actor's; at the lowest of them with larger bodies, and with more
followers, for what a KiB and a delivery cost. Then a point that nothing was fitted to, with two
shards and another body, rate and number of followers: the prediction for it stands beside what was
measured.

All of it is on one machine, so throughput ends where its cores do: more shards take more of the
same cores. What scales is the cost of each part, which is what a plan for more hosts needs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import statistics
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.machine import describe, fsync_us
from bench.running import Cluster, run, say, until_quiet
from bench.scale_plot import svg
from im_actors.cli.bench.plan import Load
from im_actors.cli.bench.processes import Figures, Generators
from im_actors.cli.bench.server_side import ServerSide
from im_actors.cli.capacity import FORMAT, PARTS, SOURCE, Costs, Demand, PartCost, plan
from im_actors.cli.capacity import Site as Machine
from im_actors.cli.target import running_cluster
from im_actors.core.model import COPIES
from im_actors.server.topology import SHARDS_MIN

CONNECTIONS, WINDOW = 64, 128
CONNECTIONS_MORE = 1_064
"""For what a connection costs in memory."""
SESSIONS = 2_000
WARM_UP_S = 2.0
BODY, BODY_LARGE = 128, 4_096
FOLLOWERS, FOLLOWERS_MORE = 1, 4
PARTS_OF_FULL = (0.2, 0.4, 0.6)
"""Rates at which a message's cost is told from an actor's, as shares of the fastest with one
shard."""
HELD_OUT = {"shards": 2, "share": 0.3, "bytes": 1_024, "followers": 2}
"""What nothing is fitted to."""
DISK_MIB = 64


@dataclass(frozen=True, slots=True)
class Point:
    """One load and what it took. CPU in microseconds a second, of all actors of a kind."""

    shards: int
    bytes: int
    followers: int
    rate: float | None
    """None: as fast as it goes."""
    msgs_per_s: float
    ack_ms: dict[str, float]
    cpu_us_per_s: dict[str, float]
    disk_bytes_per_s: float
    """Of one copy."""

    def to_json(self) -> dict[str, Any]:
        per_message = {
            kind: round(us / max(self.msgs_per_s, 1e-9), 2)
            for kind, us in self.cpu_us_per_s.items()
        }
        return {
            "shards": self.shards,
            "bytes": self.bytes,
            "followers": self.followers,
            "rate": self.rate and round(self.rate),
            "msgs_per_s": round(self.msgs_per_s),
            "ack_ms": self.ack_ms,
            "cpu_us_per_msg": {**per_message, "total": round(sum(per_message.values()), 2)},
            "cores": round(sum(self.cpu_us_per_s.values()) / 1e6, 3),
            "disk_bytes_per_msg": round(self.disk_bytes_per_s / max(self.msgs_per_s, 1e-9)),
        }

    @property
    def load(self) -> Demand:
        return Demand(
            messages_per_s=self.msgs_per_s, followers=self.followers, message_bytes=self.bytes
        )


# -- measuring -------------------------------------------------------------------------------------


class Bench:
    """A cluster of its own for one number of shards, and loads on it."""

    def __init__(self, cluster: Cluster, shards: int, seconds: float) -> None:
        self._cluster = cluster
        self._shards = shards
        self._seconds = seconds

    async def point(
        self, rate: float | None = None, size: int = BODY, followers: int = FOLLOWERS
    ) -> Point:
        await until_quiet(self._cluster.trouble)
        server = await self._server()
        load = self._load(CONNECTIONS, size, followers)
        parts = [load.part(number) for number in range(load.processes)]
        async with Generators(parts, server) as generators:
            writing = asyncio.create_task(self._written(WARM_UP_S, self._seconds))
            window = WINDOW if rate is None else 1
            figures = await generators.phase(self._seconds, WARM_UP_S, rate, window)
            written = await writing
            _check(await generators.finish())
        point = self._made(figures, rate, size, followers, written)
        say(f"  {json.dumps(point.to_json())}")
        return point

    def _made(
        self, figures: Figures, rate: float | None, size: int, followers: int, written: int
    ) -> Point:
        if not figures.acked or figures.server_cpu is None:
            raise RuntimeError("no message was acknowledged")
        ack = figures.ack.summary()
        assert ack is not None
        return Point(
            shards=self._shards,
            bytes=size,
            followers=followers,
            rate=rate,
            msgs_per_s=figures.msgs_per_s,
            ack_ms={name: ack[name] for name in ("p50", "p99")},
            cpu_us_per_s={k: us / figures.elapsed_s for k, us in figures.server_cpu.items()},
            disk_bytes_per_s=written / self._seconds / COPIES,
        )

    async def low_ack_us(self) -> float:
        """p50 of one message at a time."""
        load = replace(self._load(1, BODY, 0), sessions=50)
        async with Generators([load], None) as generators:
            figures = await generators.phase(self._seconds, WARM_UP_S, None, 1)
            _check(await generators.finish())
        found = figures.ack.summary()
        if found is None:
            raise RuntimeError("no message was acknowledged")
        return found["p50"] * 1000

    async def connection_bytes(self) -> float:
        """How much more memory the gateways have for each connection."""
        server = await self._server()
        seen = []
        for connections in (CONNECTIONS, CONNECTIONS_MORE):
            load = self._load(connections, BODY, 0)
            async with Generators([load.part(n) for n in range(load.processes)], None) as there:
                await there.phase(1.0, 1.0, float(connections), 1)
                seen.append(server.usage().rss_bytes["gateway"])
                _check(await there.finish())
        return max(0.0, (seen[1] - seen[0]) / (CONNECTIONS_MORE - CONNECTIONS))

    async def _server(self) -> ServerSide:
        server = await ServerSide.find(running_cluster(self._cluster.data))
        if server is None:
            raise RuntimeError("the processes of the cluster are not on this machine")
        return server

    async def _written(self, warm_up_s: float, seconds: float) -> int:
        pids = [pid for name, pid in (await self._cluster.pids()).items() if "replica" in name]
        await asyncio.sleep(warm_up_s)
        before = sum(map(_write_bytes, pids))
        await asyncio.sleep(seconds)
        return sum(map(_write_bytes, pids)) - before

    def _load(self, connections: int, size: int, followers: int) -> Load:
        return Load(
            run=secrets.token_hex(4),
            addresses=[self._cluster.address],
            connections=connections,
            bytes=size,
            sessions=SESSIONS,
            followers=followers,
            processes=max(1, min(connections, (os.cpu_count() or 1) // 2)),
        ).validate()


def _check(outcome: Any) -> None:
    if not outcome.sound:
        raise RuntimeError(f"void: {outcome.ledger.to_json()} {outcome.problems[:3]}")


def _write_bytes(pid: int) -> int:
    """What a process has given to the disk, as /proc tells it."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("write_bytes:"):
                return int(line.split()[1])
    return 0


def disk_bytes_per_s(directory: Path) -> float:
    """In sequence, with an fdatasync after each MiB."""
    path, piece = directory / ".disk-speed", os.urandom(1 << 20)
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        begun = time.perf_counter()
        for _ in range(DISK_MIB):
            os.write(descriptor, piece)
            os.fdatasync(descriptor)
        return DISK_MIB * len(piece) / (time.perf_counter() - begun)
    finally:
        os.close(descriptor)
        path.unlink()


# -- from points to costs --------------------------------------------------------------------------


def slope(more: float, less: float, by: float) -> float:
    """Never below nothing: that is noise."""
    return max(0.0, (more - less) / by)


def actors_of(shards: int, gateways: int) -> dict[str, int]:
    """How many of each part run; beside a single shard another stands by."""
    return {"gateway": gateways, "shard": max(SHARDS_MIN, shards), "replica": COPIES}


def part_cost(kind: str, actors: int, base: list[Point], large: Point, many: Point) -> PartCost:
    """``base``: one body and one follower at several rates; at the first of them in ``large`` and
    in ``many`` one thing is different. All were measured with so many ``actors``."""
    rates = [point.msgs_per_s for point in base]
    used = [point.cpu_us_per_s.get(kind, 0.0) for point in base]
    each, idle = statistics.linear_regression(rates, used)
    beside = base[0]
    mine = beside.cpu_us_per_s.get(kind, 0.0) / beside.msgs_per_s
    kib = (large.bytes - beside.bytes) / 1024
    per_kib = slope(large.cpu_us_per_s.get(kind, 0.0) / large.msgs_per_s, mine, kib)
    more = many.followers - beside.followers
    per_delivery = slope(many.cpu_us_per_s.get(kind, 0.0) / many.msgs_per_s, mine, more)
    rest = each - per_kib * beside.bytes / 1024 - per_delivery * beside.followers
    return PartCost(max(0.0, rest), per_kib, per_delivery, max(0.0, idle) / actors)


def costs_of(
    base: list[Point],
    large: Point,
    many: Point,
    gateways: int,
    ack_us: float,
    connection_bytes: float,
    fsync: float,
    disk: float,
) -> Costs:
    """What the model reckons with."""
    beside = base[0]
    bytes_each = beside.disk_bytes_per_s / beside.msgs_per_s
    bytes_large = large.disk_bytes_per_s / large.msgs_per_s
    per_byte = slope(bytes_large, bytes_each, large.bytes - beside.bytes)
    others = [
        sum(us for kind, us in point.cpu_us_per_s.items() if kind not in PARTS) for point in base
    ]
    machine, actors = describe(), actors_of(base[0].shards, gateways)
    return Costs(
        parts={kind: part_cost(kind, actors[kind], base, large, many) for kind in PARTS},
        others_us_per_s=statistics.mean(others),
        disk_bytes_per_message=max(0.0, bytes_each - per_byte * beside.bytes),
        disk_bytes_per_body_byte=per_byte,
        disk_bytes_per_s=disk,
        connection_bytes=connection_bytes,
        fsync_us=fsync,
        ack_us=ack_us,
        cores=int(machine["cores"]),
        source=f"bench.scale, {datetime.now(UTC):%Y-%m-%d}, {machine['cores']} cores of"
        f" {machine['processor'] or 'unknown'}, fsync {fsync:.0f} us",
    )


def prediction(costs: Costs, point: Point, gateways: int) -> dict[str, Any]:
    """What the model says about a load, beside what was measured: CPU in cores."""
    counts = actors_of(point.shards, gateways)
    rows: dict[str, Any] = {}
    for kind in PARTS:
        said = costs.parts[kind].cpu_us_per_s(point.load, counts[kind]) / 1e6
        rows[kind] = _beside(said, point.cpu_us_per_s.get(kind, 0.0) / 1e6)
    said = sum(row["predicted"] for row in rows.values()) + costs.others_us_per_s / 1e6
    rows["all"] = _beside(said, sum(point.cpu_us_per_s.values()) / 1e6)
    per_byte = costs.disk_bytes_per_body_byte * point.bytes
    disk = (costs.disk_bytes_per_message + per_byte) * point.msgs_per_s / 1e6
    rows["disk_mb_per_s"] = _beside(disk, point.disk_bytes_per_s / 1e6)
    return rows


def _beside(predicted: float, measured: float) -> dict[str, float | None]:
    off = round(100 * (predicted - measured) / measured, 1) if measured else None
    return {
        "predicted": round(predicted, 4),
        "measured": round(measured, 4),
        "off_percent": off,
    }


# -- the command -----------------------------------------------------------------------------------


async def base_loads(bench: Bench, full: Point) -> tuple[list[Point], Point, Point]:
    base = [await bench.point(share * full.msgs_per_s) for share in PARTS_OF_FULL]
    rate = PARTS_OF_FULL[0] * full.msgs_per_s
    large = await bench.point(rate, size=BODY_LARGE)
    many = await bench.point(rate, followers=FOLLOWERS_MORE)
    return base, large, many


def measure(args: argparse.Namespace) -> dict[str, Any]:
    points: list[Point] = []
    fitted: Costs | None = None
    held_out: dict[str, Any] | None = None
    # The first number of shards is that of the fit, and the held-out point comes after it.
    for shards in dict.fromkeys((1, *args.shards, HELD_OUT["shards"])):
        say(f"{shards} shards, {args.gateways} gateways")
        with Cluster(args.directory, shards=int(shards), gateways=args.gateways) as cluster:
            bench = Bench(cluster, int(shards), args.seconds)
            full = asyncio.run(bench.point())
            points.append(full)
            if fitted is None:
                base, large, many = asyncio.run(base_loads(bench, full))
                points += [*base, large, many]
                fitted = costs_of(
                    base,
                    large,
                    many,
                    args.gateways,
                    asyncio.run(bench.low_ack_us()),
                    asyncio.run(bench.connection_bytes()),
                    fsync_us(cluster.data)["p50"],
                    disk_bytes_per_s(cluster.data),
                )
            if shards == HELD_OUT["shards"]:
                rate = HELD_OUT["share"] * points[0].msgs_per_s
                size, followers = int(HELD_OUT["bytes"]), int(HELD_OUT["followers"])
                point = asyncio.run(bench.point(rate, size, followers))
                held_out = {
                    "point": point.to_json(),
                    "check": prediction(fitted, point, args.gateways),
                }
    assert fitted is not None
    assert held_out is not None
    report = {
        "format": FORMAT,
        "machine": describe(),
        "seconds": args.seconds,
        "gateways": args.gateways,
        "points": [point.to_json() for point in points],
        "costs": fitted.to_dict(),
        "held_out": held_out,
    }
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        say(f"written to {args.out}: im-actors plan --costs {args.out}")
    if args.plot is not None:
        args.plot.write_text(svg(report))
    return report


def shown(report: dict[str, Any]) -> str:
    """The tables."""
    lines = ["shards  bytes  followers      rate     msg/s   p50 ms   p99 ms  us/msg  cores"]
    for point in report["points"]:
        rate = f"{point['rate']:,}" if point["rate"] else "full"
        lines.append(
            f"{point['shards']:6} {point['bytes']:6} {point['followers']:10} {rate:>9}"
            f" {point['msgs_per_s']:9,} {point['ack_ms']['p50']:8.2f} {point['ack_ms']['p99']:8.2f}"
            f" {point['cpu_us_per_msg']['total']:7.1f} {point['cores']:6.2f}"
        )
    lines.append("costs of a part, us: message, KiB, delivery; idle, us/s")
    for kind, part in report["costs"]["parts"].items():
        figures = [part[n] for n in ("per_message_us", "per_kib_us", "per_delivery_us")]
        lines.append(
            f"  {kind:8}" + "".join(f"{figure:9.2f}" for figure in figures)
            + f"{part['idle_us_per_s']:12.0f}"
        )  # fmt: skip
    held_out = report["held_out"]
    lines.append(f"not fitted to: {json.dumps(held_out['point'])}")
    for name, row in held_out["check"].items():
        off = "-" if row["off_percent"] is None else f"{row['off_percent']:+.0f} %"
        lines.append(
            f"  {name:14} predicted {row['predicted']:8.3f}, measured {row['measured']:8.3f}: {off}"
        )
    first = plan(
        Costs.from_dict(report["costs"]),
        Demand(messages_per_s=100_000, users=100_000),
        Machine(),
    )
    lines.append(
        f"for 100,000 messages a second: {first['hosts']} such hosts, {first['shards']} shards,"
        f" {first['replicas']} replicas, {first['gateways']} gateways"
    )
    return "\n".join(lines)


def _numbers(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers like 1,2,4")
    return [int(word) for word in words]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shards", type=_numbers, default=[1, 2, 4], help="default: 1,2,4")
    parser.add_argument("--gateways", type=int, default=1, help="default: 1")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load (default: 10)")
    parser.add_argument("--directory", type=Path, help="where the disks are (default: temporary)")
    parser.add_argument(
        "--out",
        type=Path,
        help=f"file for im-actors plan; the project's own is bench/results/{SOURCE.name}",
    )
    parser.add_argument("--plot", type=Path, help="file for a picture, SVG")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    return run(parser.parse_args(), measure, shown)


if __name__ == "__main__":
    sys.exit(main())
