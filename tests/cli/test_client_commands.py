"""send, tail and history against a cluster."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import ClusterThread, Result, json_lines, spawn

Run = Callable[..., Result]


@pytest.fixture
def session() -> str:
    return f"team-{uuid.uuid4().hex[:8]}"


def test_what_is_sent_is_there(im: Run, shared_cluster: ClusterThread, session: str) -> None:
    data = ("--data", shared_cluster.data)
    assert im("send", session, "hello 你好 👩‍👩‍👧‍👦", "--as", "alice", *data) == (
        0,
        f"#1 in {session}, on 3 disks\n",
        "",
    )
    code, out, _ = im("send", session, "", "--as", "bob", "--json", *data)
    ack = json.loads(out)
    assert code == 0
    assert (ack["seq"], ack["n"], ack["copies"]) == (2, 1, 3)
    code, out, _ = im("history", session, *data)
    assert code == 0
    first, second = out.splitlines()
    assert first.startswith("#1 ")
    assert first.endswith("alice: hello 你好 👩‍👩‍👧‍👦")
    assert second.endswith("bob: ")


def test_history_in_json_and_in_parts(im: Run, shared_cluster: ClusterThread, session: str) -> None:
    data = ("--data", shared_cluster.data)
    for text in ("one", "two", "three"):
        assert im("send", session, text, "--as", "alice", *data)[0] == 0
    _, out, _ = im("history", session, "--json", "--limit", 2, *data)
    assert [(e["seq"], e["text"]) for e in json_lines(out)] == [(2, "two"), (3, "three")]
    _, out, _ = im("history", session, "--json", "--before", 3, *data)
    assert [e["seq"] for e in json_lines(out)] == [1, 2]
    _, out, _ = im("tail", session, "--as", "bob", "--after", 1, "--count", 2, "--json", *data)
    assert [e["text"] for e in json_lines(out)] == ["two", "three"]
    assert im("history", f"{session}-empty", *data) == (0, "", "")


def test_standard_input(shared_cluster: ClusterThread, im: Run, session: str) -> None:
    import subprocess

    argv = ("send", session, "-", "--as", "ci", "--data", shared_cluster.data)
    process = spawn(*argv, stdin=subprocess.PIPE)
    out, err = process.communicate("line one\nline two\n", timeout=30)
    assert (process.returncode, err) == (0, "")
    _, out, _ = im("history", session, "--json", "--data", shared_cluster.data)
    assert json_lines(out)[0]["text"] == "line one\nline two"


def test_tail_goes_on_live_and_ends_cleanly_with_ctrl_c(
    im: Run, shared_cluster: ClusterThread, session: str
) -> None:
    data = ("--data", shared_cluster.data)
    assert im("send", session, "before", "--as", "alice", *data)[0] == 0
    process = spawn("tail", session, "--as", "bob", "--json", *data)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["text"] == "before"
    assert im("send", session, "after", "--as", "alice", *data)[0] == 0
    assert json.loads(process.stdout.readline())["text"] == "after"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


def test_an_offline_send_survives_and_goes_with_the_next_command(
    im: Run, own_cluster: ClusterThread
) -> None:
    data = ("--data", own_cluster.data)
    own_cluster.stop()
    code, out, err = im("send", "team", "one", "--as", "alice", "--timeout", "0.3", *data)
    assert (code, out) == (1, "")
    assert "kept on this computer" in err
    assert len(err.splitlines()) == 1
    code, out, _ = im("send", "team", "two", "--as", "alice", "--no-wait", "--json", *data)
    assert code == 0
    assert json.loads(out) == {"session": "team", "n": 2, "state": "pending"}
    own_cluster.start()
    code, out, _ = im("send", "team", "three", "--as", "alice", "--json", *data)
    assert json.loads(out)["seq"] == 3
    _, out, _ = im("history", "team", "--json", *data)
    assert [(e["seq"], e["n"], e["text"]) for e in json_lines(out)] == [
        (1, 1, "one"),
        (2, 2, "two"),
        (3, 3, "three"),
    ]


def test_tail_sends_what_was_left_over(im: Run, own_cluster: ClusterThread) -> None:
    data = ("--data", own_cluster.data)
    own_cluster.stop()
    assert im("send", "team", "late", "--as", "alice", "--no-wait", *data)[0] == 0
    own_cluster.start()
    _, out, _ = im("tail", "team", "--as", "alice", "--after", 0, "--count", 1, "--json", *data)
    assert json_lines(out)[0]["text"] == "late"


def test_history_without_a_server_shows_what_is_here(im: Run, own_cluster: ClusterThread) -> None:
    data = ("--data", own_cluster.data)
    assert im("send", "team", "kept", "--as", "alice", *data)[0] == 0
    assert im("history", "team", "--as", "alice", *data)[0] == 0
    own_cluster.stop()
    code, out, err = im("history", "team", "--as", "alice", *data)
    assert code == 1
    assert out.endswith("alice: kept\n")
    assert "this is what this computer has" in err


def test_two_sends_of_one_user_at_once(
    im: Run, shared_cluster: ClusterThread, session: str
) -> None:
    argv = ("send", session, "x", "--as", "alice", "--data", shared_cluster.data)
    for process in [spawn(*argv) for _ in range(3)]:
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
    _, out, _ = im("history", session, "--json", "--data", shared_cluster.data)
    assert sorted(e["n"] for e in json_lines(out)) == [1, 2, 3]


def test_another_servers_messages_have_a_file_of_their_own(
    im: Run, shared_cluster: ClusterThread, home: Path
) -> None:
    url = shared_cluster.cluster.url
    assert im("send", "team", "x", "--as", "a@b:c", "--url", url)[0] == 0
    (store,) = home.glob("im_actors/clients/*/*.db")
    assert store.name == "a@b%3Ac.cli.db"
    assert im("send", "team", "x", "--as", "字" * 42, "--url", url)[0] == 0


def test_tail_says_that_it_waits(im: Run, own_cluster: ClusterThread) -> None:
    own_cluster.stop()
    process = spawn("tail", "team", "--as", "bob", "--data", own_cluster.data)
    assert process.stderr is not None
    assert "waiting for it" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
