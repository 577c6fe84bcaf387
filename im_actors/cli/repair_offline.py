"""Repairs the view store of a cluster that is down, from what its replicas' disks say.

A replica's journal has, of each slot, the epoch that it has promised, the view that it saw with
that promise, which still names the members of the one before, and the epochs of its records. What
committed under an epoch is on all three members of that epoch, and a takeover keeps every member
that it could ask (design 5.3). So among the copies that *count* - of disks that took part in the
epoch which they promised, or that the view seen with the promise names - those with the greatest
epoch of their last record have everything that was ACKed, as long as one member of the last ACTIVE
view is among the disks that are here. That is certain

- when fewer than three disks are not here: any three members share one with those that are, or
- when three such copies are here and one of them knows of a record of that epoch that it is
  committed, so that they are the members: whoever came after has asked one of them, and then that
  one would have a newer epoch.

And of the members that the newest view seen here names one has to be here, or have been replaced in
that very epoch: after a repair they may be fewer than three.

Otherwise something may be lost, and only an operator can take that: ``accepted``.

The new view names these copies and nobody else, so a takeover with any of them has everything; the
others are filled up from the spare replicas. Its epoch is above all that any disk here promised, so
every replica will be sealed again, and a host that comes back from elsewhere is behind. Nothing on
the replicas' disks is changed.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from im_actors.actors.placement import read_places
from im_actors.cli.verify_offline import read_logs
from im_actors.core.model import COPIES, Member, View, ViewState, view_of
from im_actors.core.replica import SlotLog
from im_actors.errors import CorruptData, DiskFailed, RolledBack, SetupError, WrongDirectory
from im_actors.server.clock import now_ms
from im_actors.server.cluster_file import ClusterFile, read_cluster, read_run, write_cluster
from im_actors.server.topology import kind_of
from im_actors.server.views import FILE, ViewStore, open_view_store
from im_actors.storage.database import fsync_directory
from im_actors.storage.directory import IDENTITY, open_existing

EPOCH_SPREAD = 1_000
"""A repair's epoch is the time in milliseconds, or what is known if that is more, and up to so much
on top. Disks that are not here may have promised more than those that are: also to an earlier
repair, with which no epoch may be shared."""
CONTROLLER = "controller"


@dataclass(slots=True)
class Disk:
    """One replica's disk. ``logs`` are of the slots that have records; ``promises`` of all."""

    member: Member
    logs: dict[int, SlotLog] = field(default_factory=dict)
    promises: dict[int, int] = field(default_factory=dict)
    views: dict[int, View] = field(default_factory=dict)


class Copy(NamedTuple):
    """One disk's records of one slot."""

    member: Member
    log: SlotLog

    @property
    def end(self) -> tuple[int, int]:
        return self.log.last_epoch, self.log.last_lsn

    @property
    def counts(self) -> bool:
        """Whether it is a member's, and not what a spare got of a takeover that did not end, which
        may be less than what was committed."""
        named = self.log.view is not None and self.member in self.log.view.members
        return named or self.log.promised == self.log.last_epoch

    @property
    def active(self) -> bool:
        """Whether it knows that its last epoch was served: nothing commits before that."""
        return bool(self.log.epochs) and self.log.commit_lsn >= self.log.epochs[-1][1]


@dataclass(slots=True)
class SlotPlan:
    """What is to be done about a slot. ``view`` None: nothing. ``why`` says how it stands;
    ``may_lose`` what may be lost by it, "" for nothing."""

    slot: int
    why: str
    copies: list[str]
    last_lsn: int = 0
    view: View | None = None
    may_lose: str = ""
    trouble: str = ""
    """What no repair can mend."""


@dataclass(slots=True)
class Plan:
    """What a repair would do. ``store``: how the view store stands. ``absent``: replicas whose
    disks are not here."""

    store: str
    lost: bool
    slots: list[SlotPlan]
    absent: dict[str, str]

    @property
    def changes(self) -> list[SlotPlan]:
        return [plan for plan in self.slots if plan.view is not None]

    def refused(self, accepted: Iterable[int]) -> list[SlotPlan]:
        """Slots of which something may be lost and nobody has accepted that."""
        taken = set(accepted)
        return [plan for plan in self.changes if plan.may_lose and plan.slot not in taken]


