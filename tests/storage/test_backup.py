"""Backups on real files: what a run adds, what a killed one leaves, what damage does."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from im_actors.core.dropping import dropped_record
from im_actors.core.formats import FORMATS, Formats
from im_actors.core.model import Record
from im_actors.errors import CorruptData, DiskFailed, NewerFormat, WrongDirectory
from im_actors.storage import backup as b
from im_actors.storage.months import month_of

if TYPE_CHECKING:
    from tests.storage.conftest import LogBuilder

CLUSTER, SLOTS, MONTH_MS = "c1", 3, 31 * 24 * 3600 * 1000


def fill(log: LogBuilder, records: int = 4) -> None:
    for slot in range(SLOTS):
        for number in range(records):
            log.record(slot, (f"s{slot}", "a/d"), (f"t{slot}", "b/d"), body=b"%d" % number)


def run(path: Path, log: LogBuilder, dropped: tuple[int, ...] = ()) -> b.Manifest:
    """A run that adds whatever the log has and the backup has not."""
    with b.BackupWriter(path, CLUSTER, SLOTS) as writer:
        for slot, records in log.logs.items():
            end = writer.end(slot)
            if end is not None:
                writer.check_goes_on(slot, records[end.lsn - 1])
            writer.add(slot, records[end.lsn if end else 0 :], dropped)
        return writer.finish(7, "1.0", 5, dropped)


def read(path: Path) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = {slot: [] for slot in range(SLOTS)}
    for slot, record in b.read_records(path, b.existing_manifest(path)):
        found[slot].append(record)
    return found


def check(path: Path) -> None:
    for file in b.existing_manifest(path).files:
        b.check_file(path, file)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.glob("*.records")}


def test_each_run_adds_what_is_new_and_leaves_the_rest(log: LogBuilder, tmp_path: Path) -> None:
    fill(log)
    log.epoch(1)
    log.now_ms += MONTH_MS
    fill(log)
    first = run(tmp_path / "b", log)
    assert len({file.month for file in first.files}) == len(first.files) == 2
    before = contents(tmp_path / "b")
    assert read(tmp_path / "b") == log.logs
    log.record(2, ("s2", "a/d"), body=b"new")
    second = run(tmp_path / "b", log)
    assert second.run == 2
    assert contents(tmp_path / "b").items() > before.items()
    assert [file.records for file in second.files if file.run == 2] == [1]
    assert read(tmp_path / "b") == log.logs
    assert second.ends[1].epoch == 2
    third = run(tmp_path / "b", log)
    assert third.files == second.files
    check(tmp_path / "b")


class _Failing:
    """Lets a call through so many times and then fails for ever, as a disk does that is full; what
    runs after a failure then is what runs after a kill."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
        self.left = calls
        for name in ("fsync", "replace"):
            monkeypatch.setattr(b.os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(*args)

        return call


def test_a_run_that_ends_half_way_leaves_the_backup_that_was_there(
    log: LogBuilder, tmp_path: Path
) -> None:
    """At every fsync and rename in turn, of a first run and of a later one."""
    for path in (tmp_path / "first", tmp_path / "later"):
        fill(log)
        if path.name == "later":
            run(path, log)
        calls, whole = 0, False
        while not whole:
            known = b.read_manifest(path)
            before = read(path) if known is not None else None
            log.record(0, ("s0", "a/d"), body=b"%d" % calls)
            with pytest.MonkeyPatch.context() as patch:
                _Failing(patch, calls)
                try:
                    run(path, log)
                    whole = True
                except DiskFailed:
                    whole = False
            if b.read_manifest(path) is None:
                assert before is None
                with pytest.raises(WrongDirectory, match="no whole backup"):
                    b.existing_manifest(path)
            else:
                check(path)
                assert read(path) in ((log.logs,) if whole else (before, log.logs))
            calls += 1
        assert calls >= 4
        run(path, log)
        assert read(path) == log.logs
        assert set(contents(path)) == {file.name for file in b.existing_manifest(path).files}


def test_a_run_that_was_killed_before_its_manifest(log: LogBuilder, tmp_path: Path) -> None:
    fill(log)
    with b.BackupWriter(tmp_path / "b", CLUSTER, SLOTS) as writer:
        writer.add(0, log.logs[0])
    assert list((tmp_path / "b").glob("*.records"))
    assert b.read_manifest(tmp_path / "b") is None
    run(tmp_path / "b", log)
    assert read(tmp_path / "b") == log.logs


def test_any_changed_byte_is_found(
    log: LogBuilder, tmp_path: Path, flip: Callable[..., None]
) -> None:
    path = tmp_path / "b"
    fill(log)
    manifest = run(path, log)
    where = path / manifest.files[0].name
    size = where.stat().st_size
    for at in range(0, size, 7):
        flip(where, at)
        with pytest.raises(CorruptData, match="changed bytes"):
            check(path)
        flip(where, at)
    check(path)
    where.write_bytes(where.read_bytes()[:-1])
    with pytest.raises(CorruptData, match="bytes instead of"):
        check(path)
    where.unlink()
    with pytest.raises(CorruptData, match="missing"):
        check(path)
    size = (path / b.MANIFEST).stat().st_size
    for at in range(size - 1):
        flip(path / b.MANIFEST, at, 1)
        with pytest.raises((CorruptData, NewerFormat)):
            b.read_manifest(path)
        flip(path / b.MANIFEST, at, 1)


def test_a_file_of_another_run_in_the_place_of_one(log: LogBuilder, tmp_path: Path) -> None:
    """Also when digests would not tell: the records themselves have to follow one another."""
    fill(log)
    manifest = run(tmp_path / "b", log)
    manifest.ends[0] = manifest.ends[0]._replace(lsn=99)
    with pytest.raises(CorruptData, match="do not end where"):
        list(b.read_records(tmp_path / "b", manifest))
    manifest.files.append(manifest.files[0])
    with pytest.raises(CorruptData, match="follows lsn"):
        list(b.read_records(tmp_path / "b", manifest))


def test_what_does_not_follow_is_not_taken(log: LogBuilder, tmp_path: Path) -> None:
    fill(log)
    with b.BackupWriter(tmp_path / "b", CLUSTER, SLOTS) as writer:
        with pytest.raises(CorruptData):
            writer.add(0, log.logs[0][1:])
        writer.add(0, log.logs[0][:2])
        damaged = log.logs[0][2]._replace(payload=b"x")
        with pytest.raises(CorruptData):
            writer.add(0, [damaged])
        with pytest.raises(CorruptData):
            writer.add(1, log.logs[0][:1])


def test_directories_that_are_not_this_backup(
    log: LogBuilder, new_log: Callable[[], LogBuilder], tmp_path: Path
) -> None:
    fill(log)
    run(tmp_path / "b", log)
    with pytest.raises(WrongDirectory, match="is a backup of cluster c1"):
        b.BackupWriter(tmp_path / "b", "c2", SLOTS)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "letters.txt").touch()
    with pytest.raises(WrongDirectory, match=r"letters\.txt"):
        b.BackupWriter(tmp_path / "d", CLUSTER, SLOTS)
    with (
        b.BackupWriter(tmp_path / "b", CLUSTER, SLOTS),
        pytest.raises(WrongDirectory, match="another backup is under way"),
    ):
        b.BackupWriter(tmp_path / "b", CLUSTER, SLOTS)
    other = new_log()
    other.now_ms += 1
    fill(other)
    with pytest.raises(WrongDirectory, match="have parted"):
        run(tmp_path / "b", other)
    assert read(tmp_path / "b") == log.logs


