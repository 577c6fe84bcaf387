from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from im_actors.core.messages import DeviceImage, SessionImage
from im_actors.core.model import (
    DEVICE_WINDOW,
    Event,
    body_checksum,
    decode_event,
    encode_event,
    make_record,
)
from im_actors.errors import CorruptData, DiskFailed, InvariantBroken, NewerFormat
from im_actors.storage import history as history_module
from im_actors.storage.history import History
from im_actors.storage.index import SessionEntry, _run_rows
from im_actors.storage.months import MonthFile, month_of
from im_actors.storage.places import month_name
from im_actors.storage.runs import Run
from im_actors.storage.scan import SlotScan

MONTH_MS = 31 * 24 * 3600 * 1000
BIG = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history"


@pytest.fixture
def long_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows as long as the model's, which knows all events."""
    monkeypatch.setattr("im_actors.storage.index.RECENT_EVENTS", 1000)


def seqs(history: History, session: str, after: int, before: int, limit: int) -> list[int]:
    page = history.read(session, after, before, limit)
    return [decode_event(event).seq for event in page.events]


def image_of(log: Any, session: str) -> SessionImage:
    """What the model says of a session."""
    events: list[Event] = log.events[session]
    devices = []
    for address in sorted({event.device for event in events}):
        own = [event for event in events if event.device == address]
        recent = tuple((e.seq, body_checksum(e.kind, e.body)) for e in own[-DEVICE_WINDOW:])
        devices.append(DeviceImage(address, len(own), recent))
    return SessionImage(session, len(events), tuple(devices))


def sent(event: Event) -> tuple[int, int, int]:
    return event.seq, event.key, body_checksum(event.kind, event.body)


def scans(history: History) -> list[SlotScan]:
    return [found for found in history.scan() if found is not None]


def fill(log: Any, slot: int, records: int, months: int = 1) -> None:
    """A mixed log: four sessions, three devices, an epoch change now and then."""
    rng = random.Random(slot)
    for number in range(records):
        log.now_ms += months * MONTH_MS // records
        if number % 17 == 0:
            log.epoch(slot)
        sends = [
            (f"s{slot}-{rng.randrange(4)}", f"u{rng.randrange(3)}/phone")
            for _ in range(rng.randrange(1, 6))
        ]
        log.record(slot, *sends, body=b"%d" % number)


def test_applied_records_are_read(path: Path, log: Any) -> None:
    fill(log, 3, 60)
    history = History(path)
    history.apply(log.batch(3), {3: len(log.logs[3])})
    for opened in (history, None):
        if opened is None:
            history.close()
            opened = history = History(path, create=False)
        assert history.applied() == {3: len(log.logs[3])}
        assert history.records(3, 1, BIG, BIG) == log.logs[3]
        for session, events in log.events.items():
            page = history.read(session, 0, 0, 1000)
            assert [decode_event(event) for event in page.events] == events
            assert page.last_seq == len(events)
        names = [*log.events, "nobody"]
        states = [image_of(log, name) for name in log.events]
        assert history.session_states(names) == [*states, SessionImage("nobody", 0, ())]
        (found,) = scans(history)
        assert found.problems == []
        assert found.events == sum(map(len, log.events.values()))
        assert [(first, len(sums)) for first, sums in found.runs] == [(1, len(log.logs[3]))]
    history.close()


@pytest.mark.parametrize(
    ("after", "before", "limit", "expected"),
    [
        (0, 0, 3, [1, 2, 3]),
        (4, 0, 3, [5, 6, 7]),
        (18, 0, 10, [19, 20]),
        (20, 0, 10, []),
        (99, 0, 10, []),
        (-1, 0, 3, [18, 19, 20]),
        (-1, 0, 100, list(range(1, 21))),
        (0, 10, 3, [7, 8, 9]),
        (7, 10, 5, [8, 9]),
        (9, 10, 5, []),
        (0, 1, 5, []),
        (-1, 5, 100, [1, 2, 3, 4]),
        (0, 999, 2, [19, 20]),
        (3, 0, 0, []),
    ],
)
@pytest.mark.parametrize("months", [1, 6])
def test_pages(
    path: Path, log: Any, after: int, before: int, limit: int, expected: list[int], months: int
) -> None:
    for _ in range(20):
        log.now_ms += months * MONTH_MS // 21
        log.record(1, ("s", "u/d"))
    history = History(path)
    history.apply(log.batch(1), {1: 20})
    assert seqs(history, "s", after, before, limit) == expected
    assert history.read("s", after, before, limit).last_seq == 20
    assert history.read("other", after, before, limit) == ([], 0)
    history.close()


