"""What the full-screen chat shows, and what changes it. Nothing here waits, draws or sends.

``Desk`` tells the model what happened and what keys ask for; ``chat_view`` makes lines of it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from im_actors.client import Conversation, Event, EventKind, Page, SendState
from im_actors.client.conversations import title_of

EVENTS_MAX = 2_000
"""Most events of one conversation that are held; the oldest go first and can be read again. Who
reads further back sees no older ones then."""
TALKS_MAX = 32
"""Most conversations whose events are held."""
REFUSED_MAX = 20
"""Most refused messages that stay on the screen of one conversation."""

Place = tuple[int, int]
"""Where something stands in a conversation: (0, seq), or (1, n) of what has no seq yet."""
_LABEL = "\n"
"""What the keys of labels begin with; no session's name has it."""
_NO_MESSAGES = (EventKind.RECALL, EventKind.EDIT)
"""They are seen at the message that they are about."""


class Entry(NamedTuple):
    """A line of the list: a conversation, or a label with what is folded under it."""

    key: str
    title: str
    unread: int
    conversation: Conversation | None
    folded: int = 0
    """How many conversations are under the label."""
    label: str = ""


@dataclass(slots=True)
class Own:
    """A message of this device that has no place in the conversation yet."""

    n: int
    text: str
    state: SendState = SendState.PENDING
    why: str = ""
    """Why it was refused."""
    seq: int = 0
    """Its place, once there is an ACK."""


@dataclass(slots=True)
class Talk:
    """The part of a conversation that was read."""

    session: str
    events: dict[int, Event] = field(default_factory=dict)
    seqs: list[int] = field(default_factory=list)
    own: list[Own] = field(default_factory=list)
    said: dict[int, tuple[int, int, str]] = field(default_factory=dict)
    """Seq of a message to what became of it: (seq, kind, text) of the recall or edit."""
    asked: dict[int, str] = field(default_factory=dict)
    """Seq of a message to what this user asked for it and is not there yet."""
    older: int | None = None
    """Where the page before begins; None: there is none, or nothing was read yet."""
    loading: bool = True
    loaded: bool = False
    offline: bool = False
    complete: bool = True
    bottom: tuple[Place, int] | None = None
    """The last line to show, as (place, line of it); None: the newest."""
    typing: tuple[str, ...] = ()

    def places(self) -> list[Place]:
        """What is shown, in order."""
        shown = [(0, s) for s in self.seqs if self.events[s].kind not in _NO_MESSAGES]
        return shown + [(1, own.n) for own in self.own]

    def take(self, events: Iterable[Event], address: str) -> None:
        for event in events:
            if event.seq not in self.events:
                insort(self.seqs, event.seq)
            self.events[event.seq] = event
            if event.kind in _NO_MESSAGES and event.target is not None:
                self._amend(event.target, (event.seq, event.kind, event.text))
            if event.device == address:
                self.own = [own for own in self.own if own.n != event.n]
        if self.bottom is None:
            for seq in self.seqs[:-EVENTS_MAX]:
                del self.events[seq]
                self.older = seq + 1
            del self.seqs[:-EVENTS_MAX]

    def _amend(self, target: int, said: tuple[int, int, str]) -> None:
        """A recall is for ever; of edits the last one holds."""
        known = self.said.get(target, (0, 0, ""))
        if (known[1] == EventKind.RECALL, known[0]) < (said[1] == EventKind.RECALL, said[0]):
            self.said[target] = said
        self.asked.pop(target, None)

    def is_recalled(self, seq: int) -> bool:
        said = self.said.get(seq)
        return self.events[seq].recalled or (said is not None and said[1] == EventKind.RECALL)

    def is_edited(self, seq: int) -> bool:
        return self.events[seq].edited or seq in self.said

    def text(self, seq: int) -> str:
        """As it stands now."""
        said = self.said.get(seq)
        return said[2] if said is not None else self.events[seq].text


