from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from im_actors.core.formats import FIRST_FORMAT, FORMATS, Formats
from im_actors.core.model import make_record
from im_actors.core.storage_ops import StoreRecords
from im_actors.errors import CorruptData, DiskFailed, NewerFormat, WrongDirectory
from im_actors.storage import directory as directory_module
from im_actors.storage.directory import FILES, DataDirectory, open_directory, open_existing

LATER = FORMATS.newest + 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "replica-1"


def opened(path: Path) -> DataDirectory:
    return open_directory(path, "c1", "replica-1")


def edit_identity(path: Path, **fields: object) -> None:
    file = path / "identity.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_identity_stays(path: Path) -> None:
    first = opened(path)
    assert (first.cluster, first.replica) == ("c1", "replica-1")
    assert first.created_ms > 0
    assert first.free_bytes() > 0
    first.close()
    second = opened(path)
    assert (second.disk, second.created_ms) == (first.disk, first.created_ms)
    second.close()
    assert path.stat().st_mode & 0o777 == 0o700
    assert (path / "identity.json").stat().st_mode & 0o777 == 0o600


def test_two_directories_are_two_disks(path: Path, tmp_path: Path) -> None:
    one, two = opened(path), opened(tmp_path / "other")
    assert one.disk != two.disk
    one.close()
    two.close()


@pytest.mark.parametrize(
    ("cluster", "replica", "told"),
    [("c2", "replica-1", "cluster 'c1'"), ("c1", "replica-2", "replica 'replica-1'")],
)
def test_a_stranger_is_refused(path: Path, cluster: str, replica: str, told: str) -> None:
    opened(path).close()
    with pytest.raises(WrongDirectory, match=told):
        open_directory(path, cluster, replica)
    opened(path).close()


def test_newer_format_is_refused(path: Path) -> None:
    opened(path).close()
    edit_identity(path, format=FORMATS.newest + 1, something="new")
    with pytest.raises(NewerFormat, match=f"format {FORMATS.newest + 1}.*no going back"):
        opened(path)


def test_a_directory_of_before_the_common_numbers_is_of_the_first_format(path: Path) -> None:
    opened(path).close()
    edit_identity(path, format=2)
    directory = opened(path)
    assert directory.format == FIRST_FORMAT
    directory.close()