def test_a_page_has_a_size(path: Path, log: Any) -> None:
    for _ in range(10):
        log.record(1, ("s", "u/d"), body=bytes(1000))
    history = History(path)
    history.apply(log.batch(1), {1: 10})
    assert len(history.read("s", 0, 0, 10, bytes_max=2500).events) == 2
    assert len(history.read("s", 0, 0, 10, bytes_max=0).events) == 1
    newest = history.read("s", -1, 0, 10, bytes_max=2500).events
    assert [decode_event(event).seq for event in newest] == [9, 10]
    history.close()


def test_months_are_files_and_few_are_open(
    path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "MONTHS_OPEN_MAX", 2)
    fill(log, 1, 100, months=8)
    history = History(path)
    history.apply(log.batch(1), {1: len(log.logs[1])})
    assert len(history.months()) >= 7
    assert len(history._open) == 2
    for month in history.months():
        assert (path / month_name(month)).exists()
    assert history.records(1, 1, BIG, BIG) == log.logs[1]
    assert scans(history)[0].problems == []
    middle = len(log.logs[1]) // 2
    assert history.records(1, middle, middle + 1, BIG) == log.logs[1][middle - 1 : middle + 1]
    assert history.has(1, middle)
    assert not history.has(1, len(log.logs[1]) + 1)
    assert not history.has(2, 1)
    history.close()


def test_months_meet_at_midnight_utc() -> None:
    for year, month in ((2020, 1), (2024, 2), (2023, 12), (2050, 6)):
        from datetime import UTC, datetime

        from im_actors.core.model import make_key

        start = int(datetime(year, month, 1, tzinfo=UTC).timestamp() * 1000)
        span = month_of(make_key(start, 5, 0))
        assert span.month == year * 100 + month
        assert span.first_key <= make_key(start, 5, 0) < span.end_key
        assert month_of(span.end_key).month != span.month
        assert month_of(span.end_key - 1).month == span.month


def test_records_are_bounded(path: Path, log: Any) -> None:
    for _ in range(10):
        log.record(1, ("s", "u/d"), body=bytes(1000))
    history = History(path)
    history.apply(log.batch(1), {1: 10})
    assert [r.lsn for r in history.records(1, 4, BIG, 2500)] == [4, 5]
    assert [r.lsn for r in history.records(1, 4, BIG, 0)] == [4]
    assert [r.lsn for r in history.records(1, 4, BIG, 1)] == [4]
    assert history.records(1, 11, BIG, BIG) == []
    history.close()


@pytest.mark.usefixtures("long_windows")
def test_any_order_gives_the_same(path: Path, tmp_path: Path, log: Any) -> None:
    """Backfill: the end first, then the beginning in pieces, some of it twice."""
    fill(log, 1, 400, months=3)
    last = len(log.logs[1])
    straight = History(path)
    straight.apply(log.batch(1), {1: last})
    rng = random.Random(5)
    pieces = [(first, min(first + 19, last)) for first in range(1, last + 1, 20)]
    for round_number in range(3):
        rng.shuffle(pieces)
        other = History(tmp_path / f"other{round_number}")
        for first, end in (*pieces, *pieces[:5]):
            other.apply(log.batch(1, first, end), {1: last} if end == last else {})
        names = sorted(log.events)
        assert other.session_states(names) == straight.session_states(names)
        assert other.session_states(names) == [image_of(log, name) for name in names]
        assert other.records(1, 1, BIG, BIG) == log.logs[1]
        assert scans(other)[0].problems == []
        other.close()
    straight.close()


