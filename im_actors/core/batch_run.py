"""The executor of batch messages: it takes chunk after chunk and tells every recipient.

    facts ──▶ chunk loaded ──▶ told, in the pace of its channel ──▶ all answered ──▶ progress said
                                   ▲                 │
                                   └── no answer, or try again later

It drives the batches of the slots that its shard owns. Nothing that it knows has to survive: a new
executor goes on at the first chunk that is not done, and whom it tells again is answered from the
dedup set.

**Ending a job** (cancel, recall): whoever was not told by then gets it no more. Of a chunk that an
executor before this one may have begun nobody knows who was told, and a copy may still be on its
way. So the recipient's n = 1 is *fenced* by a VOID, and then asked for: either it is the message,
which was sent, or the VOID, and the message can never come.

**Recall**: a VOID with n = 1 asks which seq the message got, and n = 2 takes that back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from heapq import heappop, heappush

from im_actors.core.batch import (
    ACTIVE,
    BODY_KEY,
    CHANNELS,
    JOB_KEY,
    MESSAGE_N,
    NOT_SENT,
    PROGRESS_CHUNKS_MAX,
    PROGRESS_KEY,
    RECALL_N,
    WINDOW_CHUNKS,
    Job,
    JobState,
    Outcome,
    Progress,
    batch_device,
    chunk_key,
    failures_key,
    progress_note,
    read_failures,
    read_names,
)
from im_actors.core.batch_words import (
    Answered,
    BatchEffect,
    BatchEvent,
    Began,
    Changed,
    Ended,
    FactsRead,
    ReadFacts,
    Say,
    Send,
    Tick,
)
from im_actors.core.facts import Fact
from im_actors.core.model import EventKind
from im_actors.core.names import notice_session
from im_actors.core.overlays import recall_request
from im_actors.core.pacing import Pacer
from im_actors.errors import KeyConflict, error_for

SKIPPED = -1
"""Of a recipient who did not get the message: nothing is to be taken back from him."""
OK = 0


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """One channel of batch messages, in one shard."""

    per_s_max: int
    """Most sends in any second, repeated ones included."""
    in_flight_max: int
    """Most sends that are not answered."""

    def validate(self) -> None:
        if self.per_s_max < 1 or self.in_flight_max < 1:
            raise ValueError("per_s_max and in_flight_max must be at least 1")


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Quotas by channel; waits in milliseconds."""

    daily: ChannelSettings = ChannelSettings(2_000, 256)
    high: ChannelSettings = ChannelSettings(40_000, 2_048)
    answer_ms: int = 8_000
    """A send without an answer is sent again after this. In a busy cluster most are only late."""
    read_ms: int = 2_000
    """What was read or said and is not heard of is read or said again after this."""
    retry_ms_min: int = 50
    retry_ms_max: int = 2_000

    def validate(self) -> None:
        self.daily.validate()
        self.high.validate()
        if self.retry_ms_min > self.retry_ms_max:
            raise ValueError("retry_ms_min is above retry_ms_max")


class Step(IntEnum):
    """What is asked of a recipient's notice channel."""

    SEND = 0
    FENCE = 1
    CHECK = 2
    """After the fence: what n = 1 is."""
    LOOK = 3
    """Which seq n = 1 has."""
    RECALL = 4


_SEND = Step.SEND
_VOID, _MESSAGE, _RECALL = map(int, (EventKind.VOID, EventKind.MESSAGE, EventKind.RECALL))
# An enum member costs a slow path at each look-up, and these are looked at for each recipient.


class Chunk:
    """Recipients that are told now. ``outcomes`` are in the order of ``users``; None: open."""

    __slots__ = ("dropped", "following", "open", "outcomes", "users")

    def __init__(self, users: list[str]) -> None:
        self.users = users
        self.outcomes: list[int | None] = [None] * len(users)
        self.open = len(users)
        self.following = 0
        """All before this one were begun."""
        self.dropped = False

    def settle(self, position: int, outcome: int) -> None:
        assert self.outcomes[position] is None, f"{self.users[position]} has two outcomes"
        self.outcomes[position] = outcome
        self.open -= 1

    def begin(self) -> int | None:
        """The next one that nothing is known of."""
        outcomes = self.outcomes
        while self.following < len(outcomes):
            self.following += 1
            if outcomes[self.following - 1] is None:
                return self.following - 1
        return None

    def outcome(self) -> Outcome:
        failures = [(at, code) for at, code in enumerate(self.outcomes) if code and code > 0]
        return Outcome(self.outcomes.count(OK), tuple(failures))

    def untouched(self) -> bool:
        return all(code == NOT_SENT for code in self.outcomes)


