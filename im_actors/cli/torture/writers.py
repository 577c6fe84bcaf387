"""The processes of writers, as their parent sees them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from im_actors.actors.processes import package_path
from im_actors.cli.torture.book import Book

READ_BYTES = 262_144


class WriterProcess:
    """One process of writers; after a crash the next one, from the same files."""

    def __init__(self, name: str, order: dict[str, Any], book: Book, log: Path) -> None:
        self.name = name
        self.crashes = 0
        self.done = asyncio.Event()
        self._order = order
        self._book = book
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._output = -1
        self._rest = b""
        self._addresses: dict[str, str] = {}
        self._stopping = False

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def users(self) -> list[str]:
        return [who["user"] for who in self._order["writers"]]

    @property
    def devices(self) -> frozenset[str]:
        """Their device addresses, as far as they are known."""
        return frozenset(self._addresses.values())

    def start(self) -> None:
        self._rest = b""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "im_actors.cli.torture.writer"],
                env={**os.environ, **package_path()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(self._order).encode() + b"\n")
        self._process.stdin.flush()
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        asyncio.get_running_loop().add_reader(self._output, self.pump)
        if self._stopping:
            self.stop()

    def pump(self) -> None:
        """Book everything that the process has told by now."""
        while self._output >= 0:
            try:
                data = os.read(self._output, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                asyncio.get_running_loop().remove_reader(self._output)
                self._output = -1
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._told(json.loads(line))

    def _told(self, words: list[Any]) -> None:
        kind, *rest = words
        if kind == "open":
            user, address, next_n, pending = rest
            self._addresses[user] = address
            self._book.reopened(address, next_n, map(tuple, pending))
        elif kind == "done":
            self.done.set()
        else:
            user, *what = rest
            self._booked(kind, user, self._addresses[user], what)

    def _booked(self, kind: str, user: str, device: str, what: list[Any]) -> None:
        book = self._book
        if kind == "try":
            book.tried(user, device, *what)
        elif kind == "kept":
            book.kept(device, *what)
        elif kind == "ack":
            book.acked_at(device, *what)
        elif kind == "refused":
            book.refused(device, *what[:2])

    async def crash(self) -> None:
        """kill -9, and read to the end what it had told before."""
        assert self._process is not None
        self.crashes += 1
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        self.pump()
        self._let_go()

    def stop(self) -> None:
        """Send nothing more; ``done`` is set when everything was answered."""
        self._stopping = True
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.write(b"stop\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                pass  # It has just crashed; the next one is told.

    async def end(self) -> int | None:
        """End it in any case; its exit code."""
        if self._process is None:
            return None
        code = self._process.poll()
        if code is None:
            self._process.kill()
        await asyncio.to_thread(self._process.wait)
        self.pump()
        self._let_go()
        return code

    def _let_go(self) -> None:
        assert self._process is not None
        if self._output >= 0:
            asyncio.get_running_loop().remove_reader(self._output)
            self._output = -1
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # What was not read any more cannot be flushed.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process = None
