"""The facts of ``index.db``: of each key of a session what the newest event has said (core.facts).

What is staged always holds against what is stored: a fact that comes late, from an old record, is
staged only if nothing newer is stored. So readers look at the two side by side, and nothing has to
be written before it is read, but for a session with very much of it.

Every row has a checksum, and the index that a list is read by is only believed as far as the rows
agree with it. The rows before and behind what was asked for are looked at as well: a row that
damage has moved would be passed over in silence.
"""

from __future__ import annotations

import heapq
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

from im_actors.core.fact_lists import (
    FACT_PAGE_BYTES_MAX,
    FactPage,
    FactQuery,
    OfKeys,
    Prefixed,
    Ranked,
    Since,
)
from im_actors.core.facts import Fact, newest
from im_actors.errors import CorruptData
from im_actors.storage.database import Database
from im_actors.storage.steps import Rest, in_steps, no_rest

STAGED_READ_MAX = 4_096
"""Of a session with more staged facts than this a list is read only after they are written."""
STAGED_COUNT_MAX = 256
"""The same before ranks are counted: each staged fact is compared with the stored one."""
FACT_OVERHEAD_BYTES = 32
"""What a fact takes in a page besides its key and its value."""

SCHEMA = (
    "CREATE TABLE facts(session INTEGER NOT NULL, key TEXT NOT NULL, seq INTEGER NOT NULL,"
    " rank INTEGER NOT NULL, value BLOB, guard INTEGER NOT NULL, PRIMARY KEY(session, key))"
    " WITHOUT ROWID",
    # A fact that is gone has no rank.
    "CREATE INDEX facts_ranked ON facts(session, rank, key) WHERE rank > 0",
    "CREATE INDEX facts_since ON facts(session, seq, key)",
)

_PUT = (
    "INSERT INTO facts VALUES(?,?,?,?,?,?) ON CONFLICT(session, key) DO UPDATE SET"
    " seq=excluded.seq, rank=excluded.rank, value=excluded.value, guard=excluded.guard"
)
_BY_KEY = "SELECT session, key, seq, rank, value, guard, key FROM facts"
_AT = f"{_BY_KEY} WHERE (session, key)<=(?,?) ORDER BY session DESC, key DESC LIMIT 1"
# The index alone says where to go, and a row that is not there shows as NULLs. Of its own accord
# SQLite would pass over it.
_INDEXED = (
    "SELECT i.session, i.key, f.seq, f.rank, f.value, f.guard, i.{place}"
    " FROM facts AS i INDEXED BY {index}"
    " LEFT JOIN facts AS f ON f.session=i.session AND f.key=i.key"
    " WHERE {only}(i.session, i.{place}, i.key)"
)
_LED_TO = (
    "SELECT count(DISTINCT i.key) FROM facts AS i INDEXED BY {index}"
    " JOIN facts AS f ON f.session=i.session AND f.key=i.key AND f.{place}=i.{place}"
    " WHERE i.session=?"
)
_COUNT = (
    "SELECT count(*) FROM facts INDEXED BY facts_ranked"
    " WHERE rank > 0 AND session=? AND rank BETWEEN ? AND ?"
)
_UP = " ORDER BY i.session, i.{place}, i.key"
_DOWN = " ORDER BY i.session DESC, i.{place} DESC, i.key DESC"

Row = tuple[int, str, int, int, bytes | None, int, Any]
"""session, key, seq, rank, value, guard, and where the index has it."""


class Order(NamedTuple):
    """A list that facts are in: how to select the rows from a place on and the one before it."""

    ahead: str
    behind: str
    place: Callable[[Fact], tuple[Any, ...]]
    """Where a fact is in it."""
    down: bool = False


def after(key: str) -> str:
    """The next key that there can be."""
    return f"{key}\0"


def _indexed(index: str, place: str, only: str = "") -> tuple[str, str]:
    """Rows from a place on upwards, and those below it downwards."""
    select = _INDEXED.format(index=index, place=place, only=only)
    up, down = _UP.format(place=place), _DOWN.format(place=place)
    return f"{select}>=(?,?,?){up}", f"{select}<(?,?,?){down}"


