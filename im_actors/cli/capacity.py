"""How much of everything a load needs, from costs that were measured.

Each kind of actor uses CPU in proportion to what passes through it: so much for a message, for each
KiB of its body, for each delivery to a follower, and so much a second for being there. An actor is
one process whose loop fills one core at most. The figures come from a file that ``python -m
bench.scale`` writes; nothing here knows one.

What it leaves out: sessions that are all in one slot (one shard orders a slot, whatever the number
of shards), reads of history, and the network between hosts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from im_actors.core.model import COPIES
from im_actors.errors import SetupError
from im_actors.gateway.config import GatewayConfig
from im_actors.server.shard import FRAME_BATCH_ROWS_MAX

FORMAT = 1
PARTS = ("gateway", "shard", "replica")
OTHERS = "others"
"""The controller and Ray's own processes, on every host."""
SOURCE = Path(__file__).resolve().parents[2] / "bench" / "results" / "scale.json"
PACKAGED = Path(__file__).with_name("scale_costs.json")
"""The same file in an installed package, where ``bench`` is not."""


@dataclass(frozen=True, slots=True)
class PartCost:
    """CPU of all actors of a kind, in microseconds."""

    per_message_us: float
    per_kib_us: float
    per_delivery_us: float
    idle_us_per_s: float
    """Of one actor."""

    def cpu_us_per_s(self, load: Demand, actors: int = 1) -> float:
        per_message = (
            self.per_message_us
            + self.per_kib_us * load.message_bytes / 1024
            + self.per_delivery_us * load.followers
        )
        return self.idle_us_per_s * actors + per_message * load.messages_per_s


