"""Faults in the middle of a replay: which, when, on whom, and how long until it went on.

``recovered_s`` runs from the moment at which the fault was ordered to the first ACK of a message
that was sent *after* it through what it hit: the slots of a shard, the clients of a gateway. ACKs
that were already under way do not count.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from im_actors.cli.ledger import Entry, Ledger
from im_actors.errors import ImError, NotReachable, SetupError

KINDS = {
    "kill-shard": ("kill", "shard"),
    "kill-replica": ("kill", "replica"),
    "kill-gateway": ("kill", "gateway"),
    "pause-shard": ("pause", "shard"),
    "drop-connections": ("drop", "clients"),
    "kill-all": ("kill", "all"),
}
TRIES_MAX = 200
TRY_AGAIN_S = 0.05
STATUS_TIMEOUT_S = 30.0

Call = Callable[..., Awaitable[Any]]


def parse_faults(text: str) -> list[str]:
    """ "kill-shard,drop-connections" and so on, in the order in which they come."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in KINDS:
            raise SetupError(f"--faults knows {', '.join(KINDS)}, and not {name!r}")
    return names


class Stage(Protocol):
    """What the injector needs of a replay."""

    @property
    def start_s(self) -> float: ...

    async def reached(self, share: float) -> None: ...

    def say(self, text: str) -> None: ...

    def connects(self) -> dict[str, int]: ...

    def cut_connections(self) -> int: ...


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """The faults, in order. ``call`` is an admin call; None when the cluster cannot be asked.
    ``kill_all`` kills every process of the cluster, ``start_all`` starts it again as it was."""

    kinds: tuple[str, ...] = ()
    call: Call | None = None
    kill_all: Call | None = None
    start_all: Call | None = None

    def validate(self) -> FaultPlan:
        """Itself; SetupError for faults that need a cluster that is not at hand."""
        for kind in self.kinds:
            if kind != "drop-connections" and self.call is None:
                raise SetupError(f"{kind} needs the data directory of the running cluster: --data")
            if kind == "kill-all" and (self.kill_all is None or self.start_all is None):
                raise SetupError("kill-all needs a cluster that im-actors up started here")
        return self

    async def epochs(self) -> dict[str, Any]:
        """The status of the slots, for ``takeovers``; empty when the cluster cannot be asked."""
        if self.call is None:
            return {}
        try:
            status: dict[str, Any] = await self.call("status", timeout_s=STATUS_TIMEOUT_S)
        except NotReachable:
            return {}
        return status["slots"]  # type: ignore[no-any-return]

    async def takeovers(self, before: dict[str, Any], ledger: Ledger) -> int:
        """How often slots changed their view during the run: the sum of the growth of epochs. A
        cluster that does not tell them shows them in its ACKs, as far as messages met them."""
        after = _epochs(await self.epochs())
        known = _epochs(before)
        if known and after:
            return sum(epoch - known.get(slot, epoch) for slot, epoch in after.items())
        return _epochs_met(ledger, before.get("total", 1))


def _epochs(slots: dict[str, Any]) -> dict[str, int]:
    return {str(slot): int(epoch) for slot, epoch in slots.get("epochs", {}).items()}


def _epochs_met(ledger: Ledger, slot_count: int) -> int:
    met: dict[int, set[int]] = {}
    for (session, _, _), entry in ledger.entries.items():
        if entry.acked_s is not None:
            met.setdefault(_slot(session, slot_count), set()).add(entry.epoch)
    return sum(max(epochs) - min(epochs) for epochs in met.values())


def _slot(session: str, slot_count: int) -> int:
    return zlib.crc32(session.encode()) % slot_count


