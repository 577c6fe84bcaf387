"""Conversation lists while the tiers between memory and the replicas fail.

All users ask for their first page at a steady rate, most lists are not in memory, and messages
keep coming, so that what tiers have grows old. Meanwhile the Redis of the hot tier is stopped for a
while (SIGSTOP), goes on, is killed, and then every call of the warm tier takes two seconds longer.
When all is over each answer is compared with what the mailboxes' events say (``truth``). Latencies
are from the moment at which a user meant to ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.mailbox.asking import Caller, in_ms, until_answered
from bench.mailbox.filling import Text, fill_directory
from bench.mailbox.tiered import SLOTS
from bench.mailbox.truth import Asked, judge
from bench.running import until_quiet
from im_actors.actors.processes import free_port
from im_actors.core.model import EventKind
from im_actors.core.names import direct_session, mailbox_of
from im_actors.errors import ImError
from im_actors.testing import LocalCluster

HOST = "127.0.0.1"
DELAY_MS = 2_000
WRITERS = 8
"""Peers that go on sending."""
MESSAGES_PER_S = 10.0
VIEWS_IN_MEMORY = 8
"""So many lists fit into the gateway's memory; all others come from tiers."""
ANSWER_S = 10.0
END_S = 20.0


@dataclass(frozen=True, slots=True)
class Faulty:
    users: Sequence[str]
    peers: Sequence[str]
    """Each user has a conversation with each of them."""
    asks_per_s: float
    seconds: float
    """Of each phase."""
    patience_s: float


async def faults(
    directory: Path, asked: Faulty, say: Callable[[str], None], moved: Callable[[int, int], None]
) -> dict[str, Any]:
    """By phase: the shares of answers, latencies, and who answered."""
    data = directory / "faults"
    async with LocalCluster(data, slots=SLOTS):
        say("a cluster for the faults is made")
    texts = [
        Text(direct_session(peer, user), peer, b"hello")
        for peer in asked.peers
        for user in asked.users
    ]
    await asyncio.to_thread(fill_directory, data, texts, lambda done: moved(done, len(texts)))
    say(f"{len(asked.users)} users with {len(asked.peers)} conversations")
    rows = VIEWS_IN_MEMORY * (len(asked.peers) + 1)
    with redis_server(directory) as redis:
        async with Tiered.start(data, f"redis://{HOST}:{redis.port}/0", rows) as cluster:
            return await _Run(asked, cluster, redis, say).run()


# -- the processes ---------------------------------------------------------------------------------


class RedisProcess:
    def __init__(self, directory: Path) -> None:
        self.port = free_port(HOST)
        options = {"port": str(self.port), "bind": HOST, "save": "", "appendonly": "no"}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(
            ["redis-server", *words, "--dir", str(directory)],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), 1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16) == b"+PONG\r\n"
        except OSError:
            return False

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def redis_server(directory: Path) -> Iterator[RedisProcess]:
    """A Redis that keeps nothing on disk."""
    try:
        server = RedisProcess(directory)
    except FileNotFoundError:
        raise RuntimeError("there is no redis-server here, which --parts faults needs") from None
    try:
        deadline = time.monotonic() + ANSWER_S
        while not server.answers():
            if time.monotonic() > deadline:
                raise RuntimeError("the redis-server does not answer")
            time.sleep(0.02)
        yield server
    finally:
        server.end()


