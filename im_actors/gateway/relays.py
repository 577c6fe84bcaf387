"""Notes of shards for sessions that other shards serve: handed on, and their answers back.

Shards have no links to each other. A note that cannot be handed on is answered at once, and one
whose answer does not come is forgotten: the shard that tells it tells it again.
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

_RELAY, _RELAYED = int(InsideType.RELAY), int(InsideType.RELAYED)


class _Relay(NamedTuple):
    """A note on its way: who told it, under which token, when, and who has it."""

    teller: ShardPeer
    token: int
    since_ms: int
    hearer: ShardPeer


class Relays:
    """The notes that have been handed on and not answered."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._number = 0
        self._waiting: dict[int, _Relay] = {}
        """By the number under which it was handed on, ascending."""
        self.relayed = 0
        """Notes that were handed on, since the start."""

    def __len__(self) -> int:
        return len(self._waiting)

    def asked(self, teller: ShardPeer, rows: Iterable[Sequence[Any]], now_ms: int) -> None:
        """RELAY of a shard: [token, session, body]."""
        peers = self._peers
        batches: dict[ShardPeer, list[tuple[int, str, bytes]]] = {}
        refused: list[tuple[int, int]] = []
        for token, session, body in rows:
            hearer = peers.routes[peers.slot_of(session)] if peers.slots else None
            if hearer is None or not hearer.up:
                refused.append((token, SlotMoving.code))
            elif len(self._waiting) >= RELAYS_MAX:
                refused.append((token, Overloaded.code))
            else:
                self._number += 1
                self._waiting[self._number] = _Relay(teller, token, now_ms, hearer)
                batches.setdefault(hearer, []).append((self._number, session, body))
        for hearer, batch in batches.items():
            self.relayed += len(batch)
            hearer.send_now(pack_frame((_RELAY, batch)))
        if refused:
            teller.send_now(pack_frame((_RELAYED, refused)))

    def answered(self, rows: Iterable[Sequence[int]]) -> None:
        """RELAYED of a shard: [number, code]."""
        answers: dict[ShardPeer, list[tuple[int, int]]] = {}
        for number, code in rows:
            relay = self._waiting.pop(number, None)
            if relay is not None:
                answers.setdefault(relay.teller, []).append((relay.token, code))
        self._answer(answers)

    def shard_down(self, shard: ShardPeer) -> None:
        """What it was told is to be told again, and what it told has nobody to be answered."""
        answers: dict[ShardPeer, list[tuple[int, int]]] = {}
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

    def _answer(self, answers: dict[ShardPeer, list[tuple[int, int]]]) -> None:
        for teller, rows in answers.items():
            teller.send_now(pack_frame((_RELAYED, rows)))
