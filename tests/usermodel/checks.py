"""What every device sees at a quiet point, against the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from im_actors.client.conversations import Conversation, ConversationList
from im_actors.core.model import EventKind
from im_actors.core.names import SessionKind, session_kind
from im_actors.errors import ImError, RequestError
from tests.usermodel.devices import Device
from tests.usermodel.model import Model, Seen
from tests.usermodel.settling import Difference

if TYPE_CHECKING:
    from tests.usermodel.town import Town

AGREE_S = 60.0
"""In so long a device has to see what it should, once everything is at rest."""
HISTORY_EVENTS = 40
LIST_MAX = 100


async def check_all(town: Town) -> None:
    for device in town.devices:
        if device.mode == "online" and device.user in town.users:
            await _check_device(town, device)


async def _check_device(town: Town, device: Device) -> None:
    model, user = town.model, device.user
    expected = model.list_of(user)
    # A device to which a group was hidden when it was new learns of it with its next page.
    hidden = {session for session, row in model.rows.get(user, {}).items() if row.hidden}
    local = _as_local(expected, hidden)
    await _agree(town, device, "its own list", lambda: _local(device, hidden), local)
    await _agree(town, device, "the list", lambda: _paged(town, device), expected)
    await _agree(town, device, "the total", lambda: _total(device), model.unread(user))
    unread = [seen for seen in expected if seen.unread]
    await _agree(town, device, "what is unread", lambda: _unread_only(device, expected), unread)
    if expected:
        seen = town.rng.choice(expected)
        await _agree(town, device, seen.session, lambda: _single(device, seen.session), seen)
    if town.stored:
        names = sorted(n for n, kicked in model.devices.get(user, {}).items() if not kicked)
        await _agree(town, device, "devices", lambda: _devices(device), names)
    await _check_timelines(town, device)


async def _agree(
    town: Town, device: Device, what: str, look: Callable[[], Awaitable[Any]], expected: Any
) -> None:
    """Until it is as expected; what it was last is told otherwise."""
    deadline = time.monotonic() + AGREE_S
    found = None
    while found != expected:
        if time.monotonic() > deadline:
            raise Difference(f"{device} sees of {what}:\n{_diff(found, expected)}")
        await asyncio.sleep(0.005)
        try:
            found = await look()
        except ImError as error:
            if isinstance(error, RequestError):
                raise Difference(f"{device} asks for {what} and meets {error!r}") from None
            found = error


def _diff(found: Any, expected: Any) -> str:
    if not isinstance(found, list) or not isinstance(expected, list):
        return f"  found    {found}\n  expected {expected}"
    lines = [f"  too much {item}" for item in found if item not in expected]
    lines += [f"  missing  {item}" for item in expected if item not in found]
    order = [getattr(item, "session", item) for item in found]
    return "\n".join([*lines, f"  order {order}"])


# ---- lists


def seen_of(row: Conversation) -> Seen:
    if row.inputs is not None:
        check_inputs(row)
    return Seen(
        row.session,
        row.title,
        row.last_seq,
        row.time_ms,
        row.sender,
        row.preview,
        int(row.kind),
        row.unread,
        row.read_seq,
        row.peer_read_seq,
        row.pinned,
        row.muted,
        row.label,
    )


def check_inputs(row: Conversation) -> None:
    """They add up to what is said to be unread, whenever one looks."""
    assert row.inputs is not None
    base, last, skipped, ranges = row.inputs
    known = sum(end - first + 1 for first, end in ranges)
    ascending = all(one[1] < two[0] for one, two in pairwise(ranges))
    if row.unread != max(0, last - base) - skipped or known > skipped or not ascending:
        raise Difference(f"the inputs do not add up: {row}")
    if any(first <= base or end > last for first, end in ranges):
        raise Difference(f"the inputs are not between base and last: {row}")


async def _local(device: Device, hidden: set[str]) -> list[Seen]:
    """What the device would show without a server: it is told of all that is noted in mailboxes,
    and follows the groups."""
    page = await device.im.conversations(LIST_MAX, label=None, local=True)
    return _as_local([seen_of(row) for row in page.conversations], hidden)


def _as_local(rows: list[Seen], hidden: set[str]) -> list[Seen]:
    """Where groups end a device knows as far as it was told of by itself: only the groups of the
    user, behind the others."""
    live = (SessionKind.GROUP, SessionKind.OPEN)
    noted = [row for row in rows if session_kind(row.session) not in live]
    groups = [r for r in rows if session_kind(r.session) is SessionKind.GROUP]
    groups = [row for row in groups if row.session not in hidden]
    return [*noted, *sorted(_NOTHING._replace(session=row.session) for row in groups)]


_NOTHING = Seen("", "", 0, 0, "", "", 0, 0, 0, 0, False, False, "")


def _ordered(found: list[Seen], expected: list[Seen]) -> list[Seen]:
    """Of several lists by label one, as far as their order agrees with that of the whole."""
    place = {seen.session: number for number, seen in enumerate(expected)}
    for label in {seen.label for seen in found}:
        places = [place.get(seen.session, -1) for seen in found if seen.label == label]
        if places != sorted(places):
            return found
    return sorted(found, key=lambda seen: place.get(seen.session, -1))


async def _paged(town: Town, device: Device) -> list[Seen]:
    expected = town.model.list_of(device.user)
    limit = town.rng.choice((1, 2, 3, 7, 25, 100))
    found: list[Seen] = []
    labels: list[str | None] = [None]
    if town.rng.random() < 0.5:
        labels = sorted({"", *(seen.label for seen in expected)})
    for label in labels:
        after = None
        while True:
            page = _server(await device.im.conversations(limit, after, label=label))
            found += [seen_of(row) for row in page.conversations]
            after = page.next
            if after is None:
                break
    return found if labels == [None] else _ordered(found, expected)


async def _unread_only(device: Device, expected: list[Seen]) -> list[Seen]:
    found: list[Seen] = []
    everything = _server(await device.im.conversations(LIST_MAX))
    total = 0
    for label in sorted({"", *(seen.label for seen in expected)}):
        page = _server(await device.im.conversations(LIST_MAX, unread_only=True, label=label))
        found += [seen_of(row) for row in page.conversations]
        total += sum(row.unread for row in page.conversations)
    if total != everything.unread:
        raise _NotYet(f"the list says {everything.unread} unread, its rows {total}")
    return _ordered(found, expected)


async def _total(device: Device) -> int:
    unread = await device.im.unread()
    if unread.offline:
        raise _NotYet("offline")
    return unread.count


async def _single(device: Device, session: str) -> Seen | None:
    row = await device.im.conversation(session)
    return seen_of(row) if row is not None else None


async def _devices(device: Device) -> list[str]:
    return sorted(found.device for found in await device.im.devices())


class _NotYet(ImError):
    """Ask again."""


def _server(page: ConversationList) -> ConversationList:
    if page.offline:
        raise _NotYet("offline")
    return page


# ---- timelines


async def _check_timelines(town: Town, device: Device) -> None:
    for session in town.model.timelines:
        kind = session_kind(session)
        if kind in (SessionKind.MAILBOX, SessionKind.BATCH):
            continue
        first, last = town.model.timeline(session).readable(device.user)
        if last < first:
            continue
        if device.follows:
            await _check_followed(town, device, session)
        expected = town.model.shown(device.user, session)[-HISTORY_EVENTS:]
        await _agree(
            town, device, f"history of {session}", lambda s=session: _history(device, s), expected
        )


async def _history(device: Device, session: str) -> list[tuple[int, int, str, str]]:
    page = await device.im.history(session, limit=HISTORY_EVENTS)
    if page.offline:
        raise _NotYet("offline")
    texts = (EventKind.MESSAGE, EventKind.EDIT)
    return [(e.seq, e.kind, e.sender, e.text if e.kind in texts else "") for e in page.events]


async def _check_followed(town: Town, device: Device, session: str) -> None:
    """In order, nothing twice, nothing missing that this user might read all the time."""
    model, user = town.model, device.user
    timeline = model.timeline(session)
    first, last = timeline.readable(user)
    deleted = model.row(user, session).deleted
    hidden = {line.seq for line in timeline.lines if line.kind == EventKind.VOID} | deleted
    begin = device.last.get(session, 0)
    wanted = [seq for seq in range(max(first, begin + 1), last + 1) if seq not in hidden]
    # Who was cut off gets what came up to then if he opens it again; a new device gets all of it.
    device.follow(session)

    async def reached() -> bool:
        return not wanted or device.reached(session) >= wanted[-1]

    await _agree(town, device, f"following {session} up to {wanted[-1:]}", reached, True)
    shown = device.shown.pop(session, [])
    _check_shown(model, device, session, [event.seq for event in shown], wanted)
    for event in shown:
        line = timeline.lines[event.seq - 1]
        if (event.kind, event.sender, event.key) != (line.kind, line.user, line.key):
            raise Difference(f"{device} follows {session} and was shown {event} for {line}")
    device.last[session] = max(last, begin)


def _check_shown(
    model: Model, device: Device, session: str, seqs: list[int], wanted: list[int]
) -> None:
    timeline = model.timeline(session)
    begin = device.last.get(session, 0)
    member = timeline.members.get(device.user)
    spans = [timeline.readable(device.user), *(member.spans if member is not None else [])]
    for one, two in zip([begin, *seqs], seqs, strict=False):
        if two <= one and not device.crashed:
            raise Difference(f"{device} was shown {two} after {one} of {session}: {seqs}")
        if not any(first <= two <= last for first, last in spans):
            raise Difference(f"{device} was shown {two} of {session}, and may read {spans}")
    if lacks := set(wanted) - set(seqs):
        raise Difference(f"{device} was never shown {sorted(lacks)} of {session}: {seqs}")
