"""The packets of the loopback device, with the kernel's timestamps.

A packet on loopback is at its receiver's socket when it is stamped. The time until the receiver
sends something on is its own: waking up, work, the write.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bench.profile.ports import CLIENT, Owner

DEVICE = "lo"
IPV4 = 0x0800
TCP = 6
SO_TIMESTAMPNS = 35
SO_RCVBUFFORCE = 33
"""Of Linux; the socket module does not have them."""
SNAP_BYTES = 128
"""Enough for the headers, which say how long the rest is."""
BUFFER_BYTES = 32 * 1024 * 1024
POLL_S = 0.1


class NoCapture(Exception):
    """Packets cannot be captured here; the text says why."""


class Captured(NamedTuple):
    """The beginning of an IP packet, and when it came."""

    at_us: float
    data: bytes


class Packet(NamedTuple):
    """A TCP segment that carries something."""

    at_us: float
    source: Owner
    target: Owner
    source_port: int
    target_port: int
    size: int
    """Bytes that it carries."""


def open_capture() -> socket.socket:
    """A socket that sees what goes over the loopback device. NoCapture where that is impossible or
    forbidden."""
    if not hasattr(socket, "AF_PACKET"):
        raise NoCapture("this system has no packet sockets, so the hops are left out")
    try:
        found = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(IPV4))
    except PermissionError:
        raise NoCapture(
            "the hops are left out: to capture packets it takes root or CAP_NET_RAW"
        ) from None
    found.bind((DEVICE, 0))
    # The usual limit of a buffer is a few milliseconds of packets.
    for option in (socket.SO_RCVBUF, SO_RCVBUFFORCE):
        with contextlib.suppress(PermissionError):
            found.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    found.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    found.settimeout(POLL_S)
    return found


def capture(packets: socket.socket, seconds: float) -> list[Captured]:
    """What comes within ``seconds``, or waits already. Only kept: it is read when nothing is
    measured any more."""
    found: list[Captured] = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            data, more, _, address = packets.recvmsg(SNAP_BYTES, 64)
        except TimeoutError:
            continue
        if address[2] != socket.PACKET_OUTGOING:
            found.append(Captured(_stamp_us(more), data))
    return found


def _stamp_us(more: Iterable[tuple[int, int, bytes]]) -> float:
    for level, kind, data in more:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", data[:16])
            return float(seconds * 1e6 + nanoseconds / 1e3)
    return time.time() * 1e6


def read_packets(captured: Iterable[Captured], ports: Mapping[int, Owner]) -> list[Packet]:
    """The segments between actors, or an actor and a client, in the order in which they came."""
    found = []
    for at_us, data in captured:
        segment = _segment(data)
        if segment is None:
            continue
        source_port, target_port, size = segment
        source, target = ports.get(source_port, CLIENT), ports.get(target_port, CLIENT)
        if size > 0 and not source is target is CLIENT:
            found.append(Packet(at_us, source, target, source_port, target_port, size))
    return found


def _segment(data: bytes) -> tuple[int, int, int] | None:
    """Ports and payload size of an IPv4 packet; None when it is no TCP or cut short."""
    if len(data) < 40 or data[0] >> 4 != 4 or data[9] != TCP:
        return None
    header = (data[0] & 15) * 4
    total = int.from_bytes(data[2:4], "big")
    if len(data) < header + 20:
        return None
    ports: tuple[Any, ...] = struct.unpack_from(">HH", data, header)
    return ports[0], ports[1], total - header - (data[header + 12] >> 4) * 4
