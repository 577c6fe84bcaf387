"""One sending connection.

The hot path is ``submit`` and ``_acked``. What the server refuses for now goes the way of
``Stalled``: nothing more is sent to that session before everything that was sent has its answer and
the time that the server asked for has passed; then it goes on from the lowest message without ACK.
So does what is above the messages that may be in flight on this connection: as many as the SDK has,
half of that after each OVERLOADED, and more again with the ACKs.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, Any

from im_actors.cli.bench.wire import Wire, micros
from im_actors.core.model import COPIES, DEVICE_WINDOW
from im_actors.core.outbox import IN_FLIGHT_GROWTH, IN_FLIGHT_ROWS_MAX, IN_FLIGHT_ROWS_MIN
from im_actors.errors import ImError, OutOfOrder, Overloaded
from im_actors.wire import messages as m
from im_actors.wire.codec import FrameDecoder, encode_frame

if TYPE_CHECKING:
    from im_actors.cli.bench.generator import Generator

FRAME_BYTES = 512 * 1024
"""Most bytes of bodies in one SEND."""
RETRYABLE = range(200, 300)
RETRY_MS_DEFAULT = 1_000
"""The wait when a refusal names none."""

put_stamp = Struct(">Q").pack


def _new_entries() -> array[int]:
    return array("q")


class Stalled:
    """A session that the server has refused a message of."""

    __slots__ = ("lowest", "retry_ms", "sent", "waiting")

    def __init__(self, lowest: int, sent: int, waiting: int) -> None:
        self.lowest = lowest
        """Below this n everything is ACKed."""
        self.sent = sent
        """Up to this n everything was sent at least once."""
        self.waiting = waiting
        """Messages that were sent and have no answer yet."""
        self.retry_ms = 0
        """The longest wait that was asked for since the last try."""


class Sender(Wire):
    """One device. ``sent`` has per session, at n - 1, the time at which message n was meant to be
    sent and, once it is ACKed, the negative of its seq."""

    def __init__(self, run: Generator, number: int, draws: Iterator[str]) -> None:
        load = run.load
        super().__init__(load.device(number), load.user, load.token)
        self.run = run
        self.number = number
        self.sent: defaultdict[str, array[int]] = defaultdict(_new_entries)
        self.unacked = 0
        self.flying = 0
        """Sent, and not answered yet."""
        self.flying_max = float(IN_FLIGHT_ROWS_MAX)
        self._eased_until = 0
        self._ready: deque[str] = deque()
        """Stalled sessions that wait for nothing but room."""
        self._next_session = draws.__next__
        self._filler = run.filler
        self._entries_max = max(1, min(DEVICE_WINDOW, FRAME_BYTES // load.bytes))
        self._stalled: dict[str, Stalled] = {}
        self._resent: set[tuple[str, int]] = set()
        self._decoder = FrameDecoder()

    # ---- the hot path

    def submit(self, count: int, at: int) -> None:
        """Send so many messages that are due at this time."""
        sent, next_session, stalled = self.sent, self._next_session, self._stalled
        body = put_stamp(at) + self._filler
        entries: list[tuple[str, int, int, bytes]] = []
        room = int(self.flying_max) - self.flying
        for _ in range(count):
            session = next_session()
            times = sent[session]
            times.append(at)
            if stalled and session in stalled:
                continue
            if len(entries) >= room:
                self._hold_back(session)
                continue
            entries.append((session, len(times), 1, body))
        self.unacked += count
        self._write(entries)

    def data_received(self, data: bytes) -> None:
        run = self.run
        answered = 0
        for message in self._decoder.feed(data):
            if message[0] == m.ACK:
                self._acked(message[1])
                answered += len(message[1])
            elif message[0] == m.NACK:
                self._refused(message[1])
                self.flying -= len(message[1])
            else:
                self.rare(message)
        if self._decoder.error is not None:
            self._end(self._decoder.error)
        if answered:
            self.unacked -= answered
            self.flying -= answered
            run.acked += answered
            if self.flying_max < IN_FLIGHT_ROWS_MAX:
                self.flying_max += answered * IN_FLIGHT_GROWTH / self.flying_max
            if run.closed_loop:
                now = micros()
                if now < run.ends:
                    self.submit(answered, now)
        if self._ready:
            self._fill()

    def _acked(self, rows: list[list[Any]]) -> None:
        run, sent, stalled = self.run, self.sent, self._stalled
        since, append = run.since, run.ack.raw.append
        now = micros()
        for session, n, seq, _, copies, _ in rows:
            times = sent[session]
            started = times[n - 1]
            if started <= 0 or copies != COPIES:
                self._strange_ack(session, n, seq, copies)
                continue
            times[n - 1] = -seq
            if started >= since:
                append(now - started)
            if stalled and session in stalled:
                self._answered(session, stalled[session])

    # ---- the rest

    def _write(self, entries: list[tuple[str, int, int, bytes]]) -> None:
        most = self._entries_max
        self.flying += len(entries)
        if 0 < len(entries) <= most:
            self._transport.write(encode_frame((m.SEND, entries)))
        else:
            for start in range(0, len(entries), most):
                self._transport.write(encode_frame((m.SEND, entries[start : start + most])))

    def _strange_ack(self, session: str, n: int, seq: int, copies: int) -> None:
        """A resend may be ACKed twice, with the same seq; anything else is wrong."""
        self.unacked += 1
        self.run.acked -= 1
        if copies != COPIES:
            self.run.problem(f"the ACK of {session} {n} tells of {copies} copies")
        elif (session, n) not in self._resent or self.sent[session][n - 1] != -seq:
            self.run.problem(f"{self.device} {session} {n} was ACKed again, as {seq}")

    def _refused(self, rows: list[list[Any]]) -> None:
        for session, n, code, retry_after_ms, _, detail in rows:
            self.run.refused[code] += 1
            if code not in RETRYABLE and code != OutOfOrder.code:
                self.run.problem(f"{session} {n} was refused for good: {code} {detail}")
                continue
            stalled = self._stalled.get(session)
            if stalled is None:
                stalled = self._stall(session)
            if code == Overloaded.code:
                self._ease(retry_after_ms or RETRY_MS_DEFAULT)
            if code in RETRYABLE:
                stalled.retry_ms = max(stalled.retry_ms, retry_after_ms or RETRY_MS_DEFAULT)
                if not retry_after_ms:
                    self.run.without_wait += 1
            self._answered(session, stalled)

    def _ease(self, wait_ms: int) -> None:
        """Have half as many in flight, once for all that is refused together."""
        now = micros()
        if now >= self._eased_until:
            self._eased_until = now + wait_ms * 1000
            many = min(self.flying_max, self.flying)
            self.flying_max = max(many / 2, float(IN_FLIGHT_ROWS_MIN))

    def _hold_back(self, session: str) -> None:
        """There is no room for the newest message of the session."""
        stalled = self._stall(session)
        stalled.sent -= 1
        stalled.waiting -= 1
        if not stalled.waiting:
            self._ready.append(session)

    def _fill(self) -> None:
        """Go on with what waited for room."""
        for _ in range(len(self._ready)):
            if self.flying >= self.flying_max:
                return
            self._try_again(self._ready.popleft())

    def _stall(self, session: str) -> Stalled:
        """What has no ACK is at the end: a window of ACKs in a row is below all of it."""
        times = self.sent[session]
        lowest, waiting, acked = len(times), 0, 0
        for n in range(len(times), 0, -1):
            if times[n - 1] > 0:
                lowest, waiting, acked = n, waiting + 1, 0
            elif (acked := acked + 1) == DEVICE_WINDOW:
                break
        stalled = self._stalled[session] = Stalled(lowest, len(times), waiting)
        return stalled

    def _answered(self, session: str, stalled: Stalled) -> None:
        """One more answer; after the last one the session is tried again."""
        stalled.waiting -= 1
        if stalled.waiting:
            return
        if not stalled.retry_ms:
            self._ready.append(session)
            return
        wait_s = stalled.retry_ms / 1000 * self.run.rng.uniform(1.0, 1.2)
        asyncio.get_running_loop().call_later(wait_s, self._try_again, session)

    def _try_again(self, session: str) -> None:
        """Send from the lowest message without ACK on, a window full at most."""
        room = int(self.flying_max) - self.flying
        if room <= 0:
            self._ready.append(session)
            return
        stalled, times = self._stalled[session], self.sent[session]
        missing = (n for n in range(stalled.lowest, len(times) + 1) if times[n - 1] > 0)
        part = list(islice(missing, min(room, DEVICE_WINDOW)))
        if not part:
            del self._stalled[session]
            return
        stalled.lowest = part[0]
        self._resent.update((session, n) for n in part if n <= stalled.sent)
        stalled.sent = max(stalled.sent, part[-1])
        stalled.waiting, stalled.retry_ms = len(part), 0
        self._write([(session, n, 1, put_stamp(times[n - 1]) + self._filler) for n in part])

    def failed(self, error: ImError) -> None:
        self.run.problem(str(error))
