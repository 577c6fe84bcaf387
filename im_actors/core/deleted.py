"""Messages that a user deleted for himself, as his mailbox keeps them: one fact for a thousand
seqs of a conversation, so that none grows without end and a reader knows the keys of his page."""

from __future__ import annotations

from im_actors.core.rows import pack_row, unpack_row
from im_actors.errors import CorruptData

_BITS = 10
_MASK = (1 << _BITS) - 1


def deleted_key(session: str, seq: int) -> str:
    """The key of the fact that has ``seq`` in it."""
    return f"e/{session}/{seq >> _BITS:x}"


def deleted_keys(session: str, first: int, last: int) -> list[str]:
    """The keys of the facts that have the seqs ``first`` to ``last`` in them."""
    starts = range(first >> _BITS << _BITS, last + 1, 1 << _BITS)
    return [deleted_key(session, start) for start in starts]


def with_deleted(value: bytes | None, seq: int) -> bytes:
    """The fact's value with ``seq`` in it too."""
    bits = _bits(value) | 1 << (seq & _MASK)
    return pack_row((bits.to_bytes((bits.bit_length() + 7) // 8, "little"),))


def is_deleted(value: bytes | None, seq: int) -> bool:
    """Whether the fact that has ``seq`` in it says that it was deleted."""
    return bool(_bits(value) >> (seq & _MASK) & 1)


def _bits(value: bytes | None) -> int:
    if value is None:
        return 0
    (bits,) = unpack_row("deleted messages", value, 1)
    if type(bits) is not bytes:
        raise CorruptData("deleted messages: the row holds no bytes")
    return int.from_bytes(bits, "little")
