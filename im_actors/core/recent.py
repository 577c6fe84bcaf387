"""The newest committed records of a slot, for who asks what an event in them is: the tables of the
replicas get them up to a second later, and a recall often follows its message sooner."""

from __future__ import annotations

from collections import deque

from im_actors.core.model import Record, decode_event, record_events, record_index, unpack_sends
from im_actors.core.rules import EventHead


class RecentRecords:
    """As many of the newest records as fit into ``bytes_max``. To keep one costs next to nothing,
    to look into them is dear: the newest come first."""

    __slots__ = ("_bytes", "_bytes_max", "_records")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._records: deque[Record] = deque()

    def keep(self, record: Record) -> None:
        """A record has committed; records come in the order of the log."""
        records = self._records
        records.append(record)
        self._bytes += len(record.payload)
        while self._bytes > self._bytes_max:
            self._bytes -= len(records.popleft().payload)

    def head(self, session: str, seq: int) -> EventHead | None:
        """What an event is; None when it is in none of these records."""
        for record in reversed(self._records):
            for name, first_seq, count, sends in record_index(record.payload).parts:
                if name == session and first_seq <= seq < first_seq + count:
                    position = unpack_sends(sends)[seq - first_seq].position
                    event = decode_event(record_events(record.payload)[position])
                    assert (event.session, event.seq) == (session, seq), event
                    return EventHead(seq, event.kind, event.device, event.time_ms)
        return None
