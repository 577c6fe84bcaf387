from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from im_actors.core.model import Record, sealed_record
from im_actors.core.storage_ops import CutRecords, DropSlot, StoreMeta, StoreRecords
from im_actors.errors import (
    CorruptData,
    DiskFailed,
    InvariantBroken,
    NewerFormat,
    WrongDirectory,
)
from im_actors.storage.journal import Journal, RecordHead, SlotImage


def record_of(slot: int, lsn: int, epoch: int, payload: bytes) -> Record:
    """A journal does not look into what it keeps."""
    return sealed_record(slot, lsn, epoch, payload)


def some_records(slot: int, first: int, last: int, epoch: int = 1) -> tuple[Any, ...]:
    return tuple(
        record_of(slot, lsn, epoch, b"body of %d in %d" % (lsn, slot))
        for lsn in range(first, last + 1)
    )


def heads(records: tuple[Any, ...], commit_lsn: int) -> list[RecordHead]:
    return [RecordHead(r.lsn, r.epoch, r.checksum, commit_lsn) for r in records]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_what_was_committed_is_loaded(path: Path) -> None:
    first, second = some_records(3, 1, 4), some_records(700, 9, 9)
    journal = Journal(path)
    journal.commit([StoreRecords(3, first, 2), StoreMeta(3, b"meta"), StoreRecords(700, second, 8)])
    loaded = {3: SlotImage(b"meta", heads(first, 2)), 700: SlotImage(None, heads(second, 8))}
    assert journal.load() == loaded
    journal.close()
    again = Journal(path, create=False)
    assert again.load() == loaded
    assert (again.commit_lsn(3), again.commit_lsn(700), again.commit_lsn(5)) == (2, 8, 0)
    assert again.slots() == [3, 700]
    again.close()


def test_ops_act_in_their_order(path: Path) -> None:
    journal = Journal(path)
    journal.commit([StoreRecords(1, some_records(1, 1, 5), 0), StoreMeta(1, b"a")])
    better = some_records(1, 4, 6, epoch=2)
    journal.commit(
        [
            StoreRecords(1, some_records(1, 6, 7), 0),
            CutRecords(1, 3),
            StoreRecords(1, better, 3),
            StoreMeta(1, b"b"),
            StoreMeta(1, b"c"),
        ]
    )
    assert [r.lsn for r in journal.load()[1].records] == [1, 2, 3, 4, 5, 6]
    assert journal.read(1, 4, 9, 1 << 20) == list(better)
    assert journal.load()[1].meta == b"c"
    journal.commit([DropSlot(1)])
    assert journal.load() == {1: SlotImage(b"c", [])}
    journal.close()


def test_read_is_contiguous_and_bounded(path: Path) -> None:
    journal = Journal(path)
    records = some_records(2, 5, 9)
    journal.commit([StoreRecords(2, records, 4), StoreRecords(2, some_records(2, 11, 12), 4)])
    assert journal.read(2, 5, 100, 1 << 20) == list(records)
    assert journal.read(2, 6, 7, 1 << 20) == list(records[1:3])
    assert journal.read(2, 5, 100, 0) == [records[0]]
    assert journal.read(2, 5, 100, 2 * len(records[0].payload)) == list(records[:2])
    assert journal.read(2, 10, 100, 1 << 20) == []
    assert journal.read(9, 1, 100, 1 << 20) == []
    journal.close()


def test_trim_deletes_up_to_the_lsn_and_checkpoint_keeps_the_rest(path: Path) -> None:
    journal = Journal(path)
    for slot in (1, 2):
        journal.commit([StoreRecords(slot, some_records(slot, 1, 10), 10)])
    before = journal.wal_bytes()
    journal.trim({1: 7, 3: 5})
    journal.checkpoint()
    assert journal.wal_bytes() < before
    assert journal.lsns(1) == [8, 9, 10]
    assert len(journal.load()[2].records) == 10
    assert journal.bytes_on_disk() > 0
    journal.close()


def test_space_of_trimmed_records_is_used_again(path: Path) -> None:
    journal = Journal(path)
    sizes = []
    for round_number in range(20):
        first = round_number * 20 + 1
        records = tuple(record_of(1, lsn, 1, bytes(4000)) for lsn in range(first, first + 20))
        journal.commit([StoreRecords(1, records, first)])
        journal.trim({1: first + 19})
        journal.checkpoint()
        sizes.append(journal.bytes_on_disk())
    assert sizes[-1] <= sizes[2]
    journal.close()


