"""Medians of the runs, the JSON that comes out, and the table in it for people."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

TITLES = {
    "im_actors": "im_actors",
    "redis": "Redis ×3",
    "nats_default": "JetStream R3, default",
    "nats_sync": "JetStream R3, synced",
}

Result = dict[str, Any]
"""One run: figures of the generator, ``server_cpu_us_per_msg``, and ``fsync_us`` just before it."""


def summary(results: Iterable[Result]) -> dict[str, Any]:
    """The medians of a system's runs under one load; ``spread`` has the least and the most."""
    runs = list(results)
    picks: dict[str, Callable[[Result], float]] = {
        "msgs_per_s": lambda run: run["msgs_per_s"],
        "ack_ms_p50": lambda run: run["ack_ms"]["p50"],
        "ack_ms_p99": lambda run: run["ack_ms"]["p99"],
        "server_cpu_us_per_msg": lambda run: run["server_cpu_us_per_msg"],
        "generator_cpu_share": lambda run: run["generator_cpu_share"],
        "fsync_us": lambda run: run["fsync_us"],
    }
    values = {name: [pick(run) for run in runs] for name, pick in picks.items()}
    middle = {name: round(statistics.median(of), 3) for name, of in values.items()}
    return {
        "msgs_per_s": round(middle["msgs_per_s"]),
        "ack_ms": {"p50": middle["ack_ms_p50"], "p99": middle["ack_ms_p99"]},
        "server_cpu_us_per_msg": round(middle["server_cpu_us_per_msg"], 1),
        "generator_cpu_share": middle["generator_cpu_share"],
        "fsync_us": round(middle["fsync_us"], 1),
        "runs": len(runs),
        "spread": {name: [min(of), max(of)] for name, of in values.items()},
    }


def ratio(of: dict[str, Any], name: str) -> float | None:
    """im_actors' messages per second as a multiple of another system's under one load."""
    ours, theirs = of["systems"].get("im_actors"), of["systems"].get(name)
    if not ours or not theirs:
        return None
    return float(ours["msgs_per_s"] / theirs["msgs_per_s"])


def table(report: dict[str, Any]) -> str:
    """The comparison as a Markdown table, with the machine below it."""
    names = [n for n in TITLES if any(n in load["systems"] for load in report["loads"])]
    lines = [
        "| connections × window | " + " | ".join(TITLES[name] for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for load in report["loads"]:
        cells = [_cell(load, name) for name in names]
        lines.append(f"| {load['connections']}×{load['window']} | " + " | ".join(cells) + " |")
    lines += ["", _footnote(report), ""]
    lines += [f"- {TITLES[name]}: {report['acknowledged_means'][name]}" for name in names]
    return "\n".join(lines)


def _cell(load: dict[str, Any], name: str) -> str:
    of = load["systems"].get(name)
    if of is None:
        return "–"
    low, high = of["spread"]["msgs_per_s"]
    times = ratio(load, name) if name != "im_actors" else None
    return (
        f"{of['msgs_per_s']:,} ({low:,.0f} to {high:,.0f}){f' {times:.2f}×' if times else ''}"
        f"<br>{of['ack_ms']['p50']:.2f} / {of['ack_ms']['p99']:.2f} ms,"
        f" {of['server_cpu_us_per_msg']:.1f} µs"
    )


def _footnote(report: dict[str, Any]) -> str:
    machine, settings, fsync = report["machine"], report["settings"], report["fsync_us"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"Acknowledged messages per second: median (least to most) of {settings['runs']}"
        f" interleaved runs of {settings['seconds']:g} s; ×: im_actors' multiple of it. Below: ACK"
        f" latency p50 / p99, and CPU of all server processes per message."
        f" {settings['bytes']}-byte messages, {settings['sessions']:,} sessions; load generator on"
        f" the same {machine['cores']} cores ({machine['processor']}, {machine['memory_gib']} GiB,"
        f" {machine['system']}), Python {machine['python']}; an fsync takes"
        f" {fsync['p50']:.0f} µs (p50; p99 {fsync['p99']:.0f} µs). {versions}."
    )