def test_holes_are_never_skipped(path: Path, log: Any) -> None:
    for _ in range(30):
        log.record(1, ("s", "u/d"))
    history = History(path)
    history.apply(log.batch(1, 21, 30), {1: 30})
    history.apply(log.batch(1, 1, 5), {})
    assert history.records(1, 1, BIG, BIG) == log.logs[1][:5]
    assert seqs(history, "s", 0, 0, 100) == [1, 2, 3, 4, 5]
    assert seqs(history, "s", 5, 0, 100) == []
    assert seqs(history, "s", 10, 0, 100) == []
    assert seqs(history, "s", -1, 0, 100) == list(range(21, 31))
    assert seqs(history, "s", -1, 21, 100) == []
    assert seqs(history, "s", -1, 6, 100) == [1, 2, 3, 4, 5]
    (state,) = history.session_states(["s"])
    assert state.last_seq == 30
    assert [seq for seq, _ in state.devices[0].recent] == list(range(21, 31))
    (found,) = scans(history)
    assert [(first, len(sums)) for first, sums in found.runs] == [(1, 5), (21, 10)]
    assert found.problems == []
    history.close()


def test_a_crash_between_month_and_index(
    path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The months are written before the index: what comes again must change nothing."""
    fill(log, 1, 40)
    last = len(log.logs[1])
    history = History(path)
    history.apply(log.batch(1, 1, 20), {1: 20})

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(history.index, "write", crash)
    with pytest.raises(KeyboardInterrupt):
        history.apply(log.batch(1, 21, last), {1: last})
    with pytest.raises(DiskFailed):
        history.apply([], {})
    history.abandon()
    again = History(path, create=False)
    assert again.applied() == {1: 20}
    assert scans(again)[0].problems == []
    again.apply(log.batch(1, 21, last), {1: last})
    assert again.session_states(sorted(log.events)) == [
        image_of(log, s) for s in sorted(log.events)
    ]
    assert scans(again)[0].problems == []
    again.close()


@pytest.mark.parametrize("applied", [{}, {1: 30}])
def test_a_crash_between_month_and_index_of_what_backfill_brings(
    path: Path, log: Any, applied: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that ``applied`` does not tell from the others are in a month and not in the index:
    that is no damage, and they come again."""
    for _ in range(30):
        log.record(1, ("s", "u/d"))
    history = History(path)
    history.apply(log.batch(1, 21, 30) if applied else [], applied)
    with monkeypatch.context() as patch:
        patch.setattr(history.index, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            history.apply(log.batch(1, 1, 20), {})
    history.abandon()
    again = History(path, create=False)
    assert again.records(1, 1, 20, BIG) == log.logs[1][:20]
    assert seqs(again, "s", 0, 0, 100) == []
    assert scans(again)[0].problems == []
    again.apply(log.batch(1, 1, 20), {})
    assert seqs(again, "s", 0, 0, 20) == list(range(1, 21))
    again.index.db.connection.execute("DELETE FROM runs")
    assert scans(again)[0].problems
    again.abandon()


@pytest.mark.usefixtures("long_windows")
def test_the_window_holds_the_newest_and_find_the_rest(path: Path, log: Any) -> None:
    for number in range(400):
        log.record(1, ("s", "u/d"), ("s", f"other{number % 3}/d"), body=b"%d" % number)
    history = History(path)
    history.apply(log.batch(1, 1, 200), {1: 200})
    history.apply(log.batch(1, 201, 400), {1: 400})
    (state,) = history.session_states(["s"])
    device = next(d for d in state.devices if d.device == "u/d")
    assert device.last_n == 400
    assert len(device.recent) == DEVICE_WINDOW
    by_n = {e.n: e for e in log.events["s"] if e.device == "u/d"}
    for n in (1, 2, 150, 272, 273, 399, 400):
        assert history.find("s", "u/d", n) == sent(by_n[n])
    for session, address, n in (
        ("s", "u/d", 401),
        ("s", "u/d", 0),
        ("s", "x/d", 1),
        ("t", "u/d", 1),
    ):
        assert history.find(session, address, n) is None
    history.close()


def staged_and_stored(path: Path, log: Any) -> Iterator[History]:
    """The same history: half of it in memory only, all of it, and from the disk."""
    history = History(path)
    half = len(log.logs[1]) // 2
    history.apply(log.batch(1, 1, half), {1: half})
    history.stage(log.batch(1, half + 1), {1: len(log.logs[1])})
    assert history.applied() == {1: half}
    yield history
    history.write()
    assert history.applied() == {1: len(log.logs[1])}
    yield history
    history.close()
    history = History(path, create=False)
    assert scans(history)[0].problems == []
    yield history
    history.close()


def test_what_is_staged_is_read_like_what_is_stored(path: Path, log: Any) -> None:
    fill(log, 1, 120, months=3)
    for history in staged_and_stored(path, log):
        for session, events in log.events.items():
            last = len(events)
            for after in range(-1, last + 1, 7):
                for before in range(0, last + 2, 5):
                    page = history.read(session, after, before, 9)
                    there = [e for e in events if max(after, 0) < e.seq < (before or last + 1)]
                    newest = before > 0 or after < 0
                    expected = there[-9:] if newest else there[:9]
                    assert [decode_event(event) for event in page.events] == expected
                    assert page.last_seq == last
            assert history.whole_states([session]) == [image_of(log, session)]
            for event in events[:: max(1, last // 9)]:
                assert history.find(session, event.device, event.n) == sent(event)
            assert history.find(session, "u0/phone", last + 1) is None


def test_late_records_are_written_before_they_are_read(path: Path, log: Any) -> None:
    fill(log, 1, 60)
    last = len(log.logs[1])
    history = History(path)
    history.apply(log.batch(1, 31), {1: last})
    for first in (1, 11, 21):
        history.stage(log.batch(1, first, first + 12), {})
        page = history.read("s1-0", 0, 0, 1000)
        assert [decode_event(e).seq for e in page.events] == list(range(1, len(page.events) + 1))
    assert history.whole_states(sorted(log.events)) == [
        image_of(log, name) for name in sorted(log.events)
    ]
    assert scans(history)[0].problems == []
    history.close()


def test_a_dropped_slot_is_not_staged_any_more(path: Path, log: Any) -> None:
    fill(log, 1, 30)
    fill(log, 2, 30)
    history = History(path)
    history.stage(log.batch(1) + log.batch(2), {1: len(log.logs[1]), 2: len(log.logs[2])})
    history.drop(1)
    history.write()
    assert history.applied() == {2: len(log.logs[2])}
    assert history.records(1, 1, BIG, BIG) == []
    assert history.session_states(["s1-0"]) == [SessionImage("s1-0", 0, ())]
    assert [found.problems for found in scans(history)] == [[]]
    history.close()


@pytest.mark.usefixtures("long_windows")
@pytest.mark.parametrize("fold", [1, 7, 40, 1000])
def test_counters_are_the_same_however_often_they_are_folded(
    path: Path, log: Any, fold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("im_actors.storage.index.FOLD_EVENTS", fold)
    for module in ("index", "runs"):
        monkeypatch.setattr(f"im_actors.storage.{module}.RUN_EVENTS_MAX", 8)
    fill(log, 1, 200, months=2)
    last = len(log.logs[1])
    history = History(path)
    # The end first, as when backfill brings the rest.
    history.apply(log.batch(1, 121, 160), {1: 160})
    history.apply(log.batch(1, 1, 70), {})
    history.apply(log.batch(1, 161), {1: last})
    history.apply(log.batch(1, 50, 120), {})
    for name in log.events:
        assert history.whole_states([name]) == [image_of(log, name)]
    assert scans(history)[0].problems == []
    history.close()


def test_the_window_is_of_the_newest_events(
    path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that sent long ago has its counter and no window: history is asked for its keys."""
    monkeypatch.setattr("im_actors.storage.index.RECENT_EVENTS", 20)
    monkeypatch.setattr("im_actors.storage.index.FOLD_EVENTS", 50)
    for number in range(300):
        log.record(1, ("s", "old/d" if number < 100 else "new/d"))
    history = History(path)
    for first in range(1, 301, 30):
        history.apply(log.batch(1, first, first + 29), {1: first + 29})
    whole = history.whole_states(["s"])
    assert whole is not None
    new, old = whole[0].devices
    assert (old.last_n, old.recent) == (100, ())
    assert new.last_n == 200
    assert 20 <= len(new.recent) < 100
    assert [seq for seq, _ in new.recent] == list(range(301 - len(new.recent), 301))
    assert history.find("s", "old/d", 37) == sent(log.events["s"][36])
    history.close()


def test_states_survive_eviction(path: Path, log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("im_actors.storage.index.SESSIONS_CACHED_MAX", 5)
    history = History(path)
    for turn in range(10):
        first = len(log.logs[1]) + 1
        for number in range(20):
            log.record(1, (f"s{number}", f"u{turn % 3}/d"))
        history.apply(log.batch(1, first), {1: len(log.logs[1])})
        assert len(history.index._cache) <= 5
    names = sorted(log.events)
    assert history.session_states(names) == [image_of(log, name) for name in names]
    assert scans(history)[0].problems == []
    history.close()


def test_a_damaged_record_is_not_applied(path: Path, log: Any) -> None:
    fill(log, 1, 5)
    history = History(path)
    good = log.batch(1)
    bad = [*good[:-1], (1, good[-1][1]._replace(payload=good[-1][1].payload + b"x"))]
    with pytest.raises(CorruptData, match="wrong checksum"):
        history.apply(bad, {1: 99})
    assert history.applied() == {}
    assert history.session_states(["s1-0"])[0].last_seq == 0
    history.apply(good, {1: len(good)})
    assert scans(history)[0].problems == []
    history.close()


def test_another_record_under_a_committed_lsn_is_refused(path: Path, log: Any) -> None:
    fill(log, 1, 5)
    history = History(path)
    history.apply(log.batch(1), {1: 5})
    old = decode_event(encode_event(log.events["s1-0"][0]))
    other = make_record(1, 3, 9, [encode_event(old._replace(body=b"another"))])
    with pytest.raises(InvariantBroken, match="lsn 3"):
        history.apply([(1, other)], {})
    history.abandon()


def test_drop_deletes_one_slot(path: Path, log: Any) -> None:
    fill(log, 1, 50, months=2)
    fill(log, 2, 50, months=2)
    history = History(path)
    lasts = {slot: len(log.logs[slot]) for slot in (1, 2)}
    history.apply(log.batch(1) + log.batch(2), lasts)
    history.drop(1)
    assert history.applied() == {2: lasts[2]}
    assert history.records(1, 1, BIG, BIG) == []
    assert history.session_states(["s1-0"]) == [SessionImage("s1-0", 0, ())]
    assert history.records(2, 1, BIG, BIG) == log.logs[2]
    assert [found.slot for found in scans(history)] == [2]
    history.apply(log.batch(1), {1: lasts[1]})
    assert [found.problems for found in scans(history)] == [[], []]
    history.close()


@pytest.mark.parametrize("crash_in", ["month", "finish"])
def test_a_crash_in_the_middle_of_a_drop(
    path: Path, log: Any, crash_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(log, 1, 30)
    history = History(path)
    history.apply(log.batch(1), {1: len(log.logs[1])})

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    if crash_in == "month":
        monkeypatch.setattr(MonthFile, "drop", crash)
    else:
        monkeypatch.setattr(history.index, "finish_drop", crash)
    with pytest.raises(KeyboardInterrupt):
        history.drop(1)
    history.abandon()
    monkeypatch.undo()
    again = History(path, create=False)
    assert again.applied() == {}
    assert again.records(1, 1, BIG, BIG) == []
    assert again.session_states(["s1-0"])[0].last_seq == 0
    assert again.index.dropping() == []
    again.close()


# -- damage ----------------------------------------------------------------------------------------


@pytest.fixture
def stored(path: Path, log: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A closed history with a slot of many single events, of which the first are folded."""
    monkeypatch.setattr("im_actors.storage.index.FOLD_EVENTS", 15)
    monkeypatch.setattr("im_actors.storage.index.RECENT_EVENTS", 3)
    for number in range(60):
        device = "v/d" if number < 45 else "u/d"
        log.record(1, (f"s{number % 3}", device), body=b"marked body %03d" % number)
    history = History(path)
    history.apply(log.batch(1, 1, 45), {1: 45})
    history.apply(log.batch(1, 46), {1: 60})
    history.close()
    return path


def month_path(path: Path) -> Path:
    (found,) = path.glob("20*.db")
    return found


def test_flipped_payload_is_found(
    stored: Path, flip: Callable[..., None], find_bytes: Callable[[Path, bytes], int]
) -> None:
    file = month_path(stored)
    flip(file, find_bytes(file, b"marked body 030"))
    history = History(stored)
    (found,) = scans(history)
    assert [(p.kind, p.lsn) for p in found.problems] == [("corrupt", 31)]
    assert [(first, len(sums)) for first, sums in found.runs] == [(1, 30), (32, 29)]
    with pytest.raises(CorruptData, match="lsn 31"):
        history.records(1, 1, BIG, BIG)
    with pytest.raises(CorruptData, match="lsn 31"):
        history.read("s0", 0, 0, 100)
    assert len(seqs(history, "s1", 0, 0, 100)) == 20
    history.close()


def test_flip_under_a_running_replica_is_found(
    stored: Path, flip: Callable[..., None], find_bytes: Callable[[Path, bytes], int]
) -> None:
    """SQLite's page cache still has the good page: the scan must look at the disk."""
    history = History(stored)
    assert scans(history)[0].problems == []
    file = month_path(stored)
    flip(file, find_bytes(file, b"marked body 030"))
    assert [p.lsn for p in scans(history)[0].problems] == [31]
    history.abandon()


def change_run(history: History, session: int, at: int, fields: dict[str, Any]) -> None:
    """Change the run that begins at a seq as a defect would, with a good checksum."""
    run = history.index.run_at(session, at)
    assert run is not None
    assert run.first_seq == at
    for name, value in fields.items():
        setattr(run, name, value)
    (row,) = _run_rows([_entry_with(session, run)])
    connection = history.index.db.connection
    connection.execute("DELETE FROM runs WHERE session=? AND first_seq=?", (session, at))
    connection.execute("INSERT INTO runs VALUES(?,?,?,?,?,?)", row)


def _entry_with(session: int, run: Run) -> SessionEntry:
    entry = SessionEntry(session, 1, "", 0, 0)
    entry.runs.append(run)
    return entry


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"month": 202401}, "index says"),
        ({"first_seq": 17, "last_seq": 21}, "index says"),
        ({"last_seq": 21}, "events disagree"),
        ({"parts": "another's"}, "index says"),
        ({"parts": "another's"}, "devices disagree"),
    ],
)
def test_an_index_that_is_wrong_is_found(stored: Path, fields: dict[str, Any], told: str) -> None:
    history = History(stored)
    if "parts" in fields:
        other = history.index.run_at(2, 1)
        assert other is not None
        fields = {"parts": other.parts[:10]}
    change_run(history, 1, 16, fields)
    problems = scans(history)[0].problems
    assert {p.kind for p in problems} == {"tables"}
    assert any(told in p.text for p in problems)
    history.abandon()


def test_an_index_that_leads_to_another_event_is_not_served(stored: Path) -> None:
    history = History(stored)
    other = history.index.run_at(2, 16)
    assert other is not None
    change_run(history, 1, 16, {"parts": other.parts})
    with pytest.raises(CorruptData, match="another event"):
        history.read("s0", 0, 0, 100)
    history.abandon()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sessions SET last_seq=last_seq+1 WHERE id=1",
        "UPDATE sessions SET folded_seq=folded_seq+1 WHERE id=1",
        "UPDATE sessions SET session='s0x' WHERE session='s0'",
        "UPDATE sessions SET folded_seq='x' WHERE id=2",
        "UPDATE devices SET last_n=last_n-1 WHERE session=1",
        "UPDATE devices SET last_n='text' WHERE session=1",
        "UPDATE devices SET device=CAST(x'ff' AS TEXT) WHERE session=1",
        "UPDATE runs SET month=month+1 WHERE session=1",
        "UPDATE runs SET last_seq=last_seq+1 WHERE session=2",
        "UPDATE runs SET first_seq=first_seq+1 WHERE session=2",
        "UPDATE runs SET parts=zeroblob(12) WHERE session=3",
        "UPDATE runs SET parts='text' WHERE session=3",
        "UPDATE runs SET session=NULL WHERE session=3",
    ],
)
def test_changed_rows_are_found_and_not_served(stored: Path, statement: str) -> None:
    history = History(stored)
    try:
        history.index.db.connection.execute(statement)
    except sqlite3.IntegrityError:
        return  # A key cannot be changed to this.
    assert any(p.kind in ("corrupt", "tables") for p in scans(history)[0].problems)
    with pytest.raises(CorruptData):
        history.session_states(["s0", "s1", "s2", "s0x"])
    history.abandon()


