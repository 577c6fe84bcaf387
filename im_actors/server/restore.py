"""Makes the data directory of a new cluster from a backup.

The cluster is a *new* one, with a name, a secret, disks and a view store of its own and with epochs
above all that the old one promised: hosts of the old cluster cannot link to it, their directories
are refused, and what caches keep under the old name is not read. ``cluster.json`` is written last:
without it no ``up`` takes a directory that holds replicas.

History is made by applying the records, as every replica does with what commits. All copies are
equal, so the others are copies of the first one's files.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from im_actors.core.formats import FORMATS
from im_actors.core.messages import Epochs
from im_actors.core.model import COPIES, Member, Record, View, ViewState
from im_actors.core.replica import SlotLog
from im_actors.core.storage_ops import StoreMeta
from im_actors.errors import DiskFailed, WrongDirectory
from im_actors.server.clock import now_ms
from im_actors.server.cluster_file import ClusterFile, replica_paths, write_cluster
from im_actors.server.views import open_view_store
from im_actors.storage.backup import (
    Manifest,
    check_file,
    disk_errors,
    existing_manifest,
    read_records,
)
from im_actors.storage.database import fsync_directory
from im_actors.storage.directory import HISTORY, DataDirectory, open_directory
from im_actors.storage.history import History

UNFINISHED = "restore-unfinished"
"""A file that is in the directory as long as a restore is."""
CONTROLLER = "controller"
BATCH_BYTES = 8 << 20
"""Payload bytes that are applied in one go."""
SPACE_FACTOR = 2.0
"""Bytes on disk of a history by those in a backup: pages, and the index. 1.5 for 20 messages of 128
bytes a record; a bit of room on top."""

Moved = Callable[[str, int, int], None]
"""(what is done, how much, of how much)."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore made, or with a dry run would make. ``ends``: slot -> its last lsn."""

    manifest: Manifest
    cluster: str
    ends: dict[int, int]
    epoch: int


def check_backup(path: Path, moved: Moved) -> Manifest:
    """The manifest of a backup of which every file is as it was written. CorruptData,
    WrongDirectory or NewerFormat say what is wrong with it."""
    manifest = existing_manifest(path)
    done = 0
    for file in manifest.in_order():
        check_file(path, file)
        done += file.bytes
        moved("checked", done, manifest.bytes)
    return manifest


def check_target(data: Path) -> None:
    """WrongDirectory unless ``data`` is new or empty."""
    if (data / UNFINISHED).exists():
        raise WrongDirectory(f"{data} holds a restore that was not finished: remove it first")
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise WrongDirectory(
            f"{data} is not empty: restore makes a new cluster and overwrites nothing. Name a new"
            " directory"
        )


def restore(path: Path, data: Path, moved: Moved, redis: str = "", dry: bool = False) -> Restored:
    """Make ``data``, which is new or empty, the directory of a cluster with what is in the backup.

    The whole backup is checked before anything is written. ``redis``: where the views are to be
    kept. Not for use inside an event loop.
    """
    check_target(data)
    manifest = check_backup(path, moved)
    _check_space(data, manifest)
    name = uuid.uuid4().hex[:16]
    epoch = max([manifest.promised, *(end.epoch for end in manifest.ends.values())]) + 1
    ends = {slot: end.lsn for slot, end in sorted(manifest.ends.items())}
    restored = Restored(manifest, name, ends, epoch)
    if dry:
        return restored
    with disk_errors(data):
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data / UNFINISHED).touch()
        fsync_directory(data)
    views = _write_replicas(path, data, restored, moved)
    identity = asyncio.run(_write_views(data, restored, views, redis))
    with disk_errors(data):
        (data / UNFINISHED).unlink()
    kind = "redis" if redis else "sqlite"
    write_cluster(
        data,
        ClusterFile(
            name,
            secrets.token_hex(32),
            manifest.slots,
            now_ms(),
            kind,
            identity,
            _form(manifest),
            _form(manifest),
        ),
    )
    return restored


def _form(manifest: Manifest) -> int:
    """The format of the new cluster: as the old one's was, as far as it is still written."""
    return max(manifest.disk_format, FORMATS.oldest)


