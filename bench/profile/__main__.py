"""``python -m bench.profile``: what a message costs at full load, and where its ACK waits at low
load."""

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.compare.servers import ImActors, Missing
from bench.machine import describe, fsync_us
from bench.profile import hops
from bench.profile.capture import NoCapture, capture, open_capture, read_packets
from bench.profile.ports import ports_of
from bench.profile.report import lines, rounded
from bench.profile.sampling import MISSING, Sample, record, sampler
from bench.profile.stages import LOOPS, samples_at_work, stages
from bench.profile.threads import WatchedServers
from im_actors.cli.bench.plan import Load
from im_actors.cli.bench.processes import Figures, Generators
from im_actors.cli.cluster_commands import EXIT_INTERRUPTED, EXIT_TERMINATED
from im_actors.cli.target import Running, running_cluster
from im_actors.errors import ImError, SetupError

CONNECTIONS, WINDOW = 64, 128
"""Full load."""
BYTES = 128
SESSIONS = 2_000
SESSIONS_LOW = 200
"""At one message at a time the warm-up has to reach all of them: the first message of a session
makes its shard ask for what is known of it."""
WARM_UP_S = 2.0
STARTED_SHARE = 0.15
"""A cluster is loaded when all of it uses no more of a core than this."""
STARTED_SAMPLE_S = 1.0
STARTED_S_MAX = 30.0
MARGIN_S = 0.2
"""After the begin and before the end of a phase nothing is captured."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        with _cluster(args.data) as running:
            report = asyncio.run(profile(running, args.seconds))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (Missing, RuntimeError, ImError) as error:
        print(error, file=sys.stderr)
        return 2
    for line in lines(report):
        print(line, file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.profile",
        description="CPU per message by actor, thread and stage; the ACK's latency by hop.",
    )
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        help="of a cluster that runs on this machine (default: start one, and end it)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=5.0,
        help="of each measurement: the CPU, three looks at the stages, the hops (default: 5)",
    )
    return parser


@contextlib.contextmanager
def _cluster(data: Path | None) -> Iterator[Running]:
    if data is not None:
        yield running_cluster(data)
        return
    ImActors.require()
    with tempfile.TemporaryDirectory(prefix="im_profile-") as name:
        say("starting a cluster")
        directory = Path(name)
        with ImActors(directory):
            yield running_cluster(directory / "data")


async def profile(running: Running, seconds: float) -> dict[str, Any]:
    """Full load, the same again under the sampler, low load; the report."""
    fsync = fsync_us(running.data)
    report = await _full_load(running, seconds)
    low, hops_us = await _low_load(running, seconds)
    return {
        **report,
        "hops_us": hops_us,
        "low_load": low,
        "machine": describe(),
        "fsync_us": fsync,
    }


def _load(running: Running, addresses: list[str], connections: int, sessions: int) -> Load:
    hosts = [address.rpartition(":") for address in addresses]
    return Load(
        run=secrets.token_hex(4),
        addresses=[(host, int(port)) for host, _, port in hosts],
        connections=connections,
        bytes=BYTES,
        sessions=sessions,
        processes=max(1, min(connections, (os.cpu_count() or 1) // 2)),
    ).validate()


async def _full_load(running: Running, seconds: float) -> dict[str, Any]:
    server = await WatchedServers.find(running)
    if not isinstance(server, WatchedServers):
        raise SetupError("the processes of this cluster are not on this machine")
    await _until_started(server)
    load = _load(running, await running.gateways(), CONNECTIONS, SESSIONS)
    parts = [load.part(number) for number in range(load.processes)]
    async with Generators(parts, server) as generators:
        say(f"{CONNECTIONS}x{WINDOW} for {seconds:g} s")
        figures = await generators.phase(seconds, WARM_UP_S, None, WINDOW)
        spent = server.last_phase()
        cpu = cpu_per_message(figures, spent.by_thread())
        samples = await _sampled_phases(generators, spent.busiest(), seconds)
        _check(await generators.finish())
    return {
        "cpu_us_per_msg": cpu,
        "stages": {
            kind: rounded(stages(kind, cpu["by_thread"][kind], found, spent.names(pid)))
            for kind, (pid, found) in samples.items()
        },
        "samples": {
            kind: samples_at_work(found, spent.names(pid)) for kind, (pid, found) in samples.items()
        },
        "full_load": {
            "connections": CONNECTIONS,
            "window": WINDOW,
            "bytes": BYTES,
            "sessions": SESSIONS,
            "msgs_per_s": round(figures.msgs_per_s),
        },
    }


async def _until_started(server: WatchedServers) -> None:
    """Ray goes on starting its spare processes when a cluster serves already."""
    used, share, limit = sum(server.usage().cpu_us.values()), 1.0, time.monotonic() + STARTED_S_MAX
    while share > STARTED_SHARE and time.monotonic() < limit:
        await asyncio.sleep(STARTED_SAMPLE_S)
        before, used = used, sum(server.usage().cpu_us.values())
        share = (used - before) / 1e6 / STARTED_SAMPLE_S


def _check(outcome: Any) -> None:
    if not outcome.sound:
        raise RuntimeError(f"void: {outcome.ledger.to_json()} {outcome.problems[:3]}")


def cpu_per_message(figures: Figures, threads: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Microseconds per acknowledged message. ``threads`` are microseconds in all."""
    if not figures.acked or figures.server_cpu is None:
        raise RuntimeError("no message was acknowledged")
    acked = figures.acked
    kinds = {kind: us / acked for kind, us in figures.server_cpu.items()}
    return {
        "total": round(sum(kinds.values()), 2),
        "by_kind": rounded(kinds),
        "by_thread": {
            kind: rounded({name: us / acked for name, us in of.items()})
            for kind, of in threads.items()
        },
        "generator": round(figures.generator_us / acked, 2),
    }


