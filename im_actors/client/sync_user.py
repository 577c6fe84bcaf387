"""The user side of the client for plain programs; see ``im_actors.client.user_calls``."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from im_actors.client import client as aio
from im_actors.client import results
from im_actors.client.batches import BatchInfo, ChunkOutcome
from im_actors.client.conversations import (
    Conversation,
    ConversationList,
    Device,
    GroupInfo,
    MemberList,
    Receipts,
    Unread,
)
from im_actors.wire.limits import QUERY_ROWS_MAX

SentT = TypeVar("SentT")
ResultT = TypeVar("ResultT")


class UserCalls(Generic[SentT]):
    """Conversations, unread counts, groups, devices: the same calls without ``await``."""

    _client: aio.Client

    def _wait(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        raise NotImplementedError

    def _do(self, call: Callable[[], ResultT]) -> ResultT:
        raise NotImplementedError

    def _sent(self, sent: results.Sent) -> SentT:
        raise NotImplementedError

    def _changed(self, work: Coroutine[Any, Any, results.Sent]) -> SentT:
        return self._sent(self._wait(work))

    # -- the list --------------------------------------------------------------------------------

    def conversations(
        self,
        limit: int = 25,
        after: str | None = None,
        *,
        unread_only: bool = False,
        label: str | None = "",
        local: bool = False,
    ) -> ConversationList:
        """The user's conversations, newest first; ``after`` is ``next`` of the page before.
        ``local``: what this device knows, at once."""
        return self._wait(
            self._client.conversations(
                limit, after, unread_only=unread_only, label=label, local=local
            )
        )

    def labels(self) -> list[str]:
        """The labels under which this device knows conversations to be folded, sorted."""
        return self._do(self._client.labels)

    def list_changed(self, since: int = 0) -> int:
        """Wait until this device knows more of the list than when this returned ``since``."""
        return self._wait(self._client.list_changed(since))

    def conversation(self, session: str) -> Conversation | None:
        return self._wait(self._client.conversation(session))

    def unread(self) -> Unread:
        """How many messages wait for the user, over all conversations."""
        return self._wait(self._client.unread())

    # -- one conversation ------------------------------------------------------------------------

    def direct(self, peer: str) -> str:
        """The session of this user and another one."""
        return self._client.direct(peer)

    def mark_read(self, session: str, seq: int) -> SentT:
        """The user has read up to ``seq``. It never goes back."""
        return self._changed(self._client.mark_read(session, seq))

    def pin(self, session: str, pinned: bool = True) -> SentT:
        return self._changed(self._client.pin(session, pinned))

    def mute(self, session: str, muted: bool = True) -> SentT:
        return self._changed(self._client.mute(session, muted))

    def hide(self, session: str, hidden: bool = True) -> SentT:
        """Take it out of the list until its next message, or put it back."""
        return self._changed(self._client.hide(session, hidden))

    def fold(self, session: str, label: str) -> SentT:
        """Put it under a label; an empty one takes it out."""
        return self._changed(self._client.fold(session, label))

    def delete(self, session: str, seq: int) -> SentT:
        """Show this user the event ``seq`` no more."""
        return self._changed(self._client.delete(session, seq))

    def recall(self, session: str, seq: int) -> SentT:
        """Take a message back, for everybody."""
        return self._changed(self._client.recall(session, seq))

    def edit(self, session: str, seq: int, text: str | bytes) -> SentT:
        """Give a message a new text, for everybody."""
        return self._changed(self._client.edit(session, seq, text))

    def receipts(self, session: str, seq: int, limit: int = QUERY_ROWS_MAX) -> Receipts:
        """Who has read up to ``seq`` or further."""
        return self._wait(self._client.receipts(session, seq, limit))

    # -- groups, devices, signals ----------------------------------------------------------------

    @property
    def groups(self) -> Groups[SentT]:
        return Groups(self)

    @property
    def batches(self) -> Batches[SentT]:
        return Batches(self)

    def devices(self) -> list[Device]:
        return self._wait(self._client.devices())

    def kick(self, device: str) -> SentT:
        """Cut one of the user's devices off."""
        return self._changed(self._client.kick(device))

    def typing(self, session: str, typing: bool = True) -> None:
        self._do(lambda: self._client.typing(session, typing))

    def here(self, session: str, here: bool = True) -> None:
        self._do(lambda: self._client.here(session, here))

    def who_is_online(self, session: str, limit: int = QUERY_ROWS_MAX) -> list[str]:
        return self._wait(self._client.who_is_online(session, limit))

    def who_types(self, session: str) -> list[str]:
        return self._do(lambda: self._client.who_types(session))

    def who_is_here(self, session: str) -> list[str]:
        return self._do(lambda: self._client.who_is_here(session))


