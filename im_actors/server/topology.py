"""What should run, once ``scale`` or ``drain`` has changed what ``up`` was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from im_actors.core.model import COPIES
from im_actors.errors import BadRequest, CorruptData

SHARDS_MIN = 2
"""As many shards run at least, so that a killed one is replaced by one that is there. An idle one
takes about 95 MB."""
ACTORS_MAX = 256
"""Of a kind."""


class Desired(NamedTuple):
    """One actor that should run."""

    kind: str
    name: str


def kind_of(name: str) -> str:
    return name.rpartition("-")[0]


def number_of(name: str) -> int:
    return int(name.rpartition("-")[2])


@dataclass(frozen=True, slots=True)
class Topology:
    """The actors of a cluster by name. Each change makes another one."""

    replicas: tuple[str, ...]
    """Those that stay. A replica is its disk, so its number is never given to another one."""
    shards: int
    """Those that have slots; with a single one another stands by."""
    gateways: int
    replicas_made: int
    """The highest number that a replica ever had."""
    leaving: tuple[str, ...] = ()
    """Actors that hand over what they have, and are then ended."""
    hosts_out: tuple[str, ...] = ()
    """Hosts that are drained: no slot is moved to a shard there, no new replica placed there."""
    spreading: bool = False
    """Members move to where placement wants them, until all are there."""

    @staticmethod
    def fresh(replicas: int, shards: int, gateways: int) -> Topology:
        """As ``up`` starts it."""
        names = tuple(f"replica-{number}" for number in range(1, replicas + 1))
        return Topology(names, shards, gateways, replicas)

    def desired(self) -> Iterator[Desired]:
        """The actors that should run, replicas first: everything else waits for them."""
        wanted = {
            "replica": self.replicas,
            "shard": tuple(f"shard-{n}" for n in range(1, max(self.shards, SHARDS_MIN) + 1)),
            "gateway": tuple(f"gateway-{n}" for n in range(1, self.gateways + 1)),
        }
        for kind, names in wanted.items():
            also = [name for name in self.leaving if kind_of(name) == kind]
            yield from (Desired(kind, name) for name in (*names, *also))

    def scaled(
        self, shards: int | None = None, replicas: int | None = None, gateways: int | None = None
    ) -> Topology:
        """With other numbers; None: as it is. BadRequest says what cannot be. Members are spread
        anew, so the same numbers again mend what faults have left uneven."""
        _check("shards", shards, 1)
        _check("replicas", replicas, COPIES)
        _check("gateways", gateways, 1)
        changed = replace(
            self,
            shards=shards or self.shards,
            gateways=gateways or self.gateways,
            spreading=True,
        )
        kept = {desired.name for desired in replace(changed, leaving=()).desired()}
        gone = [d.name for d in self.desired() if d.kind != "replica" and d.name not in kept]
        still = [name for name in self.leaving if kind_of(name) == "replica"]
        return replace(changed, leaving=(*still, *gone))._with_replicas(replicas)

    def _with_replicas(self, count: int | None) -> Topology:
        if count is None:
            return self
        ordered = sorted(self.replicas, key=number_of)
        added = max(0, count - len(ordered))
        first = self.replicas_made + 1
        new = tuple(f"replica-{number}" for number in range(first, first + added))
        return replace(
            self,
            replicas=(*ordered[:count], *new),
            leaving=(*self.leaving, *ordered[count:]),
            replicas_made=self.replicas_made + added,
        )

    def drained(self, names: tuple[str, ...], host: str = "") -> Topology:
        """Without these replicas; with ``host``: they are all that it has. BadRequest: three copies
        need three others."""
        staying = tuple(name for name in self.replicas if name not in names)
        if len(staying) < COPIES:
            more = len(self.replicas) + COPIES - len(staying)
            raise BadRequest(
                f"{len(staying)} replicas would remain, and a message has {COPIES} copies:"
                f" im-actors scale --replicas {more} first"
            )
        out = dict.fromkeys((*self.hosts_out, *((host,) if host else ())))
        fresh = [name for name in names if name in self.replicas]
        return replace(
            self, replicas=staying, leaving=(*self.leaving, *fresh), hosts_out=tuple(out)
        )

    def taken_back(self, names: tuple[str, ...], host: str = "") -> Topology:
        """As if these replicas had never been drained; what has moved away moves back."""
        back = [name for name in names if name in self.leaving]
        return replace(
            self,
            replicas=tuple(sorted((*self.replicas, *back), key=number_of)),
            leaving=tuple(name for name in self.leaving if name not in back),
            hosts_out=tuple(out for out in self.hosts_out if out != host),
            spreading=True,
        )

    def without(self, name: str) -> Topology:
        """When an actor that was leaving has ended."""
        return replace(self, leaving=tuple(other for other in self.leaving if other != name))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Topology:
        try:
            lists: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in fields.items()
            }
            return Topology(**lists)
        except TypeError as error:
            raise CorruptData(f"topology.json: {error}; bring back a good copy") from None


def _check(what: str, value: int | None, least: int) -> None:
    if value is not None and (type(value) is not int or not least <= value <= ACTORS_MAX):
        raise BadRequest(f"{what} must be a number from {least} to {ACTORS_MAX}, not {value!r}")
