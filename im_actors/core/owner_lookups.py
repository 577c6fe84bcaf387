"""What an owner has to read from the tables of a complete member before it can go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from im_actors.core.messages import (
    EventFound,
    FactsLoaded,
    FindEvent,
    FindKey,
    KeyFound,
    LoadFacts,
    LoadSessions,
    SessionsLoaded,
)
from im_actors.core.serving import Send

LookupAnswer = SessionsLoaded | KeyFound | FactsLoaded | EventFound


@dataclass(slots=True)
class Lookup:
    """One read: session states, one old key (``send``), or of one session some facts (``keys``) or
    what an event is. It is asked for until it is answered: unknown is never taken for absent."""

    number: int
    floor_lsn: int
    """The answer must come from tables that have applied so much."""
    sessions: tuple[str, ...] = ()
    send: Send | None = None
    keys: tuple[str, ...] = ()
    event: int = 0
    asker: Any = None
    """Who asked for the facts; None: the rules."""
    due_ms: int = 0
    tries: int = 0

    @property
    def session(self) -> str:
        """Of which facts or an event are read."""
        (session,) = self.sessions
        return session


def ask_for(
    lookup: Lookup, slot: int, epoch: int
) -> LoadSessions | FindKey | LoadFacts | FindEvent:
    """The request to a replica."""
    where = (slot, epoch, lookup.number, lookup.floor_lsn)
    if lookup.send is not None:
        return FindKey(*where, lookup.send.session, lookup.send.device, lookup.send.n)
    if lookup.keys:
        return LoadFacts(*where, lookup.session, lookup.keys)
    if lookup.event:
        return FindEvent(*where, lookup.session, lookup.event)
    return LoadSessions(*where, lookup.sessions)
