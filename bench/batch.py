"""``python -m bench.batch``: one content for many recipients who never got a notice before.

It starts a cluster as ``im-actors up`` does, uploads the recipients of a batch on the channel with
high priority, starts it and waits until everybody is told. Then the cluster is stopped, and the
history of each of the three replicas is read: every recipient's notice channel has to hold exactly
one event, this one. With ``--kills`` the shard that runs the batch is killed (kill -9) so often on
the way.

CPU is that of all processes of the cluster, from /proc, from the start until history has all of it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.machine import describe, fsync_us
from bench.profile.threads import WatchedServers
from bench.running import Cluster, run, say, until_quiet
from im_actors.cli.target import running_cluster
from im_actors.client import Client
from im_actors.client.batches import BatchInfo
from im_actors.core.batch import MESSAGE_N, batch_device, chunked, event_body
from im_actors.core.model import EventKind, decode_event, slot_of
from im_actors.core.names import batch_session, notice_session
from im_actors.core.rule_settings import RuleSettings
from im_actors.errors import ImError, RetryableError
from im_actors.server.settings import ClusterSettings
from im_actors.storage.history import History

SERVICE = "shop"
"""The user who sends batches: a cluster for this has to be started with ``OPERATOR``."""
OPERATOR = ClusterSettings(rules=RuleSettings(services=frozenset({SERVICE})))
CONTENT = "Summer sale: everything that floats is half the price until Sunday."
CHUNKS_ON_THEIR_WAY = 8
ACK_S = 60.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class BatchFigures:
    """One batch, from its start until the last recipient's outcome was said."""

    recipients: int
    sent: int
    elapsed_s: float
    recipients_per_s: int
    kills: int


@dataclass(slots=True)
class Ledger:
    """What the replicas hold of a batch, each recipient counted once for each replica."""

    once: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    """One event, and not the one that was sent."""

    @property
    def holds(self) -> bool:
        return self.once > 0 == self.lost + self.doubled + self.wrong


def names(recipients: int, prefix: str = "cold") -> list[str]:
    """So many users."""
    return [f"{prefix}-{number:07}" for number in range(recipients)]


def client_of(cluster: Cluster) -> Client:
    """Of the user who sends batches."""
    host, port = cluster.address
    return Client(f"im://{host}:{port}", SERVICE, "bench", None)


async def upload(im: Client, batch: str, users: Sequence[str], channel: str = "high") -> None:
    """Order a batch; afterwards it only has to be started."""
    await (await im.batches.create(batch, CONTENT, channel, total=len(users))).acked(ACK_S)
    chunks = chunked(users)
    for start in range(0, len(chunks), CHUNKS_ON_THEIR_WAY):
        part = enumerate(chunks[start : start + CHUNKS_ON_THEIR_WAY], start)
        sent = [await im.batches.recipients(batch, number, chunk) for number, chunk in part]
        for each in sent:
            await each.acked(ACK_S)


async def tell(
    cluster: Cluster,
    im: Client,
    batch: str,
    recipients: int,
    kills: int = 0,
    moved: Callable[[int, int], None] = lambda told, of: None,
) -> BatchFigures:
    """Start an uploaded batch and return when it is done; ``moved`` hears how far it is. Shards
    that run it are killed on the way, each time when as much more is done. RuntimeError when it
    does not succeed for all."""
    began = time.monotonic()
    await (await im.batches.start(batch)).acked(ACK_S)
    killed = 0
    while True:
        info = await _status(im, batch)
        if info is not None:
            moved(info.told, recipients)
            if info.at_rest:
                break
        if killed < kills and info is not None and info.told * (kills + 1) > killed * recipients:
            await kill_owner(cluster, batch)
            killed += 1
        await asyncio.sleep(POLL_S)
    elapsed = time.monotonic() - began
    if info.state != "done" or info.sent != recipients:
        raise RuntimeError(f"the batch is {info.state}: {info.sent} of {recipients} were sent to")
    if killed < kills:
        raise RuntimeError(f"only {killed} of {kills} kills came before the end: ask for more")
    rate = round(recipients / elapsed)
    return BatchFigures(recipients, info.sent, round(elapsed, 3), rate, killed)


async def _status(im: Client, batch: str) -> BatchInfo | None:
    try:
        return await im.batches.status(batch)
    except RetryableError:
        return None


