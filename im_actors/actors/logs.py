"""The log of an actor: ``logs/<name>.log`` in the data directory, bounded.

Each line is a JSON object: ``time`` (UTC, ISO 8601), ``level``, ``actor``, ``pid``, ``logger``,
``text``; ``slot`` and ``epoch`` where it is about one, ``error`` (a traceback) where there was one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

LOG_BYTES_MAX = 4 * 1024 * 1024
LOG_FILES_OLD = 2
LOGS = "logs"


class _Lines(logging.Formatter):
    """Slot and epoch come with ``extra={"slot": …, "epoch": …}``."""

    def __init__(self, actor: str) -> None:
        super().__init__()
        self._actor = actor

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        fields: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "actor": self._actor,
            "pid": record.process,
            "logger": record.name,
            "text": record.getMessage(),
        }
        known = vars(record)
        fields |= {key: known[key] for key in ("slot", "epoch") if key in known}
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def log_to_file(data: Path, name: str) -> None:
    """Send what ``im_actors`` logs in this process to the actor's file.

    A disk that takes no log does not stop an actor: it logs to standard error, which Ray keeps.
    """
    handler: logging.Handler
    try:
        (data / LOGS).mkdir(parents=True, exist_ok=True, mode=0o700)
        path = data / LOGS / f"{name}.log"
        handler = RotatingFileHandler(path, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES_OLD)
    except OSError:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(name))
    logger = logging.getLogger("im_actors")
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def log_loop_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Log what goes wrong in callbacks and forgotten tasks, which Ray would not show anyone."""
    logger = logging.getLogger("im_actors.actors")

    def handler(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        logger.error("%s", context.get("message"), exc_info=context.get("exception"))

    loop.set_exception_handler(handler)
