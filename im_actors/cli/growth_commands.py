"""scale and drain: a cluster that runs gets more or fewer actors, a little at a time."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any

from im_actors.cli.client_commands import AddCommand, positive_number
from im_actors.cli.output import note, print_json, printable
from im_actors.cli.progress import Progress
from im_actors.cli.status_table import growth_lines
from im_actors.cli.target import Running, add_data_option, data_of, running_cluster
from im_actors.errors import NotReachable

LOOK_S = 0.5
TIMEOUT_S = 15.0
NEW_DISKS_S = 60.0
AWAY_S = 60.0
"""How long a controller that does not answer is waited for: Ray may be restarting it."""

GOES_ON = (
    "\nCtrl-C only ends the watching: the cluster goes on by itself, also after a restart of its\n"
    "controller or of all of it. im-actors status shows how far it is, and the same command again\n"
    "watches on."
)


def register(add: AddCommand) -> None:
    _register_scale(add)
    _register_drain(add)


def _register_scale(add: AddCommand) -> None:
    parser = add(
        "scale",
        "change the numbers of shards, replicas and gateways of a running cluster",
        "  im-actors scale --shards 4 --gateways 4\n"
        "  im-actors scale --replicas 5 --json\n"
        "  im-actors scale\n\n"
        "Slots move to new shards, and members to new replicas one slot after the other, without\n"
        "loss. With fewer replicas those with the highest numbers leave: they stay until their\n"
        "successors hold everything. up keeps these numbers from now on. Without a number members\n"
        "are only spread anew, after a host was lost or came back.\n" + GOES_ON,
    )
    for kind, what in (
        ("shards", "actors that order messages"),
        ("replicas", "actors that keep them, each on its own disk; 3 at least"),
        ("gateways", "actors that clients connect to"),
    ):
        parser.add_argument(f"--{kind}", metavar="N", type=positive_number, help=what)
    _add_common(parser)
    parser.set_defaults(run=lambda args: _watched(args, "scale", *_counts(args)))


def _counts(args: argparse.Namespace) -> list[int | None]:
    return [args.shards, args.replicas, args.gateways]


def _register_drain(add: AddCommand) -> None:
    parser = add(
        "drain",
        "take a replica, or all replicas of a host, out of a running cluster",
        "  im-actors drain replica-2\n"
        "  im-actors drain 10.0.0.7\n"
        "  im-actors drain replica-2 --cancel\n\n"
        "Each slot gets another member in its place, one after the other. The replica ends when\n"
        "every slot has three whole copies without it; its directory may then be deleted.\n"
        "A host is named as status names it. Its shards hand their slots to the others, and go on\n"
        "with its gateways on other hosts; Ray may then be stopped there.\n" + GOES_ON,
    )
    parser.add_argument("what", metavar="HOST|REPLICA", help="what is to leave")
    parser.add_argument("--cancel", action="store_true", help="leave it in after all")
    _add_common(parser)
    parser.set_defaults(run=lambda args: _watched(args, "drain", args.what, args.cancel))


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="return at once, and do not watch")
    add_data_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")


def _watched(args: argparse.Namespace, method: str, *arguments: Any) -> int:
    running = running_cluster(data_of(args))
    try:
        return asyncio.run(_change(args, running, method, *arguments))
    except KeyboardInterrupt:
        note("the cluster goes on by itself; im-actors status shows how far it is")
        raise


async def _change(args: argparse.Namespace, running: Running, method: str, *arguments: Any) -> int:
    found: dict[str, Any] = await running.call(method, *arguments, timeout_s=NEW_DISKS_S)
    if not args.no_wait:
        found = await _until_done(running, found)
    if args.json:
        print_json(found)
    else:
        for line in growth_lines(found):
            print(printable(line))
        counts = f"{len(found['replicas'])} replicas, {found['shards']} shards"
        state = "to have" if found["busy"] else "done:"
        print(f"{state} {counts}, {found['gateways']} gateways", flush=True)
    return 0


def _left(found: dict[str, Any]) -> int:
    left: int = found["slots_to_move"] + found["members_to_move"] + len(found["leaving"])
    return left


async def _until_done(running: Running, found: dict[str, Any]) -> dict[str, Any]:
    """Watch until nothing is left to do; say what is new."""
    total, said, heard = _left(found), "", time.monotonic()
    with Progress(sys.stderr, label="moved", unit="steps") as progress:
        while found["busy"]:
            text = " ".join(growth_lines({**found, "hosts_out": []}))
            if text != said:
                progress.say(printable(text))
                said = text
            total = max(total, _left(found))
            progress.moved(total - _left(found), total)
            await asyncio.sleep(LOOK_S)
            try:
                found = await running.call("growth", timeout_s=TIMEOUT_S)
                heard = time.monotonic()
            except NotReachable:
                if time.monotonic() - heard > AWAY_S:
                    raise
    return found
