"""What goes wrong without reaching anybody but the log."""

from __future__ import annotations

import contextlib
import gc
import logging
from typing import Any


class Complaints(logging.Handler):
    """Errors in the log, and what asyncio could not hand to anybody."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))

    @contextlib.contextmanager
    def listening(self) -> Any:
        root, ours = logging.getLogger(), logging.getLogger("im_actors")
        level = ours.level
        # Whoever collects the log keeps the errors in it, and with them the connections.
        ours.setLevel(logging.ERROR)
        root.addHandler(self)
        try:
            yield self
            gc.collect()
        finally:
            root.removeHandler(self)
            ours.setLevel(level)
