"""Rows whose slot does not serve at the moment: what waits, what was offered again, and when.

A slot is held from the first row that could not be settled until none is left:

    (not held) ── row comes back, or its shard is gone ──▶ WAITING ◀─────────────┐
                                                             │ offered again     │ comes back, or
                                                             ▼                   │ no answer
                                                          OFFERED ───────────────┘
                                                             │ the shard settles a row
                                                             ▼
                                                          FLOWING ── all settled ──▶ (not held)

Until the shard has settled one of the rows that were offered again, new rows queue behind them:
overtaking them would earn them OUT_OF_ORDER. From then on the shard serves, and as frames to one
shard keep their order, everything may follow at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

Row = tuple[int, int, str, str, int, int, bytes]
"""A row of SUBMIT: token, slot, session, device address, n, kind, body."""


class Sender(Protocol):
    """What the router knows of a client connection."""

    address: str
    """The device address."""
    outstanding: int
    """Rows without an answer."""
    ack_rows: list[tuple[Any, ...]]
    nack_rows: list[tuple[Any, ...]]

    def flush_answers(self) -> None:
        """Send what has gathered in the two lists."""


class HeldRow(NamedTuple):
    sender: Sender
    row: Row
    since_ms: int
    """When it could not be settled for the first time."""


class HeldSlot:
    """The held rows of one slot."""

    __slots__ = (
        "_delay_ms",
        "_handed",
        "_keys",
        "flowing",
        "offered",
        "offered_at_ms",
        "slot",
        "try_at_ms",
        "waiting",
    )

    def __init__(self, slot: int, delay_ms: int, now_ms: int) -> None:
        self.slot = slot
        self.waiting: dict[int, HeldRow] = {}
        """By token."""
        self.offered: dict[int, HeldRow] = {}
        """Sent again, and not answered since."""
        self.offered_at_ms = 0
        self.flowing = False
        self._delay_ms = delay_ms
        self.try_at_ms = now_ms + delay_ms
        """When to offer some again, if nothing happens before."""
        self._keys: set[tuple[str, str, int]] = set()
        self._handed: set[int] = set()

    def __len__(self) -> int:
        return len(self.waiting) + len(self.offered)

    def hold(self, held: HeldRow, handed: bool) -> None:
        """``handed``: a shard may have seen it."""
        row = held.row
        token = row[0]
        self.waiting[token] = held
        self._keys.add((row[2], row[3], row[4]))
        if handed:
            self._handed.add(token)

    def take(self, token: int) -> HeldRow | None:
        """Remove a row, wherever it is."""
        held = self.offered.pop(token, None) or self.waiting.pop(token, None)
        if held is not None:
            row = held.row
            self._keys.discard((row[2], row[3], row[4]))
            self._handed.discard(token)
        return held

    def was_handed(self, token: int) -> bool:
        """Whether any shard may have seen the row."""
        return token in self._handed

    def holds(self, session: str, device: str, n: int) -> bool:
        """Whether this message is among the rows here."""
        return (session, device, n) in self._keys

    def came_back(self, token: int) -> None:
        """The shard does not serve, so it is no use to send more at the moment."""
        held = self.offered.pop(token, None)
        if held is not None:
            self.waiting[token] = held
        self.flowing = False

    def all_back(self) -> None:
        """What was offered is not going to be answered."""
        self.waiting.update(self.offered)
        self.offered.clear()
        self.flowing = False

    def offer(self, count: int, now_ms: int) -> list[Row]:
        """The next ``count`` rows, in the order in which they came; they count as offered."""
        tokens = sorted(self.waiting)[:count]
        rows = []
        for token in tokens:
            held = self.offered[token] = self.waiting.pop(token)
            rows.append(held.row)
        self._handed.update(tokens)
        self.offered_at_ms = now_ms
        return rows

    def start_over(self, delay_ms: int) -> None:
        """Let the wait after the next offer be so short again."""
        self._delay_ms = delay_ms // 2

    def back_off(self, delay_ms_max: int, now_ms: int) -> None:
        self._delay_ms = min(2 * self._delay_ms, delay_ms_max)
        self.try_at_ms = now_ms + self._delay_ms
