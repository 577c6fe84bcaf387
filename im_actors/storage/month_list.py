"""Tells what months a history has, for ``im-actors months list``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from im_actors.core.model import record_index
from im_actors.errors import CorruptData, MonthAway
from im_actors.storage.journal import LSN_MAX
from im_actors.storage.places import month_text

if TYPE_CHECKING:
    from im_actors.storage.history import History


@dataclass(slots=True)
class MonthInfo:
    """One month of one replica. Of a month that is away, or damaged, ``records`` and the keys are
    0, and ``trouble`` says why."""

    month: str
    directory: str
    moved: bool
    dropped: bool
    events: int = 0
    records: int = 0
    """From the first to the last of each slot, as if backfill had no hole to fill."""
    bytes: int = 0
    first_key: int = 0
    last_key: int = 0
    under_way: str = ""
    """"moving to …" or "dropping"."""
    trouble: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain types only."""
        return asdict(self)


def list_months(history: History) -> Iterator[MonthInfo | None]:
    """The months in their order, at the end; before it None, where other work may be done."""
    events: Counter[int] = Counter()
    for part in history.index.events_by_month():
        events.update(part or {})
        yield None
    for month in history.months():
        yield _info(history, month, events[month])


def _info(history: History, month: int, events: int) -> MonthInfo:
    places = history.index.places
    place, job = places.of(month), places.rewriting.get(month)
    directory = str(places.path(month).parent)
    info = MonthInfo(month_text(month), directory, bool(place.directory), place.dropped, events)
    if job is not None and job.target != place:
        target = places.path_at(month, job.target).parent
        info.under_way = "dropping" if job.target.dropped else f"moving to {target}"
    try:
        file = history.month(month)
        info.bytes = file.db.bytes_on_disk()
        for slot in file.slots():
            first, last = file.ends(slot)
            info.records += (last[0] & LSN_MAX) - (first[0] & LSN_MAX) + 1
            first_key, last_key = record_index(first[3]).first_key, record_index(last[3]).last_key
            info.first_key = min(info.first_key or first_key, first_key)
            info.last_key = max(info.last_key, last_key)
    except (MonthAway, CorruptData) as error:
        info.trouble = str(error)
    return info
