"""The shell of a replica: files, threads and links around ``core.replica`` (design 5.2 and 6)."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from im_actors.core import replica as rep
from im_actors.core.directory import Directory, ReplicaAddress
from im_actors.core.fact_lists import OfKeys
from im_actors.core.formats import FORMATS
from im_actors.core.histogram import Histogram
from im_actors.core.messages import (
    EventFound,
    FactsLoaded,
    Fetched,
    FindEvent,
    FindKey,
    KeyFound,
    LoadFacts,
    LoadSessions,
    SessionsLoaded,
)
from im_actors.core.model import Record
from im_actors.core.storage_ops import StorageOp, StoreMeta, StoreRecords
from im_actors.errors import CorruptData, ImError, MonthAway
from im_actors.net.link import Link, LinkConfig, PeerInfo
from im_actors.net.link_connection import LinkConnection
from im_actors.net.link_server import LinkCallbacks, LinkServer
from im_actors.server.apply import ApplyQueue, Batch
from im_actors.server.clock import now_ms
from im_actors.server.months import Months
from im_actors.server.reads import Door, Reads
from im_actors.server.storage import ReplicaStorage
from im_actors.server.turns import in_turns
from im_actors.storage.history import History
from im_actors.storage.scan import scan_history, scan_journal
from im_actors.storage.verify import join_scans
from im_actors.wire.links import (
    InsideType,
    pack_inside,
    read_inside,
)
from im_actors.wire.questions import QUESTIONS, read_question

logger = logging.getLogger(__name__)

REQUESTS = int(InsideType.REQUESTS)

MOVES_FOR = 10
"""After a commit that held up the event loop for long, it leaves commits to the journal's thread
for so many times as long."""

APPLY_SHARE_MIN = 0.7
"""An apply comes after any part of ``apply_every_ms`` above this one."""
TRIMS_MAX = 16
"""What the journal may delete is deleted in so many steps, more of it in a step if need be."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """How a replica paces its background work."""

    stage_every_ms: int = 100
    """Committed records are merged in history's memory at least so often: in small parts, because
    all of it at once would hold up the event loop."""
    apply_every_ms: int = 1_000
    """What is merged is written to history at least so often, in one transaction. It is what a
    new owner has to replay; the cost of applying falls with the events a session has in it."""
    apply_bytes: int = 8 * 1024 * 1024
    """So many committed payload bytes are applied without waiting."""
    apply_bytes_max: int = 12 * 1024 * 1024
    """Payload bytes of one apply transaction, besides those that reads have brought in before."""
    trim_every_ms: int = 100
    """How often the journal deletes some of what history has: a part that was staged together.
    No append is written meanwhile."""
    checkpoint_bytes: int = 8 * 1024 * 1024
    """Bytes in the journal's write-ahead log that call for a checkpoint. No append is written
    meanwhile, so it must not be many."""
    commit_here_bytes: int = 16 * 1024
    """A commit of no more payload is done in the event loop, without the journal's thread, ..."""
    commit_here_ms: int = 3
    """... as long as that does not take longer."""
    tick_ms: int = 50
    """How often the machine looks at backfill: 512 KiB per slot each time."""
    reads_max: int = 1_024
    """Reads of gateways under way at once; more are refused as overloaded."""
    head_wait_ms: int = 150
    """How long a read waits for a seq that the gateway has already heard of."""
    turn_wait_ms: int = 1_000
    """A read whose turn has not come after so long is not done any more: its gateway has asked
    another replica. Without that a replica that is behind only does what nobody waits for."""

    def validate(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.apply_bytes > self.apply_bytes_max:
            raise ValueError("apply_bytes is above apply_bytes_max")


def _is_small(ops: list[StorageOp], bytes_max: int) -> bool:
    """Whether these only add records, and not many bytes of them."""
    size = 0
    for op in ops:
        if type(op) is not StoreRecords:
            return False
        size += sum([len(record.payload) for record in op.records])
    return size <= bytes_max


FACT_READS_MAX = 64
"""Sessions whose facts are read in one step of the history's thread."""
STATE_READS_MAX = 512
"""Sessions whose states are read in one step, and answered in one frame, unless one request asks
for more."""


def _facts_of(history: History, requests: list[LoadFacts]) -> list[FactsLoaded]:
    answers = []
    for slot, epoch, number, _, session, keys in requests:
        _, page = history.facts(session, OfKeys(keys))
        answers.append(FactsLoaded(slot, epoch, number, True, tuple(page.facts)))
    return answers


def _states_of(history: History, requests: list[LoadSessions]) -> list[SessionsLoaded]:
    answers = []
    for slot, epoch, number, _, sessions in requests:
        images = history.whole_states(list(sessions))
        ready = images is not None
        answers.append(SessionsLoaded(slot, epoch, number, ready, tuple(images or ())))
    return answers


def _parts(
    asked: list[tuple[LinkConnection, LoadSessions]],
) -> Iterator[list[tuple[LinkConnection, LoadSessions]]]:
    """Requests together for as many sessions as may be loaded in one go."""
    part: list[tuple[LinkConnection, LoadSessions]] = []
    sessions = 0
    for peer, request in asked:
        if part and sessions + len(request.sessions) > STATE_READS_MAX:
            yield part
            part, sessions = [], 0
        part.append((peer, request))
        sessions += len(request.sessions)
    yield part


class ReplicaNode:
    """One data directory, served over links.

    ``on_fatal(error)`` is called once when the node cannot go on (a failed disk, corrupt data): the
    process has to end and a new one starts from the disk.
    """

    def __init__(
        self,
        name: str,
        host: str,
        path: Path,
        cluster: str,
        slots: int,
        secret: bytes,
        rng: random.Random,
        on_fatal: Callable[[ImError], None],
        config: ReplicaConfig | None = None,
        links: LinkConfig | None = None,
        form: int = FORMATS.newest,
    ) -> None:
        """``form`` is the format that the directory is to be of, at least."""
        self.name = name
        self.host = host
        self.slots = slots
        self._secret = secret
        self._rng = rng
        self._on_fatal = on_fatal
        self._link_config = links or LinkConfig()
        self._config = config or ReplicaConfig()
        self._config.validate()
        self._storage = ReplicaStorage(path, cluster, name, form, self._link_config.formats)
        self._queue = ApplyQueue()
        self._peers: dict[str, Link] = {}
        self._directory_version = -1
        self._address = ""
        self._effects: list[Any] = []
        """What the machine said since the last transaction began."""
        self._flush_planned = False
        self._slow_until = 0.0
        """Until then commits are left to the journal's thread."""
        self._writing = False
        self._applying = False
        self._apply_timer: asyncio.TimerHandle | None = None
        self._stage_timer: asyncio.TimerHandle | None = None
        self._trim_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._staged: list[Batch] = []
        """Taken from the queue, given to history, and not being written to its disk."""
        self._staged_bytes = 0
        self._hurried = False
        """Whether history is written without rests, because more than enough waits for it."""
        self._trims: deque[dict[int, int]] = deque()
        """Up to where the journal may delete, the next step first."""
        door = Door(slots, self._log, self._storage, self._stage_and, self._start)
        self._reads = Reads(door, self._config)
        self.month_work = Months(self._storage, name, self._stage_all)
        self._tasks: set[asyncio.Task[None]] = set()
        self._facts_asked: list[tuple[LinkConnection, LoadFacts]] = []
        self._states_asked: list[tuple[LinkConnection, LoadSessions]] = []
        self._failed: ImError | None = None
        self._stopping = False
        self.commits = 0
        self._commit_times = Histogram()
        self._commit_due = True
        """One commit in each tick is counted in ``_commit_times``."""
        self.records = 0

    # -- life ----------------------------------------------------------------------------------

    async def start(self, address: str, port: int = 0) -> ReplicaAddress:
        """Open the files and listen. Errors say what is wrong with the directory."""
        self._loop = asyncio.get_running_loop()
        logs, waiting = await self._storage.open()
        self.disk = self._storage.data.disk
        self.machine = rep.Replica(self.name, self.disk, logs)
        for slot, record in waiting:
            self._queue.add(slot, (record,))
        for slot, log in logs.items():
            self._queue.commit(slot, log.commit_lsn)
        me = PeerInfo("replica", self.name, self.disk)
        self._me = me
        self._server = LinkServer(me, self._secret, self._linked, config=self._link_config)
        await self._server.start(address, port)
        self._address = address
        self._tick()
        self._apply_soon()
        self.month_work.start()
        return self.address

    @property
    def address(self) -> ReplicaAddress:
        return ReplicaAddress(self.name, self.disk, self.host, self._address, self._server.port)

    async def stop(self) -> None:
        """Finish what is being written and close the files."""
        self._stopping = True
        self._stop_timers()
        self.month_work.stop()
        for link in self._peers.values():
            link.close()
        self._server.close()
        await self._server.wait_closed()
        for task in list(self._tasks):
            task.cancel()
        while (self._writing or self._applying or self._effects) and self._failed is None:
            await self._idle()
        if self._failed is None:
            # The last commit points, which no append has carried to the disk yet.
            metas = [StoreMeta(slot, log.meta()) for slot, log in self.machine.logs.items()]
            await self._storage.in_journal(self._storage.journal.commit, metas)
            await self._storage.close()
        else:
            await self._storage.abandon()

    async def _idle(self) -> None:
        """Return when both storage threads have done what they were given."""
        await self._storage.in_journal(lambda: None)
        await self._storage.in_history(lambda: None)
        await asyncio.sleep(0)

    def _stop_timers(self) -> None:
        for timer in (self._apply_timer, self._stage_timer, self._trim_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()

    async def crash(self) -> None:
        """Stop as a killed process would, for tests: nothing is finished, nothing answered."""
        self._stopping = True
        self._stop_timers()
        self.month_work.stop()
        for link in self._peers.values():
            link.close()
        for connection in self._server.links:
            connection.abort()
        self._server.close()
        await self._server.wait_closed()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._storage.abandon()

    def _fatal(self, error: BaseException) -> None:
        if self._failed is not None or self._stopping:
            return
        known = error if isinstance(error, ImError) else CorruptData(f"{self.name}: {error!r}")
        self._failed = known
        logger.critical("replica %s cannot go on: %s", self.name, known, exc_info=error)
        self._server.close()
        task = self._loop.create_task(self._end(known))
        self._tasks.add(task)

    async def _end(self, error: ImError) -> None:
        try:
            if type(error) is CorruptData:
                where = await self._storage.quarantine(str(error))
                logger.critical("replica %s put its data aside in %s", self.name, where)
        finally:
            self._on_fatal(error)

    # -- links ---------------------------------------------------------------------------------

    def directory(self, directory: Directory) -> None:
        """Learn who else there is."""
        if directory.version <= self._directory_version:
            return
        self._directory_version = directory.version
        others = {r.name: r for r in directory.replicas if r.name != self.name}
        for name in [name for name in self._peers if name not in others]:
            self._peers.pop(name).close()
        for name, link in self._peers.items():
            link.retarget(others[name].address, others[name].port)
        self._handle(rep.PeersChanged(tuple(others)))
        self._addresses = others
        self.month_work.told(directory.dropped)

    def _peer(self, name: str) -> Link:
        """The link to another replica, made when backfill first needs it."""
        link = self._peers.get(name)
        if link is None:
            there = self._addresses[name]
            link = self._peers[name] = Link(
                self._me,
                self._secret,
                there.address,
                there.port,
                on_up=lambda _: None,
                on_frames=partial(self._backfilled, name),
                on_down=lambda _: None,
                rng=self._rng,
                config=self._link_config,
                expected_id=name,
            )
        return link

    def _linked(self, peer: PeerInfo, connection: LinkConnection) -> LinkCallbacks:
        return LinkCallbacks(partial(self._frames, connection), lambda _: None)

    def _frames(self, connection: LinkConnection, messages: list[Any]) -> None:
        for message in messages:
            if message[0] == REQUESTS:
                self._handle(*[rep.Asked(connection, req) for req in read_inside(message[1])])
            elif message[0] in QUESTIONS:
                self._reads.ask(connection, read_question(message))

    def _backfilled(self, name: str, messages: list[Any]) -> None:
        for message in messages:
            for answer in read_inside(message[1]):
                if isinstance(answer, Fetched):
                    self._handle(rep.BackfillArrived(name, answer))

    # -- the machine and the journal -----------------------------------------------------------

    def _handle(self, *events: rep.ReplicaEvent) -> None:
        if self._failed is not None:
            return
        now = now_ms()
        for event in events:
            self._effects += self.machine.handle(event, now)
        if self._effects and not self._flush_planned and not self._writing:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what came up in this turn of the loop in one transaction, then let answers go."""
        self._flush_planned = False
        if self._writing or not self._effects or self._failed is not None:
            return
        effects, self._effects = self._effects, []
        ops = [effect.op for effect in effects if type(effect) is rep.Store]
        if not ops:
            self._carry_out(effects)
            return
        self._writing = True
        if not self._written_here(ops, effects):
            self._storage.journal_thread.submit(self._write, ops, effects)

    def _written_here(self, ops: list[StorageOp], effects: list[Any]) -> bool:
        """Commit without the journal's thread, if that is worth it: to wake a thread and be woken
        by it costs more than a small commit to a disk that is quick."""
        started = time.monotonic()
        if started < self._slow_until or not _is_small(ops, self._config.commit_here_bytes):
            return False
        error: BaseException | None = None
        try:
            if not self._storage.try_commit(ops):
                return False
        except BaseException as failure:
            error = failure
        ended = time.monotonic()
        stood_still = ended - started
        if stood_still * 1000 > self._config.commit_here_ms:
            self._slow_until = ended + stood_still * MOVES_FOR
        self._written(effects, error, stood_still)
        return True

    def _write(self, ops: list[StorageOp], effects: list[Any]) -> None:
        """In the journal's thread. (``run_in_executor`` makes two futures of this, which costs more
        than all the rest of an append.)"""
        error: BaseException | None = None
        begun = time.perf_counter()
        try:
            self._storage.commit(ops)
        except BaseException as failure:
            error = failure
        elapsed_s = time.perf_counter() - begun
        self._loop.call_soon_threadsafe(self._written, effects, error, elapsed_s)

    def _written(self, effects: list[Any], error: BaseException | None, elapsed_s: float) -> None:
        self._writing = False
        if error is not None:
            # What is on disk is not known any more: only a new start can tell (never retry).
            self._fatal(error)
            return
        self.commits += 1
        if self._commit_due:
            self._commit_due = False
            self._commit_times.observe(elapsed_s)
        self._carry_out(effects)
        self._flush()

    def _carry_out(self, effects: list[Any]) -> None:
        answers: dict[LinkConnection, list[Any]] = {}
        for effect in effects:
            # Compared by type: a match statement costs three times as much for each.
            if type(effect) is rep.Store:
                op = effect.op
                if type(op) is StoreRecords:
                    self.records += len(op.records)
                    self._queue.add(op.slot, op.records)
            elif type(effect) is rep.Send:
                if effect.peer is not None:
                    messages = answers.get(effect.peer)
                    if messages is None:
                        answers[effect.peer] = [effect.message]
                    else:
                        messages.append(effect.message)
            elif type(effect) is rep.Commit:
                self._queue.commit(effect.slot, effect.lsn)
            else:
                self._carry_out_rare(effect)
        for peer, messages in answers.items():
            peer.send_now(pack_inside(InsideType.ANSWERS, messages))
        self._apply_soon()

    def _carry_out_rare(self, effect: Any) -> None:
        match effect:
            case rep.SendRecords():
                self._start(self._send_records(effect))
            case rep.SendStates(peer, request):
                self._start(self._send_states(peer, request))
            case rep.SendKey(peer, request):
                self._start(self._send_key(peer, request))
            case rep.SendFacts(peer, request):
                self._start(self._send_facts(peer, request))
            case rep.SendEvent(peer, request):
                self._start(self._send_event(peer, request))
            case rep.Forget(slot, after_lsn):
                self._queue.forget(slot, after_lsn)
                if after_lsn == 0:
                    # Of the slot's next life here the journal has what history does not.
                    for upto in self._trims:
                        upto.pop(slot, None)
            case rep.DropHistory(slot):
                self._start(self._drop_history(slot))
            case rep.FetchFromPeer(name, request):
                self._peer(name).send(pack_inside(InsideType.REQUESTS, [request]))
            case rep.StoreHistory(slot, records):
                self._start(self._store_history(slot, records))
            case rep.Alarm(slot, text):
                what = (self.name, slot, text)
                logger.error("ALARM replica %s slot %d: %s", *what, extra=self._about(slot))

    def _about(self, slot: int) -> dict[str, int]:
        """For the log."""
        log = self.machine.logs.get(slot)
        return {"slot": slot, "epoch": log.promised if log is not None else 0}

    def _log(self, slot: int) -> rep.SlotLog | None:
        return self.machine.logs.get(slot)

    def _start(self, work: Any) -> None:
        """Run a coroutine that uses the history's thread; its failure ends the node."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            assert error is not None
            self._fatal(error)

    # -- reading for owners --------------------------------------------------------------------

    async def _send_records(self, effect: rep.SendRecords) -> None:
        slot, first, last, size = effect.slot, effect.first_lsn, effect.last_lsn, effect.bytes_max
        records = self._queue.records(slot, first, last, size)
        if not records:
            read = self._storage.history.records
            # No records: who asks will ask another one.
            records = await self._if_there(read, slot, first, last, size) or []
        answer = Fetched(slot, effect.epoch, first, tuple(records))
        effect.peer.send(pack_inside(InsideType.ANSWERS, [answer]))

    async def _send_states(self, peer: LinkConnection, request: LoadSessions) -> None:
        """With all others that are asked for in this turn, like facts: a busy shard asks for many
        slots at once."""
        self._states_asked.append((peer, request))
        if len(self._states_asked) > 1:
            return
        await asyncio.sleep(0)
        asked, self._states_asked = self._states_asked, []
        for part in _parts(asked):
            requests = [request for _, request in part]
            found = await self._storage.in_history(_states_of, self._storage.history, requests)
            answers: dict[LinkConnection, list[SessionsLoaded]] = {}
            for (peer, request), answer in zip(part, found, strict=True):
                if not answer.ready:
                    # Unknown, never absent: the owner asks another member.
                    names = list(request.sessions)
                    slot, text = request.slot, "ALARM replica %s slot %d: rows of %s are lost"
                    logger.error(text, self.name, slot, names, extra=self._about(slot))
                answers.setdefault(peer, []).append(answer)
            for peer, several in answers.items():
                peer.send(pack_inside(InsideType.ANSWERS, several))

    async def _send_key(self, peer: LinkConnection, request: FindKey) -> None:
        find, slot, epoch, number = self._storage.history.find, *request[:3]
        try:
            found = await self._storage.in_history(find, request.session, request.device, request.n)
            answer = KeyFound(slot, epoch, number, True, *(found or (0, 0, 0)))
        except MonthAway:
            # Unknown, never absent: the owner asks another member.
            answer = KeyFound(slot, epoch, number, False, 0, 0, 0)
        peer.send(pack_inside(InsideType.ANSWERS, [answer]))

    async def _send_facts(self, peer: LinkConnection, request: LoadFacts) -> None:
        """With all others that are asked for in this turn: a step of the history's thread for each
        would cost more than what it reads."""
        self._facts_asked.append((peer, request))
        if len(self._facts_asked) > 1:
            return
        await asyncio.sleep(0)
        asked, self._facts_asked = self._facts_asked, []
        for start in range(0, len(asked), FACT_READS_MAX):
            part = asked[start : start + FACT_READS_MAX]
            requests = [request for _, request in part]
            found = await self._storage.in_history(_facts_of, self._storage.history, requests)
            answers: dict[LinkConnection, list[FactsLoaded]] = {}
            for (peer, _), answer in zip(part, found, strict=True):
                answers.setdefault(peer, []).append(answer)
            for peer, several in answers.items():
                peer.send(pack_inside(InsideType.ANSWERS, several))

    async def _send_event(self, peer: LinkConnection, request: FindEvent) -> None:
        slot, epoch, number, _, session, seq = request
        read = self._storage.history.event
        found = await self._if_there(read, session, seq)
        event, last_seq = found or (None, seq)
        answer = EventFound(slot, epoch, number, not 0 < seq <= last_seq, 0, 0, 0, "")
        if event is not None:
            key, kind, device = event.key, event.kind, event.device
            answer = EventFound(slot, epoch, number, True, seq, key, kind, device)
        elif found is not None and not answer.ready:
            # Unknown, never absent: the owner asks another member.
            text = "ALARM replica %s slot %d: seq %d of %s is lost"
            logger.error(text, self.name, slot, seq, session, extra=self._about(slot))
        peer.send(pack_inside(InsideType.ANSWERS, [answer]))

    async def _drop_history(self, slot: int) -> None:
        await self._storage.in_history(self._storage.history.drop, slot)
        self._handle(rep.HistoryDropped(slot))

    async def _store_history(self, slot: int, records: tuple[Record, ...]) -> None:
        batch = [(slot, record) for record in records]
        try:
            await self._storage.in_history(self._storage.history.apply, batch, {})
        except MonthAway as error:
            what = (self.name, slot, error)
            logger.warning("replica %s slot %d: backfill waits: %s", *what, extra=self._about(slot))
            self._handle(rep.HistoryWaits(slot))
            return
        self._handle(rep.HistoryStored(slot, records[0].lsn, records[-1].lsn))

    async def _if_there(self, read: Callable[..., T], *args: Any) -> T | None:
        """What history says; None when it would be in a month that is away."""
        try:
            return await self._storage.in_history(read, *args)
        except MonthAway:
            return None

    # -- history -------------------------------------------------------------------------------

    def _apply_soon(self) -> None:
        if self._stopping:
            return
        config, call_later = self._config, self._loop.call_later
        if self._queue.ready_bytes + self._staged_bytes >= config.apply_bytes:
            if not self._applying:
                self._apply()
            elif not self._hurried:
                self._hurried = True
                self._storage.pacer.hurry()
        elif self._queue.ready or self._staged:
            if self._stage_timer is None:
                self._stage_timer = call_later(config.stage_every_ms / 1000, self._stage)
            if self._apply_timer is None and not self._applying:
                # Not all replicas at the same time.
                share = self._rng.uniform(APPLY_SHARE_MIN, 1.0)
                self._apply_timer = call_later(config.apply_every_ms / 1000 * share, self._apply)

    def _stage(self) -> None:
        """Give history what is committed, to be written with the next transaction."""
        if self._stage_timer is not None:
            self._stage_timer.cancel()
            self._stage_timer = None
        batch = self._queue.take(self._config.apply_bytes_max)
        if not batch or self._failed is not None:
            return
        self._note_staged(batch)
        call = self._storage.history.stage
        self._storage.in_history_gently(call, batch, self._marks(batch)).add_done_callback(
            self._history_worked
        )

    def _note_staged(self, batch: Batch) -> None:
        self._staged.append(batch)
        self._staged_bytes += sum([len(record.payload) for _, record in batch])

    def _history_worked(self, future: asyncio.Future[None]) -> bool:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._fatal(error)
        return error is None

    def _apply(self) -> None:
        """Write what is committed; one transaction at a time, the next right after if needed."""
        if self._apply_timer is not None:
            self._apply_timer.cancel()
            self._apply_timer = None
        if self._applying or self._failed is not None:
            return
        self._stage()
        if not self._staged:
            return
        self._applying = True
        staged, self._staged, self._staged_bytes = self._staged, [], 0
        future = self._storage.in_history_gently(self._storage.history.write)
        future.add_done_callback(partial(self._applied, staged))

    def _marks(self, batch: Batch) -> dict[int, int]:
        """How far history goes with a batch."""
        marks: dict[int, int] = {}
        for slot, record in batch:
            # In a slot that filled a hole by backfill an old record must not lower the mark.
            log = self.machine.logs[slot]
            marks[slot] = max(marks.get(slot, log.applied_lsn), record.lsn)
        return marks

    def _applied(self, batches: list[Batch], future: asyncio.Future[None]) -> None:
        self._applying = False
        if self._hurried:
            self._hurried = False
            self._storage.pacer.relax()
        if not self._history_worked(future):
            return
        for batch in batches:
            if len(self._trims) < TRIMS_MAX:
                self._trims.append({})
            for slot, lsn in self._queue.done(batch).items():
                self._handle(rep.Applied(slot, lsn))
                if self.machine.logs[slot].dropping is None:
                    self._trims[-1][slot] = lsn
        self._trim_soon()
        self._apply_soon()

    def _trim_soon(self) -> None:
        if self._trim_timer is None and self._trims and not self._stopping:
            delay = self._config.trim_every_ms / 1000
            self._trim_timer = self._loop.call_later(delay, self._trim)

    def _trim(self) -> None:
        self._start(self._tidy_journal(self._trims.popleft()))

    async def _tidy_journal(self, upto: dict[int, int]) -> None:
        journal = self._storage.journal
        await self._storage.in_journal(journal.trim, upto)
        if journal.wal_bytes() >= self._config.checkpoint_bytes:
            await self._storage.in_journal(journal.checkpoint)
        self._trim_timer = None
        self._trim_soon()

    # -- reading for gateways ------------------------------------------------------------------

    async def _stage_and(self, slot: int, read: Callable[[], T]) -> T:
        """Read what is committed of a slot, also what is not in history's files yet."""
        batch = self._queue.take_slot(slot, self._config.apply_bytes_max)
        if batch:
            self._note_staged(batch)
        marks = self._marks(batch)
        found: T = await self._storage.in_history(self._staged_read, batch, marks, read)
        self._apply_soon()
        return found

    async def _stage_all(self) -> None:
        """Give history everything that is committed."""
        while batch := self._queue.take(self._config.apply_bytes_max):
            self._note_staged(batch)
            await self._storage.in_history(self._storage.history.stage, batch, self._marks(batch))
        self._apply_soon()

    def _staged_read(self, batch: Batch, marks: dict[int, int], read: Callable[[], T]) -> T:
        if batch:
            self._storage.history.stage(batch, marks)
        return read()

    # -- looking in ----------------------------------------------------------------------------

    def _tick(self) -> None:
        self._tick_timer = self._loop.call_later(self._config.tick_ms / 1000, self._tick)
        self._commit_due = True
        self._handle(rep.Tick())

    async def report(self) -> dict[str, Any]:
        """What is on this disk, scanned beside the running work (``im-actors verify``). Slots that
        are deleted meanwhile are left out: their files and what was to be in them do not match."""
        logs = dict(self.machine.logs)
        # A copy: what backfill brings from here on is not in the scan.
        held = {slot: [(first, last) for first, last in log.held] for slot, log in logs.items()}
        commit = {slot: log.commit_lsn for slot, log in logs.items()}
        storage = self._storage
        # The journal first: records only ever move from there to the history.
        await storage.in_journal(storage.journal.forget_pages)
        journals = await in_turns(storage.in_journal, scan_journal(storage.journal))
        await storage.in_history(storage.history.forget_pages)
        histories = await in_turns(storage.in_history, scan_history(storage.history))
        applied = await storage.in_history(storage.history.applied)
        deleted = {
            slot
            for slot, log in logs.items()
            if log.dropping is not None or self.machine.logs[slot] is not log
        }
        held = {slot: stretches for slot, stretches in held.items() if slot not in deleted}
        journals = [scan for scan in journals if scan.slot not in deleted]
        histories = [scan for scan in histories if scan.slot not in deleted]
        report = join_scans(journals, histories, applied, held, commit, self.name, self.disk)
        report.bytes_on_disk = storage.journal.bytes_on_disk() + storage.history.bytes_on_disk()
        return report.to_dict()

    async def positions(self) -> dict[str, Any]:
        """How far this disk has each slot, all at one moment (``server.backup``)."""
        dropped = await self.month_work.dropped()
        slots = {
            slot: (log.answers_reads, log.commit_lsn, log.last_lsn, log.promised, log.epochs)
            for slot, log in self.machine.logs.items()
        }
        address, port = self.address.address, self.address.port
        fields = {"name": self.name, "address": address, "port": port, "dropped": dropped}
        fields["format"] = self._storage.data.format
        return {**fields, "slots": slots}

    async def repair(self) -> None:
        """Put this disk's data aside and come back as a new one, to be filled by the others."""
        self._fatal(CorruptData(f"{self.name}: verify found damage on its disk"))

    async def months(self) -> list[dict[str, Any]]:
        """What ``im-actors months list`` shows of a replica."""
        return await self.month_work.told_all()

    async def move_month(self, month: str, directory: str) -> None:
        await self.month_work.move(month, directory)

    async def drop_month(self, month: str) -> None:
        await self.month_work.drop(month)

    async def dropped_months(self) -> list[int]:
        return await self.month_work.dropped()

    def story(self, slot: int) -> list[str]:
        return self.machine.story.story(slot)

    def status(self) -> dict[str, Any]:
        """What ``im-actors status`` shows of a replica."""
        logs = self.machine.logs
        return {
            "name": self.name,
            "disk": self.disk,
            "host": self.host,
            "directory": str(self._storage.path),
            "format": self._storage.data.format,
            "formats": list(self._link_config.formats),
            "slots": sum(bool(log.epochs) for log in logs.values()),
            "incomplete_slots": sorted(s for s, log in logs.items() if not log.complete),
            "apply_lag_records": sum(log.commit_lsn - log.applied_lsn for log in logs.values()),
            "waiting_records": self._queue.backlog(),
            "commits": self.commits,
            "journal_commit": self._commit_times.to_dict(),
            "records": self.records,
            "free_bytes": self._storage.data.free_bytes(),
            "months_away": self.month_work.away,
        }