# -- what is there ---------------------------------------------------------------------------------


def known_cluster(data: Path) -> ClusterFile:
    """The cluster of a directory from which none runs; SetupError otherwise."""
    cluster = read_cluster(data)
    if cluster is None:
        raise SetupError(f"{data} is no cluster's data directory: no cluster.json")
    if read_run(data) is not None:
        raise SetupError(
            f"a cluster runs from {data}, or was killed: im-actors down first, on all of its hosts"
        )
    return cluster


def read_disks(
    data: Path, also: Sequence[Path], cluster: ClusterFile, replicas: int
) -> tuple[list[Disk], dict[str, str]]:
    """The disks that can be read, and of each other replica that is known why it is not here.

    ``replicas``: how many there were at least. Nothing else is sure to tell: whoever became a
    member last is in no view that a disk has seen.
    """
    absent: dict[str, str] = {}
    disks: list[Disk] = []
    for path in (*sorted(p for p in data.glob("replica-*") if p.is_dir()), *also):
        try:
            disk = _read_disk(path, cluster)
        except (CorruptData, DiskFailed) as error:
            absent[path.name] = str(error)
            continue
        if disk is not None and disk.member not in [other.member for other in disks]:
            disks.append(disk)
    here = {disk.member.replica for disk in disks}
    for name in _known_names(data, disks, replicas) - here:
        absent.setdefault(name, "there is no directory of it")
    return disks, {name: why for name, why in absent.items() if name not in here}


def _known_names(data: Path, disks: Sequence[Disk], replicas: int) -> set[str]:
    """All replicas that anything here speaks of."""
    names = {member.replica for disk in disks for v in disk.views.values() for member in v.members}
    names |= {disk.member.replica for disk in disks}
    names |= {name for name in read_places(data) if kind_of(name) == "replica"}
    names |= {path.name.partition(".")[0] for path in (data / "logs").glob("replica-*")}
    numbers = [int(end) for name in names if (end := name.rpartition("-")[2]).isdecimal()]
    # They are numbered without gaps.
    return names | {f"replica-{n}" for n in range(1, max([replicas, *numbers]) + 1)}


def _read_disk(path: Path, cluster: ClusterFile) -> Disk | None:
    if not (path / IDENTITY).exists() and path.is_dir() and not any(path.iterdir()):
        return None
    directory = open_existing(path)
    try:
        if directory.cluster != cluster.cluster:
            raise WrongDirectory(f"{path} belongs to cluster {directory.cluster}: leave it out")
        disk = Disk(Member(directory.replica, directory.disk), read_logs(directory))
        journal = directory.open_existing_journal()
        if journal is not None:
            for slot, image in journal.load().items():
                if image.meta is not None:
                    promised, _, view, *_ = msgpack.unpackb(image.meta)
                    disk.promises[slot] = promised
                    if view:
                        disk.views[slot] = view_of(view)
            journal.close()
        return disk
    finally:
        directory.close()


async def read_store(
    data: Path, cluster: ClusterFile, redis: str, believe: bool
) -> tuple[dict[int, View], str]:
    """The views, and "" or why there are none to be believed. NotReachable when that cannot be
    told."""
    if not believe:
        return {}, "it is not to be believed (--rebuild)"
    if not cluster.view_store_identity:
        raise SetupError("this cluster has never been started: im-actors up")
    try:
        store = await open_view_store(
            redis, data / CONTROLLER, cluster.cluster, cluster.view_store_identity
        )
    except (RolledBack, CorruptData) as error:
        return {}, str(error)
    try:
        return await store.read_all(), ""
    except CorruptData as error:
        return {}, str(error)
    finally:
        await store.close()


# -- what is to be done ----------------------------------------------------------------------------


