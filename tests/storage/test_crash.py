"""Journal and history against a dumb model with reopenings; kill -9 and power cuts amid writes."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from im_actors.core.model import (
    Event,
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

SLOTS = (0, 1, 63)


class Stores(RuleBasedStateMachine):
    """One data directory, and dicts that say what it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.TemporaryDirectory()
        self.metas: dict[int, bytes] = {}
        self.logs: dict[int, dict[int, Any]] = {slot: {} for slot in SLOTS}
        self.applied: dict[int, int] = {}
        self.past: dict[int, list[Any]] = {slot: [] for slot in SLOTS}
        self.epoch = 1
        self._open()

    def _open(self) -> None:
        self.directory = open_directory(Path(self.root.name) / "data", "c", "r")
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
        assert self.history.applied() == self.applied

    def teardown(self) -> None:
        self.directory.close()
        self.root.cleanup()


def _event(slot: int, lsn: int, size: int) -> bytes:
    key = make_key(1_700_000_000_000 + lsn * 86_400_000, slot, 0)
    return encode_event(Event(f"s{slot}", lsn, key, 1, "u/d", lsn, bytes(size)))


Stores.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestStores = Stores.TestCase


WRITER = """
import pathlib, sys
from im_actors.core.model import Event, encode_event, make_key, make_record
from im_actors.core.storage_ops import StoreMeta, StoreRecords
from im_actors.storage.directory import open_directory

directory = open_directory(pathlib.Path(sys.argv[1]), "c", "r")
journal, history = directory.open_journal(), directory.open_history()
applied = history.applied().get(1, 0)
lsn = max([h.lsn for h in journal.load()[1].records] if 1 in journal.load() else [applied])
while True:
    lsn += 1
    key = make_key(1700000000000 + lsn, 1, 0)
    event = encode_event(Event("s", lsn, key, 1, "u/d", lsn, b"x" * (lsn * 37 % 9000)))
    record = make_record(1, lsn, 1, [event])
    journal.commit([StoreRecords(1, (record,), lsn), StoreMeta(1, b"%d" % lsn)])
    sys.stdout.write(f"{lsn}\\n")
    sys.stdout.flush()
    if lsn % 7 == 0:
        records = journal.read(1, applied + 1, lsn, 1 << 30)
        history.apply([(1, r) for r in records], {1: lsn})
        applied = lsn
        journal.trim({1: lsn - 10})
    if lsn % 31 == 0:
        journal.checkpoint()
"""


def test_kill_9_loses_nothing_that_was_told(tmp_path: Path) -> None:
    """Each round goes on from the files that the killed process left."""
    path = tmp_path / "data"
    rng = random.Random(11)
    told = 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(rng.randrange(20, 150)):
            told = int(child.stdout.readline())
        child.kill()
        told = max([told, *(int(line) for line in child.stdout if line.endswith("\n"))])
        child.wait()
        child.stdout.close()
        directory = open_directory(path, "c", "r")
        journal, history = directory.open_journal(), directory.open_history()
        image = journal.load()[1]
        applied = history.applied().get(1, 0)
        there = [h.lsn for h in image.records]
        assert there == list(range(there[0], there[-1] + 1))
        assert there[0] <= applied + 1
        assert there[-1] >= told
        assert image.meta == b"%d" % there[-1]
        assert [r.lsn for r in history.records(1, 1, applied, 1 << 30)] == list(
            range(1, applied + 1)
        )
        assert [f.problems for f in history.scan() if f is not None] in ([], [[]])
        # Left as a crash leaves it: the next round opens it so.
        directory.close()
    assert told > 100


BROKEN_DISK = """
import os, pathlib, sys
from im_actors.core.model import make_record
from im_actors.core.storage_ops import StoreRecords
from im_actors.errors import DiskFailed
from im_actors.storage.journal import Journal

def commit(lsn):
    journal.commit([StoreRecords(1, (make_record(1, lsn, 1, [b"x" * 100]),), 0)])

journal = Journal(pathlib.Path(sys.argv[1]))
lsn = 0
try:
    while lsn < 200:
        commit(lsn + 1)
        lsn += 1
except DiskFailed as error:
    print(lsn, error)
    try:
        commit(lsn + 1)
    except DiskFailed as error:
        print(error)
os._exit(0)
"""


def test_a_failed_fsync_is_not_tried_again(tmp_path: Path) -> None:
    """After EIO the kernel has dropped the pages, and the next fsync would say that all is well."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace, to let a fsync fail")
    path = tmp_path / "journal.db"
    inject = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=20"]
    program = [sys.executable, "-c", BROKEN_DISK, str(path)]
    done = subprocess.run(
        [strace, "-f", "-o", str(tmp_path / "calls"), *inject, *program],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[-200:]}")
    first, second = done.stdout.splitlines()
    assert "disk I/O error" in first
    assert "not used again" in second
    acknowledged = int(first.split()[0])
    assert acknowledged > 5
    assert (tmp_path / "calls").read_text().count("fdatasync(") == 20
    assert len(_load(path)) >= acknowledged


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
