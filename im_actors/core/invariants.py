"""I1 to I9 of design 5.5, as checks over a whole cluster: owners, replicas and their disks.

Only the simulation and tests can see all of these at once, so nothing here runs in production;
what a machine sees of an invariant by itself it asserts in its own ``validate``. Every check raises
InvariantBroken with the story of the slot.

The checks need to know what was committed before: the ``Ledger`` is that memory. It learns from
owners (``owner_stepped``, after every step of an owner) and everybody is held against it
(``check_cluster``, every few steps: it looks only at what is new since the last time).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, Protocol

from im_actors.core.epochs import epoch_at
from im_actors.core.facts import Fact, event_facts
from im_actors.core.knowledge import Knowledge
from im_actors.core.model import Member, Record, View, decode_event, record_events
from im_actors.core.owner import Phase, SlotOwner
from im_actors.core.replica import Replica, SlotLog
from im_actors.errors import InvariantBroken

Key = tuple[str, str, int]
"""(session, device address, n)."""

_CLAIMED = (Phase.SEALING, Phase.COPYING, Phase.OPENING, Phase.ACTIVATING, Phase.SERVING)


class DiskImage(Protocol):
    """What is durable on one disk."""

    def record(self, slot: int, lsn: int) -> Record | None:
        """The record as the journal or the history has it."""
        ...

    def in_history(self, slot: int, lsn: int) -> bool: ...


class Running(NamedTuple):
    """A replica process and the disk that it runs on."""

    member: Member
    machine: Replica
    disk: DiskImage


@dataclass(slots=True)
class Covered:
    """How far one disk's copy of a slot was compared with the ledger."""

    machine: Replica
    commit_lsn: int = 0
    compared_lsn: int = 0
    history_lsn: int = 0


@dataclass(slots=True)
class Ledger:
    """What is known to be committed, and how far everybody was."""

    log: dict[int, list[Record]] = field(default_factory=dict)
    """slot -> the committed records from lsn 1 on."""
    owners: dict[tuple[int, int], str] = field(default_factory=dict)
    """(slot, epoch) -> the incarnation that claimed it."""
    owner_ends: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    """(incarnation, slot) -> (epoch, commit point)."""
    promises: dict[tuple[str, int], int] = field(default_factory=dict)
    """(disk, slot) -> epoch."""
    covered: dict[tuple[str, int], Covered] = field(default_factory=dict)
    view_epochs: dict[int, int] = field(default_factory=dict)
    last_seq: dict[str, int] = field(default_factory=dict)
    last_n: dict[tuple[str, str], int] = field(default_factory=dict)
    seqs: dict[Key, int] = field(default_factory=dict)
    facts: dict[str, dict[str, Fact]] = field(default_factory=dict)
    """session -> key -> what the newest committed event says."""

    def last_lsn(self, slot: int) -> int:
        return len(self.log.get(slot, ()))

    def record(self, slot: int, lsn: int) -> Record:
        return self.log[slot][lsn - 1]


# -- after every step of an owner --------------------------------------------------------------


def owner_stepped(ledger: Ledger, owner: SlotOwner, disks: Mapping[str, DiskImage]) -> None:
    """I1, I2, I5, I6, I8 for one owner. Cheap when its commit point did not rise."""
    owner.validate()
    if owner.phase not in _CLAIMED:
        return
    one_owner(ledger, owner)
    if owner.phase is not Phase.SERVING:
        return
    epoch, commit_lsn = ledger.owner_ends.get((owner.me, owner.slot), (0, 0))
    if (owner.epoch, owner.commit_lsn) == (epoch, commit_lsn):
        return
    if (owner.epoch, owner.commit_lsn) < (epoch, commit_lsn):
        _broken("I8", owner, f"went back from {(epoch, commit_lsn)}")
    ledger.owner_ends[owner.me, owner.slot] = (owner.epoch, owner.commit_lsn)
    committed_on_all(ledger, owner, disks)


