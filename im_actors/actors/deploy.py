"""Starts and ends clusters: ``up``, ``down``, ``kill_everything``. Does not load Ray itself."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from im_actors import __version__
from im_actors.actors import attach, processes
from im_actors.actors.settings import ActorSettings
from im_actors.actors.waiting import Progress, Waiting
from im_actors.core.model import COPIES, SLOTS_MAX
from im_actors.errors import (
    DiskFailed,
    FatalError,
    ImError,
    NotReachable,
    SetupError,
    WrongDirectory,
)
from im_actors.gateway.config import GatewayConfig
from im_actors.net.tls import hosts_of
from im_actors.server.admin import admin_of
from im_actors.server.cluster_file import (
    ClusterFile,
    RunFile,
    open_or_create_cluster,
    read_cluster,
    read_run,
    read_topology,
    remove_run,
    write_cluster,
    write_run,
)
from im_actors.server.settings import ClusterSettings
from im_actors.server.topology import ACTORS_MAX

LOOPBACK = "127.0.0.1"
PING_S = 2.0
"""How long a controller may take to show that it lives."""
BACK_S = 5.0
"""How long ``up`` waits for a controller whose Ray runs: Ray may just be restarting it."""
STOP_S = 40.0
ENDING_S = 5.0
"""How long a lock is waited for whose owner has been killed and is not gone yet."""
LOCK_S = 10.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class UpConfig:
    """What ``up`` is asked for."""

    data: Path
    address: str = "local"
    """"local" starts a Ray of its own; "auto" and HOST:PORT join one that runs."""
    slots: int | None = None
    """None: as the directory was made, 64 for a new one."""
    shards: int = 2
    replicas: int = 3
    gateways: int = 2
    host: str = LOOPBACK
    port: int = 7070
    """0: any free one."""
    redis: str | None = field(default=None, repr=False)
    token_secret: str | None = field(default=None, repr=False)
    insecure_open: bool = False
    relay: str = ""
    """HOST:PORT of a relay between the actors, for tests of their links."""
    hosts_s: float = 180.0
    """How long the hosts of a Ray that runs may take to come, each with its disk."""
    operator: ClusterSettings = field(default_factory=ClusterSettings)
    """Rights, quotas and tiers."""

    def validate(self) -> UpConfig:
        """Itself; SetupError says what makes no sense."""
        _whole("--shards", self.shards, 1, ACTORS_MAX)
        _whole("--gateways", self.gateways, 1, ACTORS_MAX)
        _whole("--port", self.port, 0, 65_535)
        _whole("--replicas", self.replicas, 0, ACTORS_MAX)
        if self.replicas < COPIES:
            raise SetupError(f"--replicas must be at least {COPIES}: so many copies has a message")
        if self.slots is not None:
            _whole("--slots", self.slots, 1, SLOTS_MAX)
        host, _, port = self.address.rpartition(":")
        if self.address not in ("local", "auto") and not (host and port.isdecimal()):
            raise SetupError(f"--address must be local, auto or HOST:PORT, not {self.address!r}")
        secret = self.token_secret or ""
        tiers = self.operator.validate().gateway_fields("", self.data)
        GatewayConfig(token_secret=secret, insecure_open=self.insecure_open, **tiers).validate()
        open_door = not self.token_secret and not self.insecure_open
        if open_door and not attach.is_loopback(self.host):
            raise SetupError(
                f"--host {self.host} lets others in, and there is no token secret: set one, or say"
                " --insecure-open in a closed test network"
            )
        return self

    @property
    def local(self) -> bool:
        return self.address == "local"


def _whole(name: str, value: int, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise SetupError(f"{name} must be a number from {least} to {most}, not {value!r}")


# -- up --------------------------------------------------------------------------------------------


def up(config: UpConfig, progress: Progress) -> RunFile:
    """Start or join the cluster; return when every slot is served.

    While it runs, this returns at once what runs; what remains of a cluster that died is ended
    first. On an error nothing of this call runs any more. Not for use inside an event loop.
    """
    config.validate()
    require_ray()
    data = config.data.absolute()
    with _locked(data):
        cluster = _matching(open_or_create_cluster(data, config.slots), data, config)
        run = read_run(data)
        if run is not None:
            if _is_whole(run, cluster):
                runs = run.settings | _scaled(data)
                progress("the cluster already runs" + _other(runs, config))
                _until_served(run, cluster, _settings(run.settings, cluster, data), progress)
                return run
            progress("ending what remains of a cluster that died")
            _end(run, cluster, data)
            remove_run(data)
        _check_unused(data)
        return _start(config, cluster, data, progress)


def _other(runs: dict[str, Any], config: UpConfig) -> str:
    """What is asked for now and is not what runs."""
    asked = _asked(config, config.port or runs["port"])
    differs = [
        "other settings" if key == "operator" else f"{key} {runs.get(key)}"
        for key, value in asked.items()
        if runs.get(key, value) != value
    ]
    return (
        f", with {', '.join(differs)}; im-actors scale changes numbers, down and up the rest"
        if differs
        else ""
    )


def _scaled(data: Path) -> dict[str, int]:
    """The numbers of actors that ``scale`` and ``drain`` have left; empty if nobody used them."""
    topology = read_topology(data)
    if topology is None:
        return {}
    return {
        "shards": topology.shards,
        "replicas": len(topology.replicas),
        "gateways": topology.gateways,
    }


def _asked(config: UpConfig, port: int) -> dict[str, Any]:
    return {
        "address": config.address,
        "shards": config.shards,
        "replicas": config.replicas,
        "gateways": config.gateways,
        "host": config.host,
        "port": port,
        "insecure_open": config.insecure_open,
        "relay": config.relay,
        "operator": config.operator.public(),
    }


def require_ray() -> None:
    """SetupError when Ray is not installed here."""
    if importlib.util.find_spec("ray") is None:
        raise SetupError("Ray is not installed: pip install 'im-actors[server]'")


def _matching(cluster: ClusterFile, data: Path, config: UpConfig) -> ClusterFile:
    """The views of a cluster stay in the store where they are."""
    kind = "redis" if config.redis else "sqlite"
    if cluster.view_store == kind:
        return cluster
    if cluster.view_store_identity:
        raise SetupError(
            f"the views of {data} are kept in {cluster.view_store}, not in {kind}: "
            + ("leave --redis out" if config.redis else "say --redis URL")
        )
    chosen = replace(cluster, view_store=kind)
    write_cluster(data, chosen)
    return chosen


def _check_unused(data: Path) -> None:
    """No process that we do not know has one of the replicas' directories open."""
    deadline = time.monotonic() + ENDING_S
    for path in sorted(data.glob("replica-*/lock")):
        while owner := _lock_owner(path):
            known = owner.isdecimal() and not processes.is_ending(int(owner))
            if known or time.monotonic() > deadline:
                raise WrongDirectory(
                    f"{path.parent} is in use by pid {owner}, and {data} does not say which"
                    " cluster that is; end it first, or use another --data"
                )
            time.sleep(POLL_S)


