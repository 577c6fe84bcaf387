"""The full-screen chat in a pseudo terminal: the real command, a screen, and a small gateway."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest

from im_actors.errors import Forbidden
from tests.cli.conftest import ClusterThread
from tests.cli.test_user_commands import TALK, Served
from tests.cli.test_user_commands import served as served

TIMEOUT_S = 60.0
UP, DOWN, PAGE_UP, PAGE_DOWN, ESCAPE = "\x1b[A", "\x1b[B", "\x1b[5~", "\x1b[6~", "\x1b"
CTRL = {letter: chr(ord(letter) - 96) for letter in "cdenpr"}
LINES, COLUMNS = 24, 80


class Glass:
    """A chat, and what a person sees of it."""

    def __init__(self, *argv: object, term: str = "xterm") -> None:
        self.master, self._slave = pty.openpty()
        self._resize(LINES, COLUMNS)
        self.before = termios.tcgetattr(self._slave)
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "im_actors.cli", "chat", *map(str, argv)],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            cwd=Path(__file__).parents[2],
            env={**environment, "TERM": term},
            start_new_session=True,
        )

    def _resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, lines: int, columns: int) -> None:
        self.screen.resize(lines, columns)
        self._resize(lines, columns)
        self.process.send_signal(signal.SIGWINCH)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    @property
    def lines(self) -> list[str]:
        # Not ``display``, which stumbles over the half of a wide character that resizing cut.
        rows = (self.screen.buffer[y] for y in range(self.screen.lines))
        cells = range(self.screen.columns)
        return ["".join(row[x].data for x in cells).rstrip() for row in rows]

    def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Read on until what is seen meets it."""
        give_up = time.monotonic() + TIMEOUT_S
        while not condition():
            left = give_up - time.monotonic()
            assert left > 0, f"{what} was not seen:\n" + "\n".join(self.lines)
            if select.select([self.master], [], [], min(left, 0.1))[0]:
                data = os.read(self.master, 65_536)
                self.raw += data
                self._stream.feed(data)

    def sees(self, *texts: str) -> str:
        """Wait until there is a line with all of them; the line."""
        found: list[str] = []

        def seen() -> bool:
            found[:] = [line for line in self.lines if all(text in line for text in texts)]
            return bool(found)

        self.until(seen, repr(texts))
        return found[0]

    def sees_no_more(self, text: str) -> None:
        self.until(lambda: not any(text in line for line in self.lines), f"no {text!r}")

    def presses_until(self, key: str, ending: str) -> None:
        """Again and again, until a line ends so."""

        def seen() -> bool:
            if any(line.endswith(ending) for line in self.lines):
                return True
            self.type(key)
            return False

        self.until(seen, repr(ending))

    def ends(self) -> int:
        """The exit code; the terminal is as it was before."""
        self.until(lambda: self.process.poll() is not None, "the end")
        assert termios.tcgetattr(self._slave) == self.before
        while select.select([self.master], [], [], 0)[0]:
            self.raw += os.read(self.master, 65_536)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT_S)
        os.close(self.master)
        os.close(self._slave)


Look = Callable[..., Glass]


@pytest.fixture
def look() -> Iterator[Look]:
    opened: list[Glass] = []

    def start(*argv: object, **options: str) -> Glass:
        opened.append(Glass(*argv, **options))
        return opened[-1]

    yield start
    for glass in opened:
        glass.close()


def test_a_day(served: Served, look: Look) -> None:
    served.post(TALK, *(f"line {n}" for n in range(1, 231)))
    served.post("direct:alice/carol", "hello from carol", device="carol/pc-00000000")
    glass = look("alice", *served.url)
    glass.sees("carol", " 1│")
    glass.sees("bob", " 230│")
    glass.sees("online since", "231 unread")
    # Choosing shows the newest messages and marks them as read; older ones come page by page.
    glass.type(DOWN + CTRL["n"] + CTRL["p"])
    glass.sees("bob: line 230")
    glass.sees("online since", "| 1 unread")
    served.wait(lambda gateway: gateway.has_read("alice", TALK) == 230)
    glass.type(PAGE_UP)
    glass.sees("bob: line 212")
    glass.sees("older messages; page down")
    glass.presses_until(PAGE_UP, "bob: line 1")
    glass.presses_until(PAGE_DOWN, "bob: line 230")
    # What is written has its mark, is edited, taken back.
    glass.type("first thaughts\r")
    glass.sees("alice: first thaughts ✓")
    glass.type(CTRL["e"])
    glass.sees("edit #231> first thaughts")
    glass.type("\x7f" * len("thaughts") + "thoughts\r")
    glass.sees("alice: first thoughts (edited) ✓")
    glass.type(CTRL["r"])
    glass.sees("alice: (recalled)")
    served.post(TALK, "pushed")
    glass.sees("bob: pushed")
    # What is pasted is one message, however many lines it has.
    glass.type("\x1b[200~pasted\nlines\x1b[201~")
    glass.sees("> pasted")
    glass.type("\r")
    glass.sees("alice: pasted")
    served.wait(lambda gateway: gateway.texts(TALK)[-1] == "pasted\nlines")
    # The other conversation tells by its count that something came.
    served.post("direct:alice/carol", "are you there?", device="carol/pc-00000000")
    glass.sees("carol", " 2│")
    glass.type(CTRL["c"])
    assert glass.ends() == 130
    assert b"\x1b[?1049l" in glass.raw, "the other screen is back"


