"""Waits for a start to come to its end, and says on the way how far it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from im_actors.actors.settings import ActorSettings
from im_actors.core.model import COPIES
from im_actors.errors import NotReachable, error_for
from im_actors.server.admin import admin_of
from im_actors.server.cluster_file import ClusterFile, RunFile

SERVE_S = 120.0
"""How long a start may take until all slots are served."""
REST_S = 5.0
"""How long the other actors are waited for when all slots are served and a gateway is there."""
REST_HOSTS_S = 20.0
"""The same on several hosts, which are not equally fast."""
POLL_S = 0.05

Progress = Callable[[str], None]


class Waiting:
    """Follows a start until everything is served, and says what has changed."""

    def __init__(self, settings: ActorSettings, progress: Progress) -> None:
        self._progress = progress
        self._slots = settings.slots
        self._rest_s = REST_HOSTS_S if settings.joined else REST_S
        self._wanted = {
            "replica": settings.replicas,
            "shard": settings.shards,
            "gateway": settings.gateways,
        }
        self._said: set[str] = set()
        self._served = 0

    async def wait(self, run: RunFile, cluster: ClusterFile) -> None:
        begun = time.monotonic()
        served = 0.0
        async with admin_of(run, cluster.secret_bytes) as admin:
            while True:
                try:
                    state = await admin.call("progress")
                except NotReachable:
                    # While everything starts at once it may be silent for a while.
                    if time.monotonic() - begun > SERVE_S:
                        raise
                    continue
                self._report(state)
                self._check(state["failures"])
                now = time.monotonic()
                if state["slots"] == self._slots and state["running"].get("gateway"):
                    served = served or now
                    missing = self._missing(state)
                    if not missing or now - served > self._rest_s:
                        self._say_all(missing)
                        return
                if now - begun > SERVE_S:
                    await admin.call("wait_serving", 0.1)
                    raise NotReachable(f"not there after {SERVE_S:.0f} s: {self._missing(state)}")
                await asyncio.sleep(POLL_S)

    def _report(self, state: dict[str, Any]) -> None:
        running = state["running"]
        if running.get("replica"):
            self._say(f"{running['replica']} of {self._wanted['replica']} replicas")
        if state["slots"] > self._served:
            self._served = state["slots"]
            self._say(f"{state['slots']} of {self._slots} slots served")

    def _check(self, failures: dict[str, list[Any]]) -> None:
        """Fail at once where waiting mends nothing."""
        for name, (code, text) in failures.items():
            if name.startswith("gateway-"):
                raise error_for(code, f"{name}: {text}")
        broken = [name for name in failures if name.startswith("replica-")]
        if broken and self._wanted["replica"] - len(broken) < COPIES:
            code, text = failures[broken[0]]
            raise error_for(code, f"{broken[0]}: {text}")

    def _missing(self, state: dict[str, Any]) -> list[str]:
        lacking = [
            f"only {state['running'].get(kind, 0)} of {count} {kind}s run"
            for kind, count in self._wanted.items()
            if state["running"].get(kind, 0) < count
        ]
        return lacking + [f"{n}: {text}" for n, (_, text) in state["failures"].items() if lacking]

    def _say_all(self, texts: list[str]) -> None:
        for text in texts:
            self._say(text)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._progress(text)