def test_a_newer_format_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(b, "FORMAT", 2)
        with b.BackupWriter(tmp_path, CLUSTER, SLOTS) as writer:
            writer.finish(0, "", 0, ())
    assert json.loads((tmp_path / b.MANIFEST).read_text())["format"] == 2
    with pytest.raises(NewerFormat, match="format 2"):
        b.read_manifest(tmp_path)


def test_records_of_a_newer_format_are_said_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when later runs bring none of that format."""
    later = FORMATS.newest + 1
    with monkeypatch.context() as patch:
        patch.setattr(b, "FORMATS", Formats(FORMATS.oldest, later))
        for form in (later, FORMATS.newest):
            with b.BackupWriter(tmp_path, CLUSTER, SLOTS) as writer:
                writer.finish(0, "", 0, (), form)
    with pytest.raises(NewerFormat, match=f"writes format {later}.*install a newer one"):
        b.read_manifest(tmp_path)


@pytest.mark.parametrize("before", [True, False])
def test_a_dropped_month_goes_from_the_backup_too(
    log: LogBuilder, tmp_path: Path, before: bool
) -> None:
    """Whether it is dropped before the first run or between two."""
    path = tmp_path / "b"
    fill(log)
    month = month_of(log.events["s0"][0].key).month
    if not before:
        run(path, log)
    log.now_ms += 2 * MONTH_MS
    log.record(0, ("s0", "a/d"), body=b"later")
    manifest = run(path, log, (month,))
    expected = {
        slot: [dropped_record(slot, r) if r.lsn <= 4 else r for r in records]
        for slot, records in log.logs.items()
    }
    assert read(path) == expected
    assert manifest.dropped == [month]
    # As the cluster has it from now on: without its content.
    log.logs.update(expected)
    assert run(path, log, (month,)).files == manifest.files
    check(path)
    assert len(contents(path)) == len(manifest.files)
