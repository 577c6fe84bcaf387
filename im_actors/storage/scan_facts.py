"""Compares the facts that the index keeps of a slot with what the slot's events say."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from im_actors.core.facts import event_facts
from im_actors.core.model import Event
from im_actors.errors import CorruptData
from im_actors.storage.facts import BY_KEY, fact_guard

if TYPE_CHECKING:
    from im_actors.storage.index import IndexFile

Said = dict[str, tuple[int, int]]
"""key -> (seq, checksum) of the newest fact that a session's events have said."""


class FactCheck:
    """What the events of a slot have said, by session. Some 200 bytes a fact."""

    def __init__(self) -> None:
        self._said: dict[str, Said] = {}
        self._seen: dict[str, int] = {}

    def take(self, event: Event) -> bool:
        """Note an event's facts; false when its body cannot be read."""
        try:
            facts = event_facts(event)
        except Exception:
            # It fails in as many ways as a body can be wrong.
            return False
        return True
