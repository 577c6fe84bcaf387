from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from im_actors.core.model import (
    decode_event,
    encode_event,
    epoch_start,
    make_record,
    record_events,
    record_index,
    sealed_record,
)
from im_actors.core.storage_ops import StoreRecords
from im_actors.errors import WrongDirectory
from im_actors.storage import verify
from im_actors.storage.directory import DataDirectory, open_directory
from im_actors.storage.verify import (
    ReplicaReport,
    blocks_of,
    compare,
    directory_checksums,
    scan_directory,
    scan_store,
)


class Replicas:
    """Three data directories that hold one cluster's records."""

    def __init__(self, root: Path) -> None:
        self.paths = [root / f"r{number}" for number in range(3)]

    def open(self, number: int) -> DataDirectory:
        return open_directory(self.paths[number], "c", f"r{number}")

    def store(
        self, number: int, slot: int, records: list[Any], applied: int, commit: int | None = None
    ) -> None:
        directory = self.open(number)
        journal, history = directory.open_journal(), directory.open_history()
        last = records[-1].lsn if commit is None else commit
        tail = tuple(record for record in records if record.lsn > applied - 3)
        journal.commit([StoreRecords(slot, tail, last)])
        history.apply([(slot, r) for r in records if r.lsn <= applied], {slot: applied})
        journal.close()
        history.close()
        directory.close()

    def reports(self, **named: Any) -> list[ReplicaReport]:
        return [scan_directory(path, **named) for path in self.paths]


@pytest.fixture
def replicas(tmp_path: Path) -> Replicas:
    return Replicas(tmp_path)


def fill(log: Any, records: int) -> list[Any]:
    for number in range(records):
        log.record(4, (f"s{number % 5}", "u/d"), ("s9", "v/d"), body=b"marked %06d" % number)
    return list(log.logs[4])


def test_equal_replicas(replicas: Replicas, log: Any) -> None:
    records = fill(log, 40)
    for number, applied in enumerate((40, 25, 10)):
        replicas.store(number, 4, records, applied)
    held = {4: [(1, 40)]}
    reports = replicas.reports(held=held)
    verdict = compare(reports)
    assert verdict.ok
    assert verdict.problems == []
    assert (verdict.slots, verdict.records, verdict.events) == (1, 40, 80)
    assert (verdict.divergent, verdict.corrupt, verdict.missing, verdict.uncompared) == (0, 0, 0, 0)
    assert [r.replica for r in reports] == ["r0", "r1", "r2"]


def test_report_survives_json_and_msgpack(replicas: Replicas, log: Any) -> None:
    replicas.store(0, 4, fill(log, 10), 5)
    (report,) = [scan_directory(replicas.paths[0], held={4: [(1, 12)]}, commit={4: 12})]
    plain = report.to_dict()
    assert ReplicaReport.from_dict(json.loads(json.dumps(plain))) == report
    assert ReplicaReport.from_dict(msgpack.unpackb(msgpack.packb(plain))) == report
    assert report.slots[0].missing == [(11, 12)]


def test_uncommitted_tails_are_no_divergence(replicas: Replicas, log: Any) -> None:
    records = fill(log, 20)
    deposed = [*records[:18], make_record(4, 19, 1, []), epoch_start(4, 20, 1, 1)]
    replicas.store(0, 4, records, 15, commit=20)
    replicas.store(1, 4, deposed, 15, commit=18)
    replicas.store(2, 4, records[:19], 15, commit=19)
    assert compare(replicas.reports()).ok


def test_divergence_is_counted_by_lsn(replicas: Replicas, log: Any) -> None:
    records = fill(log, 20)
    other = list(records)
    other[6] = make_record(4, 7, 1, [])
    other[19] = make_record(4, 20, 1, [])
    replicas.store(0, 4, records, 15)
    replicas.store(1, 4, records, 15)
    replicas.store(2, 4, other, 0)
    verdict = compare(replicas.reports())
    assert verdict.divergent == 2
    assert "slot 4 lsn 7 differs" in verdict.problems[0]
    assert not verdict.ok


