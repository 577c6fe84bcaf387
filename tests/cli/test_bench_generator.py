"""A generator against a gateway that misbehaves: nothing of it may pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from im_actors.cli.bench import generator as module
from im_actors.cli.bench.generator import Generator, Phase
from im_actors.cli.bench.pace import GRID_US, Pace, kernel_timer
from im_actors.cli.bench.plan import Load
from im_actors.cli.bench.wire import micros
from im_actors.core.model import Event
from im_actors.core.outbox import IN_FLIGHT_ROWS_MAX, IN_FLIGHT_ROWS_MIN
from im_actors.errors import OutOfOrder, Overloaded
from tests.cli.fakes import FakeGateway, Rows


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what never comes. What comes is waited for, on a busy machine, too."""
    monkeypatch.setattr(module, "STILL_S", 0.3)


async def run(
    gateway: FakeGateway,
    seconds: float = 0.1,
    rate: float | None = 500.0,
    burst: int = 1,
    during: Callable[[Generator], Any] = lambda generator: None,
    **load: Any,
) -> tuple[Generator, dict[str, Any], dict[str, Any]]:
    """One phase and the end: the generator, its figures and its result."""
    plan = Load(
        run="r", addresses=[gateway.address], **{"connections": 2, "sessions": 4, **load}
    ).validate()
    generator = Generator(plan, lambda _: None)
    try:
        await generator.prepare()
        now = micros()
        phase = Phase(
            begins=now, since=now, ends=now + int(seconds * 1e6), rate=rate, window=3, burst=burst
        )
        task = asyncio.create_task(generator.phase(phase))
        during(generator)
        await task
        figures = await generator.settle(None)
        return generator, figures, await generator.finish()
    finally:
        generator.close()


@pytest.mark.parametrize("followers", [0, 1, 3])
@pytest.mark.parametrize("rate", [None, 500.0])
async def test_an_honest_gateway(followers: int, rate: float | None) -> None:
    async with FakeGateway() as gateway:
        _, figures, result = await run(gateway, rate=rate, followers=followers)
    ledger = result["ledger"]
    assert ledger["sent"] == ledger["acked"] == sum(count for _, count in figures["ack"])
    assert ledger["received"] == ledger["sent"] * max(1, followers)
    assert not any(ledger[name] for name in ("lost", "duplicated", "reordered", "gaps"))
    assert result["problems"] == []
    if rate is not None:
        assert ledger["sent"] == 50


def without(events: list[Event]) -> list[Event]:
    return [event for event in events if event.seq != 2]


def twice(events: list[Event]) -> list[Event]:
    return [copy for event in events for copy in (event, event)]


def renumbered(events: list[Event]) -> list[Event]:
    """Every event takes the place of a message that nobody sent."""
    return [event._replace(n=event.n + 1) for event in events]


def changed(events: list[Event]) -> list[Event]:
    return [event._replace(body=event.body[:-1] + b"!") for event in events]


@pytest.mark.parametrize(
    ("lie", "wrong"), [(twice, "duplicated"), (renumbered, "lost")], ids=["twice", "renumbered"]
)
async def test_events_that_lie(lie: Callable[[list[Event]], list[Event]], wrong: str) -> None:
    async with FakeGateway() as gateway:
        gateway.events_of = lie
        _, _, result = await run(gateway)
    assert result["ledger"][wrong] > 0


async def test_a_lost_push_is_pulled_and_no_loss() -> None:
    async with FakeGateway() as gateway:
        gateway.events_of = without
        _, _, result = await run(gateway)
    assert result["pulled"] > 0
    assert result["ledger"]["lost"] == result["ledger"]["gaps"] == 0


async def test_an_event_that_is_nowhere() -> None:
    async with FakeGateway() as gateway:

        def forget(events: list[Event]) -> list[Event]:
            for event in without(events):
                gateway.timelines[event.session] = gateway.timelines[event.session][:1]
            return without(events)

        gateway.events_of = forget
        _, _, result = await run(gateway, sessions=2)
    assert result["ledger"]["lost"] > 0


async def test_a_changed_body() -> None:
    async with FakeGateway() as gateway:
        gateway.events_of = changed
        _, _, result = await run(gateway)
    assert "another body" in result["problems"][0]


