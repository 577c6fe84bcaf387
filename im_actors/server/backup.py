"""Takes a backup of a running cluster: reads committed records as a new member would, by Fetch.

Nothing stops meanwhile, and nothing is asked of owners. The cut is what one replica has of all of
its slots at one moment, so an event that another one caused (a note in a mailbox, the progress of a
job) is never in the backup without its cause: a record is on all three members before anybody hears
of it. Where no replica has all slots, several are asked at the same time, and such a pair may be
parted by the milliseconds between them. Of what was on that disk and not yet committed the backup
waits for the commit point; what a takeover cuts meanwhile was never committed, and is not in it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from im_actors import __version__
from im_actors.core.epochs import epoch_at
from im_actors.core.messages import Epochs, Fetch, Fetched
from im_actors.core.model import Record
from im_actors.errors import NotReachable, WrongDirectory
from im_actors.net.link import Link, LinkConfig, PeerInfo
from im_actors.server.clock import now_ms
from im_actors.server.cluster_file import ClusterFile
from im_actors.storage.backup import BackupWriter, Manifest, manifest_for
from im_actors.wire.links import InsideType, pack_inside, read_inside

FETCH_BYTES = 1 << 20
FETCH_WAIT_S = 10.0
"""Without an answer for so long another replica is asked."""
SETTLE_S = 10.0
"""How long the commit point is waited for."""
SETTLE_POLL_S = 0.05

Call = Callable[[str], Awaitable[Any]]
"""An admin method, by name."""
Moved = Callable[[int, int], None]
"""(records done, records in all)."""


class Position(NamedTuple):
    """How far one replica has one slot (``ReplicaNode.positions``)."""

    complete: bool
    commit_lsn: int
    last_lsn: int
    promised: int
    epochs: Epochs

    @property
    def last_epoch(self) -> int:
        return self.epochs[-1][0] if self.epochs else 0


@dataclass(slots=True)
class Cut:
    """Up to where a backup goes. ``holders`` have the whole of a slot, the best one first;
    ``epochs`` are those of the committed log: who was cut off may still have another end of it."""

    taken_ms: int
    lsns: dict[int, int]
    epochs: dict[int, Epochs]
    holders: dict[int, list[str]]
    addresses: dict[str, tuple[str, int]]
    promised: int
    dropped: set[int]
    form: int
    """The newest format that a record may be of."""


@dataclass(slots=True)
class Taken:
    """What a run did, or with ``dry`` would do."""

    manifest: Manifest
    cut: Cut
    records: int
    bytes: int
    dry: bool


async def take_backup(
    path: Path,
    cluster: ClusterFile,
    call: Call,
    moved: Moved,
    dry: bool = False,
    links: LinkConfig | None = None,
) -> Taken:
    """Bring the backup in ``path`` up to now, or begin one in an empty directory.

    Raises NotReachable (a slot has no replica with all of it; start again later), WrongDirectory
    (of another cluster, or of another history of this one), DiskFailed, CorruptData. Then ``path``
    is the backup that it was before.
    """
    cut = await choose_cut(call, cluster.slots)
    known = manifest_for(path, cluster.cluster, cluster.slots)
    total = sum(lsn - _begin(known, slot, lsn, path) for slot, lsn in cut.lsns.items())
    if dry:
        return Taken(known, cut, total, 0, True)
    with BackupWriter(path, cluster.cluster, cluster.slots) as writer:
        copied = _Copy(writer, cut, cluster.secret_bytes, links, lambda done: moved(done, total))
        try:
            for slot in sorted(cut.lsns):
                await copied.slot(slot)
        finally:
            await copied.close()
        manifest = await asyncio.to_thread(
            writer.finish, cut.taken_ms, __version__, cut.promised, cut.dropped, cut.form
        )
        return Taken(manifest, cut, copied.records, copied.bytes, False)


def _begin(known: Manifest, slot: int, lsn: int, path: Path) -> int:
    end = known.ends.get(slot)
    if end is not None and end.lsn > lsn:
        raise WrongDirectory(
            f"slot {slot} ends at lsn {lsn} in the cluster and at {end.lsn} in {path}: the cluster"
            " has lost what the backup has. Keep that backup, and use an empty directory"
        )
    return end.lsn if end is not None else 0


# -- the cut ---------------------------------------------------------------------------------------


async def choose_cut(call: Call, slots: int) -> Cut:
    """Where the backup ends. Returns when all of it is known to be committed."""
    taken_ms = now_ms()
    told = await call("positions")
    first = _positions(told)
    holders = {slot: _holders(first, slot) for slot in range(slots)}
    wanted = {slot: first[names[0]][slot].last_lsn for slot, names in holders.items() if names}
    if len(wanted) < slots:
        lacking = sorted(set(range(slots)) - set(wanted))
        raise NotReachable(
            f"slots {lacking[:5]} of {len(lacking)} have no replica that answers and holds all of"
            " their history: im-actors status says why; start the backup again when they have"
        )
    known = await _committed(call, wanted, first)
    answered = [found for found in told.values() if "error" not in found]
    return Cut(
        taken_ms,
        {slot: min(lsn, known[slot].commit_lsn) for slot, lsn in wanted.items()},
        {slot: known[slot].epochs for slot in wanted},
        holders,
        {found["name"]: (found["address"], found["port"]) for found in answered},
        max(at.promised for slots in first.values() for at in slots.values()),
        {month for found in answered for month in found["dropped"]},
        max(found["format"] for found in answered),
    )


def _positions(told: Mapping[str, Any]) -> dict[str, dict[int, Position]]:
    return {
        name: {int(slot): _position(*at) for slot, at in found["slots"].items()}
        for name, found in told.items()
        if "error" not in found
    }


def _position(complete: bool, commit: int, last: int, promised: int, epochs: Any) -> Position:
    return Position(complete, commit, last, promised, tuple((e, first) for e, first in epochs))


def _holders(positions: Mapping[str, Mapping[int, Position]], slot: int) -> list[str]:
    """Who has the whole slot and takes part in its newest epoch: what was ACKed is on all of them.
    Whoever has most slots comes first: what one replica has at one moment is one cut."""
    of_slot = {name: slots[slot] for name, slots in positions.items() if slot in slots}
    newest = max((at.last_epoch for at in of_slot.values()), default=0)
    names = [n for n, at in of_slot.items() if at.complete and at.last_epoch == newest]
    return sorted(names, key=lambda name: (-len(positions[name]), name))


async def _committed(
    call: Call, wanted: dict[int, int], positions: dict[str, dict[int, Position]]
) -> dict[int, Position]:
    """Of each slot a position that knows of ``wanted`` that it is committed, as far as it is. That
    word comes with the next append, or within milliseconds when there is none."""
    deadline = asyncio.get_running_loop().time() + SETTLE_S
    known: dict[int, Position] = {}
    while True:
        for slots in positions.values():
            for slot, at in slots.items():
                if slot not in known or at.commit_lsn > known[slot].commit_lsn:
                    known[slot] = at
        waits = any(known[slot].commit_lsn < lsn for slot, lsn in wanted.items())
        if not waits or asyncio.get_running_loop().time() > deadline:
            return known
        await asyncio.sleep(SETTLE_POLL_S)
        positions = _positions(await call("positions"))


# -- copying ---------------------------------------------------------------------------------------


class _Copy:
    """Fetches slots and gives them to the writer. One request is under way at a time: who serves
    clients comes first."""

    def __init__(
        self,
        writer: BackupWriter,
        cut: Cut,
        secret: bytes,
        links: LinkConfig | None,
        moved: Callable[[int], None],
    ) -> None:
        self._writer = writer
        self._cut = cut
        self._secret = secret
        self._link_config = links
        self._moved = moved
        self._sources: dict[str, _Source] = {}
        self.records = 0
        self.bytes = 0

    async def slot(self, slot: int) -> None:
        end, last = self._writer.end(slot), self._cut.lsns[slot]
        if end is not None:
            (known,) = (await self._fetch(slot, end.lsn, end.lsn))[:1]
            await asyncio.to_thread(self._writer.check_goes_on, slot, known)
        at = end.lsn if end is not None else 0
        while at < last:
            records = await self._fetch(slot, at + 1, last)
            self.bytes += await asyncio.to_thread(
                self._writer.add, slot, records, self._cut.dropped
            )
            at = records[-1].lsn
            self.records += len(records)
            self._moved(self.records)

    async def _fetch(self, slot: int, first: int, last: int) -> tuple[Record, ...]:
        for name in self._cut.holders[slot]:
            if name not in self._sources:
                address = self._cut.addresses[name]
                self._sources[name] = _Source(name, address, self._secret, self._link_config)
            found = await self._sources[name].fetch(slot, first, last)
            if records := _of_log(self._cut.epochs[slot], found):
                return records
        reasons = {name: source.reason for name, source in self._sources.items()}
        raise NotReachable(
            f"slot {slot}: no replica gives the records from lsn {first} on ({reasons}); the"
            " backup is as it was before: start it again"
        )

    async def close(self) -> None:
        for source in self._sources.values():
            await source.close()


def _of_log(epochs: Epochs, records: Iterable[Record]) -> tuple[Record, ...]:
    """The records as far as they are of the committed log: no (epoch, lsn) has two contents."""
    return tuple(takewhile(lambda record: record.epoch == epoch_at(epochs, record.lsn), records))


class _Source:
    """A replica that is read from."""

    def __init__(
        self, name: str, address: tuple[str, int], secret: bytes, links: LinkConfig | None
    ) -> None:
        self._up = asyncio.Event()
        self._answer: asyncio.Future[Fetched] | None = None
        self._asked = (0, 0)
        self._link = Link(
            PeerInfo("admin", "im-actors backup", "1"),
            secret,
            *address,
            on_up=lambda _: self._up.set(),
            on_frames=self._frames,
            on_down=lambda _: self._up.clear(),
            rng=random.Random(),
            config=links,
            expected_id=name,
        )

    @property
    def reason(self) -> str:
        away = "it has them not, or in a month that is moved away"
        return away if self._link.up else self._link.reason

    async def fetch(self, slot: int, first: int, last: int) -> tuple[Record, ...]:
        """At least one record, as far as the replica has them; none when it does not answer."""
        try:
            async with asyncio.timeout(FETCH_WAIT_S):
                await self._up.wait()
                self._asked = (slot, first)
                self._answer = asyncio.get_running_loop().create_future()
                request = Fetch(slot, 0, first, last, FETCH_BYTES, True)
                self._link.send(pack_inside(InsideType.REQUESTS, [request]))
                return (await self._answer).records
        except TimeoutError:
            return ()

    def _frames(self, messages: list[Any]) -> None:
        for message in messages:
            if message[0] != InsideType.ANSWERS:
                continue
            for answer in read_inside(message[1]):
                late = not isinstance(answer, Fetched) or self._asked != (
                    answer.slot,
                    answer.first_lsn,
                )
                if not late and self._answer is not None and not self._answer.done():
                    self._answer.set_result(answer)

    async def close(self) -> None:
        self._link.close()
        await self._link.wait_closed()
