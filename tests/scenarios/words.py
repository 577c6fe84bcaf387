"""How messages, records and names are written in a scenario: one short, stable line each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from im_actors.core import inbox_words as inbox
from im_actors.core import messages as m
from im_actors.core import outbox_words as outbox
from im_actors.core import owner as own
from im_actors.core.epochs import epoch_at
from im_actors.core.model import (
    Event,
    EventKind,
    Member,
    Record,
    View,
    ViewState,
    decode_event,
    record_events,
)
from im_actors.errors import error_for


def names(items: Iterable[str]) -> str:
    """``replica-1,2`` for replica-1 and replica-2."""
    found = list(items)
    stem = found[0].rpartition("-")[0] + "-" if found and "-" in found[0] else ""
    if not stem or not all(n.startswith(stem) and "/" not in n for n in found):
        return ", ".join(found)
    return stem + ",".join(name.removeprefix(stem) for name in found)


def member(who: Member) -> str:
    """A member by its replica's name, or by its disk's when that is not the replica's first one."""
    return who.replica if who.disk.endswith("/disk-1") else who.disk


def view(what: View) -> str:
    return f"{_holder(what)}, members {names(map(member, what.members))}"


def _holder(what: View) -> str:
    return f"epoch {what.epoch} {ViewState(what.state).name} {what.owner or 'nobody'}"


def text(kind: int, body: bytes) -> str:
    return "VOID" if kind == EventKind.VOID else f'"{body.decode()}"'


def event(what: Event) -> str:
    return f"{what.session} {what.seq}: {what.sender} n={what.n} {text(what.kind, what.body)}"


def record(what: Record) -> str:
    events = [event(decode_event(data)) for data in record_events(what.payload)]
    return f"{what.lsn}@{what.epoch} " + (" + ".join(events) or "EpochStart")


def records(what: Sequence[Record]) -> str:
    if len(what) > 2:
        return f"{what[0].lsn}@{what[0].epoch} .. {what[-1].lsn}@{what[-1].epoch}"
    return "; ".join(map(record, what)) or "nothing"


def span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}..{last}"


def _sealed(x: m.Sealed) -> str:
    start = f"from {x.from_lsn} " if x.from_lsn > 1 else ""
    last = f"{x.last_lsn}@{epoch_at(x.epochs, x.last_lsn)}"
    return f"sealed for epoch {x.epoch}, log {start}to {last}, commit point {x.commit_lsn}"


def _append(x: m.Append) -> str:
    after = f"after {x.prev_lsn}@{x.prev_epoch}, commit point {x.commit_lsn}"
    return f"append {records(x.records)} (epoch {x.epoch}, {after})"


def _swap(x: own.SwapView) -> str:
    members = f", members {names(map(member, x.new.members))}"
    changed = members if x.new.members != x.old.members else ""
    return f"swap {_holder(x.old)} for {_holder(x.new)}{changed}"


def _nack(row: outbox.NackRow) -> str:
    error = error_for(row.code)
    kind = "NACK" if error.definite else "outcome not known,"
    expected = f", expected n={row.expected_n}" if row.expected_n else ""
    return f"{kind} {row.session} n={row.n} {type(error).__name__}{expected}"


def _prepare(x: m.Prepare) -> str:
    return f"prepare: keep to {x.keep_lsn}, go on at {x.start_lsn} (epoch {x.epoch})"


_TEXTS: dict[type, Any] = {
    m.Seal: lambda x: f"seal for epoch {x.epoch} of {x.view.owner}",
    m.Sealed: _sealed,
    m.Refused: lambda x: f"refused (epoch {x.epoch}), promised is {x.promised}: {x.reason}",
    m.Prepare: _prepare,
    m.Prepared: lambda x: f"prepared, log to {x.last_lsn}",
    m.Append: _append,
    m.Committed: lambda x: f"commit point {x.commit_lsn} (epoch {x.epoch})",
    m.Appended: lambda x: f"durable to {x.durable_lsn}" + ("" if x.complete else ", with a hole"),
    m.Need: lambda x: f"need from {x.from_lsn}",
    m.Fetch: lambda x: f"fetch {span(x.first_lsn, x.last_lsn)}" + " committed" * x.committed,
    m.Fetched: lambda x: f"fetched {records(x.records)}",
    m.Drop: lambda x: f"drop the slot, all members of epoch {x.epoch} have everything",
    m.Dropped: lambda x: "dropped",
    m.LoadSessions: lambda x: f"load {', '.join(x.sessions)}, applied to {x.floor_lsn} at least",
    m.SessionsLoaded: lambda x: (
        "; ".join(f"{i.session} has last seq {i.last_seq}" for i in x.images) or "not ready"
    ),
    own.ReadView: lambda x: "read the view",
    own.ViewRead: lambda x: f"view is {view(x.view)}",
    own.SwapView: _swap,
    own.ViewSwapped: lambda x: f"view is {view(x.view)}",
    outbox.OutboxRow: lambda x: f"send {x.session} n={x.n} {text(x.kind, x.body)}",
    outbox.Acked: lambda x: "; ".join(f"ACK {r[0]} n={r[1]}, seq {r[2]}" for r in x.rows),
    outbox.Nacked: lambda x: "; ".join(map(_nack, x.rows)),
    inbox.Follow: lambda x: f"follow {', '.join(x.sessions)}",
    inbox.HeadsReceived: lambda x: "heads " + ", ".join(f"{s} {seq}" for s, seq in x.heads),
    inbox.Pushed: lambda x: "push " + "; ".join(map(event, x.events)),
    inbox.Pull: lambda x: f"pull {x.session} after {x.after}, at most {x.limit}",
    inbox.Paged: lambda x: f"page {'; '.join(map(event, x.events)) or 'empty'}, head {x.head}",
}


def message(body: Any) -> str:
    return str(_TEXTS[type(body)](body))
