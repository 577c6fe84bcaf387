"""The profile: folding of samples, scaling to microseconds, ports, packets, hops."""

from __future__ import annotations

import ast
import json
import os
import socket
import struct
import threading
from pathlib import Path

import pytest

import im_actors
from bench.profile.capture import (
    Captured,
    NoCapture,
    Packet,
    capture,
    open_capture,
    read_packets,
)
from bench.profile.hops import HOPS, measure, summary
from bench.profile.ports import CLIENT, Owner, join_ports, ports_of
from bench.profile.report import lines
from bench.profile.sampling import Sample, read_samples
from bench.profile.stages import (
    LOOPS,
    THREADS,
    fold,
    loop_table,
    samples_at_work,
    stage_of,
    stages,
    waits,
)
from bench.profile.threads import Look, ThreadTime, look

GATEWAY = Owner("gateway", "gateway-1")
SHARD = Owner("shard", "shard-2")
REPLICAS = [Owner("replica", f"replica-{number}") for number in (1, 2, 3)]
NO_PROC = not Path("/proc/self/task").exists()

# -- samples ---------------------------------------------------------------------------------------


def test_samples_are_read_with_their_thread_and_without_places() -> None:
    text = [
        "thread (71): AsyncIO Thread: default;Thread.run (threading.py:982);"
        "FramedProtocol.data_received (im_actors/net/connection.py:214);"
        "encode_frame (im_actors/wire/codec.py:37) 12",
        "main (app.py:1) 2",
        "thread (72) 5",
        "",
    ]
    assert list(read_samples(text)) == [
        Sample(71, ("Thread.run", "FramedProtocol.data_received", "encode_frame"), 12),
        Sample(0, ("main",), 2),
        Sample(72, (), 5),
    ]


def test_the_innermost_function_that_is_named_decides_the_stage() -> None:
    outer = ("uv_run", "uv__read", "ClientConnection._send_received", "Router.submit")
    table = loop_table("gateway")
    assert stage_of(table, (*outer, "0x7f83a68b5710")) == "route"
    assert stage_of(table, (*outer, "ClientConnection.flush_answers", "encode_frame")) == "answer"
    assert stage_of(table, outer[:2]) == "read"
    assert stage_of(table, outer[:1]) == "loop"
    assert stage_of(table, ("Worker.main_loop",)) == "other"


def test_the_longest_name_that_fits_decides_the_stage() -> None:
    assert stage_of(THREADS["journal"], ("Journal.commit",)) == "rows"
    assert stage_of(THREADS["journal"], ("Journal.trim",)) == "trim"


def test_a_wait_is_told_from_work() -> None:
    assert waits(("uv_run", "uv__io_poll", "epoll_pwait"))
    assert waits(("Journal.commit", "sqlite3WalFrames", "fdatasync"))
    # For the interpreter, in a function of the C library without a name.
    assert waits(("Router.submit", "_PyEval_EvalFrame", "pthread_cond_timedwait", "0x7f1903f16"))
    assert waits(())
    assert not waits(("Thread.run", "uv_run", "uv__read", "read"))
    assert not waits(("Condition.wait", "f", "g", "Router.submit"))


def test_every_stage_names_functions_that_exist() -> None:
    names = {"ThreadPoolExecutor.submit"}
    for path in Path(im_actors.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.ClassDef):
                functions = (ast.FunctionDef, ast.AsyncFunctionDef)
                names |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, functions)}
    for table in (*LOOPS.values(), *THREADS.values()):
        for prefix in (prefix for prefixes in table.values() for prefix in prefixes):
            # A renamed function would leave its stage, and nobody would see it.
            assert any(name.startswith(prefix) for name in names), f"{prefix} is no function"


def test_samples_fold_by_stage_and_waits_do_not_count() -> None:
    samples = [
        Sample(1, ("uv_run", "Router.submit"), 3),
        Sample(1, ("Router.submit", "f"), 2),
        Sample(1, ("uv_run", "epoll_pwait"), 90),
    ]
    assert fold(loop_table("gateway"), samples) == {"route": 5}


