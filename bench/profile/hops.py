"""Packets become the hops of an ACK.

Only one message is on its way at a time, so each packet belongs to the message before it::

    client ─send─▶ gateway ─submit─▶ shard ─append─▶ replicas
    client ◀─ack── gateway ◀─result─ shard ◀─answer─┘

A packet with a message in it is at least as large as the message; beside them there are heartbeats
and commit points, which are smaller.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from bench.profile.capture import Packet

COPIES = 3

HOPS = {
    "gateway_takes": "the gateway has the send; a shard gets it",
    "shard_appends": "the shard has it; the first replica gets the record",
    "replicas_first": "until the first replica has answered",
    "replicas_last": "from then until the last one has",
    "shard_commits": "the shard has all answers; the gateway gets the result",
    "gateway_acks": "the gateway has the result; the client gets the ACK",
    "total": "all of these, from the send to the ACK",
    "shard_fans_out": "beside them: from the first to the last replica's record",
    "one_replica": "beside them: from a replica's record to its answer, all three",
}
"""What each hop is, in the order of time; those up to ``total`` follow on each other."""


@dataclass(slots=True)
class _Journey:
    """One message, as far as it has come."""

    client_port: int
    send_us: float
    submit_us: float = 0.0
    appends_us: dict[str, float] = field(default_factory=dict)
    answers_us: dict[str, float] = field(default_factory=dict)
    result_us: float = 0.0

    def hops(self, ack_us: float) -> dict[str, list[float]]:
        first_append, last_append = min(self.appends_us.values()), max(self.appends_us.values())
        first_answer, last_answer = min(self.answers_us.values()), max(self.answers_us.values())
        return {
            "gateway_takes": [self.submit_us - self.send_us],
            "shard_appends": [first_append - self.submit_us],
            "replicas_first": [first_answer - first_append],
            "replicas_last": [last_answer - first_answer],
            "shard_commits": [self.result_us - last_answer],
            "gateway_acks": [ack_us - self.result_us],
            "total": [ack_us - self.send_us],
            "shard_fans_out": [last_append - first_append],
            "one_replica": [at - self.appends_us[name] for name, at in self.answers_us.items()],
        }


def measure(packets: Iterable[Packet], message_bytes: int) -> dict[str, list[float]]:
    """Microseconds of each hop of each message that was seen from its send to its ACK."""
    found: dict[str, list[float]] = {hop: [] for hop in HOPS}
    journey: _Journey | None = None
    for packet in packets:
        way = packet.source.kind, packet.target.kind
        if way == ("client", "gateway") and packet.size >= message_bytes:
            # One that has not ended lost a packet to the capture, and does not count.
            journey = _Journey(packet.source_port, packet.at_us)
        elif journey is not None and _goes_on(journey, packet, way, message_bytes):
            for hop, values in journey.hops(packet.at_us).items():
                found[hop] += values
            journey = None
    return found


def _goes_on(journey: _Journey, packet: Packet, way: tuple[str, str], message_bytes: int) -> bool:
    """Note the packet if it is the message's next one; True when it is its ACK."""
    whole = packet.size >= message_bytes
    if way == ("gateway", "shard") and whole and not journey.submit_us:
        journey.submit_us = packet.at_us
    elif way == ("shard", "replica") and whole and journey.submit_us:
        journey.appends_us.setdefault(packet.target.name, packet.at_us)
    elif way == ("replica", "shard") and packet.source.name in journey.appends_us:
        journey.answers_us.setdefault(packet.source.name, packet.at_us)
    elif way == ("shard", "gateway") and len(journey.answers_us) == COPIES:
        # The first of them: the result comes before the event's push.
        journey.result_us = journey.result_us or packet.at_us
    elif way == ("gateway", "client") and journey.result_us:
        return packet.target_port == journey.client_port
    return False


def summary(hops: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """p50 and p90 of each hop; empty when no message was seen as a whole."""
    return {
        hop: {"p50": round(statistics.median(values), 1), "p90": round(_p90(values), 1)}
        for hop, values in hops.items()
        if values
    }


def _p90(values: list[float]) -> float:
    return sorted(values)[len(values) * 9 // 10]
