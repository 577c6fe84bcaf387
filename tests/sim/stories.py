"""The stories of all machines of a run, of former lives too, merged by time."""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.clock import EPOCH_MS

LINES_MAX = 120
Teller = Callable[..., list[str]]


class Stories:
    """Who can tell something: owners and replicas of slots, clients and gateways of messages."""

    def __init__(self) -> None:
        self._of_slots: list[tuple[str, Teller]] = []
        self._of_messages: list[tuple[str, Teller]] = []

    def add(self, name: str, story: Teller, of_slots: bool) -> None:
        (self._of_slots if of_slots else self._of_messages).append((name, story))

    def about(self, slot: int | None, message: tuple[str, int] | None) -> list[str]:
        """The last notes about a slot and about a message, (session, n)."""
        found: list[tuple[int, int, str]] = []
        told = [(name, story(slot)) for name, story in self._of_slots if slot is not None]
        told += [(name, story(*message)) for name, story in self._of_messages if message]
        for order, (name, lines) in enumerate(told):
            for line in lines:
                time_ms, _, rest = line.partition(" ")
                at_ms = int(time_ms) - EPOCH_MS
                found.append((at_ms, order, f"{at_ms:6} {name:14} {rest}"))
        found.sort(key=lambda entry: entry[:2])
        return [line for _, _, line in found[-LINES_MAX:]]
