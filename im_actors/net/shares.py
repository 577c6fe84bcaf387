"""How much one address and one user may have of a door, so that nobody has all of it.

Pure: the caller brings the time, and closes whom this refuses. Each gateway counts for itself.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from im_actors.core.ratelimit import TokenBucket
from im_actors.errors import ImError, Overloaded, RateLimited, SetupError

CROWDED_MS = 10_000
"""When who has too many connections may come back with one more: it takes the end of another."""
KEPT_MAX = 100_000
"""Names without a connection that are remembered until their time is over; then the oldest go."""
IPV6_HOST_BITS = 64
"""One host has all addresses of such a network to choose from (RFC 6177), so it counts as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareSettings:
    """What one may have of one gateway. Addresses of the gateway's own host are not counted, as a
    proxy there stands for many; for one on another host these have to be raised."""

    connections_per_address: int = 2_000
    strangers_per_address: int = 256
    """Connections of one address that have not said HELLO yet, or are still in their TLS
    handshake."""
    attempts_per_s: int = 100
    """New connections of one address per second, in the long run."""
    attempts_burst: int = 1_000
    """The same, at once: a gateway starts again, and an office comes back."""
    connections_per_user: int = 100
    """Of users who prove it with a token: others could use up somebody else's."""
    sends_per_s: int = 50_000
    """SEND entries of one user per second in the long run; more are RATE_LIMITED. Without tokens:
    of one connection."""
    sends_burst: int = 50_000
    """The same, at once."""

    def validate(self) -> ShareSettings:
        """Itself; SetupError when a value makes no sense."""
        for name in self.__slots__:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SetupError(f"shares: {name} is {value!r}, it must be a number from 1 on")
        return self


class _Share:
    __slots__ = ("bucket", "connections", "welcomed")

    def __init__(self, bucket: TokenBucket) -> None:
        self.bucket = bucket
        self.connections = 0
        self.welcomed = 0


class _Table:
    """Shares by name. One without a connection is kept until its bucket is full again, or coming
    anew would be the way to a new bucket."""

    def __init__(self, rate_per_s: int, burst: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._full_ms = 1 + 2 * burst * 1_000 // rate_per_s
        """Twice over: a burst may have left a debt of another one."""
        self._kept: dict[str, int] = {}
        """Since when there is no connection, the oldest first."""
        self.shares: dict[str, _Share] = {}

    def bucket(self) -> TokenBucket:
        return TokenBucket(self._rate_per_s, self._burst)

    def enter(self, name: str) -> _Share:
        share = self.shares.get(name)
        if share is None:
            share = self.shares[name] = _Share(self.bucket())
        self._kept.pop(name, None)
        share.connections += 1
        return share

    def leave(self, name: str, now_ms: int) -> None:
        share = self.shares[name]
        share.connections -= 1
        if not share.connections:
            self._kept[name] = now_ms

    def forget(self, now_ms: int) -> None:
        while self._kept:
            name, since_ms = next(iter(self._kept.items()))
            if now_ms - since_ms < self._full_ms and len(self._kept) <= KEPT_MAX:
                return
            del self._kept[name], self.shares[name]

    def __len__(self) -> int:
        return len(self.shares) - len(self._kept)


class Shares:
    """Of one gateway. ``proven``: users have tokens, so what one does is his."""

    def __init__(self, settings: ShareSettings, strangers_max: int, proven: bool) -> None:
        self._settings = settings
        self._strangers_max = strangers_max
        self._proven = proven
        self._addresses = _Table(settings.attempts_per_s, settings.attempts_burst)
        self._users = _Table(settings.sends_per_s, settings.sends_burst)
        self.connections = 0
        """That were let in and are not gone, of strangers too."""
        self.welcomed = 0
        self.refused = 0

    @property
    def strangers(self) -> int:
        return self.connections - self.welcomed

    @property
    def users(self) -> int:
        """Who is connected."""
        return len(self._users)

    # ---- connections

    def arrived(self, host: str, now_ms: int) -> ImError | None:
        """A connection from an IP address: count it, or say why not and when it may come back."""
        refusal = self._arrived(host, now_ms)
        if refusal is not None:
            self.refused += 1
            return refusal
        self.connections += 1
        return None

    def _arrived(self, host: str, now_ms: int) -> ImError | None:
        if self.strangers >= self._strangers_max:
            return Overloaded("too many connections have not said HELLO yet")
        name = network_of(host)
        if not name:
            return None
        share, settings = self._addresses.enter(name), self._settings
        refusal: ImError | None = None
        if wait_ms := share.bucket.take(1, now_ms):
            refusal = RateLimited("too many connections a second from your address", wait_ms)
        elif share.connections > settings.connections_per_address:
            refusal = Overloaded("your address has too many connections here", CROWDED_MS)
        elif share.connections - share.welcomed > settings.strangers_per_address:
            refusal = Overloaded(
                "too many connections of your address have not said HELLO yet", CROWDED_MS
            )
        if refusal is not None:
            self._addresses.leave(name, now_ms)
        return refusal

    def gone(self, host: str, now_ms: int) -> None:
        """One that ``arrived`` let in is no more."""
        self.connections -= 1
        if name := network_of(host):
            self._addresses.leave(name, now_ms)

    # ---- clients

    def greeted(self, host: str, user: str, now_ms: int) -> TokenBucket:
        """A connection's HELLO is good: what its sends are taken from. Overloaded: its user has too
        many connections."""
        share = self._users.enter(user)
        if self._proven and share.connections > self._settings.connections_per_user:
            self._users.leave(user, now_ms)
            self.refused += 1
            raise Overloaded(f"user {user!r} has too many connections here", CROWDED_MS)
        self._welcome(host, 1)
        return share.bucket if self._proven else self._users.bucket()

    def left(self, host: str, user: str, now_ms: int) -> None:
        """A connection that was ``greeted`` is about to be ``gone``."""
        self._users.leave(user, now_ms)
        self._welcome(host, -1)

    def _welcome(self, host: str, count: int) -> None:
        self.welcomed += count
        if name := network_of(host):
            self._addresses.shares[name].welcomed += count

    def forget(self, now_ms: int) -> None:
        """Let go of who is away for long enough. Call it now and then."""
        self._addresses.forget(now_ms)
        self._users.forget(now_ms)


def network_of(host: str) -> str:
    """The name under which an address is counted; empty: it is not, being this host's own or
    none."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback:
        return ""
    if address.version == 4:
        return str(address)
    return str(ipaddress.IPv6Network((address, IPV6_HOST_BITS), strict=False))