@pytest.mark.parametrize("first_seq", [1, 16])
def test_a_lost_run_is_a_hole_and_no_shorter_session(stored: Path, first_seq: int) -> None:
    history = History(stored)
    connection = history.index.db.connection
    connection.execute("DELETE FROM runs WHERE session=1 AND first_seq=?", (first_seq,))
    assert history.read("s0", -1, 0, 100).last_seq == 20
    assert seqs(history, "s0", 0 if first_seq == 1 else -1, 0, 100) == []
    # The state is whole without the first one: its devices are folded.
    assert (history.whole_states(["s0"]) is None) == (first_seq == 16)
    assert scans(history)[0].problems
    history.abandon()


def test_a_lost_device_is_no_device_that_never_sent(stored: Path) -> None:
    history = History(stored)
    assert history.whole_states(["s0", "s1"]) == history.session_states(["s0", "s1"])
    history.index.db.connection.execute("DELETE FROM devices WHERE session=1")
    assert history.whole_states(["s0"]) is None
    assert history.whole_states(["s1", "nobody's"]) is not None
    history.abandon()


@pytest.mark.parametrize(("name", "identity"), [("s1", 2), ("s2", 3)])
def test_a_name_that_changed_in_the_index_is_no_new_session(
    stored: Path,
    name: str,
    identity: int,
    flip: Callable[..., None],
    find_bytes: Callable[[Path, bytes], int],
) -> None:
    """The row is intact and cannot be found; taken for absent, its seqs would be given again."""
    states = stored / "index.db"
    # In the index the id follows the name; in the table it is the last seq, 20.
    flip(states, find_bytes(states, name.encode() + bytes([identity])), 0x02)
    history = History(stored)
    with pytest.raises(CorruptData, match="index"):
        history.session_states([name])
    with pytest.raises(CorruptData, match="index"):
        history.whole_states(["nobody's", name])
    history.abandon()


