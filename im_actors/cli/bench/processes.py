"""The commander of the generators: starts them, takes them through the phases, adds up."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import Any

from im_actors.cli.bench.generator import Phase, until
from im_actors.cli.bench.latencies import Latencies
from im_actors.cli.bench.ledger import Ledger
from im_actors.cli.bench.plan import Load
from im_actors.cli.bench.server_side import ServerSide, Usage
from im_actors.cli.bench.wire import micros
from im_actors.errors import NotReachable, error_for

GENERATOR = "im_actors.cli.bench.generator"
LINE_BYTES = 1 << 28
"""A phase's answer holds all latencies, as counts."""
LEAD_US = 100_000
"""Between the command and the begin of a phase, so that all generators begin together."""
END_S = 5.0


@dataclass(slots=True)
class Figures:
    """What was measured in one phase, by all generators together."""

    elapsed_s: float = 0.0
    acked: int = 0
    received: int = 0
    settled_s: float = 0.0
    """After the end of the phase, until the last answer and the last event had come."""
    generator_cpu: list[float] = field(default_factory=list)
    """The share of a core that each generator took; near 1 it may be what limits the figures."""
    generator_us: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    ack: Latencies = field(default_factory=Latencies)
    delivery: Latencies = field(default_factory=Latencies)
    late: Latencies = field(default_factory=Latencies)
    """How late the generators were with what was due, in an open loop: part of the latencies."""
    server_cpu: dict[str, int] | None = None
    """Microseconds per kind of process; None when the cluster is not on this machine."""

    def add(self, answer: dict[str, Any]) -> None:
        """What one generator measured."""
        elapsed_s = answer["elapsed_us"] / 1e6
        self.elapsed_s = max(self.elapsed_s, elapsed_s)
        self.acked += answer["acked"]
        self.received += answer["received"]
        self.settled_s = max(self.settled_s, answer["settled_us"] / 1e6)
        self.generator_cpu.append(round(answer["cpu_us"] / answer["elapsed_us"], 2))
        self.generator_us += answer["cpu_us"]
        self.refused.update({int(code): count for code, count in answer["refused"].items()})
        self.ack.add(answer["ack"])
        self.delivery.add(answer["delivery"])
        self.late.add(answer["late"])

    @property
    def msgs_per_s(self) -> float:
        return self.acked / self.elapsed_s if self.elapsed_s else 0.0


@dataclass(slots=True)
class Outcome:
    """The ledger of all generators, and what else was wrong."""

    ledger: Ledger = field(default_factory=Ledger)
    problems: list[str] = field(default_factory=list)
    wrong: int = 0
    without_wait: int = 0
    pulled: int = 0
    """Events that followers had to ask for, because pushes were dropped or lost."""
    reconnects: int = 0
    """Of followers that were cut because they did not read."""
    digests: set[str] = field(default_factory=set)
    """Of the timelines that each generator has read."""

    @property
    def sound(self) -> bool:
        return self.ledger.sound and not self.wrong

    def add(self, answer: dict[str, Any]) -> None:
        self.ledger.add(answer["ledger"])
        self.problems += answer["problems"]
        self.digests.add(answer["digest"])
        for name in ("wrong", "without_wait", "pulled", "reconnects"):
            # Generators of other systems know nothing of some of them.
            setattr(self, name, getattr(self, name) + answer.get(name, 0))


class Generators:
    """Processes that make one load together. Use it as ``async with``."""

    def __init__(
        self,
        loads: Sequence[Load],
        server: ServerSide | None,
        moved: Callable[[int, int], None] = lambda acked, received: None,
        module: str = GENERATOR,
    ) -> None:
        self._loads = loads
        self._server = server
        self._moved = moved
        self._module = module
        self._processes: list[asyncio.subprocess.Process] = []
        self._progress: dict[int, tuple[int, int]] = {}
        self.followers: Counter[str] = Counter()
        """How many follow at each gateway, by its name."""

    async def __aenter__(self) -> Generators:
        try:
            for _ in self._loads:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", self._module),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=LINE_BYTES,
                    # Ctrl-C is for the commander, who then ends them.
                    start_new_session=True,
                )
                self._processes.append(process)
            for served in await self._all([{"load": n.to_json()} for n in self._loads], "ready"):
                self.followers.update(served)
        except BaseException:
            await self.end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.end()

    async def phase(
        self,
        seconds: float,
        warmup_s: float,
        rate: float | None = None,
        window: int = 1,
        burst: int = 1,
        slow: int = 0,
    ) -> Figures:
        """One phase; ``rate`` None: closed loop with this window; ``burst``: messages that one
        connection sends at once in an open loop; ``slow``: followers of each generator that do not
        read meanwhile."""
        begins = micros() + LEAD_US
        since = begins + int(warmup_s * 1e6)
        phase = Phase(
            begins=begins, since=since, ends=since + int(seconds * 1e6), rate=None, window=window,
            burst=burst, slow=slow,
        )  # fmt: skip
        phases = [
            phase if rate is None else replace(phase, rate=rate * load.share)
            for load in self._loads
        ]
        watching = asyncio.create_task(self._watch(since, phase.ends))
        try:
            acked = await self._all([{"phase": asdict(phase)} for phase in phases], "phase")
            figures = Figures(server_cpu=await watching)
        finally:
            watching.cancel()
        expected = [None if load.sends else sum(acked) for load in self._loads]
        for answer in await self._all([{"settle": n} for n in expected], "settle"):
            figures.add(answer)
        return figures

    async def finish(self) -> Outcome:
        """The check of everything that was sent in all phases."""
        outcome = Outcome()
        for answer in await self._all([{"finish": True}] * len(self._processes), "finished"):
            outcome.add(answer)
        return outcome

    async def end(self) -> None:
        """End the processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                async with asyncio.timeout(END_S):
                    await process.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def _watch(self, since: int, ends: int) -> dict[str, int] | None:
        if self._server is None:
            return None
        taken: list[Usage] = []
        for at in (since, ends):
            await until(at)
            taken.append(self._server.usage())
        return taken[1].cpu_since(taken[0])

    async def _all(self, commands: Sequence[dict[str, Any]], answer: str) -> list[Any]:
        """Tell each generator what to do, and wait for the answers of all."""
        asked = (self._ask(number, command, answer) for number, command in enumerate(commands))
        return await asyncio.gather(*asked)

    async def _ask(self, number: int, command: dict[str, Any], wanted: str) -> Any:
        process = self._processes[number]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(command).encode() + b"\n")
        while line := await process.stdout.readline():
            answer = json.loads(line)
            if wanted in answer:
                return answer[wanted]
            if "error" in answer:
                raise error_for(answer["error"]["code"], answer["error"]["detail"])
            if "progress" in answer:
                self._progress[number] = (
                    answer["progress"]["acked"],
                    answer["progress"]["received"],
                )
                acked, received = map(sum, zip(*self._progress.values(), strict=True))
                self._moved(acked, received)
        raise NotReachable("a generator has ended without its figures")
