"""Events as they are to be shown: recalled and edited messages, what the user deleted for himself,
changes of groups in words that programs understand.

A recall or an edit is an event like any other and may be read before its message or after it, from
a page of old history or from a push. So what it says is kept by the message that it is about, and
looked at whenever that message is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgpack

from im_actors.core.facts import read_state
from im_actors.core.model import MESSAGE_KINDS, Change, Event, EventKind, pack

OVERLAYS_MAX = 4_000
"""Most messages of which it is kept what became of them; the oldest news are forgotten first, and
a server is asked for them when old history is read."""
DELETED_MAX = 10_000
"""Most messages that are kept as deleted by this user."""

_MESSAGE, _RECALL, _EDIT = int(EventKind.MESSAGE), int(EventKind.RECALL), int(EventKind.EDIT)
_MEMBER = "m/"
"""What the keys of a group's facts begin with that are memberships."""
_INTERNAL = (EventKind.VOID, EventKind.MAILBOX, EventKind.NOTE, EventKind.BATCH)
"""Kinds that no reader is shown."""

Keep = Callable[[str, str, bytes | None], None]
"""``ClientStore.keep``."""


class Said(NamedTuple):
    """What the event ``seq`` of kind RECALL or EDIT said of an earlier one."""

    seq: int
    kind: int
    text: bytes | None
    """None when it was recalled, and of an edit when its text was dropped with its month."""


class Shown(Event):
    """An event that is not shown as it stands in the timeline."""

    _said: Said | None = None

    @property
    def recalled(self) -> bool:
        return self._said is not None and self._said.kind == _RECALL

    @property
    def edited(self) -> bool:
        return self._said is not None and self._said.kind == _EDIT

    @property
    def dropped(self) -> bool:
        said = self._said
        if said is None and self.kind == _EDIT and (found := read_said(self)):
            said = found[1]
        if said is not None:
            return said.kind == _EDIT and said.text is None
        return super().dropped

    @property
    def text(self) -> str:
        """Of a message as it is now, empty when it was recalled; of an edit the new text."""
        body = b""
        if self._said is not None:
            body = self._said.text or b""
        elif self.kind == _MESSAGE:
            body = self.body
        elif self.kind == _EDIT and (found := read_said(self)):
            body = found[1].text or b""
        return body.decode("utf-8", errors="replace")

    @property
    def target(self) -> int | None:
        found = read_said(self)
        return found[0] if found else None

    @property
    def change(self) -> Change | None:
        if self.kind != EventKind.GROUP:
            return None
        try:
            what, args, facts = read_state(self.body)
            users = [key[len(_MEMBER) :] for key, _, _ in facts if key.startswith(_MEMBER)]
        except Exception:
            return None  # a form of a later version
        return Change(what, args, users)


def read_said(event: Event) -> tuple[int, Said] | None:
    """What a RECALL or an EDIT is about, and what it says. None: it is none, or it says nothing
    that could be understood."""
    if event.kind not in (_RECALL, _EDIT):
        return None
    try:
        fields = msgpack.unpackb(event.body, raw=False)
        if type(fields[0]) is str:
            # As the owner wrote it down: [what, [target], [[key, rank, row]]].
            (target,), ((_key, _rank, row),) = fields[1:3]
            _version, _kind, _user, text = msgpack.unpackb(row, raw=False)
        else:
            target, text = fields[0], fields[1] if event.kind == _EDIT else None
    except Exception:
        return None
    if type(target) is not int or not (text is None or type(text) is bytes):
        return None
    if event.kind == _RECALL and text is not None:
        return None
    return target, Said(event.seq, event.kind, text)


class Overlays:
    """What is known of messages besides themselves."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._said: dict[tuple[str, int], Said] = {}
        self._deleted: dict[tuple[str, int], None] = {}
        self._sessions: Counter[str] = Counter()
        """How much is known of each; of most there is nothing, and no need to look."""

    def restore(self, kept: Mapping[str, Mapping[str, bytes]]) -> None:
        """With what a store kept."""
        for name, value in kept.get("overlay", {}).items():
            self._remember(_place(name), Said(*msgpack.unpackb(value)))
        for name in kept.get("deleted", {}):
            self._deleted[_place(name)] = None
            self._sessions[_place(name)[0]] += 1

    def saw(self, events: Iterable[Event]) -> None:
        """These were read, in whatever order."""
        for event in events:
            if (event.kind == _RECALL or event.kind == _EDIT) and (found := read_said(event)):
                self.take(event.session, *found)

    def take(self, session: str, target: int, said: Said) -> None:
        """A recall is for ever; of edits the last one holds."""
        place = (session, target)
        known = self._said.get(place)
        if known is not None:
            final = known.kind == _RECALL
            if (final, known.seq) >= (said.kind == _RECALL, said.seq):
                return
        self._remember(place, said)
        self._keep("overlay", _name(place), pack(said))
        if len(self._said) > OVERLAYS_MAX:
            oldest = next(iter(self._said))
            del self._said[oldest]
            self._forget("overlay", oldest)

    def delete(self, session: str, seq: int) -> None:
        """The user does not want to see this one any more."""
        place = (session, seq)
        if place in self._deleted:
            return
        self._deleted[place] = None
        self._sessions[session] += 1
        self._keep("deleted", _name(place), b"")
        if len(self._deleted) > DELETED_MAX:
            oldest = next(iter(self._deleted))
            del self._deleted[oldest]
            self._forget("deleted", oldest)

    def shown(self, events: Sequence[Event]) -> Sequence[Event]:
        """Those that a reader is shown, and as he is shown them. All of one session."""
        if not events:
            return events
        known = self._sessions[events[0].session] if self._sessions else 0
        if not known and all(event.kind == _MESSAGE for event in events):
            return events
        return [shown for event in events if (shown := self._one(event)) is not None]

    def _one(self, event: Event) -> Event | None:
        place = (event.session, event.seq)
        if event.kind in _INTERNAL or place in self._deleted:
            return None
        said = self._said.get(place) if event.kind in MESSAGE_KINDS else None
        if said is None and event.kind in MESSAGE_KINDS:
            return event
        shown = Shown._make(event)
        shown._said = said
        return shown

    def _remember(self, place: tuple[str, int], said: Said) -> None:
        if place not in self._said:
            self._sessions[place[0]] += 1
        self._said[place] = said

    def _forget(self, area: str, place: tuple[str, int]) -> None:
        self._sessions[place[0]] -= 1
        self._keep(area, _name(place), None)


def _name(place: tuple[str, int]) -> str:
    return f"{place[1]}/{place[0]}"


def _place(name: str) -> tuple[str, int]:
    seq, _, session = name.partition("/")
    return session, int(seq)
