"""``python -m bench.closed_loop --url im://HOST:PORT``: connections × window against a cluster.

Each connection keeps ``window`` messages without an ACK and sends the next as soon as one comes
back. One follower per session reads what was sent. A run in which a message is lost, doubled or out
of order is void. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.machine import describe, fsync_us
from im_actors.core.model import decode_event
from im_actors.net.connection import FramedProtocol
from im_actors.wire import messages as m
from im_actors.wire.codec import encode_frame


class Sender(FramedProtocol):
    """One device: sends to its sessions in turn, ``window`` at a time."""

    def __init__(self, run: Run, number: int) -> None:
        super().__init__()
        self.run = run
        self.address = f"bench-{number}/{run.id}"
        self.number = number
        self.next_n: dict[str, int] = {}
        self.sent_at: dict[tuple[str, int], float] = {}
        self.turn = 0

    def opened(self) -> None:
        self.send(encode_frame(m.hello(f"bench-{self.number}", self.run.id, None, "bench")))

    def frames_received(self, messages: list[Any]) -> None:
        answered = 0
        for message in messages:
            if message[0] == m.ACK:
                answered += self.acked(message[1])
            elif message[0] == m.WELCOME:
                self.run.ready(self)
            elif message[0] not in (m.PONG, m.HEADS):
                self.run.fail(f"{self.address}: {message[:4]}")
        if answered:
            self.submit(answered)

    def acked(self, rows: list[Any]) -> int:
        now = time.perf_counter()
        run = self.run
        for session, n, seq, _, copies, _ in rows:
            started = self.sent_at.pop((session, n), None)
            if started is None or copies != 3:
                run.fail(f"an ACK for {session} {n} that nobody waits for")
                continue
            run.acked[session, self.address, n] = seq
            run.ack_ms.append((now - started) * 1000)
        return len(rows)

    def submit(self, count: int) -> None:
        run = self.run
        now = time.perf_counter()
        if now >= run.ends:
            run.finished(self)
            return
        entries = []
        for _ in range(count):
            session = run.sessions[(self.number + self.turn * run.connections) % len(run.sessions)]
            self.turn += 1
            n = self.next_n[session] = self.next_n.get(session, 0) + 1
            self.sent_at[session, n] = now
            entries.append((session, n, 1, run.body))
        for start in range(0, len(entries), 128):
            self.send(encode_frame(m.send(entries[start : start + 128])))


class Follower(FramedProtocol):
    """Follows all sessions. What was not pushed, because a slot moved, it pulls, as clients do."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.pulls = 0

    def opened(self) -> None:
        self.send(encode_frame(m.hello("bench-follower", self.run.id, None, "bench")))

    def frames_received(self, messages: list[Any]) -> None:
        run = self.run
        for message in messages:
            if message[0] == m.PUSH:
                for data in message[1]:
                    run.arrived(data)
            elif message[0] == m.WELCOME:
                for start in range(0, len(run.sessions), 128):
                    self.send(encode_frame(m.follow(run.sessions[start : start + 128])))
            elif message[0] == m.HEADS:
                for session, head in message[1]:
                    run.followed.add(session)
                    self.pull(session, head)
            elif message[0] == m.EVENTS:
                _, _, session, head, _, events = message
                for data in events:
                    run.arrived(data)
                self.pull(session, head)

    def pull(self, session: str, head: int) -> None:
        seen = self.run.seen[session]
        last = 0
        while last + 1 in seen:
            last += 1
        if last < head:
            self.pulls += 1
            self.send(encode_frame(m.pull(self.pulls, session, last, 0, 500)))


