"""A backup: the committed records of every slot, in files that are written once.

    manifest.json              what the backup holds, with a checksum; written last
    2026-09.000003.records     the records of one month that the third run added
    manifest.json.lock         held while a run adds to the directory

Records are all that a backup needs: timelines, dedup sets, read positions and groups are what the
records say (``storage.history`` makes its tables from nothing else). A slot's part is a prefix of
its log without a hole. Each run adds what came since the one before and leaves the files of
earlier runs as they are, so a run that is killed, or fills the disk, leaves the backup that was
there. Files that no manifest names are what such a run left; the next one removes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgpack

from im_actors.core.dropping import dropped_record
from im_actors.core.formats import FIRST_FORMAT, FORMATS
from im_actors.core.model import Record, record_intact, record_keys
from im_actors.errors import CorruptData, DiskFailed, NewerFormat, WrongDirectory
from im_actors.storage.database import fsync_directory
from im_actors.storage.file_lock import FileLock
from im_actors.storage.months import month_of
from im_actors.storage.places import month_text

FORMAT = 1
MANIFEST = "manifest.json"
MAGIC = "im-actors backup"
RECORD_BYTES_MAX = 64 << 20
READ_BYTES = 1 << 20
_NAME = re.compile(r"\d{4}-\d\d\.\d{6}(\.dropped)?\.records")
_HARMLESS = {"lost+found", f"{MANIFEST}.lock", f".{MANIFEST}.new", MANIFEST}


class File(NamedTuple):
    """One file of records. ``digest`` is BLAKE2b-256 of all its bytes."""

    name: str
    month: int
    run: int
    bytes: int
    records: int
    digest: str


class End(NamedTuple):
    """The last record of a slot in the backup. ``key`` is its last message key."""

    lsn: int
    epoch: int
    checksum: int
    key: int


@dataclass(slots=True)
class Manifest:
    """What a backup holds. ``taken_ms`` is when its last run began: what was ACKed before then is
    in it. ``promised`` is the highest epoch that any replica had promised of a slot."""

    cluster: str
    slots: int
    run: int = 0
    taken_ms: int = 0
    version: str = ""
    promised: int = 0
    ends: dict[int, End] = field(default_factory=dict)
    dropped: list[int] = field(default_factory=list)
    """Months whose content was dropped: their records are here without it."""
    files: list[File] = field(default_factory=list)
    disk_format: int = FIRST_FORMAT
    """The newest format that a record may be of (``core.formats``)."""

    @property
    def records(self) -> int:
        return sum(file.records for file in self.files)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def in_order(self) -> list[File]:
        """The files in an order in which each slot's records ascend: what a run adds comes after
        all that earlier ones have, and keys, so months, never decrease along a log."""
        return sorted(self.files, key=lambda file: (file.run, file.month))


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a backup, None when there is none. CorruptData or NewerFormat say why it
    cannot be used."""
    where = path / MANIFEST
    with disk_errors(path):
        try:
            text = where.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
    try:
        fields = json.loads(text)
        checksum = fields.pop("checksum")
        if checksum != _digest(_json(fields)):
            raise ValueError("wrong checksum")
        version = fields.pop("format")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CorruptData(
            f"{where} is damaged ({error}): the backup cannot be used; take a copy of it from"
            " elsewhere, or back up to an empty directory"
        ) from None
    if version > FORMAT:
        raise NewerFormat(f"{where} has format {version}, this version knows {FORMAT}: update it")
    fields["ends"] = {int(slot): End(*end) for slot, end in fields["ends"].items()}
    fields["files"] = [File(*file) for file in fields["files"]]
    FORMATS.check_written(fields.get("disk_format", FIRST_FORMAT), str(where))
    return Manifest(**fields)


def existing_manifest(path: Path) -> Manifest:
    """The manifest of a whole backup; WrongDirectory when there is none."""
    found = read_manifest(path)
    if found is not None:
        return found
    why = "there is no such directory"
    if path.exists():
        why = f"it has no {MANIFEST}, which is the last that a backup writes"
    raise WrongDirectory(f"{path} is no whole backup: {why}")


def manifest_for(path: Path, cluster: str, slots: int) -> Manifest:
    """What a run in ``path`` goes on from; one without anything when there is no backup yet."""
    known = read_manifest(path)
    if known is not None and (known.cluster, known.slots) != (cluster, slots):
        raise WrongDirectory(
            f"{path} is a backup of cluster {known.cluster}, not of {cluster} (a restored cluster"
            " is a new one): back up to an empty directory"
        )
    return known or Manifest(cluster, slots)


