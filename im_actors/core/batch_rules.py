"""Who may do what with a batch message, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Any

from im_actors.core.batch import (
    ACTIVE,
    BODY_KEY,
    CHUNK_BYTES_MAX,
    CHUNK_USERS_MAX,
    CHUNKS_MAX,
    CONTENT_KEY,
    COPIED_BYTES_MAX,
    JOB_KEY,
    NAME_BYTES_MAX,
    NOT_SENT,
    PROGRESS_KEY,
    Job,
    JobState,
    Outcome,
    Progress,
    chunk_key,
    event_body,
    failures_key,
    pack_failures,
    pack_names,
)
from im_actors.core.facts import event_facts, pack_request, pack_state
from im_actors.core.lookup import Lookup
from im_actors.core.model import Event, EventKind
from im_actors.core.names import SessionKind, session_kind, session_name
from im_actors.core.operations import read_operation
from im_actors.core.rows import pack_row, unpack_row
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.rules import SERVER, Accept, Nothing, Request
from im_actors.errors import BadRequest, Forbidden, NotFound, OutOfOrder, TooLarge, TooLate

_Facts = list[tuple[str, int, bytes | None]]


class Who(IntEnum):
    SENDER = 0
    """The service that has ordered it."""
    SERVICE = 1
    """Any service."""


RIGHTS: Mapping[str, Who] = MappingProxyType(
    {
        "create": Who.SERVICE,
        "recipients": Who.SENDER,
        "start": Who.SENDER,
        "pause": Who.SERVICE,
        "resume": Who.SERVICE,
        "cancel": Who.SERVICE,
        "recall": Who.SERVICE,
    }
)

OPEN, RUNNING, PAUSED, DONE, CANCELLING, CANCELLED, RECALLING, RECALLED = JobState

TRANSITIONS: Mapping[str, Mapping[JobState, JobState]] = MappingProxyType(
    {
        "start": {OPEN: RUNNING, RUNNING: RUNNING},
        "pause": {RUNNING: PAUSED, PAUSED: PAUSED},
        "resume": {PAUSED: RUNNING, RUNNING: RUNNING},
        "cancel": {
            OPEN: CANCELLED,
            RUNNING: CANCELLING,
            PAUSED: CANCELLING,
            CANCELLING: CANCELLING,
            CANCELLED: CANCELLED,
        },
        "recall": {
            RUNNING: RECALLING,
            PAUSED: RECALLING,
            DONE: RECALLING,
            CANCELLING: RECALLING,
            CANCELLED: RECALLING,
            RECALLING: RECALLING,
            RECALLED: RECALLED,
        },
    }
)
"""From which state each leads to which. What changes nothing is not refused."""


def decide_batch(lookup: Lookup, request: Request, settings: RuleSettings) -> Accept | Nothing:
    """What becomes of a send, or a server's note, to a batch; raises why it is not taken."""
    if request.kind == EventKind.NOTE:
        return _decide_progress(lookup, request)
    what, args = read_operation(request.kind, request.body)
    if request.device == SERVER or request.user not in settings.services:
        raise Forbidden(f"{what}: {request.user} is no service: only services send batch messages")
    if what == "create":
        return _create(lookup, request, args)
    wanted = (chunk_key(args[0]),) if what == "recipients" else ()
    lookup.want(JOB_KEY, *wanted)
    job = _job(lookup)
    if RIGHTS[what] is Who.SENDER and request.user != job.sender:
        raise Forbidden(f"{what}: {lookup.session} is of {job.sender}, who alone may do this")
    if what == "recipients":
        return _recipients(lookup, job, args)
    return _change(lookup, job, what)


def _job(lookup: Lookup) -> Job:
    data = lookup.value(JOB_KEY)
    if data is None:
        raise NotFound(f"there is no {lookup.session}: create it first")
    return Job.from_bytes(data)


