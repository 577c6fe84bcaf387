"""The machine that a figure was measured on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from pathlib import Path


def fsync_us(directory: Path, rounds: int = 200, size: int = 4096) -> dict[str, float]:
    """Microseconds of one append and fdatasync in ``directory``: p50 and p99."""
    path = directory / f".fsync-{os.getpid()}"
    data = os.urandom(size)
    taken: list[float] = []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        for _ in range(rounds):
            started = time.perf_counter()
            os.write(descriptor, data)
            os.fdatasync(descriptor)
            taken.append((time.perf_counter() - started) * 1e6)
    finally:
        os.close(descriptor)
        path.unlink()
    cuts = statistics.quantiles(taken, n=100)
    return {"p50": round(cuts[49], 1), "p99": round(cuts[98], 1)}


def describe() -> dict[str, str | int]:
    """Cores, memory, processor and versions."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    processor = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else ""
    return {
        "cores": os.cpu_count() or 0,
        "memory_gib": round(pages * size / 2**30),
        "processor": processor,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }
