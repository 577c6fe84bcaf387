"""``python -m bench.mailbox``: conversation lists, unread counts and batch messages over TCP.

It starts a cluster as ``im-actors up`` does, with mailboxes that were filled without it
(``bench.mailbox.filling``), and measures the parts that are asked for:

- ``list``: the first 25 conversations, by 32 clients of users with 200 conversations each.
- ``unread``: the total, by the same.
- ``big``: the first page of a user with 200,000 conversations, in turns with one of 200.
- ``faults``: lists while Redis is stopped and killed, and while the warm tier takes 2 s longer, in
  a cluster of its own in which most lists are not in memory; needs redis-server.
- ``broadcast``: a batch on the channel with high priority, alone and with a chat beside it.

Every answer is checked: a list that is too short or an unread count that is not what was sent ends
the run; in ``faults`` each list is compared with the events of the mailbox, and wrong ones are
counted. The clients run in this process; its CPU is told beside the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.batch import OPERATOR
from bench.machine import describe, fsync_us
from bench.mailbox.asking import PAGE_ROWS, Caller, in_ms, load, until_answered
from bench.mailbox.broadcast import Broadcast, broadcast
from bench.mailbox.faults import Faulty, faults
from bench.mailbox.filling import Text, fill_directory
from bench.running import Cluster, run, say
from im_actors.cli.progress import Progress
from im_actors.cli.verify_offline import verify_directories
from im_actors.core.names import direct_session

PARTS = ("list", "unread", "big", "faults", "broadcast")
BIG_USER = "big"
UNREAD_EVERY = 20
"""Of the big user's conversations each 20th begins with the other's message, all others with his
own, which does not count."""
ALONE_MAX = 200_000
"""Recipients of the batch that runs without a chat."""

Moved = Callable[[int, int], None]


def users_of(args: argparse.Namespace) -> list[str]:
    return [f"user-{number}" for number in range(args.clients)]


def peers_of(args: argparse.Namespace) -> list[str]:
    return [f"peer-{number}" for number in range(args.conversations)]


def texts(args: argparse.Namespace) -> list[Text]:
    """The first message of each conversation."""
    found = [
        Text(direct_session(peer, user), peer, b"hello")
        for peer in peers_of(args)
        for user in users_of(args)
    ]
    for number in range(args.big if "big" in args.parts else 0):
        other = f"other-{number}"
        sender = BIG_USER if number % UNREAD_EVERY else other
        found.append(Text(direct_session(BIG_USER, other), sender, b"hi"))
    return found


@contextmanager
def bar(label: str) -> Iterator[Moved]:
    """How far something is, on a terminal."""
    with Progress(sys.stderr, True, label, "") as progress:
        yield progress.moved


def fill(cluster: Cluster, args: argparse.Namespace) -> dict[str, Any]:
    """Fill the cluster, which is started again for it."""
    cluster.down()
    wanted, began, cpu = texts(args), time.monotonic(), time.process_time()
    with bar("filled") as moved:
        events = fill_directory(cluster.data, wanted, lambda done: moved(done, len(wanted)))
    figures = {
        "messages": len(wanted),
        "events": events,
        "seconds": round(time.monotonic() - began, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
    }
    say(f"filled: {figures}")
    if args.verify:
        verdict = verify_directories(cluster.data)
        if not verdict["ok"] or verdict["events"] < events:
            raise RuntimeError(f"the directories are not sound: {verdict}")
        say(f"verified: {verdict}")
    cluster.up()
    return figures


async def lists(cluster: Cluster, args: argparse.Namespace) -> dict[str, Any]:
    found = await load(cluster.address, users_of(args), args.seconds, list_page)
    say(f"lists {found}")
    return {"list_per_s": found["per_s"], "list_p99_ms": found["ms"]["p99"], "list": found}


async def list_page(caller: Caller) -> None:
    page = await caller.page()
    if len(page.rows) != PAGE_ROWS:
        raise RuntimeError(f"a list has {len(page.rows)} rows of {PAGE_ROWS}")


async def unread(cluster: Cluster, args: argparse.Namespace) -> dict[str, Any]:
    async def total(caller: Caller) -> None:
        if (total := await caller.unread()) != args.conversations:
            raise RuntimeError(f"{total} unread messages of {args.conversations}")

    found = await load(cluster.address, users_of(args), args.seconds, total)
    say(f"unread {found}")
    return {"unread_per_s": found["per_s"], "unread": found}


async def big(cluster: Cluster, args: argparse.Namespace) -> dict[str, Any]:
    """First pages in ms, of the big user and of one like the others, in turns."""
    expected = {BIG_USER: -(-args.big // UNREAD_EVERY), "user-0": args.conversations}
    callers = {user: await Caller.connect(cluster.address, user) for user in expected}
    first_s = {
        user: await until_answered(lambda caller=caller: list_page(caller))  # type: ignore[misc]
        for user, caller in callers.items()
    }
    took: dict[str, list[float]] = {user: [] for user in callers}
    until = time.monotonic() + args.seconds
    while time.monotonic() < until:
        for user, caller in callers.items():
            at = time.monotonic()
            page = await caller.page()
            took[user].append(time.monotonic() - at)
            if (len(page.rows), page.unread) != (PAGE_ROWS, expected[user]):
                raise RuntimeError(f"{user}: {len(page.rows)} rows, {page.unread} unread")
    for caller in callers.values():
        await caller.close()
    large, small = (in_ms(took[user]) for user in expected)
    return {
        "big_over_small_p50": round(large["p50"] / small["p50"], 2),
        "first_page_ms": {"big": large, "small": small},
        "first_answer_after_start_s": {user: round(took, 2) for user, took in first_s.items()},
    }


async def batches(cluster: Cluster, args: argparse.Namespace) -> dict[str, Any]:
    asked = Broadcast(
        min(args.recipients, ALONE_MAX), args.recipients, args.chat_rate, args.seconds
    )
    with bar("told") as moved:
        found = await broadcast(cluster, asked, say, moved)
    return {
        "broadcast_recipients_per_s": found["recipients_per_s"],
        "chat_p99_ratio_during_broadcast": found["chat_p99_ratio"],
        "broadcast": found,
    }


CLUSTER_PARTS = {"list": lists, "unread": unread, "big": big, "broadcast": batches}


async def measure(cluster: Cluster, args: argparse.Namespace) -> dict[str, Any]:
    await cluster.settled()
    found: dict[str, Any] = {}
    for name, part in CLUSTER_PARTS.items():
        if name in args.parts:
            found |= await part(cluster, args)
    return found


async def lists_with_faults(directory: Path, args: argparse.Namespace) -> dict[str, Any]:
    asked = Faulty(users_of(args), peers_of(args), args.asks_per_s, args.seconds, args.patience)
    with bar("filled") as moved:
        phases = await faults(directory, asked, say, moved)
    found: dict[str, Any] = {"faults": phases}
    for name in ("redis_killed", "warm_delayed"):
        found[f"right_percent_{name}"] = phases[name]["right_percent"]
        found[f"list_p99_ms_{name}"] = phases[name]["ms"]["p99"]
    return found


def bench(args: argparse.Namespace) -> dict[str, Any]:
    names = ("parts", "clients", "conversations", "big", "recipients", "seconds")
    settings = {name: getattr(args, name) for name in (*names, "asks_per_s", "chat_rate")}
    found: dict[str, Any] = {}
    if "faults" in args.parts:
        with tempfile.TemporaryDirectory(prefix="im_bench-", dir=args.directory) as directory:
            found |= asyncio.run(lists_with_faults(Path(directory), args))
            found["fsync_us"] = fsync_us(Path(directory))
    if set(args.parts) & CLUSTER_PARTS.keys():
        with Cluster(args.directory, operator=OPERATOR) as cluster:
            if set(args.parts) & {"list", "unread", "big"}:
                found["filled"] = fill(cluster, args)
            found |= asyncio.run(measure(cluster, args))
            found["fsync_us"] = fsync_us(cluster.data)
    return {**found, "settings": settings, "machine": describe()}


def shown(report: dict[str, Any]) -> str:
    lines = []
    if "list" in report:
        line = f"{report['list_per_s']:,}/s, p99 {report['list_p99_ms']} ms"
        lines.append(f"conversation lists  {line}")
    if "unread" in report:
        lines.append(f"total unread        {report['unread_per_s']:,}/s")
    if "first_page_ms" in report:
        big, small = (report["first_page_ms"][name]["p50"] for name in ("big", "small"))
        line = f"{big} ms of the big account, {small} ms of a small one (p50)"
        lines.append(f"first page          {line}: {report['big_over_small_p50']} ×")
    for name, phase in report.get("faults", {}).items():
        line = (
            f"{phase['right_percent']} % of {phase['answers']} right, p99 {phase['ms']['p99']} ms"
        )
        lines.append(f"{name:<20}{line}")
    if "broadcast" in report:
        line = f"{report['broadcast_recipients_per_s']:,} recipients/s; chat ACK p99 beside one"
        lines.append(f"batch               {line}: {report['chat_p99_ratio_during_broadcast']} ×")
    lines.append(f"{report['machine']}, fsync {report['fsync_us']} µs")
    return "\n".join(lines)


def parts_in(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: none of {', '.join(PARTS)}")
    return parts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.mailbox", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--parts", type=parts_in, default=list(PARTS), help="default: all")
    parser.add_argument("--clients", type=int, default=32, metavar="N")
    parser.add_argument("--conversations", type=int, default=200, metavar="N", help="of each")
    parser.add_argument("--big", type=int, default=200_000, metavar="N", help="of the big account")
    parser.add_argument("--recipients", type=int, default=1_000_000, metavar="N", help="of a batch")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument(
        "--asks-per-s", type=float, default=50.0, metavar="N", help="of all users in faults"
    )
    parser.add_argument("--chat-rate", type=float, default=2_000.0, metavar="N", help="msg/s")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for the mailboxes")
    parser.add_argument("--verify", action="store_true", help="read all that was filled, and check")
    parser.add_argument("--directory", type=Path, help="where the clusters' data goes")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return run(parser.parse_args(argv), bench, shown)


if __name__ == "__main__":
    sys.exit(main())
