"""PROTOCOL.md is compared with the code: every example both ways, and every table.

After a change of an example's JSON, ``python tests/wire/test_protocol.py --write`` renews its hex;
the difference is for a reviewer to read.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import im_actors.wire
from im_actors.core.model import (
    NAME_BYTES_MAX,
    SESSION_BYTES_MAX,
    Event,
    EventKind,
    decode_event,
    encode_event,
    key_time_ms,
    pack,
)
from im_actors.core.spans import PREVIEW_CHARS_MAX
from im_actors.errors import BY_CODE
from im_actors.wire import answers, limits, messages, queries
from im_actors.wire.bodies import (
    BATCH_CHANGES,
    GROUP_CHANGES,
    MAILBOX_CHANGES,
    SENT_KINDS,
    check_kind_body,
)
from im_actors.wire.codec import FrameDecoder, encode_frame
from im_actors.wire.limits import WELCOME_LIMITS, Limits
from im_actors.wire.messages import MessageType

DOCUMENT = Path(im_actors.wire.__path__[0]) / "PROTOCOL.md"
BLOCK = re.compile(r"```frame\n(.*?)\n```", re.DOTALL)
BODY = re.compile(r"```body\n(\d+) (.*?)\n```", re.DOTALL)
ANSWER = re.compile(r"```answer\n(\w+) (.*?)\n```", re.DOTALL)
HEX_BYTES_PER_LINE = 24


class Example(NamedTuple):
    message: list[Any]
    frame: bytes


def from_json(value: Any) -> Any:
    """The message that a JSON rendering stands for."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if isinstance(value, dict) and set(value) == {"$bin"}:
        return bytes.fromhex(value["$bin"])
    if isinstance(value, dict) and set(value) == {"$event"}:
        return encode_event(Event._make(from_json(value["$event"])))
    return value


def bodies() -> list[tuple[int, Any, bytes]]:
    """The kind, what the body says, and its bytes."""
    found = BODY.findall(DOCUMENT.read_text())
    parts = [(kind, *block.partition("\n\n")[::2]) for kind, block in found]
    return [(int(k), from_json(json.loads(text)), bytes.fromhex(data)) for k, text, data in parts]


def parse(block: str) -> Example:
    rendering, _, frame = block.partition("\n\n")
    return Example(from_json(json.loads(rendering)), bytes.fromhex(frame))


def examples() -> list[Example]:
    return [parse(block) for block in BLOCK.findall(DOCUMENT.read_text())]


def table(*header: str) -> list[list[str]]:
    """The rows of the table under this header."""
    lines = iter(DOCUMENT.read_text().splitlines())
    for line in lines:
        if cells(line) == list(header):
            next(lines)
            rows: list[list[str]] = []
            for row in lines:
                if not row.startswith("|"):
                    return rows
                rows.append(cells(row))
    raise AssertionError(f"no table with the header {header}")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def example_of(kind: MessageType) -> Example:
    (found,) = [e for e in examples() if e.message[0] == kind]
    return found


def test_each_type_has_exactly_one_example() -> None:
    assert sorted(e.message[0] for e in examples()) == sorted(MessageType)


@pytest.mark.parametrize("kind", MessageType, ids=lambda kind: kind.name)
def test_example_encodes_and_decodes(kind: MessageType) -> None:
    example = example_of(kind)
    assert encode_frame(example.message).hex(" ") == example.frame.hex(" ")
    assert FrameDecoder().feed(example.frame) == [example.message]


@pytest.mark.parametrize("kind", MessageType, ids=lambda kind: kind.name)
def test_builder_makes_the_example(kind: MessageType) -> None:
    fields = example_of(kind).message[1:]
    build = {
        MessageType.HELLO: lambda: messages.hello(*fields[1:]),
        MessageType.SEND: lambda: messages.send(*fields),
        MessageType.FOLLOW: lambda: messages.follow(*fields),
        MessageType.UNFOLLOW: lambda: messages.unfollow(*fields),
        MessageType.PULL: lambda: messages.pull(*fields),
        MessageType.PING: lambda: messages.ping(*fields),
        MessageType.BYE: lambda: messages.bye(*fields),
        MessageType.WELCOME: lambda: messages.welcome(fields[1], fields[2], Limits()),
        MessageType.ACK: lambda: messages.acks([messages.Ack(*row) for row in fields[0]]),
        MessageType.NACK: lambda: messages.nacks([messages.Nack(*row) for row in fields[0]]),
        MessageType.EVENTS: lambda: messages.events(
            fields[0], fields[1], fields[2], fields[4], fields[3]
        ),
        MessageType.PONG: lambda: messages.pong(*fields),
        MessageType.ERROR: lambda: messages.error_message(BY_CODE[fields[0]](fields[1])),
        MessageType.SERVER_BYE: lambda: messages.server_bye(*fields),
        MessageType.HEADS: lambda: messages.heads(*fields),
        MessageType.PUSH: lambda: messages.push(*fields),
        MessageType.QUERY: lambda: queries.query(*fields),
        MessageType.SIGNAL: lambda: queries.signal(*fields),
        MessageType.ANSWER: lambda: queries.answer(fields[0], fields[3]),
        MessageType.SIGNALED: lambda: queries.signaled([queries.Signaled(*r) for r in fields[0]]),
    }
    assert encode_frame(build[kind]()) == example_of(kind).frame


