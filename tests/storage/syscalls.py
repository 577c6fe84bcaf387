"""Runs a program under strace and says what it asked of the disk and of the network, in order.

What counts is what the program asked the kernel for, whichever library asked: the real journal with
the real SQLite. ``Disk`` plays the calls back and knows what a power cut at any moment may leave.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

_CALLS = (
    "openat,write,pwrite64,fsync,fdatasync,ftruncate,rename,unlink,mkdir,sendto,"
    # Never seen from SQLite and asyncio; their appearance would make this module blind.
    "writev,pwritev,sendmsg,fallocate,renameat2,unlinkat,mkdirat"
)
_BLIND = {"writev", "pwritev", "sendmsg", "fallocate", "renameat2", "unlinkat", "mkdirat"}
SYNCS = ("fsync", "fdatasync")
_BYTES_MAX = 4 << 20
TIMEOUT_S = 60


class Call(NamedTuple):
    """One call. ``path`` is that of its file or the name of its socket; ``ok``: it succeeded."""

    name: str
    path: str
    data: bytes
    number: int
    """pwrite64: the offset; ftruncate: the size."""
    ok: bool
    target: str = ""
    """rename: the new name."""
    flags: str = ""


@dataclass(slots=True)
class Run:
    """What a program did under strace."""

    calls: list[Call]
    code: int
    lines: list[str]
    """What it printed."""
    errors: str


def strace_or_skip() -> str:
    """The path of strace; skips where it is absent or may not trace."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace, which is not installed")
    probe = [strace, "-f", "-o", os.devnull, "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here (ptrace is forbidden)")
    return strace


def run_traced(program: Sequence[str], log: Path, inject: str = "") -> Run:
    """Run ``python <program>`` under strace. ``inject`` makes calls fail, as strace writes it."""
    options = ["-f", "-qq", "-y", "-xx", "-s", str(_BYTES_MAX), "-e", f"trace={_CALLS}"]
    options += ["-e", "signal=none", "-o", str(log)]
    if inject:
        options += ["-e", f"inject={inject}"]
    else:
        # Only traced calls stop the program; strace cannot inject together with this.
        options.append("--seccomp-bpf")
    command = [strace_or_skip(), *options, sys.executable, *program]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            out, errors = child.communicate(timeout=TIMEOUT_S)
        except BaseException:
            # The program too: without its tracer it would go on alone.
            os.killpg(child.pid, signal.SIGKILL)
            raise
    return Run(list(_read(log)), child.returncode, out.splitlines(), errors)


# -- strace's output -------------------------------------------------------------------------------

_LINE = re.compile(r"^(\d+) +(.*)$")
_RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$")
_WHOLE = re.compile(r"^(\w+)\((.*)\) += +(-?\d+)(.*)$")
_DESCRIPTOR = re.compile(r"^\d+<([^>]*)>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def _read(log: Path) -> Iterator[Call]:
    """The calls in the order of their ends: a call that has not ended has promised nothing."""
    begun: dict[str, str] = {}
    with log.open() as file:
        for line in file:
            match = _LINE.match(line.rstrip("\n"))
            assert match, line[:200]
            thread, text = match.groups()
            if text.endswith("<unfinished ...>"):
                begun[thread] = text.removesuffix("<unfinished ...>").rstrip()
                continue
            resumed = _RESUMED.match(text)
            if resumed:
                text = begun.pop(thread) + resumed.group(2)
            whole = _WHOLE.match(text)
            if whole:
                call = _call(whole.group(1), whole.group(2), int(whole.group(3)))
                if call is not None:
                    yield call
    # Written in part or not at all when the program was killed: both are possible.
    for text in begun.values():
        whole = _WHOLE.match(text + ") = 0")
        if whole and whole.group(1) in ("pwrite64", "write"):
            call = _call(whole.group(1), whole.group(2), 0)
            if call is not None:
                yield call


def _call(name: str, arguments: str, result: int) -> Call | None:
    descriptor = _DESCRIPTOR.match(arguments)
    path = _bytes(descriptor.group(1)).decode(errors="replace") if descriptor else ""
    texts = [_bytes(text) for text in _TEXT.findall(arguments)]
    ok = result >= 0
    if name in _BLIND:
        assert not path.startswith("/") or not ok, f"{name} is not understood here"
        return None
    if name in ("rename", "unlink", "mkdir"):
        names = [text.decode() for text in texts]
        return Call(name, names[0], b"", 0, ok, names[1] if len(names) > 1 else "")
    if name == "openat":
        if "O_CREAT" not in arguments:
            return None
        flags = arguments.rpartition('"')[2]
        return Call(name, os.path.normpath(texts[0].decode()), b"", 0, ok, flags=flags)
    if name == "ftruncate":
        return Call(name, path, b"", int(arguments.rpartition(",")[2]), ok)
    data = texts[0] if texts else b""
    if name == "pwrite64":
        return Call(name, path, data[:result] if ok else b"", int(arguments.rpartition(",")[2]), ok)
    return Call(name, path, data[:result] if ok and data else b"", 0, ok)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


# -- the disk --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _File:
    synced: bytearray = field(default_factory=bytearray)
    later: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, data), or (size, None) for a truncation, since the last sync."""
    end: int = 0
    """Where ``write`` without an offset goes on."""

    def sync(self) -> None:
        for at, data in self.later:
            _put(self.synced, at, data)
        self.later.clear()

    def lose(self, rng: Random) -> None:
        """A sync failed: the kernel has given up what it held, and a later sync will not bring it.
        Of each sector nobody knows whether it was written."""
        self.synced = bytearray(_torn(self, rng, 0.5, 4096))
        self.later.clear()


@dataclass(slots=True)
class _Naming:
    """A change of names, and the directories that a sync of makes it last."""

    directories: set[str]
    old: str
    new: str
    """Empty for a removal."""
    file: _File | None
    """Set when it is a new file's name."""


