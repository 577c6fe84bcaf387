"""The outbox: every accepted send ends as acked or refused, whatever the network does.

A row is numbered, stored, sent, sent again until the server answers for good, and only then
deleted. It lives through these states:

    SAVING      numbered; the store has it in hand. Never sent before it is on disk (promise P1).
    PENDING     on disk, waiting for its turn, the window, the connection or a pause.
    IN_FLIGHT   sent on this connection, no answer yet. The outcome is unknown.
    ACKED       the server's answer is on the row's ``Settle`` effect; the row is gone.
    REFUSED     refused for good. A VOID of the same n takes its place, so that the device counter
                goes on; the VOID is sent until it is ACKed, and then deleted.

Per session rows are sent in order of n, up to the window. When something goes wrong the run is
sent again *from the lowest n that is missing*, once: after a NACK the session waits until all that
it has in flight is answered (or its ladder timer runs out), then until the pause is over, and then
sends again in order. So one refusal at the server costs one resend of the run, not one per row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from enum import Enum, auto
from random import Random

from im_actors.core.backoff import LADDER_MS, Alarms, ladder_ms, stretched_ms
from im_actors.core.model import DEVICE_WINDOW, EventKind, check_body
from im_actors.core.names import check_session
from im_actors.core.outbox_words import (
    Acked,
    AckRow,
    Connected,
    DeleteRows,
    Disconnected,
    Effect,
    Event,
    Key,
    Nacked,
    NackRow,
    OutboxRow,
    Refuse,
    Renumber,
    Restored,
    RowView,
    SendRows,
    SendState,
    Settle,
    Stored,
    StoreRow,
    Submitted,
    Ticked,
    Warn,
)
from im_actors.core.story import Story
from im_actors.errors import (
    ImError,
    KeyConflict,
    OutOfOrder,
    Overloaded,
    RequestError,
    RetryableError,
    Unauthenticated,
    error_for,
)

OUTBOX_ROWS_MAX = 100_000
"""Most rows that an outbox holds; a further send is refused as Overloaded before it is numbered."""
OUTBOX_BYTES_MAX = 64 << 20
"""Most bytes of bodies that an outbox holds in memory."""
IN_FLIGHT_ROWS_MAX = 4_096
"""Most rows in flight on one connection, over all sessions."""
IN_FLIGHT_ROWS_MIN = 1
"""So many may be in flight however often the server is overloaded."""
IN_FLIGHT_GROWTH = 4
"""So many more may be in flight after all that may be were ACKed."""
IN_FLIGHT_BYTES_MAX = 4 << 20
"""Most bytes of bodies in flight on one connection: what a dead link can keep in its buffers."""
N_MAX = 1 << 62
"""No device ever sends so much. A server that expects more is not believed: what follows a number
that no store can hold could not be saved."""
RETRY_AFTER_MS_MAX = 60_000
"""A longer wish of the server is cut to this: a wrong number must not silence a device."""
VOID_RETRY_MS = 60_000
"""How often a session that holds nothing but refused VOIDs is tried."""


# --- state ----------------------------------------------------------------------------------------


class _Row:
    """``row`` changes only by replacement; ``refusal`` is set while its VOID is being stored."""

    __slots__ = ("attempts", "error", "gone", "moves", "refusal", "row", "sent_ms", "state")

    def __init__(self, row: OutboxRow, state: SendState) -> None:
        self.row = row
        self.state = state
        self.attempts = 0
        self.moves = 0
        self.sent_ms = 0
        self.error: ImError | None = None
        self.refusal: ImError | None = None
        self.gone = False


class _Pause(Enum):
    """Why a session sends nothing now."""

    NONE = auto()
    LADDER = auto()
    """Our own wait; a new connection ends it."""
    SERVER = auto()
    """The server's wish; it holds on the next connection too."""
    IDLE = auto()
    """Only refused VOIDs are left; a new send ends it."""


