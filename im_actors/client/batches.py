"""Batch messages: one content for many recipients, for users that are configured as services."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from im_actors.client.results import Sent
from im_actors.core.batch import (
    JobState,
    cancel_request,
    create_request,
    pause_request,
    recall_request,
    recipients_request,
    resume_request,
    start_request,
)
from im_actors.core.model import EventKind
from im_actors.core.names import SessionKind, batch_session, check_session, session_kind
from im_actors.errors import BadRequest, ProtocolViolation
from im_actors.wire.queries import read_fields

if TYPE_CHECKING:
    from im_actors.client.engine import Engine

_FIELDS = (
    int, str, str, str, bool, int, int, int, int,
    int, int, int, int, bool, int, int, int,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """How a batch stands. The counts are of the chunks that are done."""

    session: str
    state: str
    """open, running, paused, done, cancelling, cancelled, recalling or recalled."""
    sender: str
    channel: str
    notice: str
    dry: bool
    total: int
    """Recipients as announced, 0: not announced."""
    chunks: int
    recipients: int
    """Those that are there."""
    created_ms: int
    chunks_done: int
    sent: int
    refused: int
    unsent: int
    settled: bool
    """Nobody gets the message any more."""
    chunks_recalled: int
    recalled: int
    unrecalled: int

    @property
    def at_rest(self) -> bool:
        """Nothing happens to it by itself any more."""
        return self.state in ("open", "paused", "done", "cancelled", "recalled")

    @property
    def told(self) -> int:
        """Recipients whose outcome is known."""
        if self.settled:
            return self.recipients
        return self.sent + self.refused + self.unsent


class ChunkOutcome(NamedTuple):
    users: list[str]
    failures: dict[str, int]
    """By user: an error code; 1: the batch was ended before his turn."""
    unrecalled: dict[str, int]
    """By user: why it could not be taken back."""


class Batches:
    """The batch messages of a client's user. A batch is given by its name or by its session.

    What is asked of one is sent like a message: it is in the store when the call returns, arrives
    once and in order, and is ACKed or refused.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def create(
        self,
        batch: str,
        content: str | bytes,
        channel: str = "daily",
        *,
        notice: str = "system",
        total: int = 0,
        dry: bool = False,
    ) -> Sent:
        """Order a batch; its recipients and ``start`` follow. ``total``: so many recipients, 0: not
        said. ``dry``: they are counted and checked and get nothing."""
        body = content.encode() if isinstance(content, str) else content
        return await self._send(batch, create_request(body, channel, notice, total, dry))

    async def recipients(self, batch: str, chunk: int, users: Sequence[str]) -> Sent:
        """Chunk 0, 1, 2 … of them, as ``core.batch.chunked`` cuts them."""
        return await self._send(batch, recipients_request(chunk, users))

    async def start(self, batch: str) -> Sent:
        return await self._send(batch, start_request())

    async def pause(self, batch: str) -> Sent:
        return await self._send(batch, pause_request())

    async def resume(self, batch: str) -> Sent:
        return await self._send(batch, resume_request())

    async def cancel(self, batch: str) -> Sent:
        """Nobody else gets it."""
        return await self._send(batch, cancel_request())

    async def recall(self, batch: str) -> Sent:
        """Nobody else gets it, and it is taken back from those who did."""
        return await self._send(batch, recall_request())

    async def _send(self, batch: str, body: bytes) -> Sent:
        return await self._engine.send(batch_of(batch), body, EventKind.BATCH)

    async def status(self, batch: str) -> BatchInfo | None:
        """How it stands; None: there is none of this name. Needs a server."""
        session = batch_of(batch)
        answer = await self._engine.user.ask("batch", session)
        _, value = read_fields("batch", answer, int, (list, type(None)))
        if value is None:
            return None
        state, *fields = read_fields("batch", value, *_FIELDS)
        if state not in list(JobState):
            raise ProtocolViolation(f"the answer to batch has an unknown state {state}")
        return BatchInfo(session, JobState(state).name.lower(), *fields)

    async def outcomes(self, batch: str, chunk: int) -> ChunkOutcome:
        """What became of the recipients of a chunk. Needs a server."""
        answer = await self._engine.user.ask("outcomes", batch_of(batch), chunk)
        _, users, failures, unrecalled = read_fields("outcomes", answer, int, list, list, list)
        return ChunkOutcome(users, _by_user(users, failures), _by_user(users, unrecalled))


def _by_user(users: list[str], flat: list[int]) -> dict[str, int]:
    if len(flat) % 2 or not all(type(at) is int and 0 <= at < len(users) for at in flat[::2]):
        raise ProtocolViolation("the answer to outcomes has a wrong form")
    return {users[at]: code for at, code in zip(flat[::2], flat[1::2], strict=True)}


def batch_of(batch: str) -> str:
    """The session of a batch that is given by its name or by its session."""
    named = session_kind(batch) is SessionKind.BATCH
    session = check_session(batch if named else batch_session(batch))
    if session_kind(session) is not SessionKind.BATCH:
        raise BadRequest(f"{batch!r} is no batch")
    return session
