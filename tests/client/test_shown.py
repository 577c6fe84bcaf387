"""Recalls and edits are shown the same, in whatever order they are read."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.client import shown
from im_actors.client.shown import Overlays, read_said
from im_actors.core.facts import pack_state
from im_actors.core.model import Event, EventKind, pack

MESSAGE, RECALL, EDIT = EventKind.MESSAGE, EventKind.RECALL, EventKind.EDIT


class Kept(dict[tuple[str, str], bytes]):
    """What a store keeps."""

    def keep(self, area: str, name: str, value: bytes | None) -> None:
        if value is None:
            del self[area, name]
        else:
            self[area, name] = value

    def areas(self) -> dict[str, dict[str, bytes]]:
        areas: dict[str, dict[str, bytes]] = {}
        for (area, name), value in self.items():
            areas.setdefault(area, {})[name] = value
        return areas


def event(seq: int, kind: int = MESSAGE, body: bytes = b"hi", session: str = "s") -> Event:
    return Event(session, seq, seq << 22, kind, "alice/phone", seq, body)


def said(seq: int, kind: int, target: int, text: bytes | None = None) -> Event:
    """A committed recall or edit."""
    row = pack([1, kind, "alice", text])
    return event(seq, kind, pack_state("recall", [target], [("x/1", target, row)]))


def test_both_forms_are_understood() -> None:
    assert read_said(said(5, RECALL, 2)) == (2, (5, RECALL, None))
    assert read_said(said(5, EDIT, 2, b"new")) == (2, (5, EDIT, b"new"))
    assert read_said(event(5, RECALL, pack([2]))) == (2, (5, RECALL, None))
    assert read_said(event(5, EDIT, pack([2, b"new"]))) == (2, (5, EDIT, b"new"))


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x01", pack([]), pack(["x"]), pack([2, "text"]), pack(["e", [], []])]
)
@pytest.mark.parametrize("kind", [MESSAGE, RECALL, EDIT])
def test_what_is_not_understood_says_nothing(body: bytes, kind: int) -> None:
    if (kind, body) != (RECALL, pack([2, "text"])):
        assert read_said(event(5, kind, body)) is None


def test_every_order_shows_the_same() -> None:
    events = [
        said(5, EDIT, 1, b"a"),
        said(6, EDIT, 1, b"b"),
        said(7, RECALL, 2),
        said(8, EDIT, 2, b"c"),
    ]
    for order in permutations(events):
        overlays = Overlays(Kept().keep)
        for one in order:
            overlays.saw([one])
        first, second, third = overlays.shown([event(1), event(2), event(3)])
        assert (first.text, first.edited, first.recalled) == ("b", True, False)
        assert (second.text, second.edited, second.recalled) == ("", False, True)
        assert type(third) is Event


def test_an_event_stays_what_it_is() -> None:
    overlays = Overlays(Kept().keep)
    overlays.saw([said(5, EDIT, 1, b"new")])
    (one,) = overlays.shown([event(1)])
    assert one == event(1)
    assert (one.body, one.time_ms, one.sender) == (b"hi", event(1).time_ms, "alice")
    assert one._replace(seq=2).seq == 2


def test_changes_of_groups() -> None:
    facts = [("m/alice", 1, b"x"), ("m/bob", 1, b"x"), ("g", 0, b"x")]
    (one,) = Overlays(Kept().keep).shown([event(1, EventKind.GROUP, pack_state("add", [], facts))])
    assert one.change == ("add", [], ["alice", "bob"])
    assert (one.text, one.target, one.recalled) == ("", None, False)
    (odd,) = Overlays(Kept().keep).shown([event(1, EventKind.GROUP, b"later")])
    assert (odd.change, odd.text) == (None, "")


def test_who_is_shown_what() -> None:
    overlays = Overlays(Kept().keep)
    hidden = [event(n, kind, b"") for n, kind in enumerate((0, 5, 6, 7), 1)]
    assert list(overlays.shown([*hidden, event(9)])) == [event(9)]
    overlays.delete("s", 2)
    overlays.delete("s", 2)
    assert [e.seq for e in overlays.shown([event(1), event(2), event(3)])] == [1, 3]
    assert overlays.shown([]) == []
    other = [event(2, session="t")]
    assert overlays.shown(other) is other, "as they came, when there is nothing to say"


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.binary(max_size=2)), max_size=12))
def test_what_is_kept_is_what_is_known(steps: list[tuple[int, bool, bytes]]) -> None:
    kept = Kept()
    overlays = Overlays(kept.keep)
    for seq, (target, is_edit, text) in enumerate(steps, 10):
        overlays.saw([said(seq, EDIT if is_edit else RECALL, target, text if is_edit else None)])
    again = Overlays(Kept().keep)
    again.restore(kept.areas())
    timeline = [event(seq) for seq in range(1, 7)]
    assert _looks(overlays.shown(timeline)) == _looks(again.shown(timeline))
    for one in overlays.shown(timeline):
        mine = [(is_edit, text) for target, is_edit, text in steps if target == one.seq]
        recalled = any(not is_edit for is_edit, _ in mine)
        assert one.recalled == recalled
        last = mine[-1][1] if mine else b"hi"
        assert one.text == ("" if recalled else last.decode(errors="replace"))


def _looks(events: Any) -> list[tuple[int, str, bool, bool]]:
    return [(e.seq, e.text, e.recalled, e.edited) for e in events]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "OVERLAYS_MAX", 5)
    monkeypatch.setattr(shown, "DELETED_MAX", 3)
    kept = Kept()
    overlays = Overlays(kept.keep)
    for target in range(1, 20):
        overlays.saw([said(100 + target, RECALL, target)])
        overlays.delete("t", target)
    assert len(kept) == 8
    recalled = [e.seq for e in overlays.shown([event(n) for n in range(1, 20)]) if e.recalled]
    assert recalled == [15, 16, 17, 18, 19]


def test_what_was_dropped_is_shown_as_such() -> None:
    """And as it reads now, when a later month has an edit of it."""
    gone = event(1, EventKind.DROPPED, b"")
    overlays = Overlays(Kept().keep)
    (found,) = overlays.shown([gone])
    assert (found.dropped, found.edited, found.text) == (True, False, "")
    row = pack((1, int(EDIT), "alice", None))
    textless = event(2, EDIT, pack_state("edit", [1], [("x/1", 1, row)]))
    overlays.saw([textless])
    assert [(e.dropped, e.edited, e.text) for e in overlays.shown([gone, textless])] == [
        (True, True, ""),
        (True, False, ""),
    ]
    overlays.saw([said(3, EDIT, 1, b"again")])
    (found,) = overlays.shown([gone])
    assert (found.dropped, found.edited, found.text) == (False, True, "again")