def _put(content: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        del content[at:]
        content.extend(bytes(at - len(content)))
        return
    content.extend(bytes(max(0, at - len(content))))
    content[at : at + len(data)] = data


class Disk:
    """What is under ``root`` as calls go by: what is synced, and what is only in the kernel."""

    def __init__(self, root: Path, rng: Random) -> None:
        self.root = str(root)
        self._rng = rng
        self._files: dict[str, _File] = {}
        self._lasting: dict[str, _File] = {}
        self._names: list[_Naming] = []

    def take(self, call: Call) -> None:
        """Let a call happen."""
        inside = call.path.startswith(self.root + "/") or call.path == self.root
        if not inside:
            return
        if not call.ok:
            if call.name in SYNCS and call.path in self._files:
                self._files[call.path].lose(self._rng)
            return
        match call.name:
            case "openat":
                self._open(call)
            case "pwrite64" | "write":
                file = self._files[call.path]
                at = call.number if call.name == "pwrite64" else file.end
                file.later.append((at, call.data))
                file.end = at + len(call.data)
            case "ftruncate":
                self._files[call.path].later.append((call.number, None))
            case name if name in SYNCS:
                if call.path in self._files:
                    self._files[call.path].sync()
                else:
                    self._sync_names(call.path)
            case "rename" | "unlink":
                self._rename(call.path, call.target)

    def _open(self, call: Call) -> None:
        file = self._files.get(call.path)
        if file is None:
            file = self._files[call.path] = _File()
            self._names.append(_Naming({os.path.dirname(call.path)}, "", call.path, file))
        if "O_TRUNC" in call.flags:
            file.later.append((0, None))
        file.end = 0

    def _rename(self, old: str, new: str) -> None:
        _move(self._files, old, new)
        directories = {os.path.dirname(name) for name in (old, new) if name}
        self._names.append(_Naming(directories, old, new, None))

    def _sync_names(self, directory: str) -> None:
        waiting, self._names = self._names, []
        for naming in waiting:
            if directory in naming.directories:
                _rename_in(self._lasting, naming)
            else:
                self._names.append(naming)

    def after_cut(self) -> dict[str, bytes]:
        """The files by relative name as a power cut now may leave them.

        Everything synced is there. Of the rest, any sectors are: of each file's writes since its
        last sync a random part, and of the new names a random number, in their order.
        """
        rng, names = self._rng, dict(self._lasting)
        for naming in self._names[: rng.randint(0, len(self._names))]:
            _rename_in(names, naming)
        odds = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        sector = rng.choice((512, 4096))
        start = len(self.root) + 1
        return {name[start:]: _torn(file, rng, odds, sector) for name, file in names.items()}


def _move(files: dict[str, _File], old: str, new: str) -> None:
    for name in [name for name in files if name == old or name.startswith(old + "/")]:
        file = files.pop(name)
        if new:
            files[new + name[len(old) :]] = file


def _rename_in(files: dict[str, _File], naming: _Naming) -> None:
    if naming.file is not None:
        files[naming.new] = naming.file
    else:
        _move(files, naming.old, naming.new)


def _torn(file: _File, rng: Random, odds: float, sector: int) -> bytes:
    content = bytearray(file.synced)
    pieces: list[tuple[int, bytes | None]] = []
    for at, data in file.later:
        if data is None:
            pieces.append((at, None))
            continue
        while data:
            size = min(len(data), sector - at % sector)
            pieces.append((at, data[:size]))
            at, data = at + size, data[size:]
    lost = rng.randrange(len(pieces)) if pieces and rng.random() < 0.3 else None
    for index, (at, data) in enumerate(pieces):
        if index != lost and (lost is not None or rng.random() < odds):
            _put(content, at, data)
    return bytes(content)


def lay_out(files: dict[str, bytes], root: Path) -> None:
    """Write files to an empty directory."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