def one_owner(ledger: Ledger, owner: SlotOwner) -> None:
    """I2: one owner per (slot, epoch)."""
    known = ledger.owners.setdefault((owner.slot, owner.epoch), owner.me)
    if known != owner.me:
        _broken("I2", owner, f"epoch {owner.epoch} is {known}'s and {owner.me}'s")


def committed_on_all(ledger: Ledger, owner: SlotOwner, disks: Mapping[str, DiskImage]) -> None:
    """I1: an ACKed record is durable on all members of the view that committed it. I2: what commits
    under an epoch was durable on all three before any of them promised more.

    The owner may learn of it late, when a later view has its own commits: then they must agree.
    """
    slot = owner.slot
    assert owner.view is not None
    for lsn in range(ledger.last_lsn(slot) + 1, owner.commit_lsn + 1):
        copies = [disks[member.disk].record(slot, lsn) for member in owner.view.members]
        first = copies[0]
        if first is None or any(copy != first for copy in copies):
            held = [copy and (copy.epoch, copy.checksum) for copy in copies]
            _broken("I1", owner, f"lsn {lsn} is committed and on disk as {held}")
        _take_in(ledger, owner, first)
    record = ledger.record(slot, owner.commit_lsn)
    if record.epoch != owner.epoch:
        _broken("I2", owner, f"commits lsn {record.lsn}, which is of epoch {record.epoch}")


def _take_in(ledger: Ledger, owner: SlotOwner, record: Record) -> None:
    """I5: committed seqs of a session are 1..n in log order; one key has one seq. I6: one device's
    messages appear in the order of ``n``."""
    log = ledger.log.setdefault(owner.slot, [])
    if log and record.epoch < log[-1].epoch:
        _broken("I4", owner, f"epoch {record.epoch} at lsn {record.lsn} follows {log[-1].epoch}")
    log.append(record)
    for event in map(decode_event, record_events(record.payload)):
        key = (event.session, event.device, event.n)
        if key in ledger.seqs:
            _broken("I5", owner, f"{key} has seq {ledger.seqs[key]} and {event.seq}")
        ledger.seqs[key] = event.seq
        last_seq = ledger.last_seq.get(event.session, 0)
        if event.seq != last_seq + 1:
            _broken("I5", owner, f"{event.session!r}: seq {event.seq} follows {last_seq}")
        ledger.last_seq[event.session] = event.seq
        last_n = ledger.last_n.get(key[:2], 0)
        if event.n != last_n + 1:
            _broken("I6", owner, f"{event.device} in {event.session!r}: {event.n} after {last_n}")
        ledger.last_n[key[:2]] = event.n
        facts = ledger.facts.setdefault(event.session, {})
        facts.update((fact.key, fact) for fact in event_facts(event))


# -- what left the cluster ---------------------------------------------------------------------


def acked(ledger: Ledger, key: Key, seq: int) -> None:
    """I5: one key has one seq, and every ACK for it names that seq."""
    if ledger.seqs.get(key) != seq:
        raise InvariantBroken(f"I5: {key} is acked as {seq}, the log has {ledger.seqs.get(key)}")


def delivered(ledger: Ledger, session: str, seq: int) -> None:
    """I7: nothing delivered or read is above the commit point of that moment."""
    last_seq = ledger.last_seq.get(session, 0)
    if seq > last_seq:
        raise InvariantBroken(f"I7: {session!r}: seq {seq} is shown, {last_seq} are committed")


# -- every few steps ---------------------------------------------------------------------------


