"""Starting, stopping, and what a gateway says of itself."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys

import pytest

from im_actors.errors import SetupError, ShuttingDown, Unauthenticated
from im_actors.gateway import GatewayConfig, GatewayNode
from im_actors.gateway.node import is_loopback
from im_actors.wire import messages as m
from tests.gateway.fakes import SECRET, cluster, eventually, text

TOKENS = "a secret of clients, at least 32 bytes"


def node(**settings: object) -> GatewayNode:
    return GatewayNode("g", GatewayConfig(**settings), SECRET, random.Random(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_loopback_needs_no_secret(host: str) -> None:
    gateway = node()
    await gateway.start(host, 0)
    assert gateway.port
    await gateway.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
async def test_another_address_does(host: str) -> None:
    with pytest.raises(SetupError, match="token secret"):
        await node().start(host, 0)


@pytest.mark.parametrize("settings", [{"insecure_open": True}, {"token_secret": TOKENS}])
async def test_with_a_secret_or_by_consent_any_address_will_do(settings: dict[str, object]) -> None:
    gateway = node(**settings)
    await gateway.start("0.0.0.0", 0)
    await gateway.stop()


async def test_a_client_from_elsewhere_is_refused_without_a_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("im_actors.net.connection.host_of", lambda _: "192.0.2.7")
    async with cluster() as c:
        client = await c.connect()
        await client.send(m.hello("alice", "phone", None, ""))
        await client.until(lambda: client.ended)
        assert client.received[0][1] == Unauthenticated.code


def test_loopback_in_all_its_forms() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]))
    others = ["", "0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1", "fe80::1%eth0", "unix"]
    assert not any(map(is_loopback, others))


async def test_a_port_in_use_is_said() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(SetupError, match="in use"):
        await node().start("127.0.0.1", taken.getsockname()[1])


async def test_an_unknown_host_is_said() -> None:
    with pytest.raises(SetupError, match="cannot listen on"):
        await node().start("no such host.invalid", 0)


async def test_two_gateways_may_share_a_port() -> None:
    first, second = node(), node()
    await first.start("127.0.0.1", 0, reuse_port=True)
    await second.start("127.0.0.1", first.port, reuse_port=True)
    assert (second.host, second.port) == ("127.0.0.1", first.port)
    await first.stop()
    await second.stop()


async def test_one_gateway_may_listen_on_several_ports() -> None:
    async with cluster() as c:
        await c.gateway.start("127.0.0.1", 0)
        ports = [listener.port for listener in c.gateway._listeners]
        assert len(set(ports)) == 2
        assert c.gateway.port == ports[0]


async def test_stop_delivers_answers_and_says_bye() -> None:
    async with cluster() as c:
        client = await c.client()
        c.shards[0].silent = True
        await client.send(text("team", 1))
        await eventually(lambda: c.shards[0].submitted)
        stopping = asyncio.get_running_loop().create_task(c.gateway.stop())
        await client.until(lambda: client.of(m.SERVER_BYE))
        _, reason, reconnect_after_ms = client.of(m.SERVER_BYE)[0]
        assert "stopping" in reason
        assert 0 <= reconnect_after_ms <= 1_000
        assert not stopping.done()
        await client.send(text("team", 2))
        await client.until(lambda: client.rows(m.NACK))
        assert client.rows(m.NACK)[0][2] == ShuttingDown.code
        c.shards[0].silent = False
        c.shards[0].cut()  # the gateway comes back with the row
        await client.until(lambda: client.ended)
        assert client.acked == [1]
        await client.close()
        await stopping
        assert c.gateway.status()["connections"] == 0
        with pytest.raises(ConnectionError):
            await c.connect()


async def test_stop_does_not_wait_for_ever() -> None:
    async with cluster(drain_ms=50) as c:
        client = await c.client()
        c.shards[0].silent = True
        await client.send(text("team", 1))
        await eventually(lambda: c.shards[0].submitted)
        await client.stop_reading()
        await asyncio.wait_for(c.gateway.stop(), 60)


async def test_drained_gateways_keep_their_links() -> None:
    async with cluster() as c:
        client = await c.client()
        draining = asyncio.get_running_loop().create_task(c.gateway.drain())
        await client.until(lambda: client.ended)
        await client.close()
        await draining
        assert c.all_up()
        assert c.gateway.status()["draining"]


async def test_an_older_directory_is_ignored() -> None:
    async with cluster() as c:
        directory = c.gateway.peers.directory
        assert directory is not None
        c.move(1)
        c.gateway.directory(directory)
        assert c.gateway.status()["directory"] == 2


async def test_links_follow_the_directory() -> None:
    async with cluster() as c:
        gone = c.shards.pop(0)
        gone.owned.clear()
        c.move(0)
        await eventually(lambda: not gone.server.links)
        assert list(c.gateway.status()["shards"]) == ["shard-b.1"]
        client = await c.client()
        await client.send(text("team", 1))
        await client.until(lambda: client.acked)
        await gone.stop()


async def test_status_says_it_all_in_json() -> None:
    async with cluster(slots=4) as c:
        client = await c.client()
        await client.send(m.follow(["team"]), text("team", 1))
        await client.until(lambda: client.acked and client.pushed)
        c.shards[0].silent = True
        await client.send(text("team", 2))
        await eventually(lambda: c.shards[0].submitted == [1, 2])
        await c.shards[0].stop()
        await eventually(lambda: c.gateway.status()["held"])
        status = json.loads(json.dumps(c.gateway.status()))
        assert status["address"] == f"127.0.0.1:{c.gateway.port}"
        expected = {"connections": 1, "users": 1, "accepted": 2, "acked": 1, "pushed": 1}
        assert expected.items() <= status.items()
        assert list(status["held"].values()) == [1]
        assert status["outstanding"] == 1
        assert status["shards"]["shard-a.1"]["up"] is False
        assert status["shards"]["shard-a.1"]["reason"]
        assert status["replicas"]["replica-1"] == {"up": True}


def test_a_gateway_without_tokens_needs_only_the_base_install() -> None:
    code = (
        "import sys; import im_actors.gateway;"
        "bad = {'ray', 'redis', 'jwt', 'rich'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
