"""Settings that make no sense are refused at the start, in words."""

from __future__ import annotations

from typing import Any

import pytest

from im_actors.errors import SetupError
from im_actors.gateway import GatewayConfig
from im_actors.net.shares import ShareSettings
from im_actors.wire.limits import Limits


def test_the_defaults_are_valid() -> None:
    config = GatewayConfig()
    assert config.validate() is config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hold_ms": 0}, "hold_ms is 0"),
        ({"hold_ms": 4_000_000}, "must be 1 to 3600000"),
        ({"follows_max": True}, "follows_max is True"),
        ({"shares": ShareSettings(sends_per_s=1.5)}, "sends_per_s is 1.5"),
        ({"retry_ms_min": 600}, "retry_ms_min is above retry_ms_max"),
        ({"answer_ms": 20_000}, "answer_ms is above hold_ms"),
        ({"outstanding_per_connection": 100}, "at least 128"),
        ({"shares": ShareSettings(sends_burst=100)}, "at least 128"),
        ({"outstanding_rows_max": 1_000}, "outstanding_per_connection is above"),
        ({"outstanding_bytes_max": 1 << 30}, "a link to a shard may have unread"),
        ({"slow_reader_bytes": 1_000}, "slow_reader_bytes"),
        ({"buffered_bytes_max": 2_000_000}, "room for"),
        ({"tick_ms": 1_000}, "tick_ms is above sweep_ms"),
        ({"token_secret": "short"}, "token_secret has 5 bytes"),
        ({"token_secret": b"x" * 32}, "must be a str, and is of type bytes"),
        ({"token_secret": "x" * 32, "insecure_open": True}, "exclude each other"),
        ({"limits": Limits(window=0)}, "window"),
    ],
)
def test_contradictions(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        GatewayConfig(**settings).validate()


def test_the_secret_is_not_shown() -> None:
    assert "hunter" not in repr(GatewayConfig(token_secret="hunter" * 8))
