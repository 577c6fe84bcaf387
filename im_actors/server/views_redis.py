"""The views in Redis 5 or newer, for clusters of several hosts.

    im:{CLUSTER}:store      the identity of the store
    im:{CLUSTER}:view:7     the view of slot 7

The braces are a hash tag, so that one script may touch all keys of a cluster. Every change is one
script: it compares whole records byte by byte and checks, in the same step, that it runs in the
store and in the Redis process that were looked at when the connection was made.

What makes an answer durable is ``appendfsync always``: Redis then writes and fsyncs its log before
it sends the replies of the commands in it. A reply is therefore never ahead of the disk, not even
the reply to a read of what another client has just written. WAIT or replicas of Redis do not
replace it: a failover to an asynchronous replica forgets answered swaps. Use one instance, with a
disk of its own; while it is down no view changes, and slots that have an owner go on serving.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from im_actors.core.model import NAME_BYTES_MAX, SLOTS_MAX, View, check_text
from im_actors.errors import (
    CorruptData,
    ImError,
    NotReachable,
    SetupError,
    ShuttingDown,
    Unknown,
)
from im_actors.server.settings import without_password
from im_actors.server.views import (
    TIMEOUT_S,
    check_slot,
    check_swap,
    check_view,
    decode_view,
    encode_view,
    pack,
    store_lost,
    unpack,
    view_lost,
)

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 8
RESTARTS_MAX = 3
"""How many restarts of Redis one call follows before it gives up."""

SAFE_SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "always",
    # "yes" would suspend every fsync while the log is rewritten.
    "no-appendfsync-on-rewrite": "no",
    # Anything else may delete views when the memory is full.
    "maxmemory-policy": "noeviction",
}

# Makes the store, or says which one is there. KEYS: store, all views. ARGV: the new store's record.
# Views without an identity are what somebody's deletion left: nothing to build on.
_CLAIM = """
local held = redis.call('GET', KEYS[1])
if held then return {'HELD', held} end
if redis.call('EXISTS', unpack(KEYS, 2)) > 0 then return {'ORPHANS'} end
redis.call('SET', KEYS[1], ARGV[1])
return {'HELD', ARGV[1]}
"""

# KEYS: store, views. ARGV: the store's record. GET and not MGET: it refuses a value of another
# type, which MGET would show as absent.
_READ = """
local store = redis.call('GET', KEYS[1])
if store ~= ARGV[1] then return {'STORE', store} end
local held = {'HELD'}
for i = 2, #KEYS do held[i] = redis.call('GET', KEYS[i]) end
return held
"""

# KEYS: store, view. ARGV: the store's record, the process that was checked ('' if that is not
# known), what the view has to be ('': there is none), what it becomes.
# The SET is the last command, so a script that fails has changed nothing.
_CHANGE = """
if ARGV[2] ~= '' then
  local server = redis.call('INFO', 'server')
  if not string.find(server, 'run_id:' .. ARGV[2], 1, true) then return {'RESTARTED'} end
end
local store = redis.call('GET', KEYS[1])
if store ~= ARGV[1] then return {'STORE', store} end
local held = redis.call('GET', KEYS[2])
local expected
if ARGV[3] == '' then expected = not held else expected = held == ARGV[3] end
if not expected then return {'HELD', held} end
redis.call('SET', KEYS[2], ARGV[4])
return {'HELD', ARGV[4]}
"""


class _Client(Protocol):
    """The part of redis-py that is used here; the package's own types differ between versions."""

    async def execute_command(self, *words: object) -> Any: ...

    async def aclose(self) -> None: ...


