"""Journal and history against a dumb model, with crashes and reopenings at any time."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from im_actors.core.fact_lists import OfKeys, Prefixed, Ranked, Since
from im_actors.core.facts import pack_state
from im_actors.core.model import (
    Event,
    EventKind,
    decode_event,
    encode_event,
    make_key,
    make_record,
    record_events,
)
from im_actors.core.storage_ops import CutRecords, DropSlot, StoreMeta, StoreRecords
from im_actors.storage.directory import open_directory
from im_actors.storage.journal import Journal
from im_actors.storage.wal_check import check_wal
from tests.fact_model import fact_page, facts_of
from tests.storage.conftest import quick_directory

SLOTS = (0, 1, 63)
FILLED = 7
"""A slot whose history comes by backfill alone, in any order and repeatedly."""
FILLED_LSNS = 40


class Stores(RuleBasedStateMachine):
    """One data directory, and dicts that say what it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.root = quick_directory()
        self.metas: dict[int, bytes] = {}
        self.logs: dict[int, dict[int, Any]] = {slot: {} for slot in SLOTS}
        self.applied: dict[int, int] = {}
        self.past: dict[int, list[Any]] = {slot: [] for slot in SLOTS}
        self.filled: set[int] = set()
        self.epoch = 1
        self.path = Path(self.root.name) / "data0"
        self._open()

    def _open(self) -> None:
        self.directory = open_directory(self.path, "c", "r")
        self.journal = self.directory.open_journal()
        self.history = self.directory.open_history()

    @rule(slot=st.sampled_from(SLOTS), sizes=st.lists(st.integers(0, 30_000), max_size=4))
    def store(self, slot: int, sizes: list[int]) -> None:
        first = max(self.logs[slot], default=self.applied.get(slot, 0)) + 1
        records = tuple(
            make_record(slot, first + index, self.epoch, [])
            if size == 0
            else make_record(slot, first + index, self.epoch, [_event(slot, first + index, size)])
            for index, size in enumerate(sizes)
        )
        meta = b"%d" % self.epoch
        self.journal.commit([StoreRecords(slot, records, first - 1), StoreMeta(slot, meta)])
        self.logs[slot].update({record.lsn: record for record in records})
        self.metas[slot] = meta

    @rule(slot=st.sampled_from(SLOTS), keep=st.integers(0, 5))
    def cut(self, slot: int, keep: int) -> None:
        after = self.applied.get(slot, 0) + keep
        self.epoch += 1
        self.journal.commit([CutRecords(slot, after)])
        self.logs[slot] = {lsn: r for lsn, r in self.logs[slot].items() if lsn <= after}

    @rule(slot=st.sampled_from(SLOTS), count=st.integers(1, 6))
    def apply(self, slot: int, count: int) -> None:
        first = self.applied.get(slot, 0) + 1
        records = self.journal.read(slot, first, first + count - 1, 1 << 30)
        assert records == [
            self.logs[slot][lsn] for lsn in range(first, first + count) if lsn in self.logs[slot]
        ]
        if records:
            self.applied[slot] = records[-1].lsn
            self.history.apply([(slot, r) for r in records], {slot: records[-1].lsn})
            self.past[slot] += records

    @rule()
    def trim(self) -> None:
        self.journal.trim(self.applied)
        for slot, upto in self.applied.items():
            self.logs[slot] = {lsn: r for lsn, r in self.logs[slot].items() if lsn > upto}

    @rule()
    def checkpoint(self) -> None:
        self.journal.checkpoint()

    @rule(slot=st.sampled_from(SLOTS))
    def drop(self, slot: int) -> None:
        self.journal.commit([DropSlot(slot), StoreMeta(slot, b"dropped")])
        self.history.drop(slot)
        self.metas[slot] = b"dropped"
        self.logs[slot] = {}
        self.past[slot] = []
        self.applied.pop(slot, None)

    @rule(clean=st.booleans())
    def reopen(self, clean: bool) -> None:
        if clean:
            self.journal.close()
            self.history.close()
        self.directory.close()
        self._open()

    @rule(first=st.integers(1, FILLED_LSNS), count=st.integers(1, 12))
    def fill(self, first: int, count: int) -> None:
        lsns = range(first, min(first + count, FILLED_LSNS + 1))
        self.history.apply([(FILLED, _filled(lsn)) for lsn in lsns], {})
        self.filled.update(lsns)

    @rule(first=st.integers(1, FILLED_LSNS), count=st.integers(1, 12), lost=st.booleans())
    def stage(self, first: int, count: int, lost: bool) -> None:
        """Records in memory only: their facts are read. Then they are written, or a crash comes."""
        lsns = range(first, min(first + count, FILLED_LSNS + 1))
        self.history.stage([(FILLED, _filled(lsn)) for lsn in lsns], {})
        self._same_facts(f"s{FILLED}", _filled_events(self.filled.union(lsns)))
        if lost:
            self.crash()
        else:
            self.history.write()
            self.filled.update(lsns)

    @rule()
    def drop_filled(self) -> None:
        self.history.drop(FILLED)
        self.filled.clear()

    @rule()
    def crash(self) -> None:
        """As after kill -9: the files as they are at this moment, and nothing closed."""
        number = int(self.path.name.removeprefix("data")) + 1
        left = self.path.with_name(f"data{number}")
        shutil.copytree(self.path, left)
        self.directory.close()
        shutil.rmtree(self.path)
        self.path = left
        self._open()

    @invariant()
    def same_filled(self) -> None:
        for lsn in range(1, FILLED_LSNS + 2):
            assert self.history.has(FILLED, lsn) == (lsn in self.filled)
        for first in {lsn for lsn in self.filled if lsn - 1 not in self.filled}:
            end = first
            while end + 1 in self.filled:
                end += 1
            run = self.history.records(FILLED, first, FILLED_LSNS, 1 << 30)
            assert run == [_filled(lsn) for lsn in range(first, end + 1)]
            page = self.history.read(f"s{FILLED}", first - 1, end + 1, 1000)
            assert [decode_event(event).seq for event in page.events] == list(range(first, end + 1))
        self._same_facts(f"s{FILLED}", _filled_events(self.filled))
        (image,) = self.history.session_states([f"s{FILLED}"])
        assert image.last_seq == max(self.filled, default=0)
        for device in image.devices:
            assert device.last_n == image.last_seq
            seqs = [seq for seq, _ in device.recent]
            assert seqs == list(range(image.last_seq - len(seqs) + 1, image.last_seq + 1))
        complete = len(self.filled) == image.last_seq
        whole = self.history.whole_states([f"s{FILLED}"])
        assert whole == ([image] if complete else None)

    @invariant()
    def same(self) -> None:
        loaded = self.journal.load()
        for slot in SLOTS:
            image = loaded.get(slot)
            assert (image.meta if image else None) == self.metas.get(slot)
            heads = [(h.lsn, h.checksum) for h in image.records] if image else []
            assert heads == [(lsn, r.checksum) for lsn, r in sorted(self.logs[slot].items())]
            assert self.history.records(slot, 1, 1 << 40, 1 << 30) == self.past[slot]
            events = [decode_event(e) for r in self.past[slot] for e in record_events(r.payload)]
            page = self.history.read(f"s{slot}", events[0].seq - 1 if events else 0, 0, 1000)
            expected = events[: len(page.events)]
            assert [decode_event(event) for event in page.events] == expected
            self._same_facts(f"s{slot}", events)
        assert self.history.applied() == self.applied

    def _same_facts(self, session: str, events: list[Event]) -> None:
        facts = facts_of(events)
        last = max((event.seq for event in events), default=0)
        for query in (
            *(Ranked(0, "", 50), Ranked(3, "k3", 2), Prefixed("k", "k1", 2)),
            *(Since(last // 2, 3), OfKeys(("k0", "k2", "k9"))),
        ):
            assert self.history.facts(session, query) == (last, fact_page(facts, query))

    def teardown(self) -> None:
        self.directory.close()
        self.root.cleanup()


def _event(slot: int, lsn: int, size: int) -> bytes:
    key = make_key(1_700_000_000_000 + lsn * 86_400_000, slot, 0)
    kind, body = EventKind.MESSAGE, bytes(size)
    if lsn % 3 == 0:
        value = None if lsn % 4 == 0 else b"%d" % lsn
        facts = [(f"k{lsn % 5}", lsn * 3 % 7, value), (f"x{lsn}", lsn % 2, b"")]
        kind, body = EventKind.GROUP, pack_state("put", [body], facts)
    return encode_event(Event(f"s{slot}", lsn, key, int(kind), "u/d", lsn, body))


def _filled(lsn: int) -> Any:
    return make_record(FILLED, lsn, 1 + lsn // 15, [_event(FILLED, lsn, lsn * 31 % 2000)])


def _filled_events(lsns: Iterable[int]) -> list[Event]:
    return [decode_event(record_events(_filled(lsn).payload)[0]) for lsn in lsns]


Stores.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestStores = Stores.TestCase


def test_power_cut_at_any_point(tmp_path: Path, log: Any) -> None:
    """A power cut keeps what was synced and any part of what was not: of the transaction being
    written, any 4 kB blocks may be old."""
    directory = open_directory(tmp_path / "data", "c", "r")
    journal = directory.open_journal()
    wal = tmp_path / "data" / "journal.db-wal"
    rng = random.Random(2)
    states = []
    for _ in range(25):
        records = tuple(
            log.record(1, ("s", "u/d"), body=rng.randbytes(rng.randrange(9000))) for _ in range(3)
        )
        before = wal.read_bytes(), (tmp_path / "data" / "journal.db").read_bytes()
        acknowledged = len(log.logs[1]) - 3
        journal.commit([StoreRecords(1, records, 0)])
        states.append((*before, wal.read_bytes(), acknowledged))
        if rng.random() < 0.2:
            journal.checkpoint()
    directory.close()
    for number, (old, database, new, acknowledged) in enumerate(states):
        torn = bytearray(new)
        old = new[:32] + old[32:]
        for at in range(0, len(torn), 4096):
            if rng.random() < 0.5:
                block = old[at : at + 4096]
                torn[at : at + 4096] = block + bytes(min(4096, len(torn) - at) - len(block))
        copy = tmp_path / f"copy{number}.db"
        copy.write_bytes(database)
        copy.with_name(copy.name + "-wal").write_bytes(torn)
        seen = _load(copy)
        assert seen[:acknowledged] == [r.checksum for r in log.logs[1][:acknowledged]]
        assert len(seen) in (acknowledged, acknowledged + 3)
        assert not check_wal(copy.with_name(copy.name + "-wal")).torn


def _load(path: Path) -> list[int]:
    journal = Journal(path, create=False)
    image = journal.load().get(1)
    journal.abandon()
    return [head.checksum for head in image.records] if image else []
