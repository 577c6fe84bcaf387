"""scale and drain as an operator types them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest

from im_actors.cli import growth_commands
from im_actors.cli.status_table import growth_lines
from tests.cli.conftest import ClusterThread, Result, spawn

Run = Callable[..., Result]


def test_scale_says_how_far_it_is_until_all_is_there(im: Run, own_cluster: ClusterThread) -> None:
    code, out, err = im("scale", "--gateways", "2", "--json", "--data", own_cluster.data)
    found = json.loads(out)
    assert code == 0
    assert (found["busy"], found["gateways"], found["starting"]) == (False, 2, {})
    assert "changing:" in err
    code, out, _ = im("scale", "--gateways", "1", "--data", own_cluster.data)
    assert code == 0
    assert out == "done: 3 replicas, 2 shards, 1 gateways\n"
    code, out, _ = im("status", "--json", "--data", own_cluster.data)
    assert list(json.loads(out)["gateways"]) == ["gateway-1"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("drain", "replica-1"), "im-actors scale --replicas 4 first"),
        (("drain", "nowhere"), "is no replica (replica-1, replica-2, replica-3) and no host"),
        (("drain", "replica-1", "--cancel"), "replica-1 is not being drained"),
        (("scale", "--replicas", "2"), "replicas must be a number from 3 to 256, not 2"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    im: Run, shared_cluster: ClusterThread, words: tuple[str, ...], error: str
) -> None:
    code, out, err = im(*words, "--data", shared_cluster.data)
    assert (code, out) == (1, "")
    assert error in err
    assert not (shared_cluster.data / "topology.json").exists()


@pytest.mark.slow
def test_ctrl_c_ends_the_watching_only(own_cluster: ClusterThread) -> None:
    process = spawn("scale", "--shards", "3", "--data", own_cluster.data)
    assert process.stderr is not None
    assert "changing:" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=growth_commands.TIMEOUT_S)
    assert process.returncode == 130
    assert "the cluster goes on by itself" in err
    assert "Traceback" not in err


def test_status_tells_what_is_still_to_do() -> None:
    nothing = {"busy": False, "hosts_out": ["10.0.0.7"]}
    assert list(growth_lines(nothing)) == ["out of use: 10.0.0.7"]
    much = {
        "busy": True,
        "hosts_out": [],
        "slots_to_move": 2,
        "members_to_move": 30,
        "leaving": ["replica-2"],
        "starting": {"shard-3": "starting"},
        "waits": "slot 4: replica-2 hands over its copy",
    }
    (line,) = growth_lines(much)
    assert line == (
        "changing: 2 slots to move to other shards; 30 members to move to other replicas;"
        " replica-2 to leave; shard-3: starting (now: slot 4: replica-2 hands over its copy)"
    )
    assert list(growth_lines({})) == [], "of a cluster of an earlier version"
