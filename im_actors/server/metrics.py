"""What Prometheus gets to know: a table from the status of an actor to metrics.

There is one account of what an actor does, its status. A metric names a place in it. Names follow
the conventions of Prometheus: base units, units last, ``_total`` for what only grows.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple

PREFIX = "im_actors_"
MS = 0.001
"""Milliseconds as seconds."""


class MetricKind(StrEnum):
    COUNTER = "counter"
    """Only grows, and starts at 0 with the process."""
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """``path`` leads through the status; where it has a "*", each key is told by itself, under
    ``label``. A list or an object at its end counts as many as it has."""

    name: str
    kind: MetricKind
    path: str
    description: str
    label: str = ""
    scale: float = 1.0


class Sample(NamedTuple):
    """``value`` of a histogram is (bounds, counts, sums), as ``core.histogram`` keeps them."""

    metric: Metric
    name: str
    labels: tuple[tuple[str, str], ...]
    value: Any


_C, _G, _H = MetricKind

SHARD = (
    Metric("messages_acked_total", _C, "acked", "Messages that were answered with an ACK"),
    Metric("slots_serving", _G, "serving", "Slots that this shard serves"),
    Metric("slots_working", _G, "working", "Slots whose takeover is under way or waits"),
    Metric("sessions_loaded", _G, "sessions", "Sessions whose state is in memory"),
    Metric("sessions_watched", _G, "watched_sessions", "Sessions that gateways have followed"),
    Metric("notes_waiting", _G, "notes_waiting", "Notes for mailboxes that are not answered"),
    Metric("notes_told_total", _C, "notes_told", "Notes that were answered"),
    Metric("notes_delay_seconds", _G, "notes_delay_ms", "Age of the oldest note", scale=MS),
    Metric("batches_active", _G, "batches_active", "Batch messages that are being sent"),
)
REPLICA = (
    Metric("slots_held", _G, "slots", "Slots of which this replica has a log"),
    Metric("slots_incomplete", _G, "incomplete_slots", "Slots whose older history is missing here"),
    Metric("apply_lag_records", _G, "apply_lag_records", "Committed and not in history yet"),
    Metric("records_total", _C, "records", "Records written to the journal"),
    Metric(
        "commit_seconds",
        _H,
        "journal_commit",
        "One transaction with its fsync, of samples",
    ),
    Metric("disk_free_bytes", _G, "free_bytes", "Room on the disk of the data directory"),
)
GATEWAY = (
    Metric("connections", _G, "connections", "Clients that are connected"),
    Metric("users", _G, "users", "Users with a connection"),
    Metric("sends_accepted_total", _C, "accepted", "Sends taken from clients"),
    Metric("sends_acked_total", _C, "acked", "Sends answered with an ACK"),
    Metric("sends_nacked_total", _C, "nacked", "Sends refused, of whatever reason"),
    Metric("sends_offered_again_total", _C, "offered_again", "Sends that shards were asked again"),
    Metric("sends_outstanding", _G, "outstanding", "Sends without an answer"),
    Metric("sends_outstanding_bytes", _G, "outstanding_bytes", "Their bodies"),
    Metric("sends_held", _G, "held.*", "Sends that wait for the slot's owner", label="slot"),
    Metric("ack_seconds", _H, "ack", "From a send's arrival to its answer, of samples"),
    Metric("delivery_seconds", _H, "delivery", "From an event's number to its push, of samples"),
    Metric("sessions_followed", _G, "sessions_followed", "Sessions that connections follow"),
    Metric("events_pushed_total", _C, "pushed", "Events pushed, for each connection"),
    Metric("pushes_dropped_total", _C, "pushes_dropped", "The same, of slow readers"),
    Metric("slow_readers", _G, "slow_readers", "Connections that are behind"),
    Metric("pulls_total", _C, "pulls_answered", "Pages of history sent"),
    Metric("pulls_failed_total", _C, "pulls_failed", "Pages that could not be read"),
    Metric("queries_total", _C, "queries_answered", "Queries of the user side answered"),
    Metric("queries_failed_total", _C, "queries_failed", "Those that could not be answered"),
    Metric("violations_total", _C, "violations", "Connections that broke the protocol"),
    Metric("mailbox_hits_total", _C, "mailboxes.memory_hits", "Lists answered from memory"),
    Metric("mailbox_misses_total", _C, "mailboxes.memory_misses", "Lists that were loaded"),
    Metric(
        "mailbox_update_delay_seconds", _G, "mailboxes.update_delay_ms",
        "From a change's commit to its being in a tier", scale=MS,
    ),
    Metric(
        "mailbox_tier_hits_total", _C, "mailboxes.tiers.*.hits",
        "Answers of a tier that were used", label="tier",
    ),
    Metric(
        "mailbox_tier_misses_total", _C, "mailboxes.tiers.*.misses",
        "A tier did not have it", label="tier",
    ),
    Metric(
        "mailbox_tier_failures_total", _C, "mailboxes.tiers.*.failed",
        "Errors of a tier", label="tier",
    ),
    Metric(
        "mailbox_tier_hedges_total", _C, "mailboxes.tiers.*.hedges_started",
        "It was asked because the one before was slow", label="tier",
    ),
)  # fmt: skip
CONTROLLER = (
    Metric("slots", _G, "slot_states.*", "Slots by state", label="state"),
    Metric("view_changes_total", _C, "view_changes", "Views that became active"),
    Metric("actors_missing", _G, "missing", "Actors that should run and do not"),
    Metric("actor_starts_total", _C, "starts.*", "Starts of actors", label="started"),
    Metric("slots_degraded", _G, "degraded_placement", "Slots with two copies on one host"),
)
TABLES = {"shard": SHARD, "replica": REPLICA, "gateway": GATEWAY, "controller": CONTROLLER}


def collect(kind: str, status: dict[str, Any]) -> Iterator[Sample]:
    """The samples of one actor; what its status does not have is left out."""
    for metric in TABLES[kind]:
        for key, value in _found(status, metric.path.split(".")):
            labels = ((metric.label, key),) if metric.label else ()
            if metric.kind is MetricKind.HISTOGRAM:
                value = (tuple(value["bounds"]), value["counts"], value["sums"])
            else:
                value = metric.scale * (len(value) if isinstance(value, (list, dict)) else value)
            yield Sample(metric, full_name(kind, metric), labels, value)


def full_name(kind: str, metric: Metric) -> str:
    return f"{PREFIX}{kind}_{metric.name}"


def _found(status: Any, path: list[str], key: str = "") -> Iterator[tuple[str, Any]]:
    if not path:
        yield key, status
    elif path[0] == "*":
        for name, value in status.items():
            yield from _found(value, path[1:], str(name))
    elif path[0] in status:
        yield from _found(status[path[0]], path[1:], key)
