"""Replay: real files, real clients, faults in the middle, and a report that tells the truth."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from im_actors.actors import deploy
from im_actors.cli.chatfile import Line, write_chat
from im_actors.cli.faults import FaultPlan, parse_faults
from im_actors.cli.generated import generate
from im_actors.cli.ledger import Seen
from im_actors.cli.replay import Replay, ReplayConfig
from im_actors.errors import SetupError
from im_actors.testing import LocalCluster
from tests.cli.conftest import ClusterThread, Result, spawn

Run = Callable[..., Result]

SHARED = Path(__file__).parents[3] / "shared" / "data"
FILES = (
    ("direct-zh-crosswoz.jsonl.gz", 3_000),
    ("direct-casino.jsonl.gz", 3_000),
    ("direct-timed-meetup.jsonl.gz", 1_500),
    ("group-irc.jsonl.gz", 3_000),
)
FIELDS = [
    "sent", "acked", "received", "lost", "duplicated", "reordered", "gaps", "faults", "takeovers",
    "elapsed_s", "msgs_per_s", "ack_ms", "delivery_ms", "mismatched", "conversations", "readers",
]  # fmt: skip


class Quiet:
    def __init__(self) -> None:
        self.said: list[str] = []

    def moved(self, acked: int, total: int) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


async def play(
    cluster: LocalCluster,
    lines: list[Line],
    faults: tuple[str, ...] = (),
    config: ReplayConfig | None = None,
) -> Replay:
    async def call(method: str, *arguments: object, timeout_s: float = 60.0) -> object:
        async with cluster.admin() as admin:
            return await admin.call(method, *arguments, timeout_s=timeout_s)

    gateways = cluster.url.removeprefix("im://").split(",")
    plan = FaultPlan(faults, call)
    return Replay(lines, gateways, plan, config or ReplayConfig(), lambda _: None, Quiet())


@pytest.mark.parametrize(("name", "limit"), FILES)
def test_a_real_chat(im: Run, shared_cluster: ClusterThread, name: str, limit: int) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    code, out, err = im("replay", path, "--limit", limit, "--json", "--data", shared_cluster.data)
    assert code == 0, err
    (line,) = out.splitlines()
    report = json.loads(line)
    assert list(report) == FIELDS
    assert report["sent"] == report["acked"] == report["received"] == limit
    for name in ("lost", "duplicated", "reordered", "gaps", "mismatched"):
        assert report[name] == 0
    assert report["faults"] == []
    for name in ("ack_ms", "delivery_ms"):
        assert 0 < report[name]["p50"] <= report[name]["p99"] <= report[name]["max"]


async def test_faults_in_the_middle() -> None:
    faults = ("kill-shard", "kill-replica", "drop-connections", "kill-gateway", "kill-shard")
    async with LocalCluster(gateways=2) as cluster:
        # So few in flight that messages are sent after the last fault too.
        replay = await play(cluster, generate(3_000), faults, ReplayConfig(window=4))
        report = await replay.run()
        fields = report.to_json()
        assert report.ok, report.verdict.anomalies
        assert [fault["kind"] for fault in fields["faults"]] == list(faults)
        assert all(fault["recovered_s"] is not None for fault in fields["faults"])
        assert [f["at_s"] for f in fields["faults"]] == sorted(f["at_s"] for f in fields["faults"])
        assert fields["faults"][1]["target"].startswith("replica-")
        assert fields["takeovers"] >= 4
        await cluster.wait_serving()
        assert (await cluster.verify())["ok"]


async def test_more_senders_than_clients() -> None:
    lines = [Line(f"room {n % 3}", f"person {n % 20}", None, f"text {n}", "") for n in range(200)]
    async with LocalCluster() as cluster:
        replay = await play(cluster, lines, config=ReplayConfig(clients_max=4, readers=2, window=3))
        report = await replay.run()
    assert report.ok
    entries = list(replay.ledger.entries.values())
    assert {entry.sender for entry in entries} == {f"person {n}" for n in range(20)}
    assert len({entry.key[1] for entry in entries}) == 4
    order: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for entry in entries:
        order.setdefault((entry.key[0], entry.sender), []).append((entry.seq, entry.body.decode()))
    for found in order.values():
        texts = [text for _, text in sorted(found)]
        assert texts == sorted(texts, key=lambda text: int(text.split()[1]))


async def test_a_ledger_that_was_lied_to_says_so() -> None:
    """The whole machinery, with a reader that skips, repeats and changes."""
    async with LocalCluster() as cluster:
        replay = await play(cluster, generate(100))
        report = await replay.run()
    assert report.ok
    view = max(replay.ledger.finals, key=lambda view: len(view.events))
    whole = view.events
    view.events = whole[1:]
    assert replay.ledger.check().lost == 1
    view.events = [*whole, whole[-1]._replace(seq=len(whole) + 1)]
    assert replay.ledger.check().duplicated == 1
    view.events = [*whole[:-1], whole[-1]._replace(body=b"other")]
    assert replay.ledger.check().mismatched == 1
    view.events = [*whole, Seen(len(whole) + 1, "ghost/x-1", 1, b"boo", 0.0)]
    assert replay.ledger.check().mismatched == 1


async def test_what_is_not_acked_fails_the_run() -> None:
    """With two copies nothing is ACKed; the run gives up and says how much is missing."""
    async with LocalCluster() as cluster:
        await cluster.crash("replica-1", hold=True)
        replay = await play(cluster, generate(20), config=ReplayConfig(silence_s=1.0))
        report = await replay.run()
    assert not report.ok
    fields = report.to_json()
    assert (fields["sent"], fields["acked"], fields["received"], fields["lost"]) == (20, 0, 0, 0)
    assert fields["ack_ms"] == {"p50": None, "p99": None, "max": None}


def test_the_rate_is_kept(im: Run, shared_cluster: ClusterThread, tmp_path: Path) -> None:
    lines = [Line("c", "x", 60_000 * n, f"{n}", "") for n in range(4)]
    write_chat(tmp_path / "chat.jsonl", lines)
    argv = ("replay", tmp_path / "chat.jsonl", "--json", "--data", shared_cluster.data)
    for rate, least_s in (("10", 0.3), ("600x", 0.3)):
        code, out, _ = im(*argv, "--rate", rate)
        report = json.loads(out)
        assert code == 0
        assert least_s <= report["elapsed_s"] < 3


def test_what_people_see(im: Run, shared_cluster: ClusterThread, tmp_path: Path) -> None:
    write_chat(tmp_path / "chat.jsonl.gz", generate(1_000))
    argv = ("replay", tmp_path / "chat.jsonl.gz", "--data", shared_cluster.data)
    code, out, err = im(*argv, "--faults", "drop-connections, kill-shard")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("playing 1,000 messages in 50 conversations through 127.0.0.1:")
    assert "drop-connections: " in lines[1]
    assert lines[-2] == "lost 0, duplicated 0, reordered 0, gaps 0, mismatched 0"
    assert json.loads(lines[-1])["acked"] == 1_000


def test_by_url_only(im: Run, shared_cluster: ClusterThread, tmp_path: Path) -> None:
    write_chat(tmp_path / "chat.jsonl", generate(50))
    argv = ("replay", tmp_path / "chat.jsonl", "--url", shared_cluster.cluster.url, "--json")
    code, out, _ = im(*argv, "--faults", "drop-connections")
    assert code == 0
    code, out, err = im(*argv, "--faults", "kill-shard")
    assert (code, out) == (1, "")
    assert "kill-shard needs the data directory" in err


def test_a_cluster_that_was_killed_has_its_token_secret_again(
    im: Run, shared_cluster: ClusterThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the next start would let everybody in."""
    asked: list[deploy.UpConfig] = []
    monkeypatch.setattr(deploy, "kill_everything", lambda data: None)
    monkeypatch.setattr(deploy, "up", lambda config, say: asked.append(config))
    monkeypatch.setenv("IM_ACTORS_TOKEN_SECRET", "s" * 40)
    write_chat(tmp_path / "chat.jsonl", generate(200))
    argv = ("replay", tmp_path / "chat.jsonl", "--data", shared_cluster.data, "--json")
    code, _, err = im(*argv, "--faults", "kill-all")
    assert code == 0, err
    assert [config.token_secret for config in asked] == ["s" * 40]
    monkeypatch.delenv("IM_ACTORS_TOKEN_SECRET")
    code, _, err = im(*argv, "--faults", "kill-all", "--token", "one of a user")
    assert code == 1
    assert "needs its token secret: --token-secret-file" in err
    assert len(asked) == 1


def test_wrong_faults_and_rates(im: Run, tmp_path: Path) -> None:
    write_chat(tmp_path / "chat.jsonl", generate(2))
    assert "--rate" in im("replay", tmp_path / "chat.jsonl", "--rate", "fast")[2]
    assert "--faults knows" in im("replay", tmp_path / "chat.jsonl", "--faults", "flood")[2]
    assert parse_faults(" kill-shard, ,kill-replica ") == ["kill-shard", "kill-replica"]
    with pytest.raises(SetupError):
        FaultPlan(("kill-all",)).validate()


def test_ctrl_c(shared_cluster: ClusterThread, tmp_path: Path) -> None:
    write_chat(tmp_path / "chat.jsonl", generate(500))
    argv = ("replay", tmp_path / "chat.jsonl", "--rate", "20", "--data", shared_cluster.data)
    process = spawn(*argv)
    assert process.stdout is not None
    assert "playing" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
