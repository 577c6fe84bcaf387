"""months: list the months of history, move one to another disk, drop the content of one."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import Any

from im_actors.cli.client_commands import AddCommand
from im_actors.cli.output import note, print_json, printable
from im_actors.cli.target import add_data_option, data_of, running_cluster
from im_actors.errors import ImError, NotReachable, SetupError

LIST_TIMEOUT_S = 60.0
WORK_TIMEOUT_S = 3_700.0
"""Above the time that the cluster itself waits for its replicas."""


def register(add: AddCommand) -> None:
    parser = add(
        "months",
        "list the months of history, move one to another disk, drop the content of one",
        "  im-actors months list\n"
        "  im-actors months move 2026-09 /mnt/slow\n"
        "  im-actors months move 2026-09 --back --replica replica-2\n"
        "  im-actors months drop 2026-08\n"
        "  im-actors months drop 2026-08 --yes\n\n"
        "Without --yes drop only tells what would be dropped. The cluster goes on serving. list\n"
        "and move work on the directories of one that is down, too. Months are those of UTC; only\n"
        "months that are over can be moved or dropped. What is\n"
        "dropped is the content of messages and edits, on all replicas and for good: that there\n"
        "were messages, by whom and when, stays, and no resend is ever taken for a new one.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True, help="what to do")
    shown = _action(actions, "list", "show the months of each replica")
    shown.set_defaults(run=lambda args: asyncio.run(show(args)))
    moved = _action(actions, "move", "move a month to another directory, or back")
    _add_month(moved)
    moved.add_argument(
        "directory", metavar="DIR", nargs="?", help="on each replica's host; made for each below it"
    )
    moved.add_argument("--back", action="store_true", help="to the replica's own directory")
    moved.add_argument("--replica", metavar="NAME", default="", help="of this replica only")
    moved.set_defaults(run=lambda args: asyncio.run(move(args)))
    dropped = _action(actions, "drop", "drop the content of a month on all replicas, for good")
    _add_month(dropped)
    dropped.add_argument("--yes", action="store_true", help="do it; without it, only tell")
    dropped.set_defaults(run=lambda args: asyncio.run(drop(args)))


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_data_option(parser)
    return parser


def _add_month(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("month", metavar="YYYY-MM", help="the month")


async def show(args: argparse.Namespace) -> int:
    """Ask the cluster; when it is down, read its directories."""
    from im_actors.cli.months_offline import list_directories

    data = data_of(args)
    try:
        running = running_cluster(data)
        found: dict[str, Any] = await running.call("months", timeout_s=LIST_TIMEOUT_S)
    except (SetupError, NotReachable) as error:
        found = await asyncio.to_thread(_offline, data, error, list_directories)
    if args.json:
        print_json(found)
    else:
        for name, rows in sorted(found.items()):
            _show_replica(name, rows)
    return 1 if any(isinstance(rows, dict) for rows in found.values()) else 0


def _offline(data: Path, error: ImError, work: Any) -> Any:
    if not any(data.glob("replica-*")):
        raise error
    note(f"on the directories below {data}: {error}")
    return work(data)


def _show_replica(name: str, rows: Any) -> None:
    if isinstance(rows, dict):
        print(f"{name}: {printable(rows['error'])}")
        return
    print(name)
    for row in rows:
        print(f"  {_line(row)}")


def _line(row: dict[str, Any]) -> str:
    marks = [
        *(["dropped"] if row["dropped"] else []),
        *([f"moved to {row['directory']}"] if row["moved"] else []),
        *([row["under_way"]] if row["under_way"] else []),
        *([f"TROUBLE {row['trouble']}"] if row["trouble"] else []),
    ]
    size = f"{row['bytes'] / 1e6:,.1f} MB"
    counts = f"{row['events']:>12,} events {row['records']:>12,} records {size:>12}"
    return printable(f"{row['month']} {counts}{'  ' if marks else ''}{', '.join(marks)}")


async def move(args: argparse.Namespace) -> int:
    """Move it and wait until it is there."""
    from im_actors.cli.months_offline import move_directories

    if bool(args.directory) == args.back:
        raise SetupError("where to? A directory, or --back")
    data, target = data_of(args), _absolute(args.directory)
    try:
        running = running_cluster(data)
        results: dict[str, Any] = await running.call(
            "move_month", args.month, target, args.replica, timeout_s=WORK_TIMEOUT_S
        )
    except (SetupError, NotReachable) as error:

        def work(data: Path) -> dict[str, str | None]:
            return move_directories(data, args.month, target, args.replica)

        results = await asyncio.to_thread(_offline, data, error, work)
    return _tell(args, {"month": args.month, "results": results}, "moved")


def _absolute(directory: str | None) -> str:
    return os.path.abspath(directory) if directory else ""


async def drop(args: argparse.Namespace) -> int:
    """Only a running cluster can drop: all of its replicas have to know."""
    running = running_cluster(data_of(args))
    found: dict[str, Any] = await running.call(
        "drop_month", args.month, not args.yes, timeout_s=WORK_TIMEOUT_S
    )
    if args.yes:
        return _tell(args, found, "dropped")
    if args.json:
        print_json(found)
        return 0
    for name, row in sorted(found["replicas"].items()):
        print(f"{name}: {_line(row) if row else 'nothing of it'}")
    print("nothing was dropped: --yes drops the content of these events, for good")
    return 0


def _tell(args: argparse.Namespace, found: dict[str, Any], done: str) -> int:
    failed = any(found["results"].values()) or not found["results"]
    if args.json:
        print_json(found)
        return 1 if failed else 0
    for name, error in sorted(found["results"].items()):
        print(f"{name}: {printable(error) if error else f'{args.month} is {done}'}")
    for name in found.get("absent", ()):
        print(f"{name}: is not running and will drop {args.month} when it comes back")
    return 1 if failed else 0
