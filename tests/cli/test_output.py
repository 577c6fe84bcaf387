from __future__ import annotations

import json

import pytest

from im_actors.cli.output import event_fields, event_line, print_json, printable
from im_actors.core.model import Event, make_key


def event(body: bytes) -> Event:
    return Event("team", 3, make_key(1_767_225_600_000, 0, 0), 1, "alice/phone-1", 2, body)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hello 你好 👩‍👩‍👧‍👦 é", "hello 你好 👩‍👩‍👧‍👦 é"),
        ("\x1b]52;c;AAAA\x07", "\\x1b]52;c;AAAA\\x07"),
        ("a\x9b31mb", "a\\x9b31mb"),
        ("two\nlines", "two\n    lines"),
        ("a\rb", "a\\x0db"),
        ("\u202eevil", "\\x202eevil"),
        ("e\u0301", "e\u0301"),
    ],
)
def test_a_message_cannot_drive_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_event_for_people() -> None:
    line = event_line(event(b"hi\x1b[2J"), " *")
    assert line.startswith("#3 20")
    assert line.endswith(" alice: hi\\x1b[2J *")


def test_an_event_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(event_fields(event("你\n好\u2028".encode())))
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    assert json.loads(out) == {
        "session": "team", "seq": 3, "sender": "alice", "device": "alice/phone-1", "n": 2,
        "time_ms": 1_767_225_600_000, "text": "你\n好\u2028",
    }  # fmt: skip


def test_a_body_that_is_no_text_is_not_lost() -> None:
    assert event_fields(event(b"\xff\x00"))["body_base64"] == "/wA="
