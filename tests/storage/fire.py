"""Storage under fire: power cuts, kill -9, failing and full disks, flipped bits; the real stores.

``python -m tests.storage.fire [--minutes M] [--first SEED]`` goes through all of it with one seed
after the other; the tests do a little of it. A failure prints the command that repeats it: what is
written, cut and failed is the same again, when the threads of a writer run is not, so it may take a
few tries. Needs strace for everything but kills, flips and full disks.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.sim.mutation import FOUND, words_for
from tests.storage.flips import flips
from tests.storage.syscalls import SYNCS, Call, Disk, Run, lay_out, run_traced
from tests.storage.witness import CHECKS, Told, read_lines

MODULE = "tests.storage.writers"
KINDS = tuple(CHECKS)
ROOM_MAX = {"replica": 3_000_000, "client": 3_000_000, "views": 900_000}
"""A file of each kind grows beyond this when its writer goes on."""


def program(
    kind: str, root: Path, seed: int, steps: int, variant: str = "", first: int = 0
) -> list[str]:
    """Arguments for python: a writer of ``root / "data"``."""
    arguments = [kind, str(root / "data"), str(seed), str(first), str(steps), variant]
    return [*words_for(MODULE), *arguments]


class WriterBroke(Exception):
    """The writer ended for no reason that the fire gave it: nothing is known of the store."""


class Replay:
    """The calls of a run, one after the other, with the disk and the lines as they come about."""

    def __init__(self, run: Run, data: Path, rng: Random) -> None:
        self.disk = Disk(data, rng)
        self._calls = run.calls
        self._lines: list[str] = []

    def to(self, start: int, end: int) -> None:
        for call in self._calls[start:end]:
            self.disk.take(call)
            if call.name == "write" and not call.path.startswith(self.disk.root):
                self._lines += call.data.decode(errors="replace").splitlines()

    @property
    def told(self) -> Told:
        return read_lines(self._lines)


def power_cuts(kind: str, root: Path, seed: int, steps: int, cuts: int, variant: str = "") -> int:
    """Cut the power at random moments of a run; the number of moments with something in doubt."""
    run = run_traced(program(kind, root, seed, steps, variant), root / "calls")
    if run.code:
        raise WriterBroke(run.errors)
    rng = Random(seed)
    replay = Replay(run, root / "data", rng)
    done = in_doubt = 0
    for moment in sorted(rng.sample(range(len(run.calls)), cuts)):
        replay.to(done, moment)
        done = moment
        lay_out(replay.disk.after_cut(), root / "cut")
        told = replay.told
        CHECKS[kind](root / "cut", seed, told, deep=rng.random() < 0.2)
        in_doubt += told.done < told.asked
    return in_doubt


def kills(kind: str, root: Path, seed: int, rounds: int, steps_max: int) -> int:
    """kill -9 a writer again and again; each round goes on from the files of the one before."""
    rng = Random(seed)
    first = 0
    for _ in range(rounds):
        command = [sys.executable, *program(kind, root, seed, 1 << 30, first=first)]
        lines: list[str] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for _ in range(rng.randrange(2 * steps_max)):
                lines.append(child.stdout.readline())
            child.kill()
            lines += child.stdout.readlines()
        told = read_lines([line.rstrip("\n") for line in lines if line.endswith("\n")], first)
        assert not told.failed, told.failed
        # What the killed process left, also for the next round: a look must not tidy it up.
        shutil.copytree(root / "data", root / "seen", dirs_exist_ok=False)
        first = CHECKS[kind](root / "seen", seed, told, deep=True)
        shutil.rmtree(root / "seen")
    return first


def failing_calls(kind: str, root: Path, seed: int, steps: int, inject: str) -> Run:
    """Let calls fail. The writer says so and ends; what it told before is there, after the end of
    the process and after a power cut; and the file whose sync failed was not used again."""
    run = run_traced(program(kind, root, seed, steps), root / "calls", inject)
    rng = Random(seed)
    replay = Replay(run, root / "data", rng)
    replay.to(0, len(run.calls))
    told = replay.told
    if run.code and not told.failed:
        raise WriterBroke(run.errors)
    if run.code:
        assert told.failed.startswith(("DiskFailed", "Unknown")), told.failed
    _assert_not_used_again(run)
    for _ in range(3):
        lay_out(replay.disk.after_cut(), root / "cut")
        CHECKS[kind](root / "cut", seed, told)
    shutil.copytree(root / "data", root / "seen")
    CHECKS[kind](root / "seen", seed, told, deep=True)
    return run


def _assert_not_used_again(run: Run) -> None:
    """Of the journal. (Where a file cannot be opened or closed, SQLite's own closing writes the
    pages once more and syncs them: that is no sync of pages that the kernel has given up.)"""
    failed: Call | None = None
    for call in run.calls:
        if call.path.endswith("journal.db-wal"):
            assert failed is None, f"{failed} failed, and then {call._replace(data=call.data[:9])}"
            failed = call if call.name in SYNCS and not call.ok else None


def full_disk(kind: str, root: Path, seed: int, steps: int, room: int) -> Told:
    """No file may grow beyond ``room`` bytes; then there is room again and the writer goes on."""
    command = [sys.executable, *program(kind, root, seed, steps, f"room-{room}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    told = read_lines(done.stdout.splitlines())
    assert done.returncode == 3, done.stderr or "the room was enough"
    assert told.failed.startswith(("DiskFailed", "Unknown")), told.failed
    assert str(root / "data") in told.failed, "the error does not name the file"
    shutil.copytree(root / "data", root / "seen")
    first = CHECKS[kind](root / "seen", seed, told, deep=True)
    command = [sys.executable, *program(kind, root, seed, 30, first=first)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr or done.stdout
    again = read_lines(done.stdout.splitlines(), first)
    assert again.done == first + 30
    CHECKS[kind](root / "data", seed, again, deep=True)
    return told


# -- for long --------------------------------------------------------------------------------------


Fresh = Callable[[], Path]
"""Makes an empty directory."""


def _cut_power(kind: str, seed: int, fresh: Fresh) -> None:
    power_cuts(kind, fresh(), seed, 250, 60)


def _kill(kind: str, seed: int, fresh: Fresh) -> None:
    kills(kind, fresh(), seed, 6, 200)


def _fail_calls(kind: str, seed: int, fresh: Fresh) -> None:
    rng = Random(seed)
    for call, error in (
        ("fdatasync", "EIO"),
        ("fsync", "EIO"),
        ("pwrite64", "EIO"),
        ("pwrite64", "ENOSPC"),
    ):
        when = rng.randrange(1, 200 if call != "fsync" else 12)
        failing_calls(kind, fresh(), seed, 120, f"{call}:error={error}:when={when}+")
        failing_calls(kind, fresh(), seed, 120, f"{call}:error={error}:when={when}")


def _fill_disk(kind: str, seed: int, fresh: Fresh) -> None:
    full_disk(kind, fresh(), seed, 1 << 20, Random(seed).randrange(60_000, ROOM_MAX[kind]))


def _flip_bits(kind: str, seed: int, fresh: Fresh) -> None:
    """In the logs that a killed store leaves, and in the files of one that was closed."""
    killed, closed = fresh(), fresh()
    kills(kind, killed, seed, 1, 80)
    command = [sys.executable, *program(kind, closed, seed, 90)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=60)
    for root, suffix in ((killed, "-wal"), (closed, "")):
        for flip in flips(kind, root, Random(seed), 8, suffix):
            assert flip.outcome != "wrong", flip


PARTS: dict[str, Callable[[str, int, Fresh], None]] = {
    "power-cuts": _cut_power,
    "kills": _kill,
    "failing-calls": _fail_calls,
    "full-disk": _fill_disk,
    "flips": _flip_bits,
}


def _one_seed(kind: str, seed: int, parts: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="fire-") as top:
        for part in parts:
            PARTS[part](kind, seed, lambda: Path(tempfile.mkdtemp(dir=top)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.storage.fire", description=__doc__)
    parser.add_argument("--minutes", type=float, help="run for so long (default 1)")
    parser.add_argument("--seeds", type=int, help="run so many seeds")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--kind", choices=KINDS, help="one kind of store only")
    parser.add_argument("--part", choices=PARTS, help="one kind of fire only")
    arguments = parser.parse_args()
    minutes = arguments.minutes or (1.0 if arguments.seeds is None else math.inf)
    seeds = range(arguments.first, arguments.first + (arguments.seeds or 10**9))
    kinds = [arguments.kind] if arguments.kind else list(KINDS)
    parts = [arguments.part] if arguments.part else list(PARTS)
    end = time.monotonic() + 60 * minutes
    passed = 0
    for seed in seeds:
        if time.monotonic() > end:
            break
        for kind in kinds:
            try:
                _one_seed(kind, seed, parts)
            except BaseException as error:
                again = f"--seeds 1 --first {seed} --kind {kind}"
                again += f" --part {arguments.part}" if arguments.part else ""
                print(f"failed; again: python -m tests.storage.fire {again}", flush=True)
                if not isinstance(error, AssertionError):
                    raise
                # What a check says is a finding; anything else says that the fire is broken.
                traceback.print_exc()
                print(f"{passed} passed, 1 failed: {str(error).partition(chr(10))[0]}")
                return FOUND
        passed += 1
        print(f"seed {seed} passed", flush=True)
    print(f"{passed} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
