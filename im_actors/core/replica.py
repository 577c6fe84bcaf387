"""One replica's side of replication: promise, seal, append, cut, backfill (design section 5).

The machine acts on memory first and says what to write; the shell carries the effects out in order.
The contract between them: **a Send leaves, and a Commit counts, only when every Store before it is
on disk**, and the Stores of one ``handle`` call are one transaction. If a write fails the process
must end; it comes back with what the disk really holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from im_actors.core.epochs import cut_epochs, epoch_at
from im_actors.core.messages import (
    Append,
    Appended,
    Committed,
    Drop,
    Dropped,
    Epochs,
    EventFound,
    FactsLoaded,
    Fetch,
    Fetched,
    FindEvent,
    FindKey,
    KeyFound,
    LoadFacts,
    LoadSessions,
    Need,
    Prepare,
    Prepared,
    Refused,
    ReplicaAnswer,
    ReplicaRequest,
    Seal,
    Sealed,
    SessionsLoaded,
)
from im_actors.core.model import Record, View, record_intact, view_of
from im_actors.core.storage_ops import CutRecords, DropSlot, StorageOp, StoreMeta, StoreRecords
from im_actors.core.story import Story
from im_actors.errors import CorruptData, InvariantBroken

BACKFILL_BYTES_MAX = 512 * 1024
BACKFILL_RETRY_MS = 1_000
BACKFILL_SLOTS_MAX = 4
"""Slots that are filled at the same time. With all at once each answer would wait so long behind
the others that it is asked for again, and most of the work would be done twice."""

_new = tuple.__new__
"""Makes a named tuple from a tuple in half the time of a call of its class."""


@dataclass(slots=True)
class Asked:
    """A request came in; ``peer`` is where its answer goes."""

    peer: Any
    request: ReplicaRequest


@dataclass(frozen=True, slots=True)
class Applied:
    """History holds every record of the slot's journal up to ``lsn``, on disk."""

    slot: int
    lsn: int


@dataclass(frozen=True, slots=True)
class PeersChanged:
    """The other replicas that can be asked for backfill."""

    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackfillArrived:
    """A peer answered our Fetch; no records means that it does not have them."""

    replica: str
    answer: Fetched


@dataclass(frozen=True, slots=True)
class HistoryStored:
    """Backfilled records are in history, on disk."""

    slot: int
    first_lsn: int
    last_lsn: int


@dataclass(frozen=True, slots=True)
class HistoryWaits:
    """Backfilled records could not be written: their month was moved to where nothing is now."""

    slot: int


@dataclass(frozen=True, slots=True)
class HistoryDropped:
    """History has forgotten the slot, on disk."""

    slot: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


ReplicaEvent = (
    Asked
    | Applied
    | PeersChanged
    | BackfillArrived
    | HistoryStored
    | HistoryWaits
    | HistoryDropped
    | Tick
)


@dataclass(slots=True)
class Store:
    """Write this in the next journal transaction."""

    op: StorageOp


@dataclass(slots=True)
class Send:
    """Answer a peer. It must not leave before every earlier Store is on disk."""

    peer: Any
    message: ReplicaAnswer


@dataclass(frozen=True, slots=True)
class SendRecords:
    """Read records ``first_lsn`` .. ``last_lsn`` and answer with Fetched."""

    peer: Any
    slot: int
    epoch: int
    first_lsn: int
    last_lsn: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class SendStates:
    """Read session states from the tables and answer with SessionsLoaded."""

    peer: Any
    request: LoadSessions


@dataclass(frozen=True, slots=True)
class SendKey:
    """Look the key up in history and answer with KeyFound."""

    peer: Any
    request: FindKey


@dataclass(frozen=True, slots=True)
class SendFacts:
    """Read facts of a session from the tables and answer with FactsLoaded."""

    peer: Any
    request: LoadFacts


@dataclass(frozen=True, slots=True)
class SendEvent:
    """Read the event in history and answer with EventFound."""

    peer: Any
    request: FindEvent


