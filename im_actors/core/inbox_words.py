"""What goes into the inbox machine and what comes out of it; see ``core.inbox``.

Events are past tense, effects are imperative; the effects of one call are carried out in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from im_actors.core.model import Event
from im_actors.errors import ImError

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A reader begins. ``after``: the seq before the first one it wants; None: only what is new."""

    stream: int
    session: str
    after: int | None


@dataclass(frozen=True, slots=True)
class StreamClosed:
    stream: int


@dataclass(frozen=True, slots=True)
class LetIn:
    """The user is a member of this group again, as his mailbox says."""

    session: str


@dataclass(frozen=True, slots=True)
class CacheRead:
    """The answer to ReadCache: ascending, VOIDs included."""

    stream: int
    events: Sequence[Event]


@dataclass(frozen=True, slots=True)
class Taken:
    """The reader has consumed this many of the events that were delivered to it."""

    stream: int
    count: int


@dataclass(frozen=True, slots=True)
class Connected:
    """The server said WELCOME; it answers a PULL with at most ``pull_events`` and takes at most
    ``follow_sessions`` names in one FOLLOW."""

    pull_events: int
    follow_sessions: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    pass


@dataclass(frozen=True, slots=True)
class HeadsReceived:
    heads: Iterable[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class FollowRefused:
    """The server does not let this user follow the session."""

    session: str
    error: ImError


@dataclass(frozen=True, slots=True)
class Pushed:
    events: Sequence[Event]


@dataclass(frozen=True, slots=True)
class Paged:
    """The answer to a Pull, of one session, ascending."""

    request: int
    head: int
    code: int
    events: Sequence[Event]
    first: int = 1
    """What is below is not for this reader, as the server said."""


@dataclass(frozen=True, slots=True)
class Ticked:
    pass


InboxEvent = (
    StreamOpened | StreamClosed | LetIn | CacheRead | Taken | Connected | Disconnected
    | HeadsReceived | FollowRefused | Pushed | Paged | Ticked
)  # fmt: skip


# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Follow:
    """Send FOLLOW; HEADS is the answer. Following twice is harmless."""

    sessions: list[str]


@dataclass(frozen=True, slots=True)
class Unfollow:
    sessions: list[str]


@dataclass(frozen=True, slots=True)
class Pull:
    """Send PULL for the oldest ``limit`` events above ``after``; request ids are even."""

    request: int
    session: str
    after: int
    limit: int


@dataclass(frozen=True, slots=True)
class ReadCache:
    """Read the local store for events above ``after``; feed ``CacheRead`` back, also when empty."""

    stream: int
    session: str
    after: int
    limit: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand events to the reader: the next ones in order, without VOIDs."""

    stream: int
    events: list[Event]


@dataclass(frozen=True, slots=True)
class FailStream:
    """The server will never let this reader read. The stream is closed."""

    stream: int
    error: ImError


@dataclass(frozen=True, slots=True)
class Warn:
    """Something that the user's operator should read; the inbox goes on by itself."""

    error: ImError


InboxEffect = Follow | Unfollow | Pull | ReadCache | Deliver | FailStream | Warn
