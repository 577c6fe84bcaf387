"""plan: how many hosts, shards, replicas and gateways a load needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from im_actors.cli.client_commands import AddCommand, positive_number
from im_actors.cli.output import print_json


def register(add: AddCommand) -> None:
    parser = add(
        "plan",
        "say how many hosts, shards, disks and gateways a load needs, and what gives in first",
        "  im-actors plan --users 50000 --messages-per-second 20000\n"
        "  im-actors plan --users 1000000 --messages-per-second 100000 --followers 5 --json\n"
        "  im-actors plan --users 100 --messages-per-second 500 --disk-fsync-us 8000\n\n"
        "The costs behind it are measured: python -m bench.scale --out FILE measures those of a\n"
        "machine, --costs FILE names it. Without it those of the project's own measurement are\n"
        "taken. Name the load of the busiest minute, not the average of a day.",
    )
    amount, bounded = _amount(0.0), _amount(0.0, 1.0)
    parser.add_argument(
        "--users", metavar="N", type=positive_number, required=True,
        help="devices that are connected at the same time",
    )  # fmt: skip
    parser.add_argument(
        "--messages-per-second", metavar="X", type=amount, required=True,
        help="that all of them send together",
    )  # fmt: skip
    parser.add_argument(
        "--followers", metavar="X", type=amount, default=1.0,
        help="connected devices that a message goes to, on average (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--message-bytes", metavar="N", type=amount, default=128.0,
        help="of a body, on average (default: 128)",
    )  # fmt: skip
    for option, what in (
        ("--disk-fsync-us", "what an fsync takes there, in microseconds: im-actors bench shows it"),
        ("--disk-mb-per-s", "what a disk takes in sequence"),
    ):
        parser.add_argument(option, metavar="X", type=amount, help=f"{what} (default: as measured)")
    parser.add_argument(
        "--host-cores", metavar="N", type=positive_number,
        help="of each host (default: as of the measured machine)",
    )  # fmt: skip
    parser.add_argument(
        "--host-disks", metavar="N", type=positive_number, default=1,
        help="of each host, a replica on each (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--share", metavar="X", type=bounded, default=0.6,
        help="of cores and disks that may be used, the rest is for faults (default: 0.6)",
    )  # fmt: skip
    parser.add_argument(
        "--costs", metavar="FILE", type=Path, help="what bench.scale wrote (default: the project's)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=plan)


def _amount(above: float, most: float = 1e12) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = above
        if not above < value <= most:
            limit = f" and at most {most:g}" if most < 1e12 else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above {above:g}{limit}")
        return value

    return read


def plan(args: argparse.Namespace) -> int:
    """Read the costs, print the plan."""
    from im_actors.cli import capacity

    costs = capacity.read_costs(args.costs)
    load = capacity.Demand(
        messages_per_s=args.messages_per_second,
        users=args.users,
        followers=args.followers,
        message_bytes=args.message_bytes,
    )
    site = capacity.Site(
        host_cores=args.host_cores,
        host_disks=args.host_disks,
        disk_fsync_us=args.disk_fsync_us,
        disk_mb_per_s=args.disk_mb_per_s,
        share=args.share,
    )
    found = capacity.plan(costs, load, site)
    if args.json:
        print_json(found)
    else:
        show(found)
    return 0


def show(found: dict[str, Any]) -> None:
    print(
        f"{found['hosts']} hosts, {found['shards']} shards, {found['replicas']} replicas on as"
        f" many disks, {found['gateways']} gateways"
    )
    print(
        f"{found['cores_used']:g} cores, {found['gateway_memory_mb']:,g} MB for connections,"
        f" {found['disk_gb_per_day']:,g} GB written a day, ACK p50 {found['ack_ms_p50_at_least']:g}"
        " ms at least"
    )
    for use in found["use"]:
        print(f"  {100 * use['share']:5.1f} %  {use['what']}: {use['why']}")
    limit = found["saturates_at_messages_per_s"]
    print(f"first to give in, at about {limit:,} messages a second: {found['saturates_first']}")
    print(f"costs: {found['costs_from']}", flush=True)
