"""Compares the facts that the index has of a slot with what the slot's events say."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from im_actors.core.dropping import dropped_fact
from im_actors.core.facts import Fact, event_facts
from im_actors.core.model import Event, EventKind
from im_actors.errors import CorruptData
from im_actors.storage.facts import BY_KEY, after, fact_guard

if TYPE_CHECKING:
    from im_actors.storage.index import IndexFile, SessionEntry

SESSIONS_CHUNK = 256
ROWS_CHUNK = 512
KEYS_TOLD_MAX = 3

Said = dict[str, tuple[int, tuple[int, ...]]]
"""key -> (seq, rank and value as a checksum, each that is right) of the newest fact."""


class Difference(NamedTuple):
    """Facts of a session that are not what its events say; ``corrupt``: one that has a wrong
    checksum, or that its list does not lead to."""

    text: str
    facts: int
    corrupt: bool = False


class FactCheck:
    """What the events of a slot say, some 200 bytes a fact; told in the order of the log.

    ``lenient``: a month is being dropped, and what its edits have said may be gone already."""

    def __init__(self, lenient: bool = False) -> None:
        self._lenient = lenient
        self._said: dict[str, Said] = {}

    def take(self, event: Event) -> None:
        """Note what a state event says. Raises whatever an unreadable body makes it raise."""
        said = self._said.setdefault(event.session, {})
        for fact in event_facts(event):
            known = said.get(fact.key)
            if known is None or known[0] < fact.seq:
                right = [fact]
                if self._lenient and event.kind == EventKind.EDIT:
                    right.append(dropped_fact(fact))
                said[fact.key] = (fact.seq, tuple(fact_guard(0, fact) for fact in right))

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
        if fact.seq <= seen and not _agrees(fact, expected):
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


def _agrees(fact: Fact, said: tuple[int, tuple[int, ...]] | None) -> bool:
    return said is not None and said[0] == fact.seq and fact_guard(0, fact) in said[1]


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
