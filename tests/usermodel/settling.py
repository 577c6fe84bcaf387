"""Bringing the model up to what the servers have: every event of a timeline is something that was
asked for, once, and right to take; what was refused was right to refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from im_actors.core.facts import read_state
from im_actors.core.model import Event, EventKind
from im_actors.core.names import SessionKind, session_kind, session_name
from im_actors.core.outbox_words import SendState
from tests.usermodel.model import Line, Model, Op, Timeline

BATCH_DEVICE = "/batch:"


class Difference(AssertionError):
    """The product and the model do not agree."""


def settle(
    model: Model,
    session: str,
    events: list[Event],
    ops: Iterable[Op],
    waiting: Callable[[Op], bool],
    batch_text: Callable[[str], str],
) -> list[Op]:
    """Take the events that follow what the model has. ``ops`` are those of this session that had
    not ended; ``waiting`` says which of them are in an outbox. Returns those that have not now."""
    asked = {op.key: op for op in ops}
    timeline = model.timeline(session)
    taken: dict[Op, Event] = {}
    for event in events:
        op = asked.pop((session, event.device, event.n), None)
        if op is not None:
            taken[op] = event
    refused = [op for op in asked.values() if not waiting(op) and not op.abandoned]
    refused += [op for op, event in taken.items() if event.kind == EventKind.VOID]
    by_event = {event.seq: op for op, event in taken.items()}
    unexplained = set(refused)
    _fill_before_creation(timeline, events)
    for event in events:
        _explain(model, timeline, unexplained)
        _take(model, timeline, event, by_event.get(event.seq), batch_text)
    _explain(model, timeline, unexplained)
    for op in (*asked.values(), *taken):
        _check_answer(op, taken.get(op))
    if unexplained:
        (op, *_) = unexplained
        raise Difference(f"{op} was refused with {_error(op)}, and should not have been")
    return [op for op in asked.values() if waiting(op)]


def _fill_before_creation(timeline: Timeline, events: list[Event]) -> None:
    """What was refused before there was a group is in its timeline, and before all members."""
    group = session_kind(timeline.session) is SessionKind.GROUP
    while group and timeline.title is None and events and timeline.last + 1 < events[0].seq:
        timeline.lines.append(Line(timeline.last + 1, 0, 0, EventKind.VOID, ""))


def _verdict(model: Model, timeline: Timeline, op: Op) -> str:
    if session_kind(timeline.session) is SessionKind.MAILBOX:
        return model.mailbox_verdict(op.user, op.address, op.what, op.args)
    return timeline.verdict(op.user, op.what, op.args)


def _error(op: Op) -> str:
    if op.sent is None or op.sent.error is None:
        return "(nobody knows)"
    return type(op.sent.error).__name__


def _explain(model: Model, timeline: Timeline, unexplained: set[Op]) -> None:
    """What would be refused just now, may have been."""
    for op in [op for op in unexplained if op.floor <= timeline.last]:
        verdict = _verdict(model, timeline, op)
        if verdict and (_error(op) in (verdict, "(nobody knows)")):
            unexplained.discard(op)


def _check_answer(op: Op, event: Event | None) -> None:
    """What its sender was told is what became of it."""
    sent = op.sent
    if sent is None:
        return
    shows = event is not None and event.kind != EventKind.VOID
    if sent.state is SendState.ACKED and (not shows or event is None or event.seq != sent.ack.seq):
        raise Difference(f"{op} was ACKed as {sent.ack.seq} and is {event and event.seq}")
    if sent.state is SendState.REFUSED and shows:
        raise Difference(f"{op} was refused, and is in the timeline as {event and event.seq}")


def _take(
    model: Model,
    timeline: Timeline,
    event: Event,
    op: Op | None,
    batch_text: Callable[[str], str],
) -> None:
    if event.seq != timeline.last + 1:
        raise Difference(f"{timeline.session} has {event.seq} after {timeline.last}")
    if timeline.lines and event.key <= timeline.lines[-1].key:
        raise Difference(f"{timeline.session}: the key of {event.seq} is not above the last one")
    line = Line(event.seq, event.key, event.time_ms, event.kind, event.sender)
    if event.kind in (EventKind.VOID, EventKind.NOTE):
        timeline.lines.append(line)
    elif op is None:
        _take_other(model, timeline, event, line, batch_text)
    else:
        _take_op(model, timeline, event, line, op)


def _take_op(model: Model, timeline: Timeline, event: Event, line: Line, op: Op) -> None:
    if event.kind != op.kind:
        raise Difference(f"{op} has become an event of kind {event.kind}")
    if op.what == "message" and event.text != op.args[0]:
        raise Difference(f"{op} says {event.text!r}")
    if verdict := _verdict(model, timeline, op):
        raise Difference(f"{op} was taken as {event.seq}, and {verdict} is right")
    if session_kind(timeline.session) is SessionKind.MAILBOX:
        timeline.lines.append(line)
        model.apply_to_mailbox(op.user, op.what, op.args)
    else:
        timeline.apply(line, op.what, op.args)


def _take_other(
    model: Model,
    timeline: Timeline,
    event: Event,
    line: Line,
    batch_text: Callable[[str], str],
) -> None:
    """What no device asked for by itself: batches, and what clients register."""
    kind = session_kind(timeline.session)
    if kind is SessionKind.NOTICE and BATCH_DEVICE in event.device:
        if event.kind == EventKind.MESSAGE:
            timeline.apply(line, "message", [batch_text(event.device.partition(BATCH_DEVICE)[2])])
            return
        if event.kind == EventKind.RECALL:
            timeline.apply(line, "recall", [read_state(event.body).args[0]])
            return
    if kind is SessionKind.MAILBOX and event.kind == EventKind.MAILBOX:
        what, args, _ = read_state(event.body)
        if what == "device" and args[0] == event.device.partition("/")[2]:
            timeline.lines.append(line)
            model.apply_to_mailbox(session_name(timeline.session), what, args)
            return
        if what == "received":
            # Devices report by themselves what has come to them.
            timeline.lines.append(line)
            return
    raise Difference(f"{timeline.session} has {event}, which nobody asked for")
