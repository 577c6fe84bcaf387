"""What readers get of batch messages: how a batch stands, who got it, and its whole content."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from im_actors.core.batch import (
    BATCH_DEVICE,
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
from im_actors.errors import BadRequest, Forbidden, ImError, NotFound, NotReachable
from im_actors.mailbox.tier_facts import FactPage

logger = logging.getLogger(__name__)

CONTENTS_MAX = 256
"""Contents that are kept; each is at most 32 kB and never changes."""
FLIGHTS_MAX = 64
"""Contents that are being read at once."""
WAITS_MS = (50, 200, 500)
"""Between tries to read one."""
_MARK = f"/{BATCH_DEVICE}".encode()
"""Is in every event of a batch, and in few others."""

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
    one. Readers keep what they read, so they get the whole or nothing."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._known: OrderedDict[str, bytes | None] = OrderedDict()
        """None: what the events say is all of it."""
        self._flights: dict[str, asyncio.Task[bytes | None]] = {}

    def __len__(self) -> int:
        return len(self._known)

    @staticmethod
    def concerned(session: str) -> bool:
        """Whether events of a session may have heads in them: no others need be shown here."""
        return session_kind(session) is SessionKind.NOTICE

    def ready(self, events: Sequence[bytes]) -> list[bytes] | None:
        """The events as readers get them; None when a content has to be read for that."""
        found = []
        for data in events:
            batch = _batch_of(data)
            if batch is not None and batch not in self._known:
                return None
            found.append(data if batch is None else _with_content(data, self._known[batch]))
        return found

    async def whole(self, events: Iterable[bytes], bytes_max: int) -> list[bytes]:
        """The events as readers get them, the first ones, of up to so many bytes or one.
        NotReachable when none comes of it now: another time it will."""
        found: list[bytes] = []
        size = 0
        for data in events:
            batch = _batch_of(data)
            try:
                content = await self._content(batch) if batch is not None else None
            except NotReachable:
                if found:
                    break
                raise
            data = _with_content(data, content)
            size += len(data)
            if found and size > bytes_max:
                break
            found.append(data)
        return found

    async def close(self) -> None:
        """Return when nothing is being read any more."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    async def _content(self, batch: str) -> bytes | None:
        """What has been read, or what one reads for all who wait for it."""
        if batch in self._known:
            self._known.move_to_end(batch)
            return self._known[batch]
        flight = self._flights.get(batch)
        if flight is None:
            if len(self._flights) >= FLIGHTS_MAX:
                raise NotReachable(f"{FLIGHTS_MAX} contents are being read")
            flight = asyncio.get_running_loop().create_task(self._fetch(batch))
            self._flights[batch] = flight
            flight.add_done_callback(partial(self._landed, batch))
        # Who gives up does not end it for the others.
        return await asyncio.shield(flight)

    def _landed(self, batch: str, flight: asyncio.Task[bytes | None]) -> None:
        del self._flights[batch]
        if not flight.cancelled() and flight.exception() is None:
            self._known[batch] = flight.result()
            if len(self._known) > CONTENTS_MAX:
                self._known.popitem(last=False)

    async def _fetch(self, batch: str) -> bytes | None:
        for wait_ms in (*WAITS_MS, 0):
            try:
                page = await self._read(batch, (JOB_KEY, CONTENT_KEY))
            except ImError as error:
                logger.info("the content of %s cannot be read: %s", batch, error)
            else:
                facts = {fact.key: fact for fact in page.facts}
                if _value(facts, JOB_KEY) is not None:
                    return _value(facts, CONTENT_KEY)
                # Otherwise the replica is behind: it told of the event before of the batch.
            await asyncio.sleep(wait_ms / 1000)
        raise NotReachable(f"the content of {batch} cannot be read now")


def _batch_of(data: bytes) -> str | None:
    """The batch that has the whole content of an encoded event."""
    return content_session(decode_event(data)) if _MARK in data else None


def _with_content(data: bytes, content: bytes | None) -> bytes:
    return data if content is None else encode_event(decode_event(data)._replace(body=content))


def _value(facts: dict[str, Fact], key: str) -> bytes | None:
    fact = facts.get(key)
    return fact.value if fact is not None else None


def _flat(failures: bytes | None) -> list[int]:
    return [number for pair in read_failures(failures) for number in pair]
