"""When sends are handed to the slots' owners: in rounds, so that a frame is worth its journey.

A *round* is what leaves for one set of members until all of it has committed. What arrives
meanwhile waits and is the next round, whichever slots it is for (design section 3, "batching
without timers"). An idle shard adds no delay; a busy one writes, wakes and fsyncs once for
everything that came in the time of one round trip. Without this each send would be a frame of its
own to each member.

A round that is large enough does not wait: then the processor is the limit, and the hops work at
the same time. Slots with other members are another group, so a member that stands still holds up
nobody who does not need it, and nobody for longer than ``hold_ms``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from im_actors.core.model import Member
from im_actors.core.serving import Send

ROUND_SENDS = 2_048
"""So many waiting sends are a round of their own."""
HOLD_MS = 20
"""The longest wait for a round to end: one of its slots may have lost a frame."""


@dataclass(slots=True)
class _Group:
    """The slots that share their members."""

    flying: set[int] = field(default_factory=set)
    """Slots with records that have left and not committed."""
    waiting: dict[int, list[Send]] = field(default_factory=dict)
    sends: int = 0
    since_ms: int = 0


class Rounds:
    """What waits for its round, by group. Sends of a slot keep their order."""

    def __init__(self, round_sends: int = ROUND_SENDS, hold_ms: int = HOLD_MS) -> None:
        self._round_sends = round_sends
        self._hold_ms = hold_ms
        self._groups: dict[tuple[Member, ...], _Group] = {}
        self._group_of: dict[int, _Group] = {}
        self._holding: list[_Group] = []
        """The groups in which something waits."""

    def join(self, slot: int, members: tuple[Member, ...]) -> None:
        """The slot is written to these members from now on."""
        old = self._group_of.get(slot)
        group = self._groups.setdefault(tuple(sorted(members)), _Group())
        if old is group:
            return
        self._group_of[slot] = group
        if old is not None:
            old.flying.discard(slot)
            sends = old.waiting.pop(slot, [])
            old.sends -= len(sends)
            if sends:
                self.add(slot, sends, old.since_ms)

    def add(self, slot: int, sends: list[Send], now_ms: int) -> None:
        """These wait for the slot's next round."""
        group = self._group_of.get(slot)
        if group is None:
            # Not served here: its owner says so at once, alone in a group of its own.
            group = self._group_of[slot] = _Group()
        if not group.sends:
            group.since_ms = now_ms
            self._holding.append(group)
        group.sends += len(sends)
        waiting = group.waiting.get(slot)
        if waiting is None:
            group.waiting[slot] = sends
        else:
            waiting += sends

    def flies(self, slot: int, flying: bool) -> None:
        """Whether records of the slot are on their way."""
        group = self._group_of.get(slot)
        if group is not None:
            (group.flying.add if flying else group.flying.discard)(slot)

    def release(self, now_ms: int) -> Iterator[tuple[int, list[Send]]]:
        """What may go now, by slot."""
        holding, self._holding = self._holding, []
        for group in holding:
            if not group.sends:
                continue
            if not self._may_go(group, now_ms):
                self._holding.append(group)
                continue
            waiting, group.waiting, group.sends = group.waiting, {}, 0
            yield from waiting.items()

    def _may_go(self, group: _Group, now_ms: int) -> bool:
        late = now_ms - group.since_ms >= self._hold_ms
        return not group.flying or group.sends >= self._round_sends or late

    @property
    def waits(self) -> bool:
        """Whether anything is held back."""
        return bool(self._holding)