async def test_a_reader_that_was_cut_comes_back_and_misses_nothing() -> None:
    async with FakeGateway() as gateway:

        def cut(generator: Generator) -> None:
            for follower in generator.followers:
                follower.stop_reading()
            for followers in gateway.followers.values():
                for connection in followers:
                    connection.abort()
                followers.clear()

        _, figures, result = await run(gateway, during=cut)
    assert result["reconnects"] == 1
    assert result["ledger"]["received"] == result["ledger"]["acked"] == 50
    assert figures["delivery"] == []
    assert result["problems"] == []


async def test_a_follower_that_reads_and_is_cut_all_the_same() -> None:
    async with FakeGateway() as gateway:

        def cut(generator: Generator) -> None:
            for followers in gateway.followers.values():
                for connection in followers:
                    connection.abort()

        _, _, result = await run(gateway, during=cut)
    assert "the connection has ended" in result["problems"][0]


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        (lambda rows: rows + rows, "was ACKed again"),
        (lambda rows: [[*row[:4], 2, 0] for row in rows], "2 copies"),
    ],
    ids=["twice", "two copies"],
)
async def test_acks_that_lie(lie: Callable[[Rows], Rows], told: str) -> None:
    async with FakeGateway() as gateway:
        gateway.acks_of = lie
        _, _, result = await run(gateway)
    assert result["wrong"] > 0
    assert told in result["problems"][0]


async def test_an_ack_of_another_seq() -> None:
    async with FakeGateway() as gateway:
        gateway.acks_of = lambda rows: [[*row[:2], row[2] + 1, *row[3:]] for row in rows]
        _, _, result = await run(gateway)
    assert result["ledger"]["lost"] > 0


@pytest.mark.usefixtures("impatient")
async def test_what_has_no_answer() -> None:
    async with FakeGateway() as gateway:
        gateway.acks_of = lambda rows: rows[:-1]
        _, _, result = await run(gateway)
    assert result["ledger"]["unanswered"] > 0


async def test_what_is_refused_is_sent_again_in_order_and_not_before_its_time() -> None:
    wait_ms = 40
    async with FakeGateway() as gateway:
        refused: dict[tuple[str, int], float] = {}
        early: list[tuple[str, int]] = []

        def refuse(entries: Rows) -> Rows:
            rows = []
            behind: set[str] = set()
            for session, n, _, _ in entries:
                if session in behind:
                    rows.append([session, n, OutOfOrder.code, 0, n - 1, ""])
                elif n % 5 == 0 and (session, n) not in refused:
                    refused[session, n] = time.monotonic()
                    behind.add(session)
                    rows.append([session, n, Overloaded.code, wait_ms, 0, ""])
                elif time.monotonic() < refused.get((session, n), 0.0) + wait_ms / 1000:
                    early.append((session, n))
            return rows

        gateway.refuse = refuse
        # One connection has each session for itself: (session, n) names a message.
        _, figures, result = await run(gateway, connections=1, sessions=2, seconds=0.3)
    assert refused
    assert early == []
    assert result["ledger"]["acked"] == result["ledger"]["sent"] == 150
    assert figures["refused"][Overloaded.code] == len(refused)
    assert result["without_wait"] == 0
    assert result["problems"] == []


async def test_an_overloaded_gateway_gets_less_at_a_time_and_all_of_it_in_the_end() -> None:
    limits: list[float] = []
    async with FakeGateway() as gateway:
        generators: list[Generator] = []

        def refuse(entries: Rows) -> Rows:
            if IN_FLIGHT_ROWS_MIN in limits:
                return []
            limits.append(generators[0].senders[0].flying_max)
            return [[session, n, Overloaded.code, 5, 0, ""] for session, n, _, _ in entries]

        gateway.refuse = refuse
        _, _, result = await run(gateway, 0.3, 5_000.0, during=generators.append, connections=1)
    assert limits[0] == IN_FLIGHT_ROWS_MAX
    assert IN_FLIGHT_ROWS_MIN in limits
    assert result["ledger"]["acked"] == result["ledger"]["sent"] == 1_500
    assert result["problems"] == []


