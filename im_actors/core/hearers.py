"""Which other sessions have to hear of an event, and of what (``core.diffusion``)."""

from __future__ import annotations

from typing import NamedTuple

from im_actors.core.batch_rules import listing_of
from im_actors.core.diffusion import Note, Subject
from im_actors.core.model import Event, key_slot
from im_actors.core.names import reads_of, session_name, slot_session
from im_actors.core.notes import (
    Receipt,
    membership_notes,
    noted_mailboxes,
    readers_of,
    receipt_note,
    receipts_of,
    span_note,
)
from im_actors.core.operations import READERS_MAX
from im_actors.core.reads import Reader, reads_note
from im_actors.core.spans import SPAN_EVENTS_MAX, Span, joined_spans, span_of


class SpanNote(NamedTuple):
    """What a mailbox hears of a direct session."""

    session: str
    span: Span

    def joined(self, later: Note) -> SpanNote | None:
        assert isinstance(later, SpanNote)
        first, last = self.span, later.span
        if last.to_seq - first.from_seq >= SPAN_EVENTS_MAX:
            return None
        return SpanNote(self.session, joined_spans(first, last))

    def body(self) -> bytes:
        return span_note(self.session, self.span)


class ReceiptNote(NamedTuple):
    """What a mailbox hears of the other user of a direct session."""

    receipt: Receipt

    def joined(self, later: Note) -> ReceiptNote:
        assert isinstance(later, ReceiptNote)
        session, *seqs = self.receipt
        return ReceiptNote(Receipt(session, *map(max, seqs, later.receipt[1:])))

    def body(self) -> bytes:
        return receipt_note(*self.receipt)


class ReadsNote(NamedTuple):
    """What a group's count of readers hears: of as many users as there are meanwhile."""

    readers: dict[str, Reader]

    def joined(self, later: Note) -> ReadsNote | None:
        assert isinstance(later, ReadsNote)
        readers = dict(self.readers)
        for user, reader in later.readers.items():
            readers[user] = readers.get(user, Reader()).joined_with(reader)
        return ReadsNote(readers) if len(readers) <= READERS_MAX else None

    def body(self) -> bytes:
        return reads_note(self.readers)


class Newest(NamedTuple):
    """A note that says all by itself: a later one of its subject takes its place."""

    request: bytes

    def joined(self, later: Note) -> Newest:
        assert isinstance(later, Newest)
        return later

    def body(self) -> bytes:
        return self.request


def hearers(event: Event) -> list[tuple[Subject, Note]]:
    """The notes that follow from a committed event: spans of direct sessions for their users'
    mailboxes, memberships for the members', read positions for the peer's and for the count of a
    group's readers; and the session of a slot hears of its batches whether there is something to
    do."""
    found: list[tuple[Subject, Note]] = [
        (
            Subject(mailbox, event.session),
            SpanNote(event.session, span_of(session_name(mailbox), [event])),
        )
        for mailbox in noted_mailboxes(event.session)
    ]
    for mailbox, request in membership_notes(event):
        found.append((Subject(mailbox, f"member {event.session}"), Newest(request)))
    for mailbox, receipt in receipts_of(event):
        # The mailbox is the reader's: one position for each that he has talked to.
        found.append((Subject(mailbox, f"receipt {event.session}"), ReceiptNote(receipt)))
    group, readers = readers_of(event)
    users = list(readers)
    for at in range(0, len(users), READERS_MAX):
        # All that a slot has to say of a group is one subject: so a rush of readers is few notes.
        some = {user: readers[user] for user in users[at : at + READERS_MAX]}
        found.append((Subject(reads_of(group), "reads"), ReadsNote(some)))
    if (listing := listing_of(event)) is not None:
        slot = slot_session(key_slot(event.key))
        found.append((Subject(slot, f"batch {event.session}"), Newest(listing)))
    return found
