"""What the processes of a cluster on this machine use: CPU and memory, as /proc tells them."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from im_actors.cli.target import Running
from im_actors.errors import ImError

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
RAY = "ray"
"""Ray's own processes, which the cluster needs to run: they count, too."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Per kind of actor, since the processes began."""

    cpu_us: dict[str, int]
    rss_bytes: dict[str, int]

    def cpu_since(self, before: Usage) -> dict[str, int]:
        """Microseconds of CPU per kind since an earlier look."""
        return {kind: us - before.cpu_us.get(kind, 0) for kind, us in self.cpu_us.items()}


class ServerSide:
    """The processes of a cluster that ``up`` started on this machine."""

    def __init__(self, kinds: dict[int, str], session: int) -> None:
        self._kinds = kinds
        self._session = session

    @classmethod
    async def find(cls, running: Running | None) -> ServerSide | None:
        """None when the cluster is not here or cannot tell its processes."""
        if running is None or not running.run.ray_sid:
            return None
        try:
            pids: dict[str, int] = await running.call("pids")
        except ImError:
            return None
        session = running.run.ray_sid
        kinds = {pid: name.rpartition("-")[0] or name for name, pid in pids.items()}
        # A process of another host may have the number of one of ours, but not its session.
        return cls(kinds, session) if kinds.keys() <= set(of_session(session)) else None

    def usage(self) -> Usage:
        """What they have used up to now."""
        cpu: dict[str, int] = {}
        rss: dict[str, int] = {}
        for pid in of_session(self._session):
            with contextlib.suppress(OSError, IndexError):
                kind = self._kinds.get(pid, RAY)
                cpu_us, rss_bytes = process_usage(pid)
                cpu[kind] = cpu.get(kind, 0) + cpu_us
                rss[kind] = rss.get(kind, 0) + rss_bytes
        return Usage(cpu, rss)


def of_session(session: int) -> list[int]:
    """The processes of a session (setsid)."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(int(name)) == session:
                found.append(int(name))
    return found


def process_usage(pid: int) -> tuple[int, int]:
    """Microseconds of CPU of all its threads, and bytes of memory that are its own or shared."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1_000_000 // TICKS_PER_S, int(
        fields[21]
    ) * PAGE_BYTES
