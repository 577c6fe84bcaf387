from __future__ import annotations

import io
import sys

import pytest

from im_actors.cli.progress import Progress


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_lines_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, out = Screen(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with Progress(out) as progress:
        progress.say("before")
        for acked in range(0, 1_001, 100):
            progress.moved(acked, 1_000)
        progress.say("[not markup] meanwhile")
    assert out.getvalue() == "before\n"
    assert "1000/1000" in screen.getvalue()
    assert "[not markup] meanwhile" in screen.getvalue()


def test_no_bar_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, out = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    with Progress(out) as progress:
        progress.moved(10, 10)
        progress.say("line")
    assert (out.getvalue(), errors.getvalue()) == ("line\n", "")