@dataclass(slots=True)
class Commit:
    """The slot's commit point rose: records up to ``lsn`` may be applied to history."""

    slot: int
    lsn: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Records above ``after_lsn`` were cut: drop them from what waits to be applied."""

    slot: int
    after_lsn: int


@dataclass(frozen=True, slots=True)
class DropHistory:
    """Delete the slot from history once the Stores before it are on disk, then report
    HistoryDropped. (A crash in between leaves a slot without epochs in the journal and with rows in
    history: the shell finishes the deletion when it starts.)"""

    slot: int


@dataclass(frozen=True, slots=True)
class FetchFromPeer:
    """Ask another replica for committed records (backfill)."""

    replica: str
    request: Fetch


@dataclass(frozen=True, slots=True)
class StoreHistory:
    """Write backfilled records to history, then report HistoryStored."""

    slot: int
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that must not happen did; an operator has to look."""

    slot: int
    text: str


ReplicaEffect = (
    Store
    | Send
    | SendRecords
    | SendStates
    | SendKey
    | SendFacts
    | SendEvent
    | Commit
    | Forget
    | DropHistory
    | FetchFromPeer
    | StoreHistory
    | Alarm
)


@dataclass(slots=True)
class SlotLog:
    """What a replica holds of one slot.

    ``held`` are the stretches of the log that are here, ascending; the last one is the one that
    appends go to, its start is ``from_lsn``. More than one stretch means that backfill has work.
    """

    promised: int = 0
    owner: str = ""
    view: View | None = None
    epochs: Epochs = ()
    held: list[list[int]] = field(default_factory=lambda: [[1, 0]])
    commit_lsn: int = 0
    applied_lsn: int = 0
    checksums: dict[int, int] = field(default_factory=dict)
    """Checksums of records that history does not have yet: lsn -> checksum."""
    backfill_due_ms: int = 0
    backfill_source: int = 0
    backfill_busy: bool = False
    """A request is under way; after its deadline another one is made."""
    backfill_storing: bool = False
    """An answer is being written to history: nothing is asked for meanwhile."""
    drain_lsn: int = 0
    """Journaled records below ``from_lsn`` up to here still have to be applied to history; backfill
    waits for that, so that a log without holes means tables without holes."""
    dropping: Any = None
    """Who asked for the deletion that is under way."""

    @property
    def from_lsn(self) -> int:
        return self.held[-1][0]

    @property
    def last_lsn(self) -> int:
        return self.held[-1][1]

    @property
    def complete(self) -> bool:
        return len(self.held) == 1 and self.held[0][0] == 1

    @property
    def answers_reads(self) -> bool:
        """Whether what is not here does not exist. A slot that was deleted here, or never written,
        has no hole either, and knows nothing (I9)."""
        return self.complete and bool(self.epochs)

    @property
    def last_epoch(self) -> int:
        return epoch_at(self.epochs, self.last_lsn)

    def holds(self, first_lsn: int, last_lsn: int) -> bool:
        return any(first <= first_lsn and last_lsn <= last for first, last in self.held)

    def meta(self) -> bytes:
        # applied_lsn too: what came by backfill is in history and was never in the journal.
        ends = (self.commit_lsn, self.applied_lsn)
        fields = (self.promised, self.owner, self.view, self.epochs, self.held, *ends)
        return msgpack.packb(fields)  # type: ignore[no-any-return]

    def validate(self, slot: int) -> None:
        """I4 and I8, as far as one replica can see them."""
        ends = [lsn for stretch in self.held for lsn in stretch]
        epochs = [entry[0] for entry in self.epochs]
        firsts = [entry[1] for entry in self.epochs]
        problems = (
            (any(a > b + 1 for a, b in itertools.pairwise(ends)), "held out of order"),
            (epochs != sorted(set(epochs)), "epochs decrease"),
            (firsts != sorted(set(firsts)), "epoch starts decrease"),
            (self.commit_lsn > max(self.last_lsn, self.from_lsn - 1), "commit above the log"),
            (bool(epochs) and epochs[-1] > self.promised, "a record above the promise"),
        )
        for broken, text in problems:
            if broken:
                raise InvariantBroken(f"I4/I8: slot {slot}: {text}: {self}")


