"""How a long run goes, on standard error: people wonder, programs read standard output."""

from __future__ import annotations

from typing import TextIO

from im_actors.cli.bench.wire import micros

LONG_S = 5.0
"""Shorter runs are over before anybody wonders."""
EVERY_S = 2.0


class Telling:
    """Says every two seconds how far a run is that takes ``expected_s``."""

    def __init__(self, stream: TextIO, expected_s: float) -> None:
        self._stream = stream if expected_s >= LONG_S else None
        self._expected_s = expected_s
        self._begun = self._told = micros()
        self._before = 0

    def moved(self, acked: int, received: int) -> None:
        """All messages that were ACKed, and all events that were read."""
        now = micros()
        passed_s = (now - self._told) / 1e6
        if self._stream is None or passed_s < EVERY_S:
            return
        self._told = now
        if not acked:
            self._begun = now
            self.say("connecting and following")
            return
        rate = (acked - self._before) / passed_s
        self.say(
            f"{(now - self._begun) / 1e6:.0f} s of about {self._expected_s:.0f}: {acked:,} acked,"
            f" {rate:,.0f} msg/s, {received:,} read"
        )
        self._before = acked

    def say(self, text: str) -> None:
        if self._stream is not None:
            print(text, file=self._stream, flush=True)
