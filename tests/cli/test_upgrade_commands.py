"""upgrade as an operator types it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from im_actors import __version__
from im_actors.cli.upgrade_commands import upgrade_lines
from im_actors.core.formats import FORMATS
from tests.cli.conftest import ClusterThread, Result

Run = Callable[..., Result]


def test_upgrade_shows_what_everybody_knows_and_starts_a_host_anew(
    im: Run, own_cluster: ClusterThread
) -> None:
    where = ("--data", own_cluster.data)
    code, out, _ = im("upgrade", *where)
    assert code == 0
    oldest, newest = FORMATS
    assert f"shard-2: knows formats {oldest} to {newest}, writes {newest}\n" in out
    assert f"controller: {__version__}, knows formats {oldest} to {newest}\n" in out
    assert out.endswith("nothing to finish\n")
    before = own_cluster.cluster.node("replica-2")
    code, out, err = im("upgrade", "--restart", "host-2", "--json", *where)
    assert code == 0
    assert not json.loads(out)["busy"]
    assert own_cluster.cluster.node("replica-2") is not before
    assert "replica-2" in err
    code, out, _ = im("upgrade", "--finish", *where)
    assert (code, out.splitlines()[-1].endswith("nothing to finish")) == (0, True)
    code, out, err = im("upgrade", "--restart", "host-9", *where)
    assert (code, out) == (1, "")
    assert "'host-9' is no actor that runs (replica-1, replica-2," in err


def test_status_tells_that_an_upgrade_is_under_way(im: Run, own_cluster: ClusterThread) -> None:
    own_cluster.cluster.upgrade._obstacle = lambda: "the test holds it up"  # type: ignore[method-assign]
    where = ("--data", own_cluster.data)
    assert im("upgrade", "--restart", "gateway-1", "--no-wait", *where)[0] == 0
    _, out, _ = im("status", *where)
    assert "upgrade: gateway-1 to start anew" in out


@pytest.mark.parametrize(
    ("older", "unknown", "told"),
    [
        ([], [], "format 5 is written; im-actors upgrade --finish takes 6, for good"),
        (["shard-1"], ["replica-1"], "to be updated before 6 can be: shard-1, replica-1"),
    ],
)
def test_what_can_be_finished_and_what_is_in_the_way(
    older: list[str], unknown: list[str], told: str
) -> None:
    found = {
        "busy": False,
        "disks": 5,
        "records": 5,
        "newest": 6,
        "formats": {"replica-1": None, "shard-1": [5, 5]},
        "writes": {"shard-1": 5},
        "releases": {"shard-1": "1.2"},
        "older": older,
        "unknown": unknown,
        "restarting": [],
        "waits": "",
    }
    lines = list(upgrade_lines(found))
    assert lines[0] == "replica-1: does not answer"
    assert lines[1] == "shard-1: 1.2, knows formats 5 to 5, writes 5"
    assert lines[2].endswith(told)
