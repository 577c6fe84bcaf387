"""conversations, read, recall, edit, devices and group, against a small gateway."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from im_actors.cli import conversation_commands
from im_actors.cli.output import event_fields, event_line
from im_actors.client.shown import Overlays
from im_actors.core.model import EventKind, pack
from tests.cli.conftest import Result
from tests.client.test_shown import Kept, event, said
from tests.client.user_gateway import UserGateway

Run = Callable[..., Result]
TALK = "direct:alice/bob"
ALICE = ("--as", "alice")


class Served:
    """The gateway in a thread of its own."""

    def __init__(self) -> None:
        self.gateway = self.make()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._wait(self.gateway.start())
        self.url = ("--url", self.gateway.url)

    def make(self) -> UserGateway:
        return UserGateway()

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def post(self, session: str, *texts: str, device: str = "bob/pc-00000000") -> None:
        async def call() -> None:
            self.gateway.post(session, *texts, device=device)

        self._wait(call())

    def read(self, user: str, session: str, seq: int) -> None:
        """Another user has read so far, and everybody's list says so."""

        async def call() -> None:
            self.gateway.read(user, session, seq)

        self._wait(call())

    def wait(self, condition: Callable[[UserGateway], bool]) -> None:
        """Until what clients do brings it about."""
        self._wait(self.gateway.until(lambda: condition(self.gateway)))

    def start(self) -> None:
        """Again, at the same address."""
        self._wait(self.gateway.start())

    def stop(self) -> None:
        self._wait(self.gateway.stop())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(conversation_commands, "HISTORY_WAIT_S", 0.2)
    served = Served()
    yield served
    served.close()


def test_conversations(im: Run, served: Served) -> None:
    served.post(TALK, "one", "two\nlines\x1b[2J")
    served.post("direct:alice/carol", "hi", device="carol/pc-00000000")
    code, out, err = im("conversations", *ALICE, *served.url)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.split() == [
        "2", *first.split()[1:3], "bob", f"({TALK})", "bob:", "two", "lines\\x1b[2J",
    ]  # fmt: skip
    assert second.endswith("carol  (direct:alice/carol)  carol: hi")
    code, out, err = im("conversations", *ALICE, "--json", "--limit", 1, *served.url)
    page = json.loads(out)
    assert (code, err) == (0, "")
    assert (page["unread"], page["offline"]) == (3, False)
    (found,) = page["conversations"]
    assert (found["session"], found["unread"], found["kind"]) == (TALK, 2, "message")
    assert found["inputs"] == {"base": 0, "last": 2, "skipped": 0, "ranges": []}
    code, out, _ = im("conversations", *ALICE, "--after", page["next"], *served.url)
    assert (code, out) == (0, second + "\n")
    assert im("conversations", *ALICE, "--after", "nonsense", *served.url)[::2] == (
        1,
        "im-actors: 'nonsense' is not the end of a page of conversations\n",
    )


def test_reading_online_and_offline(im: Run, served: Served) -> None:
    served.post(TALK, "one", "two", "three")
    assert im("read", TALK, 1, *ALICE, *served.url) == (0, f"read up to #1 in {TALK}\n", "")
    code, out, _ = im("conversations", *ALICE, "--json", *served.url)
    assert (code, json.loads(out)["unread"]) == (0, 2)
    code, out, _ = im("read", TALK, "--json", *ALICE, *served.url)
    assert (code, json.loads(out)["session"]) == (0, "user:alice")
    assert served.gateway.has_read("alice", TALK) == 3
    served.post(TALK, "four")
    im("conversations", *ALICE, *served.url)
    served.stop()
    code, out, err = im("read", TALK, 4, "--timeout", 0.05, *ALICE, *served.url)
    assert (code, out) == (1, "")
    assert "The change is kept on this computer and goes with the next" in err
    assert len(err.splitlines()) == 1
    code, out, err = im("conversations", *ALICE, "--json", *served.url)
    page = json.loads(out)
    assert (code, page["offline"], page["unread"]) == (1, True, 0)
    assert page["conversations"][0]["read_seq"] == 4
    assert "this is what this computer knew at 20" in err
    code, _, err = im("read", "direct:alice/zoe", *ALICE, *served.url)
    assert (code, err) == (
        1,
        "im-actors: nothing is known of 'direct:alice/zoe': say up to which number\n",
    )


def test_recall_and_edit(im: Run, served: Served) -> None:
    for text in ("one", "two"):
        assert im("send", TALK, text, *ALICE, *served.url)[0] == 0
    assert im("edit", TALK, 1, "eins", *ALICE, *served.url) == (0, f"edited #1 in {TALK}\n", "")
    assert im("recall", TALK, 2, *ALICE, *served.url) == (0, f"recalled #2 in {TALK}\n", "")
    code, _, err = im("recall", TALK, 1, "--as", "bob", *served.url)
    assert (code, err) == (1, "im-actors: it is not yours\n")
    _, out, _ = im("history", TALK, "--json", *ALICE, *served.url)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(e["text"], e.get("kind")) for e in lines] == [
        ("eins", None), ("", None), ("eins", "edit"), ("", "recall"),
    ]  # fmt: skip
    assert (lines[0]["edited"], lines[1]["recalled"], lines[2]["target"]) == (True, True, 1)
    _, out, _ = im("history", TALK, *ALICE, *served.url)
    assert [line.partition(" alice")[2] for line in out.splitlines()] == [
        ": eins (edited)", ": (recalled)", " — #1 now reads: eins", " — recalled #2",
    ]  # fmt: skip


