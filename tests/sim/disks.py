"""What survives a crash of a replica: a journal, a history, and tables derived from the history."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from im_actors.core import replica as rep
from im_actors.core import sessions
from im_actors.core.fact_lists import FactQuery
from im_actors.core.facts import Fact
from im_actors.core.messages import (
    DeviceImage,
    EventFound,
    FactsLoaded,
    FindEvent,
    LoadFacts,
    SessionImage,
)
from im_actors.core.model import (
    Event,
    Record,
    decode_event,
    record_events,
    record_index,
    record_intact,
    unpack_sends,
)
from im_actors.core.storage_ops import CutRecords, DropSlot, StoreMeta, StoreRecords
from im_actors.errors import CorruptData
from tests import fact_model


class Head(NamedTuple):
    """What ``log_from_disk`` reads of a journaled record."""

    lsn: int
    epoch: int
    checksum: int
    commit_lsn: int


class Row(NamedTuple):
    """An event in the tables."""

    event: Event
    data: bytes
    checksum: int
    """Of the body that was sent, which the owner may have changed."""
    facts: tuple[Fact, ...]


@lru_cache(maxsize=20_000)
def rows_of(payload: bytes) -> tuple[Row, ...]:
    """The events of a record. Three replicas read the same bytes, so they are decoded once."""
    sends = [sent for part in record_index(payload).parts for sent in unpack_sends(part[3])]
    checksums = {sent.position: sent.checksum for sent in sends}
    rows = []
    for position, data in enumerate(record_events(payload)):
        event = decode_event(data)
        said = tuple(fact_model.said_by(event))
        rows.append(Row(event, data, checksums[position], said))
    return tuple(rows)


class Disk:
    """One disk. Its identity stays with it; a lost or damaged disk is another member."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.journal: dict[int, dict[int, tuple[Record, int]]] = {}
        self.meta: dict[int, bytes] = {}
        self.history: dict[int, dict[int, Record]] = {}
        self.applied: dict[int, int] = {}
        self.timelines: dict[str, dict[int, Row]] = {}
        self.devices: dict[str, dict[str, dict[int, Row]]] = {}
        """session -> device -> n -> row."""
        self.facts: dict[str, dict[str, Fact]] = {}
        """session -> key -> what the newest event says."""
        self.lives: dict[int, int] = {}
        """How often a slot began anew here, after a deletion: what is read of it may go back."""
        self._deleted: set[int] = set()
        self.damaged = False
        """A record is not what was written, or is gone."""

    # -- writing -------------------------------------------------------------------------------

    def write(self, op: Any) -> None:
        """One op of a journal transaction."""
        rows = self.journal.setdefault(op.slot, {})
        match op:
            case StoreRecords(slot, records, commit_lsn):
                if slot in self._deleted:
                    self._deleted.discard(slot)
                    self.lives[slot] = self.lives.get(slot, 0) + 1
                rows.update({record.lsn: (record, commit_lsn) for record in records})
            case CutRecords(_, after_lsn):
                for lsn in [lsn for lsn in rows if lsn > after_lsn]:
                    del rows[lsn]
            case DropSlot(slot):
                rows.clear()
                self._deleted.add(slot)
            case StoreMeta(slot, meta):
                self.meta[slot] = meta

    def to_history(self, slot: int, records: list[Record]) -> None:
        history = self.history.setdefault(slot, {})
        for record in records:
            if record.lsn in history:
                assert history[record.lsn] == record, "history is written twice, differently"
                continue
            assert record_intact(slot, record), "history is given a damaged record"
            history[record.lsn] = record
            for row in rows_of(record.payload):
                event = row.event
                self.timelines.setdefault(event.session, {})[event.seq] = row
                devices = self.devices.setdefault(event.session, {})
                devices.setdefault(event.device, {})[event.n] = row
                for fact in row.facts:
                    facts = self.facts.setdefault(event.session, {})
                    if fact.key not in facts or facts[fact.key].seq < fact.seq:
                        facts[fact.key] = fact

    def trim(self, slot: int, upto_lsn: int) -> None:
        rows = self.journal.get(slot, {})
        for lsn in [lsn for lsn in rows if lsn <= upto_lsn]:
            del rows[lsn]

    def drop_history(self, slot: int, slot_of: Callable[[str], int]) -> None:
        self.history.pop(slot, None)
        self.applied.pop(slot, None)
        for session in [s for s in self.timelines if slot_of(s) == slot]:
            del self.timelines[session]
            del self.devices[session]
            self.facts.pop(session, None)

    # -- reading -------------------------------------------------------------------------------

    def record(self, slot: int, lsn: int) -> Record | None:
        row = self.journal.get(slot, {}).get(lsn)
        return row[0] if row else self.history.get(slot, {}).get(lsn)

    def run(self, slot: int, first_lsn: int, last_lsn: int, count: int) -> list[Record]:
        """Consecutive records of the history from ``first_lsn`` on."""
        rows = self.history.get(slot, {})
        found: list[Record] = []
        for lsn in range(first_lsn, min(last_lsn, first_lsn + count - 1) + 1):
            if lsn not in rows:
                break
            found.append(rows[lsn])
        return found

    def in_history(self, slot: int, lsn: int) -> bool:
        return lsn in self.history.get(slot, {})

    def image(self, session: str) -> SessionImage:
        """A session as the tables have it: the windows go no further back than its last events."""
        images = []
        last_seq = self.last_seq(session)
        oldest = last_seq - 2 * sessions.DEVICE_WINDOW
        for device, rows in sorted(self.devices.get(session, {}).items()):
            numbers = sorted(rows)[-sessions.DEVICE_WINDOW :]
            sent = [rows[n] for n in numbers if rows[n].event.seq > oldest]
            recent = tuple((row.event.seq, row.checksum) for row in sent)
            images.append(DeviceImage(device, numbers[-1], recent))
        return SessionImage(session, last_seq, tuple(images))

    def facts_loaded(self, request: LoadFacts) -> FactsLoaded:
        """The answer to an owner."""
        slot, epoch, number, _, session, keys = request
        known = self.facts.get(session, {})
        facts = tuple(known[key] for key in keys if key in known)
        return FactsLoaded(slot, epoch, number, True, facts)

    def event_found(self, request: FindEvent) -> EventFound:
        """The answer to an owner; an event that it has no row of, is in no honest log."""
        slot, epoch, number, _, session, seq = request
        timeline = self.timelines.get(session, {})
        if seq not in timeline:
            whole = not 0 < seq <= max(timeline, default=0)
            return EventFound(slot, epoch, number, whole, 0, 0, 0, "")
        event = timeline[seq].event
        return EventFound(slot, epoch, number, True, seq, event.key, event.kind, event.device)

    def last_seq(self, session: str) -> int:
        return max(self.timelines.get(session, ()), default=0)

    def page(self, session: str, after: int, before: int, limit: int) -> tuple[int, list[bytes]]:
        """The last seq, and the events of a READ."""
        timeline = self.timelines.get(session, {})
        last = max(timeline, default=0)
        if before > 0 or after < 0:
            end = min(last, before - 1) if before > 0 else last
            wanted = range(max(1, after + 1, end - limit + 1), end + 1)
        else:
            wanted = range(after + 1, min(last, after + limit) + 1)
        return last, [timeline[seq].data for seq in wanted if seq in timeline]

    def fact_page(self, session: str, query: FactQuery) -> tuple[list[Fact], bool]:
        """The facts of a LIST_FACTS, and whether there are more."""
        return fact_model.fact_page(self.facts.get(session, {}), query)

    def count(self, session: str, after: int, upto: int, user: str) -> int:
        """The messages of a COUNT."""
        events = [row.event for row in self.timelines.get(session, {}).values()]
        return fact_model.count_messages(events, after, upto, user)

    def count_ranks(self, session: str, ranges: Sequence[tuple[int, int]]) -> list[int]:
        """The facts of a COUNT_RANKS."""
        return fact_model.count_ranks(self.facts.get(session, {}).values(), ranges)

    def load(self, slot_of: Callable[[str], int]) -> dict[int, rep.SlotLog]:
        """What a starting replica finds. Raises CorruptData."""
        logs = {}
        if self.damaged:
            self.check()
        for slot in sorted(set(self.meta) | set(self.journal)):
            rows = sorted(self.journal.get(slot, {}).items())
            heads = [
                Head(lsn, record.epoch, record.checksum, commit)
                for lsn, (record, commit) in rows
            ]  # fmt: skip
            meta = self.meta.get(slot)
            if rep.drop_unfinished(meta):
                self.drop_history(slot, slot_of)
            applied, has = self.applied.get(slot, 0), partial(self.in_history, slot)
            logs[slot] = rep.log_from_disk(slot, meta, heads, applied, has)
        return logs

    def check(self) -> None:
        """Every checksum, as a start does. Only a damaged disk has a wrong one, so the others are
        spared the work."""
        for slot in sorted(self.journal):
            if not all(record_intact(slot, record) for record, _ in self.journal[slot].values()):
                raise CorruptData(f"a wrong checksum in the journal of slot {slot}")
        for slot in sorted(self.history):
            if not all(record_intact(slot, record) for record in self.history[slot].values()):
                raise CorruptData(f"a wrong checksum in the history of slot {slot}")

    # -- damage --------------------------------------------------------------------------------

    def damaged_copy(self, rng: random.Random, where: str) -> Disk | None:
        """This disk with one bit flipped in the journal or the history, or a record lost from the
        middle of the journal; None when there is nothing to damage."""
        copy = Disk(self.identity)
        copy.journal = {slot: dict(rows) for slot, rows in self.journal.items()}
        copy.history = {slot: dict(rows) for slot, rows in self.history.items()}
        copy.meta, copy.applied = dict(self.meta), dict(self.applied)
        copy.damaged = True
        table: dict[int, Any] = copy.journal if where == "flip_journal" else copy.history
        found = [(slot, lsn) for slot in sorted(table) for lsn in sorted(table[slot])[:-1]]
        if not found:
            return None
        slot, lsn = rng.choice(found)
        rows = table[slot]
        if where == "flip_history":
            rows[lsn] = flipped(rows[lsn], rng)
            return copy
        record, commit_lsn = rows[lsn]
        needed = lsn > self.applied.get(slot, 0) and lsn - 1 in rows and lsn + 1 in rows
        if needed and rng.random() < 0.5:
            del rows[lsn]
        else:
            rows[lsn] = (flipped(record, rng), commit_lsn)
        return copy


def flipped(record: Record, rng: random.Random) -> Record:
    """The record with one wrong bit in its payload."""
    data = bytearray(record.payload)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return record._replace(payload=bytes(data))
