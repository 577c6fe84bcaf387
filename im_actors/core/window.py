"""The newest events of one session, kept in memory so that anybody's unread count can be told."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from im_actors.core.conversation import Unread
from im_actors.core.model import MESSAGE_KINDS, Event, EventKind
from im_actors.core.overlays import event_overlay

EVENTS_MAX = 2_000
"""How far back a window reaches at least, once it is full; at most a quarter more."""


class Window:
    """Which messages count as unread among the events ``floor`` + 1 to ``last_seq``.

    Messages count that are not recalled, for all but their senders. What lies at or below the floor
    is not known. Only seqs are kept, no bodies.
    """

    __slots__ = (
        "_all",
        "_by_sender",
        "_events_max",
        "_recalled",
        "_senders",
        "floor",
        "last_seq",
    )

    def __init__(self, floor: int = 0, events_max: int = EVENTS_MAX) -> None:
        assert events_max > 0
        self._events_max = events_max
        self._restart(floor)

    def _restart(self, floor: int) -> None:
        self.floor = self.last_seq = floor
        self._all: list[int] = []
        self._by_sender: dict[str, list[int]] = {}
        self._senders: dict[int, str] = {}
        self._recalled: dict[int, str] = {}

    def add(self, event: Event) -> None:
        """Take the next event. One that is known already changes nothing; a gap makes the window
        begin anew behind it, since a missing event might be a recall of any message."""
        if event.seq <= self.last_seq:
            return
        if event.seq != self.last_seq + 1:
            self._restart(event.seq - 1)
        self.last_seq = event.seq
        if event.kind in MESSAGE_KINDS:
            self._all.append(event.seq)
            self._by_sender.setdefault(event.sender, []).append(event.seq)
            self._senders[event.seq] = event.sender
        elif event.kind == EventKind.RECALL:
            self._recall(event_overlay(event)[0])
        if self.last_seq - self.floor > self._events_max + self._events_max // 4:
            self._cut(self.last_seq - self._events_max)

    def unread(self, user: str, read_seq: int) -> int | None:
        """How many messages of others lie above ``read_seq`` and were not recalled, in
        O(log n); None when the window does not reach back so far."""
        if read_seq < self.floor:
            return None
        own = self._by_sender.get(user, ())
        everything = len(self._all) - bisect_right(self._all, read_seq)
        return everything - (len(own) - bisect_right(own, read_seq))

    def explain(self, user: str, read_seq: int) -> Unread | None:
        """The same with its inputs, as the row of a conversation gives them."""
        number = self.unread(user, read_seq)
        if number is None:
            return None
        recalled = sum(seq > read_seq and sender != user for seq, sender in self._recalled.items())
        skipped = max(0, self.last_seq - read_seq) - number - recalled
        return Unread(number, self.last_seq, read_seq, skipped, recalled)

    def uncounted(self, user: str, read_seq: int) -> list[tuple[int, int]] | None:
        """The events above ``read_seq`` that do not count for this user, as (first, last),
        ascending; None when the window does not reach back so far."""
        if read_seq < self.floor:
            return None
        ranges, at = [], read_seq
        for seq in self._all[bisect_right(self._all, read_seq) :]:
            if self._senders[seq] == user:
                continue
            if seq > at + 1:
                ranges.append((at + 1, seq - 1))
            at = seq
        if self.last_seq > at:
            ranges.append((at + 1, self.last_seq))
        return ranges

    def _recall(self, seq: int) -> None:
        sender = self._senders.pop(seq, None)
        if sender is not None:
            self._recalled[seq] = sender
            for seqs in (self._all, self._by_sender[sender]):
                del seqs[bisect_left(seqs, seq)]

    def _cut(self, floor: int) -> None:
        """Forget what is at or below ``floor``; in bulk, so that it costs each event little."""
        for seq in self._all[: bisect_right(self._all, floor)]:
            self._senders.pop(seq)
        for seqs in (self._all, *self._by_sender.values()):
            del seqs[: bisect_right(seqs, floor)]
        self._by_sender = {sender: seqs for sender, seqs in self._by_sender.items() if seqs}
        self._recalled = {seq: user for seq, user in self._recalled.items() if seq > floor}
        self.floor = floor
