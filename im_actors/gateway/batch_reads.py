"""What readers get of batch messages: how a batch stands, who got it, and its whole content."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from im_actors.core.batch import (
    CONTENT_KEY,
    JOB_KEY,
    PROGRESS_KEY,
    Job,
    Progress,
    chunk_key,
    content_session,
    failures_key,
    read_failures,
    read_names,
    status_fields,
)
from im_actors.core.facts import Fact
from im_actors.core.model import decode_event, encode_event
from im_actors.core.names import SessionKind, session_kind
from im_actors.errors import BadRequest, Forbidden, ImError, NotFound
from im_actors.mailbox.tier_facts import FactPage

logger = logging.getLogger(__name__)

CONTENTS_MAX = 256
"""Contents that are kept; each is at most 32 kB and never changes."""

Read = Callable[[str, Sequence[str]], Awaitable[FactPage]]
"""Facts of a session by their keys, as of all that this gateway has heard of it."""


class BatchQueries:
    """The queries ``batch`` and ``outcomes``."""

    def __init__(self, read: Read) -> None:
        self._read = read

    async def batch(self, user: str, session: str) -> list[Any]:
        version, facts = await self._facts(user, session, ())
        job = _value(facts, JOB_KEY)
        if job is None:
            return [version, None]
        progress = Progress.from_bytes(_value(facts, PROGRESS_KEY))
        return [version, status_fields(Job.from_bytes(job), progress)]

    async def outcomes(self, user: str, session: str, chunk: int) -> list[Any]:
        keys = (chunk_key(chunk), failures_key(chunk), failures_key(chunk, recall=True))
        version, facts = await self._facts(user, session, keys)
        users, failures, unrecalled = (_value(facts, key) for key in keys)
        if users is None:
            raise NotFound(f"{session!r} has no chunk {chunk}")
        return [version, read_names(users), _flat(failures), _flat(unrecalled)]

    async def _facts(
        self, user: str, session: str, keys: Sequence[str]
    ) -> tuple[int, dict[str, Fact]]:
        """Only for who has ordered the batch."""
        if session_kind(session) is not SessionKind.BATCH:
            raise BadRequest(f"{session!r} is no batch")
        page = await self._read(session, (JOB_KEY, PROGRESS_KEY, *keys))
        facts = {fact.key: fact for fact in page.facts}
        job = _value(facts, JOB_KEY)
        if job is None and keys:
            raise NotFound(f"there is no {session}")
        if job is not None and Job.from_bytes(job).sender != user:
            raise Forbidden(f"{session} is another service's")
        return page.version, facts


class Contents:
    """Puts the whole content in the place of its head, which is all that an event has of a long
    one."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._known: OrderedDict[str, bytes | None] = OrderedDict()

    @staticmethod
    def concerned(session: str) -> bool:
        """Whether events of a session may have heads in them: nobody else need call ``whole``."""
        return session_kind(session) is SessionKind.NOTICE

    async def whole(self, events: Sequence[bytes]) -> list[bytes]:
        """The events as readers get them. Where the content cannot be read the head stays."""
        return [await self._whole(data) for data in events]

    async def _whole(self, data: bytes) -> bytes:
        event = decode_event(data)
        session = content_session(event)
        content = await self._content(session) if session is not None else None
        return data if content is None else encode_event(event._replace(body=content))

    async def _content(self, session: str) -> bytes | None:
        if session in self._known:
            self._known.move_to_end(session)
            return self._known[session]
        try:
            page = await self._read(session, (JOB_KEY, CONTENT_KEY))
        except ImError as error:
            logger.warning("the content of %s cannot be read: %s", session, error)
            return None
        facts = {fact.key: fact for fact in page.facts}
        content = _value(facts, CONTENT_KEY)
        if _value(facts, JOB_KEY) is not None:
            # Otherwise the replica is behind: another time it will be there.
            self._known[session] = content
            if len(self._known) > CONTENTS_MAX:
                self._known.popitem(last=False)
        return content


def _value(facts: dict[str, Fact], key: str) -> bytes | None:
    fact = facts.get(key)
    return fact.value if fact is not None else None


def _flat(failures: bytes | None) -> list[int]:
    return [number for pair in read_failures(failures) for number in pair]
