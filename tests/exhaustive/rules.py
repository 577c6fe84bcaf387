"""I1 to I9 of design 5.5 on the states of a small cluster, written without the help of ``core``'s
own checks: from what is on disks, what owners commit and what leaves them.

``Ledger`` is a tuple with one entry for each committed record, from lsn 1 on. It is a part of the
state: what was committed stays so for ever, whatever the cluster does later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from im_actors.core.model import decode_event, record_events
from im_actors.core.owner import Phase, SlotOwner
from tests.exhaustive.owner_node import forgets
from tests.exhaustive.replica_node import Broken, ReplicaNode

Entry = tuple[int, int, tuple[tuple[int, str, int], ...]]
"""A record: epoch, checksum and (seq, device, n) of its events."""
Ledger = tuple[Entry, ...]

CLAIMED = (Phase.SEALING, Phase.COPYING, Phase.OPENING, Phase.ACTIVATING, Phase.SERVING)


def entry_of(record: Any) -> Entry:
    events = map(decode_event, record_events(record.payload))
    return record.epoch, record.checksum, tuple((e.seq, e.device, e.n) for e in events)


@dataclass(slots=True)
class ReplicaFacts:
    """What the rules look at in a replica."""

    name: str
    records: dict[int, Entry]
    history: frozenset[int]
    durable_promise: int
    promise: int
    given: int
    commit_lsn: int
    applied_lsn: int
    held: list[list[int]]
    complete: bool
    epochs: tuple[Any, ...]
    backfills: bool
    tasks: list[tuple[int, str]]

    def holds(self, lsn: int) -> bool:
        return any(first <= lsn <= last for first, last in self.held)


def replica_facts(node: ReplicaNode, check: bool) -> ReplicaFacts:
    disk, log = node.disk, node.log
    lsns = sorted({*disk.journal, *disk.history})
    records = {lsn: entry_of(disk.record(lsn)) for lsn in lsns}
    facts = ReplicaFacts(
        *(node.name, records, frozenset(disk.history), disk.meta[0] if disk.meta else 0),
        *(log.promised if log else 0, node.given),
        *(log.commit_lsn if log else 0, log.applied_lsn if log else 0),
        [list(stretch) for stretch in log.held] if log else [[1, 0]],
        log.complete if log else True,
        log.epochs if log else (),
        log is not None and not log.complete and not log.backfill_storing,
        node.tasks_at_hand(),
    )
    if check:
        _own_log(facts)
    return facts


def _own_log(facts: ReplicaFacts) -> None:
    """I4: contiguous from from_lsn on, epochs never decrease. I8: a promise that was given is kept,
    also over a restart."""
    name = facts.name
    if min(facts.promise, facts.durable_promise) < facts.given:
        raise Broken(f"I8: {name} has promised {facts.given} and knows only of {facts.promise}")
    for first, last in facts.held:
        missing = [lsn for lsn in range(first, last + 1) if lsn not in facts.records]
        if missing:
            raise Broken(f"I4: {name} says that it holds {first}..{last}, and lacks {missing}")
    first, last = facts.held[-1]
    epochs = [facts.records[lsn][0] for lsn in range(first, last + 1)]
    if epochs != sorted(epochs):
        raise Broken(f"I4: the epochs of {name} decrease: {epochs}")
    if epochs and epochs[-1] > facts.durable_promise:
        raise Broken(f"I4: {name} has records of {epochs[-1]}, above its promise")
    if facts.applied_lsn > facts.commit_lsn:
        raise Broken(f"I7: {name} applied {facts.applied_lsn} above {facts.commit_lsn}")
    absent = [lsn for lsn in range(1, facts.applied_lsn + 1) if lsn not in facts.history]
    if facts.complete and absent:
        raise Broken(f"I9: {name} calls its tables complete, they lack {absent}")


def replica_agrees(facts: ReplicaFacts, ledger: Ledger, member: bool) -> int:
    """I3 and I7 for one replica; the bits of the committed records that its disk holds.

    A committed lsn has the same bytes wherever a commit point covers it; a member of the view holds
    every committed record from its from_lsn on.
    """
    if facts.commit_lsn > len(ledger):
        text = f"believes in {facts.commit_lsn}, committed are {len(ledger)}"
        raise Broken(f"I7: {facts.name} {text}")
    bits = 0
    for lsn, entry in enumerate(ledger, 1):
        if facts.records.get(lsn) == entry:
            bits |= 1 << (lsn - 1)
        elif facts.holds(lsn) and lsn <= facts.commit_lsn:
            raise Broken(f"I3: {facts.name} has something else at the committed lsn {lsn}")
        elif member and lsn >= facts.held[-1][0]:
            raise Broken(f"I3: {facts.name} is a member and lacks the committed lsn {lsn}")
    return bits


def copies(bits: list[int], ledger: Ledger, wanted: int) -> None:
    """P2: what is committed is on three disks, members or not, for ever."""
    for index, entry in enumerate(ledger):
        count = sum(b >> index & 1 for b in bits)
        if count < wanted:
            raise Broken(f"P2: lsn {index + 1} of epoch {entry[0]}, committed, is on {count} disks")


@dataclass(slots=True)
class OwnerFacts:
    """What the rules and the explorer look at in an owner."""

    me: str
    phase: Phase
    epoch: int
    commit_lsn: int
    members: tuple[str, ...]
    durable: dict[str, tuple[int, bool]]
    applied: dict[str, int]
    """What members have said of their tables; of no member when nothing depends on it."""
    loaded: tuple[tuple[str, int, tuple[tuple[str, int], ...]], ...]
    waiting: tuple[int, ...]
    lookups: frozenset[int]
    loads: int
    asked: bool
    """Somebody waits for a session's head."""
    promised_max: int
    alarms: tuple[str, ...]