class Run:
    """One measurement."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.id = secrets.token_hex(4)
        self.args = args
        self.connections: int = args.connections
        self.sessions = [f"bench-{self.id}-{n}" for n in range(args.sessions)]
        self.body = b"x" * args.bytes
        self.acked: dict[tuple[str, str, int], int] = {}
        self.ack_ms: list[float] = []
        self.seen: dict[str, dict[int, bytes]] = {session: {} for session in self.sessions}
        self.events = 0
        self.followed: set[str] = set()
        self.welcomed: list[Sender] = []
        self.done: set[int] = set()
        self.problems: list[str] = []
        self.ends = float("inf")

    def ready(self, sender: Sender) -> None:
        self.welcomed.append(sender)

    def finished(self, sender: Sender) -> None:
        if not sender.sent_at:
            self.done.add(sender.number)

    def arrived(self, data: bytes) -> None:
        event = decode_event(data)
        known = self.seen[event.session].setdefault(event.seq, data)
        if known is data:
            self.events += 1
        elif known != data:
            self.fail(f"{event.session} {event.seq} came with two contents")

    def fail(self, text: str) -> None:
        self.problems.append(text)

    async def measure(self, host: str, port: int) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: Follower(self), host, port)
        await self.until(lambda: len(self.followed) == len(self.sessions), "the follower")
        for number in range(self.connections):
            await loop.create_connection(lambda n=number: Sender(self, n), host, port)
        await self.until(lambda: len(self.welcomed) == self.connections, "the connections")
        cpu = time.process_time()
        started = time.perf_counter()
        self.ends = started + self.args.seconds
        for sender in self.welcomed:
            sender.submit(self.args.window)
        await self.until(lambda: len(self.done) == self.connections, "the last ACKs")
        elapsed = time.perf_counter() - started
        cpu = time.process_time() - cpu
        await self.until(lambda: self.events >= len(self.acked), "the last pushes")
        self.check()
        return self.report(elapsed, cpu)

    async def until(self, condition: Any, what: str) -> None:
        limit = time.perf_counter() + self.args.seconds + 30
        while not condition():
            if self.problems or time.perf_counter() > limit:
                raise SystemExit(f"void: {what} did not come: {self.problems[:5]}")
            await asyncio.sleep(0.01)

    def check(self) -> None:
        """The ledger: every ACK's message came once, at its seq, without gap or disorder."""
        seen: dict[tuple[str, str, int], int] = {}
        for session, by_seq in self.seen.items():
            if sorted(by_seq) != list(range(1, len(by_seq) + 1)):
                self.fail(f"{session}: the seqs have a gap")
            last_n: dict[str, int] = {}
            for _, data in sorted(by_seq.items()):
                event = decode_event(data)
                if event.n != last_n.get(event.device, 0) + 1:
                    self.fail(f"{session}: {event.device} {event.n} after {last_n}")
                last_n[event.device] = event.n
                seen[session, event.device, event.n] = event.seq
        for key, seq in self.acked.items():
            if seen.get(key) != seq:
                self.fail(f"{key} was acked as {seq} and came as {seen.get(key)}")

    def report(self, elapsed: float, cpu: float) -> dict[str, Any]:
        cuts = statistics.quantiles(self.ack_ms, n=1000)
        return {
            "connections": self.connections,
            "window": self.args.window,
            "sessions": len(self.sessions),
            "bytes": self.args.bytes,
            "acked": len(self.acked),
            "msgs_per_s": round(len(self.acked) / elapsed),
            "ack_ms": {
                "p50": round(cuts[499], 2),
                "p99": round(cuts[989], 2),
                "max": round(max(self.ack_ms), 2),
            },
            "generator_cpu_share": round(cpu / elapsed, 2),
            "problems": self.problems[:20],
            "machine": describe(),
            "fsync_us": fsync_us(Path(tempfile.gettempdir())),
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.closed_loop", description=__doc__)
    parser.add_argument("--url", default="im://127.0.0.1:7070")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--bytes", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    where = urlsplit(args.url)
    try:
        import uvloop

        runner: Any = uvloop.run
    except ImportError:
        runner = asyncio.run
    report = runner(Run(args).measure(where.hostname or "127.0.0.1", where.port or 7070))
    print(json.dumps(report))
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
