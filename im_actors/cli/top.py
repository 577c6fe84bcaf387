"""``im-actors top``: the status of a cluster, live, with what happens per second."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from math import isnan
from typing import Any

from im_actors.cli.client_commands import AddCommand, positive_number, positive_seconds
from im_actors.cli.output import print_json
from im_actors.cli.target import add_data_option, data_of, running_cluster
from im_actors.core.histogram import quantile
from im_actors.errors import ImError, SetupError

TIMEOUT_S = 5.0
"""How long one look may take; then the last one stays on the screen, and is said to be old."""
PARTS = (0.5, 0.99)


def register(add: AddCommand) -> None:
    parser = add(
        "top",
        "watch a cluster live: rates, latencies, slots, actors",
        "  im-actors top\n  im-actors top --every 5\n"
        "  im-actors top --json --count 10 | jq .ack_ms.p99\n\nCtrl-C ends it.",
    )
    add_data_option(parser)
    parser.add_argument(
        "--every", metavar="S", type=positive_seconds, default=1.0, help="seconds (default: 1)"
    )
    parser.add_argument(
        "--count", metavar="N", type=positive_number, help="end after so many (default: never)"
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON each time")
    parser.set_defaults(run=lambda args: asyncio.run(top(args)))


async def top(args: argparse.Namespace) -> int:
    """Look again and again, until Ctrl-C or ``--count``."""
    if not args.json and not sys.stdout.isatty():
        raise SetupError("top draws on a terminal, and this is none: --json prints lines instead")
    running = running_cluster(data_of(args))
    show = _Lines() if args.json else _Screen()
    async with running.admin(TIMEOUT_S) as admin:
        before = await admin.call("status")
        then = time.monotonic()
        with show:
            shown = 0
            while args.count is None or shown < args.count:
                await asyncio.sleep(args.every)
                try:
                    found = await admin.call("status")
                except ImError as error:
                    # Whoever is on call wants to see it come back.
                    show.lost(str(error))
                    continue
                now = time.monotonic()
                show.status(found, rates(before, found, now - then))
                before, then, shown = found, now, shown + 1
    return 0


def rates(before: dict[str, Any], now: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What happened between two looks, as JSON. A process that started again counts from 0."""
    gateways = list(_pairs(before["gateways"], now["gateways"]))
    commits = _times(_pairs(before["replicas"], now["replicas"]), "journal_commit")
    return {
        "healthy": now["healthy"],
        "slots_active": now["slots"]["active"],
        "acked_per_s": _grown(gateways, "acked", seconds),
        "nacked_per_s": _grown(gateways, "nacked", seconds),
        "pushed_per_s": _grown(gateways, "pushed", seconds),
        "connections": sum(gateway.get("connections", 0) for _, gateway in gateways),
        "ack_ms": _times(gateways, "ack"),
        "delivery_ms": _times(gateways, "delivery"),
        "commit_ms": commits,
    }


Pair = tuple[dict[str, Any], dict[str, Any]]


def _pairs(before: dict[str, Any], now: dict[str, Any]) -> Iterator[Pair]:
    for name, actor in now.items():
        known = before.get(name, {})
        yield (known if known.get("pid") == actor.get("pid") else {}), actor


def _grown(pairs: list[Pair], field: str, seconds: float) -> float:
    grown = sum(now.get(field, 0) - before.get(field, 0) for before, now in pairs)
    return float(round(max(0, grown) / seconds, 1))


def _times(pairs: Any, field: str) -> dict[str, float | None]:
    """Quantiles of all actors together; None: nothing was measured meanwhile."""
    counts: list[int] = []
    bounds: list[float] = []
    for before, now in pairs:
        if field in now:
            bounds = now[field]["bounds"]
            known = before[field]["counts"] if field in before else [0] * len(now[field]["counts"])
            grown = [n - b for n, b in zip(now[field]["counts"], known, strict=True)]
            counts = [a + b for a, b in zip(counts, grown, strict=True)] if counts else grown
    found = {f"p{part * 100:g}": quantile(bounds, counts, part) * 1000 for part in PARTS}
    return {name: None if isnan(ms) else round(ms, 2) for name, ms in found.items()}


class _Lines:
    """For programs."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def status(self, found: dict[str, Any], happened: dict[str, Any]) -> None:
        print_json(happened)

    def lost(self, why: str) -> None:
        print_json({"healthy": False, "error": why})


class _Screen:
    """For people: tables on a screen of their own."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(highlight=False), screen=True, auto_refresh=False)
        self._parts: list[Any] = []

    def __enter__(self) -> None:
        self._live.__enter__()

    def __exit__(self, *exit_: Any) -> None:
        self._live.__exit__(*exit_)

    def status(self, found: dict[str, Any], happened: dict[str, Any]) -> None:
        from im_actors.cli.status_table import status_parts

        self._parts = [_sentence(happened), *status_parts(found, paths=False)]
        self._draw([])

    def lost(self, why: str) -> None:
        self._draw([f"[bold red]no answer[/]: {why.splitlines()[0]}"])

    def _draw(self, more: list[Any]) -> None:
        from rich.console import Group

        self._live.update(Group(*more, *self._parts), refresh=True)


def _sentence(happened: dict[str, Any]) -> str:
    def ms(name: str) -> str:
        told = happened[name].values()
        return " / ".join("-" if value is None else f"{value:,.1f}" for value in told)

    return (
        f"{happened['acked_per_s']:,.0f} acked a second, {happened['nacked_per_s']:,.0f} refused,"
        f" {happened['pushed_per_s']:,.0f} pushed to {happened['connections']:,} connections\n"
        f"p50 / p99 in ms: ACK {ms('ack_ms')}, delivery {ms('delivery_ms')}, commit with fsync"
        f" {ms('commit_ms')}"
    )