def owner_facts(owner: SlotOwner) -> OwnerFacts:
    sessions = [
        (name, s.committed_seq, tuple((d, state.last_n) for d, state in s.devices.items()))
        for name, s in owner.serving.sessions.items()
        if s.loaded
    ]
    alarms = [("attempt", owner._due_ms), ("commit", owner._tell_commit_ms)]
    return OwnerFacts(
        *(owner.me, owner.phase, owner.epoch, owner.commit_lsn),
        tuple(member.replica for member in owner.members),
        {m.replica: (s.durable_lsn, s.complete) for m, s in owner.members.items()},
        {m.replica: s.applied_lsn for m, s in owner.members.items() if forgets(owner)},
        tuple(sessions),
        tuple(send.n for sends in owner.serving.waiting.values() for send in sends),
        frozenset(owner._lookups),
        *(owner._lookup_number, bool(owner._heads)),
        owner._promised_max,
        tuple(name for name, due in alarms if due is not None),
    )


def one_owner(first: OwnerFacts, second: OwnerFacts) -> None:
    """I2: one owner per epoch."""
    both = first.phase in CLAIMED and second.phase in CLAIMED
    if both and first.epoch == second.epoch:
        raise Broken(f"I2: epoch {first.epoch} is {first.me}'s and {second.me}'s")


def committed(
    ledger: Ledger, owner: OwnerFacts, replicas: dict[str, ReplicaFacts], judge: str
) -> Ledger:
    """I1, I2: what an owner commits is on the disks of all three members, and the same there."""
    if len(owner.members) != 3:
        raise Broken(f"I1: {owner.me} commits on {owner.members}")
    for lsn in range(len(ledger) + 1, owner.commit_lsn + 1):
        held = [replicas[name].records.get(lsn) for name in owner.members]
        if judge == "loss":
            held = [entry for entry in held if entry is not None] or held
        if held[0] is None or held.count(held[0]) < len(held):
            raise Broken(f"I1: {owner.me} commits lsn {lsn}, on disks are {held}")
        ledger = (*ledger, held[0])
        _events_follow(ledger)
    epoch = ledger[owner.commit_lsn - 1][0] if owner.commit_lsn else owner.epoch
    if epoch != owner.epoch and judge == "rules":
        raise Broken(f"I2: {owner.me} commits a record of epoch {epoch} in {owner.epoch}")
    return ledger


def _events_follow(ledger: Ledger) -> None:
    """I5: seqs are 1..n, one key has one seq. I6: a device's messages in the order of n."""
    events = [event for entry in ledger for event in entry[2]]
    seqs = [event[0] for event in events]
    if seqs != list(range(1, len(seqs) + 1)):
        raise Broken(f"I5: the committed seqs are {seqs}")
    numbers = [event[2] for event in events]
    if numbers != list(range(1, len(numbers) + 1)):
        raise Broken(f"I5/I6: the device's committed messages are {numbers}")
    epochs = [entry[0] for entry in ledger]
    if epochs != sorted(epochs):
        raise Broken(f"I4: the committed epochs are {epochs}")


def acked(ledger: Ledger, device: str, n: int, seq: int) -> None:
    """I5: every ACK for a key names the key's one committed seq; I1: and nothing else is ACKed."""
    if not any((seq, device, n) in entry[2] for entry in ledger):
        raise Broken(f"I5: {device} {n} is acked as {seq}; committed are {ledger}")


def told_head(ledger: Ledger, seq: int) -> None:
    """I7: no head that is told is above the commit point."""
    last_seq = max((event[0] for entry in ledger for event in entry[2]), default=0)
    if seq > last_seq:
        raise Broken(f"I7: seq {seq} is told as the head; committed are {ledger}")


def knows_its_sessions(owner: OwnerFacts, ledger: Ledger) -> None:
    """I9: an owner with the newest commit point knows every committed event of a session before it
    decides on the next one."""
    if owner.phase is not Phase.SERVING or owner.commit_lsn < len(ledger):
        return
    events = [event for entry in ledger for event in entry[2]]
    last_seq = max((event[0] for event in events), default=0)
    last_n = max((event[2] for event in events), default=0)
    for name, committed_seq, devices in owner.loaded:
        known_n = max((n for _, n in devices), default=0)
        if committed_seq != last_seq or known_n < last_n:
            text = f"{name} ends at {committed_seq} and n {known_n}, not {last_seq} and {last_n}"
            raise Broken(f"I9: {owner.me} believes that {text}")
