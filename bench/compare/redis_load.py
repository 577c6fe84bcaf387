"""Loads a Redis master: ``python -m bench.compare.redis_load``, as a generator."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

from bench.compare.peers import PeerGenerator, PeerSender
from im_actors.cli.bench.generator import main

SCRIPT = """
local ids = {}
for i = 1, #ARGV do
    ids[i] = redis.call('SET', KEYS[2 * i - 1], '', 'NX')
        and redis.call('XADD', KEYS[2 * i], '*', 'm', ARGV[i])
end
return ids
"""
"""Some messages: the id of each one's entry, nil when its key is known. In a script because what is
added depends on the answer to SET: a transaction could not leave the XADD out."""
WAIT = b"*3\r\n$4\r\nWAIT\r\n$1\r\n2\r\n$1\r\n0\r\n"


class RedisSender(PeerSender):
    """One script call for everything that is free, and one WAIT behind it. Redis reads nothing else
    of this connection while it waits, so a WAIT covers the whole of its batch. Measured against one
    call for each message it is up to a fifth faster; two halves of a window in turn are slower."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._batches: deque[tuple[int, int]] = deque()
        self._lines: list[bytes] = []
        self._call = b""

    def greet(self) -> None:
        self.write(words(b"SCRIPT", b"LOAD", SCRIPT.encode()))

    def take(self, data: bytes) -> list[int]:
        lines = data.split(b"\r\n")
        self._pending = lines.pop()
        pending = self._lines
        pending += lines
        if b"$-1" in lines or (pending and pending[0].startswith(b"-")):
            self.run.problem(f"Redis answered {pending[:5]}")
            return []
        if not self._call and len(pending) >= 2:
            self._call = bulk(b"EVALSHA") + bulk(pending[1])
            pending.clear()
            self.welcomed()
        return self._taken(pending)

    def _taken(self, pending: list[bytes]) -> list[int]:
        """An answer is the line of an array, two lines for each id, and one of WAIT."""
        sent_at: list[int] = []
        while self._batches and len(pending) >= 2 * self._batches[0][0] + 2:
            count, at = self._batches.popleft()
            if pending[2 * count + 1] != b":2":
                self.run.problem(f"Redis answered {pending[2 * count + 1]!r} to WAIT")
            del pending[: 2 * count + 2]
            sent_at += [at] * count
        return sent_at

    def write_messages(self, keys: list[tuple[bytes, bytes]], body: bytes, at: int) -> None:
        count = len(keys)
        parts = [b"*%d\r\n" % (3 + 3 * count), self._call, bulk(b"%d" % (2 * count))]
        parts += [
            b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(session), session)
            for session, key in keys
        ]
        parts += [bulk(body) * count, WAIT]
        self._batches.append((count, at))
        self.write(b"".join(parts))


class RedisGenerator(PeerGenerator):
    sender = RedisSender


def words(*parts: bytes) -> bytes:
    """One command."""
    return b"*%d\r\n" % len(parts) + b"".join(map(bulk, parts))


def bulk(part: bytes) -> bytes:
    """One word of a command."""
    return b"$%d\r\n%b\r\n" % (len(part), part)


if __name__ == "__main__":
    sys.exit(main(RedisGenerator))