def make_plan(
    slots: int,
    disks: Sequence[Disk],
    absent: Mapping[str, str],
    views: Mapping[int, View],
    lost: str,
    now_ms: int,
    rng: random.Random,
) -> Plan:
    """What to do about each slot, given what the store has; ``lost``: why it has nothing."""
    plans = [_plan_slot(slot, disks, absent, views.get(slot)) for slot in range(slots)]
    for plan in plans:
        if plan.view is not None:
            above = max(plan.view.epoch, now_ms)
            plan.view = plan.view._replace(epoch=above + rng.randint(1, EPOCH_SPREAD))
    return Plan(lost or "ok", bool(lost), plans, dict(absent))


def _plan_slot(
    slot: int, disks: Sequence[Disk], absent: Mapping[str, str], view: View | None
) -> SlotPlan:
    copies = [Copy(disk.member, disk.logs[slot]) for disk in disks if slot in disk.logs]
    promised = max((disk.promises.get(slot, 0) for disk in disks), default=0)
    if view is not None and view.epoch >= promised:
        members = [copy for copy in copies if copy.member in view.members]
        if members:
            return _sound(slot, members, copies)
        if not copies and any(disk.member in view.members for disk in disks):
            return SlotPlan(slot, "", [])  # Nothing has been written to it yet.
        why = "none of its members is here: " + ", ".join(m.replica for m in view.members)
    elif view is not None:
        why = f"the view store says epoch {view.epoch}, and a disk has promised {promised}"
    else:
        why = "the view store has no view of it"
    return _rebuilt(slot, why, disks, absent, copies, max(promised, view.epoch if view else 0))


def _sound(slot: int, members: list[Copy], copies: list[Copy]) -> SlotPlan:
    best = max(members, key=lambda copy: copy.end)
    names = [copy.member.replica for copy in members]
    why = "" if len(members) == COPIES else f"{len(members)} of {COPIES} copies are here"
    if why:
        why += ": it comes back, and is filled up to three, when so many replicas run"
    return SlotPlan(slot, why, names, best.log.last_lsn, trouble=_hole(best, copies))


def _hole(best: Copy, copies: list[Copy]) -> str:
    """What of a log is on no disk here. Copies of former members count: whoever was one keeps its
    part until all three members have all of it."""
    at = 1
    while at < best.log.from_lsn:
        ends = [last for copy in copies for first, last in copy.log.held if first <= at <= last]
        if not ends:
            return f"its records from lsn {at} to {best.log.from_lsn - 1} are on no disk here"
        at = max(ends) + 1
    return ""


def _rebuilt(
    slot: int,
    why: str,
    disks: Sequence[Disk],
    absent: Mapping[str, str],
    copies: list[Copy],
    above: int,
) -> SlotPlan:
    here = {disk.member for disk in disks}
    named = {m for disk in disks if slot in disk.views for m in disk.views[slot].members}
    lost = {m.replica for m in named - here} | set(absent)
    if not copies:
        members = [disk.member for disk in disks][:COPIES]
        may_lose = "all of it: no disk here has any record of it"
        view = View(slot, above, ViewState.RECOVERING, "", tuple(members))
        return SlotPlan(slot, why, [], 0, view, may_lose)
    counting = [copy for copy in copies if copy.counts]
    best = max(counting or copies, key=lambda copy: copy.end)
    equal = [copy for copy in counting if copy.log.last_epoch == best.log.last_epoch] or [best]
    epoch = max(above, best.log.last_epoch)
    members = sorted(copy.member for copy in equal)
    view = View(slot, epoch, ViewState.RECOVERING, "", tuple(members))
    plan = SlotPlan(slot, why, [m.replica for m in members], best.log.last_lsn, view)
    plan.trouble = _hole(best, copies)
    known = max(copy.log.commit_lsn for copy in copies)
    seen = max((d.views[slot] for d in disks if slot in d.views), key=_epoch, default=None)
    whole = seen is None or best.log.last_epoch >= seen.epoch or bool(here & set(seen.members))
    certain = len(lost) < COPIES or (len(equal) >= COPIES and any(copy.active for copy in equal))
    if known > best.log.last_lsn:
        plan.may_lose = (
            f"lsn {best.log.last_lsn + 1} to {known}, which a disk here knows to be committed and"
            " the newest log here does not have: im-actors verify, and look at these disks first"
        )
    elif not (counting and whole and certain):
        plan.may_lose = (
            f"whatever came after lsn {best.log.last_lsn}, if the last members were disks that are"
            f" not here ({', '.join(sorted(lost))})"
        )
    return plan


