"""upgrade: from one release to the next while the cluster serves, and back until it is finished."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator
from typing import Any

from im_actors.cli.client_commands import AddCommand
from im_actors.cli.growth_commands import AWAY_S, LOOK_S
from im_actors.cli.output import note, print_json, printable
from im_actors.cli.status_table import restart_lines
from im_actors.cli.target import Running, add_data_option, data_of, running_cluster
from im_actors.errors import NotReachable


def register(add: AddCommand) -> None:
    parser = add(
        "upgrade",
        "go from one release to the next while the cluster serves, and back",
        "  im-actors upgrade\n"
        "  im-actors upgrade --restart 10.0.0.11\n"
        "  im-actors upgrade --restart controller\n"
        "  im-actors upgrade --finish\n\n"
        "Install the release on a host, then have what runs there started anew: one actor after\n"
        "the other, each when all slots are served and whole. Both releases serve side by side.\n"
        "What is on disks stays as the old release reads it, so the same steps with the old one\n"
        "go back, until --finish. Without an option it shows which release runs where.\n\n"
        "Ctrl-C only ends the watching; the same command without an option shows how far it is.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--restart",
        metavar="HOST|ACTOR",
        help="start an actor, or all actors of a host, anew in the release that is installed there",
    )
    what.add_argument(
        "--finish",
        action="store_true",
        help="write the newest format that everybody knows; then there is no going back",
    )
    parser.add_argument("--no-wait", action="store_true", help="return at once, and do not watch")
    add_data_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    running = running_cluster(data_of(args))
    try:
        return asyncio.run(_upgrade(args, running))
    except KeyboardInterrupt:
        note("the cluster goes on by itself; im-actors upgrade shows how far it is")
        raise


async def _upgrade(args: argparse.Namespace, running: Running) -> int:
    if args.restart:
        await running.call("restart", args.restart)
    elif args.finish:
        await running.call("finish_upgrade")
    found = await _progress(running, (args.restart or args.finish) and not args.no_wait)
    if args.json:
        print_json(found)
    else:
        for line in upgrade_lines(found):
            print(printable(line))
    return 0


async def _progress(running: Running, wait: bool) -> dict[str, Any]:
    """How far it is; ``wait``: when nothing is left to do. What it waits for is said."""
    said, heard = "", time.monotonic()
    while True:
        try:
            found: dict[str, Any] = await running.call("upgrade")
            heard = time.monotonic()
            if not (wait and found["busy"]):
                return found
            if found["waits"] and found["waits"] != said:
                said = found["waits"]
                note(printable(said))
        except NotReachable:
            # The controller may be what is started anew.
            if time.monotonic() - heard > AWAY_S:
                raise
        await asyncio.sleep(LOOK_S)


def upgrade_lines(found: dict[str, Any]) -> Iterator[str]:
    """What everybody knows, for people."""
    disks, newest = found["disks"], found["newest"]
    for name, known in found["formats"].items():
        reads = "does not answer" if known is None else f"knows formats {known[0]} to {known[1]}"
        release, writes = found["releases"].get(name), found["writes"].get(name)
        reads = f"{release}, {reads}" if release is not None else reads
        yield f"{name}: {reads}" + (f", writes {writes}" if writes is not None else "")
    yield from restart_lines(found)
    if disks < newest and (found["older"] or found["unknown"]):
        left = ", ".join([*found["older"], *found["unknown"]])
        yield f"format {disks} is written; to be updated before {newest} can be: {left}"
    elif disks < newest:
        yield f"format {disks} is written; im-actors upgrade --finish takes {newest}, for good"
    else:
        yield f"format {disks} is written, the newest that anybody knows: nothing to finish"
