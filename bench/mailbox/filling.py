"""Fills the directory of a cluster that is down, as its shards and replicas would have.

Through a running cluster 200,000 conversations of one user take a quarter of an hour: the notes of
his mailbox are decided on one after the other. Here the same machines run without what waits
between them: ``Serving`` numbers the messages and makes the records, ``hearers`` says who has to
hear of them, the mailboxes' rules decide on the notes, each slot's cursor says that all of them are
told, and ``History`` keeps the records. Left out are links, fsyncs between the steps, and lookups
in tables, which know nothing of sessions that nobody has written to before.

The cluster has been started and stopped before, so that each slot has a view and an epoch, and all
replicas hold it alike. One history is written, and copied to the others; ``verify_directories``
then finds equal ones.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from im_actors.cli.verify_offline import read_logs
from im_actors.core.diffusion import Note, Subject
from im_actors.core.hearers import hearers
from im_actors.core.messages import SessionImage
from im_actors.core.model import (
    DEVICE_WINDOW,
    EventKind,
    Record,
    record_events,
    record_keys,
    slot_of,
)
from im_actors.core.names import mailbox_of, slot_session, users_of
from im_actors.core.notes import cursor_note
from im_actors.core.replica import SlotLog
from im_actors.core.rules import SERVER
from im_actors.core.rules_for import decide
from im_actors.core.serving import Send, Serving, ServingLimits
from im_actors.server.telling import CURSOR, heard_pending
from im_actors.storage.directory import HISTORY, DataDirectory, open_existing

STEP_MESSAGES = 20_000
"""Messages that are committed together, with the notes that follow from them."""
READ_BYTES = 8 << 20
_LIMITS = ServingLimits(pending_events_max=2 * STEP_MESSAGES, pending_bytes_max=STEP_MESSAGES << 16)
NOTE, MESSAGE = int(EventKind.NOTE), int(EventKind.MESSAGE)


class Text(NamedTuple):
    """The first message of a session."""

    session: str
    sender: str
    body: bytes


def fill_directory(data: Path, texts: Sequence[Text], said: Callable[[int], None]) -> int:
    """Put messages into sessions that nobody has written to; how many events they and their notes
    are. ``said`` is told how many messages are in. RuntimeError: the replicas are not alike."""
    replicas = [open_existing(path) for path in sorted(data.glob("replica-*"))]
    try:
        filler = _Filler(replicas, texts)
        for start in range(0, len(texts), STEP_MESSAGES):
            filler.take(texts[start : start + STEP_MESSAGES])
            said(min(start + STEP_MESSAGES, len(texts)))
        return filler.close()
    finally:
        for replica in replicas:
            replica.close()


class _Slot:
    """A slot's owner, without its links."""

    def __init__(self, slot: int, log: SlotLog, last_key: int) -> None:
        self.serving = Serving(slot, _LIMITS, decide)
        self.serving.last_key = last_key
        self.epoch = log.last_epoch
        self.lsn = log.last_lsn
        self.records: list[Record] = []
        """What has committed,"""
        self.notes: list[tuple[Subject, Note]] = []
        """and who has to hear of it."""

    def submit(self, send: Send, now_ms: int) -> None:
        serving, session = self.serving, send.session
        state = serving.sessions.get(session)
        if state is None:
            serving.loaded(SessionImage(session, 0, ()), self.epoch, now_ms)
        elif state.last_seq - state.committed_seq == DEVICE_WINDOW:
            self.commit()
        refused = serving.submit([send], self.epoch, now_ms)
        while serving.needs:
            # What is not known here was never said.
            of, needs = serving.needs.popitem()
            serving.facts_loaded(of, needs.keys, ())
            refused += serving.decide_again(of, self.epoch, now_ms)
        if refused:
            raise RuntimeError(f"{send.session} of {send.device} is refused: {refused}")

    def commit(self) -> None:
        """Make records of all that is open."""
        while (record := self.serving.cut_record(self.lsn + 1, self.epoch)) is not None:
            self.lsn = record.lsn
            self.records.append(record)
            _, events = self.serving.commit(record.lsn, self.epoch)
            self.notes += [note for event in heard_pending(events) for note in hearers(event)]


class _Filler:
    def __init__(self, replicas: list[DataDirectory], texts: Iterable[Text]) -> None:
        logs = [read_logs(replica) for replica in replicas]
        ends = [{slot: (log.last_epoch, log.last_lsn) for slot, log in of.items()} for of in logs]
        if not ends or not ends[0] or any(end != ends[0] for end in ends):
            raise RuntimeError("the replicas do not hold all slots alike: fill a new cluster")
        self._replicas = replicas
        self._history = replicas[0].open_history()
        self._events = 0
        self._slots = {
            slot: _Slot(slot, log, self._catch_up(slot, log)) for slot, log in logs[0].items()
        }
        self._mentions = Counter(chain.from_iterable(users_of(text.session) for text in texts))
        """How many messages to come are about a user."""

    def take(self, texts: Sequence[Text]) -> None:
        """Commit messages, and then the notes of them."""
        notes = self._commit(
            Send(None, text.session, f"{text.sender}/fill", 1, MESSAGE, text.body) for text in texts
        )
        more = self._commit(
            Send(None, subject.hearer, SERVER, 0, NOTE, note.body()) for subject, note in notes
        )
        assert not more, "others have to hear of what a note changed"
        for text in texts:
            self._forget(text.session)
            for user in users_of(text.session):
                self._mentions[user] -= 1
                if not self._mentions[user]:
                    self._forget(mailbox_of(user))

    def close(self) -> int:
        """Note how far notes are told, and give all replicas the same history."""
        self._commit(
            Send(None, slot_session(number), SERVER, 0, NOTE, cursor_note(CURSOR, slot.lsn))
            for number, slot in self._slots.items()
        )
        self._history.close()
        first, *others = self._replicas
        for other in others:
            other.open_history().close()
            shutil.rmtree(other.path / HISTORY)
            shutil.copytree(first.path / HISTORY, other.path / HISTORY)
        return self._events

    def _catch_up(self, slot: int, log: SlotLog) -> int:
        """Give history what the journal has above it; the last message key of the slot."""
        applied = self._history.applied().get(slot, 0)
        if applied < log.last_lsn:
            journal = self._replicas[0].open_journal()
            records = journal.read(slot, applied + 1, log.last_lsn, READ_BYTES)
            journal.close()
            self._history.apply([(slot, record) for record in records], {slot: log.last_lsn})
        (last,) = self._history.records(slot, log.last_lsn, log.last_lsn, READ_BYTES)
        return record_keys(last.payload)[1]

    def _commit(self, sends: Iterable[Send]) -> list[tuple[Subject, Note]]:
        now_ms = time.time_ns() // 1_000_000
        for send in sends:
            self._slots[slot_of(send.session, len(self._slots))].submit(send, now_ms)
        batch: list[tuple[int, Record]] = []
        notes: list[tuple[Subject, Note]] = []
        for number, slot in self._slots.items():
            slot.commit()
            batch += [(number, record) for record in slot.records]
            notes += slot.notes
            slot.records, slot.notes = [], []
        self._events += sum(len(record_events(record.payload)) for _, record in batch)
        self._history.apply(batch, {number: slot.lsn for number, slot in self._slots.items()})
        return notes

    def _forget(self, session: str) -> None:
        """Nobody writes to it any more."""
        del self._slots[slot_of(session, len(self._slots))].serving.sessions[session]
