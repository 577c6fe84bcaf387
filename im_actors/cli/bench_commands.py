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
    client_config,
    data_of,
    running_cluster,
    token_maker,
    url_of,
)
from im_actors.errors import SetupError
from im_actors.server.cluster_file import read_run

if TYPE_CHECKING:
    from im_actors.cli.bench.plan import Load
    from im_actors.cli.bench.report import Curves
    from im_actors.cli.bench.server_side import ServerSide

    Result = tuple[dict[str, Any], Curves]

CONNECTIONS = 64
WINDOW = 16
SESSIONS = 2_000
SECONDS = 10.0
OVERLOAD_SECONDS = 60.0
OVERLOAD_BURST = 16
SECONDS_MAX = 24 * 3600.0
RATE_MAX = 1_000_000


def register(add: AddCommand) -> None:
    parser = add(
        "bench",
        "put load on a running cluster and measure it",
        "  im-actors bench\n"
        "  im-actors bench --connections 64 --window 128\n"
        "  im-actors bench --rate 10000 --seconds 20 --json\n"
        "  im-actors bench --sessions 200000 --zipf 1.1 --followers 0 --bytes 1024\n"
        "  im-actors bench --fanout 10000 --rate 100 --slow-readers 100\n"
        "  im-actors bench --overload --window 128\n\n"
        "Without --rate each connection keeps --window messages without an ACK: a closed loop,\n"
        "which shows how much the cluster takes. With --rate messages are due at fixed times,\n"
        "whatever the cluster does, and latencies count from those. Every message is checked:\n"
        "ACKed once, and read once by each follower, in order and unchanged. A run in which that\n"
        "is not so is void, and exits with 1. The sessions are new ones, and stay.",
    )
    _add_load_options(parser)
    _add_mode_options(parser)
    parser.add_argument(
        "--plot", metavar="FILE", type=Path, help="draw the latencies as an SVG picture"
    )
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
    def number(name: str, default: object, text: str, kind: Any = positive_number) -> None:
        parser.add_argument(name, metavar="N", type=kind, help=f"{text} (default: {default})")

    number("--connections", CONNECTIONS, "connections that send")
    number("--window", WINDOW, "messages of each connection that wait for their ACK, at most 128")
    parser.add_argument(
        "--rate", metavar="R", type=_rate, default=0.0,
        help="messages per second of all connections together (default: 0, a closed loop)",
    )  # fmt: skip
    number(
        "--burst", f"1, with --overload {OVERLOAD_BURST}",
        "messages that one connection sends at once when so many are due",
    )  # fmt: skip
    parser.add_argument(
        "--bytes", metavar="N", type=positive_number, default=128,
        help="size of a message (default: 128)",
    )  # fmt: skip
    number("--sessions", f"{SESSIONS:,}", "sessions that are sent to")
    parser.add_argument(
        "--zipf", metavar="S", type=_exponent,
        help="some sessions are more popular: the k-th gets 1/k^S (default: all alike)",
    )  # fmt: skip
    number(
        "--followers", 1, "readers of each session; 0 reads the history afterwards", whole_number
    )
    parser.add_argument(
        "--seconds", metavar="S", type=_seconds,
        help=f"how long it is measured (default: {SECONDS:g}; --overload: {OVERLOAD_SECONDS:g})",
    )  # fmt: skip
    parser.add_argument(
        "--warmup", metavar="S", type=_seconds_or_none, default=2.0,
        help="how long it runs before that (default: 2)",
    )  # fmt: skip
    number("--processes", "by the cores of this machine", "processes that make the load")


