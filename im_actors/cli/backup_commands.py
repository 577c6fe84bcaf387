"""backup and restore: copies of a running cluster, and a new cluster from one."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from im_actors.cli.client_commands import AddCommand
from im_actors.cli.output import note, print_json
from im_actors.cli.progress import Progress
from im_actors.cli.target import add_data_option, data_of, running_cluster
from im_actors.errors import SetupError
from im_actors.server.cluster_file import read_cluster
from im_actors.server.settings import check_redis_url, has_password

if TYPE_CHECKING:
    from im_actors.server.restore import Restored

POSITIONS_TIMEOUT_S = 30.0
SLOTS_SHOWN = 6

ROLL_BACK = """\
A restore takes everything back to the time of the backup: what was ACKed later is gone. What
became of it on the clients:
  - a device that had an ACK for a later message of a session keeps its next messages to that
    session, and says that the server has lost some: it has to start with a new store file;
  - a device that has read further than the restored timeline says so, and shows new events when
    their numbers have passed what it knows: with a new store file it shows what there is now;
  - a message that was in the backup is known: resending it makes no second one;
  - a message that had no ACK yet is sent again by its device and taken as ever."""


def register(add: AddCommand) -> None:
    _register_backup(add)
    _register_restore(add)


def _register_backup(add: AddCommand) -> None:
    parser = add(
        "backup",
        "copy a running cluster to a directory, or what came since the last run",
        "  im-actors backup /mnt/backups/im\n"
        "  im-actors backup /mnt/backups/im --dry-run\n"
        "  im-actors restore /mnt/backups/im --data /srv/im-new\n\n"
        "The cluster goes on serving. The first run copies everything, later ones add what is\n"
        "new: files are by month and are never changed, so a copy of the directory by rsync or to\n"
        "an object store copies only new ones too. Only a month that was dropped is written anew,\n"
        "without its content. A run that is killed leaves the backup that was there before it.\n"
        "The directory is on this host; copies of it elsewhere make it safe. It holds every\n"
        "message as it is, and no secret of the cluster. Not in it: the token secret, the\n"
        "settings file, the options of up; keep those with the host's configuration. Of a cluster\n"
        "that is down, copy the data directories.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="empty, new, or the last one's")
    _add_shared(parser, "say what would be copied, and copy nothing")
    add_data_option(parser)
    parser.set_defaults(run=lambda args: asyncio.run(backup(args)))


def _register_restore(add: AddCommand) -> None:
    parser = add(
        "restore",
        "make a new cluster's data directory from a backup",
        "  im-actors restore /mnt/backups/im --dry-run\n"
        "  im-actors restore /mnt/backups/im --data /srv/im-new\n"
        "  im-actors up --data /srv/im-new\n\n"
        "--dry-run reads and checks all of the backup, as every restore does before it writes.\n\n"
        + ROLL_BACK
        + "\n\n"
        "It is a new cluster, with secrets and disks of its own: nothing of the old one can mix\n"
        "in. End the old one before clients reach the new one, or they will write to both. Token\n"
        "secret and settings are given to up as before. In a cluster of several hosts move each\n"
        "replica-N below the same data directory of the host that it belongs to before the first\n"
        "up: replica-1 to the first by name of the hosts' im_disk_ resources, and so on.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="the backup")
    add_redis_option(parser)
    _add_shared(parser, "check the backup, say what would be restored, and write nothing")
    add_data_option(parser)
    parser.set_defaults(run=restore)


def add_redis_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--redis",
        metavar="URL",
        help="keep the views in this Redis; a URL with a password in $IM_ACTORS_REDIS",
    )


def redis_of(args: argparse.Namespace) -> str:
    """Where the views are to be kept; "" for a file."""
    if args.redis and has_password(args.redis):
        raise SetupError("--redis shows its password to everybody here: say it in $IM_ACTORS_REDIS")
    url: str = args.redis or os.environ.get("IM_ACTORS_REDIS", "")
    if url:
        check_redis_url("--redis", url)
    return url


def _add_shared(parser: argparse.ArgumentParser, dry: str) -> None:
    parser.add_argument("--dry-run", action="store_true", help=dry)
    parser.add_argument("--json", action="store_true", help="one JSON object")


async def backup(args: argparse.Namespace) -> int:
    """Run one."""
    from im_actors.server.admin import links_of
    from im_actors.server.backup import take_backup

    running = running_cluster(data_of(args))
    cluster = read_cluster(running.data)
    assert cluster is not None
    begun = time.monotonic()
    async with running.admin(POSITIONS_TIMEOUT_S) as admin:
        with Progress(sys.stderr, not args.json, "records", "records") as progress:
            taken = await take_backup(
                args.directory,
                cluster,
                admin.call,
                progress.moved,
                args.dry_run,
                links=links_of(running.run),
            )
    manifest = taken.manifest
    new = [file for file in manifest.files if file.run == manifest.run and not taken.dry]
    found: dict[str, Any] = {
        "backup": str(args.directory),
        "dry_run": taken.dry,
        "cluster": manifest.cluster,
        "run": manifest.run,
        "taken_ms": taken.cut.taken_ms,
        "records_new": taken.records,
        "records": manifest.records,
        "bytes_new": taken.bytes,
        "bytes": manifest.bytes,
        "files_new": len(new),
        "files": len(manifest.files),
        "dropped_months": manifest.dropped,
        "lsns": {str(slot): lsn for slot, lsn in sorted(taken.cut.lsns.items())},
        "elapsed_s": round(time.monotonic() - begun, 3),
    }
    if args.json:
        print_json(found)
    elif taken.dry:
        print(
            f"would add {taken.records:,} records to the {manifest.records:,} in"
            f" {len(manifest.files)} files that stay as they are; {_ends(taken.cut.lsns)}"
        )
    else:
        print(
            f"run {manifest.run}: {taken.records:,} new records, {taken.bytes / 1e6:,.1f} MB in"
            f" {len(new)} new files; {manifest.records:,} records, {manifest.bytes / 1e6:,.1f} MB"
            f" in {len(manifest.files)} files together"
        )
        print(f"everything that was ACKed before {_time(taken.cut.taken_ms)} is in it")
        print(_ends(taken.cut.lsns))
    return 0


def restore(args: argparse.Namespace) -> int:
    """Restore, or with --dry-run check."""
    from im_actors.server import restore as work

    data = data_of(args).absolute()
    begun = time.monotonic()
    with _Steps(not args.json) as steps:
        done = work.restore(args.directory, data, steps.moved, redis_of(args), args.dry_run)
    found = _restored(args, data, done) | {"elapsed_s": round(time.monotonic() - begun, 3)}
    if args.json:
        print_json(found)
        return 0
    what = "would restore" if args.dry_run else "restored"
    print(
        f"{what} {done.manifest.records:,} records of {len(done.ends)} slots as cluster"
        f" {done.cluster} in {data}"
    )
    print(f"as of {_time(done.manifest.taken_ms)}, epochs from {done.epoch} on")
    print(_ends(done.ends))
    print(ROLL_BACK)
    if not args.dry_run:
        print(f"next: im-actors up --data {data}")
    return 0


def _restored(args: argparse.Namespace, data: Path, done: Restored) -> dict[str, Any]:
    return {
        "backup": str(args.directory),
        "data": str(data),
        "dry_run": args.dry_run,
        "from_cluster": done.manifest.cluster,
        "cluster": done.cluster,
        "taken_ms": done.manifest.taken_ms,
        "records": done.manifest.records,
        "dropped_months": done.manifest.dropped,
        "epoch": done.epoch,
        "lsns": {str(slot): lsn for slot, lsn in done.ends.items()},
    }


def _ends(lsns: dict[int, int]) -> str:
    """Where each slot ends; all of them are in the output of --json."""
    shown = [f"{slot}: {lsn:,}" for slot, lsn in sorted(lsns.items())[:SLOTS_SHOWN]]
    more = f", … (--json: all {len(lsns)})" if len(lsns) > SLOTS_SHOWN else ""
    return f"last lsn of each slot: {', '.join(shown)}{more}"


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")


class _Steps:
    """A bar for each part of the work, on a terminal; its end as a line in any case."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._what = ""
        self._progress: Progress | None = None

    def __enter__(self) -> _Steps:
        return self

    def moved(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self._end()
            self._what = what
            unit = {"checked": "bytes", "restored": "records", "copied": "copies"}[what]
            self._progress = Progress(sys.stderr, self._wanted, what, unit).__enter__()
        if self._progress is not None:
            self._progress.moved(done, total)
        if done == total and self._wanted:
            self._end()
            note(f"{what}: {total:,}")

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None

    def __exit__(self, *_: object) -> None:
        self._end()


__all__ = ["register"]
