"""Who may do what in a session: decided by the slot's owner, once, when a send is new (design 9).

A decision is pure: it looks at what the owner knows of the session and at nothing else. What it
has to know besides, it asks for (``Needs``), and is asked again when that has come. A resend of
what was accepted never comes here: it is answered with its seq, whatever the rights are by then.
So a refusal is definite (P6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from im_actors.core.facts import Fact
from im_actors.core.model import EventKind
from im_actors.errors import Forbidden, ImError

SERVER = "*"
"""The device address of events that servers make. Without a "/" it is nobody's."""


class EventHead(NamedTuple):
    """What a recall or an edit has to know of the event that it is about."""

    seq: int
    kind: int
    device: str
    time_ms: int


class Known(NamedTuple):
    """What the owner knows of a session, the changes included that have not committed yet."""

    session: str
    last_seq: int
    facts: dict[str, Fact | None]
    """By key. None: there is none, or it is gone. A key that is not here is unknown."""
    events: dict[int, EventHead | None]
    """By seq, likewise."""


class Request(NamedTuple):
    """A send that is new, or a server's note (``device`` is SERVER)."""

    device: str
    kind: int
    body: bytes
    now_ms: int

    @property
    def user(self) -> str:
        return self.device.partition("/")[0]


class Accept(NamedTuple):
    """Take it, with this kind and body: a state event has its facts in it."""

    kind: int
    body: bytes


class Refuse(NamedTuple):
    """It is not taken, and will not be by a resend of it (definite)."""

    error: ImError


class Needs(NamedTuple):
    """To decide, these facts and these events' heads have to be known."""

    keys: tuple[str, ...] = ()
    events: tuple[int, ...] = ()


class Nothing(NamedTuple):
    """A note that says nothing new: it holds as soon as all that came before it has committed."""


Decision = Accept | Refuse | Needs | Nothing
Decide = Callable[[Known, Request], Decision]


def messages_only(known: Known, request: Request) -> Decision:
    """The rule where there are no others: everybody sends messages, nobody anything else."""
    if request.kind <= EventKind.MESSAGE:
        return Accept(request.kind, request.body)
    return Refuse(Forbidden(f"events of kind {request.kind} are not taken here"))