def test_the_stages_of_a_replica_add_up_to_its_cpu() -> None:
    samples = [
        Sample(71, ("uv_run", "epoll_pwait"), 360),
        Sample(71, ("uv_run", "Replica.handle"), 30),
        Sample(71, ("uv_run", "Replica._append", "record_checksum"), 10),
        Sample(72, ("_worker", "History.apply", "MonthFile.write"), 30),
        Sample(72, ("_worker", "History.apply"), 10),
        Sample(72, ("_worker", "fdatasync"), 360),
        Sample(73, ("_worker", "fdatasync"), 400),
        Sample(74, ("Worker.main_loop", "f"), 400),
    ]
    names = {71: "loop", 72: "history", 73: "journal", 74: "ray::Replica"}
    cpu_us = {"loop": 4.0, "history": 8.0, "journal": 2.0, "ray": 1.0}
    found = stages("replica", cpu_us, samples, names)
    assert found == pytest.approx(
        {
            "check": 3.0,
            "checksum": 1.0,
            "history: months": 6.0,
            "history: other": 2.0,
            "journal: other": 2.0,
            "ray": 1.0,
        }
    )
    assert sum(found.values()) == pytest.approx(sum(cpu_us.values()))
    assert samples_at_work(samples, names) == {"loop": 40, "history": 40}


# -- threads ---------------------------------------------------------------------------------------


@pytest.mark.skipif(NO_PROC, reason="there is no /proc")
def test_a_look_sees_the_threads_of_a_process_and_what_they_use() -> None:
    before = look({os.getpid(): "shard"})
    here = (os.getpid(), threading.get_native_id())
    used = 0.0
    while used < 1_000:
        used = look({os.getpid(): "shard"}).since(before).threads[here].cpu_us
    spent = look({os.getpid(): "shard"}).since(before)
    assert spent.threads[here].cpu_us >= used
    assert sum(spent.by_thread()["shard"].values()) >= used
    assert spent.busiest() == {"shard": os.getpid()}


def test_the_busiest_process_is_that_whose_threads_used_most_together() -> None:
    threads = {
        (1, 11): ThreadTime("shard", "loop", 5.0),
        (2, 21): ThreadTime("shard", "loop", 4.0),
        (2, 22): ThreadTime("shard", "grpc", 3.0),
    }
    spent = Look(threads)
    assert spent.busiest() == {"shard": 2}
    assert spent.by_thread() == {"shard": {"loop": 9.0, "ray": 3.0}}
    assert spent.names(2) == {21: "loop", 22: "grpc"}


# -- ports -----------------------------------------------------------------------------------------


def test_ports_are_joined_by_the_inode_of_their_socket() -> None:
    table = [
        "   0: 0100007F:1B9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0"
        "        0 4711 1 0000000000000000 100 0 0 10 0",
        "   1: 0100007F:C350 0100007F:1B9E 01 00000000:00000000 00:00000000 00000000     0"
        "        0 4712 1 0000000000000000 20 4 30 10 -1",
    ]
    assert join_ports(table, {"4711": GATEWAY}) == {7070: GATEWAY}


@pytest.mark.skipif(NO_PROC, reason="there is no /proc")
def test_the_ports_of_a_process_are_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert ports_of({"gateway-2": os.getpid()})[port] == Owner("gateway", "gateway-2")
    assert port not in ports_of({"gateway-2": os.getpid()})


@pytest.mark.skipif(NO_PROC, reason="there is no /proc")
def test_a_file_that_is_closed_meanwhile_hides_no_other_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: ["999999", *listed(path)])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert listener.getsockname()[1] in ports_of({"gateway-2": os.getpid()})


# -- packets ---------------------------------------------------------------------------------------


def ip_packet(source_port: int, target_port: int, payload: int, protocol: int = 6) -> bytes:
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 52 + payload, 0, 0, 64, protocol, 0, b"\x7f\0\0\1", b"\x7f\0\0\1"
    )
    # Twelve bytes of options, as Linux sends its timestamps.
    tcp = struct.pack(">HHIIBBHHH", source_port, target_port, 0, 0, 8 << 4, 0x18, 0, 0, 0)
    return (header + tcp + bytes(12 + payload))[:128]


def test_packets_say_who_sent_how_much_to_whom() -> None:
    captured = [
        Captured(1.0, ip_packet(50_000, 7070, 150)),
        Captured(2.0, ip_packet(7070, 50_000, 0)),
        Captured(3.0, ip_packet(7070, 50_000, 20, protocol=17)),
        Captured(4.0, ip_packet(50_000, 50_001, 20)),
        Captured(5.0, ip_packet(7070, 50_000, 30)[:30]),
    ]
    assert read_packets(captured, {7070: GATEWAY}) == [
        Packet(1.0, CLIENT, GATEWAY, 50_000, 7070, 150)
    ]


