"""The user side without ``await``: the same names, the same results."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from im_actors.client import batches, groups, sync, sync_user
from im_actors.client import client as aio
from im_actors.client.user_calls import UserCalls
from im_actors.errors import Forbidden
from tests.client.test_sync import served as served
from tests.client.user_gateway import UserGateway

TALK = "direct:alice/bob"


@pytest.fixture
def gateway_class() -> type[UserGateway]:
    return UserGateway


@pytest.mark.parametrize(
    ("plain", "other", "missing"),
    [
        (sync.Client, aio.Client, {"signals"}),
        (sync_user.UserCalls, UserCalls, {"signals"}),
        (sync_user.Groups, groups.Groups, set()),
        (sync_user.Batches, batches.Batches, set()),
    ],
    ids=["Client", "UserCalls", "Groups", "Batches"],
)
def test_the_names_and_arguments_are_the_same(plain: Any, other: Any, missing: set[str]) -> None:
    names = {name for name in dir(other) if not name.startswith("_")}
    assert names - {name for name in dir(plain) if not name.startswith("_")} == missing
    for name in names - missing:
        found, expected = getattr(plain, name), getattr(other, name)
        if inspect.isfunction(expected):
            assert [str(p) for p in inspect.signature(found).parameters.values()] == [
                str(p) for p in inspect.signature(expected).parameters.values()
            ] or name == "where", name


def test_everything_once(served: Any) -> None:
    served.do(served.post, TALK, "one", "two")
    with sync.Client(served.url, "alice") as im, sync.Client(served.url, "bob") as bob:
        for client in (im, bob):
            client.connected(10)
        assert im.direct("bob") == TALK
        assert [c.title for c in im.conversations().conversations] == ["bob"]
        assert im.unread().count == 2
        assert im.list_changed() > 0
        assert im.conversations(local=True).conversations == im.conversations().conversations
        im.mark_read(TALK, 1).acked(10)
        found = im.conversation(TALK)
        assert found is not None
        assert found.unread == 1
        for change in (
            im.pin(TALK), im.mute(TALK), im.fold(TALK, "x"), im.hide(TALK), im.hide(TALK, False),
            im.delete(TALK, 1), im.fold(TALK, ""),
        ):  # fmt: skip
            change.acked(10)
        sent = im.send(TALK, "three").acked(10)
        im.edit(TALK, sent.seq, "drei").acked(10)
        assert [e.text for e in im.history(TALK).events][:2] == ["two", "drei"]
        im.recall(TALK, sent.seq).acked(10)
        bob.mark_read(TALK, sent.seq).acked(10)
        assert im.receipts(TALK, sent.seq).users == ["bob"]
        im.typing(TALK)
        im.here(TALK)
        assert (im.who_types(TALK), im.who_is_here(TALK)) == ([], [])
        assert im.devices() == []
        with pytest.raises(Exception, match="no device"):
            im.kick("x").acked(10)


def test_groups(served: Any) -> None:
    with sync.Client(served.url, "alice") as im, sync.Client(served.url, "bob") as bob:
        im.groups.create("g", "G", ["bob"]).acked(10)
        for change in (
            im.groups.add("g", "carol", "dave"), im.groups.remove("g", "dave"),
            im.groups.role("g", "bob", "admin"), im.groups.title("g", "new"),
            im.groups.mute("g", None, 5), im.groups.joining("g", True), bob.groups.leave("g"),
            bob.groups.join("g"), im.groups.dissolve("g"),
        ):  # fmt: skip
            change.acked(10)
        info = im.groups.info("g")
        assert info is not None
        assert (info.title, info.members) == ("new", 3)
        assert [m.user for m in im.groups.members("g").members] == ["alice", "carol", "bob"]
        with sync.Client(served.url, "eve") as eve, pytest.raises(Forbidden):
            eve.groups.title("g", "mine").acked(10)
