"""Restore: what it makes of a backup, and what it does not begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from im_actors.cli.verify_offline import verify_directories
from im_actors.errors import CorruptData, DiskFailed, NotFound, SetupError, WrongDirectory
from im_actors.server import restore as r
from im_actors.server.cluster_file import open_or_create_cluster, read_cluster
from im_actors.storage.backup import BackupWriter
from im_actors.storage.directory import open_existing
from im_actors.storage.months import month_of
from tests.storage.conftest import LogBuilder, flip_byte

MONTH_MS = 31 * 24 * 3600 * 1000


def quiet(what: str, done: int, total: int) -> None:
    """Nobody looks."""


@pytest.fixture
def log() -> LogBuilder:
    """Two slots, two months, an epoch in between."""
    log = LogBuilder()
    for slot in (0, 1):
        for number in range(5):
            log.record(slot, (f"s{slot}", "a/d"), (f"t{slot}", "b/d"), body=b"old %d" % number)
    log.epoch(1)
    log.now_ms += MONTH_MS
    for slot in (0, 1):
        log.record(slot, (f"s{slot}", "a/d"), body=b"new")
    return log


@pytest.fixture
def backup(log: LogBuilder, tmp_path: Path) -> Callable[..., Path]:
    def make(*dropped: int) -> Path:
        with BackupWriter(tmp_path / "b", "c1", 3) as writer:
            for slot, records in log.logs.items():
                writer.add(slot, records, dropped)
            writer.finish(0, "", 9, dropped)
        return tmp_path / "b"

    return make


def test_three_equal_copies_of_every_slot(
    log: LogBuilder, backup: Callable[..., Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    done = r.restore(backup(), data, quiet)
    assert done.ends == {0: 6, 1: 7}
    assert done.epoch == 10
    found = verify_directories(data)
    events = sum(map(len, log.events.values()))
    assert (found["ok"], found["events"], found["records"]) == (True, events, 13)
    cluster = read_cluster(data)
    assert cluster is not None
    assert (cluster.cluster, cluster.slots) == (done.cluster, 3)
    directory = open_existing(data / "replica-3")
    history = directory.open_existing_history()
    assert history is not None
    (state,) = history.session_states(["s1"])
    assert (state.last_seq, len(history.months())) == (6, 2)
    directory.close()


def test_a_month_that_was_dropped_stays_dropped(
    log: LogBuilder, backup: Callable[..., Path], tmp_path: Path
) -> None:
    month = month_of(log.events["s0"][0].key).month
    r.restore(backup(month), tmp_path / "data", quiet)
    found = verify_directories(tmp_path / "data")
    assert (found["ok"], found["dropped"]) == (True, 20)
    directory = open_existing(tmp_path / "data" / "replica-2")
    history = directory.open_existing_history()
    assert history is not None
    assert history.index.places.dropped() == [month]
    directory.close()


def test_a_damaged_backup_is_refused_before_anything_is_written(
    backup: Callable[..., Path], tmp_path: Path
) -> None:
    path, data = backup(), tmp_path / "data"
    last = sorted(path.glob("*.records"))[-1]
    flip_byte(last, last.stat().st_size - 3)
    with pytest.raises(CorruptData, match="changed bytes"):
        r.restore(path, data, quiet)
    assert not data.exists()
    last.unlink()
    with pytest.raises(CorruptData, match="is missing"):
        r.restore(path, data, quiet)
    assert not data.exists()


def test_it_overwrites_nothing(backup: Callable[..., Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "letter").touch()
    with pytest.raises(WrongDirectory, match="is not empty"):
        r.restore(backup(), data, quiet)
    assert [path.name for path in data.iterdir()] == ["letter"]


@pytest.mark.parametrize("at", ["checked", "restored", "copied"])
def test_one_that_is_killed_leaves_nothing_that_starts(
    backup: Callable[..., Path], tmp_path: Path, at: str
) -> None:
    path, data = backup(), tmp_path / "data"

    def killed(what: str, done: int, total: int) -> None:
        if what == at:
            raise NotFound("killed")

    with pytest.raises(NotFound):
        r.restore(path, data, killed)
    if at == "checked":
        assert not data.exists()
        return
    assert read_cluster(data) is None
    with pytest.raises(SetupError, match=r"no cluster\.json"):
        open_or_create_cluster(data)
    with pytest.raises(WrongDirectory, match="not finished: remove it"):
        r.restore(path, data, quiet)


def test_there_has_to_be_room(
    backup: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(r, "SPACE_FACTOR", 1e12)
    with pytest.raises(DiskFailed, match="MB are needed for 3 copies"):
        r.restore(backup(), tmp_path / "data", quiet)
    assert not (tmp_path / "data").exists()