class BackupWriter:
    """One run of a backup. Use it as ``with``: it holds the directory's lock. Nothing of what it
    adds counts before ``finish`` returns."""

    def __init__(self, path: Path, cluster: str, slots: int) -> None:
        self.path = path
        with disk_errors(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_ours()
        self._lock = FileLock(path / MANIFEST, "another backup is under way")
        try:
            self.manifest = manifest_for(path, cluster, slots)
        except BaseException:
            self._lock.release()
            raise
        self._run = self.manifest.run + 1
        self._ends = dict(self.manifest.ends)
        self._open: dict[int, _RecordFile] = {}

    def __enter__(self) -> BackupWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()
        self._lock.release()

    def _check_ours(self) -> None:
        names = {entry.name for entry in self.path.iterdir()} - _HARMLESS
        strange = sorted(name for name in names if not _NAME.fullmatch(name))
        if strange:
            raise WrongDirectory(
                f"{self.path} is not empty and no backup ({', '.join(strange[:3])}); name an empty"
                " or a new directory"
            )

    def end(self, slot: int) -> End | None:
        """The slot's last record so far."""
        return self._ends.get(slot)

    def check_goes_on(self, slot: int, record: Record) -> None:
        """WrongDirectory unless ``record``, which the cluster has at the end's lsn, is that one."""
        end = self._ends[slot]
        dropped = month_of(end.key).month in self.manifest.dropped or _is_without(slot, record)
        if record[:2] != end[:2] or not (record.checksum == end.checksum or dropped):
            raise WrongDirectory(
                f"slot {slot}: the record at lsn {end.lsn} is not the one in {self.path}: the two"
                " have parted. Back up to an empty directory"
            )

    def add(self, slot: int, records: Iterable[Record], dropped: Iterable[int] = ()) -> int:
        """Add the next records of a slot; how many bytes they are. CorruptData for a damaged one,
        or one that does not follow."""
        size = 0
        for record in records:
            end = self._ends.get(slot, End(0, 0, 0, 0))
            follows = record.lsn == end.lsn + 1 and record.epoch >= end.epoch
            if not follows or not record_intact(slot, record):
                raise CorruptData(
                    f"slot {slot}: what follows lsn {end.lsn} is damaged, or does not"
                )
            first_key, last_key = record_keys(record.payload)
            month = month_of(first_key).month
            kept = dropped_record(slot, record) if month in dropped else record
            size += self._file(month).add(slot, kept)
            self._ends[slot] = End(record.lsn, record.epoch, kept.checksum, last_key)
        return size

    def _file(self, month: int) -> _RecordFile:
        if month not in self._open:
            self._open[month] = self._made(month, self._run, "")
        return self._open[month]

    def _made(self, month: int, run: int, mark: str) -> _RecordFile:
        path = self.path / f"{month_text(month)}.{run:06}{mark}.records"
        return _RecordFile(path, self.manifest.cluster, month, run)

    def finish(
        self,
        taken_ms: int,
        version: str,
        promised: int,
        dropped: Iterable[int],
        form: int = FORMATS.newest,
    ) -> Manifest:
        """Make the run part of the backup; on disk when this returns."""
        before = self.manifest
        gone = sorted({*before.dropped, *dropped})
        files = []
        for file in before.files:
            drop = file.month in gone and file.month not in before.dropped
            files.append(self._without_content(file) if drop else file)
        files += [file.finish() for file in self._open.values()]
        ends, highest = self._ends, max(promised, before.promised)
        fresh = Manifest(
            *(before.cluster, before.slots, self._run, taken_ms, version, highest),
            *(ends, gone, files, max(form, before.disk_format)),
        )
        with disk_errors(self.path):
            fsync_directory(self.path)
            _write_manifest(self.path, fresh)
            _remove_others(self.path, fresh)
        self.manifest = fresh
        return fresh

    def _without_content(self, old: File) -> File:
        """The file of a month that has been dropped since: its content goes from here, too."""
        file = self._made(old.month, old.run, ".dropped")
        try:
            for slot, record in read_file(self.path, old, self.manifest.cluster):
                kept = dropped_record(slot, record)
                file.add(slot, kept)
                if record[:2] == self._ends[slot][:2]:
                    self._ends[slot] = self._ends[slot]._replace(checksum=kept.checksum)
            return file.finish()
        finally:
            file.close()


def _is_without(slot: int, record: Record) -> bool:
    """Whether a record has no content, or has lost it with its month."""
    return dropped_record(slot, record).checksum == record.checksum


class _RecordFile:
    """A file of records that is being written."""

    def __init__(self, path: Path, cluster: str, month: int, run: int) -> None:
        self._path = path
        self._head = (path.name, month, run)
        self._digest = hashlib.blake2b(digest_size=32)
        self._pack = msgpack.Packer(autoreset=True).pack
        self._records = 0
        self._bytes = 0
        with disk_errors(path):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._file: BinaryIO = os.fdopen(handle, "wb", READ_BYTES)
        self._write(self._pack((MAGIC, FORMAT, cluster, month)))

    def _write(self, data: bytes) -> int:
        with disk_errors(self._path):
            self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)
        return len(data)

    def add(self, slot: int, record: Record) -> int:
        self._records += 1
        return self._write(self._pack((slot, *record)))

    def finish(self) -> File:
        """On disk when this returns."""
        with disk_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return File(*self._head, self._bytes, self._records, self._digest.hexdigest())

    def close(self) -> None:
        # What could not be written belongs to no manifest.
        with suppress(OSError):
            self._file.close()


