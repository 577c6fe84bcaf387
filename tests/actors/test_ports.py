"""The table of ports: what is in it passes, what is not is found."""

from __future__ import annotations

import socket
import tomllib
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from im_actors.actors.ports import TABLE, Listening, kind_of, listening, unlisted
from im_actors.net.shares import ShareSettings


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["ray::GatewayActor"], "GatewayActor"),
        (["ray::ReplicaActor.start", "", ""], "ReplicaActor"),
        (["ray::_breathe"], "worker"),
        (["ray::IDLE"], "worker"),
        (["/x/ray/core/src/ray/raylet/raylet", "--node_manager_port=0"], "raylet"),
        (["/x/bin/python", "/x/ray/_private/workers/default_worker.py"], "worker"),
        (["/x/bin/python", "-u", "/x/ray/dashboard/agent.py"], "DashboardAgent"),
        (["/x/bin/python", "-m", "http.server"], "python"),
        ([], ""),
    ],
)
def test_kinds(words: list[str], kind: str) -> None:
    assert kind_of(words) == kind


def test_a_port_that_nobody_knows_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = listening([psutil.Process()])
        assert (found[0].address, port) == ("127.0.0.1", found[0].port) or len(found) > 1
        assert any(str(port) in line for line in unlisted(found))


def test_one_more_than_the_table_has_is_found() -> None:
    known = [Listening(1, "ShardActor", "127.0.0.1", port) for port in (1, 2)]
    assert unlisted(known) == []
    assert len(TABLE["ShardActor"]) == 2
    assert "127.0.0.1:3" in unlisted([*known, Listening(1, "ShardActor", "127.0.0.1", 3)])[0]
    assert unlisted([Listening(2, "nc", "0.0.0.0", 4444)]) == [
        "nc (pid 2) listens on 0.0.0.0:4444, of which 0 are known"
    ]


def test_the_guide_has_the_same_table() -> None:
    guide = (Path(__file__).parents[2] / "cluster" / "security.md").read_text()
    rows = [
        f"| {kind} | {port.what} | {port.guard} |"
        for kind, ports in TABLE.items()
        for port in ports
    ]
    table = guide.partition("<!-- ports -->\n")[2].partition("\n\n")[0].splitlines()
    assert table[2:] == rows


def test_the_guide_has_the_settings() -> None:
    guide = (Path(__file__).parents[2] / "cluster" / "security.md").read_text()
    shares = tomllib.loads("[shares]" + guide.partition("[shares]")[2].partition("\n\n")[0])
    assert shares["shares"] == asdict(ShareSettings())
