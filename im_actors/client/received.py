"""How far direct conversations have come to this device, for their senders to see.

Only what a store holds that lasts has come. So the store is asked how far it has a conversation
without a hole, from where the user has read, or any of his devices has said before. What others
wrote is collected for a moment, so a busy conversation costs one small event a second and not one
for each message; and what the user reads meanwhile is not reported at all: that he has read it says
that it came. The report is a change of the mailbox like any other, saved first, one at a time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgpack

from im_actors.core.facts import pack_request
from im_actors.core.model import Event, EventKind, pack
from im_actors.core.names import SessionKind, session_kind
from im_actors.errors import ImError, RequestError

if TYPE_CHECKING:
    from im_actors.client.engine import Engine
    from im_actors.client.mailbox import Mailbox

POSITIONS_MAX = 100
"""Most conversations in one report; the others are in the next one."""
SESSIONS_MAX = 2_000
"""Most conversations whose positions are remembered: those that were heard of last."""
PAGE_EVENTS = 500
PAGES_MAX = 20
"""Pages of one conversation that a report looks at; the next one goes on from there."""
AREA = "received"


class Received:
    """What this device has to report, and what has been."""

    def __init__(self, engine: Engine, user: str, mailbox: Mailbox, every_ms: int) -> None:
        self._engine = engine
        self._user = user
        self._mailbox = mailbox
        self._every_s = every_ms / 1000
        self._told: OrderedDict[str, int] = OrderedDict()
        """By session: up to where some device of the user has said that it came."""
        self._touched: OrderedDict[str, int] = OrderedDict()
        """By session: the last event of the other user that came and was not looked at yet."""
        self._news = asyncio.Event()

    def restore(self, kept: Mapping[str, bytes]) -> None:
        """With what the store kept."""
        for session, value in kept.items():
            self._told[session] = int(msgpack.unpackb(value))

    def saw(self, events: Iterable[Event]) -> None:
        """These came from a server."""
        for event in events:
            if (
                session_kind(event.session) is SessionKind.DIRECT
                and event.sender != self._user
                and event.seq > self._told.get(event.session, 0)
            ):
                self._touched[event.session] = max(event.seq, self._touched.pop(event.session, 0))
                self._news.set()
        while len(self._touched) > SESSIONS_MAX:
            self._touched.popitem(last=False)

    def told(self, positions: Sequence[Sequence[object]]) -> None:
        """A device of the user, perhaps this one, has said so."""
        for session, seq in positions:
            if isinstance(session, str) and isinstance(seq, int) and seq > self._at(session):
                self._told.pop(session, None)
                self._told[session] = seq
                self._engine.store.keep(AREA, session, pack(seq))
        while len(self._told) > SESSIONS_MAX:
            session, _ = self._told.popitem(last=False)
            self._engine.store.keep(AREA, session, None)

    async def run(self) -> None:
        """Report, until this is cancelled."""
        # What came before the last end of the program, and was not reported.
        self.saw(await self._engine.store.last_events())
        while True:
            await self._news.wait()
            # Not at one time with the user's other devices: who comes later finds it said.
            await asyncio.sleep(self._every_s * self._engine.rng.uniform(1, 2))
            self._news.clear()
            positions = [
                (session, seq) for session in self._next() if (seq := await self._held(session))
            ]
            if positions:
                await self._report(positions)

    def _next(self) -> list[str]:
        sessions = list(self._touched)
        if len(sessions) > POSITIONS_MAX:
            self._news.set()
        return sessions[:POSITIONS_MAX]

    def _at(self, session: str) -> int:
        row = self._mailbox.row(session)
        return max(self._told.get(session, 0), row.read_seq if row is not None else 0)

    async def _held(self, session: str) -> int:
        """The last event of the other user that the store has without a hole before it; 0: none
        that has to be reported."""
        upto = self._touched.pop(session)
        at, found = self._at(session), 0
        for _ in range(PAGES_MAX):
            page = await self._engine.store.events_after(session, at, PAGE_EVENTS)
            for event in page:
                if event.seq != at + 1:
                    return found
                at = event.seq
                if event.sender != self._user:
                    found = at
            if at >= upto or len(page) < PAGE_EVENTS:
                return found
        self._touched[session] = upto
        self._news.set()
        return found

    async def _report(self, positions: list[tuple[str, int]]) -> None:
        # Meanwhile the user may have read it.
        ahead = [(session, seq) for session, seq in positions if seq > self._at(session)]
        if not ahead:
            return
        body = pack_request("received", ahead)
        sent = await self._engine.send(self._engine.user.session, body, EventKind.MAILBOX)
        self.told(ahead)
        try:
            await sent.acked(None)
        except RequestError as error:
            self._engine.warn(error)
        except ImError:
            return  # the client is being closed
