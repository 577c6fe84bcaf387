"""The input line: what keys do to it, and how it is shown."""

from __future__ import annotations

import pytest

from im_actors.cli.terminal import EndOfInput, LineEditor, width

LEFT, RIGHT, UP, DOWN = "\x1b[D", "\x1b[C", "\x1b[A", "\x1b[B"


def typed(keys: str) -> LineEditor:
    editor = LineEditor()
    editor.feed(keys)
    return editor


def test_lines_come_out_when_they_are_finished() -> None:
    editor = LineEditor()
    assert editor.feed("hel") == []
    assert editor.feed("lo\nwor") == ["hello"]
    assert editor.text == "wor"
    assert editor.feed("ld\r\n") == ["world", ""]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("abc\x7f", "ab"),
        ("abc\x08\x08\x08\x08", ""),
        (f"ac{LEFT}b", "abc"),
        (f"bc\x01a{RIGHT}{RIGHT}d", "abcd"),
        ("one two\x17three", "one three"),
        ("one two \x17", "one "),
        ("abc\x15", ""),
        (f"abc{LEFT}{LEFT}\x0b", "a"),
        (f"abc{LEFT}{LEFT}\x15", "bc"),
        ("abc\x1b[3~", "abc"),
        (f"abc{LEFT}\x1b[3~", "ab"),
        ("a\x1b[15~b\x1b[1;5Cc", "abc"),
        ("你好\x7f", "你"),
        # A family of four and a letter with its accent are one character to a person.
        ("x👩‍👩‍👧‍👦\x7f", "x"),
        ("xe\u0301\x7f", "x"),
        ("a\x00\x07\x02b", "ab"),
        ("a\tb", "a\tb"),
    ],
)
def test_editing(keys: str, text: str) -> None:
    assert typed(keys).text == text


def test_recall() -> None:
    editor = typed("first\nsecond\n")
    editor.feed(UP + UP)
    assert editor.text == "first"
    editor.feed(UP + DOWN)
    assert editor.text == "second"
    editor.feed(DOWN)
    assert editor.text == ""
    editor.feed(DOWN + "x")
    assert editor.text == "x"


def test_an_escape_sequence_may_come_in_parts() -> None:
    editor = typed("ab")
    for key in LEFT:
        editor.feed(key)
    editor.feed("x")
    assert editor.text == "axb"


def test_end_of_input_only_on_an_empty_line() -> None:
    editor = typed("a\x04")
    assert editor.text == "a"
    editor.feed("\x15")
    with pytest.raises(EndOfInput):
        editor.feed("\x04")


def test_a_line_is_bounded() -> None:
    assert len(typed("x" * 20_000).text) == 16_384


def test_widths() -> None:
    assert [width(c) for c in "a你\u0301🦊\u200dｱ\t"] == [1, 2, 0, 2, 0, 1, 1]


def test_the_view_keeps_the_cursor_on_the_screen() -> None:
    editor = typed("0123456789")
    text, column = editor.view(5)
    assert (text, column) == ("6789", 4)
    editor.feed("\x01")
    assert editor.view(5) == ("0123", 0)
    wide = typed("你好吗")
    assert wide.view(5) == ("好吗", 4)
    assert typed("short").view(40) == ("short", 5)