class _Lane:
    """One session with rows. Every one of ``rows`` is in exactly one of ``queue``, ``flying`` and
    ``back``; a row that is ``gone`` may still be in a list, which drops it when it meets it.

    All n in ``flying`` and ``back`` are below all n in ``queue``.
    """

    __slots__ = (
        "back", "flying", "pause", "paused_until_ms", "queue", "ready", "resend_at_ms", "rows",
        "session", "step", "window",
    )  # fmt: skip

    def __init__(self, session: str) -> None:
        self.session = session
        self.rows: dict[int, _Row] = {}
        self.queue: deque[_Row] = deque()
        self.flying: dict[int, _Row] = {}
        self.back: list[_Row] = []
        self.ready = False
        self.step = 0
        self.window = DEVICE_WINDOW
        """So far ahead of the oldest row without an answer may be sent. What follows a row that is
        refused is out of order and has to be sent again: then it is halved. ACKs let it grow."""
        self.pause = _Pause.NONE
        self.paused_until_ms = 0
        self.resend_at_ms = 0


class Outbox:
    """The machine. ``handle`` is its one door; ``deadline_ms`` says when it wants a ``Ticked``."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._lanes: dict[str, _Lane] = {}
        self._next_n: dict[str, int] = {}
        self._ready: deque[_Lane] = deque()
        self._alarms: Alarms[str] = Alarms()
        self._trace = Story()
        self._connected = False
        self._window = DEVICE_WINDOW
        self._flying = 0
        self._flying_bytes = 0
        self._flying_max = float(IN_FLIGHT_ROWS_MAX)
        """How many rows may be in flight. An overloaded server takes a part of what it refuses at
        every try; less at a time is all that helps it."""
        self._eased_until_ms = 0
        self._rows = 0
        self._bytes = 0

    # -- reading ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Rows without an ACK, VOIDs included."""
        return self._rows

    @property
    def in_flight(self) -> int:
        return self._flying

    def deadline_ms(self) -> int | None:
        return self._alarms.next_ms()

    def story(self, *keys: Hashable) -> list[str]:
        return self._trace.story(*keys)

    def next_n(self, session: str) -> int:
        return self._next_n.get(session, 1)

    def row(self, session: str, n: int) -> RowView | None:
        lane = self._lanes.get(session)
        row = lane.rows.get(n) if lane else None
        return _view(row) if row else None

    def rows(self, session: str | None = None) -> Iterator[RowView]:
        """Everything that is not ACKed yet, per session in order of n."""
        lanes = (
            self._lanes.values() if session is None else filter(None, [self._lanes.get(session)])
        )
        for lane in lanes:
            yield from (_view(lane.rows[n]) for n in sorted(lane.rows))

    # -- the door --------------------------------------------------------------------------------

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Take one event and say what to do, to be carried out in this order."""
        effects: list[Effect] = []
        match event:
            case Stored():
                self._stored(event.keys, now_ms, effects)
            case Submitted():
                return [self._submitted(event, now_ms)]
            case Acked():
                self._acked(event.rows, now_ms, effects)
            case Nacked():
                for entry in event.rows:
                    self._nacked(entry, now_ms, effects)
            case Ticked():
                self._ticked(now_ms)
            case Connected():
                self._link_up(event.window, now_ms)
            case Disconnected():
                self._link_down(now_ms)
            case Restored():
                self._restored(event, now_ms)
        self._pump(now_ms, effects)
        return effects

    def _restored(self, event: Restored, now_ms: int) -> None:
        assert not self._lanes, "an outbox is restored once, before anything else"
        self._next_n.update(event.next_n)
        for stored in sorted(event.rows, key=lambda row: (row.created_ms, row.n)):
            lane = self._lane(stored.session)
            self._next_n[stored.session] = max(self.next_n(stored.session), stored.n + 1)
            self._admit(lane, _Row(stored, SendState.PENDING))
            self._trace.note(now_ms, (stored.session, stored.n), "restored from the store")
            self._wake(lane)
        for lane in self._lanes.values():
            # Rows of equal or turned-back clocks: the order within a session is that of n.
            lane.queue = deque(sorted(lane.queue, key=_n_of))

    def _submitted(self, event: Submitted, now_ms: int) -> Effect:
        if event.session not in self._next_n:  # one that was used before is good
            check_session(event.session)
        check_body(event.body)
        self._check_refused(event.session)
        if self._rows >= OUTBOX_ROWS_MAX or self._bytes + len(event.body) > OUTBOX_BYTES_MAX:
            raise Overloaded(f"the outbox is full: {self._rows} sends wait for their ACK")
        lane = self._lane(event.session)
        n = self.next_n(event.session)
        row = OutboxRow(event.session, n, event.kind, event.body, event.created_ms)
        self._next_n[event.session] = row.n + 1
        self._admit(lane, _Row(row, SendState.SAVING))
        self._trace.note(now_ms, (row.session, row.n), "numbered, %d bytes", len(row.body))
        return StoreRow(row)

    def _check_refused(self, session: str) -> None:
        """A session that refuses even VOIDs gets no more of them than the window can hold."""
        lane = self._lanes.get(session)
        if lane and lane.pause is _Pause.IDLE and len(lane.rows) >= self._window // 2:
            error = next(iter(lane.rows.values())).error
            assert error is not None
            raise type(error)(error.detail)

    def _stored(self, keys: Iterable[Key], now_ms: int, effects: list[Effect]) -> None:
        for session, n in keys:
            lane = self._lanes.get(session)
            row = lane.rows.get(n) if lane else None
            if lane is None or row is None or row.state is not SendState.SAVING:
                continue  # its ACK was quicker than the store
            row.state = SendState.PENDING
            if row.refusal is not None:
                effects.append(Refuse(session, n, row.refusal))
                self._trace.note(now_ms, (session, n), "refusal is on disk, the VOID may go")
                row.refusal = None
            elif lane.pause is _Pause.IDLE:
                self._unpause(lane)
            self._wake(lane)

    def _link_up(self, window: int, now_ms: int) -> None:
        self._connected = True
        self._window = max(1, min(window, DEVICE_WINDOW))
        self._trace.note(now_ms, ("connection",), "up, %d rows to send", self._rows)
        for lane in self._lanes.values():
            if lane.pause is not _Pause.SERVER:
                self._unpause(lane)
            self._wake(lane)

    def _link_down(self, now_ms: int) -> None:
        self._connected = False
        self._trace.note(now_ms, ("connection",), "down, %d rows in flight", self._flying)
        for lane in self._lanes.values():
            lane.step = 0
            self._take_back(lane, list(lane.flying.values()))

    def _ticked(self, now_ms: int) -> None:
        for session in self._alarms.due(now_ms):
            lane = self._lanes.get(session)
            if lane is None:
                continue
            if lane.pause is not _Pause.NONE and lane.paused_until_ms <= now_ms:
                self._unpause(lane)
            if lane.flying and lane.resend_at_ms <= now_ms:
                lane.step += 1
                self._trace.note(
                    now_ms, (session,), "no answer, %d rows again, step %d",
                    len(lane.flying), lane.step,
                )  # fmt: skip
                self._take_back(lane, list(lane.flying.values()))
            self._wake(lane)
            self._arm(lane)

    # -- answers ---------------------------------------------------------------------------------

    def _acked(self, rows: Iterable[AckRow], now_ms: int, effects: list[Effect]) -> None:
        acks: list[AckRow] = []
        keys: list[Key] = []
        for entry in rows:
            session, n = entry[0], entry[1]
            lane = self._lanes.get(session)
            row = lane.rows.get(n) if lane else None
            if lane is None or row is None or not row.attempts:
                continue  # answered before, or never sent by us
            if row.row.kind != EventKind.VOID or row.refusal is not None:
                acks.append(entry)
            keys.append((session, n))
            lane.window = min(lane.window + 1, DEVICE_WINDOW)
            self._progress(lane, n, now_ms)
            if self._flying_max < IN_FLIGHT_ROWS_MAX:
                self._flying_max += IN_FLIGHT_GROWTH / self._flying_max
            self._drop(lane, row)
            self._trace.note(now_ms, (session, n), "acked, seq %d epoch %d", entry[2], entry[3])
            self._wake(lane)
            self._retire(lane)
        if acks:
            effects.append(Settle(acks))
        if keys:
            effects.append(DeleteRows(keys))

    def _nacked(self, entry: NackRow, now_ms: int, effects: list[Effect]) -> None:
        lane = self._lanes.get(entry.session)
        row = lane.flying.get(entry.n) if lane else None
        if lane is None or row is None:
            return  # an answer to an earlier copy; the copy in the queue will get its own
        row.error = error_for(entry.code, entry.detail, entry.retry_after_ms)
        key = (entry.session, entry.n)
        self._trace.note(now_ms, key, "nack %d %s", entry.code, entry.detail)
        match row.error:
            case OutOfOrder():
                self._out_of_order(lane, row, entry, now_ms, effects)
            case KeyConflict():
                self._key_conflict(lane, row, entry, now_ms, effects)
            case RequestError() if not isinstance(row.error, Unauthenticated):
                self._refused(lane, row, entry, now_ms, effects)
            case Overloaded():
                self._ease(entry, now_ms)
                self._stumble(lane, [row], entry, now_ms, ladder_ms(lane.step, self._rng))
            case _:
                # A token that ran out says nothing about the message, nor does a broken server.
                if not isinstance(row.error, RetryableError) and not lane.back:
                    effects.append(Warn(row.error))
                self._stumble(lane, [row], entry, now_ms, ladder_ms(lane.step, self._rng))
        self._wake(lane)

    def _out_of_order(
        self, lane: _Lane, row: _Row, entry: NackRow, now_ms: int, effects: list[Effect]
    ) -> None:
        """The server lacks ``expected_n``, so it lacks what this connection sent from there on up
        to this row. Later rows in flight will get answers of their own."""
        expected, n = entry.expected_n, entry.n
        missing = [r for r in lane.flying.values() if expected <= r.row.n <= n] or [row]
        lost = 0 < expected < n and expected not in lane.rows
        if lost:
            row.error = OutOfOrder(
                f"the server expects n={expected} of session {lane.session!r}, but this store has "
                "had its ACK: the server lost it, or the store was used with another cluster "
                "(a new cluster needs a new store file); the send waits"
            )
            if lane.step == 0:
                effects.append(Warn(row.error))
        # Sent again at once the first time: what is missing got lost on its way, or follows a row
        # of this run that was refused. When n itself is below what is expected it was accepted,
        # and only its ACK is missing: that is asked for without hurry.
        hurry = not lost and expected <= n and (lane.step == 0 or bool(lane.back))
        wait_ms = 0 if hurry else ladder_ms(max(0, lane.step - 1), self._rng)
        self._stumble(lane, missing, entry, now_ms, wait_ms)

    def _key_conflict(
        self, lane: _Lane, row: _Row, entry: NackRow, now_ms: int, effects: list[Effect]
    ) -> None:
        """The key names another message: this store is an old copy. Never that key again."""
        old = row.row
        self._drop(lane, row)
        if old.kind == EventKind.VOID:
            # An early copy of what the VOID stands for was accepted after all; the counter goes on.
            effects.append(DeleteRows([(old.session, old.n)]))
            self._retire(lane)
            return
        expected = entry.expected_n if entry.expected_n <= N_MAX else 0
        new = old._replace(n=max(self.next_n(old.session), expected))
        self._next_n[old.session] = new.n + 1
        moved = _Row(new, SendState.SAVING)
        moved.moves, moved.error = row.moves + 1, row.error
        self._admit(lane, moved)
        self._trace.note(now_ms, (old.session, old.n), "goes on as n=%d", new.n)
        self._trace.note(now_ms, (new.session, new.n), "was n=%d", old.n)
        if row.moves:
            self._pause(lane, now_ms + ladder_ms(row.moves - 1, self._rng), _Pause.LADDER)
        effects.append(Renumber(old.session, old.n, new.n))
        effects.append(StoreRow(new, replaces=old.n))

    def _refused(
        self, lane: _Lane, row: _Row, entry: NackRow, now_ms: int, effects: list[Effect]
    ) -> None:
        """Put a VOID in the row's place. The user hears of it when the VOID is on disk: otherwise
        a crash now would send the original again, after it had been reported as refused."""
        if row.row.kind == EventKind.VOID:
            self._void_refused(lane, row, entry, now_ms)
            return
        row.refusal = row.error
        self._bytes -= len(row.row.body)
        self._take_back(lane, [row])
        row.row = row.row._replace(kind=EventKind.VOID, body=b"")
        row.state = SendState.SAVING
        self._trace.note(now_ms, (row.row.session, row.row.n), "refused, a VOID takes its place")
        effects.append(StoreRow(row.row, replaces=row.row.n))

    def _void_refused(self, lane: _Lane, row: _Row, entry: NackRow, now_ms: int) -> None:
        """Not even the VOID is let in, as in a session that the user may not write to. It waits;
        sends behind it go out with it and get answers of their own."""
        self._stumble(lane, [row], entry, now_ms, ladder_ms(lane.step, self._rng))
        if all(r.row.kind == EventKind.VOID for r in lane.rows.values()):
            self._pause(lane, now_ms + stretched_ms(VOID_RETRY_MS, self._rng), _Pause.IDLE)

    def _stumble(
        self, lane: _Lane, rows: list[_Row], entry: NackRow, now_ms: int, wait_ms: int
    ) -> None:
        """Take ``rows`` back and pause the session: one pause and one step of the ladder per run,
        however many NACKs it gets. The server's wish goes before our own wait."""
        if not lane.back:
            lane.step += 1
        self._take_back(lane, rows)
        if entry.retry_after_ms > 0:
            wish = stretched_ms(min(entry.retry_after_ms, RETRY_AFTER_MS_MAX), self._rng)
            self._pause(lane, now_ms + wish, _Pause.SERVER)
        elif wait_ms and lane.pause is _Pause.NONE:
            self._pause(lane, now_ms + wait_ms, _Pause.LADDER)

    def _ease(self, entry: NackRow, now_ms: int) -> None:
        """Have half as many in flight, once for all that is refused together."""
        if now_ms >= self._eased_until_ms:
            many = min(self._flying_max, self._flying)
            self._flying_max = max(many / 2, float(IN_FLIGHT_ROWS_MIN))
            wait_ms = entry.retry_after_ms or LADDER_MS[0]
            self._eased_until_ms = now_ms + min(wait_ms, RETRY_AFTER_MS_MAX)
            self._trace.note(now_ms, ("connection",), "eased to %d rows", int(self._flying_max))

    # -- sending ---------------------------------------------------------------------------------

    def _pump(self, now_ms: int, effects: list[Effect]) -> None:
        if not self._connected or not self._ready:
            return
        batch: list[OutboxRow] = []
        for _ in range(len(self._ready)):
            if not self._room():
                break
            lane = self._ready.popleft()
            lane.ready = False
            self._fill(lane, batch, now_ms)
        if batch:
            effects.append(SendRows(batch))

    def _fill(self, lane: _Lane, batch: list[OutboxRow], now_ms: int) -> None:
        """Send what the session may send now."""
        if lane.pause is not _Pause.NONE or (lane.back and lane.flying):
            return
        if lane.back:
            again = sorted((r for r in lane.back if not r.gone), key=_n_of)
            lane.queue.extendleft(reversed(again))
            lane.back.clear()
            if any(isinstance(row.error, OutOfOrder) for row in again):
                lane.window = max(1, lane.window // 2)
        queue, flying, window = lane.queue, lane.flying, min(lane.window, self._window)
        floor = next(iter(flying), 0)
        sent = 0
        while queue and self._room():
            row = queue[0]
            if row.gone:
                queue.popleft()
                continue
            n = row.row.n
            # The server remembers a device's last window directly: no send may be further ahead
            # of the oldest one without an answer.
            floor = floor or n
            if row.state is SendState.SAVING or n >= floor + window:
                break
            queue.popleft()
            self._launch(lane, row, now_ms)
            batch.append(row.row)
            sent += 1
        if sent:
            if len(flying) == sent:
                lane.resend_at_ms = now_ms + ladder_ms(lane.step, self._rng)
            self._arm(lane)
        if queue and not self._room():
            self._wake(lane)

    def _launch(self, lane: _Lane, row: _Row, now_ms: int) -> None:
        row.state = SendState.IN_FLIGHT
        row.attempts += 1
        row.sent_ms = now_ms
        lane.flying[row.row.n] = row
        self._flying += 1
        self._flying_bytes += len(row.row.body)
        self._trace.note(now_ms, (lane.session, row.row.n), "sent, attempt %d", row.attempts)

    def _room(self) -> bool:
        return self._flying < self._flying_max and self._flying_bytes < IN_FLIGHT_BYTES_MAX

    # -- bookkeeping -----------------------------------------------------------------------------

    def _lane(self, session: str) -> _Lane:
        lane = self._lanes.get(session)
        if lane is None:
            lane = self._lanes[session] = _Lane(session)
        return lane

    def _admit(self, lane: _Lane, row: _Row) -> None:
        lane.rows[row.row.n] = row
        lane.queue.append(row)
        self._rows += 1
        self._bytes += len(row.row.body)

    def _land(self, lane: _Lane, row: _Row) -> None:
        if lane.flying.pop(row.row.n, None) is not None:
            self._flying -= 1
            self._flying_bytes -= len(row.row.body)

    def _drop(self, lane: _Lane, row: _Row) -> None:
        self._land(lane, row)
        del lane.rows[row.row.n]
        row.gone = True
        self._rows -= 1
        self._bytes -= len(row.row.body)

    def _retire(self, lane: _Lane) -> None:
        """Forget a session without rows: only its counter is worth the memory."""
        if not lane.rows and self._lanes.get(lane.session) is lane:
            del self._lanes[lane.session]
            self._alarms.clear(lane.session)

    def _take_back(self, lane: _Lane, rows: list[_Row]) -> None:
        for row in rows:
            self._land(lane, row)
            row.state = SendState.PENDING
            lane.back.append(row)

    def _progress(self, lane: _Lane, n: int, now_ms: int) -> None:
        """Only an answer for the oldest row in flight restarts the ladder: if later ones did, one
        lost ACK could stay lost for as long as the session is busy."""
        if next(iter(lane.flying), 0) == n:
            lane.step = 0
            lane.resend_at_ms = now_ms + ladder_ms(0, self._rng)
            self._arm(lane)

    def _pause(self, lane: _Lane, until_ms: int, why: _Pause) -> None:
        lane.pause = why
        lane.paused_until_ms = max(lane.paused_until_ms, until_ms)
        self._arm(lane)

    def _unpause(self, lane: _Lane) -> None:
        lane.pause = _Pause.NONE
        lane.paused_until_ms = 0
        self._arm(lane)

    def _arm(self, lane: _Lane) -> None:
        wake_ms = lane.paused_until_ms
        if lane.flying and (not wake_ms or lane.resend_at_ms < wake_ms):
            wake_ms = lane.resend_at_ms
        if wake_ms:
            self._alarms.set(lane.session, wake_ms)
        else:
            self._alarms.clear(lane.session)

    def _wake(self, lane: _Lane) -> None:
        if not lane.ready and lane.rows:
            lane.ready = True
            self._ready.append(lane)

    def validate_state(self) -> None:
        """Assert what must always hold; for tests, after every step."""
        flying = 0
        for lane in self._lanes.values():
            queued = [r.row.n for r in lane.queue if not r.gone]
            back = [r.row.n for r in lane.back if not r.gone]
            assert sorted([*queued, *back, *lane.flying]) == sorted(lane.rows), lane.session
            assert queued == sorted(queued)
            assert list(lane.flying) == sorted(lane.flying)
            assert not queued or all(n < queued[0] for n in (*back, *lane.flying))
            assert lane.rows
            assert all(n < self.next_n(lane.session) for n in lane.rows)
            assert len(lane.flying) <= self._window
            assert all(r.state is SendState.IN_FLIGHT for r in lane.flying.values())
            flying += len(lane.flying)
        assert flying == self._flying
        assert self._connected or not flying
        assert self._rows == sum(len(lane.rows) for lane in self._lanes.values())
        assert self._bytes == sum(
            len(r.row.body) for lane in self._lanes.values() for r in lane.rows.values()
        )
        assert self._flying_bytes == sum(
            len(r.row.body) for lane in self._lanes.values() for r in lane.flying.values()
        )


def _n_of(row: _Row) -> int:
    return row.row.n


def _view(row: _Row) -> RowView:
    return RowView(row.row, row.state, row.attempts, row.sent_ms, row.error)
