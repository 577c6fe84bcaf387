"""One connection to each system. All of them write once for everything that one read has freed."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from bench.compare.loop import Run
from im_actors.core.model import COPIES, decode_event
from im_actors.net.connection import FramedProtocol
from im_actors.wire import messages as m
from im_actors.wire.codec import encode_frame
from im_actors.wire.limits import Limits

ENTRIES_PER_FRAME = 128
FOLLOWS_PER_FRAME = 128
SESSIONS_PER_FOLLOWER = Limits().follow_sessions
PULLED = 500
STREAM = "bench"
SUBJECTS = "bench.*"

REDIS_SCRIPT = """
local ids = {}
for i = 1, #ARGV do
    ids[i] = redis.call('SET', KEYS[2 * i - 1], '', 'NX')
        and redis.call('XADD', KEYS[2 * i], '*', 'm', ARGV[i])
end
return ids
"""
"""Some messages: the id of each one's entry, nil when its key is known. In a script because what is
added depends on the answer to SET: a transaction could not leave the XADD out."""
REDIS_WAIT = b"*3\r\n$4\r\nWAIT\r\n$1\r\n2\r\n$1\r\n0\r\n"


class ImSender(FramedProtocol):
    """A device: SEND frames out, ACK frames in."""

    def __init__(self, run: Run, number: int) -> None:
        super().__init__()
        self._run = run
        self._user = f"bench-{number}"
        self.address = f"{self._user}/{run.load.run}"
        self._turns = itertools.cycle(run.sessions_of(number))
        self._next_n = dict.fromkeys(run.sessions, 0)
        self._sent_at: dict[tuple[str, int], float] = {}
        self.seqs: dict[tuple[str, int], int] = {}

    def opened(self) -> None:
        self.send(encode_frame(m.hello(self._user, self._run.load.run, None, "bench")))

    def frames_received(self, messages: list[Any]) -> None:
        sent_at: list[float] = []
        for message in messages:
            if message[0] == m.ACK:
                for session, n, seq, _, copies, _ in message[1]:
                    if copies != COPIES:
                        self._run.fail(f"an ACK of {copies} copies")
                    sent_at.append(self._sent_at.pop((session, n)))
                    self.seqs[session, n] = seq
            elif message[0] == m.WELCOME:
                self._run.ready.append(self)
            elif message[0] != m.PONG:
                self._run.fail(f"im_actors answered {message[:4]}")
        if sent_at:
            self._run.answered(self, sent_at)

    def submit(self, count: int, now: float) -> None:
        entries = []
        body = self._run.body
        for session in itertools.islice(self._turns, count):
            n = self._next_n[session] = self._next_n[session] + 1
            self._sent_at[session, n] = now
            entries.append((session, n, 1, body))
        for start in range(0, len(entries), ENTRIES_PER_FRAME):
            self.send(encode_frame(m.send(entries[start : start + ENTRIES_PER_FRAME])))


class ImFollower(FramedProtocol):
    """Follows some sessions, and pulls what was not pushed to it."""

    def __init__(self, run: Run, number: int, sessions: list[str]) -> None:
        super().__init__()
        self._run = run
        self._user = f"follower-{number}"
        self._sessions = sessions
        self._pulls = itertools.count(1)
        self._raw: list[bytes] = []
        self._seen: dict[str, dict[int, bytes]] = {session: {} for session in sessions}
        self.followed: set[str] = set()

    def opened(self) -> None:
        self.send(encode_frame(m.hello(self._user, self._run.load.run, None, "bench")))

    def frames_received(self, messages: list[Any]) -> None:
        for message in messages:
            if message[0] == m.PUSH:
                self._raw += message[1]
            elif message[0] == m.WELCOME:
                sessions = self._sessions
                for start in range(0, len(sessions), FOLLOWS_PER_FRAME):
                    self.send(encode_frame(m.follow(sessions[start : start + FOLLOWS_PER_FRAME])))
            elif message[0] == m.HEADS:
                for session, head in message[1]:
                    self.followed.add(session)
                    self._pull(session, head)
            elif message[0] == m.EVENTS:
                self._raw += message[5]
                self._pull(message[2], message[3])
            elif message[0] != m.PONG:
                self._run.fail(f"im_actors told the follower {message[:4]}")

    def _pull(self, session: str, head: int) -> None:
        if head:
            seen = self.seen()[session]
            have = next(seq for seq in itertools.count(0) if seq + 1 not in seen)
            if have < head:
                self.send(encode_frame(m.pull(next(self._pulls), session, have, 0, PULLED)))

    def seen(self) -> dict[str, dict[int, bytes]]:
        """All events by session and seq. They are decoded here and not while the load runs: what
        a reader does with an event is no part of what is measured."""
        for data in self._raw:
            event = decode_event(data)
            if self._seen[event.session].setdefault(event.seq, data) != data:
                self._run.fail(f"{event.session} {event.seq} came with two contents")
        self._raw.clear()
        return self._seen

    def count(self) -> int:
        return sum(map(len, self.seen().values()))


def check(run: Run, followers: list[ImFollower], senders: list[ImSender]) -> None:
    """Every ACKed message came once, at its seq, without gap or disorder."""
    left = {sender.address: dict(sender.seqs) for sender in senders}
    for session, by_seq in [pair for follower in followers for pair in follower.seen().items()]:
        last_n: dict[str, int] = {}
        for expected, (seq, data) in enumerate(sorted(by_seq.items()), 1):
            event = decode_event(data)
            if seq != expected or event.n != last_n.get(event.device, 0) + 1:
                run.fail(f"{session} {seq} is {event.device} {event.n}: out of order")
            last_n[event.device] = event.n
            if left[event.device].pop((session, event.n), None) != seq:
                run.fail(f"{event.device} {event.n} of {session} was ACKed otherwise")
    if lost := sum(map(len, left.values())):
        run.fail(f"{lost} messages were ACKed and never came")


class _Plain(asyncio.Protocol):
    """A connection whose answers are lines."""

    def __init__(self, run: Run, number: int) -> None:
        self._run = run
        self._device = f"bench-{number}/{run.load.run}"
        self._partial = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write = self._transport.write
        self.opened()

    def opened(self) -> None:
        raise NotImplementedError

    def connection_lost(self, error: Exception | None) -> None:
        if self._run.outstanding:
            self._run.fail(f"{self._run.load.system} closed a connection: {error}")

    def data_received(self, data: bytes) -> None:
        lines = (self._partial + data).split(b"\r\n")
        self._partial = lines.pop()
        self.lines_received(lines)

    def lines_received(self, lines: list[bytes]) -> None:
        raise NotImplementedError


class RedisSender(_Plain):
    """One script call for everything that is free, and one WAIT behind it. Redis reads nothing else
    of this connection while it waits, so a WAIT covers the whole of its batch. Measured against one
    call for each message it is up to a fifth faster; two halves of a window in turn are slower."""

    def __init__(self, run: Run, number: int) -> None:
        super().__init__(run, number)
        names = [session.encode() for session in run.sessions_of(number)]
        self._turns = itertools.cycle(names)
        self._next_n = dict.fromkeys(names, 0)
        self._batches: deque[tuple[int, float]] = deque()
        self._lines: list[bytes] = []
        self._sha = b""

    def opened(self) -> None:
        self._write(words(b"SCRIPT", b"LOAD", REDIS_SCRIPT.encode()))

    def lines_received(self, lines: list[bytes]) -> None:
        pending = self._lines
        pending += lines
        if b"$-1" in lines or (pending and pending[0].startswith(b"-")):
            self._run.fail(f"Redis answered {pending[:5]}")
            return
        if not self._sha and len(pending) >= 2:
            self._sha = pending[1]
            pending.clear()
            self._run.ready.append(self)
        while self._batches and len(pending) >= 2 * self._batches[0][0] + 2:
            count, at = self._batches.popleft()
            if pending[2 * count + 1] != b":2":
                self._run.fail(f"Redis answered {pending[2 * count + 1]!r} to WAIT")
                return
            del pending[: 2 * count + 2]
            self._run.answered(self, [at] * count)

    def submit(self, count: int, now: float) -> None:
        device, next_n, body = self._device.encode(), self._next_n, self._run.body
        parts = [b"*%d\r\n" % (3 + 3 * count)]
        parts += map(bulk, (b"EVALSHA", self._sha, b"%d" % (2 * count)))
        for session in itertools.islice(self._turns, count):
            n = next_n[session] = next_n[session] + 1
            key = b"%b:%b:%d" % (session, device, n)
            parts.append(b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(session), session))
        parts += [bulk(body) * count, REDIS_WAIT]
        self._batches.append((count, now))
        self._write(b"".join(parts))


class NatsSender(_Plain):
    """Publishes with a message id and an inbox; every acknowledgement comes by itself."""

    def __init__(self, run: Run, number: int) -> None:
        super().__init__(run, number)
        self._subjects = {s: f"bench.{s}".encode() for s in run.sessions_of(number)}
        self._turns = itertools.cycle(self._subjects.items())
        self._next_n = dict.fromkeys(self._subjects, 0)
        self._inbox = f"_INBOX.{run.load.run}-{number}.".encode()
        self._sent_at: dict[bytes, float] = {}
        self._tokens = itertools.count(1)

    def opened(self) -> None:
        self._write(NATS_HELLO + b"SUB %b* 1\r\nPING\r\n" % self._inbox)

    def data_received(self, data: bytes) -> None:
        if self._partial:
            data = self._partial + data
        end = data.rfind(b"\r\n") + 2
        sent_at: list[float] = []
        append, pop = sent_at.append, self._sent_at.pop
        used = 0
        for found in _puback(data, 0, end):
            if found.start() != used:
                self._others(data[used : found.start()])
            append(pop(found[1]))
            used = found.end()
        self._partial = self._others(data[used:])
        if sent_at:
            self._run.answered(self, sent_at)

    def _others(self, data: bytes) -> bytes:
        """What is no acknowledgement; the start of one is left."""
        while not data.startswith(b"MSG ") and (end := data.find(b"\r\n") + 2) > 1:
            line, data = data[:end], data[end:]
            if line.startswith(b"PING"):
                self._write(b"PONG\r\n")
            elif line.startswith(b"PONG"):
                self._run.ready.append(self)
            elif not line.startswith(b"INFO "):
                self._run.fail(f"NATS answered {line!r}")
        if data.count(b"\r\n") > 1:
            self._run.fail(f"NATS answered {data[:200]!r}")
        return data

    def submit(self, count: int, now: float) -> None:
        device, next_n, tokens = self._device.encode(), self._next_n, self._tokens
        body = self._run.body
        size = len(body)
        parts = []
        for session, subject in itertools.islice(self._turns, count):
            n = next_n[session] = next_n[session] + 1
            token = b"%d" % next(tokens)
            self._sent_at[token] = now
            head = b"NATS/1.0\r\nNats-Msg-Id:%b:%b:%d\r\n\r\n" % (subject, device, n)
            parts.append(
                b"HPUB %b %b%b %d %d\r\n%b%b\r\n"
                % (subject, self._inbox, token, len(head), len(head) + size, head, body)
            )
        self._write(b"".join(parts))


NATS_HELLO = (
    b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,'
    b'"protocol":1,"lang":"python","version":"0","name":"bench"}\r\n'
)
_puback = re.compile(
    rb'MSG _INBOX\.[^. ]+\.(\d+) 1 +\d+\r\n\{"stream":"bench", ?"seq":\d+\}\r\n'
).finditer
"""An acknowledgement without an error and without ``duplicate``."""


def words(*parts: bytes) -> bytes:
    """One Redis command."""
    return b"*%d\r\n" % len(parts) + b"".join(map(bulk, parts))


def bulk(part: bytes) -> bytes:
    """One word of a Redis command."""
    return b"$%d\r\n%b\r\n" % (len(part), part)


async def load_im_actors(run: Run) -> dict[str, Any]:
    """With one follower of every session, and the ledger at the end."""
    loop = asyncio.get_running_loop()
    addresses, sessions = run.load.addresses, run.sessions
    followers = []
    for number, start in enumerate(range(0, len(sessions), SESSIONS_PER_FOLLOWER)):
        follower = ImFollower(run, number, sessions[start : start + SESSIONS_PER_FOLLOWER])
        followers.append(follower)
        await loop.create_connection(lambda f=follower: f, *addresses[number % len(addresses)])
    await run.until(
        lambda: sum(len(f.followed) for f in followers) == len(sessions), 30, "answers to FOLLOW"
    )
    await run.connect(ImSender)
    result = await run.measure()
    await run.until(
        lambda: sum(f.count() for f in followers) >= run.acknowledged, 30, "last pushes"
    )
    check(run, followers, [sender for sender in run.ready if isinstance(sender, ImSender)])
    run.raise_if_failed()
    return result


def load_with(sender: Callable[[Run, int], asyncio.Protocol]) -> Any:
    """Only senders: their messages are counted on the servers afterwards."""

    async def work(run: Run) -> dict[str, Any]:
        await run.connect(sender)
        return await run.measure()

    return work


LOADERS = {
    "im_actors": load_im_actors,
    "redis": load_with(RedisSender),
    "nats_default": load_with(NatsSender),
    "nats_sync": load_with(NatsSender),
}