def test_missing_is_counted_where_it_should_be_held(replicas: Replicas, log: Any) -> None:
    records = fill(log, 20)
    replicas.store(0, 4, records, 20)
    replicas.store(1, 4, records[10:], 20)
    replicas.store(2, 4, records[:12], 12)
    held = {0: {4: [(1, 20)]}, 1: {4: [(11, 20)]}, 2: {4: [(1, 20)]}}
    reports = [
        scan_directory(path, held=held[number], commit={4: 20})
        for number, path in enumerate(replicas.paths)
    ]
    verdict = compare(reports)
    assert (verdict.missing, verdict.divergent, verdict.corrupt) == (8, 0, 0)
    assert any("r2: slot 4 lacks lsn 13 to 20" in text for text in verdict.problems)


def test_corruption_is_told_once_and_not_as_missing(
    replicas: Replicas,
    log: Any,
    flip: Callable[..., None],
    find_bytes: Callable[[Path, bytes], int],
) -> None:
    records = fill(log, 30)
    for number in range(3):
        replicas.store(number, 4, records, 20)
    (month,) = (replicas.paths[1] / "history").glob("20*.db")
    flip(month, find_bytes(month, b"marked 000005"))
    journal = replicas.paths[2] / "journal.db"
    flip(journal, find_bytes(journal, b"marked 000025"))
    verdict = compare(replicas.reports(held={4: [(1, 30)]}))
    assert (verdict.corrupt, verdict.missing, verdict.divergent) == (2, 0, 0)
    assert any("slot 4 lsn 6" in text for text in verdict.problems)
    assert any("slot 4 lsn 26" in text for text in verdict.problems)


def test_unreadable_files_are_reported(replicas: Replicas, log: Any) -> None:
    replicas.store(0, 4, fill(log, 30), 20)
    path = replicas.paths[0]
    (path / "journal.db").write_bytes(b"not a database, but of some length" * 100)
    (path / "history" / "index.db").unlink()
    report = scan_directory(path, held={4: [(1, 30)]}, commit={4: 30})
    assert report.corrupt == 2
    assert report.slots[0].missing == [(1, 30)]


