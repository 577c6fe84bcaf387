"""What is journaled waits here for the history."""

from __future__ import annotations

from im_actors.core.model import Record
from im_actors.server.apply import ApplyQueue


def records(first: int, last: int) -> list[Record]:
    return [Record(lsn, 1, b"payload", 0) for lsn in range(first, last + 1)]


def queue_with(slot: int, first: int, last: int) -> ApplyQueue:
    queue = ApplyQueue()
    queue.add(slot, records(first, last))
    return queue


def lsns(batch: list[tuple[int, Record]]) -> list[int]:
    return [record.lsn for _, record in batch]


def test_only_committed_records_are_taken() -> None:
    queue = queue_with(3, 1, 5)
    assert queue.take(1000) == []
    queue.commit(3, 2)
    assert lsns(queue.take(1000)) == [1, 2]


def test_what_arrives_below_a_known_commit_point_is_ready() -> None:
    queue = ApplyQueue()
    queue.commit(3, 9)
    assert queue.take(1000) == []
    queue.add(3, records(1, 2))
    assert queue.ready
    assert lsns(queue.take(1000)) == [1, 2]


def test_a_bounded_batch_leaves_the_rest_ready() -> None:
    queue = queue_with(3, 1, 5)
    queue.commit(3, 5)
    first = queue.take(len(b"payload") * 2)
    assert lsns(first) == [1, 2]
    queue.done(first)
    assert queue.ready
    assert lsns(queue.take(1000)) == [3, 4, 5]


def test_records_stay_readable_until_they_are_done() -> None:
    queue = queue_with(3, 1, 3)
    queue.commit(3, 3)
    batch = queue.take(1000)
    assert [r.lsn for r in queue.records(3, 2, 3, 1000)] == [2, 3]
    assert queue.done(batch) == {3: 3}
    assert queue.records(3, 2, 3, 1000) == []
    assert queue.backlog() == 0


def test_what_is_taken_is_not_taken_again() -> None:
    queue = queue_with(3, 1, 5)
    queue.add(4, records(1, 2))
    queue.commit(3, 4)
    queue.commit(4, 2)
    of_slot = queue.take_slot(3, 1000)
    assert [(slot, record.lsn) for slot, record in of_slot] == [(3, n) for n in (1, 2, 3, 4)]
    assert queue.take_slot(3, 1000) == []
    rest = queue.take(1000)
    assert [(slot, record.lsn) for slot, record in rest] == [(4, 1), (4, 2)]
    assert queue.backlog() == 7
    assert [r.lsn for r in queue.records(3, 1, 5, 1000)] == [1, 2, 3, 4, 5]
    assert queue.done([*of_slot, *rest]) == {3: 4, 4: 2}
    assert queue.backlog() == 1


def test_a_read_has_no_hole_and_respects_its_size() -> None:
    queue = queue_with(3, 1, 2)
    queue.add(3, records(5, 6))
    assert [r.lsn for r in queue.records(3, 1, 6, 1000)] == [1, 2]
    assert [r.lsn for r in queue.records(3, 1, 6, 7)] == [1]
    assert queue.records(3, 3, 6, 1000) == []


def test_cut_records_are_forgotten() -> None:
    queue = queue_with(3, 1, 5)
    queue.forget(3, 3)
    queue.commit(3, 9)
    assert lsns(queue.take(1000)) == [1, 2, 3]


def test_a_deleted_slot_that_begins_anew_is_not_touched_by_an_old_batch() -> None:
    queue = queue_with(3, 1, 2)
    queue.commit(3, 2)
    batch = queue.take(1000)
    queue.forget(3, 0)
    queue.add(3, records(1, 2))
    assert queue.done(batch) == {}
    assert queue.backlog() == 2