# -- reading ---------------------------------------------------------------------------------------


def check_file(path: Path, file: File) -> None:
    """CorruptData unless the file is there as it was written."""
    where = path / file.name
    digest = hashlib.blake2b(digest_size=32)
    size = 0
    with disk_errors(where):
        try:
            with where.open("rb") as opened:
                while data := opened.read(READ_BYTES):
                    digest.update(data)
                    size += len(data)
        except FileNotFoundError:
            raise CorruptData(f"{where} is missing: the backup is not whole") from None
    if size != file.bytes or digest.hexdigest() != file.digest:
        how = f"{size} bytes instead of {file.bytes}" if size != file.bytes else "changed bytes"
        raise CorruptData(f"{where} is damaged ({how}): take it from another copy of the backup")


def read_file(path: Path, file: File, cluster: str) -> Iterator[tuple[int, Record]]:
    """(slot, record) of a file, as they were added. CorruptData for what was not written so."""
    where = path / file.name
    try:
        with disk_errors(where), where.open("rb") as opened:
            rows = msgpack.Unpacker(opened, max_buffer_size=RECORD_BYTES_MAX)
            if next(rows) != [MAGIC, FORMAT, cluster, file.month]:
                raise CorruptData(f"{where} is not a file of this backup")
            for slot, *fields in rows:
                record = Record(*fields)
                if not record_intact(slot, record):
                    raise CorruptData(f"{where}: slot {slot} lsn {record.lsn} has a wrong checksum")
                yield slot, record
    except (ValueError, TypeError, StopIteration, msgpack.exceptions.UnpackException) as error:
        raise CorruptData(f"{where} cannot be read: {error!r}") from error


def read_records(path: Path, manifest: Manifest) -> Iterator[tuple[int, Record]]:
    """All records, each slot's by ascending lsn and without a hole, up to its end; CorruptData
    otherwise, at the latest at the end."""
    last: dict[int, tuple[int, int]] = {}
    for file in manifest.in_order():
        for slot, record in read_file(path, file, manifest.cluster):
            lsn, epoch = last.get(slot, (0, 0))
            if record.lsn != lsn + 1 or record.epoch < epoch:
                raise CorruptData(
                    f"{path / file.name}: slot {slot} lsn {record.lsn} follows lsn {lsn}"
                )
            last[slot] = record.lsn, record.epoch
            yield slot, record
    if last != {slot: (end.lsn, end.epoch) for slot, end in manifest.ends.items()}:
        raise CorruptData(f"{path}: the files do not end where {MANIFEST} says")


# -- the manifest ----------------------------------------------------------------------------------


def _write_manifest(path: Path, manifest: Manifest) -> None:
    """After a crash there is the old manifest or the new one."""
    fields = {"format": FORMAT, **asdict(manifest)}
    fields["ends"] = {str(slot): list(end) for slot, end in sorted(manifest.ends.items())}
    fields["files"] = [list(file) for file in manifest.in_order()]
    fields["checksum"] = _digest(_json(fields))
    fresh = path / f".{MANIFEST}.new"
    with fresh.open("wb") as file:
        file.write(_json(fields) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path / MANIFEST)
    fsync_directory(path)


def _remove_others(path: Path, manifest: Manifest) -> None:
    named = {file.name for file in manifest.files}
    for entry in path.iterdir():
        if _NAME.fullmatch(entry.name) and entry.name not in named:
            entry.unlink()


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError into a DiskFailed that names the path."""
    try:
        yield
    except OSError as error:
        raise DiskFailed(
            f"{path}: {error.strerror or error}; make room, make it accessible, or name another"
            " directory"
        ) from error