def _lock_owner(path: Path) -> str:
    """Who has a replica's directory open; empty when nobody has."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return path.read_text(errors="replace").strip() or "unknown"
    except OSError as error:
        raise DiskFailed(f"{path} cannot be opened: {error.strerror}") from None
    return ""


def _start(config: UpConfig, cluster: ClusterFile, data: Path, progress: Progress) -> RunFile:
    port = config.port or processes.free_port(config.host)
    taken = processes.port_taken(config.host, port) if config.local else None
    if taken:
        raise SetupError(f"port {port} on {config.host}: {taken}; choose another --port")
    certified = _certified(config, progress)
    scaled = _scaled(data)
    asked = _asked(config, port) | scaled
    if scaled:
        counts = ", ".join(f"{count} {kind}" for kind, count in scaled.items())
        progress(f"{counts}, as im-actors scale or drain left them")
    settings = replace(
        _settings(asked, cluster, data),
        redis=config.redis or "",
        operator=config.operator.to_dict(),
        token_secret=config.token_secret or "",
    )
    run = RunFile(
        ray_address=config.address,
        namespace=settings.namespace,
        ray_temp_dir="",
        ray_sid=0,
        admin_address=LOOPBACK,
        admin_port=0,
        gateway_address=config.host,
        gateway_port=port,
        started_ms=int(time.time() * 1000),
        version=__version__,
        settings=asked,
    )
    try:
        if config.local:
            run = _start_local(run, settings, progress)
        else:
            run = _join(run, settings, config.hosts_s, progress)
        run = replace(run, tls_server_name=_server_name(run, certified))
        write_run(data, run)
        _until_served(run, cluster, settings, progress)
    except BaseException:
        left = read_run(data)
        if left is not None:
            _end(left, cluster, data)
            remove_run(data)
        raise
    return run


def _certified(config: UpConfig, progress: Progress) -> tuple[str, ...]:
    """The hosts that this host's certificate is for. SetupError: nobody would accept it."""
    files = config.operator.tls.files
    if files is None:
        return ()
    if not config.local and not files.authorities:
        progress("links between the actors are not encrypted: --tls-ca has them so, too")
    return hosts_of(files)


