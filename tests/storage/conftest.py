"""Builds logs that an honest owner could have written, and keeps what they should read as."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from im_actors.core.facts import pack_request, pack_state
from im_actors.core.model import (
    Event,
    EventKind,
    Record,
    body_checksum,
    encode_event,
    epoch_start,
    make_record,
    next_key,
    pack_record,
    sealed_record,
)

START_MS = 1_700_000_000_000


def quick_directory() -> tempfile.TemporaryDirectory[str]:
    """In memory where the system has a place for that: for many small stores whose syncs are not
    what is tested."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)


class LogBuilder:
    """An owner's counters. ``events`` is the model: session -> its events in order."""

    def __init__(self) -> None:
        self.logs: dict[int, list[Record]] = defaultdict(list)
        self.events: dict[str, list[Event]] = defaultdict(list)
        self.n: dict[tuple[str, str], int] = defaultdict(int)
        self.keys: dict[int, int] = defaultdict(int)
        self.epochs: dict[int, int] = defaultdict(lambda: 1)
        self.now_ms = START_MS

    def record(
        self,
        slot: int,
        *sends: tuple[str, str],
        body: bytes = b"hello",
        kind: EventKind = EventKind.MESSAGE,
    ) -> Record:
        """The next record of a slot, with one event for each (session, device address)."""
        encoded = []
        for session, device in sends:
            self.n[session, device] += 1
            self.keys[slot] = next_key(self.keys[slot], self.now_ms, slot)
            event = Event(
                session,
                len(self.events[session]) + 1,
                self.keys[slot],
                int(kind),
                device,
                self.n[session, device],
                body,
            )
            self.events[session].append(event)
            encoded.append(encode_event(event))
        return self._add(slot, make_record(slot, self._lsn(slot), self.epochs[slot], encoded))

    def state(self, slot: int, session: str, *facts: tuple[str, int, bytes | None]) -> Record:
        """The next record of a slot, with a state event of a session that says facts (key, rank,
        value). Its index has the checksum of what was sent, of which the owner made the body."""
        body, asked = pack_state("put", [], facts), pack_request("put")
        lsn, epoch, *_ = self.record(slot, (session, "u/d"), body=body, kind=EventKind.GROUP)
        event = self.events[session][-1]
        checksum = body_checksum(event.kind, asked)
        entry = (session, event.seq, event.device, event.n, checksum)
        payload = pack_record([entry], (event.key, event.key), [encode_event(event)], [0])
        self.logs[slot][-1] = sealed_record(slot, lsn, epoch, payload)
        return self.logs[slot][-1]

    def epoch(self, slot: int) -> Record:
        """An EpochStart."""
        self.epochs[slot] += 1
        self.keys[slot] = next_key(self.keys[slot], self.now_ms, slot)
        return self._add(
            slot, epoch_start(slot, self._lsn(slot), self.epochs[slot], self.keys[slot])
        )

    def _lsn(self, slot: int) -> int:
        return len(self.logs[slot]) + 1

    def _add(self, slot: int, record: Record) -> Record:
        self.logs[slot].append(record)
        return record

    def batch(self, slot: int, first: int = 1, last: int = 1 << 40) -> list[tuple[int, Record]]:
        return [(slot, r) for r in self.logs[slot] if first <= r.lsn <= last]


@pytest.fixture
def log() -> LogBuilder:
    return LogBuilder()


@pytest.fixture
def new_log() -> Callable[[], LogBuilder]:
    return LogBuilder


@pytest.fixture
def flip() -> Callable[..., None]:
    return flip_byte


def flip_byte(path: Path, at: int, mask: int = 0x10) -> None:
    """Change bits of one byte of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ mask]))


@pytest.fixture
def find_bytes() -> Callable[[Path, bytes], int]:
    """Where in a file some bytes are; fails when they are not there exactly once or more."""

    def find(path: Path, wanted: bytes) -> int:
        at = path.read_bytes().find(wanted)
        assert at >= 0, f"{wanted!r} is not in {path}"
        return at

    return find


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts file systems (root only): ``mounted("-t", "tmpfs", ...)`` answers the mount point."""
    points: list[Path] = []

    def mount(*arguments: str) -> Path:
        point = tmp_path / f"mount{len(points)}"
        point.mkdir()
        done = subprocess.run(
            ["mount", *arguments, str(point)], capture_output=True, text=True, check=False
        )
        if os.geteuid() != 0 or done.returncode:
            pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
        points.append(point)
        return point

    yield mount
    for point in reversed(points):
        subprocess.run(["umount", "--lazy", str(point)], check=False)
