"""What gateways ask a replica: pages of events, facts, and counts (``wire.links``).

Any member of a view has a true prefix of a session, perhaps an old one. Who asks says the highest
seq that it has heard of; the replica waits a moment for it and then answers with what it has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple, Protocol

from im_actors.core.model import slot_of
from im_actors.core.replica import SlotLog
from im_actors.errors import MonthAway, NotReachable, Overloaded
from im_actors.net.link_connection import LinkConnection
from im_actors.server.storage import ReplicaStorage
from im_actors.server.turns import in_turns
from im_actors.storage.counting import count_messages
from im_actors.wire.links import InsideType, pack_frame
from im_actors.wire.questions import CountAsked, FactsAsked, PageAsked, Question, RanksAsked

RETRY_S = 0.005
"""How often a read looks whether the seq that it waits for has come."""

Found = tuple[Any, ...]
"""The session's last seq here, and the rest of an answer."""


class Limits(Protocol):
    """What this module reads of a replica's configuration."""

    @property
    def reads_max(self) -> int:
        """Reads under way at once; more are refused."""

    @property
    def head_wait_ms(self) -> int:
        """How long a read waits for a seq that is known elsewhere."""

    @property
    def turn_wait_ms(self) -> int:
        """After so long nobody waits for a read whose turn in history's thread has not come."""


class Door(NamedTuple):
    """What this module needs of its replica."""

    slots: int
    log: Callable[[int], SlotLog | None]
    storage: ReplicaStorage
    stage_and: Callable[[int, Callable[[], Found]], Coroutine[Any, Any, Found]]
    """Give history what is committed of a slot, and read in its thread."""
    start: Callable[[Coroutine[Any, Any, None]], None]
    """Run a coroutine whose failure ends the replica."""


class _Answer(NamedTuple):
    frame: InsideType
    nothing: Found
    """What stands in an answer without one."""


_ANSWERS: dict[type[Question], _Answer] = {
    PageAsked: _Answer(InsideType.PAGE, (0, [])),
    FactsAsked: _Answer(InsideType.FACTS, (0, [], False)),
    CountAsked: _Answer(InsideType.COUNTED, (0, 0)),
    RanksAsked: _Answer(InsideType.RANKS_COUNTED, (0, [])),
}


class _TooLate(Exception):
    """Its turn came when nobody waited for it any more."""


class Reads:
    """All reads of a replica that are under way."""

    def __init__(self, door: Door, limits: Limits) -> None:
        self._door = door
        self._limits = limits
        self._under_way = 0

    def ask(self, connection: LinkConnection, question: Question) -> None:
        """Answer on the connection, soon."""
        if self._under_way >= self._limits.reads_max:
            _send(connection, question, Overloaded.code, None)
            return
        self._under_way += 1
        self._door.start(self._answer(connection, question))

    async def _answer(self, connection: LinkConnection, question: Question) -> None:
        try:
            slot = slot_of(question.session, self._door.slots)
            log = self._door.log(slot)
            found: Found | None = None
            # Unknown is not absent: with a hole, or deleted here, others know more.
            code = NotReachable.code
            if log is not None and log.answers_reads:
                try:
                    found = await self._find(slot, question)
                except MonthAway:
                    code = MonthAway.code
                except _TooLate:
                    pass
            _send(connection, question, code if found is None else 0, found)
        finally:
            self._under_way -= 1

    async def _find(self, slot: int, question: Question) -> Found | None:
        match question:
            case PageAsked(_, session, after, before, limit, head):
                return await self.page(slot, session, after, before, limit, head)
            case FactsAsked(_, session, head, query):
                return await self._at_head(slot, head, partial(self._facts, session, query))
            case RanksAsked(_, session, head, ranges):
                count = partial(self._door.storage.history.count_ranks, session, ranges)
                return await self._at_head(slot, head, count)
            case CountAsked():
                return await self._count(slot, question)

    async def page(
        self, slot: int, session: str, after: int, before: int, limit: int, head: int
    ) -> Found:
        """The last seq and the events of a READ."""

        def read() -> Found:
            events, last_seq = self._door.storage.history.read(session, after, before, limit)
            return last_seq, events

        return await self._at_head(slot, head, read)

    def _facts(self, session: str, query: Any) -> Found:
        last_seq, page = self._door.storage.history.facts(session, query)
        return last_seq, *page

    async def _count(self, slot: int, asked: CountAsked) -> Found | None:
        history, log = self._door.storage.history, self._door.log(slot)

        def last_seq() -> Found:
            return (history.last_seq(asked.session),)

        (last,) = await self._at_head(slot, asked.head, last_seq)
        _, session, _, after, upto, user = asked
        steps = count_messages(history, session, after, upto, last, user)
        (counted,) = await in_turns(self._door.storage.in_history, steps)
        # What was deleted on the way, and perhaps begun anew, has not been counted.
        whole = counted.whole and self._door.log(slot) is log
        return (last, counted.messages) if whole else None

    async def _at_head(self, slot: int, head: int, read: Callable[[], Found]) -> Found:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.head_wait_ms / 1000
        while True:
            found = await self._door.stage_and(slot, self._in_time(read))
            if found[0] >= head or loop.time() >= deadline:
                return found
            # The commit point that covers ``head`` is on its way to us.
            await asyncio.sleep(RETRY_S)

    def _in_time(self, read: Callable[[], Found]) -> Callable[[], Found]:
        """The read, unless its turn comes too late."""
        latest = time.monotonic() + self._limits.turn_wait_ms / 1000

        def in_time() -> Found:
            if time.monotonic() > latest:
                raise _TooLate
            return read()

        return in_time


def _send(connection: LinkConnection, question: Question, code: int, found: Found | None) -> None:
    answer = _ANSWERS[type(question)]
    fields = answer.nothing if found is None else found
    connection.send(pack_frame((answer.frame, question.request, code, *fields)))
