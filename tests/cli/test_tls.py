"""A cluster with TLS: commands on its host just work, and who does it wrongly is told how."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from random import Random
from typing import Any

import pytest

from im_actors.client import Client, ClientConfig
from im_actors.errors import NotReachable, SetupError
from im_actors.net.listener import listen
from im_actors.net.tls import Certificates
from im_actors.server.cluster_file import read_run
from im_actors.server.settings import ClusterSettings, TlsSettings
from tests.cli.conftest import ClusterThread, Result, json_lines
from tests.cli.test_bench import SHORT
from tests.cli.test_drivers import drive
from tests.net.test_tls import Quiet

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def tls_cluster(
    authorities: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClusterThread]:
    files = authorities[0].sign("cluster", "IP:127.0.0.1,DNS:im.test")
    tls = TlsSettings(**files._asdict())
    cluster = ClusterThread(
        tmp_path_factory.mktemp("tls-cluster"), settings=ClusterSettings(tls=tls)
    )
    cluster.start()
    yield cluster
    cluster.close()


@pytest.fixture
def url(tls_cluster: ClusterThread) -> str:
    run = read_run(tls_cluster.data)
    assert run is not None
    return run.url


def test_commands_on_the_host_of_the_cluster_just_work(
    im: Run, tls_cluster: ClusterThread, url: str
) -> None:
    data = ("--data", tls_cluster.data)
    assert url.startswith("ims://127.0.0.1:")
    assert im("send", "team", "hello", "--as", "alice", *data)[0] == 0
    code, out, _ = im("tail", "team", "--as", "bob", "--after", 0, "--count", 1, "--json", *data)
    assert (code, [line["text"] for line in json_lines(out)]) == (0, ["hello"])
    assert im("history", "team", "--as", "bob", *data)[0] == 0
    # The admin door and the links between the actors are behind TLS, too.
    code, out, _ = im("status", "--json", *data)
    assert (code, json.loads(out)["healthy"]) == (0, True)
    assert tls_cluster.cluster.certificates.for_links


def test_a_client_elsewhere_names_the_authority(
    im: Run, url: str, authorities: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (authority.certificate for authority in authorities)
    send = ("send", "team", "x", "--as", "dave", "--url", url)
    assert im(*send, "--tls-ca", ours)[0] == 0
    assert im(*send, "--tls-ca", ours, "--tls-server-name", "im.test")[0] == 0
    monkeypatch.setenv("IM_ACTORS_TLS_CA", str(ours))
    assert im(*send)[0] == 0
    monkeypatch.setenv("IM_ACTORS_TLS_CA", str(theirs))
    assert im(*send, "--timeout", "0.2")[0] == 1
    assert im(*send, "--tls-ca", ours)[0] == 0, "the option comes before the environment"


def test_bench(im: Run, tls_cluster: ClusterThread, url: str, authorities: Any) -> None:
    ours, theirs = (authority.certificate for authority in authorities)
    short = ("bench", "--json", *SHORT)
    code, out, err = im(*short, "--data", tls_cluster.data)
    report = json.loads(out)
    assert code == 0, err
    assert report["ledger"]["received"] == report["ledger"]["acked"] > 0
    name = ("--tls-server-name", "im.test")
    assert im(*short, "--url", url, "--tls-ca", ours, *name)[0] == 0
    code, out, err = im(*short, "--url", url, "--tls-ca", theirs)
    assert (code, out) == (1, "")
    assert "no TLS with 127.0.0.1:" in err


def test_the_drivers(url: str, authorities: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IM_ACTORS_TLS_CA", str(authorities[0].certificate))
    sent = drive("send.py", url, "alice", "drivers", text="hello")
    assert (sent.returncode, sent.stdout, sent.stderr) == (0, "drivers 1\n", "")
    assert drive("receive.py", url, "bob", "drivers", 1).returncode == 0


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--tls-ca", "theirs", "whoever signed it is not believed here"),
        ("--tls-ca", None, "whoever signed it is not believed here"),
        ("--tls-server-name", "other.test", "certificate is not valid for 'other.test'"),
        ("--tls-ca", "/no/such/file", "cannot read /no/such/file"),
    ],
)
def test_a_server_that_is_not_believed(
    im: Run, url: str, authorities: Any, option: str, value: str | None, says: str
) -> None:
    files = {"theirs": str(authorities[1].certificate)}
    options = [option, files.get(value, value)] if value else []
    if option != "--tls-ca":
        options += ["--tls-ca", str(authorities[0].certificate)]
    code, out, err = im("tail", "team", "--as", "carol", "--url", url, *options)
    assert (code, out) == (1, "")
    assert says in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


@pytest.fixture
async def expired(authorities: Any) -> AsyncIterator[str]:
    """HOST:PORT of a door that shows a certificate from the past."""
    files = authorities[0].sign("expired", days=-1)
    shown = Certificates(files._replace(authorities="")).clients
    listener = await listen(Quiet, "127.0.0.1", 0, ssl=shown)
    yield f"127.0.0.1:{listener.port}"
    listener.close()
    await listener.wait_closed()


async def test_an_expired_certificate(expired: str, authorities: Any) -> None:
    config = ClientConfig(tls_ca=str(authorities[0].certificate))
    async with Client(f"ims://{expired}", "erin", config=config) as im:
        with pytest.raises(SetupError, match="certificate has expired"):
            await im.connected(10)


async def test_one_bad_server_of_several_is_passed_over(
    url: str, expired: str, authorities: Any
) -> None:
    config = ClientConfig(tls_ca=str(authorities[0].certificate))
    for seed in range(3):  # Whichever is tried first.
        async with Client(f"{url},{expired}", "grace", config=config, rng=Random(seed)) as im:
            await im.connected(20)


async def test_without_tls_at_a_door_that_wants_it(url: str) -> None:
    async with Client(url.replace("ims:", "im:"), "frank") as im:
        with pytest.raises(NotReachable, match="does it want TLS, ims://"):
            await im.connected(0.5)


async def test_tls_at_a_door_that_has_none(shared_cluster: ClusterThread) -> None:
    run = read_run(shared_cluster.data)
    assert run is not None
    async with Client(run.url.replace("im:", "ims:"), "frank") as im:
        with pytest.raises(SetupError, match="does not speak TLS: is it im://"):
            await im.connected(10)


def test_authorities_without_tls_are_a_mistake(im: Run, authorities: Any) -> None:
    ca = authorities[0].certificate
    code, _, err = im("tail", "x", "--as", "a", "--url", "im://127.0.0.1", "--tls-ca", ca)
    assert code == 1
    assert "has to begin with ims://" in err
