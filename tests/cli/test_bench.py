"""``im-actors bench`` as people and programs meet it, on a cluster."""

from __future__ import annotations

import asyncio
import json
import sys
import xml.dom.minidom
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from im_actors.cli.bench.latencies import Latencies
from im_actors.cli.bench.plan import Load
from im_actors.cli.bench.plot import svg
from im_actors.cli.bench.processes import Generators
from im_actors.cli.bench.telling import Telling
from im_actors.errors import NotReachable
from im_actors.gateway.config import GatewayConfig
from tests.cli.conftest import ClusterThread, Result, spawn
from tests.cli.fakes import FakeGateway

Run = Callable[..., Result]
SHORT = ("--seconds", "0.3", "--warmup", "0.1", "--connections", "4", "--sessions", "20")
LATENCY = ["p50", "p90", "p99", "p99_9", "max"]
LEDGER = [
    "sent", "acked", "refused", "unanswered", "received", "lost", "duplicated", "reordered", "gaps",
]  # fmt: skip


def bench(im: Run, cluster: ClusterThread, *options: object) -> dict[str, Any]:
    code, out, err = im("bench", "--data", cluster.data, "--json", *options)
    assert code == 0, out + err
    (line,) = out.splitlines()
    report: dict[str, Any] = json.loads(line)
    assert report["void"] is False
    assert list(report["ledger"]) == LEDGER
    assert report["ledger"]["sent"] == report["ledger"]["acked"] > 0
    return report


def test_a_closed_loop(im: Run, shared_cluster: ClusterThread) -> None:
    report = bench(im, shared_cluster, *SHORT, "--window", 8)
    assert (report["mode"], report["rate"], report["window"]) == ("closed", None, 8)
    for name in ("ack_ms", "delivery_ms"):
        assert list(report[name]) == LATENCY
        figures = list(report[name].values())
        assert figures == sorted(figures)
    assert report["ledger"]["received"] == report["ledger"]["acked"]
    assert report["msgs_per_s"] > 0
    assert len(report["generator_cpu"]) == report["processes"]
    assert report["server_cpu"] is None, "the servers are in this very process"
    assert report["machine"]["cores"] > 0
    assert report["fsync_us"]["p50"] > 0


def test_an_open_loop_with_a_plot(im: Run, shared_cluster: ClusterThread, tmp_path: Path) -> None:
    path = tmp_path / "latencies.svg"
    report = bench(im, shared_cluster, *SHORT, "--rate", 500, "--plot", path, "--bytes", 1024)
    assert report["mode"] == "open"
    assert report["ack_ms"]["max"] >= report["generator_late_ms"]["p50"] >= 0
    assert report["ledger"]["sent"] == 200
    document = xml.dom.minidom.parse(str(path))
    assert len(document.getElementsByTagName("polyline")) == 2


def test_two_generators_and_readers_afterwards(im: Run, shared_cluster: ClusterThread) -> None:
    options = ("--processes", 2, "--followers", 0, "--zipf", 1.2)
    report = bench(im, shared_cluster, *SHORT, *options)
    assert report["delivery_ms"] is None
    assert report["ledger"]["received"] == report["ledger"]["acked"]
    assert len(report["generator_cpu"]) == 2


def test_fan_out(im: Run, shared_cluster: ClusterThread) -> None:
    options = ("--fanout", 40, "--slow-readers", 3, "--rate", 50, "--processes", 2)
    report = bench(im, shared_cluster, *options, "--seconds", "0.3", "--warmup", "0")
    sent = report["ledger"]["sent"]
    # Once by each follower, and once more by the sender, who checks the history.
    assert report["ledger"]["received"] == 41 * sent
    assert sum(report["followers_at"].values()) == 40
    assert list(report["with_slow_readers"]["delivery_ms"]) == LATENCY


def test_for_people(im: Run, shared_cluster: ClusterThread) -> None:
    code, out, _ = im("bench", "--data", shared_cluster.data, *SHORT)
    assert code == 0
    assert out.startswith("closed loop, 4 connections × 16, 128 bytes, 20 sessions")
    assert "sound: sent" in out


