"""What the simulation holds groups against knows the rules, and sees rows that do not follow."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from im_actors.core.model import Event, EventKind, make_key
from tests.sim.groups import ADMIN, MEMBER, OWNER, STRANGER, GroupModel, Standing, refuses

KEY = make_key(1_700_000_000_000, 0, 0)
GROUP = "group:crew"


def asked(what: str, *args: Any) -> bytes:
    return bytes(msgpack.packb([what, args]))


def event(seq: int, user: str, kind: EventKind, body: bytes) -> Event:
    return Event(GROUP, seq, KEY + seq, kind, f"{user}/phone", seq, body)


def change(seq: int, user: str, what: str, rows: dict[str, Any]) -> Event:
    facts = [(key, 0, msgpack.packb([1, *row])) for key, row in rows.items()]
    return event(seq, user, EventKind.GROUP, msgpack.packb([what, [], facts]))


def crew() -> GroupModel:
    """u0 has made it with u1, and made u1 an admin; u2 has joined and gone again."""
    model = GroupModel()
    made = {"m/u1": [1, 1, 0, 0], "m/u0": [3, 1, 0, 0], "g": ["Crew", "u0", 0, 2, False, 0, 0]}
    first = change(1, "u0", "create", made)
    assert model.take_in(first, asked("create", "Crew", ["u1"])) is None
    second = change(2, "u0", "role", {"m/u1": [2, 1, 0, 0]})
    assert model.take_in(second, asked("role", "u1", "admin")) is None
    third = change(3, "u1", "add", {"m/u2": [1, 3, 0, 0]})
    assert model.take_in(third, asked("add", ["u2", "u1"])) is None
    fourth = change(4, "u2", "leave", {"m/u2": [0, 3, 4, 0]})
    assert model.take_in(fourth, asked("leave")) is None
    return model


def test_who_is_what() -> None:
    group = crew().standings[-1]
    assert [group.role(user) for user in ("u0", "u1", "u2", "u3")] == [OWNER, ADMIN, 0, 0]
    assert [crew().standings[3].role("u2"), STRANGER] == [MEMBER, 0]


def test_who_reads_what() -> None:
    model = crew()
    assert [seq for seq in range(1, 7) if model.may_read("u2", seq)] == [3, 4]
    assert [seq for seq in range(1, 7) if model.may_read("u1", seq)] == [1, 2, 3, 4]
    assert not model.may_read("u3", 3)


@pytest.mark.parametrize(
    ("user", "request_", "refused"),
    [
        ("u1", asked("create", "Crew", []), True),
        ("u2", asked("join"), True),
        ("u0", asked("leave"), True),
        ("u1", asked("leave"), False),
        ("u1", asked("remove", ["u0"]), True),
        ("u1", asked("remove", ["u3"]), False),
        ("u0", asked("remove", ["u1"]), False),
        ("u1", asked("role", "u1", "owner"), True),
        ("u0", asked("role", "u2", "admin"), True),
        ("u0", asked("role", "u1", "owner"), False),
        ("u1", asked("mute", "u0", 9), True),
        ("u1", asked("mute", None, 9), False),
        ("u0", asked("mute", "u2", 9), True),
        ("u1", asked("dissolve"), True),
        ("u3", asked("title", "Mine"), True),
    ],
)
def test_the_rights(user: str, request_: bytes, refused: bool) -> None:
    assert crew().refuses(4, user, EventKind.GROUP, request_, 0) is refused


def test_who_is_muted_is_silent_for_so_long() -> None:
    group = Standing(made=True, muted_until_ms=50).put({"a": (MEMBER, 1, 0, 9), "b": (2, 1, 0, 9)})
    said = [
        refuses(group, user, EventKind.MESSAGE, b"", now) for user in "ab" for now in (8, 9, 50)
    ]
    assert said == [True, True, False, True, False, False]
    assert refuses(group, "a", EventKind.RECALL, b"", 8) is None


@pytest.mark.parametrize(
    "wrong",
    [
        (change(5, "u1", "remove", {"m/u0": [0, 1, 5, 0]}), asked("remove", ["u0"])),
        (change(5, "u0", "role", {"m/u1": [3, 1, 0, 0]}), asked("role", "u1", "owner")),
        (change(5, "u1", "add", {"m/u2": [1, 3, 4, 0]}), asked("add", ["u2"])),
        (change(5, "u1", "add", {}), asked("add", ["u2"])),
        (change(5, "u0", "title", {"g": ["Crew", "u0", 0, 2, False, 0, 0]}), asked("title", "New")),
        (event(5, "u2", EventKind.MESSAGE, b"hello"), b"hello"),
        (event(5, "u1", EventKind.RECALL, b""), bytes(msgpack.packb([4]))),
    ],
)
def test_what_does_not_follow_is_seen(wrong: tuple[Event, bytes]) -> None:
    assert crew().take_in(*wrong) is not None
