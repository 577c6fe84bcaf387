"""The operating system's side of a local cluster: ports, starting Ray, ending its processes.

Everything that ``ray start`` leaves running is in the session (setsid) of that command and has its
files below the cluster's temporary directory. Both together name exactly one cluster: parents do
not (Ray's daemons are orphans), nor does the environment (Ray rewrites process titles).
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import psutil

import im_actors
from im_actors.actors.settings import ACTOR_ENV, use_uvloop
from im_actors.errors import NotReachable, SetupError

PORTS = range(20_000, 32_000)
"""Where free ports are looked for: below those that the kernel gives to outgoing connections, so
that a port which has to be the same after a restart is not taken meanwhile."""
TEMP_PREFIX = "im-actors-"
TEMP_PATH_MAX = 40
"""Ray's sockets are about 65 bytes below its temporary directory, and a socket's path has at most
107."""
KILL_S = 15.0
OBJECT_STORE_BYTES = 80_000_000
"""The least that Ray takes; nothing is put there."""


def port_taken(host: str, port: int) -> str | None:
    """Why a listener cannot have this port, None when it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        return f"the host name cannot be resolved ({error.strerror})"
    with socket.socket(family, kind, protocol) as trial:
        # Connections that linger from an earlier run do not take a port; listeners do.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
            trial.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "another process listens there"
            return error.strerror or str(error)
    return None


def free_port(host: str, but: tuple[int, ...] = ()) -> int:
    """A port that nobody listens on now."""
    for port in random.sample(PORTS, 100):
        if port not in but and port_taken(host, port) is None:
            return port
    raise SetupError(f"no free port on {host}: does the host exist here?")


def make_temp_dir() -> Path:
    """A new directory for Ray's sockets and logs, with a short name."""
    base = tempfile.gettempdir()
    if len(base) + len(TEMP_PREFIX) + 8 > TEMP_PATH_MAX:
        base = "/tmp"
    return Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=base))


def remove_temp_dir(path: str) -> None:
    """Remove what ``make_temp_dir`` made; nothing else, whatever a damaged run.json says."""
    if Path(path).name.startswith(TEMP_PREFIX):
        shutil.rmtree(path, ignore_errors=True)


def package_path() -> dict[str, str]:
    """PYTHONPATH under which another Python process finds this package, installed or not."""
    here = str(Path(im_actors.__file__).resolve().parent.parent)
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != here]
    return {"PYTHONPATH": os.pathsep.join([here, *others])}


def ray_env(token_file: Path, workers: int) -> dict[str, str]:
    """The environment of a local cluster, its actors and those who attach to it.

    What the caller's environment says to Ray is left out: it is about another cluster.
    """
    ours = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return {
        **ours,
        **package_path(),
        **ACTOR_ENV,
        # Anybody on this host may connect to loopback, and Ray runs what it is sent.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        # Otherwise 127.0.0.1 is silently replaced by the address of an interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_START_HOOK": "im_actors.actors.start_hook.lean",
        "RAY_USE_UVLOOP": str(int(use_uvloop())),
        # Ray runs workers at nice 15.
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_enable_worker_prestart": "1",
        "RAY_worker_maximum_startup_concurrency": str(workers),
        # The job that made the actors has ended, and its idle workers would be ended too: those
        # that wait for a restart have to stay. Nothing makes more of them than we ask for.
        "RAY_kill_idle_workers_interval_ms": "0",
        # A client of a Ray that is not there gives up within seconds.
        "RAY_py_gcs_connect_timeout_s": "5",
        "RAY_NUM_REDIS_GET_RETRIES": "1",
    }


def head_arguments(port: int, temp_dir: str, workers: int) -> list[str]:
    """What a local cluster says to ``ray start --head``."""
    return [
        *(f"--port={port}", f"--temp-dir={temp_dir}", f"--num-cpus={workers}", "--num-gpus=0"),
        *("--include-dashboard=false", "--include-log-monitor=false", "--disable-usage-stats"),
        *("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"),
        *(f"--object-store-memory={OBJECT_STORE_BYTES}", "--log-color=false"),
    ]


def session_processes(sid: int, temp_dir: str) -> list[psutil.Process]:
    """The processes of a local cluster that are alive."""
    if sid <= 0 or not temp_dir:
        return []
    return [p for p in psutil.process_iter() if _in_session(p.pid, sid) and _below(p, temp_dir)]


def _in_session(pid: int, sid: int) -> bool:
    try:
        return os.getsid(pid) == sid
    except OSError:
        return False


def _below(process: psutil.Process, temp_dir: str) -> bool:
    prefix = temp_dir.rstrip("/") + "/"
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if any(prefix in word or word.endswith(temp_dir) for word in process.cmdline()):
            return True
        return any(file.path.startswith(prefix) for file in process.open_files())
    except psutil.Error:
        return False


def kill_session(sid: int, temp_dir: str, timeout_s: float = KILL_S) -> int:
    """SIGKILL to all processes of a local cluster; how many there were. Returns when they are gone,
    their files closed: who is killed first may have started another one meanwhile."""
    killed: set[psutil.Process] = set()
    deadline = time.monotonic() + timeout_s
    while True:
        found = session_processes(sid, temp_dir)
        killed.update(found)
        left = [process for process in killed if not _has_ended(process)]
        if not found and not left:
            return len(killed)
        if time.monotonic() > deadline:
            pids = ", ".join(str(process.pid) for process in left)
            raise NotReachable(f"processes {pids} do not end; end them, then try again")
        for process in found:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def _has_ended(process: psutil.Process) -> bool:
    """A zombie with threads is one whose threads still have its files and their locks."""
    try:
        if not process.is_running():
            return True
        return bool(process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1)
    except psutil.Error:
        return True


def is_ending(pid: int) -> bool:
    """Whether a process is on its way out: it has no command line any more."""
    try:
        return not psutil.Process(pid).cmdline()
    except psutil.Error:
        return True
