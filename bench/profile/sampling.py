"""Where the actors' Python code is: py-spy looks from outside, many times a second."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

RATE = 200
"""Looks per second. More of them slow down what they look at."""
MISSING = (
    "py-spy is not installed, so the stages are left out: pip install py-spy, or this package"
    " with [bench]"
)
GRACE_S = 30.0

_THREAD = re.compile(r"thread \((?P<id>\d+)\)")
_PLACE = re.compile(r" \([^()]*\)$")


class Sample(NamedTuple):
    """One stack."""

    thread: int
    """Of the operating system; 0: not known."""
    functions: tuple[str, ...]
    """Qualified names of Python's functions and plain ones of C's, the innermost last."""
    seen: int
    """How often."""


def read_samples(lines: Iterable[str]) -> Iterator[Sample]:
    """What ``py-spy record --format raw --threads`` has written."""
    for line in lines:
        stack, _, count = line.rstrip("\n").rpartition(" ")
        if not count.isdecimal():
            continue
        thread, *frames = stack.split(";")
        found = _THREAD.match(thread)
        if found is None:
            frames.insert(0, thread)
        functions = tuple(_PLACE.sub("", frame) for frame in frames)
        yield Sample(int(found["id"]) if found else 0, functions, int(count))


def sampler() -> str | None:
    """The path of py-spy; None when it is not installed."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


async def record(program: str, pid: int, seconds: float) -> list[Sample]:
    """Look at one process. RuntimeError with py-spy's own words when it cannot."""
    with tempfile.TemporaryDirectory(prefix="im_profile-") as directory:
        return await _record(program, pid, seconds, Path(directory) / "samples")


async def _record(program: str, pid: int, seconds: float, path: Path) -> list[Sample]:
    process = await asyncio.create_subprocess_exec(
        # Its own idea of which threads are idle is often wrong: see all of them, and with the C
        # functions inside, which tell a wait from work.
        *(program, "record", "--idle", "--native", "--threads"),
        *("--format", "raw", "--rate", str(RATE)),
        *("--duration", str(max(1, int(seconds))), "--output", str(path), "--pid", str(pid)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), seconds + GRACE_S)
    except TimeoutError:
        raise RuntimeError("py-spy does not end") from None
    finally:
        if process.returncode is None:
            process.kill()
            # Not wait: what reads its output has to end, too.
            await process.communicate()
    found = _read(path)
    if process.returncode or not found:
        raise RuntimeError(f"py-spy cannot look at process {pid}: {said.decode().strip()[-300:]}")
    return found


def _read(path: Path) -> list[Sample]:
    return list(read_samples(path.read_text().splitlines())) if path.exists() else []
