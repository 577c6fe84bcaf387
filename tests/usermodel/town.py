"""Users and their devices on a cluster, what they asked for, and what the model makes of it.

Asking does not wait for answers: what came of it is found out at quiet points (``Town.rest``).
There everything has come to rest, the model takes what the timelines have, and every device is
asked what it sees (``checks``).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from im_actors.core.model import Event
from im_actors.core.names import (
    NOTICE_CHANNELS,
    SessionKind,
    direct_session,
    mailbox_of,
    notice_session,
    session_kind,
    session_name,
    users_of,
)
from im_actors.errors import Forbidden, ImError, NotFound, RetryableError
from tests.usermodel import checks
from tests.usermodel.cluster import SERVICE, Faulty
from tests.usermodel.devices import NOWHERE, Device
from tests.usermodel.model import Model, Op
from tests.usermodel.settling import BATCH_DEVICE, Difference, settle

PATIENCE_S = 60.0
PULL_EVENTS = 500
STORY_LINES = 120

T = TypeVar("T")


@dataclass(slots=True)
class Batch:
    """One content for these users. ``looked_at``: it is over, and was found with all of them."""

    text: str
    users: list[str]
    looked_at: bool = False


class Town:
    """``stores`` None: devices keep nothing when they end, which is quicker."""

    def __init__(
        self, cluster: Faulty, users: tuple[str, ...], rng: Random, stores: Path | None
    ) -> None:
        self.cluster = cluster
        self.users = users
        self.rng = rng
        self.model = Model(frozenset({SERVICE}))
        self.devices: list[Device] = []
        self.keepers: dict[str, str] = {}
        """Of each group the user who stays in it, so that somebody can read all of it."""
        self.batches: dict[str, Batch] = {}
        self.story: deque[str] = deque(maxlen=STORY_LINES)
        self.asked = 0
        self._stores = stores
        self._unsettled: dict[str, list[Op]] = {}
        self._known: dict[str, int] = {}
        self._began = time.monotonic()

    @property
    def stored(self) -> bool:
        """Whether devices outlive their programs, and count as the user's."""
        return self._stores is not None

    def tell(self, text: str) -> None:
        self.story.append(f"{time.monotonic() - self._began:9.3f} {text}")

    # ---- devices

    async def new_device(self, user: str, stored: bool = True) -> Device:
        name = f"d{len(self.devices)}"
        keeps = stored and self._stores is not None
        store = self._stores / f"{user}-{name}.db" if self._stores and keeps else None
        device = Device(user, name, store, self.rng.randrange(1 << 30))
        self.devices.append(device)
        await self.open(device)
        return device

    async def open(self, device: Device, reachable: bool = True) -> None:
        self.tell(f"{device} opens{'' if reachable else ', and has no connection'}")
        await device.open(self.cluster.url if reachable else NOWHERE)
        self.follow_all(device)

    async def close(self, device: Device, crash: bool = False) -> None:
        self.tell(f"{device} {'crashes' if crash else 'closes'}")
        await device.close(crash)

    def devices_of(self, user: str, *modes: str) -> list[Device]:
        return [d for d in self.devices if d.user == user and d.mode in modes and not d.gone]

    def follow_all(self, device: Device) -> None:
        for session in self.sessions_of(device.user):
            device.follow(session)

    def sessions_of(self, user: str) -> list[str]:
        """What he may read, as far as the model knows, and what others may write to him."""
        own = [direct_session(user, other) for other in self.users] if user != SERVICE else []
        own += [notice_session(channel, user) for channel in NOTICE_CHANNELS]
        return sorted(
            {*own, *(s for s, t in self.model.timelines.items() if self._follows(user, s))}
        )

    def _follows(self, user: str, session: str) -> bool:
        if session_kind(session) is SessionKind.MAILBOX:
            return False
        return self.model.timeline(session).sees(user)

    # ---- asking

    async def ask(self, device: Device, session: str, what: str, *args: Any) -> Op:
        """Put it into the device's outbox."""
        sent = await _send(device, session, what, args)
        floor = max(self.model.timeline(session).last, self._known.get(session, 0))
        op = Op(device.user, device.address, session, sent.n, what, list(args), floor, sent)
        device.open_ops[op.key] = op
        self._unsettled.setdefault(session, []).append(op)
        self.asked += 1
        self.tell(str(op))
        return op

    async def change(self, device: Device, what: str, *args: Any) -> Op:
        """Of the device's user's own mailbox."""
        return await self.ask(device, mailbox_of(device.user), what, *args)

    async def answer(self, op: Op) -> int:
        """Its seq, as soon as it is ACKed; 0: it was refused, or there is nobody to ask."""
        if op.sent is None:
            return 0
        try:
            seq = int((await op.sent.acked(PATIENCE_S)).seq)
        except RetryableError as error:
            raise Difference(f"{op} has no answer: {error}") from None
        except ImError as error:
            self.tell(f"{op} -> {type(error).__name__}")
            return 0
        self._known[op.session] = max(self._known.get(op.session, 0), seq)
        self.tell(f"{op} -> {seq}")
        return seq

    # ---- quiet points

    async def rest(self) -> None:
        """Let everything come to rest, and see that all see what they should."""
        self.tell("quiet point")
        await self.cluster.heal()
        await self.cluster.local.wait_serving()
        for device in self.devices:
            if device.mode == "online":
                await self._until(f"{device} has sent all", lambda d=device: _idle(d))
        for name, batch in self.batches.items():
            if not batch.looked_at:
                await self._until(f"batch {name} is with all", lambda n=name: self._at_rest(n))
        await self.settle()
        for device in self.devices:
            if device.mode == "online":
                self.follow_all(device)
        await checks.check_all(self)

    async def settle(self) -> None:
        """Bring the model up to what the timelines have."""
        touched = set(self._unsettled) | {mailbox_of(user) for user in self.users}
        if self.batches:
            touched |= {notice_session("system", user) for user in self.users}
        for session in sorted(touched):
            await self._settle(session)
        self._forget_done()

    async def _settle(self, session: str) -> None:
        ops = self._unsettled.pop(session, [])
        if session_kind(session) is SessionKind.BATCH:
            return
        least = max([self._known.get(session, 0), *(_acked(op) for op in ops)])
        events = await self._new_events(session, least)
        by_address = {device.address: device for device in self.devices}
        waiting = lambda op: by_address[op.address].waits(op)  # noqa: E731
        left = settle(self.model, session, events, ops, waiting, lambda n: self.batches[n].text)
        if left:
            self._unsettled[session] = left

    async def _new_events(self, session: str, least: int) -> list[Event]:
        """What the timeline has above what the model has: all that was ACKed, at least."""
        last = self.model.timeline(session).last
        found: list[Event] = []

        async def read() -> bool:
            found[:] = await self._read(session, last)
            return (found[-1].seq if found else last) >= least

        await self._until(f"{session} is readable up to {least}", read)
        return found

    async def _read(self, session: str, last: int) -> list[Event]:
        device = self._reader(session)
        if device is None:
            return []
        events: list[Event] = []
        before = None
        while before is None or before > last + 1:
            page = await device.im._engine.requests.pull(session, before, PULL_EVENTS)
            if page.code in (NotFound.code, Forbidden.code) or not page.events:
                break
            events[:0] = page.events
            before = page.events[0].seq
        return [event for event in events if event.seq > last]

    def _reader(self, session: str) -> Device | None:
        """A device that may read all of it."""
        match session_kind(session):
            case SessionKind.GROUP:
                users = (self.keepers[session],)
            case SessionKind.OPEN:
                users = self.users
            case SessionKind.BATCH:
                return None
            case _:
                users = users_of(session)
        return next((d for user in users for d in self.devices_of(user, "online")), None)

    async def _at_rest(self, name: str) -> bool:
        """It is over, and everybody's timeline has it."""
        (device, *_) = self.devices_of(SERVICE, "online")
        info = await device.im.batches.status(name)
        if info is None or not info.at_rest:
            return info is None
        recalled = info.state == "recalled"
        if info.state in ("done", "recalled"):
            for user in self.batches[name].users:
                events = await self._read(notice_session("system", user), 0)
                mine = [e for e in events if e.device.endswith(BATCH_DEVICE + name)]
                if len(mine) > 1 + recalled:
                    raise Difference(f"{user} has {mine} of batch {name}")
                if len(mine) < 1 + recalled:
                    return False
        self.batches[name].looked_at = True
        return True

    def _forget_done(self) -> None:
        waiting = {op.key for ops in self._unsettled.values() for op in ops}
        for device in self.devices:
            device.open_ops = {k: op for k, op in device.open_ops.items() if k in waiting}

    async def _until(self, what: str, holds: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if await holds():
                    return
            except RetryableError as error:
                self.tell(f"waiting until {what}: {error}")
            if time.monotonic() > deadline:
                raise Difference(f"it takes too long until {what}")
            await asyncio.sleep(0.01)


def _acked(op: Op) -> int:
    return op.sent.ack.seq if op.sent is not None and op.sent.ack is not None else 0


async def _idle(device: Device) -> bool:
    # Not ``outbox()``, which does not tell of what only keeps its counter without a gap.
    return not len(device.im._engine.outbox)


async def _send(device: Device, session: str, what: str, args: tuple[Any, ...]) -> Any:
    im = device.im
    match session_kind(session):
        case SessionKind.MAILBOX if what in ("device", "kick"):
            return await im._engine.user.change(what, *args)
        case SessionKind.MAILBOX:
            return await im._change(what, *args)
        case SessionKind.BATCH:
            return await getattr(im.batches, what)(session_name(session), *args)
    match what:
        case "message":
            return await im.send(session, *args)
        case "recall" | "edit":
            return await getattr(im, what)(session, *args)
        case "add" | "remove":
            return await getattr(im.groups, what)(session, *args[0])
        case _:
            return await getattr(im.groups, what)(session, *args)