def _add_mode_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fanout", metavar="N", type=positive_number,
        help="one session with N followers; all on one gateway if the cluster has one",
    )  # fmt: skip
    parser.add_argument(
        "--slow-readers", metavar="K", type=positive_number,
        help="with --fanout: measure once more while K of the followers do not read",
    )  # fmt: skip
    parser.add_argument(
        "--overload", action="store_true",
        help="find out what a closed loop gives, then offer twice as much, then look again",
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
    return _between(text, 0.0, RATE_MAX)


def _exponent(text: str) -> float:
    return _between(text, 0.1, 10.0)


async def bench(args: argparse.Namespace) -> int:
    """One load on the running cluster."""
    from im_actors.cli.bench.server_side import ServerSide

    check_options(args)
    running = None
    if args.url is None and read_run(data_of(args)) is not None:
        running = running_cluster(data_of(args))
    load = await load_of(args, running)
    server = await ServerSide.find(running)
    mode = _overload if args.overload else _fan_out if args.fanout else _load
    report, curves = await mode(args, load, server)
    report |= surroundings(running)
    if args.plot is not None:
        draw(args.plot, report, curves)
    show(report, args.json)
    return 1 if report["void"] else 0


async def _load(args: argparse.Namespace, load: Load, server: ServerSide | None) -> Result:
    from im_actors.cli.bench.single import Single, single
    from im_actors.cli.bench.telling import Telling

    asked = Single(
        load=load,
        rate=args.rate or None,
        window=args.window or WINDOW,
        seconds=args.seconds or SECONDS,
        warmup_s=args.warmup,
        burst=args.burst or 1,
    )
    telling = Telling(sys.stderr, asked.warmup_s + asked.seconds)
    return await single(asked, server, telling.moved)


async def _fan_out(args: argparse.Namespace, load: Load, server: ServerSide | None) -> Result:
    from im_actors.cli.bench.fanout import Fanout, fan_out
    from im_actors.cli.bench.telling import Telling

    asked = Fanout(
        load=load,
        rate=args.rate or None,
        window=args.window or 1,
        seconds=args.seconds or SECONDS,
        warmup_s=args.warmup,
        slow=args.slow_readers or 0,
    ).validate()
    expected_s = (asked.warmup_s + asked.seconds) * (2 if asked.slow else 1)
    return await fan_out(asked, server, Telling(sys.stderr, expected_s).moved)


async def _overload(args: argparse.Namespace, load: Load, server: ServerSide | None) -> Result:
    from im_actors.cli.bench.overload import Overload, overload
    from im_actors.cli.bench.telling import Telling

    seconds = args.seconds or OVERLOAD_SECONDS
    asked = Overload(
        load=load,
        window=args.window or WINDOW,
        seconds=seconds,
        burst=args.burst or OVERLOAD_BURST,
    )
    telling = Telling(sys.stderr, asked.expected_s)
    return await overload(asked, server, telling.moved, telling.say)


def check_options(args: argparse.Namespace) -> None:
    """SetupError for options that contradict each other."""
    from im_actors.core.model import DEVICE_WINDOW, check_name

    if (args.window or 1) > DEVICE_WINDOW:
        raise SetupError(f"--window must be 1 to {DEVICE_WINDOW}, which is what a server takes")
    check_name("user", args.user)
    if args.plot is not None and args.plot.suffix != ".svg":
        raise SetupError("--plot draws SVG: give a FILE.svg")
    if args.slow_readers and not args.fanout:
        raise SetupError("--slow-readers needs --fanout")
    for mode, others in (
        ("fanout", ("overload", "sessions", "zipf", "followers")),
        ("overload", ("rate",)),
    ):
        wrong = [f"--{name}" for name in others if getattr(args, name)]
        if getattr(args, mode) and wrong:
            raise SetupError(f"--{mode} and {wrong[0]} exclude each other")


async def load_of(args: argparse.Namespace, running: Running | None) -> Load:
    """What is asked for; SetupError says what makes no sense."""
    from im_actors.cli.bench.plan import Load
    from im_actors.client.config import parse_url

    if running is not None:
        scheme = running.run.url.partition("://")[0]
        url = parse_url(f"{scheme}://" + ",".join(await running.gateways()))
    else:
        url = parse_url(url_of(args))
    client = client_config(args)
    connections = args.connections or CONNECTIONS
    sessions = args.sessions or (1 if args.fanout else SESSIONS)
    most = max(1, (os.cpu_count() or 1) // 2)
    return Load(
        run=secrets.token_hex(4),
        addresses=[(address.host, address.port) for address in url.addresses],
        user=args.user,
        token=token_maker(args)(args.user),
        tls=url.tls,
        tls_ca=client.tls_ca,
        tls_server_name=client.tls_server_name,
        connections=connections,
        bytes=args.bytes,
        sessions=sessions,
        zipf=args.zipf,
        followers=args.fanout or (1 if args.followers is None else args.followers),
        processes=args.processes or min(connections, most, most if args.fanout else sessions),
    ).validate(sessions_shared=bool(args.fanout))


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


def draw(path: Path, report: dict[str, Any], curves: Curves) -> None:
    from im_actors.cli.bench.plot import svg
    from im_actors.cli.bench.report import headline

    try:
        path.write_text(svg(headline(report), curves), encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}") from None