def test_a_directory_in_use_is_not_scanned(replicas: Replicas, tmp_path: Path) -> None:
    directory = replicas.open(0)
    with pytest.raises(WrongDirectory, match="in use"):
        scan_directory(replicas.paths[0])
    directory.close()
    with pytest.raises(WrongDirectory):
        scan_directory(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_directory_that_was_never_used(replicas: Replicas) -> None:
    replicas.open(0).close()
    assert compare([scan_directory(replicas.paths[0])]).ok


def test_live_and_offline_say_the_same(replicas: Replicas, log: Any) -> None:
    replicas.store(0, 4, fill(log, 30), 20)
    offline = scan_directory(replicas.paths[0])
    directory = replicas.open(0)
    journal, history = directory.open_journal(), directory.open_history()
    live = scan_store(journal, history, replica="r0", disk=directory.disk)
    assert live.slots == offline.slots
    assert live.problems == []
    journal.close()
    history.close()
    directory.close()


def test_blocks_end_at_multiples_and_holes() -> None:
    blocks = blocks_of(dict.fromkeys([*range(1, 2501), *range(2600, 2603)], 7))
    spans = [(b.first_lsn, b.last_lsn, bool(b.digest), len(b.checksums)) for b in blocks]
    assert spans == [
        (1, 1000, True, 0),
        (1001, 2000, True, 0),
        (2001, 2500, False, 500),
        (2600, 2602, False, 3),
    ]


def test_whole_blocks_are_compared_by_digest_and_parts_on_demand(
    replicas: Replicas, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "BLOCK_LSNS", 10)
    records = fill(log, 40)
    other = list(records)
    other[21] = make_record(4, 22, 1, [])
    replicas.store(0, 4, records, 40)
    replicas.store(1, 4, records[14:], 40)
    replicas.store(2, 4, other, 0)
    reports = replicas.reports()
    coarse = compare(reports)
    assert coarse.divergent == 1
    assert coarse.uncompared == 6
    fine = compare(reports, directory_checksums(replicas.paths))
    assert fine.divergent == 1
    assert fine.uncompared == 0
    assert any("slot 4 lsn 22 differs" in text for text in fine.problems)


# -- facts -----------------------------------------------------------------------------------------


def stateful(log: Any, records: int) -> list[Any]:
    for number in range(records):
        row = (f"k{number % 7}", number + 1, b"%d" % number)
        log.state(4, f"s{number % 3}", row, ("x", 0, b""))
    return list(log.logs[4])


def in_index(path: Path, statement: str) -> None:
    directory = open_directory(path, "c", path.name)
    history = directory.open_history()
    history.index.db.connection.execute(statement)
    history.close()
    directory.close()


def test_equal_facts(replicas: Replicas, log: Any) -> None:
    records = stateful(log, 40)
    for number, applied in enumerate((40, 25, 10)):
        replicas.store(number, 4, records, applied)
    assert compare(replicas.reports(held={4: [(1, 40)]})).ok


def test_facts_that_are_not_what_events_say_are_divergent(replicas: Replicas, log: Any) -> None:
    records = stateful(log, 40)
    for number in range(3):
        replicas.store(number, 4, records, 40)
    in_index(replicas.paths[1], "DELETE FROM facts WHERE session=1 AND key IN ('k0', 'x')")
    in_index(replicas.paths[2], "DELETE FROM facts WHERE session=2 AND key='k1'")
    verdict = compare(replicas.reports())
    assert (verdict.divergent, verdict.corrupt, verdict.missing) == (3, 0, 0)
    assert not verdict.ok
    assert any("r1: slot 4: session 's0': 2 facts are not" in text for text in verdict.problems)


def test_a_damaged_fact_is_corrupt(replicas: Replicas, log: Any) -> None:
    records = stateful(log, 40)
    for number in range(3):
        replicas.store(number, 4, records, 40)
    in_index(replicas.paths[1], "UPDATE facts SET value=x'07' WHERE session=1 AND key='k0'")
    in_index(replicas.paths[1], "UPDATE facts SET rank=77 WHERE session=2 AND key='k1'")
    verdict = compare(replicas.reports())
    assert (verdict.divergent, verdict.corrupt, verdict.missing) == (0, 2, 0)


def test_a_report_of_a_release_without_facts(replicas: Replicas, log: Any) -> None:
    replicas.store(0, 4, stateful(log, 10), 10)
    in_index(replicas.paths[0], "DELETE FROM facts")
    (report,) = [scan_directory(replicas.paths[0])]
    plain = report.to_dict()
    assert ReplicaReport.from_dict(plain).divergent == report.divergent > 0
    del plain["divergent"]
    assert ReplicaReport.from_dict(plain).divergent == 0


def test_facts_that_come_while_they_are_compared(
    replicas: Replicas, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison stops now and then, and a replica goes on: what is newer is no difference."""
    monkeypatch.setattr("im_actors.storage.scan_facts.ROWS_CHUNK", 2)
    monkeypatch.setattr("im_actors.storage.scan_facts.SESSIONS_CHUNK", 1)
    stateful(log, 30)
    directory = replicas.open(0)
    history = directory.open_history()
    history.apply(log.batch(4), {4: 30})
    found: list[Any] = []
    stops = 0
    for step in history.scan():
        if step is not None:
            found.append(step)
            continue
        stops += 1
        first = len(log.logs[4]) + 1
        stateful(log, 5)
        batch = log.batch(4, first)
        if stops % 2:
            history.apply(batch, {4: batch[-1][1].lsn})
        else:
            history.stage(batch, {4: batch[-1][1].lsn})
        assert stops < 100
    assert stops > 8
    assert [scan.problems for scan in found] == [[]]
    # And it still sees what is wrong.
    history.write()
    history.index.db.connection.execute("DELETE FROM facts WHERE session=3 AND key='k5'")
    (scan,) = [step for step in history.scan() if step is not None]
    assert scan.divergent == 1
    history.close()
    directory.close()


def test_a_state_that_cannot_be_read_is_told(replicas: Replicas, log: Any) -> None:
    records = stateful(log, 5)
    replicas.store(0, 4, records, 5)
    directory = replicas.open(0)
    journal, history = directory.open_journal(), directory.open_history()
    bad = decode_event(record_events(records[-1].payload)[0])._replace(seq=3, n=3, body=b"bad")
    bad = bad._replace(session="s0", key=bad.key + 1)
    record = make_record(4, 6, 1, [encode_event(bad)])
    # As one that a release without facts would have taken for a message.
    plain = record_index(record.payload)._replace(changes=[])
    payload = msgpack.packb(
        [[*plain[:2], [], *(field for part in plain.parts for field in part)], encode_event(bad)]
    )
    history.apply([(4, sealed_record(4, 6, 1, payload))], {4: 6})
    report = scan_store(journal, history)
    assert any("seq 3 says at lsn 6 cannot be read" in problem.text for problem in report.problems)
    journal.close()
    history.close()
    directory.close()
