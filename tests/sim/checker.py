"""What must hold, judged only by what disks, clients and followers saw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack

from im_actors.core.model import EventKind, View, decode_event, record_events

if TYPE_CHECKING:
    from tests.sim.world import World

Key = tuple[str, str, int]


class Checker:
    def __init__(self, world: World) -> None:
        self.world = world
        self.acked: dict[Key, int] = {}
        self.sent: dict[Key, set[tuple[int, bytes]]] = {}
        """What each key may turn out to be: its message, or a VOID if the device withdrew it."""
        self.seen: dict[tuple[str, int], bytes] = {}
        self.committed: dict[tuple[int, int], int] = {}
        self.believed: dict[tuple[int, int], int] = {}
        self.replica_commits: dict[tuple[str, int], int] = {}
        self.active: dict[tuple[int, int], str] = {}
        self.owner_commits: dict[tuple[str, int], int] = {}
        self.certified: dict[str, set[int]] = {}
        """session -> seqs that somebody rightly believed committed."""
        self.reads: dict[tuple[str, str], int] = {}
        self.takeovers = 0

    def fail(self, anomaly: str, text: str) -> None:
        self.world.fail(f"{anomaly}: {text}")

    # -- while it runs -------------------------------------------------------------------------

    def shard_started(self, shard: Any) -> None:
        pass

    def view_changed(self, old: View, new: View) -> None:
        if new.epoch < old.epoch or (new.epoch == old.epoch and new.owner != old.owner):
            self.fail("epoch-back", f"{old} -> {new}")

    def activated(self, shard: Any, view: View) -> None:
        self.takeovers += 1
        known = self.active.setdefault((view.slot, view.epoch), shard.incarnation)
        if known != shard.incarnation:
            self.fail("two-owners", f"{known} and {shard.incarnation} in {view}")

    def opened(self, slot: int, owner: Any) -> None:
        """What an active view begins with is committed by its EpochStart, on all three disks."""
        disks = [self.world.disks[member.disk] for member in owner.view.members]
        for lsn in range(owner.commit_lsn, 0, -1):
            if (slot, lsn) in self.believed:
                return
            records = [disk.record(slot, lsn) for disk in disks]
            if records[0] is None or any(record != records[0] for record in records):
                return  # Committed long ago, and perhaps still being backfilled.
            self.certify_events(records[0])

    def client_acked(self, key: Key, seq: int) -> None:
        known = self.acked.setdefault(key, seq)
        if known != seq:
            self.fail("ack-mismatch", f"{key} was acked as {known} and as {seq}")
        session = key[0]
        found = self.seen.get((session, seq))
        if found is not None:
            event = decode_event(found)
            same = (event.session, event.device, event.n) == key
            if not same or (event.kind, event.body) not in self.sent[key]:
                self.fail("inconsistent-offsets", f"{key} acked as {seq}, which is {event}")

    def published(self, shard: Any, slot: int, owner: Any, events: list[Any]) -> None:
        self.committed_below(slot, owner)
        for event in events:
            self.see(event.data)
            self.certified.setdefault(event.session.name, set()).add(event.seq)

    def see(self, data: bytes) -> None:
        event = decode_event(data)
        known = self.seen.setdefault((event.session, event.seq), data)
        if known != data:
            self.fail("inconsistent-offsets", f"{decode_event(known)} and {event}")

    def committed_below(self, slot: int, owner: Any) -> None:
        """A commit point is only risen over what three disks of the view hold."""
        start = self.owner_commits.get((owner.me, slot), owner.commit_lsn - 1)
        self.owner_commits[owner.me, slot] = owner.commit_lsn
        disks = self.world.disks
        for lsn in range(start + 1, owner.commit_lsn + 1):
            held = [
                disks[member.disk].ever.get((slot, lsn), set()) for member in owner.view.members
            ]
            if (slot, lsn) in self.believed:
                continue  # Committed by an earlier view: a spare that came later backfills it.
            copies = set.intersection(*held)
            if not copies:
                self.fail("commit-below-three", f"slot {slot} lsn {lsn} by {owner.me}: {held}")
            if len(copies) == 1:
                (checksum,) = copies
                known = self.committed.setdefault((slot, lsn), checksum)
                if known != checksum:
                    self.fail("replica-divergence", f"slot {slot} lsn {lsn} committed twice")

    def replica_commit(self, replica: Any, slot: int, lsn: int) -> None:
        """I3: whoever believes an lsn committed has the same bytes for it as everybody else."""
        key = (replica.disk.identity, slot)
        for number in range(self.replica_commits.get(key, 0) + 1, lsn + 1):
            record = replica.disk.record(slot, number)
            if record is None:
                continue
            self.certify(replica, slot, number, record)
            known = self.believed.setdefault((slot, number), record.checksum)
            if known != record.checksum:
                self.fail("replica-divergence", f"slot {slot} lsn {number} on {replica.name}")
        self.replica_commits[key] = max(lsn, self.replica_commits.get(key, 0))

    def certify(self, replica: Any, slot: int, lsn: int, record: Any) -> None:
        """Nobody believes a record committed that fewer than three disks have held."""
        if (slot, lsn) in self.believed:
            return
        copies = sum(
            record.checksum in disk.ever.get((slot, lsn), ()) for disk in self.world.disks.values()
        )
        if copies < 3:
            self.fail("believed-below-three", f"slot {slot} lsn {lsn} at {replica.name}: {copies}")
        self.certify_events(record)

    def certify_events(self, record: Any) -> None:
        for data in record_events(record.payload):
            event = decode_event(data)
            self.certified.setdefault(event.session, set()).add(event.seq)

    def read_at_replica(self, replica: Any, slot: int, session: str) -> None:
        """A read is a true prefix of what is committed, and one disk's reads never go back."""
        events = replica.disk.events.get(session, {})
        last = max(events, default=0)
        if len(events) != last:
            self.fail("poll-skip", f"{replica.name} reads {sorted(events)} in {session}")
        key = (replica.disk.identity, session)
        known = self.reads.get(key, 0)
        for seq in range(known + 1, last + 1):
            self.delivered(session, seq)
        self.reads[key] = max(known, last)

    def delivered(self, session: str, seq: int) -> None:
        if seq and seq not in self.certified.get(session, ()):
            self.fail("read-uncommitted", f"{session} {seq}")

    def last_acked(self, session: str) -> int:
        return max((seq for key, seq in self.acked.items() if key[0] == session), default=0)

    # -- at the end ----------------------------------------------------------------------------

    def final(self) -> None:
        """After healing: every replica of the view holds one and the same complete history."""
        for slot in range(self.world.slots):
            view = self.world.store.views[slot]
            logs = []
            for member in view.members:
                disk = self.world.replicas[member.replica].disk
                lsns = set(disk.history.get(slot, {})) | set(disk.journal.get(slot, {}))
                last = self.world.commit_of(slot)
                missing = [lsn for lsn in range(1, last + 1) if lsn not in lsns]
                if missing:
                    self.fail("missing", f"slot {slot}: {member.replica} lacks {missing[:10]}")
                    return
                logs.append([disk.record(slot, lsn) for lsn in range(1, last + 1)])
            if any(log != logs[0] for log in logs):
                self.fail("replica-divergence", f"slot {slot}")
            self.check_log(slot, [r for r in logs[0] if r is not None])

    def check_log(self, slot: int, log: list[Any]) -> None:
        last_seq: dict[str, int] = {}
        last_n: dict[tuple[str, str], int] = {}
        found: dict[Key, int] = {}
        last_key = start_key = -1
        for record in log:
            if record.payload[0] == 0x91 and not record_events(record.payload):
                (start_key,) = msgpack.unpackb(record.payload)
                if start_key < last_key:
                    self.fail("key-back", f"{record} follows {last_key}")
            for data in record_events(record.payload):
                event = decode_event(data)
                key = (event.session, event.device, event.n)
                if key in found:
                    self.fail("duplicate", f"{key} as {found[key]} and {event.seq}")
                found[key] = event.seq
                if event.seq != last_seq.get(event.session, 0) + 1:
                    self.fail("gap", f"{event} follows {last_seq.get(event.session)}")
                last_seq[event.session] = event.seq
                if event.n != last_n.get((event.session, event.device), 0) + 1:
                    self.fail("reorder", f"{event}")
                last_n[event.session, event.device] = event.n
                if (event.kind, event.body) not in self.sent.get(key, ()):
                    self.fail("invented", f"{event}")
                if event.key <= last_key or event.key < start_key:
                    self.fail("key-back", f"{event} follows {last_key} and {start_key}")
                last_key = event.key
                if event.kind == EventKind.VOID:
                    self.world.met("void")
                self.see(data)
        for key, seq in self.acked.items():
            if self.world.slot_of(key[0]) == slot and found.get(key) != seq:
                self.fail("lost-write", f"{key} was acked as {seq}, the log has {found.get(key)}")
