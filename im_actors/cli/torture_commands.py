"""torture: the fault kit on real processes."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from im_actors.cli.client_commands import AddCommand, positive_number
from im_actors.cli.output import print_json, printable
from im_actors.cli.replay_commands import deaf, run_loop
from im_actors.errors import SetupError

if TYPE_CHECKING:
    from im_actors.cli.progress import Progress
    from im_actors.cli.torture.run import Report, Torture, TortureConfig

MINUTES_MAX = 24 * 60
RATE_MAX = 5_000
SESSIONS_MAX = 400
WRITERS_MAX = 200
TOLD_MAX = 20


def register(add: AddCommand) -> None:
    from im_actors.cli.torture.schedule import KINDS

    kinds = "\n".join(f"  {name:<18} {text}" for name, text in KINDS.items())
    parser = add(
        "torture",
        "break a cluster of its own in every way for some minutes, and judge what it has kept",
        "  im-actors torture\n"
        "  im-actors torture --minutes 10 --json\n"
        "  im-actors torture --faults kill-shard,pause-,empty-disk --seed 7\n\n"
        "Needs no cluster and leaves nothing behind, unless something was wrong: then the\n"
        "directory stays and its name is told. Writers, readers and senders of old messages run\n"
        "all the time; a fault comes every 5 to 10 seconds. Then everything is healed, every\n"
        "replica is read, and checkers that share no code with the cluster judge. The last line\n"
        "is one JSON object; exit code 0 means that everything was ACKed, there is no anomaly,\n"
        "and verify is sound. The seed decides which faults come; how they meet is up to the\n"
        f"machine.\n\nfaults:\n{kinds}",
    )
    parser.add_argument(
        "--minutes",
        metavar="M",
        type=_minutes,
        default=2.0,
        help="of faults, not counting the starts of the whole cluster (default: 2)",
    )
    parser.add_argument(
        "--faults", metavar="LIST", default="all", help="which of the faults below (default: all)"
    )
    parser.add_argument("--seed", metavar="N", type=int, help="of the faults (default: a new one)")
    parser.add_argument(
        "--sessions", metavar="N", type=positive_number, default=32,
        help="sessions, over all slots (default: 32)",
    )  # fmt: skip
    parser.add_argument(
        "--writers", metavar="N", type=positive_number, default=12,
        help="writing clients, several in each session (default: 12)",
    )  # fmt: skip
    parser.add_argument(
        "--rate", metavar="X", type=positive_number, default=250,
        help="messages per second of all writers together (default: 250)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", metavar="DIR", type=Path,
        help="work in this directory, which must be new or empty, and keep it",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="nothing but the JSON line on standard output"
    )
    parser.set_defaults(run=torture)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= MINUTES_MAX:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most {MINUTES_MAX}: {text!r}")
    return minutes


def torture(args: argparse.Namespace) -> int:
    """Everything in a directory of its own, which is gone at the end if all was well."""
    from im_actors.actors.deploy import require_ray
    from im_actors.cli.progress import Progress
    from im_actors.cli.torture.run import Torture

    config = config_of(args)
    require_ray()
    directory = _directory(args.keep)
    keep = args.keep is not None
    with Progress(sys.stderr if args.json else sys.stdout, bar=False) as progress:
        try:
            progress.say(f"seed {config.seed}, {config.seconds:.0f} s of {', '.join(config.kinds)}")
            report = _run(Torture(config, directory, progress.say))
            tell(report, progress)
            keep = keep or not report.ok
        except Exception:
            keep = True
            raise
        finally:
            if keep:
                progress.say(f"the data and the logs are in {directory}")
            else:
                shutil.rmtree(directory, ignore_errors=True)
    print_json(report.to_json())
    return 0 if report.ok else 1


def config_of(args: argparse.Namespace) -> TortureConfig:
    """What is asked for; SetupError says what makes no sense."""
    from im_actors.cli.torture.run import TortureConfig
    from im_actors.cli.torture.schedule import parse_kinds

    for name, most in (("sessions", SESSIONS_MAX), ("writers", WRITERS_MAX), ("rate", RATE_MAX)):
        if getattr(args, name) > most:
            raise SetupError(f"--{name} is at most {most}: this measures no load")
    return TortureConfig(
        seconds=args.minutes * 60,
        kinds=parse_kinds(args.faults),
        seed=args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 31),
        sessions=args.sessions,
        writers=args.writers,
        rate=float(args.rate),
    )


def _directory(wanted: Path | None) -> Path:
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="im_actors-torture-"))
    try:
        wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(os.scandir(wanted)):
            raise SetupError(f"{wanted} is not empty")
    except OSError as error:
        raise SetupError(f"{wanted} cannot be used: {error.strerror}") from None
    return wanted.absolute()


def _run(torture: Torture) -> Report:
    from im_actors.cli.torture.cluster import environment

    reports: list[Report] = []

    async def work() -> int:
        reports.append(await torture.run())
        return 0

    try:
        with environment(torture.cluster.nodes.attach_env()):
            run_loop(work())
    finally:
        # Another Ctrl-C must not leave half of it behind.
        with deaf():
            torture.cluster.end_processes()
    return reports[0]


def tell(report: Report, progress: Progress) -> None:
    """What a person wants to know."""
    faults = ", ".join(f"{count} {kind}" for kind, count in report.faults.items())
    progress.say(
        f"{report.acked:,} of {report.sent:,} acked in {report.elapsed_s:.0f} s,"
        f" {report.received:,} received, {report.resent:,} resent, {report.pages:,} pages"
    )
    progress.say(f"{sum(report.faults.values())} faults: {faults}")
    for kind, figures in report.recovery_ms.items():
        if figures["count"]:
            progress.say(
                f"  {kind:<18} {figures['count']} times, on after {figures['p50']} ms,"
                f" at most {figures['max']} ms"
            )
    for text in report.told[:TOLD_MAX]:
        progress.say(f"  {printable(text)}")
    for line in report.stories:
        progress.say(f"  {printable(line)}")
    counts = ", ".join(f"{count} {name}" for name, count in report.anomalies.items())
    progress.say(f"anomalies: {counts or 'none'}")