def check_cluster(
    ledger: Ledger,
    owners: Iterable[SlotOwner],
    replicas: Iterable[Running],
    views: Mapping[int, View],
) -> None:
    """I3, I4, I7, I8 and I9 for everybody who runs."""
    for slot, view in views.items():
        views_only_rise(ledger, slot, view)
    for member, machine, disk in replicas:
        for slot, log in machine.logs.items():
            own_log_holds(machine, slot, log)
            promises_only_rise(ledger, member, machine, slot, log)
            below_commit_point(ledger, machine, slot, log)
            covered = _covered(ledger, member, machine, slot, log)
            commit_point_stays(machine, slot, log, covered)
            same_bytes(ledger, machine, slot, log, disk, covered)
            tables_have_no_hole(machine, slot, log, disk, covered)
            if slot in views and member in views[slot].members:
                member_holds(ledger, machine, slot, log, disk)
    for owner in owners:
        if owner.phase is Phase.SERVING:
            knows_its_sessions(ledger, owner)


def views_only_rise(ledger: Ledger, slot: int, view: View) -> None:
    """I8: epochs never go back."""
    known = ledger.view_epochs.get(slot, 0)
    if view.epoch < known:
        raise InvariantBroken(f"I8: slot {slot}: the view went back from epoch {known} to {view}")
    ledger.view_epochs[slot] = view.epoch


def own_log_holds(machine: Replica, slot: int, log: SlotLog) -> None:
    """I4: a member's log is contiguous from its from_lsn and its epochs never decrease."""
    try:
        log.validate(slot)
    except InvariantBroken as broken:
        _broken_at("I4", machine, slot, str(broken))


def promises_only_rise(
    ledger: Ledger, member: Member, machine: Replica, slot: int, log: SlotLog
) -> None:
    """I8: promises never go back: not at a restart, not when the slot is deleted. (A promise that
    is not on disk yet does not count as given.)"""
    key = (member.disk, slot)
    known = ledger.promises.get(key, 0)
    if log.promised < known:
        _broken_at("I8", machine, slot, f"promised {known}, then {log.promised}")


def promise_given(ledger: Ledger, disk: str, slot: int, epoch: int) -> None:
    """A promise has left the replica: from here on it must be kept."""
    ledger.promises[disk, slot] = max(epoch, ledger.promises.get((disk, slot), 0))


def below_commit_point(ledger: Ledger, machine: Replica, slot: int, log: SlotLog) -> None:
    """I7: a replica applies, and so shows, nothing above a commit point; and it believes only in
    commit points that an owner has reached."""
    if log.commit_lsn > ledger.last_lsn(slot):
        text = f"believes in {log.commit_lsn}, committed are {ledger.last_lsn(slot)}"
        _broken_at("I7", machine, slot, text)
    if log.applied_lsn > log.commit_lsn:
        _broken_at("I7", machine, slot, f"applied {log.applied_lsn} above {log.commit_lsn}")


def _covered(ledger: Ledger, member: Member, machine: Replica, slot: int, log: SlotLog) -> Covered:
    known = ledger.covered.get((member.disk, slot))
    if known is None or known.machine is not machine or not log.epochs:
        known = ledger.covered[member.disk, slot] = Covered(machine)
    return known


def commit_point_stays(machine: Replica, slot: int, log: SlotLog, covered: Covered) -> None:
    """I8: commit points never go back (while the process lives: on disk they may lag). I3: no
    replica cuts below its commit point."""
    if log.commit_lsn < covered.commit_lsn:
        text = f"commit point {covered.commit_lsn}, then {log.commit_lsn}"
        _broken_at("I8", machine, slot, text)
    covered.commit_lsn = log.commit_lsn
    if log.epochs and log.last_lsn < log.commit_lsn:
        _broken_at("I3", machine, slot, f"cut to {log.last_lsn}, below {log.commit_lsn}")