def test_a_directory_is_raised_to_what_the_cluster_writes_and_never_goes_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number is on disk before the files are of it."""
    known = Formats(FIRST_FORMAT, LATER)
    old = FILES[FIRST_FORMAT]
    table = "CREATE TABLE later(x INTEGER)"
    migrate = {2: lambda connection: connection.execute(table)}
    journal = replace(
        old.journal, version=3, schema=(*old.journal.schema, table), migrations=migrate
    )
    monkeypatch.setitem(FILES, LATER, old._replace(journal=journal))
    first = open_directory(path, "c1", "replica-1", FIRST_FORMAT, known)
    disk = first.disk
    first.open_journal().close()
    first.close()
    raised = open_directory(path, "c1", "replica-1", LATER, known)
    assert json.loads((path / "identity.json").read_text())["format"] == LATER
    raised.open_journal().close()
    raised.close()
    again = open_directory(path, "c1", "replica-1", FIRST_FORMAT, known)
    assert (again.format, again.disk) == (LATER, disk)
    again.open_journal().close()
    again.quarantine("for the test")
    assert again.format == LATER
    again.close()
    with pytest.raises(NewerFormat, match="no going back"):
        opened(path)


def test_a_cluster_that_writes_a_later_format_is_refused(path: Path) -> None:
    with pytest.raises(NewerFormat, match=f"this cluster writes format {LATER}.*install a newer"):
        open_directory(path, "c1", "replica-1", LATER)
    assert not path.exists()


def test_a_format_that_is_no_longer_read_is_refused_and_left_alone(path: Path) -> None:
    opened(path).close()
    edit_identity(path, format=1)
    before = (path / "identity.json").read_bytes()
    with pytest.raises(WrongDirectory, match=r"format 1.*name an empty directory"):
        opened(path)
    assert (path / "identity.json").read_bytes() == before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "1"}', '{"format": 2, "cluster": "c1"}', "\x00" * 40]
)
def test_unreadable_identity_is_refused(path: Path, text: str) -> None:
    opened(path).close()
    (path / "identity.json").write_text(text)
    with pytest.raises(CorruptData, match=r"identity\.json"):
        opened(path)


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(WrongDirectory, match="not a directory"):
        opened(file)
    with pytest.raises(DiskFailed):
        opened(file / "below")


def test_files_without_identity_are_refused(path: Path) -> None:
    """A lost identity must not come back as a new, empty disk that has old promises in it."""
    opened(path).close()
    (path / "identity.json").unlink()
    (path / "journal.db").write_text("something")
    with pytest.raises(WrongDirectory, match=r"journal\.db"):
        opened(path)


def test_a_crash_before_the_identity_was_written_leaves_an_empty_directory(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "lock").write_text("")
    (path / "identity.json.tmp").write_text("{half")
    opened(path).close()


def test_in_use_by_another_process(path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from im_actors.storage.directory import open_directory\n"
        "d = open_directory(pathlib.Path(sys.argv[1]), 'c1', 'replica-1')\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"open\n"
    with pytest.raises(WrongDirectory, match=f"in use by pid {child.pid}"):
        opened(path)
    child.kill()
    child.wait()
    child.stdout.close()
    opened(path).close()


def test_open_existing_makes_nothing(path: Path) -> None:
    with pytest.raises(WrongDirectory):
        open_existing(path)
    assert not path.exists()
    opened(path).close()
    found = open_existing(path)
    assert found.replica == "replica-1"
    assert found.open_existing_journal() is None
    assert found.open_existing_history() is None
    found.close()
    assert sorted(os.listdir(path)) == ["identity.json", "lock"]


def test_lost_files_do_not_come_back_empty(path: Path) -> None:
    directory = opened(path)
    directory.open_journal().close()
    directory.open_history().close()
    directory.close()
    (path / "journal.db").unlink()
    (path / "history" / "index.db").unlink()
    again = opened(path)
    with pytest.raises(CorruptData, match=r"journal\.db is missing"):
        again.open_journal()
    with pytest.raises(CorruptData, match=r"index\.db is missing"):
        again.open_history()
    again.close()


def test_quarantine_gives_a_new_disk(path: Path) -> None:
    directory = opened(path)
    old = directory.disk
    journal, _ = directory.open_journal(), directory.open_history()
    journal.commit([StoreRecords(1, (make_record(1, 1, 1, []),), 0)])
    target = directory.quarantine("a test says so")
    assert directory.disk != old
    assert (target / "reason.txt").read_text() == "a test says so\n"
    assert json.loads((target / "identity.json").read_text())["disk"] == old
    assert (target / "journal.db").exists()
    assert (target / "history" / "index.db").exists()
    with pytest.raises(DiskFailed):
        journal.commit([])
    fresh = directory.open_journal()
    assert fresh.load() == {}
    fresh.close()
    second = directory.quarantine("again")
    assert second != target
    disk = directory.disk
    directory.close()
    again = opened(path)
    assert again.disk == disk
    again.close()


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_crash_in_the_middle_of_a_quarantine(
    path: Path, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = opened(path)
    old = directory.disk
    directory.open_journal()
    directory.open_history()
    real, done = os.rename, []

    def rename(source: Path, target: Path) -> None:
        if Path(target).parent.name.startswith("corrupt-") and Path(source).parent == path:
            if len(done) == moves:
                raise OSError(5, "the machine stops here")
            done.append(source)
        real(source, target)

    monkeypatch.setattr(directory_module.os, "rename", rename)
    if moves < 2:
        with pytest.raises(DiskFailed):
            directory.quarantine("a crash")
    else:
        directory.quarantine("no crash")
    monkeypatch.undo()
    directory.close()
    again = opened(path)
    assert again.disk != old
    assert not (path / "journal.db").exists()
    assert not (path / "history").exists()
    assert again.open_journal().load() == {}
    again.close()


def test_read_only_directory(
    mounted: Callable[..., Path], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write where chmod says no, so a read-only mount stands for the lack of rights."""
    opened(path).close()
    point = mounted("--bind", str(path))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(point)], check=True)
    with pytest.raises(DiskFailed, match="Read-only"):
        opened(point)


def test_a_directory_without_rights(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without a mount: the system call is made to fail."""
    opened(path).close()
    real = os.open

    def refuse(name: object, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied")
        return real(name, flags, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(directory_module.os, "open", refuse)
    with pytest.raises(DiskFailed, match="Permission denied"):
        opened(path)
