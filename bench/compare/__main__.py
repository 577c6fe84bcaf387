"""``python -m bench.compare``: im_actors, Redis ×3 and NATS JetStream R3 under the same loads.

Round by round each system is started in a new directory, loaded with every load, and ended, so that
only one runs at a time and slow hours of the machine meet all of them. Prints the table and what
each acknowledgement means; writes compare.json and compare.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from bench.compare.figures import Result, summary, table
from bench.compare.plot import svg
from bench.compare.servers import SYSTEMS, Missing, System, cpu_seconds
from bench.machine import describe, fsync_us
from im_actors.cli.bench.plan import Load
from im_actors.cli.bench.processes import Figures, Generators, Outcome
from im_actors.cli.cluster_commands import EXIT_INTERRUPTED, EXIT_TERMINATED
from im_actors.errors import ImError

RESULTS = Path(__file__).resolve().parent.parent / "results"
LOADS = "1x1,16x1,64x16,64x128"
QUIET_SHARE = 0.05
"""A system has done what a load left to do when it uses no more of a core than this above what it
used before the load."""
STARTED_SHARE = 0.15
"""A system that was just started is loaded when it uses no more of a core than this."""
QUIET_SAMPLE_S = 0.5
QUIET_S_MAX = 20.0
ATTEMPTS = 2
"""A void measurement is repeated once; a second one ends the comparison."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.table:
        return print_table(args.output / "compare.json")
    try:
        report = compare(args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (Missing, RuntimeError, ImError) as error:
        print(error, file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "compare.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.output / "compare.svg").write_text(svg(report))
    print(table(report), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(report))
    return 0


def print_table(results: Path) -> int:
    """That of an earlier comparison."""
    if not results.exists():
        print(f"{results} is not there: compare first", file=sys.stderr)
        return 2
    print(table(json.loads(results.read_text())))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description="Compare im_actors with Redis x3 and NATS JetStream R3 on this machine.",
    )
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--table", action="store_true", help="only print the last table again")
    parser.add_argument(
        "--systems", type=_systems, help=f"some of {','.join(SYSTEMS)} (default: the installed)"
    )
    parser.add_argument(
        "--loads", type=_loads, default=_loads(LOADS),
        help=f"connections x window, with commas between (default: {LOADS})",
    )  # fmt: skip
    parser.add_argument("--runs", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load (default: 5)")
    parser.add_argument("--warm-up", type=float, default=1.0, help="before them (default: 1)")
    parser.add_argument("--sessions", type=int, default=2_000, help="(default: 2000)")
    parser.add_argument("--bytes", type=int, default=128, help="of a message (default: 128)")
    parser.add_argument(
        "--processes", type=int, default=1, help="that make the load, for each system (default: 1)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="(default: bench/results)")
    parser.add_argument(
        "--directory",
        type=Path,
        help="where the systems keep their data (default: a temporary one)",
    )
    return parser


def _systems(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(SYSTEMS):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: none of {', '.join(SYSTEMS)}")
    return names


def _loads(text: str) -> list[tuple[int, int]]:
    loads = []
    for part in text.split(","):
        connections, _, window = part.partition("x")
        if not (connections.isdecimal() and window.isdecimal() and int(connections) * int(window)):
            raise argparse.ArgumentTypeError(f"{part!r} is not CONNECTIONSxWINDOW")
        loads.append((int(connections), int(window)))
    return loads


def installed(wanted: Sequence[str] | None) -> dict[str, str]:
    """The systems to compare and their versions. What is not installed is left out with a word,
    unless it was asked for by name."""
    versions = {}
    for name in wanted or SYSTEMS:
        try:
            versions[name] = SYSTEMS[name].require()
        except Missing as missing:
            if wanted:
                raise
            say(f"{name} is left out: {missing}")
    return versions


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """All rounds; the report."""
    versions = installed(args.systems)
    results: dict[tuple[int, int], dict[str, list[Result]]] = {
        load: {name: [] for name in versions} for load in args.loads
    }
    fsyncs: list[dict[str, float]] = []
    for number in range(1, args.runs + 1):
        for name in versions:
            with contextlib.closing(under_all_loads(SYSTEMS[name], args)) as measurements:
                for load, result, fsync in measurements:
                    results[load][name].append(result)
                    fsyncs.append(fsync)
                    say(f"round {number} {load[0]}x{load[1]} {name}: {told(result)}")
    return {
        "loads": [
            {
                "connections": connections,
                "window": window,
                "systems": {name: summary(runs) for name, runs in of.items()},
            }
            for (connections, window), of in results.items()
        ],
        "fsync_us": _median_of(fsyncs),
        "machine": describe(),
        "versions": versions,
        "acknowledged_means": {name: SYSTEMS[name].acknowledges() for name in versions},
        "settings": {
            n: getattr(args, n) for n in ("runs", "seconds", "sessions", "bytes", "processes")
        },
    }


def under_all_loads(
    kind: type[System], args: argparse.Namespace
) -> Generator[tuple[tuple[int, int], Result, dict[str, float]], None, None]:
    """Start a system for one round: each load, what it gave, and what an fsync took before it."""
    with (
        tempfile.TemporaryDirectory(prefix="im_bench-", dir=args.directory) as directory,
        kind(Path(directory)) as system,
    ):
        for load in args.loads:
            fsync = fsync_us(Path(directory))
            yield load, measured(system, load, args) | {"fsync_us": fsync["p50"]}, fsync


def _median_of(samples: list[dict[str, float]]) -> dict[str, float]:
    """Per name the middle one."""
    return {name: sorted(s[name] for s in samples)[len(samples) // 2] for name in samples[0]}


def measured(system: System, load: tuple[int, int], args: argparse.Namespace) -> Result:
    """One load on a running system; a void one is repeated."""
    for attempt in range(ATTEMPTS):
        try:
            return _measured(system, load, args)
        except (RuntimeError, ImError) as void:
            say(f"{system.name} {load[0]}x{load[1]} is void: {void}")
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError


def _measured(system: System, load: tuple[int, int], args: argparse.Namespace) -> Result:
    # What others, or earlier loads, left in the page cache must not be written out meanwhile.
    os.sync()
    pids = system.pids()
    idle_share = _idle_share(pids)
    spec = Load(
        run=secrets.token_hex(4),
        addresses=system.addresses(),
        connections=load[0],
        sessions=args.sessions,
        bytes=args.bytes,
        followers=system.followers,
        processes=args.processes,
    ).validate()
    before = cpu_seconds(pids)
    figures, outcome = asyncio.run(generate(system, spec, load[1], args))
    used = cpu_seconds(pids) - before + _until_quiet(pids, idle_share)
    acked = outcome.ledger.acked
    if not outcome.sound or not acked:
        raise RuntimeError(f"{outcome.ledger.to_json()} {outcome.problems[:3]}")
    held = system.held([p.session(n) for p in parts_of(spec) for n in range(p.sessions)])
    if any(count != acked for count in held):
        raise RuntimeError(f"{acked} messages were acknowledged, and the copies hold {held}")
    return {
        "msgs_per_s": round(figures.msgs_per_s, 1),
        "ack_ms": figures.ack.summary(),
        "server_cpu_us_per_msg": round(used / acked * 1e6, 2),
        "generator_cpu_share": round(sum(figures.generator_cpu), 2),
    }


def parts_of(load: Load) -> list[Load]:
    """What each generator does."""
    return [load.part(number) for number in range(load.processes)]


async def generate(
    system: System, load: Load, window: int, args: argparse.Namespace
) -> tuple[Figures, Outcome]:
    """The generators' figures, and their ledger."""
    async with Generators(parts_of(load), None, module=system.generator) as generators:
        figures = await generators.phase(args.seconds, args.warm_up, None, window)
        return figures, await generators.finish()


def _share(pids: list[int]) -> float:
    """What these processes use of a core now."""
    before, started = cpu_seconds(pids), time.monotonic()
    time.sleep(QUIET_SAMPLE_S)
    return (cpu_seconds(pids) - before) / (time.monotonic() - started)


def _idle_share(pids: list[int]) -> float:
    """What they use when they have nothing to do, which they may not have come to yet."""
    limit = time.monotonic() + QUIET_S_MAX
    while (share := _share(pids)) > STARTED_SHARE and time.monotonic() < limit:
        pass
    return share


def _until_quiet(pids: list[int], idle_share: float) -> float:
    """Wait until the work that the load left is done; its CPU seconds, without those of idling."""
    started, before = time.monotonic(), cpu_seconds(pids)
    while _share(pids) > idle_share + QUIET_SHARE and time.monotonic() - started < QUIET_S_MAX:
        pass
    elapsed = time.monotonic() - started
    return max(0.0, cpu_seconds(pids) - before - idle_share * elapsed)


def told(result: Result) -> str:
    return (
        f"{result['msgs_per_s']:,.0f} msg/s, p50 {result['ack_ms']['p50']:.2f} ms,"
        f" p99 {result['ack_ms']['p99']:.2f} ms, servers"
        f" {result['server_cpu_us_per_msg']:.1f} µs a message, generator"
        f" {result['generator_cpu_share']:.0%}, an fsync before it {result['fsync_us']:.0f} µs"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    sys.exit(main())
