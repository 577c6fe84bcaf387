"""Who may read what: each FOLLOW and PULL passes here.

Of most sessions the id says it. Of a group it is a fact of the group, which is known as long as the
group is live here: who is in it reads from the event on that let him in up to the last one that is
known here, since the next one may let him out; who has left reads up to the one that let him out.
What the owner decides of a SEND is not repeated here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Protocol

from im_actors.core.groups import Membership, Role, readable
from im_actors.core.names import SessionKind, session_kind, users_of
from im_actors.errors import Forbidden, ImError, NotFound, RetryableError, TooLarge
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.followers import Follower, Followers
from im_actors.gateway.live import LiveSessions
from im_actors.gateway.pulls import Bounds, Pulls, Reader
from im_actors.wire.codec import encode_frame
from im_actors.wire.messages import Pull, heads, in_batches, push

_OPEN = SessionKind.OPEN
_GROUP = SessionKind.GROUP
_BY_ID = frozenset((SessionKind.DIRECT, SessionKind.NOTICE, SessionKind.MAILBOX))


class Client(Follower, Reader, Protocol):
    """What this module knows of a client connection."""

    asked: set[str]
    """Groups that it wants to follow and of which it is not known yet whether it may."""

    @property
    def user(self) -> str: ...

    @property
    def is_open(self) -> bool: ...


def may_by_id(user: str, session: str) -> bool | None:
    """Whether the user may read this session; None: the id alone does not say."""
    kind = session_kind(session)
    if kind is _OPEN:
        return True
    if kind is _GROUP:
        return None
    return kind in _BY_ID and user in users_of(session)


def clip(pull: Pull, bounds: Bounds) -> Pull | None:
    """The part of a PULL that lies within the bounds; None: nothing of it."""
    first, last = bounds
    if last < first:
        return None
    after, before, limit = pull.after, pull.before, pull.limit
    if after >= 0 and not before:
        # The oldest above ``after``: a bound above them has to be put into the limit.
        after = max(after, first - 1)
        limit = min(limit, last - after)
    else:
        after, before = max(after, first - 1), min(before or last + 1, last + 1)
    if limit < 1 or (before and before <= after + 1):
        return None
    return pull._replace(after=after, before=before, limit=limit)


class Access:
    """The door of one gateway for those who read. ``at_least`` tells the highest seq that is known
    of a session, so that who was ACKed that he is in finds himself in."""

    def __init__(
        self,
        live: LiveSessions,
        followers: Followers,
        pulls: Pulls,
        config: GatewayConfig,
        at_least: Callable[[str], int],
        now_ms: Callable[[], int],
    ) -> None:
        self._live = live
        self._followers = followers
        self._pulls = pulls
        self._config = config
        self._at_least = at_least
        self._now_ms = now_ms
        self._tasks: set[asyncio.Task[None]] = set()
        live.on_out = self._let_out
        live.on_lost = self._lost

    # ---- FOLLOW

    def follow(self, client: Client, sessions: Sequence[str], now_ms: int) -> None:
        """Push to ``client`` what it may follow of these, and tell it of what it may not. Errors
        are those of ``Followers.follow``."""
        free: list[str] = []
        groups: list[str] = []
        refused: list[str] = []
        for session in dict.fromkeys(sessions):
            may = may_by_id(client.user, session)
            if may is None:
                groups.append(session)
            else:
                (free if may else refused).append(session)
        limit = self._config.limits.follow_sessions
        if groups and len({*client.follows, *client.asked, *free, *groups}) > limit:
            raise TooLarge(f"FOLLOW: more than {limit} sessions on one connection")
        if free:
            self._followers.follow(client, free, now_ms)
        _refuse(client, [(session, 0, Forbidden.code) for session in refused])
        client.asked.update(groups)
        if groups:
            self._start(self._follow_groups(client, groups))

    def unfollow(self, client: Client, sessions: Iterable[str]) -> None:
        sessions = list(sessions)
        client.asked.difference_update(sessions)
        self._followers.unfollow(client, sessions)

    async def _follow_groups(self, client: Client, groups: list[str]) -> None:
        await asyncio.gather(*[self._follow_group(client, group) for group in groups])

    async def _follow_group(self, client: Client, group: str) -> None:
        """As soon as the group can be read: there is no answer to FOLLOW before that anyway."""
        while client.is_open and group in client.asked:
            try:
                membership = await self.membership(client.user, group)
            except RetryableError:
                await asyncio.sleep(self._config.retry_ms_max / 1000)
                continue
            except ImError as error:
                client.asked.discard(group)
                _refuse(client, [(group, 0, error.code)])
                return
            if client.is_open and group in client.asked:
                client.asked.discard(group)
                self._admit(client, group, membership)

    def _admit(self, client: Client, group: str, membership: Membership) -> None:
        if membership.role is Role.STRANGER:
            # There is nothing to be pushed, and something to be read.
            client.send(encode_frame(heads([(group, membership.left_seq)])))
            return
        try:
            self._followers.follow(client, [group], self._now_ms())
        except ImError as error:
            _refuse(client, [(group, 0, error.code)])

    # ---- PULL

    def pull(self, client: Client, pull: Pull, now_ms: int) -> None:
        """Answer with EVENTS, soon."""
        may = may_by_id(client.user, pull.session)
        if may:
            self._pulls.pull(client, pull, now_ms)
        elif may is not None:
            self._pulls.refuse(client, pull, Forbidden("this session is not yours to read"))
        elif not self._pulls.has_room(client):
            self._pulls.pull(client, pull, now_ms)  # which refuses it
        else:
            client.pulls += 1
            self._start(self._pull_group(client, pull))

    async def _pull_group(self, client: Client, pull: Pull) -> None:
        try:
            bounds = await self.bounds(client.user, pull.session)
        except ImError as error:
            client.pulls -= 1
            self._pulls.refuse(client, pull, error)
            return
        client.pulls -= 1
        clipped = clip(pull, bounds)
        if clipped is None:
            self._pulls.nothing(client, pull, bounds)
        else:
            self._pulls.pull(client, clipped, self._now_ms(), bounds)

    # ---- both

    async def membership(self, user: str, group: str) -> Membership:
        """What the user is or was in the group. NotFound, Forbidden: nothing at all."""
        return (await self._known(user, group))[0]

    async def bounds(self, user: str, group: str) -> Bounds:
        """The events that are his to read. A member's end with those by which it is known that he
        is in: a replica may have the one that lets him out. Errors as of ``membership``."""
        membership, upto = await self._known(user, group)
        first, last = readable(membership)
        return Bounds(first, upto if last is None else last)

    async def _known(self, user: str, group: str) -> tuple[Membership, int]:
        """(what the user is or was in the group, the seq up to which that is known)."""
        at_least = self._at_least(group)
        known, membership = self._live.known_membership(group, user)
        live = self._live.get(group)
        if known and live is not None and live.upto >= at_least:
            upto = live.upto
        else:
            membership, upto = await self._live.membership(group, user, at_least)
        if membership is not None:
            return membership, upto
        live = self._live.get(group)
        if live is not None and live.group is None:
            raise NotFound(f"there is no group {group!r}")
        raise Forbidden(f"{user} is no member of {group!r}")

    async def close(self) -> None:
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ---- LiveSessions

    def _let_out(self, session: str, user: str, pushed: list[bytes]) -> None:
        """He gets the event that let him out, and none after it."""
        for follower in self._followers.followers_of(session):
            client: Client = follower  # type: ignore[assignment]
            if client.user == user:
                self._followers.unfollow(client, [session])
                if pushed and client.writable:
                    client.send(encode_frame(push(pushed)))
                _refuse(client, [(session, 0, Forbidden.code)])

    def _lost(self, session: str) -> None:
        for follower in self._followers.followers_of(session):
            self._start(self._look_again(follower, session))  # type: ignore[arg-type]

    async def _look_again(self, client: Client, session: str) -> None:
        try:
            membership = await self.membership(client.user, session)
            if membership.role is not Role.STRANGER:
                return
        except ImError:
            # If it only cannot be known now, it is told so when it follows again.
            pass
        if session in client.follows:
            self._followers.unfollow(client, [session])
            _refuse(client, [(session, 0, Forbidden.code)])

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()


def _refuse(client: Client, rows: list[tuple[str, int, int]]) -> None:
    for part in in_batches(rows):
        client.send(encode_frame(heads(part)))
