"""The result of a run, for programs and for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from im_actors.cli.bench.latencies import Latencies
from im_actors.cli.bench.plan import Load
from im_actors.cli.bench.processes import Figures, Outcome

Curves = dict[str, Latencies]
"""What a plot shows, by name."""
BUSY = 0.9
"""A generator that takes more of a core than this may be what limits the figures."""
LATE_MS = 5.0
"""So is one that sends half of its messages later than this after they were due."""
PROBLEMS_SHOWN = 10


def measured(figures: Figures) -> dict[str, Any]:
    """What one phase gave."""
    acked = max(1, figures.acked)
    return {
        "msgs_per_s": round(figures.msgs_per_s, 1),
        "delivered_per_s": round(figures.received / figures.elapsed_s, 1),
        "ack_ms": figures.ack.summary(),
        "delivery_ms": figures.delivery.summary(),
        "generator_late_ms": figures.late.summary(),
        "generator_cpu": figures.generator_cpu,
        "generator_busy": busy(figures),
        "generator_us_per_msg": round(figures.generator_us / acked, 2),
        "server_cpu": server_cpu(figures),
    }


def busy(figures: Figures) -> bool:
    """Whether a generator took all of a core, or got too little of one to be on time."""
    late = figures.late.summary()
    return max(figures.generator_cpu) > BUSY or (late is not None and late["p50"] > LATE_MS)


def server_cpu(figures: Figures) -> dict[str, Any] | None:
    """Microseconds of CPU of all server processes per acknowledged message, and of each kind."""
    if figures.server_cpu is None or not figures.acked:
        return None
    kinds = {kind: round(us / figures.acked, 2) for kind, us in figures.server_cpu.items()}
    total = sum(figures.server_cpu.values())
    return {
        "us_per_msg": round(total / figures.acked, 2),
        "us_per_delivery": round(total / figures.received, 2) if figures.received else None,
        "by_kind": dict(sorted(kinds.items())),
    }


def described(load: Load) -> dict[str, Any]:
    """The load, as far as it does not change from phase to phase."""
    return {
        "connections": load.connections,
        "processes": load.processes,
        "bytes": load.bytes,
        "sessions": load.sessions,
        "distribution": "uniform" if load.zipf is None else "zipf",
        "zipf": load.zipf,
        "followers": load.followers,
        "gateways": len(load.addresses),
    }


def checked(outcome: Outcome) -> dict[str, Any]:
    """What the ledger says."""
    return {
        "ledger": outcome.ledger.to_json(),
        "pulled": outcome.pulled,
        "reconnects": outcome.reconnects,
        "problems": outcome.problems,
        "void": not outcome.sound,
    }


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    yield headline(report)
    yield from figure_lines(report)
    if report.get("with_slow_readers"):
        yield f"while {report['slow_readers']:,} of the followers do not read, the others:"
        yield from figure_lines(report["with_slow_readers"])
    if report["mode"] == "overload":
        yield from overload_lines(report)
    yield from ledger_lines(report)
    fsync = report["fsync_us"]
    yield (
        f"  machine       {report['machine']['cores']} cores, {report['machine']['processor']},"
        f" fsync p50 {fsync['p50']:.0f} µs, p99 {fsync['p99']:.0f} µs"
    )


def headline(report: dict[str, Any]) -> str:
    if report["rate"] is None:
        how = f"closed loop, {report['connections']} connections × {report['window']}"
    else:
        how = f"open loop, {report['rate']:,.0f} msg/s on {report['connections']} connections"
    spread = "" if report["zipf"] is None else f", Zipf {report['zipf']}"
    where = ", ".join(f"{n:,} at {name}" for name, n in report.get("followers_at", {}).items())
    return (
        f"{how}, {report['bytes']} bytes, {report['sessions']:,} sessions{spread},"
        f" {report['followers']:,} followers a session{where and f' ({where})'},"
        f" {report['seconds']:g} s"
    )


def figure_lines(figures: dict[str, Any]) -> Iterator[str]:
    yield f"  acknowledged  {figures['msgs_per_s']:>12,.0f} msg/s"
    if figures["delivery_ms"] is not None:
        yield f"  delivered     {figures['delivered_per_s']:>12,.0f} events/s"
    yield f"  {'ms':<12}" + "".join(f"{name:>10}" for name in ("p50", "p90", "p99", "p99.9", "max"))
    for title, name in (
        ("ack", "ack_ms"), ("delivery", "delivery_ms"), ("sent late by", "generator_late_ms"),
    ):  # fmt: skip
        if figures[name] is not None:
            yield f"  {title:<12}" + "".join(f"{ms:>10,.2f}" for ms in figures[name].values())
    yield from cpu_lines(figures)


def overload_lines(report: dict[str, Any]) -> Iterator[str]:
    best, settled_s = report["best_msgs_per_s"], report["settled_s"]
    yield (
        f"  of the best   {report['share_of_best']:>12.1%} of {best:,.0f} msg/s;"
        f" all of it was ACKed {settled_s:,.1f} s after the end"
    )
    if report["best_server_cpu"] is not None:
        best_us = report["best_server_cpu"]["us_per_msg"]
        yield f"  server CPU    {best_us:>12.1f} µs per message at the best"
    calm = report["calm_ack_ms"]
    if calm["before"] and calm["after"]:
        yield (
            f"  ack p50, p99  {calm['before']['p50']:.2f}, {calm['before']['p99']:.2f} ms before,"
            f" {calm['after']['p50']:.2f}, {calm['after']['p99']:.2f} ms after, at a low rate"
        )
    refused = ", ".join(f"{count:,} of code {code}" for code, count in report["refused"].items())
    otherwise, without_wait = report["refused_otherwise"], report["refused_without_wait"]
    yield (
        f"  refused       {refused or 'nothing'}; {sum(otherwise.values()):,} with another code,"
        f" {without_wait:,} without a time to wait"
    )
    rss = report["rss_bytes"]
    for kind in rss["max"] if rss else ():
        sizes = (rss[when].get(kind, 0) / 2**20 for when in ("before", "max", "after"))
        before, most, after = (f"{size:,.0f}" for size in sizes)
        yield f"  {kind:<13} {before:>12} MiB before, {most} at most, {after} after"


def cpu_lines(report: dict[str, Any]) -> Iterator[str]:
    cpu = report["server_cpu"]
    if cpu is not None:
        parts = ", ".join(f"{kind} {us:.1f}" for kind, us in cpu["by_kind"].items())
        yield f"  server CPU    {cpu['us_per_msg']:>12.1f} µs per message: {parts}"
    shares = ", ".join(f"{share:.2f}" for share in report["generator_cpu"])
    generator_us = report["generator_us_per_msg"]
    yield f"  generator     {generator_us:>12.1f} µs per message, {shares} of a core"
    if report["generator_busy"]:
        yield "  the generator, or this machine, may be what limits these figures"


def ledger_lines(report: dict[str, Any]) -> Iterator[str]:
    counts = ", ".join(f"{name} {count:,}" for name, count in report["ledger"].items())
    yield f"  ledger        {'VOID: ' if report['void'] else 'sound: '}{counts}"
    if report["pulled"] or report["reconnects"]:
        yield (
            f"  followers     pulled {report['pulled']:,} events,"
            f" reconnected {report['reconnects']:,} times"
        )
    for problem in report["problems"][:PROBLEMS_SHOWN]:
        yield f"    {problem}"
