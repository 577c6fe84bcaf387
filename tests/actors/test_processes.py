"""Ports, temporary directories, and ending exactly one cluster's processes."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from im_actors.actors import processes
from im_actors.errors import NotReachable, SetupError


def sleeper(temp_dir: Path, *, named: bool) -> subprocess.Popen[bytes]:
    """A process of a session of its own, with the directory in its command line or a file open."""
    code = "import sys, time; file = open(sys.argv[1], 'w'); print(flush=True); time.sleep(60)"
    argument = str(temp_dir / "log") if named else "log"
    process = subprocess.Popen(
        [sys.executable, "-c", code, argument],
        cwd=temp_dir,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize("named", [True, False])
def test_a_session_is_ended_and_nothing_else(tmp_path: Path, named: bool) -> None:
    ours = sleeper(tmp_path, named=named)
    stranger = sleeper(tmp_path, named=named)
    try:
        temp_dir = str(tmp_path)
        assert [p.pid for p in processes.session_processes(ours.pid, temp_dir)] == [ours.pid]
        assert processes.session_processes(ours.pid, "/nowhere") == []
        assert processes.session_processes(0, temp_dir) == []
        assert processes.kill_session(ours.pid, temp_dir) == 1
        assert ours.wait(60) == -9
        assert stranger.poll() is None
        assert processes.kill_session(ours.pid, temp_dir) == 0
    finally:
        for process in (ours, stranger):
            process.kill()
            process.communicate()


def test_a_zombie_is_not_alive(tmp_path: Path) -> None:
    process = sleeper(tmp_path, named=True)
    os.kill(process.pid, 9)
    try:
        deadline = time.monotonic() + 60
        while processes.session_processes(process.pid, str(tmp_path)):
            assert time.monotonic() < deadline
    finally:
        process.communicate()


def test_who_does_not_end_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = sleeper(tmp_path, named=True)
    try:
        monkeypatch.setattr(processes.signal, "SIGKILL", 0)
        with pytest.raises(NotReachable, match=str(process.pid)):
            processes.kill_session(process.pid, str(tmp_path), timeout_s=0.1)
    finally:
        monkeypatch.undo()
        process.kill()
        process.communicate()


def test_a_killed_session_has_closed_its_files(tmp_path: Path) -> None:
    """The lock of a process with many threads is free when ``kill_session`` returns."""
    code = (
        "import fcntl, sys, threading, time; file = open(sys.argv[1], 'w');"
        "fcntl.flock(file, fcntl.LOCK_EX);"
        "[threading.Thread(target=time.sleep, args=(60,)).start() for _ in range(50)];"
        "print(flush=True)"
    )
    path = tmp_path / "lock"
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, start_new_session=True
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert processes.kill_session(process.pid, str(tmp_path)) == 1
            assert processes.is_ending(process.pid)
            with path.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            process.kill()
            process.communicate()
    assert not processes.is_ending(os.getpid())


def test_free_ports_are_free_and_below_those_of_outgoing_connections() -> None:
    port = processes.free_port("127.0.0.1")
    assert port in processes.PORTS
    with socket.create_server(("127.0.0.1", port)):
        assert processes.port_taken("127.0.0.1", port) == "another process listens there"
    assert processes.port_taken("127.0.0.1", port) is None


def test_an_address_of_another_host_is_said_to_be_one() -> None:
    assert processes.port_taken("192.0.2.1", 7070)
    with pytest.raises(SetupError, match=r"192\.0\.2\.1"):
        processes.free_port("192.0.2.1")


def test_temporary_directories_are_short_and_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.tempfile, "gettempdir", lambda: str(tmp_path / ("x" * 60)))
    made = processes.make_temp_dir()
    assert len(str(made)) <= processes.TEMP_PATH_MAX
    processes.remove_temp_dir(str(made))
    assert not made.exists()
    processes.remove_temp_dir(str(tmp_path))
    assert tmp_path.exists(), "only what make_temp_dir made is removed"


def test_what_the_caller_says_to_ray_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setenv("IM_OTHER", "kept")
    env = processes.ray_env(tmp_path / "token", 8)
    assert "RAY_ADDRESS" not in env
    assert env["IM_OTHER"] == "kept"
    assert env["RAY_AUTH_MODE"] == "token"
    assert env["RAY_USE_UVLOOP"] in ("0", "1")
