"""The full-screen chat without a terminal: what happens, and the lines that are then seen."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from im_actors.cli import chat_view
from im_actors.cli.chat_model import EVENTS_MAX, TALKS_MAX, Model, Own
from im_actors.client import Conversation, Event, EventKind, Page, SendState
from im_actors.client.shown import Overlays
from im_actors.core.model import make_key, pack
from tests.client.test_shown import Kept

ME = "alice/chat-0"
BOB = "bob/pc-0"
TALK = "direct:alice/bob"
CLUB = "group:club"
TIME_MS = 1_700_000_000_000
ROW = Conversation(
    session=TALK, title="bob", last_seq=0, time_ms=TIME_MS, sender="bob", preview="the last one",
    kind=EventKind.MESSAGE, unread=0, inputs=None, read_seq=0, peer_read_seq=0,
    peer_delivered_seq=0, pinned=False, muted=False, hidden=False, left=False, label="", pending=0,
)  # fmt: skip


def row(session: str, title: str, **changes: Any) -> Conversation:
    return replace(ROW, session=session, title=title, **changes)


def said(seq: int, text: str, device: str = BOB, n: int = 0) -> Event:
    key = make_key(TIME_MS + seq, 1, 0)
    return Event(TALK, seq, key, EventKind.MESSAGE, device, n or seq, text.encode())


def amends(seq: int, kind: EventKind, target: int, text: str = "", device: str = ME) -> Event:
    body = pack([target] if kind is EventKind.RECALL else [target, text.encode()])
    event = Event(TALK, seq, make_key(TIME_MS + seq, 1, 0), kind, device, seq, body)
    return Overlays(Kept().keep).shown([event])[0]


def page(*events: Event, before: int | None = None, offline: bool = False) -> Page:
    return Page(list(events), before, offline=offline, complete=True)


def model(*rows: Conversation, **folded: list[Conversation]) -> Model:
    made = Model("alice", ME, TIME_MS)
    made.listed(rows, folded, sum(row.unread for row in rows))
    return made


def text(line: chat_view.Line) -> str:
    return "".join(part for _, part in line).rstrip()


def listed(made: Model, width: int = 26, height: int = 20) -> list[str]:
    return [text(line) for line in chat_view.list_lines(made, width, height)]


def talked(made: Model, width: int = 53, height: int = 20) -> list[str]:
    """The lines of the conversation that are not empty, without times."""
    lines = map(text, chat_view.talk_lines(made, width, height).lines)
    return [line[6:] if line[2:3] == ":" else line for line in lines if line]


def opened(*events: Event, **fields: Any) -> Model:
    made = model(ROW)
    made.opened(TALK)
    made.paged(TALK, page(*events, **fields))
    return made


# -- the list --------------------------------------------------------------------------------------


def test_the_list() -> None:
    made = model(
        row("direct:alice/carol", "carol", unread=3, pinned=True, preview="hi\nthere"),
        row(CLUB, "The club", unread=1_500, muted=True),
        row(TALK, "bob", kind=EventKind.RECALL, preview=""),
        later=[row("team", "team", unread=2), row("direct:alice/zoe", "zoe")],
    )
    assert listed(made) == [
        "*carol  hi there         3",
        "~The club  the last … 999+",
        "bob  (recalled)",
        "▸ later (2)              2",
    ]
    assert [made.choose(1) for _ in range(4)] == ["direct:alice/carol", CLUB, TALK, ""]
    assert made.fold()
    assert listed(made)[4:] == ["  team  the last one     2", "  zoe  the last one"]
    assert made.choose(1) == "team"
    assert not made.fold()
    assert made.choose(-10) == "direct:alice/carol"
    assert (made.find("ZO"), made.find("nobody")) == ("direct:alice/zoe", "")


def test_what_is_chosen_stays_chosen_and_on_the_screen() -> None:
    rows = [row(f"direct:alice/u{n:02}", f"u{n:02}", preview="") for n in range(50)]
    made = model(*rows)
    made.opened("direct:alice/u30")
    assert any("u30" in line for line in listed(made, height=10))
    made.listed(rows[::-1], {}, 0)
    assert made.session == "direct:alice/u30"
    assert (made.left_below(), len(listed(made, height=10))) == (30, 10)


def test_what_the_list_does_not_have_yet_is_in_it_when_it_was_opened_or_waits() -> None:
    made = model()
    assert listed(made) == ["no conversations yet"]
    made.sent("direct:alice/dave", Own(1, "waits"))
    made.knows("direct:alice/dave")
    made.opened("team")
    assert listed(made) == ["team", "dave"]
    made.listed([row("team", "team", preview="x")], {}, 0)
    assert listed(made) == ["dave", "team  x"]
    made.knows("team")
    made.listed([], {}, 0)
    assert listed(made) == ["dave"], "what the list had and has no more is hidden or left"
    made.closed()
    assert made.session == ""


# -- a conversation --------------------------------------------------------------------------------


def test_messages_and_what_became_of_them() -> None:
    made = opened(said(1, "one"), said(2, "tow", ME), said(3, "three", ME))
    made.took(TALK, [amends(4, EventKind.EDIT, 2, "two"), amends(5, EventKind.RECALL, 3)])
    assert talked(made) == [
        "── 2023-11-14", "bob: one", "alice: two (edited) ✓", "alice: (recalled) ✓",
    ]  # fmt: skip
    made.took(TALK, [amends(6, EventKind.EDIT, 3, "never"), amends(7, EventKind.RECALL, 1)])
    assert talked(made)[1:] == ["bob: (recalled)", "alice: two (edited) ✓", "alice: (recalled) ✓"]
    assert made.last_own() == 2
    # An older edit that comes in a later page does not hold.
    made.paged(TALK, page(amends(2, EventKind.EDIT, 2, "old")), is_older=True)
    made.took(TALK, [amends(8, EventKind.RECALL, 2)])
    assert made.last_own() is None


def test_own_messages_go_from_waiting_to_read() -> None:
    made = opened(said(1, "one"))
    own = Own(7, "mine")
    made.sent(TALK, own)
    seen = []
    for state in (SendState.SAVING, SendState.IN_FLIGHT, SendState.ACKED):
        own.state = state
        seen.append(talked(made)[-1].strip())
    assert seen == ["you: mine …", "you: mine ↑", "you: mine ✓"]
    made.took(TALK, [said(2, "mine", ME, 7)])
    assert talked(made)[-1] == "alice: mine ✓"
    made.listed([replace(ROW, peer_delivered_seq=2)], {}, 0)
    assert talked(made)[-1] == "alice: mine ✓✓"
    made.listed([replace(ROW, peer_read_seq=2)], {}, 0)
    assert talked(made)[-1] == "alice: mine ✓✓ read"
    made.sent(TALK, Own(8, "no", SendState.REFUSED, "you are no\x1b[2J member"))
    assert talked(made)[-1].strip() == "you: no ✗ (you are no\\x1b[2J member)"
    late = Own(7, "mine")
    made.sent(TALK, late)
    assert late not in made.opened(TALK).own, "its event was there before its receipt"


def test_a_message_that_is_acked_and_not_on_the_newest_page_does_not_stay_below_it() -> None:
    made = opened(said(1, "one"))
    made.sent(TALK, Own(1, "mine", SendState.ACKED, seq=2))
    made.paged(TALK, page(*(said(n, str(n)) for n in range(200, 210)), before=200))
    assert talked(made)[-1] == "bob: 209"
    assert made.talk is not None
    assert (made.talk.seqs[0], made.talk.older) == (200, 200), "no gap is shown as none"


def test_scrolling_stays_where_it_is_when_news_come() -> None:
    events = [said(n, f"line {n}") for n in range(11, 61)]
    made = opened(*events, before=11)
    size = (53, 20)
    assert talked(made)[-1] == "bob: line 60"
    assert chat_view.scroll(made, *size, up=True) is False
    before = talked(made)
    assert before[-1] == "bob: line 41"
    made.took(TALK, [said(61, "news")])
    assert talked(made) == before
    assert chat_view.scroll(made, *size, up=True) is True, "older ones are asked for"
    assert talked(made)[0] == "── 2023-11-14"
    made.paged(TALK, page(*(said(n, f"line {n}") for n in range(1, 11))), is_older=True)
    chat_view.scroll(made, *size, up=True)
    assert talked(made)[1] == "bob: line 1"
    for _ in range(4):
        chat_view.scroll(made, *size, up=False)
    assert talked(made)[-1] == "bob: news"
    assert made.talk is not None
    assert made.talk.bottom is None


def test_offline_it_says_what_is_missing() -> None:
    made = opened(offline=True)
    assert talked(made) == [
        "offline: this is what this computer has", "the last one: bob: the last one",
    ]  # fmt: skip
    made.paged(TALK, Page([said(3, "x")], 3, offline=True, complete=False))
    made.listed([], {}, 0)
    assert talked(made)[:2] == [
        "page up: older messages", "offline: this is what this computer has; some",
    ]  # fmt: skip
    made.paged(TALK, page(said(1, "w"), said(2, "x"), said(3, "y")))
    assert [line for line in talked(made) if "offline" in line or "older" in line] == []


def test_what_is_kept_is_seen_until_the_newest_page_comes() -> None:
    made = model(ROW)
    made.opened(TALK)
    assert talked(made)[-1] == "the last one: bob: the last one"
    made.kept(TALK, Page([said(1, "a"), said(5, "e")], 1, offline=True, complete=False))
    assert talked(made)[-2:] == ["bob: a", "bob: e"]
    made.paged(TALK, page(said(4, "d"), said(5, "e"), before=4))
    assert talked(made) == ["page up: older messages", "── 2023-11-14", "bob: d", "bob: e"]


def test_read_is_what_was_really_shown() -> None:
    made = model(replace(ROW, unread=2, read_seq=1, last_seq=3))
    made.opened(TALK)
    assert made.to_read(TALK, 3) == 0, "nothing was read yet"
    made.paged(TALK, page(said(1, "a"), said(2, "b"), said(3, "c")))
    drawn = chat_view.talk_lines(made, 53, 20)
    assert (drawn.shown, made.to_read(TALK, drawn.shown)) == (3, 3)
    made.show(["help"])
    assert chat_view.talk_lines(made, 53, 20).shown == 0
    made.show([])
    made.listed([replace(ROW, read_seq=3, last_seq=3)], {}, 0)
    made.took(TALK, [said(4, "mine", ME)])
    assert made.to_read(TALK, 4) == 0, "one's own need no reading"
    made.took(TALK, [said(5, "news")])
    assert made.to_read(TALK, 5) == 5
    made.listed([replace(ROW, read_seq=3, left=True)], {}, 0)
    assert made.to_read(TALK, 5) == 0


def test_a_group_change_and_who_types() -> None:
    made = opened(said(1, "a"))
    made.chosen = CLUB
    made.opened(CLUB)
    event = Event(CLUB, 1, make_key(TIME_MS, 1, 0), EventKind.GROUP, BOB, 1,
                  pack(["add", [["carol"]], [("m/carol", 1, b"")]]))  # fmt: skip
    made.paged(CLUB, page(*Overlays(Kept().keep).shown([event])))
    assert talked(made)[-1] == "bob — add carol"
    assert made.talk is not None
    made.talk.typing = ("bob", "carol")
    made.connection(True, "", 0, TIME_MS)
    assert "bob, carol are typing" in text(chat_view.status_line(made, 80))


def test_the_connection() -> None:
    made = model(replace(ROW, unread=4))
    assert text(chat_view.status_line(made, 80)) == " connecting … | alice | 4 unread"
    assert not made.connection(False, "", 0, TIME_MS + 1)
    assert made.connection(False, "refused", 2, TIME_MS + 60_000)
    offline = text(chat_view.status_line(made, 80))
    assert offline.startswith(" OFFLINE since ")
    assert offline.endswith("| alice | 4 unread | 2 pending | refused")
    assert not made.connection(False, "refused", 2, TIME_MS + 90_000)
    assert text(chat_view.status_line(made, 80)) == offline
    assert made.connection(True, "", 0, TIME_MS + 99_000)
    assert text(chat_view.status_line(made, 80)).startswith(" online since ")


def test_help_can_be_read_to_its_end() -> None:
    made = model()
    made.show([str(n) for n in range(50)])
    seen = talked(made, height=20)
    for _ in range(3):
        chat_view.scroll(made, 53, 20, up=False)
        seen += talked(made, height=20)
    assert set(seen) == {str(n) for n in range(50)}
    chat_view.scroll(made, 53, 20, up=True)
    assert talked(made)[0] == "11"


def test_what_is_held_is_bounded() -> None:
    made = opened(*(said(n, "x") for n in range(1, EVENTS_MAX + 11)))
    assert made.talk is not None
    assert (len(made.talk.events), made.talk.seqs[0], made.talk.older) == (EVENTS_MAX, 11, 11)
    for n in range(2 * TALKS_MAX):
        made.opened(f"room-{n}")
    assert len(made._talks) == TALKS_MAX


def test_it_fits_into_every_size() -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    words = ["a", "word", "你好", "x" * 90, "👩‍👩‍👧", "e\u0301", "\n", "\x1b[2J", "ｱ"]
    made = opened(*(said(n, " ".join(rng.choices(words, k=9))) for n in range(1, 40)))
    made.sent(TALK, Own(1, "\n".join(words)))
    for _ in range(200):
        width, height = rng.randint(1, 90), rng.randint(1, 30)
        drawn = chat_view.talk_lines(made, width, height).lines
        lines = [*drawn, *chat_view.list_lines(made, width, height),
                 chat_view.status_line(made, width), chat_view.hint_line(made, width),
                 chat_view.header_line(made, width)]  # fmt: skip
        assert len(drawn) == height
        for line in lines:
            columns = sum(chat_view.columns(part) for _, part in line)
            assert columns <= max(2, width), f"{line} in {width} columns; seed {seed}"


@pytest.mark.parametrize(
    ("given", "width", "lines"),
    [
        ("", 10, [""]), ("one two three", 8, ["one two", "three"]), ("abcdef", 4, ["abcd", "ef"]),
        ("你好吗", 4, ["你好", "吗"]), ("a\nb", 4, ["a", "b"]),
        ("ab cdefghi", 4, ["ab", "cdef", "ghi"]),
        (" 你好", 3, ["", "你", "好"]),
    ],
)  # fmt: skip
def test_wrapping(given: str, width: int, lines: list[str]) -> None:
    assert chat_view.wrapped(given, width) == lines


def test_fitting() -> None:
    assert [chat_view.fit("abcdef", n) for n in (0, 1, 4, 8)] == ["", "…", "abc…", "abcdef  "]
    assert chat_view.fit("你好吗", 4) == "你… "
