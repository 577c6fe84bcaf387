"""The files that make a directory a cluster: what it is for ever, what runs now, and what should
run since somebody changed it."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from im_actors.core.formats import FIRST_FORMAT, FORMATS, Formats
from im_actors.core.model import COPIES, SLOTS_MAX
from im_actors.errors import CorruptData, DiskFailed, NewerFormat, SetupError
from im_actors.server.settings import TlsSettings
from im_actors.server.topology import Topology

FORMAT = 1


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """``cluster.json``: written when the first ``up`` makes the cluster, and when an upgrade is
    finished.

    ``slots`` can never change: it decides where a session's history is. ``secret`` is what actors
    prove to each other; the file is readable by its owner only.
    """

    cluster: str
    secret: str
    slots: int
    created_ms: int
    view_store: str = "sqlite"
    view_store_identity: str = ""
    disk_format: int = FIRST_FORMAT
    record_format: int = FIRST_FORMAT
    """What is written (``server.upgrade``); nobody goes back behind it."""

    @property
    def secret_bytes(self) -> bytes:
        return bytes.fromhex(self.secret)


@dataclass(frozen=True, slots=True)
class RunFile:
    """``run.json``: the cluster that runs from this directory. A clean ``down`` removes it."""

    ray_address: str
    namespace: str
    ray_temp_dir: str
    ray_sid: int
    """Session id of the Ray processes that ``up`` started; 0 when it joined a running Ray."""
    admin_address: str
    admin_port: int
    gateway_address: str
    """Several hosts, with commas between them, in a cluster of several."""
    gateway_port: int
    started_ms: int
    version: str
    settings: dict[str, Any] = field(default_factory=dict)
    """What ``up`` was asked for."""
    tls_server_name: str = ""
    """A name that the gateways' certificate is for, when it is not for ``gateway_address``."""

    @property
    def url(self) -> str:
        scheme = "ims" if self.tls.certificate else "im"
        hosts = self.gateway_address.split(",")
        return f"{scheme}://" + ",".join(f"{host}:{self.gateway_port}" for host in hosts)

    @property
    def tls(self) -> TlsSettings:
        """The files of this host."""
        return TlsSettings(**self.settings.get("operator", {}).get("tls", {}))


def default_data() -> Path:
    """Where a cluster lives when nobody says otherwise."""
    named = os.environ.get("IM_ACTORS_DATA")
    if named:
        return Path(named)
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "im_actors"


def open_or_create_cluster(
    data: Path, slots: int | None = None, formats: Formats = FORMATS
) -> ClusterFile:
    """The cluster of this directory, made when there is none. ``slots`` None: as it is, or 64;
    ``formats``: those that are known here, of which a new cluster writes the newest."""
    known = read_cluster(data, formats)
    if known is not None:
        if slots is not None and slots != known.slots:
            raise SetupError(
                f"{data} was made with {known.slots} slots, which can never change;"
                f" leave --slots out or use another --data"
            )
        return known
    wanted = slots if slots is not None else 64
    if not 1 <= wanted <= SLOTS_MAX:
        raise SetupError(f"--slots must be between 1 and {SLOTS_MAX}, not {wanted}")
    if data.exists() and any(data.glob("replica-*/identity.json")):
        raise SetupError(f"{data} holds replicas and no cluster.json: bring that file back")
    fresh = ClusterFile(
        uuid.uuid4().hex[:16],
        secrets.token_hex(32),
        wanted,
        int(time.time() * 1000),
        disk_format=formats.newest,
        record_format=formats.newest,
    )
    write_cluster(data, fresh)
    return fresh


def write_cluster(data: Path, cluster: ClusterFile) -> None:
    _write(data / "cluster.json", asdict(cluster))


def read_cluster(data: Path, formats: Formats = FORMATS) -> ClusterFile | None:
    """NewerFormat: the cluster writes what is not known here."""
    path = data / "cluster.json"
    fields = _read(path)
    if fields is None:
        return None
    formats.check_written(fields.get("disk_format", FIRST_FORMAT), str(path))
    cluster: ClusterFile = _made(ClusterFile, fields, path)
    return cluster


def write_run(data: Path, run: RunFile) -> None:
    _write(data / "run.json", asdict(run))


def read_run(data: Path) -> RunFile | None:
    """What runs, or ran until it was killed; None after a clean ``down``."""
    fields = _read(data / "run.json")
    return _made(RunFile, fields, data / "run.json") if fields is not None else None


def remove_run(data: Path) -> None:
    (data / "run.json").unlink(missing_ok=True)


def write_topology(data: Path, topology: Topology) -> None:
    _write(data / "topology.json", topology.to_dict())


def read_topology(data: Path) -> Topology | None:
    """What should run; None when nobody has changed what ``up`` was asked for."""
    fields = _read(data / "topology.json")
    return Topology.from_dict(fields) if fields is not None else None


def replica_paths(data: Path, count: int) -> list[Path]:
    """The data directories of ``count`` replicas below ``data``."""
    if count < COPIES:
        raise SetupError(f"--replicas must be at least {COPIES}: every message has three copies")
    return [data / f"replica-{number}" for number in range(1, count + 1)]


def _made(kind: Any, fields: dict[str, Any], path: Path) -> Any:
    try:
        return kind(**fields)
    except TypeError as error:
        raise CorruptData(f"{path}: {error}; bring back a good copy of the file") from None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DiskFailed(f"{path} cannot be read: {error.strerror}") from None
    try:
        fields = json.loads(text)
        version = fields.pop("format")
    except (ValueError, AttributeError, KeyError, TypeError):
        raise CorruptData(f"{path} is not what im-actors writes; bring back a good copy") from None
    if version > FORMAT:
        raise NewerFormat(f"{path} has format {version}, this version knows {FORMAT}: update it")
    return fields  # type: ignore[no-any-return]


def _write(path: Path, fields: dict[str, Any]) -> None:
    """After a crash the file is the old one or the new one, and never a part of one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps({"format": FORMAT, **fields}, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise DiskFailed(
            f"{path} cannot be written: {error.strerror}; choose another --data or make room"
        ) from None
