"""repair: the view store of a cluster that is down, from what its replicas' disks say."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from im_actors.cli.backup_commands import add_redis_option, redis_of
from im_actors.cli.client_commands import AddCommand, positive_number
from im_actors.cli.output import note, print_json, printable
from im_actors.cli.target import add_data_option, data_of
from im_actors.errors import SetupError


def register(add: AddCommand) -> None:
    parser = add(
        "repair",
        "rebuild a lost view store, or views whose members are lost, while the cluster is down",
        "  im-actors repair --dry-run\n"
        "  im-actors repair --data /srv/im --also /mnt/host-b/replica-2\n"
        "  im-actors repair --accept-loss 3,17\n\n"
        "For a cluster that does not serve because\n"
        "  - its view store is lost, damaged, or older than what replicas have promised: the\n"
        "    views are made anew from the replicas' disks;\n"
        "  - all members of a slot are lost: the newest copy of a former member is used.\n"
        "A slot that has lost one or two of its three copies needs no repair: it comes back, and\n"
        "the copies are made again, when three replicas run. This says so, and whether what is\n"
        "left is whole. A damaged replica is for im-actors verify. Messages that no disk has are\n"
        "gone: im-actors restore makes a cluster from a backup.\n\n"
        "im-actors down first, on all hosts. What replicas on other hosts have counts: mount or\n"
        "copy their directories and name each with --also, and say --replicas if there are more\n"
        "than three. Where the disks that are here are too few to be sure that nothing is lost,\n"
        "repair refuses, and says of each slot what may be. Nothing changes but the view store\n"
        "and cluster.json; what was left of the store is kept beside it.",
    )
    add_data_option(parser)
    parser.add_argument(
        "--also",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="a replica's directory from another host; again for each",
    )
    parser.add_argument(
        "--replicas",
        metavar="N",
        type=positive_number,
        default=3,
        help="how many replicas the cluster had, as up was told: one that nothing here speaks of"
        " may be the one that matters (default: 3)",
    )
    add_redis_option(parser)
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="do not believe the view store: it was brought back from an old copy",
    )
    parser.add_argument(
        "--accept-loss",
        metavar="SLOTS",
        type=_slots,
        default=(),
        help="go on although what is told of these slots may be lost: 3,17 or all",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=repair)


def _slots(text: str) -> tuple[int, ...] | None:
    """Slot numbers; None for all."""
    if text == "all":
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: slots are numbers, as in 3,17, or all"
        ) from None


def repair(args: argparse.Namespace) -> int:
    """Plan, tell, and do it unless something is in the way."""
    from im_actors.cli import repair_offline as work

    data = data_of(args).absolute()
    note(f"reading the replicas' directories below {data}")
    plan, done = work.repair(
        data,
        args.also,
        redis_of(args),
        not args.rebuild,
        args.accept_loss,
        args.dry_run,
        args.replicas,
    )
    accepted = range(len(plan.slots)) if args.accept_loss is None else args.accept_loss
    found = work.plan_fields(plan, accepted) | {"dry_run": args.dry_run, "done": done}
    if args.json:
        print_json(found)
    else:
        _show(found)
    if found["refused"] and not args.dry_run:
        raise SetupError(
            f"nothing was changed: something of slots {_numbers(found['refused'])} may be lost"
            " (above). Bring more of the replicas' disks (--also), or name these slots with"
            " --accept-loss"
        )
    return 1 if found["refused"] or found["troubles"] else 0


def _show(found: dict[str, Any]) -> None:
    print(f"view store: {printable(found['view_store'])}")
    for name, why in sorted(found["absent"].items()):
        print(f"{name} is not here: {printable(why)}")
    for row in found["slots"]:
        if row["action"] == "none" and not row["why"] and not row["trouble"]:
            continue
        print(f"slot {row['slot']}: {printable(row['why'])}")
        if row["action"] != "none":
            copies = ", ".join(row["copies"]) or "nobody"
            print(
                f"  new view: epoch {row['epoch']}, from {copies}, which end at lsn"
                f" {row['last_lsn']:,}"
            )
        for name, label in (("may_lose", "MAY BE LOST"), ("trouble", "LOST")):
            if row[name]:
                print(f"  {label}: {printable(row[name])}")
    if found["done"]:
        print(f"rebuilt {found['changes']} views; next: im-actors up, then im-actors verify")
    elif not found["changes"]:
        print("there is no view to be rebuilt")
    elif found["dry_run"]:
        rest = found["changes"] - len(found["refused"])
        refused = f", and refuse {_numbers(found['refused'])}" if found["refused"] else ""
        print(f"would rebuild {rest} views{refused}")


def _numbers(slots: list[int]) -> str:
    return ",".join(map(str, slots))
