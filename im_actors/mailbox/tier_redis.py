"""The hot tier: the newest conversations of users who are or were online, in Redis 5 or newer.

    im:{CLUSTER:USER}:meta      hash: format, version, complete, live, unread, sizes of the others
    im:{CLUSTER:USER}:rows      hash: session to seq, place and the packed row
    im:{CLUSTER:USER}:order     sorted set: the places of the listed rows that are not live
    im:{CLUSTER:USER}:live      set: the live rows
    im:{CLUSTER:USER}:unread    set: the rows of ``order`` that have something unread

The braces are a hash tag, so that one script may touch all keys of a user. Ranks have 63 bits and
the scores of a sorted set only 53, so all scores are 0 and a member sorts by its text: the rank
turned round, in hexadecimal, and the session. Everything goes after 24 hours without use.

It is a cache: it may be empty, lost or stale at any time, and a Redis that is short of memory may
drop single keys of a user. So the sizes are looked at before anything is believed. Nothing here has
to be durable.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from im_actors.core.facts import RANK_MAX
from im_actors.core.model import NAME_BYTES_MAX, check_text
from im_actors.errors import CorruptData, NotReachable, SetupError
from im_actors.mailbox.rows import (
    END,
    Change,
    Copy,
    Entry,
    Flag,
    Listing,
    Place,
    decode_entry,
    encode_entry,
    entry_place,
)
from im_actors.mailbox.tiers import PAGE_ROWS_MAX, Outcome, Put

ROWS_PER_USER_MAX = 2_000
"""Most listed rows of one user, live ones not counted: the newest."""
KEPT_S = 24 * 3600
CONNECTIONS_MAX = 16
_FORMAT = b"2"
_KINDS = ("meta", "rows", "order", "live", "unread")

# What is there of a user now, and whether it is all that was written.
_SIZES = """
local meta, rows, order, live, unread = unpack(KEYS)
local function sizes()
  return redis.call('HLEN', rows) .. ':' .. redis.call('ZCARD', order) .. ':'
    .. redis.call('SCARD', live) .. ':' .. redis.call('SCARD', unread)
end
local held = redis.call('HMGET', meta, 'format', 'version', 'complete', 'live', 'unread', 'sizes')
local usable = held[1] == ARGV[1] and held[6] == sizes()
"""

# A row's value begins with its seq (20 digits) and its rank as in its place (16, or '-' if it is
# not in the order). ARGV: format, seconds to keep, change or copy, since, version, most rows,
# complete, live, unread, and then 5 for each row: session, seq, rank, marks (L live, U unread, X
# gone), the packed row.
_PUT = (
    _SIZES
    + """
local version = -1
if usable then version = tonumber(held[2]) end
local since, upto = tonumber(ARGV[4]), tonumber(ARGV[5])
local complete, unread_whole = held[3], held[5]
if ARGV[3] == 'change' then
  if version >= upto then return {'LATE', version} end
  if version < since then return {'GAP', version} end
else
  if version > upto then return {'LATE', version} end
  redis.call('DEL', unpack(KEYS))
  complete, unread_whole = ARGV[7], ARGV[9]
  redis.call('HSET', meta, 'format', ARGV[1])
  redis.call('HSET', meta, 'live', ARGV[8])
end
for i = 10, #ARGV, 5 do
  local session, seq, rank, marks = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local old = redis.call('HGET', rows, session)
  if not old or string.sub(old, 1, 20) < seq then
    if old then
      redis.call('ZREM', order, string.sub(old, 21, 36) .. session)
      redis.call('SREM', live, session)
      redis.call('SREM', unread, session)
    end
    if string.find(marks, 'X', 1, true) then
      redis.call('HDEL', rows, session)
    else
      redis.call('HSET', rows, session, seq .. rank .. ARGV[i + 4])
      if string.find(marks, 'L', 1, true) then redis.call('SADD', live, session) end
      if string.find(marks, 'U', 1, true) then redis.call('SADD', unread, session) end
      if rank ~= '----------------' then redis.call('ZADD', order, 0, rank .. session) end
    end
  end
