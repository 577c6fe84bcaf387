"""Whose turn it is: how many rows each line of business has in flight, and what waits for more.

The queue that a rush makes has to stand somewhere. Behind the shards' doors it would stand in
everybody's way; here it stands apart, one for each line, and other lines go past it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from im_actors.core.lines import Line, Lines, LineSettings, weight_of
from im_actors.gateway.held import Sender


class Waiting(NamedTuple):
    """A row that no shard has seen."""

    sender: Sender
    slot: int
    line: int
    entry: Sequence[Any]
    """session, n, kind, body."""
    came_ms: int


class Turns:
    """Rows in flight by line, in ``lines.open``, and the queues before them. Held rows are in
    neither: a slot without an owner must not take its line's turns from the others."""

    def __init__(self, settings: LineSettings, most: int) -> None:
        self.lines = Lines(settings, most, min(settings.rows, most))
        self.queues: list[deque[Waiting]] = [deque() for _ in Line]
        self.waiting = 0
        """In all queues."""

    def wait(self, row: Waiting) -> None:
        self.queues[row.line].append(row)
        self.waiting += 1

    def due(self, now_ms: int) -> Iterator[Waiting]:
        """What may go now, in order. Who takes it counts it in ``lines.open`` if it flies."""
        limits, rows = self.lines.limits(now_ms), self.lines.open
        for line, queue in enumerate(self.queues):
            while queue:
                weight = weight_of(queue[0].entry[3])
                # A row that is heavier than its line's share goes alone.
                if rows[line] and rows[line] + weight > limits[line]:
                    break
                self.waiting -= 1
                yield queue.popleft()

    def landed(self, line: int, body: bytes) -> None:
        """A row is not in flight any more."""
        self.lines.open[line] -= weight_of(body)

    def status(self) -> dict[str, dict[str, int]]:
        """Rows by line, for people."""
        return {
            line.name.lower(): {
                "in_flight": self.lines.open[line],
                "waiting": len(self.queues[line]),
            }
            for line in Line
        }
