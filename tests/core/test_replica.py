"""One replica: every message on time, late, twice and wrong, and coming back from its disk."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from im_actors.core import replica as rep
from im_actors.core.messages import (
    Append,
    Appended,
    Committed,
    Drop,
    Dropped,
    EventFound,
    FactsLoaded,
    Fetch,
    Fetched,
    FindEvent,
    FindKey,
    KeyFound,
    LoadFacts,
    LoadSessions,
    Need,
    Prepare,
    Prepared,
    Refused,
    Seal,
    Sealed,
    SessionsLoaded,
)
from im_actors.core.model import (
    Event,
    Member,
    Record,
    View,
    ViewState,
    encode_event,
    epoch_start,
    make_record,
)
from im_actors.core.storage_ops import CutRecords, DropSlot, StoreMeta, StoreRecords
from im_actors.errors import CorruptData, InvariantBroken
from tests.core.bench import SLOT, START_MS, BenchReplica
from tests.sim.disks import Disk, Head

OTHERS = (Member("r2", "r2-disk"), Member("r3", "r3-disk"), Member("r4", "r4-disk"))


def view(epoch: int, owner: str = "shard.1", members: tuple[Member, ...] = OTHERS) -> View:
    return View(SLOT, epoch, ViewState.ACTIVE, owner, members)


def record(lsn: int, epoch: int = 1, body: bytes = b"") -> Record:
    """A record with one event, whose seq is its lsn; lsn 1 is an EpochStart."""
    if lsn == 1:
        return epoch_start(SLOT, 1, epoch, 1)
    event = Event("s", lsn - 1, lsn, 1, "a/1", lsn - 1, body)
    return make_record(SLOT, lsn, epoch, [encode_event(event)])


def seal(epoch: int, owner: str = "shard.1") -> Seal:
    return Seal(SLOT, epoch, view(epoch, owner))


def append(
    prev: int, count: int, epoch: int = 1, prev_epoch: int | None = None, commit: int = 0
) -> Append:
    before = (epoch if prev else 0) if prev_epoch is None else prev_epoch
    records = tuple(record(lsn, epoch) for lsn in range(prev + 1, prev + count + 1))
    return Append(SLOT, epoch, prev, before, commit, records)


def fresh(promised: int = 1) -> BenchReplica:
    there = BenchReplica("r1", "h1")
    if promised:
        there.ask(seal(promised))
    return there


def holding(last_lsn: int, commit: int = 0, epoch: int = 1) -> BenchReplica:
    """A replica with records 1 .. last_lsn of one epoch."""
    there = fresh(epoch)
    there.ask(Prepare(SLOT, epoch, 0, 1, ()))
    there.ask(append(0, last_lsn, epoch, commit=commit))
    return there


def with_hole(keep: int = 5, start: int = 9, last: int = 12) -> BenchReplica:
    """A former member that came back as a spare: 1 .. keep and start .. last, all committed."""
    there = holding(keep, commit=keep)
    there.apply()
    there.ask(seal(3))
    there.ask(Prepare(SLOT, 3, keep, start, ((1, 1),)))
    records = tuple(record(lsn, 3) for lsn in range(start, last + 1))
    there.ask(Append(SLOT, 3, start - 1, 1, last, records))
    return there


def stored(there: BenchReplica) -> list[Any]:
    return [effect.op for effect in there.effects if isinstance(effect, rep.Store)]


def alarms(there: BenchReplica) -> list[str]:
    return [effect.text for effect in there.effects if isinstance(effect, rep.Alarm)]


def one(answers: list[Any]) -> Any:
    (answer,) = answers
    return answer


# -- seal --------------------------------------------------------------------------------------


def test_a_seal_stores_the_promise_and_then_measures() -> None:
    there = holding(4, commit=2)
    answer = one(there.ask(seal(5)))
    assert answer == Sealed(SLOT, 5, 4, ((1, 1),), 2, 1, 0, True)
    assert [type(op) for op in stored(there)] == [StoreMeta]
    # The answer comes after the write in the list: it leaves only when the promise is on disk.
    assert isinstance(there.effects[-1], rep.Send)


def test_a_promise_is_kept_for_a_slot_never_seen() -> None:
    there = fresh(0)
    assert one(there.ask(seal(5))).last_lsn == 0
    there.restart()
    assert one(there.ask(append(0, 1, 4))) == Refused(SLOT, 4, 5, "a newer epoch is promised")


def test_the_same_seal_again_is_answered_again_and_writes_nothing() -> None:
    there = holding(4)
    first = there.ask(seal(5))
    assert there.ask(seal(5)) == first
    assert stored(there) == []


@pytest.mark.parametrize(
    ("epoch", "owner", "reason"),
    [(4, "shard.1", "a newer epoch is promised"), (5, "shard.2", "another owner has this epoch")],
)
def test_a_seal_below_the_promise_or_of_another_owner_is_refused(
    epoch: int, owner: str, reason: str
) -> None:
    there = fresh(5)
    assert one(there.ask(seal(epoch, owner))) == Refused(SLOT, epoch, 5, reason)
    assert there.log.owner == "shard.1"


# -- append ------------------------------------------------------------------------------------


def test_an_append_is_stored_and_then_answered_with_the_durable_lsn() -> None:
    there = holding(3)
    answer = one(there.ask(append(3, 2, commit=1)))
    assert answer == Appended(SLOT, 1, 5, 1, 0, True)
    assert [op.records for op in stored(there)] == [(record(4), record(5))]
    sends = [i for i, effect in enumerate(there.effects) if isinstance(effect, rep.Send)]
    stores = [i for i, effect in enumerate(there.effects) if isinstance(effect, rep.Store)]
    assert max(stores) < min(sends)


def test_an_append_without_records_tells_the_commit_point() -> None:
    there = holding(3)
    assert one(there.ask(append(3, 0, commit=3))).commit_lsn == 3
    assert stored(there) == []
    assert rep.Commit(SLOT, 3) in there.effects


def test_a_commit_point_told_alone_is_believed_and_not_answered() -> None:
    there = holding(4, commit=1)
    assert there.ask(Committed(SLOT, 1, 3)) == []
    assert there.log.commit_lsn == 3
    assert there.effects == [rep.Commit(SLOT, 3)]


@pytest.mark.parametrize(
    "told",
    [
        Committed(SLOT, 0, 3),
        Committed(SLOT, 2, 3),
        Committed(SLOT, 1, 5),
        Committed(SLOT + 1, 1, 3),
    ],
)
def test_a_commit_point_of_another_epoch_log_or_slot_changes_nothing(told: Committed) -> None:
    there = holding(4, commit=1)
    assert there.ask(told) == []
    assert there.log.commit_lsn == 1


def test_a_commit_point_before_the_first_record_of_its_epoch_is_not_believed() -> None:
    there = holding(4, commit=1)
    there.ask(seal(2))
    assert there.ask(Committed(SLOT, 2, 4)) == []
    assert there.log.commit_lsn == 1


def test_the_commit_point_is_believed_only_where_the_logs_match() -> None:
    # What lies above in this log may be a deposed owner's.
    there = holding(5)
    assert one(there.ask(append(1, 2, commit=9))).commit_lsn == 3


def test_a_commit_point_that_comes_late_changes_nothing() -> None:
    there = holding(5, commit=4)
    assert one(there.ask(append(1, 1, commit=1))).commit_lsn == 4


def test_an_append_of_another_epoch_is_refused() -> None:
    there = holding(3)
    there.ask(seal(5))
    older, newer = one(there.ask(append(3, 1, 1))), one(there.ask(append(3, 1, 6, prev_epoch=1)))
    assert older == Refused(SLOT, 1, 5, "a newer epoch is promised")
    assert newer == Refused(SLOT, 6, 5, "seal first")
    assert there.log.last_lsn == 3


def test_an_append_that_does_not_join_asks_for_what_lacks() -> None:
    there = holding(3)
    assert one(there.ask(append(5, 1))) == Need(SLOT, 1, 4)
    assert one(with_hole().ask(append(6, 1, 3))) == Need(SLOT, 3, 13)


def test_an_append_after_another_record_is_an_alarm() -> None:
    there = holding(3)
    answer = one(there.ask(append(3, 1, 1, prev_epoch=7)))
    assert isinstance(answer, Refused)
    assert alarms(there)
    assert there.log.last_lsn == 3


def test_an_equal_record_again_is_fine() -> None:
    there = holding(3)
    first = there.ask(append(3, 2))
    assert there.ask(append(3, 2)) == first
    assert stored(there) == []


def test_an_append_that_overlaps_adds_what_is_new() -> None:
    there = holding(3)
    assert one(there.ask(append(1, 4))).durable_lsn == 5
    assert [op.records for op in stored(there)] == [(record(4), record(5))]


def test_another_record_under_the_same_number_is_an_alarm() -> None:
    there = holding(3)
    other = Append(SLOT, 1, 2, 1, 0, (record(3, body=b"other"),))
    assert isinstance(one(there.ask(other)), Refused)
    assert "two contents" in alarms(there)[0]


def test_a_damaged_or_misplaced_record_is_an_alarm() -> None:
    there = holding(3)
    damaged = record(4)._replace(payload=b"x")
    later = record(5)._replace(payload=b"x")
    for bad in (
        (record(4, 2),),
        (damaged,),
        (record(5),),
        (record(4), record(6)),
        (record(4), later),
    ):
        assert isinstance(one(there.ask(Append(SLOT, 1, 3, 1, 0, bad))), Refused)
        assert alarms(there)
    assert there.log.last_lsn == 3


def test_an_epoch_that_decreases_ends_the_process() -> None:
    there = holding(3, epoch=4)
    with pytest.raises(InvariantBroken, match="I4"):
        there.ask(Append(SLOT, 4, 3, 4, 0, (record(4, 2),)))


# -- prepare -----------------------------------------------------------------------------------


def test_prepare_cuts_the_tail_in_the_same_write_as_the_history() -> None:
    there = holding(6, commit=3)
    there.ask(seal(2))
    assert one(there.ask(Prepare(SLOT, 2, 4, 5, ((1, 1),)))) == Prepared(SLOT, 2, 4)
    assert [type(op) for op in stored(there)] == [CutRecords, StoreMeta]
    assert rep.Forget(SLOT, 4) in there.effects
    assert sorted(there.disk.journal[SLOT]) == [1, 2, 3, 4]


def test_prepare_never_cuts_below_the_commit_point() -> None:
    there = holding(6, commit=5)
    there.ask(seal(2))
    assert one(there.ask(Prepare(SLOT, 2, 4, 5, ((1, 1),)))) == Prepared(SLOT, 2, 6)
    assert there.log.last_lsn == 6


def test_a_replica_that_holds_a_record_of_this_epoch_refuses_to_be_cut() -> None:
    there = holding(4)
    there.ask(seal(2))
    request = Prepare(SLOT, 2, 3, 4, ((1, 1),))
    there.ask(request)
    there.ask(Append(SLOT, 2, 3, 1, 0, (record(4, 2), record(5, 2))))
    # It is answered as the first copy was, so that a repeated message does not end the epoch.
    assert one(there.ask(request)) == Prepared(SLOT, 2, 5)
    assert there.log.last_lsn == 5


def test_prepare_of_another_epoch_is_refused() -> None:
    there = holding(4)
    there.ask(seal(5))
    for epoch in (4, 6):
        assert isinstance(one(there.ask(Prepare(SLOT, epoch, 1, 2, ((1, 1),)))), Refused)
    assert there.log.last_lsn == 4


def test_a_spare_goes_on_behind_a_hole_and_keeps_what_it_had() -> None:
    there = with_hole(keep=5, start=9, last=12)
    assert there.log.held == [[1, 5], [9, 12]]
    assert (there.log.from_lsn, there.log.last_lsn, there.log.complete) == (9, 12, False)
    assert there.log.epochs == ((1, 1), (3, 9))
    assert set(there.disk.history[SLOT]) == {1, 2, 3, 4, 5}


def test_the_same_prepare_again_makes_no_second_hole() -> None:
    there = holding(5, commit=5)
    there.ask(seal(3))
    request = Prepare(SLOT, 3, 5, 9, ((1, 1),))
    first = there.ask(request)
    assert there.ask(request) == first
    assert there.log.held == [[1, 5], [9, 8]]


def test_a_second_absence_makes_a_second_hole() -> None:
    there = with_hole(keep=5, start=9, last=12)
    there.ask(seal(6))
    there.ask(Prepare(SLOT, 6, 12, 20, ((1, 1), (3, 9))))
    assert there.log.held == [[1, 5], [9, 12], [20, 19]]


# -- applying ----------------------------------------------------------------------------------


def test_applying_above_the_commit_point_ends_the_process() -> None:
    there = holding(5, commit=3)
    with pytest.raises(InvariantBroken, match="above commit"):
        there.machine.handle(rep.Applied(SLOT, 4), START_MS)


def test_checksums_are_remembered_only_until_history_has_the_record() -> None:
    there = holding(5, commit=3)
    there.apply()
    assert sorted(there.log.checksums) == [4, 5]
    assert there.log.applied_lsn == 3


# -- drop --------------------------------------------------------------------------------------


def dropped(there: BenchReplica, epoch: int) -> list[Any]:
    return there.ask(Drop(SLOT, epoch, view(epoch)))


def test_drop_deletes_everything_but_the_promise() -> None:
    there = holding(5, commit=5)
    there.apply(3)
    assert Dropped(SLOT, 4) in dropped(there, 4)
    assert there.disk.journal[SLOT] == {}
    assert SLOT not in there.disk.history
    there.restart()
    assert (there.log.promised, there.log.last_lsn, there.log.epochs) == (4, 0, ())
    assert isinstance(one(there.ask(append(0, 1, 3))), Refused)


def test_drop_is_refused_below_the_promise() -> None:
    there = holding(5)
    there.ask(seal(6))
    assert one(dropped(there, 5)) == Refused(
        SLOT, 5, 6, "a newer epoch is promised, or this is a member"
    )
    assert there.log.last_lsn == 5


def test_a_member_of_the_view_refuses_to_be_dropped() -> None:
    there = holding(5)
    members = (there.member, *OTHERS[:2])
    answer = one(there.ask(Drop(SLOT, 4, view(4, members=members))))
    assert isinstance(answer, Refused)
    assert there.log.last_lsn == 5


def test_dropping_nothing_is_answered() -> None:
    assert one(dropped(fresh(0), 4)) == Dropped(SLOT, 4)
    there = holding(2)
    dropped(there, 4)
    assert one(dropped(there, 4)) == Dropped(SLOT, 4)


def test_a_dropped_slot_is_unknown_and_not_empty() -> None:
    there = holding(5, commit=5)
    there.apply()
    assert there.log.answers_reads
    dropped(there, 4)
    assert not there.log.answers_reads
    assert one(there.ask(LoadSessions(SLOT, 4, 1, 0, ("s",)))).ready is False
    assert one(there.ask(FindKey(SLOT, 4, 2, 0, "s", "a/1", 1))).ready is False
    assert one(there.ask(LoadFacts(SLOT, 4, 3, 0, "s", ("k",)))).ready is False
    assert one(there.ask(FindEvent(SLOT, 4, 4, 0, "s", 1))).ready is False
    there.restart()
    assert not there.log.answers_reads


def test_until_the_old_data_is_gone_nothing_new_begins() -> None:
    there = holding(5, commit=5)
    effects = there.machine.handle(rep.Asked(there, Drop(SLOT, 4, view(4))), START_MS)
    assert rep.DropHistory(SLOT) in effects
    assert one(there.ask(seal(5))).last_lsn == 0
    assert isinstance(one(there.ask(Prepare(SLOT, 5, 0, 9, ((1, 1),)))), Refused)
    assert dropped(there, 5) == []  # A second deletion could hit what comes after the first.
    # What was being applied when the deletion began went with it.
    assert there.machine.handle(rep.Applied(SLOT, 5), START_MS) == []
    there.answers = []
    there.run(there.machine.handle(rep.HistoryDropped(SLOT), START_MS))
    assert there.answers == [Dropped(SLOT, 5)]
    assert isinstance(one(there.ask(Prepare(SLOT, 5, 0, 9, ((1, 1),)))), Prepared)


def test_a_dropped_replica_can_come_back_as_a_spare() -> None:
    there = holding(5, commit=5)
    there.apply()
    dropped(there, 4)
    there.ask(seal(6))
    there.ask(Prepare(SLOT, 6, 0, 9, ((1, 1),)))
    there.ask(Append(SLOT, 6, 8, 1, 8, (record(9, 6),)))
    assert there.log.held == [[1, 0], [9, 9]]
    there.restart()
    assert there.log.held == [[1, 0], [9, 9]]


def test_a_deletion_that_a_crash_cut_short_is_seen_at_the_start() -> None:
    there = holding(5, commit=5)
    there.apply()
    assert not rep.drop_unfinished(there.disk.meta[SLOT])
    for effect in there.machine.handle(rep.Asked(there, Drop(SLOT, 4, view(4))), START_MS):
        if isinstance(effect, rep.Store):
            there.disk.write(effect.op)
    assert there.disk.history[SLOT]
    assert rep.drop_unfinished(there.disk.meta[SLOT])
    assert rep.drop_unfinished(None)


# -- reading -----------------------------------------------------------------------------------


def fetch(first: int, last: int, epoch: int = 1, committed: bool = True) -> Fetch:
    return Fetch(SLOT, epoch, first, last, 1_000_000, committed)


def fetched(there: BenchReplica, request: Fetch) -> list[int]:
    answer = one(there.ask(request))
    assert isinstance(answer, Fetched)
    return [r.lsn for r in answer.records]


def test_who_knows_what_is_committed_reads_it_also_where_that_is_not_known() -> None:
    there = holding(6, commit=4)
    assert fetched(there, fetch(2, 5, epoch=99)) == [2, 3, 4, 5]
    assert fetched(there, fetch(7, 9)) == []


def test_only_the_owner_reads_the_tail_that_nobody_knows_to_be_committed() -> None:
    there = holding(6, commit=4)
    assert fetched(there, fetch(2, 6, committed=False)) == [2, 3, 4, 5, 6]
    there.ask(seal(2, "shard.2"))
    assert isinstance(one(there.ask(fetch(2, 6, committed=False))), Refused)


def test_a_read_ends_at_a_hole() -> None:
    there = with_hole(keep=5, start=9, last=12)
    assert fetched(there, fetch(3, 12)) == [3, 4, 5]
    assert fetched(there, fetch(6, 12)) == []
    assert fetched(there, fetch(9, 12)) == [9, 10, 11, 12]


def test_a_slot_never_seen_has_no_records() -> None:
    assert fetched(fresh(0), fetch(1, 5)) == []


@pytest.mark.parametrize(
    ("request_type", "answer_type", "rest"),
    [
        (LoadSessions, SessionsLoaded, (("s",),)),
        (FindKey, KeyFound, ("s", "a/1", 2)),
        (LoadFacts, FactsLoaded, ("s", ("k",))),
        (FindEvent, EventFound, ("s", 2)),
    ],
)
def test_tables_answer_only_if_they_are_whole_and_far_enough(
    request_type: Any, answer_type: Any, rest: tuple[Any, ...]
) -> None:
    def ready(there: BenchReplica, floor: int) -> bool:
        answer = one(there.ask(request_type(SLOT, 1, 77, floor, *rest)))
        assert isinstance(answer, answer_type)
        assert answer.request == 77
        return bool(answer.ready)

    there = holding(6, commit=5)
    there.apply(4)
    assert ready(there, 4)
    assert not ready(there, 5)
    assert not ready(with_hole(), 1)
    assert not ready(fresh(0), 1)


# -- backfill ----------------------------------------------------------------------------------


def tick(there: BenchReplica, now_ms: int = START_MS) -> list[rep.FetchFromPeer]:
    effects = there.machine.handle(rep.Tick(), now_ms)
    return [effect for effect in effects if isinstance(effect, rep.FetchFromPeer)]


def backfilling(**hole: int) -> BenchReplica:
    there = with_hole(**hole)
    there.machine.handle(rep.PeersChanged(("r1", "r2", "r3")), START_MS)
    return there


def arrive(there: BenchReplica, *records: Record) -> None:
    answer = Fetched(SLOT, 3, records[0].lsn if records else 6, records)
    there.run(there.machine.handle(rep.BackfillArrived("r2", answer), START_MS))


def test_backfill_closes_the_hole_from_below_and_then_the_log_is_complete() -> None:
    there = backfilling(keep=5, start=9)
    (asked,) = tick(there)
    assert asked.request[2:4] == (6, 8)
    assert asked.replica != "r1"
    arrive(there, record(6), record(7))
    assert there.log.held == [[1, 7], [9, 12]]
    (asked,) = tick(there)
    arrive(there, record(8))
    assert there.log.complete
    assert set(there.disk.history[SLOT]) >= {6, 7, 8}
    there.restart()
    assert there.log.complete


def test_backfill_that_cannot_be_written_is_asked_for_again_later() -> None:
    """Its month was moved to a disk that is not there."""
    there = backfilling(keep=5, start=9)
    tick(there)
    answer = Fetched(SLOT, 3, 6, (record(6),))
    (store,) = there.machine.handle(rep.BackfillArrived("r2", answer), START_MS)
    assert isinstance(store, rep.StoreHistory)
    assert there.machine.handle(rep.HistoryWaits(SLOT), START_MS) == []
    assert there.machine.handle(rep.Tick(), START_MS + 10) == []
    later = START_MS + rep.BACKFILL_RETRY_MS
    (asked,) = there.machine.handle(rep.Tick(), later)
    assert isinstance(asked, rep.FetchFromPeer)
    assert asked.request[2:4] == (6, 8)


def test_several_holes_are_closed_one_after_the_other() -> None:
    there = backfilling(keep=2, start=5, last=6)
    there.apply()
    there.ask(seal(6))
    there.ask(Prepare(SLOT, 6, 6, 9, ((1, 1), (3, 5))))
    tick(there)
    arrive(there, record(3), record(4))
    assert there.log.held == [[1, 6], [9, 8]]
    tick(there)
    arrive(there, record(7, 3), record(8, 3))
    assert there.log.held == [[1, 8]]


def test_a_new_disk_is_filled_from_lsn_1() -> None:
    there = fresh(3)
    there.machine.handle(rep.PeersChanged(("r2",)), START_MS)
    there.ask(Prepare(SLOT, 3, 0, 4, ((1, 1),)))
    (asked,) = tick(there)
    assert asked.request[2:4] == (1, 3)
    arrive(there, record(1), record(2), record(3))
    assert there.log.complete


def test_backfill_of_another_log_is_not_taken() -> None:
    for bad in ((record(6, 2),), (record(7),), (record(6)._replace(payload=b"x"),)):
        there = backfilling(keep=5, start=9)
        tick(there)
        arrive(there, *bad)
        assert there.log.held == [[1, 5], [9, 12]]


def test_of_an_answer_counts_what_fits() -> None:
    for rest in ((record(8),), (record(7, 2),), (record(7)._replace(payload=b"x"),)):
        there = backfilling(keep=5, start=9)
        tick(there)
        arrive(there, record(6), *rest)
        assert there.log.held == [[1, 6], [9, 12]]
    tick(there)
    arrive(there, *map(record, range(7, 11)))
    assert there.log.complete
    assert record(9, 3) == there.disk.record(SLOT, 9)


def test_a_former_member_fills_a_hole_with_what_it_never_heard_was_committed() -> None:
    """The other members of its view, who knew, have lost their disks; their last records were
    committed under a later epoch, and of its own it still has a tail that was not."""
    former = holding(10, commit=5)
    there = with_hole(keep=5, start=9)
    there.log.epochs = ((1, 1), (2, 8), (3, 9))
    there.machine.handle(rep.PeersChanged(("r1", "r2", "r3")), START_MS)
    (asked,) = tick(there)
    (answer,) = former.ask(asked.request)
    there.run(there.machine.handle(rep.BackfillArrived("r2", answer), START_MS))
    assert there.log.held == [[1, 7], [9, 12]]
    tick(there)
    arrive(there, record(8))
    assert there.log.held == [[1, 7], [9, 12]]
    tick(there, START_MS + rep.BACKFILL_RETRY_MS)
    arrive(there, record(8, 2))
    assert there.log.complete


def test_backfill_that_nobody_asked_for_is_not_taken() -> None:
    there = backfilling()
    arrive(there, record(6))
    assert there.log.held[0] == [1, 5]


def test_a_peer_that_does_not_have_it_is_followed_by_the_next_one() -> None:
    there = backfilling()
    (first,) = tick(there)
    arrive(there)
    assert tick(there) == []  # Not in a loop: after a while.
    (second,) = tick(there, START_MS + rep.BACKFILL_RETRY_MS)
    assert first.replica != second.replica


def test_records_stored_twice_are_counted_once() -> None:
    there = backfilling()
    tick(there)
    arrive(there, record(6))
    there.run(there.machine.handle(rep.HistoryStored(SLOT, 6, 6), START_MS))
    assert there.log.held[0] == [1, 6]


def unapplied_hole() -> BenchReplica:
    """Records 4 and 5 lie below the hole, in the journal and not yet in history."""
    there = holding(5, commit=5)
    there.apply(3)
    there.machine.handle(rep.PeersChanged(("r2",)), START_MS)
    there.ask(seal(3))
    there.ask(Prepare(SLOT, 3, 5, 8, ((1, 1),)))
    return there


def test_backfill_waits_until_what_lies_below_the_hole_is_applied() -> None:
    there = unapplied_hole()
    assert tick(there) == []
    there.apply()
    assert len(tick(there)) == 1


def test_a_second_hole_does_not_make_it_forget_what_is_still_to_be_applied() -> None:
    there = unapplied_hole()
    there.ask(seal(4))
    there.ask(Prepare(SLOT, 4, 7, 20, ((1, 1),)))
    assert tick(there) == []
    there.apply()
    assert len(tick(there)) == 1


def test_nor_does_a_restart() -> None:
    there = unapplied_hole()
    there.restart()
    there.machine.handle(rep.PeersChanged(("r2",)), START_MS)
    assert tick(there) == []
    there.apply()
    assert len(tick(there)) == 1


# -- coming back -------------------------------------------------------------------------------


def life() -> list[Any]:
    """Requests that take a slot through everything that is ever written."""
    return [
        seal(1),
        Prepare(SLOT, 1, 0, 1, ()),
        append(0, 3),
        append(3, 2, commit=4),
        "apply",
        seal(2),
        Prepare(SLOT, 2, 4, 5, ((1, 1),)),
        Append(SLOT, 2, 4, 1, 4, (record(5, 2), record(6, 2))),
        Append(SLOT, 2, 6, 2, 6, ()),
        seal(4),
        Prepare(SLOT, 4, 6, 9, ((1, 1), (2, 5))),
        Append(SLOT, 4, 8, 2, 8, (record(9, 4),)),
        "apply",
        "backfill",
        append(9, 2, 4, commit=10),
        Drop(SLOT, 5, view(5)),
        seal(6),
        Prepare(SLOT, 6, 0, 20, ((1, 1), (2, 5), (4, 9))),
        Append(SLOT, 6, 19, 4, 19, (record(20, 6),)),
    ]


def take(there: BenchReplica, step: Any) -> None:
    if step == "apply":
        there.apply()
    elif step == "backfill":
        there.machine.handle(rep.PeersChanged(("r2",)), START_MS)
        tick(there, START_MS + 60_000)
        arrive(there, record(7, 2), record(8, 2))
    else:
        there.ask(step)


@pytest.mark.parametrize("steps", range(1, len(life()) + 1))
def test_what_comes_back_is_what_was_stored(steps: int) -> None:
    there = BenchReplica("r1", "h1")
    for step in life()[:steps]:
        take(there, step)
    before = there.log
    there.restart()
    after = there.log
    for name in ("promised", "owner", "view", "epochs", "held", "applied_lsn", "drain_lsn"):
        assert getattr(after, name) == getattr(before, name), name
    # A commit point that no record carried is forgotten, never raised.
    assert after.applied_lsn <= after.commit_lsn <= before.commit_lsn
    # Below the last stretch nothing is ever compared again.
    assert after.checksums == {n: c for n, c in before.checksums.items() if n >= after.from_lsn}


@pytest.mark.parametrize("steps", range(1, len(life()) + 1))
def test_a_write_that_did_not_happen_leaves_what_was_before(steps: int) -> None:
    there = BenchReplica("r1", "h1")
    for step in life()[: steps - 1]:
        take(there, step)
    lost = copy.deepcopy(there.disk)
    before = copy.deepcopy(there.machine.logs)
    take(there, life()[steps - 1])
    there.disk = lost
    there.restart()
    if SLOT in before:
        assert (there.log.promised, there.log.held) == (before[SLOT].promised, before[SLOT].held)


def test_a_lost_record_in_the_middle_is_never_the_end_of_the_log() -> None:
    there = holding(6, commit=2)
    del there.disk.journal[SLOT][4]
    with pytest.raises(CorruptData, match="lsn 5 where 4"):
        there.restart()


def test_nor_is_one_below_a_hole() -> None:
    there = holding(5, commit=5)
    there.ask(seal(3))
    there.ask(Prepare(SLOT, 3, 5, 8, ((1, 1),)))
    del there.disk.journal[SLOT][3]
    with pytest.raises(CorruptData, match="lacks lsn 3"):
        there.restart()


def test_what_came_by_backfill_is_not_missed_in_the_journal() -> None:
    there = backfilling(keep=5, start=9, last=12)
    rows = {lsn: (record(lsn), 5) for lsn in range(1, 6)} | there.disk.journal[SLOT]
    tick(there)
    arrive(there, record(6), record(7), record(8))
    # A second absence, before the journal is trimmed of what history has.
    there.ask(seal(6))
    there.ask(Prepare(SLOT, 6, 12, 20, ((1, 1), (3, 9))))
    there.disk.journal[SLOT].update(rows)
    there.restart()
    assert there.log.held == [[1, 12], [20, 19]]


def test_a_journal_that_ends_before_its_meta_says_is_corrupt() -> None:
    there = holding(4)
    there.ask(seal(2))
    del there.disk.journal[SLOT][4]
    with pytest.raises(CorruptData, match="ends at 3"):
        there.restart()


def test_a_record_of_another_epoch_than_recorded_is_corrupt() -> None:
    there = holding(4)
    rows = there.disk.journal[SLOT]
    rows[4] = (record(4, 2), 0)
    with pytest.raises(CorruptData, match="another epoch"):
        there.restart()


def test_records_that_history_has_already_are_no_news() -> None:
    # History is applied before the journal is trimmed: a crash in between leaves both.
    there = holding(6, commit=5)
    rows = dict(there.disk.journal[SLOT])
    there.apply()
    there.disk.journal[SLOT].update(rows)
    there.restart()
    assert (there.log.applied_lsn, there.log.last_lsn) == (5, 6)
    assert sorted(there.log.checksums) == [6]


def test_a_slot_without_meta_is_empty() -> None:
    log = rep.log_from_disk(SLOT, None, [], 0, set().__contains__)
    assert (log.promised, log.last_lsn, log.complete) == (0, 0, True)


def test_heads_may_come_from_any_journal() -> None:
    disk = Disk("d")
    for op in (StoreRecords(SLOT, (record(1),), 0), DropSlot(SLOT)):
        disk.write(op)
    heads = [Head(*h) for h in ()]
    assert rep.log_from_disk(SLOT, None, heads, 0, set().__contains__).last_lsn == 0


# -- its own check -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epochs": ((2, 1), (1, 3))}, "epochs decrease"),
        ({"epochs": ((1, 4), (2, 2))}, "epoch starts decrease"),
        ({"commit_lsn": 9}, "commit above the log"),
        ({"promised": 0}, "a record above the promise"),
        ({"held": [[1, 5], [3, 6]]}, "held out of order"),
    ],
)
def test_the_check_notices_what_one_replica_can_see(change: dict[str, Any], says: str) -> None:
    there = holding(5)
    there.machine.validate()
    there.log.promised = 2
    for name, value in change.items():
        setattr(there.log, name, value)
    with pytest.raises(InvariantBroken, match=says):
        there.machine.validate()