def _create(lookup: Lookup, request: Request, args: list[Any]) -> Accept:
    content, channel, notice, total, dry = args
    if len(session_name(lookup.session).encode()) > NAME_BYTES_MAX:
        raise TooLarge(f"{lookup.session}: the name of a batch has up to {NAME_BYTES_MAX} bytes")
    if lookup.value(JOB_KEY) is not None:
        raise Forbidden(f"there is a {lookup.session} already: choose another name")
    job = Job(OPEN, request.user, channel, notice, dry, total, 0, 0, request.now_ms)
    facts: _Facts = [(JOB_KEY, 0, job.to_bytes()), (BODY_KEY, 0, event_body(content))]
    if len(content) > COPIED_BYTES_MAX:
        facts.append((CONTENT_KEY, 0, content))
    return Accept(request.kind, pack_state("create", [channel, notice, total, dry], facts))


def _recipients(lookup: Lookup, job: Job, args: list[Any]) -> Accept:
    chunk, users = args
    if job.state is not OPEN:
        raise TooLate(f"recipients: {lookup.session} was started: make another batch of the rest")
    names = pack_names(users)
    if not users or len(users) > CHUNK_USERS_MAX or len(names) > CHUNK_BYTES_MAX + 16:
        raise TooLarge(
            f"recipients: a chunk has 1 to {CHUNK_USERS_MAX} users, of {CHUNK_BYTES_MAX} bytes"
        )
    facts: _Facts = []
    if chunk < job.chunks:
        # Somebody uploads again, not knowing how far he had come.
        if lookup.value(chunk_key(chunk)) != names:
            raise Forbidden(f"recipients: chunk {chunk} is here already, with other users in it")
    elif chunk > job.chunks or chunk >= CHUNKS_MAX:
        raise BadRequest(
            f"recipients: chunk {chunk} comes when {job.chunks} are here, of {CHUNKS_MAX} at most"
        )
    else:
        job = job._replace(chunks=chunk + 1, recipients=job.recipients + len(users))
        facts = [(chunk_key(chunk), 0, names), (JOB_KEY, 0, job.to_bytes())]
    return Accept(EventKind.BATCH, pack_state("recipients", [chunk], facts))


def _change(lookup: Lookup, job: Job, what: str) -> Accept:
    state = TRANSITIONS[what].get(job.state)
    if state is None:
        able = ", ".join(state.name.lower() for state in TRANSITIONS[what])
        raise Forbidden(
            f"{what}: {lookup.session} is {job.state.name.lower()}; possible when it is {able}"
        )
    if what == "start" and not job.chunks:
        raise Forbidden(f"start: {lookup.session} has no recipients yet")
    if what == "start" and job.total not in (0, job.recipients):
        raise Forbidden(
            f"start: {job.recipients} recipients of {job.total} are here: upload the rest first"
        )
    if what == "recall" and job.dry:
        raise Forbidden(f"recall: {lookup.session} was a dry run: nobody got anything")
    facts: _Facts = []
    if state is not job.state:
        facts = [(JOB_KEY, 0, job._replace(state=state).to_bytes())]
    if state is CANCELLED and job.state is OPEN:
        facts.append((PROGRESS_KEY, 0, Progress(settled=True).to_bytes()))
    return Accept(EventKind.BATCH, pack_state(what, [], facts))


# -- progress ----------------------------------------------------------------------------------