@dataclass(frozen=True, slots=True)
class Costs:
    """What ``bench.scale`` measured."""

    parts: dict[str, PartCost]
    others_us_per_s: float
    disk_bytes_per_message: float
    """Of one copy, with a body of no bytes; journal, history and index."""
    disk_bytes_per_body_byte: float
    disk_bytes_per_s: float
    """That the disk takes in sequence, with an fdatasync after each MiB."""
    connection_bytes: float
    """Memory of a gateway for each connection."""
    fsync_us: float
    ack_us: float
    """p50 of one message at a time: hops and one fsync."""
    cores: int
    source: str
    """Machine and day."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Costs:
        parts = {name: PartCost(**part) for name, part in fields["parts"].items()}
        return cls(**{**fields, "parts": {kind: parts[kind] for kind in PARTS}})


def read_costs(path: Path | None = None) -> Costs:
    """Of a file that ``bench.scale`` wrote; SetupError says what is wrong with it. None: of the
    project's own measurement."""
    path = path or next((known for known in (PACKAGED, SOURCE) if known.exists()), SOURCE)
    try:
        report = json.loads(path.read_text())
        if report["format"] != FORMAT:
            raise SetupError(f"{path} has format {report['format']}, this version reads {FORMAT}")
        return Costs.from_dict(report["costs"])
    except FileNotFoundError:
        raise SetupError(
            f"there are no measured costs at {path}: python -m bench.scale --out FILE measures"
            " them, and --costs FILE names another file"
        ) from None
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(f"{path} is not what bench.scale writes: {error!r}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is to be carried, at its busiest."""

    messages_per_s: float
    users: int = 0
    """Connected at the same time."""
    followers: float = 1.0
    """Connected devices that each message goes to, on average."""
    message_bytes: float = 128.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What it is to run on. None: as on the machine that the costs were measured on."""

    host_cores: int | None = None
    host_disks: int = 1
    disk_fsync_us: float | None = None
    disk_mb_per_s: float | None = None
    share: float = 0.6
    """Of each core and disk that is to be used at most: the rest is for faults, when fewer carry
    the same, and for latency, which grows without bound towards 1."""


@dataclass(frozen=True, slots=True)
class Use:
    """How much of something is used."""

    what: str
    share: float
    why: str


def plan(costs: Costs, load: Demand, site: Site) -> dict[str, Any]:
    """How many of what, how busy each will be, and what gives in first, as JSON."""
    cores = site.host_cores or costs.cores
    disk_bytes = _disk_bytes_per_s(costs, load)
    disk_limit = site.disk_mb_per_s * 1e6 if site.disk_mb_per_s else costs.disk_bytes_per_s
    connections_max = GatewayConfig().connections_max
    counts = {kind: _actors(costs.parts[kind], load, site.share) for kind in PARTS}
    counts["gateway"] = max(counts["gateway"], ceil(load.users / connections_max))
    by_disk = ceil(COPIES * disk_bytes / (disk_limit * site.share))
    counts["replica"] = max(COPIES, counts["replica"], by_disk)
    cpu = sum(costs.parts[kind].cpu_us_per_s(load, counts[kind]) for kind in PARTS) / 1e6
    hosts = max(COPIES, ceil(counts["replica"] / site.host_disks), _hosts(costs, cpu, cores, site))
    fsync_us = site.disk_fsync_us if site.disk_fsync_us is not None else costs.fsync_us
    setup = _Setup(counts, hosts, cores, disk_limit, fsync_us, connections_max)
    uses = list(_uses(costs, load, setup))
    nothing = replace(load, messages_per_s=0.0, users=0)
    idle = [use.share for use in _uses(costs, nothing, setup)]
    full_at = {
        use.what: (1 - before) / (use.share - before) * load.messages_per_s
        for use, before in zip(uses, idle, strict=True)
        if use.share > before
    }
    first = min(full_at, key=lambda what: full_at[what])
    uses.sort(key=lambda use: use.share, reverse=True)
    return {
        "hosts": hosts,
        "shards": counts["shard"],
        "replicas": counts["replica"],
        "disks": counts["replica"],
        "gateways": counts["gateway"],
        "cores_used": round(cpu + hosts * costs.others_us_per_s / 1e6, 2),
        "gateway_memory_mb": round(load.users * costs.connection_bytes / 1e6, 1),
        "disk_gb_per_day": round(disk_bytes * 86_400 * COPIES / 1e9, 1),
        "ack_ms_p50_at_least": round((costs.ack_us - costs.fsync_us + fsync_us) / 1000, 3),
        "use": [{**asdict(use), "share": round(use.share, 4)} for use in uses],
        "saturates_first": first,
        "saturates_at_messages_per_s": round(full_at[first]),
        "load": asdict(load),
        "site": {**asdict(site), "host_cores": cores, "disk_fsync_us": fsync_us},
        "costs_from": costs.source,
    }


def _actors(cost: PartCost, load: Demand, share: float) -> int:
    """So many that none fills more than ``share`` of a core."""
    room_us = 1e6 * share - cost.idle_us_per_s
    if room_us <= 0:
        raise SetupError(f"--share {share} of a core is less than an idle actor takes")
    return max(1, ceil(cost.cpu_us_per_s(load, 0) / room_us))


def _hosts(costs: Costs, cpu: float, cores: int, site: Site) -> int:
    room = cores * site.share - costs.others_us_per_s / 1e6
    if room <= 0:
        raise SetupError(f"--share {site.share} of {cores} cores is less than Ray itself takes")
    return ceil(cpu / room)


def _disk_bytes_per_s(costs: Costs, load: Demand) -> float:
    """Of one copy of everything."""
    body = costs.disk_bytes_per_body_byte * load.message_bytes
    return (costs.disk_bytes_per_message + body) * load.messages_per_s


@dataclass(frozen=True, slots=True)
class _Setup:
    counts: dict[str, int]
    hosts: int
    cores: int
    disk_limit: float
    fsync_us: float
    connections_max: int


def _uses(costs: Costs, load: Demand, setup: _Setup) -> Iterator[Use]:
    """How much of everything a load takes, in an order that does not depend on it."""
    counts, cpu = setup.counts, 0.0
    for kind in PARTS:
        used = costs.parts[kind].cpu_us_per_s(load, counts[kind]) / 1e6
        cpu += used
        share = used / counts[kind]
        yield Use(f"{kind} CPU", share, f"{share:.2f} of a core for each of {counts[kind]}")
    host_cpu = cpu / setup.hosts + costs.others_us_per_s / 1e6
    of_cores = f"{host_cpu:.2f} of {setup.cores} cores"
    yield Use("cores of a host", host_cpu / setup.cores, of_cores)
    each_replica = COPIES / counts["replica"]
    written = _disk_bytes_per_s(costs, load) * each_replica
    of_disk = f"{written / 1e6:.1f} of {setup.disk_limit / 1e6:.0f} MB/s"
    yield Use("disk bandwidth", written / setup.disk_limit, of_disk)
    batch = load.messages_per_s * each_replica * setup.fsync_us / 1e6
    of_batch = f"{batch:.1f} of {FRAME_BATCH_ROWS_MAX:,} messages for each fsync of a replica"
    yield Use("fsync", batch / FRAME_BATCH_ROWS_MAX, of_batch)
    connections = load.users / counts["gateway"]
    of_gateway = f"{connections:,.0f} of {setup.connections_max:,}"
    yield Use("connections of a gateway", connections / setup.connections_max, of_gateway)