class Tiered:
    """The process of ``bench.mailbox.tiered``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.address = (HOST, 0)

    @classmethod
    @asynccontextmanager
    async def start(cls, data: Path, redis: str, rows: int) -> AsyncIterator[Tiered]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.mailbox.tiered", str(data), redis, str(rows)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        cluster = cls(process)
        try:
            host, port = await cluster._answer()
            cluster.address = (host, port)
            yield cluster
        finally:
            await cluster._end()

    async def tell(self, command: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        return await self._answer()

    async def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the cluster of the faults has ended")
        return json.loads(line)

    async def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            raise


# -- the run ---------------------------------------------------------------------------------------


class _Run:
    def __init__(
        self, asked: Faulty, cluster: Tiered, redis: RedisProcess, say: Callable[[str], None]
    ) -> None:
        self._asked = asked
        self._cluster = cluster
        self._redis = redis
        self._say = say
        self._sent: dict[str, int] = dict.fromkeys(asked.users, 0)
        """Messages that each user has got."""
        self._callers: dict[str, Caller] = {}

    async def run(self) -> dict[str, Any]:
        for user in self._asked.users:
            caller = self._callers[user] = await Caller.connect(self._cluster.address, user)
            caller.follow(mailbox_of(user))
            await until_answered(caller.page)
        found: dict[str, tuple[list[Asked], dict[str, Any]]] = {}
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(self._write())
            found["all_well"] = await self._phase()
            self._redis.signal(signal.SIGSTOP)
            found["redis_paused"] = await self._phase()
            self._redis.signal(signal.SIGCONT)
            found["redis_back"] = await self._phase()
            found["redis_killed"] = await self._phase(self._redis.end)
            await self._cluster.tell(f"delay {DELAY_MS}")
            found["warm_delayed"] = await self._phase()
            await self._cluster.tell("delay 0")
            writing.cancel()
        await until_quiet(self._lacking, self._asked.patience_s)
        timelines = {
            user: await caller.timeline(mailbox_of(user)) for user, caller in self._callers.items()
        }
        for caller in self._callers.values():
            await caller.close()
        report = {}
        for name, (answers, counts) in found.items():
            verdict = judge(answers, timelines)
            ms = in_ms([one.took_s for one in answers])
            report[name] = {**asdict(verdict), "right_percent": verdict.share, "ms": ms, **counts}
            self._say(f"{name}: {report[name]}")
        return report

    async def _phase(self, fault: Callable[[], None] | None = None) -> Any:
        """All users ask; ``fault`` happens at once when they have begun."""
        before = await self._cluster.tell("metrics")
        every_s = len(self._callers) / self._asked.asks_per_s
        began = time.monotonic()
        asks = [
            asyncio.create_task(self._ask(user, began + every_s * at / len(self._callers), every_s))
            for at, user in enumerate(self._callers)
        ]
        if fault is not None:
            await asyncio.sleep(every_s)
            fault()
        answers = [one for ones in await asyncio.gather(*asks) for one in ones]
        after = await self._cluster.tell("metrics")
        return answers, {"counts": _grown(before, after)}

    async def _ask(self, user: str, at: float, every_s: float) -> list[Asked]:
        caller, answers = self._callers[user], []
        until = at + self._asked.seconds
        while at < until:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            heard = caller.heard.get(mailbox_of(user), 0)
            page, error = None, ""
            try:
                page = await caller.page()
            except ImError as refused:
                error = str(refused)
            answers.append(Asked(user, heard, time.monotonic() - at, page, error))
            at += every_s
        return answers

    async def _write(self) -> None:
        """Messages of some peers to all users in turn, for ever."""
        peers = self._asked.peers[:WRITERS]
        writers = [await Caller.connect(self._cluster.address, peer) for peer in peers]
        at, count = time.monotonic(), 0
        while True:
            # All write often, or the gateway takes them for dead.
            turn, peer = divmod(count, len(peers))
            user = self._asked.users[turn % len(self._asked.users)]
            writer, session = writers[peer], direct_session(peers[peer], user)
            n = turn // len(self._asked.users) + 1
            await writer.send(session, n, int(EventKind.MESSAGE), f"message {count}".encode())
            self._sent[user] += 1
            count += 1
            at += 1 / MESSAGES_PER_S
            await asyncio.sleep(max(0.0, at - time.monotonic()))

    async def _lacking(self) -> str:
        """What is not in a list yet."""
        for user, caller in self._callers.items():
            try:
                total = await caller.unread()
            except ImError as error:
                return str(error)
            if total < (expected := len(self._asked.peers) + self._sent[user]):
                return f"{user} has {total} unread messages of {expected}"
        return ""


def _grown(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What was counted in between, of those that say who answered."""
    names = ("cpu_us", "memory_hits", "memory_misses", "loads", "behind")
    found: dict[str, Any] = {name: after[name] - before[name] for name in names}
    for tier, counts in after["tiers"].items():
        known = before["tiers"].get(tier, {})
        grown = {name: counts[name] - known.get(name, 0) for name in counts if name != "hit_rate"}
        found[tier] = {name: number for name, number in grown.items() if number}
    return found
