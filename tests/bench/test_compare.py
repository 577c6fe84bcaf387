"""The comparison: its figures, how its senders read answers, what it does without a server."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.compare import __main__ as program
from bench.compare import servers
from bench.compare.figures import TITLES, summary, table
from bench.compare.nats_load import NatsSender
from bench.compare.peers import PeerSender
from bench.compare.plot import svg
from bench.compare.redis_load import RedisSender
from bench.compare.servers import SYSTEMS, Missing, Redis, System
from im_actors.cli.bench.generator import Generator
from im_actors.cli.bench.plan import Load
from im_actors.cli.bench.wire import micros

QUICK = ["--seconds", "0.3", "--warm-up", "0.1", "--sessions", "20"]


def result(msgs_per_s: float, ms: float = 1.0) -> dict[str, Any]:
    return {
        "msgs_per_s": msgs_per_s,
        "ack_ms": {"p50": ms, "p99": 2 * ms},
        "server_cpu_us_per_msg": 10 * ms,
        "generator_cpu_share": 0.1,
        "fsync_us": 200.0,
    }


# -- figures ---------------------------------------------------------------------------------------


def test_the_summary_has_the_medians_and_the_spread() -> None:
    found = summary([result(300.0, 3.0), result(100.0, 1.0), result(250.0, 2.0)])
    assert found["msgs_per_s"] == 250
    assert found["ack_ms"] == {"p50": 2.0, "p99": 4.0}
    assert found["server_cpu_us_per_msg"] == 20.0
    assert found["runs"] == 3
    assert found["spread"]["msgs_per_s"] == [100.0, 300.0]
    assert found["spread"]["ack_ms_p99"] == [2.0, 6.0]


class Fake(System):
    """A system whose measurements are given."""

    meaning = "It says so."
    running = 0

    @classmethod
    def require(cls) -> str:
        return "1.0"

    def start(self) -> None:
        Fake.running += 1

    def stop(self) -> None:
        Fake.running -= 1


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Two fake systems; the order in which they are measured, while exactly one of them runs."""
    names = ("im_actors", "redis")
    for name in list(SYSTEMS):
        monkeypatch.delitem(SYSTEMS, name)
    for name in names:
        monkeypatch.setitem(SYSTEMS, name, type(name, (Fake,), {"name": name}))
    order: list[str] = []

    def measured(system: System, load: tuple[int, int], args: Any) -> dict[str, Any]:
        assert Fake.running == 1
        order.append(f"{system.name} {load[0]}x{load[1]}")
        return result(1_000.0 * load[0] * (2 if system.name == "im_actors" else 1))

    monkeypatch.setattr(program, "measured", measured)
    yield order
    assert Fake.running == 0


