"""The ``im-actors`` command: what it takes, and how it ends.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from im_actors import __version__
from im_actors.cli import (
    backup_commands,
    bench_commands,
    broadcast_commands,
    chat,
    client_commands,
    cluster_commands,
    conversation_commands,
    group_commands,
    growth_commands,
    months_commands,
    plan_commands,
    repair_commands,
    replay_commands,
    top,
    torture_commands,
    upgrade_commands,
)
from im_actors.cli.cluster_commands import EXIT_INTERRUPTED, EXIT_TERMINATED
from im_actors.errors import ImError

DESCRIPTION = "A messaging back end: never lost, never doubled, one order for everyone."
EXAMPLES = """\
a first conversation:
  im-actors up
  im-actors send team 'hello' --as alice
  im-actors history team
  im-actors chat bob team
  im-actors down

see it survive kills, and count:
  im-actors demo

before an upgrade, break a cluster in every way for some minutes and have it judged:
  im-actors torture

'im-actors COMMAND --help' explains each command.
"""
EXIT_FAILURE = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.debug else logging.CRITICAL,
        format="%(asctime)s %(name)s: %(message)s",
    )
    try:
        with _terminating():
            code: int = args.run(args)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has seen enough; the interpreter must not complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except ImError as error:
        if args.debug:
            raise
        print(f"im-actors: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except ImportError as error:
        if args.debug or (error.name or "").startswith("im_actors"):
            raise
        print(
            f"im-actors: {error.name} is not installed: pip install 'im-actors[server]'",
            file=sys.stderr,
        )
        return EXIT_FAILURE


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="log what happens, and show the traceback of an error",
    )
    parser = argparse.ArgumentParser(
        prog="im-actors",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"im-actors {__version__}")
    parser.add_argument("--debug", action="store_true", default=False, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, summary: str, examples: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"examples:\n{examples}",
            parents=[shared],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    modules = (
        cluster_commands, growth_commands, upgrade_commands, top,
        months_commands, backup_commands, repair_commands, client_commands,
        conversation_commands, group_commands,
        broadcast_commands, chat,
        replay_commands, torture_commands, bench_commands, plan_commands,
    )  # fmt: skip
    for module in modules:
        module.register(add)
    return parser


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what it started is stopped, what it made removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(EXIT_TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
