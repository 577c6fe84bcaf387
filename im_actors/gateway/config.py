"""The settings of a gateway: every wait and every bound, with its unit and its reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from im_actors.core.formats import Formats
from im_actors.core.lines import LineSettings
from im_actors.errors import SetupError
from im_actors.net.connection import BUFFERED_BYTES_MAX, WRITE_HIGH_BYTES
from im_actors.net.shares import ShareSettings
from im_actors.wire.limits import Limits
from im_actors.wire.messages import VERSIONS

TOKEN_SECRET_BYTES_MIN = 32
"""RFC 7518, section 3.2: a key for HS256 has at least the size of the hash."""
_BYTES_MAX = 1 << 40
_COUNT_MAX = 100_000_000
_TIME_MS_MAX = 3_600_000
_NOT_NUMBERS = frozenset(
    (
        *("limits", "versions", "lines", "shares", "token_secret", "insecure_open", "host_label"),
        *("mailbox_redis", "mailbox_cluster", "mailbox_dir", "large_accounts"),
    )
)


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the time comes from; tests bring their own."""

    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    """Milliseconds since 1970, for people."""
    monotonic_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000
    """Milliseconds that never go back, for waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """What one gateway does to its clients, and how long it waits for shards and replicas."""

    limits: Limits = field(default_factory=Limits)
    """What one connection may do; WELCOME tells it."""
    versions: Formats = VERSIONS
    """Of the clients' protocol."""

    # Who may come in.
    token_secret: str = field(default="", repr=False)
    """Signs the tokens of clients (HS256), at least 32 bytes. Empty: clients are taken at their
    word, which is allowed on loopback addresses only."""
    insecure_open: bool = False
    """Listen on any address without a token secret. For closed test networks."""
    connections_max: int = 20_000
    """Connections at a time; further ones are told OVERLOADED and closed."""
    strangers_max: int = 2_048
    """Connections at a time that have not said HELLO yet: each may hold a frame's memory."""
    shares: ShareSettings = field(default_factory=ShareSettings)
    """What one address and one user may have of all that."""

    # Sending.
    asks_per_s: int = 5_000
    """What one connection may ask for besides good sends, per second in the long run: a name in
    FOLLOW or UNFOLLOW counts 1, a PULL 5 and 1 more for each 4 KiB of its page, an entry that gets
    a NACK 1, or 10 if it is OVERLOADED, anything else 1. Who asks for more is not read from until
    the time for it has come."""
    asks_burst: int = 5_000
    """The same, at once."""
    outstanding_per_connection: int = 8_192
    """Entries of one connection without an answer: 64 sessions' full windows."""
    outstanding_rows_max: int = 32_768
    """Entries of all connections without an answer. Above it they are OVERLOADED: a shard that does
    10,000 a second would answer a later one after ``answer_ms``, when it is offered again. Only a
    line of business that has less than its share may go above it, by that share."""
    lines: LineSettings = field(default_factory=LineSettings)
    """How the lines of business share them when more than one is busy."""
    outstanding_bytes_max: int = 48 * 1024 * 1024
    """Bytes of the bodies of those. Less than a link may have unread, so that a shard that stands
    still for a moment does not lose its link over it."""
    answer_ms: int = 3_000
    """A shard that is connected and leaves a row unanswered for so long is asked again."""
    retry_ms_min: int = 50
    """First wait before rows of a slot that does not serve are offered again; it doubles."""
    retry_ms_max: int = 500
    """Longest wait of those."""
    hold_ms: int = 10_000
    """How long a row is offered again before its client is told that the outcome is unknown."""
    retry_after_ms: int = 500
    """What a client is asked to wait after OVERLOADED, SLOT_MOVING and UNKNOWN."""

    # Following.
    follows_max: int = 500_000
    """Follows, counted as pairs of connection and session."""
    watch_ms: int = 1_000
    """A WATCH that its shard has not answered is sent again after this."""
    slow_reader_bytes: int = 1024 * 1024
    """Unread bytes of a connection above which pushes to it are dropped."""
    slow_reader_ms: int = 60_000
    """A connection that has been behind for so long without a break is closed."""
    buffered_bytes_max: int = 8 * 1024 * 1024
    """Unread bytes above which a connection is cut at once: its ACKs pile up."""

    # Reading history.
    host_label: str = ""
    """The host that this gateway runs on, as replicas name theirs: those are asked first."""
    read_ms: int = 1_000
    """A replica that has not answered a read by then is passed over."""
    read_tries: int = 3
    """Replicas asked for one page at most."""
    pulls_per_connection: int = 16
    """PULLs of one connection without an answer; further ones are OVERLOADED."""
    pulls_max: int = 1_024
    """PULLs of all connections without an answer."""

    # The user side; without it when ``limits.queries`` is 0.
    queries_max: int = 4_096
    """QUERYs of all connections without an answer."""
    live_sessions_max: int = 40_000
    """Groups and channels of notices that nobody here follows and whose last events are kept for
    conversation lists."""
    live_reads_max: int = 64
    """Groups that are being read for that at a time."""
    live_ms: int = 2_000
    """How long one waits for a group to be read before it is NOT_REACHABLE."""
    mailbox_head_ms: int = 500
    """How long a query of who has just come waits for the head of his mailbox."""
    signal_ms: int = 1_000
    """A connection's signals of one session that come faster are dropped."""
    signals_per_s: int = 2_000
    """Signals that pass through this gateway; more are dropped."""
    signal_hearers_max: int = 500
    """In a group of more members there are no signals, and in a session with more followers here
    they are not told to these."""
    presence_ms: int = 300
    """How long a shard is waited for that is asked who is connected elsewhere."""
    mailbox_redis: str = field(default="", repr=False)
    """URL of a Redis that keeps copies of conversation lists. Empty: none."""
    mailbox_cluster: str = "im"
    """Tells the copies of several clusters in one Redis apart."""
    mailbox_dir: str = ""
    """Directory for a file with copies of conversation lists; no other gateway of the same name may
    use it. Empty: none."""
    mailbox_rows_max: int = 500_000
    """Rows of conversation lists in memory, about 1 KB each. Lists above it are read again from the
    Redis, the file or the replicas when somebody asks."""
    large_accounts: frozenset[str] = frozenset()
    """Users whose conversation lists are loaded at the start and kept in memory."""

    # Leaving.
    drain_ms: int = 2_000
    """How long stopping waits for rows that shards have not answered yet."""
    reconnect_after_ms: int = 1_000
    """BYE tells each client a random time up to this, so that they do not all come at once."""

    # Looking after things.
    tick_ms: int = 25
    """Between two looks at what is overdue with shards and replicas."""
    sweep_ms: int = 500
    """Between two looks at all connections: silent, or behind."""

    def validate(self) -> GatewayConfig:
        """Itself; SetupError when a value or a pair of values makes no sense."""
        self.limits.validate()
        self.lines.validate()
        self.shares.validate()
        for name in self.__slots__:
            value = getattr(self, name)
            if name in _NOT_NUMBERS:
                continue
            if name.endswith("_ms") or "_ms_" in name:
                highest = _TIME_MS_MAX
            else:
                highest = _BYTES_MAX if "bytes" in name else _COUNT_MAX
            if type(value) is not int or not 1 <= value <= highest:
                raise SetupError(f"gateway: {name} is {value!r}, it must be 1 to {highest}")
        self._check_secret()
        self._check_pairs()
        return self

    def _check_secret(self) -> None:
        if not isinstance(self.token_secret, str):
            kind = type(self.token_secret).__name__
            raise SetupError(f"gateway: token_secret must be a str, and is of type {kind}")
        size = len(self.token_secret.encode())
        if self.token_secret and size < TOKEN_SECRET_BYTES_MIN:
            raise SetupError(
                f"gateway: token_secret has {size} bytes, it must have {TOKEN_SECRET_BYTES_MIN}"
                " or more; 'openssl rand -hex 32' makes a good one"
            )
        if self.token_secret and self.insecure_open:
            raise SetupError("gateway: insecure_open and a token_secret exclude each other")

    def _check_pairs(self) -> None:
        window = self.limits.window
        for low, high in (
            ("retry_ms_min", "retry_ms_max"),
            ("retry_ms_max", "hold_ms"),
            ("answer_ms", "hold_ms"),
            ("outstanding_per_connection", "outstanding_rows_max"),
            ("pulls_per_connection", "pulls_max"),
            ("tick_ms", "sweep_ms"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise SetupError(f"gateway: {low} is above {high}")
        if self.outstanding_per_connection < window or self.shares.sends_burst < window:
            raise SetupError(
                f"gateway: outstanding_per_connection and shares: sends_burst must be at least"
                f" {window}, the window that clients are told"
            )
        if self.outstanding_bytes_max > BUFFERED_BYTES_MAX:
            raise SetupError(
                f"gateway: outstanding_bytes_max is above {BUFFERED_BYTES_MAX}, which is what a"
                " link to a shard may have unread"
            )
        if self.slow_reader_bytes < WRITE_HIGH_BYTES:
            # Below it nobody would notice that the reader has caught up.
            raise SetupError(f"gateway: slow_reader_bytes must be at least {WRITE_HIGH_BYTES}")
        if self.buffered_bytes_max < self.slow_reader_bytes + 2 * self.limits.frame_bytes:
            raise SetupError(
                "gateway: buffered_bytes_max must have room for slow_reader_bytes and two frames"
            )