def _epoch(view: View) -> int:
    return view.epoch


# -- doing it --------------------------------------------------------------------------------------


async def carry_out(data: Path, cluster: ClusterFile, redis: str, plan: Plan) -> None:
    """Write the views of the plan, and which store has them. A crash on the way leaves a store
    that is not the known one: repair again."""
    store = await _opened(data, cluster, redis, plan.lost)
    try:
        held = await store.read_all()
        for slot in plan.changes:
            assert slot.view is not None
            await _put(store, held.get(slot.slot), slot.view)
        identity = store.identity
    finally:
        await store.close()
    kind = "redis" if redis else "sqlite"
    write_cluster(data, replace(cluster, view_store=kind, view_store_identity=identity))


async def _put(store: ViewStore, held: View | None, view: View) -> None:
    if held is None:
        now = await store.create(view)
    else:
        # What an old copy of the store has is known only now.
        view = view._replace(epoch=max(view.epoch, held.epoch + EPOCH_SPREAD))
        now = await store.swap(held, view)
    if now != view:
        raise WrongDirectory(
            f"slot {view.slot}: somebody else changes the view store: end that, and repair again"
        )


async def _opened(data: Path, cluster: ClusterFile, redis: str, lost: bool) -> ViewStore:
    path = data / CONTROLLER
    if not lost:
        return await open_view_store(redis, path, cluster.cluster, cluster.view_store_identity)
    if not redis:
        _put_aside(path)
    return await open_view_store(redis, path, cluster.cluster)


def _put_aside(path: Path) -> None:
    """Keep what is left of a lost file, out of the way."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for end in ("", "-wal", "-shm"):
        file = path / f"{FILE}{end}"
        if file.exists():
            os.replace(file, path / f"lost-{stamp}-{FILE}{end}")
    if path.is_dir():
        fsync_directory(path)


def repair(
    data: Path,
    also: Sequence[Path],
    redis: str,
    believe: bool,
    accepted: Iterable[int] | None,
    dry: bool,
    replicas: int = COPIES,
) -> tuple[Plan, bool]:
    """The plan, and whether it was carried out. ``accepted``: slots whose loss is taken, None for
    all. Nothing is done when one slot is refused: a store with some of its views is none."""
    cluster = known_cluster(data)
    if cluster.view_store != ("redis" if redis else "sqlite"):
        what = "leave --redis out" if redis else "say --redis URL"
        raise SetupError(f"the views of {data} are kept in {cluster.view_store}: {what}")
    disks, absent = read_disks(data, also, cluster, replicas)
    if not disks:
        raise SetupError(f"no replica's directory below {data} can be read: {absent or 'none'}")
    views, lost = asyncio.run(read_store(data, cluster, redis, believe))
    plan = make_plan(cluster.slots, disks, absent, views, lost, now_ms(), random.Random())
    taken = range(cluster.slots) if accepted is None else accepted
    if dry or plan.refused(taken) or not plan.changes:
        return plan, False
    asyncio.run(carry_out(data, cluster, redis, plan))
    return plan, True


def plan_fields(plan: Plan, accepted: Iterable[int]) -> dict[str, Any]:
    """The plan for programs."""
    refused = {slot.slot for slot in plan.refused(accepted)}
    return {
        "view_store": plan.store,
        "absent": plan.absent,
        "slots": [
            {
                "slot": slot.slot,
                "action": _action(slot, refused),
                "why": slot.why,
                "copies": slot.copies,
                "last_lsn": slot.last_lsn,
                "epoch": slot.view.epoch if slot.view else None,
                "may_lose": slot.may_lose,
                "trouble": slot.trouble,
            }
            for slot in plan.slots
        ],
        "changes": len(plan.changes),
        "refused": sorted(refused),
        "troubles": sum(bool(slot.trouble) for slot in plan.slots),
    }


def _action(slot: SlotPlan, refused: set[int]) -> str:
    if slot.view is None:
        return "none"
    return "refused" if slot.slot in refused else "rebuild"