def _decide_progress(lookup: Lookup, request: Request) -> Accept | Nothing:
    what, args = read_operation(request.kind, request.body)
    if request.device != SERVER or what != "progress":
        raise Forbidden(f"only servers say how {lookup.session} goes on")
    recall, chunk, rows, settled = args
    lookup.want(JOB_KEY, PROGRESS_KEY)
    job, known = _job(lookup), Progress.from_bytes(lookup.value(PROGRESS_KEY))
    done = known.recall_chunks if recall else known.chunks
    if chunk > done:
        raise OutOfOrder(f"progress: chunk {chunk} comes when {done} are done")
    outcomes = [_outcome(row) for row in rows][done - chunk :]
    counted = _count_recalls if recall else _count_sends
    progress = counted(known, outcomes)
    if not recall and (settled or progress.chunks == job.chunks):
        progress = progress._replace(settled=True)
    state = _state_after(job, progress)
    if progress == known and state is job.state:
        return Nothing()
    if known.settled is not recall or (recall and job.state is not RECALLING):
        raise Forbidden(f"progress: {lookup.session} is {job.state.name.lower()}")
    facts: _Facts = [(PROGRESS_KEY, 0, progress.to_bytes())]
    if state is not job.state:
        facts.append((JOB_KEY, 0, job._replace(state=state).to_bytes()))
    for number, outcome in enumerate(outcomes, done):
        if outcome.failures:
            facts.append((failures_key(number, recall), 0, pack_failures(outcome.failures)))
    return Accept(request.kind, pack_state(what, [recall, done, len(outcomes)], facts))


def _outcome(row: list[int]) -> Outcome:
    numbers = iter(row[1:])
    return Outcome(row[0], tuple(zip(numbers, numbers, strict=True)))


def _count_sends(known: Progress, outcomes: list[Outcome]) -> Progress:
    codes = [code for outcome in outcomes for _, code in outcome.failures]
    unsent = codes.count(NOT_SENT)
    return known._replace(
        chunks=known.chunks + len(outcomes),
        sent=known.sent + sum(outcome.succeeded for outcome in outcomes),
        refused=known.refused + len(codes) - unsent,
        unsent=known.unsent + unsent,
    )


def _count_recalls(known: Progress, outcomes: list[Outcome]) -> Progress:
    return known._replace(
        recall_chunks=known.recall_chunks + len(outcomes),
        recalled=known.recalled + sum(outcome.succeeded for outcome in outcomes),
        unrecalled=known.unrecalled + sum(len(outcome.failures) for outcome in outcomes),
    )


def _state_after(job: Job, progress: Progress) -> JobState:
    if not progress.settled:
        return job.state
    if job.state in (RUNNING, PAUSED):
        return DONE
    if job.state is CANCELLING:
        return CANCELLED
    if job.state is RECALLING and progress.recall_chunks == progress.chunks:
        return RECALLED
    return job.state


# -- which batches are active, in the session of their slot ------------------------------------


LISTED_KEY = "b"


def listing_note(session: str, seq: int, active: bool) -> bytes:
    """Of a slot: the batch's event ``seq`` says whether its owner has something to do for it."""
    return pack_request("batch", session, seq, active)


def listing_of(event: Event) -> bytes | None:
    """What the slot hears of a batch's committed event; None: nothing."""
    if session_kind(event.session) is not SessionKind.BATCH or event.kind == EventKind.VOID:
        return None
    jobs = [fact.value for fact in event_facts(event) if fact.key == JOB_KEY]
    if not jobs or jobs[0] is None:
        return None
    state = Job.from_bytes(jobs[0]).state
    return None if state is OPEN else listing_note(event.session, event.seq, state in ACTIVE)


def read_listed(value: bytes | None) -> dict[str, int]:
    """The active batches of a slot, by session: the seq of the event that says so."""
    return dict(unpack_row("the active batches", value, 1)[0]) if value is not None else {}


def decide_listing(lookup: Lookup, request: Request, args: list[Any]) -> Accept | Nothing:
    """Take such a note into the session of a slot. One that comes again, after the batch has ended,
    lists it until the next one: who looks there sees that there is nothing to do."""
    session, seq, active = args
    listed = read_listed(lookup.value(LISTED_KEY))
    if seq <= listed.get(session, 0) or (not active and session not in listed):
        return Nothing()
    listed.pop(session, None)
    if active:
        listed[session] = seq
    row = pack_row((list(listed.items()),))
    return Accept(request.kind, pack_state("batch", args, [(LISTED_KEY, 0, row)]))