async def test_a_refusal_without_a_time_to_wait_is_counted() -> None:
    async with FakeGateway() as gateway:
        once = {"left": 1}

        def refuse(entries: Rows) -> Rows:
            if not once["left"]:
                return []
            once["left"] = 0
            return [[session, n, Overloaded.code, 0, 0, ""] for session, n, _, _ in entries]

        gateway.refuse = refuse
        _, _, result = await run(gateway, rate=20.0)
    assert result["without_wait"] == 1


async def test_an_open_loop_counts_from_the_time_when_a_message_was_due() -> None:
    """A server that stands still for a while delays what was due meanwhile, too: a generator that
    waits for it, or starts its clock late, would not notice."""
    still_s = 0.4
    async with FakeGateway() as gateway:

        def stand_still(generator: Generator) -> None:
            gateway.answering.clear()
            asyncio.get_running_loop().call_later(still_s, gateway.answering.set)

        _, figures, result = await run(gateway, seconds=still_s, rate=500.0, during=stand_still)
    latencies = [value for value, count in figures["ack"] for _ in range(count)]
    assert len(latencies) == result["ledger"]["sent"] == 200
    # Due evenly over the time of the stand: half of them waited for more than half of it.
    assert sorted(latencies)[100] >= still_s * 1e6 / 2 * 0.95
    assert max(latencies) >= still_s * 1e6 * 0.95


async def test_bursts() -> None:
    async with FakeGateway() as gateway:
        _, _, result = await run(gateway, rate=5_000.0, burst=3, connections=7)
    assert {len(entries) for entries in gateway.sends} == {3, 2}
    assert result["ledger"]["acked"] == 500


async def test_a_generator_that_is_late_keeps_to_the_times() -> None:
    begins = micros()
    calls: list[tuple[int, int]] = []

    def send(count: int, at: int) -> None:
        calls.append((count, at))
        if len(calls) == 3:
            time.sleep(0.03)

    await Pace(5_000.0, begins, begins + 100_000, send).run()
    assert [at for _, at in calls] == [begins + point * GRID_US for point in range(100)]
    assert {count for count, _ in calls} == {5}


@pytest.mark.parametrize("rate", [7.0, 333.0, 1500.0])
async def test_the_rate_is_kept_without_a_timer_of_the_kernel(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("im_actors.cli.bench.pace.kernel_timer", lambda first, interval: None)
    begins = micros()
    sent: list[int] = []
    await Pace(rate, begins, begins + 200_000, lambda count, at: sent.append(count)).run()
    assert sum(sent) == int(rate * 0.2)


def test_what_the_kernel_cannot_do() -> None:
    assert kernel_timer(-1, GRID_US) is None


def test_parts_are_the_whole() -> None:
    load = Load(
        run="r", addresses=[("h", 1), ("h", 2)], connections=7, sessions=10, processes=3
    ).validate()
    parts = [load.part(number) for number in range(3)]
    assert sum(part.connections for part in parts) == 7
    assert sum(part.sessions for part in parts) == 10
    names = [part.session(n) for part in parts for n in range(part.sessions)]
    assert len(set(names)) == 10
    assert sum(part.share for part in parts) == pytest.approx(1.0)
    assert parts[1].address(0) != parts[0].address(0)


def test_sessions_are_shared_by_two_connections_each() -> None:
    load = Load(run="r", addresses=[("h", 1)], connections=4, sessions=12)
    writers: dict[str, set[int]] = {}
    for number, draws in enumerate(load.draws()):
        for _ in range(24):
            writers.setdefault(next(draws), set()).add(number)
    assert len(writers) == 12
    assert {len(numbers) for numbers in writers.values()} == {2}


def test_popular_sessions() -> None:
    load = Load(run="r", addresses=[("h", 1)], connections=1, sessions=1_000, zipf=1.0)
    (draws,) = load.draws()
    drawn = [next(draws) for _ in range(10_000)]
    often = drawn.count(load.session(0)) / drawn.count(load.session(9))
    assert 5 < often < 20
    (alike,) = replace(load, zipf=None).draws()
    assert len({next(alike) for _ in range(1_000)}) == 1_000