def test_many_are_known_or_absent_in_one_step_like_one_by_one(stored: Path, log: Any) -> None:
    """Stored, staged, and such that lie before, between and behind them, with every odd letter."""
    history = History(stored)
    strange = ["", "s", "s00", "s1 ", 's1"', "s1'", "s\u0031", "s1\x7f", "𝄞", "zz"]
    log.record(1, *((f"new {n}", "v/d") for n in range(3)))
    history.stage(log.batch(1, 61), {1: 61})
    names = sorted({*strange, *(f"s{n}" for n in range(4)), *(f"new {n}" for n in range(4))} - {""})
    assert history.whole_states(names) == history.session_states(names)
    known = [image.session for image in history.session_states(names) if image.last_seq]
    assert set(names) - history.index.absent(names) == set(known) >= {"s0", "new 0", "new 2"}
    history.abandon()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM devices WHERE session=1",
        "DELETE FROM sessions WHERE id=2",
        "DELETE FROM runs WHERE session=1",
        "DELETE FROM runs WHERE session=3 AND first_seq=16",
        "INSERT INTO devices SELECT session, 'x/y', last_n, guard FROM devices LIMIT 1",
    ],
)
def test_lost_rows_are_found(stored: Path, statement: str) -> None:
    history = History(stored)
    history.index.db.connection.execute(statement)
    assert scans(history)[0].problems
    history.abandon()