class Ask:
    """One question to one recipient's channel, until it is settled."""

    __slots__ = (
        "chunk", "due_ms", "flying", "position", "run", "seq", "settled", "step", "token", "tries",
    )  # fmt: skip

    def __init__(self, run: Run, chunk: Chunk, position: int, step: Step, seq: int = 0) -> None:
        self.run = run
        self.chunk = chunk
        self.position = position
        self.step = step
        self.seq = seq
        """Of the message that is to be recalled."""
        self.token = 0
        """0: was never sent."""
        self.tries = 0
        self.flying = False
        self.settled = False
        self.due_ms = 0


class Run:
    """One active batch."""

    def __init__(self, session: str, owned: bool) -> None:
        self.session = session
        self.owned = owned
        """Nobody but this executor can have told anything of it."""
        self.known: dict[str, Fact] = {}
        self.loaded = False
        self.device = ""
        self.body = b""
        self.job: Job | None = None
        self.progress = Progress()
        self.paused = True
        self.ending = False
        """Nobody is to get it any more, and it is not known of all whether they did."""
        self.recalling = False
        """It is being taken back from those who got it, all of whom are known."""
        self.foreign_below = 0
        """Of the chunks below this one others may have told some."""
        self.chunks: dict[int, Chunk] = {}
        """By number, ascending, without a hole."""
        self.next_chunk = 0
        """All in the chunks below this one were begun."""
        self.asks: deque[Ask] = deque()
        """To be sent, before anything new is begun."""
        self.read_due_ms: int | None = None
        self.say_due_ms: int | None = None
        self.doubtful = False
        """What was said was not heard of: whether it was taken has to be read."""

    # -- what it is at -------------------------------------------------------------------------

    @property
    def done(self) -> int:
        """Chunks done, of what it is at."""
        return self.progress.recall_chunks if self.recalling else self.progress.chunks

    def end(self) -> int:
        """The chunk after the last one to be loaded."""
        assert self.job is not None
        if self.recalling:
            last = self.progress.chunks
        elif self.ending:
            last = max(self.foreign_below, max(self.chunks, default=-1) + 1)
        else:
            last = self.job.chunks
        return min(last, self.job.chunks, self.done + WINDOW_CHUNKS)

    def missing(self) -> list[int]:
        """Chunks that have to be loaded now."""
        if self.paused:
            return []
        return [number for number in range(self.done, self.end()) if number not in self.chunks]

    def step(self) -> Step:
        """How a recipient is asked first."""
        if self.recalling:
            return Step.LOOK
        return Step.FENCE if self.ending else _SEND

    # -- taking in facts -----------------------------------------------------------------------

    def take(self, facts: tuple[Fact, ...]) -> None:
        """Facts of the job; of each key the newest holds."""
        was_recalling = self.recalling
        for fact in facts:
            known = self.known.get(fact.key)
            if fact.key in (JOB_KEY, PROGRESS_KEY, BODY_KEY) and (
                known is None or known.seq < fact.seq
            ):
                self.known[fact.key] = fact
                if fact.key == PROGRESS_KEY:
                    self.say_due_ms = None
        job, progress, body = map(self.known.get, (JOB_KEY, PROGRESS_KEY, BODY_KEY))
        if job is not None and job.value is not None:
            self.job = Job.from_bytes(job.value)
            self.device = batch_device(self.job.sender, self.session)
        if body is not None:
            self.body = body.value or b""
        if progress is not None:
            self.progress = Progress.from_bytes(progress.value)
        if self.job is not None:
            self._stands(self.job.state, self.progress.settled)
            self._drop_done(all_of_them=self.recalling and not was_recalling)

    def _stands(self, state: JobState, settled: bool) -> None:
        """What follows from the state of the job is asked for with each recipient."""
        self.paused = state not in ACTIVE or state is JobState.PAUSED
        self.ending = state in (JobState.CANCELLING, JobState.RECALLING) and not settled
        self.recalling = state is JobState.RECALLING and settled

    def _drop_done(self, all_of_them: bool) -> None:
        for number in list(self.chunks):
            if all_of_them or number < self.done:
                self.chunks.pop(number).dropped = True
        if all_of_them:
            self.next_chunk = 0

    def drop(self) -> None:
        for chunk in self.chunks.values():
            chunk.dropped = True
        self.chunks.clear()
        self.asks.clear()

    def take_chunk(self, number: int, facts: dict[str, Fact]) -> None:
        """Recipients have been read."""
        assert self.job is not None
        fact = facts.get(chunk_key(number))
        if fact is None or fact.value is None or number in self.chunks:
            return
        chunk = self.chunks[number] = Chunk(read_names(fact.value))
        if self.recalling:
            failed = facts.get(failures_key(number))
            for position, _ in read_failures(failed.value if failed is not None else None):
                chunk.settle(position, SKIPPED)
        elif self.job.dry:
            for position in range(len(chunk.users)):
                chunk.settle(position, OK)

    # -- what is next --------------------------------------------------------------------------

    def next_ask(self) -> Ask | None:
        """What is to be sent next."""
        if self.paused or not self.loaded:
            return None
        while self.asks:
            ask = self.asks.popleft()
            chunk, position = ask.chunk, ask.position
            if ask.settled or chunk.dropped or chunk.outcomes[position] is not None:
                continue
            if self.ending and ask.step is Step.SEND:
                # A late answer to what was sent before is an answer all the same.
                return Ask(self, chunk, position, Step.FENCE)
            return ask
        self.next_chunk = max(self.next_chunk, self.done)
        while (fresh := self.chunks.get(self.next_chunk)) is not None:
            begun = self._begin(self.next_chunk, fresh)
            if begun is not None:
                return Ask(self, fresh, begun, self.step())
            self.next_chunk += 1
        return None

    def _begin(self, number: int, chunk: Chunk) -> int | None:
        position = chunk.begin()
        if self.ending and number >= self.foreign_below:
            while position is not None:
                chunk.settle(position, NOT_SENT)
                position = chunk.begin()
        return position

    def finished(self) -> list[Chunk]:
        """The chunks that can be said to be done: all from the first one on that are."""
        found: list[Chunk] = []
        for number in range(self.done, self.done + len(self.chunks)):
            chunk = self.chunks.get(number)
            if chunk is None or chunk.open or len(found) == PROGRESS_CHUNKS_MAX:
                break
            found.append(chunk)
        return found

    def note(self) -> bytes | None:
        """The progress that there is to be said; None: nothing new."""
        if self.paused or self.missing():
            return None
        done = self.finished()
        settled = self.ending and len(done) == len(self.chunks)
        while settled and done and done[-1].untouched():
            done.pop()
        nothing_left = self.recalling and self.done == self.progress.chunks
        if not done and not settled and not nothing_left:
            return None
        return progress_note(self.recalling, self.done, [c.outcome() for c in done], settled)


