"""The logs of actors."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from im_actors.actors import logs

DAY_S = 86_400


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    logger = logging.getLogger("im_actors")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    for handler in list(logger.handlers):
        if handler not in before[0]:
            logger.removeHandler(handler)
            handler.close()
    logger.setLevel(before[1])
    logger.propagate = before[2]


def test_a_line_has_slot_and_epoch_where_they_are_known(tmp_path: Path) -> None:
    logs.log_to_file(tmp_path, "shard-1")
    logger = logging.getLogger("im_actors.test")
    logger.info("plain")
    logger.info("with %s", "two\nlines", extra={"slot": 3, "epoch": 7})
    try:
        raise ValueError("the error")
    except ValueError:
        logger.exception("it failed")
    text = (tmp_path / "logs" / "shard-1.log").read_text()
    plain, known, failed = map(json.loads, text.splitlines())
    assert abs(datetime.fromisoformat(plain.pop("time")).timestamp() - time.time()) < DAY_S
    assert plain == {
        "level": "INFO",
        "actor": "shard-1",
        "pid": os.getpid(),
        "logger": "im_actors.test",
        "text": "plain",
    }
    assert (known["text"], known["slot"], known["epoch"]) == ("with two\nlines", 3, 7)
    assert failed["error"].endswith("ValueError: the error")


def test_a_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES_MAX", 1_000)
    logs.log_to_file(tmp_path, "shard-1")
    for number in range(1_000):
        logging.getLogger("im_actors.test").info("line %d", number)
    files = list((tmp_path / "logs").iterdir())
    assert len(files) == 1 + logs.LOG_FILES_OLD
    assert sum(file.stat().st_size for file in files) <= 1_000 * len(files)


def test_a_disk_that_takes_no_log_does_not_stop_an_actor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("not a directory")
    logs.log_to_file(tmp_path, "shard-1")
    logging.getLogger("im_actors.test").info("still told")
    assert "still told" in capsys.readouterr().err
