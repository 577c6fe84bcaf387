"""The full-screen chat as lines: what of the model is seen in so many columns and rows.

A line is a list of (style, text), never wider than it was asked for. Everything that comes from
other users goes through ``printable``.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from prompt_toolkit.utils import get_cwidth

from im_actors.cli.chat_help import COMMANDS, KEYS
from im_actors.cli.chat_model import Entry, Model, Own, Place, Talk
from im_actors.cli.output import printable, said
from im_actors.client import Event, EventKind, SendState
from im_actors.core.names import SessionKind, session_kind

Line = list[tuple[str, str]]

LIST_COLUMNS_MAX = 32
COLUMNS_WITH_LIST = 40
"""In fewer there is no room for the list beside the conversation."""
MARKS = {
    SendState.SAVING: "…",
    SendState.PENDING: "…",
    SendState.IN_FLIGHT: "↑",
    SendState.ACKED: "✓",
    SendState.REFUSED: "✗",
}
DIM, BOLD, WARN, NEW = "fg:ansibrightblack", "bold", "fg:ansired", "fg:ansigreen bold"
WELCOME = f"{KEYS}\n\n{COMMANDS}"


class Drawn(NamedTuple):
    """The conversation as it is seen."""

    lines: list[Line]
    shown: int
    """The greatest seq in it; 0: no event is seen."""


class _Placed(NamedTuple):
    line: Line
    place: Place
    part: int


def list_columns(columns: int) -> int:
    """How wide the list is on so wide a screen; 0: there is no room."""
    return 0 if columns < COLUMNS_WITH_LIST else min(LIST_COLUMNS_MAX, columns // 3)


# -- the list --------------------------------------------------------------------------------------


def list_lines(model: Model, width: int, height: int) -> list[Line]:
    """The part of the list around what is chosen."""
    entries = model.entries()
    keys = [entry.key for entry in entries]
    at = keys.index(model.chosen) if model.chosen in keys else 0
    top = max(0, min(at - height // 2, len(entries) - height))
    if not entries:
        return [[(DIM, fit("no conversations yet", width))]]
    return [
        _list_line(entry, width, entry.key == model.chosen) for entry in entries[top : top + height]
    ]


def _list_line(entry: Entry, width: int, chosen: bool) -> Line:
    row = entry.conversation
    if entry.folded:
        head = f"▸ {printable(entry.title)} ({entry.folded})"
    else:
        marks = ("*" if row and row.pinned else "") + ("~" if row and row.muted else "")
        head = f"{'  ' if entry.label else ''}{marks}{printable(entry.title)}"
    tail = f" {min(entry.unread, 999)}{'+' if entry.unread > 999 else ''}" if entry.unread else ""
    head = fit(head, max(0, width - len(tail)), pad=False)
    room = width - len(tail) - columns(head)
    preview = f"  {_one_line(_preview(entry))}" if row and room > 6 else ""
    style = "reverse " if chosen else ""
    quiet = row is not None and row.muted
    return [
        (style + (BOLD if entry.unread and not quiet else ""), head),
        (style + DIM, fit(preview, room)),
        (style + (DIM if quiet else NEW), tail),
    ]


def _preview(entry: Entry) -> str:
    row = entry.conversation
    assert row is not None
    if row.kind == EventKind.RECALL:
        return "(recalled)"
    return row.preview


# -- the conversation ------------------------------------------------------------------------------


def header_line(model: Model, width: int) -> Line:
    session = model.session
    if not session:
        return [(BOLD, fit("im-actors chat", width))]
    row = model.conversation(session)
    title = printable(row.title) if row else ""
    words = [title, f"({printable(session)})"] if title else [printable(session)]
    flags = {"pinned": row.pinned, "muted": row.muted, "left": row.left} if row else {}
    words += [f"[{flag}]" for flag, on in flags.items() if on]
    if row and row.label:
        words.append(f"[{printable(row.label)}]")
    return [(BOLD, fit(" ".join(words), width))]


def talk_lines(model: Model, width: int, height: int) -> Drawn:
    """The open conversation, its newest lines at the bottom."""
    if model.overlay:
        return Drawn(_text_lines(model.overlay, width)[model.overlay_top :][:height], 0)
    if not model.session or (talk := model.talk) is None:
        return Drawn(_text_lines(WELCOME.split("\n"), width)[:height], 0)
    placed = list(islice(_upwards(model, talk, width), height))
    lines = [found.line for found in reversed(placed)]
    if len(lines) < height:
        lines = [*_top(model, talk, width), *lines][-height:]
    blank: list[Line] = [[] for _ in range(height - len(lines))]
    return Drawn(blank + lines, max((p.place[1] for p in placed if not p.place[0]), default=0))


def _top(model: Model, talk: Talk, width: int) -> list[Line]:
    """What is said above the first message."""
    if talk.loading and not talk.seqs:
        return _text_lines(["reading …" + _last_known(model, talk)], width)
    lines = ["page up: older messages"] if talk.older is not None else []
    if talk.offline:
        lines.append("offline: this is what this computer has" + _last_known(model, talk))
    if talk.loaded and not talk.seqs and not talk.own and not talk.offline:
        lines.append("nothing has been said here")
    return _text_lines(lines, width)


def _last_known(model: Model, talk: Talk) -> str:
    """Of a conversation that was never opened here the list still knows the last message."""
    row = model.conversation(talk.session)
    if row is None or not row.preview or row.last_seq in talk.events:
        return "" if talk.complete else "; some messages are missing"
    return f"\nthe last one: {row.sender}: {row.preview}"


def _text_lines(texts: list[str], width: int) -> list[Line]:
    return [
        [(DIM, line)]
        for text in texts
        for part in text.split("\n")
        for line in wrapped(printable(part), width)
    ]


def scroll(model: Model, width: int, height: int, up: bool) -> bool:
    """Move by a screen. True: older messages have to be read first, or at least next."""
    talk = model.talk
    if model.overlay:
        last = max(0, len(_text_lines(model.overlay, width)) - height)
        step = 1 - height if up else height - 1
        model.overlay_top = min(last, max(0, model.overlay_top + step))
        return False
    if talk is None:
        return False
    if not up:
        _scroll_down(model, talk, width, height)
        return False
    lines = list(islice(_upwards(model, talk, width), 2 * height - 1))
    if len(lines) > height:
        found = lines[min(height - 1, len(lines) - height)]
        talk.bottom = (found.place, found.part)
    return len(lines) < 2 * height - 1


def _scroll_down(model: Model, talk: Talk, width: int, height: int) -> None:
    if talk.bottom is None:
        return
    bottom, talk.bottom = talk.bottom, None
    below = []
    for found in _upwards(model, talk, width):
        below.append(found)
        if (found.place, found.part) <= bottom:
            break
    if len(below) > height:
        found = below[len(below) - height]
        talk.bottom = (found.place, found.part)


def _upwards(model: Model, talk: Talk, width: int) -> Iterator[_Placed]:
    """Line by line from the bottom of what is seen."""
    places = talk.places()
    own = {message.n: message for message in talk.own}
    for at in reversed(range(len(places))):
        place = places[at]
        if talk.bottom is not None and place > talk.bottom[0]:
            continue
        if place[0]:
            lines = _own_lines(own[place[1]], width)
        else:
            before = talk.events[places[at - 1][1]] if at else None
            lines = _event_lines(model, talk, talk.events[place[1]], before, width)
        for part in reversed(range(len(lines))):
            if talk.bottom is None or (place, part) <= talk.bottom:
                yield _Placed(lines[part], place, part)


def _event_lines(
    model: Model, talk: Talk, event: Event, before: Event | None, width: int
) -> list[Line]:
    at = datetime.fromtimestamp(event.time_ms / 1000)
    lines: list[Line] = []
    if before is None or datetime.fromtimestamp(before.time_ms / 1000).date() != at.date():
        lines.append([(DIM, fit(f"── {at:%Y-%m-%d} ", width, pad=False))])
    name = printable(event.sender)
    is_own = event.sender == model.user
    if event.kind != EventKind.MESSAGE:
        return lines + _said_lines(f"{at:%H:%M} ", name, printable(said(event)), width, DIM)
    text, style = printable(talk.text(event.seq)), ""
    if talk.is_recalled(event.seq):
        text, style = "(recalled)", DIM
    elif talk.is_edited(event.seq):
        text += " (edited)"
    if asked := talk.asked.get(event.seq):
        text += f" ({asked} …)"
    if is_own:
        text += f" {_mark(model, talk, event)}"
    colour = "fg:ansicyan" if is_own else "fg:ansiyellow"
    return lines + _said_lines(f"{at:%H:%M} ", name, f": {text}", width, style, colour)


def _mark(model: Model, talk: Talk, event: Event) -> str:
    """One for: it has its place, on three disks; two for: it has come to a device of the other,
    or, as it says then, was read."""
    row = model.conversation(talk.session)
    if row is None or session_kind(talk.session) is not SessionKind.DIRECT:
        return "✓"
    if row.peer_read_seq >= event.seq:
        return "✓✓ read"
    return "✓✓" if row.peer_delivered_seq >= event.seq else "✓"


def _own_lines(own: Own, width: int) -> list[Line]:
    refused = own.state is SendState.REFUSED
    why = f" ({printable(own.why)})" if own.why else ""
    text = f": {printable(own.text)} {MARKS[own.state]}{why}"
    return _said_lines("      ", "you", text, width, WARN if refused else DIM, "fg:ansicyan")


def _said_lines(
    before: str, name: str, text: str, width: int, style: str, colour: str = ""
) -> list[Line]:
    """The time and the name in a colour of their own, and the rest indented below the name."""
    indent = len(before)
    if width <= 4 * indent:
        before, indent = "", 0
    first, *rest = wrapped(name + text, width - indent)
    head, tail = first[: len(name)], first[len(name) :]
    lines: list[Line] = [[(DIM, before), (colour or style, head), (style, tail)]]
    return lines + [[(style, " " * indent + part)] for part in rest]


# -- the lines below -------------------------------------------------------------------------------


def hint_line(model: Model, width: int) -> Line:
    talk = model.talk
    if model.notice:
        return [(BOLD, fit(_one_line(model.notice), width))]
    if model.overlay:
        return [(BOLD, fit("-- escape goes back; page down for what follows --", width))]
    if talk is not None and talk.bottom is not None:
        return [(BOLD, fit("-- older messages; page down for the newest --", width))]
    return [(DIM, fit("-" * width, width))]


def prompt_text(model: Model) -> str:
    if model.editing is not None:
        return f"edit #{model.editing}> "
    return "> "


def status_line(model: Model, width: int) -> Line:
    since = datetime.fromtimestamp(model.since_ms / 1000)
    words = []
    match model.online:
        case None:
            style, state = "reverse", "connecting …"
        case True:
            style, state = "reverse", f"online since {since:%H:%M:%S}"
        case False:
            style, state = f"reverse {WARN}", f"OFFLINE since {since:%H:%M:%S}"
    words.append(printable(model.user))
    if model.unread:
        words.append(f"{model.unread} unread")
    if model.pending:
        words.append(f"{model.pending} pending")
    if model.talk is not None and model.talk.typing:
        names = ", ".join(map(printable, model.talk.typing[:3]))
        words.append(f"{names} {'is' if len(model.talk.typing) == 1 else 'are'} typing")
    if model.online is False and model.why:
        words.append(_one_line(model.why))
    return [(style, fit(f" {state} | {' | '.join(words)}", width))]


# -- text ------------------------------------------------------------------------------------------


def columns(text: str) -> int:
    return len(text) if text.isascii() else sum(map(get_cwidth, text))


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def fit(text: str, width: int, pad: bool = True) -> str:
    """The beginning of it, in exactly or, unpadded, at most so many columns."""
    used = columns(text)
    if used > width:
        kept, used = [], 0
        for character in text:
            if used + get_cwidth(character) > width - 1:
                break
            kept.append(character)
            used += get_cwidth(character)
        text = "".join(kept)
        if width > 0:
            text, used = text + "…", used + 1
    return text + " " * (width - used) if pad else text


def wrapped(text: str, width: int) -> list[str]:
    """In lines of at most so many columns, broken at spaces where there are some."""
    return [line for part in text.split("\n") for line in _wrapped(part, max(2, width))]


def _wrapped(text: str, width: int) -> list[str]:
    if columns(text) <= width:
        return [text]
    lines, start, used, space = [], 0, 0, 0
    for at, character in enumerate(text):
        size = get_cwidth(character)
        while used + size > width:
            end = space if space > start else at
            lines.append(text[start:end].rstrip())
            start = end
            used = columns(text[start:at])
        used += size
        if character == " ":
            space = at + 1
    return [*lines, text[start:]]