class Channel:
    """The batches of one channel, taken in turn."""

    def __init__(self, settings: ChannelSettings, now_ms: int) -> None:
        self.settings = settings
        self.pacer = Pacer(settings.per_s_max, now_ms)
        self.runs: deque[Run] = deque()
        self.in_flight = 0
        self.sent = 0
        self.held_back = False
        """There was more to send than the pace allowed."""

    def next_asks(self, now_ms: int) -> Iterator[Ask]:
        """What may be sent now, of all batches in turn."""
        room = min(self.pacer.room(now_ms), self.settings.in_flight_max - self.in_flight)
        given, idle = 0, 0
        while given < room and idle < len(self.runs):
            ask = self.runs[0].next_ask()
            self.runs.rotate(-1)
            if ask is None:
                idle += 1
                continue
            idle = 0
            given += 1
            yield ask
        self.pacer.take(given)
        self.sent += given
        self.held_back = given == room and self.in_flight < self.settings.in_flight_max


class BatchRun:
    """The executor of all batches whose slots are owned by one shard."""

    def __init__(self, now_ms: int, settings: BatchSettings | None = None) -> None:
        self.settings = settings or BatchSettings()
        self.channels = {name: Channel(getattr(self.settings, name), now_ms) for name in CHANNELS}
        self.runs: dict[str, Run] = {}
        self._asks: dict[int, Ask] = {}
        """By token: sent, and not settled."""
        self._dues: list[tuple[int, int]] = []
        """A heap of (due_ms, token); also of what is settled by now."""
        self._token = 0
        self._now_ms = now_ms
        self._effects: list[BatchEffect] = []

    def handle(self, event: BatchEvent, now_ms: int) -> list[BatchEffect]:
        """Take in one event; the effects are to be carried out in order."""
        self._now_ms = max(now_ms, self._now_ms)
        effects: list[BatchEffect] = []
        self._effects = effects
        match event:
            case Began(sessions):
                for session in sessions:
                    self._begin(session, owned=False)
            case Ended(sessions):
                for session in sessions:
                    self._forget(session)
            case Changed(session, facts, started):
                self._changed(session, facts, started)
            case FactsRead(session, keys, facts):
                self._facts_read(session, keys, facts)
            case Answered(answers):
                for token, code, seq in answers:
                    self._answered(token, code, seq)
            case Tick():
                self._tick()
        self._send_on()
        for run in list(self.runs.values()):
            self._go_on(run)
        return effects

    def deadline_ms(self) -> int | None:
        """When the machine next wants a Tick."""
        while self._dues and self._is_settled(self._dues[0]):
            heappop(self._dues)
        found: list[int] = [self._dues[0][0]] if self._dues else []
        for run in self.runs.values():
            found += [due for due in (run.read_due_ms, run.say_due_ms) if due is not None]
        found += [c.pacer.next_ms() for c in self.channels.values() if c.runs and c.held_back]
        return min(found, default=None)

    # -- batches -------------------------------------------------------------------------------

    def _begin(self, session: str, owned: bool) -> None:
        if session not in self.runs:
            self.runs[session] = Run(session, owned)

    def _forget(self, session: str) -> None:
        run = self.runs.pop(session, None)
        if run is None:
            return
        run.drop()
        # Those on their way count as such until they are answered, or have taken too long.
        asks = self._asks.items()
        self._asks = {token: ask for token, ask in asks if ask.run is not run or ask.flying}
        for channel in self.channels.values():
            if run in channel.runs:
                channel.runs.remove(run)

    def _changed(self, session: str, facts: tuple[Fact, ...], started: bool) -> None:
        run = self.runs.get(session)
        if run is not None:
            run.take(facts)
            return
        for fact in facts:
            if fact.key == JOB_KEY and Job.from_bytes(fact.value or b"").state in ACTIVE:
                self._begin(session, started)
                self.runs[session].take(facts)

    def _facts_read(self, session: str, keys: tuple[str, ...], facts: tuple[Fact, ...]) -> None:
        run = self.runs.get(session)
        if run is None or run.read_due_ms is None:
            return
        run.read_due_ms = None
        run.doubtful = run.doubtful and PROGRESS_KEY not in keys
        run.take(facts)
        if run.job is None:
            self._forget(session)
            return
        if not run.loaded and BODY_KEY in keys:
            run.loaded = True
            run.foreign_below = 0 if run.owned else run.progress.chunks + WINDOW_CHUNKS
            self.channels[run.job.channel].runs.append(run)
        by_key = {fact.key: fact for fact in facts}
        for number in run.missing():
            recalls_known = not run.recalling or failures_key(number) in keys
            if chunk_key(number) in keys and recalls_known:
                run.take_chunk(number, by_key)
        if any(chunk_key(number) in keys for number in run.missing()):
            run.read_due_ms = self._now_ms + self.settings.read_ms

    def _go_on(self, run: Run) -> None:
        """Read what is missing, say what is done."""
        if run.loaded and run.job is not None and run.job.state not in ACTIVE:
            self._forget(run.session)
            return
        if run.read_due_ms is None:
            keys = self._wanted(run)
            if keys:
                run.read_due_ms = self._now_ms + self.settings.read_ms
                self._effects.append(ReadFacts(run.session, keys))
        if (
            run.loaded
            and not run.doubtful
            and run.say_due_ms is None
            and (note := run.note()) is not None
        ):
            run.say_due_ms = self._now_ms + self.settings.read_ms
            self._effects.append(Say(run.session, note))

    def _wanted(self, run: Run) -> tuple[str, ...]:
        if not run.loaded or run.doubtful:
            return (JOB_KEY, PROGRESS_KEY, BODY_KEY)
        missing = run.missing()
        keys = [chunk_key(number) for number in missing]
        if missing and run.recalling:
            keys += [failures_key(number) for number in missing]
        return tuple(keys)

    # -- recipients ----------------------------------------------------------------------------

    def _send_on(self) -> None:
        for channel in self.channels.values():
            if channel.runs:
                for ask in channel.next_asks(self._now_ms):
                    self._send(channel, ask)

    def _send(self, channel: Channel, ask: Ask) -> None:
        if not ask.token:
            self._token += 1
            ask.token = self._token
            self._asks[ask.token] = ask
        ask.flying = True
        channel.in_flight += 1
        self._wait(ask, self.settings.answer_ms)
        run, step = ask.run, ask.step
        n, kind, body = MESSAGE_N, _MESSAGE, run.body
        if step is not _SEND:
            if step in (Step.FENCE, Step.LOOK):
                kind, body = _VOID, b""
            elif step is Step.RECALL:
                n, kind, body = RECALL_N, _RECALL, recall_request(ask.seq)
        assert run.job is not None
        session = notice_session(run.job.notice, ask.chunk.users[ask.position])
        self._effects.append(Send(ask.token, session, run.device, n, kind, body))

    def _wait(self, ask: Ask, wait_ms: int) -> None:
        ask.due_ms = self._now_ms + wait_ms
        heappush(self._dues, (ask.due_ms, ask.token))

    def _answered(self, token: int, code: int, seq: int) -> None:
        ask = self._asks.get(token)
        if ask is None:
            return
        if code and _is_open(code):
            if ask.flying:
                self._land(ask)
                settings = self.settings
                wait_ms = settings.retry_ms_min << min(ask.tries, 10)
                ask.tries += 1
                self._wait(ask, min(settings.retry_ms_max, wait_ms))
            return
        if ask.flying:
            self._land(ask)
        del self._asks[token]
        ask.settled = True
        chunk = ask.chunk
        if chunk.dropped or chunk.outcomes[ask.position] is not None:
            return
        self._settled(ask, code, seq)

    def _settled(self, ask: Ask, code: int, seq: int) -> None:
        run, chunk, position = ask.run, ask.chunk, ask.position
        if ask.step is _SEND:
            chunk.settle(position, code)
            return
        match ask.step:
            case Step.FENCE if not code:
                run.asks.append(Ask(run, chunk, position, Step.CHECK))
            case Step.LOOK if not code:
                run.asks.append(Ask(run, chunk, position, Step.RECALL, seq))
            case Step.CHECK if code == KeyConflict.code:
                chunk.settle(position, NOT_SENT)
            case _:
                chunk.settle(position, code)

    def _land(self, ask: Ask) -> None:
        ask.flying = False
        assert ask.run.job is not None
        self.channels[ask.run.job.channel].in_flight -= 1

    def _is_settled(self, due: tuple[int, int]) -> bool:
        ask = self._asks.get(due[1])
        return ask is None or ask.due_ms != due[0]

    def _tick(self) -> None:
        now_ms = self._now_ms
        while self._dues and self._dues[0][0] <= now_ms:
            due = heappop(self._dues)
            if self._is_settled(due):
                continue
            ask = self._asks[due[1]]
            if ask.flying:
                self._land(ask)
            ask.due_ms = 0
            if ask.chunk.dropped:
                del self._asks[ask.token]
            else:
                ask.run.asks.append(ask)
        for run in self.runs.values():
            if run.read_due_ms is not None and run.read_due_ms <= now_ms:
                run.read_due_ms = None
            if run.say_due_ms is not None and run.say_due_ms <= now_ms:
                run.say_due_ms = None
                run.doubtful = True


def _is_open(code: int) -> bool:
    """Whether an answer leaves the outcome open."""
    error = error_for(code)
    return error.retryable or not error.definite
