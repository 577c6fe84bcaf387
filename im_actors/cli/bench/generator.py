"""The process that makes load: ``python -m im_actors.cli.bench.generator``.

It is told what to do by JSON lines on standard input, and answers by JSON lines: first the load,
then phases, then the end. When its input ends without that, it ends too.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, ClassVar

from im_actors.cli.bench.following import FOLLOW_SESSIONS_MAX, Follower, Timelines
from im_actors.cli.bench.latencies import Latencies
from im_actors.cli.bench.ledger import Ledger, check_acks, check_cursor, check_timelines
from im_actors.cli.bench.pace import Pace
from im_actors.cli.bench.plan import STAMP_BYTES, Load
from im_actors.cli.bench.sending import Sender
from im_actors.cli.bench.wire import connect_all, micros
from im_actors.errors import ImError, NotReachable

PROBLEMS_MAX = 20
FOLD_S = 0.05
TELL_S = 1.0
LOOK_S = 0.02
STILL_S = 10.0
"""When nothing has moved for so long, what is missing will not come any more."""
HEARTBEAT_S = 10.0
HEARTBEAT_SLICES = 100
"""Connections give their sign of life in so many groups, one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Some time under one load. What was due before ``since`` is warm-up."""

    begins: int
    since: int
    ends: int
    rate: float | None
    """None: closed loop."""
    window: int
    burst: int = 1
    """Open loop: messages that one connection sends at once, when so many are due."""
    slow: int = 0
    """Followers that do not read meanwhile."""


class Generator:
    """One part of a load."""

    sender: ClassVar[Callable[..., Any]] = Sender
    """What makes a sending connection; another system's can be put here."""

    def __init__(self, load: Load, tell: Callable[[dict[str, Any]], None]) -> None:
        self.load = load
        self._tls = load.tls_context()
        self.filler = random.Random("im_actors bench").randbytes(load.bytes - STAMP_BYTES)
        self.rng = random.Random(load.run)
        self.acked = self.received = self.arrived = self.pulled = 0
        self.refused: Counter[int] = Counter()
        self.without_wait = 0
        """Refusals for now that name no time to wait."""
        self.reconnects = 0
        """Of readers that did not read for so long that they were cut."""
        self.problems: list[str] = []
        self.wrong = 0
        self.ack, self.delivery, self.late = Latencies(), Latencies(), Latencies()
        self.since = self.ends = 0
        self.closed_loop = False
        self.copies = 0
        """Of each event that are read here."""
        self.timelines = Timelines(self)
        self.senders: list[Sender] = []
        self.followers: list[Follower] = []
        self._tell = tell
        self._turn = 0
        self._burst = 1
        self._sampled: dict[str, Any] = {}
        self._refused_before: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def problem(self, text: str) -> None:
        """Something that makes the run void."""
        self.wrong += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)

    def replace(self, gone: Follower) -> None:
        """Give the reader of a connection that was cut another one."""
        self.reconnects += 1
        task = asyncio.create_task(self._replace(gone))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connected(self, wires: list[tuple[Any, tuple[str, int]]]) -> list[Any]:
        return await connect_all(wires, self._tls, self.load.tls_server_name)

    # ---- the three steps

    async def prepare(self) -> None:
        """Connect and follow; return when all of it is there."""
        for work in (self._fold(), self._report(), self._heartbeat()):
            self._tasks.add(asyncio.create_task(work))
        if self.load.followers:
            await self._follow(self.load.followers)
        self.senders = await self._connected(
            [
                (partial(self.sender, self, number, draws), self.load.address(number))
                for number, draws in enumerate(self.load.draws() if self.load.sends else ())
            ]
        )

    async def phase(self, phase: Phase) -> int:
        """Make load, and return when all of it is answered: how many messages are ACKed by now."""
        self.ack, self.delivery, self.late = Latencies(), Latencies(), Latencies()
        self.since, self.ends, self._burst = phase.since, phase.ends, phase.burst
        self._refused_before = Counter(self.refused)
        for follower in self.followers[: phase.slow]:
            follower.stop_reading()
        sampling = asyncio.create_task(self._sample(phase))
        await until(phase.begins)
        if phase.rate is None:
            self.closed_loop = True
            for sender in self.senders:
                sender.submit(phase.window, micros())
            await until(phase.ends)
            self.closed_loop = False
        elif self.senders:
            await Pace(phase.rate, phase.begins, phase.ends, self._offer).run()
        self._sampled = await sampling
        await self._moving(
            lambda: not any(sender.unacked for sender in self.senders), lambda: self.acked
        )
        return self.acked

    async def settle(self, acked: int | None) -> dict[str, Any]:
        """Wait until all followers have read everything, and tell what was measured. ``acked`` is
        the number of messages, where others have sent them."""
        for follower in self.followers:
            follower.go_on_reading()
        await self._read(self.acked if acked is None else acked)
        return self._sampled | {
            "settled_us": micros() - self.ends,
            "refused": dict(self.refused - self._refused_before),
            "ack": self.ack.counts(),
            "delivery": self.delivery.counts(),
            "late": self.late.counts(),
            "wrong": self.wrong,
        }

    async def finish(self) -> dict[str, Any]:
        """Check what was read against what was ACKed."""
        if not self.load.followers and self.acked:
            await self._follow(1)
            await self._read(self.acked)
        ledger = Ledger(received=self.received, refused=self.refused.total())
        contents = self.timelines.contents
        check_timelines(ledger, contents)
        check_acks(ledger, ((s.number, s.sent) for s in self.senders), contents)
        for follower in self.followers:
            ledger.duplicated += follower.repeated
            for session, cursor in follower.cursors.items():
                length = len(contents[session]) if session in contents else 0
                check_cursor(ledger, cursor, follower.early(session), length)
        return {
            "ledger": ledger.to_json(),
            "problems": self.problems,
            "wrong": self.wrong,
            "without_wait": self.without_wait,
            "pulled": self.pulled,
            "reconnects": self.reconnects,
            "digest": self.timelines.digest(),
        }

    # ---- inside

    async def _follow(self, followers: int) -> None:
        """As many followers of each session; of those that have something to read, when all was
        sent already."""
        load = self.load
        names = [load.session(number) for number in range(load.sessions)]
        if self.senders:
            names = sorted({name for sender in self.senders for name in sender.sent})
        self.copies = followers
        parts = [
            part
            for _, several in groupby(names, load.reader)
            for part in batched(list(several), FOLLOW_SESSIONS_MAX)
        ]
        wires: list[tuple[Any, tuple[str, int]]] = []
        for copy in range(followers):
            for number, part in enumerate(parts):
                device = f"{load.run}-reader-{load.number}-{copy}-{number}"
                wires.append((partial(Follower, self, device, part), load.address(len(wires))))
        self.followers = await self._connected(wires)
        for follower in self.followers:
            follower.follow()
        await self._moving(
            lambda: all(follower.followed for follower in self.followers),
            lambda: sum(len(follower.heads) for follower in self.followers),
        )
        if not all(follower.followed for follower in self.followers):
            raise NotReachable("not all sessions can be followed; im-actors status says why")

    async def _replace(self, gone: Follower) -> None:
        number = self.followers.index(gone)
        try:
            (successor,) = await self._connected([(gone.successor, self.load.address(number))])
        except ImError as error:
            self.problem(str(error))
            return
        self.followers[number] = successor
        successor.follow()

    def _offer(self, count: int, at: int) -> None:
        """What is due at one point of the grid, dealt to the connections in turn."""
        senders = self.senders
        if at >= self.since:
            self.late.raw.append(micros() - at)
        each, more = divmod(count, len(senders))
        if each:
            for sender in senders:
                sender.submit(each, at)
        while more > 0:
            self._turn = (self._turn + 1) % len(senders)
            senders[self._turn].submit(min(more, self._burst), at)
            more -= self._burst

    async def _sample(self, phase: Phase) -> dict[str, Any]:
        """Count what happens between the end of the warm-up and the end."""
        taken = []
        for at in (phase.since, phase.ends):
            await until(at)
            cpu = int(time.process_time() * 1e6)
            taken.append((micros(), cpu, self.acked, self.arrived))
        names = ("elapsed_us", "cpu_us", "acked", "received")
        return {n: after - before for n, before, after in zip(names, *taken, strict=True)}

    async def _read(self, messages: int) -> None:
        """Wait until each follower of each session has read all of these messages."""
        wanted = messages * self.copies
        await self._moving(lambda: self.received >= wanted, lambda: self.received)

    async def _moving(self, done: Callable[[], bool], count: Callable[[], int]) -> None:
        """Wait until it is done, or does not move any more, or something is wrong."""
        moved, still = count(), micros()
        while not done() and not self.wrong and micros() - still < STILL_S * 1e6:
            await asyncio.sleep(LOOK_S)
            if count() != moved:
                moved, still = count(), micros()

    async def _fold(self) -> None:
        while True:
            await asyncio.sleep(FOLD_S)
            self.ack.fold()
            self.delivery.fold()
            self.late.fold()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            self._tell({"progress": {"acked": self.acked, "received": self.received}})

    async def _heartbeat(self) -> None:
        group = 0
        while True:
            await asyncio.sleep(HEARTBEAT_S / HEARTBEAT_SLICES)
            group = (group + 1) % HEARTBEAT_SLICES
            for wire in (*self.senders[group::HEARTBEAT_SLICES],
                         *self.followers[group::HEARTBEAT_SLICES]):  # fmt: skip
                wire.ping()

    def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        for wire in (*self.senders, *self.followers):
            wire.close()


