"""A user's conversation list in memory.

It begins with a copy from some tier and is fed with every change after that, in any order: of one
row the fact with the greatest seq holds. ``version`` is the seq up to which it has every change
without a hole; ``base`` is the one from which on it has kept every change. How far down it has the
rows themselves is ``complete``; below that only those lie here that have changed.

Why a page from another tier fits in: everything that changed after ``base`` is here already, and
what did not change looks the same in a copy of any version from ``base`` on. If the copy is newer
than the view, a row may have left the page without having come here yet; so the view has to be fed
up to the copy's version first. If it is older than ``base``, the events between the two do.

All counters are caches of a sum over the rows: ``recount`` computes it and says whether they agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge as merge_sorted
from itertools import islice
from typing import NamedTuple

from sortedcontainers import SortedList

from im_actors.core.facts import Fact
from im_actors.mailbox.cursor import Query, write_cursor
from im_actors.mailbox.rows import (
    CONVERSATION,
    END,
    TOP,
    Change,
    Copy,
    Entry,
    Flag,
    Head,
    Heads,
    Listing,
    Place,
    RowFormat,
    entry_place,
    packed_array,
    place_of,
)

EARLY_MAX = 1_024
"""Most seqs remembered of changes that came before earlier ones; further ones come again."""


class Page(NamedTuple):
    """A part of a list, in its order."""

    version: int
    entries: list[Entry]
    encoded: bytes
    """The rows as clients get them: one msgpack array."""
    cursor: str
    """Where the next page begins; "" at the end of the list."""


class Needs(NamedTuple):
    """To answer, the rows of a listing behind a place have to be loaded."""

    listing: Listing
    after: Place


class Totals(NamedTuple):
    """Sums over all listed rows."""

    unread: int
    muted: int
    """The part of ``unread`` that lies in muted conversations."""
    conversations: int
    """How many have something unread."""


class Delta(NamedTuple):
    """The rows that changed, those included that are not listed any more."""

    version: int
    """Who applies it has every change up to here."""
    entries: list[Entry]
    encoded: bytes
    more: bool
    """There is more: ask again with ``version``."""


class Recount(NamedTuple):
    kept: Totals
    computed: Totals
    rows: int

    @property
    def drifted(self) -> bool:
        return self.kept != self.computed


class _Row:
    """A row and what was derived from it. ``place``: None when it is in no list."""

    __slots__ = ("encoded", "entry", "head", "mark", "place", "unread")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.unread = entry.unread
        self.place: Place | None = None
        self.head: Head | None = None
        self.mark = 0
        self.encoded: bytes | None = None


class MailboxView:
    """The list of one user. Nothing here waits."""

    def __init__(
        self, copy: Copy, form: RowFormat, heads: Heads, standing: Iterable[Entry] = ()
    ) -> None:
        self.base = copy.version
        self.version = copy.version
        self.heard = copy.version
        """The greatest seq of the mailbox that it was told of."""
        self.complete = {Listing.ALL: TOP, Listing.UNREAD: TOP, Listing.LIVE: TOP}
        self._form = form
        self._heads = heads
        self._heads_seen = -1
        self._rows: dict[str, _Row] = {}
        self._live: set[str] = set()
        self._lists: dict[tuple[str, bool], SortedList] = {}
        """Places, by label and whether only what is unread."""
        self._changed = SortedList()
        """(seq, session) of the rows that changed after ``base``."""
        self._early: set[int] = set()
        self._unread = self._muted = self._conversations = 0
        for entry in standing:
            self._take(entry)
        self.merge(copy, TOP)

    def __len__(self) -> int:
        return len(self._rows)

    # ---- being told

    def feed(self, seq: int, facts: Iterable[Fact]) -> None:
        """The mailbox's event ``seq`` and what it says; again is fine, and in any order."""
        if seq <= self.base:
            # What came after it may have been forgotten: it must not come back.
            return
        self._take_facts(facts)
        self.hear(seq)
        if seq == self.version + 1:
            self._reach(seq)
        elif seq > self.version and len(self._early) < EARLY_MAX:
            self._early.add(seq)

    def advance(self, upto: int, facts: Iterable[Fact]) -> None:
        """All that changed between ``version`` and ``upto``, as it is at ``upto`` or later."""
        self._take_facts(facts)
        self.hear(upto)
        if upto > self.version:
            self._early = {seq for seq in self._early if seq > upto}
            self._reach(upto)

    def reach_back(self, since: int, facts: Iterable[Fact]) -> None:
        """Keep every change after ``since``, which is before ``base``: ``facts`` are what changed
        in between, as it was at ``base`` or later. Then older copies fit in."""
        for session, row in self._rows.items():
            if since < row.entry.seq <= self.base:
                self._changed.add((row.entry.seq, session))
        self.base = min(self.base, since)
        self._take_facts(facts)

    def hear(self, version: int) -> None:
        """The mailbox has at least so many events."""
        self.heard = max(self.heard, version)

    def merge(self, copy: Copy, after: Place) -> bool:
        """Take a copy of the rows behind ``after``; afterwards what the copy has completely is
        complete here. False: it does not fit, because it is older than ``base``, or newer than
        what has been fed, or its rows do not follow those that are here."""
        if not self.base <= copy.version <= self.version or after > self.complete[Listing.ALL]:
            return False
        self.learn(copy)
        for listing, place in copy.complete.items():
            self.complete[listing] = max(self.complete[listing], place)
        return True

    def learn(self, copy: Copy) -> None:
        """Take single rows, which complete nothing. A copy older than ``base`` must not be used:
        it may show rows that changed before anything was kept here."""
        assert copy.version >= self.base, (copy.version, self.base)
        for entry in copy.entries:
            self._take(entry)

    # ---- answering

    def page(self, query: Query) -> Page | Needs:
        """Rows behind ``query.after``. Call ``refresh`` before, or heads are those of then."""
        if self.complete[Listing.LIVE] != END:
            return Needs(Listing.LIVE, TOP)
        bound = self.complete[Listing.ALL]
        if query.unread_only:
            bound = max(bound, self.complete[Listing.UNREAD])
        places = self._places(query, bound)
        more = len(places) > query.limit
        if not more and bound != END:
            return Needs(Listing.UNREAD, TOP) if query.unread_only else Needs(Listing.ALL, bound)
        del places[query.limit :]
        rows = [self._rows[session] for _, session in places]
        encoded = packed_array([row.encoded or self._encode(row) for row in rows])
        cursor = write_cursor(query, places[-1]) if more else ""
        return Page(self.version, [row.entry for row in rows], encoded, cursor)

    def delta(self, since: int, limit: int) -> Delta | None:
        """What changed after ``since``; None: that is too long ago, the list has to be read anew.
        Live rows are with their heads, and in it only when the mailbox said something of them."""
        if since < self.base:
            return None
        found: list[tuple[int, str]] = []
        more = False
        for seq, session in self._changed.irange((since + 1, "")):
            if len(found) >= limit and seq != found[-1][0] and seq <= self.version:
                more = True
                break
            found.append((seq, session))
        # The rows of one event are not parted, or a delta could end in the middle of it.
        version = found[-1][0] if more else self.version
        rows = [self._rows[session] for _, session in found]
        encoded = packed_array([row.encoded or self._encode(row) for row in rows])
        return Delta(version, [row.entry for row in rows], encoded, more)

    def changes(self, since: int, rows_max: int) -> Change | None:
        """All that changed after ``since``; None: that is too long ago, or it is more rows."""
        if since < self.base:
            return None
        found = list(islice(self._changed.irange((since + 1, "")), rows_max + 1))
        if len(found) > rows_max:
            return None
        return Change(since, self.version, [self._rows[session].entry for _, session in found])

    def entry(self, session: str) -> Entry | None:
        """The row as the mailbox says it, listed or not; None: it is not here."""
        row = self._rows.get(session)
        return None if row is None else row.entry

    def knows(self, session: str) -> bool:
        """Whether ``entry`` is what the mailbox says. Of a row that stands there anyway it may have
        something to say, too."""
        row = self._rows.get(session)
        return row is not None and (row.entry.seq > 0 or self.complete[Listing.LIVE] == END)

    def lists(self, session: str) -> bool:
        """Whether the row is in a list."""
        row = self._rows.get(session)
        return row is not None and row.place is not None

    def encoded(self, session: str) -> bytes:
        """The row as clients get it; it has to be here."""
        row = self._rows[session]
        return row.encoded or self._encode(row)

    @property
    def whole(self) -> bool:
        """Whether it has every listed row: what is not here is not in the list."""
        return self.complete[Listing.ALL] == END == self.complete[Listing.LIVE]

    def totals(self) -> Totals | Needs:
        """The sums; they cost nothing."""
        if self.complete[Listing.LIVE] != END:
            return Needs(Listing.LIVE, TOP)
        if END not in (self.complete[Listing.ALL], self.complete[Listing.UNREAD]):
            return Needs(Listing.UNREAD, TOP)
        return self._kept()

    def recount(self) -> Recount:
        """Compute the sums from the rows, and go on with those."""
        kept = self._kept()
        self._unread = self._muted = self._conversations = 0
        for row in self._rows.values():
            if row.place is not None:
                self._count(row, 1)
        return Recount(kept, self._kept(), len(self._rows))

    def snapshot(self, rows_max: int) -> Copy:
        """What a tier may keep of it: the first rows in their order, the live ones, and those that
        have something unread, each as far as they are complete here and ``rows_max`` allows."""
        bound = self.complete[Listing.ALL]
        complete = {Listing.ALL: bound}
        entries: dict[str, Entry] = {}
        if self.complete[Listing.LIVE] == END and len(self._live) <= rows_max:
            complete[Listing.LIVE] = END
            live = [self._rows[session].entry for session in self._live]
            entries.update((entry.session, entry) for entry in live if entry.seq)
        last = TOP
        for entry in self._static(bound):
            if len(entries) >= rows_max:
                complete[Listing.ALL] = last
                break
            entries[entry.session] = entry
            last = entry_place(entry)
        if END in (bound, self.complete[Listing.UNREAD]):
            unread = {entry.session: entry for entry in self._unread_static()}
            if len(entries.keys() | unread.keys()) <= rows_max:
                complete[Listing.UNREAD] = END
                entries |= unread
        return Copy(self.version, list(entries.values()), complete)

    def lacks(self) -> int:
        """The seq after which changes have to be fetched; -1: it has all that it has heard of."""
        return self.version if self.version < self.heard else -1

    # ---- live rows

    def refresh(self) -> list[Entry]:
        """Bring live rows to their places. Returns those whose heads are not known now: they are
        shown as they were known last, until their heads are loaded."""
        heads = self._heads
        if heads.changes == self._heads_seen:
            return []
        unknown = []
        for session in self._live:
            row = self._rows[session]
            mark = heads.mark(session)
            if mark and mark == row.mark:
                continue
            head = heads.head(row.entry)
            if head is None or not mark:
                unknown.append(row.entry)
            row.mark = 0 if head is None else mark
            if head is not None and head != row.head:
                self._displace(row)
                row.head, row.encoded = head, None
                self._set(row)
        self._heads_seen = -1 if unknown else heads.changes
        return unknown

    def headless(self, session: str | None = None) -> bool:
        """Whether a live row, this one or any, is shown without a head: its place and its unread
        count are not right then."""
        live = self._live if session is None else self._live & {session}
        return any(self._rows[shown].head is None for shown in live)

    # ---- memory

    def trim(self, rows_max: int) -> None:
        """Forget the rows behind the first ``rows_max``, but not those that have something unread
        if those are complete. Changes are kept from now on only."""
        keep = {session: self._rows[session] for session in self._live}
        first = list(islice(self._static(self.complete[Listing.ALL]), rows_max + 1))
        if len(first) > rows_max:
            first.pop()
            self.complete[Listing.ALL] = entry_place(first[-1]) if first else TOP
        unread = self._unread_static() if self.complete[Listing.UNREAD] == END else ()
        for entry in (*first, *unread):
            keep[entry.session] = self._rows[entry.session]
        self._rows, self._live, self._lists = {}, set(), {}
        self._unread = self._muted = self._conversations = 0
        self._changed = SortedList()
        # What came early is forgotten too, and comes again.
        self._early.clear()
        self.base = self.version
        for row in keep.values():
            self._keep(row)

    # ---- inside

    def _take_facts(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            if fact.key.startswith(CONVERSATION):
                self._take(self._form.entry(fact))

    def _reach(self, version: int) -> None:
        """With this version those that came early may follow."""
        while version + 1 in self._early:
            version += 1
            self._early.discard(version)
        self.version = version

    def _take(self, entry: Entry) -> None:
        row = self._rows.get(entry.session)
        if row is None:
            row = _Row(entry)
        elif row.entry.seq >= entry.seq:
            return
        else:
            self._displace(row)
            self._live.discard(entry.session)
            if row.entry.seq > self.base:
                self._changed.remove((row.entry.seq, entry.session))
            # What is unread in a head is above the position that the row had before.
            row.entry, row.head, row.encoded, row.mark = entry, None, None, 0
        self._keep(row)

    def _keep(self, row: _Row) -> None:
        entry = row.entry
        self._rows[entry.session] = row
        if entry.seq > self.base:
            self._changed.add((entry.seq, entry.session))
        if entry.flags & Flag.LIVE and entry.rank:
            self._live.add(entry.session)
            self._heads_seen = -1
        else:
            row.head = None
        self._set(row)

    def _set(self, row: _Row) -> None:
        """Put a row where it belongs."""
        entry = row.entry
        row.place = None
        rank, row.unread = entry.rank, entry.unread
        if entry.session in self._live:
            rank = self._form.rank(entry, row.head)
            row.unread = row.head.unread if row.head is not None else entry.unread
        if rank == 0:
            return
        row.place = place_of(rank, entry.session)
        self._list(entry.label, False).add(row.place)
        if row.unread:
            self._list(entry.label, True).add(row.place)
        self._count(row, 1)

    def _displace(self, row: _Row) -> None:
        if row.place is None:
            return
        self._list(row.entry.label, False).remove(row.place)
        if row.unread:
            self._list(row.entry.label, True).remove(row.place)
        self._count(row, -1)
        row.place = None

    def _count(self, row: _Row, sign: int) -> None:
        if row.unread:
            self._unread += sign * row.unread
            self._conversations += sign
            if row.entry.flags & Flag.MUTED:
                self._muted += sign * row.unread

    def _kept(self) -> Totals:
        return Totals(self._unread, self._muted, self._conversations)

    def _list(self, label: str, unread: bool) -> SortedList:
        places = self._lists.get((label, unread))
        if places is None:
            places = self._lists[label, unread] = SortedList()
        return places

    def _places(self, query: Query, bound: Place) -> list[Place]:
        """At most one more than were asked for, none of them behind ``bound``."""
        labels = (query.label,) if query.label is not None else {label for label, _ in self._lists}
        found = [
            places.irange(query.after, bound, inclusive=(False, True))
            for label in labels
            if (places := self._lists.get((label, query.unread_only))) is not None
        ]
        return list(islice(merge_sorted(*found), query.limit + 1))

    def _static(self, bound: Place) -> Iterator[Entry]:
        """The listed rows that are not live, down to ``bound``, in their order."""
        lists = [places for (_, unread), places in self._lists.items() if not unread]
        for place in merge_sorted(*lists):
            if place > bound:
                return
            if place[1] not in self._live:
                yield self._rows[place[1]].entry

    def _unread_static(self) -> Iterator[Entry]:
        for (_, unread), places in self._lists.items():
            if unread:
                for _, session in places:
                    if session not in self._live:
                        yield self._rows[session].entry

    def encode_anew(self) -> None:
        """Forget what the rows look like."""
        for row in self._rows.values():
            row.encoded = None

    def _encode(self, row: _Row) -> bytes:
        row.encoded = self._form.encode(row.entry, row.head)
        return row.encoded