async def kill_owner(cluster: Cluster, batch: str) -> None:
    """Kill the shard that serves the batch, and so runs it; a slot on its way is waited for."""
    while True:
        try:
            status = await cluster.call("status")
            slot = slot_of(batch_session(batch), status["slots"]["total"])
            owners = [n for n, of in status["shards"].items() if slot in of.get("serving", ())]
            if owners:
                pid = (await cluster.pids())[owners[0]]
                break
        except ImError:
            pass
        await asyncio.sleep(POLL_S)
    os.kill(pid, signal.SIGKILL)
    say(f"  killed {owners[0]}")


async def applied(cluster: Cluster) -> None:
    """Return when the history of all replicas has everything."""

    async def lag() -> str:
        try:
            replicas = (await cluster.call("status"))["replicas"]
        except ImError as error:
            return str(error)
        waits = {name: of.get("waiting_records", 1) for name, of in replicas.items()}
        return f"records wait for history: {waits}" if any(waits.values()) else ""

    await until_quiet(lag)


def read_back(data: Path, batch: str, users: Sequence[str]) -> Ledger:
    """The ledger of a batch, from the directories of a cluster that is down."""
    found = Ledger()
    device = batch_device(SERVICE, batch_session(batch))
    expected = (int(EventKind.MESSAGE), device, MESSAGE_N, event_body(CONTENT.encode()))
    directories = sorted(data.glob("replica-*"))
    assert directories, f"{data} holds no replica"
    for directory in directories:
        history = History(directory / "history", create=False)
        for user in users:
            events = history.read(notice_session("system", user), 0, 0, 3).events
            if len(events) != 1:
                found.doubled += bool(events)
                found.lost += not events
                continue
            event = decode_event(events[0])
            said = (int(event.kind), event.device, event.n, event.body)
            found.once += said == expected
            found.wrong += said != expected
        history.close()
    return found


async def measure(cluster: Cluster, args: argparse.Namespace) -> dict[str, Any]:
    await cluster.settled()
    batch, users = "bench", names(args.recipients)
    side = await WatchedServers.find(running_cluster(cluster.data))
    assert isinstance(side, WatchedServers)
    async with client_of(cluster) as im:
        await upload(im, batch, users)
        await applied(cluster)
        say(f"{len(users)} recipients are uploaded")
        before = side.usage()
        figures = await tell(cluster, im, batch, len(users), args.kills)
        say(f"{figures.recipients_per_s} recipients/s")
        await applied(cluster)
    if args.kills:
        # A killed process takes its account with it.
        return asdict(figures)
    spent = side.usage().cpu_since(before)
    spent["all"] = sum(spent.values())
    by_thread = side.last_phase().by_thread()
    return {
        **asdict(figures),
        "cpu_us": {kind: round(us / len(users), 2) for kind, us in spent.items()},
        "thread_us": {
            kind: {name: round(us / len(users), 2) for name, us in threads.items()}
            for kind, threads in by_thread.items()
        },
    }


def bench(args: argparse.Namespace) -> dict[str, Any]:
    with Cluster(args.directory, operator=OPERATOR) as cluster:
        fsync = fsync_us(cluster.data)
        found = asyncio.run(measure(cluster, args))
        cluster.down()
        ledger = read_back(cluster.data, "bench", names(args.recipients))
    if not ledger.holds:
        raise RuntimeError(f"void: {ledger}")
    return {**found, "ledger": asdict(ledger), "fsync_us": fsync, "machine": describe()}


def shown(report: dict[str, Any]) -> str:
    ledger = report["ledger"]
    return "\n".join(
        [
            f"{report['recipients']:,} recipients, {report['kills']} kills:"
            f" {report['recipients_per_s']:,} recipients/s",
            f"CPU µs a recipient: {report.get('cpu_us')}, by thread {report.get('thread_us')}",
            f"recipients in three copies with exactly this event: {ledger['once']:,}; lost"
            f" {ledger['lost']}, doubled {ledger['doubled']}, wrong {ledger['wrong']}",
            f"{report['machine']}, fsync {report['fsync_us']} µs",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.batch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--recipients", type=int, default=100_000, metavar="N")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="of the shard at work")
    parser.add_argument("--directory", type=Path, help="where the cluster's data goes")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return run(parser.parse_args(argv), bench, shown)


if __name__ == "__main__":
    sys.exit(main())
