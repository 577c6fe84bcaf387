"""Runs ``bootstrap`` in a process of its own: the caller stays free of Ray and of its output."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from im_actors.actors import processes
from im_actors.actors.logs import LOGS
from im_actors.actors.settings import ActorSettings
from im_actors.errors import DiskFailed, NotReachable, SetupError, error_for

LAUNCH_S = 120.0
"""Bound of starting a Ray: seconds, but a machine with much else to do takes a minute."""
CREATE_S = 45.0
END_S = 15.0
"""Bounds of what is done in a Ray that runs, which would wait for minutes at a wrong address."""
CONNECT_S = 3.0
POLL_S = 0.05
LINES_BYTES_MAX = 1 << 20
"""More than a bootstrap ever writes."""

Progress = Callable[[str], None]


def is_loopback(host: str) -> bool:
    """Whether only this host can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def log_directory(data: Path) -> Path:
    """Where logs go; made when it is not there."""
    path = data / LOGS
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise DiskFailed(f"{path} cannot be made: {error.strerror}") from None
    return path


def launch(
    settings: ActorSettings,
    address: str,
    env: dict[str, str],
    start: list[str],
    on_session: Callable[[int], None],
) -> None:
    """Start a Ray of our own and the controller in it. ``on_session(sid)`` is called before
    anything else happens: a crash of ours from then on leaves nothing that cannot be found."""
    _run("launch", address, settings, env, LAUNCH_S, start, on_session)


def join(
    settings: ActorSettings, address: str, hosts_s: float, progress: Progress
) -> dict[str, Any]:
    """Make the controller in a Ray that runs; where it is, and the hosts of its gateways.
    ``hosts_s``: how long hosts with disks may take to come."""
    check_reachable(address)
    return _run(
        "create",
        address,
        settings,
        _join_env(address),
        CREATE_S,
        hosts_s=hosts_s,
        progress=progress,
    )


def end(settings: ActorSettings, address: str) -> None:
    """End the actors of the cluster in a Ray that runs on."""
    check_reachable(address)
    _run("end", address, settings, _join_env(address), END_S)


def check_reachable(address: str) -> None:
    """NotReachable when nobody listens at HOST:PORT: Ray would not say it for a minute."""
    host, _, port = address.rpartition(":")
    if not host:
        return  # "auto": only Ray knows where it is.
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise NotReachable(f"no Ray answers at {address}: {error}") from None


def _join_env(address: str) -> dict[str, str]:
    env = {**os.environ, **processes.package_path()}
    env.setdefault("RAY_py_gcs_connect_timeout_s", "5")
    if is_loopback(address.rpartition(":")[0]):
        # Otherwise Ray replaces 127.0.0.1 by the address of an interface.
        env["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return env


class _Lines:
    """The lines of JSON in a file that another process writes, as they come."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        # Both processes have one position in the file: this one does not move it.
        text = os.pread(self._descriptor, LINES_BYTES_MAX, self._offset)
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def _run(
    do: str,
    address: str,
    settings: ActorSettings,
    env: dict[str, str],
    timeout_s: float,
    start: list[str] | None = None,
    on_session: Callable[[int], None] = lambda sid: None,
    hosts_s: float = 0.0,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """The result of ``bootstrap``, or its error. ``timeout_s`` begins again with each step that it
    tells of."""
    request = {
        "do": do,
        "address": address,
        "settings": settings.to_dict(),
        "start": start,
        "hosts_s": hosts_s,
    }
    log = log_directory(settings.directory) / "up.log"
    with tempfile.TemporaryFile("w+") as result, log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "im_actors.actors.bootstrap", str(result.fileno())],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[result.fileno()],
            env=env,
            start_new_session=True,
        )
        lines = _Lines(result.fileno())
        answer: dict[str, Any] = {}
        try:
            on_session(process.pid)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(request).encode())
            deadline = time.monotonic() + timeout_s
            ended = False
            while not ended:
                ended = process.poll() is not None
                for line in lines.new():
                    deadline = time.monotonic() + timeout_s
                    if "progress" in line:
                        progress(line["progress"])
                    else:
                        answer = line
                if not ended:
                    if time.monotonic() > deadline:
                        raise subprocess.TimeoutExpired(process.args, timeout_s)
                    time.sleep(POLL_S)
        except BaseException as error:
            process.kill()
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise NotReachable(
                f"the Ray at {address} did not do it within {timeout_s:.0f} s: is that its"
                f" address, and its token the same (RAY_AUTH_MODE)? See {log}"
            ) from None
    if not answer:
        raise SetupError(f"attaching to the Ray at {address} failed; see {log}")
    if "error" in answer:
        raise error_for(*answer["error"])
    return answer
