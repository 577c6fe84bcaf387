"""bench: load, figures, and a ledger that says whether they count."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from im_actors.cli.client_commands import AddCommand, positive_number, whole_number
from im_actors.cli.output import print_json, printable
from im_actors.cli.replay_commands import run_loop
from im_actors.cli.target import (
    Running,
    add_client_options,
    add_secret_option,
    data_of,
    running_cluster,
    token_maker,
    url_of,
)
from im_actors.errors import SetupError
from im_actors.server.cluster_file import read_run

if TYPE_CHECKING:
    from im_actors.cli.bench.plan import Load

SECONDS_MAX = 24 * 3600.0
RATE_MAX = 1_000_000


def register(add: AddCommand) -> None:
    parser = add(
        "bench",
        "put load on a running cluster and measure it",
        "  im-actors bench\n"
        "  im-actors bench --connections 64 --window 128\n"
        "  im-actors bench --rate 10000 --seconds 20 --json\n"
        "  im-actors bench --sessions 200000 --zipf 1.1 --followers 0 --bytes 1024\n\n"
        "Without --rate each connection keeps --window messages without an ACK: a closed loop,\n"
        "which shows how much the cluster takes. With --rate messages are due at fixed times,\n"
        "whatever the cluster does, and latencies count from those. Every message is checked:\n"
        "ACKed once, and read once by each follower, in order and unchanged. A run in which that\n"
        "is not so is void, and exits with 1. The sessions are new ones, and stay.",
    )
    _add_load_options(parser)
    parser.add_argument(
        "--json", action="store_true", help="nothing but the JSON line on standard output"
    )
    parser.add_argument(
        "--as", dest="user", metavar="USER", default="bench", help="who sends (default: bench)"
    )
    add_client_options(parser)
    add_secret_option(parser)
    parser.set_defaults(run=lambda args: run_loop(bench(args)))


def _add_load_options(parser: argparse.ArgumentParser) -> None:
    def number(name: str, default: int, text: str, kind: Any = positive_number) -> None:
        parser.add_argument(
            name, metavar="N", type=kind, default=default, help=f"{text} (default: {default})"
        )

    number("--connections", 64, "connections that send")
    number("--window", 16, "messages of each connection that wait for their ACK, at most 128")
    parser.add_argument(
        "--rate", metavar="R", type=_rate, help="messages per second of all connections together"
    )
    number("--bytes", 128, "size of a message")
    number("--sessions", 2_000, "sessions that are sent to")
    parser.add_argument(
        "--zipf", metavar="S", type=_exponent,
        help="some sessions are more popular: the k-th gets 1/k^S (default: all alike)",
    )  # fmt: skip
    number(
        "--followers", 1, "readers of each session; 0 reads the history afterwards", whole_number
    )
    parser.add_argument(
        "--seconds", metavar="S", type=_seconds, default=10.0,
        help="how long it is measured (default: 10)",
    )  # fmt: skip
    parser.add_argument(
        "--warmup", metavar="S", type=_seconds_or_none, default=2.0,
        help="how long it runs before that (default: 2)",
    )  # fmt: skip
    parser.add_argument(
        "--processes", metavar="N", type=positive_number,
        help="processes that make the load (default: by the cores of this machine)",
    )  # fmt: skip


def _between(text: str, lowest: float, highest: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not lowest <= number <= highest:
        raise argparse.ArgumentTypeError(f"must be {lowest:g} to {highest:g}: {text!r}")
    return number


def _seconds(text: str) -> float:
    return _between(text, 0.1, SECONDS_MAX)


def _seconds_or_none(text: str) -> float:
    return _between(text, 0.0, SECONDS_MAX)


def _rate(text: str) -> float:
    return _between(text, 0.1, RATE_MAX)


def _exponent(text: str) -> float:
    return _between(text, 0.1, 10.0)


async def bench(args: argparse.Namespace) -> int:
    """One load on the running cluster."""
    from im_actors.cli.bench import report as reports
    from im_actors.cli.bench.processes import Generators
    from im_actors.cli.bench.server_side import ServerSide
    from im_actors.cli.bench.telling import Telling

    running = None
    if args.url is None and read_run(data_of(args)) is not None:
        running = running_cluster(data_of(args))
    load = await load_of(args, running)
    server = await ServerSide.find(running)
    parts = [load.part(number) for number in range(load.processes)]
    with Telling(sys.stderr, args.warmup + args.seconds) as telling:
        async with Generators(parts, server, telling.moved) as generators:
            figures = await generators.phase(args.seconds, args.warmup, args.rate, args.window)
            outcome = await generators.finish()
    report: dict[str, Any] = {
        "mode": "closed" if args.rate is None else "open",
        "window": args.window,
        "rate": args.rate,
        "seconds": args.seconds,
        "warmup_s": args.warmup,
        **reports.described(load),
        **reports.measured(figures),
        "refused": dict(figures.refused),
        **reports.checked(outcome),
        **surroundings(running),
    }
    show(report, args.json)
    return 1 if report["void"] else 0


async def load_of(args: argparse.Namespace, running: Running | None) -> Load:
    """What is asked for; SetupError says what makes no sense."""
    from im_actors.cli.bench.plan import Load
    from im_actors.client.config import parse_url
    from im_actors.core.model import DEVICE_WINDOW, check_name

    if args.window > DEVICE_WINDOW:
        raise SetupError(f"--window must be 1 to {DEVICE_WINDOW}, which is what a server takes")
    check_name("user", args.user)
    if running is not None:
        url = parse_url("im://" + ",".join(await running.gateways()))
    else:
        url = parse_url(url_of(args))
    if url.tls:
        raise SetupError("bench speaks no TLS: give an im:// address")
    most = min(args.connections, args.sessions, max(1, (os.cpu_count() or 1) // 2))
    return Load(
        run=secrets.token_hex(4),
        addresses=[(address.host, address.port) for address in url.addresses],
        user=args.user,
        token=token_maker(args)(args.user),
        connections=args.connections,
        bytes=args.bytes,
        sessions=args.sessions,
        zipf=args.zipf,
        followers=args.followers,
        processes=args.processes or most,
    ).validate()


def surroundings(running: Running | None) -> dict[str, Any]:
    """What a figure means nothing without."""
    from im_actors.cli.bench.machine import describe, fsync_us

    local = running is not None and os.access(running.data, os.W_OK)
    disk = running.data if running is not None and local else Path(tempfile.gettempdir())
    return {"machine": describe(), "fsync_us": fsync_us(disk)}


def show(report: dict[str, Any], as_json: bool) -> None:
    from im_actors.cli.bench.report import lines

    if as_json:
        print_json(report)
        return
    for line in lines(report):
        print(printable(line), flush=True)
