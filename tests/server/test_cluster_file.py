"""cluster.json and run.json: what a directory is, and what runs from it."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from im_actors.errors import CorruptData, NewerFormat, SetupError
from im_actors.server.cluster_file import (
    RunFile,
    default_data,
    open_or_create_cluster,
    read_cluster,
    read_run,
    remove_run,
    replica_paths,
    write_run,
)

RUN = RunFile("127.0.0.1:1", "im-x", "/t", 7, "127.0.0.1", 2, "127.0.0.1", 7070, 0, "0.1.0")


def test_the_first_opening_makes_the_cluster_and_the_next_finds_it(tmp_path: Path) -> None:
    made = open_or_create_cluster(tmp_path / "new", 16)
    assert made.slots == 16
    assert len(made.secret_bytes) == 32
    assert open_or_create_cluster(tmp_path / "new") == made


def test_the_url_names_all_gateways() -> None:
    assert RUN.url == "im://127.0.0.1:7070"
    several = replace(RUN, gateway_address="10.0.0.1,10.0.0.2")
    assert several.url == "im://10.0.0.1:7070,10.0.0.2:7070"


def test_the_secret_is_for_the_owner_only(tmp_path: Path) -> None:
    open_or_create_cluster(tmp_path)
    mode = stat.S_IMODE((tmp_path / "cluster.json").stat().st_mode)
    assert mode == 0o600


def test_slots_never_change(tmp_path: Path) -> None:
    open_or_create_cluster(tmp_path, 16)
    with pytest.raises(SetupError, match="16 slots, which can never change"):
        open_or_create_cluster(tmp_path, 32)


@pytest.mark.parametrize("slots", [0, -1, 1025])
def test_a_senseless_number_of_slots_is_refused(tmp_path: Path, slots: int) -> None:
    with pytest.raises(SetupError, match="between 1 and 1024"):
        open_or_create_cluster(tmp_path, slots)


def test_replicas_without_their_cluster_file_are_not_adopted(tmp_path: Path) -> None:
    (tmp_path / "replica-1").mkdir()
    (tmp_path / "replica-1" / "identity.json").touch()
    with pytest.raises(SetupError, match=r"bring that file back"):
        open_or_create_cluster(tmp_path)


def test_disks_may_be_mounted_before_the_first_start(tmp_path: Path) -> None:
    (tmp_path / "replica-1").mkdir()
    assert open_or_create_cluster(tmp_path).slots == 64


@pytest.mark.parametrize("text", ["", "{", "[]", '{"slots": 1}', '{"format": 1, "what": 2}'])
def test_a_damaged_file_is_not_taken_for_an_absent_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    with pytest.raises(CorruptData, match="good copy"):
        read_cluster(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    open_or_create_cluster(tmp_path)
    fields = json.loads((tmp_path / "cluster.json").read_text())
    (tmp_path / "cluster.json").write_text(json.dumps({**fields, "format": 99}))
    with pytest.raises(NewerFormat, match="format 99"):
        read_cluster(tmp_path)


def test_the_run_file_comes_and_goes(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    write_run(tmp_path, RUN)
    assert read_run(tmp_path) == RUN
    assert RUN.url == "im://127.0.0.1:7070"
    remove_run(tmp_path)
    remove_run(tmp_path)
    assert read_run(tmp_path) is None


def test_fewer_than_three_replicas_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="at least 3"):
        replica_paths(tmp_path, 2)
    assert [p.name for p in replica_paths(tmp_path, 4)][-1] == "replica-4"


def test_the_default_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    monkeypatch.delenv("IM_ACTORS_DATA", raising=False)
    assert default_data() == Path("/somewhere/im_actors")
    monkeypatch.setenv("IM_ACTORS_DATA", "/else")
    assert default_data() == Path("/else")
