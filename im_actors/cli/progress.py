"""How a replay goes: a bar on a terminal, and lines in any case."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, TextIO

BAR_EVERY_MESSAGES = 200


class Progress:
    """Lines go to ``stream``; the bar to standard error, and only when that is a terminal."""

    def __init__(
        self, stream: TextIO, bar: bool = True, label: str = "acked", unit: str = "msg"
    ) -> None:
        self._stream = stream
        self._wanted = bar and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._shown = 0
        self._label = label
        self._unit = unit

    def __enter__(self) -> Progress:
        if self._wanted:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
            )
            from rich.progress import Progress as Bar

            columns = (
                TextColumn(self._label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("{task.fields[rate]}"),
            )  # fmt: skip
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def moved(self, acked: int, total: int) -> None:
        if self._bar is None:
            return
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=total, rate="")
        if acked - self._shown >= BAR_EVERY_MESSAGES or acked == total:
            self._shown = acked
            speed = self._bar.tasks[0].speed
            self._bar.update(
                self._task, completed=acked, rate=f"{speed:,.0f} {self._unit}/s" if speed else ""
            )

    def say(self, text: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)