def test_a_record_is_never_stored_over_another(path: Path) -> None:
    journal = Journal(path)
    journal.commit([StoreRecords(1, some_records(1, 1, 3), 0)])
    with pytest.raises(InvariantBroken, match="lsn 3"):
        journal.commit([StoreRecords(1, some_records(1, 3, 3), 0)])
    with pytest.raises(DiskFailed):
        journal.commit([])
    journal.abandon()
    again = Journal(path)
    assert len(again.load()[1].records) == 3
    again.close()


def test_promises_of_sqlite_are_read_back(path: Path) -> None:
    journal = Journal(path)
    run = journal._db.connection.execute
    assert run("PRAGMA synchronous").fetchone() == (2,)
    assert run("PRAGMA journal_mode").fetchone() == ("wal",)
    assert run("PRAGMA page_size").fetchone() == (16_384,)
    assert run("PRAGMA wal_autocheckpoint").fetchone() == (0,)
    assert not path.with_name("journal.db-shm").exists()
    journal.close()


def test_second_opener_is_refused(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises((WrongDirectory, DiskFailed)):
        Journal(path)
    journal.commit([StoreRecords(1, some_records(1, 1, 1), 0)])
    journal.close()


def test_flipped_payload_is_found(
    path: Path, flip: Callable[..., None], find_bytes: Callable[[Path, bytes], int]
) -> None:
    journal = Journal(path)
    journal.commit([StoreRecords(6, some_records(6, 1, 9), 0)])
    journal.close()
    flip(path, find_bytes(path, b"body of 5 in 6"))
    again = Journal(path)
    with pytest.raises(CorruptData, match="slot 6 lsn 5"):
        again.load()
    with pytest.raises(CorruptData, match="slot 6 lsn 5"):
        again.read(6, 3, 9, 1 << 20)
    assert len(again.read(6, 1, 4, 1 << 20)) == 4
    again.abandon()


def test_flipped_meta_is_found(
    path: Path, flip: Callable[..., None], find_bytes: Callable[[Path, bytes], int]
) -> None:
    journal = Journal(path)
    journal.commit([StoreMeta(6, b"promised to nobody else")])
    journal.close()
    flip(path, find_bytes(path, b"promised to nobody"))
    again = Journal(path)
    with pytest.raises(CorruptData, match="meta of slot 6"):
        again.load()
    again.abandon()


def test_no_flipped_byte_makes_a_shorter_log(path: Path, tmp_path: Path) -> None:
    """Wherever a byte of the file changes: either all is as before, or an error says so."""
    journal = Journal(path)
    for lsn in range(1, 40):
        journal.commit([StoreRecords(5, some_records(5, lsn, lsn), 0), StoreMeta(5, b"m%d" % lsn)])
    expected = journal.load()
    journal.close()
    whole = path.read_bytes()
    used = [at for at, byte in enumerate(whole) if byte]
    damaged = tmp_path / "damaged.db"
    found = 0
    for at in used[::11]:
        data = bytearray(whole)
        data[at] ^= 1 << (at % 8)
        damaged.write_bytes(data)
        for leftover in tmp_path.glob("damaged.db-*"):
            leftover.unlink()
        try:
            again = Journal(damaged, create=False)
        except (CorruptData, NewerFormat, WrongDirectory, DiskFailed):
            found += 1
            continue
        try:
            loaded = again.load()
            # commit_lsn is not covered: it is a hint that the next frame renews.
            assert [(r.lsn, r.checksum) for r in loaded[5].records] == [
                (r.lsn, r.checksum) for r in expected[5].records
            ], f"byte {at}"
            assert loaded[5].meta == expected[5].meta, f"byte {at}"
        except CorruptData:
            found += 1
        finally:
            again.abandon()
    assert found > len(used[::11]) // 2


def test_flip_in_the_middle_of_the_wal_is_found(path: Path, flip: Callable[..., None]) -> None:
    journal = Journal(path)
    for lsn in range(1, 20):
        journal.commit([StoreRecords(1, some_records(1, lsn, lsn), 0)])
    wal = path.with_name("journal.db-wal")
    copy = path.with_name("copy.db")
    copy.write_bytes(path.read_bytes())
    copy.with_name("copy.db-wal").write_bytes(wal.read_bytes())
    journal.close()
    flip(copy.with_name("copy.db-wal"), wal_middle(copy))
    with pytest.raises(CorruptData, match="middle"):
        Journal(copy)


def wal_middle(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size // 2


def test_torn_tail_is_dropped_and_does_not_come_back(path: Path) -> None:
    journal = Journal(path)
    wal = path.with_name("journal.db-wal")
    for lsn in range(1, 6):
        journal.commit([StoreRecords(1, some_records(1, lsn, lsn), 0)])
    before = wal.stat().st_size
    journal.commit([StoreRecords(1, (record_of(1, 6, 1, b"\xff" * 60_000),), 0)])
    copy = path.with_name("copy.db")
    for round_number in range(3):
        copy.write_bytes(path.read_bytes())
        torn = bytearray(wal.read_bytes())
        assert len(torn) > before + 2 * 16_384
        torn[before + 1000 : before + 9000] = b"\xaa" * 8000
        copy.with_name("copy.db-wal").write_bytes(torn)
        again = Journal(copy)
        assert [r.lsn for r in again.load()[1].records] == [1, 2, 3, 4, 5]
        again.commit([StoreRecords(1, some_records(1, 6, 6, epoch=round_number + 2), 0)])
        again.abandon()
        last = Journal(copy)
        assert len(last.load()[1].records) == 6
        last.abandon()
    journal.close()


@pytest.mark.parametrize("version", [3, 99])
def test_newer_format_is_refused(path: Path, version: int) -> None:
    Journal(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={version}")
    connection.close()
    with pytest.raises(NewerFormat, match="newer"):
        Journal(path)


def test_an_older_format_is_refused(path: Path) -> None:
    Journal(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=1")
    connection.close()
    with pytest.raises(WrongDirectory, match=r"format 1.*it reads 2"):
        Journal(path)


def test_a_file_that_was_there_is_not_made_anew(path: Path) -> None:
    with pytest.raises(CorruptData, match="missing"):
        Journal(path, create=False)
    path.write_bytes(b"")
    with pytest.raises(CorruptData, match="empty"):
        Journal(path, create=False)


def test_a_stranger_s_file_is_refused(path: Path) -> None:
    path.write_bytes(b"this is no database at all, but it is long enough to be looked at" * 20)
    with pytest.raises(CorruptData):
        Journal(path)
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE photos(id)")
    connection.commit()
    connection.close()
    with pytest.raises(WrongDirectory, match="not a journal"):
        Journal(path)


def test_a_failed_write_kills_the_journal(path: Path) -> None:
    """An error of the disk is simulated by a row that SQLite refuses: the object must not be used
    again, whatever the error was."""
    journal = Journal(path)
    journal.commit([StoreRecords(1, some_records(1, 1, 1), 0)])
    journal._db.connection.execute("PRAGMA query_only=ON")
    with pytest.raises(DiskFailed, match=r"journal\.db"):
        journal.commit([StoreRecords(1, some_records(1, 2, 2), 0)])
    journal._db.connection.execute("PRAGMA query_only=OFF")
    with pytest.raises(DiskFailed, match="not used again"):
        journal.commit([StoreRecords(1, some_records(1, 2, 2), 0)])
    with pytest.raises(DiskFailed):
        journal.read(1, 1, 1, 10)
    journal.close()
    again = Journal(path)
    assert [r.lsn for r in again.load()[1].records] == [1]
    again.close()


def test_full_disk_loses_nothing_acknowledged(mounted: Callable[..., Path]) -> None:
    small = mounted("-t", "tmpfs", "-o", "size=600k", "tmpfs")
    path = small / "journal.db"
    journal = Journal(path)
    acknowledged = 0

    def fill() -> None:
        nonlocal acknowledged
        for lsn in range(1, 10_000):
            journal.commit([StoreRecords(1, (record_of(1, lsn, 1, bytes(3000)),), 0)])
            acknowledged = lsn

    with pytest.raises(DiskFailed, match="free some space"):
        fill()
    with pytest.raises(DiskFailed):
        journal.commit([])
    journal.close()
    assert acknowledged > 3
    moved = small.parent / "journal.db"
    moved.write_bytes(path.read_bytes())
    wal = path.with_name("journal.db-wal")
    if wal.exists():
        moved.with_name("journal.db-wal").write_bytes(wal.read_bytes())
    again = Journal(moved, create=False)
    assert len(again.load()[1].records) >= acknowledged
    again.close()


def test_read_only_file_system_is_a_clear_error(
    mounted: Callable[..., Path], tmp_path: Path
) -> None:
    """Root may write where chmod says no, so a read-only mount stands for the lack of rights."""
    source = tmp_path / "source"
    source.mkdir()
    Journal(source / "journal.db").close()
    point = mounted("--bind", str(source))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(point)], check=True)
    with pytest.raises(DiskFailed, match=r"journal\.db"):
        Journal(point / "journal.db")