def _server_name(run: RunFile, certified: tuple[str, ...]) -> str:
    """What commands here compare the gateways' certificates with; empty: the address of each. Where
    one is for all hosts of a domain, it is for any of them."""
    if not certified or set(run.gateway_address.split(",")) & set(certified):
        return ""
    return certified[0].replace("*", "im")


def _settings(asked: dict[str, Any], cluster: ClusterFile, data: Path) -> ActorSettings:
    local = asked["address"] == "local"
    return ActorSettings(
        cluster=cluster.cluster,
        secret=cluster.secret,
        slots=cluster.slots,
        data=str(data),
        inside_address=LOOPBACK if local else "",
        joined=not local,
        **{key: value for key, value in (asked | _scaled(data)).items() if key != "address"},
    )


def _start_local(run: RunFile, settings: ActorSettings, progress: Progress) -> RunFile:
    data = settings.directory
    ray_port = processes.free_port(LOOPBACK, but=(run.gateway_port,))
    run = replace(
        run,
        ray_address=f"{LOOPBACK}:{ray_port}",
        ray_temp_dir=str(processes.make_temp_dir()),
        admin_port=processes.free_port(LOOPBACK, but=(run.gateway_port, ray_port)),
    )
    write_run(data, run)
    settings = replace(settings, admin_address=run.admin_address, admin_port=run.admin_port)
    workers = settings.actors
    env = processes.ray_env(_token_file(data), workers)
    start = processes.head_arguments(ray_port, run.ray_temp_dir, workers)

    def session(sid: int) -> None:
        nonlocal run
        run = replace(run, ray_sid=sid)
        write_run(data, run)

    progress("starting Ray")
    attach.launch(settings, run.ray_address, env, start, session)
    return run


def _join(run: RunFile, settings: ActorSettings, hosts_s: float, progress: Progress) -> RunFile:
    progress(f"joining the Ray at {run.ray_address}")
    write_run(settings.directory, run)
    made = attach.join(settings, run.ray_address, hosts_s, progress)
    run = replace(
        run,
        ray_address=made["ray_address"],
        admin_address=made["admin_address"],
        admin_port=made["admin_port"],
        gateway_address=_reachable(run.gateway_address, made["gateways"]),
    )
    write_run(settings.directory, run)
    return run


def _reachable(host: str, gateways: list[str]) -> str:
    """What clients connect to: a listener on all interfaces is not an address."""
    return ",".join(gateways) if host in ("0.0.0.0", "::") else host


