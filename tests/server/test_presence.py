"""Who is connected where, as gateways tell a shard, and signals on their way through it."""

from __future__ import annotations

from typing import Any

import msgpack

from im_actors.core.model import slot_of
from im_actors.core.names import mailbox_of
from im_actors.server.presence import SIGNALS_PER_S, SLOW_BYTES, Presence

SLOTS = 4


class Link:
    """To a gateway."""

    def __init__(self) -> None:
        self.buffered_bytes = 0
        self.sent: list[list[Any]] = []

    def send(self, frame: bytes) -> bool:
        self.sent.append(msgpack.unpackb(frame[4:]))
        return True


def slot(user: str) -> int:
    return slot_of(mailbox_of(user), SLOTS)


def test_devices_are_those_of_all_gateways() -> None:
    presence, one, two = Presence(SLOTS), Link(), Link()
    presence.here(one, [], [("alice", ["phone", "pc"]), ("bob", ["pc"])])
    presence.here(two, [], [("alice", ["pad"])])
    assert presence.devices("alice") == ["pad", "pc", "phone"]
    presence.here(one, [], [("alice", ["phone"]), ("bob", [])])
    assert presence.devices("alice") == ["pad", "phone"]
    presence.asked(two, 7, ["bob", "alice", "nobody"])
    assert two.sent == [[163, 7, [["alice", ["pad", "phone"]]]]]
    presence.left(one)
    assert presence.devices("alice") == ["pad"]


def test_what_is_said_of_a_slot_takes_the_place_of_all_that_was() -> None:
    presence, gateway = Presence(SLOTS), Link()
    users = [f"u{n}" for n in range(40)]
    presence.here(gateway, [], [(user, ["pc"]) for user in users])
    presence.here(gateway, [0, 1], [(users[0], ["pad"])])
    for user in users[1:]:
        assert presence.devices(user) == ([] if slot(user) < 2 else ["pc"])
    assert presence.devices(users[0]) == ["pad"]


def test_signals_go_to_the_other_gateways_that_watch() -> None:
    presence, one, two, three = Presence(SLOTS), Link(), Link(), Link()
    watchers = {"team": {one, two}, "user:bob": {three, two}}
    rows = [["team", "team", "alice", "typing", True], ["user:bob", "d", "alice", "typing", True]]
    presence.signaled(one, [*rows, ["nobody", "n", "alice", "typing", True]], watchers, 0)
    assert (one.sent, two.sent, three.sent) == ([], [[160, rows]], [[160, rows[1:]]])


def test_what_is_too_much_is_dropped() -> None:
    presence, one, two = Presence(SLOTS), Link(), Link()
    row = ["team", "team", "alice", "typing", True]
    presence.signaled(one, [row] * (SIGNALS_PER_S + 5), {"team": {one, two}}, 0)
    assert len(two.sent[0][1]) == SIGNALS_PER_S
    assert presence.dropped == 5
    two.buffered_bytes = SLOW_BYTES + 1
    presence.signaled(one, [row], {"team": {one, two}}, 10_000)
    assert (len(two.sent), presence.dropped) == (1, 6)
