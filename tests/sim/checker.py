"""What must hold, judged only by what disks, clients and followers saw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from im_actors.core.model import View, decode_event, record_events

if TYPE_CHECKING:
    from tests.sim.world import World

Key = tuple[str, str, int]


class Checker:
    def __init__(self, world: World) -> None:
        self.world = world
        self.acked: dict[Key, int] = {}
        self.sent: dict[Key, bytes] = {}
        self.seen: dict[tuple[str, int], bytes] = {}
        self.committed: dict[tuple[int, int], int] = {}
        self.believed: dict[tuple[int, int], int] = {}
        self.replica_commits: dict[tuple[str, int], int] = {}
        self.active: dict[tuple[int, int], str] = {}
        self.owner_commits: dict[tuple[str, int], int] = {}
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

    def client_acked(self, key: Key, seq: int) -> None:
        known = self.acked.setdefault(key, seq)
        if known != seq:
            self.fail("ack-mismatch", f"{key} was acked as {known} and as {seq}")
        session = key[0]
        found = self.seen.get((session, seq))
        if found is not None:
            event = decode_event(found)
            if (event.session, event.device, event.n) != key or event.body != self.sent[key]:
                self.fail("inconsistent-offsets", f"{key} acked as {seq}, which is {event}")

    def published(self, shard: Any, slot: int, owner: Any, events: list[Any]) -> None:
        self.committed_below(slot, owner)
        for event in events:
            self.see(event.data)

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
            known = self.believed.setdefault((slot, number), record.checksum)
            if known != record.checksum:
                self.fail("replica-divergence", f"slot {slot} lsn {number} on {replica.name}")
        self.replica_commits[key] = max(lsn, self.replica_commits.get(key, 0))

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
        for record in log:
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
                if self.sent.get(key) != event.body:
                    self.fail("invented", f"{event}")
                self.see(data)
        for key, seq in self.acked.items():
            if self.world.slot_of(key[0]) == slot and found.get(key) != seq:
                self.fail("lost-write", f"{key} was acked as {seq}, the log has {found.get(key)}")
