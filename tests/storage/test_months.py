"""Months that are moved and dropped while history is used, and at whatever step a crash comes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from im_actors.core.dropping import dropped_event, dropped_record
from im_actors.core.fact_lists import OfKeys
from im_actors.core.facts import pack_state
from im_actors.core.model import EventKind, body_checksum, decode_event
from im_actors.core.overlays import Overlay, overlay_key
from im_actors.errors import BadRequest, MonthAway
from im_actors.storage.history import History
from im_actors.storage.month_list import MonthInfo, list_months
from im_actors.storage.scan import AWAY
from im_actors.storage.verify import compare, join_scans

MONTH_MS = 31 * 24 * 3600 * 1000
OLD, NEXT = 202311, 202312
STEPS_MAX = 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history"


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Where months are moved to: the directory above it is there."""
    (tmp_path / "slow").mkdir()
    return tmp_path / "slow" / "replica-1"


def fill(log: Any) -> None:
    """Two slots, two months, an edit in the first one."""
    for slot in (1, 2):
        for number in range(6):
            log.record(slot, (f"s{slot}", "a/x"), (f"t{slot}", "b/y"), body=b"old %d" % number)
        row = Overlay(int(EventKind.EDIT), "a", b"secret").to_bytes()
        body = pack_state("edit", [2], [(overlay_key(2), 2, row)])
        log.record(slot, (f"s{slot}", "a/x"), body=body, kind=EventKind.EDIT)
    log.now_ms += MONTH_MS
    for slot in (1, 2):
        for number in range(3):
            log.record(slot, (f"s{slot}", "a/x"), body=b"new %d" % number)


@pytest.fixture
def stored(path: Path, log: Any) -> Path:
    """A closed history with all of it."""
    fill(log)
    history = History(path)
    history.apply(log.batch(1) + log.batch(2), {1: 10, 2: 10})
    history.close()
    return path


def read(history: History, session: str) -> list[Any]:
    return [decode_event(data) for data in history.read(session, 0, 0, 100).events]


def infos(history: History) -> dict[str, MonthInfo]:
    return {info.month: info for info in list_months(history) if info is not None}


def run(work: Iterator[None]) -> None:
    for _ in work:
        pass


def expected(log: Any, session: str, dropped: bool) -> list[Any]:
    first_key_of_next = log.events["s1"][7].key
    return [
        dropped_event(event) if dropped and event.key < first_key_of_next else event
        for event in log.events[session]
    ]


def sound(history: History) -> int:
    """Nothing is wrong with it; how many events have lost their content."""
    report = join_scans(
        [], [found for found in history.scan() if found is not None], history.applied()
    )
    verdict = compare([report])
    assert verdict.ok, verdict.problems
    return verdict.dropped


def test_months_are_told(stored: Path, log: Any) -> None:
    history = History(stored)
    found = infos(history)
    assert list(found) == ["2023-11", "2023-12"]
    old = found["2023-11"]
    assert (old.events, old.records, old.moved, old.dropped) == (26, 14, False, False)
    assert old.first_key == min(e.key for e in log.events["s1"])
    assert old.last_key == max(log.events["s1"][6].key, log.events["s2"][6].key)
    assert old.directory == str(stored)
    assert old.bytes > 0
    history.close()


def test_a_moved_month_is_read_from_its_new_place(stored: Path, slow: Path, log: Any) -> None:
    history = History(stored)
    run(history.move(OLD, slow))
    for _ in range(2):
        assert read(history, "s1") == expected(log, "s1", False)
        assert sound(history) == 0
        assert not (stored / "2023-11.db").exists()
        assert (slow / "2023-11.db").exists()
        assert infos(history)["2023-11"].moved
        history.close()
        history = History(stored)
    run(history.move(OLD, stored))
    assert (stored / "2023-11.db").exists()
    assert not any(slow.iterdir())
    assert read(history, "t2") == expected(log, "t2", False)
    assert not infos(history)["2023-11"].moved
    history.close()


def test_what_cannot_be_moved_is_refused(stored: Path, tmp_path: Path) -> None:
    history = History(stored)
    with pytest.raises(BadRequest, match="no directory on this host"):
        run(history.move(OLD, tmp_path / "nowhere" / "replica-1"))
    with pytest.raises(BadRequest, match="no month 2022-01"):
        run(history.move(202201, tmp_path))
    assert history.index.places.rewriting == {}
    history.close()


