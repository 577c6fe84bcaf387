"""The tables, for people and for bench/README.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.profile.hops import HOPS
from bench.profile.threads import NAMED, OTHERS

KINDS = ("gateway", "shard", "replica", "controller", "ray")
"""In the order of a message's way."""
COLUMNS = (*NAMED, OTHERS)
SAMPLES_MIN = 100
"""From fewer than this the shares of a thread's stages are hardly known."""


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """To hundredths, the largest first."""
    ordered = sorted(values.items(), key=lambda item: -item[1])
    return {name: round(value, 2) for name, value in ordered}


def lines(report: dict[str, Any]) -> Iterator[str]:
    """All tables, in Markdown."""
    yield from _load_lines(report)
    yield ""
    yield from _cpu_lines(report["cpu_us_per_msg"])
    for kind in KINDS:
        if kind in report["stages"]:
            yield ""
            yield from _stage_lines(kind, report["stages"][kind], report["samples"][kind])
    if report["hops_us"]:
        yield ""
        yield from _hop_lines(report["hops_us"], report["low_load"])


def _load_lines(report: dict[str, Any]) -> Iterator[str]:
    machine, full, fsync = report["machine"], report["full_load"], report["fsync_us"]
    yield (
        f"{full['connections']}×{full['window']}, {full['bytes']}-byte messages,"
        f" {full['sessions']:,} sessions, one follower each: {full['msgs_per_s']:,.0f} msg/s."
        f" {machine['cores']} cores ({machine['processor']}, {machine['memory_gib']} GiB,"
        f" {machine['system']}), Python {machine['python']}; an fsync takes"
        f" {fsync['p50']:.0f} µs (p50; p99 {fsync['p99']:.0f} µs)."
    )


def _cpu_lines(cpu: dict[str, Any]) -> Iterator[str]:
    yield "| CPU µs a message | all | " + " | ".join(COLUMNS) + " |"
    yield "|---|---|" + "---|" * len(COLUMNS)
    for kind in KINDS:
        if kind in cpu["by_kind"]:
            threads = cpu["by_thread"].get(kind, {})
            cells = [_cell(threads.get(name)) for name in COLUMNS]
            yield f"| {kind} | {cpu['by_kind'][kind]:.2f} | " + " | ".join(cells) + " |"
    blank = " | ".join("" for _ in COLUMNS)
    yield f"| all servers | {cpu['total']:.2f} | {blank} |"
    yield f"| load generator | {cpu['generator']:.2f} | {blank} |"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _stage_lines(kind: str, stages: dict[str, float], samples: dict[str, int]) -> Iterator[str]:
    total = sum(stages.values()) or 1.0
    yield f"| {kind}: stage | CPU µs a message | share |"
    yield "|---|---|---|"
    for stage, value in stages.items():
        yield f"| {stage} | {value:.2f} | {value / total:.0%} |"
    yield ""
    counts = [
        f"{thread} {count}{' (few)' if count < SAMPLES_MIN else ''}"
        for thread, count in samples.items()
    ]
    yield f"Samples at work: {', '.join(counts) or 'none'}."


def _hop_lines(hops: dict[str, dict[str, float]], low: dict[str, Any]) -> Iterator[str]:
    yield (
        f"1×1: {low['msgs_per_s']:,.0f} msg/s; the client measures"
        f" {low['ack_ms']['p50'] * 1000:.0f} µs to its ACK (p50). {low['seen']:,} messages were"
        " followed on their way:"
    )
    yield ""
    yield "| hop | what it is | p50 µs | p90 µs |"
    yield "|---|---|---|---|"
    for hop, what in HOPS.items():
        if hop in hops:
            yield f"| {hop} | {what} | {hops[hop]['p50']:.0f} | {hops[hop]['p90']:.0f} |"
