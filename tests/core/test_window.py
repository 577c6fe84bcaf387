"""The window of a session's newest events, against counting."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from im_actors.core.facts import read_state
from im_actors.core.model import Event, EventKind
from im_actors.core.overlays import recall_request
from im_actors.core.window import Window
from tests.core.deciding import Deciding

USERS = ("alice", "bob", "eve")


def talk(seed: int, steps: int) -> list[Event]:
    """Messages, recalls, edits and voids of an open session."""
    rng = random.Random(seed)
    found = Deciding("team")
    texts: dict[str, list[int]] = {user: [] for user in USERS}
    for _ in range(steps):
        user = rng.choice(USERS)
        kind = rng.choice(("say", "say", "say", "recall", "void"))
        if kind == "say" or not texts[user]:
            texts[user].append(found.say(f"{user}/pc", "x").seq)
        elif kind == "recall":
            seq = texts[user].pop(rng.randrange(len(texts[user])))
            found.send(f"{user}/pc", EventKind.RECALL, recall_request(seq))
        else:
            found.send(f"{user}/pc", EventKind.VOID, b"")
    return found.events


def counted(events: list[Event], user: str, read_seq: int) -> int:
    recalled = {read_state(e.body).args[0] for e in events if e.kind == EventKind.RECALL}
    return sum(
        e.kind == EventKind.MESSAGE
        and e.sender != user
        and e.seq > read_seq
        and e.seq not in recalled
        for e in events
    )


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 80))
def test_it_counts_what_counting_counts(seed: int, steps: int, events_max: int) -> None:
    events = talk(seed, steps)
    window = Window(events_max=events_max)
    for at, event in enumerate(events, 1):
        window.add(event)
        assert window.last_seq == at
        assert at - window.floor <= events_max + events_max // 4
        assert at - window.floor >= min(at, events_max)
        for user in (*USERS, "nobody"):
            for read_seq in {0, at // 2, window.floor, at}:
                known = counted(events[:at], user, read_seq)
                expected = known if read_seq >= window.floor else None
                assert window.unread(user, read_seq) == expected
                check_inputs(window, events[:at], user, read_seq)


def check_inputs(window: Window, events: list[Event], user: str, read_seq: int) -> None:
    found = window.explain(user, read_seq)
    if found is None:
        assert read_seq < window.floor
        return
    above = events[read_seq:]
    skipped = sum(e.kind != EventKind.MESSAGE or e.sender == user for e in above)
    unread = counted(events, user, read_seq)
    assert found == (unread, len(events), read_seq, skipped, len(above) - skipped - unread)
    ranges = window.uncounted(user, read_seq)
    assert ranges is not None
    recalled = {read_state(e.body).args[0] for e in events if e.kind == EventKind.RECALL}
    assert [seq for first, last in ranges for seq in range(first, last + 1)] == [
        e.seq for e in above if e.kind != EventKind.MESSAGE or e.sender == user or e.seq in recalled
    ]
    assert all(one[1] + 1 < other[0] for one, other in pairwise(ranges))


@given(st.integers(0, 10**6), st.integers(0, 40))
def test_it_may_begin_anywhere_and_hear_events_again(seed: int, start: int) -> None:
    events = talk(seed, 60)
    window = Window(floor=start)
    for event in events[start:]:
        window.add(event)
        window.add(event)
    for event in events:
        window.add(event)
    assert window.unread("bob", start) == counted(events, "bob", start)
    assert window.unread("bob", start - 1) is None
    assert window.unread("bob", len(events) + 5) == 0


def test_behind_a_gap_it_begins_anew() -> None:
    events = talk(3, 30)
    window = Window()
    for event in (*events[:10], *events[15:]):
        window.add(event)
    assert window.floor == 15
    assert window.unread("bob", 14) is None
    assert window.unread("bob", 15) == counted(events, "bob", 15)


def test_it_forgets_senders_of_long_ago() -> None:
    found, window = Deciding("team"), Window(events_max=10)
    for at in range(200):
        window.add(found.say(f"user{at}/pc", "x"))
    assert len(window._by_sender) <= 13
    assert len(window._senders) <= 13


@pytest.mark.parametrize("events_max", [0, -1])
def test_a_window_has_room(events_max: int) -> None:
    with pytest.raises(AssertionError):
        Window(events_max=events_max)