def drop_unfinished(meta: bytes | None) -> bool:
    """A slot without epochs holds no records: rows in history are what a Drop did not get to."""
    return meta is None or not msgpack.unpackb(meta)[3]


def log_from_disk(
    slot: int,
    meta: bytes | None,
    heads: Iterable[Any],
    applied_lsn: int,
    in_history: Callable[[int], bool],
) -> SlotLog:
    """A slot's log as the journal and the history hold it.

    ``heads`` have lsn, epoch, checksum and commit_lsn, ascending; ``in_history`` says whether
    history has a record. Raises CorruptData when they do not continue what history has: a hole is
    never taken for the end of the log.
    """
    log = SlotLog()
    if meta is not None:
        promised, owner, view, epochs, held, commit, applied = msgpack.unpackb(meta)
        applied_lsn = max(applied_lsn, applied)
        log = SlotLog(
            promised,
            owner,
            view_of(view) if view else None,
            tuple(tuple(entry) for entry in epochs),
            [list(stretch) for stretch in held],
            commit,
        )
    last = max(log.from_lsn - 1, applied_lsn if applied_lsn >= log.from_lsn else 0)
    before = 0
    for head in heads:
        if head.lsn > applied_lsn:
            log.checksums[head.lsn] = head.checksum
        log.commit_lsn = max(log.commit_lsn, head.commit_lsn)
        if head.lsn < log.from_lsn:
            if log.drain_lsn and log.holds(log.drain_lsn, head.lsn):
                # What came by backfill between two stretches was never in the journal.
                lost = [lsn for lsn in range(before + 1, head.lsn) if not in_history(lsn)]
                if lost:
                    raise CorruptData(f"slot {slot}: the journal lacks lsn {lost[0]}")
            log.drain_lsn = before = head.lsn
        if head.lsn < log.from_lsn or head.lsn <= last:
            continue
        if head.lsn != last + 1:
            raise CorruptData(
                f"slot {slot}: the journal has lsn {head.lsn} where {last + 1} has to follow"
            )
        if epoch_at(log.epochs, head.lsn) != head.epoch:
            raise CorruptData(f"slot {slot}: lsn {head.lsn} is of another epoch than recorded")
        last = head.lsn
    if meta is not None and last < log.held[-1][1]:
        raise CorruptData(f"slot {slot}: the journal ends at {last}, before {log.held[-1][1]}")
    log.held[-1][1] = last
    log.applied_lsn = max(applied_lsn, log.from_lsn - 1)
    log.commit_lsn = max(min(log.commit_lsn, last), log.applied_lsn)
    log.validate(slot)
    return log


