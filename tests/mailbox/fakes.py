"""A mailbox's truth, kept as dumbly as possible, and the parts that the reading side is given."""

from __future__ import annotations

from collections.abc import Sequence

import msgpack

from im_actors.core.facts import Fact
from im_actors.core.model import pack
from im_actors.mailbox.rows import (
    END,
    TOP,
    Copy,
    Entry,
    Flag,
    Head,
    Listing,
    Place,
    entry_place,
    live_rank,
)


class PlainRows:
    """Rows whose value is msgpack [unread, flags, label]."""

    def entry(self, fact: Fact) -> Entry:
        session = fact.key.removeprefix("c/")
        if fact.value is None:
            return Entry(session, fact.seq, 0, 0, 0, "", None)
        unread, flags, label = msgpack.unpackb(fact.value)
        return Entry(session, fact.seq, fact.rank, unread, flags, label, fact.value)

    def rank(self, entry: Entry, head: Head | None) -> int:
        return live_rank(entry, head)

    def encode(self, entry: Entry, head: Head | None) -> bytes:
        unread = head.unread if head is not None else entry.unread
        return pack((entry.session, entry.seq, entry.rank, unread, entry.value))


class FakeHeads:
    """Heads by session, the same for all users; those of ``cold`` have to be loaded first."""

    def __init__(self) -> None:
        self.changes = 0
        self.heads: dict[str, Head] = {}
        self.marks: dict[str, int] = {}
        self.cold: set[str] = set()
        self.loads = 0

    def set(self, session: str, key: int, unread: int) -> None:
        self.changes += 1
        self.marks[session] = self.changes
        self.heads[session] = Head(key, unread, b"")

    def mark(self, session: str) -> int:
        return 0 if session in self.cold else self.marks.get(session, 0)

    def head(self, entry: Entry) -> Head | None:
        return None if entry.session in self.cold else self.heads.get(entry.session)

    async def load(self, entries: Sequence[Entry]) -> None:
        self.loads += 1
        self.cold -= {entry.session for entry in entries}
        self.changes += 1


def fact(
    session: str, seq: int, rank: int, unread: int = 0, flags: int = 0, label: str = ""
) -> Fact:
    return Fact("c/" + session, seq, rank, pack((unread, int(flags), label)))


class Truth:
    """All events of one mailbox: event n is at n - 1, as the facts that it says."""

    def __init__(self) -> None:
        self.events: list[list[Fact]] = []

    @property
    def version(self) -> int:
        return len(self.events)

    def write(self, *rows: tuple[str, int, int, int, str]) -> None:
        """One event with rows (session, rank, unread, flags, label)."""
        seq = self.version + 1
        self.events.append([fact(s, seq, *rest) for s, *rest in rows])  # type: ignore[arg-type]

    def forget(self, session: str) -> None:
        self.events.append([Fact("c/" + session, self.version + 1, 0, None)])

    def rows(self, version: int | None = None) -> dict[str, Entry]:
        """All rows as they are at a version, listed or not."""
        form = PlainRows()
        events = self.events if version is None else self.events[:version]
        return {fact.key[2:]: form.entry(fact) for facts in events for fact in facts}

    def static(self, version: int | None = None) -> list[Entry]:
        rows = self.rows(version).values()
        return sorted((r for r in rows if r.rank and not r.flags & Flag.LIVE), key=entry_place)

    def listed(self, heads: FakeHeads, label: str, unread_only: bool) -> list[str]:
        """The sessions of a list, in order."""
        return [session for session, _ in self.shown(heads, label, unread_only)]

    def shown(self, heads: FakeHeads, label: str, unread_only: bool) -> list[tuple[str, int]]:
        """(session, unread) of a list, in order."""
        found = []
        for row in self.rows().values():
            rank, unread = row.rank, row.unread
            head = heads.heads.get(row.session)
            if rank and row.flags & Flag.LIVE and head is not None:
                rank = head.key + (1 << 62 if row.flags & Flag.PINNED else 0)
                unread = head.unread
            if rank and row.label == label and (unread or not unread_only):
                found.append((-rank, row.session, unread))
        return [(session, unread) for _, session, unread in sorted(found)]

    # ---- what a tier that has everything would say at some version

    def page(self, after: Place, limit: int, version: int | None = None) -> Copy:
        at = self.version if version is None else version
        rows = [row for row in self.static(at) if entry_place(row) > after]
        place = entry_place(rows[limit - 1]) if len(rows) > limit else END
        return Copy(at, rows[:limit], {Listing.ALL: place})

    def live(self, version: int | None = None) -> Copy:
        at = self.version if version is None else version
        rows = [r for r in self.rows(at).values() if r.rank and r.flags & Flag.LIVE]
        return Copy(at, rows, {Listing.LIVE: END})

    def everything(self) -> Copy:
        rows = self.page(TOP, 1 << 30).entries
        return Copy(
            self.version, [*rows, *self.live().entries], {Listing.ALL: END, Listing.LIVE: END}
        )