def _check_space(data: Path, manifest: Manifest) -> None:
    there = next(parent for parent in (data, *data.absolute().parents) if parent.exists())
    state = os.statvfs(there)
    free, needed = state.f_bavail * state.f_frsize, int(COPIES * SPACE_FACTOR * manifest.bytes)
    if free < needed:
        raise DiskFailed(
            f"{there}: {free / 1e6:,.0f} MB are free, about {needed / 1e6:,.0f} MB are needed for"
            f" {COPIES} copies: make room, or name another directory"
        )


# -- replicas --------------------------------------------------------------------------------------


def _write_replicas(path: Path, data: Path, restored: Restored, moved: Moved) -> list[View]:
    """Fill the replicas' directories; the views that name them."""
    with ExitStack() as opened:
        directories: list[DataDirectory] = []
        for where in replica_paths(data, COPIES):
            directory = open_directory(
                where, restored.cluster, where.name, _form(restored.manifest)
            )
            opened.callback(directory.close)
            directories.append(directory)
        members = tuple(Member(directory.replica, directory.disk) for directory in directories)
        views = [
            View(slot, restored.epoch, ViewState.RECOVERING, "", members)
            for slot in range(restored.manifest.slots)
        ]
        epochs = _apply(directories[0], path, restored.manifest, moved)
        for number, directory in enumerate(directories, start=1):
            if number > 1:
                with disk_errors(directory.path):
                    _copy_synced(directories[0].path / HISTORY, directory.path / HISTORY)
                directory.open_history().close()
            _write_journal(directory, restored, epochs, views)
            moved("copied", number, COPIES)
    return views


def _apply(
    directory: DataDirectory, path: Path, manifest: Manifest, moved: Moved
) -> dict[int, Epochs]:
    """Fill a new history; the epochs of each slot's log."""
    epochs: dict[int, Epochs] = {}
    history = directory.open_history()
    try:
        for month in manifest.dropped:
            history.index.places.note_dropped(month)
        done = 0
        for batch in _batches(read_records(path, manifest)):
            for slot, record in batch:
                known = epochs.get(slot, ())
                if not known or known[-1][0] < record.epoch:
                    epochs[slot] = (*known, (record.epoch, record.lsn))
            _apply_batch(history, batch)
            done += len(batch)
            moved("restored", done, manifest.records)
        history.close()
    except BaseException:
        history.abandon()
        raise
    return epochs


def _batches(
    records: Iterator[tuple[int, Record]],
) -> Iterator[list[tuple[int, Record]]]:
    batch: list[tuple[int, Record]] = []
    size = 0
    for slot, record in records:
        batch.append((slot, record))
        size += len(record.payload)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _apply_batch(history: History, batch: list[tuple[int, Record]]) -> None:
    history.apply(batch, {slot: record.lsn for slot, record in batch})


def _write_journal(
    directory: DataDirectory, restored: Restored, epochs: dict[int, Epochs], views: list[View]
) -> None:
    """What each replica promises and holds: as if its views had been sealed."""
    metas = []
    for slot, lsn in restored.ends.items():
        log = SlotLog(restored.epoch, "", views[slot], epochs[slot], [[1, lsn]], lsn, lsn)
        metas.append(StoreMeta(slot, log.meta()))
    journal = directory.open_journal()
    journal.commit(metas)
    journal.close()


def _copy_synced(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700, exist_ok=True)
    for file in sorted(source.iterdir()):
        copy = target / file.name
        shutil.copyfile(file, copy)
        with copy.open("rb") as opened:
            os.fsync(opened.fileno())
    fsync_directory(target)


# -- views -----------------------------------------------------------------------------------------


async def _write_views(data: Path, restored: Restored, views: list[View], redis: str) -> str:
    """A view for each slot, which nobody owns yet; the new store's identity."""
    (data / CONTROLLER).mkdir(mode=0o700, exist_ok=True)
    store = await open_view_store(redis, data / CONTROLLER, restored.cluster)
    try:
        for view in views:
            await store.create(view)
        return store.identity
    finally:
        await store.close()
