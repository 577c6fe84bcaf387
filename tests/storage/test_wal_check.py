from __future__ import annotations

import random
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from im_actors.errors import CorruptData
from im_actors.storage import wal_check
from im_actors.storage.wal_check import WalState, check_wal

PAGE = 512
FRAME = PAGE + 24


def write_wal(path: Path, transactions: int, page: int = PAGE, rows: int = 3) -> list[int]:
    """A database with an open WAL, copied as a crash would leave it; the frames after each
    transaction."""
    source = path.with_name("source.db")
    connection = sqlite3.connect(source, isolation_level=None)
    connection.execute(f"PRAGMA page_size={page}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    rng = random.Random(7)
    ends = []
    for _ in range(transactions):
        connection.execute("BEGIN")
        for _ in range(rows):
            connection.execute("INSERT INTO t(body) VALUES(?)", (rng.randbytes(400),))
        connection.execute("COMMIT")
        ends.append((source.with_name("source.db-wal").stat().st_size - 32) // (page + 24))
    shutil.copy(source, path)
    shutil.copy(source.with_name("source.db-wal"), path.with_name(path.name + "-wal"))
    connection.close()
    return ends


def rows_seen(path: Path) -> int:
    connection = sqlite3.connect(path)
    seen = connection.execute("SELECT count(*) FROM t").fetchone()[0]
    connection.close()
    return int(seen)


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    return tmp_path / "copy.db-wal"


def test_whole_wal_is_whole(tmp_path: Path, wal: Path) -> None:
    ends = write_wal(tmp_path / "copy.db", 10)
    assert check_wal(wal) == WalState(ends[-1], False)


def test_absent_and_empty_wal_are_fine(wal: Path) -> None:
    assert check_wal(wal) == WalState(0, False)
    wal.write_bytes(b"")
    assert check_wal(wal) == WalState(0, False)


@pytest.mark.parametrize("page", [512, 4096, 16384, 65536])
def test_chunks_and_page_sizes(
    tmp_path: Path, wal: Path, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_check, "_CHUNK_BYTES", 3 * (page + 24) + 5)
    ends = write_wal(tmp_path / "copy.db", 6, page)
    assert check_wal(wal) == WalState(ends[-1], False)


def test_big_endian_checksums_are_known(tmp_path: Path, wal: Path) -> None:
    """A WAL of the other byte order, as the header's magic says: rewritten by hand."""
    ends = write_wal(tmp_path / "copy.db", 3)
    data = bytearray(wal.read_bytes())
    struct.pack_into(">I", data, 0, 0x377F0683)
    total = wal_check._sum_of((0, 0), bytes(data[:24]), True)
    struct.pack_into(">2I", data, 24, *total)
    for at in range(32, len(data), FRAME):
        covered = bytes(data[at : at + 8] + data[at + 24 : at + FRAME])
        total = wal_check._sum_of(total, covered, True)
        struct.pack_into(">2I", data, at + 16, *total)
    wal.write_bytes(data)
    assert check_wal(wal) == WalState(ends[-1], False)


def test_every_flipped_bit_is_found(tmp_path: Path, wal: Path) -> None:
    """The trap itself: SQLite opens each of these and silently has fewer rows."""
    write_wal(tmp_path / "copy.db", 5)
    whole = wal.read_bytes()
    rng = random.Random(3)
    for at in (*range(32), *(rng.randrange(32, len(whole)) for _ in range(300))):
        data = bytearray(whole)
        data[at] ^= 1 << rng.randrange(8)
        wal.write_bytes(data)
        with pytest.raises(CorruptData):
            check_wal(wal)


def test_flip_in_the_last_transaction_is_not_a_torn_tail(
    tmp_path: Path, wal: Path, flip: Callable[..., None]
) -> None:
    ends = write_wal(tmp_path / "copy.db", 5)
    flip(wal, 32 + (ends[-1] - 1) * FRAME + 100)
    with pytest.raises(CorruptData, match="one bit"):
        check_wal(wal)


def test_sqlite_loses_rows_where_the_check_raises(
    tmp_path: Path, wal: Path, flip: Callable[..., None]
) -> None:
    write_wal(tmp_path / "copy.db", 10)
    flip(wal, 32 + 4 * FRAME + 200)
    with pytest.raises(CorruptData):
        check_wal(wal)
    assert rows_seen(tmp_path / "copy.db") < 30


@pytest.mark.parametrize("cut", [1, 10, 24, 30, FRAME, FRAME + 3, 2 * FRAME])
def test_torn_tail_by_a_short_file(tmp_path: Path, wal: Path, cut: int) -> None:
    ends = write_wal(tmp_path / "copy.db", 6)
    whole = wal.read_bytes()
    wal.write_bytes(whole[:-cut])
    state = check_wal(wal)
    assert state.frames == ends[-2]
    assert rows_seen(tmp_path / "copy.db") == 15


def test_torn_tail_by_sectors_that_never_came(tmp_path: Path, wal: Path) -> None:
    """Within the last transaction any sectors may be old, also with its commit frame in place."""
    ends = write_wal(tmp_path / "copy.db", 6)
    whole = bytearray(wal.read_bytes())
    first = 32 + ends[-2] * FRAME
    assert ends[-1] - ends[-2] >= 2
    for at in range(first, len(whole) - 512, 512):
        data = bytearray(whole)
        data[at : at + 512] = bytes(512)
        wal.write_bytes(data)
        assert check_wal(wal) == WalState(ends[-2], True)


@pytest.mark.parametrize("kept", [8, 24, FRAME - 4])
def test_a_write_that_stopped_is_no_rot(tmp_path: Path, wal: Path, kept: int) -> None:
    """The head of a frame is written before its page. Over an older page that differs in one bit,
    or where the head alone reaches a new sector, a bit seems to have changed; what would prove it,
    a whole transaction up to its commit frame, is not there."""
    ends = write_wal(tmp_path / "copy.db", 6)
    whole = wal.read_bytes()
    first = 32 + ends[-2] * FRAME
    assert ends[-1] - ends[-2] >= 2
    data = bytearray(whole[: first + FRAME])
    data[first + kept - 8] ^= 1
    wal.write_bytes(data)
    assert check_wal(wal) == WalState(ends[-2], True)


def test_a_sector_of_zeros_is_no_rot(tmp_path: Path, wal: Path) -> None:
    """A frame's first 8 bytes, page number 1 and no commit, are alone in their sector."""
    path = tmp_path / "copy.db"
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in ("page_size=16384", "journal_mode=WAL", "wal_autocheckpoint=0"):
        connection.execute(f"PRAGMA {statement}")
    connection.execute("CREATE TABLE t(body BLOB)")
    sizes = []
    torn_at = 0
    while not torn_at:
        sizes.append(wal.stat().st_size)
        connection.execute("BEGIN")
        connection.execute(f"PRAGMA user_version={len(sizes)}")
        connection.execute("INSERT INTO t VALUES(randomblob(9000))")
        connection.execute("COMMIT")
        whole = wal.read_bytes()
        for at in range(sizes[-1], len(whole), 16384 + 24):
            if at % 512 == 504 and whole[at : at + 8] == bytes((0, 0, 0, 1, 0, 0, 0, 0)):
                torn_at = at
    connection.close()
    wal.write_bytes(whole[:torn_at] + bytes(8) + whole[torn_at + 8 :])
    assert check_wal(wal) == WalState((sizes[-1] - 32) // (16384 + 24), True)


def test_two_transactions_cannot_both_be_torn(tmp_path: Path, wal: Path) -> None:
    ends = write_wal(tmp_path / "copy.db", 6)
    data = bytearray(wal.read_bytes())
    first = 32 + ends[-3] * FRAME
    data[first + 24 : first + 24 + 512] = bytes(512)
    wal.write_bytes(data)
    with pytest.raises(CorruptData, match="middle"):
        check_wal(wal)


def test_stale_frames_of_an_older_generation_mean_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)")
    for _ in range(50):
        connection.execute("INSERT INTO t(body) VALUES(randomblob(3000))")
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    connection.execute("INSERT INTO t(body) VALUES(randomblob(3000))")
    wal = tmp_path / "a.db-wal"
    state = check_wal(wal)
    assert 0 < state.frames < (wal.stat().st_size - 32) // (4096 + 24)
    assert not state.torn
    connection.close()


def test_damaged_header_with_frames_is_damage(
    tmp_path: Path, wal: Path, flip: Callable[..., None]
) -> None:
    write_wal(tmp_path / "copy.db", 3)
    flip(wal, 20)
    with pytest.raises(CorruptData, match="header"):
        check_wal(wal)


def test_header_alone_or_zeros_hold_nothing(wal: Path) -> None:
    wal.write_bytes(b"\x37\x7f\x06")
    assert check_wal(wal) == WalState(0, False)
    wal.write_bytes(bytes(4096))
    assert check_wal(wal) == WalState(0, False)
