"""How long answers and deliveries take, of a few: one send and one push in each tick is followed.

So the hot path pays for a look at a flag, and who is slow is counted as often as who is quick: a
new one is begun whether or not those before have ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from im_actors.core.histogram import Histogram
from im_actors.core.model import decode_event

FOLLOWED_MAX = 1_000
"""Sends that are followed at a time: more than there are ticks while one may be held."""


class Latencies:
    """Of one gateway, in seconds."""

    def __init__(self) -> None:
        self.ack = Histogram()
        """From a send's arrival here to its answer, whatever it was."""
        self.delivery = Histogram()
        """From an event's getting its number to its being pushed. By two hosts' clocks."""
        self.send_due = self.push_due = True
        self.followed: dict[int, int] = {}
        """By token of a send: when it came, in ms."""

    def tick(self) -> None:
        self.send_due = self.push_due = True

    def sent(self, token: int, now_ms: int) -> None:
        """A send is on its way; call it only when ``send_due``."""
        self.send_due = False
        if len(self.followed) < FOLLOWED_MAX:
            self.followed[token] = now_ms

    def answered(self, is_open: Callable[[int], bool], now_ms: int) -> None:
        """Some sends were answered; which of them are not, ``is_open`` says."""
        for token in [token for token in self.followed if not is_open(token)]:
            self.ack.observe((now_ms - self.followed.pop(token)) / 1000)

    def pushed(self, event: bytes, wall_ms: int) -> None:
        """An encoded event is pushed; call it only when ``push_due``."""
        self.push_due = False
        self.delivery.observe(max(0, wall_ms - decode_event(event).time_ms) / 1000)

    def status(self) -> dict[str, Any]:
        return {"ack": self.ack.to_dict(), "delivery": self.delivery.to_dict()}
