"""What an owner keeps while it serves: numbering, waiting, committing, forgetting."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from im_actors.core import serving as module
from im_actors.core.batch import BATCH_DEVICE
from im_actors.core.messages import DeviceImage, SessionImage
from im_actors.core.model import (
    DEVICE_WINDOW,
    body_checksum,
    decode_event,
    record_events,
)
from im_actors.core.serving import Answer, PendingEvent, Send, Serving, ServingLimits
from im_actors.errors import (
    InvariantBroken,
    KeyConflict,
    OutOfOrder,
    Overloaded,
    SlotMoving,
    Unknown,
)

NOW_MS = 1_700_000_000_000


def send(n: int, session: str = "s", device: str = "a/1", body: bytes | None = None) -> Send:
    return Send((device, n), session, device, n, 1, b"%d" % n if body is None else body)


def serving(*sessions: str, **limits: int) -> Serving:
    """A slot with these sessions loaded, all of them empty."""
    there = Serving(5, replace(ServingLimits(), **limits))
    for name in sessions or ("s",):
        there.loaded(SessionImage(name, 0, ()), 1, NOW_MS)
    return there


def submit(there: Serving, *sends: Send) -> list[Answer]:
    return there.submit(list(sends), 1, NOW_MS)


def codes(answers: list[Answer]) -> list[tuple[int, int]]:
    """(code, seq or expected n) of each answer."""
    return [(a.code, a.expected_n if a.code else a.seq) for a in answers]


def seqs_of(payload: bytes) -> list[int]:
    return [decode_event(data).seq for data in record_events(payload)]


# -- numbering ---------------------------------------------------------------------------------


def test_a_new_send_is_answered_when_its_record_commits() -> None:
    there = serving()
    assert submit(there, send(1), send(2)) == []
    record = there.cut_record(8, 3)
    assert record is not None
    answers, events = there.commit(8, 3)
    assert codes(answers) == [(0, 1), (0, 2)]
    assert [event.seq for event in events] == [1, 2]
    assert {a.epoch for a in answers} == {3}
    assert there.pending == {}
    assert there.pending_bytes == 0


def test_a_resend_of_a_pending_send_waits_like_the_first() -> None:
    there = serving()
    submit(there, send(1))
    assert submit(there, send(1)._replace(token="again")) == []
    there.cut_record(1, 1)
    assert [a.token for a in there.commit(1, 1)[0]] == [("a/1", 1), "again"]


def test_a_resend_of_a_committed_send_is_answered_with_the_old_seq() -> None:
    there = serving()
    submit(there, send(1))
    there.cut_record(1, 1)
    there.commit(1, 1)
    assert codes(submit(there, send(1))) == [(0, 1)]


def test_resends_that_wait_are_bounded_and_none_is_left_without_an_answer() -> None:
    there = serving()
    submit(there, send(1))
    told = [a for i in range(50) for a in submit(there, send(1)._replace(token=i))]
    assert {a.code for a in told} == {Unknown.code}
    there.cut_record(1, 1)
    told += there.commit(1, 1)[0]
    assert len(told) == 51
    assert len({a.token for a in told}) == 51


def test_a_gap_names_the_expected_number() -> None:
    there = serving()
    submit(there, send(1))
    assert codes(submit(there, send(3))) == [(OutOfOrder.code, 2)]


def test_another_body_under_a_used_key_is_a_conflict() -> None:
    there = serving()
    submit(there, send(1))
    # What has not committed may be lost with this owner, so nothing definite rests on it (P6).
    assert codes(submit(there, send(1, body=b"other"))) == [(Unknown.code, 0)]
    there.cut_record(1, 1)
    there.commit(1, 1)
    assert codes(submit(there, send(1, body=b"other"))) == [(KeyConflict.code, 2)]


def test_a_device_with_a_whole_window_uncommitted_is_told_to_wait() -> None:
    there = serving()
    submit(there, *(send(n) for n in range(1, DEVICE_WINDOW + 1)))
    assert codes(submit(there, send(DEVICE_WINDOW + 1))) == [(Overloaded.code, 0)]
    assert len(there.pending) == DEVICE_WINDOW


def test_a_resend_older_than_the_window_is_left_to_history() -> None:
    recent = tuple((seq, body_checksum(1, b"%d" % seq)) for seq in range(3, 3 + DEVICE_WINDOW))
    last = DEVICE_WINDOW + 2
    there = serving("other")
    there.loaded(SessionImage("s", last, (DeviceImage("a/1", last, recent),)), 1, NOW_MS)
    assert submit(there, send(2)) == []
    assert there.ancient == [send(2)]
    assert codes(submit(there, send(3))) == [(0, 3)]


# -- limits ------------------------------------------------------------------------------------


def test_no_room_is_said_before_a_seq_is_taken() -> None:
    there = serving(pending_events_max=2)
    assert codes(submit(there, send(1), send(2), send(3))) == [(Overloaded.code, 0)]
    there.cut_record(1, 1)
    there.commit(1, 1)
    submit(there, send(3))
    there.cut_record(2, 1)
    assert codes(there.commit(2, 1)[0]) == [(0, 3)]


def test_what_is_known_is_answered_also_when_there_is_no_room() -> None:
    there = serving(pending_events_max=2)
    submit(there, send(1))
    there.cut_record(1, 1)
    there.commit(1, 1)
    submit(there, send(2), send(3))
    assert codes(submit(there, send(1), send(2), send(4), send(9))) == [
        *((0, 1), (Overloaded.code, 0), (Overloaded.code, 0))
    ]
    assert codes(there.submit([send(1)], 1, NOW_MS, closed=True)) == [(0, 1)]
    there.cut_record(2, 1)
    # The pending one was attached to, and not refused: two answers for n 2.
    assert codes(there.commit(2, 1)[0]) == [(0, 2), (0, 2), (0, 3)]


def test_bytes_are_bounded_too() -> None:
    there = serving(pending_bytes_max=100)
    answers = submit(there, *(send(n, body=b"x" * 60) for n in range(1, 9)))
    assert len(there.pending) == 2
    assert len(answers) == 6


def test_sends_that_wait_for_their_session_count_as_well() -> None:
    there = serving(pending_events_max=3)
    answers = submit(there, *(send(n, session="unknown") for n in range(1, 9)))
    assert there.waiting_events == 3
    assert len(answers) == 5


def test_a_line_that_fills_the_slot_leaves_the_others_their_share() -> None:
    there = serving(pending_events_max=16)
    there.loaded(SessionImage("direct:a/b", 0, ()), 1, NOW_MS)
    assert len(submit(there, *(send(n) for n in range(1, 20)))) == 3
    private = [send(n, device="a/1", session="direct:a/b") for n in range(1, 9)]
    # Half of the slot is shared, by two of equal parts.
    assert codes(submit(there, *private))[0] == (Overloaded.code, 0)
    assert sum(session == "direct:a/b" for session, _ in there.pending) == 4
    assert codes(submit(there, send(17))) == [(Overloaded.code, 0)]


def test_what_a_batch_sends_is_of_its_own_line() -> None:
    there = serving(pending_events_max=16)
    there.loaded(SessionImage("notice:system/a", 0, ()), 1, NOW_MS)
    rush = [
        send(1, device=f"support/{BATCH_DEVICE}{n}", session="notice:system/a") for n in range(20)
    ]
    assert len(submit(there, *rush)) == 4
    assert submit(there, send(1, device="support/1", session="notice:system/a")) == []


@pytest.mark.parametrize("name", [f.name for f in fields(ServingLimits) if f.name != "lines"])
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        replace(ServingLimits(), **{name: 0}).validate()


# -- sessions that are being loaded ------------------------------------------------------------


def test_sends_wait_for_their_session_and_keep_their_order() -> None:
    there = serving("other")
    assert submit(there, send(1), send(2), send(3)) == []
    assert there.pending == {}
    there.loaded(SessionImage("s", 7, ()), 1, NOW_MS)
    record = there.cut_record(1, 1)
    assert record is not None
    assert seqs_of(record.payload) == [8, 9, 10]
    assert there.waiting_events == 0


def test_replayed_records_are_joined_with_the_tables() -> None:
    first = serving()
    submit(first, *(send(n) for n in range(1, 5)))
    record = first.cut_record(9, 1)
    assert record is not None
    there = Serving(5, ServingLimits())
    there.replay([record])
    assert submit(there, send(5)) == []  # It waits: the tables may know more.
    assert there.waiting_events == 1
    there.loaded(SessionImage("s", 0, ()), 2, NOW_MS)
    assert list(there.pending) == [("s", 5)]
    assert codes(submit(there, send(4))) == [(0, 4)]


# -- records -----------------------------------------------------------------------------------


def test_what_arrives_while_records_are_in_flight_is_the_next_record() -> None:
    there = serving(records_in_flight_max=1)
    submit(there, send(1))
    assert there.cut_record(1, 1) is not None
    submit(there, send(2))
    submit(there, send(3))
    assert there.cut_record(2, 1) is None
    there.commit(1, 1)
    record = there.cut_record(2, 1)
    assert record is not None
    assert seqs_of(record.payload) == [2, 3]


def test_a_record_is_bounded_in_events_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORD_EVENTS_MAX", 3)
    there = serving(records_in_flight_max=9)
    submit(there, *(send(n) for n in range(1, 6)))
    assert [len(record_events(there.cut_record(lsn, 1).payload)) for lsn in (1, 2)] == [3, 2]
    monkeypatch.setattr(module, "RECORD_BYTES_MAX", 100)
    submit(there, *(send(n, body=b"x" * 80) for n in range(6, 9)))
    # One event always fits, however long it is.
    assert [len(record_events(there.cut_record(lsn, 1).payload)) for lsn in (3, 4)] == [1, 1]


def test_seqs_that_would_commit_out_of_order_stop_everything() -> None:
    there = serving()
    submit(there, send(1))
    there.cut_record(1, 1)
    there.sessions["s"].committed_seq = 1
    with pytest.raises(InvariantBroken, match="I5"):
        there.commit(1, 1)


# -- takeovers ---------------------------------------------------------------------------------


def two_flights_and_one_open() -> Serving:
    there = serving(records_in_flight_max=2)
    for lsn in (4, 5):
        submit(there, send(2 * lsn - 7), send(2 * lsn - 6))
        there.cut_record(lsn, 1)
    submit(there, send(5))
    return there


def test_flights_that_the_kept_log_lacks_are_open_again_in_order_with_their_seqs() -> None:
    there = two_flights_and_one_open()
    kept, _ = there.keep(lambda lsn: 1, 4)
    assert kept == 1
    assert codes(there.commit(4, 2)[0]) == [(0, 1), (0, 2)]
    record = there.cut_record(6, 2)
    assert record is not None
    assert seqs_of(record.payload) == [3, 4, 5]
    there.validate()


def test_a_record_of_another_epoch_in_a_flights_place_is_not_that_flight() -> None:
    there = two_flights_and_one_open()
    kept, _ = there.keep(lambda lsn: 9, 5)
    assert kept == 0
    assert [event.seq for event in there.open] == [1, 2, 3, 4, 5]
    there.validate()


def test_the_slot_is_somebody_elses_and_nobody_waits_in_vain() -> None:
    there = two_flights_and_one_open()
    submit(there, send(1, session="unknown"))
    there.ancient.append(send(1, device="b/1"))
    answers = there.abandon()
    assert sorted(a.code for a in answers) == [SlotMoving.code] + [Unknown.code] * 6
    assert there.pending == {}
    assert there.sessions == {}
    assert there.waiting_events == there.pending_bytes == there.last_key == 0


# -- forgetting --------------------------------------------------------------------------------


def committed(*names: str, **limits: int) -> Serving:
    """Sessions with one committed event each, in lsn 1, 2, 3 …"""
    there = serving(*names, **limits)
    for lsn, name in enumerate(names, 1):
        submit(there, send(1, session=name))
        there.cut_record(lsn, 1)
        there.commit(lsn, 1)
    return there


def test_idle_sessions_above_the_limit_are_forgotten_once_the_tables_have_them() -> None:
    there = committed("a", "b", "c", sessions_max=1)
    assert there.evict(NOW_MS + 1, applied_lsn=2) == 2
    assert list(there.sessions) == ["c"]


def test_below_the_limit_nothing_is_forgotten() -> None:
    there = committed("a", "b", sessions_max=2)
    assert there.evict(NOW_MS + 1, applied_lsn=9) == 0
    assert list(there.sessions) == ["a", "b"]


def test_a_session_in_use_is_not_forgotten() -> None:
    there = committed("used", "pending", "waiting", "loading", "idle", sessions_max=1)
    submit(there, send(2, session="pending"))
    there.waiting["waiting"] = [send(2, session="waiting")]
    there.sessions["used"].used_ms = NOW_MS + 5
    there.evict(NOW_MS + 1, applied_lsn=9, busy={"loading"})
    assert list(there.sessions) == ["used", "pending", "waiting", "loading"]


# -- its own check -----------------------------------------------------------------------------


def test_the_check_notices_a_hole_in_what_is_open() -> None:
    there = serving()
    submit(there, send(1), send(2))
    there.validate()
    there.open[1].seq = 3
    with pytest.raises(InvariantBroken, match="I5"):
        there.validate()


def test_the_check_notices_an_event_that_nobody_commits() -> None:
    there = serving()
    state = there.sessions["s"]
    there.pending["s", 1] = PendingEvent(state, ("s", 1, "a/1", 1, 0), 1, b"", 1)
    with pytest.raises(InvariantBroken, match="open"):
        there.validate()


def test_a_commit_point_below_a_record_commits_nothing_of_it() -> None:
    there = serving()
    submit(there, send(1))
    there.cut_record(7, 1)
    assert there.commit(6, 1) == ([], [])