def test_wrong_logs_are_told(path: Path, log: Any) -> None:
    """What an owner must never write, with good checksums: the order of the log is checked too."""
    good = [log.record(1, ("s", "u/d")) for _ in range(4)]
    event = log.events["s"][-1]
    records = [
        *good,
        make_record(1, 5, 1, [encode_event(event._replace(seq=7, key=event.key + 1, n=5))]),
        make_record(1, 6, 1, [encode_event(event._replace(seq=8, key=event.key + 2, n=5))]),
        make_record(1, 7, 0, [encode_event(event._replace(seq=9, key=event.key, n=6))]),
    ]
    history = History(path)
    history.apply([(1, record) for record in records], {1: 7})
    texts = [p.text for p in scans(history)[0].problems if p.kind == "order"]
    for told in ("seq 7 follows 4", "duplicate key", "epoch 0 follows 1", "key"):
        assert any(told in text for text in texts), told
    history.close()


def test_missing_month_is_found_at_the_opening(stored: Path) -> None:
    month_path(stored).unlink()
    with pytest.raises(CorruptData, match="missing"):
        History(stored)


def test_damaged_applied_is_found_at_the_opening(stored: Path) -> None:
    history = History(stored)
    history.index.db.connection.execute("UPDATE applied SET lsn=lsn+64")
    history.abandon()
    with pytest.raises(CorruptData, match="applied"):
        History(stored)


