"""Following: which connection wants which session's events, and who has to be told of its head.

One watch per session, however many connections follow it here. The shard is asked to push by WATCH
and answers with the head; whatever makes it doubtful that pushes are complete (another owner,
another epoch, a link that was down) is mended by another WATCH and by telling the new head to
all followers: they pull what they lack. So pushes may be lost, and events are not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from im_actors.errors import ImError, Overloaded, TooLarge
from im_actors.gateway.batch_reads import Contents
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.peers import Peers, RouteChange, ShardPeer
from im_actors.wire.codec import encode_frame
from im_actors.wire.links import InsideType, pack_frame
from im_actors.wire.messages import heads, in_batches, push, split_events

WATCH_SESSIONS_MAX = 2_048
"""Most sessions in one WATCH or UNWATCH."""
PUSH_WHOLE_BYTES = 256 * 1024
"""Batches of events up to this size are one PUSH, without a closer look."""

_WATCH = int(InsideType.WATCH)
_UNWATCH = int(InsideType.UNWATCH)


class Follower(Protocol):
    """What this module knows of a client connection."""

    follows: set[str]
    """The sessions that it follows."""
    missed: set[str]
    """Sessions of which pushes were dropped since it fell behind."""
    writable: bool

    @property
    def buffered_bytes(self) -> int:
        """Bytes that it has not read yet."""

    def send(self, frame: bytes) -> bool:
        """Send encoded frames."""


class Listener(Protocol):
    """A part of the gateway that follows a session for its own purposes."""

    def pushed(self, session: str, events: list[bytes]) -> bool:
        """Events in the order of seq, perhaps with gaps; before any connection gets them. False:
        none must get them now, and ``tell_head`` follows."""

    def told(self, session: str, head: int) -> None:
        """The owner's head: from it on pushes come. What is below may have been missed."""


class Watch:
    """A session that is followed by at least one connection, or listened to."""

    __slots__ = (
        "followers",
        "has_heads",
        "head",
        "listener",
        "renewed",
        "session",
        "slot",
        "waiting",
    )

    def __init__(self, session: str) -> None:
        self.session = session
        self.has_heads = Contents.concerned(session)
        """Whether its events may have but the head of a content."""
        self.slot = -1
        self.followers: dict[Follower, None] = {}
        """A set that keeps its order."""
        self.waiting: set[Follower] = set()
        """Followers that have not been told a head yet."""
        self.head = -1
        """The highest seq pushed or told by a shard; -1: none yet."""
        self.listener: Listener | None = None
        self.renewed = False
        """The next head is for all followers: pushes may have been missed."""