def test_what_goes_over_loopback_is_captured_once() -> None:
    try:
        packets = open_capture()
    except NoCapture as reason:
        pytest.skip(str(reason))
    with packets, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"x" * 77)
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(77)
        captured = capture(packets, 0.2)
    found = read_packets(captured, {port: GATEWAY})
    assert [(p.target_port, p.size) for p in found if p.size] == [(port, 77)]


# -- hops ------------------------------------------------------------------------------------------


def message(at: float, client_port: int = 50_000, ack_port: int | None = None) -> list[Packet]:
    """The packets of one message from its send at ``at`` on, and what else goes by."""

    def sent(after: float, source: Owner, target: Owner, size: int) -> Packet:
        ports = {CLIENT: client_port}
        return Packet(at + after, source, target, ports.get(source, 1), ports.get(target, 1), size)

    first, second, third = REPLICAS
    packets = [
        sent(0, CLIENT, GATEWAY, 160),
        sent(40, SHARD, first, 30),
        sent(100, GATEWAY, SHARD, 190),
        sent(150, SHARD, first, 210),
        sent(160, SHARD, second, 210),
        sent(175, SHARD, third, 210),
        sent(400, second, SHARD, 30),
        sent(450, SHARD, GATEWAY, 12),
        sent(500, first, SHARD, 30),
        sent(700, third, SHARD, 30),
        sent(760, SHARD, GATEWAY, 220),
        sent(790, GATEWAY, CLIENT, 170)._replace(target_port=60_000),
        sent(800, GATEWAY, CLIENT, 60),
    ]
    if ack_port is not None:
        packets[-1] = packets[-1]._replace(target_port=ack_port)
    return packets


def test_the_hops_of_a_message_follow_on_each_other() -> None:
    found = measure(message(1_000), 128)
    assert found == {
        "gateway_takes": [100],
        "shard_appends": [50],
        "replicas_first": [250],
        "replicas_last": [300],
        "shard_commits": [60],
        "gateway_acks": [40],
        "total": [800],
        "shard_fans_out": [25],
        "one_replica": [240, 350, 525],
    }
    parts = list(found)[: list(found).index("total")]
    assert sum(found[hop][0] for hop in parts) == found["total"][0]


def test_a_message_with_a_packet_missing_is_left_out() -> None:
    whole = message(10_000)
    for index in (0, 2, 3, 6, 9, 10, 12):
        cut = message(1_000)
        del cut[index]
        assert measure([*cut, *whole], 128) == measure(whole, 128), f"without packet {index}"


def test_the_push_to_a_follower_is_no_ack() -> None:
    assert measure(message(1_000, ack_port=60_000), 128)["total"] == []


def test_the_summary_has_the_median_and_the_p90() -> None:
    found = summary({"total": [float(n) for n in range(1, 11)], "one_replica": []})
    assert found == {"total": {"p50": 5.5, "p90": 10.0}}


# -- the report ------------------------------------------------------------------------------------


def test_the_tables_have_what_was_measured_and_nothing_of_what_was_left_out() -> None:
    cpu = {
        "total": 12.5,
        "by_kind": {"gateway": 4.0, "ray": 8.5},
        "by_thread": {"gateway": {"loop": 3.5, "ray": 0.5}},
        "generator": 3.25,
    }
    report = {
        "cpu_us_per_msg": cpu,
        "stages": {"gateway": {"route": 3.0, "read": 1.0}},
        "samples": {"gateway": {"loop": 250, "journal": 12}},
        "hops_us": {hop: {"p50": 10.0, "p90": 20.0} for hop in HOPS},
        "full_load": {
            "connections": 64, "window": 128, "bytes": 128, "sessions": 2_000, "msgs_per_s": 50_000
        },
        "low_load": {"msgs_per_s": 900, "ack_ms": {"p50": 0.9}, "seen": 800},
        "machine": {"cores": 2, "processor": "P", "memory_gib": 8, "system": "S", "python": "3"},
        "fsync_us": {"p50": 150.0, "p99": 400.0},
    }  # fmt: skip
    text = "\n".join(lines(json.loads(json.dumps(report))))
    assert "| gateway | 4.00 | 3.50 |  |  | 0.50 |" in text
    assert "| route | 3.00 | 75% |" in text
    assert "Samples at work: loop 250, journal 12 (few)." in text
    assert "| total | all of these, from the send to the ACK | 10 | 20 |" in text
    text = "\n".join(lines(report | {"stages": {}, "hops_us": None, "low_load": None}))
    assert "route" not in text
    assert "hop" not in text
