"""One torture: start, break, heal, read everything, judge."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from im_actors.cli.cluster_commands import VERIFY_TIMEOUT_S, sound
from im_actors.cli.torture import judge
from im_actors.cli.torture.book import Book
from im_actors.cli.torture.cluster import REPLICAS, SLOTS, TortureCluster, trouble_in
from im_actors.cli.torture.readers import FollowingReader, Puller, Resender, Twin
from im_actors.cli.torture.recovery import Hit, Recovery
from im_actors.cli.torture.schedule import EVERYTHING, PATIENT, Planned, Schedule
from im_actors.cli.torture.wrecker import Wrecker
from im_actors.cli.torture.writers import WriterProcess
from im_actors.errors import ImError
from im_actors.proof import Anomaly, History
from im_actors.proof.records import slot_of

WRITER_PROCESSES = 2
SESSIONS_PER_WRITER = 6
TWINS = 2
READERS = 2
WINDOW = 32
WARM_S = 2.0
"""Writing before the first fault."""
RECOVER_S = 20.0
"""How long the next fault waits for the first ACK after the one before."""
REST_S = 0.5
DURING_S = 3.0
"""How long a fault that is to meet a repair waits for one to be under way."""
HEAL_S = 150.0
DRAIN_S = 90.0
TROUBLE_S = 1.0
"""A controller that takes longer to tell the status is in trouble itself."""
FOLLOW_EVERY_S = 0.25
LOOK_EVERY_S = 0.1
TELL_EVERY_S = 20.0
STORIES_MAX = 3
"""Anomalies of which the cluster is asked what it remembers."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TortureConfig:
    """What the user asks for."""

    seconds: float
    kinds: Sequence[str]
    seed: int
    sessions: int = 32
    writers: int = 12
    rate: float = 250.0
    """Messages a second, all writers together."""


