"""Runs: stretches of consecutive events of a session, as the index of history keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import msgpack

RUN_EVENTS_MAX = 256
"""A run with so many events is not made longer: one page of a session reads a few runs."""
_unpack = msgpack.unpackb


class Place(NamedTuple):
    """One event as the index knows it."""

    seq: int
    month: int
    lsn: int
    position: int
    device: str
    n: int
    checksum: int


class Run:
    """Consecutive events of a session in records of one month. ``parts``: lsn, sends, lsn, …"""

    __slots__ = ("first_seq", "last_seq", "month", "parts")

    def __init__(self, first_seq: int, last_seq: int, month: int, parts: list[Any]) -> None:
        self.first_seq = first_seq
        self.last_seq = last_seq
        self.month = month
        self.parts = parts

    def join(self, run: Run) -> bool:
        """Take in a run that goes on where this one ends; false when it does not, or is too far."""
        follows = run.first_seq == self.last_seq + 1 and run.month == self.month
        if not follows or run.first_seq - self.first_seq >= RUN_EVENTS_MAX:
            return False
        self.last_seq = run.last_seq
        self.parts += run.parts
        return True

    def sent(self) -> Iterator[tuple[int, list[Any]]]:
        """Of each record: its lsn and its unpacked sends (first seq, and four fields an event)."""
        fields = iter(self.parts)
        for lsn, sends in zip(fields, fields, strict=True):
            yield lsn, _unpack(sends)

    def last_n(self) -> dict[str, int]:
        """The last n of each device in it."""
        found: dict[str, int] = {}
        for _, flat in self.sent():
            found.update(zip(flat[2::4], flat[3::4], strict=True))
        return found

    def places(self) -> Iterator[Place]:
        """Its events, by ascending seq."""
        for lsn, flat in self.sent():
            seqs = count(flat[0])
            fields = zip(flat[1::4], flat[2::4], flat[3::4], flat[4::4], strict=True)
            for seq, sent in zip(seqs, fields, strict=False):
                yield Place(seq, self.month, lsn, *sent)

    def find(self, device: str, n: int) -> Place | None:
        """The device's send ``n``; if it is not here, the newest one before that."""
        found: Place | None = None
        for lsn, flat in self.sent():
            devices = flat[2::4]
            if device not in devices:
                continue
            for index, sender in enumerate(devices):
                position, _, sent_n, checksum = flat[1 + 4 * index : 5 + 4 * index]
                if sender == device and sent_n <= n:
                    seq = flat[0] + index
                    found = Place(seq, self.month, lsn, position, device, sent_n, checksum)
        return found

    def counters(
        self, after: int, last_n: dict[str, int], recent: dict[str, list[tuple[int, int]]]
    ) -> None:
        """Set each device's last n, and add (seq, checksum) of the events above ``after``."""
        for _, flat in self.sent():
            devices = flat[2::4]
            last_n.update(zip(devices, flat[3::4], strict=True))
            if flat[0] + len(devices) - 1 > after:
                for device, sent in zip(devices, zip(count(flat[0]), flat[4::4]), strict=True):
                    recent.setdefault(device, []).append(sent)