async def _sampled_phases(
    generators: Generators, busiest: dict[str, int], seconds: float
) -> dict[str, tuple[int, list[Sample]]]:
    """A phase for each kind, while py-spy looks at its busiest actor, which costs CPU of its own;
    what it saw, by kind. Empty when there is no py-spy, or it may not look."""
    program = sampler()
    if program is None:
        say(MISSING)
        return {}
    found = {}
    for kind in (kind for kind in LOOPS if kind in busiest):
        say(f"{CONNECTIONS}x{WINDOW} for {seconds:g} s, and py-spy looks at a {kind}")
        _, samples = await asyncio.gather(
            generators.phase(seconds, WARM_UP_S, None, WINDOW),
            _look(program, busiest[kind], seconds),
        )
        if samples is None:
            return {}
        found[kind] = busiest[kind], samples
    return found


async def _look(program: str, pid: int, seconds: float) -> list[Sample] | None:
    # It reads the symbols of all libraries first, so the load is there when it looks.
    await asyncio.sleep(WARM_UP_S / 2)
    try:
        return await record(program, pid, seconds)
    except RuntimeError as error:
        say(f"the stages are left out: {error}")
        return None


async def _low_load(
    running: Running, seconds: float
) -> tuple[dict[str, Any] | None, dict[str, dict[str, float]] | None]:
    """One message at a time, and the hops of its ACK; None where packets cannot be captured."""
    try:
        open_capture().close()
    except NoCapture as reason:
        say(str(reason))
        return None, None
    load = _load(running, await running.gateways(), 1, SESSIONS_LOW)
    async with Generators([load], None) as generators:
        say(f"1x1 for {seconds:g} s, and its packets")
        phase = asyncio.create_task(generators.phase(seconds, WARM_UP_S, None, 1))
        await asyncio.sleep(WARM_UP_S + MARGIN_S)
        ports = ports_of(await running.call("pids"))
        with open_capture() as packets:
            captured = await asyncio.to_thread(capture, packets, seconds - 2 * MARGIN_S)
        figures = await phase
        _check(await generators.finish())
    found = hops.measure(read_packets(captured, ports), BYTES)
    low = {
        "msgs_per_s": round(figures.msgs_per_s),
        "ack_ms": figures.ack.summary(),
        "seen": len(found["total"]),
    }
    return low, hops.summary(found)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    sys.exit(main())
