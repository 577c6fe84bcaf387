"""Names of threads, as the operating system shows them (``top -H``, ``/proc``)."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path


def name_thread(name: str) -> None:
    """Name the calling thread, 15 bytes at most. The main thread keeps the name that it has, which
    is its process's; on systems without /proc all do."""
    if threading.current_thread() is threading.main_thread():
        return
    with contextlib.suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
