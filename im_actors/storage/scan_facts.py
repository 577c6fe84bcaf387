"""Compares the facts that the index has of a slot with what the slot's events say."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from im_actors.core.facts import Fact, event_facts
from im_actors.core.model import Event
from im_actors.errors import CorruptData
from im_actors.storage.facts import BY_KEY, after, fact_guard

if TYPE_CHECKING:
    from im_actors.storage.index import IndexFile, SessionEntry

SESSIONS_CHUNK = 256
ROWS_CHUNK = 512
KEYS_TOLD_MAX = 3

Said = dict[str, tuple[int, int]]
"""key -> (seq, rank and value as a checksum) of the newest fact."""


class Difference(NamedTuple):
    """Facts of a session that are not what its events say; ``corrupt``: one that has a wrong
    checksum, or that its list does not lead to."""

    text: str
    facts: int
    corrupt: bool = False


class FactCheck:
    """What the events of a slot say, some 200 bytes a fact; told in the order of the log."""

    def __init__(self) -> None:
        self._said: dict[str, Said] = {}

    def take(self, event: Event) -> None:
        """Note what a state event says. Raises whatever an unreadable body makes it raise."""
        said = self._said.setdefault(event.session, {})
        for fact in event_facts(event):
            known = said.get(fact.key)
            if known is None or known[0] < fact.seq:
                said[fact.key] = (fact.seq, fact_guard(0, fact))

    def compare(
        self, index: IndexFile, slot: int, seen: dict[str, int]
    ) -> Iterator[Difference | None]:
        """The differences, and None where other work may be done. ``seen``: the last seq that was
        told of each session; what is newer in the index came meanwhile and is not looked at."""
        last_id = 0
        while sessions := index.sessions_of(slot, last_id, SESSIONS_CHUNK):
            for session in sessions:
                last_id = session.id
                said = self._said.get(session.name, {})
                try:
                    yield from _compare(index, session, said, seen.get(session.name, 0))
                except CorruptData as error:
                    yield Difference(str(error), 1, corrupt=True)
            yield None


def _compare(
    index: IndexFile, session: SessionEntry, said: Said, seen: int
) -> Iterator[Difference | None]:
    name = f"session {session.name!r}"
    unmet, wrong = dict(said), []
    for fact in _walk(index, session.id):
        if fact is None:
            yield None
            continue
        expected = unmet.pop(fact.key, None)
        if fact.seq <= seen and expected != (fact.seq, fact_guard(0, fact)):
            wrong.append(fact.key)
    if session.slot not in index.applied:
        return  # Deleted meanwhile.
    wrong += unmet
    if wrong:
        keys = ", ".join(map(repr, wrong[:KEYS_TOLD_MAX]))
        text = f"{name}: {len(wrong)} facts are not what its events say: {keys}"
        yield Difference(text, len(wrong))
    for there, listed in index.facts.listed(session.id):
        if there != listed:
            text = f"{name}: of {there} facts a list leads to {listed}"
            yield Difference(text, abs(there - listed))


def _walk(index: IndexFile, session: int) -> Iterator[Fact | None]:
    """The stored facts of a session by key, and None now and then."""
    at = (session, "")
    while True:
        rows = list(islice(index.facts.rows(session, BY_KEY, at), ROWS_CHUNK))
        yield from rows
        if len(rows) < ROWS_CHUNK:
            return
        at = (session, after(rows[-1].key))
        yield None