def test_groups(im: Run, served: Served) -> None:
    def group(*argv: object) -> Result:
        return im("group", *argv, *served.url)

    assert group("create", "climbers", "bob", "carol", "--title", "C!", *ALICE) == (
        0, "create: done in group:climbers\n", "",
    )  # fmt: skip
    for argv in (
        ("add", "climbers", "dave"), ("remove", "climbers", "dave"),
        ("role", "climbers", "bob", "admin"), ("title", "climbers", "Climbers"),
        ("mute", "climbers", "bob", "--for", 5), ("unmute", "climbers"),
        ("joining", "climbers", "yes"),
    ):  # fmt: skip
        assert group(*argv, *ALICE)[::2] == (0, ""), argv
    assert group("leave", "climbers", "--as", "carol")[0] == 0
    assert group("join", "climbers", "--as", "eve")[0] == 0
    code, out, _ = group("info", "climbers", *ALICE)
    assert (code, out) == (
        0, "Climbers  (group:climbers): 3 members, owner alice, you are owner\n",
    )  # fmt: skip
    _, out, _ = group("members", "climbers", "--json", *ALICE)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["user"], row["role"]) for row in rows] == [
        ("alice", "owner"), ("bob", "admin"), ("eve", "member"),
    ]  # fmt: skip
    code, _, err = group("title", "climbers", "x", "--as", "zoe")
    assert (code, err) == (1, "im-actors: zoe is no member of group:climbers\n")
    code, _, err = group("dissolve", "nobody's", *ALICE)
    assert (code, err) == (1, "im-actors: there is no group:nobody's\n")
    assert group("dissolve", "climbers", "--json", *ALICE)[0] == 0
    served.stop()
    code, out, err = group("info", "climbers", *ALICE)
    assert (code, out[:9]) == (1, "Climbers ")
    assert "this is what this computer knew" in err
    code, out, _ = group("members", "climbers", *ALICE)
    assert (code, out.splitlines()[0]) == (1, "alice  owner")
    code, _, err = group("info", "others", *ALICE)
    assert code == 1
    assert err.startswith("im-actors: this computer knows nothing of group 'others'")


def test_devices(im: Run, served: Served) -> None:
    served.gateway.known_devices["alice"] = {"phone-1": "a phone"}
    code, out, err = im("devices", *ALICE, *served.url)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("phone-1  online, since 1970-01-01  a phone")
    assert im("devices", "--kick", "phone-1", *ALICE, *served.url) == (
        0, "phone-1 is cut off\n", "",
    )  # fmt: skip
    code, _, err = im("devices", "--kick", "phone-1", *ALICE, *served.url)
    assert (code, err) == (1, "im-actors: alice has no device phone-1\n")
    served.stop()
    code, out, err = im("devices", "--json", *ALICE, *served.url)
    assert (code, [row["device"] for row in json.loads(out)]) == (1, ["phone-1"])
    assert "this is what this computer knew" in err


@pytest.mark.parametrize(
    "argv",
    [
        ("read",), ("read", "team", "0"), ("recall", "team"), ("recall", "team", "x"),
        ("edit", "team", "1"), ("group",), ("group", "create"), ("group", "add", "g"),
        ("group", "role", "g", "bob", "king"), ("group", "joining", "g", "perhaps"),
        ("conversations", "--limit", "0"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(im: Run, argv: tuple[str, ...]) -> None:
    assert im(*argv)[0] == 2


def test_every_action_of_a_group_explains_itself(im: Run) -> None:
    code, out, _ = im("group", "--help")
    assert code == 0
    for action in ("create", "add", "mute", "members", "dissolve"):
        assert f"\n    {action} " in out
        assert im("group", action, "--help")[0] == 0


def test_events_that_are_no_messages() -> None:
    overlays = Overlays(Kept().keep)
    facts = [("m/bob", 1, b""), ("m/carol", 1, b"")]
    body = pack(["add", [["bob", "carol"]], facts])
    (added,) = overlays.shown([event(4, EventKind.GROUP, body)])
    assert event_line(added).endswith(" alice — add bob, carol")
    fields = event_fields(added)
    assert (fields["kind"], fields["what"], fields["users"]) == ("group", "add", ["bob", "carol"])
    (titled,) = overlays.shown([event(5, EventKind.GROUP, pack(["title", ["New"], []]))])
    assert event_line(titled).endswith(" alice — title New")
    body = pack(["role", ["bob", "admin"], facts[:1]])
    (promoted,) = overlays.shown([event(5, EventKind.GROUP, body)])
    assert event_line(promoted).endswith(" alice — role bob admin")
    (unknown,) = overlays.shown([event(6, 40, b"later")])
    assert event_fields(unknown)["kind"] == "40"
    (recalled,) = overlays.shown([said(7, EventKind.RECALL, 2)])
    assert event_line(recalled).endswith(" alice — recalled #2")
