"""Chat files: JSON Lines, gzipped or not, one message a line."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from im_actors.core.model import BODY_BYTES_MAX, SESSION_BYTES_MAX, check_text
from im_actors.errors import ImError, SetupError

SUFFIX_BYTES = 16
"""Room that is left in a session's name for the run's id."""


class Line(NamedTuple):
    """One message of a chat file."""

    conversation: str
    sender: str
    sent_ms: int | None
    """Since the Unix epoch; None when the file does not say."""
    text: str
    id: str


def read_chat(path: Path, limit: int | None = None) -> list[Line]:
    """The messages of a file, in its order, at most ``limit``. SetupError names a wrong line."""
    lines: list[Line] = []
    try:
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if limit is not None and len(lines) >= limit:
                    break
                if text.strip():
                    lines.append(_line(text, f"{path}:{number}"))
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SetupError(f"{path} is damaged: {error}") from None
    if not lines:
        raise SetupError(f"{path} holds no message")
    return lines


def write_chat(path: Path, lines: Iterable[Line]) -> None:
    """The same form; gzipped when the name ends in .gz."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        for line in lines:
            fields = {
                "conversation": line.conversation,
                "sender": line.sender,
                "sent_at": None if line.sent_ms is None else _iso(line.sent_ms),
                "text": line.text,
                "client_msg_id": line.id,
            }
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def _line(text: str, where: str) -> Line:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise SetupError(f"{where}: this is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise SetupError(f"{where}: this is not a JSON object")
    try:
        conversation = check_text(
            "conversation", fields.get("conversation"), SESSION_BYTES_MAX - SUFFIX_BYTES
        )
        sender, body = fields.get("sender"), fields.get("text")
        if not isinstance(sender, str) or not sender:
            raise SetupError("sender must be a string that is not empty")
        if not isinstance(body, str) or _bytes_of(body) > BODY_BYTES_MAX:
            raise SetupError(f"text must be a string of at most {BODY_BYTES_MAX} bytes of UTF-8")
        sent_ms = _sent_ms(fields.get("sent_at"))
    except ImError as error:
        raise SetupError(f"{where}: {error}") from None
    return Line(conversation, sender, sent_ms, body, str(fields.get("client_msg_id") or ""))


def _bytes_of(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise SetupError("text holds a lone surrogate, which UTF-8 cannot carry") from None


def _sent_ms(value: object) -> int | None:
    if value is None:
        return None
    try:
        # fromisoformat knows the ending Z from Python 3.11 on.
        return int(datetime.fromisoformat(str(value)).timestamp() * 1000)
    except ValueError:
        raise SetupError(f"sent_at {value!r} is not a time like 2026-01-31T12:00:00Z") from None


def _iso(ms: int) -> str:
    from datetime import UTC

    return datetime.fromtimestamp(ms / 1000, UTC).isoformat().replace("+00:00", "Z")


class Rate(NamedTuple):
    """How fast a file is played; one of the two is set."""

    per_second: float | None
    speed: float | None
    """Times real time."""


def parse_rate(text: str) -> Rate:
    """ "500" is 500 messages a second, "60x" is sixty times the pace of the file's own times."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(x?)", text.strip().lower())
    if match is None or float(match[1]) <= 0:
        raise SetupError(
            f"--rate {text!r} is neither messages per second, like 500, nor times real time,"
            " like 60x"
        )
    value = float(match[1])
    return Rate(None, value) if match[2] else Rate(value, None)


def due_times(lines: list[Line], rate: Rate | None) -> list[float]:
    """Seconds after the start at which each line is to be sent.

    At a multiple of real time every conversation begins at the start: in files whose conversations
    are years apart, nobody wants to wait for the years.
    """
    if rate is None:
        return [0.0] * len(lines)
    if rate.per_second is not None:
        return [index / rate.per_second for index in range(len(lines))]
    assert rate.speed is not None
    first: dict[str, int] = {}
    due: list[float] = []
    for line in lines:
        if line.sent_ms is None:
            raise SetupError(
                "this file does not say when its messages were sent: give --rate in messages per"
                " second, like 500"
            )
        start = first.setdefault(line.conversation, line.sent_ms)
        due.append(max(0, line.sent_ms - start) / 1000 / rate.speed)
    return due
