"""What a watcher sees, on a screen and as lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from im_actors.cli.top import rates
from im_actors.core.histogram import Histogram
from tests.cli.conftest import ClusterThread, Result, json_lines

Run = Callable[..., Result]


def histogram(*values: float) -> dict[str, Any]:
    found = Histogram()
    for value in values:
        found.observe(value)
    return found.to_dict()


def status(pid: int, acked: int, *acks: float) -> dict[str, Any]:
    gateway = {"pid": pid, "acked": acked, "connections": 3, "ack": histogram(*acks)}
    slots = {"active": 8, "total": 8}
    return {"healthy": True, "slots": slots, "gateways": {"gateway-1": gateway}, "replicas": {}}


def test_rates_are_what_happened_between_two_looks() -> None:
    found = rates(status(1, 100, 5.0), status(1, 140, 5.0, 0.0015, 0.0015), 2.0)
    assert found["acked_per_s"] == 20
    assert found["connections"] == 3
    assert 1 < found["ack_ms"]["p50"] <= 2
    assert found["commit_ms"] == {"p50": None, "p99": None}


def test_a_process_that_started_again_counts_from_nothing() -> None:
    found = rates(status(1, 1_000, 5.0), status(2, 10, 0.0015), 2.0)
    assert found["acked_per_s"] == 5
    assert found["ack_ms"]["p99"] <= 2


def test_lines_for_programs(im: Run, shared_cluster: ClusterThread) -> None:
    data = ("--data", shared_cluster.data)
    code, out, err = im("top", "--json", "--count", 2, "--every", 0.1, *data)
    assert (code, err) == (0, "")
    first, second = json_lines(out)
    assert first.keys() == second.keys()
    assert first["healthy"]
    assert first["slots_active"] == 8


def test_tables_for_people(
    im: Run, shared_cluster: ClusterThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ("--data", shared_cluster.data)
    code, out, err = im("top", "--count", 1, "--every", 0.1, *data)
    assert (code, out) == (1, "")
    assert "--json" in err
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "50")
    code, out, _ = im("top", "--count", 1, "--every", 0.1, *data)
    assert code == 0
    for word in ("healthy", "8 of 8 slots active", "replica-3", "acked a second", "p50 / p99"):
        assert word in out


def test_a_cluster_that_goes_away_is_waited_for(
    im: Run, own_cluster: ClusterThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("im_actors.cli.top.TIMEOUT_S", 60.0)
    asked: list[int] = []
    call = "im_actors.server.admin.AdminClient.call"
    from im_actors.server.admin import AdminClient

    real = AdminClient.call

    async def failing_once(self: AdminClient, *args: Any, **kwargs: Any) -> Any:
        asked.append(1)
        if len(asked) == 2:
            return await real(self, "no such method")
        return await real(self, *args, **kwargs)

    monkeypatch.setattr(call, failing_once)
    code, out, _ = im("top", "--json", "--count", 1, "--every", 0.05, "--data", own_cluster.data)
    assert code == 0
    lost, found = json_lines(out)
    assert not lost["healthy"]
    assert "no method" in lost["error"]
    assert found["healthy"]
