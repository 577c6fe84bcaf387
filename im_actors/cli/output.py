"""What the commands print."""

from __future__ import annotations

import json
import sys
import unicodedata
from datetime import UTC, datetime
from typing import Any

from im_actors.core.model import Event, EventKind


def print_json(value: Any) -> None:
    """One line, written at once, so that a program that reads along has it."""
    text = json.dumps(value, ensure_ascii=False)
    # Legal inside of JSON, and line ends to some programs.
    for character in "\x7f\x85\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    print(text, flush=True)


def note(text: str) -> None:
    """A line for people, beside the output that programs read."""
    print(text, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """``text`` as a terminal may show it: another user's message must not move the cursor, clear
    the screen or write to the clipboard. Line ends stay, and are indented."""
    if text.isprintable():
        return text
    return "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    if character == "\n":
        return "\n    "
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDI:
        return "·" if character == "\t" else f"\\x{ord(character):02x}"
    return character


# Overrides and isolates that are not closed would turn the rest of the line around.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def event_line(event: Event, mark: str = "") -> str:
    """An event for people."""
    at = datetime.fromtimestamp(event.time_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    return f"#{event.seq} {at} {printable(event.sender)}{printable(said(event))}{mark}"


def said(event: Event) -> str:
    """What the sender said or did, to follow his name."""
    if event.recalled:
        return ": (recalled)"
    if event.dropped:
        if event.target is not None:
            return f" — edited #{event.target} (the new text was dropped)"
        if event.edited:
            return ": (edited, and the new text was dropped)"
        month = datetime.fromtimestamp(event.time_ms / 1000, UTC)
        return f": (the content of {month:%Y-%m} was dropped)"
    if event.change is not None:
        what, args, users = event.change
        words = [str(arg) for arg in args if isinstance(arg, (str, bool, int))]
        names = ", ".join(user for user in users if user not in words)
        return f" — {' '.join([what, *words, names]).strip()}"
    if event.kind == EventKind.RECALL:
        return f" — recalled #{event.target}"
    if event.kind == EventKind.EDIT:
        return f" — #{event.target} now reads: {event.text}"
    return f": {event.text}{' (edited)' if event.edited else ''}"


def _beside(event: Event) -> dict[str, Any]:
    """What there is to say of an event that is no plain message."""
    if event.kind == EventKind.MESSAGE:
        flags = {"recalled": event.recalled, "edited": event.edited, "dropped": event.dropped}
        return {name: True for name, value in flags.items() if value}
    fields: dict[str, Any] = {"kind": _kind_name(event.kind)}
    fields |= {name: True for name in ("recalled", "edited", "dropped") if getattr(event, name)}
    if event.target is not None:
        fields["target"] = event.target
    if event.change is not None:
        fields |= {"what": event.change.what, "users": event.change.users}
    return fields


def _kind_name(kind: int) -> str:
    return EventKind(kind).name.lower() if kind in tuple(EventKind) else str(kind)


def event_fields(event: Event) -> dict[str, Any]:
    """An event for programs. A body that is not UTF-8 comes as base64 too."""
    fields: dict[str, Any] = {
        "session": event.session,
        "seq": event.seq,
        "sender": event.sender,
        "device": event.device,
        "n": event.n,
        "time_ms": event.time_ms,
        "text": event.text,
    }
    fields |= _beside(event)
    if event.kind != EventKind.MESSAGE:
        return fields
    try:
        event.body.decode()
    except UnicodeDecodeError:
        import base64

        fields["body_base64"] = base64.b64encode(event.body).decode()
    return fields
