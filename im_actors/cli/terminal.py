"""The input line of a terminal program, kept whole while other lines are printed above it.

``LineEditor`` decides, ``Terminal`` does: it puts a POSIX terminal into cbreak mode, reads keys and
redraws the one line. No curses, no readline: the rest of the screen stays an ordinary scrollback.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import shutil
import sys
import unicodedata
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

LINE_CHARACTERS_MAX = 16_384
RECALLED_MAX = 100


class EndOfInput(Exception):
    """Ctrl-D on an empty line."""


class LineEditor:
    """Keys in, finished lines out; what is being typed stays here."""

    def __init__(self) -> None:
        self.text = ""
        self.cursor = 0
        self._escape = ""
        self._recalled: list[str] = []
        self._position = 0

    def feed(self, keys: str) -> list[str]:
        """The lines that these keys finish. EndOfInput at Ctrl-D on an empty line."""
        lines = []
        for key in keys:
            if self._escape:
                self._escape_key(key)
            elif key in "\r\n":
                lines.append(self._finish())
            elif key == "\x1b":
                self._escape = key
            elif key == "\x04" and not self.text:
                raise EndOfInput
            else:
                self._key(key)
        return lines

    def _finish(self) -> str:
        line, self.text, self.cursor = self.text, "", 0
        if line:
            self._recalled = [*self._recalled[-RECALLED_MAX + 1 :], line]
        self._position = len(self._recalled)
        return line

    def _key(self, key: str) -> None:
        match key:
            case "\x7f" | "\x08":
                start = self._before(self.cursor)
                self._cut(start, self.cursor)
            case "\x01":
                self.cursor = 0
            case "\x05":
                self.cursor = len(self.text)
            case "\x0b":
                self._cut(self.cursor, len(self.text))
            case "\x15":
                self._cut(0, self.cursor)
            case "\x17":
                head = self.text[: self.cursor].rstrip()
                self._cut(head.rfind(" ") + 1, self.cursor)
            case _ if key == "\t" or not unicodedata.category(key).startswith("C") or key in _JOIN:
                self._insert(key)

    def _insert(self, key: str) -> None:
        if len(self.text) < LINE_CHARACTERS_MAX:
            self.text = self.text[: self.cursor] + key + self.text[self.cursor :]
            self.cursor += 1

    def _cut(self, start: int, end: int) -> None:
        self.text = self.text[:start] + self.text[end:]
        self.cursor = start

    def _before(self, place: int) -> int:
        """The start of the character that ends at ``place``, with its combining marks."""
        place = max(0, place - 1)
        while place and (width(self.text[place]) == 0 or self.text[place - 1] == "\u200d"):
            place -= 1
        return place

    def _escape_key(self, key: str) -> None:
        """Arrows, Home, End and Delete; other sequences are swallowed whole."""
        self._escape += key
        if self._escape in ("\x1b[", "\x1bO") or (key.isdigit() or key == ";"):
            return
        sequence, self._escape = self._escape, ""
        match sequence[-1]:
            case "D":
                self.cursor = self._before(self.cursor)
            case "C":
                self.cursor = min(len(self.text), self.cursor + 1)
                while self.cursor < len(self.text) and width(self.text[self.cursor]) == 0:
                    self.cursor += 1
            case "H":
                self.cursor = 0
            case "F":
                self.cursor = len(self.text)
            case "A" | "B":
                self._recall(-1 if sequence[-1] == "A" else 1)
            case "~" if sequence == "\x1b[3~" and self.cursor < len(self.text):
                self._cut(self.cursor, self.cursor + 1)

    def _recall(self, step: int) -> None:
        self._position = min(len(self._recalled), max(0, self._position + step))
        found = self._recalled[self._position : self._position + 1]
        self.text = found[0] if found else ""
        self.cursor = len(self.text)

    def view(self, columns: int) -> tuple[str, int]:
        """The part of the text around the cursor that fits, and the cursor's column in it."""
        start = self.cursor
        used = 0
        while start and used + width(self.text[start - 1]) < columns:
            start -= 1
            used += width(self.text[start])
        end, total = self.cursor, used
        while end < len(self.text) and total + width(self.text[end]) < columns:
            total += width(self.text[end])
            end += 1
        return self.text[start:end].replace("\t", " "), used


_JOIN = frozenset("\u200c\u200d")


def width(character: str) -> int:
    """Columns of one character on a terminal: 2 for wide ones, 0 for marks."""
    if character == "\t":
        return 1
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


class Terminal:
    """A terminal whose last line is being typed. Use as ``async with``."""

    def __init__(self) -> None:
        self.prompt = "> "
        self._editor = LineEditor()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._saved: list[Any] | None = None
        self._descriptor = sys.stdin.fileno()

    async def __aenter__(self) -> Terminal:
        import termios
        import tty

        self._saved = termios.tcgetattr(self._descriptor)
        # cbreak keeps Ctrl-C a signal, so that the loop's own way of ending goes on working.
        tty.setcbreak(self._descriptor)
        asyncio.get_running_loop().add_reader(self._descriptor, self._readable)
        self.redraw()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import termios

        asyncio.get_running_loop().remove_reader(self._descriptor)
        if self._saved is not None:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._saved)
        sys.stdout.write("\r\x1b[K")
        sys.stdout.flush()

    def _readable(self) -> None:
        data = os.read(self._descriptor, 4096)
        try:
            if not data:
                raise EndOfInput
            lines = self._editor.feed(self._decoder.decode(data))
        except EndOfInput:
            self._lines.put_nowait(None)
            return
        for line in lines:
            self._lines.put_nowait(line)
        self.redraw()

    async def lines(self) -> AsyncIterator[str]:
        """What is typed, until Ctrl-D."""
        while (line := await self._lines.get()) is not None:
            yield line

    def say(self, text: str) -> None:
        """Print above the input line."""
        sys.stdout.write(f"\r\x1b[K{text}\n")
        self.redraw()

    def redraw(self) -> None:
        columns = shutil.get_terminal_size().columns
        room = max(8, columns - sum(map(width, self.prompt)) - 1)
        text, column = self._editor.view(room)
        at = sum(map(width, self.prompt)) + column
        forward = f"\x1b[{at}C" if at else ""
        sys.stdout.write(f"\r\x1b[K{self.prompt}{text}\r{forward}")
        sys.stdout.flush()


class Plain:
    """Standard input and output that are no terminal: lines in, lines out."""

    prompt = ""

    async def __aenter__(self) -> Plain:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def lines(self) -> AsyncIterator[str]:
        """Standard input, read in a thread of its own that does not hold up the exit."""
        import threading

        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | None] = asyncio.Queue()

        def read() -> None:
            try:
                for line in sys.stdin:
                    loop.call_soon_threadsafe(queue.put_nowait, line.rstrip("\n"))
                loop.call_soon_threadsafe(queue.put_nowait, None)
            except RuntimeError:
                pass  # the loop is closed: the chat has ended before the input

        threading.Thread(target=read, name="im-actors input", daemon=True).start()
        while (line := await queue.get()) is not None:
            yield line

    def say(self, text: str) -> None:
        print(text, flush=True)

    def redraw(self) -> None:
        pass