@pytest.mark.parametrize("kind", MessageType, ids=lambda kind: kind.name)
def test_the_receiver_accepts_the_example(kind: MessageType) -> None:
    limits = Limits()
    accept = {
        MessageType.HELLO: messages.check_hello,
        MessageType.SEND: lambda m: messages.check_send(m, limits),
        MessageType.FOLLOW: lambda m: messages.check_follow(m, limits),
        MessageType.UNFOLLOW: lambda m: messages.check_unfollow(m, limits),
        MessageType.PULL: lambda m: messages.check_pull(m, limits),
        MessageType.PING: messages.check_ping,
        MessageType.BYE: messages.check_bye,
        MessageType.WELCOME: answers.read_welcome,
        MessageType.ACK: answers.read_acks,
        MessageType.NACK: answers.read_nacks,
        MessageType.EVENTS: answers.read_events,
        MessageType.PONG: answers.read_pong,
        MessageType.ERROR: answers.read_error,
        MessageType.SERVER_BYE: answers.read_bye,
        MessageType.HEADS: answers.read_heads,
        MessageType.PUSH: answers.read_push,
        MessageType.QUERY: queries.check_query,
        MessageType.SIGNAL: queries.check_signal,
        MessageType.ANSWER: queries.read_answer,
        MessageType.SIGNALED: queries.read_signaled,
    }
    accept[kind](example_of(kind).message)


def test_the_example_events_have_the_time_that_they_were_acked_with() -> None:
    (encoded,) = example_of(MessageType.PUSH).message[1]
    ack = example_of(MessageType.ACK).message[1][1]
    assert key_time_ms(decode_event(encoded).key) == ack[5]


def test_type_table() -> None:
    rows = table("type", "name", "from", "fields after the type")
    assert [(int(row[0]), row[1]) for row in rows] == [(t.value, t.name) for t in MessageType]
    assert [row[2] for row in rows] == ["client" if t < 64 else "server" for t in MessageType]


@pytest.mark.parametrize("kind", MessageType, ids=lambda kind: kind.name)
def test_type_table_names_as_many_fields_as_the_example_has(kind: MessageType) -> None:
    (row,) = [
        row for row in table("type", "name", "from", "fields after the type") if row[1] == kind.name
    ]
    assert len(row[3].split(", ")) == len(example_of(kind).message) - 1


def test_error_table() -> None:
    rows = table("code", "name", "retry", "definite", "meaning, and what a client does")
    assert [row[:4] for row in rows] == [
        [
            str(code),
            re.sub(r"(?<!^)(?=[A-Z])", "_", error.__name__).upper(),
            "yes" if error.retryable else "no",
            "yes" if error.definite else "no",
        ]
        for code, error in sorted(BY_CODE.items())
    ]
    assert all(row[4] for row in rows)


def test_limits_tables() -> None:
    default = Limits()
    told = table("key", "default", "unit", "meaning")
    assert [row[0] for row in told] == list(WELCOME_LIMITS)
    others = {row[0]: row[1] for row in table("name", "value", "unit", "meaning")}
    assert {row[0]: row[1] for row in told} | others == {
        **{name: str(getattr(default, name)) for name in Limits.__slots__},
        "user, device": str(NAME_BYTES_MAX),
        "session": str(SESSION_BYTES_MAX),
        "session echoed": str(limits.ECHO_BYTES_MAX),
        "token": str(limits.TOKEN_BYTES_MAX),
        "agent": str(limits.AGENT_BYTES_MAX),
        "HELLO": str(limits.HELLO_BYTES_MAX),
        "reason, detail": str(limits.DETAIL_BYTES_MAX),
        "rows": str(limits.ROWS_PER_FRAME_MAX),
        "array": str(limits.CLIENT_ARRAY_ITEMS_MAX),
        "name of a query": str(limits.QUERY_NAME_BYTES_MAX),
        "arguments": str(limits.QUERY_ARGUMENTS_MAX),
        "answer rows": str(limits.QUERY_ROWS_MAX),
        "signal": str(limits.SIGNAL_BYTES_MAX),
        "cursor": str(limits.CURSOR_BYTES_MAX),
        "label": str(limits.LABEL_BYTES_MAX),
        "preview": str(PREVIEW_CHARS_MAX),
        "skips": str(limits.SKIPS_MAX),
    }


