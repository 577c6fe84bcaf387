"""Compares the replicas of a cluster that is down.

What a replica knew to be committed when it stopped may be a little less than what was: the owner
tells it with the next record. So a record that three replicas hold alike counts as committed here;
that is the rule by which it would have been ACKed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from im_actors.core.model import COPIES
from im_actors.core.replica import SlotLog, drop_unfinished, log_from_disk
from im_actors.errors import CorruptData
from im_actors.storage.directory import DataDirectory, open_existing
from im_actors.storage.verify import compare, directory_checksums, scan_directory

COUNTS = (
    *("slots", "records", "events", "divergent", "corrupt", "missing", "uncompared"),
    "dropped",
)


def verify_directories(data: Path) -> dict[str, Any]:
    """The verdict, as the running cluster would give it. WrongDirectory when a replica runs."""
    paths = sorted(path for path in data.glob("replica-*") if path.is_dir())
    logs = [_logs(path) for path in paths]
    commit = _committed(logs)
    reports = [
        scan_directory(path, {slot: log.held for slot, log in found.items()}, commit)
        for path, found in zip(paths, logs, strict=True)
    ]
    verdict = compare(reports, directory_checksums(paths))
    counts = {name: getattr(verdict, name) for name in COUNTS}
    return counts | {"problems": verdict.problems, "ok": verdict.ok}


def _logs(path: Path) -> dict[int, SlotLog]:
    """What a replica says that it holds; nothing when it is damaged, which the scan will tell."""
    directory = open_existing(path)
    try:
        return read_logs(directory)
    except CorruptData:
        return {}
    finally:
        directory.close()


def read_logs(directory: DataDirectory) -> dict[int, SlotLog]:
    """What an open directory holds of each slot; CorruptData when it is damaged."""
    journal = directory.open_existing_journal()
    if journal is None:
        return {}
    history = directory.open_existing_history()
    try:
        applied = history.applied() if history is not None else {}

        def in_history(slot: int, lsn: int) -> bool:
            return history is not None and history.has(slot, lsn)

        return {
            slot: log_from_disk(
                *(slot, image.meta, image.records, applied.get(slot, 0)),
                partial(in_history, slot),
            )
            for slot, image in journal.load().items()
            if not drop_unfinished(image.meta)
        }
    finally:
        journal.close()
        if history is not None:
            history.close()


def _committed(replicas: Iterable[dict[int, SlotLog]]) -> dict[int, int]:
    """The commit point of each slot."""
    slots: dict[int, list[SlotLog]] = {}
    for logs in replicas:
        for slot, log in logs.items():
            slots.setdefault(slot, []).append(log)
    return {slot: _commit_point(logs) for slot, logs in slots.items()}


def _commit_point(logs: list[SlotLog]) -> int:
    lsn = max(log.commit_lsn for log in logs)
    while True:
        copies = [log.checksums[lsn + 1] for log in logs if lsn + 1 in log.checksums]
        if not any(copies.count(checksum) >= COPIES for checksum in copies):
            return lsn
        lsn += 1
