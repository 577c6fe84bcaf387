"""Who has read a message: of a direct session as the other user's mailbox says, of a group as it is
counted in the session of its readers (``core.reads``)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from im_actors.core.conversation import conversation_key
from im_actors.core.mailbox import read_received, received_key
from im_actors.core.names import mailbox_of, peer_of, reads_of
from im_actors.core.reads import READ_RANK, Reader, read_ranges, reader_key, reader_of
from im_actors.errors import NotReachable
from im_actors.gateway.replica_facts import ReplicaFacts
from im_actors.gateway.rows import read_conversation

NAMES_PAGES_MAX = 5
"""Pages of readers that are looked through for names: those who have read furthest come first, and
those who joined after the message are passed over."""
PAGE_READERS = 200
TOLD_MAX = 10_000
"""Groups of which it is remembered what was told last, so that no count goes back."""

Told = tuple[int, list[str], int | None]
"""How many other users have read it, names of them, and to how many it was delivered: told of
direct sessions."""


class ReceiptQueries:
    """The answers. Whether the asker may know is asked elsewhere."""

    def __init__(self, replicas: ReplicaFacts, at_least: Callable[[str], int]) -> None:
        self._replicas = replicas
        self._at_least = at_least
        self._told: OrderedDict[str, int] = OrderedDict()
        """By session of readers: the version that the last answer was made from."""

    async def direct(self, user: str, session: str, seq: int, limit: int) -> Told:
        """Where the peer's mailbox is not followed here that may be a moment old."""
        peer = peer_of(session, user)
        if peer == user:
            return 0, [], 0
        keys = [conversation_key(session), received_key(session)]
        mailbox = mailbox_of(peer)
        page = await self._replicas.of_keys(mailbox, keys, self._at_least(mailbox))
        values = {fact.key: fact.value for fact in page.facts}
        row = values.get(keys[0])
        read_seq = read_conversation(row).read_seq if row is not None else 0
        received_seq = max(read_seq, read_received(values.get(keys[1])))
        users = [peer] if read_seq >= seq else []
        return len(users), users[:limit], int(received_seq >= seq)

    async def group(self, user: str, session: str, seq: int, limit: int) -> Told:
        """As of what has been noted by now, which is a moment after it was read."""
        readers = reads_of(session)
        told = self._told.get(readers, 0)
        version, (read, later) = await self._replicas.count_ranks(readers, read_ranges(seq), told)
        if version < told:
            raise NotReachable(f"no replica that answers has {readers!r} up to {told}")
        self._told[readers] = version
        self._told.move_to_end(readers)
        if len(self._told) > TOLD_MAX:
            self._told.popitem(last=False)
        own = await self._replicas.of_keys(readers, [reader_key(user)], version)
        mine = any(Reader.from_bytes(fact.value).has_read(seq) for fact in own.facts if fact.value)
        count = read - later - mine
        names = await self._names(user, readers, seq, min(limit, count), version)
        return count, names, None

    async def _names(
        self, user: str, readers: str, seq: int, limit: int, version: int
    ) -> list[str]:
        names: list[str] = []
        rank, key = 0, ""
        for _ in range(NAMES_PAGES_MAX):
            if len(names) >= limit:
                break
            page = await self._replicas.ranked(readers, rank, key, PAGE_READERS, version)
            for key, _, rank, value in page.facts:
                if rank < READ_RANK + seq:
                    return names[:limit]
                name = reader_of(key)
                if name != user and value and Reader.from_bytes(value).has_read(seq):
                    names.append(name)
            if not page.more:
                break
        return names[:limit]