def test_a_dropped_month_keeps_its_timeline(stored: Path, log: Any) -> None:
    history = History(stored)
    images = history.session_states(["s1", "t1", "s2"])
    run(history.drop_content(OLD))
    for _ in range(2):
        assert read(history, "s1") == expected(log, "s1", True)
        assert read(history, "t2") == expected(log, "t2", True)
        assert history.session_states(["s1", "t1", "s2"]) == images
        first = log.events["t1"][0]
        checksum = body_checksum(first.kind, first.body)
        assert history.find("t1", "b/y", 1) == (1, first.key, checksum)
        (fact,) = history.facts("s1", OfKeys((overlay_key(2),)))[1].facts
        assert fact.value is not None
        assert Overlay.from_bytes(fact.value) == (int(EventKind.EDIT), "a", None)
        assert sound(history) == 26
        assert infos(history)["2023-11"].dropped
        history.close()
        history = History(stored)
    assert b"old 3" not in b"".join(file.read_bytes() for file in stored.glob("2023-11*"))
    run(history.drop_content(OLD))
    history.close()


def test_what_backfill_brings_to_a_dropped_month_has_no_content(
    stored: Path, tmp_path: Path, log: Any
) -> None:
    """And what has lost it elsewhere is stored as it comes: both ways end alike."""
    whole = History(tmp_path / "whole")
    whole.apply(log.batch(1, 1, 2), {1: 10})
    run(whole.drop_content(OLD))
    whole.apply(log.batch(1, 3), {})
    told = History(tmp_path / "told")
    told.apply([(1, dropped_record(1, r)) for _, r in log.batch(1, 1, 7)], {1: 10})
    told.apply(log.batch(1, 8), {})
    for history in (whole, told):
        assert read(history, "s1") == expected(log, "s1", True)
        assert sound(history) == 13
    assert whole.records(1, 1, 10, 1 << 20) == told.records(1, 1, 10, 1 << 20)
    for history in (whole, told):
        history.close()


def test_a_month_may_be_dropped_before_there_is_any_of_it(path: Path, log: Any) -> None:
    fill(log)
    history = History(path)
    run(history.drop_content(OLD))
    history.apply(log.batch(1, 8), {1: 10})
    history.apply(log.batch(1, 1, 7), {})
    for _ in range(2):
        assert read(history, "s1") == expected(log, "s1", True)
        assert sound(history) == 13
        history.close()
        history = History(path)
    history.close()


def test_what_is_committed_late_to_a_dropped_month_is_kept(stored: Path, log: Any) -> None:
    """Somebody waits for it: its owner's clock is wrong."""
    history = History(stored)
    run(history.drop_content(NEXT))
    log.record(1, ("late", "a/x"), body=b"now")
    history.apply(log.batch(1, 11), {1: 11})
    assert [event.text for event in read(history, "late")] == ["now"]
    history.close()


