"""``python -m bench.lines``: what a rush in one line of business does to another.

It starts two clusters as ``im-actors up`` does, that differ in one thing: in one the lines have
quotas, in the other they are so wide that nobody meets them. For each pair of lines, on both
clusters in turn: the one sends at a steady rate, alone and then beside the other, which sends as
fast as it can over many connections. The ratio of the two is what the rush does. Both phases and
both clusters follow each other at once, several times over, so what else the machine does is in all
of them, and the median of the ratios is told.

- ``direct``: sessions of two users, both of whose mailboxes hear of each message.
- ``group``: open sessions, which are of the line of groups.
- ``notice``: what a service tells users.
- ``batch``, only as a rush: one content to many users over the high-priority channel.

Every message is checked as by ``im-actors bench``: ACKed once, and read once, in order. Of a batch
every recipient has to be counted as told, and no looked-at one may have it twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.machine import describe, fsync_us
from bench.running import Cluster, run, say
from im_actors.cli.bench.plan import Load
from im_actors.cli.bench.processes import Figures, Generators
from im_actors.client import Client
from im_actors.core.batch import chunked
from im_actors.core.lines import LineSettings
from im_actors.core.names import notice_session
from im_actors.core.rule_settings import RuleSettings
from im_actors.errors import RetryableError
from im_actors.server.settings import ClusterSettings

SERVICE = "bench"
KIND_OF = {"direct": "direct", "group": "open", "notice": "notice"}
RUSHES = ("direct", "group", "notice", "batch")
SESSIONS = {"direct": 200, "group": 200, "notice": 50}
RUSH_WINDOW = 128
WARMUP_S = 1.0
LOOKED_AT = 20
WIDE = LineSettings(rows=1_000_000)
"""Shares of all that a gateway takes: more than the rush has."""

Pair = tuple[str, str]


def load_of(cluster: Cluster, line: str, connections: int) -> Load:
    return Load(
        run=secrets.token_hex(4),
        addresses=[cluster.address],
        user=SERVICE,
        connections=connections,
        sessions=max(connections, SESSIONS[line]) if line != "notice" else SESSIONS[line],
        followers=0,
        kind=KIND_OF[line],
    ).validate()


class Batch:
    """One batch message to ``recipients`` users, over the high-priority channel."""

    def __init__(self, cluster: Cluster, recipients: int) -> None:
        self.name = f"bench-{secrets.token_hex(4)}"
        self.users = [f"{self.name}-{number}" for number in range(recipients)]
        self._url = cluster.run.url
        self._client = Client(self._url, user=SERVICE, device=self.name)

    async def order(self) -> None:
        """All but the start."""
        await self._client.__aenter__()
        batches = self._client.batches
        created = await batches.create(self.name, b"hello", "high", total=len(self.users))
        await created.acked()
        for number, chunk in enumerate(chunked(self.users)):
            sent = await batches.recipients(self.name, number, chunk)
            await sent.acked()

    async def start(self) -> None:
        await (await self._client.batches.start(self.name)).acked()

    async def told(self) -> int:
        """Below 0: it goes on, as far as is known."""
        try:
            info = await self._client.batches.status(self.name)
        except RetryableError:
            return -1
        assert info is not None
        if info.refused:
            raise RuntimeError(f"{info.refused} recipients were refused")
        return int(info.sent) if info.at_rest else -1

    async def finish(self) -> None:
        """Wait until all are told, and look at some of them."""
        while (told := await self.told()) < 0:
            await asyncio.sleep(0.2)
        if told != len(self.users):
            raise RuntimeError(f"{told} of {len(self.users)} recipients were told")
        for user in self.users[:: max(1, len(self.users) // LOOKED_AT)]:
            async with Client(self._url, user=user, device="bench-00000000") as im:
                page = await im.history(notice_session("system", user))
                if [event.text for event in page.events] != ["hello"]:
                    raise RuntimeError(f"{user} has {len(page.events)} copies of the batch")

    async def close(self) -> None:
        await self._client.__aexit__(None, None, None)


class Measured:
    """What was found of one pair on one cluster, over all rounds."""

    def __init__(self) -> None:
        self.alone: list[dict[str, float]] = []
        self.beside: list[dict[str, float]] = []
        self.rush_per_s: list[float] = []
        self.refused = 0
        self.ledger: dict[str, int] = {}
        self.void = False

    def add_ledger(self, outcome: Any) -> None:
        for name, count in outcome.ledger.to_json().items():
            self.ledger[name] = self.ledger.get(name, 0) + count
        if not outcome.sound:
            self.void = True
            say(f"  VOID: {outcome.problems[:3]} {outcome.ledger}")

    def summary(self) -> dict[str, Any]:
        ratios = {
            name: [b[name] / a[name] for a, b in zip(self.alone, self.beside, strict=True)]
            for name in ("p50", "p99")
        }
        return {
            **{f"alone_{n}_ms": round(median(a[n] for a in self.alone), 2) for n in ratios},
            **{f"beside_{n}_ms": round(median(b[n] for b in self.beside), 2) for n in ratios},
            **{f"{name}_ratio": round(median(of), 2) for name, of in ratios.items()},
            "rush_per_s": round(median(self.rush_per_s)),
            "rush_refused": self.refused,
            "ledger": self.ledger,
            "void": self.void,
        }


async def round_of(cluster: Cluster, pair: Pair, args: argparse.Namespace, found: Measured) -> None:
    """The steady line alone, and beside the rush."""
    steady, rush = pair
    async with Generators([load_of(cluster, steady, args.connections)], None) as generators:
        alone = await generators.phase(args.seconds, WARMUP_S, args.rate)
        if rush == "batch":
            beside = await _beside_batch(cluster, generators, args, found)
        else:
            beside = await _beside_load(cluster, rush, generators, args, found)
        found.add_ledger(await generators.finish())
    for figures, of in ((alone, found.alone), (beside, found.beside)):
        summary = figures.ack.summary()
        assert summary is not None
        of.append(summary)


async def _beside_load(
    cluster: Cluster, rush: str, steady: Generators, args: argparse.Namespace, found: Measured
) -> Figures:
    load = load_of(cluster, rush, args.rush_connections)
    async with Generators([load], None) as rushing:
        # It begins earlier and ends later than what is measured.
        task = asyncio.create_task(rushing.phase(args.seconds + 1.0, WARMUP_S, None, RUSH_WINDOW))
        beside = await steady.phase(args.seconds, WARMUP_S + 0.5, args.rate)
        figures = await task
        found.rush_per_s.append(figures.msgs_per_s)
        found.refused += figures.refused.total()
        found.add_ledger(await rushing.finish())
    return beside


async def _beside_batch(
    cluster: Cluster, steady: Generators, args: argparse.Namespace, found: Measured
) -> Figures:
    batch = Batch(cluster, args.recipients)
    await batch.order()
    try:
        began = time.monotonic()
        await batch.start()
        beside = await steady.phase(args.seconds, WARMUP_S, args.rate)
        if await batch.told() >= 0:
            say("  the batch ended before the measurement did: use more --recipients")
        await batch.finish()
        found.rush_per_s.append(args.recipients / (time.monotonic() - began))
    finally:
        await batch.close()
    return beside


def pairs(text: str) -> list[Pair]:
    if text == "all":
        return [(a, b) for a in KIND_OF for b in RUSHES if a != b]
    found = []
    for word in text.split(","):
        steady, _, rush = word.partition(":")
        if steady not in KIND_OF or rush not in RUSHES or steady == rush:
            raise argparse.ArgumentTypeError(f"{word!r} is no pair like direct:group")
        found.append((steady, rush))
    return found


@contextlib.contextmanager
def clusters(args: argparse.Namespace) -> Iterator[dict[str, Cluster]]:
    rules = RuleSettings(services=frozenset([SERVICE]))
    quotas = LineSettings(rows=args.rows) if args.rows else LineSettings()
    with (
        Cluster(args.directory, operator=ClusterSettings(rules=rules, lines=quotas)) as with_quotas,
        Cluster(args.directory, operator=ClusterSettings(rules=rules, lines=WIDE)) as without,
    ):
        yield {"quotas": with_quotas, "none": without}


async def measure(
    running: dict[str, Cluster], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    for cluster in running.values():
        await cluster.settled()
    report: dict[str, dict[str, Any]] = {}
    for pair in args.pairs:
        found = {name: Measured() for name in running}
        for number in range(args.rounds):
            # The other one first, each time.
            for name in list(running)[:: -1 if number % 2 else 1]:
                await round_of(running[name], pair, args, found[name])
                await running[name].settled()
        report[":".join(pair)] = {name: of.summary() for name, of in found.items()}
        for name, of in report[":".join(pair)].items():
            say(f"{pair[0]} beside a rush of {pair[1]}, {name}: {of}")
    return report


def bench(args: argparse.Namespace) -> dict[str, Any]:
    with clusters(args) as running:
        report = {
            "pairs": asyncio.run(measure(running, args)),
            "machine": describe(),
            "fsync_us": fsync_us(running["quotas"].directory),
        }
    names = ("rate", "connections", "rush_connections", "seconds", "rounds", "recipients", "rows")
    report["settings"] = {name: getattr(args, name) for name in names}
    report["void"] = any(of["void"] for pair in report["pairs"].values() for of in pair.values())
    return report


def shown(report: dict[str, Any]) -> str:
    lines = [
        "| steady:rush | quotas | alone p50 / p99 ms | beside p50 / p99 ms | ratio p50 / p99 |"
        " rush/s | lost, doubled |",
        "|---|---|---|---|---|---|---|",
    ]
    for pair, by_quotas in report["pairs"].items():
        for name, of in by_quotas.items():
            ledger = of["ledger"]
            lines.append(
                f"| {pair} | {name} | {of['alone_p50_ms']} / {of['alone_p99_ms']}"
                f" | {of['beside_p50_ms']} / {of['beside_p99_ms']}"
                f" | {of['p50_ratio']} / {of['p99_ratio']} | {of['rush_per_s']:,}"
                f" | {ledger['lost']}, {ledger['duplicated']} |"
            )
    if report["void"]:
        lines.append("VOID: the ledger does not agree")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lines", description=__doc__)
    parser.add_argument("--pairs", type=pairs, default=pairs("all"), help="such as direct:group")
    parser.add_argument("--rounds", type=int, default=3, help="of each pair (default: 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each phase (default: 3)")
    parser.add_argument("--rate", type=float, default=200.0, help="of the steady line, msg/s")
    parser.add_argument("--connections", type=int, default=8, help="of the steady line")
    parser.add_argument("--rush-connections", type=int, default=64, help="with 128 messages each")
    parser.add_argument("--recipients", type=int, default=60_000, help="of a batch")
    parser.add_argument("--rows", type=int, help="quota to try in the place of the default")
    parser.add_argument("--directory", type=Path, help="where the clusters' data goes")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return run(parser.parse_args(argv), bench, shown)


if __name__ == "__main__":
    sys.exit(main())
