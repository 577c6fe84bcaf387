"""One row of a user's conversation list, as his mailbox keeps it (design section 9).

The row says where the conversation ends, where the user has read to, and which events in between do
not count. From that unread is computed; there is no counter that could drift. All operations return
a new row, or the same one when they say nothing new.

Direct conversations are *noted*: spans of their events come in here. Of groups, open sessions and
notices nothing is noted but the membership; where those end, and what of them is unread, is asked
from the sessions themselves (``core.window``). Rows of notices that the first releases noted are
read like those of groups: what they say of the end is not looked at.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from im_actors.core.rows import pack_row, unpack_row
from im_actors.core.skips import Skips
from im_actors.core.spans import Preview, Range, Span, above
from im_actors.errors import CorruptData, OutOfOrder

PINNED_RANK = 1 << 62
"""Above all message keys."""
_PREFIX = "c/"


class Unread(NamedTuple):
    """How many events are unread, and why: those above ``read_seq`` up to ``last_seq``, less
    ``skipped`` and ``recalled``."""

    number: int
    last_seq: int
    read_seq: int
    skipped: int
    """The user's own sends and what is no message."""
    recalled: int
    """Messages of others that were recalled."""


class Conversation(NamedTuple):
    """The row. All seqs are of the conversation's own session."""

    last_seq: int = 0
    """The last event noted."""
    last_key: int = 0
    """Its message key; of a group the key of the event that let the user in."""
    preview: Preview | None = None
    read_seq: int = 0
    """May be ahead of ``last_seq``: a device sees an event before the mailbox has noted it."""
    skips: Skips = Skips()
    """Above ``read_seq``: the user's own sends and what is no message."""
    recalled: Skips = Skips()
    """Above ``read_seq``: messages of others that were recalled."""
    peer_read_seq: int = 0
    peer_delivered_seq: int = 0
    pinned: bool = False
    muted: bool = False
    hidden_seq: int = 0
    """Hidden as long as the conversation ends here or before."""
    label: str = ""
    """Folded under it, unless empty."""
    joined_seq: int = 0
    """Of a group: the event that let the user in."""
    left_seq: int = 0
    """Of a group: the event that let him out. He is out when it is above ``joined_seq``."""

    # ---- what the conversation did

    def noted(self, span: Span) -> Conversation:
        """With these events. Only what is above ``last_seq`` is taken, so spans may come again and
        overlap; OutOfOrder when one leaves a gap."""
        if span.from_seq > self.last_seq + 1:
            raise OutOfOrder(
                f"the row ends at {self.last_seq}, the span begins at {span.from_seq}: "
                f"note from {self.last_seq + 1} on"
            )
        if span.to_seq <= self.last_seq:
            return self
        recalled = self.recalled
        for target, by in span.recalled:
            # A recall up to last_seq was taken with the span that brought it.
            if by > self.last_seq and target > self.read_seq:
                recalled = recalled.adding_one(target)
        return self._replace(
            last_seq=span.to_seq,
            last_key=max(self.last_key, span.last_key),
            preview=_newer(self.preview, span.preview),
            skips=self.skips.adding(above(span.skips, max(self.last_seq, self.read_seq))),
            recalled=recalled,
        )

    def joined(self, seq: int, key: int) -> Conversation:
        """The group's event ``seq`` let the user in. What came before is not his."""
        if seq <= self.joined_seq:
            return self
        return self._replace(joined_seq=seq, last_key=max(self.last_key, key)).read(seq)

    def left(self, seq: int) -> Conversation:
        """The group's event ``seq`` let the user out."""
        return self._replace(left_seq=max(self.left_seq, seq))

    def receipt(self, read_seq: int, delivered_seq: int) -> Conversation:
        """The peer has read, and received, up to there. What is read has been received."""
        read = max(self.peer_read_seq, read_seq)
        delivered = max(self.peer_delivered_seq, delivered_seq, read)
        return self._replace(peer_read_seq=read, peer_delivered_seq=delivered)

    # ---- what the user did

    def read(self, upto: int) -> Conversation:
        """Read up to ``upto``; never backwards. A position among the folded skips, which are older
        than hundreds of answers that the user gave since, is taken as the end of them."""
        if upto <= self.read_seq:
            return self
        read_seq = max(upto, self.skips.folded_to, self.recalled.folded_to)
        skips, recalled = self.skips.above(read_seq), self.recalled.above(read_seq)
        return self._replace(read_seq=read_seq, skips=skips, recalled=recalled)

    def pin(self, pinned: bool) -> Conversation:
        return self._replace(pinned=pinned)

    def mute(self, muted: bool) -> Conversation:
        return self._replace(muted=muted)

    def hide(self, upto: int) -> Conversation:
        """Hide it until an event above ``upto`` comes; 0: show it again."""
        return self._replace(hidden_seq=upto)

    def fold(self, label: str) -> Conversation:
        return self._replace(label=label)

    def delete(self, seq: int) -> Conversation:
        """Show the message ``seq`` to this user no more; that it is deleted is kept elsewhere
        (``core.deleted``). It counts as unread until it is read. What has not been noted, or never
        is, is remembered here by its seq, the greatest one."""
        preview = self.preview
        if preview is None or preview.seq < seq:
            if seq <= self.last_seq:
                return self
            preview = Preview(seq, seq, 0, "", "")
        return self if preview.seq > seq else self._replace(preview=preview.deleted())

    def begun(self, key: int) -> Conversation:
        """With a place in the list, which an open session lacks."""
        return self if self.last_key else self._replace(last_key=key)

    # ---- what there is to see

    @property
    def out(self) -> bool:
        """Whether the user is out of the group."""
        return self.left_seq > self.joined_seq

    def hidden_at(self, head: int) -> bool:
        """Whether it is hidden while ``head`` is its last seq. Of a group only the group knows."""
        return 0 < head <= self.hidden_seq

    def unread(self) -> Unread:
        """Of a conversation that is noted."""
        skipped, recalled = self.skips.total, self.recalled.total
        number = max(0, self.last_seq - self.read_seq) - skipped - recalled
        assert number >= 0, self
        return Unread(number, self.last_seq, self.read_seq, skipped, recalled)

    def uncounted(self) -> tuple[Range, ...]:
        """The newest events above ``read_seq`` that do not count, as (first, last), ascending and
        none left out above the first: what is unread above a later position can be told from it.
        All of them, unless they are very many."""
        floor = max(self.skips.folded_to, self.recalled.folded_to)
        ranges = (*self.skips.ranges, *self.recalled.ranges)
        return Skips().adding(above(ranges, floor)).ranges

    def rank(self) -> int:
        """The place in the list, the greatest first; 0: not in it. What has no event is not, nor a
        group that never let the user in, whatever he says of it. A hidden group keeps its place:
        whoever reads the list looks at the group's head."""
        if self.out or self.hidden_at(self.last_seq) or not self.last_key:
            return 0
        return self.last_key | PINNED_RANK if self.pinned else self.last_key

    def to_bytes(self) -> bytes:
        fields: dict[str, Any] = self._asdict()
        fields["skips"] = self.skips.packed(self.read_seq)
        fields["recalled"] = self.recalled.packed(self.read_seq)
        return pack_row(fields.values())

    @classmethod
    def from_bytes(cls, data: bytes) -> Conversation:
        fields = unpack_row("a conversation", data, len(cls._fields))
        last_seq, last_key, preview, read_seq, skips, recalled, *rest = fields
        try:
            return cls(
                last_seq,
                last_key,
                Preview(*preview) if preview is not None else None,
                read_seq,
                Skips.unpacked(skips, read_seq),
                Skips.unpacked(recalled, read_seq),
                *rest,
            )
        except (TypeError, ValueError):
            raise CorruptData("a conversation: the row has fields of a wrong form") from None


def _newer(one: Preview | None, other: Preview | None) -> Preview | None:
    if one is None or other is None:
        return one or other
    newest = max(one, other)
    # Who deletes a message before it is noted does not say whose it is.
    return newest._replace(sender=other.sender) if one.seq == other.seq else newest


def conversation_key(session: str) -> str:
    """The key of a conversation's row in a mailbox."""
    return f"{_PREFIX}{session}"


def conversation_of(key: str) -> str | None:
    """The session whose row has this key; None: it is not a key of one."""
    return key.removeprefix(_PREFIX) if key.startswith(_PREFIX) else None