class RedisViewStore:
    """A ViewStore in Redis. ``timeout_s`` bounds each call, connecting included.

    The settings are checked when the store is opened, and again before the first change that meets
    a restarted Redis. ``allow_unsafe`` turns the refusal into a warning. A CONFIG SET at run time
    is not noticed.
    """

    def __init__(
        self, url: str, cluster: str, timeout_s: float = TIMEOUT_S, *, allow_unsafe: bool = False
    ) -> None:
        self._cluster = check_text("cluster id", cluster, NAME_BYTES_MAX, forbidden="{}")
        self._timeout_s = timeout_s
        self._allow_unsafe = allow_unsafe
        self._client = _connect(url, timeout_s)
        self._where = without_password(url)
        # redis-py's own waiting for a connection has had lost wake-ups when callers are cancelled.
        self._places = asyncio.Semaphore(CONNECTIONS_MAX)
        self._process = ""
        self._store = b""
        self._identity = ""
        self._closed = False

    @property
    def identity(self) -> str:
        return self._identity

    async def open(self, expected_identity: str | None = None) -> None:
        """Before anything else; the errors are those of ``open_view_store``."""
        try:
            async with self._call(NotReachable):
                await self._check_server()
                await self._check_identity(expected_identity)
        except BaseException:
            await self.close()
            raise

    async def read(self, slot: int) -> View | None:
        check_slot(slot)
        async with self._call(NotReachable):
            _, record = await self._eval(_READ, [_view(slot)], [self._store])
        return None if record is None else self._decoded(slot, record)

    async def read_all(self) -> dict[int, View]:
        # By the keys that there can be, and not by a scan, which is no picture of one moment.
        async with self._call(NotReachable):
            _, *records = await self._eval(_READ, _ALL_VIEWS, [self._store])
        return {
            slot: self._decoded(slot, record)
            for slot, record in enumerate(records)
            if record is not None
        }

    async def create(self, view: View) -> View:
        check_view(view)
        return await self._change(view.slot, b"", encode_view(view))

    async def swap(self, old: View, new: View) -> View:
        check_swap(old, new)
        return await self._change(old.slot, encode_view(old), encode_view(new))

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            # Calls that are under way hold a place; each ends within its timeout.
            for _ in range(CONNECTIONS_MAX):
                await self._places.acquire()
            await self._client.aclose()

    # -- calls ---------------------------------------------------------------------------------

    async def _change(self, slot: int, old: bytes, new: bytes) -> View:
        async with self._call(Unknown):
            for _ in range(RESTARTS_MAX):
                values = [self._store, self._process.encode(), old, new]
                outcome, *held = await self._eval(_CHANGE, [_view(slot)], values)
                if outcome != b"RESTARTED":
                    break
                # Nothing was written: Redis is another process now, perhaps with other settings.
                await self._check_server()
            else:
                raise Unknown(f"the view store {self._where} restarts again and again")
        if held[0] is None:
            raise view_lost(self._where, slot)
        return self._decoded(slot, held[0])

    async def _eval(self, script: str, names: list[str], values: list[bytes]) -> list[bytes | None]:
        """A script's answer, its first word being the outcome. Sent as a whole every time: a
        restarted Redis has forgotten the scripts that it knew."""
        keys = [f"im:{{{self._cluster}}}:{name}" for name in ("store", *names)]
        answer: list[bytes | None] = await self._client.execute_command(
            "EVAL", script, len(keys), *keys, *values
        )
        if answer[0] == b"STORE":
            raise self._store_lost(self._identity, answer[1])
        return answer

    @asynccontextmanager
    async def _call(self, lost: type[ImError]) -> AsyncIterator[None]:
        """The bounds of one call, and its errors; ``lost`` when no answer came."""
        if self._closed:
            raise ShuttingDown(f"the view store {self._where} is closed")
        try:
            async with asyncio.timeout(self._timeout_s), self._places:
                yield
        except (AuthenticationError, NoPermissionError) as error:
            raise SetupError(f"the view store {self._where} refuses us: {error}") from error
        except ResponseError as error:
            if "wrong kind of value" in str(error):
                raise CorruptData(
                    f"the view store {self._where} has a key of cluster {self._cluster!r} that is "
                    f"no string: somebody else writes there ({error})"
                ) from error
            raise lost(f"the view store {self._where} answers: {error}") from error
        except (RedisError, OSError) as error:
            why = str(error) or f"no answer within {self._timeout_s} s"
            raise lost(f"the view store {self._where} does not answer: {why}") from error

    def _decoded(self, slot: int, record: bytes) -> View:
        return decode_view(slot, record, f"view {slot} of cluster {self._cluster!r} in Redis")

    # -- who answers ---------------------------------------------------------------------------

    async def _check_identity(self, expected: str | None) -> None:
        if expected is None:
            # Lost answer: the next try finds what this one made.
            fresh = pack([self._cluster, uuid.uuid4().hex])
            outcome, held = await self._claimed(fresh)
            if outcome == b"ORPHANS":
                raise CorruptData(
                    f"the view store {self._where} has views of cluster {self._cluster!r} and has "
                    "lost its identity: keys were deleted. Bring its data back; the replicas "
                    "keep every message meanwhile"
                )
        else:
            held = await self._client.execute_command("GET", f"im:{{{self._cluster}}}:store")
        identity = self._identity_in(held)
        if held is None or identity is None or expected not in (None, identity):
            raise self._store_lost(str(expected), held)
        self._store, self._identity = held, identity

    async def _claimed(self, record: bytes) -> tuple[bytes | None, bytes | None]:
        outcome, *held = await self._eval(_CLAIM, _ALL_VIEWS, [record])
        return outcome, held[0] if held else None

    def _identity_in(self, record: bytes | None) -> str | None:
        if record is None:
            return None
        _, identity = unpack(record, f"the identity of cluster {self._cluster!r} in Redis")
        return str(identity)

    def _store_lost(self, expected: str, held: bytes | None) -> ImError:
        return store_lost(self._where, self._cluster, expected, self._identity_in(held))

    async def _check_server(self) -> None:
        """Look at the process that answers; SetupError when it may forget what it has answered."""
        # The process first: should it restart in between, the next change looks again.
        process = str((await self._info("server")).get("run_id", ""))
        if (await self._info("replication")).get("role", "master") != "master":
            raise SetupError(
                f"the view store {self._where} is a replica of another Redis: name the master"
            )
        found = await self._settings()
        unknown = [name for name in SAFE_SETTINGS if name not in found]
        wrong = [name for name in found if found[name] != SAFE_SETTINGS[name]]
        if unknown:
            log.warning(
                "the view store %s does not let us read %s; make sure that it is set to %s",
                self._where,
                ", ".join(unknown),
                ", ".join(f"{name} {SAFE_SETTINGS[name]}" for name in unknown),
            )
        if wrong:
            self._unsafe({name: found[name] for name in wrong})
        self._process = process

    def _unsafe(self, wrong: Mapping[str, str]) -> None:
        changes = ", ".join(
            f"{name} {SAFE_SETTINGS[name]} (now {value})" for name, value in wrong.items()
        )
        text = f"the view store {self._where} can forget what it has answered; set {changes}"
        if not self._allow_unsafe:
            raise SetupError(f"{text}, in its configuration file too")
        log.warning("%s. Going on, because unsafe settings are allowed", text)

    async def _settings(self) -> dict[str, str]:
        """The settings of SAFE_SETTINGS that Redis lets us see."""
        found: dict[str, str] = {}
        memory = (await self._info("memory")).get("maxmemory_policy")
        log_on = (await self._info("persistence")).get("aof_enabled")
        if memory is not None:
            found["maxmemory-policy"] = str(memory)
        if log_on is not None:
            found["appendonly"] = "yes" if str(log_on) == "1" else "no"
        for name in SAFE_SETTINGS:
            value = await self._config(name)
            if value is not None:
                found[name] = value
        return found

    async def _info(self, section: str) -> Mapping[str, object]:
        try:
            info: Mapping[str, object] = await self._client.execute_command("INFO", section)
        except ResponseError as error:
            log.warning("the view store %s refuses INFO %s: %s", self._where, section, error)
            return {}
        return info

    async def _config(self, name: str) -> str | None:
        try:
            # One word, "CONFIG", so that redis-py hands the answer over as it came.
            answer = await self._client.execute_command("CONFIG", "GET", name)
        except ResponseError:
            return None
        pairs = (
            answer if isinstance(answer, Mapping) else dict(zip(*[iter(answer)] * 2, strict=True))
        )
        value = pairs.get(name.encode())
        return None if value is None else bytes(value).decode()


def _view(slot: int) -> str:
    return f"view:{slot}"


_ALL_VIEWS = [_view(slot) for slot in range(SLOTS_MAX)]


def _connect(url: str, timeout_s: float) -> _Client:
    try:
        client = Redis.from_url(
            url,
            # A change must not be sent twice behind our back, nor a read outlast its timeout.
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            socket_keepalive=True,
            max_connections=CONNECTIONS_MAX,
        )
    except ValueError as error:
        raise SetupError(f"the address of the view store is wrong: {error}") from error
    return cast(_Client, client)