def test_offline_and_back(served: Served, look: Look) -> None:
    served.post(TALK, "kept here")
    first = look("alice", TALK, *served.url)
    first.sees("bob: kept here")
    served.stop()
    first.sees("OFFLINE since")
    first.type("into the void\r")
    first.sees("you: into the void …")
    first.sees("OFFLINE since", " pending")
    first.type(CTRL["d"])
    assert first.ends() == 0
    assert b" pending: kept on this computer, sent next time" in first.raw
    # Without any server the list, the messages and what waits are there.
    again = look("alice", *served.url)
    again.sees("bob  kept here")
    again.type(DOWN)
    again.sees("bob: kept here")
    again.sees("you: into the void …")
    again.sees("OFFLINE since")
    served.start()
    again.sees("alice: into the void ✓")
    again.sees("online since")
    again.type("/quit\r")
    assert again.ends() == 0


def test_a_server_that_hangs_hides_nothing(served: Served, look: Look) -> None:
    served.post(TALK, "kept here")
    first = look("alice", TALK, *served.url)
    first.sees("bob: kept here")
    first.type(CTRL["d"])
    first.ends()
    served.gateway.lose_pulls = 1_000
    served.gateway.answers_none = True
    again = look("alice", *served.url)
    again.sees("online since")
    again.type(DOWN)
    again.sees("bob: kept here")
    served.wait(lambda gateway: gateway.lose_pulls < 1_000)


def test_a_refusal_says_why_and_commands_work(served: Served, look: Look) -> None:
    glass = look("alice", *served.url)
    glass.sees("no conversations yet")
    glass.type("/new bob\r")
    glass.sees("nothing has been said here")
    glass.type("hello\r")
    glass.sees("alice: hello ✓")
    served.read("bob", TALK, 1)
    glass.sees("alice: hello ✓✓")
    glass.type("/pin\r")
    glass.sees("*bob")
    glass.type("/group create climbers bob\r")
    glass.sees("climbers", "(group:climbers)")
    glass.type("/group members\r")
    glass.sees("alice  owner")
    glass.type(ESCAPE)
    glass.sees_no_more("alice  owner")
    glass.type("/group leave\r")
    glass.sees("done")
    served.gateway.nack = lambda entry: (Forbidden, 0) if entry[3] == b"psst" else None
    glass.type("psst\r")
    glass.sees("you: psst ✗ (scripted)")
    glass.type("/nonsense\r")
    glass.sees("/nonsense is not a command")
    glass.type("/find bob\r")
    glass.sees("bob (direct:alice/bob) [pinned]")
    glass.type("/fold later\r")
    glass.sees("▸ later (1)")
    glass.sees("bob (direct:alice/bob) [pinned] [later]")
    glass.type("/help\r")
    glass.sees("escape goes back")


def test_typing_and_reading_are_seen_by_the_other(served: Served, look: Look) -> None:
    alice, bob = look("alice", TALK, *served.url), look("bob", TALK, *served.url)
    for glass in (alice, bob):
        glass.sees("nothing has been said here")
        glass.sees("online since")
    bob.type("h")
    alice.sees("online since", "bob is typing")
    bob.type("i\r")
    alice.sees("bob: hi")
    alice.sees_no_more("bob is typing")
    served.wait(lambda gateway: gateway.has_read("alice", TALK) == 1)


def test_resizing_and_small_screens(served: Served, look: Look) -> None:
    served.post(TALK, "wide 你好 " * 12)
    glass = look("alice", TALK, *served.url)
    glass.sees("bob: wide")
    glass.resize(10, 36)
    glass.until(lambda: "│" not in "".join(glass.lines), "no list")
    glass.sees("online since")
    glass.resize(30, 120)
    glass.sees("│", "bob: wide")
    glass.process.send_signal(signal.SIGTERM)
    assert glass.ends() == 143


def test_a_dumb_terminal_gets_lines(served: Served, look: Look) -> None:
    glass = look("alice", TALK, *served.url, term="dumb")
    glass.sees(f"-- {TALK} --")
    glass.type("hello\n")
    glass.sees("alice: hello ✓")
    glass.type("/quit\n")
    assert glass.ends() == 0
    assert b"\x1b" not in glass.raw


def test_two_people_and_a_cluster(shared_cluster: ClusterThread, look: Look) -> None:
    data = ("--data", shared_cluster.data)
    fay, gus = look("fay", *data), look("gus", *data)
    fay.type("/new gus\r")
    fay.sees("nothing has been said here")
    fay.type("ahoi\r")
    fay.sees("fay: ahoi ✓")
    gus.sees("fay  ahoi", " 1│")
    gus.type(DOWN)
    gus.sees("fay: ahoi")
    fay.sees("fay: ahoi ✓✓")
    gus.type("a")
    fay.sees("gus is typing")
    gus.type("hoi\r")
    fay.sees("gus: ahoi")
    gus.sees("gus: ahoi ✓✓")
    gus.type("/readers\r")
    gus.sees("#2 was read by 1: fay")
    gus.type("/online\r")
    gus.sees("connected: fay")
    fay.type("/group create club gus\r")
    fay.sees("(group:club)", "club")
    fay.type("hello club\r")
    gus.sees("club  hello club", " 1│")
    gus.type("/find club\r")
    gus.sees("fay: hello club")
    gus.type("hi\r")
    fay.sees("gus: hi")
    gus.type("/pin\r")
    gus.sees("*club")
    gus.type("/mute\r")
    gus.sees("*~club")
    gus.type("/fold later\r")
    gus.sees("▸ later (1)")
    gus.type("/group leave\r")
    gus.sees("done")
    gus.type("psst\r")
    gus.sees("you: psst ✗")
    gus.type("/find fay\r")
    gus.sees("fay: ahoi")
    gus.type("/hide\r")
    gus.sees("im-actors chat")
    gus.sees_no_more("fay  ahoi")
    for glass in (fay, gus):
        glass.type(CTRL["d"])
        assert glass.ends() == 0
