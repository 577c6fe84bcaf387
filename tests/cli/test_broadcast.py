"""broadcast, against a small gateway with the real rules."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from im_actors.cli import broadcast_commands
from im_actors.cli.broadcast_commands import read_users
from im_actors.core.batch import CHUNK_USERS_MAX, CONTENT_KEY
from im_actors.errors import BadRequest
from tests.cli.conftest import Result
from tests.cli.test_user_commands import Served
from tests.client.batch_gateway import BatchGateway

Run = Callable[..., Result]
SHOP = ("--as", "shop")


class Broadcasting(Served):
    gateway: BatchGateway

    def make(self) -> BatchGateway:
        return BatchGateway()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broadcasting]:
    monkeypatch.setattr(broadcast_commands, "POLL_S", 0.001)
    served = Broadcasting()
    yield served
    served.close()


def listed(path: Path, count: int, *further: str) -> Path:
    path.write_text("\n".join([*(f"user{number}" for number in range(count)), *further]) + "\n")
    return path


def test_everybody_gets_it_once(im: Run, served: Broadcasting, tmp_path: Path) -> None:
    users = listed(tmp_path / "users.txt", 1_200, "user7", "")
    command = ("broadcast", users, *SHOP, "--channel", "high", "--text", "hello", *served.url)
    code, out, err = im(*command, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["state"], found["sent"], found["total"]) == ("done", 1_200, 1_200)
    assert (found["chunks"], found["channel"]) == (3, "high")
    assert found["name"].startswith("users-")
    assert served.gateway.told == [f"user{number}" for number in range(1_200)]
    # The same command is the same broadcast.
    code, out, err = im(*command)
    assert (code, out) == (0, f"{found['name']}: done; 1200 of 1200 sent\n")
    assert "was ordered before; it is done" in err
    assert len(served.gateway.told) == 1_200
    code, out, _ = im("broadcast", "status", found["name"], *SHOP, "--json", *served.url)
    assert (code, json.loads(out)["told"]) == (0, 1_200)


def test_who_did_not_get_it_is_a_failure(im: Run, served: Broadcasting, tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text('{"user": "ann", "age": 7}\n{"user": "deafbob"}\ncarol\n')
    code, out, _ = im("broadcast", path, *SHOP, "--text", "hi", "--name", "n", *served.url)
    assert (code, out) == (1, "n: done; 2 of 3 sent, 1 refused\n")


def test_a_dry_run_sends_nothing(im: Run, served: Broadcasting, tmp_path: Path) -> None:
    users = listed(tmp_path / "users.txt", 3)
    command = ("broadcast", users, *SHOP, "--text", "hello", *served.url)
    code, out, _ = im(*command, "--dry-run")
    assert code == 0
    assert out.endswith(".dry: done; 3 of 3 would get it\n")
    assert served.gateway.told == []
    assert im(*command)[0] == 0
    assert len(served.gateway.told) == 3


def test_an_upload_goes_on_where_it_was(im: Run, served: Broadcasting, tmp_path: Path) -> None:
    users = listed(tmp_path / "users.txt", 5 * CHUNK_USERS_MAX)
    command = ("broadcast", users, *SHOP, "--text", "hello", "--name", "n", *served.url)
    taken = []
    decided = served.gateway._decided

    def only_three(*args: Any) -> bytes:
        taken.append(args)
        if len(taken) == 4:
            served.gateway.silent = True
        return decided(*args)

    served.gateway._decided = only_three  # type: ignore[method-assign]
    code, _, err = im(*command, "--timeout", 0.2)
    assert code == 1
    assert "no receipt yet" in err
    served.gateway.silent = False
    code, out, _ = im(*command)
    assert (code, out) == (0, "n: done; 2500 of 2500 sent\n")
    assert len(served.gateway.told) == 2_500


def test_another_list_under_the_same_name(im: Run, served: Broadcasting, tmp_path: Path) -> None:
    served.gateway.frozen = True
    command = ("--text", "hello", "--name", "n", "--no-wait", *SHOP, *served.url)
    assert im("broadcast", listed(tmp_path / "a.txt", 3), *command)[0] == 0
    code, _, err = im("broadcast", listed(tmp_path / "b.txt", 4), *command)
    assert (code, err) == (
        1, "im-actors: there is another broadcast 'n': choose another --name\n",
    )  # fmt: skip


def test_pausing_cancelling_recalling(im: Run, served: Broadcasting, tmp_path: Path) -> None:
    def act(what: str) -> Result:
        return im("broadcast", what, "n", *SHOP, *served.url)

    served.gateway.frozen = True
    users = listed(tmp_path / "users.txt", 700)
    command = ("--text", "hello", "--name", "n", "--no-wait", *SHOP, *served.url)
    assert im("broadcast", users, *command)[:2] == (0, "n: running; 0 of 700 sent\n")
    assert act("pause") == (0, "pause: done with n\n", "")
    assert act("status") == (0, "n: paused; 0 of 700 sent\n", "")
    assert act("resume")[0] == 0
    served.gateway.frozen = False
    assert act("status") == (0, "n: running; 500 of 700 sent\n", "")
    assert act("cancel")[0] == 0
    assert act("status") == (0, "n: cancelled; 500 of 700 sent, 200 not sent\n", "")
    code, _, err = act("pause")
    assert code == 1
    assert "pause: batch:n is cancel" in err
    assert act("recall")[0] == 0
    assert act("status")[1] == "n: recalled; 500 of 700 sent, 200 not sent, 500 recalled\n"


def test_a_long_content_is_kept_once(im: Run, served: Broadcasting, tmp_path: Path) -> None:
    text = tmp_path / "news.txt"
    text.write_text("news! " * 1_000)
    users = listed(tmp_path / "users.txt", 2)
    assert im("broadcast", users, *SHOP, "--content", text, "--name", "n", *served.url)[0] == 0
    batch = served.gateway.batches["batch:n"]
    assert batch.value(CONTENT_KEY) == text.read_bytes()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("users.txt",), "say what to send"),
        (("nowhere.txt", "--text", "x"), "No such file"),
        (("users.txt", "--content", "nowhere"), "No such file"),
        (("users.txt", "--text", ""), "is empty"),
        (("users.txt", "--text", "x" * 32_001), "the limit is 32000"),
        (("empty.txt", "--text", "x"), "names nobody"),
        (("bad.txt", "--text", "x"), "line 2: "),
        (("status",), "name the broadcast"),
        (("users.txt", "n", "--text", "x"), "is no action"),
        (("status", "n"), "there is no broadcast 'n'"),
        (("recall", "n"), "there is no batch:n"),
    ],
)
def test_what_is_wrong_is_said(
    im: Run,
    served: Broadcasting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    listed(tmp_path / "users.txt", 2)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.txt").write_text('ann\na/b\n{"name": "x"}\n')
    code, out, err = im("broadcast", *argv, *SHOP, *served.url)
    assert (code, out) == (1, "")
    assert said in err
    assert served.gateway.told == []


def test_only_a_service_may(im: Run, served: Broadcasting, tmp_path: Path) -> None:
    users = listed(tmp_path / "users.txt", 2)
    code, _, err = im("broadcast", users, "--as", "eve", "--text", "x", *served.url)
    assert code == 1
    assert "eve is no service" in err


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    path.write_text("a/b\n" * 9)
    with pytest.raises(BadRequest, match="and 4 more"):
        read_users(path)


def test_outcomes_by_user(served: Broadcasting, im: Run, tmp_path: Path) -> None:
    from im_actors.client import Client

    users = listed(tmp_path / "users.txt", 2, "deafcarol")
    im("broadcast", users, *SHOP, "--text", "x", "--name", "n", *served.url)

    async def ask() -> Any:
        async with Client(served.gateway.url, "shop", "pc", None) as client:
            await client.connected()
            return await client.batches.outcomes("n", 0)

    found = asyncio.run(ask())
    assert found == (["user0", "user1", "deafcarol"], {"deafcarol": 111}, {})
