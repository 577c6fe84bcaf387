"""Who waits for which answer: the sends that a program holds in its hands."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from im_actors.client.results import Ack, Sent
from im_actors.core.outbox_words import AckRow, Key
from im_actors.errors import ImError

SETTLED_MAX = 4_096
"""Most sends with an answer that ``where`` still knows."""


class Receipts:
    """The ``Sent`` of every row of the outbox that is not a VOID, and the last ones answered."""

    def __init__(self) -> None:
        self._pending: dict[Key, Sent] = {}
        self._settled: OrderedDict[Key, Sent] = OrderedDict()

    def __len__(self) -> int:
        """Sends without an answer."""
        return len(self._pending)

    def __iter__(self) -> Iterator[Sent]:
        return iter(self._pending.values())

    def add(self, sent: Sent) -> None:
        self._pending[sent.session, sent.n] = sent

    def find(self, key: Key) -> Sent | None:
        return self._pending.get(key) or self._settled.get(key)

    def saved(self, keys: Iterable[Key]) -> None:
        """These are on disk."""
        for key in keys:
            sent = self._pending.get(key)
            if sent is not None and sent._saved is not None:
                if not sent._saved.done():
                    sent._saved.set_result(None)
                sent._saved = None

    def not_saved(self, error: Callable[[], ImError]) -> None:
        """The disk failed: forget and fail those that are not saved yet."""
        for key, sent in list(self._pending.items()):
            if sent._saved is not None:
                del self._pending[key]
                if not sent._saved.done():
                    sent._saved.set_exception(error())

    def settle(self, acks: Iterable[AckRow], now: float) -> None:
        for row in acks:
            sent = self._pending.pop((row[0], row[1]), None)
            if sent is not None:
                latency_ms = None if sent._started is None else (now - sent._started) * 1000
                sent._settle(Ack(*row, latency_ms), None)
                self._remember(sent)

    def refuse(self, key: Key, error: ImError) -> None:
        sent = self._pending.pop(key, None)
        if sent is not None:
            sent._settle(None, error)
            self._remember(sent)

    def renumber(self, session: str, n: int, new_n: int) -> None:
        sent = self._pending.pop((session, n), None)
        if sent is not None:
            sent.n = new_n
            self._pending[session, new_n] = sent

    def wake(self, error: Callable[[], ImError]) -> None:
        """Tell all who wait that waiting is of no use now; nothing is settled by it."""
        for sent in list(self._pending.values()):
            sent._wake(error)

    def _remember(self, sent: Sent) -> None:
        self._settled[sent.session, sent.n] = sent
        if len(self._settled) > SETTLED_MAX:
            self._settled.popitem(last=False)
