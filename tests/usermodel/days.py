"""Random days: what users do, and what happens to their devices and to the servers."""

from __future__ import annotations

from random import Random

from im_actors.core.model import EventKind
from im_actors.core.names import (
    NOTICE_CHANNELS,
    SessionKind,
    batch_session,
    direct_session,
    group_session,
    notice_session,
    session_kind,
    users_of,
)
from tests.usermodel import checks
from tests.usermodel.cluster import SERVICE
from tests.usermodel.devices import Device
from tests.usermodel.model import ADMIN, MEMBER, OWNER, Op
from tests.usermodel.town import Batch, Town

LATER_MS = 1 << 42
"""A time that no test sees."""
RECENT = 12
"""So many of the last messages may be recalled, edited, read, deleted at once."""
GROUPS_AT_ONCE = 4
DEVICES_MAX = 4
OPEN_SESSION = "square"
NOSY = 0.02
"""So often somebody turns to what is not his to see."""
STEPS = {
    "talk": 22,
    "chat": 20,
    "notice": 3,
    "read": 14,
    "read_recent": 8,
    "recall": 5,
    "edit": 4,
    "delete": 4,
    "pin": 2,
    "mute": 1,
    "hide": 3,
    "fold": 2,
    "membership": 9,
    "group": 1,
    "dissolve": 0.3,
    "batch": 0.4,
    "recall_batch": 0.2,
    "look": 6,
    "offline": 3,
    "online": 3,
    "crash_device": 0.7,
    "another_device": 0.6,
    "kick": 0.4,
    "wait": 4,
    "fault": 2,
}
LABELS = ("", "work", "old")


