"""What shards have for sessions that other shards serve: handed on, and the answers back.

Shards have no links to each other. A note, or a batch's message, that cannot be handed on is
answered at once, and one whose answer does not come is forgotten: the shard that tells it tells it
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from im_actors.errors import Overloaded, SlotMoving
from im_actors.gateway.peers import Peers, ShardPeer
from im_actors.wire.links import InsideType, pack_frame

RELAYS_MAX = 65_536
"""Notes without an answer."""
FORGET_MS = 10_000
"""An answer that takes longer is of no use: the note has been told again."""


class _Relay(NamedTuple):
    """A note on its way: who told it, under which token, when, and who has it."""

    teller: ShardPeer
    token: int
    since_ms: int
    hearer: ShardPeer


class Relays:
    """What has been handed on, in frames of type ``ask``, and not answered, in frames of type
    ``answer``."""

    def __init__(
        self,
        peers: Peers,
        ask: InsideType = InsideType.RELAY,
        answer: InsideType = InsideType.RELAYED,
    ) -> None:
        self._peers = peers
        self._ask_type, self._answer_type = int(ask), int(answer)
        self._number = 0
        self._waiting: dict[int, _Relay] = {}
        """By the number under which it was handed on, ascending."""
        self.relayed = 0
        """Notes that were handed on, since the start."""

    def __len__(self) -> int:
        return len(self._waiting)

    def asked(self, teller: ShardPeer, rows: Iterable[Sequence[Any]], now_ms: int) -> None:
        """Of a shard: [token, session, …]."""
        peers = self._peers
        batches: dict[ShardPeer, list[tuple[Any, ...]]] = {}
        refused: list[tuple[int, int]] = []
        for token, session, *rest in rows:
            hearer = peers.routes[peers.slot_of(session)] if peers.slots else None
            if hearer is None or not hearer.up:
                refused.append((token, SlotMoving.code))
            elif len(self._waiting) >= RELAYS_MAX:
                refused.append((token, Overloaded.code))
            else:
                self._number += 1
                self._waiting[self._number] = _Relay(teller, token, now_ms, hearer)
                batches.setdefault(hearer, []).append((self._number, session, *rest))
        for hearer, batch in batches.items():
            self.relayed += len(batch)
            hearer.send_now(pack_frame((self._ask_type, batch)))
        if refused:
            teller.send_now(pack_frame((self._answer_type, refused)))

    def answered(self, rows: Iterable[Sequence[int]]) -> None:
        """Of a shard: [number, code, …]."""
        answers: dict[ShardPeer, list[tuple[int, ...]]] = {}
        for number, *rest in rows:
            relay = self._waiting.pop(number, None)
            if relay is not None:
                answers.setdefault(relay.teller, []).append((relay.token, *rest))
        self._answer(answers)

    def shard_down(self, shard: ShardPeer) -> None:
        """What it was told is to be told again, and what it told has nobody to be answered."""
        answers: dict[ShardPeer, list[tuple[int, ...]]] = {}
        for number, relay in list(self._waiting.items()):
            if shard in (relay.hearer, relay.teller):
                del self._waiting[number]
                answers.setdefault(relay.teller, []).append((relay.token, SlotMoving.code))
        answers.pop(shard, None)
        self._answer(answers)

    def tick(self, now_ms: int) -> None:
        for number, relay in list(self._waiting.items()):
            if relay.since_ms + FORGET_MS > now_ms:
                return
            del self._waiting[number]

    def _answer(self, answers: dict[ShardPeer, list[tuple[int, ...]]]) -> None:
        for teller, rows in answers.items():
            teller.send_now(pack_frame((self._answer_type, rows)))
