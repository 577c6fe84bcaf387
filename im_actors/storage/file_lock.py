"""One process at a time: a lock that the kernel takes away from a process that dies."""

from __future__ import annotations

import os
from pathlib import Path

from im_actors.errors import DiskFailed, WrongDirectory

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock
    fcntl = None  # type: ignore[assignment]


class FileLock:
    """Holds ``path`` until ``release`` or the end of the process, also by kill -9.

    The lock is on a file beside it, ``path`` + ".lock": SQLite has locks of its own on a database,
    which come and go. It holds against other handles of the same process, too. WrongDirectory says
    who has it; ``why`` explains there why it cannot be shared.
    """

    def __init__(self, path: Path, why: str) -> None:
        self._descriptor: int | None = None
        if fcntl is None:  # pragma: no cover - SQLite's own locks have to do
            return
        name = f"{path}.lock"
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DiskFailed(f"the lock file {name} cannot be opened: {error}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            who = f"process {holder}" if holder else "another process"
            raise WrongDirectory(f"{path} is in use by {who}: {why}") from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise DiskFailed(f"the lock file {name} cannot be written: {error}") from None
        self._descriptor = descriptor

    def release(self) -> None:
        """The file stays: removing it would let two processes lock two files of one name."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
