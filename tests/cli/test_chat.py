"""A conversation between two terminals, and one through pipes."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import ClusterThread, spawn

TIMEOUT_S = 60.0


class Window:
    """A chat in a pseudo terminal, and what it has shown."""

    def __init__(self, *argv: object) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "im_actors.cli", "chat", *map(str, argv)],
            stdin=slave,
            stdout=slave,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "COLUMNS": "100", "LINES": "30"},
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Read on until the pattern was shown; what has been shown up to then."""
        give_up = time.monotonic() + TIMEOUT_S
        while not (match := re.search(pattern, self.shown)):
            left = give_up - time.monotonic()
            assert left > 0, f"{pattern!r} was not shown in {self.shown!r}"
            if select.select([self._master], [], [], left)[0]:
                self.shown += self._read()
        found, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return found

    def _read(self) -> str:
        try:
            data = os.read(self._master, 65_536)
        except OSError:
            data = b""
        assert data, f"the chat ended after {self.shown!r}"
        return data.decode(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT_S)
        os.close(self._master)


@pytest.fixture
def windows() -> Iterator[list[Window]]:
    opened: list[Window] = []
    yield opened
    for window in opened:
        window.close()


def test_two_people_talk(shared_cluster: ClusterThread, windows: list[Window]) -> None:
    session = f"talk-{uuid.uuid4().hex[:6]}"
    for user in ("alice", "bob"):
        windows.append(Window(user, session, "--plain", "--data", shared_cluster.data))
        windows[-1].wait_for(f"{session}> ")
    alice, bob = windows
    bob.type("half a li")
    bob.wait_for("half a li")
    alice.type("hello 你好\n")
    alice.wait_for("#1 .* alice: hello 你好 ✓")
    shown = bob.wait_for("#1 .* alice: hello 你好[^✓]*half a li")
    # The line that is being typed was cleared, and is drawn again below the message.
    assert re.search(r"\r\x1b\[K#1 .*\n\r\x1b\[K.*half a li", shown)
    bob.type("ne\n")
    bob.wait_for("#2 .* bob: half a line ✓")
    alice.wait_for("#2 .* bob: half a line")
    alice.type("/help\n")
    alice.wait_for("/join SESSION")
    alice.type("/nonsense\n")
    alice.wait_for("is not a command")
    alice.type("/sessions\n")
    alice.wait_for(f"{session}: #2")
    alice.type(f"/join {session}-2\n")
    alice.wait_for(f"-- {session}-2 --")
    bob.type("still here\n")
    alice.wait_for(rf"\[{session}\] #3 .* bob: still here")
    alice.type("/history\n/where\n")
    alice.wait_for("nothing is pending")
    alice.type("/quit\n")
    bob.type("\x04")
    assert alice.process.wait(TIMEOUT_S) == 0
    assert bob.process.wait(TIMEOUT_S) == 0


def test_offline_and_back(own_cluster: ClusterThread, windows: list[Window]) -> None:
    own_cluster.stop()
    alice = Window("alice", "team", "--plain", "--data", own_cluster.data)
    windows.append(alice)
    alice.wait_for(r"-- offline: .*")
    alice.type("into the void\n")
    alice.wait_for("… into the void  .kept on this computer")
    alice.wait_for(r"team \(offline, 1 pending\)> ")
    alice.type("/where\n")
    alice.wait_for("team 1: on this device")
    alice.type("/quit\n")
    assert alice.process.wait(TIMEOUT_S) == 0
    own_cluster.start()
    again = Window("alice", "team", "--plain", "--data", own_cluster.data)
    windows.append(again)
    again.wait_for("#1 .* alice: into the void ✓")


def test_ctrl_c_ends_it_and_mends_the_terminal(
    shared_cluster: ClusterThread, windows: list[Window]
) -> None:
    import termios

    window = Window("carol", "team", "--plain", "--data", shared_cluster.data)
    windows.append(window)
    window.wait_for("team> ")
    assert not termios.tcgetattr(window._master)[3] & termios.ICANON
    window.process.send_signal(2)
    assert window.process.wait(TIMEOUT_S) == 130
    assert termios.tcgetattr(window._master)[3] & termios.ICANON


def test_through_pipes(shared_cluster: ClusterThread) -> None:
    session = f"pipe-{uuid.uuid4().hex[:6]}"
    process = spawn("chat", "ci", session, "--data", shared_cluster.data, stdin=subprocess.PIPE)
    out, err = process.communicate("one\n//two\n\n", timeout=TIMEOUT_S)
    assert (process.returncode, err) == (0, "")
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[0] == f"-- {session} --"
    assert [line.rpartition(" ci: ")[2] for line in lines[1:]] == ["one ✓", "/two ✓"]
