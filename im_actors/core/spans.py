"""What a stretch of a conversation's events means for one user's row of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from im_actors.core.model import MESSAGE_KINDS, Event, EventKind
from im_actors.core.overlays import event_overlay

PREVIEW_CHARS_MAX = 100
"""How much of a conversation's last message its row shows."""
SPAN_EVENTS_MAX = 1_000
"""Most events that one span tells of, so that it fits a note whatever they are."""
FOR_EVER = (1 << 62) - 1

Range = tuple[int, int]


class Preview(NamedTuple):
    """The conversation's last message as its row shows it. ``by`` is the event that made it what it
    is: the message itself, its last edit or its recall. Of two the one with the greater (seq, by)
    is the newer."""

    seq: int
    by: int
    kind: int
    """MESSAGE, EDIT when it was edited, RECALL when it was recalled, VOID when this user deleted
    it for himself, DROPPED when its content was dropped with its month."""
    sender: str
    text: str

    def deleted(self) -> Preview:
        """Whatever becomes of it later, this user has deleted it for himself."""
        return self._replace(by=FOR_EVER, kind=int(EventKind.VOID), text="")


class Span(NamedTuple):
    """The events ``from_seq`` to ``to_seq`` of a conversation. Spans may overlap and come again."""

    from_seq: int
    to_seq: int
    last_key: int
    """The message key of the last event."""
    preview: Preview | None
    skips: tuple[Range, ...]
    """The seqs that do not count as unread for this user, as (first, last): all but messages of
    others."""
    recalled: tuple[tuple[int, int], ...]
    """(target, seq of the recall) of the messages of others that were recalled."""


def span_of(user: str, events: Sequence[Event]) -> Span:
    """What ``user`` is told of these events: of one direct session, without a hole, at most
    SPAN_EVENTS_MAX. There only who wrote a message may recall or edit it."""
    first, last = events[0], events[-1]
    assert last.seq - first.seq + 1 == len(events) <= SPAN_EVENTS_MAX
    recalled = tuple(
        (event_overlay(event)[0], event.seq)
        for event in events
        if event.kind == EventKind.RECALL and event.sender != user
    )
    skips = _ranges(e.seq for e in events if e.kind not in MESSAGE_KINDS or e.sender == user)
    newest = max((preview for event in events for preview in preview_of(event)), default=None)
    return Span(first.seq, last.seq, last.key, newest, skips, recalled)


def joined_spans(one: Span, following: Span) -> Span:
    """A span and the one that begins where it ends, as one."""
    assert following.from_seq == one.to_seq + 1, (one, following)
    skips = list(one.skips)
    for first, last in following.skips:
        if skips and skips[-1][1] == first - 1:
            first = skips.pop()[0]
        skips.append((first, last))
    return Span(
        one.from_seq,
        following.to_seq,
        following.last_key,
        max(filter(None, (one.preview, following.preview)), default=None),
        tuple(skips),
        one.recalled + following.recalled,
    )


def spans_of(user: str, events: Sequence[Event]) -> list[Span]:
    """The same of any number of events."""
    parts = range(0, len(events), SPAN_EVENTS_MAX)
    return [span_of(user, events[at : at + SPAN_EVENTS_MAX]) for at in parts]


def preview_of(event: Event) -> list[Preview]:
    """What an event says of how a message is shown; nothing of most kinds."""
    if event.kind in MESSAGE_KINDS:
        return [Preview(event.seq, event.seq, event.kind, event.sender, _cut(event.body))]
    if event.kind not in (EventKind.RECALL, EventKind.EDIT):
        return []
    target, overlay = event_overlay(event)
    kind = EventKind.DROPPED if overlay.dropped else event.kind
    return [Preview(target, event.seq, int(kind), event.sender, _cut(overlay.text or b""))]


def _cut(text: bytes) -> str:
    return text[: 4 * PREVIEW_CHARS_MAX].decode("utf-8", "replace")[:PREVIEW_CHARS_MAX]


def _ranges(seqs: Iterable[int]) -> tuple[Range, ...]:
    ranges: list[Range] = []
    for seq in seqs:
        if ranges and ranges[-1][1] == seq - 1:
            ranges[-1] = (ranges[-1][0], seq)
        else:
            ranges.append((seq, seq))
    return tuple(ranges)


def above(ranges: Iterable[Range], seq: int) -> list[Range]:
    """What of these ranges lies above ``seq``."""
    return [(max(first, seq + 1), last) for first, last in ranges if last > seq]