def test_rounds_go_over_the_systems_and_the_last_line_is_the_report(
    fakes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--json", "--runs", "2", "--loads", "1x1,64x128", "--output", str(tmp_path)]
    assert program.main(argv) == 0
    round_of = ["im_actors 1x1", "im_actors 64x128", "redis 1x1", "redis 64x128"]
    assert fakes == round_of * 2

    printed = capsys.readouterr()
    report = json.loads(printed.out.splitlines()[-1])
    assert json.loads((tmp_path / "compare.json").read_text()) == report
    assert {"loads", "fsync_us", "machine"} <= report.keys()
    assert [(load["connections"], load["window"]) for load in report["loads"]] == [
        (1, 1),
        (64, 128),
    ]
    for load in report["loads"]:
        assert set(load["systems"]) == {"im_actors", "redis"}
        for of in load["systems"].values():
            assert of["msgs_per_s"] > 0
            assert {"p50", "p99"} == of["ack_ms"].keys()
    assert "2.00×" in printed.err

    assert program.main(["--table", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown == table(report) + "\n"
    assert "It says so." in shown


def test_the_picture_has_a_bar_for_each_system_and_load(fakes: list[str], tmp_path: Path) -> None:
    assert program.main(["--runs", "1", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "compare.svg").read_text()
    titles = [node.text for node in ElementTree.fromstring(text).iter() if node.text]
    assert [TITLES["im_actors"], TITLES["redis"]] == [t for t in titles if t in TITLES.values()]
    assert titles.count("2,000") == 1
    assert titles.count("64,000") == 2


def test_a_system_that_never_changes_has_a_picture_too() -> None:
    load = {"connections": 1, "window": 1, "systems": {"redis": summary([result(10.0)])}}
    assert ElementTree.fromstring(svg({"loads": [load]})) is not None


def test_the_table_of_a_comparison_that_never_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["--table", "--output", str(tmp_path)]) == 2
    assert "compare first" in capsys.readouterr().err


# -- what is not installed -------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without servers."""
    monkeypatch.setattr(servers.shutil, "which", lambda name, path: None)


@pytest.mark.usefixtures("bare")
def test_what_is_not_installed_is_left_out_with_its_package(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert set(program.installed(None)) <= {"im_actors"}
    told = capsys.readouterr().err
    assert "redis is left out: redis-server is not installed" in told
    assert told.count("Debian's package is nats-server") == 2


@pytest.mark.usefixtures("bare")
def test_what_is_asked_for_has_to_be_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["--systems", "redis", "--output", str(tmp_path)]) == 2
    assert "Debian's package is redis-server" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [["--systems", "kafka"], ["--loads", "64"], ["--loads", "0x1"]])
def test_what_makes_no_sense_is_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(argv)


# -- the senders -----------------------------------------------------------------------------------


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, name: str) -> None:
        return None


Open = Callable[[type[PeerSender]], tuple[PeerSender, Transport]]


@pytest.fixture
async def opened() -> Open:
    """A greeted sender of a closed loop that has no end."""

    def make(kind: type[PeerSender]) -> tuple[PeerSender, Transport]:
        load = Load(run="r.0", addresses=[("127.0.0.1", 1)], connections=1, sessions=2)
        run = Generator(load, lambda answer: None)
        run.closed_loop, run.ends = True, micros() + 1_000_000_000
        sender = kind(run, 0, next(load.draws()))
        transport = Transport()
        sender.connection_made(transport)  # type: ignore[arg-type]
        return sender, transport

    return make


def fed(sender: PeerSender, data: bytes, size: int) -> None:
    """In pieces of this size, as a network may deliver it."""
    for start in range(0, len(data), size):
        sender.data_received(data[start : start + size])


def nats_ack(sender: PeerSender, token: int, more: str = "") -> bytes:
    body = f'{{"stream":"bench", "seq":{token}{more}}}'
    inbox = f"_INBOX.{sender.device.decode().replace('.', '_')}.{token}"
    return f"MSG {inbox} 1  {len(body)}\r\n{body}\r\n".encode()


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_nats_is_acknowledged_one_by_one_with_pings_between(opened: Open, size: int) -> None:
    sender, transport = opened(NatsSender)
    fed(sender, b'INFO {"version":"2.9.10"}\r\nPONG\r\n', size)
    assert sender.welcome.done()
    sender.submit(3, micros())
    answers = nats_ack(sender, 2) + b"PING\r\n" + nats_ack(sender, 1)
    fed(sender, answers, size)
    assert sender.run.acked == 2
    assert sender.unacked == 3
    assert transport.written.count(b"Nats-Msg-Id:") == 5
    assert transport.written.count(b"PONG\r\n") == 1
    assert not sender.run.problems


@pytest.mark.parametrize("more", [', "duplicate":true', ', "error":{"code":503}'])
async def test_nats_refusing_or_knowing_a_message_is_a_problem(opened: Open, more: str) -> None:
    sender, _ = opened(NatsSender)
    sender.submit(1, micros())
    fed(sender, nats_ack(sender, 1, more), 1000)
    assert sender.run.acked == 0
    assert sender.run.problems


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_redis_acknowledges_a_batch_with_its_wait(opened: Open, size: int) -> None:
    sender, transport = opened(RedisSender)
    fed(sender, b"$2\r\nab\r\n", size)
    assert sender.welcome.done()
    sender.submit(2, micros())
    fed(sender, b"*2\r\n$3\r\n1-0\r\n$3\r\n1-1\r\n", size)
    assert sender.run.acked == 0
    fed(sender, b":2\r\n", size)
    assert sender.run.acked == 2
    assert transport.written.count(b"EVALSHA") == transport.written.count(b"WAIT") == 2
    assert not sender.run.problems


@pytest.mark.parametrize(
    "answer", [b"*1\r\n$-1\r\n:2\r\n", b"-OOM no\r\n:2\r\n", b"*1\r\n$3\r\n1-0\r\n:1\r\n"]
)
async def test_redis_refusing_or_knowing_a_message_is_a_problem(
    opened: Open, answer: bytes
) -> None:
    sender, _ = opened(RedisSender)
    fed(sender, b"$2\r\nab\r\n", 1000)
    sender.submit(1, micros())
    fed(sender, answer, 1000)
    assert sender.run.problems


# -- a real one ------------------------------------------------------------------------------------


@pytest.fixture
def redis_or_skip() -> None:
    try:
        Redis.require()
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.usefixtures("redis_or_skip")
def test_redis_for_a_moment(tmp_path: Path) -> None:
    argv = ["--systems", "redis", "--loads", "2x4", "--runs", "1", "--output", str(tmp_path)]
    assert program.main([*argv, *QUICK]) == 0
    report = json.loads((tmp_path / "compare.json").read_text())
    of = report["loads"][0]["systems"]["redis"]
    assert of["msgs_per_s"] > 0
    assert of["server_cpu_us_per_msg"] > 0
    assert of["ack_ms"]["p50"] <= of["ack_ms"]["p99"]


@pytest.mark.usefixtures("redis_or_skip")
def test_nothing_runs_after_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    async def interrupted(system: Redis, *_: Any) -> None:
        started.extend(system._processes)
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "generate", interrupted)
    argv = ["--systems", "redis", "--loads", "1x1", "--runs", "1", "--output", str(tmp_path)]
    assert program.main([*argv, *QUICK]) == 130
    assert len(started) == 3
    assert all(process.poll() is not None for process in started)


@pytest.mark.usefixtures("redis_or_skip")
def test_a_message_that_a_copy_lacks_makes_it_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = Redis.held
    monkeypatch.setattr(
        Redis, "held", lambda self, sessions: [count - 1 for count in held(self, sessions)]
    )
    argv = ["--systems", "redis", "--loads", "1x1", "--runs", "1", "--output", str(tmp_path)]
    assert program.main([*argv, *QUICK]) == 2
    assert "the copies hold" in capsys.readouterr().err