def test_flip_in_a_wal_is_found(
    path: Path, log: Any, tmp_path: Path, flip: Callable[..., None]
) -> None:
    history = History(path)
    for _ in range(20):
        record = log.record(1, ("s", "u/d"))
        history.apply([(1, record)], {1: record.lsn})
    for name in ("index.db-wal", month_path(path).name + "-wal"):
        copy = tmp_path / f"copy-{name}"
        copy.mkdir()
        for file in path.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        flip(copy / name, (copy / name).stat().st_size // 2)
        with pytest.raises(CorruptData, match="damaged"):
            open_all(copy)
    history.close()


def open_all(path: Path) -> None:
    history = History(path)
    history.month(history.months()[0])


def test_newer_format_is_refused(stored: Path) -> None:
    history = History(stored)
    history.index.db.connection.execute("PRAGMA user_version=7")
    history.close()
    with pytest.raises(NewerFormat):
        History(stored)


def test_full_disk_loses_nothing_applied(mounted: Callable[..., Path], log: Any) -> None:
    small = mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs")
    history = History(small / "history")

    def write() -> None:
        for _ in range(5000):
            record = log.record(1, ("s", "u/d"), body=bytes(8000))
            history.apply([(1, record)], {1: record.lsn})

    with pytest.raises(DiskFailed, match="space"):
        write()
    applied = history.applied()[1]
    assert applied >= 3
    with pytest.raises(DiskFailed):
        history.apply([], {})
    history.abandon()
    copy = small.parent / "copy"
    copy.mkdir()
    for file in (small / "history").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    again = History(copy, create=False)
    assert again.applied() == {1: applied}
    assert again.records(1, 1, applied, BIG) == log.logs[1][:applied]
    assert scans(again)[0].problems == []
    again.close()
