"""Which other sessions have to hear of an event, and of what (``core.diffusion``)."""

from __future__ import annotations

from typing import NamedTuple

from im_actors.core.batch_rules import listing_of
from im_actors.core.diffusion import Note, Subject
from im_actors.core.model import Event, key_slot
from im_actors.core.names import session_name, slot_session
from im_actors.core.notes import membership_notes, noted_mailboxes, read_notes, span_note
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


class Newest(NamedTuple):
    """A note that says all by itself: a later one of its subject takes its place."""

    request: bytes

    def joined(self, later: Note) -> Newest:
        assert isinstance(later, Newest)
        return later

    def body(self) -> bytes:
        return self.request


def hearers(event: Event) -> list[tuple[Subject, Note]]:
    """The notes that follow from a committed event: spans of direct sessions for their
    users' mailboxes, memberships for the members', read positions for the peer's; and the
    session of a slot hears of its batches whether there is something to do."""
    found: list[tuple[Subject, Note]] = [
        (
            Subject(mailbox, event.session),
            SpanNote(event.session, span_of(session_name(mailbox), [event])),
        )
        for mailbox in noted_mailboxes(event.session)
    ]
    for mailbox, request in membership_notes(event):
        found.append((Subject(mailbox, f"member {event.session}"), Newest(request)))
    for mailbox, request in read_notes(event):
        # The mailbox is the reader's: one position for each that he has talked to.
        found.append((Subject(mailbox, f"receipt {event.session}"), Newest(request)))
    if (listing := listing_of(event)) is not None:
        slot = slot_session(key_slot(event.key))
        found.append((Subject(slot, f"batch {event.session}"), Newest(listing)))
    return found
