"""CPU of each thread of the cluster, as /proc tells it."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from im_actors.cli.bench.server_side import TICKS_PER_S, ServerSide, Usage

NAMED = ("loop", "journal", "history")
"""The threads that do the work; all others are Ray's."""
OTHERS = "ray"


@dataclass(frozen=True, slots=True)
class ThreadTime:
    """One thread of one process, at one moment or between two."""

    kind: str
    name: str
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Look:
    """All threads, by process and thread id."""

    threads: dict[tuple[int, int], ThreadTime]

    def since(self, before: Look) -> Look:
        """What they used after ``before``."""
        spent = {}
        for key, now in self.threads.items():
            then = before.threads.get(key)
            cpu_us = now.cpu_us - (then.cpu_us if then else 0.0)
            spent[key] = ThreadTime(now.kind, now.name, cpu_us)
        return Look(spent)

    def by_thread(self) -> dict[str, dict[str, float]]:
        """Microseconds by kind of actor and name of thread."""
        found: dict[str, dict[str, float]] = {}
        for thread in self.threads.values():
            of_kind = found.setdefault(thread.kind, defaultdict(float))
            of_kind[thread.name if thread.name in NAMED else OTHERS] += thread.cpu_us
        return found

    def names(self, pid: int) -> dict[int, str]:
        """Of the threads of one process."""
        return {thread: time.name for (of, thread), time in self.threads.items() if of == pid}

    def busiest(self) -> dict[str, int]:
        """For each kind the process that used most."""
        used: dict[tuple[str, int], float] = defaultdict(float)
        for (pid, _), thread in self.threads.items():
            used[thread.kind, pid] += thread.cpu_us
        # The last one of a kind stays, which is the one that used most.
        return dict(sorted(used, key=lambda key: used[key]))


def look(kinds: dict[int, str]) -> Look:
    """The threads of these processes; those that end meanwhile are left out."""
    threads = {}
    for pid, kind in kinds.items():
        for folder in _tasks(pid):
            with contextlib.suppress(OSError, IndexError, ValueError):
                name = (folder / "comm").read_text().strip()
                threads[pid, int(folder.name)] = ThreadTime(kind, name, _cpu_us(folder))
    return Look(threads)


def _tasks(pid: int) -> Iterable[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return ()


def _cpu_us(folder: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        # In nanoseconds; not all kernels have it.
        if used := int((folder / "schedstat").read_text().split()[0]):
            return used / 1e3
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1e6 / TICKS_PER_S


class WatchedServers(ServerSide):
    """Looks at the threads, too, whenever the load generator asks what the servers have used."""

    def __init__(self, kinds: dict[int, str], session: int) -> None:
        super().__init__(kinds, session)
        self.kinds = kinds
        self.looks: list[Look] = []

    def usage(self) -> Usage:
        self.looks.append(look(self.kinds))
        return super().usage()

    def last_phase(self) -> Look:
        """Of the last phase: the load generator asks when it begins and when it ends."""
        return self.looks[-1].since(self.looks[-2])