_UPWARDS, _DOWNWARDS = _indexed("facts_ranked", "rank", "i.rank>0 AND ")
BY_RANK = Order(_DOWNWARDS, f"{_UPWARDS} LIMIT 1", itemgetter(2, 0), down=True)
_UPWARDS, _DOWNWARDS = _indexed("facts_since", "seq")
BY_SEQ = Order(_UPWARDS, f"{_DOWNWARDS} LIMIT 1", itemgetter(1, 0))
BY_KEY = Order(
    f"{_BY_KEY} WHERE (session, key)>=(?,?) ORDER BY session, key",
    f"{_BY_KEY} WHERE (session, key)<(?,?) ORDER BY session DESC, key DESC LIMIT 1",
    itemgetter(slice(0, 1)),
)


def create(connection: sqlite3.Connection) -> None:
    """Make the tables in a file of the format before them: no event had facts then."""
    for statement in SCHEMA:
        connection.execute(statement)


def fact_guard(session: int, fact: Fact) -> int:
    key, seq, rank, value = fact
    size = -1 if value is None else len(value)
    return zlib.crc32(value or b"", zlib.crc32(f"{session} {seq} {rank} {size} {key}".encode()))


class FactTable:
    """The facts of all sessions, by the sessions' ids, and what is staged of them."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._staged: dict[int, dict[str, Fact]] = {}

    # -- staging ---------------------------------------------------------------------------------

    def stage(self, session: int, stored_seq: int, facts: Iterable[Fact]) -> None:
        """Take in what an event says. ``stored_seq``: the last one of the session's stored events,
        above which no stored fact can be as new."""
        staged = self._staged.setdefault(session, {})
        for fact in facts:
            known = self._stored(session, fact.key) if fact.seq <= stored_seq else None
            if known is None or known.seq < fact.seq:
                newest(staged, fact)

    def staged(self, session: int) -> int:
        """How many facts of a session are staged."""
        return len(self._staged.get(session, ()))

    def write(self, connection: sqlite3.Connection, rest: Rest = no_rest) -> None:
        """Write what is staged, as a part of the transaction that is under way."""
        staged = [(i, fact) for i, facts in self._staged.items() for fact in facts.values()]
        # By key, so that neighbours share a page.
        staged.sort(key=lambda row: (row[0], row[1].key))
        for step in in_steps(staged, rest):
            rows = [(i, *fact, fact_guard(i, fact)) for i, fact in step]
            connection.executemany(_PUT, rows)

    def settle(self) -> None:
        """What was staged is in the file."""
        self._staged.clear()

    def forget(self, session: int) -> None:
        """Drop what is staged of a session."""
        self._staged.pop(session, None)

    # -- reading ---------------------------------------------------------------------------------

    def page(self, session: int, query: FactQuery) -> FactPage:
        """The answer to a query. What it costs goes with the size of the page, not of the list."""
        at: tuple[Any, ...]
        match query:
            case OfKeys(keys):
                found = (self.fact(session, key) for key in keys)
                return FactPage([fact for fact in found if fact is not None], False)
            case Ranked(after_rank, after_key, limit):
                # No rank is 0: the place in front of the next session's facts.
                at = (session, after_rank, after_key) if after_rank else (session + 1, 0, "")
                return _cut(self._listed(session, BY_RANK, at), limit)
            case Prefixed(prefix, after_key, limit):
                at = (session, max(prefix, after(after_key)))
                listed = self._listed(session, BY_KEY, at)
                return _cut(_while_prefixed(listed, prefix), limit)
            case Since(seq, limit):
                at = (session, seq + 1, "")
                return _cut(self._listed(session, BY_SEQ, at), limit, whole_events=True)

    def fact(self, session: int, key: str) -> Fact | None:
        """The fact of a key; None when no event has said one."""
        staged = self._staged.get(session, {}).get(key)
        return staged or self._stored(session, key)

    def count(self, session: int, low: int, high: int) -> int:
        """How many facts of a session have a rank from ``low`` (above 0) to ``high``. Read from
        the list alone, some 100 ns for each: the rows themselves are looked at when the list is
        read, and by ``verify``."""
        (stored,) = self._db.row(_COUNT, (session, low, high))
        for fact in self._staged.get(session, {}).values():
            known = self._stored(session, fact.key)
            stored += (low <= fact.rank <= high) - (known is not None and low <= known.rank <= high)
        return int(stored)

    def _stored(self, session: int, key: str) -> Fact | None:
        for row in self._db.rows(_AT, (session, key)):
            there, fact = self._checked(row, BY_KEY)
            if there == session and fact.key == key:
                return fact
        for row in self._db.rows(f"{BY_KEY.ahead} LIMIT 1", (session, key)):
            self._checked(row, BY_KEY)
        return None

    def _listed(self, session: int, order: Order, at: tuple[Any, ...]) -> Iterator[Fact]:
        """The facts of a session from a place on, staged and stored."""
        staged = self._staged.get(session, {})
        stored = (fact for fact in self.rows(session, order, at) if fact.key not in staged)
        place = order.place
        if order.down:
            there = [f for f in staged.values() if f.rank and (session, *place(f)) < at]
        else:
            there = [f for f in staged.values() if (session, *place(f)) >= at]
        there.sort(key=place, reverse=order.down)
        return heapq.merge(stored, there, key=place, reverse=order.down)

    def rows(self, session: int, order: Order, at: tuple[Any, ...]) -> Iterator[Fact]:
        """The stored facts of a session from a place on."""
        for row in self._db.rows(order.behind, at):
            self._checked(row, order)
        last: tuple[Any, ...] | None = None
        for row in self._db.rows(order.ahead, at):
            there, fact = self._checked(row, order)
            if there != session:
                return
            place = order.place(fact)
            if last is not None and (place >= last if order.down else place <= last):
                raise CorruptData(
                    f"{self._db.path}: fact {fact.key!r} of session {session} is out of order"
                )
            last = place
            yield fact

    def _checked(self, row: Row, order: Order) -> tuple[int, Fact]:
        """The session's id and the fact of a row, if it is what was written and where it was."""
        session, key, seq, rank, value, guard, place = row
        typed = type(session) is type(seq) is type(rank) is int and type(key) is str
        if typed and (value is None or type(value) is bytes):
            fact = Fact(key, seq, rank, value)
            if guard == fact_guard(session, fact) and order.place(fact)[0] == place:
                return session, fact
        raise CorruptData(
            f"{self._db.path}: the row of fact {key!r} in session {session} is damaged"
        )

    # -- the whole -------------------------------------------------------------------------------

    def listed(self, session: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """How many rows of a session there are, and to how many of them the list by seq leads; how
        many with a rank, and to how many the list by rank leads."""
        rows = "SELECT count(*), total(rank > 0) FROM facts NOT INDEXED WHERE session=?"
        in_all, ranked = self._db.row(rows, (session,))
        (by_seq,) = self._db.row(_LED_TO.format(index="facts_since", place="seq"), (session,))
        by_rank = f"{_LED_TO.format(index='facts_ranked', place='rank')} AND i.rank>0"
        (in_ranked,) = self._db.row(by_rank, (session,))
        return (in_all, by_seq), (int(ranked), in_ranked)

    @staticmethod
    def replace(connection: sqlite3.Connection, facts: list[tuple[int, Fact]]) -> None:
        """Put in each session other values of facts that are as old, as a part of the transaction
        that is under way. What a newer event has said stays."""
        update = "UPDATE facts SET rank=?, value=?, guard=? WHERE session=? AND key=? AND seq=?"
        rows = [
            (fact.rank, fact.value, fact_guard(session, fact), session, fact.key, fact.seq)
            for session, fact in facts
        ]
        connection.executemany(update, rows)

    @staticmethod
    def drop(connection: sqlite3.Connection, sessions: list[tuple[int]]) -> None:
        """Delete the rows of sessions, as a part of the transaction that is under way."""
        connection.executemany("DELETE FROM facts WHERE session=?", sessions)


def _while_prefixed(facts: Iterator[Fact], prefix: str) -> Iterator[Fact]:
    for fact in facts:
        if not fact.key.startswith(prefix):
            return
        yield fact


def _cut(facts: Iterator[Fact], limit: int, whole_events: bool = False) -> FactPage:
    """The first of these, at least one."""
    found: list[Fact] = []
    size = 0
    for fact in facts:
        full = bool(found) and (len(found) >= limit or size >= FACT_PAGE_BYTES_MAX)
        if full and not (whole_events and fact.seq == found[-1].seq):
            return FactPage(found, True)
        found.append(fact)
        size += FACT_OVERHEAD_BYTES + len(fact.key) + len(fact.value or b"")
    return FactPage(found, False)