def test_overload(im: Run, shared_cluster: ClusterThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("im_actors.cli.bench.overload.CLOSED_S", 1.0)
    monkeypatch.setattr("im_actors.cli.bench.overload.CALM_S", 0.3)
    for name in ("WARMUP_S", "CALM_WARMUP_S"):
        monkeypatch.setattr(f"im_actors.cli.bench.overload.{name}", 0.1)
    options = ("--seconds", "0.3", "--connections", "4", "--sessions", "20", "--overload")
    report = bench(im, shared_cluster, *options)
    assert report["rate"] == pytest.approx(2 * report["best_msgs_per_s"], abs=1)
    share = report["msgs_per_s"] / report["best_msgs_per_s"]
    assert report["share_of_best"] == pytest.approx(share, abs=0.01)
    assert list(report["calm_ack_ms"]) == ["before", "after"]
    assert report["refused_without_wait"] == 0


@pytest.mark.parametrize(
    "options",
    [
        ("--window", 129),
        ("--bytes", 7),
        ("--bytes", 65_537),
        ("--sessions", 2_000_000),
        ("--connections", 2, "--processes", 3),
        ("--slow-readers", 3),
        ("--fanout", 3, "--slow-readers", 3),
        ("--fanout", 3, "--overload"),
        ("--fanout", 3, "--zipf", 1),
        ("--overload", "--rate", 10),
        ("--plot", "picture.png"),
        ("--as", "a/b"),
        ("--url", "ims://127.0.0.1:1"),
        ("--url", "im://127.0.0.1:1"),
    ],
)
def test_what_makes_no_sense_is_one_line(im: Run, tmp_path: Path, options: Any) -> None:
    code, out, err = im("bench", "--data", tmp_path, "--url", "im://127.0.0.1:1", *options)
    assert (code, out) == (1, "")
    assert err.startswith("im-actors: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "options", [("--rate", -1), ("--seconds", 0), ("--zipf", "x"), ("--connections", 0)]
)
def test_wrong_usage(im: Run, options: Any) -> None:
    code, _, err = im("bench", *options)
    assert code == 2
    assert "usage: im-actors bench" in err


async def test_a_void_run_is_a_failure() -> None:
    async with FakeGateway() as gateway:
        gateway.events_of = lambda events: [event._replace(body=b"?") for event in events]
        process = spawn("bench", "--url", "im://{}:{}".format(*gateway.address), *SHORT)
        out, _ = await asyncio.to_thread(process.communicate)
    assert process.returncode == 1
    assert "VOID" in out
    assert "has another body" in out


async def test_a_generator_that_dies_is_an_error() -> None:
    load = Load(run="r", addresses=[("127.0.0.1", 1)])
    with pytest.raises(NotReachable, match="a generator has ended"):
        async with Generators([load], None, module="im_actors.cli.bench.plan"):
            pass


def test_tokens(im: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret that is long enough for it")
    config = GatewayConfig(token_secret=secret.read_text())
    cluster = ClusterThread(tmp_path / "cluster", gateway=config)
    cluster.data.mkdir()
    cluster.start()
    try:
        bench(im, cluster, *SHORT, "--token-secret-file", secret)
        code, out, err = im("bench", "--data", cluster.data, *SHORT)
    finally:
        cluster.close()
    assert (code, out) == (1, "")
    assert "needs a token" in err
    assert len(err.splitlines()) == 1


def test_the_end_of_the_commander_ends_the_generators(shared_cluster: ClusterThread) -> None:
    process = spawn(
        "bench", "--data", shared_cluster.data, "--seconds", 60, "--rate", 20, "--warmup", 0
    )
    assert process.stderr is not None
    while "acked" not in process.stderr.readline():
        assert process.poll() is None
    process.terminate()
    assert process.wait(20) == 143

    async def gone() -> None:
        for name in ("gateway-1", "gateway-2"):
            while shared_cluster.cluster.node(name).status()["connections"]:
                await asyncio.sleep(0.01)

    shared_cluster.run(gone())


def test_a_long_run_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for expected_s, lines in ((60.0, 1), (1.0, 0)):
        telling = Telling(sys.stderr, expected_s)
        telling._told -= 3_000_000
        telling.moved(0, 0)
        assert len(capsys.readouterr().err.splitlines()) == lines
        telling._told -= 3_000_000
        telling.moved(1_000, 900)
        telling.moved(2_000, 900)
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_a_picture_of_nothing() -> None:
    xml.dom.minidom.parseString(svg("<&>", {"ack": Latencies()}))