class Model:
    """One screen."""

    def __init__(self, user: str, address: str, now_ms: int) -> None:
        self.user = user
        self.address = address
        self.rows: list[Conversation] = []
        self.folded: dict[str, list[Conversation]] = {}
        self.unread = 0
        self.chosen = ""
        """The key of an entry; empty: none yet."""
        self.editing: int | None = None
        """The seq of the message whose new text is being typed."""
        self.notice = ""
        self.overlay: list[str] = []
        """Lines that are shown in place of the conversation until they are put away."""
        self.overlay_top = 0
        """The first line of it that is on the screen."""
        self.online: bool | None = None
        """None: it has not been tried yet."""
        self.since_ms = now_ms
        self.why = ""
        self.pending = 0
        self._talks: OrderedDict[str, Talk] = OrderedDict()
        self._opened: dict[str, None] = {}
        """Sessions that the list does not have: opened by name, or with something in the outbox."""
        self._unfolded: set[str] = set()

    # -- the list --------------------------------------------------------------------------------

    def listed(
        self,
        rows: Sequence[Conversation],
        folded: dict[str, list[Conversation]],
        unread: int,
    ) -> None:
        """This is what the device knows of the user's conversations."""
        self.rows, self.folded = list(rows), folded
        self.unread = unread
        for row in (*rows, *(row for rows in folded.values() for row in rows)):
            self._opened.pop(row.session, None)

    def entries(self) -> list[Entry]:
        """The list as it is shown, top down."""
        entries = [
            Entry(session, title_of(session, self.user), 0, None)
            for session in reversed(self._opened)
        ]
        entries += map(_entry, self.rows)
        for label, rows in self.folded.items():
            unread = sum(row.unread for row in rows)
            entries.append(Entry(_LABEL + label, label, unread, None, len(rows), label))
            if label in self._unfolded:
                entries += [_entry(row)._replace(label=label) for row in rows]
        return entries

    def conversation(self, session: str) -> Conversation | None:
        folded = (row for rows in self.folded.values() for row in rows)
        return next((row for row in (*self.rows, *folded) if row.session == session), None)

    def choose(self, step: int) -> str:
        """Go down or up the list; the session that is chosen now, empty for a label."""
        keys = [entry.key for entry in self.entries()]
        if not keys:
            return ""
        if self.chosen in keys:
            at = min(len(keys) - 1, max(0, keys.index(self.chosen) + step))
        else:
            at = 0 if step > 0 else len(keys) - 1
        self.chosen = keys[at]
        return self.session

    def left_below(self) -> int:
        """How many entries there are below the chosen one."""
        keys = [entry.key for entry in self.entries()]
        return len(keys) - keys.index(self.chosen) - 1 if self.chosen in keys else len(keys)

    def find(self, text: str) -> str:
        """The next conversation below the chosen one, round to the top, that is called so."""
        entries = [entry for entry in self.entries() if not entry.key.startswith(_LABEL)]
        keys = [entry.key for entry in entries]
        at = keys.index(self.chosen) + 1 if self.chosen in keys else 0
        wanted = text.casefold()
        for entry in entries[at:] + entries[:at]:
            if wanted in entry.title.casefold() or wanted in entry.key.casefold():
                return entry.key
        return ""

    def fold(self) -> bool:
        """Show or hide what is under the chosen label; False: it is none."""
        if not self.chosen.startswith(_LABEL):
            return False
        self._unfolded ^= {self.chosen[1:]}
        return True

    @property
    def session(self) -> str:
        """The conversation that is open; empty: none is."""
        return "" if self.chosen.startswith(_LABEL) else self.chosen

    # -- a conversation --------------------------------------------------------------------------

    @property
    def talk(self) -> Talk | None:
        return self._talks.get(self.session)

    def opened(self, session: str) -> Talk:
        """Show this one, at its newest message, and wait for its page."""
        if self.chosen != session:
            self.chosen, self.editing = session, None
            self.show([])
        self.knows(session)
        talk = self._talk(session)
        talk.bottom, talk.loading = None, True
        return talk

    def knows(self, session: str) -> None:
        """Have it in the list until that has it by itself; then it may also go again."""
        if self.conversation(session) is None:
            self._opened.setdefault(session)

    def closed(self) -> None:
        """Show none."""
        self._opened.pop(self.session, None)
        self.chosen, self.editing = "", None

    def _talk(self, session: str) -> Talk:
        talk = self._talks.setdefault(session, Talk(session))
        self._talks.move_to_end(session)
        for old in [name for name, talk in self._talks.items() if not talk.own]:
            if len(self._talks) <= TALKS_MAX or old == session:
                break
            del self._talks[old]
        return talk

    def paged(self, session: str, page: Page, is_older: bool = False) -> None:
        """A page was read: the newest, or the one before what there is."""
        talk = self._talk(session)
        oldest = talk.seqs[0] if talk.seqs else None
        if not is_older:
            self._newest(talk, page)
        reaches = oldest is None or (bool(page.events) and page.events[0].seq <= oldest)
        if is_older or reaches:
            # What this computer does not have may still be there for another try.
            talk.older = page.before if page.events or not page.offline else talk.older
        talk.take(page.events, self.address)
        talk.loading, talk.loaded = False, True

    def _newest(self, talk: Talk, page: Page) -> None:
        first, last = (page.events[0].seq, page.events[-1].seq) if page.events else (0, 0)
        gap = bool(talk.seqs) and talk.seqs[-1] + 1 < first
        if (gap or not talk.complete) and not page.offline:
            # What was read before does not reach up to this page, or has gaps itself.
            talk.events.clear()
            talk.seqs.clear()
            talk.older = page.before
        talk.own = [own for own in talk.own if not 0 < own.seq <= last]
        talk.offline, talk.complete = page.offline, page.complete

    def kept(self, session: str, page: Page) -> None:
        """This is what the store has of it; the newest page is still being read."""
        talk = self._talk(session)
        self.paged(session, page)
        talk.offline, talk.loading = False, True

    def failed(self, session: str, why: str) -> None:
        """Its page cannot be read."""
        self._talk(session).loading = False
        self.notice = why

    def took(self, session: str, events: Sequence[Event]) -> None:
        """These came in while the conversation is followed."""
        talk = self._talks.get(session)
        if talk is not None:
            talk.take(events, self.address)

    def sent(self, session: str, own: Own) -> None:
        """A message of this device is in the outbox."""
        talk = self._talk(session)
        talk.bottom = None
        if all((e.device, e.n) != (self.address, own.n) for e in talk.events.values()):
            talk.own.append(own)
        refused = [known for known in talk.own if known.state is SendState.REFUSED]
        for known in refused[: max(0, len(refused) - REFUSED_MAX)]:
            talk.own.remove(known)

    def last_own(self) -> int | None:
        """The newest message of the user in the open conversation that is not recalled."""
        talk = self.talk
        for seq in reversed(talk.seqs if talk else []):
            assert talk is not None
            event = talk.events[seq]
            is_own = event.kind == EventKind.MESSAGE and event.sender == self.user
            if is_own and not talk.is_recalled(seq):
                return seq
        return None

    def to_read(self, session: str, shown: int) -> int:
        """Up to which seq the user has read, when ``shown`` is the last that he sees; 0: nothing
        that would count."""
        talk = self._talks.get(session)
        row = self.conversation(session)
        if talk is None or not talk.loaded or (row is not None and row.left):
            return 0
        read = row.read_seq if row is not None else 0
        if row is not None and row.unread and shown > read:
            return shown
        news = talk.seqs[bisect_left(talk.seqs, read + 1) : bisect_left(talk.seqs, shown + 1)]
        return shown if any(talk.events[seq].sender != self.user for seq in news) else 0

    def show(self, lines: list[str]) -> None:
        """Put this over the conversation; without lines: put it away."""
        self.overlay, self.overlay_top = lines, 0

    # -- the connection --------------------------------------------------------------------------

    def connection(self, online: bool, why: str, pending: int, now_ms: int) -> bool:
        """Its state; whether anything is new."""
        state = None if not online and not why and self.online is None else online
        new = (state, why, pending) != (self.online, self.why, self.pending)
        if state is not self.online:
            self.since_ms = now_ms
        self.online, self.why, self.pending = state, why, pending
        return new


def _entry(row: Conversation) -> Entry:
    return Entry(row.session, row.title, row.unread, row)
