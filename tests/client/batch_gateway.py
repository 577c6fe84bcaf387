"""A gateway that takes batches: it decides by the real rules, and tells a chunk for each question
how they stand."""

from __future__ import annotations

from typing import Any

from im_actors.core.batch import (
    JOB_KEY,
    PROGRESS_KEY,
    Job,
    JobState,
    Outcome,
    Progress,
    chunk_key,
    failures_key,
    progress_note,
    read_failures,
    read_names,
    status_fields,
)
from im_actors.core.model import EventKind
from im_actors.core.rule_settings import RuleSettings
from im_actors.errors import Forbidden
from tests.client.user_gateway import UserGateway
from tests.core.deciding import Deciding

SERVICES = RuleSettings(services=frozenset({"shop"}))


class BatchGateway(UserGateway):
    """Users whose names begin with "deaf" refuse what they are sent."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: dict[str, Deciding] = {}
        self.told: list[str] = []
        """Everybody who was sent something, in order."""
        self.frozen = False

    def _decided(self, device: str, session: str, kind: int, body: bytes) -> bytes:
        if kind != EventKind.BATCH:
            return super()._decided(device, session, kind, body)
        batch = self.batches.get(session) or Deciding(session, SERVICES)
        event = batch.send(device, kind, body)
        assert event is not None
        self.batches[session] = batch
        return event.body

    def _answer(self, user: str, what: str, args: list[Any]) -> Any:
        batch = self.batches.get(args[0]) if what in ("batch", "outcomes") else None
        if batch is None:
            return [0, None] if what == "batch" else super()._answer(user, what, args)
        job, progress = _read(batch)
        if user != job.sender:
            raise Forbidden(f"{batch.session} is of {job.sender}")
        if what == "batch":
            if not self.frozen:
                self._go_on(batch, job, progress)
            return [len(batch.events), status_fields(*_read(batch))]
        value = batch.value(chunk_key(args[1]))
        users = read_names(value) if value is not None else []
        failures = [read_failures(batch.value(failures_key(args[1], r))) for r in (False, True)]
        flat = [[number for pair in pairs for number in pair] for pairs in failures]
        return [len(batch.events), users, *flat]

    def _go_on(self, batch: Deciding, job: Job, progress: Progress) -> None:
        match job.state:
            case JobState.RUNNING:
                users = self._users(batch, progress.chunks)
                failed = [at for at, user in enumerate(users) if user.startswith("deaf")]
                if not job.dry:
                    self.told += users
                outcome = Outcome(len(users) - len(failed), tuple((at, 111) for at in failed))
                batch.note(progress_note(False, progress.chunks, [outcome]))
            case JobState.CANCELLING | JobState.RECALLING if not progress.settled:
                batch.note(progress_note(False, progress.chunks, [], settled=True))
            case JobState.RECALLING:
                number = progress.recall_chunks
                failed = read_failures(batch.value(failures_key(number)))
                outcome = Outcome(len(self._users(batch, number)) - len(failed))
                batch.note(progress_note(True, number, [outcome]))

    def _users(self, batch: Deciding, chunk: int) -> list[str]:
        value = batch.value(chunk_key(chunk))
        assert value is not None
        return read_names(value)


def _read(batch: Deciding) -> tuple[Job, Progress]:
    value = batch.value(JOB_KEY)
    assert value is not None
    return Job.from_bytes(value), Progress.from_bytes(batch.value(PROGRESS_KEY))