@dataclass(slots=True)
class Hit:
    """A fault that was injected."""

    kind: str
    target: str
    ordered_s: float
    done_s: float
    slots: frozenset[int] | None = None
    """Those of a shard; None: all."""
    slot_count: int = 0
    devices: frozenset[str] | None = None
    """Device addresses that were cut off; None: all."""
    connects: dict[str, int] | None = None
    """How often each client had connected before a gateway was killed. Gateways may share one
    address, so only a connection that was lost tells who was on it."""

    def touched(self, entry: Entry) -> bool:
        """Whether a message was sent after the fault through what it hit."""
        if entry.sent_s < self.done_s or entry.acked_s is None:
            return False
        session, device, _ = entry.key
        if self.devices is not None and device not in self.devices:
            return False
        return self.slots is None or _slot(session, self.slot_count) in self.slots

    def told(self, start_s: float, entries: Iterable[Entry]) -> dict[str, Any]:
        """The fault as the report has it; ``recovered_s`` is None when nothing was sent after."""
        after = [e.acked_s for e in entries if self.touched(e) and e.acked_s is not None]
        return {
            "kind": self.kind,
            "at_s": round(self.ordered_s - start_s, 3),
            "target": self.target,
            "recovered_s": round(min(after) - self.ordered_s, 3) if after else None,
        }


class Injector:
    """Spreads the faults over a run: with three of them, at 25, 50 and 75 % of the ACKs."""

    def __init__(self, plan: FaultPlan, stage: Stage) -> None:
        self._plan = plan.validate()
        self._stage = stage
        self.hits: list[Hit] = []

    async def run(self) -> None:
        count = len(self._plan.kinds)
        for index, kind in enumerate(self._plan.kinds):
            await self._stage.reached((index + 1) / (count + 1))
            self.settle()
            try:
                hit = await self._inject(kind)
            except ImError as error:
                self._stage.say(f"{kind} could not be done: {error}")
                continue
            self.hits.append(hit)
            at_s = hit.ordered_s - self._stage.start_s
            self._stage.say(f"{at_s:6.2f} s  {kind}: {hit.target}")

    def settle(self) -> None:
        """See which clients the last fault cut off."""
        hit = self.hits[-1] if self.hits else None
        if hit is not None and hit.connects is not None:
            now = self._stage.connects()
            lost = frozenset(d for d, count in hit.connects.items() if now[d] > count)
            hit.devices, hit.connects = lost or None, None

    async def _inject(self, kind: str) -> Hit:
        action, what = KINDS[kind]
        if kind == "drop-connections":
            ordered_s = time.monotonic()
            count = self._stage.cut_connections()
            return Hit(kind, f"{count} connections", ordered_s, time.monotonic())
        if kind == "kill-all":
            return await self._restart_all(kind)
        hit = await self._aim(kind, what)
        hit.ordered_s = time.monotonic()
        await self._call("fault", action, hit.target)
        hit.done_s = time.monotonic()
        return hit

    async def _restart_all(self, kind: str) -> Hit:
        kill_all, start_all = self._plan.kill_all, self._plan.start_all
        assert kill_all is not None
        assert start_all is not None
        hit = Hit(kind, "every process", time.monotonic(), 0.0)
        await kill_all()
        hit.done_s = time.monotonic()
        await start_all()
        return hit

    async def _call(self, method: str, *arguments: Any) -> Any:
        assert self._plan.call is not None
        return await self._plan.call(method, *arguments)

    async def _aim(self, kind: str, what: str) -> Hit:
        """The running actor of a kind with the most to do, and what the fault will hit. After an
        earlier fault one may have to come back first."""
        for _ in range(TRIES_MAX):
            status = await self._call("status")
            actors = {n: s for n, s in status[f"{what}s"].items() if "error" not in s}
            if actors:
                break
            await asyncio.sleep(TRY_AGAIN_S)
        else:
            raise NotReachable(f"no {what} is running")
        before = [hit.target for hit in self.hits]
        name = max(sorted(actors), key=lambda n: (_work(actors[n]), -before.count(n)))
        hit = Hit(kind, name, 0.0, 0.0)
        if what == "shard":
            hit.slots = frozenset(actors[name].get("serving", ()))
            hit.slot_count = status["slots"]["total"]
        elif what == "gateway":
            hit.connects = self._stage.connects()
        return hit


def _work(status: dict[str, Any]) -> int:
    """Slots of a shard, connections of a gateway; replicas all have the same."""
    return len(status.get("serving", ())) or int(status.get("connections", 0))
