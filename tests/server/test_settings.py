"""What an operator sets: read from a file, refused when it makes no sense, never shown whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from im_actors.errors import SetupError
from im_actors.gateway.config import GatewayConfig
from im_actors.server.settings import ClusterSettings, has_password, read_settings, without_password

URL = "redis://im:hunter2@10.0.0.5:6379/3"


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "im.toml"
    path.write_text(
        '[rules]\nservices = ["support"]\n[lines]\nrows = 512\n'
        "[batches]\nread_ms = 900\n[batches.high]\nper_s_max = 7\n"
        f'[mailbox]\nredis = "{URL}"\nlarge_accounts = ["star"]\n'
    )
    found, default = read_settings(path), ClusterSettings()
    assert found.rules.services == {"support"}
    assert found.rules.recall_ms == default.rules.recall_ms
    assert (found.lines.rows, found.lines.direct) == (512, default.lines.direct)
    assert found.batches.high.per_s_max == 7
    assert found.batches.high.in_flight_max == default.batches.high.in_flight_max
    assert (found.batches.read_ms, found.mailbox.redis) == (900, URL)
    # As it goes to the actors and comes back.
    assert ClusterSettings.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_paths_begin_where_the_settings_file_is(tmp_path: Path) -> None:
    path = tmp_path / "im.toml"
    path.write_text('[tls]\ncertificate = "host.pem"\nkey = "/etc/im/host.key"\n')
    assert read_settings(path).tls.files == (str(tmp_path / "host.pem"), "/etc/im/host.key", "")
    assert ClusterSettings().tls.files is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[rule]\n", "has no 'rule'; it has batches, lines, mailbox, rules, shares, tls"),
        ("[rules]\nrecal_ms = 1\n", r"\[rules\] has no 'recal_ms'"),
        ("[batches.low]\n", r"\[batches\] has no 'low'"),
        ("[batches]\nhigh = 3\n", r"high is a section, \[batches.high\]"),
        ("[batches.high]\nper_s_max = 0\n", "at least 1"),
        ("[batches]\nretry_ms_min = 5000\n", "above retry_ms_max"),
        ('[rules]\nedit_ms = "1"\n', "edit_ms must be a whole number"),
        ("[rules]\nedit_ms = true\n", "edit_ms must be a whole number"),
        ("[rules]\nedit_ms = -1\n", "edit_ms is -1"),
        ('[rules]\nservices = "support"\n', "services must be a list of strings"),
        ('[rules]\nservices = ["a/b"]\n', "services: .*a/b"),
        ("[mailbox]\nwarm = 1\n", "warm must be true or false"),
        ('[mailbox]\nredis = "10.0.0.5"\n', "must be a URL"),
        ("[lines]\ndirect = 0\n", "direct is 0"),
        ("[lines\n", "is not TOML"),
        ("[shares]\nattempts_per_s = 0\n", "attempts_per_s is 0"),
        ('[tls]\ncertificate = "x"\n', "certificate and key belong together"),
        ('[tls]\nauthorities = "x"\n', "mean nothing without a certificate"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "im.toml"
    path.write_text(text)
    with pytest.raises(SetupError, match=what):
        read_settings(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be read"):
        read_settings(tmp_path / "im.toml")


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    settings = ClusterSettings.from_dict({"mailbox": {"redis": URL}})
    assert "hunter2" in json.dumps(settings.to_dict())
    config = GatewayConfig(**settings.gateway_fields("c1", tmp_path)).validate()
    assert "hunter2" not in json.dumps(settings.public()) + repr(settings) + repr(config)
    assert settings.public()["mailbox"]["redis"] == "redis://10.0.0.5:6379/3"
    with pytest.raises(SetupError) as refused:
        ClusterSettings.from_dict({"mailbox": {"redis": f"http://{URL}"}})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("url", [URL, "redis://:x@host", "rediss://host/0?password=x"])
def test_passwords_are_found_wherever_they_are(url: str) -> None:
    assert has_password(url)
    assert not has_password(without_password(url))


def test_gateways_are_told_their_part(tmp_path: Path) -> None:
    settings = ClusterSettings.from_dict({"mailbox": {"warm": True}, "lines": {"rows": 99}})
    fields = settings.gateway_fields("c1", tmp_path)
    assert fields["mailbox_dir"] == str(tmp_path / "mailboxes")
    assert (fields["mailbox_cluster"], fields["lines"].rows) == ("c1", 99)
    assert ClusterSettings().gateway_fields("c1", tmp_path)["mailbox_dir"] == ""