@dataclass(slots=True)
class Report:
    """The result; ``to_json`` is the last line."""

    seed: int
    sent: int = 0
    acked: int = 0
    refused: int = 0
    resent: int = 0
    received: int = 0
    pages: int = 0
    during: int = 0
    """Faults that met a repair."""
    faults: dict[str, int] = field(default_factory=dict)
    anomalies: dict[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    """The anomalies in words."""
    stories: list[str] = field(default_factory=list)
    recovery_ms: dict[str, Any] = field(default_factory=dict)
    verify: dict[str, Any] = field(default_factory=dict)
    elapsed_s: float = 0.0

    @property
    def ok(self) -> bool:
        whole = self.acked == self.sent and not self.refused
        return whole and not self.anomalies and bool(self.verify) and sound(self.verify)

    def note(self, name: str, text: str) -> None:
        """Something that no checker of histories can see: it did not go on."""
        self.anomalies[name] = self.anomalies.get(name, 0) + 1
        self.told.append(f"{name}: {text}")

    def to_json(self) -> dict[str, Any]:
        return {
            "acked": self.acked,
            "sent": self.sent,
            "faults": self.faults,
            "anomalies": self.anomalies,
            "recovery_ms": self.recovery_ms,
            "seed": self.seed,
            "elapsed_s": round(self.elapsed_s, 1),
            "verify": self.verify,
            "faults_during_repair": self.during,
            "received": self.received,
            "resent": self.resent,
            "pages": self.pages,
        }


def session_names(count: int, slots: int) -> list[str]:
    """Sessions over all slots, as evenly as their number allows."""
    room = dict.fromkeys(range(slots), -(-count // slots))
    names: list[str] = []
    number = 0
    while len(names) < count:
        name = f"torture-{number}"
        number += 1
        slot = slot_of(name, slots)
        if room[slot]:
            room[slot] -= 1
            names.append(name)
    return names


class Torture:
    """Everything that runs in one torture. ``directory`` is empty and the caller's to remove."""

    def __init__(self, config: TortureConfig, directory: Path, say: Say) -> None:
        self._config = config
        self._directory = directory
        self._say = say
        self._history = History(tell=self._anomaly, slots=SLOTS)
        self._sessions = session_names(config.sessions, SLOTS)
        self.cluster = TortureCluster(
            directory, self._fork("shape").choice(REPLICAS), say, self._views_seen
        )
        self._book = Book(self._history, SLOTS)
        self._recovery = Recovery(say)
        self._report = Report(config.seed)
        self._writers: list[WriterProcess] = []
        self._readers: list[FollowingReader] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._start_s = self._healing_s = 0.0
        self._anomalies = 0
        self._is_down = False
        self._telling: list[asyncio.Future[list[str]]] = []

    async def run(self) -> Report:
        """The whole of it. Whatever happens, no process is left."""
        begun = time.monotonic()
        try:
            await self.cluster.start()
            shape = f"{self.cluster.nodes.count} nodes, {self.cluster.replicas} replicas"
            self._say(f"up after {time.monotonic() - begun:.1f} s: {shape}")
            self._start_s = time.monotonic()
            await self._play()
            await self._read_and_judge()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for writer in self._writers:
                await writer.end()
            await self.cluster.end()
        self._report.elapsed_s = time.monotonic() - self._start_s
        return self._report

    # -- writing, reading, breaking ------------------------------------------------------------

    async def _play(self) -> None:
        self._start_traffic()
        wrecker = Wrecker(
            self.cluster, self._writers, self._fork("wrecker"), self._say, self._recovery.add
        )
        try:
            await self._break(wrecker)
            self._say(f"{self._at()}  healing")
            self._healing_s = time.monotonic()
            await wrecker.heal()
        finally:
            await wrecker.give_up()
        if wrecker.failed:
            self._report.note("not-healed", wrecker.failed)
        await self._until_healthy()
        await self._drain()

    def _fork(self, name: str) -> random.Random:
        """A generator of its own, so that what one part draws does not change another's."""
        return random.Random(f"{self._config.seed} {name}")

    def _start_traffic(self) -> None:
        self._start_writers()
        ways, book, sessions = self.cluster.ways, self._book, self._sessions
        self._readers = [
            FollowingReader(f"reader-{n}", self.cluster.url, sessions, self._history, self._pump)
            for n in range(1, READERS + 1)
        ]
        self._twins = [
            Twin(f"twin-{n}", ways, sessions, book, self._fork(f"twin {n}"))
            for n in range(1, TWINS + 1)
        ]
        self._puller = Puller(ways, sessions, self._history, self._pump, self._fork("puller"))
        self._resender = Resender(ways, book, self._fork("resender"))
        self._twin_tasks = [self._spawn(twin.run()) for twin in self._twins]
        for reader in self._readers:
            self._spawn(reader.run())
        self._spawn(self._puller.run())
        self._spawn(self._resender.run())
        self._spawn(self._follow_recovery())

    def _start_writers(self) -> None:
        config = self._config
        stores = self._directory / "clients"
        stores.mkdir(mode=0o700)
        draw = self._fork("writers")
        each = min(SESSIONS_PER_WRITER, len(self._sessions))
        who = [
            {
                "user": f"writer-{n}",
                "store": str(stores / f"writer-{n}.db"),
                "sessions": draw.sample(self._sessions, each),
            }
            for n in range(1, config.writers + 1)
        ]
        # Nobody's session is left out, and each has several writers as far as there are enough.
        for index, session in enumerate(self._sessions):
            sessions = who[index % len(who)]["sessions"]
            assert isinstance(sessions, list)
            if session not in sessions:
                sessions.append(session)
        for number in range(min(WRITER_PROCESSES, len(who))):
            order = {
                "url": self.cluster.url,
                "rate": config.rate / config.writers,
                "window": WINDOW,
                "seed": config.seed,
                "writers": who[number::WRITER_PROCESSES],
            }
            log = self._directory / f"writers-{number + 1}.log"
            process = WriterProcess(f"writers-{number + 1}", order, self._book, log)
            process.start()
            self._writers.append(process)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        return task

    def _pump(self) -> None:
        """Book what the writers have told: nothing is read before it was sent."""
        for writer in self._writers:
            writer.pump()

    async def _follow_recovery(self) -> None:
        told_s = time.monotonic()
        while True:
            self._recovery.follow(self._book.acked_entries)
            if time.monotonic() - told_s > TELL_EVERY_S:
                told_s = time.monotonic()
                self._say(f"{self._at()}  {self._book.acked:,} acked")
            await asyncio.sleep(FOLLOW_EVERY_S)

    def _at(self) -> str:
        return f"{time.monotonic() - self._start_s:7.1f} s"

    async def _break(self, wrecker: Wrecker) -> None:
        schedule = Schedule(self._config.kinds, self._fork("schedule"))
        end_s = self._start_s + self._config.seconds
        last_s, last = time.monotonic() + WARM_S, None
        while True:
            planned = schedule.next()
            during = await self._wait_for_turn(planned, last, last_s, end_s)
            if time.monotonic() >= end_s or self._anomalies:
                # What has gone wrong is easier to understand when nothing more is broken.
                return
            begun_s = time.monotonic()
            hit = await self._inject(wrecker, planned.kind, during)
            last, last_s = hit or last, time.monotonic()
            if planned.kind in EVERYTHING:
                # While the whole cluster is being started, nothing else can be broken.
                end_s += last_s - begun_s

    async def _inject(self, wrecker: Wrecker, kind: str, during: str) -> Hit | None:
        self._say_dead_tasks()
        try:
            hit = await wrecker.inject(kind)
        except ImError as error:
            self._say(f"{self._at()}  {kind} could not be done: {error}")
            return None
        if kind not in PATIENT:
            hit.during = during
        amid = f" (amid: {hit.during})" if hit.during else ""
        at_s = hit.ordered_s - self._start_s
        self._say(f"{at_s:7.1f} s  {kind}: {hit.target}{amid}")
        return hit

    async def _wait_for_turn(
        self, planned: Planned, last: Hit | None, last_s: float, end_s: float
    ) -> str:
        """Until the next fault is due; what it meets under repair, if it is to meet something."""
        if planned.during and last is not None:
            give_up_s = min(time.monotonic() + DURING_S, end_s)
            while time.monotonic() < give_up_s:
                if trouble := await self._trouble():
                    return trouble
                await asyncio.sleep(LOOK_EVERY_S)
        await self._sleep_until(min(last_s + planned.gap_s, end_s))
        # One that stops writes is over before the next one comes, or there would never be an ACK.
        give_up_s = min(last_s + RECOVER_S, end_s)
        while last is not None and not last.over and time.monotonic() < give_up_s:
            await asyncio.sleep(LOOK_EVERY_S)
        await asyncio.sleep(REST_S)
        return ""

    async def _sleep_until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - time.monotonic()))

    async def _trouble(self) -> str:
        with contextlib.suppress(ImError):
            return trouble_in(await self.cluster.status(TROUBLE_S))
        return "the controller does not answer"

    # -- the end -------------------------------------------------------------------------------

    async def _until_healthy(self) -> None:
        give_up_s = time.monotonic() + HEAL_S
        while trouble := await self.cluster.settled():
            if time.monotonic() > give_up_s:
                self._report.note("not-healed", f"after {HEAL_S:.0f} s: {trouble}")
                return
            await asyncio.sleep(REST_S)
        took_s = time.monotonic() - self._healing_s
        self._say(f"{self._at()}  healthy after {took_s:.1f} s")

    async def _drain(self) -> None:
        """Everything that was accepted is ACKed, and everything that was ACKed has been read."""
        for writer in self._writers:
            writer.stop()
        for twin in self._twins:
            twin.stopping = True
        ends = [*(writer.done.wait() for writer in self._writers), *self._twin_tasks]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await asyncio.gather(*ends)
        give_up_s = time.monotonic() + DRAIN_S
        while self._unread() and time.monotonic() < give_up_s:
            await asyncio.sleep(LOOK_EVERY_S)
        if unread := self._unread():
            self._report.note("unread", unread)

    def _unread(self) -> str:
        self._pump()
        if self._book.unheard:
            return f"{len(self._book.unheard)} ACKs of killed writers were not heard again"
        for reader in self._readers:
            if behind := reader.behind(self._book.heads):
                session, head = next(iter(behind.items()))
                had = reader.last[session]
                return f"{reader.name} is at {had} of {head} in {session!r}, {len(behind)} in all"
        return ""

    async def _read_and_judge(self) -> None:
        book, report = self._book, self._report
        self._say(f"{self._at()}  {book.acked:,} of {book.sent:,} acked; reading everything")
        if book.waiting:
            session, device, n = min(book.waiting)
            text = f"{len(book.waiting)} messages, e.g. {n} of {device} in {session!r}"
            report.note("never-acked", text)
        problems = await judge.read_by_all_gateways(
            self.cluster, self._history, book.heads, self._sessions
        )
        for problem in problems:
            report.note("unread", problem)
        report.verify = await self.cluster.call("verify", timeout_s=VERIFY_TIMEOUT_S)
        self._say(f"verify: {judge.verdict_words(report.verify)}")
        members = (await self.cluster.status())["slots"]["members"]
        for lines in await asyncio.gather(*self._telling):
            report.stories += lines
        self._stop_readers()
        self._is_down = True
        await self.cluster.down()
        await asyncio.to_thread(judge.read_logs, self.cluster.data, members, self._history)
        self._conclude()

    def _stop_readers(self) -> None:
        self._say_dead_tasks()
        for task in self._tasks:
            task.cancel()

    def _say_dead_tasks(self) -> None:
        """A reader that has died says so, and loses nothing silently."""
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.remove(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._report.note("client-failed", repr(error))

    def _conclude(self) -> None:
        book, report, recovery = self._book, self._report, self._recovery
        self._history.finish()
        for alarm in judge.alarms_in(self.cluster.data):
            report.note("alarm", alarm)
        for name, count in self._history.counts.items():
            report.anomalies[name] = report.anomalies.get(name, 0) + count
        report.told += [str(anomaly) for anomaly in self._history.anomalies]
        recovery.follow(book.acked_entries)
        report.sent, report.acked, report.refused = book.sent, book.acked, book.refused_count
        report.faults, report.recovery_ms = recovery.counts(), recovery.to_json()
        report.during = sum(bool(hit.during) for hit in recovery.hits)
        report.received = sum(reader.received for reader in self._readers)
        report.resent = self._resender.resent + sum(twin.doubled for twin in self._twins)
        report.pages = self._puller.pages

    def _views_seen(self, status: dict[str, Any]) -> None:
        """One owner per slot and epoch, whoever looks when."""
        slots = status["slots"]
        for slot, owner in slots["owners"].items():
            if owner:
                self._history.owner(int(slot), slots["epochs"][slot], owner)

    def _anomaly(self, anomaly: Anomaly) -> None:
        self._say(f"{self._at()}  ANOMALY {anomaly}")
        self._anomalies += 1
        if self._anomalies <= STORIES_MAX and not self._is_down:
            self._telling.append(asyncio.ensure_future(judge.story(self.cluster, anomaly)))