class Days:
    """The choices come from the seed and from what the model knows, so that a seed makes the same
    wishes again; what comes first, and what fails, the machine decides."""

    def __init__(self, town: Town, rng: Random, faults: tuple[str, ...]) -> None:
        self.town = town
        self.rng = rng
        self.faults = faults
        self.groups: dict[str, list[str]] = {}
        """Those that may exist, with users of whom some are members."""
        self.recent: list[Op] = []
        self._counter = 0

    async def begin(self, devices: int) -> None:
        town = self.town
        for user in town.users:
            for _ in range(devices):
                await town.new_device(user)
        await town.new_device(SERVICE)
        for _ in range(2):
            await self.group()

    async def run(self, steps: int) -> None:
        names, weights = list(STEPS), list(STEPS.values())
        for name in self.rng.choices(names, weights, k=steps):
            if name != "fault" or self.faults:
                await getattr(self, name)()

    # ---- choices

    def device(self, user: str | None = None) -> Device:
        """One that takes sends, with or without a connection."""
        town = self.town
        if user is None:
            user = self.rng.choice(town.users)
        return self.rng.choice(town.devices_of(user, "online", "tunnel"))

    def number(self) -> int:
        self._counter += 1
        return self._counter

    def session_of(self, user: str) -> str | None:
        """One in which something has happened."""
        known = [
            session
            for session, timeline in self.town.model.timelines.items()
            if session_kind(session) is not SessionKind.MAILBOX
            and timeline.lines
            and (timeline.readable(user)[1] > 0 or self.rng.random() < NOSY)
        ]
        return self.rng.choice(known) if known else None

    async def recent_one(self) -> tuple[Op, int] | None:
        """A message that was sent a moment ago, and its seq when there is one."""
        if not self.recent:
            return None
        op = self.rng.choice(self.recent)
        owner = next(d for d in self.town.devices if d.address == op.address)
        seq = await self.town.answer(op) if owner.mode == "online" else 0
        return (op, seq) if seq else None

    # ---- talking

    async def _say(self, device: Device, session: str) -> None:
        for _ in range(self.rng.choice((1, 1, 1, 2, 5))):
            text = f"{device} says {self.number()}" + " and more" * self.rng.choice((0, 0, 20))
            self.recent.append(await self.town.ask(device, session, "message", text))
        del self.recent[:-RECENT]

    async def talk(self) -> None:
        if self.rng.random() < 0.05:
            return await self._say(self.device(), OPEN_SESSION)
        return await self._say(self.device(), self.rng.choice(list(self.groups)))

    async def chat(self) -> None:
        one, other = self.rng.choices(self.town.users, k=2)
        device = self.device(one)
        if self.rng.random() < 0.01:
            device = self.device()  # who has no business there
        await self._say(device, direct_session(one, other))

    async def notice(self) -> None:
        channel, user = self.rng.choice(NOTICE_CHANNELS), self.rng.choice(self.town.users)
        writer = SERVICE if self.rng.random() < 0.8 else user
        await self._say(self.device(writer), notice_session(channel, user))

    async def _change_message(self, what: str, *args: str) -> None:
        """Of a recent message, or of an old one; mostly one's own."""
        town = self.town
        found = await self.recent_one() if self.rng.random() < 0.5 else None
        if found is not None:
            op, seq = found
            user, session = op.user, op.session
        else:
            user = self.rng.choice(town.users)
            if (known := self.session_of(user)) is None:
                return
            session = known
            seq = self.rng.randint(1, town.model.timeline(session).last + 1)
            lines = town.model.timeline(session).lines[seq - 1 : seq]
            if lines and self.rng.random() < 0.7 and lines[0].user in town.users:
                user = lines[0].user
        await town.ask(self.device(user), session, what, seq, *args)

    async def recall(self) -> None:
        await self._change_message("recall")

    async def edit(self) -> None:
        await self._change_message("edit", f"better {self.number()}")

    # ---- mailboxes

    async def read(self) -> None:
        device = self.device()
        if (session := self.session_of(device.user)) is not None:
            last = self.town.model.timeline(session).last
            seq = self.rng.choice((last, last, self.rng.randint(1, last), last + 2))
            await self.town.change(device, "read", session, seq)

    def _readers(self, op: Op) -> list[str]:
        named = users_of(op.session)
        timeline = self.town.model.timeline(op.session)
        return [u for u in self.town.users if u in named or (not named and timeline.sees(u))]

    async def read_recent(self) -> None:
        """As a device does that shows it: before the mailbox has heard of it."""
        found = await self.recent_one()
        if found is not None and (readers := self._readers(found[0])):
            device = self.device(self.rng.choice(readers))
            await self.town.change(device, "read", found[0].session, found[1])

    async def delete(self) -> None:
        found = await self.recent_one() if self.rng.random() < 0.6 else None
        if found is not None and (readers := self._readers(found[0])):
            device = self.device(self.rng.choice(readers))
            await self.town.change(device, "delete", found[0].session, found[1])
            return
        device = self.device()
        if (session := self.session_of(device.user)) is not None:
            lines = self.town.model.timeline(session).lines
            messages = [line.seq for line in lines if line.kind == EventKind.MESSAGE]
            if messages:
                seq = self.rng.choice((messages[-1], self.rng.choice(messages)))
                await self.town.change(device, "delete", session, seq)

    async def _set(self, what: str, value: object) -> None:
        device = self.device()
        if (session := self.session_of(device.user)) is not None:
            await self.town.change(device, what, session, value)

    async def pin(self) -> None:
        await self._set("pin", self.rng.random() < 0.5)

    async def mute(self) -> None:
        await self._set("mute", self.rng.random() < 0.5)

    async def fold(self) -> None:
        await self._set("fold", self.rng.choice(LABELS))

    async def hide(self) -> None:
        device = self.device()
        if (session := self.session_of(device.user)) is not None:
            last = self.town.model.timeline(session).last
            # Not further than that: a device that follows a group cannot know of it.
            seq = self.rng.choice((last, last, last, 0))
            await self.town.change(device, "hide", session, seq)

    # ---- groups

    async def group(self) -> None:
        if len(self.groups) >= GROUPS_AT_ONCE:
            return
        users = self.town.users
        keeper, *others = self.rng.sample(users, self.rng.randint(2, len(users)))
        session = group_session(f"g{self.number()}")
        self.groups[session] = list(users)
        self.town.keepers[session] = keeper
        await self.town.ask(self.device(keeper), session, "create", session[6:], others)

    async def dissolve(self) -> None:
        session = self.rng.choice(list(self.groups))
        owner = self._with_role(session, OWNER)
        op = await self.town.ask(self.device(owner), session, "dissolve")
        if op.sent is not None and len(self.groups) > 1:
            del self.groups[session]
            await self.group()

    def _with_role(self, session: str, role: str) -> str | None:
        timeline = self.town.model.timeline(session)
        return next((u for u in self.town.users if timeline.role(u) == role), None)

    async def membership(self) -> None:
        """Mostly by somebody who may."""
        session = self.rng.choice(list(self.groups))
        roles = (OWNER, OWNER, ADMIN, MEMBER, "")
        actor = self._with_role(session, self.rng.choice(roles))
        device = self.device(actor)
        others = [u for u in self.town.users if u != self.town.keepers[session]]
        user = self.rng.choice(others)
        what, *args = self.rng.choice(
            (
                ("add", [user]),
                ("add", self.rng.sample(others, 2)),
                ("remove", [user]),
                ("remove", self.rng.sample(others, 2)),
                ("join",),
                ("leave",),
                ("role", user, self.rng.choice((ADMIN, ADMIN, MEMBER, OWNER))),
                ("mute", user, self.rng.choice((0, LATER_MS))),
                ("mute", None, self.rng.choice((0, 0, LATER_MS))),
                ("title", f"title {self.number()}"),
                ("joining", self.rng.random() < 0.7),
            )
        )
        if what == "leave" and device.user == self.town.keepers[session]:
            return
        await self.town.ask(device, session, what, *args)

    # ---- batches

    async def batch(self) -> None:
        town = self.town
        name = f"b{self.number()}"
        text = f"batch {name}"
        users = self.rng.sample(town.users, self.rng.randint(1, len(town.users)))
        device = self.device(SERVICE)
        session = batch_session(name)
        town.batches[name] = Batch(text, users)
        await town.ask(device, session, "create", text, self.rng.choice(("high", "daily")))
        await town.ask(device, session, "recipients", 0, users)
        await town.ask(device, session, "start")

    async def recall_batch(self) -> None:
        if self.town.batches:
            name = self.rng.choice(list(self.town.batches))
            self.town.batches[name].looked_at = False
            await self.town.ask(self.device(SERVICE), batch_session(name), "recall")

    # ---- devices

    async def look(self) -> None:
        """A device that asks in the middle of all this is never told what does not add up."""
        device = self.device()
        listed = await device.ask("conversations", self.rng.choice((1, 3, 25)))
        if listed is not None:
            for row in listed.conversations:
                checks.seen_of(row)
        await device.ask("unread")

    async def offline(self) -> None:
        """Without a connection; or ended, unless it is the last that takes sends."""
        town = self.town
        device = self.device()
        if device.mode != "online" or len(town.devices_of(device.user, "online")) < 2:
            return
        await town.close(device)
        if self.rng.random() < 0.6:
            await town.open(device, reachable=False)

    async def online(self) -> None:
        town = self.town
        away = [d for d in town.devices if d.mode != "online" and not d.gone]
        if away:
            device = self.rng.choice(away)
            if device.mode == "tunnel":
                await town.close(device, crash=self.rng.random() < 0.3)
            await town.open(device)

    async def crash_device(self) -> None:
        device = self.device()
        if device.mode == "online" and device.store is not None:
            await self.town.close(device, crash=True)
            await self.town.open(device)

    async def another_device(self) -> None:
        user = self.rng.choice(self.town.users)
        if len([d for d in self.town.devices if d.user == user and not d.gone]) < DEVICES_MAX:
            await self.town.new_device(user)

    async def kick(self) -> None:
        """Not one that has something under way: nobody could say what became of that."""
        town = self.town
        user = self.rng.choice(town.users)
        online = town.devices_of(user, "online")
        if len(online) < 3 or not town.stored:
            return
        device, other = self.rng.sample(online, 2)
        for op in list(device.open_ops.values()):
            await town.answer(op)
        op = await town.change(other, "kick", device.address.partition("/")[2])
        if await town.answer(op):
            await town.close(device)
            device.gone = True

    # ---- and the rest

    async def wait(self) -> None:
        """Until something recent has its answer, so that not all is under way at once."""
        await self.recent_one()

    async def fault(self) -> None:
        self.town.tell(await self.town.cluster.fault(self.faults))
