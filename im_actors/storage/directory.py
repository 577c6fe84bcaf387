"""A replica's data directory: whose it is, who uses it, and what happens when it is corrupt.

    identity.json   format, cluster, replica, disk id, which files have been made
    lock            flock for as long as the directory is open; holds the pid
    journal.db      the journal
    history/        the history
    corrupt-…/      what was here before a quarantine, with reason.txt

A directory whose files are lost or damaged never comes back under its old disk id: the other
members would count it as a copy that it no longer is ("unknown is never taken for absent", I9).

All files of a directory are of its format (``core.formats``). It is raised when a replica is
started in a later one, and never goes back.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from im_actors.core.formats import FIRST_FORMAT, FORMATS, Formats
from im_actors.errors import CorruptData, DiskFailed, NewerFormat, WrongDirectory
from im_actors.storage.database import Format, fsync_directory
from im_actors.storage.history import History
from im_actors.storage.index import FORMAT as INDEX_FORMAT
from im_actors.storage.journal import FORMAT as JOURNAL_FORMAT
from im_actors.storage.journal import Journal
from im_actors.storage.months import FORMAT as MONTH_FORMAT

log = logging.getLogger(__name__)

IDENTITY = "identity.json"
LOCK = "lock"
JOURNAL = "journal.db"
HISTORY = "history"
_DATA = (JOURNAL, JOURNAL + "-wal", JOURNAL + "-shm", HISTORY)
_HARMLESS = {LOCK, IDENTITY + ".tmp", "lost+found"}
_RENUMBERED = {2: FIRST_FORMAT}
"""What a directory says that was made before the formats had one number for everything."""


class Files(NamedTuple):
    """What the files of a directory look like."""

    journal: Format
    history: Format
    month: Format


FILES = {FIRST_FORMAT: Files(JOURNAL_FORMAT, INDEX_FORMAT, MONTH_FORMAT)}
"""By format. 5: records carry an index, and history keeps it instead of a row for each event."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The content of identity.json."""

    format: int
    cluster: str
    replica: str
    disk: str
    created_ms: int
    made: tuple[str, ...] = ()
    """Files that were created under this disk id: from then on their absence is damage."""
    quarantine: str = ""
    """A quarantine that has begun: the directory that the old files go to."""


class DataDirectory:
    """An open, locked data directory. ``disk`` is the identity of the disk in it."""

    def __init__(self, path: Path, identity: Identity, lock: int) -> None:
        self.path = path
        self._identity = identity
        self._lock = lock
        self._files: list[Journal | History] = []
        self._writing = Lock()
        """The journal's thread and the history's may open their files at the same time."""

    @property
    def cluster(self) -> str:
        return self._identity.cluster

    @property
    def replica(self) -> str:
        return self._identity.replica

    @property
    def disk(self) -> str:
        return self._identity.disk

    @property
    def format(self) -> int:
        """That of its files, and the newest that its records are of."""
        return self._identity.format

    @property
    def created_ms(self) -> int:
        return self._identity.created_ms

    def open_journal(self) -> Journal:
        """The journal; made when this disk has none yet, CorruptData when it had one."""
        create = JOURNAL not in self._identity.made
        journal = Journal(self.path / JOURNAL, create, FILES[self.format].journal)
        self._made(JOURNAL)
        self._files.append(journal)
        return journal

    def open_history(self) -> History:
        """The history; made when this disk has none yet, CorruptData when it had one."""
        create, files = HISTORY not in self._identity.made, FILES[self.format]
        history = History(self.path / HISTORY, create, files.history, files.month)
        self._made(HISTORY)
        self._files.append(history)
        return history

    def open_existing_journal(self) -> Journal | None:
        """The journal; None when this disk never had one."""
        return self.open_journal() if JOURNAL in self._identity.made else None

    def open_existing_history(self) -> History | None:
        """The history; None when this disk never had one."""
        return self.open_history() if HISTORY in self._identity.made else None

    def _made(self, name: str) -> None:
        with self._writing:
            if name not in self._identity.made:
                # Before anyone can write to it: a promise must not be forgotten with its file.
                self._write(replace(self._identity, made=(*self._identity.made, name)))

    def _write(self, identity: Identity) -> None:
        _write_identity(self.path, identity)
        self._identity = identity

    def quarantine(self, reason: str) -> Path:
        """Move journal, history and identity to ``corrupt-<utc time>-<n>/`` and go on as a new,
        empty disk. Closes the journal and the history that were opened here."""
        for file in self._files:
            file.abandon()
        self._files.clear()
        with _disk_errors(self.path):
            target = _quarantine_target(self.path)
            shutil.copy2(self.path / IDENTITY, target / IDENTITY)
            _write_atomically(target / "reason.txt", f"{reason}\n")
            # The old disk id goes first: after a crash in the middle of the moves a half-empty
            # directory must not answer under it.
            fresh = _new_identity(self.cluster, self.replica, self.format)
            self._write(replace(fresh, quarantine=target.name))
            self._finish_quarantine()
        log.error("%s is quarantined as %s: %s", self.path, target.name, reason)
        return target

    def _finish_quarantine(self) -> None:
        name = self._identity.quarantine
        if not name:
            return
        target = self.path / name
        target.mkdir(mode=0o700, exist_ok=True)
        for data in _DATA:
            if (self.path / data).exists():
                os.rename(self.path / data, target / data)
        fsync_directory(target)
        fsync_directory(self.path)
        self._write(replace(self._identity, quarantine=""))

    def free_bytes(self) -> int:
        """Space that is left on the file system."""
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    def close(self) -> None:
        """Release the lock. The journal and the history are closed by their threads, before; one
        that is still open now is abandoned."""
        for file in self._files:
            file.abandon()
        self._files.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def open_directory(
    path: Path,
    cluster: str,
    replica: str,
    form: int = FORMATS.newest,
    formats: Formats = FORMATS,
) -> DataDirectory:
    """Open a replica's directory, or make it when it is empty or absent. One of an older format
    than ``form`` is of this one afterwards, for good; ``formats`` are those that are known.

    Raises WrongDirectory (another cluster's or replica's, in use, not a directory, not empty and
    not ours), NewerFormat, CorruptData (unreadable identity) or DiskFailed (cannot be written).
    """
    path = Path(path)
    formats.check_written(form, str(path))
    with _disk_errors(path):
        if path.exists() and not path.is_dir():
            raise WrongDirectory(f"{path} is not a directory; name one that is empty or new")
        _make_directory(path)
        lock = _take_lock(path)
        try:
            identity = _read_identity(path, formats) or _claim(path, cluster, replica, form)
            for what, ours, theirs in (
                ("cluster", cluster, identity.cluster),
                ("replica", replica, identity.replica),
            ):
                if ours != theirs:
                    raise WrongDirectory(
                        f"{path} belongs to {what} {theirs!r}, not to {ours!r}; name another one"
                    )
            # On disk before a file or a record is of it, so that no older release looks at them.
            raised = replace(identity, format=max(form, identity.format))
            return _opened(path, raised, lock)
        except BaseException:
            os.close(lock)
            raise