def _token_file(data: Path) -> Path:
    """The password of the local Ray: whoever has it can run code as its user."""
    path = data / "ray-token"
    if not path.exists():
        fresh = path.with_name(".ray-token.new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        os.replace(fresh, path)
    return path


def _until_served(
    run: RunFile, cluster: ClusterFile, settings: ActorSettings, progress: Progress
) -> None:
    asyncio.run(Waiting(settings, progress).wait(run, cluster))


# -- down ------------------------------------------------------------------------------------------


def down(data: Path, progress: Progress) -> None:
    """Stop the cluster cleanly, or end what remains of one that died. SetupError: there is none."""
    data = data.absolute()
    cluster, run = _known(data)
    with _locked(data):
        if _is_local(run) and not processes.session_processes(run.ray_sid, run.ray_temp_dir):
            progress("nothing of it runs any more; clearing up")
        else:
            progress("stopping")
            try:
                asyncio.run(_stop(run, cluster))
            except ImError as error:
                progress(f"no clean stop ({error}); ending what remains")
        _end(run, cluster, data)
        remove_run(data)
        progress("stopped")


def kill_everything(data: Path) -> None:
    """SIGKILL to every process of the cluster at once, as a power cut would. ``run.json`` stays, as
    it would then; ``up`` starts again from the directories."""
    data = data.absolute()
    cluster, run = _known(data)
    if run.ray_sid:
        processes.kill_session(run.ray_sid, run.ray_temp_dir)
    else:
        _end(run, cluster, data)


def _known(data: Path) -> tuple[ClusterFile, RunFile]:
    cluster = read_cluster(data) if data.is_dir() else None
    run = read_run(data) if cluster is not None else None
    if cluster is None or run is None:
        raise SetupError(f"no cluster is known to run from {data}; im-actors up starts one")
    return cluster, run


async def _stop(run: RunFile, cluster: ClusterFile) -> None:
    async with admin_of(run, cluster.secret_bytes) as admin:
        await admin.call("ping", timeout_s=PING_S)
        await admin.call("stop", timeout_s=STOP_S)


def _end(run: RunFile, cluster: ClusterFile, data: Path) -> None:
    """End the processes of a cluster, however far it has come."""
    if _is_local(run):
        processes.kill_session(run.ray_sid, run.ray_temp_dir)
        processes.remove_temp_dir(run.ray_temp_dir)
        return
    settings = _settings(run.settings, cluster, data)
    try:
        attach.end(settings, run.ray_address)
    except (FatalError, NotReachable) as error:
        # A Ray that is gone has taken the actors with it.
        if run.admin_port and _answers(run, cluster):
            raise SetupError(f"the actors still run and cannot be ended: {error}") from error


def _is_whole(run: RunFile, cluster: ClusterFile) -> bool:
    """Whether the cluster of ``run`` lives and can go on living."""
    if _is_local(run) and not _ray_lives(run):
        # Without Ray's head the actors serve on for a minute, and nobody would restart them.
        return False
    # Certificates that cannot be used are no sign of a dead cluster.
    admin_of(run, cluster.secret_bytes)
    deadline = time.monotonic() + BACK_S
    while run.admin_port and time.monotonic() < deadline:
        if _answers(run, cluster):
            return True
    return False


def _is_local(run: RunFile) -> bool:
    return bool(run.settings.get("address") == "local")


def _ray_lives(run: RunFile) -> bool:
    names = {
        process.name() for process in processes.session_processes(run.ray_sid, run.ray_temp_dir)
    }
    return {"gcs_server", "raylet"} <= names


def _answers(run: RunFile, cluster: ClusterFile) -> bool:
    async def ping() -> bool:
        async with admin_of(run, cluster.secret_bytes) as admin:
            await admin.call("ping", timeout_s=PING_S)
            return True

    try:
        return asyncio.run(ping())
    except ImError:
        return False


@contextmanager
def _locked(data: Path) -> Iterator[None]:
    """One ``up`` or ``down`` at a time for a directory."""
    path = data / "up.lock"
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = path.open("ab")
    except OSError as error:
        raise DiskFailed(
            f"{data} cannot be written: {error.strerror}; choose another --data"
        ) from None
    with file:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SetupError(f"another up or down is at work on {data}") from None
            time.sleep(POLL_S)
        yield
