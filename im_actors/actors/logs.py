"""The log of an actor: ``logs/<name>.log`` in the data directory, bounded."""

from __future__ import annotations

import asyncio
import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

LOG_BYTES_MAX = 4 * 1024 * 1024
LOG_FILES_OLD = 2
LOGS = "logs"


class _Formatter(logging.Formatter):
    """Appends slot and epoch where the record has them (``extra={"slot": …, "epoch": …}``)."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        known = [f"{key}={vars(record)[key]}" for key in ("slot", "epoch") if key in vars(record)]
        return f"{line} [{' '.join(known)}]" if known else line


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
    pattern = "%(asctime)s %(levelname)s %(process)d %(name)s %(message)s"
    handler.setFormatter(_Formatter(pattern))
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
