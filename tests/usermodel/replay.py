"""Chat files as groups and direct sessions: real clients say what the file says, in its order, and
at quiet points everybody's list, unread counts and timelines are those of the model.

Some of the participants read on the way, some are without a connection for a while and what they
say comes when they are back, some come late; actors are killed in between.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path
from random import Random

from im_actors.cli.chatfile import Line, read_chat
from im_actors.core.names import direct_session, group_session
from tests.usermodel.cluster import Faulty
from tests.usermodel.devices import Device
from tests.usermodel.model import Op
from tests.usermodel.runs import Outcome, carefully
from tests.usermodel.town import Town

DATA = Path(__file__).parents[4] / "shared" / "data"
"""Beside the checkout, or where IM_ACTORS_CHAT_DATA says."""
PARTICIPANTS_AT_ONCE = 60
"""Conversations are played together up to so many; a larger one is played alone."""
READS, GOES, COMES, FAULTS, RECALLS = 0.08, 0.01, 0.05, 0.002, 0.01
"""After each line: somebody reads, loses his connection, has it again; something is killed; what
was said last is recalled."""


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    seed: int
    files: tuple[str, ...]
    """Played one after the other."""
    events: int | None
    """Of each file; None: all."""
    quiet: int
    """Lines between two quiet points."""

    def command(self) -> str:
        events = f" --events {self.events}" if self.events else ""
        return (
            f"python -m tests.usermodel --seed {self.seed} --replay {' '.join(self.files)}{events}"
            f" --quiet {self.quiet}"
        )


def data_file(name: str) -> Path:
    """A file by its path, or by its name in the directory of the chat files."""
    where = Path(os.environ.get("IM_ACTORS_CHAT_DATA", DATA))
    return Path(name) if Path(name).exists() else where / name


class Stage(Town):
    """A Town whose users are those of the conversations that are being played."""

    def __init__(self, cluster: Faulty, rng: Random, stores: Path) -> None:
        super().__init__(cluster, (), rng, stores)
        self.file = ""
        self.names: dict[str, str] = {}
        self.talks: dict[str, str] = {}
        """What is being played: the conversations and their sessions,"""
        self.members: dict[str, list[str]] = {}
        """who is in each session,"""
        self.late: set[str] = set()
        """who is to come into a group when he speaks first,"""
        self.last: dict[str, Op] = {}
        """and what was said last in each."""

    @property
    def is_group(self) -> bool:
        return Path(self.file).name.startswith("group")

    def sessions_of(self, user: str) -> list[str]:
        return [s for s in self.talks.values() if user in self.members[s] and user not in self.late]

    def user(self, sender: str) -> str:
        """Names of chat files may hold what names of users may not."""
        name = f"{len(self.names)}-{sender.replace('/', '_')[:40]}"
        return self.names.setdefault(f"{self.file} {sender}", name)

    def device(self, user: str) -> Device:
        (device,) = self.devices_of(user, "online", "tunnel")
        return device

    # ---- playing

    async def play(self, lines: list[Line], quiet: int, outcome: Outcome) -> None:
        """Conversations together, each in its order."""
        await self._gather(lines)
        for number, line in enumerate(_interleaved(lines), 1):
            await self._say(line)
            await self._meanwhile()
            outcome.steps += 1
            if number % quiet == 0 or number == len(lines):
                await self._all_online()
                await self.rest()
                outcome.quiet_points += 1
                print(f"  {outcome.steps} said", file=sys.stderr, flush=True)
        for device in self.devices:
            await self.close(device)
        self.devices.clear()

    async def _gather(self, lines: list[Line]) -> None:
        talks: dict[str, list[str]] = {}
        for line in lines:
            users = talks.setdefault(line.conversation, [])
            if (user := self.user(line.sender)) not in users:
                users.append(user)
        self.users = tuple(dict.fromkeys(user for users in talks.values() for user in users))
        self.talks = {talk: self._session(talk, users) for talk, users in talks.items()}
        self.members = {self.talks[talk]: users for talk, users in talks.items()}
        self.late, self.last = set(), {}
        for number, user in enumerate(self.users):
            device = await self.new_device(user, stored=number % 4 < 2)
            device.follows = number % 2 == 0
        if self.is_group:
            for talk, users in talks.items():
                await self._make_group(talk, users)

    async def _make_group(self, talk: str, users: list[str]) -> None:
        session = self.talks[talk]
        self.keepers[session] = users[0]
        first = users[1 : 1 + 2 * len(users) // 3]
        op = await self.ask(self.device(users[0]), session, "create", talk, first)
        await self.answer(op)
        self.late.update(users[1 + len(first) :])

    def _session(self, talk: str, users: list[str]) -> str:
        if self.is_group:
            return group_session(talk.replace("/", " "))
        return direct_session(*(users * 2)[:2])

    async def _say(self, line: Line) -> None:
        """After what was said before, as far as its sender has a connection."""
        device, session = self.device(self.user(line.sender)), self.talks[line.conversation]
        if device.user in self.late:
            self.late.discard(device.user)
            owner = self.device(self.keepers[session])
            await self._in_order(owner, session)
            self.last[session] = await self.ask(owner, session, "add", [device.user])
        await self._in_order(device, session)
        self.last[session] = await self.ask(device, session, "message", line.text)

    async def _in_order(self, device: Device, session: str) -> None:
        last = self.last.get(session)
        if last is not None and last.user != device.user and self._has_connection(last.user):
            await self.answer(last)

    def _has_connection(self, user: str) -> bool:
        return bool(self.devices_of(user, "online"))

    async def _meanwhile(self) -> None:
        rng = self.rng
        if rng.random() < READS:
            session = rng.choice(list(self.talks.values()))
            if last := self._known.get(session):
                device = self.device(rng.choice(self._users_of(session)))
                seq = rng.choice((last, last, rng.randint(1, last)))
                await self.change(device, "read", session, seq)
        if rng.random() < RECALLS:
            op = rng.choice(list(self.last.values()))
            if op.what == "message" and self._has_connection(op.user) and await self.answer(op):
                await self.ask(self.device(op.user), op.session, "recall", op.sent.ack.seq)
        if rng.random() < GOES:
            device = self.device(rng.choice(self.users))
            if device.store is not None:
                await self._connect(device, False)
        if rng.random() < COMES and (away := [d for d in self.devices if d.mode == "tunnel"]):
            await self._connect(rng.choice(away), True)
        if rng.random() < FAULTS:
            self.tell(await self.cluster.fault(("kill",)))

    def _users_of(self, session: str) -> list[str]:
        members = self.members[session]
        return [user for user in members if user not in self.late]

    async def _connect(self, device: Device, reachable: bool) -> None:
        """What it has not sent yet stays in its store."""
        if (device.mode == "online") != reachable:
            await self.close(device)
            await self.open(device, reachable)

    async def _all_online(self) -> None:
        for device in self.devices:
            await self._connect(device, True)


def _interleaved(lines: list[Line]) -> Iterator[Line]:
    """Those of several conversations in turns, each in its order."""
    talks: dict[str, list[Line]] = {}
    for line in lines:
        talks.setdefault(line.conversation, []).append(line)
    for several in zip_longest(*talks.values()):
        yield from (line for line in several if line is not None)


def _acts(lines: list[Line]) -> Iterator[list[Line]]:
    """Conversations that are played together."""
    act: list[Line] = []
    people: set[str] = set()
    for _, talk in groupby(lines, key=lambda line: line.conversation):
        said = list(talk)
        senders = {line.sender for line in said}
        if act and len(people | senders) > PARTICIPANTS_AT_ONCE:
            yield act
            act, people = [], set()
        act, people = act + said, people | senders
    yield act


async def replay(plan: ReplayPlan, directory: Path) -> Outcome:
    files = {file: read_chat(data_file(file), plan.events) for file in plan.files}
    rng = Random(plan.seed)
    (directory / "stores").mkdir()
    async with Faulty(directory, Random(rng.random())) as cluster:
        stage = Stage(cluster, Random(rng.random()), directory / "stores")

        async def play(outcome: Outcome) -> None:
            for stage.file, lines in files.items():
                for act in _acts(lines):
                    await stage.play(act, plan.quiet, outcome)

        return await carefully(stage, play)
