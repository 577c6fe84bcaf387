"""status, verify, story and token."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from im_actors.actors.placement import write_places
from im_actors.cli.cluster_commands import sound, up_settings
from im_actors.cli.main import build_parser
from im_actors.errors import SetupError
from im_actors.gateway.tokens import check_token
from im_actors.server.settings import ClusterSettings
from tests.cli.conftest import ClusterThread, Result

Run = Callable[..., Result]


def test_status_of_a_healthy_cluster(im: Run, shared_cluster: ClusterThread) -> None:
    code, out, err = im("status", "--json", "--data", shared_cluster.data)
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["healthy"]
    assert found["slots"]["active"] == found["slots"]["total"] == 8
    assert found["rates"]["acked_per_s"] >= 0
    code, out, _ = im("status", "--data", shared_cluster.data)
    assert code == 0
    for word in ("healthy: 8 of 8 slots active", "shard-1", "replica-3", "gateway-2"):
        assert word in out


def test_status_says_what_is_wrong(im: Run, own_cluster: ClusterThread) -> None:
    own_cluster.run(own_cluster.cluster.crash("replica-2", hold=True))
    code, out, _ = im("status", "--data", own_cluster.data)
    assert code == 1
    assert "not healthy: 0 of 8 slots active" in out
    assert "missing replica-2" in out
    code, out, _ = im("status", "--json", "--data", own_cluster.data)
    assert code == 1
    assert not json.loads(out)["healthy"]


def test_a_cluster_that_does_not_answer(
    im: Run, own_cluster: ClusterThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file = (own_cluster.data / "run.json").read_text()
    own_cluster.stop()
    (own_cluster.data / "run.json").write_text(run_file)
    monkeypatch.setattr("im_actors.cli.cluster_commands.STATUS_TIMEOUT_S", 0.5)
    code, out, err = im("status", "--data", own_cluster.data)
    assert (code, out) == (1, "")
    assert "does not answer" in err


def test_verify_online_and_offline(im: Run, own_cluster: ClusterThread) -> None:
    data = ("--data", own_cluster.data)
    for number in range(3):
        assert im("send", "team", f"message {number}", "--as", "alice", *data)[0] == 0
    code, out, _ = im("verify", "--json", *data)
    online = json.loads(out)
    assert code == 0
    assert (online["events"], online["divergent"], online["corrupt"], online["missing"]) == (
        3, 0, 0, 0,
    )  # fmt: skip
    code, out, _ = im("verify", *data)
    assert code == 0
    assert "sound: 0 divergent, 0 corrupt, 0 missing" in out
    own_cluster.stop()
    code, out, err = im("verify", "--json", *data)
    assert code == 0
    assert "reading the directories" in err
    offline = json.loads(out)
    assert {k: offline[k] for k in ("slots", "records", "events")} == {
        k: online[k] for k in ("slots", "records", "events")
    }


def test_verify_finds_a_flipped_bit(im: Run, own_cluster: ClusterThread) -> None:
    data = ("--data", own_cluster.data)
    assert im("send", "team", "x" * 20_000, "--as", "alice", *data)[0] == 0
    own_cluster.stop()
    spoiled = 0
    for path in (own_cluster.data / "replica-2").rglob("*.db"):
        content = path.read_bytes()
        if b"x" * 1000 in content:
            place = content.index(b"x" * 1000)
            path.write_bytes(content[:place] + b"y" + content[place + 1 :])
            spoiled += 1
    assert spoiled
    code, out, _ = im("verify", "--json", *data)
    found = json.loads(out)
    assert code == 1
    assert found["corrupt"] >= 1
    assert any("replica-2" in problem for problem in found["problems"])
    code, out, _ = im("verify", *data)
    assert code == 1
    assert "NOT SOUND" in out


def test_verify_refuses_directories_in_use(im: Run, own_cluster: ClusterThread) -> None:
    (own_cluster.data / "run.json").unlink()
    code, out, err = im("verify", "--data", own_cluster.data)
    assert (code, out) == (1, "")
    assert "in use" in err


def test_sound() -> None:
    good = {"divergent": 0, "corrupt": 0, "missing": 0, "problems": []}
    assert sound(good)
    for name in ("divergent", "corrupt", "missing"):
        assert not sound(good | {name: 1})
    assert not sound(good | {"problems": ["replica-1 did not answer"]})
    assert not sound(good | {"ok": False})


def test_story_tells_of_shards_and_replicas(im: Run, shared_cluster: ClusterThread) -> None:
    data = ("--data", shared_cluster.data)
    assert im("send", "story", "x", "--as", "alice", *data)[0] == 0
    code, out, _ = im("story", "story", "1", *data)
    assert code == 0
    assert "session 'story' is in slot" in out
    assert "shard-" in out
    code, out, _ = im("story", "story", "1", "--device", "alice/cli", "--json", *data)
    assert isinstance(json.loads(out), list)


def test_token(im: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "s" * 40
    (tmp_path / "secret").write_text(secret + "\n")
    code, out, _ = im("token", "alice", "--token-secret-file", tmp_path / "secret", "--ttl", 60)
    assert code == 0
    check_token(secret, out.strip(), "alice", "phone-12345678")
    monkeypatch.setenv("IM_ACTORS_TOKEN_SECRET_FILE", str(tmp_path / "secret"))
    code, again, _ = im("token", "alice", "--device", "phone")
    check_token(secret, again.strip(), "alice", "phone-12345678")
    (tmp_path / "secret").write_text("\n")
    assert "is empty" in im("token", "alice")[2]
    monkeypatch.delenv("IM_ACTORS_TOKEN_SECRET_FILE")
    assert "which secret?" in im("token", "alice")[2]
    monkeypatch.setenv("IM_ACTORS_TOKEN_SECRET", secret + "\n")
    code, out, _ = im("token", "alice")
    assert code == 0
    check_token(secret, out.strip(), "alice", "phone-12345678")


def test_what_up_is_told(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s" * 40)
    args = build_parser().parse_args(
        ["up", "--shards", "4", "--redis", "redis://x", "--host", "0.0.0.0",
         "--token-secret-file", str(tmp_path / "secret")]
    )  # fmt: skip
    settings = up_settings(args)
    assert settings["shards"] == 4
    assert settings["replicas"] == 3
    assert settings["token_secret"] == "s" * 40
    assert "slots" not in settings
    from im_actors.actors.deploy import UpConfig

    UpConfig(data=tmp_path, **settings).validate()


def test_on_several_hosts_there_is_one_of_each_kind_for_each_disk(tmp_path: Path) -> None:
    def counts(*options: str) -> set[int]:
        words = ["up", "--address", "auto", "--data", str(tmp_path), *options]
        settings = up_settings(build_parser().parse_args(words))
        return {settings[name] for name in ("replicas", "shards", "gateways")}

    assert counts() == {3}
    assert counts("--replicas", "5") == {5}
    assert counts("--replicas", "5", "--shards", "2") == {2, 5}
    write_places(tmp_path, {f"replica-{n}": f"im_disk_{n}" for n in range(1, 5)})
    assert counts() == {4}, "what has been placed is not left out"


def settings_of(*options: object) -> ClusterSettings:
    found: ClusterSettings = up_settings(build_parser().parse_args(["up", *map(str, options)]))[
        "operator"
    ]
    return found


def test_options_take_the_place_of_the_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "im.toml"
    file.write_text('[rules]\nservices = ["old"]\nedit_ms = 5\n[mailbox]\nredis = "redis://a"\n')
    found = settings_of("--settings", file, "--services", "support, billing")
    assert found.rules.services == {"support", "billing"}
    assert (found.rules.edit_ms, found.mailbox.redis) == (5, "redis://a")
    monkeypatch.setenv("IM_ACTORS_MAILBOX_REDIS", "redis://:hunter2@b")
    assert settings_of("--settings", file).mailbox.redis == "redis://:hunter2@b"
    assert settings_of("--mailbox-redis", "redis://c").mailbox.redis == "redis://c"


def test_files_for_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "im.toml"
    file.write_text('[tls]\ncertificate = "a.pem"\nkey = "a.key"\nauthorities = "/ca.pem"\n')
    monkeypatch.chdir(tmp_path.parent)
    found = settings_of("--settings", file, "--tls-cert", "b.pem", "--tls-key", "/b.key").tls
    assert found.files == (str(tmp_path.parent / "b.pem"), "/b.key", "/ca.pem")
    with pytest.raises(SetupError, match="belong together"):
        settings_of("--tls-cert", "b.pem")


@pytest.mark.parametrize("option", ["--redis", "--mailbox-redis"])
def test_no_password_on_a_command_line(option: str) -> None:
    with pytest.raises(SetupError, match="everybody") as refused:
        settings_of(option, "redis://:hunter2@host")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_foreground_stays_until_a_signal_and_then_stops(
    im: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    from im_actors.actors import deploy

    calls: list[str] = []

    def up(config: deploy.UpConfig, progress: object) -> object:
        calls.append("up")
        threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
        return SimpleNamespace(url="im://127.0.0.1:7070", ray_address="")

    def down(data: Path, progress: object) -> None:
        # The second signal: it does not end the stopping.
        os.kill(os.getpid(), number)
        calls.append("down")

    monkeypatch.setattr(deploy, "up", up)
    monkeypatch.setattr(deploy, "down", down)
    found, out, _ = im("up", "--foreground", "--json", "--data", tmp_path)
    assert found == code
    assert json.loads(out)["url"] == "im://127.0.0.1:7070"
    assert calls == ["up", "down"]