@pytest.mark.parametrize("drop", [False, True])
def test_the_month_is_used_while_it_is_written_anew(
    path: Path, slow: Path, log: Any, drop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("im_actors.storage.months.ROWS_MAX", 2)
    fill(log)
    history = History(path)
    history.apply(log.batch(1) + log.batch(2, 8), {1: 10, 2: 10})
    work = history.drop_content(OLD) if drop else history.move(OLD, slow)
    for number, _ in enumerate(work):
        if number < 7:
            history.apply(log.batch(2, 7 - number, 7 - number), {})
        assert len(read(history, "s1")) == 10
    for session in ("s1", "t1", "s2", "t2"):
        assert read(history, session) == expected(log, session, drop)
    assert sound(history) == (26 if drop else 0)
    history.close()


def test_a_slot_is_deleted_while_a_month_is_written_anew(
    stored: Path, slow: Path, log: Any
) -> None:
    history = History(stored)
    work = history.move(OLD, slow)
    next(work)
    history.drop(2)
    run(work)
    assert history.month(OLD).slots() == [1]
    assert sound(history) == 0
    history.close()


def killed_at(step: int, stored: Path, start: Callable[[History, Any], Iterator[None]]) -> bool:
    """Begin the work in another process and end that at one of its steps; whether it got there."""
    child = os.fork()
    if child == 0:
        reached = 0

        def count(_: str) -> None:
            nonlocal reached
            reached += 1
            if reached == step:
                os._exit(1)

        try:
            run(start(History(stored, create=False), count))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


@pytest.mark.parametrize("what", ["move", "back", "drop"])
def test_a_kill_at_any_step_leaves_one_readable_month(
    what: str, stored: Path, slow: Path, log: Any, tmp_path: Path
) -> None:
    def start(history: History, count: Any) -> Iterator[None]:
        if what == "drop":
            return history.drop_content(OLD, count)
        return history.move(OLD, slow if what == "move" else stored, count)

    if what == "back":
        history = History(stored)
        run(history.move(OLD, slow))
        history.close()
    for place in (stored, slow):
        if place.exists():
            shutil.copytree(place, tmp_path / "safe" / place.name)
    outcomes = set()
    for step in range(1, STEPS_MAX):
        if not killed_at(step, stored, start):
            break
        history = History(stored, create=False)
        places = history.index.places
        files = {p for d in (stored, slow) if d.exists() for p in d.glob("2023-11*.db")}
        assert files == {places.path(OLD)}, f"after step {step}"
        outcomes.add(places.of(OLD))
        assert read(history, "s1") == expected(log, "s1", places.of(OLD).dropped)
        sound(history)
        run(start(history, lambda _: None))
        assert read(history, "s2") == expected(log, "s2", what == "drop")
        assert sound(history) == (26 if what == "drop" else 0)
        assert places.rewriting == {}
        history.close()
        for place in (stored, slow):
            shutil.rmtree(place, ignore_errors=True)
            if (tmp_path / "safe" / place.name).exists():
                shutil.copytree(tmp_path / "safe" / place.name, place)
    else:
        pytest.fail("it never came to its end")
    assert len(outcomes) == 2, "kills before the switch and after it"


@pytest.fixture
def away(stored: Path, slow: Path) -> Iterator[History]:
    """A history whose old month was moved to where nothing is now: ``come_back`` brings it."""
    history = History(stored)
    run(history.move(OLD, slow))
    slow.rename(slow.with_name("elsewhere"))
    yield history
    history.close()


def come_back(slow: Path) -> None:
    slow.with_name("elsewhere").rename(slow)


def test_a_month_that_is_away_is_told(away: History, slow: Path, log: Any) -> None:
    assert away.away() == [str(slow / "2023-11.db")]
    for ask in (
        lambda: away.read("s1", 0, 0, 10),
        lambda: away.find("s1", "a/x", 1),
        lambda: away.records(1, 1, 2, 100),
        lambda: away.apply(log.batch(1, 1, 1), {}),
    ):
        with pytest.raises(MonthAway, match="is not there"):
            ask()
    page = away.read("s1", -1, 0, 100)
    assert [decode_event(data).seq for data in page.events] == [8, 9, 10], "as far as it goes"
    told = infos(away)["2023-11"]
    assert told.events == 26
    assert "is not there" in told.trouble
    slots = [found for found in away.scan() if found is not None]
    report = join_scans([], slots, away.applied(), {1: [[1, 10]], 2: [[1, 10]]})
    assert [problem.kind for problem in report.problems] == [AWAY]
    assert (report.corrupt, [slot.missing for slot in report.slots]) == (0, [[], []])
    assert not compare([report]).ok
    come_back(slow)
    assert read(away, "s1") == expected(log, "s1", False)


def test_writing_goes_on_while_a_month_is_away(
    away: History, stored: Path, slow: Path, log: Any
) -> None:
    log.record(1, ("s1", "a/x"), body=b"more")
    away.apply(log.batch(1, 11), {1: 11})
    assert decode_event(away.read("s1", -1, 0, 1).events[0]).text == "more"
    away.close()
    again = History(stored)
    assert again.applied() == {1: 11, 2: 10}
    come_back(slow)
    assert read(again, "s1") == expected(log, "s1", False)
    assert sound(again) == 0
    again.close()


def test_a_slot_is_deleted_while_a_month_is_away(away: History, slow: Path, log: Any) -> None:
    """What is left of it there must not meet what comes to the slot later."""
    away.drop(2)
    come_back(slow)
    assert away.month(OLD).slots() == [1]
    away.apply(log.batch(2), {2: 10})
    assert read(away, "t2") == expected(log, "t2", False)
    assert sound(away) == 0


def test_the_content_of_a_month_that_is_away_is_dropped_later(
    away: History, stored: Path, slow: Path, log: Any
) -> None:
    with pytest.raises(MonthAway):
        run(away.drop_content(OLD))
    assert away.index.places.dropped() == [OLD], "decided"
    away.close()
    again = History(stored)
    assert again.index.places.unfinished() == [OLD]
    come_back(slow)
    run(again.drop_content(OLD))
    assert read(again, "s1") == expected(log, "s1", True)
    assert not (slow / "2023-11.db").exists()
    again.close()
