"""Usage, help, exit codes, and what a command loads."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from im_actors import __version__
from im_actors.cli.main import build_parser, main
from tests.cli.conftest import Result, spawn

Run = Callable[..., Result]
COMMANDS = [
    "up", "status", "down", "send", "tail", "history", "chat", "token", "replay", "demo", "verify",
    "story", "torture", "bench", "conversations", "read", "recall", "edit", "devices", "group",
    "broadcast", "months", "top", "scale", "drain", "upgrade", "plan", "backup", "restore",
    "repair",
]  # fmt: skip


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def test_every_command_is_there() -> None:
    assert sorted(name for name, _ in parsers()) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_suffices(im: Run, command: str) -> None:
    code, out, _ = im(command, "--help")
    assert code == 0
    examples = out.partition("examples:\n")[2]
    assert f"im-actors {command}" in examples


def test_every_example_can_be_parsed() -> None:
    """An example that does not work is worse than none."""
    whole = build_parser()
    for name, parser in parsers():
        found = re.findall(r"im-actors (.+?)(?: \| .*|\) .*)?$", parser.epilog or "", re.MULTILINE)
        for example in found:
            if example.startswith(name):
                words = re.findall(r"'[^']*'|\S+", example)
                whole.parse_args([word.strip("'") for word in words])


def test_every_option_is_explained() -> None:
    for name, parser in parsers():
        for action in parser._actions:
            assert action.help, f"{name} {action.option_strings or action.dest}"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["send", "team", "hi"],
        ["tail", "team"],
        ["tail", "team", "--as", "bob", "--after", "-1"],
        ["history", "team", "--limit", "0"],
        ["up", "--port", "70000"],
        ["up", "--shards", "none"],
        ["send", "team", "hi", "--as", "alice", "--timeout", "soon"],
        ["story", "team"],
    ],
)
def test_wrong_usage_is_2(im: Run, argv: list[str]) -> None:
    code, out, err = im(*argv)
    assert (code, out) == (2, "")
    assert "usage: im-actors" in err


@pytest.mark.parametrize(
    "argv",
    [
        ["status"],
        ["status", "--json"],
        ["verify"],
        ["story", "team", "1"],
        ["token", "alice"],
        ["send", "team", "hi", "--as", "a/b"],
        ["send", "", "hi", "--as", "alice"],
        ["send", "team", "hi", "--as", "alice", "--url", "http://x"],
        ["history", "team", "--url", "im://:0"],
        ["replay", "missing.jsonl"],
        ["token", "alice", "--token-secret-file", "missing"],
    ],
)
def test_a_users_mistake_is_one_line_and_1(im: Run, argv: list[str]) -> None:
    code, out, err = im(*argv)
    assert (code, out) == (1, "")
    assert err.startswith("im-actors: ")
    assert len(err.splitlines()) == 1


def test_debug_shows_the_traceback() -> None:
    from im_actors.errors import SetupError

    for argv in (["--debug", "token", "alice"], ["token", "alice", "--debug"]):
        with pytest.raises(SetupError):
            main(argv)


def test_version(im: Run) -> None:
    assert im("--version") == (0, f"im-actors {__version__}\n", "")


def test_heavy_libraries_are_loaded_only_where_they_are_used() -> None:
    program = (
        "import sys; from im_actors.cli.main import build_parser; build_parser();"
        "print([m for m in ('ray', 'rich', 'redis', 'jwt', 'psutil', 'uvloop')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n"


TERMINATED_WHILE_IT_READS = """
import asyncio, os, signal, sys
from im_actors.cli import main as command
from im_actors.cli.replay_commands import run_loop

class Terminated(asyncio.Protocol):
    def data_received(self, data):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

async def work():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Terminated, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"x")
    try:
        await asyncio.sleep(20)
    finally:
        print("cleaned up")
    return 0

with command._terminating():
    sys.exit(run_loop(work()))
"""


def test_a_signal_that_meets_a_protocol_at_work_ends_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED_WHILE_IT_READS], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (143, "cleaned up\n"), done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    process = spawn("--help")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.wait(20)
