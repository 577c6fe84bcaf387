"""A client's store against a dumb model, with crashes at any time."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from im_actors.core.model import Event, encode_event
from im_actors.core.outbox_words import OutboxRow
from im_actors.storage.client_store import CachedEvent, SqliteStore

SESSIONS = ("a", "b", "ünï")
Key = tuple[str, int]


class Store(RuleBasedStateMachine):
    """``rows`` were handed over; those in ``saved`` were acknowledged, those in ``deleted`` may be
    gone. What is ``flushed`` is on disk: a crash may lose later deletions, cursors and events."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.root = tempfile.TemporaryDirectory()
        self.directory = Path(self.root.name) / "0"
        self.directory.mkdir()
        self.rows: dict[Key, OutboxRow] = {}
        self.saved: set[Key] = set()
        self.deleted: set[Key] = set()
        self.last_n = dict.fromkeys(SESSIONS, 0)
        self.cursors = [dict[str, int]()]
        self.events: dict[Key, bytes] = {}
        self.flushed: tuple[set[Key], set[Key], int] = (set(), set(), 0)
        self._open()

    def _open(self) -> None:
        self.store = SqliteStore(self.directory / "im.db", "u", "d")
        self.opened = self.runner.run(self.store.open(self._saved, self._failed))

    def _saved(self, keys: list[Key]) -> None:
        self.saved.update(keys)

    @staticmethod
    def _failed(error: Exception) -> None:
        raise AssertionError(f"the store gave up: {error}")

    @rule(session=st.sampled_from(SESSIONS), sizes=st.lists(st.integers(0, 9_000), max_size=5))
    def save(self, session: str, sizes: list[int]) -> None:
        for size in sizes:
            self.last_n[session] += 1
            n = self.last_n[session]
            row = OutboxRow(session, n, 1, n.to_bytes(4) * (size // 4), n)
            self.rows[session, n] = row
            self._queue(partial(self.store.save, row))

    @rule(seconds=st.sampled_from((0, 0.001, 0.004)))
    def work(self, seconds: float) -> None:
        """Let the store do some of what it was given."""
        self.runner.run(asyncio.sleep(seconds))

    @rule(session=st.sampled_from(SESSIONS))
    def delete_oldest(self, session: str) -> None:
        there = sorted(n for name, n in self.saved - self.deleted if name == session)
        keys = [(session, n) for n in there[:2]]
        self._queue(lambda: self.store.delete(keys))
        self.deleted.update(keys)

    @rule(session=st.sampled_from(SESSIONS), seq=st.integers(1, 50))
    def read(self, session: str, seq: int) -> None:
        self.cursors.append({**self.cursors[-1], session: seq})
        event = encode_event(Event(session, seq, seq, 1, "x/y", seq, b"%d" % seq))
        self.events[session, seq] = event

        self._queue(lambda: self.store.set_cursor(session, seq))
        self._queue(lambda: self.store.cache([CachedEvent(session, seq, event)]))

    def _queue(self, call: Callable[[], None]) -> None:
        async def run() -> None:
            call()

        self.runner.run(run())

    @rule()
    def flush(self) -> None:
        self.runner.run(self.store.flush())
        assert self.saved == set(self.rows)
        self.flushed = (set(self.deleted), set(self.events), len(self.cursors) - 1)

    @rule()
    def crash(self) -> None:
        """As after kill -9: the files as they are at this moment, and nothing closed."""
        left = self.directory.with_name(str(int(self.directory.name) + 1))
        shutil.copytree(self.directory, left)
        saved = set(self.saved)
        # The store that is left behind goes on saving where nobody looks.
        self.runner.run(self.store.close())
        shutil.rmtree(self.directory)
        self.directory, self.saved = left, saved
        self._open()
        self._check()

    def _check(self) -> None:
        gone, cached, cursor = self.flushed
        found = {(row.session, row.n): row for row in self.opened.rows}
        assert all(self.rows[key] == row for key, row in found.items()), "a row in part"
        assert self.saved - self.deleted <= set(found), "an acknowledged row is lost"
        assert not gone & set(found), "a row that was deleted for good is back"
        for session, n in self.saved:
            assert self.opened.next_n[session] > n, "a number would be used again"
        assert self.opened.cursors in self.cursors[cursor:], "cursors that never were"
        events = {(e.session, e.seq): encode_event(e) for e in self._cached()}
        assert cached <= set(events)
        assert all(self.events[key] == event for key, event in events.items())
        # The model goes on from what the crash left.
        self.rows, self.saved, self.events = found, set(found), events
        self.deleted = set()
        self.last_n = {s: self.opened.next_n.get(s, 1) - 1 for s in SESSIONS}
        self.cursors = [dict(self.opened.cursors)]
        self.flushed = (set(), set(events), 0)

    def _cached(self) -> list[Event]:
        return [
            event
            for session in SESSIONS
            for event in self.runner.run(self.store.events_after(session, 0, 100))
        ]

    def teardown(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()
        self.root.cleanup()


Store.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
TestStore = Store.TestCase
