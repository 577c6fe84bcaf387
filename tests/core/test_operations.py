"""The table of operations: every one has a builder, and every argument a check."""

import inspect
from typing import Any

import pytest

from im_actors.core import batch, batch_rules, devices, groups, mailbox, notes
from im_actors.core.batch import CHUNKS_MAX, CONTENT_BYTES_MAX, PROGRESS_CHUNKS_MAX
from im_actors.core.facts import pack_request, read_request
from im_actors.core.model import EventKind
from im_actors.core.operations import (
    NUMBER_MAX,
    OPERATIONS,
    READERS_MAX,
    RECEIVED_MAX,
    USERS_MAX,
    read_operation,
)
from im_actors.core.reads import Reader, reads_note
from im_actors.core.spans import Span
from im_actors.errors import BadRequest, TooLarge

GOOD: dict[str, Any] = {
    "title": "t",
    "users": ["alice"],
    "user": "alice",
    "role": "admin",
    "until_ms": 5,
    "allowed": True,
    "session": "team",
    "seq": 5,
    "pinned": True,
    "muted": True,
    "upto_seq": 0,
    "label": "",
    "device": "phone",
    "about": "",
    "from_seq": 1,
    "to_seq": 2,
    "last_key": 3,
    "preview": None,
    "skips": [1, 1],
    "recalled": [],
    "key": 9,
    "read_seq": 0,
    "delivered_seq": 0,
    "name": "mailboxes",
    "lsn": 0,
    "content": b"hello",
    "channel": "daily",
    "notice": "system",
    "total": 0,
    "dry": False,
    "chunk": 0,
    "recall": False,
    "outcomes": [[1], [0, 3, 111]],
    "settled": True,
    "active": True,
    "positions": [["direct:alice/bob", 5]],
    "readers": [["alice", 5, 2, 0]],
}
BAD: dict[str, list[Any]] = {
    "title": ["", 5, "t" * 257, "\x07"],
    "users": ["alice", ["a/b"], [5], [""], ["x"] * (USERS_MAX + 1)],
    "user": ["", 5, "a/b"],
    "role": ["king", 5, None, []],
    "until_ms": [-1, "5", True, NUMBER_MAX + 1],
    "allowed": [1, None],
    "session": ["", 5, "direct:b/a", "notice:x/alice", "s" * 321],
    "seq": [0, -1, "5", True, 1.5, NUMBER_MAX + 1],
    "pinned": [0, None],
    "muted": [0, None],
    "upto_seq": [-1, None],
    "label": [None, "x" * 65, "\n"],
    "device": ["", "a/b", None],
    "about": [None, "x" * 257],
    "from_seq": [0],
    "to_seq": [0],
    "last_key": [-1],
    "preview": [5, [1, 1, 1, "a"], [0, 1, 1, "a", "b"], [1, 1, 1, 5, "b"]],
    "skips": [None, [1], [2, 1], [0, 1], ["1", 1]],
    "recalled": [None, [1], [2, 1]],
    "key": [-1],
    "read_seq": [-1],
    "delivered_seq": [-1],
    "name": [""],
    "lsn": [-1],
    "content": ["hello", b"", b"\xff", b"x" * (CONTENT_BYTES_MAX + 1), None],
    "channel": ["", "hourly", 5],
    "notice": ["", "email", None],
    "total": [-1, None],
    "dry": [0, None],
    "chunk": [-1, CHUNKS_MAX + 1, None],
    "recall": [0, None],
    "outcomes": [5, [5], [[]], [[1, 2]], [[-1]], [["1"]], [[0]] * (PROGRESS_CHUNKS_MAX + 1)],
    "settled": [0, None],
    "active": [1, None],
    "positions": [
        *(5, [5], [["team"]], [["team", 0]], [["team", 5, 5]], [["team", "5"]]),
        [["team", 5]] * (RECEIVED_MAX + 1),
    ],
    "readers": [
        *(
            5,
            [5],
            [["alice", 5, 2]],
            [["a/b", 5, 2, 0]],
            [["alice", -1, 2, 0]],
            [["alice", 5, 2, None]],
        ),
        [["alice", 5, 2, 0]] * (READERS_MAX + 1),
    ],
}
CASES = [(kind, what) for kind, what in OPERATIONS]


@pytest.mark.parametrize(("kind", "what"), CASES)
def test_each_argument_is_checked(kind: int, what: str) -> None:
    names = [argument.name for argument in OPERATIONS[kind, what]]
    args = [GOOD[name] for name in names]
    assert read_operation(kind, pack_request(what, *args)).what == what
    for at, name in enumerate(names):
        for bad in BAD[name]:
            if (what, name, bad) == ("mute", "user", None):
                continue
            body = pack_request(what, *args[:at], bad, *args[at + 1 :])
            with pytest.raises((BadRequest, TooLarge), match=name):
                read_operation(kind, body)


@pytest.mark.parametrize(("kind", "what"), CASES)
def test_the_number_of_arguments_is_checked(kind: int, what: str) -> None:
    args = [GOOD[argument.name] for argument in OPERATIONS[kind, what]]
    for wrong in ([*args, 1], args[:-1] if args else [1, 2]):
        with pytest.raises(BadRequest, match="takes"):
            read_operation(kind, pack_request(what, *wrong))


@pytest.mark.parametrize("kind", [EventKind.GROUP, EventKind.MAILBOX, EventKind.NOTE])
def test_another_name_is_told_the_known_ones(kind: EventKind) -> None:
    with pytest.raises(BadRequest, match=next(what for of, what in OPERATIONS if of == kind)):
        read_operation(kind, pack_request("nonsense"))


def builders() -> list[tuple[int, Any]]:
    kinds = (
        (groups, EventKind.GROUP),
        (mailbox, EventKind.MAILBOX),
        (devices, EventKind.MAILBOX),
        (batch, EventKind.BATCH),
    )
    found = [
        (int(kind), function)
        for module, kind in kinds
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name.endswith("_request") and function.__module__ == module.__name__
    ]
    noted = (
        notes.span_note,
        notes.joined_note,
        notes.left_note,
        notes.receipt_note,
        notes.cursor_note,
        batch.progress_note,
        batch_rules.listing_note,
        reads_note,
    )
    return [*found, *((int(EventKind.NOTE), function) for function in noted)]


def test_every_operation_has_its_builder() -> None:
    built = set()
    for kind, builder in builders():
        names = list(inspect.signature(builder).parameters)
        good = GOOD | {"span": Span(1, 2, 3, None, ((1, 1),), ()), "outcomes": [batch.Outcome(1)]}
        good["readers"] = {"alice": Reader(5, 2)}
        body = builder(*(good[name] for name in names))
        what, _ = read_request(body)
        read_operation(kind, body)
        built.add((kind, what))
        if "span" not in names:
            assert names == [argument.name for argument in OPERATIONS[kind, what]]
    assert built == set(OPERATIONS)


def test_a_user_is_named_once() -> None:
    asked = read_operation(EventKind.GROUP, groups.add_request(["bob", "eve", "bob"]))
    assert asked.args == [["bob", "eve"]]
