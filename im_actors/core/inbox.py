"""The inbox: events are shown in order of seq, each once, whatever the network does (promise P5).

A *stream* is one reader of one session. It has a contiguous cursor: everything up to it has been
handed on, nothing above it has. What comes early is held back, what is missing is pulled, and the
highest seq that was seen only says that there is something to pull; it is never a cursor.

    CACHE      reads what the local store has, from the cursor on; works without a server.
    SEEKING    wants only what is new, and does not know yet where that begins.
    FOLLOWING  takes what is pushed and pulls what is missing.

Slow readers cost a bounded amount of memory: a stream takes READY_MAX events that its reader has
not consumed and HELD_MAX that are early. What does not fit is dropped, the newest first, and pulled
when the reader has caught up.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from enum import Enum, auto
from random import Random

from im_actors.core.backoff import Alarms, full_jitter_ms, stretched_ms
from im_actors.core.inbox_words import (
    CacheRead,
    Connected,
    Deliver,
    Disconnected,
    FailStream,
    Follow,
    FollowRefused,
    HeadsReceived,
    InboxEffect,
    InboxEvent,
    LetIn,
    Paged,
    Pull,
    Pushed,
    ReadCache,
    StreamClosed,
    StreamOpened,
    Taken,
    Ticked,
    Unfollow,
    Warn,
)
from im_actors.core.model import Event, EventKind
from im_actors.core.story import Story
from im_actors.errors import RetryableError, WrongDirectory, error_for

READY_MAX = 1_024
"""Most events that a stream has handed on and its reader has not taken."""
HELD_MAX = 256
"""Most events that a stream holds back because an earlier one is missing."""
CACHE_PAGE = 256
"""Most events of one read from the local store."""
PULL_TIMEOUT_MS = 5_000
"""A pull without an answer for this long is repeated."""
PULL_RETRY_BASE_MS = 200
PULL_RETRY_CAP_MS = 5_000
"""Between pulls that failed or brought nothing: full jitter, from the base up to the cap."""
HEADS_TIMEOUT_MS = 5_000
"""FOLLOW without HEADS for this long is repeated."""
HEADS_REFRESH_MS = 60_000
"""How often a session's head is asked for anew. It should never find anything: it bounds how long
a last push that was lost without a word stays unseen."""


# --- state ----------------------------------------------------------------------------------------


class _Phase(Enum):
    CACHE = auto()
    SEEKING = auto()
    FOLLOWING = auto()


class _Stream:
    """``request`` is 0 unless a pull is out; ``waiting`` is True between pulls that failed."""

    __slots__ = (
        "cursor", "held", "id", "outstanding", "phase", "reading", "request", "session", "step",
        "waiting",
    )  # fmt: skip

    def __init__(self, id: int, session: _Session, after: int | None) -> None:
        self.id = id
        self.session = session
        self.cursor = after or 0
        self.phase = _Phase.SEEKING if after is None else _Phase.CACHE
        self.held: dict[int, Event] = {}
        self.outstanding = 0
        self.reading = False
        self.request = 0
        self.waiting = False
        self.step = 0


class _Session:
    """``head`` is the highest committed seq heard of, ``fresh`` whether HEADS named it on this
    connection."""

    __slots__ = ("fresh", "head", "name", "streams")

    def __init__(self, name: str) -> None:
        self.name = name
        self.head = 0
        self.fresh = False
        self.streams: list[_Stream] = []


class Inbox:
    """The machine. ``handle`` is its one door; ``deadline_ms`` says when it wants a ``Ticked``."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._sessions: dict[str, _Session] = {}
        self._streams: dict[int, _Stream] = {}
        self._requests: dict[int, _Stream] = {}
        self._alarms: Alarms[int | str] = Alarms()
        """Keyed by stream for pulls, by session for HEADS."""
        self._trace = Story()
        self._connected = False
        self._page = CACHE_PAGE
        self._follow_max = 1
        self._last_request = 0

    # -- reading ---------------------------------------------------------------------------------

    def deadline_ms(self) -> int | None:
        return self._alarms.next_ms()

    @property
    def pulling(self) -> bool:
        """Whether a pull waits for its answer."""
        return bool(self._requests)

    @property
    def followed(self) -> int:
        """How many sessions are followed."""
        return len(self._sessions)

    def follows(self, session: str) -> bool:
        return session in self._sessions

    def cursor(self, stream: int) -> int:
        return self._streams[stream].cursor

    def head(self, session: str) -> int:
        """The highest committed seq heard of, 0 when nothing is known."""
        found = self._sessions.get(session)
        return found.head if found else 0

    def caught_up(self, stream: int) -> bool:
        """Whether everything that is known to exist has been handed on."""
        found = self._streams[stream]
        return found.session.fresh and found.cursor >= found.session.head

    def story(self, *keys: Hashable) -> list[str]:
        return self._trace.story(*keys)

    # -- the door --------------------------------------------------------------------------------

    def handle(self, event: InboxEvent, now_ms: int) -> list[InboxEffect]:
        """Take one event and say what to do, to be carried out in this order."""
        effects: list[InboxEffect] = []
        match event:
            case Pushed():
                self._pushed(event.events, now_ms, effects)
            case Taken():
                self._taken(event, now_ms, effects)
            case Paged():
                self._paged(event, now_ms, effects)
            case HeadsReceived():
                self._heads(event.heads, now_ms, effects)
            case FollowRefused():
                self._refused(event, now_ms, effects)
            case CacheRead():
                self._cache_read(event, now_ms, effects)
            case StreamOpened():
                self._opened(event, now_ms, effects)
            case StreamClosed():
                self._close(event.stream, now_ms, effects)
            case LetIn():
                self._let_in(event.session, now_ms, effects)
            case Connected():
                self._link_up(event, now_ms, effects)
            case Disconnected():
                self._link_down(now_ms)
            case Ticked():
                self._ticked(now_ms, effects)
        return effects

    # -- readers ---------------------------------------------------------------------------------

    def _opened(self, event: StreamOpened, now_ms: int, effects: list[InboxEffect]) -> None:
        assert event.stream not in self._streams
        session = self._sessions.get(event.session)
        if session is None:
            session = self._sessions[event.session] = _Session(event.session)
            if self._connected:
                self._follow([session], now_ms, effects)
        stream = _Stream(event.stream, session, event.after)
        session.streams.append(stream)
        self._streams[stream.id] = stream
        self._trace.note(now_ms, (session.name,), "stream %d, after %s", stream.id, event.after)
        if stream.phase is _Phase.CACHE:
            self._read_cache(stream, effects)
        elif session.fresh:
            self._found_head(stream, now_ms)

    def _close(self, id: int, now_ms: int, effects: list[InboxEffect]) -> None:
        stream = self._streams.pop(id, None)
        if stream is None:
            return  # it had failed
        session = stream.session
        self._requests.pop(stream.request, None)
        self._alarms.clear(id)
        session.streams.remove(stream)
        self._trace.note(now_ms, (session.name,), "stream %d closed at %d", id, stream.cursor)
        if not session.streams:
            del self._sessions[session.name]
            self._alarms.clear(session.name)
            if self._connected:
                effects.append(Unfollow([session.name]))

    def _taken(self, event: Taken, now_ms: int, effects: list[InboxEffect]) -> None:
        stream = self._streams.get(event.stream)
        if stream is None:
            return
        stream.outstanding -= event.count
        assert stream.outstanding >= 0, self._trace.story(stream.session.name)
        self._deliver(stream, (), effects)
        self._want(stream, now_ms, effects)

    # -- the local store -------------------------------------------------------------------------

    def _read_cache(self, stream: _Stream, effects: list[InboxEffect]) -> None:
        if not stream.reading and stream.outstanding <= READY_MAX - CACHE_PAGE:
            stream.reading = True
            effects.append(ReadCache(stream.id, stream.session.name, stream.cursor, CACHE_PAGE))

    def _cache_read(self, event: CacheRead, now_ms: int, effects: list[InboxEffect]) -> None:
        stream = self._streams.get(event.stream)
        if stream is None:
            return
        assert stream.phase is _Phase.CACHE
        stream.reading = False
        before = stream.cursor
        self._deliver(stream, event.events, effects)
        if stream.cursor - before < CACHE_PAGE:
            # The end of what the store has without a gap; the server has the rest.
            stream.phase = _Phase.FOLLOWING
            self._trace.note(now_ms, (stream.session.name,), "store read up to %d", stream.cursor)
        self._want(stream, now_ms, effects)

    # -- the server ------------------------------------------------------------------------------

    def _link_up(self, event: Connected, now_ms: int, effects: list[InboxEffect]) -> None:
        self._connected = True
        # A page is asked for when half of the room is free, so it never exceeds half of it.
        self._page = max(1, min(event.pull_events, READY_MAX // 2))
        self._follow_max = max(1, event.follow_sessions)
        self._follow(list(self._sessions.values()), now_ms, effects)

    def _link_down(self, now_ms: int) -> None:
        self._connected = False
        self._requests.clear()
        for session in self._sessions.values():
            session.fresh = False
            self._alarms.clear(session.name)
        for stream in self._streams.values():
            stream.request, stream.waiting, stream.step = 0, False, 0
            self._alarms.clear(stream.id)

    def _follow(self, sessions: list[_Session], now_ms: int, effects: list[InboxEffect]) -> None:
        for start in range(0, len(sessions), self._follow_max):
            part = sessions[start : start + self._follow_max]
            effects.append(Follow([session.name for session in part]))
        for session in sessions:
            wait_ms = HEADS_REFRESH_MS if session.fresh else HEADS_TIMEOUT_MS
            self._alarms.set(session.name, now_ms + stretched_ms(wait_ms, self._rng))

    def _heads(
        self, heads: Iterable[tuple[str, int]], now_ms: int, effects: list[InboxEffect]
    ) -> None:
        for name, head in heads:
            session = self._sessions.get(name)
            if session is None:
                continue
            session.head = max(session.head, head)
            if not session.fresh:
                session.fresh = True
                wait_ms = stretched_ms(HEADS_REFRESH_MS, self._rng)
                self._alarms.set(name, now_ms + wait_ms)
                self._trace.note(now_ms, (name,), "head %d", head)
                self._check_head(session, head, effects)
            for stream in session.streams:
                if stream.phase is _Phase.SEEKING:
                    self._found_head(stream, now_ms)
                self._want(stream, now_ms, effects)

    def _refused(self, event: FollowRefused, now_ms: int, effects: list[InboxEffect]) -> None:
        """What was read before stays read; its readers hear why nothing follows."""
        session = self._sessions.get(event.session)
        for stream in list(session.streams) if session else ():
            effects.append(FailStream(stream.id, event.error))
            self._close(stream.id, now_ms, effects)

    def _let_in(self, name: str, now_ms: int, effects: list[InboxEffect]) -> None:
        """Who follows a group that he has left is pushed nothing until he follows it anew."""
        session = self._sessions.get(name)
        if session is not None and self._connected:
            self._follow([session], now_ms, effects)

    def _check_head(self, session: _Session, head: int, effects: list[InboxEffect]) -> None:
        read = max(stream.cursor for stream in session.streams)
        if read > head:
            text = (
                f"session {session.name!r} was read up to {read}, but the server knows only "
                f"{head}: it lags behind, or the store was used with another cluster (a new "
                "cluster needs a new store file)"
            )
            effects.append(Warn(WrongDirectory(text)))

    def _found_head(self, stream: _Stream, now_ms: int) -> None:
        stream.cursor = stream.session.head
        stream.phase = _Phase.FOLLOWING
        self._trace.note(now_ms, (stream.session.name,), "live after %d", stream.cursor)

    def _pushed(self, events: Sequence[Event], now_ms: int, effects: list[InboxEffect]) -> None:
        """A push of one session goes on as it is; a mixed one is cut into runs of one session."""
        start, count = 0, len(events)
        while start < count:
            name = events[start].session
            end = start + 1
            while end < count and events[end].session == name:
                end += 1
            session = self._sessions.get(name)
            if session is not None:
                run = events if end - start == count else events[start:end]
                self._run(session, run, now_ms, effects)
            start = end

    def _run(
        self, session: _Session, run: Sequence[Event], now_ms: int, effects: list[InboxEffect]
    ) -> None:
        session.head = max(session.head, max(event.seq for event in run))
        for stream in session.streams:
            if stream.phase is _Phase.FOLLOWING:
                self._deliver(stream, run, effects)
                self._want(stream, now_ms, effects)

    def _paged(self, event: Paged, now_ms: int, effects: list[InboxEffect]) -> None:
        stream = self._requests.pop(event.request, None)
        if stream is None:
            return  # too late, or of a stream that was closed
        stream.request = 0
        self._alarms.clear(stream.id)
        session = stream.session
        if event.code:
            error = error_for(event.code)
            self._trace.note(now_ms, (session.name,), "pull refused: %d", event.code)
            if not isinstance(error, RetryableError):
                effects.append(FailStream(stream.id, error))
                self._close(stream.id, now_ms, effects)
                return
            self._pull_later(stream, now_ms)
            return
        session.head = max(session.head, event.head)
        before = stream.cursor
        # What a member may not read because it came before him is no gap.
        stream.cursor = max(before, event.first - 1)
        self._deliver(stream, event.events, effects)
        if stream.cursor > before or stream.cursor >= session.head:
            stream.step = 0
            self._want(stream, now_ms, effects)
        else:
            # A true prefix, but an old one: the server that answered lags. Ask again, slowly.
            self._pull_later(stream, now_ms)

    def _ticked(self, now_ms: int, effects: list[InboxEffect]) -> None:
        refresh: list[_Session] = []
        for key in self._alarms.due(now_ms):
            if isinstance(key, str):
                refresh.append(self._sessions[key])
                continue
            stream = self._streams[key]
            if stream.request:
                self._trace.note(now_ms, (stream.session.name,), "pull without an answer")
                del self._requests[stream.request]
                stream.request = 0
                self._pull_later(stream, now_ms)
            else:
                stream.waiting = False
                self._want(stream, now_ms, effects)
        if refresh and self._connected:
            self._follow(refresh, now_ms, effects)

    # -- order -----------------------------------------------------------------------------------

    def _deliver(
        self, stream: _Stream, events: Sequence[Event], effects: list[InboxEffect]
    ) -> None:
        """Hand on what follows the cursor without a gap; hold back what is early."""
        cursor, held = stream.cursor, stream.held
        room = READY_MAX - stream.outstanding
        ready: list[Event] = []
        for event in events:
            seq = event.seq
            if seq == cursor + 1 and len(ready) < room:
                cursor = seq
                if event.kind != EventKind.VOID:
                    ready.append(event)
            elif seq > cursor and len(held) < HELD_MAX:
                held[seq] = event
        if held:
            while len(ready) < room and (found := held.pop(cursor + 1, None)) is not None:
                cursor += 1
                if found.kind != EventKind.VOID:
                    ready.append(found)
            for seq in [seq for seq in held if seq <= cursor]:
                del held[seq]
        stream.cursor = cursor
        if ready:
            stream.outstanding += len(ready)
            effects.append(Deliver(stream.id, ready))

    def _want(self, stream: _Stream, now_ms: int, effects: list[InboxEffect]) -> None:
        """Ask for what is missing: one pull at a time, and only when there is room for a page."""
        if stream.phase is _Phase.CACHE:
            self._read_cache(stream, effects)
            return
        if (
            stream.cursor >= stream.session.head
            or not self._connected
            or stream.request
            or stream.waiting
            or stream.phase is not _Phase.FOLLOWING
            or stream.outstanding > READY_MAX // 2
            or stream.cursor + 1 in stream.held
        ):
            return
        limit = self._page
        if stream.held:
            limit = min(limit, min(stream.held) - stream.cursor - 1)
        self._last_request += 2
        stream.request = self._last_request
        self._requests[stream.request] = stream
        self._alarms.set(stream.id, now_ms + PULL_TIMEOUT_MS)
        self._trace.note(
            now_ms, (stream.session.name,), "pull after %d, head %d",
            stream.cursor, stream.session.head,
        )  # fmt: skip
        effects.append(Pull(stream.request, stream.session.name, stream.cursor, limit))

    def _pull_later(self, stream: _Stream, now_ms: int) -> None:
        stream.waiting = True
        wait_ms = full_jitter_ms(stream.step, PULL_RETRY_BASE_MS, PULL_RETRY_CAP_MS, self._rng)
        stream.step += 1
        self._alarms.set(stream.id, now_ms + max(1, wait_ms))

    def validate_state(self) -> None:
        """Assert what must always hold; for tests, after every step."""
        for stream in self._streams.values():
            assert 0 <= stream.outstanding <= READY_MAX
            assert len(stream.held) <= HELD_MAX
            assert all(seq > stream.cursor for seq in stream.held)
            assert not stream.request or self._requests[stream.request] is stream
            assert not (stream.request and stream.waiting)
            assert stream in stream.session.streams
        assert len(self._requests) <= len(self._streams)
        assert self._connected or not self._requests