end
local most = tonumber(ARGV[6])
if redis.call('ZCARD', order) > most then
  for _, member in ipairs(redis.call('ZRANGE', order, most, -1)) do
    local session = string.sub(member, 17)
    redis.call('HDEL', rows, session)
    if redis.call('SREM', unread, session) == 1 then unread_whole = '0' end
  end
  redis.call('ZREMRANGEBYRANK', order, most, -1)
  -- Not by comparing the two here: Lua compares strings as the locale wants it.
  if redis.call('ZLEXCOUNT', order, '-', '[' .. complete) == most then
    complete = redis.call('ZRANGE', order, -1, -1)[1]
  end
end
redis.call('HSET', meta, 'version', ARGV[5])
redis.call('HSET', meta, 'complete', complete)
redis.call('HSET', meta, 'unread', unread_whole)
redis.call('HSET', meta, 'sizes', sizes())
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[2]) end
return {'TAKEN', upto}
"""
)

# ARGV: format, seconds to keep, first, page, live, unread or rows, and for a page: after, limit;
# for rows: the sessions. Returns version, complete, live, unread, how many rows of the page there
# are, and the rows; nothing if it has nothing of the user. By the thousand: Lua has a bound there.
_READ = (
    _SIZES
    + """
if not usable then return {} end
local answer = {held[2], held[3], held[4], held[5], 0}
local what = ARGV[3]
local function add(sessions, start)
  for i = 1, #sessions, 1000 do
    local part = {}
    for j = i, math.min(i + 999, #sessions) do part[#part + 1] = string.sub(sessions[j], start) end
    for _, row in ipairs(redis.call('HMGET', rows, unpack(part))) do
      answer[#answer + 1] = row and string.sub(row, 37) or ''
    end
  end
end
if what == 'first' or what == 'page' then
  add(redis.call('ZRANGEBYLEX', order, '(' .. ARGV[4], '[' .. held[3], 'LIMIT', 0, ARGV[5]), 17)
  answer[5] = #answer - 5
end
if held[4] == '1' and (what == 'first' or what == 'live') then
  add(redis.call('SMEMBERS', live), 1)
end
if held[5] == '1' and (what == 'unread'
    or what == 'first' and redis.call('SCARD', unread) <= tonumber(ARGV[5])) then
  add(redis.call('SMEMBERS', unread), 1)
elseif what == 'first' then
  answer[4] = '0'
end
if what == 'rows' then
  local sessions = {}
  for i = 4, #ARGV do sessions[#sessions + 1] = ARGV[i] end
  add(sessions, 1)
end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[2]) end
return answer
"""
)


class _Client(Protocol):
    """The part of redis-py that is used here; the package's own types differ between versions."""

    async def execute_command(self, *words: object) -> Any: ...

    async def aclose(self) -> None: ...


class _Answer(NamedTuple):
    """What Redis has of a user, and the rows that were asked for."""

    version: int
    complete: Place
    live: bool
    unread: bool
    page_rows: int
    entries: list[Entry]
    """First those of the page, in order."""

    def until(self, limit: int) -> Place:
        """How far the page is complete."""
        if self.page_rows < limit:
            return self.complete
        return entry_place(self.entries[self.page_rows - 1])


class RedisTier:
    """A Tier in Redis. ``timeout_s`` bounds each call, connecting included."""

    def __init__(
        self,
        url: str,
        cluster: str,
        *,
        timeout_s: float = 1.0,
        rows_max: int = ROWS_PER_USER_MAX,
        kept_s: int = KEPT_S,
        name: str = "redis",
    ) -> None:
        self.name = name
        self._cluster = check_text("cluster id", cluster, NAME_BYTES_MAX, forbidden="{}")
        self._timeout_s = timeout_s
        self._rows_max = rows_max
        self._kept_s = kept_s
        self._client = _connect(url, timeout_s)
        # redis-py's own waiting for a connection has had lost wake-ups when callers are cancelled.
        self._places = asyncio.Semaphore(CONNECTIONS_MAX)

    async def first_page(self, user: str, limit: int, at_least: int) -> Copy | None:
        assert 0 < limit <= PAGE_ROWS_MAX, limit
        found = await self._read(user, "first", "", limit)
        if found is None:
            return None
        complete = {Listing.ALL: found.until(limit)}
        if found.live:
            complete[Listing.LIVE] = END
        if found.unread:
            complete[Listing.UNREAD] = END
        return Copy(found.version, found.entries, complete)

    async def page(self, user: str, after: Place, limit: int, at_least: int) -> Copy | None:
        assert 0 < limit <= PAGE_ROWS_MAX, limit
        found = await self._read(user, "page", _member(after), limit)
        if found is None or after >= found.complete:
            return None
        return Copy(found.version, found.entries, {Listing.ALL: found.until(limit)})

    async def whole(self, user: str, listing: Listing, at_least: int) -> Copy | None:
        live = listing is Listing.LIVE
        found = await self._read(user, "live" if live else "unread")
        if found is None or not (found.live if live else found.unread):
            return None
        return Copy(found.version, found.entries, {listing: END})

    async def rows(self, user: str, sessions: Sequence[str], at_least: int) -> Copy | None:
        found = await self._read(user, "rows", *sessions)
        # A row that is not here may exist: this is the newest part of the mailbox only.
        if found is None or len(found.entries) < len(sessions):
            return None
        return Copy(found.version, found.entries, {})

    async def put(self, user: str, update: Change | Copy) -> Put:
        words: list[object] = [_FORMAT, self._kept_s]
        if isinstance(update, Change):
            words += ["change", update.since, update.version, self._rows_max, "", "", ""]
        else:
            complete = _member(update.complete[Listing.ALL])
            wholes = [int(update.complete.get(w) == END) for w in (Listing.LIVE, Listing.UNREAD)]
            words += ["copy", 0, update.version, self._rows_max, complete, *wholes]
        for entry in update.entries:
            words += _row(entry)
        outcome, version = await self._run(_PUT, user, words)
        return Put(Outcome[outcome.decode()], int(version))

    async def drop(self, user: str) -> None:
        async with self._call():
            await self._client.execute_command("DEL", *self._keys(user))

    async def close(self) -> None:
        # Calls that are under way hold a place; each ends within its timeout.
        for _ in range(CONNECTIONS_MAX):
            await self._places.acquire()
        await self._client.aclose()

    # ---- inside

    async def _read(self, user: str, *what: object) -> _Answer | None:
        answer = await self._run(_READ, user, [_FORMAT, self._kept_s, *what])
        if not answer:
            return None
        try:
            return _Answer(
                version=int(answer[0]),
                complete=_place(answer[1]),
                live=answer[2] == b"1",
                unread=answer[3] == b"1",
                page_rows=int(answer[4]),
                entries=[decode_entry(row) for row in answer[5:] if row],
            )
        except (ValueError, TypeError) as error:
            raise CorruptData(f"Redis holds something else for user {user!r}: {error}") from None

    async def _run(self, script: str, user: str, words: Sequence[object]) -> Any:
        """The answer of a script; Redis may have forgotten it, or never have seen it."""
        keys = self._keys(user)
        async with self._call():
            try:
                return await self._client.execute_command(
                    "EVALSHA", _SHA[script], len(keys), *keys, *words
                )
            except NoScriptError:
                return await self._client.execute_command("EVAL", script, len(keys), *keys, *words)

    def _keys(self, user: str) -> list[str]:
        return [f"im:{{{self._cluster}:{user}}}:{kind}" for kind in _KINDS]

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s), self._places:
                yield
        except (RedisError, OSError) as error:
            why = str(error) or f"no answer within {self._timeout_s} s"
            raise NotReachable(f"the hot tier does not answer: {why}") from error


_SHA = {script: hashlib.sha1(script.encode()).hexdigest() for script in (_PUT, _READ)}


def _connect(url: str, timeout_s: float) -> _Client:
    try:
        client = Redis.from_url(
            url,
            # A Redis that was restarted leaves us connections that are dead. One try more, with
            # a fresh one, or each of them would count as a failure. Every call may be repeated.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            socket_keepalive=True,
            max_connections=CONNECTIONS_MAX,
        )
    except ValueError as error:
        raise SetupError(f"the address of the hot tier is wrong: {error}") from error
    return cast(_Client, client)


def _member(place: Place) -> bytes:
    """Sorts by its bytes as the place does."""
    return f"{RANK_MAX + place[0]:016x}{place[1]}".encode()


def _place(member: bytes) -> Place:
    return int(member[:16], 16) - RANK_MAX, member[16:].decode()


def _row(entry: Entry) -> tuple[object, ...]:
    live = bool(entry.flags & Flag.LIVE)
    marks = "L" if live else "U" if entry.unread else ""
    rank = "-" * 16 if live else f"{RANK_MAX - entry.rank:016x}"
    if not entry.rank:
        marks = "X"
    return entry.session, f"{entry.seq:020d}", rank, marks, encode_entry(entry)
