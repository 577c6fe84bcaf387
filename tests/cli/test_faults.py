"""The injector: when it strikes, whom, and how long until it went on."""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from im_actors.cli.faults import FaultPlan, Hit, Injector, parse_faults
from im_actors.cli.ledger import Ledger
from im_actors.errors import NotReachable, SetupError

STATUS: dict[str, Any] = {
    "slots": {"total": 4, "epochs": {"0": 3, "1": 5}},
    "shards": {"shard-1": {"serving": [0]}, "shard-2": {"serving": [1, 2, 3]}},
    "replicas": {"replica-1": {"error": "dead"}, "replica-2": {}, "replica-3": {}},
    "gateways": {"gateway-1": {"connections": 1}, "gateway-2": {"connections": 9}},
}


class Stage:
    """A replay that is always ready."""

    start_s = 0.0

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.said: list[str] = []
        self.counts = {"a/x": 1, "b/x": 1}

    async def reached(self, share: float) -> None:
        self.shares.append(round(share, 3))

    def say(self, text: str) -> None:
        self.said.append(text)

    def connects(self) -> dict[str, int]:
        return dict(self.counts)

    def cut_connections(self) -> int:
        return 7


class Cluster:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def call(self, method: str, *arguments: Any, timeout_s: float = 0) -> Any:
        self.calls.append((method, *arguments))
        return STATUS if method == "status" else None

    async def kill_all(self) -> None:
        self.calls.append(("kill_all",))

    async def start_all(self) -> None:
        self.calls.append(("start_all",))


async def inject(*kinds: str) -> tuple[Injector, Stage, Cluster]:
    stage, cluster = Stage(), Cluster()
    plan = FaultPlan(kinds, cluster.call, cluster.kill_all, cluster.start_all)
    injector = Injector(plan, stage)
    await injector.run()
    return injector, stage, cluster


async def test_faults_are_spread_evenly_and_hit_those_with_the_most_to_do() -> None:
    injector, stage, cluster = await inject("kill-shard", "kill-gateway", "drop-connections")
    assert stage.shares == [0.25, 0.5, 0.75]
    assert [hit.target for hit in injector.hits] == ["shard-2", "gateway-2", "7 connections"]
    assert injector.hits[0].slots == {1, 2, 3}
    struck = [call for call in cluster.calls if call[0] == "fault"]
    assert struck == [("fault", "kill", "shard-2"), ("fault", "kill", "gateway-2")]


async def test_replicas_take_turns() -> None:
    injector, _, _ = await inject("kill-replica", "kill-replica")
    assert {hit.target for hit in injector.hits} == {"replica-2", "replica-3"}


async def test_pause_and_kill_all() -> None:
    _, _, cluster = await inject("pause-shard", "kill-all")
    assert ("fault", "pause", "shard-2") in cluster.calls
    assert cluster.calls[-2:] == [("kill_all",), ("start_all",)]


async def test_a_fault_that_cannot_be_done_is_said() -> None:
    class Dead(Cluster):
        async def call(self, method: str, *arguments: Any, timeout_s: float = 0) -> Any:
            raise NotReachable("the controller does not answer")

    stage = Stage()
    injector = Injector(FaultPlan(("kill-shard",), Dead().call), stage)
    await injector.run()
    assert injector.hits == []
    assert "kill-shard could not be done" in stage.said[0]


async def test_a_gateways_clients_are_those_that_had_to_come_back() -> None:
    injector, stage, _ = await inject("kill-gateway")
    stage.counts["b/x"] = 2
    injector.settle()
    assert injector.hits[0].devices == {"b/x"}


def test_plans_that_cannot_work() -> None:
    for kind in ("kill-shard", "kill-all"):
        with pytest.raises(SetupError):
            FaultPlan((kind,)).validate()
    FaultPlan(("drop-connections",)).validate()
    with pytest.raises(SetupError, match="kill-all needs"):
        FaultPlan(("kill-all",), Cluster().call).validate()
    with pytest.raises(SetupError, match="flood"):
        parse_faults("kill-shard,flood")


def booked(*rows: tuple[str, str, int, float, float | None, int]) -> Ledger:
    ledger = Ledger()
    for session, device, n, sent_s, acked_s, epoch in rows:
        entry = ledger.sent(session, device, n, "x", b"", sent_s)
        if acked_s is not None:
            ledger.acked(entry, n, epoch, 3, acked_s)
    return ledger


def test_recovered_is_the_first_ack_of_what_was_sent_after_through_what_was_hit() -> None:
    slot = zlib.crc32(b"s") % 4
    other = next(name for name in "abcdefgh" if zlib.crc32(name.encode()) % 4 != slot)
    ledger = booked(
        ("s", "a/x", 1, 9.0, 10.1, 1),  # was under way
        (other, "a/x", 1, 11.0, 11.1, 1),  # of another shard
        ("s", "a/x", 2, 11.0, 12.5, 2),
        ("s", "b/x", 1, 11.0, 12.0, 2),
        ("s", "b/x", 2, 11.0, None, 0),
    )
    entries = list(ledger.entries.values())
    hit = Hit("kill-shard", "shard-1", 10.0, 10.05, frozenset({slot}), 4)
    assert hit.told(9.0, entries) == {
        "kind": "kill-shard", "at_s": 1.0, "target": "shard-1", "recovered_s": 2.0,
    }  # fmt: skip
    hit = Hit("kill-gateway", "gateway-1", 10.0, 10.05, devices=frozenset({"a/x"}))
    assert hit.told(9.0, entries)["recovered_s"] == 1.1
    late = Hit("kill-replica", "replica-1", 20.0, 20.0)
    assert late.told(9.0, entries)["recovered_s"] is None


async def test_takeovers() -> None:
    ledger = booked(("s", "a/x", 1, 0.0, 1.0, 4), ("s", "a/x", 2, 0.0, 1.0, 6))
    plan = FaultPlan((), Cluster().call)
    before = {"total": 4, "epochs": {"0": 1, "1": 5}}
    assert await plan.takeovers(before, ledger) == 2
    assert await plan.takeovers({"total": 4}, ledger) == 2
    assert await FaultPlan().takeovers({}, ledger) == 2
