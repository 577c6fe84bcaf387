"""A simulated device's file: what it holds survives a crash of the app, what is queued does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from im_actors.core.model import Event, EventKind
from im_actors.core.outbox_words import Key, OutboxRow
from im_actors.storage.client_store import LAZY_MS

if TYPE_CHECKING:
    from tests.sim.clients import SimClient

PRUNED_EVENTS = 300
"""Cached events of a session after which the oldest go, so that readers meet gaps too."""


class DeviceFile:
    """What is on the device's disk."""

    def __init__(self) -> None:
        self.rows: dict[Key, OutboxRow] = {}
        self.next_n: dict[str, int] = {}
        self.cursors: dict[str, int] = {}
        self.timelines: dict[str, dict[int, Event]] = {}


class DeviceStore:
    """The store of one life of the app. Durable rows share transactions; the rest is lazy."""

    def __init__(self, client: SimClient, on_saved: Callable[[list[Key]], None]) -> None:
        self.client = client
        self.file = client.file
        self._on_saved = on_saved
        self._durable: list[tuple[OutboxRow, int]] = []
        self._writing = False
        self._deleted: list[Key] = []
        self._cursors: dict[str, int] = {}
        self._events: list[Event] = []
        self._lazy_planned = False

    # -- writing -------------------------------------------------------------------------------

    def save(self, row: OutboxRow, replaces: int = 0) -> None:
        self._durable.append((row, replaces))
        if not self._writing:
            self._write()

    def _write(self) -> None:
        self._writing = True
        batch, self._durable = self._durable, []
        client = self.client
        delay = client.rng.uniform(0.2, 3.0)
        if client.world.faults.strikes("slow_save", client.rng):
            delay = client.rng.uniform(50, 2_000)
        client.later(delay, lambda: self._written(batch))

    def _written(self, batch: list[tuple[OutboxRow, int]]) -> None:
        for row, replaces in batch:
            self._put(row, replaces)
        # The app may die between the write and its word of it: the rows are there all the same.
        self.client.later(0.1, lambda: self._on_saved([(r.session, r.n) for r, _ in batch]))
        self._writing = False
        if self._durable:
            self._write()

    def _put(self, row: OutboxRow, replaces: int) -> None:
        file = self.file
        if replaces:
            file.rows.pop((row.session, replaces), None)
        file.rows[row.session, row.n] = row
        file.next_n[row.session] = max(row.n + 1, file.next_n.get(row.session, 1))
        client = self.client
        client.world.history.sent(row.session, client.address, row.n, row.kind, row.body)
        if row.kind == EventKind.VOID:
            client.world.met("void")
            client.world.withdrawn.add((row.session, client.address, row.n))
            client.unanswered.pop((row.session, row.n), None)
        else:
            client.unanswered[row.session, row.n] = None

    def delete(self, keys: Iterable[Key]) -> None:
        self._deleted.extend(keys)
        self._later()

    def set_cursor(self, session: str, seq: int) -> None:
        self._cursors[session] = seq
        self._later()

    def cache(self, events: Iterable[Event]) -> None:
        self._events.extend(events)
        self._later()

    def _later(self) -> None:
        if not self._lazy_planned:
            self._lazy_planned = True
            self.client.later(LAZY_MS, self._lazily)

    def _lazily(self) -> None:
        self._lazy_planned = False
        file = self.file
        for key in self._deleted:
            file.rows.pop(key, None)
        file.cursors.update(self._cursors)
        for event in self._events:
            timeline = file.timelines.setdefault(event.session, {})
            timeline[event.seq] = event
            if len(timeline) > 2 * PRUNED_EVENTS:
                for seq in sorted(timeline)[:PRUNED_EVENTS]:
                    del timeline[seq]
        self._deleted, self._cursors, self._events = [], {}, []

    # -- reading -------------------------------------------------------------------------------

    def events_after(self, session: str, after: int, limit: int) -> list[Event]:
        """Queued work is written before anything is read."""
        self._lazily()
        timeline = self.file.timelines.get(session, {})
        return [timeline[seq] for seq in sorted(seq for seq in timeline if seq > after)[:limit]]
