"""Live sessions: those whose events this gateway follows for itself, and what it knows of them.

Of a group, or any session of which mailboxes are not told, one has to know who is in it, where it
ends and what of it is unread. It is begun with a page from a replica, at the head that the owner
tells or later, and goes on with the events that are pushed; what was not pushed is read from a
replica. So it is current up to every event that this gateway has heard of, or it says that it is
not, and nothing old is believed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from itertools import islice
from typing import Any, NamedTuple

from im_actors.core.facts import Fact, event_facts, newest
from im_actors.core.groups import GROUP_KEY, Group, Membership, Role, event_memberships, member_key
from im_actors.core.model import Event, EventKind, decode_event
from im_actors.core.names import SessionKind, session_kind
from im_actors.core.spans import Preview, preview_of
from im_actors.core.window import Window
from im_actors.errors import NotReachable, RetryableError
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.followers import Followers, event_seq
from im_actors.gateway.replica_facts import ReplicaFacts

FIRST_EVENTS = 200
"""Events of the page with which a session is begun."""
PAGE_EVENTS = 500
"""Events of a page that brings it up to date."""
CATCH_UP_MAX = 2_000
"""Events that are read to bring it up to date; when it lacks more it is begun anew."""
FACTS_MAX = 20_000
"""Memberships remembered of one session; when there are more, it begins to collect anew."""
COUNTS_MAX = 20_000
"""The same of the counts of readers who are far behind."""
RECOUNTS_MAX = 3
LOOKED_AT_MAX = 64
"""Sessions that are looked at to forget one."""


class _Count(NamedTuple):
    """Messages above somebody's read position, up to ``upto``."""

    upto: int
    number: int


