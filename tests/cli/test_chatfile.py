from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from im_actors.cli.chatfile import Line, Rate, due_times, parse_rate, read_chat, write_chat
from im_actors.cli.generated import generate
from im_actors.errors import SetupError

GOOD = {"conversation": "team", "sender": "alice", "sent_at": None, "text": "hi"}


@pytest.mark.parametrize("name", ["chat.jsonl", "chat.jsonl.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    lines = generate(200)
    write_chat(tmp_path / name, lines)
    assert read_chat(tmp_path / name) == lines
    assert read_chat(tmp_path / name, limit=7) == lines[:7]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        (json.dumps(GOOD | {"conversation": ""}), "conversation"),
        (json.dumps(GOOD | {"conversation": "x" * 310}), "limit is 304"),
        (json.dumps(GOOD | {"sender": None}), "sender"),
        (json.dumps(GOOD | {"text": 5}), "text"),
        (json.dumps(GOOD | {"text": "x" * 65_537}), "65536"),
        (json.dumps(GOOD | {"text": "\ud800"}), "surrogate"),
        (json.dumps(GOOD | {"sent_at": "yesterday"}), "sent_at"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, hint: str) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(SetupError, match="chat.jsonl:2: .*" + hint):
        read_chat(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="No such file"):
        read_chat(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(SetupError, match="holds no message"):
        read_chat(tmp_path / "empty.jsonl")
    (tmp_path / "plain.jsonl.gz").write_text(json.dumps(GOOD))
    with pytest.raises(SetupError, match="cannot be read"):
        read_chat(tmp_path / "plain.jsonl.gz")
    whole = gzip.compress(json.dumps(GOOD).encode() * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SetupError, match="is damaged"):
        read_chat(tmp_path / "cut.jsonl.gz")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(SetupError, match="is damaged"):
        read_chat(tmp_path / "latin.jsonl")


def test_rates() -> None:
    assert parse_rate("500") == Rate(500.0, None)
    assert parse_rate("60x") == Rate(None, 60.0)
    assert parse_rate("0.5X") == Rate(None, 0.5)
    for wrong in ("0", "-1", "fast", "x", "1e3", ""):
        with pytest.raises(SetupError, match="--rate"):
            parse_rate(wrong)


def test_due_times() -> None:
    lines = [
        Line("a", "x", 1_000, "", ""),
        Line("a", "x", 61_000, "", ""),
        Line("b", "x", 9_000_000, "", ""),
        Line("b", "x", 9_006_000, "", ""),
    ]
    assert due_times(lines, None) == [0.0] * 4
    assert due_times(lines, Rate(2.0, None)) == [0.0, 0.5, 1.0, 1.5]
    assert due_times(lines, Rate(None, 60.0)) == [0.0, 1.0, 0.0, 0.1]
    with pytest.raises(SetupError, match="messages per second"):
        due_times([Line("a", "x", None, "", "")], Rate(None, 60.0))
