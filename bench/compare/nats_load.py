"""Loads a JetStream stream: ``python -m bench.compare.nats_load``, as a generator."""

from __future__ import annotations

import itertools
import re
import sys
from typing import Any

from bench.compare.peers import PeerGenerator, PeerSender
from im_actors.cli.bench.generator import main

STREAM = "bench"
CONNECT = (
    b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,'
    b'"protocol":1,"lang":"python","version":"0","name":"bench"}\r\n'
)
_acknowledgements = re.compile(
    rb'MSG _INBOX\.[^. ]+\.(\d+) 1 +\d+\r\n\{"stream":"bench", ?"seq":\d+\}\r\n'
).finditer
"""Without ``error`` and without ``duplicate``."""


class NatsSender(PeerSender):
    """Publishes with a message id and an inbox; every acknowledgement comes by itself."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._inbox = b"_INBOX.%b." % self.device.replace(b".", b"_")
        self._tokens = itertools.count(1)
        self._sent_at: dict[bytes, int] = {}

    def greet(self) -> None:
        self.write(CONNECT + b"SUB %b* 1\r\nPING\r\n" % self._inbox)

    def take(self, data: bytes) -> list[int]:
        sent_at: list[int] = []
        append, pop = sent_at.append, self._sent_at.pop
        used = 0
        for found in _acknowledgements(data):
            if found.start() != used:
                self._others(data[used : found.start()])
            append(pop(found[1]))
            used = found.end()
        self._pending = self._others(data[used:])
        return sent_at

    def _others(self, data: bytes) -> bytes:
        """What is no acknowledgement; the start of one is left."""
        while not data.startswith(b"MSG ") and (end := data.find(b"\r\n") + 2) > 1:
            line, data = data[:end], data[end:]
            if line.startswith(b"PING"):
                self.write(b"PONG\r\n")
            elif line.startswith(b"PONG"):
                self.welcomed()
            elif not line.startswith(b"INFO "):
                self.run.problem(f"NATS answered {line!r}")
        if data.count(b"\r\n") > 1:
            self.run.problem(f"NATS answered {data[:200]!r}")
        return data

    def write_messages(self, keys: list[tuple[bytes, bytes]], body: bytes, at: int) -> None:
        tokens, inbox, sent_at = self._tokens, self._inbox, self._sent_at
        size = len(body)
        parts = []
        for session, key in keys:
            token = b"%d" % next(tokens)
            sent_at[token] = at
            head = b"NATS/1.0\r\nNats-Msg-Id:%b\r\n\r\n" % key
            parts.append(
                b"HPUB %b.%b %b%b %d %d\r\n%b%b\r\n"
                % (b"bench", session, inbox, token, len(head), len(head) + size, head, body)
            )
        self.write(b"".join(parts))


class NatsGenerator(PeerGenerator):
    sender = NatsSender


if __name__ == "__main__":
    sys.exit(main(NatsGenerator))