def batched(names: list[str], size: int) -> list[list[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]


async def until(at: int) -> None:
    """Sleep until this time."""
    await asyncio.sleep(max(0, at - micros()) / 1e6)


def more_files() -> None:
    """As many open files as this process may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def serve(
    tell: Callable[[dict[str, Any]], None], make: Callable[..., Generator] = Generator
) -> int:
    """Do what the commander says. When nobody commands any more this is cancelled."""
    commands: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    task = asyncio.current_task()
    assert task is not None
    listening = asyncio.create_task(listen(commands, task))
    generator: Generator | None = None
    try:
        while True:
            command = await commands.get()
            if "load" in command:
                generator = make(Load.from_json(command["load"]), tell)
                await generator.prepare()
                gc.collect()
                gc.freeze()
                tell({"ready": Counter(wire.server for wire in generator.followers)})
            elif generator is not None and "phase" in command:
                tell({"phase": await generator.phase(Phase(**command["phase"]))})
            elif generator is not None and "settle" in command:
                tell({"settle": await generator.settle(command["settle"])})
            elif generator is not None:
                tell({"finished": await generator.finish()})
                return 0
    except ImError as error:
        tell({"error": {"code": error.code, "detail": str(error)}})
        return 1
    finally:
        listening.cancel()
        if generator is not None:
            generator.close()


async def listen(commands: asyncio.Queue[dict[str, Any]], task: asyncio.Task[Any]) -> None:
    """Take the commands from standard input; at its end, end the task."""
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        commands.put_nowait(json.loads(line))
    task.cancel()


def main(make: Callable[..., Generator] = Generator) -> int:
    more_files()
    gc.disable()
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        pass

    def tell(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), flush=True)

    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            return runner.run(serve(tell, make))
        except asyncio.CancelledError:
            return 1


if __name__ == "__main__":
    sys.exit(main())
