"""The decisions of a takeover (design 5.3, steps 3 to 5), as pure functions of what was sealed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from im_actors.core.epochs import common_prefix, cut_epochs, epoch_at
from im_actors.core.messages import Prepare, Sealed
from im_actors.core.model import COPIES, Member, View
from im_actors.errors import InvariantBroken

COPY_RECORDS_MAX = 256
"""Default: a spare that lacks more committed records takes them by backfill afterwards."""


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A replica as the directory knows it. Two replicas on one host share a fate."""

    name: str
    disk: str
    host: str

    @property
    def member(self) -> Member:
        return Member(self.name, self.disk)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a takeover will do: the log to keep, and how each new member gets to it.

    ``floor_lsn``: session tables that have applied this much, plus the records after it, are all
    that a new owner has to know. ``fetch_from`` is the first lsn to read from ``best``.
    """

    best: Member
    last_lsn: int
    last_epoch: int
    epochs: tuple[tuple[int, int], ...]
    commit_lsn: int
    floor_lsn: int
    fetch_from: int
    members: tuple[Member, ...]
    prepares: tuple[tuple[Member, Prepare], ...]


def choose_log(sealed: dict[Member, Sealed]) -> Member:
    """The member whose log is to be kept: the greatest (epoch of the last record, last lsn).

    The length alone would let an old owner's unacknowledged tail win over committed records.
    """
    return max(sealed, key=lambda m: (*_end(sealed[m]), m))


def _end(answer: Sealed) -> tuple[int, int]:
    return epoch_at(answer.epochs, answer.last_lsn), answer.last_lsn


def choose_members(
    view: View,
    usable: dict[Member, Sealed],
    replicas: tuple[ReplicaInfo, ...],
    spares: tuple[Member, ...],
) -> tuple[Member, ...] | None:
    """The usable members, filled up with spares on hosts of their own as far as there are any.

    ``spares`` are in order of preference. None: there are fewer than three.
    """
    chosen = [member for member in view.members if member in usable]
    filled = fill_up(chosen, [spare for spare in spares if spare in usable], replicas)
    return tuple(filled) if len(filled) == COPIES else None


def fill_up(
    members: Sequence[Member], spares: Sequence[Member], replicas: Sequence[ReplicaInfo]
) -> list[Member]:
    """``members`` and as many of ``spares`` as are lacking: the first ones on hosts of their own,
    then simply the first ones."""
    host_of = {info.member: info.host for info in replicas}
    chosen = list(members)
    waiting = [spare for spare in spares if spare not in chosen]
    while len(chosen) < COPIES and waiting:
        taken = {host_of.get(member) for member in chosen}
        apart = [spare for spare in waiting if host_of.get(spare) not in taken]
        spare = (apart or waiting)[0]
        chosen.append(spare)
        waiting.remove(spare)
    return chosen


def make_plan(
    view: View,
    epoch: int,
    usable: dict[Member, Sealed],
    members: tuple[Member, ...],
    copy_records_max: int = COPY_RECORDS_MAX,
) -> Plan:
    """How to bring ``members`` to one log. Raises InvariantBroken when that would lose a committed
    record: then nothing may be cut."""
    slot = view.slot
    # Only members of the view count: a spare may hold an older tail of a deposed owner.
    best = choose_log({m: usable[m] for m in view.members if m in usable})
    log = usable[best]
    last_lsn, epochs = log.last_lsn, log.epochs
    commit_lsn = max(answer.commit_lsn for answer in usable.values())
    if commit_lsn > last_lsn:
        raise InvariantBroken(
            f"I3: slot {slot}: commit point {commit_lsn} was reported, the best log ends at"
            f" {last_lsn}: nothing is cut, look at the replicas"
        )
    prepares = []
    for member in members:
        copy_from = commit_lsn - copy_records_max
        prepare = _prepare(slot, epoch, usable[member], log, commit_lsn, copy_from)
        prepares.append((member, prepare))
    tables = [
        usable[member].applied_lsn
        for member, prepare in prepares
        if usable[member].complete and prepare.start_lsn == prepare.keep_lsn + 1
    ]
    # No complete member: the one that first becomes complete has applied all that is committed.
    floor_lsn = max(min(max(tables, default=commit_lsn), last_lsn), log.from_lsn - 1)
    starts = [prepare.start_lsn for _, prepare in prepares]
    # The last record is read in any case: it says where the message keys go on.
    fetch_from = max(log.from_lsn, 1, min([*starts, floor_lsn + 1, last_lsn]))
    return Plan(
        best,
        last_lsn,
        epoch_at(epochs, last_lsn),
        epochs,
        commit_lsn,
        floor_lsn,
        fetch_from,
        members,
        tuple(prepares),
    )


def _prepare(
    slot: int, epoch: int, mine: Sealed, best: Sealed, commit_lsn: int, copy_from: int
) -> Prepare:
    keep = common_prefix(mine.epochs, mine.last_lsn, best.epochs, best.last_lsn)
    if keep < mine.commit_lsn:
        raise InvariantBroken(
            f"I3: slot {slot}: two logs differ below the commit point {mine.commit_lsn}"
        )
    start = keep + 1
    if keep < copy_from or start < best.from_lsn:
        start = commit_lsn + 1
    return Prepare(slot, epoch, keep, start, cut_epochs(best.epochs, start - 1))
