"""Judges a cluster by what its clients and its disks saw, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from im_actors.proof.anomalies import Anomaly
from im_actors.proof.clients import COPIES, ClientHistory
from im_actors.proof.records import Event, is_intact, read_payload, slot_of

SLOTS_DEFAULT = 64


class Content(NamedTuple):
    """Which record stands at an lsn."""

    epoch: int
    checksum: int


class Log:
    """What is known of one slot's log."""

    __slots__ = (
        *("slot", "held", "payloads", "committed", "epoch", "last_key", "start_key", "last_n"),
        "finals",
    )

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.held: dict[int, dict[Content, list[str]]] = {}
        """lsn -> record -> the disks on which it ever was durable: a cut does not undo that."""
        self.payloads: dict[int, dict[Content, bytes]] = {}
        """Of records that are not committed yet."""
        self.committed: list[Content] = []
        """By lsn, from 1."""
        self.epoch = 0
        self.last_key = -1
        self.start_key = -1
        self.last_n: dict[tuple[str, str], int] = {}
        self.finals: dict[str, tuple[dict[int, Content], int]] = {}
        """disk -> what it holds at the end, and how far it says that is committed."""


class Copy:
    """What one disk holds of one slot at this moment."""

    __slots__ = ("believed_lsn", "last_lsn", "records")

    def __init__(self) -> None:
        self.records: dict[int, Content] = {}
        self.last_lsn = 0
        self.believed_lsn = 0