class Groups(Generic[SentT]):
    """See ``im_actors.client.Groups``."""

    def __init__(self, calls: UserCalls[SentT]) -> None:
        self._calls = calls
        self._groups = calls._client.groups

    def create(self, group: str, title: str, users: Sequence[str] = ()) -> SentT:
        return self._calls._changed(self._groups.create(group, title, users))

    def add(self, group: str, *users: str) -> SentT:
        return self._calls._changed(self._groups.add(group, *users))

    def remove(self, group: str, *users: str) -> SentT:
        return self._calls._changed(self._groups.remove(group, *users))

    def join(self, group: str) -> SentT:
        return self._calls._changed(self._groups.join(group))

    def leave(self, group: str) -> SentT:
        return self._calls._changed(self._groups.leave(group))

    def role(self, group: str, user: str, role: str) -> SentT:
        return self._calls._changed(self._groups.role(group, user, role))

    def mute(self, group: str, user: str | None, until_ms: int) -> SentT:
        return self._calls._changed(self._groups.mute(group, user, until_ms))

    def title(self, group: str, title: str) -> SentT:
        return self._calls._changed(self._groups.title(group, title))

    def joining(self, group: str, allowed: bool) -> SentT:
        return self._calls._changed(self._groups.joining(group, allowed))

    def dissolve(self, group: str) -> SentT:
        return self._calls._changed(self._groups.dissolve(group))

    def info(self, group: str) -> GroupInfo | None:
        return self._calls._wait(self._groups.info(group))

    def members(
        self, group: str, after: str | None = None, limit: int = QUERY_ROWS_MAX
    ) -> MemberList:
        return self._calls._wait(self._groups.members(group, after, limit))


class Batches(Generic[SentT]):
    """See ``im_actors.client.Batches``."""

    def __init__(self, calls: UserCalls[SentT]) -> None:
        self._calls = calls
        self._batches = calls._client.batches

    def create(
        self,
        batch: str,
        content: str | bytes,
        channel: str = "daily",
        *,
        notice: str = "system",
        total: int = 0,
        dry: bool = False,
    ) -> SentT:
        return self._calls._changed(
            self._batches.create(batch, content, channel, notice=notice, total=total, dry=dry)
        )

    def recipients(self, batch: str, chunk: int, users: Sequence[str]) -> SentT:
        return self._calls._changed(self._batches.recipients(batch, chunk, users))

    def start(self, batch: str) -> SentT:
        return self._calls._changed(self._batches.start(batch))

    def pause(self, batch: str) -> SentT:
        return self._calls._changed(self._batches.pause(batch))

    def resume(self, batch: str) -> SentT:
        return self._calls._changed(self._batches.resume(batch))

    def cancel(self, batch: str) -> SentT:
        return self._calls._changed(self._batches.cancel(batch))

    def recall(self, batch: str) -> SentT:
        return self._calls._changed(self._batches.recall(batch))

    def status(self, batch: str) -> BatchInfo | None:
        return self._calls._wait(self._batches.status(batch))

    def outcomes(self, batch: str, chunk: int) -> ChunkOutcome:
        return self._calls._wait(self._batches.outcomes(batch, chunk))
