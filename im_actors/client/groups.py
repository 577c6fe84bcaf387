"""Groups: everything that their members may do, and who they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from im_actors.client.conversations import GroupInfo, Member, MemberList
from im_actors.client.results import Sent
from im_actors.core.facts import pack_request
from im_actors.core.model import EventKind
from im_actors.core.names import SessionKind, check_session, group_session, session_kind
from im_actors.errors import BadRequest, RetryableError
from im_actors.wire.limits import QUERY_ROWS_MAX
from im_actors.wire.queries import read_fields

if TYPE_CHECKING:
    from im_actors.client.engine import Engine


class Groups:
    """The groups of a client's user. A group is given by its name or by its session.

    What changes a group is sent like a message: it is in the store when the call returns, arrives
    once, and is ACKed or refused; so ``await (await im.groups.leave("climbers")).acked()``.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def create(self, group: str, title: str, users: Sequence[str] = ()) -> Sent:
        """Make the group, with ``users`` as its first members, besides oneself, its owner."""
        return await self._change(group, "create", title, list(users))

    async def add(self, group: str, *users: str) -> Sent:
        return await self._change(group, "add", list(users))

    async def remove(self, group: str, *users: str) -> Sent:
        return await self._change(group, "remove", list(users))

    async def join(self, group: str) -> Sent:
        """Become a member, where the group lets anybody in."""
        return await self._change(group, "join")

    async def leave(self, group: str) -> Sent:
        return await self._change(group, "leave")

    async def role(self, group: str, user: str, role: str) -> Sent:
        """``role`` is "admin", "member", or "owner" to hand the group over."""
        return await self._change(group, "role", user, role)

    async def mute(self, group: str, user: str | None, until_ms: int) -> Sent:
        """That user sends nothing until then (since the Unix epoch; 0: he may again); None: nobody
        does but the owner and the admins."""
        return await self._change(group, "mute", user, until_ms)

    async def title(self, group: str, title: str) -> Sent:
        return await self._change(group, "title", title)

    async def joining(self, group: str, allowed: bool) -> Sent:
        """Whether anybody may join without being added."""
        return await self._change(group, "joining", allowed)

    async def dissolve(self, group: str) -> Sent:
        return await self._change(group, "dissolve")

    async def _change(self, group: str, what: str, *args: Any) -> Sent:
        body = pack_request(what, *args)
        return await self._engine.send(session_of(group), body, EventKind.GROUP)

    async def info(self, group: str) -> GroupInfo | None:
        """What the group is. Without a server what was known last; None: nothing was."""
        session = session_of(group)
        user = self._engine.user
        types = (int, str, str, int, str, bool, int, int)
        try:
            fields = read_fields("group", await user.ask("group", session), *types)
            user.remember(f"group {session}", fields)
            offline = False
        except RetryableError:
            fields, offline = user.remembered(f"group {session}"), True
        if not fields:
            return None
        _, title, owner, members, role, joining, muted, dissolved = fields
        return GroupInfo(
            session, title, owner, members, role, joining, muted, dissolved, offline=offline
        )

    async def members(
        self, group: str, after: str | None = None, limit: int = QUERY_ROWS_MAX
    ) -> MemberList:
        """The members behind the user ``after``. Without a server the first ones as they were known
        last."""
        session = session_of(group)
        user = self._engine.user
        try:
            answer = await user.ask("members", session, after, limit)
            _, rows, following = read_fields("members", answer, int, list, (str, type(None)))
            found = [read_fields("members", row, str, str, int, int) for row in rows]
            if after is None:
                user.remember(f"members {session}", found)
            return MemberList([Member(*row) for row in found], following, offline=False)
        except RetryableError:
            found = (user.remembered(f"members {session}") or []) if after is None else []
            return MemberList([Member(*row) for row in found[:limit]], None, offline=True)


def session_of(group: str) -> str:
    """The session of a group that is given by its name or by its session."""
    named = session_kind(group) is SessionKind.GROUP
    session = check_session(group if named else group_session(group))
    if session_kind(session) is not SessionKind.GROUP:
        raise BadRequest(f"{group!r} is no group")
    return session