class Replica:
    """All slots of one data directory. ``disk`` is the directory's identity."""

    def __init__(self, name: str, disk: str, logs: dict[int, SlotLog] | None = None) -> None:
        self.name = name
        self.disk = disk
        self.logs: dict[int, SlotLog] = logs or {}
        self.story = Story()
        self._peers: tuple[str, ...] = ()
        self._now_ms = 0
        self._effects: list[ReplicaEffect] = []
        self._answers: dict[type, Callable[[Any, Any], None]] = {
            Seal: self._seal,
            Prepare: self._prepare,
            Append: self._append,
            Committed: self._committed,
            Fetch: self._fetch,
            Drop: self._drop,
            LoadSessions: self._load_sessions,
            FindKey: self._find_key,
            LoadFacts: self._load_facts,
            FindEvent: self._find_event,
        }

    def handle(self, event: ReplicaEvent, now_ms: int) -> list[ReplicaEffect]:
        """Take in one event; the effects are to be carried out in order."""
        self._now_ms = now_ms
        effects: list[ReplicaEffect] = []
        self._effects = effects
        if type(event) is Asked:
            # Compared by type: what comes with each record need not wait for a match statement.
            request = event.request
            self._answers[type(request)](event.peer, request)
            return effects
        match event:
            case Applied(slot, lsn):
                self._applied(slot, lsn)
            case PeersChanged(replicas):
                self._peers = tuple(r for r in replicas if r != self.name)
            case BackfillArrived(_, answer):
                self._backfill_arrived(answer)
            case HistoryStored(slot, first_lsn, last_lsn):
                self._history_stored(slot, first_lsn, last_lsn)
            case HistoryWaits(slot):
                self._history_waits(slot)
            case HistoryDropped(slot):
                self._history_dropped(slot)
            case Tick():
                self._tick()
        return effects

    def validate(self) -> None:
        """Check the invariants that one replica can see."""
        for slot, log in self.logs.items():
            log.validate(slot)

    # -- promises ------------------------------------------------------------------------------

    def _seal(self, peer: Any, request: Seal) -> None:
        log = self.logs.get(request.slot) or SlotLog()
        again = request.epoch == log.promised and request.view.owner == log.owner
        if request.epoch <= log.promised and not again:
            newer = request.epoch < log.promised
            reason = "a newer epoch is promised" if newer else "another owner has this epoch"
            self._refuse(peer, request, log, reason)
            return
        self.logs[request.slot] = log
        if not again:
            # Also for a slot never seen: an old owner that comes later must meet the promise.
            log.promised, log.owner, log.view = request.epoch, request.view.owner, request.view
            log.backfill_busy = False
            self._store_meta(request.slot, log)
        self._note(request.slot, f"sealed for epoch {request.epoch}, last {log.last_lsn}")
        answer = Sealed(
            request.slot,
            request.epoch,
            log.last_lsn,
            log.epochs,
            log.commit_lsn,
            log.from_lsn,
            log.applied_lsn,
            log.complete,
        )
        self._send(peer, answer)

    def _promise_broken(self, peer: Any, request: Any) -> SlotLog | None:
        """The slot's log if exactly the request's epoch is promised; otherwise refuses it."""
        log = self.logs.get(request.slot)
        if log is not None and log.promised == request.epoch:
            return log
        promised = log or SlotLog()
        older = request.epoch < promised.promised
        reason = "a newer epoch is promised" if older else "seal first"
        self._refuse(peer, request, promised, reason)
        return None

    # -- writing -------------------------------------------------------------------------------

    def _append(self, peer: Any, request: Append) -> None:
        log = self._promise_broken(peer, request)
        if log is None:
            return
        slot, epoch, prev_lsn, prev_epoch, commit_lsn, records = request
        from_lsn, last_lsn = log.held[-1]
        if prev_lsn > last_lsn or prev_lsn < from_lsn - 1:
            self._send(peer, Need(slot, epoch, last_lsn + 1))
            return
        if epoch_at(log.epochs, prev_lsn) != prev_epoch:
            self._alarm(slot, f"append after ({prev_lsn}, {prev_epoch}) meets {log.epochs}")
            self._refuse(peer, request, log, "the logs differ: prepare first")
            return
        fresh = self._fresh_records(log, request)
        if fresh is None:
            self._refuse(peer, request, log, "a different record is here")
            return
        if fresh:
            self._store_records(slot, log, fresh, commit_lsn)
        self._raise_commit(slot, log, min(commit_lsn, prev_lsn + len(records)))
        self._send(peer, self._appended(slot, epoch, log))

    def _committed(self, _: Any, told: Committed) -> None:
        slot, epoch, commit_lsn = told
        log = self.logs.get(slot)
        if log is None or log.promised != epoch or commit_lsn > log.last_lsn:
            return
        # An owner commits nothing before the first record of its epoch, so a record of this epoch
        # there says that the log matches the sender's up to it.
        if epoch_at(log.epochs, commit_lsn) == epoch:
            self._raise_commit(slot, log, commit_lsn)

    @staticmethod
    def _appended(slot: int, epoch: int, log: SlotLog) -> Appended:
        last_lsn, commit_lsn, applied_lsn = log.held[-1][1], log.commit_lsn, log.applied_lsn
        return _new(Appended, (slot, epoch, last_lsn, commit_lsn, applied_lsn, log.complete))

    def _fresh_records(self, log: SlotLog, request: Append) -> tuple[Record, ...] | None:
        """The records that are not here yet; None when one contradicts what is here."""
        slot, epoch, prev_lsn, _, _, records = request
        last_lsn = log.last_lsn
        known_count = 0
        for index, record in enumerate(records):
            lsn, of_epoch, _, checksum = record
            fits = lsn == prev_lsn + 1 + index and of_epoch <= epoch
            if not fits or not record_intact(slot, record):
                self._alarm(slot, f"record {lsn} of an append is damaged")
                return None
            if lsn > last_lsn:
                continue
            known_count = index + 1
            known = log.checksums.get(lsn)
            same_epoch = epoch_at(log.epochs, lsn) == of_epoch
            if not same_epoch or known not in (None, checksum):
                self._alarm(slot, f"two contents for lsn {lsn} epoch {of_epoch}")
                return None
        return records[known_count:]

    def _store_records(
        self, slot: int, log: SlotLog, records: tuple[Record, ...], commit_lsn: int
    ) -> None:
        new_epochs = log.epochs
        last_epoch = new_epochs[-1][0] if new_epochs else -1
        checksums = log.checksums
        for lsn, epoch, _, checksum in records:
            if epoch > last_epoch:
                new_epochs = (*new_epochs, (epoch, lsn))
                last_epoch = epoch
            elif epoch < last_epoch:
                raise InvariantBroken(f"I4: slot {slot}: epoch decreases at lsn {lsn}")
            checksums[lsn] = checksum
        log.held[-1][1] = lsn
        known_lsn = commit_lsn if commit_lsn < lsn else lsn
        self._effects.append(Store(_new(StoreRecords, (slot, records, known_lsn))))
        if new_epochs is not log.epochs:
            log.epochs = new_epochs
            self._store_meta(slot, log)

    def _raise_commit(self, slot: int, log: SlotLog, commit_lsn: int) -> None:
        if commit_lsn > log.commit_lsn:
            log.commit_lsn = commit_lsn
            self._effects.append(Commit(slot, commit_lsn))

    def _applied(self, slot: int, lsn: int) -> None:
        log = self.logs[slot]
        if log.dropping is not None:
            return  # Written before the deletion that is under way, and deleted by it.
        if lsn > log.commit_lsn:
            raise InvariantBroken(f"slot {slot}: applied {lsn} above commit {log.commit_lsn}")
        for applied in range(log.applied_lsn + 1, lsn + 1):
            log.checksums.pop(applied, None)
        log.applied_lsn = max(log.applied_lsn, lsn)
        if log.drain_lsn and lsn >= log.drain_lsn:
            log.drain_lsn = 0
            log.checksums = {n: c for n, c in log.checksums.items() if n >= log.from_lsn}

    # -- changing the view ---------------------------------------------------------------------

    def _prepare(self, peer: Any, request: Prepare) -> None:
        log = self._promise_broken(peer, request)
        if log is None:
            return
        slot, epoch, keep_lsn, start_lsn, epochs = request
        if log.dropping is not None:
            self._refuse(peer, request, log, "the slot's old data is being deleted")
            return
        if log.epochs and log.epochs[-1][0] == epoch:
            # Late or repeated: what this epoch wrote must not be cut by its own beginning.
            self._send(peer, Prepared(slot, epoch, log.last_lsn))
            return
        hole = start_lsn > keep_lsn + 1
        if hole and log.from_lsn == start_lsn:
            hole, keep_lsn = False, start_lsn - 1
        if keep_lsn < max(log.commit_lsn, log.from_lsn - 1):
            # The seal told our commit point, so only a late copy can ask for less. Never cut it.
            self._send(peer, Prepared(slot, epoch, log.last_lsn))
            return
        if keep_lsn < log.last_lsn:
            self._cut(slot, log, keep_lsn)
        if hole:
            # An earlier hole's drain may still be under way, below a mark that is already higher.
            log.drain_lsn = max(log.drain_lsn, keep_lsn if log.applied_lsn < keep_lsn else 0)
            log.held.append([start_lsn, start_lsn - 1])
            log.epochs = cut_epochs(epochs, start_lsn - 1)
            log.applied_lsn = start_lsn - 1
            self._raise_commit(slot, log, start_lsn - 1)
        self._store_meta(slot, log)
        self._note(slot, f"prepared for epoch {epoch}: kept {keep_lsn}, goes on at {start_lsn}")
        self._send(peer, Prepared(slot, epoch, log.last_lsn))

    def _cut(self, slot: int, log: SlotLog, keep_lsn: int) -> None:
        for lsn in range(keep_lsn + 1, log.last_lsn + 1):
            log.checksums.pop(lsn, None)
        log.held[-1][1] = keep_lsn
        log.epochs = cut_epochs(log.epochs, keep_lsn)
        self._effects.append(Store(CutRecords(slot, keep_lsn)))
        self._effects.append(Forget(slot, keep_lsn))

    def _drop(self, peer: Any, request: Drop) -> None:
        log = self.logs.get(request.slot)
        if log is None or (not log.epochs and log.dropping is None):
            self._send(peer, Dropped(request.slot, request.epoch))
            return
        if log.dropping is not None:
            return  # The first request's answer is coming; a second deletion could hit new data.
        if request.epoch < log.promised or any(m.disk == self.disk for m in request.view.members):
            self._refuse(peer, request, log, "a newer epoch is promised, or this is a member")
            return
        # Deleting never forgets the promise: an old owner must still be refused.
        kept = SlotLog(promised=request.epoch, owner=request.view.owner, view=request.view)
        kept.dropping = peer
        self.logs[request.slot] = kept
        self._effects.append(Store(DropSlot(request.slot)))
        self._store_meta(request.slot, kept)
        self._effects.append(Forget(request.slot, 0))
        self._effects.append(DropHistory(request.slot))

    def _history_dropped(self, slot: int) -> None:
        log = self.logs[slot]
        self._send(log.dropping, Dropped(slot, log.promised))
        log.dropping = None

    # -- reading -------------------------------------------------------------------------------

    def _fetch(self, peer: Any, request: Fetch) -> None:
        log = self.logs.get(request.slot)
        if not request.committed:
            log = self._promise_broken(peer, request)
            if log is None:
                return
        last = request.last_lsn
        stretch = next(
            (s for s in (log.held if log else ()) if s[0] <= request.first_lsn <= s[1]), None
        )
        if stretch is None or request.first_lsn > last:
            self._send(peer, Fetched(request.slot, request.epoch, request.first_lsn, ()))
            return
        self._effects.append(
            SendRecords(
                peer,
                request.slot,
                request.epoch,
                request.first_lsn,
                min(last, stretch[1]),
                request.bytes_max,
            )
        )

    def _tables_ready(self, slot: int, floor_lsn: int) -> bool:
        log = self.logs.get(slot)
        return log is not None and log.answers_reads and log.applied_lsn >= floor_lsn

    def _load_sessions(self, peer: Any, request: LoadSessions) -> None:
        if self._tables_ready(request.slot, request.floor_lsn):
            self._effects.append(SendStates(peer, request))
            return
        slot, epoch, number = request.slot, request.epoch, request.request
        self._send(peer, SessionsLoaded(slot, epoch, number, False, ()))

    def _find_key(self, peer: Any, request: FindKey) -> None:
        if self._tables_ready(request.slot, request.floor_lsn):
            self._effects.append(SendKey(peer, request))
            return
        slot, epoch, number = request.slot, request.epoch, request.request
        self._send(peer, KeyFound(slot, epoch, number, False, 0, 0, 0))

    def _load_facts(self, peer: Any, request: LoadFacts) -> None:
        if self._tables_ready(request.slot, request.floor_lsn):
            self._effects.append(SendFacts(peer, request))
            return
        slot, epoch, number = request.slot, request.epoch, request.request
        self._send(peer, FactsLoaded(slot, epoch, number, False, ()))

    def _find_event(self, peer: Any, request: FindEvent) -> None:
        if self._tables_ready(request.slot, request.floor_lsn):
            self._effects.append(SendEvent(peer, request))
            return
        slot, epoch, number = request.slot, request.epoch, request.request
        self._send(peer, EventFound(slot, epoch, number, False, 0, 0, 0, ""))

    # -- backfill ------------------------------------------------------------------------------

    def _tick(self) -> None:
        if not self._peers:
            return
        waiting: list[tuple[int, int, SlotLog]] = []
        room = BACKFILL_SLOTS_MAX
        for slot, log in self.logs.items():
            if log.complete or log.drain_lsn:
                continue
            if log.backfill_storing or (log.backfill_busy and log.backfill_due_ms > self._now_ms):
                room -= 1
            elif log.backfill_due_ms <= self._now_ms:
                waiting.append((log.backfill_due_ms, slot, log))
        # Who has waited longest first: a slot that nobody can fill must not hold up the others.
        for _, slot, log in sorted(waiting, key=lambda entry: entry[:2])[: max(room, 0)]:
            self._request_backfill(slot, log)

    def _request_backfill(self, slot: int, log: SlotLog) -> None:
        if log.held[0][0] > 1:
            log.held.insert(0, [1, 0])
        first, last = log.held[0][1] + 1, log.held[1][0] - 1
        if first > last:
            self._join_stretches(slot, log)
            return
        source = self._peers[log.backfill_source % len(self._peers)]
        log.backfill_busy = True
        log.backfill_due_ms = self._now_ms + BACKFILL_RETRY_MS
        # The next try, if this one is not answered well, goes to another replica.
        log.backfill_source += 1
        request = Fetch(slot, log.promised, first, last, BACKFILL_BYTES_MAX, True)
        self._effects.append(FetchFromPeer(source, request))

    def _backfill_arrived(self, answer: Fetched) -> None:
        log = self.logs.get(answer.slot)
        if log is None or log.complete or not log.backfill_busy or not answer.records:
            return
        records = self._of_this_log(log, answer)
        if not records:
            self._note(answer.slot, f"backfill from {answer.first_lsn} refused: not of this log")
            return
        log.backfill_busy = False
        log.backfill_storing = True
        log.backfill_source -= 1
        self._effects.append(StoreHistory(answer.slot, records))

    @staticmethod
    def _of_this_log(log: SlotLog, answer: Fetched) -> tuple[Record, ...]:
        """The records of an answer that the first hole lacks, as far as they are of this log. What
        its epochs say is enough: no (epoch, lsn) ever has two contents. The source may not know
        that they are committed, and may go on with what was not."""
        first, last = log.held[0][1] + 1, log.held[1][0] - 1
        count = 0
        for lsn, record in zip(range(first, last + 1), answer.records, strict=False):
            same = record.lsn == lsn and epoch_at(log.epochs, lsn) == record.epoch
            if not same or not record_intact(answer.slot, record):
                break
            count += 1
        return answer.records[:count]

    def _history_stored(self, slot: int, first_lsn: int, last_lsn: int) -> None:
        log = self.logs.get(slot)
        if log is None:
            return
        log.backfill_storing = False
        if log.complete or log.held[0][1] + 1 != first_lsn:
            return
        log.held[0][1] = last_lsn
        log.backfill_due_ms = self._now_ms
        if last_lsn + 1 == log.held[1][0]:
            self._join_stretches(slot, log)
        else:
            self._store_meta(slot, log)

    def _history_waits(self, slot: int) -> None:
        log = self.logs.get(slot)
        if log is not None:
            log.backfill_storing = False
            log.backfill_due_ms = self._now_ms + BACKFILL_RETRY_MS

    def _join_stretches(self, slot: int, log: SlotLog) -> None:
        first = log.held.pop(0)
        log.held[0][0] = first[0]
        self._note(slot, f"backfill closed a hole, complete from {first[0]}")
        self._store_meta(slot, log)

    # -- helpers -------------------------------------------------------------------------------

    def _send(self, peer: Any, message: ReplicaAnswer) -> None:
        self._effects.append(Send(peer, message))

    def _refuse(self, peer: Any, request: Any, log: SlotLog, reason: str) -> None:
        self._send(peer, Refused(request.slot, request.epoch, log.promised, reason))

    def _store_meta(self, slot: int, log: SlotLog) -> None:
        self._effects.append(Store(StoreMeta(slot, log.meta())))

    def _alarm(self, slot: int, text: str) -> None:
        self._note(slot, f"ALARM {text}")
        self._effects.append(Alarm(slot, text))

    def _note(self, slot: int, text: str) -> None:
        self.story.note(self._now_ms, (slot,), text)