def test_the_example_query_is_answered_by_the_example_answer() -> None:
    query = queries.check_query(example_of(MessageType.QUERY).message)
    assert queries.check_arguments(query) == query.args
    answer = queries.read_answer(example_of(MessageType.ANSWER).message)
    assert answer.request == query.request
    _version, (row,), _cursor, total = answer.value
    base, last, skipped, ranges = queries.read_row(row).inputs or [0, 0, 0, []]
    assert skipped == sum(end - start + 1 for start, end in ranges)
    assert last - base - skipped == total


def test_bodies() -> None:
    found = bodies()
    assert {kind for kind, _, _ in found} == {k for k in SENT_KINDS if k > EventKind.MESSAGE}
    for kind, said, data in found:
        assert pack(said).hex(" ") == data.hex(" ")
        check_kind_body(kind, data)


def test_values_of_answers() -> None:
    found = ANSWER.findall(DOCUMENT.read_text())
    assert {what for what, _ in found} == {"receipts", "presence"}
    (row,) = [row for row in table("what", "arguments", "value") if row[0] == "receipts"]
    for what, block in found:
        text, _, data = block.partition("\n\n")
        value = from_json(json.loads(text))
        assert what in queries.QUERIES
        assert pack(value).hex(" ") == bytes.fromhex(data).hex(" ")
        count, users, *delivered = queries.read_fields(what, value, *map(type, value))
        assert count >= len(users)
        assert len(value) == (len(row[2].split(",")) if what == "receipts" else 2), delivered


def test_tables_of_the_user_side() -> None:
    kinds = table("kind", "name", "body as sent", "in which sessions")
    assert [(int(row[0]), row[1]) for row in kinds] == [(k.value, k.name) for k in EventKind]
    assert [int(row[0]) for row in kinds if "servers only" not in row[2]] == list(SENT_KINDS)
    mailbox = table("what", "arguments", "does")
    assert [row[0] for row in mailbox] == list(MAILBOX_CHANGES)
    group = table("what", "arguments", "who may", "does")
    assert [row[0] for row in group] == list(GROUP_CHANGES)
    batch = table("what", "arguments", "when", "means")
    assert [row[0] for row in batch] == list(BATCH_CHANGES)
    asked = table("what", "arguments", "value")
    assert {row[0]: row[1] for row in asked} == {
        what: ", ".join(name for name, _ in checks) for what, checks in queries.QUERIES.items()
    }
    signals = table("what", "value", "means")
    assert [row[0] for row in signals] == list(queries.SIGNALS)


def test_the_table_of_a_conversation() -> None:
    text = DOCUMENT.read_text().partition("A **row** of a conversation")[2]
    rows = [cells(line) for line in text.splitlines()[4:] if line.startswith("|")]
    names = [row[0] for row in rows[: len(queries.ConversationRow._fields)]]
    assert names == list(queries.ConversationRow._fields)
    flags = ", ".join(f"{flag.value} {flag.name.lower()}" for flag in queries.RowFlag)
    assert flags in text


def write() -> None:
    """Renew the hex of every example."""

    def hex_lines(data: bytes) -> list[str]:
        step = HEX_BYTES_PER_LINE
        return [data[i : i + step].hex(" ") for i in range(0, len(data), step)]

    def renewed(match: re.Match[str]) -> str:
        rendering = match[1].partition("\n\n")[0]
        frame = encode_frame(from_json(json.loads(rendering)))
        return "\n".join(["```frame", rendering, "", *hex_lines(frame), "```"])

    def renewed_body(match: re.Match[str]) -> str:
        rendering = match[2].partition("\n\n")[0]
        body = pack(from_json(json.loads(rendering)))
        return "\n".join([f"```body\n{match[1]} {rendering}", "", *hex_lines(body), "```"])

    def renewed_value(match: re.Match[str]) -> str:
        rendering = match[2].partition("\n\n")[0]
        value = pack(from_json(json.loads(rendering)))
        return "\n".join([f"```answer\n{match[1]} {rendering}", "", *hex_lines(value), "```"])

    text = BLOCK.sub(renewed, DOCUMENT.read_text())
    DOCUMENT.write_text(ANSWER.sub(renewed_value, BODY.sub(renewed_body, text)))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/wire/test_protocol.py --write")
    write()
