"""Random days of a few users against a plain model of what each of them should see.

    IM_ACTORS_SEED=N python -m pytest tests/test_user_model.py

At quiet points the server's list, the unread counts and the readable events of every user equal the
model's, whatever was killed meanwhile.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from im_actors.client import Client
from im_actors.core.names import direct_session
from im_actors.core.owner import OwnerSettings
from im_actors.errors import ImError
from im_actors.testing import LocalCluster

USERS = ("alice", "bob", "carol", "dave")
GROUPS = ("group:g1", "group:g2")
STEPS, ROUNDS = 25, 2
SEEDS = [int(os.environ["IM_ACTORS_SEED"])] if "IM_ACTORS_SEED" in os.environ else [1, 2]


class Event:
    def __init__(self, sender: str, counts: bool) -> None:
        self.sender = sender
        self.counts = counts
        """It is a message that was not recalled."""


class Model:
    """Sessions as lists of events, and what each user is and has read in them."""

    def __init__(self) -> None:
        self.events: dict[str, list[Event]] = {}
        self.read: dict[tuple[str, str], int] = {}
        self.joined: dict[tuple[str, str], int] = {}
        self.left: dict[tuple[str, str], int] = {}

    def add(self, session: str, sender: str, counts: bool) -> int:
        events = self.events.setdefault(session, [])
        events.append(Event(sender, counts))
        return len(events)

    def members(self, group: str) -> list[str]:
        return [user for user in USERS if self.is_in(user, group)]

    def is_in(self, user: str, group: str) -> bool:
        joined = self.joined.get((user, group), 0)
        return joined > self.left.get((user, group), 0)

    def sees(self, user: str, session: str) -> bool:
        if session in GROUPS:
            return self.is_in(user, session)
        return user in session.partition(":")[2].split("/")

    def unread(self, user: str) -> dict[str, int]:
        found = {}
        for session, events in self.events.items():
            if events and self.sees(user, session):
                base = max(self.read.get((user, session), 0), self.joined.get((user, session), 0))
                above = events[base:]
                found[session] = sum(e.counts and e.sender != user for e in above)
        return found


class Day:
    def __init__(self, cluster: LocalCluster, clients: dict[str, Client], seed: int) -> None:
        self.cluster = cluster
        self.clients = clients
        self.rng = Random(seed)
        self.model = Model()

    async def change(self, sending: Any) -> int:
        return int((await (await sending).acked(timeout=60)).seq)

    async def begin(self) -> None:
        for group in GROUPS:
            await self.change(self.clients["alice"].groups.create(group, group[6:], ["bob"]))
            self.model.add(group, "alice", False)
            for user in ("alice", "bob"):
                self.model.joined[user, group] = 1

    async def step(self) -> None:
        what = self.rng.choices(
            ("talk", "chat", "read", "recall", "membership", "kill"), (40, 25, 20, 8, 5, 1)
        )[0]
        await getattr(self, what)()

    async def _say(self, user: str, session: str) -> None:
        for _ in range(self.rng.randint(1, 3)):
            seq = await self.change(self.clients[user].send(session, "text"))
            assert seq == self.model.add(session, user, True)

    async def talk(self) -> None:
        group = self.rng.choice(GROUPS)
        await self._say(self.rng.choice(self.model.members(group)), group)

    async def chat(self) -> None:
        one, other = self.rng.sample(USERS, 2)
        await self._say(one, direct_session(one, other))

    async def read(self) -> None:
        user = self.rng.choice(USERS)
        sessions = sorted(self.model.unread(user))
        if not sessions:
            return
        session = self.rng.choice(sessions)
        seq = self.rng.randint(1, len(self.model.events[session]))
        await self.change(self.clients[user].mark_read(session, seq))
        key = (user, session)
        self.model.read[key] = max(self.model.read.get(key, 0), seq)

    async def recall(self) -> None:
        session = self.rng.choice(sorted(self.model.events))
        own = [
            (seq, event)
            for seq, event in enumerate(self.model.events[session], 1)
            if event.counts and self.model.sees(event.sender, session)
        ]
        if own:
            seq, event = self.rng.choice(own)
            await self.change(self.clients[event.sender].recall(session, seq))
            event.counts = False
            self.model.add(session, event.sender, False)

    async def membership(self) -> None:
        group, user = self.rng.choice(GROUPS), self.rng.choice(USERS[1:])
        alice = self.clients["alice"].groups
        if self.model.is_in(user, group):
            seq = await self.change(alice.remove(group, user))
            self.model.left[user, group] = seq
        else:
            seq = await self.change(alice.add(group, user))
            self.model.joined[user, group] = seq
            self.model.read.pop((user, group), None)
        assert seq == self.model.add(group, "alice", False)

    async def kill(self) -> None:
        await self.cluster.crash(self.rng.choice(("shard-1", "shard-2", "replica-2", "gateway-1")))

    async def check(self) -> None:
        """Once everything has come to rest, all see what they should."""
        await self.cluster.wait_serving()
        for user in USERS:
            expected, found = self.model.unread(user), None
            deadline = asyncio.get_running_loop().time() + 20
            while found != (expected, sum(expected.values())):
                assert asyncio.get_running_loop().time() < deadline, (user, found, expected)
                await asyncio.sleep(0.01)
                try:
                    listed = await self.clients[user].conversations(limit=100)
                    total = await self.clients[user].unread()
                except ImError:
                    continue
                if not listed.offline and not total.offline:
                    found = {r.session: r.unread for r in listed.conversations}, total.count
            await self._check_inputs(user)
            await self._check_reading(user)

    async def _check_inputs(self, user: str) -> None:
        for row in (await self.clients[user].conversations(limit=100)).conversations:
            assert row.inputs is not None
            base, last, skipped, ranges = row.inputs
            assert row.unread == max(0, last - base) - skipped
            assert last in (len(self.model.events[row.session]), base)
            assert sum(end - first + 1 for first, end in ranges) == skipped

    async def _check_reading(self, user: str) -> None:
        for group in GROUPS:
            joined = self.model.joined.get((user, group), 0)
            end = len(self.model.events[group])
            if not self.model.is_in(user, group):
                end = self.model.left.get((user, group), 0)
            try:
                page = await self.clients[user]._server_page(group, None, 500)
                found = [event.seq for event in page.events]
            except ImError:
                found = []
            assert found == (list(range(joined, end + 1)) if joined else [])


@pytest.mark.parametrize("seed", SEEDS)
async def test_everybody_sees_what_he_should(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}: IM_ACTORS_SEED={seed} python -m pytest tests/test_user_model.py")
    quick = OwnerSettings(replace_after_ms=600, seal_wait_ms=200)
    async with LocalCluster(tmp_path / "data", replicas=4, gateways=2, owner=quick) as cluster:
        clients = {user: Client(cluster.url, user=user) for user in USERS}
        try:
            for client in clients.values():
                await client.__aenter__()
            day = Day(cluster, clients, seed)
            await day.begin()
            for _ in range(ROUNDS):
                for _ in range(STEPS):
                    await day.step()
                await day.check()
        finally:
            for client in clients.values():
                await client.__aexit__(None, None, None)
