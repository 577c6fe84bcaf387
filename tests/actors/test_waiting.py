"""How ``up`` waits for a start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from im_actors.actors import waiting
from im_actors.errors import NotReachable

SETTINGS: Any = SimpleNamespace(slots=4, joined=False, replicas=3, shards=1, gateways=1)
SERVED = {"slots": 4, "running": {"replica": 3, "shard": 1, "gateway": 1}, "failures": {}}


class Admin:
    """Silent at first, then it serves."""

    def __init__(self, silent: int) -> None:
        self.silent = silent

    async def __aenter__(self) -> Admin:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def call(self, method: str) -> dict[str, Any]:
        assert method == "progress"
        if self.silent:
            self.silent -= 1
            raise NotReachable("nothing was heard for 2727 ms")
        return SERVED


async def test_a_controller_that_is_silent_for_a_while_does_not_fail_a_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admin = Admin(silent=2)
    monkeypatch.setattr(waiting, "admin_of", lambda run, secret: admin)
    said: list[str] = []
    cluster: Any = SimpleNamespace(secret_bytes=b"")
    await waiting.Waiting(SETTINGS, said.append).wait(SimpleNamespace(), cluster)  # type: ignore[arg-type]
    assert not admin.silent
    assert "4 of 4 slots served" in said


async def test_one_that_stays_silent_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "admin_of", lambda run, secret: Admin(silent=10**9))
    monkeypatch.setattr(waiting, "SERVE_S", 0.01)
    cluster: Any = SimpleNamespace(secret_bytes=b"")
    with pytest.raises(NotReachable, match="nothing was heard"):
        await waiting.Waiting(SETTINGS, print).wait(SimpleNamespace(), cluster)  # type: ignore[arg-type]
