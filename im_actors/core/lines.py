"""The lines of business, and how they share what is limited.

A rush in one must not slow another. So while several have something to do each has its share, and
what is above it waits where it is in nobody's way (``gateway.turns``), or is refused. A line that
is alone has everything.

    direct   direct:A/B and user:A: two people talk, and keep their own mailboxes
    group    group:G and open sessions: many may write, and many read
    notice   notice:CHANNEL/USER: what services tell
    batch    batch:B: contents and recipients of batch messages

Open sessions are with the groups because they are of their form, one session and many writers; a
line of their own would only make every other share smaller. Read positions and pins are with
direct messages: they come with people's own conversations, a few for each message, and an account
whose program moves them without end has to be held by something.

What a batch sends to its recipients starts in a shard and waits there (``server.batches``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from im_actors.core.names import SessionKind, session_kind
from im_actors.errors import SetupError

_SESSIONS_KNOWN_MAX = 16_384
LONG_BODY_BITS = 12
"""A body counts once more for every 4 kB."""


class Line(IntEnum):
    """One line of business."""

    DIRECT = 0
    GROUP = 1
    NOTICE = 2
    BATCH = 3


LINES = len(Line)
_LINE_OF = {
    SessionKind.OPEN: Line.GROUP,
    SessionKind.DIRECT: Line.DIRECT,
    SessionKind.GROUP: Line.GROUP,
    SessionKind.NOTICE: Line.NOTICE,
    SessionKind.MAILBOX: Line.DIRECT,
    SessionKind.BATCH: Line.BATCH,
    SessionKind.SLOT: Line.BATCH,
    SessionKind.READS: Line.GROUP,
}


@lru_cache(_SESSIONS_KNOWN_MAX)
def line_of(session: str) -> Line:
    """The line that a session belongs to, by its id."""
    return _LINE_OF[session_kind(session)]


def weight_of(body: bytes) -> int:
    """How many rows a row with this body counts for."""
    return 1 + (len(body) >> LONG_BODY_BITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineSettings:
    """The quotas of the lines of business."""

    direct: int = 4
    """Parts of what there is, when all lines want something. The parts of lines that want nothing
    are divided among the others."""
    group: int = 4
    notice: int = 2
    batch: int = 2
    rows: int = 1_024
    """Rows in flight from one gateway, of all lines together, while more than one is busy. A new
    row waits about as long as these take: fewer let a rush in another line be felt less, and let
    it have less of what the cluster can do. A body counts once more for every 4 kB."""
    busy_ms: int = 1_000
    """A line is busy until so long after its last row."""

    def validate(self) -> LineSettings:
        """Itself; SetupError when a value makes no sense."""
        for line in Line:
            part = getattr(self, line.name.lower())
            if type(part) is not int or not 1 <= part <= 1_000:
                raise SetupError(f"lines: {line.name.lower()} is {part!r}, it must be 1 to 1000")
        if type(self.rows) is not int or not 64 <= self.rows <= 1_000_000:
            raise SetupError(f"lines: rows is {self.rows!r}, it must be 64 to 1000000")
        if type(self.busy_ms) is not int or not 0 <= self.busy_ms <= 3_600_000:
            raise SetupError(f"lines: busy_ms is {self.busy_ms!r}, it must be 0 to 3600000")
        return self

    def shares(self, total: int, busy: int) -> tuple[int, ...]:
        """Of ``total``, by line: what each may have while the lines of the bits ``busy`` want
        something. At least 1."""
        parts = (self.direct, self.group, self.notice, self.batch)
        shares = []
        for line in Line:
            of = sum(parts[other] for other in Line if other == line or busy >> other & 1)
            shares.append(max(1, total * parts[line] // of))
        return tuple(shares)


class Lines:
    """How many rows of each line are open in one place, and how many may be.

    Who takes rows adds to ``open`` and sets ``used_ms`` by himself: it is done for each message.
    """

    def __init__(self, settings: LineSettings, most: int, shared: int) -> None:
        """``most``: what a line may have open that is alone; ``shared``: what several divide."""
        self.open = [0] * LINES
        self.used_ms = [-settings.busy_ms - 1] * LINES
        self._busy_ms = settings.busy_ms
        shares = [settings.shares(shared, busy) for busy in range(1 << LINES)]
        self._limits = [_but_alone(busy, row, most) for busy, row in enumerate(shares)]
        self._limits_full = [_but_alone(busy, row, 0) for busy, row in enumerate(shares)]

    def limits(self, now_ms: int, full: bool = False) -> list[int]:
        """By line: how many may be open; a list of one's own. ``full``: there is no room for more,
        but for lines that have less than their share."""
        since = now_ms - self._busy_ms
        busy = 0
        for line in range(LINES):
            if self.open[line] or self.used_ms[line] >= since:
                busy |= 1 << line
        return list((self._limits_full if full else self._limits)[busy])


def _but_alone(busy: int, shares: tuple[int, ...], alone: int) -> tuple[int, ...]:
    return tuple(alone if busy in (0, 1 << line) else shares[line] for line in Line)