def open_existing(path: Path) -> DataDirectory:
    """Open a directory as whatever it is, for offline work. Makes nothing."""
    path = Path(path)
    with _disk_errors(path):
        if not (path / IDENTITY).is_file():
            raise WrongDirectory(f"{path} is not a replica's data directory: no {IDENTITY}")
        lock = _take_lock(path)
        try:
            identity = _read_identity(path, FORMATS)
            assert identity is not None
            return _opened(path, identity, lock)
        except BaseException:
            os.close(lock)
            raise


def _opened(path: Path, identity: Identity, lock: int) -> DataDirectory:
    # Also: a directory that has become read-only is found now and not at the first message.
    _write_identity(path, identity)
    directory = DataDirectory(path, identity, lock)
    directory._finish_quarantine()
    return directory


def _make_directory(path: Path) -> None:
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for made in missing:
        fsync_directory(made.parent)


def _take_lock(path: Path) -> int:
    handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise WrongDirectory(f"{path} is in use by pid {owner}; stop that process") from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def _claim(path: Path, cluster: str, replica: str, form: int) -> Identity:
    """Make an empty directory ours."""
    strange = sorted({entry.name for entry in path.iterdir()} - _HARMLESS)
    if strange:
        raise WrongDirectory(
            f"{path} has no {IDENTITY} and is not empty ({', '.join(strange[:3])}); if it was a "
            "replica's, its identity is lost and it must not be used again: name an empty directory"
        )
    identity = _new_identity(cluster, replica, form)
    _write_identity(path, identity)
    return identity


def _new_identity(cluster: str, replica: str, form: int) -> Identity:
    return Identity(form, cluster, replica, uuid.uuid4().hex, int(time.time() * 1000))


def _read_identity(path: Path, formats: Formats) -> Identity | None:
    try:
        text = (path / IDENTITY).read_bytes()
    except FileNotFoundError:
        return None
    try:
        fields: dict[str, Any] = json.loads(text)
        version = fields["format"]
        if type(version) is not int:
            raise TypeError("format is not a number")
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptData(
            f"{path / IDENTITY} cannot be read ({error}); move this directory away and start the "
            "replica with an empty one"
        ) from error
    version = fields["format"] = _RENUMBERED.get(version, version)
    if version > formats.newest:
        raise NewerFormat(
            f"{path} has format {version}, this version of im_actors reads {formats}: the upgrade "
            "was finished, so there is no going back; install a newer one"
        )
    if version < formats.oldest:
        raise WrongDirectory(
            f"{path} has format {version}, which this version of im_actors does not read any more "
            f"(it reads {formats}); install one that reads both first, or name an empty directory"
        )
    return _identity_of(path, fields)


def _identity_of(path: Path, fields: dict[str, Any]) -> Identity:
    try:
        identity = Identity(**{**fields, "made": tuple(fields.get("made", ()))})
        texts = (identity.cluster, identity.replica, identity.disk, identity.quarantine)
        if all(isinstance(text, str) for text in (*texts, *identity.made)) and identity.disk:
            return identity
    except TypeError:
        pass
    raise CorruptData(
        f"{path / IDENTITY} lacks a field or has a strange one; move this directory away and start "
        "the replica with an empty one"
    )


def _write_identity(path: Path, identity: Identity) -> None:
    _write_atomically(path / IDENTITY, json.dumps(asdict(identity), indent=1) + "\n")


def _write_atomically(path: Path, text: str) -> None:
    """After a crash there is the old content or the new one, and never a part."""
    with _disk_errors(path):
        temporary = path.with_name(path.name + ".tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        fsync_directory(path.parent)


def _quarantine_target(path: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for number in range(1, 1000):
        target = path / f"corrupt-{stamp}-{number}"
        try:
            target.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return target
    raise DiskFailed(f"{path}: a thousand quarantines in one second; check the disk")


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError into a DiskFailed that names the path."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "make room" if full else "make it writable for this user, check the disk"
        raise DiskFailed(
            f"{path}: {error.strerror or error}; {cure}, or name another directory"
        ) from error