class History(ClientHistory):
    """A history of clients and disks.

    With ``watches_disks`` every durable write and every commit is told from the first on, so that
    an ACK or a read of what is not committed is found at once. Without it, the disks are only read
    at the end (``final_log``), as those of real processes are.
    """

    def __init__(
        self,
        tell: Callable[[Anomaly], None] | None = None,
        slots: int = SLOTS_DEFAULT,
        watches_disks: bool = False,
    ) -> None:
        super().__init__(tell)
        self.watches_disks = watches_disks
        self._slots = slots
        self._logs: dict[int, Log] = {}
        self._copies: dict[tuple[str, int], Copy] = {}
        self._owners: dict[tuple[int, int], str] = {}
        self._claims: dict[tuple[str, int], int] = {}

    # -- owners ----------------------------------------------------------------------------------

    def owner(self, slot: int, epoch: int, incarnation: str) -> None:
        """An incarnation begins to serve a slot."""
        known = self._owners.setdefault((slot, epoch), incarnation)
        if known != incarnation:
            text = f"{known} and {incarnation} own slot {slot} in epoch {epoch}"
            self._tally.note("two-owners", (slot, epoch, incarnation), text)

    def view_changed(self, slot: int, old: tuple[int, str], new: tuple[int, str]) -> None:
        """The view store put a view (epoch, owner) in the place of another one."""
        if new[0] < old[0]:
            self._tally.note("epoch-back", (slot, new), f"slot {slot}: view {new} after {old}")
        elif new[0] == old[0] and new[1] != old[1]:
            text = f"slot {slot}: view {new} after {old}"
            self._tally.note("two-owners", (slot, *new), text)

    def committed(self, by: str, slot: int, epoch: int, lsn: int, disks: Iterable[str]) -> None:
        """An owner takes everything up to ``lsn`` for committed, because these disks, those of its
        view's members, have it. To be told in the step in which its commit point rises."""
        self.owner(slot, epoch, by)
        log, members = self._log(slot), tuple(disks)
        end = len(log.committed)
        start = self._claims.get((by, slot), lsn - 1)
        for known in range(start + 1, min(lsn, end) + 1):
            self._check_claim(log, by, epoch, known, members)
        for risen in range(end + 1, lsn + 1):
            content = self._common(log, risen, members)
            if content is None or len(set(members)) < COPIES:
                self._note_few(log, risen, f"{by} in epoch {epoch}", members)
                return
            self._commit(log, risen, content)
        self._claims[by, slot] = max(lsn, start)

    # -- disks -----------------------------------------------------------------------------------

    def durable(
        self, disk: str, slot: int, lsn: int, epoch: int, payload: bytes, checksum: int
    ) -> None:
        """A record is on a disk: fsync has returned. Backfilled ones too."""
        log = self._logs.get(slot) or self._log(slot)
        copy = self._copies.get((disk, slot)) or self._copy(disk, slot)
        content = Content(epoch, checksum)
        contents = log.held.get(lsn)
        if contents is None:
            contents = log.held[lsn] = {}
        holders = contents.get(content)
        if holders is None:
            self._new_content(log, lsn, content, payload)
            contents[content] = [disk]
        elif disk not in holders:
            holders.append(disk)
        copy.records[lsn] = content
        copy.last_lsn = max(lsn, copy.last_lsn)
        if lsn <= copy.believed_lsn:
            self._check_belief(log, disk, lsn, content)

    def cut(self, disk: str, slot: int, after_lsn: int) -> None:
        """A disk has dropped the end of its log."""
        copy = self._copy(disk, slot)
        if after_lsn < copy.believed_lsn and copy.last_lsn > after_lsn:
            text = f"{disk} cut slot {slot} to {after_lsn}, committed was {copy.believed_lsn}"
            self._tally.note("replica-divergence", (slot, disk, after_lsn), text)
        for lsn in range(after_lsn + 1, copy.last_lsn + 1):
            copy.records.pop(lsn, None)
        copy.last_lsn = min(copy.last_lsn, after_lsn)

    def dropped(self, disk: str, slot: int) -> None:
        """A disk has forgotten a slot, which others hold. Its reads may begin again."""
        self._copies[disk, slot] = Copy()
        for book in self._sessions.values():
            if disk in book.sources and slot_of(book.name, self._slots) == slot:
                del book.sources[disk]

    def believed(self, disk: str, slot: int, lsn: int) -> None:
        """The replica with this disk takes its own records up to ``lsn`` for committed."""
        log, copy = self._log(slot), self._copy(disk, slot)
        for number in range(copy.believed_lsn + 1, lsn + 1):
            content = copy.records.get(number)
            if content is not None:  # Otherwise it will be looked at when it comes by backfill.
                self._check_belief(log, disk, number, content)
        copy.believed_lsn = max(lsn, copy.believed_lsn)

    def final_log(
        self,
        disk: str,
        slot: int,
        records: Iterable[tuple[int, int, bytes, int]],
        commit_lsn: int | None = None,
    ) -> None:
        """The whole log of a slot on a disk of its view, as it is read when all has come to rest:
        records (lsn, epoch, payload, checksum). ``commit_lsn``: how far it knows that they are
        committed; None: all of them."""
        log, found = self._log(slot), {}
        for lsn, epoch, payload, checksum in records:
            content = found[lsn] = Content(epoch, checksum)
            known = log.held.setdefault(lsn, {})
            if content not in known:
                known[content] = []
                self._new_content(log, lsn, content, payload)
            elif not is_intact(slot, lsn, epoch, payload, checksum):
                self._note_damaged(slot, lsn, content)
        end = max(found, default=0) if commit_lsn is None else commit_lsn
        log.finals[disk] = (found, end)

    def finish(self) -> list[Anomaly]:
        for log in self._logs.values():
            if log.finals:
                self._compare_finals(log)
        for book in self._sessions.values():
            log_of = self._logs.get(slot_of(book.name, self._slots))
            if log_of is not None and log_of.finals:
                book.kept = book.logged if book.kept is None else book.kept & book.logged
        return super().finish()

    # -- rules about copies ----------------------------------------------------------------------

    def _log(self, slot: int) -> Log:
        log = self._logs.get(slot)
        if log is None:
            log = self._logs[slot] = Log(slot)
        return log

    def _copy(self, disk: str, slot: int) -> Copy:
        copy = self._copies.get((disk, slot))
        if copy is None:
            copy = self._copies[disk, slot] = Copy()
        return copy

    def _new_content(self, log: Log, lsn: int, content: Content, payload: bytes) -> None:
        if not is_intact(log.slot, lsn, content.epoch, payload, content.checksum):
            self._note_damaged(log.slot, lsn, content)
        for other in log.held[lsn]:
            if other.epoch == content.epoch and other != content:
                text = f"slot {log.slot} lsn {lsn} has two contents in epoch {content.epoch}"
                self._tally.note("replica-divergence", (log.slot, lsn), text)
        if lsn > len(log.committed):
            log.payloads.setdefault(lsn, {})[content] = payload

    def _common(self, log: Log, lsn: int, members: tuple[str, ...]) -> Content | None:
        """The record that all members had; the one that most of them still have, if several."""
        found = [
            content
            for content, holders in log.held.get(lsn, {}).items()
            if all(member in holders for member in members)
        ]
        if len(found) < 2:
            return found[0] if found else None

        def standing(content: Content) -> tuple[int, int]:
            here = [self._copy(disk, log.slot).records.get(lsn) == content for disk in members]
            return sum(here), content.epoch

        return max(found, key=standing)

    def _check_claim(
        self, log: Log, by: str, epoch: int, lsn: int, members: tuple[str, ...]
    ) -> None:
        """What is committed already is claimed again by a later owner, or by one that was slow.
        Its members may lack it, because a spare gets old records later; they may not all have
        something else."""
        content = self._common(log, lsn, members)
        known = log.committed[lsn - 1]
        if content is None or content == known:
            return
        copies = [self._copy(member, log.slot).records.get(lsn) for member in members]
        if content.epoch != epoch and any(copy != content for copy in copies):
            # All had it once, one after the other, and were cut. That it was on all of them is a
            # claim only of the owner that wrote it.
            return
        if not all(member in log.held[lsn][known] for member in members):
            text = f"slot {log.slot} lsn {lsn} is {known}, and {content} for {by}"
            self._tally.note("replica-divergence", (log.slot, lsn), text)

    def _check_belief(self, log: Log, disk: str, lsn: int, content: Content) -> None:
        if lsn > len(log.committed):
            held = log.held[lsn][content]
            self._note_few(log, lsn, disk, tuple(held))
        elif log.committed[lsn - 1] != content:
            known = log.committed[lsn - 1]
            text = f"slot {log.slot} lsn {lsn} is {known}, and {content} on {disk}"
            self._tally.note("replica-divergence", (log.slot, lsn), text)

    def _note_few(self, log: Log, lsn: int, by: str, disks: tuple[str, ...]) -> None:
        held = {tuple(content): holders for content, holders in log.held.get(lsn, {}).items()}
        text = f"{by} takes slot {log.slot} lsn {lsn} for committed by {disks}; held: {held}"
        self._tally.note("commit-below-three", (log.slot, lsn), text)

    def _note_damaged(self, slot: int, lsn: int, content: Content) -> None:
        text = f"slot {slot} lsn {lsn} of epoch {content.epoch} does not have its checksum"
        self._tally.note("wrong-content", (slot, lsn), text)

    def _compare_finals(self, log: Log) -> None:
        """All copies are one, complete, and there are enough of them."""
        copies = [found for found, _ in log.finals.values()]
        end = max(len(log.committed), *(end for _, end in log.finals.values()))
        while len(copies) >= COPIES and _alike(copies, end + 1):
            end += 1  # What was committed last may be told with the next record only.
        if end and len(copies) < COPIES:
            text = f"slot {log.slot} is on {sorted(log.finals)} at the end"
            self._tally.note("commit-below-three", (log.slot,), text)
        for lsn in range(1, end + 1):
            if lsn > len(log.committed):
                content = next((found[lsn] for found in copies if lsn in found), None)
                if content is None:
                    text = f"slot {log.slot} lsn {lsn} is on no disk"
                    self._tally.note("replica-divergence", (log.slot, lsn), text)
                    return
                self._commit(log, lsn, content)
            self._compare_copies(log, lsn)

    def _compare_copies(self, log: Log, lsn: int) -> None:
        known = log.committed[lsn - 1]
        for disk, (found, _) in log.finals.items():
            if found.get(lsn) != known:
                has = "differs" if lsn in found else "is missing"
                text = f"slot {log.slot} lsn {lsn} {has} on {disk}"
                self._tally.note("replica-divergence", (log.slot, lsn), text)

    # -- rules about the committed log -----------------------------------------------------------

    def _commit(self, log: Log, lsn: int, content: Content) -> None:
        log.committed.append(content)
        payload = log.payloads.pop(lsn)[content]
        if content.epoch < log.epoch:
            text = f"slot {log.slot} lsn {lsn} is of epoch {content.epoch}, after {log.epoch}"
            self._tally.note("epoch-back", (log.slot, lsn), text)
        log.epoch = content.epoch
        try:
            batch = read_payload(payload)
        except ValueError as error:
            text = f"slot {log.slot} lsn {lsn}: {error}"
            self._tally.note("wrong-content", (log.slot, lsn), text)
            return
        if batch.start_key is not None:
            self._check_key(log, lsn, batch.start_key, batch.start_key >= log.last_key)
            log.start_key = batch.start_key
        for event in batch.events:
            self._logged(log, lsn, event)

    def _logged(self, log: Log, lsn: int, event: Event) -> None:
        session, seq, key, kind, device, n, body = event
        book = self._book(session)
        place = (device, n, kind, body)
        if seq != book.committed_seq + 1:
            text = f"slot {log.slot} lsn {lsn}: seq {seq} of {session!r} follows"
            text = f"{text} {book.committed_seq}"
            self._tally.note("gap", (session, seq), text, session, (device, n))
        book.committed_seq = seq
        if book.places.get(seq) != place:
            self._stands(book, seq, place)
        last_n = log.last_n.get((session, device), 0)
        if n != last_n + 1:
            text = f"message {n} of {device} in {session!r} follows {last_n} in the log"
            self._tally.note("reorder", (session, (device, n)), text, session, (device, n))
        log.last_n[session, device] = n
        book.logged.add((device, n))
        self._check_key(log, lsn, key, key > log.last_key and key >= log.start_key)
        log.last_key = key

    def _check_key(self, log: Log, lsn: int, key: int, forward: bool) -> None:
        if not forward:
            text = f"slot {log.slot} lsn {lsn}: key {key} follows {log.last_key}"
            self._tally.note("key-back", (log.slot, lsn), f"{text} and {log.start_key}")


def _alike(copies: list[dict[int, Content]], lsn: int) -> bool:
    contents = {found.get(lsn) for found in copies}
    return len(contents) == 1 and None not in contents
