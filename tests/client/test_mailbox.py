"""The local conversation list against a list that is computed anew from all events."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.client import mailbox as module
from im_actors.client.mailbox import Mailbox, Pending, apply, followed
from im_actors.core.model import Event, EventKind
from im_actors.core.outbox_words import SendState
from im_actors.wire.queries import ConversationRow, RowFlag
from tests.client.test_shown import Kept, said

ROW = ConversationRow(
    "s", 1, 100, 10, 1_000, 1, "bob", "hi", 6, [2, 10, 2, [[4, 4], [7, 7]]], 2, 0, 0, 0, "", ""
)


def change(what: str, *args: Any, state: SendState = SendState.PENDING, seq: int = 0) -> Pending:
    return Pending(what, list(args), lambda: (state, seq))


def mailbox(*rows: ConversationRow) -> tuple[Mailbox, Kept]:
    kept = Kept()
    box = Mailbox(kept.keep)
    box.take(rows)
    return box, kept


@pytest.mark.parametrize(
    ("seq", "unread"), [(0, 6), (2, 6), (3, 5), (4, 5), (5, 4), (7, 3), (9, 1), (10, 0), (99, 0)]
)
def test_reading_up_to_some_place(seq: int, unread: int) -> None:
    assert apply(ROW, "read", [seq]).unread == unread
    assert apply(apply(ROW, "read", [5]), "read", [seq]).unread == min(unread, 4)


def test_reading_without_knowing_why_it_is_unread() -> None:
    row = ROW._replace(inputs=None)
    assert [apply(row, "read", [seq]).unread for seq in (1, 3, 8, 10)] == [6, 6, 2, 0]


@given(
    st.lists(st.sampled_from(["mine", "other", "edit", "recall"]), min_size=1, max_size=30),
    st.lists(st.integers(0, 35), max_size=4),
    st.integers(0, 4),
    st.randoms(use_true_random=False),
)
def test_following_a_group_counts_as_counting_all_again(
    kinds: list[str], reads: list[int], first: int, rng: Random
) -> None:
    row = ROW._replace(last_seq=0, unread=0, inputs=[0, 0, 0, []], read_seq=0)
    row = apply(row, "read", [first])
    counts: dict[int, bool] = {}
    for seq, kind in enumerate(kinds, 1):
        messages = [at for at, was in enumerate(kinds[: seq - 1], 1) if was in ("mine", "other")]
        event = Event("s", seq, seq << 22, EventKind.MESSAGE, "bob/x", 1, b"x")
        if kind == "mine":
            event = event._replace(device="me/x")
        elif kind == "edit" or not messages:
            event = event._replace(kind=EventKind.EDIT)
        elif kind == "recall":
            target = rng.choice(messages)
            event = said(seq, EventKind.RECALL, target)._replace(session="s", key=seq << 22)
            counts[target] = False
        counts[seq] = kind == "other" and event.kind == EventKind.MESSAGE
        row = followed(row, event, "me")
    for seq in reads:
        row = apply(row, "read", [seq])
    read = max([first, *reads])
    expected = sum(counted and seq > read for seq, counted in counts.items())
    assert row.unread == expected
    base, last, skipped, ranges = row.inputs or []
    assert max(0, last - base) - skipped == expected or base > last
    assert sum(end - begin + 1 for begin, end in ranges) == skipped


def test_a_recall_of_what_nobody_is_told_of_any_more_is_left_to_the_next_row() -> None:
    row = ROW._replace(inputs=[2, 10, 4, [[6, 7]]], unread=4)
    old = said(11, EventKind.RECALL, 5)._replace(session="s", key=11 << 22)
    assert followed(row, old, "me").inputs == [2, 11, 5, [[6, 7], [11, 11]]]
    new = said(11, EventKind.RECALL, 8)._replace(session="s", key=11 << 22)
    assert followed(row, new, "me").inputs == [2, 11, 6, [[6, 8], [11, 11]]]


def test_settings() -> None:
    pinned = apply(ROW, "pin", [True])
    assert (pinned.rank, pinned.flags) == (100 | module.PINNED_RANK, RowFlag.PINNED)
    assert apply(pinned, "pin", [False]) == ROW
    assert apply(ROW, "mute", [True]).flags == RowFlag.MUTED
    hidden = apply(ROW, "hide", [10])
    assert (hidden.rank, hidden.flags) == (0, RowFlag.HIDDEN)
    assert apply(ROW, "hide", [9]) == ROW, "there is a message since"
    assert apply(ROW, "fold", ["later"]).label == "later"
    assert apply(ROW, "something new", [1]) == ROW


def test_rows_come_in_any_order_and_again() -> None:
    older, newer = ROW, ROW._replace(version=2, unread=0)
    head = newer._replace(last_seq=12, unread=1)
    for rows in ([older, newer], [newer, older], [newer, older, newer]):
        assert mailbox(*rows)[0].row("s") == newer
    assert mailbox(head, newer)[0].row("s") == head, "of one version the one that knows more"
    box, kept = mailbox(newer, head)
    again = Mailbox(Kept().keep)
    again.restore(kept.areas())
    assert again.row("s") == head
    assert again.total() == head.unread
    box.learned(5, 1_000)
    box.counted(5, 7, 1_000)
    again = Mailbox(Kept().keep)
    again.restore(kept.areas())
    assert again.total() == 7
    assert again.known == (5, 7, 5, 1_000)


def test_a_change_is_seen_until_it_comes_back_or_is_refused() -> None:
    box, _ = mailbox(ROW)
    box.learned(1, 0)
    box.counted(1, 6, 0)
    outcome = [SendState.PENDING, 0]
    box.asked(Pending("read", ["s", 10], lambda: (SendState(outcome[0]), int(outcome[1]))))
    assert (box.row("s").unread, box.total()) == (0, 0)  # type: ignore[union-attr]
    outcome[:] = [SendState.ACKED, 4]
    box.take([ROW._replace(version=3, unread=7, last_seq=11, inputs=[2, 11, 2, [[4, 4], [7, 7]]])])
    box.learned(3, 0)
    assert (box.row("s").unread, box.total()) == (1, 1)  # type: ignore[union-attr]
    box.take([ROW._replace(version=4, unread=1, last_seq=11, read_seq=10, inputs=[10, 11, 0, []])])
    box.learned(4, 0)
    assert (box.row("s").unread, box.total()) == (1, 1)  # type: ignore[union-attr]
    box.asked(change("read", "s", 11, state=SendState.REFUSED))
    assert box.row("s").unread == 1  # type: ignore[union-attr]
    box.asked(change("device", "pad", "about"))
    assert box.total() == 1


def test_a_copy_that_lags_takes_nothing_back() -> None:
    box, _ = mailbox(ROW)
    box.learned(9, 50)
    box.counted(9, 6, 50)
    box.learned(8, 60)
    box.counted(8, 0, 60)
    assert box.known == (9, 6, 9, 50)


def test_a_total_that_is_newer_than_the_rows_counts_nothing_twice() -> None:
    box, _ = mailbox(ROW)
    box.learned(1, 0)
    box.counted(1, 6, 0)
    box.asked(change("read", "s", 10, state=SendState.ACKED, seq=3))
    assert box.total() == 0
    box.counted(3, 5, 0)
    assert box.total() == 5, "the server has taken it off already"
    box.take([ROW._replace(version=3, unread=0, read_seq=10, inputs=[10, 10, 0, []])])
    other = ROW._replace(session="t", version=2, unread=5)
    box.take([other])
    assert box.total() == 5
    box.take([other._replace(version=4, unread=8)])
    assert box.total() == 8


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_MAX", 10)
    box, kept = mailbox(*(ROW._replace(session=f"s{n:02}", rank=n) for n in range(1, 30)))
    assert len(box) <= 11
    assert sum(area == "conversation" for area, _ in kept) == len(box)
    assert [row.rank for row in box.rows()] == list(range(29, 29 - len(box), -1))
    box.begin([ROW._replace(session="new")])
    assert [row.session for row in box.rows()] == ["new"]
    assert [name for area, name in kept if area == "conversation"] == ["new"]


def test_a_group_that_was_left_does_not_come_back_when_its_events_are_read_again() -> None:
    left = ROW._replace(
        session="group:g", version=9, rank=0, last_seq=0, inputs=None, flags=int(RowFlag.LEFT)
    )
    box, _ = mailbox(left)
    box.saw([Event("group:g", 1, 1 << 22, EventKind.MESSAGE, "bob/x", 1, b"x")], "me")
    assert box.rows() == []


def test_a_row_that_was_looked_at_because_its_session_went_on_counts_once() -> None:
    notice = ROW._replace(session="notice:system/me", version=0, last_seq=1, unread=1, inputs=None)
    box, _ = mailbox(ROW)
    box.counted(5, 6, 0)
    box.look(notice)
    box.look(notice)
    assert (box.total(), box.last_seq(notice.session)) == (7, 1)
    box.look(notice._replace(last_seq=2, unread=0))
    box.look(notice)
    assert (box.total(), box.last_seq(notice.session)) == (6, 2)
    box.saw([Event(notice.session, 3, 3 << 22, 1, "shop/x", 1, b"x")], "me")
    assert (box.last_seq(notice.session), box.last_seq("none")) == (3, 0)
