"""Sends: from clients to the shards that own their slots, and the answers back.

This is the hot path. A row that goes well costs a few dict operations: it is remembered by its
token, joins the batch of its shard, and leaves with it at the end of this turn of the event loop;
its answer finds the connection by the token. Rows that do not go well (their slot moves, their
shard is gone or silent) are held and offered again until they are settled or too old (``held``).
Offering a row twice is harmless: the key (session, device, n) makes the second copy the first
one's echo.

Answers come to the client in one write per turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from im_actors.core.story import Story
from im_actors.errors import (
    BadRequest,
    Forbidden,
    ImError,
    NotFound,
    OutOfOrder,
    Overloaded,
    SlotMoving,
    TooLarge,
    TooLate,
    Unknown,
    error_for,
)
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.held import HeldRow, HeldSlot, Row, Sender
from im_actors.gateway.latencies import Latencies
from im_actors.gateway.peers import Peers, RouteChange, ShardPeer
from im_actors.wire.links import LINK_FRAME_BYTES_MAX, InsideType, pack_frame
from im_actors.wire.messages import nack_of

ROW_OVERHEAD_BYTES = 600
"""All of a row of SUBMIT but its body, at most."""
SUBMIT_ROWS_MAX = 16_384
"""Most rows of one SUBMIT."""
PROBE_ROWS = 32
"""Rows offered to a shard of which nothing says that it serves again."""
HEADS_CACHED_MAX = 131_072
"""Sessions whose last ACKed seq is remembered; the cache starts over when it is full."""
COPIES_ACKED = 3

_SUBMIT = int(InsideType.SUBMIT)
_OUT_OF_ORDER = OutOfOrder.code
_ASK_AGAIN = frozenset((SlotMoving.code, Unknown.code))
_DETAILS = {
    OutOfOrder.code: "an earlier send of this device has to come first",
    Overloaded.code: "the session's shard has too much to do",
    BadRequest.code: "the session does not take a change of this form",
    TooLarge.code: "the change is too large: make it in several parts",
    Forbidden.code: "this user may not do that in this session",
    NotFound.code: "what it names does not exist here",
    TooLate.code: "the time for it is over, or it has happened already",
}


class Router:
    """Every row that a client has sent and that has no answer yet.

    ``call_soon`` runs a function after all that is ready in this turn of the event loop.
    """

    def __init__(
        self, peers: Peers, config: GatewayConfig, call_soon: Callable[[Callable[[], None]], object]
    ) -> None:
        self._peers = peers
        self._config = config
        self._call_soon = call_soon
        self._flush_planned = False
        self._token = 0
        self._batches: list[list[tuple[Any, ...]] | None] = []
        """By slot: where its new rows go. None: its owner is not known or not connected, or rows
        are held before which they must not come."""
        self._in_flight: dict[int, tuple[Sender, Row]] = {}
        """By token, ascending."""
        self._held: dict[int, HeldSlot] = {}
        """By slot."""
        self._slot_of_held: dict[int, int] = {}
        """By token."""
        self._expiries: deque[tuple[int, int]] = deque()
        """(since_ms, token) of held rows, the oldest first; also of some that are settled."""
        self._marks: deque[tuple[int, int]] = deque()
        """(time, highest token of then): tells how old a row in flight is."""
        self._unanswered: list[Sender] = []
        """Senders with answers that have not been sent yet."""
        self.heads: dict[str, int] = {}
        """By session: the highest seq that was ACKed here."""
        self.outstanding_bytes = 0
        self.accepted = 0
        self.acked = 0
        self.nacked = 0
        self.offered_again = 0
        self.latencies = Latencies()
        self.story = Story()

    # ---- from clients

    @property
    def outstanding(self) -> int:
        return len(self._in_flight) + len(self._slot_of_held)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for anybody's rows."""
        config = self._config
        return (
            self.outstanding >= config.outstanding_rows_max
            or self.outstanding_bytes >= config.outstanding_bytes_max
        )

    def held_rows(self) -> dict[int, int]:
        """By slot: rows that wait, or were offered again."""
        return {slot: len(held_slot) for slot, held_slot in self._held.items()}

    def submit(self, sender: Sender, entries: Sequence[Sequence[Any]], now_ms: int) -> None:
        """Take entries [session, n, kind, body] that were checked. Each is answered once, by a
        row in the sender's lists, unless the sender is gone by then."""
        room = min(
            self._config.outstanding_per_connection - sender.outstanding,
            self._config.outstanding_rows_max - self.outstanding,
        )
        if len(entries) > room or self.outstanding_bytes >= self._config.outstanding_bytes_max:
            entries = self._refuse_excess(sender, entries, room)
        batches = self._batches
        if not batches:
            self.refuse(sender, entries, SlotMoving("this gateway is starting"))
            return
        slots, in_flight = self._peers.slot_cache, self._in_flight
        device, token, size = sender.address, self._token, 0
        for session, n, kind, body in entries:
            slot = slots.get(session)
            if slot is None:
                slot = self._peers.slot_of(session)
            token += 1
            row = (token, slot, session, device, n, kind, body)
            size += len(body)
            batch = batches[slot]
            if batch is None:
                self._hold(HeldRow(sender, row, now_ms), False, now_ms)
            else:
                in_flight[token] = (sender, row)
                batch.append(row)
        self._token = token
        if self.latencies.send_due and entries:
            self.latencies.sent(token, now_ms)
        self.accepted += len(entries)
        sender.outstanding += len(entries)
        self.outstanding_bytes += size
        self._plan_flush()

    def refuse(self, sender: Sender, entries: Iterable[Sequence[Any]], error: ImError) -> None:
        """Answer entries that were not taken."""
        error.retry_after_ms = error.retry_after_ms or self._config.retry_after_ms
        for entry in entries:
            self._nack(sender, nack_of(entry[0], entry[1], error))

    def nack(self, sender: Sender, rows: Iterable[tuple[Any, ...]]) -> None:
        """Give ``sender`` rows of a NACK that were made elsewhere."""
        for row in rows:
            self._nack(sender, row)

    def _refuse_excess(
        self, sender: Sender, entries: Sequence[Sequence[Any]], room: int
    ) -> Sequence[Sequence[Any]]:
        """Returns the part that there is room for."""
        if self.outstanding_bytes >= self._config.outstanding_bytes_max:
            room = 0
        room = max(0, room)
        if sender.outstanding + len(entries) > self._config.outstanding_per_connection:
            limit = self._config.outstanding_per_connection
            error = Overloaded(f"this connection has {limit} sends without an answer")
        else:
            error = Overloaded("this gateway has too many sends without an answer")
        self.refuse(sender, entries[room:], error)
        return entries[:room]

    # ---- from shards

    def results(self, shard: ShardPeer, rows: Iterable[Sequence[Any]], now_ms: int) -> None:
        """Answers: [token, code, seq, epoch, time_ms, expected_n]. Call ``flush_answers`` after
        all that one read brought."""
        pop, unanswered, heads = self._in_flight.pop, self._unanswered, self.heads
        acked = size = 0
        for token, code, seq, epoch, time_ms, expected_n in rows:
            if code:
                self._not_acked(shard, token, code, expected_n, now_ms)
                continue
            found = pop(token, None)
            if found is None:
                found = self._settle_held(shard, token, now_ms)
                if found is None:
                    continue
            sender, row = found
            session = row[2]
            answers = sender.ack_rows
            if not answers:
                unanswered.append(sender)
            answers.append((session, row[4], seq, epoch, COPIES_ACKED, time_ms))
            sender.outstanding -= 1
            size += len(row[6])
            acked += 1
            if heads.get(session, 0) < seq:
                heads[session] = seq
        self.acked += acked
        self.outstanding_bytes -= size
        if len(heads) > HEADS_CACHED_MAX:
            heads.clear()
        if self.latencies.followed:
            self.latencies.answered(self._is_open, now_ms)

    def _is_open(self, token: int) -> bool:
        return token in self._in_flight or token in self._slot_of_held

    def flush_answers(self) -> None:
        """Give the connections what has gathered for them."""
        unanswered, self._unanswered = self._unanswered, []
        for sender in unanswered:
            sender.flush_answers()

    def _not_acked(
        self, shard: ShardPeer, token: int, code: int, expected_n: int, now_ms: int
    ) -> None:
        slot = self._slot_of_held.get(token)
        found = self._in_flight.get(token)
        if found is not None:
            slot = found[1][1]
        if slot is None or self._peers.routes[slot] is not shard:
            # Settled long ago, or from a former owner: the present one was asked and will answer.
            return
        if code in _ASK_AGAIN or (code == _OUT_OF_ORDER and self._too_early(token, expected_n)):
            self._came_back(slot, token, now_ms)
            return
        found = self._in_flight.pop(token, None) or self._settle_held(shard, token, now_ms)
        assert found is not None
        sender, row = found
        detail = _DETAILS.get(code, "")
        retry_after_ms = self._config.retry_after_ms if code == Overloaded.code else 0
        self._forget(sender, row)
        nack = nack_of(row[2], row[4], error_for(code, detail, retry_after_ms), expected_n)
        # A code that this release does not know passes as it is.
        self._nack(sender, nack._replace(code=code))
        self.story.note(now_ms, (row[2], row[4]), "refused by %s: %d", shard.name, code)

    def _too_early(self, token: int, expected_n: int) -> bool:
        """Whether the send that the shard misses is held here: then this one overtook it."""
        slot = self._slot_of_held.get(token)
        if slot is None:
            row = self._in_flight[token][1]
        else:
            held_slot = self._held[slot]
            row = (held_slot.offered.get(token) or held_slot.waiting[token]).row
        held = self._held.get(row[1])
        return held is not None and held.holds(row[2], row[3], expected_n)

    # ---- what is held

    def _hold(self, held: HeldRow, handed: bool, now_ms: int) -> HeldSlot:
        slot, token = held.row[1], held.row[0]
        held_slot = self._held.get(slot)
        if held_slot is None:
            held_slot = self._held[slot] = HeldSlot(slot, self._config.retry_ms_min, now_ms)
        held_slot.hold(held, handed)
        self._slot_of_held[token] = slot
        self._expiries.append((now_ms, token))
        return held_slot

    def _came_back(self, slot: int, token: int, now_ms: int) -> None:
        """The shard may not own the slot any more; the row waits for the one that does."""
        found = self._in_flight.pop(token, None)
        if found is not None:
            held_slot = self._hold(HeldRow(*found, now_ms), True, now_ms)
        else:
            held_slot = self._held[slot]
        held_slot.came_back(token)
        self._batches[slot] = None

    def _hold_in_flight(self, slots: set[int] | frozenset[int], now_ms: int) -> None:
        """Nobody is going to answer what is in flight of these slots."""
        lost = [found for found in self._in_flight.values() if found[1][1] in slots]
        for sender, row in lost:
            del self._in_flight[row[0]]
            self._hold(HeldRow(sender, row, now_ms), True, now_ms)
        for slot in slots:
            held_slot = self._held.get(slot)
            if held_slot is not None:
                held_slot.all_back()
            self._batches[slot] = None

    def _settle_held(self, shard: ShardPeer, token: int, now_ms: int) -> tuple[Sender, Row] | None:
        """Take a held row that was answered. That it was says that its shard serves again."""
        slot = self._slot_of_held.pop(token, None)
        if slot is None:
            return None
        held_slot = self._held[slot]
        held = held_slot.take(token)
        assert held is not None
        # A former owner may answer late; that says nothing of the present one.
        if self._peers.routes[slot] is shard:
            held_slot.flowing = True
            if held_slot.waiting:
                self._offer(held_slot, len(held_slot.waiting), now_ms)
        self._reopen(slot)
        return held.sender, held.row

    def _reopen(self, slot: int) -> None:
        """Let new rows of the slot pass, if they may."""
        held_slot = self._held.get(slot)
        if held_slot is not None and not len(held_slot):
            del self._held[slot]
            held_slot = None
        shard = self._peers.routes[slot]
        free = held_slot is None or held_slot.flowing
        self._batches[slot] = shard.batch if shard is not None and shard.up and free else None

    def _offer(self, held_slot: HeldSlot, count: int, now_ms: int) -> None:
        """Send waiting rows to the slot's present owner, if it is connected."""
        shard = self._peers.routes[held_slot.slot]
        held_slot.back_off(self._config.retry_ms_max, now_ms)
        if shard is None or not shard.up:
            return
        rows = held_slot.offer(count, now_ms)
        self.offered_again += len(rows)
        shard.batch += rows
        for row in rows:
            self.story.note(now_ms, (row[2], row[4]), "offered again to %s", shard.incarnation)
        self._plan_flush()

    # ---- shards and directory

    def shard_up(self, shard: ShardPeer, now_ms: int) -> None:
        """Offer it what waits for it."""
        for slot in shard.slots:
            held_slot = self._held.get(slot)
            if held_slot is not None:
                # Nothing is offered: going down took it all back.
                count = len(held_slot) if self._peers.serves(slot) else PROBE_ROWS
                self._offer(held_slot, count, now_ms)
            self._reopen(slot)

    def shard_down(self, shard: ShardPeer, now_ms: int) -> None:
        """What it has not answered is unknown."""
        shard.batch.clear()
        self._hold_in_flight(shard.slots, now_ms)

    def routes_changed(self, changes: dict[int, RouteChange], now_ms: int) -> None:
        """Everything of a slot that has another owner now is offered to that one, in order: what
        the old one has not answered, too."""
        missing = self._peers.slots - len(self._batches)
        self._batches.extend([None] * missing)
        moved = {slot for slot, change in changes.items() if change.after is not change.before}
        if self._in_flight or self._held:
            self._hold_in_flight(moved, now_ms)
        for slot, change in changes.items():
            held_slot = self._held.get(slot)
            if held_slot is not None and held_slot.waiting:
                count = len(held_slot.waiting) if change.serves else PROBE_ROWS
                if change.serves:
                    # The directory may know it a moment before the shard itself does.
                    held_slot.start_over(self._config.retry_ms_min)
                self._offer(held_slot, count, now_ms)
            self._reopen(slot)

    # ---- time

    def tick(self, now_ms: int) -> None:
        """Ask again, and give up what is too old."""
        if self._marks or self._in_flight:
            self._find_unanswered(now_ms)
        if self._held:
            self._expire(now_ms)
            self._retry(now_ms)
            self.flush_answers()
        else:
            self._expiries.clear()

    def _find_unanswered(self, now_ms: int) -> None:
        marks = self._marks
        if not marks or marks[-1][1] != self._token:
            marks.append((now_ms, self._token))
        overdue = 0
        while marks and marks[0][0] + self._config.answer_ms <= now_ms:
            overdue = marks.popleft()[1]
        late = []
        for token, found in self._in_flight.items():
            if token > overdue:
                break
            late.append(found)
        for _, row in late:
            self.story.note(now_ms, (row[2], row[4]), "no answer from its shard")
            self._came_back(row[1], row[0], now_ms)

    def _expire(self, now_ms: int) -> None:
        expiries, oldest_ms = self._expiries, now_ms - self._config.hold_ms
        while expiries and (
            expiries[0][0] <= oldest_ms or expiries[0][1] not in self._slot_of_held
        ):
            _, token = expiries.popleft()
            slot = self._slot_of_held.pop(token, None)
            if slot is not None:
                self._give_up(self._held[slot], token, now_ms)

    def _give_up(self, held_slot: HeldSlot, token: int, now_ms: int) -> None:
        handed = held_slot.was_handed(token)
        held = held_slot.take(token)
        assert held is not None
        row = held.row
        self._forget(held.sender, row)
        wait_ms = self._config.retry_after_ms
        error: ImError
        if handed:
            error = Unknown("its shard has not answered; send it again", wait_ms)
        else:
            error = SlotMoving("the session's slot has no owner at the moment", wait_ms)
        self._nack(held.sender, nack_of(row[2], row[4], error))
        self.story.note(now_ms, (row[2], row[4]), "given up, handed out: %s", handed)
        if not len(held_slot):
            self._reopen(held_slot.slot)

    def _retry(self, now_ms: int) -> None:
        for held_slot in list(self._held.values()):
            if held_slot.offered:
                if held_slot.offered_at_ms + self._config.answer_ms > now_ms:
                    continue
                held_slot.all_back()
                self._batches[held_slot.slot] = None
            if held_slot.waiting and held_slot.try_at_ms <= now_ms:
                self._offer(held_slot, PROBE_ROWS, now_ms)

    # ---- inside

    def _forget(self, sender: Sender, row: Row) -> None:
        sender.outstanding -= 1
        self.outstanding_bytes -= len(row[6])

    def _nack(self, sender: Sender, nack: tuple[Any, ...]) -> None:
        self.nacked += 1
        if not sender.nack_rows:
            self._unanswered.append(sender)
        sender.nack_rows.append(nack)

    def _plan_flush(self) -> None:
        if not self._flush_planned:
            self._flush_planned = True
            self._call_soon(self._flush)

    def _flush(self) -> None:
        """One frame for each shard that this turn of the loop has rows for."""
        self._flush_planned = False
        for shard in self._peers.shards.values():
            batch = shard.batch
            if not batch:
                continue
            # The batch is a part of what is outstanding, so mostly nothing has to be counted.
            most = self.outstanding_bytes + len(batch) * ROW_OVERHEAD_BYTES
            if most <= LINK_FRAME_BYTES_MAX // 2 and len(batch) <= SUBMIT_ROWS_MAX:
                shard.send_now(pack_frame((_SUBMIT, batch)))
            else:
                for part in _parts(batch):
                    shard.send_now(pack_frame((_SUBMIT, part)))
            batch.clear()


def _parts(rows: list[tuple[Any, ...]]) -> Iterable[list[tuple[Any, ...]]]:
    """Rows in parts that fit a frame each."""
    part: list[tuple[Any, ...]] = []
    room = LINK_FRAME_BYTES_MAX - ROW_OVERHEAD_BYTES
    for row in rows:
        size = len(row[6]) + ROW_OVERHEAD_BYTES
        if part and (size > room or len(part) == SUBMIT_ROWS_MAX):
            yield part
            part, room = [], LINK_FRAME_BYTES_MAX - ROW_OVERHEAD_BYTES
        part.append(row)
        room -= size
    if part:
        yield part