class LiveSession:
    """What is known of one session. ``upto`` is the seq up to which it is known."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.upto = -1
        """-1: nothing is known yet."""
        self.heard = -1
        """The greatest seq that was heard of; -1: the owner has not said."""
        self.mark = 0
        """Another number after each change."""
        self.last_key = self.last_ms = 0
        self.preview: Preview | None = None
        self.window = Window()
        self.facts: dict[str, Fact] = {}
        """Of the group and its members, as far as anybody asked or events said; a key that is not
        here is unknown."""
        self.asking = 0
        """Facts that are being asked for: what events say meanwhile must be kept."""
        self.recalls = 0
        self.counts: dict[tuple[str, int], _Count] = {}
        """By user and read position: of readers whom the window does not reach."""
        self.known = asyncio.Event()
        """The owner has told its head."""

    @property
    def current(self) -> bool:
        return 0 <= self.heard <= self.upto

    @property
    def group(self) -> Group | None:
        """None: there is no such group, or nothing is known."""
        fact = self.facts.get(GROUP_KEY)
        return None if fact is None or fact.value is None else Group.from_bytes(fact.value)

    def unread(self, user: str, base: int) -> int | None:
        """Messages of others above ``base``; None: that has to be counted first."""
        number = self.window.unread(user, base)
        if number is None and (count := self.counts.get((user, base))) is not None:
            above = self.window.unread(user, count.upto)
            number = None if above is None else count.number + above
        return number

    def begin(self, events: list[Event], last_seq: int) -> None:
        """Start anew with the newest events, without a hole up to ``last_seq``."""
        self.window = Window(events[0].seq - 1 if events else last_seq)
        self.counts.clear()
        self.preview = None
        self.upto = events[0].seq - 1 if events else last_seq
        for event in events:
            self.feed(event)

    def feed(self, event: Event) -> bool:
        """Take the event if it is the next one; whether it was."""
        if event.seq != self.upto + 1 or self.upto < 0:
            return False
        self.upto, self.last_key, self.last_ms = event.seq, event.key, event.time_ms
        self.window.add(event)
        for preview in preview_of(event):
            self._preview(preview)
        if event.kind == EventKind.RECALL:
            self.recalls += 1
            # It may be of a message that was counted.
            self.counts.clear()
        return True

    def learn(self, event: Event) -> None:
        """Take what an event says of the group, whatever is known of those before it."""
        if event.kind != EventKind.GROUP:
            return
        if len(self.facts) > FACTS_MAX and not self.asking:
            self.facts = {k: fact for k, fact in self.facts.items() if k == GROUP_KEY}
        for fact in event_facts(event):
            newest(self.facts, fact)

    def counted(self, user: str, base: int, count: _Count) -> None:
        if len(self.counts) >= COUNTS_MAX:
            self.counts.clear()
        self.counts[user, base] = count

    def _preview(self, preview: Preview) -> None:
        known = self.preview
        if known is not None and preview[:2] < known[:2]:
            return
        if known is not None and preview.seq == known.seq:
            # Whoever recalled it, it is still the message of who sent it.
            preview = preview._replace(sender=known.sender)
        self.preview = preview


class LiveSessions:
    """All of them: those that connections follow, and of the others those asked for last."""

    def __init__(
        self,
        followers: Followers,
        replicas: ReplicaFacts,
        config: GatewayConfig,
        now_ms: Callable[[], int],
    ) -> None:
        self.changes = 0
        """Grows with every change of any of them."""
        self.on_out: Callable[[str, str, list[bytes]], None] = lambda session, user, events: None
        """(session, user, the events up to it that were just pushed): he is no member any more."""
        self.on_lost: Callable[[str], None] = lambda session: None
        """So much of this group was missed that nobody knows who has left it."""
        self._followers = followers
        self._replicas = replicas
        self._config = config
        self._now_ms = now_ms
        self._sessions: OrderedDict[str, LiveSession] = OrderedDict()
        self._flights: dict[object, asyncio.Task[None]] = {}
        self._gate = asyncio.Semaphore(config.live_reads_max)

    def __len__(self) -> int:
        return len(self._sessions)

    # ---- asking

    def get(self, session: str) -> LiveSession | None:
        """The session if it is current; nothing waits."""
        live = self._sessions.get(session)
        return live if live is not None and live.current else None

    def known(self, session: str) -> LiveSession | None:
        """The session as it was known last, current or not; None: nothing is known here."""
        live = self._sessions.get(session)
        return live if live is not None and live.upto >= 0 else None

    def group(self, session: str) -> Group | None:
        """The group as it was known last, without asking anybody; None: it is not known here."""
        live = self._sessions.get(session)
        return live.group if live is not None else None

    async def current(self, session: str, at_least: int = 0) -> LiveSession:
        """The session, up to ``at_least`` and all that was heard of. NotReachable: not now."""
        live = self._touch(session)
        live.heard = max(live.heard, at_least) if live.heard >= 0 else live.heard
        if live.current and live.upto >= at_least:
            return live
        await self._known(live)
        await self._wait(session, lambda: self._bring(live, at_least))
        return live

    async def _known(self, live: LiveSession) -> None:
        """Wait until the owner has told its head."""
        if live.known.is_set():
            return
        try:
            async with asyncio.timeout(self._config.live_ms / 1000):
                await live.known.wait()
        except TimeoutError:
            raise NotReachable(f"the owner of {live.session!r} does not answer") from None

    async def membership(
        self, session: str, user: str, at_least: int = 0
    ) -> tuple[Membership | None, int]:
        """(what the user is in the group, None: he never was in it; the seq up to which that is
        known)."""
        live = await self.current(session, at_least)
        value = await self.fact(live, member_key(user))
        return None if value is None else Membership.from_bytes(value), live.upto

    def known_membership(self, session: str, user: str) -> tuple[bool, Membership | None]:
        """(whether it is known without asking anybody, what the user is)."""
        live = self.get(session)
        fact = live.facts.get(member_key(user)) if live is not None else None
        if fact is None:
            return False, None
        return True, None if fact.value is None else Membership.from_bytes(fact.value)

    async def fact(self, live: LiveSession, key: str) -> bytes | None:
        """A fact of the group or of one membership, current."""
        fact = live.facts.get(key)
        if fact is None:
            await self._wait((live.session, key), lambda: self._ask_fact(live, key))
            fact = live.facts[key]
        return fact.value

    async def count(self, live: LiveSession, user: str, base: int) -> None:
        """Make ``unread`` of this reader known."""
        if live.unread(user, base) is None:
            key = (live.session, user, base)
            await self._wait(key, lambda: self._count(live, user, base))

    async def close(self) -> None:
        """Return when nothing runs any more."""
        while self._flights:
            tasks = set(self._flights.values())
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    # ---- Listener

    def pushed(self, session: str, events: list[bytes]) -> bool:
        live = self._sessions[session]
        self._changed(live)
        live.heard = max(live.heard, event_seq(events[-1]))
        for number, data in enumerate(events, 1):
            event = decode_event(data)
            live.feed(event)
            live.learn(event)
            self._look_for_leavers(event, events[:number])
        return not self._may_lack_leavers(live)

    def told(self, session: str, head: int) -> None:
        live = self._sessions[session]
        live.heard = max(live.heard, head)
        live.known.set()
        self._changed(live)
        self._may_lack_leavers(live)

    # ---- inside

    def _may_lack_leavers(self, live: LiveSession) -> bool:
        """Whether somebody may have been let out of a group without our having heard of it. Then
        nobody is pushed to until that is known."""
        group = session_kind(live.session) is SessionKind.GROUP
        if not group or live.current or live.upto < 0:
            return False
        if self._followers.followers_of(live.session):
            self._begin_task((live.session, None), lambda: self._insist(live))
        return True

    async def _insist(self, live: LiveSession) -> None:
        """Bring it up to date, however long that takes, and let those who follow go on."""
        while self._followers.followers_of(live.session):
            try:
                await self._wait(live.session, lambda: self._bring(live, 0))
            except RetryableError:
                await asyncio.sleep(self._config.retry_ms_max / 1000)
            else:
                self._followers.tell_head(live.session)
                return

    def _changed(self, live: LiveSession) -> None:
        self.changes += 1
        live.mark = self.changes

    def _look_for_leavers(self, event: Event, pushed: list[bytes]) -> None:
        for user, membership in event_memberships(event):
            if membership.role is Role.STRANGER:
                self.on_out(event.session, user, pushed)

    def _touch(self, session: str) -> LiveSession:
        live = self._sessions.get(session)
        if live is not None:
            self._sessions.move_to_end(session)
            return live
        if len(self._sessions) >= self._config.live_sessions_max:
            self._make_room()
        live = self._sessions[session] = LiveSession(session)
        self._followers.listen(session, self, self._now_ms())
        return live

    def _make_room(self) -> None:
        """Forget the one that was asked for longest ago of those that no connection follows."""
        for session in list(islice(self._sessions, LOOKED_AT_MAX)):
            if session in self._flights or self._followers.followers_of(session):
                self._sessions.move_to_end(session)
            else:
                del self._sessions[session]
                self._followers.unlisten(session)
                # Lists that show it have to find out.
                self.changes += 1
                return

    async def _bring(self, live: LiveSession, at_least: int) -> None:
        """Up to all that was heard of."""
        live.heard = max(live.heard, at_least)
        changed: set[str] = set()
        while not live.current:
            lacks, before = live.heard - live.upto, live.upto
            if live.upto < 0 or lacks > CATCH_UP_MAX:
                await self._begin(live)
            else:
                events = await self._events(live, live.upto, PAGE_EVENTS)
                for event in events:
                    live.feed(event)
                    live.learn(event)
                    changed |= {user for user, _ in event_memberships(event)}
                self._changed(live)
            if live.upto <= before and not live.current:
                raise NotReachable(f"no replica has the events of {live.session!r}")
        for user in changed:
            # Only what has become of him in the end matters.
            known, membership = self.known_membership(live.session, user)
            if known and membership is not None and membership.role is Role.STRANGER:
                self.on_out(live.session, user, [])

    async def _begin(self, live: LiveSession) -> None:
        lost = live.upto >= 0
        if lost:
            live.facts.clear()
        heard = live.heard
        events = await self._events(live, -1, FIRST_EVENTS) if heard else []
        live.begin(events, events[-1].seq if events else heard)
        for event in events:
            live.learn(event)
        if heard and session_kind(live.session) is SessionKind.GROUP:
            await self._ask_fact(live, GROUP_KEY)
        else:
            newest(live.facts, Fact(GROUP_KEY, 0, 0, None))
        self._changed(live)
        if lost:
            self.on_lost(live.session)

    async def _events(self, live: LiveSession, after: int, limit: int) -> list[Event]:
        page = await self._replicas.events(live.session, after, 0, limit, live.heard)
        live.heard = max(live.heard, page.last_seq)
        return page.events

    async def _ask_fact(self, live: LiveSession, key: str) -> None:
        live.asking += 1
        try:
            page = await self._replicas.current(live.session, [key], max(0, live.upto))
        finally:
            live.asking -= 1
        fact = page.facts[0] if page.facts else Fact(key, page.version, 0, None)
        newest(live.facts, fact)
        self._changed(live)

    async def _count(self, live: LiveSession, user: str, base: int) -> None:
        for _ in range(RECOUNTS_MAX):
            upto, recalls = live.upto, live.recalls
            number = await self._replicas.count(live.session, base, upto, user)
            if live.recalls == recalls:
                live.counted(user, base, _Count(upto, number))
                self._changed(live)
                return
        raise NotReachable(f"too much is recalled in {live.session!r} at the moment")

    async def _wait(self, key: object, work: Callable[[], Awaitable[None]]) -> None:
        """For the one flight of this key. Who leaves does not end it for the others."""
        await asyncio.shield(self._fly(key, work))

    def _fly(self, key: object, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        return self._begin_task(key, lambda: self._flight(work))

    def _begin_task(
        self, key: object, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> asyncio.Task[None]:
        task = self._flights.get(key)
        if task is None or task.done():
            task = self._flights[key] = asyncio.get_running_loop().create_task(work())
            task.add_done_callback(lambda ended: self._landed(key, ended))
        return task

    async def _flight(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(self._config.live_ms / 1000), self._gate:
                await work()
        except TimeoutError:
            raise NotReachable("the session cannot be read at the moment, ask again") from None

    def _landed(self, key: object, task: asyncio.Task[None]) -> None:
        if self._flights.get(key) is task:
            del self._flights[key]
        if not task.cancelled():
            task.exception()