class Followers:
    """All watches of a gateway."""

    def __init__(self, peers: Peers, contents: Contents, config: GatewayConfig) -> None:
        self._peers = peers
        self._contents = contents
        self._config = config
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """By session: reads of contents that have to be there before its events go out."""
        self._watches: dict[str, Watch] = {}
        self._by_slot: list[dict[str, Watch]] = []
        self._homeless: dict[str, Watch] = {}
        """Followed before the first directory came."""
        self._unanswered: dict[str, int] = {}
        """Sessions whose WATCH was not answered, with the time of asking, oldest first."""
        self.behind: set[Follower] = set()
        """Connections to which pushes are dropped at present."""
        self.follows = 0
        self.pushed = 0
        """Events pushed, counted once for each connection."""
        self.dropped = 0
        """The same, of those that were not pushed because the connection was behind."""

    # ---- from clients

    def __len__(self) -> int:
        return len(self._watches)

    def head(self, session: str) -> int:
        """The highest seq known from following; 0 when none is."""
        watch = self._watches.get(session)
        return max(0, watch.head) if watch is not None else 0

    def follow(self, follower: Follower, sessions: Sequence[str], now_ms: int) -> None:
        """Push to ``follower`` from now on. TooLarge: more than one connection may follow;
        Overloaded: more than this gateway does."""
        fresh = set(sessions) - follower.follows
        limit = self._config.limits.follow_sessions
        if len(follower.follows) + len(fresh) > limit:
            raise TooLarge(f"FOLLOW: more than {limit} sessions on one connection")
        if self.follows + len(fresh) > self._config.follows_max:
            raise Overloaded("this gateway has as many followers as it can have")
        known = []
        asked: list[Watch] = []
        for session in dict.fromkeys(sessions):
            watch = self._watches.get(session)
            if watch is None:
                watch = self._new_watch(session)
                asked.append(watch)
            watch.followers[follower] = None
            if watch.head >= 0:
                known.append((session, watch.head))
            else:
                watch.waiting.add(follower)
        follower.follows |= fresh
        self.follows += len(fresh)
        _send_heads(follower, known)
        self._ask(asked, now_ms)

    def listen(self, session: str, listener: Listener, now_ms: int) -> None:
        """Tell ``listener`` of the session's events from now on; one for each session."""
        watch = self._watches.get(session)
        asked = watch is None
        if watch is None:
            watch = self._new_watch(session)
        assert watch.listener is None, session
        watch.listener = listener
        if asked:
            self._ask([watch], now_ms)
        elif watch.head >= 0 and not watch.renewed:
            listener.told(session, watch.head)

    def unlisten(self, session: str) -> None:
        """Nothing is told any more."""
        watch = self._watches[session]
        watch.listener = None
        if not watch.followers:
            self._end_watch(watch)
            self._tell_shards(_UNWATCH, [watch])

    def tell_head(self, session: str) -> None:
        """Tell all who follow the session its head: they pull what they were not pushed."""
        for follower in self.followers_of(session):
            _send_heads(follower, [(session, self.head(session))])

    def followers_of(self, session: str) -> list[Follower]:
        """Who follows it at present."""
        watch = self._watches.get(session)
        return list(watch.followers) if watch is not None else []

    def unfollow(self, follower: Follower, sessions: Iterable[str]) -> None:
        """No pushes any more; sessions that are not followed are passed over."""
        ended: list[Watch] = []
        for session in sessions:
            if session not in follower.follows:
                continue
            follower.follows.discard(session)
            follower.missed.discard(session)
            self.follows -= 1
            watch = self._watches[session]
            del watch.followers[follower]
            watch.waiting.discard(follower)
            if not watch.followers and watch.listener is None:
                self._end_watch(watch)
                ended.append(watch)
        self._tell_shards(_UNWATCH, ended)

    def left(self, follower: Follower) -> None:
        """The connection is gone."""
        self.unfollow(follower, sorted(follower.follows))
        self.behind.discard(follower)

    def caught_up(self, follower: Follower) -> None:
        """It has read what was sent: tell it the heads of what was dropped, and push again."""
        if follower not in self.behind:
            return
        self.behind.discard(follower)
        missed = [(session, self.head(session)) for session in sorted(follower.missed)]
        follower.missed.clear()
        _send_heads(follower, missed)

    # ---- from shards

    def pushed_events(self, rows: Iterable[Sequence[Any]]) -> None:
        """Rows are (session, encoded event), per session in the order of seq."""
        watches = self._watches
        batches: dict[Watch, list[bytes]] = {}
        for session, event in rows:
            watch = watches.get(session)
            if watch is None:
                continue
            events = batches.get(watch)
            if events is None:
                batches[watch] = [event]
            else:
                events.append(event)
        single: dict[Follower, list[bytes]] = {}
        for watch, events in batches.items():
            watch.head = max(watch.head, event_seq(events[-1]))
            # First, as it may find that some of the followers may follow no more.
            if watch.listener is not None and not watch.listener.pushed(watch.session, events):
                self.dropped += len(events) * len(watch.followers)
                continue
            if watch.has_heads:
                whole = self._contents.ready(events)
                if whole is None:
                    self.dropped += len(events) * len(watch.followers)
                    self._read_contents(watch.session, events)
                    continue
                events = whole
            if len(watch.followers) != 1:
                if watch.followers:
                    self._push_to_many(watch, events)
                continue
            (follower,) = watch.followers
            if not self._may_push(follower, watch.session, len(events)):
                continue
            collected = single.get(follower)
            if collected is None:
                single[follower] = events
            else:
                collected += events
        for follower, events in single.items():
            for frame in self._frames(events):
                follower.send(frame)

    def watched(self, shard: ShardPeer, rows: Iterable[Sequence[Any]]) -> None:
        """The shard pushes these sessions from now on; rows are (session, head)."""
        told: dict[Follower, list[tuple[str, int]]] = {}
        for session, head in rows:
            watch = self._watches.get(session)
            if watch is None or self._peers.routes[watch.slot] is not shard:
                continue
            self._unanswered.pop(session, None)
            watch.head = max(watch.head, head)
            followers = watch.followers if watch.renewed else watch.waiting
            for follower in followers:
                told.setdefault(follower, []).append((session, watch.head))
            watch.renewed = False
            watch.waiting.clear()
            if watch.listener is not None:
                watch.listener.told(session, watch.head)
        for follower, known in told.items():
            _send_heads(follower, known)

    # ---- shards and directory

    def shard_up(self, shard: ShardPeer, now_ms: int) -> None:
        """It has forgotten what it was asked to push, and its pushes since then are lost."""
        self._renew(shard.slots, now_ms)

    def routes_changed(self, changes: dict[int, RouteChange], now_ms: int) -> None:
        """Ask the new owners; let the old ones forget."""
        missing = self._peers.slots - len(self._by_slot)
        self._by_slot.extend({} for _ in range(missing))
        self._house()
        for slot, change in changes.items():
            if change.before is not None and change.before is not change.after:
                _send_sessions(change.before, _UNWATCH, list(self._by_slot[slot]))
        taken_over = [slot for slot, change in changes.items() if change.taken_over]
        self._renew(taken_over, now_ms)
        # In these the same owner goes on; it does not answer a WATCH before it serves.
        others = [slot for slot, change in changes.items() if not change.taken_over]
        again = [w for slot in others for w in self._by_slot[slot].values()]
        self._ask([watch for watch in again if watch.session in self._unanswered], now_ms)

    def tick(self, now_ms: int) -> None:
        """Repeat what was not answered."""
        due: list[Watch] = []
        for session, asked_ms in self._unanswered.items():
            if asked_ms + self._config.watch_ms > now_ms:
                break
            due.append(self._watches[session])
        if due:
            self._ask(due, now_ms)

    async def close(self) -> None:
        """Return when nothing runs any more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- inside

    def _read_contents(self, session: str, events: list[bytes]) -> None:
        """Tell the head once the contents of these are here, or cannot be: followers pull then."""

        async def read() -> None:
            with contextlib.suppress(ImError):
                await self._contents.whole(events, self._config.limits.frame_bytes)
            self.tell_head(session)

        if session not in self._tasks:
            task = self._tasks[session] = asyncio.get_running_loop().create_task(read())
            task.add_done_callback(lambda _: self._tasks.pop(session, None))

    def _new_watch(self, session: str) -> Watch:
        watch = self._watches[session] = Watch(session)
        if self._by_slot:
            watch.slot = self._peers.slot_of(session)
            self._by_slot[watch.slot][session] = watch
        else:
            self._homeless[session] = watch
        return watch

    def _end_watch(self, watch: Watch) -> None:
        del self._watches[watch.session]
        self._unanswered.pop(watch.session, None)
        if watch.slot >= 0:
            del self._by_slot[watch.slot][watch.session]
        else:
            del self._homeless[watch.session]

    def _house(self) -> None:
        for session, watch in self._homeless.items():
            watch.slot = self._peers.slot_of(session)
            self._by_slot[watch.slot][session] = watch
        self._homeless.clear()

    def _renew(self, slots: Iterable[int], now_ms: int) -> None:
        watches = [watch for slot in slots for watch in self._by_slot[slot].values()]
        for watch in watches:
            watch.renewed = True
        self._ask(watches, now_ms)

    def _ask(self, watches: list[Watch], now_ms: int) -> None:
        unanswered = self._unanswered
        for watch in watches:
            # Asked last, so at the end: the dict stays in the order of its times.
            unanswered.pop(watch.session, None)
            unanswered[watch.session] = now_ms
        self._tell_shards(_WATCH, watches)

    def _tell_shards(self, kind: int, watches: list[Watch]) -> None:
        sessions: dict[ShardPeer, list[str]] = {}
        for watch in watches:
            shard = self._peers.routes[watch.slot] if watch.slot >= 0 else None
            if shard is not None and shard.up:
                sessions.setdefault(shard, []).append(watch.session)
        for shard, names in sessions.items():
            _send_sessions(shard, kind, names)

    def _push_to_many(self, watch: Watch, events: list[bytes]) -> None:
        """Encode once, write the same bytes to all."""
        frames = b"".join(self._frames(events))
        for follower in watch.followers:
            if self._may_push(follower, watch.session, len(events)):
                follower.send(frames)

    def _may_push(self, follower: Follower, session: str, count: int) -> bool:
        if follower.writable:
            self.pushed += count
            return True
        # Once behind, it stays so until it has read everything: one HEADS instead of many.
        behind = follower in self.behind
        if behind or follower.buffered_bytes > self._config.slow_reader_bytes:
            self.behind.add(follower)
            follower.missed.add(session)
            self.dropped += count
            return False
        self.pushed += count
        return True

    def _frames(self, events: list[bytes]) -> list[bytes]:
        frame_bytes = self._config.limits.frame_bytes
        whole_bytes = min(PUSH_WHOLE_BYTES, frame_bytes // 2)
        if len(events) == 1 or sum(map(len, events)) + 5 * len(events) <= whole_bytes:
            return [encode_frame(push(events))]
        return [encode_frame(push(part)) for part in split_events(events, frame_bytes)]


def event_seq(data: bytes) -> int:
    """The seq of an encoded event, without decoding the rest: the second of its seven fields."""
    first = data[1]
    if first < 0xC0:
        at = 2 + (first & 0x1F)
    elif first == 0xD9:
        at = 3 + data[2]
    else:
        at = 4 + (data[2] << 8 | data[3])
    tag = data[at]
    if tag < 0x80:
        return tag
    size = 1 << (tag - 0xCC)
    return int.from_bytes(data[at + 1 : at + 1 + size], "big")


def _send_heads(follower: Follower, rows: list[tuple[str, int]]) -> None:
    for part in in_batches(rows):
        follower.send(encode_frame(heads(part)))


def _send_sessions(shard: ShardPeer, kind: int, sessions: list[str]) -> None:
    for part in in_batches(sessions, WATCH_SESSIONS_MAX):
        shard.send(pack_frame((kind, part)))
