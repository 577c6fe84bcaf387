"""What a device reports as received: what its store holds without a hole, and nobody has said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from im_actors.client import received as module
from im_actors.client.received import Received
from im_actors.core.facts import read_request
from im_actors.core.model import Event, EventKind, pack
from im_actors.errors import ShuttingDown

TALK = "direct:alice/bob"


def event(seq: int, session: str = TALK, user: str = "bob") -> Event:
    return Event(session, seq, seq, int(EventKind.MESSAGE), f"{user}/pc-1", seq, b"hi")


class Device:
    """Engine, store and mailbox of a device of alice's, as ``Received`` sees them."""

    def __init__(self) -> None:
        self.rng = Random(1)
        self.user = SimpleNamespace(session="user:alice")
        self.store = self
        self.events: dict[str, dict[int, Event]] = {}
        self.kept: dict[str, bytes] = {}
        self.reports: list[list[list[Any]]] = []
        self.acks = asyncio.Event()
        self.acks.set()
        self.closed = False
        self.read: dict[str, int] = {}
        self.received = self.begin()

    def begin(self) -> Received:
        """The program, started anew."""
        self.received = Received(self, "alice", self, 1)  # type: ignore[arg-type]
        self.received.restore(self.kept)
        return self.received

    def came(self, *events: Event) -> None:
        for one in events:
            self.events.setdefault(one.session, {})[one.seq] = one
        self.received.saw(events)

    async def run(self, condition: Callable[[], bool] = lambda: False) -> None:
        """Until it holds; without one until nothing is left to report."""
        task = asyncio.create_task(self.received.run())
        async with asyncio.timeout(60):
            while not condition() and (self.received._touched or self.received._news.is_set()):
                await asyncio.sleep(0)
            while not self.received._news._waiters and not condition():
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    # -- the engine

    async def send(self, session: str, body: bytes, kind: EventKind) -> Any:
        assert (session, kind) == ("user:alice", EventKind.MAILBOX)
        what, args = read_request(body)
        assert what == "received"
        self.reports.append(args[0])
        return self

    async def acked(self, timeout: float | None) -> None:
        await self.acks.wait()
        if self.closed:
            raise ShuttingDown("closed")

    def warn(self, error: Exception) -> None:
        raise error

    # -- its store

    def keep(self, area: str, name: str, value: bytes | None) -> None:
        assert area == "received"
        if value is None:
            del self.kept[name]
        else:
            self.kept[name] = value

    async def events_after(self, session: str, after: int, limit: int) -> list[Event]:
        await asyncio.sleep(0)
        timeline = self.events.get(session, {})
        return [timeline[seq] for seq in sorted(timeline) if seq > after][:limit]

    async def last_events(self) -> list[Event]:
        return [timeline[max(timeline)] for timeline in self.events.values()]

    # -- its mailbox

    def row(self, session: str) -> Any:
        return SimpleNamespace(read_seq=self.read[session]) if session in self.read else None


async def test_what_comes_together_is_one_report() -> None:
    device = Device()
    device.came(*(event(seq) for seq in range(1, 6)), event(1, "direct:alice/eve", "eve"))
    device.came(event(6), event(1, "team"), event(1, "group:g"), event(1, "notice:system/alice"))
    await device.run()
    assert device.reports == [[[TALK, 6], ["direct:alice/eve", 1]]]
    device.came(event(6))
    await device.run()
    assert len(device.reports) == 1


async def test_neither_own_messages_nor_what_was_read_is_reported() -> None:
    device = Device()
    device.came(event(1), event(2, user="alice"))
    await device.run()
    assert device.reports == [[[TALK, 1]]]
    device.came(event(3, user="alice"), event(4))
    device.read[TALK] = 4
    await device.run()
    device.came(event(5, user="alice"))
    await device.run()
    assert len(device.reports) == 1
    device.came(event(6))
    await device.run()
    assert device.reports[1:] == [[[TALK, 6]]]


async def test_nothing_behind_a_hole_is_reported_before_it_is_closed() -> None:
    device = Device()
    device.came(event(1), event(2), event(4), event(5))
    await device.run()
    device.came(event(3))
    await device.run()
    assert device.reports == [[[TALK, 2]], [[TALK, 5]]]
    # Where the user has read there is no hole.
    device.read[TALK] = 90
    device.came(event(91))
    await device.run()
    assert device.reports[2:] == [[[TALK, 91]]]


async def test_what_another_device_has_said_is_not_said_again() -> None:
    device = Device()
    device.came(event(1), event(2), event(3))
    device.received.told([[TALK, 3]])
    await device.run()
    assert device.reports == []
    device.came(event(4))
    await device.run()
    assert device.reports == [[[TALK, 4]]]


async def test_one_report_at_a_time_and_the_next_has_all_that_came_meanwhile() -> None:
    device = Device()
    device.acks.clear()
    device.came(event(1))
    task = asyncio.create_task(device.received.run())
    async with asyncio.timeout(60):
        while not device.reports:
            await asyncio.sleep(0)
        for seq in range(2, 9):
            device.came(event(seq))
            await asyncio.sleep(0.003)
        assert device.reports == [[[TALK, 1]]]
        device.acks.set()
        while len(device.reports) < 2:
            await asyncio.sleep(0)
    assert device.reports == [[[TALK, 1]], [[TALK, 8]]]
    task.cancel()


async def test_what_was_not_reported_before_the_end_is_by_the_next_start() -> None:
    device = Device()
    device.came(event(1))
    await device.run()
    device.came(event(2))
    device.begin()
    await device.run(lambda: len(device.reports) == 2)
    assert device.reports == [[[TALK, 1]], [[TALK, 2]]]
    device.begin()
    await device.run()
    assert len(device.reports) == 2


async def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (
        ("POSITIONS_MAX", 2), ("SESSIONS_MAX", 5), ("PAGE_EVENTS", 3), ("PAGES_MAX", 2),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, limit)
    device = Device()
    device.came(*(event(seq) for seq in range(1, 11)))
    await device.run()
    # A page at a time, two pages a report.
    assert device.reports == [[[TALK, 6]], [[TALK, 10]]]
    for n in range(7):
        device.came(event(1, f"direct:alice/u{n}", f"u{n}"))
    await device.run()
    assert [len(report) for report in device.reports[2:]] == [2, 2, 1]
    assert len(device.kept) == 5
    assert device.kept["direct:alice/u6"] == pack(1)