def same_bytes(
    ledger: Ledger,
    machine: Replica,
    slot: int,
    log: SlotLog,
    disk: DiskImage,
    covered: Covered,
) -> None:
    """I3: a committed lsn has the same bytes, for ever, on every replica whose commit point covers
    it. I4: and the epoch history names its epoch."""
    whole = True
    for lsn in range(covered.compared_lsn + 1, log.commit_lsn + 1):
        if not log.holds(lsn, lsn):
            whole = False  # Looked at when backfill has closed it.
            continue
        known, record = ledger.record(slot, lsn), disk.record(slot, lsn)
        written = record is not None and record.checksum == known.checksum
        checksum = log.checksums.get(lsn, record.checksum if record else known.checksum)
        if checksum != known.checksum or epoch_at(log.epochs, lsn) != known.epoch:
            text = f"lsn {lsn} is {checksum}, elsewhere {known.checksum} of epoch {known.epoch}"
            _broken_at("I3", machine, slot, f"{text}; epochs {log.epochs}")
        if not written:
            return  # Believed and still being written: looked at again the next time.
        if whole:
            covered.compared_lsn = lsn


def member_holds(
    ledger: Ledger, machine: Replica, slot: int, log: SlotLog, disk: DiskImage
) -> None:
    """I3: every intact member of the view holds every committed record from its from_lsn on."""
    lsn = ledger.last_lsn(slot)
    if lsn and lsn >= log.from_lsn and disk.record(slot, lsn) != ledger.record(slot, lsn):
        _broken_at("I3", machine, slot, f"a member of the view, lacks lsn {lsn}")


def tables_have_no_hole(
    machine: Replica, slot: int, log: SlotLog, disk: DiskImage, covered: Covered
) -> None:
    """I9: unknown is never taken for absent: who says that its history is complete up to an lsn has
    every record of it, because owners take its silence about a key for the key's absence."""
    if not log.complete:
        covered.history_lsn = 0
        return
    for lsn in range(covered.history_lsn + 1, log.applied_lsn + 1):
        if not disk.in_history(slot, lsn):
            _broken_at("I9", machine, slot, f"complete to {log.applied_lsn}, without {lsn}")
    covered.history_lsn = log.applied_lsn


def knows_its_sessions(ledger: Ledger, owner: SlotOwner) -> None:
    """I9: the owner that holds the newest commit point knows of every committed event of a session
    before it decides on the session's next one."""
    slot = owner.slot
    if owner.commit_lsn < ledger.last_lsn(slot):
        return  # Deposed without knowing it: it cannot commit.
    for name, state in owner.serving.sessions.items():
        if not state.loaded:
            continue
        if state.committed_seq != ledger.last_seq.get(name, 0):
            text = f"{name!r} has {ledger.last_seq.get(name, 0)}, {state.committed_seq} known"
            _broken("I9", owner, text)
        for address, device in state.devices.items():
            if device.last_n < ledger.last_n.get((name, address), 0):
                _broken("I9", owner, f"{name!r}: {address} is known up to {device.last_n}")
        if state.knowledge is not None:
            knows_its_facts(ledger, owner, name, state.knowledge)


def knows_its_facts(ledger: Ledger, owner: SlotOwner, session: str, knowledge: Knowledge) -> None:
    """I9: what the owner knows of a session's state is what its newest events say."""
    committed, last_seq = ledger.facts.get(session, {}), ledger.last_seq.get(session, 0)
    for key, known in knowledge.facts.items():
        seq = knowledge.said_at(key)
        if seq > last_seq:
            continue  # By an event that has not committed.
        fact = committed.get(key)
        there = None if fact is None or fact.value is None else fact
        if seq != (fact.seq if fact else 0) or known != there:
            _broken("I9", owner, f"{session!r}: {key!r} is known as {known}, and is {fact}")


# -- errors ------------------------------------------------------------------------------------


def _broken(name: str, owner: SlotOwner, text: str) -> NoReturn:
    _raise(name, owner.slot, f"{owner.me} in epoch {owner.epoch}: {text}", owner.story)


def _broken_at(name: str, machine: Replica, slot: int, text: str) -> NoReturn:
    _raise(name, slot, f"{machine.name}: {text}", machine.story)


def _raise(name: str, slot: int, text: str, story: Any) -> NoReturn:
    lines = [f"{name}: slot {slot}: {text}", *story.story(slot)]
    raise InvariantBroken("\n".join(lines))
